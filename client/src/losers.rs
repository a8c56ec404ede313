//! Attempts that lost and may not be cancelled at once: they are left to finish for a while, so that their
//! connection does not break under too many resets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Beyond so many, losers are cancelled all the same.
const MOST: usize = 4_096;

/// The owner of the tasks in which losers finish.
#[derive(Clone)]
pub(crate) struct Losers {
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) grace: Duration,
    count: Arc<AtomicUsize>,
}

impl Losers {
    pub(crate) fn new(tasks: TaskTracker, stop: CancellationToken, grace: Duration) -> Self {
        Self { tasks, stop, grace, count: Arc::default() }
    }

    /// Whether one more can be kept.
    pub(crate) fn have_room(&self) -> bool {
        self.count.load(Relaxed) < MOST && !self.stop.is_cancelled()
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Lets so many go on in this future until it ends or the grace is over.
    pub(crate) fn keep(&self, many: usize, rest: impl Future<Output = ()> + Send + 'static) {
        // Outside a runtime there is nothing to go on in: they are cancelled.
        let Ok(runtime) = Handle::try_current() else { return };
        let kept = Kept::new(&self.count, many);
        let (stop, grace) = (self.stop.clone(), self.grace);
        self.tasks.spawn_on(
            async move {
                let _kept = kept;
                let _ = stop.run_until_cancelled(timeout(grace, rest)).await;
            },
            &runtime,
        );
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
