//! The node's entrance: every call to every ward comes through here.
//!
//! It finds the ward's present incarnation, to which the call goes on (`call`), and refuses what
//! nobody here can answer.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Map, ready},
};
use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tonic::{Status, body::Body};
use tower::Service;
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
};

use crate::{
    audience::{self, Audience},
    built_in, call,
    calls::Calls,
    error::NodeError,
    ledger::Ledger,
    ward::{BoxedService, Route},
    ways::Table,
};

/// Where a call goes, by the full name of its service.
#[derive(Clone)]
pub(crate) enum Way {
    /// To a ward.
    Ward(Arc<Route>),
    /// To a service of the node itself: health, reflection.
    BuiltIn(BoxedService),
}

/// The tower service in front of all wards. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Entrance {
    node: Arc<str>,
    ways: Arc<ArcSwap<Table>>,
    draining: Arc<AtomicBool>,
    ledger: Ledger,
    audience: Audience,
    calls: Arc<Calls>,
}

impl Entrance {
    pub(crate) fn new(
        node: Arc<str>,
        ways: Arc<ArcSwap<Table>>,
        draining: Arc<AtomicBool>,
        ledger: Ledger,
        calls: Arc<Calls>,
    ) -> Self {
        Self { node, ways, draining, ledger, audience: Audience::Trusted, calls }
    }

    /// For a listener of this audience.
    pub(crate) fn for_audience(self, audience: Audience) -> Self {
        Self { audience, ..self }
    }

    /// Not an `async fn`, which would keep room for the request on each of its levels.
    fn answer(self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let path = request.uri().path();
        let service = path.strip_prefix('/').and_then(|p| p.rsplit_once('/')).map(|(service, _)| service);
        let way = self.ways.load().get(service.unwrap_or_default()).cloned();
        match way {
            Some(Way::BuiltIn(service)) => Box::pin(built_in::call(self.node, self.ledger, service, request)),
            Some(Way::Ward(route)) => self.call_ward(&route, request),
            None => {
                let refusal = NodeError::NoSuchService {
                    node: self.node.to_string(),
                    service: service.unwrap_or(path).to_owned(),
                };
                Box::pin(ready(self.refuse(refusal, "", &request)))
            }
        }
    }

    fn call_ward(self, route: &Route, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let refusal = if self.draining.load(Relaxed) {
            NodeError::Draining(self.node.to_string())
        } else if let Some(live) = route.current.load_full() {
            return Box::pin(call::serve(live, self.calls, request));
        } else {
            NodeError::WardNotRunning { ward: route.ward.to_string(), state: "between two incarnations" }
        };
        Box::pin(ready(self.refuse(refusal, &route.ward, &request)))
    }

    /// No ward sees this call. The refusal is logged, so that its ID leads somewhere.
    #[track_caller]
    fn refuse(&self, refusal: NodeError, ward: &str, request: &Request<Body>) -> Response<Body> {
        let mut context =
            RequestContext::from_headers(request.uri().path(), request.headers(), Instant::now());
        context.enter(self.node.clone(), ward, 0);
        let error = context::sync_scope(context, || Error::from(refusal).at(&self.node, ward, 0));
        self.ledger.write(&error);
        unbegun(refuse(error))
    }
}

/// A call that fails before it has a body.
pub(crate) fn refuse(error: Error) -> Response<Body> {
    Status::from(error).into_http()
}

/// Says that no ward has seen the call.
pub(crate) fn unbegun(mut refusal: Response<Body>) -> Response<Body> {
    refusal.headers_mut().insert(context::REFUSED, HeaderValue::from_static("1"));
    refusal
}

impl Service<Request<Body>> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        Map<BoxFuture<'static, Response<Body>>, fn(Response<Body>) -> Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        match self.audience {
            Audience::Trusted => this.answer(request).map(Ok as fn(_) -> _),
            Audience::Untrusted => {
                let covered: fn(_) -> _ = |answer| Ok(audience::veil(answer));
                this.answer(audience::doubt(request)).map(covered)
            }
        }
    }
}
