//! How many further copies may be sent. Pure.

/// The part of a full bucket that is kept for calls that are very late.
const KEPT: f64 = 0.3;

/// A token bucket for hedges: each call brings a part of a token, each hedge takes one. So in any stretch
/// of calls there are at most `burst + ratio * calls` hedges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HedgeBudget {
    ratio: f64,
    burst: f64,
    tokens: f64,
}

impl HedgeBudget {
    pub(crate) fn new(ratio: f64, burst: u32) -> Self {
        let burst = f64::from(burst);
        Self { ratio: if ratio.is_finite() { ratio.max(0.0) } else { 0.0 }, burst, tokens: burst }
    }

    /// A call has begun.
    pub(crate) fn call(&mut self) {
        self.tokens = (self.tokens + self.ratio).min(self.burst.max(self.ratio));
    }

    /// A hedge was paid for, and a copy was taken back before its work began: all in all it was no load.
    pub(crate) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.burst.max(self.ratio));
    }

    /// Whether a hedge may be sent; if so, it is paid for. `again`: for a call that has been refused one before,
    /// and still waits. A part of the bucket is for those: else hedges for calls that are hardly late would
    /// leave nothing for the ones that are very late.
    pub(crate) fn take(&mut self, again: bool) -> bool {
        let kept = if again { 0.0 } else { (self.burst * KEPT).floor() };
        // Twenty times a twentieth is a little less than one.
        let enough = self.tokens >= kept + 1.0 - 1e-9;
        if enough {
            self.tokens = (self.tokens - 1.0).max(0.0);
        }
        enough
    }
}

/// gRFC A6's `retryThrottling`: no further copies while the failures outweigh the successes. In
/// thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Throttle {
    max: u32,
    ratio: u32,
    tokens: u32,
}

impl Throttle {
    /// `max_tokens` is at most 1,000; `ratio` in thousandths.
    pub(crate) fn new(max_tokens: u32, ratio: u32) -> Self {
        let max = max_tokens.min(1_000) * 1_000;
        Self { max, ratio, tokens: max }
    }

    pub(crate) fn failed(&mut self) {
        self.tokens = self.tokens.saturating_sub(1_000);
    }

    pub(crate) fn succeeded(&mut self) {
        self.tokens = self.tokens.saturating_add(self.ratio).min(self.max);
    }

    pub(crate) fn is_throttled(&self) -> bool {
        self.tokens <= self.max / 2
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_one_in_twenty() {
        let mut budget = HedgeBudget::new(0.05, 3);
        let mut hedges = 0;
        for _ in 0..200 {
            budget.call();
            hedges += u32::from(budget.take(true));
        }
        assert_eq!(hedges, 12);
    }

    #[test]
    fn what_is_kept_for_the_very_late_is_not_for_those_that_are_a_little_late() {
        let mut budget = HedgeBudget::new(0.0, 10);
        assert_eq!((0..20).filter(|_| budget.take(false)).count(), 7);
        assert_eq!((0..20).filter(|_| budget.take(true)).count(), 3);
        let mut small = HedgeBudget::new(0.0, 2);
        assert_eq!((0..20).filter(|_| small.take(false)).count(), 2);
    }

    #[test]
    fn what_was_taken_back_costs_nothing_but_while_it_is_out_it_counts() {
        let mut budget = HedgeBudget::new(0.05, 3);
        for _ in 0..100 {
            assert!(budget.take(true));
            budget.give_back();
        }
        assert_eq!((0..10).filter(|_| budget.take(true)).count(), 3);
        (0..10).for_each(|_| budget.give_back());
        assert_eq!((0..10).filter(|_| budget.take(true)).count(), 3, "never more than the burst");
    }

    #[test]
    fn failures_throttle_and_successes_release() {
        let mut throttle = Throttle::new(4, 500);
        throttle.failed();
        assert!(!throttle.is_throttled());
        throttle.failed();
        assert!(throttle.is_throttled());
        throttle.succeeded();
        assert!(!throttle.is_throttled());
        (0..100).for_each(|_| throttle.succeeded());
        assert_eq!(throttle, Throttle::new(4, 500));
        (0..100).for_each(|_| throttle.failed());
        assert!(throttle.is_throttled());
    }

    proptest! {
        #[test]
        fn no_window_has_more_hedges_than_the_budget(
            asks in prop::collection::vec(0u8..4, 1..400),
            burst in 0u32..6,
            percent in 0u32..40,
        ) {
            let ratio = f64::from(percent) / 100.0;
            let mut budget = HedgeBudget::new(ratio, burst);
            let hedges: Vec<u32> = asks.iter().map(|asks| {
                budget.call();
                (0..*asks).map(|_| u32::from(budget.take(true))).sum()
            }).collect();
            for from in 0..hedges.len() {
                let mut sum = 0;
                for (n, hedges) in hedges[from..].iter().enumerate() {
                    sum += hedges;
                    let calls = (n + 1) as f64;
                    prop_assert!(f64::from(sum) <= f64::from(burst).max(ratio) + ratio * calls + 1e-6);
                }
            }
        }
    }
}
