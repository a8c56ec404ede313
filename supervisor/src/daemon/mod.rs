//! The supervisor: a steward over wards on remote nodes, a directory for clients, and an API for
//! operators.
//!
//! One task, the `fleet`, owns everything that is known and decided. Sessions of nodes (`attend`),
//! the `operator` API and the `launcher` send it messages; what it publishes are immutable pictures
//! ([`wardkeep_proto::v1::Fleet`], the directory's view) and a log of events.

mod apply;
mod attend;
mod chronicle;
mod deeds;
mod directory;
mod epoch;
mod error;
mod error_store;
mod failpoint;
mod fleet;
mod handback;
mod hello;
mod history;
mod launch;
mod launcher;
mod members;
mod metrics;
mod operator;
mod output;
mod pidfile;
mod record;
mod resume;
mod rollout;
mod tame;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod wish;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use wardkeep_node::{
    Ledger, Services,
    server::{self, Limits, Listener},
};
use wardkeep_proto::{
    Error,
    error::Bug,
    v1::{
        self, directory_server::DirectoryServer, operator_server::OperatorServer,
        stewardship_server::StewardshipServer,
    },
};
use wardkeep_steward::{Config, GroupSpec};

pub use apply::Configuration;
pub use error::SupervisorError;
pub use launcher::{COMMAND_TIMEOUT, How, Launch, SOCKET};

use fleet::{Fleet, Msg};

/// Messages that may wait for the fleet. When it is full, sessions wait, and with them their nodes'
/// streams: heartbeats are late rather than lost.
/// Each session has, beside these, a place in it for its end, from its beginning.
const INBOX: usize = 1_024;
/// What happened is kept for so long, unless told otherwise ...
pub const HISTORY_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// ... and up to so many bytes.
pub const HISTORY_BYTES: u64 = 256 << 20;
/// Nodes take over their own wards after so long without a session, unless told otherwise.
pub const MANDATE_GRACE: Duration = Duration::from_secs(2);
/// What it is called in errors that arise in it.
const NAME: &str = "supervisor";
/// Sessions of nodes at a time, unless told otherwise.
const SESSIONS: usize = 4_096;

/// Describes a supervisor. See [`Supervisor::builder`].
#[derive(Debug)]
#[must_use = "a supervisor does nothing until it is bound and run"]
pub struct SupervisorBuilder {
    steward: Config,
    mandate_grace: Duration,
    groups: Vec<GroupSpec>,
    launches: Vec<Launch>,
    data_dir: Option<PathBuf>,
    limits: Limits,
    sessions: usize,
    insecure: bool,
    retention: history::Retention,
    config: Option<apply::ConfigFile>,
    http: Option<Http>,
}

/// Where metrics are to be had.
#[derive(Debug)]
struct Http {
    address: String,
    /// It is no mistake if somebody else has it.
    if_free: bool,
}

impl SupervisorBuilder {
    /// Takes a configuration over, in the place of what was told of the same before.
    pub fn as_configured(mut self, now: Configuration) -> Self {
        let Configuration {
            steward,
            mandate_grace,
            history: (max_age, max_bytes),
            groups,
            launches,
            entries: _,
        } = now;
        self.steward = Config { seed: self.steward.seed, ..steward };
        (self.mandate_grace, self.groups, self.launches) = (mandate_grace, groups, launches);
        self.history(max_age, max_bytes)
    }

    /// The same, out of a file: `read` reads it anew when an operator has it applied (`wardkeep config apply`), and
    /// says in one line what is wrong with it. It may block.
    pub fn configured(
        mut self,
        file: impl Into<String>,
        now: Configuration,
        read: impl Fn() -> Result<Configuration, String> + Send + Sync + 'static,
    ) -> Self {
        let now_entries = now.entries.clone();
        self.config =
            Some(apply::ConfigFile { path: file.into(), entries: now_entries, read: Arc::new(read) });
        self.as_configured(now)
    }

    /// Seed of the jitter of pauses.
    pub fn seed(mut self, seed: u64) -> Self {
        self.steward.seed = seed;
        self
    }

    /// How the steward judges and heals.
    pub fn steward(mut self, config: Config) -> Self {
        self.steward = config;
        self
    }

