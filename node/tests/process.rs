//! Process wards: external programs, their notifications, their output, their end.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use support::*;
use wardkeep_node::{Program, Restart, Ward};
use wardkeep_proto::v1::WardState;

fn sh(script: &str) -> Program {
    Program::new("sh").args(["-c", script])
}

fn alive(pid: u32) -> bool {
    // A zombie has ended; whoever should reap it is not our concern.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

async fn until_gone(pid: u32) {
    while alive(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn read_pid(file: &Path) -> u32 {
    loop {
        if let Ok(text) = std::fs::read_to_string(file)
            && let Ok(pid) = text.trim().parse()
            && text.ends_with('\n')
        {
            return pid;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    (folder, file)
}

#[tokio::test]
async fn a_program_that_fails_is_restarted_and_one_that_is_not_there_is_a_clear_error() {
    within(async {
        let (_folder, marker) = folder();
        let once = sh("test -e $M && exec sleep 1000; touch $M; exit 3").env("M", &marker);
        let missing = Program::new("/no/such/program");
        let node = node([
            Ward::process("once", once),
            Ward::process("missing", missing).restart(Restart::Temporary),
        ])
        .await;
        let ward = node.running("once", 2).await;
        assert!(!ward.last_error_id.is_empty());
        let now = node
            .until(|now| {
                find(now, "missing").state() == WardState::Stopped && find(now, "missing").incarnation == 1
            })
            .await;
        let ward = find(&now, "missing");
        assert_eq!(ward.status, "cannot start /no/such/program");
        assert!(!ward.last_error_id.is_empty());
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_after_its_grace_with_all_its_children() {
    within(async {
        let (_folder, file) = folder();
        let script = "trap '' TERM; (trap '' TERM; sleep 1000 & echo $! > $F.new; mv $F.new $F; wait) & \
                      while :; do wait; done";
        let stubborn =
            Ward::process("stubborn", sh(script).env("F", &file)).grace(Duration::from_millis(100));
        let node = node([stubborn]).await;
        node.running("stubborn", 1).await;
        let grandchild = read_pid(&file).await;
        assert!(alive(grandchild));
        node.stop().await;
        until_gone(grandchild).await;
    })
    .await;
}

#[tokio::test]
async fn children_that_outlive_their_program_are_ended_with_it() {
    within(async {
        let (_folder, file) = folder();
        let script = "sleep 1000 & echo $! > $F.new; mv $F.new $F; exit 0";
        let node =
            node([Ward::process("leaves", sh(script).env("F", &file)).restart(Restart::Temporary)]).await;
        let child = read_pid(&file).await;
        node.until(|now| find(now, "leaves").state() == WardState::Stopped).await;
        until_gone(child).await;
        node.stop().await;
    })
    .await;
}

const NOTIFIER: &str = r#"
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
say = lambda text: s.send(text.encode())
period = int(os.environ["WATCHDOG_USEC"]) / 4e6
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.005)
say("READY=1\nSTATUS=up since $WATCHDOG_USEC")
first = not os.path.exists(os.environ["GO"] + ".again")
open(os.environ["GO"] + ".again", "w").close()
for i in range(3 if first else 10**9):
    say("WATCHDOG=1")
    time.sleep(period)
time.sleep(1000)
"#;

#[tokio::test]
async fn a_program_written_for_systemds_watchdog_needs_no_change() {
    if std::process::Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no python3");
        return;
    }
    within(async {
        let (_folder, go) = folder();
        let program = Program::new("python3").args(["-c", NOTIFIER]).env("GO", &go).notifies();
        let node = node([Ward::process("notifier", program)
            .pulse_timeout(Duration::from_millis(600))
            .grace(Duration::from_millis(200))])
        .await;
        node.until(|now| find(now, "notifier").state() == WardState::Starting).await;
        std::fs::write(&go, "").unwrap();
        node.running("notifier", 1).await;
        node.until(|now| find(now, "notifier").status == "up since $WATCHDOG_USEC").await;
        // Its first incarnation falls silent; the second does not.
        node.running("notifier", 2).await;
        node.stop().await;
    })
    .await;
}
