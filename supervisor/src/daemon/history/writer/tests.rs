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
    let store = Faulty { inner: inner.clone(), full: full.clone(), transactions: Arc::clone(&transactions) };
    Bench { history: History::start(Box::new(store), KEPT, 0), inner, full, transactions }
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

/// A disk that begins a transaction, and ends it as the test says.
struct Gate {
    inner: Arc<Mutex<MemoryStore>>,
    begun: std::sync::mpsc::Sender<()>,
    ends: std::sync::mpsc::Receiver<bool>,
}

impl Store for Gate {
    fn commit(&mut self, writes: &[Arc<Write>]) -> Result<(), StoreError> {
        self.begun.send(()).unwrap();
        match self.ends.recv_timeout(Duration::from_secs(20)) {
            Ok(true) => self.inner.lock().unwrap().commit(writes),
            _ => Err(StoreError("the disk is full".into())),
        }
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

struct Gated {
    history: History,
    inner: Arc<Mutex<MemoryStore>>,
    begun: std::sync::mpsc::Receiver<()>,
    ends: std::sync::mpsc::Sender<bool>,
    sequence: u64,
}

fn gated() -> Gated {
    let inner = Arc::new(Mutex::new(MemoryStore::default()));
    let ((begin, begun), (ends, end)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let store = Gate { inner: inner.clone(), begun: begin, ends: end };
    Gated { history: History::start(Box::new(store), KEPT, 0), inner, begun, ends, sequence: 0 }
}

impl Gated {
    fn push(&mut self, events: usize, changes: Vec<Change>) -> u64 {
        let events = (0..events).map(|_| {
            self.sequence += 1;
            Arc::new(v1::Event { sequence: self.sequence, ..Default::default() })
        });
        let events = events.collect();
        self.history.push(Write { events, changes })
    }

    /// Waits until a transaction has begun.
    fn begins(&self) {
        self.begun.recv_timeout(Duration::from_secs(20)).expect("it hangs");
    }

    async fn ends(&mut self, ticket: u64) {
        let ends = self.ends.clone();
        let all = std::thread::spawn(move || {
            while ends.send(true).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let written = async {
            while self.history.progress().written < ticket {
                self.history.progressed().await;
            }
        };
        timeout(Duration::from_secs(20), written).await.expect("it hangs");
        drop(all);
    }
}

fn open(id: u64) -> Change {
    Change::Open(Intent { id, ..intent(Aim::Restart, "w", 3) })
}

fn close(id: u64) -> Change {
    Change::Close { id, at: 0, outcome: String::new() }
}

#[tokio::test]
async fn what_is_being_written_is_neither_dropped_nor_written_twice() {
    let mut gated = gated();
    gated.push(1, vec![]);
    gated.begins();
    gated.push(1, vec![open(9)]);
    gated.push(1, vec![close(9)]);
    gated.ends.send(true).unwrap();
    gated.begins();
    // Both are being written when there is too much.
    let last = gated.push(WAITING - 1, vec![]);
    gated.ends(last).await;
    assert_eq!(gated.inner.lock().unwrap().state(0).unwrap().intents, [], "it was closed");
    assert_eq!(gated.history.progress().dropped, 0);
}

#[tokio::test]
async fn changes_are_written_in_their_order_though_events_between_them_were_dropped() {
    let ward = || ("n".to_owned(), "w".to_owned());
    for written in [true, false] {
        let mut gated = gated();
        gated.push(1, vec![Change::Hold { ward: ward(), quarantined: true }, open(9)]);
        gated.begins();
        gated.push(10, vec![Change::Release { ward: ward() }]);
        gated.push(WAITING, vec![close(9)]);
        gated.ends.send(written).unwrap();
        let last = gated.push(1, vec![Change::Hold { ward: ward(), quarantined: false }]);
        gated.ends(last).await;
        let state = gated.inner.lock().unwrap().state(0).unwrap();
        assert_eq!((state.holds, state.intents), (vec![(ward(), false)], vec![]));
        assert!(gated.history.progress().dropped >= 10, "{}", gated.history.progress().dropped);
    }
}

#[tokio::test]
async fn writing_nothing_is_done_at_once_and_costs_no_transaction() {
    let mut bench = bench(false);
    let ticket = bench.push(1);
    assert_eq!(bench.history.push(Write::default()), ticket);
    bench.until(|progress| progress.written == ticket).await;
    assert_eq!(bench.history.push(Write::default()), ticket);
    let transactions = bench.transactions.clone();
    bench.history.close().await;
    assert_eq!(*transactions.lock().unwrap(), [1]);
}

#[tokio::test]
async fn changes_without_events_are_written_at_the_end_too() {
    let bench = bench(true);
    for id in 1..=3 * BATCH as u64 {
        bench.history.push(Write { events: vec![], changes: vec![open(id)] });
    }
    bench.full.store(false, Relaxed);
    let inner = bench.inner.clone();
    bench.history.close().await;
    assert_eq!(inner.lock().unwrap().state(0).unwrap().intents.len(), 3 * BATCH);
}

#[tokio::test]
async fn a_disk_that_fails_for_long_costs_no_more_memory_than_there_is_to_remember() {
    let mut bench = bench(true);
    // Known to the store.
    bench.history.push(Write { events: vec![], changes: vec![close(0)] });
    bench.until(|progress| progress.failing.is_some()).await;
    let ward = || ("n".to_owned(), "w".to_owned());
    for n in 1..=60_000_u64 {
        let quarantined = n % 2 == 0;
        let changes = vec![open(n), Change::Hold { ward: ward(), quarantined }, close(n)];
        let events = if n % 3 == 0 { vec![] } else { vec![Arc::default()] };
        bench.history.push(Write { events, changes });
    }
    for _ in 0..=WAITING {
        bench.push(1);
    }
    let desk = bench.history.shared.desk();
    let changes: usize = desk.writes.iter().map(|waiting| waiting.write.changes.len()).sum();
    assert!(changes <= 2 * CARRIED && desk.writes.len() <= 2 * WAITING, "{changes}, {}", desk.writes.len());
}

#[test]
fn of_changes_carried_over_the_last_about_each_thing_is_kept() {
    let hold = |quarantined| Change::Hold { ward: ("n".into(), "w".into()), quarantined };
    let open = |due_at| Change::Open(Intent { id: 1, due_at, ..intent(Aim::Restart, "w", 3) });
    let close = Change::Close { id: 1, at: 0, outcome: String::new() };
    let mut changes = vec![hold(true), open(1), open(2), close.clone(), hold(false)];
    let mut unknown = changes.clone();
    keep_the_last(&mut changes, 1);
    assert_eq!(changes, [close, hold(false)]);
    keep_the_last(&mut unknown, 0);
    assert_eq!(unknown, [hold(false)]);
    let mut changes = vec![open(1), open(2)];
    keep_the_last(&mut changes, 0);
    assert_eq!(changes, [open(2)]);
}
