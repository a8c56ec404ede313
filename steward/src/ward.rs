//! What is known of one ward, and when something of it is overdue.

use std::{sync::Arc, time::Duration};

use crate::{
    backoff::Streak,
    types::{Cause, Phase, Restart, Time, Verdict, WardSpec},
};

/// What is wanted of a ward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// To run.
    Up,
    /// To rest: an operator said so.
    Down,
    /// To rest: it ended and its restart type leaves it there, or it waits for its first start.
    Resting,
    /// To rest: its group ended. A restart of the group brings it back.
    Ended,
    /// To rest: the steward gave up on it.
    Quarantined,
}

/// What follows a stop that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// What the intent says.
    Settle,
    /// An operator's restart: a start at once.
    Again,
    /// Its group's plan goes on.
    Plan,
    /// It was stalled: this is its failure.
    Fail,
}

/// A stop that was decided.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) then: Then,
    pub(crate) grace: Duration,
    pub(crate) cause: Cause,
    /// When it was sent; `None` while the incarnation is not known or the node is not there.
    pub(crate) sent: Option<Time>,
}

/// A start that was decided.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// `None`: when its group's plan comes to it.
    pub(crate) due: Option<Time>,
    pub(crate) cause: Cause,
    /// Asked for by an operator: costs nothing.
    pub(crate) free: bool,
    /// Place in the queue for the fleet's budget.
    pub(crate) ticket: Option<u64>,
}

/// The work lane of one incarnation. Times are patient ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    pub(crate) in_progress: u64,
    pub(crate) ended: u64,
    /// Age of the oldest unit, and when that was said.
    pub(crate) oldest: Option<(Duration, Time)>,
    /// Last sign of life.
    pub(crate) pulsed: Time,
}

#[derive(Debug)]
pub(crate) struct Ward {
    pub(crate) spec: WardSpec,
    pub(crate) group: Arc<str>,
    pub(crate) slot: usize,
    pub(crate) phase: Phase,
    pub(crate) intent: Intent,
    pub(crate) verdict: Verdict,
    pub(crate) incarnation: u64,
    /// That incarnation has not ended.
    pub(crate) live: bool,
    /// Since when it is in this phase (patient).
    pub(crate) since: Time,
    /// When the incarnation was first heard of (patient); `None` if it was adopted.
    pub(crate) began: Option<Time>,
    pub(crate) restarts: u64,
    pub(crate) streak: Streak,
    pub(crate) last_error_id: Option<Arc<str>>,
    pub(crate) work: Work,
    pub(crate) order: Option<Order>,
    pub(crate) pending: Option<Pending>,
    /// Why it was last started.
    pub(crate) cause: Cause,
}

/// What is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    Work,
    Pulse,
    Start,
}

/// The least by which something must exceed what is allowed.
const EXCESS: Duration = Duration::from_millis(1);

impl Ward {
    pub(crate) fn new(spec: WardSpec, group: Arc<str>) -> Self {
        let intent = if spec.manual_start { Intent::Resting } else { Intent::Up };
        Self {
            spec,
            group,
            slot: 0,
            phase: Phase::Stopped,
            intent,
            verdict: Verdict::Healthy,
            incarnation: 0,
            live: false,
            since: Time::ZERO,
            began: None,
            restarts: 0,
            streak: Streak::default(),
            last_error_id: None,
            work: Work::default(),
            order: None,
            pending: None,
            cause: Cause::default(),
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase, patient: Time) {
        self.phase = phase;
        self.since = patient;
    }

    /// Nothing of it runs or is being started.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Stopped | Phase::Backoff | Phase::Quarantined)
    }

    /// Whether a restart of its group starts it: temporary wards never, transient ones that ended
    /// too (as in OTP, they may be what the others rest on), wards at rest on somebody's wish not.
    pub(crate) fn follows_group(&self) -> bool {
        match (self.intent, self.spec.restart) {
            (_, Restart::Temporary) => false,
            (Intent::Up, _) => true,
            (Intent::Resting, Restart::Transient) => self.incarnation > 0 && !self.spec.manual_start,
            _ => false,
        }
    }

    /// Whether its group, when the group as a whole is restarted, starts it: it begins anew then, and
    /// with it what had ended.
    pub(crate) fn follows_anew(&self) -> bool {
        match self.intent {
            Intent::Up | Intent::Ended => true,
            Intent::Resting => !self.spec.manual_start,
            Intent::Down | Intent::Quarantined => false,
        }
    }

