//! A scripted supervisor, and the real binary run against it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a test that fails")]

#[path = "../binary/mod.rs"]
mod binary;

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{net::TcpListener, process::Command, task::JoinSet};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};
use wardkeep_proto::{
    error::Bug,
    v1::{
        self, DirectoryView, Event, EventKind, Fleet, GetFleetRequest, Group, GroupSpec, Node, NodeInfo,
        NodeOutcome, NodeRequest, Restart, Strategy, Supervisor, Verdict, Ward, WardKind, WardOutcome,
        WardRequest, WardSpec, WardState, WatchDirectoryRequest, WatchEventsRequest,
        directory_server::{Directory, DirectoryServer},
        operator_server::{Operator, OperatorServer},
    },
};

pub const PATIENCE: Duration = Duration::from_secs(20);
const NOW: i64 = 1_767_225_600;

fn at(seconds_ago: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: NOW - seconds_ago, nanos: 0 })
}

pub fn node(name: &str, pid: u32, uri: &str) -> Node {
    Node {
        info: Some(NodeInfo {
            name: name.into(),
            machine: "box1".into(),
            zone: "eu-1".into(),
            labels: HashMap::from([("data_path".into(), name.into())]),
            boot_id: format!("0198f3a2-1b4c-7aaa-8bbb-{pid:012}"),
            pid,
            uri: uri.into(),
            version: "0.1.0".into(),
            started_at: at(200),
            ..Default::default()
        }),
        verdict: Verdict::Healthy.into(),
        attending: true,
        last_report_at: at(0),
        ..Default::default()
    }
}

pub fn ward(node: &str, name: &str, kind: WardKind) -> Ward {
    Ward {
        node: node.into(),
        spec: Some(WardSpec {
            name: name.into(),
            kind: kind.into(),
            group: node.into(),
            restart: Restart::Permanent.into(),
            stall_timeout: Some(wardkeep_proto::duration(Duration::from_millis(1_500))),
            services: vec![format!("example.{name}")],
            ..Default::default()
        }),
        state: WardState::Running.into(),
        verdict: Verdict::Healthy.into(),
        incarnation: 3,
        started_at: at(12),
        restarts: 2,
        work_in_progress: 1,
        oldest_work: Some(wardkeep_proto::duration(Duration::from_millis(40))),
        work_done: 1_234,
        fenced_replies: 2,
        ..Default::default()
    }
}

/// Three nodes that each answer `search`, one of them with two more wards.
pub fn fleet() -> Fleet {
    let mut wards = Vec::new();
    for name in ["scan", "sqlite", "trigram"] {
        wards.push(ward(name, "search", WardKind::Service));
    }
    wards.push(ward("trigram", "indexer", WardKind::Task));
    wards.push(ward("trigram", "vacuum", WardKind::Process));
    let nodes = [("trigram", 4711), ("scan", 4709), ("sqlite", 4710)];
    Fleet {
        at: at(0),
        supervisor: Some(Supervisor {
            machine: "box1".into(),
            version: "0.1.0".into(),
            epoch: 7,
            started_at: at(7_300),
            last_event_sequence: 3,
            history: Some(wardkeep_proto::v1::History { durable: true, ..Default::default() }),
            ..Default::default()
        }),
        nodes: nodes.map(|(name, pid)| node(name, pid, "http://127.0.0.1:7500")).into(),
        wards,
        groups: vec![Group {
            spec: Some(GroupSpec {
                name: "search".into(),
                strategy: Strategy::OneForOne.into(),
                intensity: 5,
                period: Some(wardkeep_proto::duration(Duration::from_secs(30))),
                ..Default::default()
            }),
            members: vec!["scan/search".into(), "trigram/search".into()],
            recent_restarts: 1,
            gave_up: false,
        }],
    }
}

/// The same with two things wrong.
pub fn ill_fleet() -> Fleet {
    let mut fleet = fleet();
    fleet.nodes[1].verdict = Verdict::Unreachable.into();
    fleet.nodes[1].attending = false;
    fleet.wards[0].state = WardState::Unknown.into();
    fleet.wards[1].state = WardState::Quarantined.into();
    fleet.wards[1].verdict = Verdict::Crashed.into();
    fleet.wards[1].status = "gave up after 5 restarts in 30 s: disk is full\u{1b}[31m".into();
    fleet
}

pub fn event(sequence: u64, text: &str) -> Event {
    Event {
        sequence,
        at: at(60),
        kind: EventKind::WardRestart.into(),
        node: "trigram".into(),
        ward: "search".into(),
        incarnation: 3,
        verdict: Verdict::Crashed.into(),
        text: text.into(),
        error: Some(v1::Error { id: "0198f3a2-0000-7000-8000-000000000001".into(), ..Default::default() }),
        ..Default::default()
    }
}

