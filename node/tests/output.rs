//! What programs print. Alone in its binary, because a process has one log.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::sync::{Arc, Mutex};

use support::*;
use wardkeep_node::{Program, Restart, Ward};
use wardkeep_proto::v1::WardState;

fn sh(script: &str) -> Program {
    Program::new("sh").args(["-c", script])
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_program_prints_is_logged_line_by_line_and_long_lines_are_cut() {
    let lines = Lines::default();
    let writer = lines.clone();
    let _ = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).try_init();
    within(async {
        let script = "echo from stdout; echo from stderr >&2; printf %09000d 7; echo; printf 'no newline'";
        let node = node([Ward::process("prints", sh(script)).restart(Restart::Temporary)]).await;
        node.until(|now| {
            find(now, "prints").state() == WardState::Stopped && find(now, "prints").incarnation == 1
        })
        .await;
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let line =
            |what: &str| text.lines().find(|l| l.contains(what)).unwrap_or_else(|| panic!("{what}: {text}"));
        assert!(
            line("from stdout").contains("stream=\"stdout\"") && line("from stdout").contains("ward=prints")
        );
        assert!(line("from stderr").contains("stream=\"stderr\""));
        assert!(line("000000").len() < 4_500);
        line("no newline");
        node.stop().await;
    })
    .await;
}