    /// Nodes take over their own wards after so long without a session.
    pub fn mandate_grace(mut self, grace: Duration) -> Self {
        self.mandate_grace = grace;
        self
    }

    /// Declares a group; it wins over what nodes declare under the same name.
    pub fn group(mut self, group: GroupSpec) -> Self {
        self.groups.push(group);
        self
    }

    /// Launches a node: see [`How`].
    pub fn launch(mut self, launch: Launch) -> Self {
        self.launches.push(launch);
        self
    }

    /// Where it keeps what must survive it.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// How long, and how much of, what happened is kept (default: 30 days, 256 MiB).
    pub fn history(mut self, max_age: Duration, max_bytes: u64) -> Self {
        self.retention = history::Retention { max_age, max_bytes };
        self
    }

    /// What peers are allowed.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// At most so many nodes attend at a time (default: 4,096); more are refused.
    pub fn sessions(mut self, most: usize) -> Self {
        // Beyond, the channels that count them would not go.
        self.sessions = most.min(1 << 20);
        self
    }

    /// Serves metrics at this address (`/metrics`, for Prometheus).
    pub fn http(mut self, address: impl Into<String>) -> Self {
        self.http = Some(Http { address: address.into(), if_free: false });
        self
    }

    /// The same, if it can be had: else that is logged, and there are none.
    pub fn http_if_free(mut self, address: impl Into<String>) -> Self {
        self.http = Some(Http { address: address.into(), if_free: true });
        self
    }

    /// Accepts that a listener on a non-loopback address has no encryption.
    pub fn insecure(mut self) -> Self {
        self.insecure = true;
        self
    }

    /// Opens the listeners and the history, and fixes the epoch.
    ///
    /// # Errors
    /// An address that cannot be listened on, a data directory that cannot be written, a history that
    /// is damaged or of a later version.
    pub async fn bind(self, address: &str) -> Result<Supervisor, Error> {
        let listener = open(address, self.insecure).await?;
        let cannot = |source| SupervisorError::CannotListen { address: address.to_owned(), source };
        let address = listener.local_addr().map_err(cannot)?;
        let epoch = epoch::next(self.data_dir.as_deref())?;
        let history = history::open(self.data_dir.as_deref()).await?;
        // Last, so that who cannot begin at all says that and nothing else.
        let http = match &self.http {
            None => None,
            Some(Http { address, if_free }) => match open(address, self.insecure).await {
                Err(error) if *if_free => {
                    tracing::warn!(
                        "{error}: there are no metrics (--http-listen says where else, or \"off\")"
                    );
                    None
                }
                opened => Some(opened?),
            },
        };
        Ok(Supervisor { builder: self, listener, http, address, epoch, history })
    }
}

async fn open(address: &str, insecure: bool) -> Result<TcpListener, Error> {
    let listener = wardkeep_node::open(address, insecure).await?;
    let cannot = |source| SupervisorError::CannotListen { address: address.to_owned(), source };
    listener.set_nonblocking(true).map_err(cannot)?;
    Ok(TcpListener::from_std(listener).map_err(cannot)?)
}

/// A supervisor that listens and is ready to run.
#[must_use = "a supervisor does nothing until it runs"]
pub struct Supervisor<L = TcpListener> {
    builder: SupervisorBuilder,
    listener: L,
    http: Option<TcpListener>,
    address: SocketAddr,
    epoch: epoch::Epoch,
    history: history::Opened,
}

impl Supervisor {
    /// Begins the description of a supervisor.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder {
            steward: Config::default(),
            mandate_grace: MANDATE_GRACE,
            groups: Vec::new(),
            launches: Vec::new(),
            data_dir: None,
            limits: Limits::default(),
            sessions: SESSIONS,
            insecure: false,
            retention: history::Retention { max_age: HISTORY_AGE, max_bytes: HISTORY_BYTES },
            config: None,
            http: None,
        }
    }

    /// Launches a node, as [`SupervisorBuilder::launch`] does, for nodes that must be told where this
    /// supervisor listens.
    pub fn launch(mut self, launch: Launch) -> Self {
        self.builder.launches.push(launch);
        self
    }
}

