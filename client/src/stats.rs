//! Counters: relaxed, monotonic, cheap enough to be always on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) calls: AtomicU64,
    pub(crate) failed_calls: AtomicU64,
    pub(crate) attempts: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) connection_errors: AtomicU64,
    /// By member's name; outlives the member's stay in the directory.
    wins: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
}

/// The counters of a replicated channel at one moment, since it was built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Calls begun.
    pub calls: u64,
    /// Calls for which no member's reply could be given to the caller.
    pub failed_calls: u64,
    /// Attempts begun.
    pub attempts: u64,
    /// Attempts cancelled because another one won.
    pub cancelled: u64,
    /// Connections opened.
    pub connections: u64,
    /// Connections that could not be opened.
    pub connection_errors: u64,
    /// Replies given to callers, by the name of the member they came from.
    pub wins: BTreeMap<String, u64>,
}

impl Stats {
    pub(crate) fn wins_of(&self, member: &str) -> Arc<AtomicU64> {
        let mut wins = self.wins.lock().unwrap_or_else(PoisonError::into_inner);
        wins.entry(member.to_owned()).or_default().clone()
    }

    pub(crate) fn snapshot(&self) -> StatsSnapshot {
        let wins = self.wins.lock().unwrap_or_else(PoisonError::into_inner);
        StatsSnapshot {
            calls: self.calls.load(Relaxed),
            failed_calls: self.failed_calls.load(Relaxed),
            attempts: self.attempts.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            connections: self.connections.load(Relaxed),
            connection_errors: self.connection_errors.load(Relaxed),
            wins: wins.iter().map(|(name, n)| (name.clone(), n.load(Relaxed))).collect(),
        }
    }
}
