//! A ward's heart: the counters its two lanes of heartbeat advance, and nothing else.
//!
//! A beat is an atomic add: no lock, no clock, no allocation, no timer per ward. The age of the
//! oldest unit of work is kept by a ring of time slices that one sweeper for all wards turns:
//! a unit counts in the slice it began in, so the oldest slice that still counts something tells
//! the age, to within one slice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Slices in the ring. One slice is an eighth of the stall timeout, so that the ring spans two.
const SLICES: usize = 16;
/// In no slice.
const PAUSED: usize = usize::MAX;
const FINEST: Duration = Duration::from_millis(20);
const COARSEST: Duration = Duration::from_secs(1);

/// The counters of one incarnation of a ward. Each has its own, so that what an abandoned one still
/// does is not held against the one that replaced it.
#[derive(Debug)]
pub(crate) struct Heart {
    pulses: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    slices: [AtomicU32; SLICES],
    current: AtomicUsize,
    width: Duration,
}

impl Heart {
    pub(crate) fn new(stall_timeout: Option<Duration>) -> Self {
        Self {
            pulses: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            slices: [const { AtomicU32::new(0) }; SLICES],
            current: AtomicUsize::new(0),
            width: stall_timeout.map_or(COARSEST, |t| (t / 8).clamp(FINEST, COARSEST.max(t / 8))),
        }
    }

    pub(crate) fn pulse(&self) {
        self.pulses.fetch_add(1, Relaxed);
    }

    /// Begins a unit of work; it ends when the guard is dropped.
    pub(crate) fn work(self: &Arc<Self>) -> WorkGuard {
        let slice = self.enter();
        self.begun.fetch_add(1, Relaxed);
        WorkGuard { heart: self.clone(), slice: AtomicUsize::new(slice) }
    }

    fn enter(&self) -> usize {
        let slice = self.current.load(Relaxed) % SLICES;
        self.slices[slice].fetch_add(1, Relaxed);
        slice
    }

    fn leave(&self, slice: usize) {
        if slice != PAUSED {
            self.slices[slice].fetch_sub(1, Relaxed);
        }
    }

    #[cfg(test)]
    pub(crate) fn in_progress(&self) -> u64 {
        self.begun.load(Relaxed).saturating_sub(self.ended.load(Relaxed))
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            pulses: self.pulses.load(Relaxed),
            begun: self.begun.load(Relaxed),
            ended: self.ended.load(Relaxed),
        }
    }
}

/// One unit of work in progress: it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the unit of work ends when this is dropped"]
pub(crate) struct WorkGuard {
    heart: Arc<Heart>,
    /// The slice it counts in, or [`PAUSED`].
    slice: AtomicUsize,
}

impl WorkGuard {
    /// It makes no progress and that is not the ward's doing: it waits for its caller. It has no age
    /// until [`WorkGuard::renew`].
    pub(crate) fn pause(&self) {
        self.heart.leave(self.slice.swap(PAUSED, Relaxed));
    }

    /// It made progress just now: its age begins anew.
    pub(crate) fn renew(&self) {
        let slice = self.heart.enter();
        self.heart.leave(self.slice.swap(slice, Relaxed));
    }

    /// Ends a pause; a unit that is not paused keeps its age.
    pub(crate) fn resume(&self) {
        if self.slice.load(Relaxed) == PAUSED {
            self.renew();
        }
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.pause();
        self.heart.ended.fetch_add(1, Relaxed);
    }
}

/// What the sweeper knows of one heart: when each slice was closed, and what was reported last.
#[derive(Debug)]
pub(crate) struct Sweep {
    closed_at: [Duration; SLICES],
    opened_at: Duration,
    seen: Totals,
}

/// Totals since the node's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) pulses: u64,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// What changed since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) pulses: u32,
    pub(crate) begun: u32,
    pub(crate) ended: u32,
    pub(crate) oldest_work: Option<Duration>,
}

impl Delta {
    pub(crate) fn is_quiet(&self) -> bool {
        *self == Self::default()
    }
}

impl Sweep {
    pub(crate) fn new(now: Duration) -> Self {
        Self { closed_at: [now; SLICES], opened_at: now, seen: Totals::default() }
    }

    /// Turns the ring if the current slice is as wide as it should be.
    pub(crate) fn turn(&mut self, heart: &Heart, now: Duration) {
        if now.saturating_sub(self.opened_at) < heart.width {
            return;
        }
        let current = heart.current.load(Relaxed) % SLICES;
        let free = (1..SLICES).map(|i| (current + i) % SLICES).find(|i| heart.slices[*i].load(Relaxed) == 0);
        // All slices in use: units of twice the stall timeout are in progress, and stay the oldest.
        let Some(next) = free else { return };
        self.closed_at[current] = now;
        self.opened_at = now;
        heart.current.store(next, Relaxed);
    }

