//! What a node keeps of what its programs print, and how it tells its supervisor.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use support::{supervisor::*, *};
use wardkeep_node::{Node, Program, Restart, Ward};
use wardkeep_proto::{
    duration,
    v1::{
        self, OutputStream, WardState, command::Kind, node_message::Kind as Up, steward_message::Kind as Down,
    },
};

fn sh(script: &str) -> Program {
    Program::new("sh").args(["-c", script])
}

fn ask(id: u64) -> v1::ReadOutput {
    v1::ReadOutput { id, ..Default::default() }
}

/// After this line; waits for as long as a test may take.
fn ask_after(id: u64, after_sequence: u64) -> v1::ReadOutput {
    v1::ReadOutput { after_sequence, wait: Some(duration(PATIENCE)), ..ask(id) }
}

/// The answer to a question.
async fn told(session: &mut Session, asked: v1::ReadOutput) -> v1::Output {
    session.send(Some(Down::ReadOutput(asked))).await;
    answer(session, asked.id).await
}

async fn answer(session: &mut Session, id: u64) -> v1::Output {
    session
        .find(|up| match up {
            Up::Output(output) if output.id == id => Some(output),
            _ => None,
        })
        .await
}

/// All lines from the first to the one of this text, in as many answers as it takes.
async fn until_line(session: &mut Session, text: &str) -> (Vec<v1::OutputLine>, u64) {
    let (mut lines, mut dropped) = (Vec::<v1::OutputLine>::new(), 0);
    loop {
        let after = lines.last().map_or(0, |line| line.sequence);
        let output = told(session, ask_after(after + 1_000_000, after)).await;
        lines.extend(output.lines);
        dropped += output.dropped;
        if lines.iter().any(|line| line.text == text) {
            return (lines, dropped);
        }
    }
}

async fn attended(ward: Ward) -> (Running, FakeSupervisor, Session) {
    let mut supervisor = FakeSupervisor::start().await;
    let node = start(Node::builder("n").supervisor(&supervisor.uri).ward(ward)).await;
    let (session, _) = supervisor.session().await;
    session.welcome(1, PATIENCE).await;
    (node, supervisor, session)
}

