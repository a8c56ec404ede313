//! The launcher `command`: a program that starts a node somewhere else.

use std::{process::Stdio, time::Duration};

use futures_util::{FutureExt as _, future::FusedFuture as _};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::{Instant, timeout},
};

use super::Launch;

/// What steers the supervisor itself is not for its nodes: they would listen where it does.
const OWN_ENVIRONMENT: [&str; 5] =
    ["WARDKEEP_CONFIG", "WARDKEEP_LISTEN", "WARDKEEP_HTTP_LISTEN", "WARDKEEP_DATA_DIR", "WARDKEEP_NAME"];
/// Bytes of the last line a command has said.
const LINE: usize = 512;
/// For what was said last to be read, when the command has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The program of a launch, in a process group of its own: Ctrl-C at the supervisor's terminal is the
/// supervisor's to pass on.
pub(super) fn of(launch: &Launch) -> Command {
    let mut command = Command::new(&launch.program);
    for own in OWN_ENVIRONMENT {
        command.env_remove(own);
    }
    command.args(&launch.args).envs(&launch.env).stdin(Stdio::null()).process_group(0);
    command
}

/// Runs it to its end: what was done, or why it failed. Dropped, its process group is killed.
pub(super) async fn run(launch: Launch, reason: String, patience: Duration) -> Result<String, String> {
    let program = launch.program.display();
    let begun = Instant::now();
    let mut command = of(&launch);
    command.env("WARDKEEP_NODE", &launch.node).env("WARDKEEP_REASON", &reason);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let stderr = child.stderr.take();
    let mut said = LastLine::default();
    let ended = {
        let mut reading = std::pin::pin!(said.read(stderr).fuse());
        let ended = timeout(patience, async {
            tokio::select! {
                ended = child.wait() => ended,
                // It has closed its output, and may go on.
                () = &mut reading => child.wait().await,
            }
        });
        let ended = ended.await;
        if ended.is_ok() && !reading.is_terminated() {
            // What it has left running may hold its output.
            let _ = timeout(LAST_WORDS, reading).await;
        }
        ended
    };
    let said = said.text();
    match ended {
        Ok(ended) => {
            group.let_be();
            match ended {
                Ok(status) if status.success() => {
                    Ok(format!("command has run, in {:.1} s", begun.elapsed().as_secs_f64()))
                }
                Ok(status) => Err(format!("{program} ended with {status}{said}")),
                Err(error) => Err(format!("{program} cannot be waited for: {error}")),
            }
        }
        Err(_) => {
            drop(group);
            // It cannot but end now.
            let _ = timeout(Duration::from_secs(1), child.wait()).await;
            Err(format!(
                "{program} had not ended after {} and was killed{said}",
                humantime::format_duration(patience)
            ))
        }
    }
}

/// A process group that is killed unless its leader has ended.
struct Group(Option<Pid>);

impl Group {
    fn let_be(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended meanwhile.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// The last line that is not empty, and no more than its beginning.
#[derive(Default)]
struct LastLine {
    last: Vec<u8>,
    line: Vec<u8>,
}

impl LastLine {
    async fn read(&mut self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut page = [0; 4_096];
        while let Ok(n @ 1..) = from.read(&mut page).await {
            self.take(&page[..n]);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => self.end_line(),
                byte if self.line.len() < LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.trim_ascii().is_empty() {
            self.last = line;
        }
    }

    /// `: LINE`, or nothing. Control characters would make the log unreadable.
    fn text(mut self) -> String {
        self.end_line();
        let text = String::from_utf8_lossy(&self.last);
        let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        if text.is_empty() { text } else { format!(": {text}") }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::How, *};

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn sh(script: &str, patience: Duration) -> Result<String, String> {
        let launch = Launch {
            node: "n".to_owned(),
            how: How::Command { timeout: patience },
            program: "sh".into(),
            args: ["-c", script].map(Into::into).to_vec(),
            env: BTreeMap::from([("MINE".to_owned(), "x y".to_owned())]),
            socket: Default::default(),
        };
        timeout(2 * PATIENCE, run(launch, "unreachable for 15 s".to_owned(), patience))
            .await
            .expect("it hangs")
    }

    #[tokio::test]
    async fn a_command_knows_the_node_and_the_reason() {
        let script = r#"[ "$WARDKEEP_NODE/$WARDKEEP_REASON/$MINE" = "n/unreachable for 15 s/x y" ]"#;
        sh(script, PATIENCE).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_fails_is_told_with_its_last_words() {
        let error = sh("echo first >&2; printf 'no route to \\033[1mhost\n\n' >&2; exit 3", PATIENCE).await;
        assert_eq!(error.unwrap_err(), "sh ended with exit status: 3: no route to [1mhost");
        assert_eq!(sh("exit 4", PATIENCE).await.unwrap_err(), "sh ended with exit status: 4");
        let mut launch = Launch {
            node: "n".to_owned(),
            how: How::Command { timeout: PATIENCE },
            program: "/does/not/exist".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            socket: Default::default(),
        };
        let error = run(launch.clone(), String::new(), PATIENCE).await.unwrap_err();
        assert!(error.starts_with("cannot run /does/not/exist: No such file"), "{error}");
        launch.program = "/".into();
        assert!(run(launch, String::new(), PATIENCE).await.is_err());
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; echo waiting >&2; wait", file.display());
        let error = sh(&script, Duration::from_millis(1_500)).await.unwrap_err();
        assert_eq!(error, "sh had not ended after 1s 500ms and was killed: waiting");
        let child = std::fs::read_to_string(file).unwrap();
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let gone = async {
            while lives() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("its child lives on");
    }

    #[tokio::test]
    async fn what_it_leaves_running_neither_holds_it_up_nor_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        sh(&format!("sleep 600 & echo $! > {}", file.display()), PATIENCE).await.unwrap();
        let pid = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    }

    #[test]
    fn of_what_was_said_the_beginning_of_the_last_line_is_kept() {
        let mut said = LastLine::default();
        said.take(b"first\nsecond ");
        said.take("x".repeat(2_000).as_bytes());
        said.take(b"\n  \n");
        let text = said.text();
        assert!(text.starts_with(": second xxx") && text.len() <= LINE + 2, "{text}");
        assert_eq!(LastLine::default().text(), "");
    }
}
