//! The heart of a race, without I/O or clock: given what happened and when, what happens next.
//!
//! Times are counted from the start of the call.

#[cfg(test)]
mod tests;

use std::time::Duration;

use tonic::Code;

use crate::policy::{Codes, UNANIMOUS};

/// How often a call is sent again, for free, after its connection broke through no fault of the member.
const REPEATS: u32 = 4;
/// As often it is sent again to a member whose connection was lost, if there is no other to ask.
const SECOND_CHANCES: u32 = 2;
/// Between the last failure and the first round in which members are asked again; each further one is twice as
/// long.
const REST: Duration = Duration::from_millis(50);

/// What a race may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rules {
    /// May be sent to several members.
    pub(crate) repeatable: bool,
    /// Copies sent at once.
    pub(crate) first: usize,
    /// Copies that may have been sent for good: not those that never left, or were withdrawn.
    pub(crate) most: usize,
    /// The next copy goes out each time so long has passed.
    pub(crate) delay: Option<Duration>,
    /// The node that begins the work says so. After it has, the next copy goes out only after so long.
    pub(crate) tied: Option<Duration>,
    /// A failure that is not fatal starts the next copy at once.
    pub(crate) eager: bool,
    /// Codes mean what they mean to us, not what a service config makes of them: a deliberate answer about
    /// state stands unless another attempt says otherwise, and "too busy" is answered with another copy only
    /// if that is in the budget.
    pub(crate) ours: bool,
    /// When all have failed, in ways that may pass, they are asked again, so many times.
    pub(crate) rounds: u32,
    /// Where in its range, from 0 to 1, a pause between such rounds lies.
    pub(crate) spread: f64,
    /// No round begins later than this.
    pub(crate) until: Duration,
    /// So many answers must be equal.
    pub(crate) equal: usize,
    /// Codes that end the race.
    pub(crate) fatal: Codes,
}

impl Rules {
    /// Sent once; a member that never saw the request is replaced by the next.
    pub(crate) fn once(fatal: Codes) -> Self {
        Self {
            repeatable: false,
            first: 1,
            most: usize::MAX,
            delay: None,
            tied: None,
            eager: false,
            ours: true,
            rounds: 0,
            spread: 0.5,
            until: Duration::MAX,
            equal: 1,
            fatal,
        }
    }
}

/// What a server said of further copies (`grpc-retry-pushback-ms`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushback {
    After(Duration),
    Stop,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A good answer, read as far as its kind demands. Equal answers have the same number.
    Good { answer: u32 },
    /// The member answered with this code. `unbegun`: it has done nothing of the work, and the request can be sent
    /// again.
    Refused { code: Code, pushback: Option<Pushback>, unbegun: bool },
    /// No usable answer. `never_sent`: it is certain that the member saw nothing of the request.
    Lost { never_sent: bool },
    /// Its connection ended by a limit of the connection itself, or before the request was looked at:
    /// nothing is held against the member. `unprocessed`: it is certain that it did nothing.
    Broken { unprocessed: bool },
    /// Its connection was lost, and why is not known: the member may be dead, or well.
    Cut,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// `throttled`: too much fails, so that only what never left may be sent anew.
    Ended { attempt: u32, outcome: Outcome, throttled: bool },
    /// The moment of [`Race::wake_at`] has come. `allowed`: a further copy is in the budget.
    Due { allowed: bool },
    /// The member of this attempt has begun the work.
    Began(u32),
    /// The member of this attempt is suspected to be dead or stuck.
    Suspected(u32),
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start so many more attempts.
    Start(usize),
    /// Start one more attempt, at the member this one was sent to.
    Again(u32),
    /// The members of these may be asked again, after all others: start so many attempts.
    Renew { members_of: Vec<u32>, start: usize },
    /// Cancel these; their members may be asked again.
    Withdraw(Vec<u32>),
    /// Wait for what runs, or is due.
    Wait,
    /// Cancel what runs; the caller gets this attempt's reply.
    Deliver(u32),
    /// The call failed; what runs is cancelled.
    GiveUp,
}

#[derive(Clone, Copy, Debug)]
struct Runner {
    attempt: u32,
    begun: bool,
    suspected: bool,
}

