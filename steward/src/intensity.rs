//! OTP's `add_restart`: whether one more restart is within `intensity` per `period`.

use std::{collections::VecDeque, time::Duration};

use crate::types::Time;

/// So many restarts are remembered at most. An intensity beyond it never gives up.
const MAX_REMEMBERED: usize = 4_096;

/// When a group's restarts were, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restarts(VecDeque<Time>);

/// What one more restart means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    /// Restarts within the period, this one included.
    pub(crate) recent: u32,
    /// That is no more than the intensity.
    pub(crate) allowed: bool,
}

impl Restarts {
    /// Adds a restart at `now` and forgets those older than `period`.
    pub(crate) fn add(&mut self, now: Time, intensity: u32, period: Duration) -> Added {
        self.0.retain(|at| now.saturating_sub(*at) <= period);
        if self.0.len() >= MAX_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(now);
        let recent = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        Added { recent, allowed: recent <= intensity }
    }

    /// Restarts within `period` before `now`.
    pub(crate) fn recent(&self, now: Time, period: Duration) -> u32 {
        let recent = self.0.iter().filter(|at| now.saturating_sub(**at) <= period).count();
        u32::try_from(recent).unwrap_or(u32::MAX)
    }

    /// When those were.
    pub(crate) fn times(&self, now: Time, period: Duration) -> Vec<Time> {
        self.0.iter().filter(|at| now.saturating_sub(**at) <= period).copied().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_restart_after_the_last_allowed_one_is_too_many() {
        let mut restarts = Restarts::default();
        assert_eq!(restarts.add(SECOND, 2, SECOND * 10), Added { recent: 1, allowed: true });
        assert_eq!(restarts.add(SECOND * 2, 2, SECOND * 10), Added { recent: 2, allowed: true });
        assert_eq!(restarts.add(SECOND * 3, 2, SECOND * 10), Added { recent: 3, allowed: false });
    }

    #[test]
    fn restarts_older_than_the_period_are_forgotten() {
        let mut restarts = Restarts::default();
        for second in 0..100 {
            assert!(restarts.add(SECOND * second * 6, 2, SECOND * 10).allowed);
        }
        assert_eq!(restarts.recent(SECOND * 1_000, SECOND * 10), 0);
    }

    #[test]
    fn an_intensity_of_zero_allows_none() {
        assert!(!Restarts::default().add(SECOND, 0, SECOND).allowed);
    }

    #[test]
    fn memory_is_bounded_whatever_the_intensity() {
        let mut restarts = Restarts::default();
        for _ in 0..10_000 {
            restarts.add(SECOND, u32::MAX, Duration::MAX);
        }
        assert!(restarts.0.len() <= MAX_REMEMBERED);
    }
}
