//! The fleet's restart budget: a token bucket, kept as the time at which it will be full again.

use std::time::Duration;

use crate::types::{Config, Time};

#[derive(Debug)]
pub(crate) struct Budget {
    /// How far ahead of now `full_at` may run before a token may not be taken.
    slack: Duration,
    refill: Duration,
    full_at: Time,
}

impl Budget {
    /// A burst of 0 counts as 1: a fleet that may never restart anything has no use for a steward.
    pub(crate) fn new(config: &Config) -> Self {
        let refill = config.restart_refill;
        let slack = refill.saturating_mul(config.restart_burst.saturating_sub(1));
        Self { slack, refill, full_at: Time::ZERO }
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Time) -> bool {
        let granted = self.next(now) <= now;
        if granted {
            self.full_at = self.full_at.max(now).saturating_add(self.refill);
        }
        granted
    }

    /// When there will be a token.
    pub(crate) fn next(&self, now: Time) -> Time {
        self.full_at.saturating_sub(self.slack).max(now)
    }

    pub(crate) fn is_full(&self, now: Time) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_granted_at_once_and_then_one_each_interval() {
        let refill = Duration::from_millis(100);
        let config = Config { restart_burst: 3, restart_refill: refill, ..Config::default() };
        let mut budget = Budget::new(&config);
        let now = Duration::from_secs(10);
        assert_eq!([(); 4].map(|()| budget.take(now)), [true, true, true, false]);
        assert_eq!(budget.next(now), now + refill);
        assert_eq!([(); 2].map(|()| budget.take(now + refill)), [true, false]);
        assert!(!budget.is_full(now + refill));
        assert!(budget.is_full(now + refill * 4));
    }

    #[test]
    fn a_burst_of_zero_still_lets_restarts_through_one_by_one() {
        let config = Config { restart_burst: 0, ..Config::default() };
        let mut budget = Budget::new(&config);
        assert!(budget.take(Time::ZERO));
        assert!(!budget.take(Time::ZERO));
    }
}