/// State of one call.
#[derive(Debug)]
pub(crate) struct Race {
    rules: Rules,
    /// Members that may be asked: not asked yet, or withdrawn.
    free: usize,
    /// Members with an equal chance, of which copies are made. Others only replace what failed.
    equals: usize,
    /// Attempts that count.
    counted: usize,
    started: u32,
    running: Vec<Runner>,
    ended: Vec<(u32, Outcome)>,
    /// When the next copy is due.
    next: Option<Duration>,
    /// A server wants no further copies.
    hushed: bool,
    /// A server said that it is too busy.
    busy: bool,
    repeats: u32,
    /// Attempts whose members may be asked again.
    passing: Vec<u32>,
    /// One has failed in a way that says that it will again.
    lasting: bool,
    rounds: u32,
    /// Nothing runs, and `next` is when they are.
    resting: bool,
}

impl Race {
    /// A call that may ask these members, the first `equals` of which have an equal chance to serve it.
    pub(crate) fn new(rules: Rules, members: usize, equals: usize) -> Self {
        Self {
            rules,
            free: members,
            equals: equals.clamp(1, members.max(1)),
            counted: 0,
            started: 0,
            running: Vec::new(),
            ended: Vec::new(),
            next: None,
            hushed: false,
            busy: false,
            repeats: 0,
            passing: Vec::new(),
            lasting: false,
            rounds: 0,
            resting: false,
        }
    }

    /// The first decision.
    pub(crate) fn begin(&mut self) -> Decision {
        let width = self.rules.first.min(self.rules.most).min(self.equals);
        match self.start(if self.rules.repeatable { width } else { 1 }) {
            0 => Decision::GiveUp,
            n => {
                self.next = self.rules.delay;
                Decision::Start(n)
            }
        }
    }

