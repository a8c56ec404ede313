//! One copy of a request to one member, up to a verdict.

use std::{
    collections::VecDeque,
    error::Error as StdError,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt as _;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tonic::{Code, Status, body::Body};
use tracing::{Instrument as _, Span, field};
use wardkeep_proto::{
    Error,
    context::{self, NODE, RequestContext},
    trace,
};

use crate::{
    began::{self, BEGAN, Late, TIED},
    channel::{InFlight, Link},
    decide::{Pushback, Rules},
    error::{AttemptError, Loss, Phase, find, loss},
    methods::{Plan, Reading},
    peer::Peer,
    policy::is_answer,
    reply::{Collected, Framing, Passing},
    request::{Progress, Template},
    service_config,
    track::Sample,
    window::Timings,
};

pub(crate) const BAD_FLAG: &str = "a message with a flag that means nothing";
pub(crate) const NOT_ONE: &str = "a unary reply of not one message";

/// gRFC A6: what a server says of further copies.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// gRFC A6: attempts that came before this one.
const PREVIOUS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
/// How busy a node is, from 0 to 1.
const LOAD: HeaderName = HeaderName::from_static("wardkeep-load");
/// What a node says of how an attempt ended there.
const FATE: HeaderName = HeaderName::from_static("wardkeep-fate");

/// A loser took far longer than the winner: so many times its time, and so much more.
const OVERDUE: (u32, Duration) = (3, Duration::from_millis(10));

/// What all attempts of a call need.
pub(crate) struct Call {
    pub(crate) template: Template,
    pub(crate) plan: Plan,
    pub(crate) rules: Rules,
    /// Its `attempt` is not used; its `deadline` is the call's.
    pub(crate) context: RequestContext,
    /// From the call's start to its deadline.
    pub(crate) allowed: Duration,
    /// The longest an attempt may take.
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) max_reply_bytes: usize,
    pub(crate) timings: Timings,
    /// An attempt has begun at its member.
    pub(crate) began: Notify,
    /// How long the attempt that won took.
    pub(crate) won_in: OnceLock<Duration>,
    /// The call's deadline has passed.
    pub(crate) expired: AtomicBool,
}

/// How an attempt ended.
pub(crate) enum Verdict {
    /// A reply to give to the caller; and, for a quorum, what it says.
    Good(Response<Body>, Bytes),
    /// The member's own error, and the reply that carried it.
    Refused(Error, Response<Body>, Option<Pushback>),
    /// Neither.
    Lost { error: Error, never_sent: bool },
    /// The connection ended by its own limits, or before the request was looked at.
    Broken { error: Error, unprocessed: bool },
    /// The connection was lost.
    Cut(Error),
}