    /// Age of the oldest unit in progress, underestimated by less than one slice.
    pub(crate) fn oldest(&self, heart: &Heart, now: Duration) -> Option<Duration> {
        let current = heart.current.load(Relaxed) % SLICES;
        (0..SLICES)
            .filter(|i| heart.slices[*i].load(Relaxed) > 0)
            .map(|i| if i == current { Duration::ZERO } else { now.saturating_sub(self.closed_at[i]) })
            .max()
    }

    /// What changed since the last call.
    pub(crate) fn delta(&mut self, heart: &Heart, now: Duration) -> Delta {
        // Ended first: a unit that begins and ends in between must not make ended exceed begun.
        let ended = heart.ended.load(Relaxed);
        let totals = Totals { pulses: heart.pulses.load(Relaxed), begun: heart.begun.load(Relaxed), ended };
        let less = |new: u64, old: u64| u32::try_from(new.saturating_sub(old)).unwrap_or(u32::MAX);
        let delta = Delta {
            pulses: less(totals.pulses, self.seen.pulses),
            begun: less(totals.begun, self.seen.begun),
            ended: less(totals.ended, self.seen.ended),
            oldest_work: self.oldest(heart, now),
        };
        self.seen = totals;
        delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn sweep_to(sweep: &mut Sweep, heart: &Heart, from: u32, to: u32) {
        for t in from..=to {
            sweep.turn(heart, t * MS);
        }
    }

    #[test]
    fn the_oldest_unit_is_known_to_within_one_slice_and_never_overestimated() {
        let heart = Arc::new(Heart::new(Some(Duration::from_millis(800))));
        let mut sweep = Sweep::new(Duration::ZERO);
        sweep_to(&mut sweep, &heart, 0, 250);
        let old = heart.work();
        for t in 250..2_000u32 {
            drop(heart.work());
            sweep.turn(&heart, t * MS);
            let age = sweep.oldest(&heart, t * MS).unwrap();
            let truth = (t - 250) * MS;
            assert!(age <= truth && truth - age <= 101 * MS, "at {t}: {age:?} for {truth:?}");
        }
        drop(old);
        assert_eq!(sweep.oldest(&heart, 2_000 * MS), None);
    }

    #[test]
    fn a_unit_that_waits_for_its_caller_has_no_age_and_one_that_progresses_a_new_one() {
        let heart = Arc::new(Heart::new(Some(Duration::from_millis(160))));
        let mut sweep = Sweep::new(Duration::ZERO);
        let unit = heart.work();
        unit.pause();
        unit.pause();
        sweep_to(&mut sweep, &heart, 0, 1_000);
        assert_eq!((sweep.oldest(&heart, 1_000 * MS), heart.in_progress()), (None, 1));
        unit.resume();
        sweep_to(&mut sweep, &heart, 1_000, 1_300);
        unit.resume();
        assert!(sweep.oldest(&heart, 1_300 * MS).unwrap() >= 250 * MS);
        unit.renew();
        assert!(sweep.oldest(&heart, 1_300 * MS).unwrap() < 50 * MS);
        drop(unit);
        assert_eq!((sweep.oldest(&heart, 1_300 * MS), heart.in_progress()), (None, 0));
    }

    #[test]
    fn many_long_units_at_once_stay_the_oldest_and_all_are_counted() {
        let heart = Arc::new(Heart::new(Some(Duration::from_millis(160))));
        let mut sweep = Sweep::new(Duration::ZERO);
        let mut held = Vec::new();
        for t in 0..2_000u32 {
            if t % 10 == 0 {
                held.push(heart.work());
            }
            sweep.turn(&heart, t * MS);
        }
        assert!(sweep.oldest(&heart, 2_000 * MS).unwrap() >= 1_900 * MS);
        assert_eq!(heart.in_progress(), 200);
        held.clear();
        assert_eq!(heart.in_progress(), 0);
    }

    #[test]
    fn a_delta_tells_only_what_is_new() {
        let heart = Arc::new(Heart::new(None));
        let mut sweep = Sweep::new(Duration::ZERO);
        heart.pulse();
        let work = heart.work();
        let first = sweep.delta(&heart, MS);
        assert_eq!((first.pulses, first.begun, first.ended), (1, 1, 0));
        assert!(first.oldest_work.is_some());
        drop(work);
        let second = sweep.delta(&heart, MS);
        assert_eq!((second.pulses, second.begun, second.ended, second.oldest_work), (0, 0, 1, None));
        assert!(sweep.delta(&heart, MS).is_quiet());
    }
}
