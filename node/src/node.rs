//! A node, from its description to its end.

use std::{
    collections::BTreeMap,
    fmt,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use chrono::Utc;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wardkeep_proto::{
    Error, machine_name, timestamp,
    v1::{self, replica_server::ReplicaServer},
};
use wardkeep_steward::GroupSpec;

use crate::{
    audience::Audience,
    built_in::Services,
    calls::Calls,
    entrance::Entrance,
    error::NodeError,
    host::Host,
    keeper::apply::{ConfigFile, Configuration},
    keeper::{self, NodeSnapshot, Order, Setup, Shown},
    ledger::Ledger,
    mandate::Mandate,
    methods::Methods,
    panics, reexec,
    replica::Replica,
    scribe::Scribe,
    server::{self, Ending, Limits},
    session,
    ward::Ward,
    ways::Ways,
    wire,
};

/// Orders that may wait for the keeper; it takes them at once.
const ORDERS: usize = 16;
/// For the node's own tasks to end when all else has.
const OWN_PATIENCE: Duration = Duration::from_secs(1);

/// Describes a node. See [`Node::builder`].
#[must_use = "a node does nothing until it is bound and run"]
pub struct NodeBuilder {
    name: String,
    machine: String,
    zone: String,
    labels: BTreeMap<String, String>,
    advertise: Option<String>,
    supervisor: Option<String>,
    dial: Option<session::Dial>,
    wards: Vec<Ward>,
    groups: Vec<GroupSpec>,
    descriptors: Vec<&'static [u8]>,
    limits: Limits,
    insecure: bool,
    restartable: bool,
    audience: Audience,
    config: Option<(String, ConfigFile)>,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) hooks: crate::testing::Hooks,
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, supervisor, wards, groups, .. } = self;
        let mut out = f.debug_struct("NodeBuilder");
        out.field("name", name).field("supervisor", supervisor).field("wards", wards);
        out.field("groups", groups).finish_non_exhaustive()
    }
}

impl NodeBuilder {
    /// The machine it counts as, for diversity between replicas; by default the host's name.
    pub fn machine(mut self, machine: impl Into<String>) -> Self {
        self.machine = machine.into();
        self
    }