impl Verdict {
    fn sample(&self, took: Duration) -> Option<Sample> {
        match self {
            Self::Good(..) => Some(Sample::Answered(took)),
            Self::Refused(error, ..) if is_answer(error.code()) => Some(Sample::Answered(took)),
            Self::Refused(..) => Some(Sample::Failed(took)),
            Self::Lost { never_sent: true, .. } => Some(Sample::Unreachable),
            Self::Lost { .. } => Some(Sample::Failed(took)),
            // If it is dead, the next connection will tell.
            Self::Cut(_) => Some(Sample::AtLeast(took)),
            Self::Broken { .. } => None,
        }
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Good(..) => Code::Ok,
            _ => self.error().map_or(Code::Unknown, Error::code),
        }
    }

    pub(crate) fn error(&self) -> Option<&Error> {
        match self {
            Self::Good(..) => None,
            Self::Refused(error, ..)
            | Self::Lost { error, .. }
            | Self::Broken { error, .. }
            | Self::Cut(error) => Some(error),
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
    let span = span(&call, &link, number);
    let mut context = RequestContext { attempt: number, ..call.context.clone() };
    let mut measure = Measure::start(call.clone(), &link, number);
    let limit = call.attempt_timeout.filter(|_| call.plan.repeatable());
    if let Some(limit) = limit {
        context.deadline = context.deadline.min(measure.started + limit);
    }
    let attempt = attempt(&call, link.enter(), &context, measure.request, &progress, &span);
    let attempt = attempt.instrument(span.clone());
    let limited = async {
        match limit {
            None => attempt.await,
            Some(limit) => timeout(limit, attempt)
                .await
                .unwrap_or_else(|_| AttemptError::TookTooLong { uri: link.peer.uri.clone(), limit }.into()),
        }
    };
    // What goes wrong in it is an error of this request.
    let verdict = context::scope(context.clone(), limited).await;
    measure.end(&verdict);
    if let Some(error) = verdict.error() {
        tracing::debug!(parent: &span, error.id = error.id(), "{error}");
    }
    let code = verdict.code();
    span.record("code", field::debug(code));
    span.record("rpc.grpc.status_code", code as i32);
    (number, verdict)
}

/// Named and described as OpenTelemetry's conventions for RPC and gRFC A72 have it.
fn span(call: &Call, link: &Link, number: u32) -> Span {
    let path = call.context.method.trim_start_matches('/');
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    let address = link.peer.uri.split("//").last().unwrap_or_default();
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    tracing::info_span!(
        "attempt",
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        server.address = host,
        server.port = port,
        node = link.peer.name,
        number,
        "previous-rpc-attempts" = number.saturating_sub(1),
        code = field::Empty,
        rpc.grpc.status_code = field::Empty,
    )
}

/// Sees to it that an attempt's time is counted, however it ends.
struct Measure {
    call: Arc<Call>,
    link: Arc<Link>,
    number: u32,
    /// Its number on the connection.
    request: u64,
    started: Instant,
    ended: bool,
}

impl Measure {
    fn start(call: Arc<Call>, link: &Arc<Link>, number: u32) -> Self {
        let started = Instant::now();
        link.asked(started);
        let request = link.health().cancels.started();
        Self { call, link: link.clone(), number, request, started, ended: false }
    }

    fn end(&mut self, verdict: &Verdict) {
        self.ended = true;
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        if let Some(sample) = verdict.sample(took) {
            self.link.record(now, sample);
            // Of a row of copies only the first counts: it alone is always sent.
            let counts = self.number == 1 || self.call.rules.delay.is_none();
            if matches!(sample, Sample::Answered(_)) && counts {
                self.call.timings.record(now, took);
            }
        }
    }
}

impl Drop for Measure {
    /// It was cancelled: its answer would have taken at least that long.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        let (times, more) = OVERDUE;
        let sample = match self.call.won_in.get() {
            Some(won) if took >= won.saturating_mul(times) && took >= *won + more => Sample::Overdue(took),
            // One that had little of the call's time is not to blame.
            None if self.call.expired.load(Relaxed) && took >= self.call.allowed / 2 => Sample::Failed(took),
            _ => Sample::AtLeast(took),
        };
        self.link.record(now, sample);
        // The first of a row of copies was late already when it was cut off: its time lies beyond all
        // percentiles that matter.
        if self.number == 1 && self.call.rules.delay.is_some() {
            self.call.timings.record(now, took);
        }
    }
}

async fn attempt(
    call: &Call,
    in_flight: InFlight,
    context: &RequestContext,
    number: u64,
    progress: &Arc<Progress>,
    span: &Span,
) -> Verdict {
    let link = in_flight.link().clone();
    let mut request = call.template.request(progress.clone());
    let headers = request.headers_mut();
    context.write(headers, Instant::now());
    trace::inject(span, headers);
    if context.attempt > 1 {
        headers.insert(PREVIOUS, HeaderValue::from(context.attempt - 1));
    }
    if call.rules.tied.is_some() {
        headers.insert(TIED, HeaderValue::from_static("1"));
    }
    if call.rules.equal > 1 {
        // Compressed answers may differ though they say the same.
        headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    }
    let reply = match send(call, &link, request, progress).await {
        Ok(reply) => reply,
        Err(verdict) => return verdict,
    };
    progress.reached(Phase::Body);
    let ours = link.peer.trusted && reply.headers().contains_key(NODE);
    link.health().cancels.answered(number, ours);
    judge(call, in_flight, progress, reply).await
}

