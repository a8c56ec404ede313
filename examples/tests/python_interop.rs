//! A peer that shares no code with us (Python's grpcio, stubs generated from our .proto files) gets
//! along with a node: calls, streams, health, reflection, errors, deadlines.
//!
//! It needs the packages of `interop/python/requirements.txt`, in the Python that `WARDKEEP_PYTHON`
//! names or in `python3`. Without them the tests say so and pass, unless `WARDKEEP_CI=1`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{env, ffi::OsString, io::Write as _, path::PathBuf, process::Output};

use support::{Trouble, in_time};
use tokio::process::Command;

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

/// Runs one of our scripts against a node of its own; the node must outlive it.
async fn run(script: &str, log_filter: &str) {
    let python = match python().await {
        Ok(python) => python,
        Err(why) if env::var_os("WARDKEEP_CI").is_some_and(|value| value == "1") => {
            panic!("cannot run against a Python peer: {why}")
        }
        Err(why) => {
            // Past the capture of test output: nobody should take this for a run that passed.
            let line = format!("skipped: no Python peer: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return;
        }
    };
    let mut node = Trouble::start(&[], log_filter).await;
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../interop/python", script].iter().collect();
    let mut check = Command::new(python);
    check.arg(path).arg(&node.address).kill_on_drop(true);
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
