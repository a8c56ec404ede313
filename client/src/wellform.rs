//! The boundary alone, for people with a channel of their own.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use wardkeep_proto::{
    Error,
    context::{self, DEFAULT_DEADLINE, RequestContext},
};

use crate::{
    attempt,
    channel::{BoxError, BoxFuture},
    error::{AttemptError, CallError, arose_here, find},
    judge,
    peer::Peer,
    race,
    reply::{Framing, Passing, body},
};

/// A layer that lets nothing malformed through to callers: whatever goes wrong below it, in heads, in
/// trailers, in the middle of a stream or on the connection, reaches them as one well-formed error. Each
/// call gets a deadline and tells the server its request's ID, the time that is left, and the way it has
/// come.
///
/// For channels that are not [`Replicated`](crate::Replicated), which does all that by itself:
///
/// ```
/// use tower::Layer as _;
/// use wardkeep_client::{WellFormed, endpoint};
/// use wardkeep_proto::{Error, v1::{GetFleetRequest, operator_client::OperatorClient}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let uri = "http://127.0.0.1:9";
/// let channel = WellFormed::of(uri).layer(endpoint(uri)?.connect_lazy());
/// let status = OperatorClient::new(channel).get_fleet(GetFleetRequest {}).await.unwrap_err();
/// let error = Error::from_status(&status);
/// assert_eq!(error.kind(), "CONNECT_FAILED");
/// assert!(error.what().starts_with("http://127.0.0.1:9: could not connect"));
/// # Ok(())
/// # }
/// ```
///
/// What comes from above it, it cannot see: a message that is no protobuf, or larger than the client takes,
/// is a bare status of tonic's.
#[derive(Clone, Debug)]
pub struct WellFormed {
    uri: String,
    trusted: bool,
    quiet: bool,
    default_deadline: Duration,
}

impl WellFormed {
    /// Of a channel to this address, which is named in errors.
    pub fn of(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), trusted: true, quiet: false, default_deadline: DEFAULT_DEADLINE }
    }

    /// Believes nothing of what the server's errors say: see [`Member::trusted`](crate::Member::trusted).
    #[must_use]
    pub fn stranger(mut self) -> Self {
        self.trusted = false;
        self
    }

    /// Logs bugs only: whoever calls says itself what else went wrong.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The deadline of calls that set none and serve no request with one; 30 s unless set. It spans the
    /// whole call, streaming replies included: calls meant to last set their own `grpc-timeout`.
    #[must_use]
    pub fn default_deadline(mut self, deadline: Duration) -> Self {
        self.default_deadline = deadline;
        self
    }
}

impl<S> Layer<S> for WellFormed {
    type Service = WellFormedChannel<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let peer = Peer { name: self.uri.clone(), uri: self.uri.clone(), trusted: self.trusted };
        let (quiet, default_deadline) = (self.quiet, self.default_deadline);
        WellFormedChannel { inner, peer: Arc::new(peer), quiet, default_deadline }
    }
}

/// A channel under [`WellFormed`].
#[derive(Clone)]
pub struct WellFormedChannel<S> {
    inner: S,
    peer: Arc<Peer>,
    quiet: bool,
    default_deadline: Duration,
}

impl<S> fmt::Debug for WellFormedChannel<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WellFormedChannel").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<S, B> Service<Request<Body>> for WellFormedChannel<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let (peer, quiet) = (&self.peer, self.quiet);
        self.inner.poll_ready(cx).map_err(|error| told(undelivered(peer, error.into()), quiet))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let now = Instant::now();
        let context = Arc::new(race::context_of(&request, self.default_deadline, now));
        context.write(request.headers_mut(), now);
        let accepted = request.headers().get("grpc-accept-encoding").cloned();
        let allowed = context.remaining(now);
        let call = Call { peer: self.peer.clone(), quiet: self.quiet, allowed, context };
        let context = call.context.clone();
        // Errors that arise from the start of the call on are errors of this request.
        let sent = context::sync_scope(context.clone(), || self.inner.call(request));
        Box::pin(context::scope(context, async move {
            let sent = timeout_at(call.context.deadline, sent);
            let reply = match sent.await.map_err(|_| call.overdue())? {
                Ok(reply) => reply.map(body),
                Err(error) => return Err(told(undelivered(&call.peer, error.into()), call.quiet)),
            };
            call.judge(reply, accepted.as_ref().and_then(|text| text.to_str().ok()))
        }))
    }
}

struct Call {
    peer: Arc<Peer>,
    quiet: bool,
    context: Arc<RequestContext>,
    allowed: Duration,
}

impl Call {
    fn judge(self, reply: Response<Body>, accepted: Option<&str>) -> Result<Response<Body>, Status> {
        let (mut head, body) = reply.into_parts();
        if head.headers.contains_key("grpc-status") {
            match self.peer.failure(&mut head.headers) {
                Some(failure) if judge::is_timeout(&failure) => {
                    let uri = self.peer.uri.clone();
                    return Err(told(AttemptError::TimedOut { uri }.into(), self.quiet));
                }
                Some(failure) if arose_here(&failure) => log(&failure, self.quiet),
                _ => {}
            }
            return Ok(Response::from_parts(head, Body::empty()));
        }
        self.peer.check_head(&mut head, accepted).map_err(|error| told(error.into(), self.quiet))?;
        let seen = Framing::of(&head.headers);
        let body = Passing::new(Default::default(), body, seen, self.peer, self.context, self.allowed);
        Ok(Response::from_parts(head, Body::new(body)))
    }

    fn overdue(&self) -> Status {
        let method = self.context.method.to_string();
        CallError::Deadline { method, allowed: self.allowed, attempts: Vec::new() }.into_error().into()
    }
}

fn told(error: Error, quiet: bool) -> Status {
    log(&error, quiet);
    error.into()
}

fn log(error: &Error, quiet: bool) {
    if !quiet || error.is_malformed() {
        error.log();
    }
}

/// Why no reply came. Where a layer below has said it as a status, that is told.
fn undelivered(peer: &Peer, error: BoxError) -> Error {
    match find::<Status>(&*error) {
        Some(status) => Error::from_status(status),
        None => attempt::unsent(peer, &*error).into(),
    }
}
