//! What becomes of programs and of what they started when their node ends, is killed, or begins anew,
//! and of orphans that a node inherits. All with node processes of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{supervisor::*, *};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Child,
};
use wardkeep_proto::{
    duration,
    v1::{self, command::Kind, node_message::Kind as Up},
};

/// A program that starts two children and a grandchild, and tells all their PIDs.
const GROVE: &str = "sleep 1000 & a=$!; sleep 1000 & b=$!; \
    (sleep 1000 & echo $! > $D/c; wait) & \
    until test -s $D/c; do :; done; \
    echo $$ $a $b $! $(cat $D/c) > $D/pids.new; mv $D/pids.new $D/pids; wait";

fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace().map(str::to_owned).collect())
}

fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}

async fn until(mut seen: impl FnMut() -> bool) {
    while !seen() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn pids(dir: &Path) -> Vec<u32> {
    let file = dir.join("pids");
    until(|| file.exists()).await;
    let pids = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Its children, with whether they are zombies.
fn children(of: u32) -> BTreeSet<(u32, bool)> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    all.filter_map(|pid| stat(pid).filter(|f| f[1] == of.to_string()).map(|f| (pid, f[0] == "Z"))).collect()
}

fn node_with(script: &str, dir: &Path, more: &[(&str, &str)]) -> Child {
    example_with("process_node", |command| {
        command.env("SCRIPT", script).env("D", dir).envs(more.iter().copied());
    })
}

fn send(to: u32, signal: Signal) {
    kill(Pid::from_raw(to.cast_signed()), signal).unwrap();
}

#[tokio::test]
async fn what_programs_have_started_ends_when_their_node_is_killed() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let mut node = node_with(GROVE, dir.path(), &[]);
        let grove = pids(dir.path()).await;
        assert_eq!(grove.len(), 5);
        let helpers = children(node.id().unwrap());
        assert_eq!(helpers.len(), 2, "the program and the guard: {helpers:?}");
        assert!(grove.iter().all(|pid| alive(*pid)));
        node.start_kill().unwrap();
        node.wait().await.unwrap();
        until(|| !grove.iter().any(|pid| alive(*pid))).await;
        // Neither does the guard outlive its purpose.
        until(|| !helpers.iter().any(|(pid, _)| alive(*pid))).await;
    })
    .await;
}

#[tokio::test]
async fn a_node_that_ends_cleanly_leaves_neither_programs_nor_a_guard() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let mut node = node_with(GROVE, dir.path(), &[]);
        let grove = pids(dir.path()).await;
        let helpers = children(node.id().unwrap());
        send(node.id().unwrap(), Signal::SIGTERM);
        assert!(node.wait().await.unwrap().success());
        // It waited for them: they are gone by now, not soon.
        assert!(!helpers.iter().any(|(pid, _)| alive(*pid)), "{helpers:?}");
        until(|| !grove.iter().any(|pid| alive(*pid))).await;
    })
    .await;
}

#[tokio::test]
async fn a_restart_in_place_leaves_no_zombie_and_has_a_guard_again() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let mut supervisor = FakeSupervisor::start().await;
        let mut node = node_with(GROVE, dir.path(), &[("SUPERVISOR", &supervisor.uri)]);
        let (mut session, _) = supervisor.session().await;
        let before = pids(dir.path()).await;
        session.welcome(1, Duration::from_secs(5)).await;
        let drain_timeout = Some(duration(Duration::from_millis(500)));
        session.command(1, Kind::RestartNode(v1::RestartNode { drain_timeout })).await.unwrap();
        session.find(|up| matches!(up, Up::Goodbye(_)).then_some(())).await;
        session.closed().await;
        drop(session);
        let (session, _) = supervisor.session().await;
        session.welcome(2, Duration::from_secs(5)).await;
        let after = pids(dir.path()).await;
        until(|| !before.iter().any(|pid| alive(*pid))).await;
        let now = children(node.id().unwrap());
        assert_eq!(now.len(), 2, "a program and a guard: {now:?}");
        assert!(now.iter().all(|(_, zombie)| !zombie), "{now:?}");
        node.start_kill().unwrap();
        node.wait().await.unwrap();
        until(|| !after.iter().any(|pid| alive(*pid))).await;
    })
    .await;
}

