//! The launcher `process`: nodes that are children of the supervisor. Starts them, sees them end,
//! starts them anew when the steward says so. Those that a supervisor before us launched, and that
//! still run, are ours from now on.

use std::{
    collections::BTreeMap, ffi::OsString, fs::OpenOptions, path::PathBuf, process::Stdio, time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use nix::sys::signal::Signal;
use tokio::{
    process::{Child, Command},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    fleet::Msg,
    pidfile::{self, Process},
};

/// What a node gets to drain when its supervisor ends.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked whether a process that is not our child still runs.
const LOOK: Duration = Duration::from_millis(200);

/// What steers the supervisor itself is not for its nodes: they would listen where it does.
const OWN_ENVIRONMENT: [&str; 4] =
    ["WARDKEEP_CONFIG", "WARDKEEP_LISTEN", "WARDKEEP_DATA_DIR", "WARDKEEP_NAME"];

/// A node and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The name it will attend under.
    pub node: String,
    /// Program and arguments.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Environment variables beside those of the supervisor that do not steer it.
    pub env: BTreeMap<String, String>,
}

/// Start this node's process anew, ending the one there is.
pub(super) struct Order {
    pub(super) node: String,
    pub(super) reason: String,
}

type Exits = FuturesUnordered<BoxFuture<'static, (String, Process, String)>>;

/// Runs until `stop`; then the nodes are stopped, gently first.
pub(super) async fn run(
    launches: Vec<Launch>,
    data_dir: Option<PathBuf>,
    mut orders: mpsc::Receiver<Order>,
    fleet: mpsc::Sender<Msg>,
    stop: CancellationToken,
) {
    let mut launcher = Launcher { data_dir, processes: BTreeMap::new(), exits: Exits::new() };
    for launch in &launches {
        launcher.adopt_or_start(launch);
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(order) = orders.recv() => {
                let Some(launch) = launches.iter().find(|launch| launch.node == order.node) else { continue };
                tracing::warn!(node = %order.node, "launching its process anew: {}", order.reason);
                if let Some(old) = launcher.processes.remove(&order.node) {
                    end_at_once(&old).await;
                    // The steward waits for this news before it takes an end for the new one's.
                    let how = "killed, to be launched anew".to_owned();
                    if fleet.send(Msg::ProcessExited { node: order.node, how }).await.is_err() {
                        break;
                    }
                }
                launcher.start(launch);
            }
            Some((node, process, how)) = launcher.exits.next() => {
                if launcher.has_ended(&node, &process)
                    && fleet.send(Msg::ProcessExited { node, how }).await.is_err()
                {
                    break;
                }
            }
        }
    }
    launcher.end().await;
}

/// The place and the port must be free before the next process takes them.
async fn end_at_once(process: &Process) {
    process.signal(Signal::SIGKILL);
    let gone = async {
        while process.lives() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(Duration::from_secs(1), gone).await.is_err() {
        tracing::warn!(pid = process.pid, "does not end, though it was killed");
    }
}

struct Launcher {
    data_dir: Option<PathBuf>,
    /// By node.
    processes: BTreeMap<String, Process>,
    exits: Exits,
}

impl Launcher {
    fn adopt_or_start(&mut self, launch: &Launch) {
        let node = &launch.node;
        let Some(process) = self.data_dir.as_deref().and_then(|dir| pidfile::survivor(dir, node)) else {
            return self.start(launch);
        };
        tracing::info!(%node, pid = process.pid, "its process still runs and is taken over");
        self.processes.insert(node.clone(), process.clone());
        let node = node.clone();
        self.exits.push(Box::pin(async move {
            while process.lives() {
                sleep(LOOK).await;
            }
            (node, process, "it is gone".to_owned())
        }));
    }

    fn start(&mut self, launch: &Launch) {
        let node = launch.node.clone();
        match self.spawn(launch) {
            Ok(mut child) => {
                let process = Process::of(child.id().unwrap_or(0));
                tracing::info!(%node, pid = process.pid, "launched");
                if let Some(dir) = &self.data_dir
                    && let Err(error) = pidfile::remember(dir, &node, &process)
                {
                    tracing::warn!(%node, %error, "its PID cannot be kept: a supervisor after this one would launch it again");
                }
                self.processes.insert(node.clone(), process.clone());
                self.exits.push(Box::pin(async move {
                    let how = match child.wait().await {
                        Ok(status) => status.to_string(),
                        Err(error) => error.to_string(),
                    };
                    (node, process, how)
                }));
            }
            Err(error) => {
                let how = format!("cannot start {}: {error}", launch.program.display());
                tracing::error!(%node, "{how}");
                // The place is kept so that this counts as an end.
                self.processes.insert(node.clone(), Process::none());
                self.exits.push(Box::pin(async move { (node, Process::none(), how) }));
            }
        }
    }

    fn spawn(&self, launch: &Launch) -> std::io::Result<Child> {
        let mut command = Command::new(&launch.program);
        for own in OWN_ENVIRONMENT {
            command.env_remove(own);
        }
        command.args(&launch.args).envs(&launch.env).stdin(Stdio::null());
        // Its own group: Ctrl-C at the supervisor's terminal is the supervisor's to pass on.
        command.process_group(0);
        if let Some(dir) = &self.data_dir {
            let log = dir.join(format!("{}.log", launch.node));
            let log = OpenOptions::new().create(true).append(true).open(log)?;
            command.stdout(log.try_clone()?).stderr(log);
        } else {
            command.stdout(Stdio::null());
        }
        command.spawn()
    }

    /// Takes note of an end. False: it was replaced on purpose, which is no news.
    fn has_ended(&mut self, node: &str, process: &Process) -> bool {
        if self.processes.get(node) != Some(process) {
            return false;
        }
        self.processes.remove(node);
        if let Some(dir) = &self.data_dir {
            pidfile::forget(dir, node);
        }
        true
    }

    async fn end(mut self) {
        for (signal, patience) in
            [(Signal::SIGTERM, STOP_PATIENCE), (Signal::SIGKILL, Duration::from_secs(1))]
        {
            for process in self.processes.values() {
                process.signal(signal);
            }
            let all_gone = async {
                while let Some((node, process, _)) = self.exits.next().await {
                    self.has_ended(&node, &process);
                }
            };
            if timeout(patience, all_gone).await.is_ok() {
                return;
            }
            tracing::warn!(?patience, "launched nodes have not ended in time");
        }
    }
}
