//! The calls in flight that can be named from outside, and what became of the latest that were: so that
//! whoever sent an attempt can withdraw it without a reset of its stream.
//!
//! Only calls with an ID of their own are here. There is room for so many; further ones run as any other, and
//! are not known by name.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use http::HeaderValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wardkeep_proto::{duration, v1};

use crate::load::Utilisation;

const SHARDS: usize = 16;
/// Of one shard: 65,536 in all.
const MOST_IN_FLIGHT: usize = 4_096;
/// Of one shard: 4,096 in all.
const MOST_ENDED: usize = 256;

/// A call's ID and the attempt's number.
pub(crate) type Name = (Uuid, u32);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Calls {
    shards: [Mutex<Shard>; SHARDS],
    /// Of the wards' runtime.
    pub(crate) utilisation: Utilisation,
}

#[derive(Debug, Default)]
struct Shard {
    slots: HashMap<Name, Slot>,
    in_flight: usize,
    /// Oldest first.
    ended: VecDeque<Name>,
}

#[derive(Debug)]
enum Slot {
    InFlight(Arc<Attempt>),
    Ended(End),
}

/// How far an attempt came, and what it cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) fate: v1::Fate,
    pub(crate) wall: Option<Duration>,
    pub(crate) busy: Option<Duration>,
}

impl End {
    const UNKNOWN: Self = Self { fate: v1::Fate::Unknown, wall: None, busy: None };

    pub(crate) fn message(self) -> v1::AttemptEnd {
        v1::AttemptEnd {
            fate: self.fate.into(),
            wall: self.wall.map(duration),
            busy: self.busy.map(duration),
        }
    }

    /// As trailers have it.
    pub(crate) fn header(self) -> HeaderValue {
        let fate = match self.fate {
            v1::Fate::Running => "running",
            v1::Fate::Finished => "finished",
            _ => return HeaderValue::from_static("queued"),
        };
        let micros = |time: Option<Duration>| time.unwrap_or_default().as_micros();
        let text = format!("{fate};wall={};busy={}", micros(self.wall), micros(self.busy));
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("running"))
    }
}

impl Calls {
    fn shard(&self, name: &Name) -> MutexGuard<'_, Shard> {
        let last = usize::from(name.0.as_bytes()[15]);
        self.shards[last % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a call; `None` if there is no room, or one of this name is in flight. `cut` will be
    /// cancelled when it is withdrawn.
    pub(crate) fn enter(self: &Arc<Self>, name: Name, cut: CancellationToken) -> Option<Ticket> {
        let mut shard = self.shard(&name);
        if shard.in_flight >= MOST_IN_FLIGHT || matches!(shard.slots.get(&name), Some(Slot::InFlight(_))) {
            return None;
        }
        let attempt = Arc::new(Attempt::new(cut));
        shard.in_flight += 1;
        shard.slots.insert(name, Slot::InFlight(attempt.clone()));
        drop(shard);
        Some(Ticket { calls: self.clone(), name, attempt })
    }

    /// Ends an attempt, if it is known and lasts.
    pub(crate) fn withdraw(&self, name: Name) -> End {
        let attempt = match self.shard(&name).slots.get(&name) {
            None => return End::UNKNOWN,
            Some(Slot::Ended(end)) => return *end,
            Some(Slot::InFlight(attempt)) => attempt.clone(),
        };
        // Whom this wakes may come here next.
        attempt.withdraw()
    }

    fn leave(&self, name: Name, end: End) {
        let mut shard = self.shard(&name);
        shard.in_flight = shard.in_flight.saturating_sub(1);
        shard.slots.insert(name, Slot::Ended(end));
        shard.ended.push_back(name);
        if shard.ended.len() > MOST_ENDED
            && let Some(oldest) = shard.ended.pop_front()
            && let Some(Slot::Ended(_)) = shard.slots.get(&oldest)
        {
            shard.slots.remove(&oldest);
        }
    }

    #[cfg(test)]
    fn known(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().slots.len()).sum()
    }
}

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
const FINISHED: u8 = 2;
const WITHDRAWN_QUEUED: u8 = 3;
const WITHDRAWN_RUNNING: u8 = 4;

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Attempt {
    stage: AtomicU8,
    cut: CancellationToken,
    began: OnceLock<Instant>,
    /// Since then until its end; 0: it lasts.
    wall: AtomicU64,
    /// In nanoseconds, as all here.
    busy: AtomicU64,
}

impl Attempt {
    fn new(cut: CancellationToken) -> Self {
        let (wall, busy) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { stage: AtomicU8::new(QUEUED), cut, began: OnceLock::new(), wall, busy }
    }

