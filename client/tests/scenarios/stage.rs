//! Replicas in memory that do what a test tells them, on paused time, and a log of what happened to them.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, body::Body};
use tower::Service;
use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, ReplicatedBuilder, Restraint};
use wardkeep_proto::v1::{Fleet, GetFleetRequest};

use crate::common::{fleet, framed, frames, operator, trailers, whole, within};

pub const MS: Duration = Duration::from_millis(1);

/// What a replica does with a request.
#[derive(Clone, Debug)]
pub enum Does {
    /// Answers with its name after so many milliseconds.
    Answers(u64),
    /// Answers so instead.
    Says(u64, &'static str),
    Fails(u64, Code),
    /// Fails with UNAVAILABLE and this `grpc-retry-pushback-ms`.
    Pushes(u64, &'static str),
    /// The connection cannot be had.
    Unreachable(u64),
    /// Says at once that it has begun (if the copies are tied), and does this.
    Begins(u64, Box<Does>),
    /// Answers with its name, and says how busy it is.
    Busy(u64, &'static str),
    Hangs,
}

pub use Does::*;

/// What happened to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Started,
    Dropped,
    Finished,
}

pub use What::*;

type Log = Arc<Mutex<Vec<(u64, &'static str, What)>>>;

/// Where replicas play.
pub struct Stage {
    born: Instant,
    log: Log,
    pub builder: ReplicatedBuilder,
}

impl Stage {
    pub fn new() -> Self {
        let builder = Replicated::builder().methods(wardkeep_proto::FILE_DESCRIPTOR_SET);
        Self { born: Instant::now(), log: Log::default(), builder }
    }

    pub fn with(mut self, set: impl FnOnce(ReplicatedBuilder) -> ReplicatedBuilder) -> Self {
        self.builder = set(self.builder);
        self
    }

    pub fn policy(self, policy: Policy) -> Self {
        self.with(|builder| builder.policy(policy))
    }

    /// Adds a replica; what it does depends on the number of the request, from 0.
    pub fn replica(self, name: &'static str, act: impl Fn(usize) -> Does + Send + Sync + 'static) -> Self {
        let member = Member::new(name, format!("http://{name}:1"));
        self.member(member, name, act)
    }

    pub fn member(
        self,
        member: Member,
        name: &'static str,
        act: impl Fn(usize) -> Does + Send + Sync + 'static,
    ) -> Self {
        let service = self.service(name, act);
        self.with(|builder| builder.member_over(member, service))
    }

    pub fn service(
        &self,
        name: &'static str,
        act: impl Fn(usize) -> Does + Send + Sync + 'static,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = tonic::ConnectError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static {
        let (log, born, act) = (self.log.clone(), self.born, Arc::new(act));
        let count = Arc::new(AtomicUsize::new(0));
        tower::service_fn(move |request: Request<Body>| {
            let does = act(count.fetch_add(1, SeqCst));
            let trace = Trace { log: log.clone(), born, name, finished: false };
            trace.note(Started);
            async move {
                // All of it, or only its flag would be moved in.
                let mut trace = trace;
                let _body = http_body_util::BodyExt::collect(request.into_body()).await;
                let reply = perform(name, does).await;
                trace.finished = true;
                reply
            }
        })
    }

    pub fn channel(&self) -> Replicated {
        self.builder.clone().build().unwrap()
    }

    /// What happened so far, in order: milliseconds, replica, what.
    pub fn log(&self) -> Vec<(u64, &'static str, What)> {
        self.log.lock().unwrap().clone()
    }

    /// When and where attempts started.
    pub fn starts(&self) -> Vec<(u64, &'static str)> {
        self.log().into_iter().filter(|(.., what)| *what == Started).map(|(at, name, _)| (at, name)).collect()
    }

    /// Which attempts were dropped, by name.
    pub fn dropped(&self) -> Vec<&'static str> {
        let dropped = self.log().into_iter().filter(|(.., what)| *what == Dropped);
        let mut names: Vec<_> = dropped.map(|(_, name, _)| name).collect();
        names.sort_unstable();
        names
    }

    pub fn clear(&self) {
        self.log.lock().unwrap().clear();
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap()
    }
}

/// Hedged with this delay.
pub fn hedged(delay: u64, max_attempts: u32) -> Policy {
    Policy::Hedged { delay: HedgeDelay::Fixed(MS * u32::try_from(delay).unwrap()), max_attempts }
}

/// No limit on hedges, no stepping down: what a test is about is elsewhere.
pub fn unrestrained() -> Restraint {
    Restraint::default().hedge_budget(1.0, 1_000).step_down(false)
}

pub async fn get(channel: &Replicated) -> Result<tonic::Response<Fleet>, Status> {
    within(operator(channel).get_fleet(GetFleetRequest {})).await
}

/// Who answered.
pub async fn answer(channel: &Replicated) -> String {
    get(channel).await.unwrap().into_inner().supervisor.unwrap().machine
}

pub async fn code(channel: &Replicated) -> Code {
    get(channel).await.unwrap_err().code()
}

struct Trace {
    log: Log,
    born: Instant,
    name: &'static str,
    finished: bool,
}

impl Trace {
    fn note(&self, what: What) {
        let at = u64::try_from(self.born.elapsed().as_millis()).unwrap();
        self.log.lock().unwrap().push((at, self.name, what));
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.note(if self.finished { Finished } else { Dropped });
    }
}

async fn perform(name: &'static str, does: Does) -> Result<Response<Body>, tonic::ConnectError> {
    let wait = |ms: u64| sleep(Duration::from_millis(ms));
    Ok(match does {
        Answers(ms) => {
            wait(ms).await;
            whole(&fleet(name))
        }
        Says(ms, words) => {
            wait(ms).await;
            whole(&fleet(words))
        }
        Fails(ms, code) => {
            wait(ms).await;
            Status::new(code, format!("{name} fails")).into_http()
        }
        Pushes(ms, pushback) => {
            wait(ms).await;
            let mut reply = Status::unavailable("not now").into_http();
            reply.headers_mut().insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
            reply
        }
        Unreachable(ms) => {
            wait(ms).await;
            return Err(tonic::ConnectError("nobody there".into()));
        }
        Busy(ms, load) => {
            wait(ms).await;
            let end = trailers(&[("grpc-status", "0"), ("wardkeep-load", load)]);
            frames(vec![Frame::data(framed(&fleet(name))), end], None)
        }
        Begins(ms, then) => {
            wait(ms).await;
            begun(name, *then)
        }
        Hangs => std::future::pending().await,
    })
}

/// A head before its time; behind it the metadata, and what else is said.
fn begun(name: &'static str, then: Does) -> Response<Body> {
    let rest = async_stream(async move {
        match then {
            Answers(ms) => {
                sleep(Duration::from_millis(ms)).await;
                let lines = b"x-late: yes\r\n";
                let mut frame = vec![0x80, 0, 0, 0, u8::try_from(lines.len()).unwrap()];
                frame.extend(lines);
                vec![Frame::data(frame.into()), Frame::data(framed(&fleet(name))), crate::common::ok()]
            }
            Says(ms, words) => {
                sleep(Duration::from_millis(ms)).await;
                vec![Frame::data(words.into())]
            }
            Fails(ms, Code::Internal) => {
                sleep(Duration::from_millis(ms)).await;
                vec![trailers(&[("grpc-status", "13")])]
            }
            _ => std::future::pending().await,
        }
    });
    let mut reply = frames(vec![], None).map(|_| Body::new(rest));
    reply.headers_mut().insert("wardkeep-began", "1".parse().unwrap());
    reply
}

fn async_stream(
    frames: impl Future<Output = Vec<Frame<bytes::Bytes>>> + Send + 'static,
) -> impl http_body::Body<Data = bytes::Bytes, Error = Status> + Send + 'static {
    use futures_util::{StreamExt as _, stream};
    let frames =
        stream::once(frames).flat_map(|frames| stream::iter(frames.into_iter().map(Ok::<_, Status>)));
    http_body_util::StreamBody::new(frames)
}

/// The headers an attempt came with, for replicas that are not of the stage.
pub fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

pub type Never = Infallible;
