//! Task wards: an async loop. Stopping one cancels its context, then aborts it at its next await,
//! then leaves it behind, because a thread that does not return cannot be taken away from it.
//!
//! There may be very many of them, so each is one task and no more: nobody waits for its end but the task
//! itself, which tells it. Only one that is told to stop is watched over.

use std::{
    sync::{Arc, atomic::AtomicU32, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{task::JoinHandle, time::timeout};
use wardkeep_proto::{Error, v1};

use super::{ABORT_PATIENCE, Ended, counted};
use crate::{
    context::{Incarnation, WardContext},
    panics::Contained,
};

/// What the ward's code returned, or how it panicked.
type Outcome = Result<Result<(), Error>, Error>;

/// A task that runs. `None` comes of one that has told its end by itself.
pub(crate) type Running = JoinHandle<Option<Outcome>>;

/// Starts incarnations of a task ward.
pub(crate) trait Launch: Send + Sync {
    fn launch(self: Arc<Self>, incarnation: Arc<Incarnation>) -> Running;
}

/// See [`super::Ward::task`].
pub(super) struct Factory<F>(pub(super) F);

impl<F, Fut> Launch for Factory<F>
where
    F: Fn(WardContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Error>> + Send + 'static,
{
    fn launch(self: Arc<Self>, incarnation: Arc<Incarnation>) -> Running {
        let context = WardContext::of_ward(incarnation.clone());
        let end = End(Some(incarnation.clone()));
        // Not `async` blocks, which would keep room for what they have long passed on.
        let body = futures_util::future::lazy(move |_| (self.0)(context)).flatten();
        incarnation.home.runtime.spawn(Contained::new(body).map(move |outcome| end.comes(outcome)))
    }
}

/// Tells the end of a task, however it comes.
struct End(Option<Arc<Incarnation>>);

impl End {
    fn comes(mut self, outcome: Outcome) -> Option<Outcome> {
        let incarnation = self.0.take()?;
        if incarnation.ordered.load(SeqCst) {
            return Some(outcome);
        }
        let ended = by_itself(outcome);
        incarnation.home.clone().ends.tell(incarnation, ended);
        None
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Only a runtime that shuts down drops a task that nobody has told to stop.
        if let Some(incarnation) = self.0.take().filter(|incarnation| !incarnation.ordered.load(SeqCst)) {
            incarnation.home.clone().ends.tell(incarnation, Ended::new(v1::ExitKind::Stopped));
        }
    }
}

fn by_itself(outcome: Outcome) -> Ended {
    match outcome {
        Ok(Ok(())) => Ended::new(v1::ExitKind::Done),
        Ok(Err(error)) => Ended::new(v1::ExitKind::Failed).because(error),
        Err(panic) => Ended::new(v1::ExitKind::Panicked).because(panic),
    }
}

/// What is left to do for one that ended by itself: what it began elsewhere has lost its reason, and must
/// not hold up the next incarnation.
pub(crate) fn rest_of(
    incarnation: Arc<Incarnation>,
    leaked: Arc<AtomicU32>,
) -> Option<impl Future<Output = ()> + Send + 'static> {
    incarnation.stop();
    incarnation.has_work().then_some(async move {
        incarnation.work().close();
        if timeout(ABORT_PATIENCE, incarnation.work().wait()).await.is_err() {
            counted(leaked, async { incarnation.work().wait().await }).await;
        }
    })
}

/// Takes a task down the stop ladder.
pub(crate) async fn stop(
    mut running: Running,
    incarnation: Arc<Incarnation>,
    grace: Duration,
    leaked: Arc<AtomicU32>,
) -> Ended {
    incarnation.stop();
    let ended = match timeout(grace, &mut running).await {
        Ok(ended) => ended,
        Err(_) => {
            running.abort();
            incarnation.abort().cancel();
            match timeout(ABORT_PATIENCE, &mut running).await {
                Ok(ended) => ended,
                Err(_) => {
                    let rest = counted(leaked, async move {
                        drop(running.await);
                        incarnation.work().close();
                        incarnation.work().wait().await;
                    });
                    return Ended { rest: Some(Box::pin(rest)), ..Ended::new(v1::ExitKind::Abandoned) };
                }
            }
        }
    };
    if incarnation.has_work() {
        incarnation.work().close();
        if timeout(ABORT_PATIENCE, incarnation.work().wait()).await.is_err() {
            // The loop has ended, but blocking work it began has not.
            let rest = counted(leaked, async move { incarnation.work().wait().await });
            return Ended { rest: Some(Box::pin(rest)), ..Ended::new(v1::ExitKind::Abandoned) };
        }
    }
    match ended {
        // A panic on the way out is still worth telling; an error then is mostly "I was cancelled".
        Ok(Some(Err(panic))) => Ended::new(v1::ExitKind::Stopped).because(panic),
        _ => Ended::new(v1::ExitKind::Stopped),
    }
}
