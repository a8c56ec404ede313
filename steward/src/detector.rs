//! How long a node may be silent: the phi accrual failure detector (Hayashibara et al. 2004) over
//! observed arrival intervals, within a floor and a ceiling.
//!
//! The suspicion grows with the silence alone, so the threshold is a fixed number of standard
//! deviations, found once; what remains is `mean + deviations * deviation`.

use std::{collections::VecDeque, time::Duration};

use crate::types::{Config, Time};

/// Intervals remembered: about a minute of reports.
const WINDOW: usize = 128;

#[derive(Debug, Default)]
pub(crate) struct Detector {
    /// In microseconds, with their sum and sum of squares.
    intervals: VecDeque<u32>,
    sum: u64,
    squares: u128,
    last: Option<Time>,
}

impl Detector {
    /// A report arrived.
    pub(crate) fn arrived(&mut self, now: Time, config: &Config) {
        let Some(last) = self.last.replace(now) else { return };
        // An outage says nothing about the rhythm of a healthy node.
        let interval = now.saturating_sub(last).min(config.silence_ceiling).as_micros();
        let interval = u32::try_from(interval).unwrap_or(u32::MAX);
        if self.intervals.len() == WINDOW {
            let old = u64::from(self.intervals.pop_front().unwrap_or(0));
            self.sum -= old;
            self.squares -= u128::from(old * old);
        }
        self.intervals.push_back(interval);
        self.sum += u64::from(interval);
        self.squares += u128::from(u64::from(interval) * u64::from(interval));
    }

    /// A session began: the time since the last report is no interval.
    pub(crate) fn restarted(&mut self) {
        self.last = None;
    }

    /// The silence that is a verdict. `deviations`: see [`deviations`].
    pub(crate) fn patience(&self, config: &Config, deviations: f64) -> Duration {
        let ceiling = config.silence_ceiling.max(config.silence_floor);
        self.silence(config, deviations)
            .map_or(ceiling, |silence| silence.clamp(config.silence_floor, ceiling))
    }

    /// The silence that is a suspicion, before it is a verdict: a report and a half, or as long as the rhythm
    /// seen so far makes unlikely.
    pub(crate) fn suspicion(&self, config: &Config, suspicious: f64, patience: Duration) -> Duration {
        let least = config.pulse_interval.saturating_mul(3) / 2;
        self.silence(config, suspicious).map_or(patience, |silence| silence.max(least).min(patience))
    }

    /// So long past the mean; `None` while no rhythm is known.
    fn silence(&self, config: &Config, deviations: f64) -> Option<Duration> {
        if self.intervals.len() < 3 {
            return None;
        }
        let count = self.intervals.len() as f64;
        let mean = self.sum as f64 / count;
        let variance = (self.squares as f64 / count - mean * mean).max(0.0);
        // A rhythm seen as perfect is only one not yet disturbed.
        let least = config.pulse_interval.as_micros() as f64 / 10.0;
        let micros = mean + deviations * variance.sqrt().max(least);
        // `as` saturates, and takes NaN for 0.
        Some(Duration::from_micros(micros as u64))
    }
}

/// The suspicion (phi) that clients are told of, long before it is a verdict: one report in a thousand is so late.
pub(crate) const SUSPICIOUS: f64 = 3.0;

/// The number of standard deviations past the mean at which phi reaches `threshold`.
pub(crate) fn deviations(threshold: f64) -> f64 {
    let (mut low, mut high) = (0.0_f64, 40.0_f64);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if phi(middle) < threshold {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// `-log10` of the probability that an arrival is later than `y` standard deviations past the mean,
/// with a logistic approximation of the normal distribution.
fn phi(y: f64) -> f64 {
    let x = y * (1.597_6 + 0.070_566 * y * y);
    (x + (-x).exp().ln_1p()) / std::f64::consts::LN_10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(intervals: impl IntoIterator<Item = u64>, config: &Config) -> Duration {
        let mut detector = Detector::default();
        let mut now = Time::ZERO;
        for millis in intervals {
            detector.arrived(now, config);
            now += Duration::from_millis(millis);
        }
        detector.patience(config, deviations(config.phi_threshold))
    }

    #[test]
    fn a_threshold_of_eight_is_about_five_and_a_half_deviations() {
        let found = deviations(8.0);
        assert!((5.0..6.0).contains(&found), "{found}");
        assert!(phi(found) >= 8.0 - 1e-9);
    }

    #[test]
    fn a_steady_node_is_judged_at_the_floor_and_an_unknown_one_at_the_ceiling() {
        let config = Config::default();
        assert_eq!(patience([500; 50], &config), config.silence_floor);
        assert_eq!(patience([500; 2], &config), config.silence_ceiling);
    }

    #[test]
    fn an_unsteady_node_gets_more_patience_than_a_steady_one_but_not_beyond_the_ceiling() {
        let config = Config::default();
        let unsteady = patience([300, 700, 400, 900, 500].repeat(20), &config);
        assert!(unsteady > config.silence_floor && unsteady <= config.silence_ceiling, "{unsteady:?}");
        assert_eq!(patience([10, 4_000].repeat(20), &config), config.silence_ceiling);
    }

    #[test]
    fn the_window_forgets_an_unsteady_past() {
        let config = Config::default();
        let calm = [10, 2_000].repeat(30).into_iter().chain([500; 200]);
        assert_eq!(patience(calm, &config), config.silence_floor);
    }

    #[test]
    fn absurd_settings_do_not_panic() {
        for phi_threshold in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            let config = Config {
                phi_threshold,
                silence_floor: Duration::MAX,
                silence_ceiling: Duration::ZERO,
                pulse_interval: Duration::MAX,
                ..Config::default()
            };
            assert_eq!(patience([500; 9], &config), Duration::MAX);
        }
    }
}
