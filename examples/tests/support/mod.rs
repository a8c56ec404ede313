//! Nodes in this process, and `trouble` nodes as processes of their own.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a test that fails")]

use std::{
    fs::File,
    future::Future,
    io::{Read as _, Seek as _},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::oneshot,
    task::JoinSet,
};
use wardkeep_node::{Node, NodeBuilder};
use wardkeep_proto::v1::{self, WardState};

pub async fn in_time<T>(seconds: u64, what: &str, work: impl Future<Output = T>) -> T {
    let Ok(done) = tokio::time::timeout(Duration::from_secs(seconds), work).await else {
        panic!("{what} took more than {seconds} s");
    };
    done
}

/// A node in this process.
pub struct Hosted {
    /// `host:port`.
    pub address: String,
    end: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

impl Hosted {
    /// Starts it on a port of the system's choice, and waits until all its wards run.
    pub async fn start(node: NodeBuilder) -> Self {
        let node: Node = node.bind("127.0.0.1:0").await.unwrap();
        let (address, mut snapshots) = (node.local_addr().to_string(), node.handle().snapshots());
        let (end, ended) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { node.run_until(async { drop(ended.await) }).await.unwrap() });
        let runs = |ward: &v1::Ward| ward.state() == WardState::Running;
        let up = snapshots.wait_for(|now| !now.wards.is_empty() && now.wards.iter().all(runs));
        in_time(30, "starting the wards", up).await.unwrap();
        Self { address, end, tasks }
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    pub async fn stop(mut self) {
        drop(self.end);
        self.tasks.join_next().await;
    }
}

/// A node on a port of the system's choice. It ends with this.
pub struct Trouble {
    pub child: Child,
    /// `host:port`.
    pub address: String,
    log: File,
}

impl Trouble {
    /// Starts one, with further arguments, that logs what `RUST_LOG` would say here.
    pub async fn start(args: &[&str], log_filter: &str) -> Self {
        let log = tempfile::tempfile().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trouble"));
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        command.env_remove("WARDKEEP_SUPERVISOR").env("RUST_LOG", log_filter);
        command.stdout(Stdio::piped()).stderr(log.try_clone().unwrap()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = in_time(30, "starting the node", lines.next_line()).await.unwrap();
        let line = line.expect("the node ended before it listened");
        let address = line.strip_prefix("listening on ").expect(&line).to_owned();
        Self { child, address, log }
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has logged.
    pub fn log(&mut self) -> String {
        let mut logged = String::new();
        self.log.rewind().and_then(|()| self.log.read_to_string(&mut logged)).unwrap();
        logged
    }
}