/// Up to the reply's headers.
async fn send(
    call: &Call,
    link: &Link,
    request: http::Request<Body>,
    progress: &Progress,
) -> Result<Response<Body>, Verdict> {
    let uri = || link.peer.uri.clone();
    let sender = link.sender().map_err(|why| Verdict::Lost {
        error: AttemptError::Connect { uri: uri(), cause: why.to_owned() }.into(),
        never_sent: true,
    })?;
    let mut sending = std::pin::pin!(sender.send(request));
    let patience = if call.plan.repeatable() { link.patience() } else { call.allowed };
    let sent = match timeout(patience, &mut sending).await {
        Ok(sent) => sent,
        Err(_) if progress.phase() > Phase::Connect => sending.await,
        Err(_) => {
            link.record(Instant::now(), Sample::Unreachable);
            return Err(AttemptError::NotSent { uri: uri(), patience }.into());
        }
    };
    sent.map_err(|error| {
        // A layer below may say it in so many words.
        if let Some(status) = find::<Status>(&*error) {
            let reply = status.clone().into_http();
            return Verdict::Refused(Error::from_status(status), reply, None);
        }
        lost(&link.peer, &*error)
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

/// What became of an attempt whose connection failed.
fn lost(peer: &Peer, error: &(dyn StdError + 'static)) -> Verdict {
    let why = unsent(peer, error);
    if matches!(why, AttemptError::Connect { .. }) {
        return Verdict::Lost { error: why.into(), never_sent: true };
    }
    verdict(why, loss(error))
}

fn verdict(why: AttemptError, loss: Loss) -> Verdict {
    match loss {
        Loss::Unprocessed => Verdict::Broken { error: why.into(), unprocessed: true },
        Loss::Limits => Verdict::Broken { error: why.into(), unprocessed: false },
        Loss::Cut => Verdict::Cut(why.into()),
        Loss::Stream => why.into(),
    }
}

/// Reads a reply as far as its kind demands.
async fn judge(call: &Call, in_flight: InFlight, progress: &Progress, reply: Response<Body>) -> Verdict {
    let (mut head, mut body) = reply.into_parts();
    let link = in_flight.link().clone();
    let peer = &link.peer;
    // Trailers-only: all is said, and what may follow is no answer.
    if head.headers.contains_key("grpc-status") {
        listen(&link, progress, &head.headers);
        let pushback = pushback(&head.headers);
        let failure = peer.failure(&mut head.headers);
        let reply = Response::from_parts(head, Body::empty());
        return settle(call, failure, pushback, reply, peer, None);
    }
    let accepted = call.template.parts.headers.get("grpc-accept-encoding");
    let accepted = accepted.and_then(|text| text.to_str().ok()).filter(|_| call.rules.equal == 1);
    if let Err(error) = peer.check_head(&mut head, accepted) {
        return error.into();
    }
    let mut read = VecDeque::new();
    if call.rules.tied.is_some() && peer.trusted && head.headers.remove(BEGAN).is_some() {
        progress.begin();
        call.began.notify_one();
        match late_metadata(peer, &mut head.headers, &mut body).await {
            Ok(Begun::Goes(rest)) => read.extend(rest),
            Ok(Begun::Ends(trailers)) => {
                let framing = Framing::of(&head.headers);
                return finish(call, head, read, framing, trailers, &link, progress);
            }
            Err(verdict) => return verdict,
        }
        if let Err(error) = peer.check_head(&mut head, accepted) {
            return error.into();
        }
    }
    let mut framing = Framing::of(&head.headers);
    let mut size = 0;
    for chunk in &read {
        size += Bytes::len(chunk);
        framing.feed(chunk);
    }
    while !commits(call.plan.reading, &framing) {
        if framing.bad_flag {
            return peer.malformed(BAD_FLAG).into();
        }
        if size > call.max_reply_bytes {
            let uri = peer.uri.clone();
            return AttemptError::ReplyTooLarge { uri, limit: call.max_reply_bytes }.into();
        }
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return lost_within(peer, &status),
            None => return unended(peer, &body).into(),
        };
        match frame.into_data() {
            Ok(chunk) => {
                size += chunk.len();
                framing.feed(&chunk);
                read.push_back(chunk);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return finish(call, head, read, framing, trailers, &link, progress);
            }
        }
    }
    if framing.bad_flag {
        return peer.malformed(BAD_FLAG).into();
    }
    let passing = Passing::new(read, body, framing, peer.clone(), call.context.clone(), call.allowed);
    let body = passing.in_flight(in_flight).expecting_one(call.plan.unary);
    Verdict::Good(Response::from_parts(head, Body::new(body)), Bytes::new())
}

/// A connection that failed inside a reply.
fn lost_within(peer: &Peer, status: &Status) -> Verdict {
    let error = AttemptError::Transport { uri: peer.uri.clone(), cause: peer.cause(status) };
    match loss(status) {
        // It had begun to answer.
        Loss::Unprocessed => verdict(error, Loss::Limits),
        loss => verdict(error, loss),
    }
}

/// What follows a head that said only that the work has begun.
enum Begun {
    /// The reply goes on with these bytes.
    Goes(Option<Bytes>),
    /// It ended at once.
    Ends(HeaderMap),
}

async fn late_metadata(peer: &Peer, head: &mut HeaderMap, body: &mut Body) -> Result<Begun, Verdict> {
    let mut late = Late::default();
    loop {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return Err(lost_within(peer, &status)),
            None => return Err(unended(peer, body).into()),
        };
        match frame.into_data() {
            Ok(chunk) => match late.feed(chunk) {
                Ok(None) => {}
                Ok(Some((metadata, rest))) => {
                    began::merge(head, metadata);
                    return Ok(Begun::Goes((!rest.is_empty()).then_some(rest)));
                }
                Err(what) => return Err(peer.malformed(what).into()),
            },
            Err(frame) if late.is_untouched() => {
                return Ok(Begun::Ends(frame.into_trailers().unwrap_or_default()));
            }
            Err(_) => return Err(peer.malformed("it ended inside its late metadata").into()),
        }
    }
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
    link: &Link,
    progress: &Progress,
) -> Verdict {
    let peer = &link.peer;
    listen(link, progress, &trailers);
    let pushback = pushback(&trailers);
    let failure = match end(peer, &mut trailers, &framing) {
        Ok(failure) => failure,
        Err(malformed) => return malformed.into(),
    };
    if failure.is_some() {
        peer.cover(&mut head.headers);
    }
    let answer = (call.rules.equal > 1).then(|| joined(&read));
    let reply = Response::from_parts(head, Body::new(Collected::new(read, trailers)));
    settle(call, failure, pushback, reply, peer, Some((framing.complete, answer.unwrap_or_default())))
}

fn joined(chunks: &VecDeque<Bytes>) -> Bytes {
    match chunks.len() {
        1 => chunks[0].clone(),
        _ => chunks
            .iter()
            .fold(BytesMut::new(), |mut all, chunk| {
                all.extend_from_slice(chunk);
                all
            })
            .freeze(),
    }
}

/// What a node says of itself at the end of a reply.
pub(crate) fn listen(link: &Link, progress: &Progress, trailers: &HeaderMap) {
    if !link.peer.trusted {
        return;
    }
    link.hear_load(trailers);
    let text = trailers.get(FATE).and_then(|value| value.to_str().ok());
    if let Some(text) = text {
        progress.ended_as(text.chars().take(64).collect());
    }
}

/// How busy these trailers say that a node is.
pub(crate) fn load(trailers: &HeaderMap) -> Option<f64> {
    let load: f64 = trailers.get(LOAD)?.to_str().ok()?.parse().ok()?;
    (0.0..=1.0).contains(&load).then_some(load)
}

fn pushback(headers: &HeaderMap) -> Option<Pushback> {
    let value = headers.get(PUSHBACK)?;
    let pause = value.to_str().ok().and_then(service_config::pushback);
    Some(pause.map_or(Pushback::Stop, Pushback::After))
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

/// `said`: how many messages, and for a quorum what.
fn settle(
    call: &Call,
    failure: Option<Error>,
    pushback: Option<Pushback>,
    reply: Response<Body>,
    peer: &Peer,
    said: Option<(usize, Bytes)>,
) -> Verdict {
    let (messages, answer) = said.unwrap_or_default();
    match failure {
        None if call.plan.unary && messages != 1 => peer.malformed(NOT_ONE).into(),
        None => Verdict::Good(reply, answer),
        Some(error) if is_timeout(&error) => AttemptError::TimedOut { uri: peer.uri.clone() }.into(),
        Some(error) => Verdict::Refused(error, reply, pushback),
    }
}
