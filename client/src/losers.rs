//! The tasks of a channel in which attempts end that nobody waits for any more: those withdrawn in band, and
//! those that may not be cancelled at once, so that their connection does not break under too many resets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Beyond so many, losers are cancelled by a reset all the same.
const MOST: usize = 4_096;

/// The owner of these tasks.
#[derive(Clone)]
pub(crate) struct Losers {
    tasks: TaskTracker,
    stop: CancellationToken,
    /// For those that may not be cancelled at once.
    pub(crate) grace: Duration,
    count: Arc<AtomicUsize>,
}

impl Losers {
    pub(crate) fn new(tasks: TaskTracker, stop: CancellationToken, grace: Duration) -> Self {
        Self { tasks, stop, grace, count: Arc::default() }
    }

    /// How many more can be kept.
    pub(crate) fn room(&self) -> usize {
        if self.stop.is_cancelled() { 0 } else { MOST.saturating_sub(self.count.load(Relaxed)) }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Lets so many go on in this future, which ends in time by itself.
    pub(crate) fn keep(&self, many: usize, rest: impl Future<Output = ()> + Send + 'static) {
        let kept = Kept::new(&self.count, many);
        self.run(async move {
            let _kept = kept;
            rest.await;
        });
    }

    /// Runs this until it ends or the channel is closed. Outside a runtime there is nothing to run in: it is
    /// dropped, and false.
    pub(crate) fn run(&self, work: impl Future<Output = ()> + Send + 'static) -> bool {
        let Ok(runtime) = Handle::try_current() else { return false };
        let stop = self.stop.clone();
        self.tasks.spawn_on(async move { _ = stop.run_until_cancelled(work).await }, &runtime);
        true
    }
}

struct Kept(Arc<AtomicUsize>, usize);

impl Kept {
    fn new(count: &Arc<AtomicUsize>, many: usize) -> Self {
        count.fetch_add(many, Relaxed);
        Self(count.clone(), many)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Relaxed);
    }
}
