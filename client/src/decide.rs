//! The heart of a race, without I/O or time: given how an attempt ended, what happens next.

use tonic::Code;

use crate::policy::{Codes, UNANIMOUS};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A good answer, read as far as its kind demands.
    Good,
    /// The member answered with this code.
    Refused(Code),
    /// No usable answer. `never_sent`: it is certain that the member saw nothing of the request.
    Lost { never_sent: bool },
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start so many more attempts.
    Start(usize),
    /// Wait for the attempts that run.
    Wait,
    /// Cancel what runs; the caller gets this attempt's reply.
    Deliver(u32),
    /// Nothing runs and nothing may be started: the call failed.
    GiveUp,
}

/// State of one call.
#[derive(Debug)]
pub(crate) struct Race {
    repeatable: bool,
    fatal: Codes,
    width: usize,
    unused: usize,
    running: usize,
    ended: Vec<(u32, Outcome)>,
}

impl Race {
    /// A call that may ask `width` of `members` at once. One that is not `repeatable` asks one.
    pub(crate) fn new(width: usize, members: usize, repeatable: bool, fatal: Codes) -> Self {
        let width = if repeatable { width } else { 1 };
        Self { repeatable, fatal, width, unused: members, running: 0, ended: Vec::new() }
    }

    /// The first decision.
    pub(crate) fn begin(&mut self) -> Decision {
        match self.start(self.width) {
            0 => Decision::GiveUp,
            n => Decision::Start(n),
        }
    }

    /// Attempts that run now.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// The decision after this attempt ended so.
    pub(crate) fn ended(&mut self, attempt: u32, outcome: Outcome) -> Decision {
        self.running = self.running.saturating_sub(1);
        self.ended.push((attempt, outcome));
        match outcome {
            Outcome::Good => return Decision::Deliver(attempt),
            Outcome::Refused(code) if self.fatal.contains(code) => return Decision::Deliver(attempt),
            _ => {}
        }
        if self.may_replace(outcome) && self.start(1) == 1 {
            return Decision::Start(1);
        }
        if self.running > 0 { Decision::Wait } else { self.conclude() }
    }

    fn may_replace(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Good => false,
            Outcome::Refused(code) => self.repeatable && code == Code::Unavailable,
            Outcome::Lost { never_sent } => self.repeatable || never_sent,
        }
    }

    fn start(&mut self, wanted: usize) -> usize {
        let n = wanted.min(self.unused);
        self.unused -= n;
        self.running += n;
        n
    }

    /// All ended, none well.
    fn conclude(&self) -> Decision {
        match self.ended.as_slice() {
            [(only, Outcome::Refused(_))] => Decision::Deliver(*only),
            [(first, Outcome::Refused(code)), rest @ ..]
                if UNANIMOUS.contains(*code) && rest.iter().all(|(_, o)| *o == Outcome::Refused(*code)) =>
            {
                Decision::Deliver(*first)
            }
            _ => Decision::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Decision::*, Outcome::*, *};
    use crate::policy::FATAL;

    const LOST: Outcome = Lost { never_sent: false };

    fn race(width: usize, members: usize) -> Race {
        Race::new(width, members, true, FATAL)
    }

    #[test]
    fn a_race_is_as_wide_as_its_policy_and_its_members_allow() {
        assert_eq!(race(2, 3).begin(), Start(2));
        assert_eq!(race(3, 1).begin(), Start(1));
        assert_eq!(race(2, 0).begin(), GiveUp);
        assert_eq!(Race::new(3, 3, false, FATAL).begin(), Start(1));
    }

    #[test]
    fn a_fast_error_waits_for_a_slow_success() {
        let mut race = race(2, 2);
        race.begin();
        assert_eq!(race.ended(1, Refused(Code::Internal)), Wait);
        assert_eq!(race.ended(2, Good), Deliver(2));
    }

    #[test]
    fn a_fatal_code_ends_the_race() {
        let mut race = race(2, 2);
        race.begin();
        assert_eq!(race.ended(2, Refused(Code::InvalidArgument)), Deliver(2));
        assert_eq!(race.running(), 1);
    }

    #[test]
    fn a_lost_attempt_is_replaced_while_members_are_left() {
        let mut race = race(1, 3);
        race.begin();
        assert_eq!(race.ended(1, LOST), Start(1));
        assert_eq!(race.ended(2, Refused(Code::Unavailable)), Start(1));
        assert_eq!(race.ended(3, LOST), GiveUp);
    }

    #[test]
    fn pushback_is_not_answered_with_more_load() {
        let mut race = race(2, 3);
        race.begin();
        assert_eq!(race.ended(1, Refused(Code::ResourceExhausted)), Wait);
        assert_eq!(race.ended(2, Refused(Code::ResourceExhausted)), GiveUp);
    }

    #[test]
    fn what_must_not_be_repeated_moves_on_only_if_it_was_never_sent() {
        let mut once = Race::new(2, 3, false, FATAL);
        assert_eq!(once.begin(), Start(1));
        assert_eq!(once.ended(1, Lost { never_sent: true }), Start(1));
        assert_eq!(once.ended(2, LOST), GiveUp);
        let mut once = Race::new(2, 3, false, FATAL);
        once.begin();
        assert_eq!(once.ended(1, Refused(Code::Unavailable)), Deliver(1));
    }

    #[test]
    fn the_same_deliberate_answer_from_all_is_the_answer() {
        let mut agreed = race(2, 2);
        agreed.begin();
        assert_eq!(agreed.ended(2, Refused(Code::NotFound)), Wait);
        assert_eq!(agreed.ended(1, Refused(Code::NotFound)), Deliver(2));
        let mut divided = race(2, 2);
        divided.begin();
        divided.ended(1, Refused(Code::NotFound));
        assert_eq!(divided.ended(2, Refused(Code::Internal)), GiveUp);
    }
}
