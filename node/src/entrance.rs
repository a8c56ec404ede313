//! The node's entrance: every call to every ward comes through here.
//!
//! It finds the ward's present incarnation, gives the handler its context, counts the work, holds
//! the deadline, contains panics, drops the call when its caller has gone or its ward is stopped,
//! and lets nothing out that is not a well-formed error.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tonic::{Status, body::Body};
use tower::{Service, ServiceExt as _};
use tracing::Instrument as _;
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
    trace, v1,
};

use crate::{
    audience::{self, Audience},
    body::{CallBody, Claim, Inbound},
    built_in,
    context::{Failure, Incarnation, WardContext},
    error::NodeError,
    ledger::Ledger,
    panics::{self, Contained},
    ward::{BoxedService, Live, OnPanic, Route},
    ways::Table,
    wellform,
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
}

impl Entrance {
    pub(crate) fn new(
        node: Arc<str>,
        ways: Arc<ArcSwap<Table>>,
        draining: Arc<AtomicBool>,
        ledger: Ledger,
    ) -> Self {
        Self { node, ways, draining, ledger, audience: Audience::Trusted }
    }

    /// For a listener of this audience.
    pub(crate) fn for_audience(self, audience: Audience) -> Self {
        Self { audience, ..self }
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path();
        let service = path.strip_prefix('/').and_then(|p| p.rsplit_once('/')).map(|(service, _)| service);
        let way = self.ways.load().get(service.unwrap_or_default()).cloned();
        match way {
            Some(Way::BuiltIn(service)) => built_in::call(&self.node, &self.ledger, service, request).await,
            Some(Way::Ward(route)) => self.call_ward(&route, request).await,
            None => {
                let refusal = NodeError::NoSuchService {
                    node: self.node.to_string(),
                    service: service.unwrap_or(path).to_owned(),
                };
                self.refuse(refusal, "", &request)
            }
        }
    }

    async fn call_ward(&self, route: &Route, request: Request<Body>) -> Response<Body> {
        let refusal = if self.draining.load(Relaxed) {
            NodeError::Draining(self.node.to_string())
        } else if let Some(live) = route.current.load_full() {
            return call(live, request).await;
        } else {
            NodeError::WardNotRunning { ward: route.ward.to_string(), state: "between two incarnations" }
        };
        self.refuse(refusal, &route.ward, &request)
    }

    /// No ward sees this call. The refusal is logged, so that its ID leads somewhere.
    #[track_caller]
    fn refuse(&self, refusal: NodeError, ward: &str, request: &Request<Body>) -> Response<Body> {
        let mut context =
            RequestContext::from_headers(request.uri().path(), request.headers(), Instant::now());
        context.enter(&self.node, ward, 0);
        let error = context::sync_scope(context, || Error::from(refusal).at(&self.node, ward, 0));
        self.ledger.write(&error);
        refuse(error)
    }
}

