//! Calls that must not be carried out twice: of those with the same ID, method and request one runs, and all of
//! them get its reply; so do those that come within a while after it ended well.
//!
//! Unary methods only, and not those without side effects. The run has a task of its own: it goes on for as long
//! as anyone waits for it, whoever began it. One that fails is told to all who wait, and then forgotten, so
//! that the next attempt is a fresh one.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use uuid::Uuid;
use wardkeep_proto::{Error, context};

use crate::{
    call::{self, Call, Presence},
    entrance::refuse,
    error::NodeError,
    memory::{Found, Key, Limits, Memory},
    methods::Methods,
    tied,
};

/// What a ward knows of calls to its methods that must not be repeated.
#[derive(Debug)]
pub(crate) struct Twins {
    paths: HashSet<String>,
    memory: Mutex<Memory<Arc<Run>, Arc<Answer>>>,
    most_bytes: usize,
    hasher: RandomState,
}

/// A call that is being carried out.
#[derive(Debug)]
struct Run {
    stage: watch::Sender<Stage>,
    /// Nobody waits for it any more, or its ward has been stopped.
    cut: CancellationToken,
    /// Changed only while the memory is locked.
    callers: AtomicUsize,
}

#[derive(Clone, Debug)]
enum Stage {
    Queued,
    Began,
    Ended(Arc<Answer>),
    /// It was dropped.
    Lost,
}

