//! Process wards whose gRPC health is asked for, and how programs are told to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use support::*;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};
use wardkeep_node::{
    Node, Program, Services, Ward,
    server::{Limits, serve},
};
use wardkeep_proto::{error::Code, v1::WardState};

fn sh(script: &str) -> Program {
    Program::new("sh").args(["-c", script])
}

/// The health that a program would serve.
struct Health {
    uri: String,
    reporter: HealthReporter,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Health {
    async fn start() -> Self {
        let (reporter, service) = tonic_health::server::health_reporter();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let limits = Limits { shutdown_grace: Duration::from_millis(10), ..Limits::default() };
        let service = Services::new().with(service).into_service("program");
        let serving = serve(listener, service, limits, stop.clone());
        let serving = tokio::task::spawn(async move { drop(serving.await) });
        let health = Self { uri, reporter, stop, serving };
        health.says(ServingStatus::NotServing).await;
        health
    }

    async fn says(&self, status: ServingStatus) {
        self.reporter.set_service_status("example.Solver", status).await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

fn solver(uri: &str) -> Ward {
    let often = Duration::from_millis(30);
    let program = Program::new("sleep").arg("1000").probe(uri, "example.Solver").unwrap();
    let program = program.probes_every(often, Duration::from_millis(500)).unwrap();
    Ward::process("solver", program).pulse_timeout(Duration::from_millis(800))
}

#[tokio::test]
async fn a_probed_program_is_ready_when_it_serves_and_restarted_when_it_no_longer_does() {
    within(async {
        let health = Health::start().await;
        let node = node([solver(&health.uri)]).await;
        node.until(|now| find(now, "solver").state() == WardState::Starting).await;
        health.says(ServingStatus::Serving).await;
        node.running("solver", 1).await;
        health.says(ServingStatus::NotServing).await;
        let now = node.until(|now| find(now, "solver").status.starts_with("its health probe fails")).await;
        assert_eq!(find(&now, "solver").status, "its health probe fails: NOT_SERVING");
        // Only its pulse timeout decides, and then it must serve to be ready again.
        node.until(|now| {
            find(now, "solver").incarnation == 2 && find(now, "solver").state() == WardState::Starting
        })
        .await;
        health.says(ServingStatus::Serving).await;
        node.running("solver", 2).await;
        // No answer is no pulse either.
        health.end().await;
        node.until(|now| find(now, "solver").incarnation >= 3).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_probe_that_cannot_be_is_refused() {
    let program = || Program::new("true").probe("http://127.0.0.1:1", "").unwrap();
    assert!(Program::new("true").probe("nowhere", "").is_err());
    assert!(Program::new("true").probes_every(Duration::from_secs(1), Duration::from_secs(1)).is_err());
    assert!(program().probes_every(Duration::ZERO, Duration::from_secs(1)).is_err());
    let bound = async |ward: Ward| Node::builder("n").ward(ward).bind("127.0.0.1:0").await.map(drop);
    // By default it has a pulse timeout that goes with it.
    let slow = program().probes_every(Duration::from_secs(20), Duration::from_secs(5)).unwrap();
    bound(Ward::process("w", slow)).await.unwrap();
    let hasty = Ward::process("w", program()).pulse_timeout(Duration::from_millis(1_500));
    let error = bound(hasty).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(
        error.what(),
        "ward w: pulse_timeout (1.5s) must be longer than its probe's interval and timeout together (1.5s)"
    );
    let both = bound(Ward::process("w", program().notifies())).await.unwrap_err();
    assert!(both.what().contains("one of them says when it is ready"), "{both}");
}

#[tokio::test]
async fn a_program_gets_the_stop_signal_it_wants_and_alone_where_it_stops_its_children() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let told = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        let script = "\
            trap 'echo child >> $F' INT TERM; echo up > $F.up; while :; do sleep 0.01; done & child=$!; \
            trap 'echo int >> $F; kill -0 $child && echo lives >> $F; kill -9 $child; exit 0' INT; \
            trap 'echo term >> $F; exit 0' TERM; \
            until test -e $F.up; do sleep 0.01; done; echo > $F.ready; while :; do sleep 0.01; done";
        let ward = |name: &str, program: fn(Program) -> Program| {
            let file = dir.path().join(name);
            Ward::process(name.to_owned(), program(sh(script)).env("F", file)).grace(PATIENCE)
        };
        let plain = ward("plain", |program| program);
        let alone = ward("alone", |program| program.stop_signal("SIGINT").unwrap().stops_its_children());
        let node = node([plain, alone]).await;
        while told("plain.ready").is_empty() || told("alone.ready").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.stop().await;
        assert!(told("plain").contains("term"), "{}", told("plain"));
        assert_eq!(told("alone"), "int\nlives\n");
    })
    .await;
}

/// As shells start what is to run in the background: a program cannot undo what it was born with.
#[test]
fn a_program_gets_its_stop_signal_though_its_node_was_started_deaf_to_it() {
    let mut deaf = std::process::Command::new("sh");
    deaf.args(["-c", "trap '' INT TERM; exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
    let test = "a_program_gets_the_stop_signal_it_wants_and_alone_where_it_stops_its_children";
    let ran = deaf.args(["--exact", test]).output().unwrap();
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && told.contains("1 passed"), "{told}");
}
