//! How long a method's attempts took lately: the percentiles of two stretches of time, the present and the
//! one before. [`Window`] is pure.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::time::Instant;

/// Length of a stretch.
const STRETCH: Duration = Duration::from_secs(10);
/// With fewer than so many a percentile says nothing.
const ENOUGH: u64 = 50;
/// A percentile is found anew after so many more.
const FRESH: u64 = 64;
/// Most that is told apart.
const LONGEST: Duration = Duration::from_secs(120);

/// Methods told apart; all others share one window.
const MOST_METHODS: usize = 1_024;

/// The windows of all methods.
#[derive(Debug)]
pub(crate) struct Windows {
    born: Instant,
    methods: RwLock<HashMap<Arc<str>, Timings>>,
}

/// The window of one method.
#[derive(Clone, Debug)]
pub(crate) struct Timings {
    born: Instant,
    window: Arc<Mutex<Window>>,
}

impl Windows {
    pub(crate) fn new() -> Self {
        Self { born: Instant::now(), methods: RwLock::default() }
    }

    pub(crate) fn of(&self, method: &Arc<str>) -> Timings {
        if let Some(known) = self.methods.read().unwrap_or_else(PoisonError::into_inner).get(method) {
            return known.clone();
        }
        let mut methods = self.methods.write().unwrap_or_else(PoisonError::into_inner);
        let name = if methods.len() < MOST_METHODS { method.clone() } else { "".into() };
        let fresh = || Timings { born: self.born, window: Arc::new(Mutex::new(Window::new())) };
        methods.entry(name).or_insert_with(fresh).clone()
    }
}

impl Timings {
    pub(crate) fn record(&self, now: Instant, took: Duration) {
        let at = now.saturating_duration_since(self.born);
        self.window.lock().unwrap_or_else(PoisonError::into_inner).record(at, took);
    }

    pub(crate) fn percentile(&self, now: Instant, percent: f64) -> Option<Duration> {
        let at = now.saturating_duration_since(self.born);
        self.window.lock().unwrap_or_else(PoisonError::into_inner).percentile(at, percent)
    }
}

/// Times in microseconds, to two figures.
#[derive(Debug)]
pub(crate) struct Window {
    now: Histogram<u32>,
    before: Histogram<u32>,
    began: Duration,
    known: Vec<(f64, u64, Duration)>,
    count: u64,
}

impl Window {
    pub(crate) fn new() -> Self {
        let longest = u64::try_from(LONGEST.as_micros()).unwrap_or(u64::MAX);
        // These bounds are fine, or a test would have said so.
        let empty = || Histogram::new_with_bounds(1, longest, 2).unwrap_or_else(|_| smallest());
        Self { now: empty(), before: empty(), began: Duration::ZERO, known: Vec::new(), count: 0 }
    }

    /// An attempt took so long. What was cut off is recorded where it was cut: percentiles below that are
    /// right all the same.
    pub(crate) fn record(&mut self, now: Duration, took: Duration) {
        self.turn(now);
        self.now.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        self.count += 1;
    }

    /// The time within which so many percent were answered, if enough is known.
    pub(crate) fn percentile(&mut self, now: Duration, percent: f64) -> Option<Duration> {
        self.turn(now);
        if self.now.len() + self.before.len() < ENOUGH {
            return None;
        }
        let count = self.count;
        let fresh = |(p, at, _): &&(f64, u64, Duration)| *p == percent && count - at < FRESH;
        if let Some((_, _, value)) = self.known.iter().find(fresh) {
            return Some(*value);
        }
        let mut both = self.before.clone();
        // Equal bounds: it cannot fail.
        let _ = both.add(&self.now);
        let value = Duration::from_micros(both.value_at_percentile(percent));
        self.known.retain(|(p, _, _)| *p != percent);
        // One per percentile that a policy names.
        if self.known.len() < 8 {
            self.known.push((percent, self.count, value));
        }
        Some(value)
    }

    fn turn(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.began);
        if passed < STRETCH {
            return;
        }
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.reset();
        if passed >= STRETCH * 2 {
            self.before.reset();
        }
        self.began = now;
        self.known.clear();
    }
}

fn smallest() -> Histogram<u32> {
    #[allow(clippy::expect_used, reason = "constant bounds")]
    Histogram::new(1).expect("1 significant figure is one of the five that are possible")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn near(found: Option<Duration>, wanted: Duration) -> bool {
        found.is_some_and(|found| found.abs_diff(wanted) <= wanted / 50)
    }

    #[test]
    fn percentiles_need_enough_and_are_right() {
        let mut window = Window::new();
        for i in 1..=49 {
            window.record(Duration::ZERO, MS * i);
        }
        assert_eq!(window.percentile(Duration::ZERO, 95.0), None);
        for i in 50..=100 {
            window.record(Duration::ZERO, MS * i);
        }
        assert!(near(window.percentile(Duration::ZERO, 95.0), MS * 95));
        assert!(near(window.percentile(Duration::ZERO, 50.0), MS * 50));
    }

    #[test]
    fn the_past_is_forgotten_after_two_stretches() {
        let mut window = Window::new();
        (0..100).for_each(|_| window.record(Duration::ZERO, MS));
        (0..100).for_each(|_| window.record(STRETCH, MS * 50));
        assert!(near(window.percentile(STRETCH, 95.0), MS * 50));
        assert!(near(window.percentile(STRETCH, 50.0), MS));
        assert!(near(window.percentile(STRETCH * 2, 50.0), MS * 50));
        assert_eq!(window.percentile(STRETCH * 4, 50.0), None);
    }

    #[test]
    fn times_beyond_the_longest_are_the_longest() {
        let mut window = Window::new();
        (0..100).for_each(|_| window.record(Duration::ZERO, Duration::from_secs(100_000)));
        assert!(near(window.percentile(Duration::ZERO, 99.0), LONGEST));
    }

    #[test]
    fn a_percentile_follows_what_comes() {
        let mut window = Window::new();
        (0..100).for_each(|_| window.record(Duration::ZERO, MS));
        assert!(near(window.percentile(Duration::ZERO, 95.0), MS));
        (0..100).for_each(|_| window.record(Duration::ZERO, MS * 20));
        assert!(near(window.percentile(Duration::ZERO, 95.0), MS * 20));
    }
}
