//! The one thread that writes. What waits is written in one transaction; then those who wait for it
//! are told. Nobody waits for the disk but this thread.
//!
//! A disk that does not take it: said once, tried again until it does. Meanwhile what is to be
//! written stays in memory, up to a bound; beyond it the oldest events are dropped and counted.
//! Changes of what is remembered (intents, wards that rest) are never dropped.

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
/// Changes carried over from dropped writes; beyond, those that were overtaken are left out.
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
    ended: Option<oneshot::Receiver<()>>,
    retention: Arc<Mutex<Retention>>,
}

/// Reads pages of the history.
#[derive(Clone)]
pub(in crate::daemon) struct Reader {
    shared: Arc<Shared>,
    turns: Arc<Semaphore>,
}

struct Shared {
    desk: Mutex<Desk>,
    bell: Condvar,
}

#[derive(Default)]
struct Desk {
    /// Oldest first; the last one has ticket `last`.
    writes: VecDeque<Arc<Write>>,
    last: u64,
    /// Events in `writes`.
    events: usize,
    /// Changes of writes that were dropped.
    carried: Vec<Change>,
    dropped: u64,
    reads: VecDeque<Ask>,
    closed: bool,
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
}

impl Desk {
    fn push(&mut self, write: Write) -> u64 {
        self.last += 1;
        self.events += write.events.len();
        self.writes.push_back(Arc::new(write));
        while self.events > WAITING && self.writes.len() > 1 {
            let Some(oldest) = self.writes.pop_front() else { break };
            self.events -= oldest.events.len();
            self.dropped += oldest.events.len() as u64;
            self.carried.extend(oldest.changes.iter().cloned());
        }
        if self.carried.len() > CARRIED {
            keep_the_last(&mut self.carried);
        }
        self.last
    }

    /// Ticket of the first write that waits.
    fn first(&self) -> u64 {
        self.last + 1 - self.writes.len() as u64
    }

    /// All up to this ticket is written; `carried` changes as well.
    fn written(&mut self, ticket: u64, carried: usize) {
        while self.first() <= ticket
            && let Some(write) = self.writes.pop_front()
        {
            self.events -= write.events.len();
        }
        self.carried.drain(..carried.min(self.carried.len()));
    }
}

/// Leaves out what a later change about the same makes void.
fn keep_the_last(changes: &mut Vec<Change>) {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<_> = changes
        .drain(..)
        .rev()
        .filter(|change| match change {
            Change::Open(intent) => seen.insert((0, intent.id, None)),
            Change::Close { .. } => true,
            Change::Hold { ward, .. } | Change::Release { ward } => seen.insert((1, 0, Some(ward.clone()))),
        })
        .collect();
    kept.reverse();
    *changes = kept;
}

impl History {
    pub(super) fn start(store: Box<dyn Store>, retention: Retention) -> Self {
        let shared = Arc::new(Shared { desk: Mutex::default(), bell: Condvar::new() });
        let (progress, watched) = watch::channel(Progress::default());
        let (end, ended) = oneshot::channel();
        let retention = Arc::new(Mutex::new(retention));
        let kept = retention.clone();
        let writer = Writer {
            store,
            retention,
            shared: shared.clone(),
            progress,
            retry_at: None,
            trim_at: Instant::now(),
        };
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
        Self { shared, progress: watched, thread, ended: Some(ended), retention: kept }
    }

    /// Keeps so much from now on.
    pub(in crate::daemon) fn retain(&self, retention: Retention) {
        *self.retention.lock().unwrap_or_else(PoisonError::into_inner) = retention;
    }

    /// Hands over what is to be written. All of it is durable once [`Progress::written`] has reached
    /// the ticket returned. Never blocks.
    pub(in crate::daemon) fn push(&self, write: Write) -> u64 {
        let ticket = self.shared.desk().push(write);
        self.shared.bell.notify_one();
        ticket
    }

