//! What a proxy does to the bytes that pass through it.

use std::time::Duration;

/// What is done to bytes in one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    /// Each piece arrives so much later ...
    pub latency: Duration,
    /// ... more or less by up to so much. The order of bytes is kept: this is TCP.
    pub jitter: Duration,
    /// Bytes per second, per connection.
    pub bandwidth: Option<u64>,
    /// Bytes leave in pieces of at most so many.
    pub slice: Option<usize>,
    /// Nothing passes, not even the end of a connection, until this is lifted: then what was held back
    /// goes on. This is what a partition is to TCP, which sends again until it gets through.
    pub blackhole: bool,
}

/// What a proxy does to its connections. Shares are from 0 (none) to 1 (all).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// From those who connect to where the proxy leads.
    pub up: Way,
    /// Back to those who connect.
    pub down: Way,
    /// This share of new connections is reset at once.
    pub refuse: f64,
    /// This share of open connections is reset in each second.
    pub kill_per_second: f64,
    /// When one side closes, the other is told so much later.
    pub slow_close: Duration,
    /// Each new connection has a twin: whatever its client sends goes to the server twice, over two
    /// connections, and what the twin answers is thrown away. TCP has no message to duplicate, and bytes
    /// sent twice on one connection are garbage; but whole connections, played twice from their
    /// beginning, are what a server sees of a client that repeats each of its requests.
    pub duplicate: bool,
}

impl Faults {
    /// The same in both directions.
    #[must_use]
    pub fn both(way: Way) -> Self {
        Self { up: way.clone(), down: way, ..Self::default() }
    }

    /// So late, more or less by `jitter`, in both directions.
    #[must_use]
    pub fn late(latency: Duration, jitter: Duration) -> Self {
        Self::both(Way { latency, jitter, ..Way::default() })
    }

    /// Nothing passes in either direction.
    #[must_use]
    pub fn partition() -> Self {
        Self::both(Way { blackhole: true, ..Way::default() })
    }

    pub(super) fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

/// Whence bytes come and whither they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}
