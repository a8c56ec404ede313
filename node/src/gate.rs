//! The gate of a service ward: how many calls it works on at once, and how many wait for their turn.
//!
//! Whoever waits is let in in the order of arrival. A wait that is dropped, because its caller has gone, its
//! deadline has passed or it was withdrawn, gives its place back, and its work is never begun.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// What callers of a full ward are told before it is known how long calls take.
const FIRST_GUESS: Duration = Duration::from_millis(100);
const SHORTEST_PUSHBACK: Duration = Duration::from_millis(10);
const LONGEST_PUSHBACK: Duration = Duration::from_secs(5);
/// A call counts for one part in so many of the mean.
const WEIGHT: u64 = 8;
/// The load is a mean over about so many calls' stay, but neither shorter nor longer than this.
const LOAD_OVER: u64 = 16;
const SHORTEST_MEAN: Duration = Duration::from_millis(250);
const LONGEST_MEAN: Duration = Duration::from_secs(5);
/// As many as are let in, and so many more, that wait: it is full, whatever the mean says.
const CROWD: usize = 7;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Gate {
    permits: Arc<Semaphore>,
    limit: usize,
    queue: usize,
    waiting: AtomicUsize,
    /// Mean time that a call stays, in nanoseconds; 0: none has ended.
    stay: AtomicU64,
    meter: Mutex<Meter>,
}

/// How many are inside, as a mean that follows. A look at one moment would tell little: the call that looks is
/// inside itself, so that a ward that works on one at a time would always be full.
#[derive(Debug)]
struct Meter {
    inside: usize,
    mean: f64,
    at: Instant,
}

impl Meter {
    fn follow(&mut self, now: Instant, over: Duration) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        // `as` is exact for any number of calls there can be.
        self.mean += (self.inside as f64 - self.mean) * (1.0 - (-passed / over.as_secs_f64()).exp());
        self.at = now;
    }
}

/// There is no room to wait either; try again after so long.
#[derive(Debug)]
pub(crate) struct Full(pub(crate) Duration);

impl Gate {
    pub(crate) fn new(limit: usize, queue: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(limit));
        let meter = Mutex::new(Meter { inside: 0, mean: 0.0, at: Instant::now() });
        Self { permits, limit, queue, waiting: AtomicUsize::new(0), stay: AtomicU64::new(0), meter }
    }

    /// If it is its turn at once. While somebody waits it is not: nobody is overtaken.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        Some(self.pass(self.permits.clone().try_acquire_owned().ok()?))
    }

    /// Waits for its turn.
    ///
    /// # Errors
    /// As many as may wait do so.
    pub(crate) async fn enter(self: &Arc<Self>) -> Result<Pass, Full> {
        if let Some(pass) = self.try_enter() {
            return Ok(pass);
        }
        let room = |waiting: usize| (waiting < self.queue).then_some(waiting + 1);
        if self.waiting.fetch_update(Relaxed, Relaxed, room).is_err() {
            return Err(Full(self.pushback()));
        }
        let _place = Place(self);
        // Nobody closes it.
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Full(self.pushback()))?;
        Ok(self.pass(permit))
    }

    fn pass(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Pass {
        let since = Instant::now();
        self.meter(since, |meter| meter.inside += 1);
        Pass { gate: self.clone(), since, _permit: permit }
    }

    /// Brings the meter up to now, and has it change or tell.
    fn meter<T>(&self, now: Instant, act: impl FnOnce(&mut Meter) -> T) -> T {
        let over = Duration::from_nanos(self.stay.load(Relaxed).saturating_mul(LOAD_OVER));
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.follow(now, over.clamp(SHORTEST_MEAN, LONGEST_MEAN));
        act(&mut meter)
    }

    /// Calls that are let in.
    #[cfg(test)]
    pub(crate) fn inside(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }

    /// Calls that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Its share of calls let in of late, in percent. More calls that wait than chance brings tell at once what
    /// the mean will only tell later.
    pub(crate) fn load(&self) -> usize {
        let mean = self.meter(Instant::now(), |meter| meter.mean);
        // Between 0 and 100.
        let late = (mean * 100.0 / self.limit as f64).round() as usize;
        let waiting = self.waiting();
        if self.queue > 0 && waiting >= self.queue {
            return 100;
        }
        late.max((waiting * 100 / self.limit.saturating_add(CROWD)).min(100))
    }

    /// About when there will be room: Little's law.
    fn pushback(&self) -> Duration {
        let stay = self.stay.load(Relaxed);
        if stay == 0 {
            return FIRST_GUESS;
        }
        let ahead = self.waiting() as u64 + 1;
        let wait = Duration::from_nanos(stay.saturating_mul(ahead) / self.limit as u64);
        wait.clamp(SHORTEST_PUSHBACK, LONGEST_PUSHBACK)
    }
}