    /// The zone it counts as.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = zone.into();
        self
    }

    /// Adds a free-form label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Attends this supervisor (`http://host:port`). Without one the node heals its own wards.
    pub fn supervisor(mut self, uri: impl Into<String>) -> Self {
        self.supervisor = Some(uri.into());
        self
    }

    /// Opens connections to the supervisor through this service instead of TCP.
    pub fn connector<C>(mut self, connector: C) -> Self
    where
        C: tower::Service<http::Uri> + Clone + Send + Sync + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
        C::Future: Send,
        Box<dyn std::error::Error + Send + Sync>: From<C::Error>,
    {
        self.dial = Some(Arc::new(move |endpoint: tonic::transport::Endpoint| {
            let connector = connector.clone();
            Box::pin(async move { endpoint.connect_with_connector(connector).await })
        }));
        self
    }

    /// Where clients reach it, if not at the address it listens on. `{hostname}` is this machine's. Without it, a
    /// node that listens on all addresses is to be reached by that name.
    pub fn advertise(mut self, uri: impl Into<String>) -> Self {
        self.advertise = Some(with_hostname(&uri.into()));
        self
    }

    /// Hosts a ward. Wards start in the order they are added and stop in the reverse one.
    pub fn ward(mut self, ward: Ward) -> Self {
        self.wards.push(ward);
        self
    }

    /// Declares a group.
    pub fn group(mut self, group: GroupSpec) -> Self {
        self.groups.push(group);
        self
    }

    /// Hosts what a configuration file says, beside what is added here; `read` reads the file anew when an operator
    /// has it applied (`wardkeep config apply`), and says in one line what is wrong with it. It may block.
    pub fn configured(
        mut self,
        file: impl Into<String>,
        now: Configuration,
        read: impl Fn() -> Result<Configuration, String> + Send + Sync + 'static,
    ) -> Self {
        self.wards.extend(now.wards.iter().cloned());
        self.groups.extend(now.groups.iter().cloned());
        self.config = Some((file.into(), ConfigFile { now, read: Arc::new(read) }));
        self
    }

    /// Adds an encoded `FileDescriptorSet` to what server reflection tells.
    pub fn descriptors(mut self, encoded: &'static [u8]) -> Self {
        self.descriptors.push(encoded);
        self
    }

    /// What peers are allowed.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who calls it: what they are told of errors. By default they are trusted.
    pub fn audience(mut self, audience: Audience) -> Self {
        self.audience = audience;
        self
    }

    /// Lets the supervisor's steward have this process start anew in place (same program, arguments and
    /// PID, after a drain), when a group of its wards gives up or it has leaked too many threads: see
    /// [`Escalate`](wardkeep_steward::Escalate). For programs that are a node and little else: whatever
    /// else they hold is lost then. Without it such a group is quarantined at once, and only operators
    /// restart the node.
    pub fn restartable(mut self) -> Self {
        self.restartable = true;
        self
    }

    /// Accepts that a listener on a non-loopback address has no encryption.
    pub fn insecure(mut self) -> Self {
        self.insecure = true;
        self
    }

    /// Opens the listener (`host:port`; port 0 lets the system choose). A socket inherited from a
    /// former image of this process, or from systemd, is used instead.
    ///
    /// # Errors
    /// Two wards of one name or service, an unreadable address, a port in use, a non-loopback
    /// address without [`NodeBuilder::insecure`].
    pub async fn bind(self, address: &str) -> Result<Node, Error> {
        let mut held = Vec::new();
        let listener = match reexec::inherited() {
            Some(listener) => {
                held = reexec::held();
                listener
            }
            None => open(address, self.insecure).await?,
        };
        let mut node = self.listen_on(listener)?;
        node.setup.host.hold_as_before(&held);
        Ok(node)
    }

    /// Serves on a listener that is already open.
    ///
    /// # Errors
    /// As [`NodeBuilder::bind`].
    pub fn listen_on(self, listener: StdListener) -> Result<Node, Error> {
        let cannot = |source| NodeError::CannotListen { address: "its listener".to_owned(), source };
        let address = listener.local_addr().map_err(cannot)?;
        let plan = reexec::Plan::new(listener.try_clone().map_err(cannot)?).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let listener = TcpListener::from_std(listener).map_err(cannot)?;
        self.serve_on(listener, address, plan)
    }

    /// On any listener.
    pub(crate) fn serve_on<L>(
        self,
        listener: L,
        address: SocketAddr,
        plan: reexec::Plan,
    ) -> Result<Node<L>, Error> {
        self.check_names()?;
        let supervisor = self.supervisor.as_deref().map(wardkeep_client::endpoint).transpose()?;
        let supervisor = supervisor.map(|endpoint| session::Supervisor::new(endpoint, self.dial.clone()));

        let of_wards = self.wards.iter().flat_map(Ward::described);
        let methods = Methods::read(&self.descriptors.iter().chain(of_wards).copied().collect::<Vec<_>>())?;
        let with_route = |ward: &Ward| {
            let route = ward.route(&methods).map_err(NodeError::Misconfigured)?;
            Ok::<_, Error>((ward.clone(), route))
        };
        let wards = self.wards.iter().map(with_route).collect::<Result<Vec<_>, _>>()?;
        let (health, health_server) = tonic_health::server::health_reporter();
        let calls = Arc::new(Calls::default());
        let replica = ReplicaServer::new(Replica(calls.clone()));
        let built_in = Services::new().with(health_server).with(replica);
        let ways = Ways::new(self.name.clone(), built_in, self.descriptors.clone());
        ways.lead_to(wards.iter().map(|(ward, route)| (ward, route.as_ref())))?;

        let draining = Arc::new(AtomicBool::new(false));
        let ledger = Ledger::new();
        let entrance =
            Entrance::new(self.name.as_str().into(), ways.table(), draining.clone(), ledger.clone(), calls)
                .for_audience(self.audience);
        let boot = Uuid::now_v7();
        let info = self.info(address, boot);
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (shown, snapshot) = Shown::new();
        let handle = NodeHandle { orders, snapshot, address };
        let origin = Instant::now();
        let seed = u64::from_le_bytes(boot.as_bytes()[8..].try_into().unwrap_or_default());
        let mandate = Mandate::new(self.name.as_str().into(), boot.as_u128(), self.groups.clone(), seed);
        let setup = Setup {
            host: Host::new(self.name.as_str().into(), Handle::current(), wards, ledger.clone()),
            ways,
            config: self.config.map(|(_, file)| file),
            groups: self.groups,
            mandate,
            supervisor,
            draining,
            health,
            shown,
            orders: inbox,
            probe: Arc::default(),
            reexec: plan,
            restartable: self.restartable,
            ending: Ending::default(),
            server_ended: CancellationToken::new(),
            owner_gone: CancellationToken::new(),
            origin,
            scribe: Scribe::start,
            ledger,
            info,
            #[cfg(any(test, feature = "testing"))]
            hooks: self.hooks,
        };
        Ok(Node { setup, listener, entrance, limits: self.limits, handle })
    }

    /// The rules of supervisors: what would be refused at each session is refused here, once.
    fn check_names(&self) -> Result<(), Error> {
        let wards = self.wards.iter().map(|ward| ("ward", ward.name()));
        let named = self.wards.iter().filter_map(|ward| ward.spec.group.as_deref());
        let groups = self.groups.iter().map(|group| &*group.name).chain(named).map(|name| ("group", name));
        for (of, name) in std::iter::once(("node", self.name.as_str())).chain(wards).chain(groups) {
            wire::check_name(of, name).map_err(NodeError::Misconfigured)?;
        }
        let mut names = std::collections::HashSet::new();
        for ward in &self.wards {
            ward.check().map_err(NodeError::Misconfigured)?;
            if !names.insert(ward.name()) {
                let twice = format!("node {} has two wards named {}", self.name, ward.name());
                return Err(NodeError::Misconfigured(twice).into());
            }
        }
        if self.supervisor.is_some() && self.wards.len() > wire::MOST_WARDS {
            return Err(NodeError::TooManyWards { node: self.name.clone(), most: wire::MOST_WARDS }.into());
        }
        Ok(())
    }

    fn info(&self, address: SocketAddr, boot: Uuid) -> v1::NodeInfo {
        v1::NodeInfo {
            name: self.name.clone(),
            machine: self.machine.clone(),
            zone: self.zone.clone(),
            labels: self.labels.clone().into_iter().collect(),
            boot_id: boot.to_string(),
            pid: std::process::id(),
            uri: self.advertise.clone().unwrap_or_else(|| reached_at(address)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(timestamp(Utc::now())),
            config_file: self.config.as_ref().map(|(file, _)| file.clone()).unwrap_or_default(),
        }
    }
}

