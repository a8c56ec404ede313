//! What is known of one ward, and when something of it is overdue.

use std::{sync::Arc, time::Duration};

use crate::{
    alarms::{NEVER, Nanos, nanos},
    backoff::Streak,
    types::{Cause, Phase, Restart, Time, Verdict, WardId, WardSpec},
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
    /// The report that is being taken in lists it.
    pub(crate) listed: bool,
}

/// What wards promise, how they are treated and with whom: shared by those that differ by name only.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    /// The name in it is nobody's.
    pub(crate) spec: WardSpec,
    pub(crate) group: Arc<str>,
}

/// There may be a million of them: what few wards have is boxed, what many have alike is shared.
#[derive(Debug)]
pub(crate) struct Ward {
    pub(crate) id: WardId,
    pub(crate) terms: Arc<Terms>,
    /// Its place on its node, in start order.
    pub(crate) slot: u32,
    /// When it is to be looked at, or earlier; [`NEVER`] if no alarm is set.
    pub(crate) alarm: Nanos,
    /// It is among those whose alarm is to be set.
    pub(crate) touched: bool,
    pub(crate) phase: Phase,
    pub(crate) intent: Intent,
    pub(crate) verdict: Verdict,
    pub(crate) incarnation: u64,
    /// That incarnation has not ended.
    pub(crate) live: bool,
    /// Since when it is in this phase (patient).
    since: Nanos,
    /// When the incarnation was first heard of (patient); [`NEVER`] if it was adopted.
    began: Nanos,
    pub(crate) restarts: u64,
    pub(crate) streak: Streak,
    pub(crate) last_error_id: Option<Box<Arc<str>>>,
    /// `None`: it has done none.
    pub(crate) work: Option<Box<Work>>,
    pub(crate) order: Option<Box<Order>>,
    pub(crate) pending: Option<Box<Pending>>,
    /// Why it is being started.
    pub(crate) cause: Option<Box<Cause>>,
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
    pub(crate) fn new(id: WardId, terms: Arc<Terms>) -> Self {
        let intent = if terms.spec.manual_start { Intent::Resting } else { Intent::Up };
        Self {
            id,
            terms,
            slot: 0,
            alarm: NEVER,
            touched: false,
            phase: Phase::Stopped,
            intent,
            verdict: Verdict::Healthy,
            incarnation: 0,
            live: false,
            since: 0,
            began: NEVER,
            restarts: 0,
            streak: Streak::default(),
            last_error_id: None,
            work: None,
            order: None,
            pending: None,
            cause: None,
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase, patient: Time) {
        self.phase = phase;
        self.since = nanos(patient);
    }

    pub(crate) fn since(&self) -> Time {
        Duration::from_nanos(self.since)
    }

    pub(crate) fn began(&self) -> Option<Time> {
        (self.began != NEVER).then(|| Duration::from_nanos(self.began))
    }

    /// Another incarnation lives.
    pub(crate) fn begin(&mut self, incarnation: u64, began: Option<Time>) {
        (self.incarnation, self.live, self.began) = (incarnation, true, began.map_or(NEVER, nanos));
    }

    pub(crate) fn spec(&self) -> &WardSpec {
        &self.terms.spec
    }

    pub(crate) fn group(&self) -> &Arc<str> {
        &self.terms.group
    }

    /// It failed, with this error if there is one.
    pub(crate) fn erred(&mut self, error_id: Option<&Arc<str>>) {
        if let Some(id) = error_id {
            self.last_error_id = Some(Box::new(id.clone()));
        }
    }

    /// Nothing of it runs or is being started.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Stopped | Phase::Backoff | Phase::Quarantined)
    }

    /// Whether a restart of its group starts it: temporary wards never, transient ones that ended
    /// too (as in OTP, they may be what the others rest on), wards at rest on somebody's wish not.
    pub(crate) fn follows_group(&self) -> bool {
        match (self.intent, self.spec().restart) {
            (_, Restart::Temporary) => false,
            (Intent::Up, _) => true,
            (Intent::Resting, Restart::Transient) => self.incarnation > 0 && !self.spec().manual_start,
            _ => false,
        }
    }

    /// Whether its group, when the group as a whole is restarted, starts it: it begins anew then, and
    /// with it what had ended.
    pub(crate) fn follows_anew(&self) -> bool {
        match self.intent {
            Intent::Up | Intent::Ended => true,
            Intent::Resting => !self.spec().manual_start,
            Intent::Down | Intent::Quarantined => false,
        }
    }

