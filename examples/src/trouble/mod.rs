//! A service that misbehaves on request: tests, demonstrations and fault suites need failures that come when called.
//!
//! Every handler is counted from its start to its end, so that a test can see whether a cancelled one really stopped.

mod errors;
mod relay;

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};

pub use relay::Relay;

use crate::pb::{self, TroubleReply, TroubleRequest, trouble_request::Kind};

/// Largest payload or error text that is made, in bytes.
pub const MAX_BYTES: u32 = 16 * 1024 * 1024;
/// Most messages in a stream, and most causes in a chain.
pub const MAX_DEPTH: u32 = 10_000;
/// What the process exits with when asked to.
pub const EXIT_CODE: i32 = 3;

/// Implements `wardkeep.examples.v1.Trouble`.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    counters: Arc<Counters>,
}

/// What has become of the handlers. At rest, `started` is the sum of the others.
#[derive(Debug, Default)]
pub struct Counters {
    started: AtomicU64,
    finished: AtomicU64,
    dropped: AtomicU64,
    panicked: AtomicU64,
}

impl Counters {
    /// Handlers that have begun; a request that is refused as invalid begins none.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::SeqCst)
    }

    /// Handlers that came to their end, with an answer or an error; a stream's when its last message was taken.
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::SeqCst)
    }

    /// Handlers that were dropped before their end: their caller had gone.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Handlers that panicked.
    pub fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::SeqCst)
    }
}

impl Trouble {
    /// A service that counts in these counters.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { counters }
    }

    /// The counters, to be read while the service runs.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

#[tonic::async_trait]
impl pb::trouble_server::Trouble for Trouble {
    async fn make(&self, request: Request<TroubleRequest>) -> Result<Response<TroubleReply>, Status> {
        let (kind, request) = checked(request)?;
        let mut run = Run::start(&self.counters);
        let made = match message(kind, request, 1).await {
            Ok(_) if kind == Kind::PanicMidStream => {
                panic!("trouble was asked to panic before its reply went out")
            }
            made => made,
        };
        run.finish();
        made.map(Response::new)
    }

    type MakeStreamStream = BoxStream<'static, Result<TroubleReply, Status>>;

    async fn make_stream(
        &self,
        request: Request<TroubleRequest>,
    ) -> Result<Response<Self::MakeStreamStream>, Status> {
        let (kind, request) = checked(request)?;
        let run = Run::start(&self.counters);
        let messages = stream::unfold(Some((run, 1)), move |state| async move {
            let (mut run, number) = state?;
            if kind == Kind::PanicMidStream && number > 1 {
                panic!("trouble was asked to panic after its first message");
            }
            if number > request.depth.max(1) {
                run.finish();
                return None;
            }
            let made = message(kind, request, number).await;
            if made.is_err() {
                run.finish();
                return Some((made, None));
            }
            Some((made, Some((run, number + 1))))
        });
        Ok(Response::new(messages.boxed()))
    }
}

/// The request, with nothing in it that would exhaust the process unasked.
fn checked(request: Request<TroubleRequest>) -> Result<(Kind, TroubleRequest), Status> {
    let request = request.into_inner();
    let kind = Kind::try_from(request.kind).map_err(|unknown| {
        Status::invalid_argument(format!("no kind of trouble has the number {}", unknown.0))
    })?;
    if request.bytes > MAX_BYTES {
        return Err(Status::invalid_argument(format!("bytes: at most {MAX_BYTES}, not {}", request.bytes)));
    }
    if request.depth > MAX_DEPTH {
        return Err(Status::invalid_argument(format!("depth: at most {MAX_DEPTH}, not {}", request.depth)));
    }
    Ok((kind, request))
}

/// One message of this kind of trouble.
async fn message(kind: Kind, request: TroubleRequest, number: u32) -> Result<TroubleReply, Status> {
    let wait = Duration::from_millis(request.millis.into());
    match kind {
        Kind::Ok | Kind::PanicMidStream => {}
        Kind::Slow => tokio::time::sleep(wait).await,
        Kind::Busy => thread::sleep(wait),
        Kind::WellFormed => return Err(errors::well_formed(0)),
        Kind::DeepChain => return Err(errors::well_formed(request.depth.max(1))),
        Kind::BareStatus => return Err(Status::failed_precondition("trouble was asked for a bare status")),
        Kind::InternalStatus => return Err(Status::internal("trouble was asked for an internal status")),
        Kind::HugeError => return Err(Status::unknown("x".repeat(request.bytes as usize))),
        Kind::Panic => panic!("trouble was asked to panic"),
        Kind::Abort => process::abort(),
        Kind::Exit => process::exit(EXIT_CODE),
    }
    Ok(TroubleReply { number, payload: vec![b'x'; request.bytes as usize] })
}

/// Counts one handler: what is neither finished nor panicking when it goes was dropped.
struct Run {
    counters: Arc<Counters>,
    finished: bool,
}

impl Run {
    fn start(counters: &Arc<Counters>) -> Self {
        counters.started.fetch_add(1, Ordering::SeqCst);
        Self { counters: Arc::clone(counters), finished: false }
    }

    fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let counter = match self.finished {
            true => &self.counters.finished,
            false if thread::panicking() => &self.counters.panicked,
            false => &self.counters.dropped,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}