fn with_hostname(text: &str) -> String {
    text.replace("{hostname}", machine_name())
}

/// Nobody else reaches a node by "all addresses".
fn reached_at(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        return format!("http://{}:{}", machine_name(), address.port());
    }
    format!("http://{address}")
}

/// Opens a listening socket.
///
/// # Errors
/// An address that cannot be read, resolved or bound; a non-loopback one that is not `insecure`.
pub async fn open(address: &str, insecure: bool) -> Result<StdListener, Error> {
    let cannot = |source| NodeError::CannotListen { address: address.to_owned(), source };
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(cannot)?.collect();
    if !insecure && !resolved.iter().all(|a| a.ip().is_loopback()) {
        return Err(NodeError::NotLoopback { address: address.to_owned() }.into());
    }
    StdListener::bind(resolved.as_slice()).map_err(cannot).map_err(Error::from)
}

/// A node that listens and is ready to run.
///
/// ```no_run
/// use std::time::Duration;
/// use wardkeep_node::{Node, Program, Ward, shutdown_signal};
///
/// # async fn example() -> Result<(), wardkeep_proto::Error> {
/// let node = Node::builder("worker-1")
///     .supervisor("http://127.0.0.1:7400")
///     .ward(Ward::task("tick", |context| async move {
///         while !context.is_cancelled() {
///             context.pulse();
///             tokio::time::sleep(Duration::from_millis(200)).await;
///         }
///         Ok(())
///     }).pulse_timeout(Duration::from_secs(2)))
///     .ward(Ward::process("sidecar", Program::new("sleep").arg("3600")))
///     .bind("127.0.0.1:0")
///     .await?;
/// node.run_until(shutdown_signal()).await
/// # }
/// ```
#[must_use = "a node does nothing until it runs"]
pub struct Node<L = TcpListener> {
    setup: Setup,
    listener: L,
    entrance: Entrance,
    limits: Limits,
    handle: NodeHandle,
}

