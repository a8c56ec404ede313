//! A peer that shares no code with us (Python's grpcio, stubs generated from our .proto files) gets
//! along with a node: calls, streams, health, reflection, errors, deadlines. And a server of that kind, with all limits as
//! grpcio sets them, bears racing calls.
//!
//! It needs the packages of `interop/python/requirements.txt`, in the Python that `WARDKEEP_PYTHON`
//! names or in `python3`. Without them the tests say so and pass, unless `WARDKEEP_CI=1`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{
    env,
    ffi::OsString,
    io::Write as _,
    path::PathBuf,
    process::{Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use http::uri::PathAndQuery;
use support::{Trouble, in_time};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use tonic::{Request, client::Grpc};
use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, Restraint};
use wardkeep_proto::Error;

const IMPORTS: &str = "import grpc, grpc_health.v1, grpc_reflection.v1alpha, grpc_status, grpc_tools";

/// The Python to use, or why there is none.
async fn python() -> Result<OsString, String> {
    let python = env::var_os("WARDKEEP_PYTHON").unwrap_or_else(|| "python3".into());
    let name = python.display();
    let mut probe = Command::new(&python);
    probe.args(["-c", IMPORTS]).kill_on_drop(true);
    match in_time(60, "importing grpcio", probe.output()).await {
        Err(error) => Err(format!("{name} cannot be started: {error}")),
        Ok(probed) if probed.status.success() => Ok(python),
        Ok(probed) => {
            let error = String::from_utf8_lossy(&probed.stderr);
            Err(format!("{name} lacks a package: {}", error.lines().last().unwrap_or_default()))
        }
    }
}

fn report(output: &Output, log: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    format!("{}\n{}\n\nThe node's log:\n{log}", text(&output.stdout), text(&output.stderr))
}

/// The Python to use; none, and a line that says so, where there is none.
async fn peer() -> Option<OsString> {
    match python().await {
        Ok(python) => Some(python),
        Err(why) if env::var_os("WARDKEEP_CI").is_some_and(|value| value == "1") => {
            panic!("cannot run against a Python peer: {why}")
        }
        Err(why) => {
            // Past the capture of test output: nobody should take this for a run that passed.
            let line = format!("skipped: no Python peer: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

fn path(script: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../interop/python", script].iter().collect()
}

/// Runs one of our scripts against a node of its own; the node must outlive it.
async fn run(script: &str, log_filter: &str) {
    let Some(python) = peer().await else { return };
    let mut node = Trouble::start(&[], log_filter).await;
    let mut check = Command::new(python);
    check.arg(path(script)).arg(&node.address).kill_on_drop(true);
    let output = in_time(300, "the Python peer", check.output()).await.unwrap();
    assert!(output.status.success(), "{}", report(&output, &node.log()));
    std::io::stdout().write_all(&output.stdout).unwrap();
    let ended = node.child.try_wait().unwrap();
    assert!(ended.is_none(), "the node ended under the checks: {ended:?}");
}

#[tokio::test]
async fn a_python_peer_calls_a_node_and_reads_its_errors() {
    run("check.py", "info").await;
}

#[tokio::test]
async fn a_python_peer_reads_each_kind_of_error_500_times_out_of_500() {
    // The texts of the huge ones would fill a gigabyte of log.
    run("errors.py", "off").await;
}

const FIND: &str = "/third.Party/Find";

/// Has the server answer so many calls, 64 at a time: how many failed. Each has a loser, whose handler runs.
async fn race(channel: &Replicated, calls: usize) -> usize {
    let failed = AtomicUsize::new(0);
    let all = stream::iter(0..calls).for_each_concurrent(64, |_| async {
        let mut client = Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), String>::default();
        match client.unary(Request::new(()), PathAndQuery::from_static(FIND), codec).await {
            Ok(reply) => assert_eq!(reply.into_inner().len(), 98),
            Err(status) => {
                eprintln!("{:?}", Error::from_status(&status));
                failed.fetch_add(1, SeqCst);
            }
        }
    });
    in_time(120 + calls as u64 / 50, "the calls", all).await;
    failed.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_server_with_default_limits_loses_no_racing_call_and_no_connection() {
    let Some(python) = peer().await else { return };
    let calls = env::var("WARDKEEP_RACING_CALLS").map_or(3_000, |calls| calls.parse().unwrap());
    let hedged = Policy::Hedged { delay: HedgeDelay::Fixed(Duration::from_millis(1)), max_attempts: 2 };
    for policy in [Policy::All(2), hedged] {
        let mut server = Command::new(&python);
        server.arg(path("server.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut server = server.spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let line = in_time(60, "starting the server", lines.next_line()).await.unwrap().unwrap();
        let uri = format!("http://{}", line.strip_prefix("listening on ").expect(&line));
        // Two members, and so two connections; each is the other's rival.
        let channel = Replicated::builder()
            .members([Member::new("a", &uri).stranger(), Member::new("b", &uri).stranger()])
            .policy_for(FIND, policy)
            .restraint(Restraint::default().step_down(false).hedge_budget(1.0, 1_000))
            .build()
            .unwrap();
        assert_eq!(race(&channel, calls).await, 0, "{policy:?}");
        let stats = channel.stats();
        channel.close().await;
        drop(server.stdin.take());
        let told = in_time(60, "the server's word", lines.next_line()).await.unwrap().unwrap();
        eprintln!("{policy:?}: {told}; {stats:?}");
        // No connection broke and no attempt went out twice, which it would have for a GOAWAY.
        assert_eq!((stats.connections, stats.transparent), (2, 0), "{policy:?}: {stats:?}");
        assert_eq!(stats.attempts, 2 * stats.calls, "{policy:?}: {stats:?}");
        let cancelled = told.strip_prefix(&format!("answered {calls}, cancelled ")).expect(&told);
        // The others were cancelled before their handlers had begun.
        assert!(cancelled.parse::<usize>().unwrap() > calls / 2, "{policy:?}: {told}");
        assert!(in_time(60, "the server's end", server.wait()).await.unwrap().success());
    }
}
