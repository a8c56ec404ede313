//! The launcher `process`: nodes that are children of the supervisor. Starts them, sees them end,
//! starts them anew when the steward says so. Those that a supervisor before us launched, and that
//! still run, are ours from now on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use nix::sys::signal::Signal;
use tokio::{
    process::Child,
    time::{Instant, sleep, timeout},
};

use super::{How, Launch, command};
use crate::daemon::pidfile::{self, Process};

/// What a node gets to drain when its supervisor ends.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked whether a process that is not our child still runs.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is tried to write down which process a node is, where that failed: the disk was full, say.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

type Exits = FuturesUnordered<BoxFuture<'static, (String, Process, String)>>;

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

/// The processes of nodes.
pub(super) struct Children {
    data_dir: Option<PathBuf>,
    /// By node.
    processes: BTreeMap<String, Process>,
    exits: Exits,
    /// Nodes whose processes a supervisor after this one would not find.
    unwritten: BTreeSet<String>,
}

impl Children {
    pub(super) fn new(data_dir: Option<PathBuf>) -> Self {
        Self { data_dir, processes: BTreeMap::new(), exits: Exits::new(), unwritten: BTreeSet::new() }
    }

    /// Waits for one that ends by itself: its node, and how it ended. Pending where there is none; cancel
    /// safe. Meanwhile writes down what could not be written before.
    pub(super) async fn ended(&mut self) -> (String, String) {
        let mut again = tokio::time::interval_at(Instant::now() + WRITE_AGAIN, WRITE_AGAIN);
        loop {
            tokio::select! {
                Some((node, process, how)) = self.exits.next() => if self.has_ended(&node, &process) {
                    return (node, how);
                },
                _ = again.tick(), if !self.unwritten.is_empty() => self.write_again(),
                else => return std::future::pending().await,
            }
        }
    }

    fn write_again(&mut self) {
        for node in std::mem::take(&mut self.unwritten) {
            if let Some(process) = self.processes.get(&node).cloned() {
                self.write_down(&node, &process);
            }
        }
    }

    /// For a supervisor after this one to find it.
    fn write_down(&mut self, node: &str, process: &Process) {
        let Some(dir) = &self.data_dir else { return };
        match pidfile::remember(dir, node, process) {
            Ok(()) => tracing::debug!(%node, pid = process.pid, "its PID is kept"),
            Err(error) => {
                tracing::warn!(%node, %error, "its PID cannot be kept yet: a supervisor after this one would launch it again");
                self.unwritten.insert(node.to_owned());
            }
        }
    }

    /// Ends the process there is, if there is one: true.
    pub(super) async fn clear(&mut self, node: &str) -> bool {
        let Some(old) = self.processes.remove(node) else { return false };
        end_at_once(&old).await;
        true
    }

    /// Starts the process, unless it runs.
    pub(super) fn adopt_or_start(&mut self, launch: &Launch) {
        let node = &launch.node;
        if self.processes.contains_key(node) {
            return;
        }
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

    pub(super) fn start(&mut self, launch: &Launch) {
        let node = launch.node.clone();
        match self.spawn(launch) {
            Ok(mut child) => {
                let process = Process::of(child.id().unwrap_or(0));
                tracing::info!(%node, pid = process.pid, "launched");
                self.write_down(&node, &process);
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
        let mut command = command::of(launch);
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
        self.unwritten.remove(node);
        if let Some(dir) = &self.data_dir {
            pidfile::forget(dir, node);
        }
        true
    }

    /// Stops them, gently first. Those of nodes that are launched no longer go on.
    pub(super) async fn end(mut self, launched: &[Launch]) {
        let ours =
            |node: &str| launched.iter().any(|launch| launch.node == node && launch.how == How::Process);
        self.processes.retain(|node, _| ours(node));
        for (signal, patience) in
            [(Signal::SIGTERM, STOP_PATIENCE), (Signal::SIGKILL, Duration::from_secs(1))]
        {
            for process in self.processes.values() {
                process.signal(signal);
            }
            let all_gone = async {
                while !self.processes.is_empty()
                    && let Some((node, process, _)) = self.exits.next().await
                {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_process_of_a_node_is_written_down_as_soon_as_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        // Stands in the way as a full disk does.
        let obstacle = dir.path().join("n.pid.new");
        std::fs::create_dir(&obstacle).unwrap();
        let mut children = Children::new(Some(dir.path().to_owned()));
        let launch = Launch {
            node: "n".into(),
            how: How::Process,
            program: "sleep".into(),
            args: vec!["60".into()],
            env: BTreeMap::new(),
            socket: PathBuf::new(),
        };
        children.start(&launch);
        let process = children.processes["n"].clone();
        assert_eq!(pidfile::survivor(dir.path(), "n"), None);
        std::fs::remove_dir(&obstacle).unwrap();
        let written = async {
            while pidfile::survivor(dir.path(), "n").is_none() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            ended = children.ended() => panic!("{ended:?}"),
            () = written => {}
            () = sleep(Duration::from_secs(30)) => panic!("it is not tried again"),
        }
        assert_eq!(pidfile::survivor(dir.path(), "n"), Some(process.clone()));
        // One that ends before it was written down is not written down after all.
        std::fs::create_dir(&obstacle).unwrap();
        assert!(children.clear("n").await);
        children.start(&launch);
        children.processes["n"].signal(Signal::SIGKILL);
        assert_eq!(children.ended().await.0, "n");
        assert!(children.unwritten.is_empty());
    }
}
