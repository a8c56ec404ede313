//! One copy of a request to one member, up to a verdict.

use std::{collections::VecDeque, error::Error as StdError, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tonic::{Code, body::Body};
use tower::{Service as _, ServiceExt as _};
use tracing::{Instrument as _, Span, field};
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
    trace,
};

use crate::{
    channel::{InFlight, Link},
    decide::Outcome,
    error::{AttemptError, Phase, find},
    methods::{Plan, Reading},
    peer::Peer,
    reply::{Collected, Framing, Passing},
    request::{Progress, Template},
};

pub(crate) const BAD_FLAG: &str = "a message with a flag that means nothing";
pub(crate) const NOT_ONE: &str = "a unary reply of not one message";

/// What all attempts of a call need.
pub(crate) struct Call {
    pub(crate) template: Template,
    pub(crate) plan: Plan,
    /// Its `attempt` is not used; its `deadline` is the call's.
    pub(crate) context: RequestContext,
    /// From the call's start to its deadline.
    pub(crate) allowed: Duration,
    pub(crate) max_reply_bytes: usize,
}

/// How an attempt ended.
pub(crate) enum Verdict {
    /// A reply to give to the caller.
    Good(Response<Body>),
    /// The member's own error, and the reply that carried it.
    Refused(Error, Response<Body>),
    /// Neither.
    Lost { error: Error, never_sent: bool },
}

impl Verdict {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Good(_) => Outcome::Good,
            Self::Refused(error, _) => Outcome::Refused(error.code()),
            Self::Lost { never_sent, .. } => Outcome::Lost { never_sent: *never_sent },
        }
    }
}

impl From<AttemptError> for Verdict {
    fn from(error: AttemptError) -> Self {
        Self::Lost { error: error.into(), never_sent: false }
    }
}

/// Sends copy `number` and judges the reply. Dropping it cancels the attempt.
pub(crate) async fn run(
    call: Arc<Call>,
    link: Arc<Link>,
    number: u32,
    progress: Arc<Progress>,
) -> (u32, Verdict) {
    let span = tracing::info_span!(
        "attempt",
        otel.kind = "client",
        rpc.method = %call.context.method,
        node = link.peer.name,
        number,
        code = field::Empty,
    );
    let in_flight = link.enter();
    let context = RequestContext { attempt: number, ..call.context.clone() };
    let attempt = attempt(&call, in_flight, &context, progress, &span).instrument(span.clone());
    // What goes wrong in it is an error of this request.
    let verdict = context::scope(context.clone(), attempt).await;
    let code = match &verdict {
        Verdict::Good(_) => Code::Ok,
        Verdict::Refused(error, _) | Verdict::Lost { error, .. } => {
            tracing::debug!(parent: &span, error.id = error.id(), "{error}");
            error.code()
        }
    };
    span.record("code", field::debug(code));
    (number, verdict)
}

async fn attempt(
    call: &Call,
    in_flight: InFlight,
    context: &RequestContext,
    progress: Arc<Progress>,
    span: &Span,
) -> Verdict {
    let link = in_flight.link().clone();
    let mut request = call.template.request(progress.clone());
    context.write(request.headers_mut(), Instant::now());
    trace::inject(span, request.headers_mut());
    let reply = match send(call, &link, request, &progress).await {
        Ok(reply) => reply,
        Err(lost) => return lost,
    };
    progress.reached(Phase::Body);
    link.absolve();
    judge(call, in_flight, reply).await
}

/// Up to the reply's headers.
async fn send(
    call: &Call,
    link: &Link,
    request: http::Request<Body>,
    progress: &Progress,
) -> Result<Response<Body>, Verdict> {
    let uri = || link.peer.uri.clone();
    let mut channel = link.channel().map_err(|why| Verdict::Lost {
        error: AttemptError::Connect { uri: uri(), cause: why.to_owned() }.into(),
        never_sent: true,
    })?;
    link.probe(Instant::now());
    let mut sending = std::pin::pin!(async move { channel.ready().await?.call(request).await });
    let patience = if call.plan.repeatable { link.patience() } else { call.allowed };
    let sent = match tokio::time::timeout(patience, &mut sending).await {
        Ok(sent) => sent,
        Err(_) if progress.phase() > Phase::Connect => sending.await,
        Err(_) => {
            link.shun(Instant::now());
            return Err(AttemptError::NotSent { uri: uri(), patience }.into());
        }
    };
    sent.map_err(|error| {
        let error = unsent(&link.peer, &error);
        let never_sent = matches!(error, AttemptError::Connect { .. });
        if never_sent {
            link.shun(Instant::now());
        }
        Verdict::Lost { error: error.into(), never_sent }
    })
}

