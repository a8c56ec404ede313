//! `wardkeep` itself as a process, and a look at the supervisor that it may be.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a helper that fails is a test that fails")]

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};
use wardkeep_proto::v1::{self, Fleet, operator_client::OperatorClient};

pub const WARDKEEP: &str = env!("CARGO_BIN_EXE_wardkeep");

/// `wardkeep` with nothing of the test's own environment that steers it, and off the port of metrics.
pub fn wardkeep() -> Command {
    let mut command = Command::new(WARDKEEP);
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("WARDKEEP") || key == "RUST_LOG") {
        command.env_remove(key);
    }
    command.env("WARDKEEP_HTTP_LISTEN", "off").kill_on_drop(true);
    command
}

/// `wardkeep serve`, and what it has said.
pub struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    pub said: Vec<String>,
}

impl Daemon {
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = wardkeep();
        command
            .arg("serve")
            .args(args)
            .envs(env.iter().copied())
            .stderr(Stdio::piped())
            .stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, said: Vec::new() }
    }

    /// Waits for a line with this in it.
    pub async fn says(&mut self, text: &str) -> String {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
        panic!("it never says {text:?} but {:#?}", self.said);
    }

    /// Its listening address, once it is up.
    pub async fn address(&mut self, up: &str) -> String {
        let line = self.says(up).await;
        let at = line.find("address=").unwrap() + "address=".len();
        line[at..].split_whitespace().next().unwrap().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().cast_signed()), signal).unwrap();
    }

    /// Waits for its end; all it said is in `said`.
    pub async fn ended(&mut self) -> ExitStatus {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            self.said.push(line);
        }
        self.child.wait().await.unwrap()
    }

    pub async fn killed(mut self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }
}

/// Connects to a supervisor as soon as it listens.
pub async fn operator(uri: &str) -> OperatorClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(uri.to_owned()).unwrap();
    let mut attempt = tokio::time::interval(Duration::from_millis(20));
    loop {
        attempt.tick().await;
        if let Ok(channel) = endpoint.connect().await {
            return OperatorClient::new(channel);
        }
    }
}

/// Waits until a supervisor's picture is as wanted.
pub async fn until<T>(uri: &str, seen: impl Fn(&Fleet) -> Option<T>) -> T {
    let mut operator = operator(uri).await;
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        look.tick().await;
        let fleet = operator.get_fleet(v1::GetFleetRequest {}).await.unwrap().into_inner();
        if let Some(found) = seen(&fleet) {
            return found;
        }
    }
}

/// All events that it keeps.
pub async fn events(uri: &str) -> Vec<v1::Event> {
    let request = v1::WatchEventsRequest::default();
    let mut stream = operator(uri).await.watch_events(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        events.push(event);
    }
    events
}
