//! The launcher `process`: nodes that are children of the supervisor. Starts them, sees them end,
//! starts them anew when the steward says so.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wardkeep_proto::v1;

use super::fleet::Msg;

/// What a node gets to drain when its supervisor ends.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// A node and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The name it will attend under.
    pub node: String,
    /// Program and arguments.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Environment variables beside the supervisor's.
    pub env: BTreeMap<String, String>,
}

/// Start this node's process anew, ending the one there is.
pub(super) struct Order {
    pub(super) node: String,
    pub(super) reason: String,
}

type Exits = FuturesUnordered<BoxFuture<'static, (String, u32, String)>>;

/// Runs until `stop`; then the nodes are stopped, gently first. `wait`: a supervisor before us may
/// have launched them already, so those that attend within this time are not started again.
pub(super) async fn run(
    launches: Vec<Launch>,
    log_dir: Option<PathBuf>,
    wait: Option<Duration>,
    mut orders: mpsc::Receiver<Order>,
    fleet: mpsc::Sender<Msg>,
    picture: watch::Receiver<Arc<v1::Fleet>>,
    stop: CancellationToken,
) {
    let mut exits = Exits::new();
    let mut pids = BTreeMap::new();
    if let Some(wait) = wait.filter(|_| !launches.is_empty()) {
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
    for launch in launches.iter().filter(|launch| !attends(&picture, &launch.node)) {
        start(launch, log_dir.as_deref(), &mut pids, &mut exits);
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(order) = orders.recv() => {
                let Some(launch) = launches.iter().find(|launch| launch.node == order.node) else { continue };
                tracing::warn!(node = %order.node, "launching its process anew: {}", order.reason);
                let old = pids.remove(&order.node).or_else(|| pid_of(&picture, &order.node));
                if let Some(pid) = old {
                    signal(pid, Signal::SIGKILL);
                }
                start(launch, log_dir.as_deref(), &mut pids, &mut exits);
            }
            Some((node, pid, how)) = exits.next() => {
                // One that was replaced on purpose is no news.
                if pids.get(&node) == Some(&pid) {
                    pids.remove(&node);
                    if fleet.send(Msg::ProcessExited { node, how }).await.is_err() {
                        break;
                    }
                }
            }
        }
    }
    for pid in pids.values() {
        signal(*pid, Signal::SIGTERM);
    }
    if timeout(STOP_PATIENCE, async { while exits.next().await.is_some() {} }).await.is_err() {
        for pid in pids.values() {
            signal(*pid, Signal::SIGKILL);
        }
        let _ = timeout(Duration::from_secs(1), async { while exits.next().await.is_some() {} }).await;
    }
}

fn attends(picture: &watch::Receiver<Arc<v1::Fleet>>, node: &str) -> bool {
    pid_of(picture, node).is_some()
}

/// The PID of a node that runs on this machine, whoever started it.
fn pid_of(picture: &watch::Receiver<Arc<v1::Fleet>>, node: &str) -> Option<u32> {
    let fleet = picture.borrow();
    let node = fleet.nodes.iter().find(|n| n.info.as_ref().is_some_and(|info| info.name == node))?;
    let info = node.info.as_ref()?;
    (node.attending && info.machine == wardkeep_proto::machine_name()).then_some(info.pid)
}

fn start(launch: &Launch, log_dir: Option<&Path>, pids: &mut BTreeMap<String, u32>, exits: &mut Exits) {
    let node = launch.node.clone();
    match spawn(launch, log_dir) {
        Ok(mut child) => {
            let pid = child.id().unwrap_or(0);
            tracing::info!(%node, pid, "launched");
            pids.insert(node.clone(), pid);
            exits.push(Box::pin(async move {
                let how = match child.wait().await {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                };
                (node, pid, how)
            }));
        }
        Err(error) => {
            let how = format!("cannot start {}: {error}", launch.program.display());
            tracing::error!(%node, "{how}");
            // No process has PID 0: the place is kept so that the exit counts.
            pids.insert(node.clone(), 0);
            exits.push(Box::pin(async move { (node, 0, how) }));
        }
    }
}

fn spawn(launch: &Launch, log_dir: Option<&Path>) -> std::io::Result<Child> {
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).envs(&launch.env).stdin(Stdio::null());
    // Its own group: Ctrl-C at the supervisor's terminal is the supervisor's to pass on.
    command.process_group(0);
    if let Some(dir) = log_dir {
        let log =
            OpenOptions::new().create(true).append(true).open(dir.join(format!("{}.log", launch.node)))?;
        command.stdout(log.try_clone()?).stderr(log);
    } else {
        command.stdout(Stdio::null());
    }
    command.spawn()
}

fn signal(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else { return };
    // It may have ended by itself meanwhile.
    let _ = kill(Pid::from_raw(pid), signal);
}
