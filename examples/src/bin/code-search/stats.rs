//! Latencies as people read them.

use std::time::Duration;

/// Samples of one kind of call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Milliseconds below which this share of the samples lies (nearest rank).
    pub(crate) fn percentile(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let rank = (share * self.0.len() as f64).ceil() as usize;
        // To the microsecond: more digits would say nothing.
        self.0.get(rank.saturating_sub(1)).map_or(0.0, |d| d.as_micros() as f64 / 1e3)
    }

    pub(crate) fn summary(&mut self) -> Summary {
        Summary { p50_ms: self.percentile(0.5), p99_ms: self.percentile(0.99), max_ms: self.percentile(1.0) }
    }
}

/// What the report shows of them, in milliseconds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Summary {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}
