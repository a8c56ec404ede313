//! Launchers: how a node's process is started anew out of band.
//!
//! * `process`: it is a child of the supervisor, which starts it, and ends it when it ends itself.
//! * `command`: it runs somewhere else; a program is run that (re)starts it there.
//! * `docker`: it runs in a container, which the container engine is told to start anew.

mod command;
mod docker;
mod process;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::fleet::Msg;
use docker::Deaths;
pub use docker::SOCKET;
use process::Children;

/// What a command, or a container engine, gets unless told otherwise.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// A node and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The name it will attend under. For [`How::Docker`] there may be one `*` in it, for any text: all nodes
    /// that attend under such a name are meant.
    pub node: String,
    /// What the program is to the node.
    pub how: How,
    /// The program, by path, or by name to be found on `PATH`. For [`How::Docker`] the container: its name or
    /// ID, or, if there is a `=` in it, a label that it alone has. A `*` is what the one in `node` stands for.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Environment variables beside those of the supervisor that do not steer it.
    pub env: BTreeMap<String, String>,
    /// Where the container engine listens, for [`How::Docker`].
    pub socket: PathBuf,
}

impl Launch {
    /// What there is for this node: by its name, else by a part of it.
    pub(super) fn find(launches: &[Self], node: &str) -> Option<Self> {
        let named = launches.iter().find(|launch| launch.node == node).cloned();
        named.or_else(|| launches.iter().find_map(|launch| launch.fits(node)))
    }

    fn fits(&self, node: &str) -> Option<Self> {
        let (before, after) = self.node.split_once('*')?;
        let star = node.strip_prefix(before)?.strip_suffix(after).filter(|star| !star.is_empty())?;
        let program = self.program.to_string_lossy().replace('*', star).into();
        Some(Self { node: node.to_owned(), program, ..self.clone() })
    }

    /// The node that this would mean if it were in the container of that name or label.
    fn node_in(&self, container: &str) -> Option<String> {
        let program = self.program.to_string_lossy();
        let Some((before, after)) = program.split_once('*') else {
            return (program == container).then(|| self.node.clone());
        };
        // A label is no name.
        let star = container.strip_prefix(before)?.strip_suffix(after).filter(|star| !star.is_empty())?;
        (program.contains('=') || !star.contains('=')).then(|| self.node.replacen('*', star, 1))
    }
}

/// What the program of a [`Launch`] is to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is the node: a child of the supervisor, started with it, started anew whenever it ends, and
    /// ended with it.
    Process,
    /// It starts the node, or starts it anew, somewhere else (`systemctl --host=...`, `ssh`, a script), and
    /// ends with 0. It is run when the node is away, or does not answer, not at the supervisor's start. It
    /// finds the node's name in `WARDKEEP_NODE` and the reason in `WARDKEEP_REASON`.
    Command {
        /// After this its whole process group is killed, and it has failed.
        timeout: Duration,
    },
    /// It is no program but a container, which the engine starts, or starts anew, when the node is away or does
    /// not answer, not at the supervisor's start.
    Docker {
        /// For the engine to be done.
        timeout: Duration,
    },
}

impl How {
    /// How operators know it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Command { .. } => "command",
            Self::Docker { .. } => "docker",
        }
    }

    /// How long it may take to start a node.
    pub(super) fn takes(self) -> Duration {
        match self {
            Self::Process => Duration::ZERO,
            Self::Command { timeout } | Self::Docker { timeout } => timeout,
        }
    }
}

/// Start this node's process anew, ending the one there is.
pub(super) struct Order {
    pub(super) node: String,
    pub(super) reason: String,
}

/// What the launcher is told.
pub(super) enum Told {
    Launch(Order),
    /// From now on these are the nodes to launch. Processes that are not among them go on, unseen to.
    Configure(Vec<Launch>),
}