#[tokio::test]
async fn lines_are_told_with_stream_incarnation_and_time_over_restarts() {
    within(async {
        let script = r"echo out; echo err >&2; printf 'bad \377\376 bytes\r\n'; printf '\n'; printf %09000d 7; \
            exec sleep 1000";
        let (node, _supervisor, mut session) = attended(Ward::process("w", sh(script))).await;
        // The last line is not ended, and so not told yet.
        let (mut first, dropped) = until_line(&mut session, "").await;
        while first.len() < 4 {
            first.extend(told(&mut session, ask_after(1, first.last().unwrap().sequence)).await.lines);
        }
        assert_eq!(dropped, 0);
        assert!(first.iter().all(|line| line.incarnation == 1 && line.at.is_some() && !line.cut));
        assert_eq!(first.iter().map(|line| line.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let on = |stream: OutputStream| {
            let of = |line: &&v1::OutputLine| line.stream() == stream;
            first.iter().filter(of).map(|line| line.text.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(on(OutputStream::Stdout), ["out", "bad \u{fffd}\u{fffd} bytes", ""]);
        assert_eq!(on(OutputStream::Stderr), ["err"]);

        let stop = Kind::Stop(v1::StopWard { slot: 0, incarnation: 1, grace: None });
        session.command(1, stop).await.unwrap();
        session.exit().await;
        session.command(1, Kind::Start(v1::StartWard { slot: 0, after_incarnation: 1 })).await.unwrap();
        let mut then = Vec::new();
        while then.len() < 5 {
            let after = 4 + then.len() as u64;
            then.extend(told(&mut session, ask_after(100 + after, after)).await.lines);
        }
        assert_eq!((then[0].incarnation, then[0].text.len(), then[0].cut), (1, 4_096, true));
        assert!(then[1..].iter().all(|line| line.incarnation == 2));
        // The newest only, and at once though there is no more.
        let newest = told(&mut session, v1::ReadOutput { newest: 2, ..ask(7) }).await;
        assert_eq!((newest.lines.len(), newest.dropped, newest.newest_sequence), (2, 0, 9));
        let none = told(&mut session, v1::ReadOutput { after_sequence: 9, ..ask(8) }).await;
        assert!(none.lines.is_empty() && none.error.is_none());
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_question_waits_for_what_is_printed_but_not_for_ever() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let script = "until test -e $D/go; do sleep 0.01; done; echo went; exec sleep 1000";
        let (node, _supervisor, mut session) =
            attended(Ward::process("w", sh(script).env("D", dir.path()))).await;
        let brief = v1::ReadOutput { wait: Some(duration(Duration::from_millis(80))), ..ask(1) };
        let none = told(&mut session, brief).await;
        assert!(none.lines.is_empty() && none.error.is_none() && none.newest_sequence == 0);
        session.send(Some(Down::ReadOutput(ask_after(2, 0)))).await;
        std::fs::write(dir.path().join("go"), "").unwrap();
        assert_eq!(answer(&mut session, 2).await.lines[0].text, "went");
        // More questions than may wait are answered without waiting.
        for id in 100..170 {
            session.send(Some(Down::ReadOutput(ask_after(id, 1)))).await;
        }
        assert!(answer(&mut session, 164).await.lines.is_empty());
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn wards_that_are_no_programs_have_no_output() {
    within(async {
        let idle = Ward::task("t", |context| async move {
            context.cancelled().await;
            Ok(())
        });
        let (node, _supervisor, mut session) = attended(idle).await;
        for slot in [0, 1, u32::MAX] {
            let error = told(&mut session, v1::ReadOutput { slot, ..ask_after(1, 0) }).await.error.unwrap();
            assert!(error.what.contains("no process ward"), "{error:?}");
        }
        node.stop().await;
    })
    .await;
}

/// Prints without end at full speed, to both streams.
const FLOOD: &str = "yes 0123456789 & yes >&2";

#[tokio::test]
async fn a_program_that_floods_its_output_is_bounded_and_holds_nobody_up() {
    within(async {
        let ward = Ward::process("flood", sh(FLOOD).keeps_output(100, 8_192));
        let (node, _supervisor, mut session) = attended(ward).await;
        let output = told(&mut session, ask_after(1, 200_000)).await;
        assert!(output.newest_sequence > 200_000);
        // Reports go on, and orders are obeyed.
        for _ in 0..5 {
            session.report().await;
        }
        let output = told(&mut session, ask(2)).await;
        assert!(output.lines.len() <= 100 && output.dropped > 199_900, "{}", output.dropped);
        assert_eq!(output.lines.last().unwrap().sequence, output.newest_sequence);
        let stop = Kind::Stop(v1::StopWard { slot: 0, incarnation: 1, grace: None });
        session.command(1, stop).await.unwrap();
        assert_eq!(session.exit().await.exit.unwrap().kind(), v1::ExitKind::Stopped);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_last_words_of_a_program_are_kept_also_when_it_is_stopped() {
    within(async {
        let script = "exec 2>/dev/null; trap 'echo bye; printf unfinished; exit 0' TERM; echo up; while :; do sleep 0.01; done";
        let (node, _supervisor, mut session) = attended(Ward::process("w", sh(script))).await;
        until_line(&mut session, "up").await;
        let stop = Kind::Stop(v1::StopWard { slot: 0, incarnation: 1, grace: None });
        session.command(1, stop).await.unwrap();
        session.exit().await;
        let output = told(&mut session, ask(1)).await;
        let texts: Vec<_> = output.lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["up", "bye", "unfinished"]);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_program_that_closes_its_output_or_leaves_it_to_another_is_still_supervised() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        // One that escaped holds the output open for ever; its own ends with the test.
        let escapes = "setsid sh -c 'echo $$ > $D/pid; exec sleep 1000' & \
            until test -s $D/pid; do :; done; printf half; exit 4";
        let closes = "exec >&- 2>&-; until test -e $D/go; do sleep 0.01; done; exit 3";
        let wards = [("closes", closes), ("escapes", escapes)].map(|(name, script)| {
            Ward::process(name, sh(script).env("D", dir.path())).restart(Restart::Temporary)
        });
        let node = node(wards).await;
        node.running("closes", 1).await;
        std::fs::write(dir.path().join("go"), "").unwrap();
        for (ward, status) in
            [("closes", "sh ended with exit status: 3"), ("escapes", "sh ended with exit status: 4")]
        {
            let now = node
                .until(|now| find(now, ward).state() == WardState::Stopped && find(now, ward).failed)
                .await;
            assert_eq!(find(&now, ward).status, status);
        }
        node.stop().await;
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_executed_says_why() {
    use std::os::unix::fs::PermissionsExt as _;
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8], mode| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let forbidden = file("forbidden", b"#!/bin/sh\n", 0o644);
        let busy = file("busy", &std::fs::read("/bin/true").unwrap(), 0o755);
        let _held = std::fs::OpenOptions::new().write(true).open(&busy).unwrap();
        let cases = [
            (dir.path().join("missing"), "No such file"),
            (forbidden, "Permission denied"),
            (busy, "Text file busy"),
        ];
        let ward = |(path, _): &(std::path::PathBuf, _)| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            Ward::process(name, Program::new(path)).restart(Restart::Temporary)
        };
        let mut supervisor = FakeSupervisor::start().await;
        let wards = cases.iter().map(ward);
        let node =
            start(wards.fold(Node::builder("n").supervisor(&supervisor.uri), |node, ward| node.ward(ward)))
                .await;
        let (mut session, _) = supervisor.session().await;
        session.welcome(1, PATIENCE).await;
        for (slot, (path, why)) in (0..).zip(&cases) {
            let after_incarnation = 1;
            session.command(1, Kind::Start(v1::StartWard { slot, after_incarnation })).await.unwrap();
            let exit = session.exit().await.exit.unwrap();
            let error = exit.error.clone().unwrap();
            let told = format!("{} {:?}", error.what, error.causes);
            assert_eq!(exit.kind(), v1::ExitKind::StartFailed, "{path:?}");
            assert!(told.contains(why) && error.what.contains(path.to_str().unwrap()), "{why}: {told}");
        }
        node.stop().await;
    })
    .await;
}
