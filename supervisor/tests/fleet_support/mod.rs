//! A supervisor in the test's process, real nodes, and fake ones that say what the test wants.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use uuid::Uuid;
use wardkeep::daemon::{Supervisor, SupervisorBuilder};
use wardkeep_node::{Node, NodeBuilder, NodeSnapshot, Ward};
use wardkeep_proto::{
    Error,
    v1::{
        self, Event, EventKind, Fleet,
        directory_client::DirectoryClient,
        directory_server::{Directory, DirectoryServer},
        node_message::Kind as Up,
        operator_client::OperatorClient,
        steward_message::Kind as Down,
        stewardship_client::StewardshipClient,
    },
};
use wardkeep_steward::Config;

/// A hang is a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test to its end, or fails.
pub async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the test hangs")
}

/// Quick to notice, and patient enough for a busy machine.
pub fn quick() -> SupervisorBuilder {
    Supervisor::builder().mandate_grace(Duration::from_secs(60)).steward(Config {
        pulse_interval: Duration::from_millis(50),
        silence_floor: Duration::from_millis(800),
        silence_ceiling: Duration::from_millis(1_500),
        ..Config::default()
    })
}

/// Something that runs in the background until it is told to stop.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn new<F>(start: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> F) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let run = start(Box::pin(async move {
            let _ = stopped.await;
        }));
        Self { stop: Some(stop), run: tokio::task::spawn(run) }
    }

    /// Ends it as SIGTERM does.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.run).await.unwrap().unwrap();
    }

    /// Ends it without a word.
    pub async fn kill(mut self) {
        self.run.abort();
        let _ = (&mut self.run).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.run.abort();
    }
}

pub struct Sup {
    pub uri: String,
    /// Where its metrics are.
    pub http: Option<std::net::SocketAddr>,
    pub operator: OperatorClient<Channel>,
    pub running: Running,
}

pub async fn supervisor(builder: SupervisorBuilder) -> Sup {
    supervisor_at(builder, "127.0.0.1:0").await
}

pub async fn supervisor_at(builder: SupervisorBuilder, address: &str) -> Sup {
    static LOGS: std::sync::Once = std::sync::Once::new();
    LOGS.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    });
    let supervisor = builder.bind(address).await.unwrap();
    let (uri, http) = (format!("http://{}", supervisor.local_addr()), supervisor.http_addr());
    let running = Running::new(|stopped| supervisor.run_until(stopped));
    let operator = OperatorClient::new(channel(&uri).await);
    Sup { uri, http, operator, running }
}

impl Sup {
    pub async fn fleet(&self) -> Fleet {
        self.operator.clone().get_fleet(v1::GetFleetRequest {}).await.unwrap().into_inner()
    }

    /// Waits until the picture is as wanted.
    pub async fn until<T>(&self, mut seen: impl FnMut(&Fleet) -> Option<T>) -> T {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        loop {
            look.tick().await;
            if let Some(found) = seen(&self.fleet().await) {
                return found;
            }
        }
    }

    /// Waits until a ward is as wanted.
    pub async fn ward(&self, node: &str, name: &str, seen: impl Fn(&v1::Ward) -> bool) -> v1::Ward {
        self.until(|fleet| ward(fleet, node, name).filter(|ward| seen(ward)).cloned()).await
    }

    pub async fn runs(&self, node: &str, name: &str, incarnation: u64) -> v1::Ward {
        let runs = |w: &v1::Ward| w.state() == v1::WardState::Running && w.incarnation == incarnation;
        self.ward(node, name, runs).await
    }

    /// Waits until a node is as wanted.
    pub async fn node(&self, name: &str, seen: impl Fn(&v1::Node) -> bool) -> v1::Node {
        self.until(|fleet| node(fleet, name).filter(|node| seen(node)).cloned()).await
    }

    pub async fn events(&self) -> Events {
        let request = v1::WatchEventsRequest { follow: true, ..Default::default() };
        let stream = self.operator.clone().watch_events(request).await.unwrap().into_inner();
        Events { stream, seen: Vec::new() }
    }

    pub async fn directory(&self, service: &str) -> Streaming<v1::DirectoryView> {
        let mut client = DirectoryClient::new(channel(&self.uri).await);
        let request = v1::WatchDirectoryRequest { service: service.into() };
        client.watch(request).await.unwrap().into_inner()
    }
}

/// The story as it goes on.
pub struct Events {
    stream: Streaming<Event>,
    pub seen: Vec<Event>,
}

