//! The suite itself: however it ends, nothing that it started is left.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::{fs, process::Stdio, time::Duration};

use nix::sys::signal::Signal;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use wardkeep_faults::process::{self, PARENT};

/// A hang is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Processes of the cluster of this suite: supervisor, nodes, their programs and what guards those.
fn of_suite(pid: u32) -> Vec<u32> {
    let wanted = format!("{PARENT}={pid}").into_bytes();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let carries = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
    };
    pids.filter(carries).collect()
}

/// A suite in the middle of a fault: its cluster runs.
async fn begun(report: &str) -> (Child, u32) {
    let child = Command::new(env!("CARGO_BIN_EXE_wardkeep-faults"))
        // It lasts: nothing of it ends by itself meanwhile.
        .args(["hang-node", "--report", report])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = child.id().unwrap();
    let all = async {
        // A supervisor, three nodes and their three programs, at least.
        while of_suite(pid).len() < 7 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("the cluster does not start");
    (child, pid)
}

async fn nothing_is_left(pid: u32) {
    let none = async {
        while !of_suite(pid).is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = timeout(PATIENCE, none).await;
    assert!(ended.is_ok(), "still run: {:?}", of_suite(pid));
}

#[tokio::test]
async fn when_it_is_killed_its_cluster_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (mut suite, pid) = begun(dir.path().join("report.json").to_str().unwrap()).await;
    process::signal(pid, Signal::SIGKILL).unwrap();
    suite.wait().await.unwrap();
    nothing_is_left(pid).await;
}

#[tokio::test]
async fn when_it_is_interrupted_its_cluster_has_ended_before_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let (mut suite, pid) = begun(dir.path().join("report.json").to_str().unwrap()).await;
    process::signal(pid, Signal::SIGINT).unwrap();
    let status = timeout(PATIENCE, suite.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(of_suite(pid), Vec::<u32>::new());
}

#[tokio::test]
async fn a_fault_that_there_is_not_is_refused_in_one_line() {
    let done = Command::new(env!("CARGO_BIN_EXE_wardkeep-faults")).arg("kill-moon").output().await.unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("kill-moon") && said.contains("--list"), "{said}");
}