/// To see and steer a running node from the same process.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    pub(crate) orders: mpsc::Sender<Order>,
    /// The one receiver that is always there: see [`Shown`].
    snapshot: Arc<watch::Receiver<Arc<NodeSnapshot>>>,
    address: SocketAddr,
}

impl NodeHandle {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// How it is, now and at each change (where there are thousands of wards, at some of them). Snapshots
    /// are made only while there is a receiver: the first one's begins with the last that was made, and has
    /// the present one within 50 ms.
    pub fn snapshots(&self) -> watch::Receiver<Arc<NodeSnapshot>> {
        (*self.snapshot).clone()
    }

    /// Takes no new calls, or takes them again, from when it returns. Waits until the node runs; does nothing to one
    /// that has ended.
    pub async fn drain(&self, on: bool) {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(Order::Drain(on, answer)).await.is_ok() {
            // Without an answer it has ended.
            let _ = answered.await;
        }
    }

    /// Hosts one more ward, the last in the start order; it is started unless it waits for an operator. Clients
    /// find what it answers from then on. (It is not there any more after a restart of the node in place, unless
    /// the program adds it anew.) Waits until the node runs.
    ///
    /// # Errors
    /// The node hosts one of this name, or of this service; it is at its limit of wards; what is said of the ward
    /// does not go together; the node has ended.
    pub async fn add(&self, ward: Ward) -> Result<(), Error> {
        self.ask(|answer| Order::Add(Box::new(ward), answer)).await
    }

    /// Stops a ward, as the stop ladder has it, and hosts it no longer. Returns when nothing of it runs any more, or
    /// what is left had to be left behind. Whoever stops waiting does not stop it from going.
    ///
    /// # Errors
    /// The node hosts no such ward, or is removing it already; the node has ended.
    pub async fn remove(&self, ward: &str) -> Result<(), Error> {
        self.ask(|answer| Order::Remove(ward.to_owned(), answer)).await
    }

    async fn ask(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Order,
    ) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(order(answer)).await.is_err() {
            return Err(NodeError::Ended.into());
        }
        answered.await.unwrap_or_else(|_| Err(NodeError::Ended.into()))
    }
}

#[cfg(any(test, feature = "testing"))]
/// A node without its shell, for tests: who calls runs it where and how they like.
pub(crate) struct Bare<L> {
    pub(crate) setup: Setup,
    pub(crate) listener: L,
    pub(crate) entrance: Entrance,
    pub(crate) limits: Limits,
    pub(crate) handle: NodeHandle,
}

#[cfg(any(test, feature = "testing"))]
impl<L> Node<L> {
    pub(crate) fn into_bare(self) -> Bare<L> {
        let Self { setup, listener, entrance, limits, handle } = self;
        Bare { setup, listener, entrance, limits, handle }
    }
}

