//! One copy of a request to one member, up to a verdict.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tonic::{Code, body::Body};
use tower::{Service as _, ServiceExt as _};
use tracing::{Instrument as _, Span, field};
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
    error::{Came, read_headers, write_headers},
    trace,
};

use crate::{
    channel::{InFlight, Link},
    decide::Outcome,
    error::{AttemptError, Phase, chain, find},
    methods::{Plan, Reading},
    reply::{Collected, Framing, Passing},
    request::{Progress, Template},
};

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
        node = link.name,
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
    let uri = || link.uri.clone();
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
        if find::<tonic::TimeoutExpired>(&error).is_some() {
            return AttemptError::TimedOut { uri: uri() }.into();
        }
        if find::<tonic::ConnectError>(&error).is_some() {
            link.shun(Instant::now());
            let error = AttemptError::Connect { uri: uri(), cause: root(&error) }.into();
            return Verdict::Lost { error, never_sent: true };
        }
        AttemptError::Transport { uri: uri(), cause: root(&error) }.into()
    })
}

/// What lies behind tonic's "transport error".
fn root(error: &tonic::transport::Error) -> String {
    std::error::Error::source(error).map_or_else(|| chain(error), chain)
}

/// Reads a reply as far as its kind demands.
async fn judge(call: &Call, in_flight: InFlight, reply: Response<Body>) -> Verdict {
    let (mut head, mut body) = reply.into_parts();
    let link = in_flight.link().clone();
    let uri = link.uri.clone();
    // Trailers-only: all is said.
    if head.headers.contains_key("grpc-status") {
        let failure = failure(&mut head.headers, &link);
        return settle(call, failure, Response::from_parts(head, body), uri, 0);
    }
    let grpc = head.headers.get(http::header::CONTENT_TYPE);
    let grpc = grpc.is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    if head.status != StatusCode::OK || !grpc {
        return AttemptError::NotGrpc { uri, status: head.status }.into();
    }
    let mut framing = Framing::default();
    let mut read = VecDeque::new();
    let mut size = 0;
    while !commits(call.plan.reading, &framing) {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return AttemptError::Transport { uri, cause: chain(&status) }.into(),
            None => return AttemptError::Malformed { uri, what: "it ended without trailers" }.into(),
        };
        match frame.into_data() {
            Ok(chunk) => {
                size += chunk.len();
                if size > call.max_reply_bytes {
                    return AttemptError::ReplyTooLarge { uri, limit: call.max_reply_bytes }.into();
                }
                framing.feed(&chunk);
                read.push_back(chunk);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return finish(call, head, read, framing, trailers, &link);
            }
        }
    }
    let body = Passing::new(read, body, in_flight, call.context.clone(), call.allowed);
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

/// The failure that these headers (or trailers) tell of. What is not well-formed in them is replaced.
pub(crate) fn failure(headers: &mut HeaderMap, link: &Link) -> Option<Error> {
    let (error, came) = read_headers(headers)?;
    let error = match came {
        _ if !link.trusted => error.of_stranger(&link.uri),
        Came::Whole => return Some(error),
        // What a server that is not one of our nodes says on purpose is meant for its callers.
        Came::Adopted if !error.is_malformed() && !error.what().is_empty() => {
            let line = error.what().to_owned();
            error.with_user_message(line)
        }
        Came::Adopted | Came::Remade => error,
    };
    write_headers(headers, error.clone());
    Some(error)
}

/// A reply that was read to its trailers.
fn finish(
    call: &Call,
    head: http::response::Parts,
    read: VecDeque<Bytes>,
    framing: Framing,
    mut trailers: HeaderMap,
    link: &Link,
) -> Verdict {
    let uri = link.uri.clone();
    if !trailers.contains_key("grpc-status") {
        return AttemptError::Malformed { uri, what: "its trailers have no grpc-status" }.into();
    }
    let failure = failure(&mut trailers, link);
    if failure.is_none() && !framing.is_whole() {
        return AttemptError::Malformed { uri, what: "it ended inside a message" }.into();
    }
    let reply = Response::from_parts(head, Body::new(Collected::new(read, trailers)));
    settle(call, failure, reply, uri, framing.complete)
}

fn settle(
    call: &Call,
    failure: Option<Error>,
    reply: Response<Body>,
    uri: String,
    messages: usize,
) -> Verdict {
    match failure {
        None if call.plan.reading == Reading::Whole && messages != 1 => {
            AttemptError::Malformed { uri, what: "a unary reply of not one message" }.into()
        }
        None => Verdict::Good(reply),
        // How tonic's servers say that the time this attempt was given is over.
        Some(error) if error.code() == Code::Cancelled && error.what() == "Timeout expired" => {
            AttemptError::TimedOut { uri }.into()
        }
        Some(error) => Verdict::Refused(error, reply),
    }
}
