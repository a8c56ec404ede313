//! Counters: relaxed, monotonic, cheap enough to be always on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use wardkeep_proto::v1::Fate;

use crate::member::Cost;

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) calls: AtomicU64,
    pub(crate) failed_calls: AtomicU64,
    pub(crate) attempts: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) hedges: AtomicU64,
    pub(crate) hedges_refused: AtomicU64,
    pub(crate) rounds: AtomicU64,
    pub(crate) withdrawn: AtomicU64,
    pub(crate) transparent: AtomicU64,
    pub(crate) left_to_finish: AtomicU64,
    pub(crate) losers: LoserCounts,
    pub(crate) ejected: AtomicU64,
    pub(crate) renewed: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) connection_errors: AtomicU64,
    /// By member's name; outlives the member's stay in the directory.
    wins: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
}

/// What became of attempts that were withdrawn in band.
#[derive(Debug, Default)]
pub(crate) struct LoserCounts {
    queued: AtomicU64,
    running: AtomicU64,
    finished: AtomicU64,
    reset: AtomicU64,
    wall_micros: AtomicU64,
    busy_micros: AtomicU64,
}

impl LoserCounts {
    /// One has ended: as its member says, or by a reset.
    pub(crate) fn ended(&self, cost: Option<Cost>) {
        let counter = match cost.map(|cost| cost.fate) {
            Some(Fate::Queued) => &self.queued,
            Some(Fate::Running) => &self.running,
            Some(_) => &self.finished,
            None => &self.reset,
        };
        counter.fetch_add(1, Relaxed);
        let micros =
            |time: Option<Duration>| u64::try_from(time.unwrap_or_default().as_micros()).unwrap_or_default();
        if let Some(Cost { wall, busy, .. }) = cost {
            self.wall_micros.fetch_add(micros(wall), Relaxed);
            self.busy_micros.fetch_add(micros(busy), Relaxed);
        }
    }

    fn snapshot(&self) -> LoserStats {
        let time = |micros: &AtomicU64| Duration::from_micros(micros.load(Relaxed));
        LoserStats {
            queued: self.queued.load(Relaxed),
            running: self.running.load(Relaxed),
            finished: self.finished.load(Relaxed),
            reset: self.reset.load(Relaxed),
            wall: time(&self.wall_micros),
            busy: time(&self.busy_micros),
        }
    }
}

/// What became of the attempts that nobody waited for and that were withdrawn in band, by their members' word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoserStats {
    /// Their work had not begun, and never did.
    pub queued: u64,
    /// They were cancelled while they ran.
    pub running: u64,
    /// They had ended before.
    pub finished: u64,
    /// Their member did not know them, or did not end them in time: their streams were reset.
    pub reset: u64,
    /// Time since their work began, in all.
    pub wall: Duration,
    /// Of that, what they were worked on.
    pub busy: Duration,
}

/// The counters of a replicated channel at one moment, since it was built.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Attempts begun because the ones before were late.
    pub hedges: u64,
    /// Times that such an attempt was due and not begun, to spare the members.
    pub hedges_refused: u64,
    /// Times that members were asked again, when all had failed.
    pub rounds: u64,
    /// Attempts withdrawn because another member had begun the work.
    pub withdrawn: u64,
    /// Attempts begun anew because their connection had broken by its own limits.
    pub transparent: u64,
    /// Attempts that lost and were left to finish, because their connection bore no more cancels.
    pub left_to_finish: u64,
    /// Such attempts that still run, and those that are being withdrawn.
    pub lingering: usize,
    /// What attempts have cost that nobody waited for.
    pub losers: LoserStats,
    /// Times that a member was put on probation.
    pub ejected: u64,
    /// Connections replaced after too many cancels.
    pub renewed: u64,
    /// Connections opened.
    pub connections: u64,
    /// Connections that could not be opened.
    pub connection_errors: u64,
    /// Replies given to callers, by the name of the member they came from.
    pub wins: BTreeMap<String, u64>,
    /// What is known now of each member.
    pub members: BTreeMap<String, MemberStats>,
}

/// What is known of a member at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct MemberStats {
    /// Attempts that run there.
    pub in_flight: usize,
    /// How long it takes to answer, over about the last ten seconds.
    pub mean: Option<Duration>,
    /// How busy it is, from 0 to 1, by its own word or by its answers' times.
    pub utilisation: Option<f64>,
    /// Asked after all others, because it failed or was far too slow.
    pub on_probation: bool,
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
            hedges: self.hedges.load(Relaxed),
            hedges_refused: self.hedges_refused.load(Relaxed),
            rounds: self.rounds.load(Relaxed),
            withdrawn: self.withdrawn.load(Relaxed),
            transparent: self.transparent.load(Relaxed),
            left_to_finish: self.left_to_finish.load(Relaxed),
            lingering: 0,
            losers: self.losers.snapshot(),
            ejected: self.ejected.load(Relaxed),
            renewed: self.renewed.load(Relaxed),
            connections: self.connections.load(Relaxed),
            connection_errors: self.connection_errors.load(Relaxed),
            wins: wins.iter().map(|(name, n)| (name.clone(), n.load(Relaxed))).collect(),
            members: BTreeMap::new(),
        }
    }
}
