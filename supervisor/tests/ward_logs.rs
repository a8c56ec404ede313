//! `wardkeep ward logs`, over the supervisor's sessions with its nodes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod binary;
mod fleet_support;

use std::{fs, path::Path, process::Stdio, time::Duration};

use binary::wardkeep;
use fleet_support::*;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use tonic::Streaming;
use wardkeep_node::{Program, Ward};
use wardkeep_proto::{
    error::Code,
    v1::{self, node_message::Kind as Up, steward_message::Kind as Down},
};

fn watch(node: &str, ward: &str, follow: bool) -> v1::WatchOutputRequest {
    v1::WatchOutputRequest { node: node.into(), ward: ward.into(), follow, newest: 0 }
}

async fn watching(sup: &Sup, node: &str, ward: &str, follow: bool) -> Streaming<v1::WardOutput> {
    sup.operator.clone().watch_output(watch(node, ward, follow)).await.unwrap().into_inner()
}

/// The next lines' texts, and how many were dropped before them.
async fn page(stream: &mut Streaming<v1::WardOutput>) -> (Vec<String>, u64) {
    let page = stream.message().await.unwrap().expect("the stream ended");
    (page.lines.into_iter().map(|line| line.text).collect(), page.dropped)
}

/// A node with a process ward `p`.
fn printer(boot: u128) -> v1::Hello {
    let mut hello = hello("n", &["p", "s"]);
    hello.wards[0].spec.as_mut().unwrap().kind = v1::WardKind::Process.into();
    let boot = uuid::Builder::from_unix_timestamp_millis(u64::try_from(boot).unwrap(), &[1; 10]).into_uuid();
    hello.node.as_mut().unwrap().boot_id = boot.to_string();
    hello
}

async fn question(node: &mut FakeNode) -> v1::ReadOutput {
    loop {
        if let Some(Down::ReadOutput(asked)) = node.down.message().await.unwrap().unwrap().kind {
            return asked;
        }
    }
}

async fn answer(node: &FakeNode, id: u64, lines: std::ops::RangeInclusive<u64>, dropped: u64, newest: u64) {
    let line = |sequence: u64| v1::OutputLine { sequence, text: sequence.to_string(), ..Default::default() };
    let lines = lines.map(line).collect();
    node.send(Up::Output(v1::Output { id, lines, dropped, newest_sequence: newest, error: None })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_is_asked_for_page_by_page_and_follows_over_sessions_and_lives_of_the_node() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let (mut node, _) = FakeNode::attend(&sup, printer(1)).await.unwrap();
        let _reports = node.keep_reporting();
        let mut stream = watching(&sup, "n", "p", true).await;
        let asked = question(&mut node).await;
        assert_eq!((asked.slot, asked.after_sequence, asked.wait.unwrap().seconds), (0, 0, 0));
        answer(&node, asked.id, 3..=4, 2, 5).await;
        assert_eq!(page(&mut stream).await, (vec!["3".to_owned(), "4".to_owned()], 2));
        let asked = question(&mut node).await;
        assert_eq!(asked.after_sequence, 4);
        // No news is no page, and an answer that nobody asked for is nothing.
        answer(&node, 999, 1..=1, 0, 1).await;
        answer(&node, asked.id, std::ops::RangeInclusive::new(1, 0), 0, 4).await;
        let asked = question(&mut node).await;
        assert_eq!(asked.after_sequence, 4);
        assert!(asked.wait.unwrap().seconds >= 5);
        answer(&node, asked.id, 5..=5, 0, 5).await;
        assert_eq!(page(&mut stream).await, (vec!["5".to_owned()], 0));
        question(&mut node).await;

        // Another session of the same life: where it was.
        drop((node, _reports));
        let (mut node, _) = FakeNode::attend(&sup, printer(1)).await.unwrap();
        let _reports = node.keep_reporting();
        assert_eq!(question(&mut node).await.after_sequence, 5);
        // Another life: from its beginning.
        drop((node, _reports));
        let (mut node, _) = FakeNode::attend(&sup, printer(2)).await.unwrap();
        let _reports = node.keep_reporting();
        let asked = question(&mut node).await;
        assert_eq!(asked.after_sequence, 0);
        answer(&node, asked.id, 1..=1, 0, 1).await;
        assert_eq!(page(&mut stream).await, (vec!["1".to_owned()], 0));
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_output_is_said_and_readers_are_limited() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let (node, _) = FakeNode::attend(&sup, printer(1)).await.unwrap();
        let refused = async |node: &str, ward: &str| {
            let status = watching(&sup, node, ward, true).await.message().await.unwrap_err();
            let error = error(&status);
            (error.code(), error.what().to_owned())
        };
        assert_eq!(refused("x", "p").await.0, Code::NotFound);
        assert_eq!(refused("n", "x").await.0, Code::NotFound);
        let (code, what) = refused("n", "s").await;
        assert_eq!(code, Code::FailedPrecondition);
        assert!(what.starts_with("n/s is no process ward"), "{what}");

        let mut readers = Vec::new();
        while readers.len() < 64 {
            readers.push(watching(&sup, "n", "p", true).await);
        }
        let full = sup.operator.clone().watch_output(watch("n", "p", true)).await.unwrap_err();
        assert_eq!(error(&full).code(), Code::ResourceExhausted);
        // Who has gone makes room.
        readers.clear();
        while sup.operator.clone().watch_output(watch("n", "p", true)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A node that is away cannot be asked.
        drop(node);
        sup.node("n", |n| !n.attending).await;
        assert_eq!(refused("n", "p").await.0, Code::FailedPrecondition);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_a_flood_is_told_what_it_missed_and_holds_nothing_up() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let flood = Program::new("sh").args(["-c", "yes 0123456789"]).keeps_output(2_000, 1 << 20);
        let builder = attending(&sup, "n").ward(Ward::process("p", flood).grace(Duration::from_millis(200)));
        let (_, _node) = real_node(builder).await;
        sup.runs("n", "p", 1).await;
        // These never read.
        let mut idle = Vec::new();
        for _ in 0..8 {
            idle.push(watching(&sup, "n", "p", true).await);
        }
        let mut stream = watching(&sup, "n", "p", true).await;
        let (mut last, mut seen, mut missed) = (0, 0, 0);
        while missed == 0 || seen < 5_000 {
            let page = stream.message().await.unwrap().unwrap();
            missed += page.dropped;
            seen += page.lines.len() as u64;
            last = page.lines.last().map_or(last, |line| line.sequence);
            assert_eq!(seen + missed, last, "each line is either told or counted");
        }
        // All else goes on.
        let mut operator = sup.operator.clone();
        operator.restart_ward(of_ward("n", "p")).await.unwrap();
        sup.runs("n", "p", 2).await;
        assert!(sup.node("n", |n| n.attending).await.attending);
    }))
    .await;
}

