//! The one thread that writes. What waits is written in one transaction; then those who wait for it
//! are told. Nobody waits for the disk but this thread.
//!
//! A disk that does not take it: said once, tried again until it does. Meanwhile what is to be
//! written stays in memory, up to a bound; beyond it the oldest events are dropped and counted, but not
//! those that are just being written. Changes of what is remembered (intents, wards that rest) are never
//! dropped, only those left out that were overtaken by others.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::{Instant, timeout},
};
use wardkeep_proto::v1;

use super::store::{Change, Filter, Retention, Store, StoreError, Write};

/// Events that may wait to be written; beyond, the oldest are dropped and counted.
const WAITING: usize = 20_000;
/// Writes of one transaction.
const BATCH: usize = 1_024;
/// Between two attempts on a disk that does not take it.
const RETRY: Duration = Duration::from_millis(500);
/// How often it is looked for what is too old.
const TRIM: Duration = Duration::from_secs(60);
/// Between two steps of dropping it.
const TRIM_STEP: Duration = Duration::from_millis(20);
/// Readers at a time; more wait.
const READERS: usize = 16;
/// For one page.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// For what is left to be written at the end.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Changes of writes whose events were dropped; beyond, those that were overtaken are left out.
const CARRIED: usize = 4_096;

/// How far it is.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Progress {
    /// All up to this ticket is durable.
    pub(in crate::daemon) written: u64,
    /// It cannot be written.
    pub(in crate::daemon) failing: Option<Failing>,
    /// Bytes kept.
    pub(in crate::daemon) used: u64,
    /// Events dropped because they could not be written.
    pub(in crate::daemon) dropped: u64,
}

/// Since when, and why.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct Failing {
    pub(in crate::daemon) since: DateTime<Utc>,
    pub(in crate::daemon) why: String,
}

/// The history of a running supervisor. Dropping it ends the thread, unawaited.
pub(in crate::daemon) struct History {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    thread: Option<thread::JoinHandle<()>>,
    /// Instead of the thread.
    #[cfg(any(test, feature = "testing"))]
    _task: tokio::task::JoinSet<()>,
    ended: Option<oneshot::Receiver<()>>,
    retention: Arc<Mutex<Retention>>,
}

/// Reads pages of the history.
#[derive(Clone)]
pub(in crate::daemon) struct Reader {
    shared: Arc<Shared>,
    turns: Arc<Semaphore>,
}

#[derive(Default)]
struct Shared {
    desk: Mutex<Desk>,
    bell: Condvar,
    /// The same, for a writer that is a task.
    #[cfg(any(test, feature = "testing"))]
    rung: tokio::sync::Notify,
}

#[derive(Default)]
struct Desk {
    /// Oldest first. The order of changes is never another than that they were made in.
    writes: VecDeque<Waiting>,
    /// So many of them, the oldest, are being written: they stay as they are.
    in_flight: usize,
    /// Ticket of the last one.
    last: u64,
    /// Events in `writes`.
    events: usize,
    /// Intents of a higher ID are not in the store.
    known: u64,
    dropped: u64,
    reads: VecDeque<Ask>,
    closed: bool,
}

/// What is to be written: all from the ticket of the one before up to this one.
struct Waiting {
    ticket: u64,
    write: Arc<Write>,
    /// With more changes than this it is looked for those that were overtaken.
    limit: usize,
}

impl Waiting {
    /// Its events were dropped, or it never had any.
    fn is_bare(&self) -> bool {
        self.write.events.is_empty()
    }
}

struct Ask {
    filter: Filter,
    /// `None`: where the filter's events begin is to be looked for first.
    after: Option<u64>,
    limit: usize,
    answer: oneshot::Sender<Result<Vec<v1::Event>, StoreError>>,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to do.
    fn ring(&self) {
        self.bell.notify_one();
        #[cfg(any(test, feature = "testing"))]
        self.rung.notify_one();
    }
}

impl Desk {
    fn push(&mut self, write: Write) -> u64 {
        if write.is_empty() {
            // It is written when all before it is.
            return self.last;
        }
        self.last += 1;
        self.events += write.events.len();
        self.writes.push_back(Waiting { ticket: self.last, write: Arc::new(write), limit: CARRIED });
        self.join(self.writes.len() - 1);
        self.make_room();
        self.last
    }

