//! What a race may do, given its policy, how busy the members are, and how long attempts took lately. Pure.

use std::time::Duration;

use crate::{
    decide::Rules,
    gate::Level,
    methods::{Plan, SentOnce},
    policy::{Codes, HedgeDelay, Policy},
};

/// What [`Policy::All`] waits for before it sends the next copy, where copies are to be spared.
const SPARING: HedgeDelay = HedgeDelay::Percentile(95.0);
/// Once one of several tied copies has begun, the next goes out only if that takes longer than nearly all.
const BEGUN_TOO_LONG: f64 = 99.0;

/// Why a call that may be repeated has one attempt only.
pub(crate) fn sent_once(policy: Policy, level: Level) -> Option<SentOnce> {
    match policy {
        Policy::Single => Some(SentOnce::Policy),
        Policy::Quorum { .. } => None,
        _ => (level == Level::Single).then_some(SentOnce::Saturated),
    }
}

/// What a race of this plan may do at this level, and how many members copies may go to. `fatal`: codes that
/// end a race unless the plan has its own; `percentile`: of the times that attempts took lately, if known.
pub(crate) fn of(
    plan: &Plan,
    level: Level,
    fatal: Codes,
    percentile: impl Fn(f64) -> Option<Duration>,
) -> (Rules, usize) {
    let once = Rules::once(plan.fatal.unwrap_or(fatal));
    if !plan.repeatable() {
        return (once, usize::MAX);
    }
    let (first, most) = plan.policy.width();
    let repeatable = Rules { repeatable: true, first, most, ours: plan.fatal.is_none(), ..once };
    let delay = |delay| match delay {
        HedgeDelay::Percentile(p) => percentile(p).unwrap_or(HedgeDelay::COLD),
        HedgeDelay::Fixed(delay) => delay,
    };
    // Under load a delay below the median would hedge every other call.
    let sparing = |after| match after {
        HedgeDelay::Fixed(delay) if level != Level::Full => percentile(50.0).unwrap_or_default().max(delay),
        _ => delay(after),
    };
    match plan.policy {
        Policy::Single => (repeatable, usize::MAX),
        Policy::All(_) if level == Level::Full => (repeatable, usize::MAX),
        Policy::All(_) => {
            let spared = Rules { first: 1, delay: Some(delay(SPARING)), eager: true, ..repeatable };
            (spared, first)
        }
        Policy::Hedged { delay: after, .. } => {
            (Rules { delay: Some(sparing(after)), eager: true, ..repeatable }, usize::MAX)
        }
        Policy::Tied { delay: after, .. } => {
            let long = percentile(BEGUN_TOO_LONG).unwrap_or(HedgeDelay::COLD * 2);
            // What waits while another is worked on is taken back: it is no load that would have to be spared.
            let after = delay(after);
            let tied = Some(long.max(after * 2));
            (Rules { delay: Some(after), tied, eager: true, ..repeatable }, usize::MAX)
        }
        Policy::Quorum { equal, .. } => {
            let equal = usize::try_from(equal.max(1)).unwrap_or(usize::MAX);
            (Rules { equal, ..repeatable }, usize::MAX)
        }
    }
}