// --- the command itself ---

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

fn command(args: &[&str]) -> Command {
    let mut command = wardkeep();
    command.args(args).stdin(Stdio::null());
    command
}

fn follow(args: &[&str]) -> Process {
    let mut child = command(args).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    Process { child, lines }
}

async fn run(args: &[&str]) -> (i32, String, String) {
    let output = command(args).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("node.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_reads_and_follows_what_a_program_of_a_node_prints() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let dir = tempfile::tempdir().unwrap();
        let script = "printf 'a\\033[31mb\\n'; echo wrong >&2; until test -e $D/go; do sleep 0.01; done; rm $D/go; exit 1";
        let config = config(
            dir.path(),
            &format!(
                "name = \"n\"\n[[ward]]\nname = \"p\"\ncommand = [\"sh\", \"-c\", {script:?}]\nenv = {{ D = {:?} }}\n",
                dir.path()
            ),
        );
        let serve = ["serve", "node", "--config", &config, "--listen", "127.0.0.1:0", "--supervisor", &sup.uri];
        let mut node = command(&serve).stderr(Stdio::null()).spawn().unwrap();
        sup.runs("n", "p", 1).await;
        let logs = |more: &[&'static str]| {
            [&["ward", "logs", "p", "--supervisor", sup.uri.as_str()], more].concat()
        };
        let mut following = follow(&logs(&["-f"]));
        let mut next = async || following.lines.next_line().await.unwrap().unwrap();
        // Two streams have no order between them.
        let mut first = [next().await, next().await];
        first.sort_by_key(|line| line.contains("wrong"));
        assert!(first[0].ends_with("Z #1 out a\u{fffd}[31mb"), "{first:?}");
        assert!(first[1].ends_with("Z #1 err wrong"), "{first:?}");
        fs::write(dir.path().join("go"), "").unwrap();
        let mut second = [next().await, next().await];
        second.sort_by_key(|line| line.contains("wrong"));
        assert!(second[1].ends_with("Z #2 err wrong"), "{second:?}");

        let (code, out, err) = run(&logs(&["-o", "json"])).await;
        assert_eq!((code, err.as_str()), (0, ""));
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&json["schema"], &json["ward"]), (&"wardkeep.output/v1".into(), &"n/p".into()));
        assert_eq!(json["lines"].as_array().unwrap().len(), 4);
        let (_, out, _) = run(&logs(&["-o", "jsonl", "-n", "1"])).await;
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&line["sequence"], &line["incarnation"]), (&4.into(), &2.into()));
        let (_, out, _) = run(&logs(&["-o", "name", "-n", "4"])).await;
        assert!(out.lines().any(|line| line == "a\u{1b}[31mb") && out.lines().count() == 4, "{out:?}");

        // What it uses is shown when it has been looked at.
        let used = sup.ward("n", "p", |ward| ward.usage.is_some_and(|usage| usage.processes >= 1)).await.usage.unwrap();
        assert!(used.resident_bytes > 0 && used.pid > 0 && used.at.is_some());
        let (_, out, _) = run(&["ward", "show", "p", "--supervisor", &sup.uri]).await;
        assert!(out.contains("uses") && out.contains("PID "), "{out}");
        let (_, out, _) = run(&["ward", "show", "p", "--supervisor", &sup.uri, "-o", "json"]).await;
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(json["ward"]["usage"]["resident_bytes"].as_u64().unwrap() > 0, "{out}");

        kill(Pid::from_raw(following.child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
        assert_eq!(following.child.wait().await.unwrap().code(), Some(130));
        kill(Pid::from_raw(node.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(node.wait().await.unwrap().success());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ward_that_is_no_process_gets_one_clear_line() {
    within(async {
        let sup = supervisor(quick()).await;
        let (_, _node) = real_node(attending(&sup, "n").ward(calm("c"))).await;
        sup.runs("n", "c", 1).await;
        let (code, out, err) = run(&["ward", "logs", "c", "--supervisor", &sup.uri]).await;
        assert_eq!((code, out.as_str(), err.lines().count()), (2, "", 1));
        assert!(err.contains("n/c is no process ward"), "{err}");
    })
    .await;
}