    /// Takes the oldest to write them; they stay until it is known how that went.
    fn take(&mut self) -> (Vec<Arc<Write>>, u64) {
        let mut taken = self.writes.iter().take(BATCH);
        let writes: Vec<_> = taken.clone().map(|waiting| waiting.write.clone()).collect();
        let ticket = taken.next_back().map_or(0, |waiting| waiting.ticket);
        self.in_flight = writes.len();
        let opened = |change: &Change| match change {
            Change::Open(intent) => Some(intent.id),
            _ => None,
        };
        let known = writes.iter().flat_map(|write| &write.changes).filter_map(opened).max();
        self.known = self.known.max(known.unwrap_or(0));
        (writes, ticket)
    }

    /// What was taken is durable.
    fn written(&mut self) {
        for written in self.writes.drain(..std::mem::take(&mut self.in_flight)) {
            self.events -= written.write.events.len();
        }
    }

    /// What was taken is to be written another time.
    fn put_back(&mut self) {
        self.in_flight = 0;
        self.make_room();
    }

    /// Drops the oldest events where there are too many. The newest write keeps its own.
    fn make_room(&mut self) {
        while self.events > WAITING {
            let newest = self.writes.len().saturating_sub(1);
            let Some(at) = (self.in_flight..newest).find(|at| !self.writes[*at].is_bare()) else { return };
            let events = std::mem::take(&mut Arc::make_mut(&mut self.writes[at].write).events);
            self.events -= events.len();
            self.dropped += events.len() as u64;
            if self.writes[at].write.is_empty() {
                // What comes after it confirms it.
                self.writes.remove(at);
            } else {
                self.join(at + 1);
                self.join(at);
            }
        }
    }

    /// Makes one of this write and the one before, if neither has events.
    fn join(&mut self, at: usize) {
        let joins = at > self.in_flight && self.writes[at - 1].is_bare() && self.writes[at].is_bare();
        if !joins {
            return;
        }
        let Some(later) = self.writes.remove(at) else { return };
        let first = &mut self.writes[at - 1];
        first.ticket = later.ticket;
        let changes = &mut Arc::make_mut(&mut first.write).changes;
        changes.extend(later.write.changes.iter().cloned());
        if changes.len() > first.limit {
            // Only of the oldest it is known what the store has by then.
            let known = if at - 1 == self.in_flight { self.known } else { u64::MAX };
            keep_the_last(changes, known);
            first.limit = CARRIED.max(2 * changes.len());
        }
    }
}

/// Leaves out what a later change about the same makes void. An intent with an ID above `known` that was
/// closed since need not be written at all.
fn keep_the_last(changes: &mut Vec<Change>, known: u64) {
    let (mut intents, mut wards) = (BTreeSet::new(), BTreeSet::new());
    let mut kept: Vec<_> = changes
        .drain(..)
        .rev()
        .filter(|change| match change {
            Change::Open(intent) => intents.insert(intent.id),
            Change::Close { id, .. } => intents.insert(*id) && *id <= known,
            Change::Hold { ward, .. } | Change::Release { ward } => wards.insert(ward.clone()),
        })
        .collect();
    kept.reverse();
    *changes = kept;
}