/// What the supervisor was asked to change.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Node(&'static str, NodeRequest),
    Ward(&'static str, WardRequest),
    Config(v1::ConfigRequest),
}

#[derive(Default)]
pub struct Script {
    pub fleet: Fleet,
    pub directory: DirectoryView,
    pub asked: Mutex<Vec<Asked>>,
    pub errors: wardkeep_proto::v1::ErrorList,
    pub error: Option<wardkeep_proto::v1::Error>,
    /// What applying the configuration changes, by node; the others are hosted from code.
    pub configs: Vec<(String, v1::ConfigOutcome)>,
    /// Restarts of this node fail.
    pub broken_node: Option<&'static str>,
    /// Changes never answer.
    pub hangs: bool,
}

#[derive(Clone)]
struct Fake(Arc<Script>);

impl Fake {
    async fn node(
        &self,
        verb: &'static str,
        request: Request<NodeRequest>,
    ) -> Result<Response<NodeOutcome>, Status> {
        let request = request.into_inner();
        self.0.asked.lock().unwrap().push(Asked::Node(verb, request.clone()));
        if self.0.hangs {
            std::future::pending::<()>().await;
        }
        if self.0.broken_node == Some(request.node.as_str()) {
            return Err(Bug::because("the node did not come back").into());
        }
        let named = |n: &&Node| n.info.as_ref().unwrap().name == request.node;
        let before = self.0.fleet.nodes.iter().find(named).cloned();
        let mut after = before.clone();
        if let Some(node) = &mut after {
            node.draining = verb == "drain";
            if verb == "restart" {
                node.info.as_mut().unwrap().boot_id = "0198f3a3-2222-7aaa-8bbb-000000000000".into();
            }
        }
        Ok(Response::new(NodeOutcome { before, after }))
    }

    fn ward(
        &self,
        verb: &'static str,
        request: Request<WardRequest>,
    ) -> Result<Response<WardOutcome>, Status> {
        let request = request.into_inner();
        self.0.asked.lock().unwrap().push(Asked::Ward(verb, request.clone()));
        let named = |w: &&Ward| w.node == request.node && w.spec.as_ref().unwrap().name == request.ward;
        let before = self.0.fleet.wards.iter().find(named).cloned();
        let mut after = before.clone();
        if let Some(ward) = &mut after {
            match verb {
                "stop" => ward.state = WardState::Stopped.into(),
                _ => ward.incarnation += 1,
            }
            if request.ward == "vacuum" && verb != "stop" {
                ward.state = WardState::Backoff.into();
                ward.status = "exited with 1".into();
            }
        }
        Ok(Response::new(WardOutcome { before, after }))
    }
}

type Events = std::pin::Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

#[tonic::async_trait]
impl Operator for Fake {
    type WatchOutputStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::WardOutput, Status>> + Send>>;