impl<L: Listener> Supervisor<L> {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where its metrics are, if they are anywhere.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Runs until `shutdown` completes; then nodes it launched are stopped, the others go on alone.
    ///
    /// # Errors
    /// If its services cannot be put together, or a part of it died.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let metrics_at = self.http_addr();
        let Self { builder, listener, http, address, epoch, mut history } = self;
        tracing::info!(%address, epoch = epoch.number, "supervisor up");
        if let Some(address) = metrics_at {
            tracing::info!("metrics at http://{address}/metrics");
        }
        let (to_fleet, inbox) = mpsc::channel(INBOX.saturating_add(builder.sessions));
        let (orders, launch_orders) = mpsc::channel(64);
        let picture = watch::Sender::new(Arc::new(v1::Fleet::default()));
        let view = watch::Sender::new(Arc::new(v1::DirectoryView::default()));
        let followers = chronicle::Chronicle::followers();
        let (state, path) = (std::mem::take(&mut history.state), history.path.clone());
        let history = history.start(builder.retention);
        let operator = operator::Api::new(
            to_fleet.clone(),
            picture.subscribe(),
            operator::Past { reader: history.reader(), followers: followers.downgrade() },
            builder.config.as_ref().map(|config| config.read.clone()),
        );
        let ledger = Ledger::new();
        let attend = attend::Attend::new(to_fleet.clone(), builder.sessions, ledger.clone());
        let service = services(attend, operator, &view, ledger.clone())?;

        let (stop_server, stop_launcher) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let launches = builder.launches;
        let launchable = launch::named(&launches);
        tasks.spawn(launcher::run(
            launches.clone(),
            builder.data_dir.clone(),
            launch_orders,
            to_fleet.clone(),
            stop_launcher.clone(),
        ));
        let settings = fleet::Settings {
            epoch: epoch.number,
            steward: builder.steward,
            mandate_grace: builder.mandate_grace,
            groups: builder.groups,
            launches,
            launchable,
            config: builder.config,
            ledger,
        };
        let remembered =
            fleet::Remembered { state, history, followers, kept: (path, builder.retention.max_bytes) };
        let fleet = Fleet::new(settings, remembered, picture, view, orders);
        tasks.spawn(fleet.run(inbox));
        let mut serving = JoinSet::new();
        let stop = stop_server.clone();
        let limits = builder.limits;
        serving.spawn(async move { drop(server::serve(listener, service, limits, stop).await) });
        if let Some(http) = http {
            serving.spawn(metrics::serve(http, to_fleet.clone(), limits, stop_server.clone()));
        }

        let died = tokio::select! {
            () = shutdown => None,
            died = tasks.join_next() => died,
            died = serving.join_next() => died,
        };
        tracing::info!("supervisor ends");
        stop_launcher.cancel();
        // The fleet's end is the end of every session and of everyone who watches.
        let _ = to_fleet.send(Msg::Shutdown).await;
        stop_server.cancel();
        drop(to_fleet);
        while serving.join_next().await.is_some() {}
        while tasks.join_next().await.is_some() {}
        drop(epoch);
        match died {
            None => Ok(()),
            Some(died) => Err(Bug::because(match died {
                Ok(()) => "a part of the supervisor ended by itself".to_owned(),
                Err(panic) => format!("a part of the supervisor died: {panic}"),
            })),
        }
    }
}

fn services(
    attend: attend::Attend,
    operator: operator::Api,
    view: &watch::Sender<Arc<v1::DirectoryView>>,
    ledger: Ledger,
) -> Result<
    impl tower::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send + 'static,
    >
    + Clone
    + Send
    + 'static
    + use<>,
    Error,
> {
    let (_, health) = tonic_health::server::health_reporter();
    let services = Services::new()
        .with(health)
        .with(StewardshipServer::new(attend))
        .with(DirectoryServer::new(directory::Watch::new(view.subscribe())))
        .with(OperatorServer::new(operator))
        .reflecting(&[wardkeep_proto::FILE_DESCRIPTOR_SET])?;
    Ok(services.recording(ledger).into_service(NAME))
}