    /// Something of it can become overdue.
    pub(crate) fn has_promised(&self) -> bool {
        let spec = &self.spec;
        spec.stall_timeout.or(spec.pulse_timeout).or(spec.start_timeout).is_some()
    }

    /// The age of its oldest unit of work.
    pub(crate) fn oldest_work(&self, patient: Time) -> Option<Duration> {
        self.work.oldest.map(|(age, at)| age.saturating_add(patient.saturating_sub(at)))
    }

    /// When (patient) the first of its promises will be broken, if no more is heard. A busy ward is
    /// judged by its work, an idle one by its pulse; only by work where the runtime is stalled.
    pub(crate) fn overdue_at(&self, runtime_stalled: bool) -> Option<(Time, Overdue)> {
        let after = |since: Time, allowed: Duration| since.saturating_add(allowed).saturating_add(EXCESS);
        match (self.phase, self.work.oldest, self.spec.stall_timeout) {
            (Phase::Running, Some((age, at)), Some(allowed)) => {
                Some((after(at, allowed.saturating_sub(age)), Overdue::Work))
            }
            _ if runtime_stalled => None,
            (Phase::Running, ..) => {
                self.spec.pulse_timeout.map(|allowed| (after(self.work.pulsed, allowed), Overdue::Pulse))
            }
            (Phase::Starting, ..) if self.live => {
                self.spec.start_timeout.map(|allowed| (after(self.since, allowed), Overdue::Start))
            }
            _ => None,
        }
    }

    /// What was promised, and for how long it has been owed.
    pub(crate) fn owed(&self, overdue: Overdue, patient: Time) -> (Duration, Duration) {
        let spec = &self.spec;
        let (age, allowed) = match overdue {
            Overdue::Work => (self.oldest_work(patient).unwrap_or_default(), spec.stall_timeout),
            Overdue::Pulse => (patient.saturating_sub(self.work.pulsed), spec.pulse_timeout),
            Overdue::Start => (patient.saturating_sub(self.since), spec.start_timeout),
        };
        (age, allowed.unwrap_or_default())
    }
}

impl Overdue {
    pub(crate) fn reason(self, age: Duration, allowed: Duration) -> String {
        let what = match self {
            Overdue::Work => "work",
            Overdue::Pulse => "pulse",
            Overdue::Start => "start",
        };
        format!("{what} overdue: {}, allowed {}", seconds(age), seconds(allowed))
    }
}

/// "1.2 s": at most three decimals, none that say nothing.
pub(crate) fn seconds(duration: Duration) -> String {
    let text = format!("{}.{:03}", duration.as_secs(), duration.subsec_millis());
    format!("{} s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn running() -> Ward {
        let mut spec = WardSpec::new("w");
        spec.stall_timeout = Some(SECOND);
        spec.pulse_timeout = Some(SECOND * 3);
        let mut ward = Ward::new(spec, "n/".into());
        ward.live = true;
        ward.enter(Phase::Running, SECOND * 10);
        ward.work.pulsed = SECOND * 10;
        ward
    }

    #[test]
    fn a_busy_ward_is_judged_by_its_work_and_an_idle_one_by_its_pulse() {
        let mut ward = running();
        assert_eq!(ward.overdue_at(false), Some((SECOND * 13 + EXCESS, Overdue::Pulse)));
        ward.work.oldest = Some((SECOND / 2, SECOND * 20));
        assert_eq!(ward.overdue_at(false), Some((SECOND * 20 + SECOND / 2 + EXCESS, Overdue::Work)));
    }

    #[test]
    fn a_stalled_runtime_excuses_the_pulse_but_not_the_work() {
        let mut ward = running();
        assert_eq!(ward.overdue_at(true), None);
        ward.work.oldest = Some((SECOND * 9, SECOND * 20));
        assert_eq!(ward.overdue_at(true), Some((SECOND * 20 + EXCESS, Overdue::Work)));
    }

    #[test]
    fn durations_read_like_a_person_wrote_them() {
        assert_eq!(seconds(Duration::from_millis(1_200)), "1.2 s");
        assert_eq!(seconds(SECOND * 10), "10 s");
        assert_eq!(seconds(Duration::from_millis(1)), "0.001 s");
        assert_eq!(Overdue::Work.reason(SECOND, SECOND), "work overdue: 1 s, allowed 1 s");
    }
}
