//! What the node's tests share: a service that misbehaves on request, a running node, a gate.
#![allow(dead_code, unreachable_pub)]

pub mod supervisor;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, body::Body};
use tonic_prost::ProstCodec;
use wardkeep_node::{Node, NodeBuilder, NodeHandle, NodeSnapshot, Program, Ward, WardContext};
use wardkeep_proto::{
    Error,
    v1::{self, operator_client::OperatorClient},
};

/// A hang is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test to its end, or fails.
pub async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the test hangs")
}

/// Blocks threads until it is opened.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Blocks this thread; a test that forgets to open the gate does not hang for ever.
    pub fn pass(&self) {
        let guard = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(guard, PATIENCE, |open| !*open).unwrap());
    }
}

/// Counts up, and can be waited for.
#[derive(Clone)]
pub struct Counter(Arc<watch::Sender<u64>>);

impl Default for Counter {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Counter {
    pub fn add(&self) {
        self.0.send_modify(|n| *n += 1);
    }

    pub fn get(&self) -> u64 {
        *self.0.borrow()
    }

    pub async fn reaches(&self, n: u64) {
        self.0.subscribe().wait_for(|now| *now >= n).await.unwrap();
    }
}

/// Counts when it is dropped.
pub struct OnDrop(pub Counter);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add();
    }
}

/// What the test sees of the service's insides.
#[derive(Clone, Default)]
pub struct Insides {
    pub started: Counter,
    pub dropped: Counter,
    pub cancelled: Counter,
    pub preempted: Counter,
    pub returned: Counter,
    pub gate: Gate,
    /// What nested calls would inherit, in milliseconds.
    pub remaining_ms: Arc<AtomicU64>,
}

/// `StartWard` does what the request's `ward` says; `WatchEvents` what `limit` says.
#[derive(Clone)]
pub struct Trouble {
    pub insides: Insides,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

impl Trouble {
    async fn make(&self, request: Request<v1::WardRequest>) -> Result<Response<v1::WardOutcome>, Status> {
        let context = WardContext::of(&request).expect("calls have a context");
        let inside = self.insides.clone();
        let _dropped = OnDrop(inside.dropped.clone());
        inside.started.add();
        match request.get_ref().ward.as_str() {
            "panic" => panic!("asked to"),
            "panic in drop" => {
                struct Bomb;
                impl Drop for Bomb {
                    fn drop(&mut self) {
                        panic!("in drop");
                    }
                }
                let _bomb = Bomb;
                std::future::pending().await
            }
            "big" => {
                let ward = v1::Ward { status: "x".repeat(2_000), ..Default::default() };
                Ok(Response::new(v1::WardOutcome { before: Some(ward), after: None }))
            }
            "not found" => Err(Status::not_found("no such book")),
            "internal" => Err(Status::internal("secret")),
            "well-formed" => Err(Error::from(wardkeep_node::NodeError::Cancelled).into()),
            "forever" => std::future::pending().await,
            "gate" => {
                // A slow call that ends well: waits without blocking.
                let gate = inside.gate.clone();
                tokio::task::spawn_blocking(move || gate.pass()).await.unwrap();
                inside.returned.add();
                Ok(Response::new(Default::default()))
            }
            "deadline" => {
                let left = wardkeep_proto::context::current().unwrap();
                let left = left.remaining(tokio::time::Instant::now());
                inside.remaining_ms.store(u64::try_from(left.as_millis()).unwrap(), SeqCst);
                std::future::pending().await
            }
            "blocking" => {
                let work = context.blocking(move |context| {
                    inside.started.add();
                    inside.gate.pass();
                    if context.preempt_point().is_err() {
                        inside.preempted.add();
                    }
                    inside.returned.add();
                });
                work.await?;
                Ok(Response::new(Default::default()))
            }
            "preempted" => {
                let work = context.blocking(move |context| {
                    inside.started.add();
                    while context.preempt_point().is_ok() {
                        std::thread::yield_now();
                    }
                    inside.preempted.add();
                });
                work.await?;
                Ok(Response::new(Default::default()))
            }
            // A shell with this script.
            "program" => {
                let script = request.get_ref().reason.clone();
                let output = context.run(&Program::new("/bin/sh").arg("-c").arg(script)).await?;
                let printed = String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(100)]);
                let status =
                    format!("{:?} {printed} {} {}", output.status.code(), output.stdout.len(), output.cut);
                let ward = v1::Ward { status, ..Default::default() };
                Ok(Response::new(v1::WardOutcome { before: None, after: Some(ward) }))
            }
            "park" => {
                inside.gate.pass();
                inside.returned.add();
                Ok(Response::new(Default::default()))
            }
            _ => {
                let mut ward = v1::Ward { incarnation: context.incarnation(), ..Default::default() };
                ward.status = request.into_inner().reason;
                Ok(Response::new(v1::WardOutcome { before: None, after: Some(ward) }))
            }
        }
    }
}