/// Runs until `stop`; then the nodes are stopped, gently first.
pub(super) async fn run(
    mut launches: Vec<Launch>,
    data_dir: Option<PathBuf>,
    mut told: mpsc::Receiver<Told>,
    fleet: mpsc::Sender<Msg>,
    stop: CancellationToken,
) {
    let mut children = Children::new(data_dir);
    let (mut orders, mut deaths) = (Orders::default(), Deaths::default());
    start_children(&mut children, &launches);
    deaths.follow(&launches);
    loop {
        let news = tokio::select! {
            () = stop.cancelled() => break,
            Some(told) = told.recv() => match told {
                Told::Configure(now) => {
                    launches = now;
                    start_children(&mut children, &launches);
                    deaths.follow(&launches);
                    None
                }
                Told::Launch(order) => match Launch::find(&launches, &order.node) {
                    Some(launch) => begin(&launch, &order, &mut children, &mut orders).await,
                    None => None,
                },
            },
            (node, how) = children.ended() => Some(Msg::ProcessExited { node, how }),
            (node, how) = deaths.next(&launches) => Some(Msg::ProcessExited { node, how }),
            (node, outcome) = orders.ended() => Some(Msg::LauncherDone { node, outcome }),
        };
        if let Some(news) = news
            && fleet.send(news).await.is_err()
        {
            break;
        }
    }
    // Commands that run are killed.
    drop(orders);
    children.end(&launches).await;
}

fn start_children(children: &mut Children, launches: &[Launch]) {
    for launch in launches.iter().filter(|launch| launch.how == How::Process) {
        children.adopt_or_start(launch);
    }
}

async fn begin(launch: &Launch, order: &Order, children: &mut Children, orders: &mut Orders) -> Option<Msg> {
    let node = &launch.node;
    match launch.how {
        How::Process => {
            tracing::warn!(%node, "launching its process anew: {}", order.reason);
            let cleared = children.clear(node).await;
            children.start(launch);
            // The steward waits for this news before it takes an end for the new one's.
            let how = "killed, to be launched anew".to_owned();
            cleared.then(|| Msg::ProcessExited { node: node.clone(), how })
        }
        How::Command { timeout } => {
            let run = command::run(launch.clone(), order.reason.clone(), timeout);
            orders.begin(launch, &order.reason, Box::pin(run));
            None
        }
        How::Docker { timeout } => {
            orders.begin(launch, &order.reason, Box::pin(docker::run(launch.clone(), timeout)));
            None
        }
    }
}

/// What was done, or why it was not.
type Doing = BoxFuture<'static, Result<String, String>>;

/// Commands that run and orders to engines, one per node at most.
#[derive(Default)]
struct Orders {
    of: Vec<String>,
    running: FuturesUnordered<BoxFuture<'static, (String, Result<String, String>)>>,
}

impl Orders {
    fn begin(&mut self, launch: &Launch, reason: &str, run: Doing) {
        let (node, launcher) = (launch.node.clone(), launch.how.word());
        if self.of.contains(&node) {
            tracing::info!(%node, launcher, "it is still being launched: not a second time");
            return;
        }
        tracing::warn!(%node, launcher, program = %launch.program.display(), "launching it: {reason}");
        self.of.push(node.clone());
        self.running.push(Box::pin(async move { (node, run.await) }));
    }

    /// Waits for one to end: its node, and what was done or why it failed. Pending where none runs; cancel safe.
    async fn ended(&mut self) -> (String, Result<String, String>) {
        let Some((node, outcome)) = self.running.next().await else { return std::future::pending().await };
        self.of.retain(|other| *other != node);
        (node, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_nodes_name_is_the_same_in_its_container_and_a_full_name_comes_first() {
        let launch = |node: &str, container: &str| Launch {
            node: node.to_owned(),
            how: How::Docker { timeout: COMMAND_TIMEOUT },
            program: container.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            socket: SOCKET.into(),
        };
        let all = [launch("scan-*", "*"), launch("*.db", "key=*"), launch("scan-1", "first")];
        let found = |node: &str| Launch::find(&all, node).map(|launch| (launch.node, launch.program));
        let is = |node: &str, container: &str| Some((node.to_owned(), PathBuf::from(container)));
        assert_eq!(found("scan-1f2e"), is("scan-1f2e", "1f2e"));
        assert_eq!(found("a.db"), is("a.db", "key=a"));
        assert_eq!(found("scan-1"), is("scan-1", "first"));
        assert_eq!(found("scan-"), None);
        assert_eq!(found("other"), None);
    }
}
