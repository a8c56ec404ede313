//! A peer that shares no code with us (Python's grpcio, stubs generated from our .proto files) gets
//! along with a node: calls, streams, health, reflection, errors, deadlines.
//!
//! It needs the packages of `interop/python/requirements.txt`, in the Python that `WARDKEEP_PYTHON`
//! names or in `python3`. Without them the test says so and passes, unless `WARDKEEP_CI=1`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    env,
    ffi::OsString,
    fs::File,
    future::Future,
    io::{Read as _, Seek as _, Write as _},
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

const IMPORTS: &str = "import grpc, grpc_health.v1, grpc_reflection.v1alpha, grpc_status, grpc_tools";

async fn in_time<T>(seconds: u64, what: &str, work: impl Future<Output = T>) -> T {
    let Ok(done) = tokio::time::timeout(Duration::from_secs(seconds), work).await else {
        panic!("{what} took more than {seconds} s");
    };
    done
}

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

/// A node on a port of the system's choice; it ends with the returned child.
async fn trouble(log: File) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trouble"));
    command.args(["--listen", "127.0.0.1:0"]).env_remove("WARDKEEP_SUPERVISOR");
    let mut node = command.stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let line = in_time(30, "starting the node", lines.next_line()).await.unwrap();
    let line = line.expect("the node ended before it listened");
    let address = line.strip_prefix("listening on ").expect(&line).to_owned();
    (node, address)
}

fn report(output: &Output, log: &mut File) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let mut logged = String::new();
    log.rewind().and_then(|()| log.read_to_string(&mut logged)).unwrap();
    format!("{}\n{}\n\nThe node's log:\n{logged}", text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_python_peer_calls_a_node_and_reads_its_errors() {
    let python = match python().await {
        Ok(python) => python,
        Err(why) if env::var_os("WARDKEEP_CI").is_some_and(|value| value == "1") => {
            panic!("cannot run against a Python peer: {why}")
        }
        Err(why) => {
            // Past the capture of test output: nobody should take this for a run that passed.
            writeln!(std::io::stderr(), "skipped: no Python peer: {why}").unwrap();
            return;
        }
    };
    let mut log = tempfile::tempfile().unwrap();
    let (mut node, address) = trouble(log.try_clone().unwrap()).await;
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../interop/python/check.py"].iter().collect();
    let mut check = Command::new(python);
    check.arg(script).arg(&address).kill_on_drop(true);
    let output = in_time(180, "the Python peer", check.output()).await.unwrap();
    assert!(output.status.success(), "{}", report(&output, &mut log));
    let ended = node.try_wait().unwrap();
    assert!(ended.is_none(), "the node ended under the checks: {ended:?}");
}