/// Why no reply came.
pub(crate) fn unsent(peer: &Peer, error: &(dyn StdError + 'static)) -> AttemptError {
    let uri = peer.uri.clone();
    if find::<tonic::TimeoutExpired>(error).is_some() {
        return AttemptError::TimedOut { uri };
    }
    // What lies behind tonic's "transport error".
    let root = match error.source() {
        Some(source) if error.is::<tonic::transport::Error>() => source,
        _ => error,
    };
    match find::<tonic::ConnectError>(error) {
        Some(_) => AttemptError::Connect { uri, cause: peer.cause(root) },
        None => AttemptError::Transport { uri, cause: peer.cause(root) },
    }
}

/// Reads a reply as far as its kind demands.
async fn judge(call: &Call, in_flight: InFlight, reply: Response<Body>) -> Verdict {
    let (mut head, mut body) = reply.into_parts();
    let link = in_flight.link().clone();
    let peer = &link.peer;
    // Trailers-only: all is said, and what may follow is no answer.
    if head.headers.contains_key("grpc-status") {
        let failure = peer.failure(&mut head.headers);
        return settle(call, failure, Response::from_parts(head, Body::empty()), peer, 0);
    }
    let accepted = call.template.parts.headers.get("grpc-accept-encoding");
    if let Err(error) = peer.check_head(&mut head, accepted.and_then(|text| text.to_str().ok())) {
        return error.into();
    }
    let mut framing = Framing::of(&head.headers);
    let mut read = VecDeque::new();
    let mut size = 0;
    while !commits(call.plan.reading, &framing) {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => {
                return AttemptError::Transport { uri: peer.uri.clone(), cause: peer.cause(&status) }.into();
            }
            None => return unended(peer, &body).into(),
        };
        match frame.into_data() {
            Ok(chunk) => {
                size += chunk.len();
                if size > call.max_reply_bytes {
                    let uri = peer.uri.clone();
                    return AttemptError::ReplyTooLarge { uri, limit: call.max_reply_bytes }.into();
                }
                framing.feed(&chunk);
                if framing.bad_flag {
                    return peer.malformed(BAD_FLAG).into();
                }
                read.push_back(chunk);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return finish(call, head, read, framing, trailers, peer);
            }
        }
    }
    let passing = Passing::new(read, body, framing, peer.clone(), call.context.clone(), call.allowed);
    let body = passing.in_flight(in_flight).expecting_one(call.plan.unary);
    Verdict::Good(Response::from_parts(head, Body::new(body)))
}

/// Whether enough was seen to give the reply to the caller, though it has not ended.
fn commits(reading: Reading, seen: &Framing) -> bool {
    match reading {
        Reading::Pass => true,
        Reading::Whole => false,
        Reading::FirstMessage => seen.complete > 0,
        Reading::Unknown => seen.begun > 1,
    }
}

/// A reply that was read to its trailers.
fn finish(
    call: &Call,
    mut head: http::response::Parts,
    read: VecDeque<Bytes>,
    framing: Framing,
    mut trailers: HeaderMap,
    peer: &Peer,
) -> Verdict {
    let failure = match end(peer, &mut trailers, &framing) {
        Ok(failure) => failure,
        Err(malformed) => return malformed.into(),
    };
    if failure.is_some() {
        peer.cover(&mut head.headers);
    }
    let reply = Response::from_parts(head, Body::new(Collected::new(read, trailers)));
    settle(call, failure, reply, peer, framing.complete)
}

/// What the trailers of a reply tell of.
pub(crate) fn end(
    peer: &Peer,
    trailers: &mut HeaderMap,
    seen: &Framing,
) -> Result<Option<Error>, AttemptError> {
    if !trailers.contains_key("grpc-status") {
        return Err(peer.malformed("its trailers have no grpc-status"));
    }
    match peer.failure(trailers) {
        None if !seen.is_whole() => Err(peer.malformed("it ended inside a message")),
        failure => Ok(failure),
    }
}

/// How tonic's servers say that the time a call was given is over.
pub(crate) fn is_timeout(error: &Error) -> bool {
    error.code() == Code::Cancelled && error.what() == "Timeout expired"
}

/// Why a reply stopped without trailers: it ended so, or its stream was reset without an error.
pub(crate) fn unended(peer: &Peer, body: &Body) -> AttemptError {
    if http_body::Body::is_end_stream(body) {
        return peer.malformed("it ended without trailers");
    }
    AttemptError::Transport { uri: peer.uri.clone(), cause: "the stream was reset: NO_ERROR".to_owned() }
}

fn settle(
    call: &Call,
    failure: Option<Error>,
    reply: Response<Body>,
    peer: &Peer,
    messages: usize,
) -> Verdict {
    match failure {
        None if call.plan.unary && messages != 1 => peer.malformed(NOT_ONE).into(),
        None => Verdict::Good(reply),
        Some(error) if is_timeout(&error) => AttemptError::TimedOut { uri: peer.uri.clone() }.into(),
        Some(error) => Verdict::Refused(error, reply),
    }
}