impl Events {
    /// The next event that fits.
    pub async fn until(&mut self, fits: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.stream.message().await.unwrap().expect("the story ended");
            self.seen.push(event.clone());
            if fits(&event) {
                return event;
            }
        }
    }

    pub async fn kind(&mut self, kind: EventKind) -> Event {
        self.until(|event| event.kind() == kind).await
    }

    /// The next event whose text says so.
    pub async fn says(&mut self, text: &str) -> Event {
        self.until(|event| event.text.contains(text)).await
    }

    pub async fn ended(&mut self) {
        while let Ok(Some(_)) = self.stream.message().await {}
    }
}

pub fn node<'a>(fleet: &'a Fleet, name: &str) -> Option<&'a v1::Node> {
    fleet.nodes.iter().find(|node| node.info.as_ref().unwrap().name == name)
}

pub fn ward<'a>(fleet: &'a Fleet, node: &str, name: &str) -> Option<&'a v1::Ward> {
    fleet.wards.iter().find(|ward| ward.node == node && ward.spec.as_ref().unwrap().name == name)
}

pub fn of_ward(node: &str, ward: &str) -> v1::WardRequest {
    v1::WardRequest {
        node: node.into(),
        ward: ward.into(),
        reason: "a test".into(),
        actor: "ana@ops".into(),
        ..Default::default()
    }
}

pub fn of_node(node: &str) -> v1::NodeRequest {
    v1::NodeRequest {
        node: node.into(),
        reason: "a test".into(),
        actor: "ana@ops".into(),
        ..Default::default()
    }
}

/// A request with this much time.
pub fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

pub fn error(status: &Status) -> Error {
    Error::from_status(status)
}

pub async fn channel(uri: &str) -> Channel {
    tonic::transport::Endpoint::from_shared(uri.to_owned()).unwrap().connect().await.unwrap()
}

// --- real nodes ---

pub async fn real_node(builder: NodeBuilder) -> (String, Running) {
    let node = builder.bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", node.local_addr());
    (uri, Running::new(|stopped| node.run_until(stopped)))
}

/// A node that is looked at, not called.
pub async fn watched_node(builder: NodeBuilder) -> (watch::Receiver<Arc<NodeSnapshot>>, Running) {
    let node = builder.bind("127.0.0.1:0").await.unwrap();
    (node.handle().snapshots(), Running::new(|stopped| node.run_until(stopped)))
}

/// Its only ward is at this incarnation, and there.
pub fn ward_is(incarnation: u64, state: v1::WardState) -> impl FnMut(&Arc<NodeSnapshot>) -> bool {
    move |now| now.wards.first().is_some_and(|ward| (ward.incarnation, ward.state()) == (incarnation, state))
}

pub fn attending(sup: &Sup, name: &str) -> NodeBuilder {
    Node::builder(name).supervisor(&sup.uri)
}

/// A task that lives until it is told to stop.
pub fn calm(name: &str) -> Ward {
    Ward::task(name.to_owned(), |context| async move {
        context.cancelled().await;
        Ok(())
    })
    .grace(Duration::from_millis(200))
}

/// A task that panics whenever it is poked.
pub fn fragile(name: &str, poke: &watch::Sender<u64>) -> Ward {
    let poke = poke.subscribe();
    Ward::task(name.to_owned(), move |context| {
        let mut poke = poke.clone();
        async move {
            let incarnation = context.incarnation();
            tokio::select! {
                () = context.cancelled() => Ok(()),
                _ = poke.wait_for(|poked| *poked >= incarnation) => panic!("poked for the {incarnation}. time"),
            }
        }
    })
    .grace(Duration::from_millis(200))
}

/// Answers nobody.
pub struct Hanging;

/// What a hanging service is called.
pub const HANGING: &str = "wardkeep.v1.Directory";

#[tonic::async_trait]
impl Directory for Hanging {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::DirectoryView, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<v1::WatchDirectoryRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        std::future::pending().await
    }
}

pub fn hanging(name: &str) -> Ward {
    Ward::service(name.to_owned(), |_| DirectoryServer::new(Hanging))
        .stall_timeout(Duration::from_millis(300))
        .grace(Duration::from_millis(100))
}

// --- fake nodes ---

