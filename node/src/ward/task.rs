//! Task wards: an async loop. Stopping one cancels its context, then aborts it at its next await,
//! then leaves it behind, because a thread that does not return cannot be taken away from it.

use std::sync::{Arc, atomic::AtomicU32};

use tokio::{task::JoinError, time::timeout};
use wardkeep_proto::{Error, v1};

use super::{ABORT_PATIENCE, Ended, StopSignal, TaskFactory, counted, ordered_to_stop};
use crate::{
    context::{Incarnation, WardContext},
    panics::Contained,
};

pub(super) async fn run(
    factory: TaskFactory,
    incarnation: Arc<Incarnation>,
    mut stop: StopSignal,
    leaked: Arc<AtomicU32>,
    ready: impl FnOnce() + Send,
) -> Ended {
    let context = WardContext::of_ward(incarnation.clone());
    let body = Contained::new(async move { factory(context).await });
    let mut running = incarnation.runtime.spawn(body);
    ready();
    let grace = tokio::select! {
        ended = &mut running => {
            // What it began elsewhere has lost its reason, and must not hold up the next incarnation.
            incarnation.stop.cancel();
            incarnation.work.close();
            let rest = async move {
                if timeout(ABORT_PATIENCE, incarnation.work.wait()).await.is_err() {
                    counted(leaked, async { incarnation.work.wait().await }).await;
                }
            };
            return Ended { rest: Some(Box::pin(rest)), ..by_itself(ended) };
        }
        grace = ordered_to_stop(&mut stop) => grace,
    };
    incarnation.stop.cancel();
    let ended = match timeout(grace, &mut running).await {
        Ok(ended) => ended,
        Err(_) => {
            running.abort();
            incarnation.abort.cancel();
            match timeout(ABORT_PATIENCE, &mut running).await {
                Ok(ended) => ended,
                Err(_) => {
                    let rest = counted(leaked, async move {
                        drop(running.await);
                        incarnation.work.close();
                        incarnation.work.wait().await;
                    });
                    return Ended { rest: Some(Box::pin(rest)), ..Ended::new(v1::ExitKind::Abandoned) };
                }
            }
        }
    };
    incarnation.work.close();
    if timeout(ABORT_PATIENCE, incarnation.work.wait()).await.is_err() {
        // The loop has ended, but blocking work it began has not.
        let rest = counted(leaked, async move { incarnation.work.wait().await });
        return Ended { rest: Some(Box::pin(rest)), ..Ended::new(v1::ExitKind::Abandoned) };
    }
    match ended {
        // A panic on the way out is still worth telling; an error then is mostly "I was cancelled".
        Ok(Err(panic)) => Ended::new(v1::ExitKind::Stopped).because(panic),
        _ => Ended::new(v1::ExitKind::Stopped),
    }
}

fn by_itself(ended: Result<Result<Result<(), Error>, Error>, JoinError>) -> Ended {
    match ended {
        Ok(Ok(Ok(()))) => Ended::new(v1::ExitKind::Done),
        Ok(Ok(Err(error))) => Ended::new(v1::ExitKind::Failed).because(error),
        Ok(Err(panic)) => Ended::new(v1::ExitKind::Panicked).because(panic),
        // Only a runtime that shuts down cancels it.
        Err(_) => Ended::new(v1::ExitKind::Stopped),
    }
}