impl Node {
    /// Begins the description of a node of this name. `{hostname}` in it is this machine's: nodes that are copies
    /// of each other, as containers are, get names of their own that way.
    pub fn builder(name: impl Into<String>) -> NodeBuilder {
        NodeBuilder {
            name: with_hostname(&name.into()),
            machine: machine_name().to_owned(),
            zone: String::new(),
            labels: BTreeMap::new(),
            advertise: None,
            supervisor: None,
            dial: None,
            wards: Vec::new(),
            groups: Vec::new(),
            descriptors: Vec::new(),
            limits: Limits::default(),
            insecure: false,
            restartable: false,
            audience: Audience::Trusted,
            config: None,
            #[cfg(any(test, feature = "testing"))]
            hooks: Default::default(),
        }
    }

    /// To see and steer it while it runs.
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.handle.address
    }

    /// Runs until `shutdown` completes, then drains: no new calls, work in progress may finish,
    /// wards stop in reverse order. A steward's order to restart in place replaces the process.
    ///
    /// # Errors
    /// If a restart in place failed; the node has ended then.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self { setup, listener, entrance, limits, handle } = self;
        panics::install_hook();
        tracing::info!(node = %setup.info.name, address = %handle.address, boot = %setup.info.boot_id, "node up");
        let (ending, server_ended) = (setup.ending.clone(), setup.server_ended.clone());
        let _owner_here = setup.owner_gone.clone().drop_guard();
        let mut own = JoinSet::new();
        own.spawn(keeper::beat(setup.probe.clone()));
        own.spawn(async move {
            drop(server::serve(listener, entrance, limits, ending).await);
            server_ended.cancel();
            std::future::pending().await
        });
        let (ended, has_ended) = oneshot::channel();
        let (patience, too_late) = oneshot::channel();
        let (own_ended, wait_for_own) = std::sync::mpsc::channel();
        spawn_keeper(setup, ended, (wait_for_own, patience))?;
        let mut has_ended = std::pin::pin!(has_ended);
        let early = tokio::select! {
            result = &mut has_ended => Some(result),
            () = shutdown => None,
        };
        let result = match early {
            Some(result) => result,
            None => {
                let (done, is_done) = oneshot::channel();
                if handle.orders.send(Order::Shutdown(done)).await.is_ok() {
                    let _ = is_done.await;
                }
                has_ended.await
            }
        };
        own.abort_all();
        let gone = async { while own.join_next().await.is_some() {} };
        tokio::select! {
            () = gone => {}
            // Threads of this runtime are blocked for good: nothing on it can be waited for.
            _ = too_late => {}
        }
        drop(own_ended);
        result.unwrap_or_else(|_| Err(wardkeep_proto::error::Bug::because("the keeper's thread died")))
    }
}

/// The keeper's thread outlives the keeper by a moment, as the one clock that goes on if the node's
/// own runtime is stuck.
fn spawn_keeper(
    setup: Setup,
    ended: oneshot::Sender<Result<(), Error>>,
    (own_ended, too_late): (std::sync::mpsc::Receiver<()>, oneshot::Sender<()>),
) -> Result<(), Error> {
    let cannot = |source| NodeError::CannotStart { program: "the keeper's thread".to_owned(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    std::thread::Builder::new()
        .name("wardkeep-keeper".to_owned())
        .spawn(move || {
            let result = runtime.block_on(keeper::run(setup));
            // Blocking threads of its own (reaping programs) must not hold up the end.
            runtime.shutdown_timeout(Duration::from_millis(100));
            let _ = ended.send(result);
            let _ = own_ended.recv_timeout(OWN_PATIENCE);
            let _ = too_late.send(());
        })
        .map(drop)
        .map_err(|source| cannot(source).into())
}

/// Completes on SIGTERM or Ctrl-C.
pub async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = match signal(SignalKind::terminate()) {
        Ok(term) => term,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be caught; Ctrl-C still can");
            let _ = tokio::signal::ctrl_c().await;
            return;
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