/// A call to this incarnation, from its headers to its response's headers.
async fn call(live: Arc<Live>, request: Request<Body>) -> Response<Body> {
    let now = Instant::now();
    let incarnation = live.incarnation.clone();
    let mut context = RequestContext::from_headers(request.uri().path(), request.headers(), now);
    context.enter(&incarnation.node, &incarnation.ward, incarnation.number);
    context.recorder = Some(incarnation.recorder.clone());
    let span = tracing::info_span!("ward.call", otel.name = %context.method, otel.kind = "server",
        rpc.system = "grpc", ward = %incarnation.ward, incarnation = incarnation.number,
        request = %context.request_id, attempt = context.attempt);
    trace::follow(&span, request.headers());

    let cancel = incarnation.abort.child_token();
    let work = Arc::new(incarnation.heart.work());
    let claim =
        Claim { _cancel: cancel.clone().drop_guard(), work: work.clone(), _token: incarnation.work.token() };
    // It may have begun to stop between the look at its route and the claim: nobody would wait for
    // this call then.
    if incarnation.stop.is_cancelled() {
        let error = context::sync_scope(context, || stopped(&incarnation));
        let error = error.at(&incarnation.node, &incarnation.ward, incarnation.number);
        span.in_scope(|| incarnation.ledger.write(&error));
        return refuse(error);
    }
    let broke_off = Arc::new(AtomicBool::new(false));
    let mut request = request.map(|body| Body::new(Inbound::new(body, work, broke_off.clone())));
    request.extensions_mut().insert(WardContext::of_call(incarnation.clone(), context.clone(), cancel));
    let handler = Contained::new(live.service.clone().oneshot(request));
    let deadline = context.deadline;
    // All of it within the request's scope: whatever error is made here knows the way it came.
    let guarded = context::scope(context.clone(), async {
        let answered = tokio::select! {
            biased;
            answered = handler => answered,
            () = incarnation.abort.cancelled() => Err(stopped(&incarnation)),
            () = tokio::time::sleep_until(deadline) => Err(deadline_passed(&context)),
        };
        // The fence: an incarnation that was left behind has no say any more, whatever it answers.
        if incarnation.abort.is_cancelled() { Err(stopped(&incarnation)) } else { answered }
    });
    let mut response = match guarded.instrument(span.clone()).await {
        // Nobody waits for the answer, which is only that the request was not whole: no bug of the ward.
        Ok(Ok(response)) if broke_off.load(Relaxed) => {
            panics::discard(response);
            refuse(NodeError::Cancelled.into())
        }
        Ok(Ok(response)) => {
            let (mut head, body) = response.into_parts();
            let adopt = || wellform::headers(&mut head.headers, incarnation.origin());
            span.in_scope(|| context::sync_scope(context.clone(), adopt));
            Response::from_parts(head, Body::new(CallBody::new(body, claim, live.clone(), context, span)))
        }
        Ok(Err(never)) => match never {},
        Err(error) => {
            let error = error.at(&incarnation.node, &incarnation.ward, incarnation.number);
            span.in_scope(|| {
                incarnation.ledger.write(&error);
                crash_if_panicked(&live, &error, &span);
            });
            refuse(error)
        }
    };
    sign(response.headers_mut(), &live);
    response
}

/// What becomes of calls whose ward was stopped and whose grace is over.
pub(crate) fn stopped(incarnation: &Incarnation) -> Error {
    NodeError::Stopped(incarnation.ward.to_string()).into()
}

/// What an expired deadline is: our own status, not tonic's `CANCELLED`.
pub(crate) fn deadline_passed(context: &RequestContext) -> Error {
    NodeError::DeadlineExceeded { method: context.method.to_string() }.into()
}

/// A panic under [`OnPanic::Restart`] is the end of the incarnation.
pub(crate) fn crash_if_panicked(live: &Live, error: &Error, span: &tracing::Span) {
    if error.is_malformed() && error.kind() == "PANIC" && live.on_panic == OnPanic::Restart {
        live.incarnation.fail(Failure {
            kind: v1::ExitKind::Panicked,
            error: error.clone(),
            traceparent: trace::traceparent(span).map(Into::into),
        });
    }
}

fn refuse(error: Error) -> Response<Body> {
    Status::from(error).into_http()
}

/// Says who answered.
fn sign(headers: &mut http::HeaderMap, live: &Live) {
    let incarnation = &live.incarnation;
    for (key, value) in [(context::NODE, &incarnation.node), (context::WARD, &incarnation.ward)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(key, value);
        }
    }
    headers.insert(context::INCARNATION, HeaderValue::from(incarnation.number));
}

impl Service<Request<Body>> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        let audience = self.audience;
        Box::pin(async move {
            Ok(match audience {
                Audience::Trusted => this.answer(request).await,
                Audience::Untrusted => audience::veil(this.answer(audience::doubt(request)).await),
            })
        })
    }
}