    /// Its work begins, unless it has been withdrawn: false then.
    pub(crate) fn begin(&self) -> bool {
        let begun = self.stage.compare_exchange(QUEUED, RUNNING, SeqCst, SeqCst).is_ok();
        if begun {
            let _ = self.began.set(Instant::now());
        }
        begun
    }

    /// For so long it was worked on.
    pub(crate) fn worked(&self, time: Duration) {
        self.busy.fetch_add(nanos(time), Relaxed);
    }

    fn withdraw(&self) -> End {
        for (from, to) in [(QUEUED, WITHDRAWN_QUEUED), (RUNNING, WITHDRAWN_RUNNING)] {
            if self.stage.compare_exchange(from, to, SeqCst, SeqCst).is_ok() {
                self.cut.cancel();
            }
        }
        self.end()
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.stage.load(SeqCst) > FINISHED
    }

    /// How far it came. Of one that lasts, what it has cost so far.
    pub(crate) fn end(&self) -> End {
        let stage = self.stage.load(SeqCst);
        let Some(began) = self.began.get().filter(|_| stage != WITHDRAWN_QUEUED) else {
            return End { fate: v1::Fate::Queued, wall: None, busy: None };
        };
        let wall = match self.wall.load(Relaxed) {
            0 => began.elapsed(),
            ended => Duration::from_nanos(ended),
        };
        let fate = if stage == FINISHED { v1::Fate::Finished } else { v1::Fate::Running };
        let busy = Duration::from_nanos(self.busy.load(Relaxed));
        End { fate, wall: Some(wall), busy: Some(busy) }
    }

    fn finish(&self) -> End {
        if let Some(began) = self.began.get() {
            self.wall.store(nanos(began.elapsed()).max(1), Relaxed);
        }
        let _ = self.stage.compare_exchange(RUNNING, FINISHED, SeqCst, SeqCst);
        self.end()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Held by a call that is known by name, while it lasts.
#[derive(Debug)]
pub(crate) struct Ticket {
    calls: Arc<Calls>,
    name: Name,
    pub(crate) attempt: Arc<Attempt>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let end = self.attempt.finish();
        self.calls.leave(self.name, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(calls: &Arc<Calls>, name: Name) -> Option<Ticket> {
        calls.enter(name, CancellationToken::new())
    }

    fn fate(calls: &Calls, name: Name) -> v1::Fate {
        calls.withdraw(name).fate
    }

    #[test]
    fn an_attempt_is_withdrawn_where_it_is_and_its_fate_does_not_change_after() {
        let calls = Arc::new(Calls::default());
        let [queued, running, finished, stranger] = [1, 2, 3, 4].map(|attempt| (Uuid::now_v7(), attempt));
        let waits = enter(&calls, queued).unwrap();
        let runs = enter(&calls, running).unwrap();
        let ends = enter(&calls, finished).unwrap();
        assert!(enter(&calls, running).is_none(), "there is one of this name");
        assert!(runs.attempt.begin() && ends.attempt.begin());
        drop(ends);
        let wanted = [v1::Fate::Queued, v1::Fate::Running, v1::Fate::Finished, v1::Fate::Unknown];
        let names = [queued, running, finished, stranger];
        assert_eq!(names.map(|name| fate(&calls, name)), wanted);
        assert!(waits.attempt.cut.is_cancelled() && runs.attempt.cut.is_cancelled());
        assert!(!waits.attempt.begin(), "what was withdrawn is never begun");
        drop((waits, runs));
        assert_eq!(names.map(|name| fate(&calls, name)), wanted);
        assert!(enter(&calls, running).is_some(), "a name whose call has ended may come again");
    }

    #[test]
    fn what_it_costs_stands_still_at_its_end() {
        let calls = Arc::new(Calls::default());
        let name = (Uuid::now_v7(), 1);
        let ticket = enter(&calls, name).unwrap();
        assert!(ticket.attempt.begin());
        ticket.attempt.worked(Duration::from_secs(1_000));
        drop(ticket);
        let end = calls.withdraw(name);
        assert_eq!(end, calls.withdraw(name));
        assert_eq!(end.busy, Some(Duration::from_secs(1_000)));
        assert!(end.header().to_str().unwrap().starts_with("finished;wall="), "{end:?}");
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let calls = Arc::new(Calls::default());
        let id = Uuid::now_v7();
        let held: Vec<_> = (0..5_000).filter_map(|attempt| enter(&calls, (id, attempt))).collect();
        assert_eq!(held.len(), MOST_IN_FLIGHT);
        drop(held);
        assert_eq!(calls.known(), MOST_ENDED);
        for _ in 0..50_000 {
            drop(enter(&calls, (Uuid::now_v7(), 1)));
        }
        assert!(calls.known() <= SHARDS * MOST_ENDED);
        assert!(enter(&calls, (id, 1)).is_some());
    }
}
