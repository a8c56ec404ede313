//! Service wards: a tonic server behind a route. Stopping one takes the route away first; calls in
//! progress may finish within the grace, then they are dropped, then they are left behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::time::timeout;
use wardkeep_proto::v1;

use super::{
    ABORT_PATIENCE, BoxedService, Ended, OnPanic, ServiceFactory, StopSignal, counted, ordered_to_stop,
    terms::Terms,
};
use crate::{
    context::{Incarnation, WardContext},
    gate::Gate,
    panics::Contained,
    twins::Twins,
};

/// Where calls find the present incarnation of a service ward.
pub(crate) struct Route {
    pub(crate) ward: Arc<str>,
    pub(crate) current: ArcSwapOption<Live>,
    /// Replies of incarnations that were left behind: none of them was passed on.
    pub(crate) fenced: Arc<AtomicU64>,
    /// Outlives incarnations: what one has done, the next must not do again.
    twins: Option<Arc<Twins>>,
}

impl Route {
    pub(crate) fn new(ward: Arc<str>, twins: Option<Arc<Twins>>) -> Arc<Self> {
        Arc::new(Self { ward, current: ArcSwapOption::empty(), fenced: Arc::default(), twins })
    }
}

/// An incarnation that answers calls.
pub(crate) struct Live {
    pub(crate) incarnation: Arc<Incarnation>,
    pub(crate) service: BoxedService,
    pub(crate) on_panic: OnPanic,
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) twins: Option<Arc<Twins>>,
    fenced: Arc<AtomicU64>,
}

impl Live {
    /// Counts a reply that came too late.
    pub(crate) fn fence(&self) {
        self.fenced.fetch_add(1, Relaxed);
    }
}

pub(super) async fn run(
    factory: ServiceFactory,
    terms: Terms,
    route: Arc<Route>,
    incarnation: Arc<Incarnation>,
    mut stop: StopSignal,
    leaked: Arc<AtomicU32>,
    ready: impl FnOnce() + Send,
) -> Ended {
    // The factory is the ward's code: it runs where the ward's code runs, and may panic or hang.
    let context = WardContext::of_ward(incarnation.clone());
    let mut building = incarnation.home.runtime.spawn(Contained::new(async move { factory(context) }));
    let service = tokio::select! {
        built = &mut building => match built {
            Ok(Ok(service)) => service,
            Ok(Err(panic)) => return Ended::new(v1::ExitKind::Panicked).because(panic),
            Err(_) => return Ended::new(v1::ExitKind::Stopped),
        },
        _ = ordered_to_stop(&mut stop) => {
            building.abort();
            return match timeout(ABORT_PATIENCE, &mut building).await {
                Ok(_) => Ended::new(v1::ExitKind::Stopped),
                Err(_) => Ended {
                    rest: Some(Box::pin(counted(leaked, async move { drop(building.await) }))),
                    ..Ended::new(v1::ExitKind::Abandoned)
                },
            };
        }
    };
    route.current.store(Some(Arc::new(Live {
        incarnation: incarnation.clone(),
        service,
        on_panic: terms.on_panic,
        gate: terms.gate(),
        twins: route.twins.clone(),
        fenced: route.fenced.clone(),
    })));
    ready();
    tokio::select! {
        failure = incarnation.failed() => {
            route.current.store(None);
            incarnation.stop();
            // Its replacement does not wait for the calls that may still finish.
            let rest = async move {
                if !drain(&incarnation, Duration::from_secs(5)).await {
                    counted(leaked, async { incarnation.work().wait().await }).await;
                }
            };
            Ended {
                kind: failure.kind,
                error: Some(failure.error),
                traceparent: failure.traceparent,
                rest: Some(Box::pin(rest)),
            }
        }
        grace = ordered_to_stop(&mut stop) => {
            route.current.store(None);
            incarnation.stop();
            if drain(&incarnation, grace).await {
                Ended::new(v1::ExitKind::Stopped)
            } else {
                let rest = async move { incarnation.work().wait().await };
                Ended { rest: Some(Box::pin(counted(leaked, rest))), ..Ended::new(v1::ExitKind::Abandoned) }
            }
        }
    }
}

/// Lets calls finish for `grace`, then drops them. False: some of it does not return.
async fn drain(incarnation: &Incarnation, grace: Duration) -> bool {
    incarnation.work().close();
    if timeout(grace, incarnation.work().wait()).await.is_ok() {
        return true;
    }
    incarnation.abort().cancel();
    timeout(ABORT_PATIENCE, incarnation.work().wait()).await.is_ok()
}
