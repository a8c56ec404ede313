//! Launchers: how a node's process is started anew out of band.
//!
//! * `process`: it is a child of the supervisor, which starts it, and ends it when it ends itself.
//! * `command`: it runs somewhere else; a program is run that (re)starts it there.

mod command;
mod process;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::fleet::Msg;
use process::Children;

/// What a command gets unless told otherwise.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// A node and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The name it will attend under.
    pub node: String,
    /// What the program is to the node.
    pub how: How,
    /// The program, by path, or by name to be found on `PATH`.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Environment variables beside those of the supervisor that do not steer it.
    pub env: BTreeMap<String, String>,
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
}

impl How {
    /// How operators know it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Command { .. } => "command",
        }
    }

    /// How long it may take to start a node.
    pub(super) fn takes(self) -> Duration {
        match self {
            Self::Process => Duration::ZERO,
            Self::Command { timeout } => timeout,
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
    let mut commands = Commands::default();
    start_children(&mut children, &launches);
    loop {
        let news = tokio::select! {
            () = stop.cancelled() => break,
            Some(told) = told.recv() => match told {
                Told::Configure(now) => {
                    launches = now;
                    start_children(&mut children, &launches);
                    None
                }
                Told::Launch(order) => match launches.iter().find(|launch| launch.node == order.node) {
                    Some(launch) => begin(launch, &order, &mut children, &mut commands).await,
                    None => None,
                },
            },
            (node, how) = children.ended() => Some(Msg::ProcessExited { node, how }),
            (node, outcome) = commands.ended() => Some(Msg::CommandEnded { node, outcome }),
        };
        if let Some(news) = news
            && fleet.send(news).await.is_err()
        {
            break;
        }
    }
    // Commands that run are killed.
    drop(commands);
    children.end(&launches).await;
}

fn start_children(children: &mut Children, launches: &[Launch]) {
    for launch in launches.iter().filter(|launch| launch.how == How::Process) {
        children.adopt_or_start(launch);
    }
}

async fn begin(
    launch: &Launch,
    order: &Order,
    children: &mut Children,
    commands: &mut Commands,
) -> Option<Msg> {
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
            commands.begin(launch, &order.reason, timeout);
            None
        }
    }
}

/// Commands that run, one per node at most.
#[derive(Default)]
struct Commands {
    of: Vec<String>,
    running: FuturesUnordered<BoxFuture<'static, (String, Result<String, String>)>>,
}

impl Commands {
    fn begin(&mut self, launch: &Launch, reason: &str, timeout: Duration) {
        let node = launch.node.clone();
        if self.of.contains(&node) {
            tracing::info!(%node, "the command that launches it still runs: it is not run a second time");
            return;
        }
        tracing::warn!(%node, program = %launch.program.display(), "running the command that launches it: {reason}");
        self.of.push(node.clone());
        let run = command::run(launch.clone(), reason.to_owned(), timeout);
        self.running.push(Box::pin(async move { (node, run.await) }));
    }

    /// Waits for one to end: its node, and what it took or why it failed. Pending where none runs; cancel safe.
    async fn ended(&mut self) -> (String, Result<String, String>) {
        let Some((node, outcome)) = self.running.next().await else { return std::future::pending().await };
        self.of.retain(|other| *other != node);
        (node, outcome)
    }
}