    async fn watch_output(
        &self,
        _: Request<v1::WatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    type WatchEventsStream = Events;

    async fn get_fleet(&self, _: Request<GetFleetRequest>) -> Result<Response<Fleet>, Status> {
        Ok(Response::new(self.0.fleet.clone()))
    }
    async fn start_ward(&self, r: Request<WardRequest>) -> Result<Response<WardOutcome>, Status> {
        self.ward("start", r)
    }
    async fn stop_ward(&self, r: Request<WardRequest>) -> Result<Response<WardOutcome>, Status> {
        self.ward("stop", r)
    }
    async fn restart_ward(&self, r: Request<WardRequest>) -> Result<Response<WardOutcome>, Status> {
        self.ward("restart", r)
    }
    async fn restart_node(&self, r: Request<NodeRequest>) -> Result<Response<NodeOutcome>, Status> {
        self.node("restart", r).await
    }
    async fn drain_node(&self, r: Request<NodeRequest>) -> Result<Response<NodeOutcome>, Status> {
        self.node("drain", r).await
    }
    async fn undrain_node(&self, r: Request<NodeRequest>) -> Result<Response<NodeOutcome>, Status> {
        self.node("undrain", r).await
    }
    async fn apply_config(
        &self,
        r: Request<v1::ConfigRequest>,
    ) -> Result<Response<v1::ConfigOutcome>, Status> {
        let request = r.into_inner();
        self.0.asked.lock().unwrap().push(Asked::Config(request.clone()));
        let outcome = self.0.configs.iter().find(|(node, _)| *node == request.node);
        match outcome {
            Some((_, outcome)) => Ok(Response::new(outcome.clone())),
            None => Ok(Response::new(v1::ConfigOutcome { hosted_from_code: true, ..Default::default() })),
        }
    }
    async fn list_errors(
        &self,
        _: Request<wardkeep_proto::v1::ListErrorsRequest>,
    ) -> Result<Response<wardkeep_proto::v1::ErrorList>, Status> {
        Ok(Response::new(self.0.errors.clone()))
    }
    async fn get_error(
        &self,
        r: Request<wardkeep_proto::v1::GetErrorRequest>,
    ) -> Result<Response<wardkeep_proto::v1::Error>, Status> {
        match &self.0.error {
            Some(error) if error.id.starts_with(&r.get_ref().id) => Ok(Response::new(error.clone())),
            _ => Err(Status::not_found("no such error")),
        }
    }
    async fn watch_events(&self, r: Request<WatchEventsRequest>) -> Result<Response<Events>, Status> {
        let WatchEventsRequest { follow, limit, .. } = r.into_inner();
        let mut kept: Vec<_> =
            (1..=3).map(|n| event(n, "restarted after a crash: index out of bounds")).collect();
        if limit > 0 {
            kept.drain(..kept.len().saturating_sub(limit as usize));
        }
        let kept = tokio_stream::iter(kept.into_iter().map(Ok));
        if !follow {
            return Ok(Response::new(Box::pin(kept)));
        }
        // From now on something happens all the time.
        let more = futures_util::stream::unfold(6, async |sequence| {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some((Ok(event(sequence, "restarted again")), sequence + 1))
        });
        Ok(Response::new(Box::pin(kept.chain(more))))
    }
}

#[tonic::async_trait]
impl Directory for Fake {
    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<DirectoryView, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchDirectoryRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let view = tokio_stream::once(Ok(self.0.directory.clone()));
        Ok(Response::new(Box::pin(view.chain(tokio_stream::pending()))))
    }
}

/// A running fake supervisor; stops when dropped.
pub struct Cluster {
    pub address: String,
    pub script: Arc<Script>,
    tasks: JoinSet<()>,
}

impl Cluster {
    pub async fn start(script: Script) -> Self {
        let (listener, address) = listen().await;
        let script = Arc::new(script);
        let fake = Fake(script.clone());
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("asleep", tonic_health::ServingStatus::NotServing).await;
        let server = Server::builder()
            .add_service(OperatorServer::new(fake.clone()))
            .add_service(DirectoryServer::new(fake))
            .add_service(health);
        let mut tasks = JoinSet::new();
        tasks.spawn(
            async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() },
        );
        Self { address: format!("http://{address}"), script, tasks }
    }

    /// A healthy fleet.
    pub async fn well() -> Self {
        Self::start(Script { fleet: fleet(), ..Default::default() }).await
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        run(&[args, &["--supervisor", &self.address]].concat()).await
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.script.asked.lock().unwrap().clone()
    }
}

/// A server for `call` and `health`: health and reflection (v1, or v1alpha only).
pub struct Reflecting {
    pub address: String,
    tasks: JoinSet<()>,
}

impl Reflecting {
    pub async fn start(v1: bool) -> Self {
        let (listener, address) = listen().await;
        let (_reporter, health) = tonic_health::server::health_reporter();
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(wardkeep_proto::FILE_DESCRIPTOR_SET)
        };
        let script = Arc::new(Script { fleet: fleet(), ..Default::default() });
        let server = Server::builder().add_service(health).add_service(OperatorServer::new(Fake(script)));
        let server = if v1 {
            server.add_service(builder().build_v1().unwrap())
        } else {
            server.add_service(builder().build_v1alpha().unwrap())
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(
            async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() },
        );
        Self { address: format!("http://{address}"), tasks }
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nothing listens.
pub async fn nowhere() -> String {
    let (listener, address) = listen().await;
    drop(listener);
    format!("http://{address}")
}

pub fn command(args: &[&str]) -> Command {
    let mut command = binary::wardkeep();
    command.args(args).env_remove("COLUMNS").env_remove("NO_COLOR").env("TERM", "xterm").stdin(Stdio::null());
    command
}

/// Runs the binary with no terminal at all.
pub async fn run(args: &[&str]) -> Ran {
    finish(command(args)).await
}

pub async fn finish(mut command: Command) -> Ran {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it hangs").unwrap();
    Ran::from(output)
}

#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    #[track_caller]
    pub fn ends_with(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    /// stderr is exactly one line.
    #[track_caller]
    pub fn complaint(&self) -> &str {
        assert_eq!(self.stderr.lines().count(), 1, "{self:#?}");
        self.stderr.trim_end()
    }

    #[track_caller]
    pub fn complaint_json(&self) -> Value {
        serde_json::from_str(self.complaint()).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}