    /// Attempts that run now.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// When the next copy is due, if one may follow.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        self.next.filter(|_| self.resting || self.may_copy())
    }

    /// Whether what is due is another round, for which all must pay.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Whether the copy that is due only replaces what has ended, so that it is no extra load.
    pub(crate) fn is_replacement(&self) -> bool {
        self.running.is_empty() && !self.busy
    }

    /// The attempts that run now.
    pub(crate) fn runners(&self) -> impl Iterator<Item = u32> + '_ {
        self.running.iter().map(|runner| runner.attempt)
    }

    /// The decision after this happened.
    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Decision {
        match input {
            Input::Ended { attempt, outcome, throttled } => self.ended(now, attempt, outcome, throttled),
            Input::Due { allowed } => self.due(now, allowed),
            Input::Began(attempt) => self.began(now, attempt),
            Input::Suspected(attempt) => self.suspected(now, attempt),
        }
    }

    fn due(&mut self, now: Duration, allowed: bool) -> Decision {
        if self.wake_at().is_none_or(|at| at > now) {
            return self.wait();
        }
        self.next = self.rules.delay.map(|delay| now + self.pause(delay));
        if std::mem::take(&mut self.resting) {
            return if allowed { self.renew() } else { self.conclude() };
        }
        if allowed && self.start(1) == 1 {
            return Decision::Start(1);
        }
        // Nothing else would ever end it.
        if self.running.is_empty() { self.rest(now, None) } else { Decision::Wait }
    }

    /// All have failed. If all of them may be well in a moment they are asked again then; else that was all.
    fn rest(&mut self, now: Duration, pushback: Option<Pushback>) -> Decision {
        let Rules { rounds, spread, until, most, equal, .. } = self.rules;
        let mut pause = REST.saturating_mul(1 << self.rounds.min(10)).mul_f64(0.5 + spread.clamp(0.0, 1.0));
        if let Some(Pushback::After(wanted)) = pushback {
            pause = pause.max(wanted);
        }
        let may = self.rounds < rounds && self.counted < most && equal == 1 && !self.hushed;
        let soon = now.checked_add(pause).is_some_and(|at| at < until);
        if self.passing.is_empty() || self.lasting || !may || !soon {
            return self.conclude();
        }
        (self.resting, self.next) = (true, Some(now + pause));
        Decision::Wait
    }

    fn renew(&mut self) -> Decision {
        let members_of = std::mem::take(&mut self.passing);
        self.rounds += 1;
        self.free += members_of.len();
        self.equals = self.equals.saturating_add(members_of.len());
        let start = self.start(if self.rules.repeatable { self.rules.first } else { 1 });
        Decision::Renew { members_of, start }
    }

    /// Whether a member that failed so may be well in a moment, and may be asked again then.
    fn may_pass(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Lost { never_sent } => never_sent,
            Outcome::Cut => self.rules.repeatable,
            Outcome::Refused { pushback: Some(Pushback::Stop), .. } => false,
            Outcome::Refused { code, unbegun, .. } => {
                let transient = code == Code::Unavailable || !self.rules.ours;
                transient && (self.rules.repeatable || unbegun)
            }
            Outcome::Good { .. } | Outcome::Broken { .. } => false,
        }
    }

    fn began(&mut self, now: Duration, attempt: u32) -> Decision {
        let Some(long) = self.rules.tied else { return Decision::Wait };
        let Some(runner) = self.running.iter_mut().find(|r| r.attempt == attempt) else {
            return Decision::Wait;
        };
        runner.begun = true;
        let queued: Vec<u32> = self.running.iter().filter(|r| !r.begun).map(|r| r.attempt).collect();
        self.running.retain(|r| r.begun);
        self.counted -= queued.len();
        self.free += queued.len();
        self.next = Some(now + long);
        if queued.is_empty() { Decision::Wait } else { Decision::Withdraw(queued) }
    }

    fn suspected(&mut self, now: Duration, attempt: u32) -> Decision {
        let Some(runner) = self.running.iter_mut().find(|r| r.attempt == attempt) else {
            return Decision::Wait;
        };
        runner.suspected = true;
        if self.next.is_some() && self.running.iter().all(|r| r.suspected) {
            self.next = Some(now);
        }
        Decision::Wait
    }

    fn ended(&mut self, now: Duration, attempt: u32, outcome: Outcome, throttled: bool) -> Decision {
        self.running.retain(|r| r.attempt != attempt);
        self.ended.push((attempt, outcome));
        if let Some(decision) = self.judge(attempt, outcome) {
            return decision;
        }
        match outcome {
            Outcome::Broken { .. } => {}
            _ if self.may_pass(outcome) => self.passing.push(attempt),
            _ => self.lasting = true,
        }
        match outcome {
            Outcome::Broken { unprocessed }
                if (self.rules.repeatable || unprocessed) && self.repeats < REPEATS =>
            {
                self.repeats += 1;
                self.enlist(1);
                return Decision::Again(attempt);
            }
            // What never left is no attempt that counts.
            Outcome::Lost { never_sent: true } => self.counted = self.counted.saturating_sub(1),
            Outcome::Refused { pushback: Some(Pushback::Stop), .. } => self.hushed = true,
            Outcome::Refused { pushback: Some(Pushback::After(pause)), .. } => {
                self.next = self.rules.delay.map(|_| now + pause);
            }
            Outcome::Refused { code: Code::ResourceExhausted, .. } if self.rules.ours => {
                self.busy = true;
                if self.running.is_empty() {
                    self.next = self.rules.delay.map(|_| now);
                }
            }
            Outcome::Refused { code, .. } if self.stands(code) => return self.conclude(),
            _ => {}
        }
        if self.may_replace(outcome, throttled) && self.start(1) == 1 {
            self.next = self.rules.delay.map(|delay| now + self.pause(delay));
            return Decision::Start(1);
        }
        let chance = outcome == Outcome::Cut && self.rules.repeatable && !throttled && !self.hushed;
        if chance && self.running.is_empty() && self.repeats < SECOND_CHANCES {
            self.repeats += 1;
            self.enlist(1);
            self.passing.retain(|other| *other != attempt);
            return Decision::Again(attempt);
        }
        if throttled && self.running.is_empty() {
            return self.conclude();
        }
        if self.running.is_empty() && self.wake_at().is_none() {
            let pushback = match outcome {
                Outcome::Refused { pushback, .. } => pushback,
                _ => None,
            };
            return self.rest(now, pushback);
        }
        self.wait()
    }

    /// Whether this end is the end of the race.
    fn judge(&self, attempt: u32, outcome: Outcome) -> Option<Decision> {
        let code = match outcome {
            Outcome::Good { .. } if self.rules.equal == 1 => return Some(Decision::Deliver(attempt)),
            Outcome::Good { .. } => return self.agreed(|o| *o == outcome).map(Decision::Deliver),
            Outcome::Refused { code, .. } => code,
            Outcome::Lost { never_sent: false } | Outcome::Cut => Code::Unavailable,
            Outcome::Lost { never_sent: true } | Outcome::Broken { .. } => return None,
        };
        let refused = matches!(outcome, Outcome::Refused { .. });
        if self.rules.equal > 1 {
            let deliberate = refused && (self.rules.fatal.contains(code) || UNANIMOUS.contains(code));
            let same = |o: &Outcome| matches!(o, Outcome::Refused { code: other, .. } if *other == code);
            return self.agreed(same).filter(|_| deliberate).map(Decision::Deliver);
        }
        let over = self.rules.fatal.contains(code);
        over.then_some(if refused { Decision::Deliver(attempt) } else { Decision::GiveUp })
    }

    /// The first of the attempts that ended like this, if they are enough.
    fn agreed(&self, like: impl Fn(&Outcome) -> bool) -> Option<u32> {
        let mut alike = self.ended.iter().filter(|(_, outcome)| like(outcome));
        let (first, _) = alike.next()?;
        (alike.count() + 1 >= self.rules.equal).then_some(*first)
    }

    fn may_replace(&self, outcome: Outcome, throttled: bool) -> bool {
        let repeatable = self.rules.repeatable && !throttled && !self.hushed;
        match outcome {
            Outcome::Good { .. } => false,
            Outcome::Lost { never_sent } => repeatable || never_sent,
            Outcome::Broken { unprocessed } => repeatable || unprocessed,
            Outcome::Cut => repeatable,
            Outcome::Refused { pushback: Some(_), .. } => false,
            Outcome::Refused { code: Code::ResourceExhausted, .. } if self.rules.ours => false,
            Outcome::Refused { code, .. } if self.rules.ours && UNANIMOUS.contains(code) => false,
            Outcome::Refused { code: Code::Unavailable, unbegun: true, .. } => repeatable || !self.hushed,
            Outcome::Refused { code, .. } => repeatable && (self.rules.eager || code == Code::Unavailable),
        }
    }

    /// Whether this deliberate answer is the only thing that anybody asked has said.
    fn stands(&self, code: Code) -> bool {
        let alone = self.running.is_empty() && self.rules.equal == 1 && self.rules.ours;
        let same =
            |(_, o): &(u32, Outcome)| matches!(o, Outcome::Refused { code: other, .. } if *other == code);
        alone && UNANIMOUS.contains(code) && self.ended.iter().all(same)
    }

    /// After one has begun, copies follow at a slower pace.
    fn pause(&self, delay: Duration) -> Duration {
        let begun = self.running.iter().any(|r| r.begun);
        self.rules.tied.filter(|_| begun).map_or(delay, |long| long.max(delay))
    }

    fn may_copy(&self) -> bool {
        let asked = self.started as usize;
        let equal = self.running.is_empty() || asked < self.equals || self.withdrawn() > 0;
        self.rules.repeatable && !self.hushed && self.free > 0 && self.counted < self.rules.most && equal
    }

    fn withdrawn(&self) -> usize {
        (self.started as usize).saturating_sub(self.running.len() + self.ended.len())
    }

    fn start(&mut self, wanted: usize) -> usize {
        let n = wanted.min(self.free).min(self.rules.most.saturating_sub(self.counted));
        self.free -= n;
        self.counted += n;
        self.enlist(n);
        n
    }

    fn enlist(&mut self, n: usize) {
        for _ in 0..n {
            self.started += 1;
            self.running.push(Runner { attempt: self.started, begun: false, suspected: false });
        }
    }

    fn wait(&self) -> Decision {
        let open = !self.running.is_empty() || self.wake_at().is_some();
        let hopeless = self.rules.equal > 1 && self.most_alike() + self.running.len() < self.rules.equal;
        if open && !hopeless { Decision::Wait } else { self.conclude() }
    }

    /// The number of attempts that agree with most others.
    fn most_alike(&self) -> usize {
        let alike = |like: &Outcome| match like {
            Outcome::Good { .. } | Outcome::Refused { .. } => {
                self.ended.iter().filter(|(_, o)| same_answer(o, like)).count()
            }
            _ => 0,
        };
        self.ended.iter().map(|(_, outcome)| alike(outcome)).max().unwrap_or(0)
    }

    /// All ended, none well.
    fn conclude(&self) -> Decision {
        if self.rules.equal > 1 {
            return Decision::GiveUp;
        }
        match self.ended.as_slice() {
            [(only, Outcome::Refused { .. })] => Decision::Deliver(*only),
            [(first, like @ Outcome::Refused { code, .. }), rest @ ..]
                if UNANIMOUS.contains(*code) && rest.iter().all(|(_, o)| same_answer(o, like)) =>
            {
                Decision::Deliver(*first)
            }
            _ => Decision::GiveUp,
        }
    }
}

fn same_answer(one: &Outcome, other: &Outcome) -> bool {
    match (one, other) {
        (Outcome::Refused { code: one, .. }, Outcome::Refused { code: other, .. }) => one == other,
        _ => one == other,
    }
}