struct Place<'a>(&'a Gate);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// A call that was let in, until this is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let now = Instant::now();
        self.gate.meter(now, |meter| meter.inside = meter.inside.saturating_sub(1));
        let stayed =
            u64::try_from(now.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX).max(1);
        let before = self.gate.stay.load(Relaxed);
        // One that is lost to another thread is one sample less.
        let mean = if before == 0 { stayed } else { before - before / WEIGHT + stayed / WEIGHT };
        self.gate.stay.store(mean, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt as _, future::join_all};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_let_in_in_the_order_of_arrival_and_who_left_is_passed_over() {
        let gate = Arc::new(Gate::new(1, 3));
        let first = gate.enter().await.unwrap();
        let mut waits: Vec<_> = (0..3).map(|_| Box::pin(gate.enter())).collect();
        for wait in &mut waits {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        assert_eq!((gate.inside(), gate.waiting()), (1, 3));
        assert!(matches!(gate.enter().now_or_never(), Some(Err(Full(_)))));
        drop(waits.remove(0));
        drop(first);
        let mut last = waits.pop().unwrap();
        assert!(last.as_mut().now_or_never().is_none());
        let second = waits.pop().unwrap().now_or_never().unwrap().unwrap();
        assert!(last.as_mut().now_or_never().is_none());
        drop(second);
        drop(last.now_or_never().unwrap().unwrap());
        assert_eq!((gate.inside(), gate.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_load_is_a_mean_so_that_one_call_at_a_time_is_not_always_a_full_house() {
        let gate = Arc::new(Gate::new(1, 8));
        let mut loads = Vec::new();
        for busy in [2, 5, 10] {
            for _ in 0..200 {
                let pass = gate.enter().await;
                tokio::time::sleep(Duration::from_millis(busy)).await;
                loads.push(gate.load());
                drop(pass);
                tokio::time::sleep(Duration::from_millis(10 - busy)).await;
            }
        }
        assert!(
            [(199, 20), (399, 50), (599, 100)].iter().all(|(i, load)| loads[*i].abs_diff(*load) <= 4),
            "{loads:?}"
        );
        tokio::time::sleep(LONGEST_MEAN * 5).await;
        assert!(gate.load() <= 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_waits_is_told_at_once() {
        let gate = Arc::new(Gate::new(2, 100));
        let mut calls: Vec<_> = (0..20).map(|_| Box::pin(gate.enter())).collect();
        let inside: Vec<_> = calls.iter_mut().filter_map(|call| call.as_mut().now_or_never()).collect();
        assert_eq!((inside.len(), gate.waiting(), gate.load()), (2, 18, 100));
        let small = Arc::new(Gate::new(20, 1));
        let mut calls: Vec<_> = (0..21).map(|_| Box::pin(small.enter())).collect();
        let inside: Vec<_> = calls.iter_mut().filter_map(|call| call.as_mut().now_or_never()).collect();
        assert_eq!((inside.len(), small.load()), (20, 100), "who comes next is refused");
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_is_told_when_there_will_be_some() {
        let gate = Arc::new(Gate::new(2, 1));
        let stay = async |gate: &Arc<Gate>| {
            let pass = gate.enter().await;
            tokio::time::sleep(Duration::from_millis(400)).await;
            pass.map(drop).map_err(|full| full.0)
        };
        let before = join_all((0..4).map(|_| stay(&gate))).await;
        assert_eq!(before[3], Err(FIRST_GUESS));
        let after = join_all((0..4).map(|_| stay(&gate))).await;
        // Two of them leave every 400 ms, and one waits already.
        assert_eq!(after[3], Err(Duration::from_millis(400)));
    }
}
