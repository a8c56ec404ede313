//! A ward's heart: the counters its two lanes of heartbeat advance, and nothing else.
//!
//! A beat is an atomic store or add in the ward's own memory: no lock, no clock, no allocation (but once,
//! at the first unit of work), no timer per ward. The age of the
//! oldest unit of work is kept by a ring of time slices that one sweeper for all wards turns:
//! a unit counts in the slice it began in, so the oldest slice that still counts something tells
//! the age, to within one slice.

use std::{
    sync::{
        Arc, OnceLock,
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
    pulses: AtomicU32,
    width_ms: u32,
    /// What wards need that do work: many never do.
    work: OnceLock<Arc<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    begun: AtomicU64,
    ended: AtomicU64,
    slices: [AtomicU32; SLICES],
    current: AtomicUsize,
}

impl Heart {
    pub(crate) fn new(stall_timeout: Option<Duration>) -> Self {
        let width = stall_timeout.map_or(COARSEST, |t| (t / 8).clamp(FINEST, COARSEST.max(t / 8)));
        Self {
            pulses: AtomicU32::new(0),
            width_ms: u32::try_from(width.as_millis()).unwrap_or(u32::MAX),
            work: OnceLock::new(),
        }
    }

    /// Not one atomic step, which would cost several times as much: of two threads that pulse for one
    /// ward at the same instant, one may be counted.
    #[inline]
    pub(crate) fn pulse(&self) {
        self.pulses.store(self.pulses.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Begins a unit of work; it ends when the guard is dropped.
    pub(crate) fn work(&self) -> WorkGuard {
        let ring = self.work.get_or_init(Arc::default);
        let slice = ring.enter();
        ring.begun.fetch_add(1, Relaxed);
        WorkGuard { ring: ring.clone(), slice: AtomicUsize::new(slice) }
    }

    #[cfg(test)]
    pub(crate) fn in_progress(&self) -> u64 {
        self.work.get().map_or(0, |w| w.begun.load(Relaxed).saturating_sub(w.ended.load(Relaxed)))
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn totals(&self) -> Totals {
        let ring = self.work.get();
        Totals {
            pulses: self.pulses.load(Relaxed).into(),
            begun: ring.map_or(0, |ring| ring.begun.load(Relaxed)),
            ended: ring.map_or(0, |ring| ring.ended.load(Relaxed)),
        }
    }
}

impl Ring {
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
}

/// One unit of work in progress: it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the unit of work ends when this is dropped"]
pub(crate) struct WorkGuard {
    ring: Arc<Ring>,
    /// The slice it counts in, or [`PAUSED`].
    slice: AtomicUsize,
}

impl WorkGuard {
    /// It makes no progress and that is not the ward's doing: it waits for its caller. It has no age
    /// until [`WorkGuard::renew`].
    pub(crate) fn pause(&self) {
        self.ring.leave(self.slice.swap(PAUSED, Relaxed));
    }

    /// It made progress just now: its age begins anew.
    pub(crate) fn renew(&self) {
        let slice = self.ring.enter();
        self.ring.leave(self.slice.swap(slice, Relaxed));
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
        self.ring.ended.fetch_add(1, Relaxed);
    }
}

/// What the sweeper knows of one heart.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    pulses: u32,
    work: Option<Box<Turns>>,
}

/// When each slice of a ring was closed, and what was reported last.
#[derive(Debug)]
struct Turns {
    closed_at: [Duration; SLICES],
    opened_at: Duration,
    begun: u64,
    ended: u64,
}

/// Totals since the incarnation's start.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) pulses: u64,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// What became of work since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) begun: u32,
    pub(crate) ended: u32,
    pub(crate) oldest: Option<Duration>,
}

impl Sweep {
    /// Turns the ring, if there is one, and if the current slice is as wide as it should be.
    pub(crate) fn turn(&mut self, heart: &Heart, now: Duration) {
        let Some(ring) = heart.work.get() else { return };
        let first = self.work.is_none();
        let turns = self.work.get_or_insert_with(|| {
            Box::new(Turns { closed_at: [now; SLICES], opened_at: now, begun: 0, ended: 0 })
        });
        // The first slice is closed at once: from here on the ages of what is in it are known.
        if !first && now.saturating_sub(turns.opened_at) < Duration::from_millis(heart.width_ms.into()) {
            return;
        }
        let current = ring.current.load(Relaxed) % SLICES;
        let free = (1..SLICES).map(|i| (current + i) % SLICES).find(|i| ring.slices[*i].load(Relaxed) == 0);
        // All slices in use: units of twice the stall timeout are in progress, and stay the oldest.
        let Some(next) = free else { return };
        turns.closed_at[current] = now;
        turns.opened_at = now;
        ring.current.store(next, Relaxed);
    }

    /// Age of the oldest unit in progress, underestimated by less than one slice.
    pub(crate) fn oldest(&self, heart: &Heart, now: Duration) -> Option<Duration> {
        let ring = heart.work.get()?;
        let current = ring.current.load(Relaxed) % SLICES;
        let closed_at = |i: usize| self.work.as_ref().map_or(now, |turns| turns.closed_at[i]);
        (0..SLICES)
            .filter(|i| ring.slices[*i].load(Relaxed) > 0)
            .map(|i| if i == current { Duration::ZERO } else { now.saturating_sub(closed_at(i)) })
            .max()
    }

    /// Whether it has pulsed since the last call.
    pub(crate) fn pulsed(&mut self, heart: &Heart) -> bool {
        let pulses = heart.pulses.load(Relaxed);
        std::mem::replace(&mut self.pulses, pulses) != pulses
    }

    /// What became of work since the last call. `None`: it has never worked.
    pub(crate) fn delta(&mut self, heart: &Heart, now: Duration) -> Option<Delta> {
        let ring = heart.work.get()?;
        self.turn(heart, now);
        let oldest = self.oldest(heart, now);
        let turns = self.work.as_mut()?;
        // Ended first: a unit that begins and ends in between must not make ended exceed begun.
        let ended = ring.ended.load(Relaxed);
        let begun = ring.begun.load(Relaxed);
        let less = |new: u64, old: u64| u32::try_from(new.saturating_sub(old)).unwrap_or(u32::MAX);
        let delta = Delta { begun: less(begun, turns.begun), ended: less(ended, turns.ended), oldest };
        (turns.begun, turns.ended) = (begun, ended);
        Some(delta)
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
        let heart = Heart::new(Some(Duration::from_millis(800)));
        let mut sweep = Sweep::default();
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
        let heart = Heart::new(Some(Duration::from_millis(160)));
        let mut sweep = Sweep::default();
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
        let heart = Heart::new(Some(Duration::from_millis(160)));
        let mut sweep = Sweep::default();
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
        let heart = Heart::new(None);
        let mut sweep = Sweep::default();
        heart.pulse();
        let work = heart.work();
        let first = sweep.delta(&heart, MS).unwrap();
        assert_eq!((first.begun, first.ended, sweep.pulsed(&heart)), (1, 0, true));
        assert!(first.oldest.is_some());
        drop(work);
        let second = sweep.delta(&heart, MS).unwrap();
        assert_eq!((second.begun, second.ended, second.oldest), (0, 1, None));
        assert!(sweep.delta(&heart, MS) == Some(Delta::default()) && !sweep.pulsed(&heart));
    }
}