impl History {
    /// `known`: the highest ID of an intent in the store.
    pub(super) fn start(store: Box<dyn Store>, retention: Retention, known: u64) -> Self {
        let retention = Arc::new(Mutex::new(retention));
        let (writer, shared, progress) = Writer::new(store, retention.clone(), known);
        let (end, ended) = oneshot::channel();
        let run = move || {
            writer.run();
            // Whoever waits for the end may have left.
            let _ = end.send(());
        };
        let thread = match thread::Builder::new().name("wardkeep-history".into()).spawn(run) {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::error!(%error, "no thread for the history: it is not written");
                None
            }
        };
        Self {
            shared,
            progress,
            thread,
            #[cfg(any(test, feature = "testing"))]
            _task: Default::default(),
            ended: Some(ended),
            retention,
        }
    }

    /// With a writer that is a task, each of whose writes lasts as long as `takes` says: for simulated time.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn start_in_task(
        store: Box<dyn Store>,
        retention: Retention,
        known: u64,
        takes: fn() -> Duration,
    ) -> Self {
        let retention = Arc::new(Mutex::new(retention));
        let (writer, shared, progress) = Writer::new(store, retention.clone(), known);
        let (end, ended) = oneshot::channel();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            writer.run_in_task(takes).await;
            let _ = end.send(());
        });
        Self { shared, progress, thread: None, _task: task, ended: Some(ended), retention }
    }

    /// Keeps so much from now on.
    pub(in crate::daemon) fn retain(&self, retention: Retention) {
        *self.retention.lock().unwrap_or_else(PoisonError::into_inner) = retention;
    }

    /// Hands over what is to be written. All of it is durable once [`Progress::written`] has reached
    /// the ticket returned. Never blocks.
    pub(in crate::daemon) fn push(&self, write: Write) -> u64 {
        let ticket = self.shared.desk().push(write);
        self.shared.ring();
        ticket
    }

    /// How far it is now.
    pub(in crate::daemon) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Events that wait to be written.
    pub(in crate::daemon) fn waiting(&self) -> usize {
        self.shared.desk().events
    }

    /// Waits until it is another. Cancel safe.
    pub(in crate::daemon) async fn progressed(&mut self) {
        if self.progress.changed().await.is_err() {
            // The thread is gone: nothing will ever change.
            std::future::pending::<()>().await;
        }
    }

    pub(in crate::daemon) fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone(), turns: Arc::new(Semaphore::new(READERS)) }
    }

    /// Writes what waits, within a few seconds, and ends the thread.
    pub(in crate::daemon) async fn close(mut self) {
        self.shut();
        let Some(ended) = self.ended.take() else { return };
        if timeout(END_PATIENCE, ended).await.is_err() {
            tracing::error!("the disk does not answer: the end of the history is not written");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // It has said its last word.
            let _ = thread.join();
        }
    }

    fn shut(&self) {
        self.shared.desk().closed = true;
        self.shared.ring();
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.shut();
    }
}

impl Reader {
    /// The next events that fit; `after`: the sequence of the last one read, `None` to begin.
    ///
    /// # Errors
    /// One line: the store cannot be read, or the supervisor ends.
    pub(in crate::daemon) async fn page(
        &self,
        filter: &Filter,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<v1::Event>, String> {
        let ended = || "the history is closed".to_owned();
        let read = async {
            let _turn = self.turns.acquire().await.map_err(|_| ended())?;
            let (answer, answered) = oneshot::channel();
            {
                let mut desk = self.shared.desk();
                if desk.closed {
                    return Err(ended());
                }
                // Those who gave up waiting are not read for.
                desk.reads.retain(|ask| !ask.answer.is_closed());
                desk.reads.push_back(Ask { filter: filter.clone(), after, limit, answer });
            }
            self.shared.ring();
            answered.await.map_err(|_| ended())?.map_err(|e| e.to_string())
        };
        timeout(READ_PATIENCE, read).await.unwrap_or_else(|_| Err("the disk does not answer".to_owned()))
    }
}

struct Writer {
    store: Box<dyn Store>,
    retention: Arc<Mutex<Retention>>,
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    /// After a failure: not before this.
    retry_at: Option<Instant>,
    trim_at: Instant,
}

/// What one turn is to do.
struct Turn {
    writes: Vec<Arc<Write>>,
    /// Of the last of `writes`.
    ticket: u64,
    reads: Vec<Ask>,
    closed: bool,
}

impl Writer {
    fn new(
        store: Box<dyn Store>,
        retention: Arc<Mutex<Retention>>,
        known: u64,
    ) -> (Self, Arc<Shared>, watch::Receiver<Progress>) {
        let desk = Mutex::new(Desk { known, ..Desk::default() });
        let shared = Arc::new(Shared { desk, ..Shared::default() });
        let (progress, watched) = watch::channel(Progress::default());
        let (retry_at, trim_at) = (None, Instant::now());
        (Self { store, retention, shared: shared.clone(), progress, retry_at, trim_at }, shared, watched)
    }

    fn run(mut self) {
        loop {
            let turn = self.next();
            if self.done(turn) {
                return;
            }
        }
    }

    #[cfg(any(test, feature = "testing"))]
    async fn run_in_task(mut self, takes: fn() -> Duration) {
        loop {
            let turn = self.due(&mut self.shared.desk());
            match turn {
                Ok(turn) => {
                    tokio::time::sleep(takes()).await;
                    if self.done(turn) {
                        return;
                    }
                }
                Err(wait) => drop(timeout(wait, self.shared.rung.notified()).await),
            }
        }
    }