#[tokio::test]
async fn a_guard_that_was_killed_is_replaced() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let mut node = node_with(GROVE, dir.path(), &[]);
        let grove = pids(dir.path()).await;
        let id = node.id().unwrap();
        let helpers = children(id);
        let (guard, _) = *helpers.iter().find(|(pid, _)| *pid != grove[0]).unwrap();
        send(guard, Signal::SIGKILL);
        until(|| {
            let now = children(id);
            now.len() == 2 && !now.iter().any(|(pid, zombie)| *pid == guard || *zombie)
        })
        .await;
        node.start_kill().unwrap();
        node.wait().await.unwrap();
        until(|| !grove.iter().any(|pid| alive(*pid))).await;
    })
    .await;
}

/// Looks at all processes take a hundredth of the time: on a busy machine they are far apart.
async fn patiently<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(4 * PATIENCE, test).await.expect("the test hangs")
}

/// What it has started, in another session, ends after it: it is inherited. It itself ends with 3, which is what
/// the node must learn.
const LEAVES_ORPHANS: &str = "test -e $D/once && exec sleep 1000; touch $D/once; \
    setsid sh -c 'for i in 1 2 3; do \
        sh -c \"echo \\$\\$ >> $D/orphans; until test -e $D/go; do sleep 0.01; done\" & done'; \
    until test $(wc -l < $D/orphans) = 3; do :; done; exit 3";

async fn reaps_its_orphans(mut node: Child, id: u32, dir: &Path) {
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let address = lines.next_line().await.unwrap().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    until(|| fs::read_to_string(dir.join("orphans")).is_ok_and(|text| text.lines().count() == 3)).await;
    // Three that escaped, a guard, and the program's next incarnation.
    until(|| children(id).len() == 5).await;
    fs::write(dir.join("go"), "").unwrap();
    until(|| {
        let now = children(id);
        now.len() == 2 && now.iter().all(|(_, zombie)| !zombie)
    })
    .await;
    send(id, Signal::SIGTERM);
    assert!(node.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_subreaper_reaps_the_orphans_it_inherits_and_still_learns_how_its_programs_end() {
    patiently(async {
        let dir = tempfile::tempdir().unwrap();
        let node = node_with(LEAVES_ORPHANS, dir.path(), &[("SUBREAPER", "1")]);
        let id = node.id().unwrap();
        reaps_its_orphans(node, id, dir.path()).await;
    })
    .await;
}

#[tokio::test]
async fn children_that_the_program_around_a_node_started_are_left_to_it() {
    patiently(async {
        let dir = tempfile::tempdir().unwrap();
        let mut node = node_with(LEAVES_ORPHANS, dir.path(), &[("SUBREAPER", "1"), ("OWN", "1")]);
        let id = node.id().unwrap();
        let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
        // They have ended before the orphans do.
        until(|| children(id).iter().filter(|(_, zombie)| *zombie).count() == 2).await;
        let own: Vec<_> = children(id).into_iter().filter(|(_, zombie)| *zombie).collect();
        until(|| fs::read_to_string(dir.path().join("orphans")).is_ok_and(|text| text.lines().count() == 3))
            .await;
        until(|| children(id).len() == 7).await;
        fs::write(dir.path().join("go"), "").unwrap();
        until(|| children(id).len() <= 4).await;
        assert!(own.iter().all(|child| children(id).contains(child)), "{own:?}, {:?}", children(id));
        send(id, Signal::SIGTERM);
        let address = lines.next_line().await.unwrap().unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "Some(7) Some(8)");
        assert!(node.wait().await.unwrap().success());
    })
    .await;
}

#[tokio::test]
async fn as_pid_1_of_a_namespace_it_leaves_nothing_at_all() {
    let unshare = || {
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).kill_on_drop(true);
        command
    };
    if !unshare().arg("true").status().await.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no PID namespace can be had");
        return;
    }
    patiently(async {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let program = program.parent().unwrap().parent().unwrap().join("examples/process_node");
        let mut command = unshare();
        command.arg(program).env("SCRIPT", LEAVES_ORPHANS).env("D", dir.path());
        let node = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let outer = node.id().unwrap();
        until(|| children(outer).len() == 1).await;
        let (id, _) = children(outer).pop_first().unwrap();
        reaps_its_orphans(node, id, dir.path()).await;
    })
    .await;
}
