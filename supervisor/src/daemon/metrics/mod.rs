//! What the supervisor tells a monitoring system: `/metrics` on an HTTP port of its own, in Prometheus' text format or in
//! OpenMetrics. docs/metrics.md has the list.
//!
//! `tally` counts what the steward decides, as it decides; `families` makes metrics of that and of a picture of the fleet,
//! and is pure; `text` writes them down; `http` is the port. Each scrape is answered by the fleet's own task, so that one
//! which hangs fails its scrapes, and is seen.

mod families;
mod http;
mod process;
mod tally;
mod text;

use std::sync::Arc;

use wardkeep_proto::v1;

pub(super) use http::serve;
pub(super) use tally::{Histogram, LATENESS, Tally, WRITES};

use super::error_store::Totals;

/// What the fleet knows of itself at one moment.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) fleet: Arc<v1::Fleet>,
    pub(super) tally: Tally,
    pub(super) errors: Totals,
    /// How late the steward's loop was each time it had something to do at a time.
    pub(super) lateness: Histogram,
    /// From the decision to its being written.
    pub(super) writes: Histogram,
    /// Events that wait to be written.
    pub(super) waiting: usize,
    /// Those who watch the directory.
    pub(super) watchers: usize,
    /// Nodes that attend.
    pub(super) sessions: usize,
}
