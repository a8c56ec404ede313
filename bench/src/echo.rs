//! The service that calls are measured with, and servers of it, each in a process of its own.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tokio::runtime::{Builder, Runtime};
use tonic::{
    Request, Response, Status,
    transport::{Server as Tonic, server::TcpIncoming},
};
use tower_http::trace::TraceLayer;
use wardkeep_node::{Node, Ward};

use crate::{child, counted, machine};

pub mod v1 {
    #![allow(clippy::all)]
    tonic::include_proto!("wardkeep.bench.v1");
}

use v1::echo_server::{Echo, EchoServer};
pub use v1::{Words, echo_client::EchoClient};

/// For whoever wants to know which methods may be repeated.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));

/// Calls that wards and layers let in at a time: more than there ever are.
const MOST_AT_A_TIME: usize = 4_096;
const TIMEOUT: Duration = Duration::from_secs(30);

/// How a server answers calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// tonic, and nothing else.
    Bare,
    /// tonic with timeout, concurrency limit and trace, as the ecosystem has them.
    Layers,
    /// A wardkeep ward with a limit of calls, under a log as nodes have it.
    Ward,
}

/// Where a process' work is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// One thread, bound to this core if the machine has it.
    Pinned(usize),
    /// `#[tokio::main]`: a thread for each core, work moves between them.
    Default,
}

impl Layout {
    fn word(self) -> String {
        match self {
            Self::Pinned(core) => core.to_string(),
            Self::Default => "default".to_owned(),
        }
    }

    pub fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::Pinned(_) => Builder::new_current_thread(),
            Self::Default => Builder::new_multi_thread(),
        };
        builder.enable_all().build().expect("a runtime")
    }

    /// Binds the thread that calls it, and those it starts.
    pub fn bind(self) {
        if let Self::Pinned(core) = self {
            let mut cores = CpuSet::new();
            cores.set(core).expect("a core");
            // A machine with fewer cores lets all run on the one.
            let _ = sched_setaffinity(Pid::from_raw(0), &cores);
        }
    }
}

/// A server process.
pub struct Server {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub port: u16,
}

/// What it has used since it was started: seconds of CPU, and allocations while they are counted.
#[derive(Clone, Copy)]
pub struct Used {
    pub cpu: f64,
    pub allocations: f64,
}

impl Server {
    pub fn start(kind: Kind, layout: Layout) -> Self {
        Self::slow(kind, layout, 0)
    }

    /// One that is slow on purpose: see [`delay`]. 0 is not.
    pub fn slow(kind: Kind, layout: Layout, seed: u64) -> Self {
        let mut command = child::command(&format!("echo {kind:?} {} {seed}", layout.word()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a server");
        let orders = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut server = Self { child, orders, answers, port: 0 };
        server.port = server.answer()[0] as u16;
        server
    }

    pub fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn used(&mut self) -> Used {
        self.order("used")
    }

    /// Whether allocations are counted, which takes time of its own.
    pub fn count(&mut self, on: bool) -> Used {
        self.order(if on { "count" } else { "rest" })
    }

    fn order(&mut self, order: &str) -> Used {
        writeln!(self.orders, "{order}").expect("it listens");
        let answer = self.answer();
        Used { cpu: answer[0], allocations: answer[1] }
    }

    fn answer(&mut self) -> Vec<f64> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.split_whitespace().map(|word| word.parse().expect("a figure")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's side.
pub fn job(args: &[String]) {
    let [kind, layout, seed] = args else { panic!("echo KIND LAYOUT SEED") };
    let kind = [Kind::Bare, Kind::Layers, Kind::Ward].into_iter().find(|it| format!("{it:?}") == *kind);
    let kind = kind.expect("a kind");
    let layout = layout.parse().map_or(Layout::Default, Layout::Pinned);
    let seed: u64 = seed.parse().expect("a number");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    child::print(&[f64::from(listener.local_addr().expect("it is bound").port())]);
    std::thread::spawn(move || {
        layout.bind();
        layout.runtime().block_on(serve(kind, listener, Speaker { seed }));
    });
    for order in std::io::stdin().lines() {
        match order.expect("orders are text").as_str() {
            "count" => counted::begin(),
            "rest" => counted::end(),
            _ => {}
        }
        child::print(&[machine::cpu_seconds(), counted::allocated() as f64]);
    }
}

async fn serve(kind: Kind, listener: TcpListener, speaker: Speaker) {
    // As nodes have it, without an exporter.
    let log = || wardkeep_node::telemetry::init("echo", Default::default(), 0).expect("a log");
    let _log = (kind != Kind::Bare).then(log);
    let incoming = || {
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener.try_clone().expect("a socket"));
        TcpIncoming::from(listener.expect("a socket")).with_nodelay(Some(true))
    };
    match kind {
        Kind::Bare => {
            let server = Tonic::builder().add_service(EchoServer::new(speaker));
            server.serve_with_incoming(incoming()).await.expect("it serves");
        }
        Kind::Layers => {
            let server = Tonic::builder()
                .timeout(TIMEOUT)
                .concurrency_limit_per_connection(MOST_AT_A_TIME)
                .layer(TraceLayer::new_for_grpc().make_span_with(
                    |request: &tonic::codegen::http::Request<_>| tracing::info_span!("call", method = %request.uri().path()),
                ))
                .add_service(EchoServer::new(speaker));
            server.serve_with_incoming(incoming()).await.expect("it serves");
        }
        Kind::Ward => {
            let ward = Ward::service("echo", move |_| EchoServer::new(speaker)).descriptors(DESCRIPTORS);
            let node = Node::builder("echo").ward(ward.concurrency(MOST_AT_A_TIME));
            let node = node.listen_on(listener).expect("a node");
            node.run_until(std::future::pending()).await.expect("it runs");
        }
    }
}

#[derive(Clone, Copy)]
struct Speaker {
    seed: u64,
}

#[tonic::async_trait]
impl Echo for Speaker {
    async fn say(&self, request: Request<Words>) -> Result<Response<Words>, Status> {
        let words = request.into_inner();
        if self.seed != 0 {
            tokio::time::sleep(delay(self.seed, words.call)).await;
        }
        Ok(Response::new(words))
    }
}

/// How slow a server of this seed is at this call: 2 ms and, on average, 3 ms more; one call in fifty takes
/// 40 ms longer.
fn delay(seed: u64, call: u64) -> Duration {
    let (usual, unlucky) = (unit(seed, call), unit(seed.wrapping_add(1 << 32), call));
    let millis = 2.0 - 3.0 * (1.0 - usual).ln() + if unlucky < 0.02 { 40.0 } else { 0.0 };
    Duration::from_secs_f64(millis / 1_000.0)
}

/// Drawn evenly from 0 to 1: the last step of SplitMix64.
fn unit(seed: u64, call: u64) -> f64 {
    let mut z =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(call.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as f64 / u64::MAX as f64
}