    /// How far it is now.
    pub(in crate::daemon) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
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
        self.shared.bell.notify_one();
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
            self.shared.bell.notify_one();
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
    /// How many changes of dropped writes come first.
    carried: usize,
    /// Of the last of `writes`.
    ticket: u64,
    reads: Vec<Ask>,
    closed: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let turn = self.next();
            let tried = !turn.writes.is_empty();
            if tried {
                self.write(&turn);
            }
            let closed = turn.closed;
            for ask in turn.reads {
                self.read(ask);
            }
            if closed {
                let left = self.shared.desk().events;
                if left > 0 && self.progress.borrow().failing.is_none() {
                    continue;
                }
                if left > 0 {
                    tracing::error!(events = left, "the end of the history could not be written");
                }
                return;
            }
            self.trim();
        }
    }

    /// Waits until there is something to do.
    fn next(&mut self) -> Turn {
        let mut desk = self.shared.desk();
        loop {
            let now = Instant::now();
            let may_write = desk.closed || self.retry_at.is_none_or(|at| at <= now);
            let writes = may_write && !desk.writes.is_empty();
            if writes
                || !desk.reads.is_empty()
                || desk.closed
                || (self.trim_at <= now && self.retry_at.is_none())
            {
                let writes: Vec<_> =
                    if writes { desk.writes.iter().take(BATCH).cloned().collect() } else { Vec::new() };
                let ticket = desk.first() + writes.len() as u64 - 1;
                let carried = desk.carried.clone();
                let turn = Turn {
                    carried: carried.len(),
                    ticket,
                    reads: desk.reads.drain(..).collect(),
                    closed: desk.closed,
                    writes: prepend(carried, writes),
                };
                return turn;
            }
            let until = if desk.writes.is_empty() { None } else { self.retry_at };
            let until = until.unwrap_or(if self.retry_at.is_some() { now + TRIM } else { self.trim_at });
            let wait = until.saturating_duration_since(now);
            desk = self.shared.bell.wait_timeout(desk, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write(&mut self, turn: &Turn) {
        match self.store.commit(&turn.writes) {
            Ok(()) => {
                let dropped = {
                    let mut desk = self.shared.desk();
                    desk.written(turn.ticket, turn.carried);
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
        let dropped = self.shared.desk().dropped;
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
            let waiting = desk.writes.iter().flat_map(|write| &write.events);
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

fn prepend(carried: Vec<Change>, mut writes: Vec<Arc<Write>>) -> Vec<Arc<Write>> {
    if !carried.is_empty() && !writes.is_empty() {
        writes.insert(0, Arc::new(Write { events: Vec::new(), changes: carried }));
    }
    writes
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::{
        super::{
            intent::{Aim, Intent, tests::intent},
            memory::MemoryStore,
            store::State,
        },
        *,
    };

    const KEPT: Retention = Retention { max_age: Duration::from_secs(1 << 40), max_bytes: u64::MAX };

    /// A disk that is full while the test says so.
    struct Faulty {
        inner: Arc<Mutex<MemoryStore>>,
        full: Arc<AtomicBool>,
        transactions: Arc<Mutex<Vec<usize>>>,
    }

    impl Store for Faulty {
        fn commit(&mut self, writes: &[Arc<Write>]) -> Result<(), StoreError> {
            if self.full.load(Relaxed) {
                return Err(StoreError("the disk is full".into()));
            }
            self.transactions.lock().unwrap().push(writes.len());
            self.inner.lock().unwrap().commit(writes)
        }
        fn state(&mut self, since: i64) -> Result<State, StoreError> {
            self.inner.lock().unwrap().state(since)
        }
        fn locate(&mut self, filter: &Filter) -> Result<u64, StoreError> {
            self.inner.lock().unwrap().locate(filter)
        }
        fn page(&mut self, filter: &Filter, after: u64, limit: usize) -> Result<Vec<v1::Event>, StoreError> {
            self.inner.lock().unwrap().page(filter, after, limit)
        }
        fn trim(&mut self, retention: &Retention, now: i64) -> Result<bool, StoreError> {
            self.inner.lock().unwrap().trim(retention, now)
        }
        fn used(&mut self) -> Result<u64, StoreError> {
            self.inner.lock().unwrap().used()
        }
    }

    struct Bench {
        history: History,
        inner: Arc<Mutex<MemoryStore>>,
        full: Arc<AtomicBool>,
        transactions: Arc<Mutex<Vec<usize>>>,
    }

    fn bench(full: bool) -> Bench {
        let inner = Arc::new(Mutex::new(MemoryStore::default()));
        let (full, transactions) = (Arc::new(AtomicBool::new(full)), Arc::default());
        let store =
            Faulty { inner: inner.clone(), full: full.clone(), transactions: Arc::clone(&transactions) };
        Bench { history: History::start(Box::new(store), KEPT), inner, full, transactions }
    }

    impl Bench {
        fn push(&self, sequence: u64) -> u64 {
            let event = Arc::new(v1::Event { sequence, ..Default::default() });
            self.history.push(Write { events: vec![event], changes: Vec::new() })
        }

        async fn until(&mut self, seen: impl Fn(&Progress) -> bool) {
            let waited = async {
                while !seen(&self.history.progress()) {
                    self.history.progressed().await;
                }
            };
            timeout(Duration::from_secs(20), waited).await.expect("it hangs");
        }

        async fn read(&self) -> Vec<u64> {
            let page = self.history.reader().page(&Filter::default(), None, 100_000).await.unwrap();
            page.iter().map(|event| event.sequence).collect()
        }
    }

    #[tokio::test]
    async fn what_waits_is_written_in_one_transaction_and_then_confirmed() {
        let mut bench = bench(true);
        bench.push(1);
        bench.until(|progress| progress.failing.is_some()).await;
        for sequence in 2..=100 {
            bench.push(sequence);
        }
        bench.full.store(false, Relaxed);
        bench.until(|progress| progress.written == 100).await;
        assert_eq!(*bench.transactions.lock().unwrap(), [100], "group commit");
        assert_eq!(bench.read().await, (1..=100).collect::<Vec<_>>());
        bench.history.close().await;
    }

    #[tokio::test]
    async fn a_full_disk_is_said_reading_goes_on_and_nothing_is_lost_when_there_is_room_again() {
        let mut bench = bench(false);
        let ticket = bench.push(1);
        bench.until(|progress| progress.written == ticket).await;
        bench.full.store(true, Relaxed);
        bench.push(2);
        bench.until(|progress| progress.failing.is_some()).await;
        assert_eq!(bench.history.progress().failing.unwrap().why, "the disk is full");
        let last = bench.push(3);
        assert_eq!(bench.read().await, [1, 2, 3], "what is not written can be read from memory");
        bench.full.store(false, Relaxed);
        bench.until(|progress| progress.failing.is_none() && progress.written == last).await;
        assert_eq!(bench.inner.lock().unwrap().page(&Filter::default(), 0, 9).unwrap().len(), 3);
        assert_eq!(bench.history.progress().dropped, 0);
        bench.history.close().await;
    }

    #[tokio::test]
    async fn what_does_not_fit_into_memory_is_counted_and_intents_are_never_lost() {
        let mut bench = bench(true);
        let change = Change::Open(Intent { id: 9, ..intent(Aim::Restart, "w", 3) });
        bench.history.push(Write { events: vec![Arc::default()], changes: vec![change] });
        let mut last = 0;
        for sequence in 1..=WAITING as u64 + 10 {
            last = bench.push(sequence);
        }
        bench.full.store(false, Relaxed);
        bench.until(|progress| progress.written == last).await;
        assert_eq!(bench.history.progress().dropped, 11);
        let state = bench.inner.lock().unwrap().state(0).unwrap();
        assert_eq!(state.intents.first().map(|intent| intent.id), Some(9));
        assert_eq!(state.last_sequence, WAITING as u64 + 10);
        bench.history.close().await;
    }

    #[tokio::test]
    async fn what_was_handed_over_before_the_end_is_written() {
        let bench = bench(false);
        for sequence in 1..=3_000 {
            bench.push(sequence);
        }
        let (inner, transactions) = (bench.inner.clone(), bench.transactions.clone());
        bench.history.close().await;
        assert_eq!(inner.lock().unwrap().state(0).unwrap().last_sequence, 3_000);
        assert!(transactions.lock().unwrap().iter().all(|writes| *writes <= BATCH));
    }

    #[test]
    fn of_changes_carried_over_the_last_about_each_thing_is_kept() {
        let hold = |quarantined| Change::Hold { ward: ("n".into(), "w".into()), quarantined };
        let open = |due_at| Change::Open(Intent { id: 1, due_at, ..intent(Aim::Restart, "w", 3) });
        let close = Change::Close { id: 1, at: 0, outcome: String::new() };
        let mut changes = vec![hold(true), open(1), open(2), close.clone(), hold(false)];
        keep_the_last(&mut changes);
        assert_eq!(changes, [open(2), close, hold(false)]);
    }
}