impl Trouble {
    async fn start_ward(
        &self,
        request: Request<v1::WardRequest>,
    ) -> Result<Response<v1::WardOutcome>, Status> {
        let context = WardContext::of(&request).expect("calls have a context");
        let (cancelled, cancellation) = (self.insides.cancelled.clone(), context.cancellation().clone());
        // Outlives the handler on purpose: it must hear that the handler was dropped.
        tokio::task::spawn(async move {
            cancellation.cancelled().await;
            cancelled.add();
        });
        self.make(request).await
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Events>, Status> {
        let dropped = OnDrop(self.insides.dropped.clone());
        let event = |sequence| v1::Event { sequence, ..Default::default() };
        self.insides.started.add();
        let events: Events = match request.get_ref().limit {
            // Two events, then a panic.
            1 => Box::pin(tokio_stream::iter(0u64..).map(move |i| {
                let _ = &dropped;
                assert!(i < 2, "mid-stream");
                Ok(event(i))
            })),
            // As many and as large as the caller takes.
            2 => Box::pin(tokio_stream::iter(0u64..).map(move |i| {
                let _ = &dropped;
                Ok(v1::Event { text: "x".repeat(64 * 1024), ..event(i) })
            })),
            // One, then silence.
            3 => Box::pin(tokio_stream::once(Ok(event(0))).chain(tokio_stream::pending()).map(move |e| {
                let _ = &dropped;
                e
            })),
            // One, then a bare status.
            4 => Box::pin(tokio_stream::iter([Ok(event(0)), Err(Status::data_loss("bare"))])),
            // One, and another when the gate opens.
            5 => {
                let gate = self.insides.gate.clone();
                let opened = tokio::task::spawn_blocking(move || gate.pass());
                let second = futures_util::FutureExt::into_stream(opened).map(move |_| Ok(event(1)));
                Box::pin(tokio_stream::once(Ok(event(0))).chain(second))
            }
            _ => Box::pin(tokio_stream::iter((0..3).map(move |i| Ok(event(i))))),
        };
        Ok(Response::new(events))
    }
}

/// By hand, so that what the contract gains elsewhere is no concern of these tests.
impl tower::Service<http::Request<Body>> for Trouble {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/wardkeep.v1.Operator/StartWard" => {
                    let codec = ProstCodec::<v1::WardOutcome, v1::WardRequest>::default();
                    let call = tower::service_fn(move |request| {
                        let this = this.clone();
                        async move { this.start_ward(request).await }
                    });
                    tonic::server::Grpc::new(codec).unary(call, request).await
                }
                "/wardkeep.v1.Operator/WatchEvents" => {
                    let codec = ProstCodec::<v1::Event, v1::WatchEventsRequest>::default();
                    let call = tower::service_fn(move |request| {
                        let this = this.clone();
                        async move { this.watch_events(request).await }
                    });
                    tonic::server::Grpc::new(codec).server_streaming(call, request).await
                }
                _ => Status::unimplemented("not here").into_http(),
            })
        })
    }
}

impl tonic::server::NamedService for Trouble {
    const NAME: &'static str = "wardkeep.v1.Operator";
}

/// A service ward around [`Trouble`].
pub fn trouble(insides: &Insides) -> Ward {
    let insides = insides.clone();
    Ward::service("trouble", move |_| Trouble { insides: insides.clone() })
}

/// A node that runs within the test's process.
pub struct Running {
    pub handle: NodeHandle,
    /// So that there is always a snapshot.
    _looks: watch::Receiver<Arc<NodeSnapshot>>,
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<Result<(), Error>>,
}

/// Starts a node.
pub async fn start(builder: NodeBuilder) -> Running {
    static LOGS: std::sync::Once = std::sync::Once::new();
    LOGS.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
        let _ = lines.try_init();
    });
    let node = builder.descriptors(wardkeep_proto::FILE_DESCRIPTOR_SET).bind("127.0.0.1:0").await.unwrap();
    let handle = node.handle();
    let looks = handle.snapshots();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::task::spawn(async move {
        node.run_until(async move {
            let _ = stopped.await;
        })
        .await
    });
    Running { handle, _looks: looks, stop: Some(stop), run }
}