    /// The age of its oldest unit of work, and when that was said.
    pub(crate) fn oldest(&self) -> Option<(Duration, Time)> {
        self.work.as_ref().and_then(|work| work.oldest)
    }

    /// The age of its oldest unit of work.
    pub(crate) fn oldest_work(&self, patient: Time) -> Option<Duration> {
        self.oldest().map(|(age, at)| age.saturating_add(patient.saturating_sub(at)))
    }

    /// Nothing of it is in progress any more.
    pub(crate) fn is_idle_now(&mut self) {
        if let Some(work) = &mut self.work {
            (work.in_progress, work.oldest) = (0, None);
        }
    }

    /// When (patient) the first of its promises will be broken, if no more is heard. A busy ward is
    /// judged by its work, an idle one by its pulse; only by work where the runtime is stalled.
    pub(crate) fn overdue_at(&self, runtime_stalled: bool, pulsed: Time) -> Option<(Time, Overdue)> {
        let after = |since: Time, allowed: Duration| since.saturating_add(allowed).saturating_add(EXCESS);
        match (self.phase, self.oldest(), self.spec().stall_timeout) {
            (Phase::Running, Some((age, at)), Some(allowed)) => {
                Some((after(at, allowed.saturating_sub(age)), Overdue::Work))
            }
            _ if runtime_stalled => None,
            (Phase::Running, ..) => {
                self.spec().pulse_timeout.map(|allowed| (after(pulsed, allowed), Overdue::Pulse))
            }
            (Phase::Starting, ..) if self.live => {
                self.spec().start_timeout.map(|allowed| (after(self.since(), allowed), Overdue::Start))
            }
            _ => None,
        }
    }

    /// Its oldest work has taken more than half of what it may.
    pub(crate) fn is_suspected(&self, patient: Time) -> bool {
        let well = self.phase == Phase::Running && self.verdict == Verdict::Healthy;
        let allowed = self.spec().stall_timeout.filter(|_| well);
        allowed.zip(self.oldest_work(patient)).is_some_and(|(allowed, age)| age > allowed / 2)
    }

    /// What was promised, and for how long it has been owed.
    pub(crate) fn owed(&self, overdue: Overdue, pulsed: Time, patient: Time) -> (Duration, Duration) {
        let spec = self.spec();
        let (age, allowed) = match overdue {
            Overdue::Work => (self.oldest_work(patient).unwrap_or_default(), spec.stall_timeout),
            Overdue::Pulse => (patient.saturating_sub(pulsed), spec.pulse_timeout),
            Overdue::Start => (patient.saturating_sub(self.since()), spec.start_timeout),
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
        let mut ward = Ward::new(WardId::new("n", "w"), Arc::new(Terms { spec, group: "n/".into() }));
        ward.live = true;
        ward.enter(Phase::Running, SECOND * 10);
        ward
    }

    const PULSED: Time = Duration::from_secs(10);

    fn works(ward: &mut Ward, oldest: (Duration, Time)) {
        ward.work = Some(Box::new(Work { oldest: Some(oldest), ..Work::default() }));
    }

    #[test]
    fn a_busy_ward_is_judged_by_its_work_and_an_idle_one_by_its_pulse() {
        let mut ward = running();
        assert_eq!(ward.overdue_at(false, PULSED), Some((SECOND * 13 + EXCESS, Overdue::Pulse)));
        works(&mut ward, (SECOND / 2, SECOND * 20));
        assert_eq!(ward.overdue_at(false, PULSED), Some((SECOND * 20 + SECOND / 2 + EXCESS, Overdue::Work)));
    }

    #[test]
    fn a_stalled_runtime_excuses_the_pulse_but_not_the_work() {
        let mut ward = running();
        assert_eq!(ward.overdue_at(true, PULSED), None);
        works(&mut ward, (SECOND * 9, SECOND * 20));
        assert_eq!(ward.overdue_at(true, PULSED), Some((SECOND * 20 + EXCESS, Overdue::Work)));
    }

    #[test]
    fn durations_read_like_a_person_wrote_them() {
        assert_eq!(seconds(Duration::from_millis(1_200)), "1.2 s");
        assert_eq!(seconds(SECOND * 10), "10 s");
        assert_eq!(seconds(Duration::from_millis(1)), "0.001 s");
        assert_eq!(Overdue::Work.reason(SECOND, SECOND), "work overdue: 1 s, allowed 1 s");
    }
}
