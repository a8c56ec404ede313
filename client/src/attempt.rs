//! One copy of a request to one member, up to a verdict.

use std::{
    error::Error as StdError,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};
use tonic::{Code, Status, body::Body};
use tracing::{Instrument as _, Span, field};
use uuid::Uuid;
use wardkeep_proto::{
    Error,
    context::{self, NODE, RequestContext},
    trace,
};

use crate::{
    began::TIED,
    channel::{InFlight, Link},
    decide::{Pushback, Rules},
    error::{AttemptError, Loss, Phase, find, loss},
    judge::judge,
    leave::{self, Exit},
    methods::Plan,
    observe::Observe,
    peer::Peer,
    policy::is_answer,
    request::{Progress, Template},
    track::Sample,
    window::Timings,
};

/// gRFC A6: attempts that came before this one.
const PREVIOUS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// What all attempts of a call need.
pub(crate) struct Call {
    pub(crate) template: Template,
    pub(crate) plan: Plan,
    pub(crate) rules: Rules,
    /// Its `attempt` is not used; its `deadline` is the call's.
    pub(crate) context: Arc<RequestContext>,
    /// An ID that no other call has, by which members know its attempts; if it has one.
    pub(crate) id: Option<Uuid>,
    pub(crate) started: Instant,
    pub(crate) observer: Option<Arc<dyn Observe>>,
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
            Self::Refused(error, ..) if error.code() == Code::ResourceExhausted => Some(Sample::Full(took)),
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

/// Sends copy `number` and judges the reply; no verdict if it was told to end before. Dropping it resets its
/// stream.
pub(crate) async fn run(
    call: Arc<Call>,
    link: Arc<Link>,
    number: u32,
    progress: Arc<Progress>,
    exit: oneshot::Receiver<Exit>,
) -> (u32, Option<Verdict>) {
    let span = span(&call, &link, number);
    let mut context = RequestContext::clone(&call.context);
    context.attempt = number;
    let mut measure = Measure::start(call.clone(), &link, number);
    let limit = call.attempt_timeout.filter(|_| call.plan.repeatable());
    if let Some(limit) = limit {
        context.deadline = context.deadline.min(measure.started + limit);
    }
    let context = Arc::new(context);
    let attempt = attempt(&call, link.enter(), &context, measure.request, &progress, &span);
    // Pinned here, so that what is put around it does not make this future twice as large each time.
    let attempt = pin!(attempt.instrument(span.clone()));
    let limited = pin!(async {
        match limit {
            None => attempt.await,
            Some(limit) => Box::pin(timeout(limit, attempt))
                .await
                .unwrap_or_else(|_| AttemptError::TookTooLong { uri: link.peer.uri.clone(), limit }.into()),
        }
    });
    // What goes wrong in it is an error of this request.
    let mut running = pin!(context::scope(context.clone(), limited));
    let ended = tokio::select! {
        biased;
        verdict = &mut running => Some(verdict),
        Ok(exit) = exit => match exit {
            Exit::Reset => None,
            Exit::Within(grace) => Box::pin(timeout(grace, running)).await.ok(),
            Exit::InBand { answer, ending } => {
                measure.cut_off();
                let ended = Box::pin(leave::ended(running, answer, &progress)).await;
                let attempt = || leave::story(&call, &link, number, measure.started, &progress, ending);
                leave::account(&call, &link, ended, attempt);
                None
            }
        },
    };
    let Some(verdict) = ended else { return (number, None) };
    measure.end(&verdict);
    if let Some(error) = verdict.error() {
        span.in_scope(|| tracing::debug!(error.id = error.id(), node = link.peer.name, number, "{error}"));
    }
    let code = verdict.code();
    span.record("code", field::debug(code));
    span.record("rpc.grpc.status_code", code as i32);
    (number, Some(verdict))
}

/// Named and described as OpenTelemetry's conventions for RPC and gRFC A72 have it.
fn span(call: &Call, link: &Link, number: u32) -> Span {
    let path = call.context.method.trim_start_matches('/');
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    let address = link.peer.uri.split("//").last().unwrap_or_default();
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    tracing::info_span!(
        target: trace::CALLS,
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
            // An answer would have taken longer than its attempt may.
            let too_long = self.call.attempt_timeout.is_some_and(|limit| took >= limit);
            if (matches!(sample, Sample::Answered(_)) || too_long) && counts {
                self.call.timings.record(now, took);
            }
        }
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        self.cut_off();
    }
}

impl Measure {
    /// It is cancelled: its answer would have taken at least that long.
    fn cut_off(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        // One that had little of the call's time is not to blame.
        let to_blame = self.call.expired.load(Relaxed) && took >= self.call.allowed / 2;
        let sample = Sample::of_cut_off(took, self.call.won_in.get().copied(), to_blame);
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
    let request = || {
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
        request
    };
    let reply = match send(call, &link, request, progress).await {
        Ok(reply) => reply,
        Err(verdict) => return verdict,
    };
    progress.reached(Phase::Body);
    let ours = link.peer.trusted && reply.headers().contains_key(NODE);
    link.answered(number, ours);
    judge(call, in_flight, progress, reply).await
}

/// Up to the reply's headers.
async fn send(
    call: &Call,
    link: &Link,
    request: impl FnOnce() -> http::Request<Body>,
    progress: &Progress,
) -> Result<Response<Body>, Verdict> {
    let uri = || link.peer.uri.clone();
    let sender = link.sender().map_err(|why| Verdict::Lost {
        error: AttemptError::Connect { uri: uri(), cause: why.to_owned() }.into(),
        never_sent: true,
    })?;
    let mut sending = pin!(sender.send(request));
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

pub(crate) fn verdict(why: AttemptError, loss: Loss) -> Verdict {
    match loss {
        Loss::Unprocessed => Verdict::Broken { error: why.into(), unprocessed: true },
        Loss::Limits => Verdict::Broken { error: why.into(), unprocessed: false },
        Loss::Cut => Verdict::Cut(why.into()),
        Loss::Stream => why.into(),
    }
}