/// Starts a node with these wards and no supervisor.
pub async fn node(wards: impl IntoIterator<Item = Ward>) -> Running {
    start(wards.into_iter().fold(Node::builder("n"), NodeBuilder::ward)).await
}

impl Running {
    pub fn uri(&self) -> String {
        format!("http://{}", self.handle.local_addr())
    }

    pub async fn channel(&self) -> tonic::transport::Channel {
        wardkeep_client::endpoint(&self.uri()).unwrap().connect().await.unwrap()
    }

    pub async fn client(&self) -> OperatorClient<tonic::transport::Channel> {
        OperatorClient::new(self.channel().await)
    }

    /// One HTTP/2 connection and nothing else.
    pub async fn raw_channel(&self) -> RawChannel {
        self.raw_channel_with(5 << 20).await
    }

    /// The same, that may be sent so many bytes before it reads.
    pub async fn raw_channel_with(&self, window: u32) -> RawChannel {
        let tcp = tokio::net::TcpStream::connect(self.handle.local_addr()).await.unwrap();
        let mut builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        builder.initial_connection_window_size(window).initial_stream_window_size(1 << 20);
        let (send, connection) = builder.handshake(hyper_util::rt::TokioIo::new(tcp)).await.unwrap();
        tokio::task::spawn(connection);
        RawChannel(send)
    }

    /// A client without timers or limits of its own.
    pub async fn raw_client(&self) -> OperatorClient<RawChannel> {
        OperatorClient::with_origin(self.raw_channel().await, self.uri().parse().unwrap())
    }

    /// Waits until the node is as wanted.
    pub async fn until(&self, wanted: impl FnMut(&NodeSnapshot) -> bool) -> Arc<NodeSnapshot> {
        let mut wanted = wanted;
        let mut snapshots = self.handle.snapshots();
        match tokio::time::timeout(PATIENCE / 2, snapshots.wait_for(|now| wanted(now))).await {
            Ok(now) => now.expect("the node ended").clone(),
            Err(_) => panic!("not reached; the node is at {:#?}", self.handle.snapshots().borrow()),
        }
    }

    /// Waits until a ward runs its incarnation `n` or a later one.
    pub async fn running(&self, ward: &str, n: u64) -> v1::Ward {
        let now = self
            .until(|now| {
                let ward = find(now, ward);
                ward.incarnation >= n && ward.state() == v1::WardState::Running
            })
            .await;
        find(&now, ward).clone()
    }

    pub fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn stop(mut self) {
        self.tell_to_stop();
        self.ended().await;
    }

    pub async fn ended(&mut self) {
        (&mut self.run).await.unwrap().unwrap();
    }
}

pub fn find<'a>(now: &'a NodeSnapshot, ward: &str) -> &'a v1::Ward {
    static NONE: std::sync::OnceLock<v1::Ward> = std::sync::OnceLock::new();
    now.wards
        .iter()
        .find(|w| w.spec.as_ref().unwrap().name == ward)
        .unwrap_or_else(|| NONE.get_or_init(Default::default))
}

/// A request for [`Trouble`].
pub fn make(what: &str) -> v1::WardRequest {
    v1::WardRequest { ward: what.to_owned(), ..Default::default() }
}

/// The well-formed error in a status; fails if there is none.
pub fn well_formed(status: &Status) -> Error {
    let id = status.metadata().get("wardkeep-error-id").expect("an error ID").to_str().unwrap().to_owned();
    let error = Error::from_status(status);
    assert_eq!(error.id(), id, "details and header name the same error");
    assert!(!error.machine().is_empty() && !error.group_hash().is_empty());
    error
}

/// One HTTP/2 connection and nothing else.
#[derive(Clone)]
pub struct RawChannel(hyper::client::conn::http2::SendRequest<Body>);

impl tower::Service<http::Request<Body>> for RawChannel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Starts one of this crate's example programs, which cargo builds with the tests.
pub fn example(name: &str) -> tokio::process::Child {
    example_with(name, |_| {})
}

/// The same, with its command to be completed.
pub fn example_with(name: &str, with: impl FnOnce(&mut tokio::process::Command)) -> tokio::process::Child {
    let exe = std::env::current_exe().unwrap();
    let program = exe.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: run the tests of the whole crate once", program.display());
    let mut command = tokio::process::Command::new(program);
    command.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    with(&mut command);
    command.spawn().unwrap()
}