    /// Does what is due. True: that was the end.
    fn done(&mut self, turn: Turn) -> bool {
        if !turn.writes.is_empty() {
            self.write(&turn);
        }
        for ask in turn.reads {
            self.read(ask);
        }
        if !turn.closed {
            self.trim();
            return false;
        }
        let (left, events) = {
            let desk = self.shared.desk();
            (desk.writes.len(), desk.events)
        };
        if left > 0 && self.progress.borrow().failing.is_none() {
            return false;
        }
        if left > 0 {
            tracing::error!(events, "the end of the history could not be written");
        }
        true
    }

    /// Waits until there is something to do.
    fn next(&mut self) -> Turn {
        let mut desk = self.shared.desk();
        loop {
            match self.due(&mut desk) {
                Ok(turn) => return turn,
                Err(wait) => {
                    desk =
                        self.shared.bell.wait_timeout(desk, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// What is to be done now; if nothing is, how long that lasts at most.
    fn due(&self, desk: &mut Desk) -> Result<Turn, Duration> {
        let now = Instant::now();
        let may_write = desk.closed || self.retry_at.is_none_or(|at| at <= now);
        let writes = may_write && !desk.writes.is_empty();
        let trims = self.trim_at <= now && self.retry_at.is_none();
        if writes || !desk.reads.is_empty() || desk.closed || trims {
            let (writes, ticket) = if writes { desk.take() } else { Default::default() };
            return Ok(Turn { writes, ticket, reads: desk.reads.drain(..).collect(), closed: desk.closed });
        }
        let until = if desk.writes.is_empty() { None } else { self.retry_at };
        let until = until.unwrap_or(if self.retry_at.is_some() { now + TRIM } else { self.trim_at });
        Err(until.saturating_duration_since(now))
    }

    fn write(&mut self, turn: &Turn) {
        match self.store.commit(&turn.writes) {
            Ok(()) => {
                let dropped = {
                    let mut desk = self.shared.desk();
                    desk.written();
                    desk.dropped
                };
                self.retry_at = None;
                let used = self.store.used().unwrap_or(0);
                if used > self.retention().max_bytes {
                    self.trim_at = self.trim_at.min(Instant::now());
                }
                let progress = Progress { written: turn.ticket, failing: None, used, dropped };
                // Those who look at it must not wait for the log.
                if let Some(failing) = self.progress.send_replace(progress).failing {
                    tracing::info!(since = %failing.since, dropped, "history: written again");
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        self.retry_at = Some(Instant::now() + RETRY);
        let dropped = {
            let mut desk = self.shared.desk();
            desk.put_back();
            desk.dropped
        };
        let mut progress = self.progress.borrow().clone();
        if progress.failing.is_none() {
            tracing::error!("history: not written: {error}; supervising goes on from memory");
        }
        let since = progress.failing.map_or_else(Utc::now, |failing| failing.since);
        progress.failing = Some(Failing { since, why: error.to_string() });
        self.progress.send_replace(Progress { dropped, ..progress });
    }

    /// What is written, then what waits to be.
    fn read(&mut self, ask: Ask) {
        let Ask { filter, after, limit, answer } = ask;
        let found = after.map_or_else(|| self.store.locate(&filter), Ok).and_then(|after| {
            let mut page = self.store.page(&filter, after, limit)?;
            let after = page.last().map_or(after, |event| event.sequence);
            let desk = self.shared.desk();
            let waiting = desk.writes.iter().flat_map(|waiting| &waiting.write.events);
            let fitting = waiting.filter(|event| event.sequence > after && filter.fits(event));
            page.extend(fitting.take(limit.saturating_sub(page.len())).map(|event| v1::Event::clone(event)));
            Ok(page)
        });
        // A reader who has left needs no answer.
        let _ = answer.send(found);
    }

    fn retention(&self) -> Retention {
        *self.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trim(&mut self) {
        let now = Instant::now();
        if self.trim_at > now || self.retry_at.is_some() {
            return;
        }
        self.trim_at = now + TRIM;
        let retention = self.retention();
        match self.store.trim(&retention, Utc::now().timestamp_millis()) {
            Ok(true) => self.trim_at = now + TRIM_STEP,
            Ok(false) => {}
            Err(error) => tracing::warn!("history: what is old cannot be dropped: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