/// A whole reply.
#[derive(Debug)]
struct Answer {
    head: HeaderMap,
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl Twins {
    /// For a ward that answers these services.
    ///
    /// # Errors
    /// What is missing, in one line.
    pub(crate) fn new(limits: Limits, services: &[String], methods: &Methods) -> Result<Arc<Self>, String> {
        let mut paths = HashSet::new();
        for service in services {
            let mut known = methods.of(service).peekable();
            if known.peek().is_none() {
                return Err(format!(
                    "it dedupes, but {service} is not in the node's descriptors (NodeBuilder::descriptors)"
                ));
            }
            for (path, shape) in known.filter(|(_, shape)| !shape.no_side_effects) {
                if shape.streams {
                    tracing::info!("{path} streams: its calls are not deduped");
                } else {
                    paths.insert(path.to_owned());
                }
            }
        }
        let memory = Mutex::new(Memory::new(limits));
        Ok(Arc::new(Self { paths, memory, most_bytes: limits.bytes, hasher: RandomState::new() }))
    }

    pub(crate) fn concern(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    fn memory(&self) -> MutexGuard<'_, Memory<Arc<Run>, Arc<Answer>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries out a call, or joins one that is being carried out, or repeats what it said.
pub(crate) async fn serve(
    twins: Arc<Twins>,
    call: Arc<Call>,
    id: Uuid,
    presence: Presence,
    request: Request<Body>,
    is_tied: bool,
) -> Response<Body> {
    let found = call.before_its_end(find(&twins, &call, id, request)).await;
    let mut waiting = match found.flatten() {
        Ok(FoundReply::Wait(waiting)) => waiting,
        Ok(FoundReply::Answer(answer)) if is_tied => {
            let (call_, reply) = (call.clone(), async move { answer.tell(&call, Some("replayed")) });
            return tied::begun(call_, reply.boxed());
        }
        Ok(FoundReply::Answer(answer)) => return answer.tell(&call, Some("replayed")),
        // The caller has gone in the middle of it: nobody is told.
        Ok(FoundReply::BrokeOff) => return refuse(NodeError::Cancelled.into()),
        Err(error) => return call.fail(error),
    };
    let begun = match call.before_its_end(waiting.begins()).await {
        Ok(()) if call.attempt.as_ref().is_none_or(|attempt| attempt.begin()) => Ok(()),
        Ok(()) => Err(call.within(|| call.cut_off())),
        Err(error) => Err(error),
    };
    if let Err(error) = begun {
        return call.fail(error);
    }
    let of_answer = call.clone();
    let answer = async move {
        let _presence = presence;
        match of_answer.before_its_end(waiting.ends()).await.flatten() {
            Ok(answer) => answer.tell(&of_answer, waiting.joined.then_some("joined")),
            Err(error) => of_answer.fail(error),
        }
    };
    if is_tied { tied::begun(call, answer.boxed()) } else { answer.await }
}

enum FoundReply {
    Wait(Waiting),
    Answer(Arc<Answer>),
    BrokeOff,
}

async fn find(
    twins: &Arc<Twins>,
    call: &Arc<Call>,
    id: Uuid,
    request: Request<Body>,
) -> Result<FoundReply, Error> {
    let method = call.context.method.clone();
    let (parts, body) = request.into_parts();
    let Some(body) = read(body, twins.most_bytes, &method).await? else { return Ok(FoundReply::BrokeOff) };
    let hash = twins.hasher.hash_one(&body);
    let key = (id, method);
    let request = Request::from_parts(parts, Body::new(Full::new(body)));
    let incarnation = call.incarnation();
    let run = Arc::new(Run {
        stage: watch::Sender::new(Stage::Queued),
        cut: incarnation.abort().child_token(),
        callers: AtomicUsize::new(1),
    });
    loop {
        let found = {
            let mut memory = twins.memory();
            let found = memory.find(&key, hash, Instant::now());
            match &found {
                Found::Running(run) if !run.cut.is_cancelled() => _ = run.callers.fetch_add(1, Relaxed),
                Found::Nothing => memory.begin(key.clone(), hash, run.clone()),
                _ => {}
            }
            found
        };
        let leaving = match found {
            Found::Ended(answer) => return Ok(FoundReply::Answer(answer)),
            Found::Running(run) if run.cut.is_cancelled() => run,
            Found::Running(run) => return Ok(FoundReply::Wait(Waiting::new(twins, run, true))),
            Found::Nothing => {
                let waiting = Waiting::new(twins, run.clone(), false);
                let running = Running { twins: twins.clone(), key, run, settled: false };
                let carried_out = running.carry_out(call.clone(), request);
                drop(incarnation.work().spawn_on(carried_out, &incarnation.home.runtime));
                return Ok(FoundReply::Wait(waiting));
            }
            Found::ReplyGone => return Err(NodeError::AlreadyDone { method: key.1.to_string() }.into()),
            Found::Other => return Err(NodeError::RequestIdReused { method: key.1.to_string() }.into()),
            Found::NoRoom => return Err(NodeError::TooManyToRemember(incarnation.ward.to_string()).into()),
        };
        // Everyone has left it, and it is about to end: then it is known no more.
        let mut stage = leaving.stage.subscribe();
        let _ = stage.wait_for(|stage| matches!(stage, Stage::Ended(_) | Stage::Lost)).await;
    }
}

/// Reads a request whole; `None` if it did not come whole.
async fn read(mut body: Body, limit: usize, method: &str) -> Result<Option<Bytes>, Error> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Ok(None) };
        let Ok(chunk) = frame.into_data() else { continue };
        if whole.len() + chunk.len() > limit {
            return Err(NodeError::RequestTooLong { method: method.to_owned(), limit }.into());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(Some(whole.freeze()))
}

/// A run as its task has it: whatever becomes of that, those who wait are told.
struct Running {
    twins: Arc<Twins>,
    key: Key,
    run: Arc<Run>,
    /// What became of it has been remembered.
    settled: bool,
}

impl Running {
    async fn carry_out(mut self, first: Arc<Call>, request: Request<Body>) {
        let call = Arc::new(Call::run_of(&first, self.run.cut.clone()));
        let reply = match call.admit().await {
            Ok(pass) => {
                self.run.stage.send_replace(Stage::Began);
                let presence = Presence::unnamed(&call);
                call.handle(pass, presence, request).await
            }
            Err(error) => call.fail(error),
        };
        let answer = Arc::new(Answer::read(reply).await);
        let mut memory = self.twins.memory();
        if answer.is_good() {
            memory.keep(&self.key, answer.clone(), answer.bytes(), Instant::now());
        } else {
            memory.give_up(&self.key);
        }
        drop(memory);
        self.settled = true;
        self.run.stage.send_replace(Stage::Ended(answer));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.settled {
            self.twins.memory().give_up(&self.key);
            self.run.stage.send_replace(Stage::Lost);
        }
    }
}

/// One that waits for a run. The last one who leaves ends it.
struct Waiting {
    twins: Arc<Twins>,
    run: Arc<Run>,
    stage: watch::Receiver<Stage>,
    joined: bool,
}

impl Waiting {
    fn new(twins: &Arc<Twins>, run: Arc<Run>, joined: bool) -> Self {
        Self { twins: twins.clone(), stage: run.stage.subscribe(), run, joined }
    }

    async fn begins(&mut self) {
        let _ = self.stage.wait_for(|stage| !matches!(stage, Stage::Queued)).await;
    }

    async fn ends(&mut self) -> Result<Arc<Answer>, Error> {
        let ended = self.stage.wait_for(|stage| matches!(stage, Stage::Ended(_) | Stage::Lost)).await;
        match ended.as_deref() {
            Ok(Stage::Ended(answer)) => Ok(answer.clone()),
            _ => Err(NodeError::Cancelled.into()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _memory = self.twins.memory();
        if self.run.callers.fetch_sub(1, Relaxed) == 1 {
            self.run.cut.cancel();
        }
    }
}

impl Answer {
    async fn read(reply: Response<Body>) -> Self {
        let (head, mut body) = reply.into_parts();
        let (mut data, mut trailers) = (BytesMut::new(), None);
        // Our own bodies say what fails in their trailers.
        while let Some(Ok(frame)) = body.frame().await {
            match frame.into_data() {
                Ok(chunk) => data.extend_from_slice(&chunk),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Self { head: head.headers, data: data.freeze(), trailers }
    }

    fn is_good(&self) -> bool {
        let status = self.trailers.as_ref().unwrap_or(&self.head).get("grpc-status");
        status.is_some_and(|status| status == "0")
    }

    fn bytes(&self) -> usize {
        let headers = self.head.iter().chain(self.trailers.iter().flatten());
        let text: usize = headers.map(|(key, value)| key.as_str().len() + value.len()).sum();
        self.data.len() + text
    }

    /// The reply for this caller.
    fn tell(&self, call: &Call, twin: Option<&'static str>) -> Response<Body> {
        let mut head = self.head.clone();
        let body = match &self.trailers {
            Some(trailers) => {
                let mut trailers = trailers.clone();
                call.seal(&mut trailers);
                let frames = [Frame::data(self.data.clone()), Frame::trailers(trailers)];
                Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Status>))))
            }
            None => {
                call.seal(&mut head);
                Body::empty()
            }
        };
        call::sign(&mut head, call.incarnation());
        head.extend(twin.map(|twin| (context::TWIN, HeaderValue::from_static(twin))));
        let mut response = Response::new(body);
        *response.headers_mut() = head;
        response
    }
}