pub fn hello(name: &str, wards: &[&str]) -> v1::Hello {
    let ward = |ward: &&str| v1::Ward {
        node: name.into(),
        spec: Some(v1::WardSpec {
            name: (*ward).into(),
            services: vec![format!("example.{ward}")],
            ..Default::default()
        }),
        state: v1::WardState::Running.into(),
        incarnation: 1,
        ..Default::default()
    };
    v1::Hello {
        protocol: 1,
        node: Some(v1::NodeInfo {
            name: name.into(),
            machine: "test".into(),
            boot_id: Uuid::now_v7().to_string(),
            pid: 4_711,
            uri: "http://127.0.0.1:1".into(),
            ..Default::default()
        }),
        wards: wards.iter().map(ward).collect(),
        ..Default::default()
    }
}

/// A session whose node does what the test says.
pub struct FakeNode {
    up: mpsc::Sender<v1::NodeMessage>,
    pub down: Streaming<v1::StewardMessage>,
}

impl FakeNode {
    /// Opens a session with whatever messages.
    pub async fn open(uri: &str, first: Option<Up>) -> Result<Self, Status> {
        let (up, queue) = mpsc::channel(8);
        if let Some(kind) = first {
            up.send(v1::NodeMessage { kind: Some(kind) }).await.unwrap();
        }
        let client = StewardshipClient::new(channel(uri).await);
        let mut client = client.max_encoding_message_size(usize::MAX);
        let down = client.attend(ReceiverStream::new(queue)).await?.into_inner();
        Ok(Self { up, down })
    }

    /// Attends; the welcome has been read.
    pub async fn attend(sup: &Sup, hello: v1::Hello) -> Result<(Self, v1::Welcome), Status> {
        let mut node = Self::open(&sup.uri, Some(Up::Hello(hello))).await?;
        match node.down.message().await? {
            Some(v1::StewardMessage { kind: Some(Down::Welcome(welcome)) }) => Ok((node, welcome)),
            other => panic!("no welcome but {other:?}"),
        }
    }

    pub async fn send(&self, kind: Up) {
        // A session that has ended takes nothing.
        let _ = self.up.send(v1::NodeMessage { kind: Some(kind) }).await;
    }

    pub async fn report(&self) {
        self.send(Up::Report(v1::Report::default())).await;
    }

    pub async fn change(&self, slot: u32, incarnation: u64, state: v1::WardState) {
        let change = v1::WardChange { slot, incarnation, state: state.into(), ..Default::default() };
        self.send(Up::WardChange(change)).await;
    }

    pub async fn ended(&self, slot: u32, incarnation: u64, exit: v1::Exit) {
        self.send(Up::WardChange(v1::WardChange {
            slot,
            incarnation,
            state: v1::WardState::Stopped.into(),
            exit: Some(exit),
            ..Default::default()
        }))
        .await;
    }

    /// The next command; meanwhile the node reports.
    pub async fn command(&mut self) -> v1::Command {
        let mut pulse = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                message = self.down.message() => match message.unwrap().expect("the session ended").kind {
                    Some(Down::Command(command)) => return command,
                    Some(Down::Legacy(_)) => {}
                    other => panic!("no command but {other:?}"),
                },
                _ = pulse.tick() => self.report().await,
            }
        }
    }

    /// How the session ends: the status, or `None` if it just ends.
    pub async fn end(&mut self) -> Option<Status> {
        loop {
            match self.down.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }

    /// Goes on reporting until the end of the test.
    pub fn keep_reporting(&self) -> Reporter {
        let up = self.up.clone();
        Reporter(tokio::task::spawn(async move {
            let mut pulse = tokio::time::interval(Duration::from_millis(50));
            loop {
                pulse.tick().await;
                let kind = Some(Up::Report(v1::Report::default()));
                if up.send(v1::NodeMessage { kind }).await.is_err() {
                    return;
                }
            }
        }))
    }
}

pub struct Reporter(JoinHandle<()>);

impl Drop for Reporter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Views until one fits.
pub async fn view_until(
    views: &mut Streaming<v1::DirectoryView>,
    fits: impl Fn(&v1::DirectoryView) -> bool,
) -> Vec<v1::DirectoryView> {
    let mut seen = Vec::new();
    loop {
        let view = views.next().await.expect("the directory ended").unwrap();
        let done = fits(&view);
        seen.push(view);
        if done {
            return seen;
        }
    }
}

pub fn offers(view: &v1::DirectoryView) -> Vec<(String, u64, bool)> {
    let offers = view.members.iter().flat_map(|member| &member.offers);
    offers.map(|offer| (offer.ward.clone(), offer.incarnation, offer.ready)).collect()
}
