//! Process wards: an external program in a process group of its own. Stopping one sends the stop
//! signal to the whole group, then SIGKILL. What it prints goes to the node's log, line by line.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use nix::sys::signal::Signal;
use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessGroup};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::Command,
    time::timeout,
};
use wardkeep_proto::v1;

use super::{Ended, StopSignal, ordered_to_stop, orphan, sd_notify};
use crate::{context::Incarnation, error::NodeError};

/// After SIGKILL the kernel ends a process at once, unless it hangs in the kernel itself.
const REAP_PATIENCE: Duration = Duration::from_secs(2);
/// A line of output longer than this is cut.
const LONGEST_LINE: usize = 4_096;

/// A program and how to run it.
///
/// ```
/// use wardkeep_node::Program;
/// let solver = Program::new("/usr/bin/minisat").arg("-verb=0").env("TMPDIR", "/tmp");
/// ```
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    dir: Option<PathBuf>,
    notify: bool,
    watchdog: Option<Duration>,
    stop_signal: Signal,
}

/// What a service manager told the node itself, and is not for its programs.
const NOT_INHERITED: [&str; 8] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_FDS_FIRST_FD",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    crate::reexec::HELD,
];

impl Program {
    /// A program by path, or by name to be found on `PATH`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            dir: None,
            notify: false,
            watchdog: None,
            stop_signal: Signal::SIGTERM,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable, beside those of the node.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(key.into(), value.into());
        self
    }

    /// Its working directory; by default the node's.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// It is ready when it says `READY=1` (sd_notify), not when it has been started.
    #[must_use]
    pub fn notifies(mut self) -> Self {
        self.notify = true;
        self
    }

    /// As systemd does, tells the program how often it must pulse.
    pub(super) fn pulses_within(&mut self, timeout: Duration) {
        self.watchdog = Some(timeout);
    }

    fn command(&self, notify: Option<&sd_notify::Socket>) -> CommandWrap {
        let mut command = Command::new(&self.path);
        for key in NOT_INHERITED {
            command.env_remove(key);
        }
        if let Some(timeout) = self.watchdog {
            command.env("WATCHDOG_USEC", timeout.as_micros().to_string());
        }
        command.args(&self.args).envs(&self.env).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        if let Some(socket) = notify {
            command.env("NOTIFY_SOCKET", socket.path());
        }
        orphan::dies_with_its_node(&mut command);
        let mut command = CommandWrap::from(command);
        command.wrap(ProcessGroup::leader());
        command
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

pub(super) async fn run(
    program: Arc<Program>,
    incarnation: Arc<Incarnation>,
    mut stop: StopSignal,
    ready: impl FnOnce() + Send,
) -> Ended {
    let cannot_start = |source| {
        let error = NodeError::CannotStart { program: program.name(), source };
        Ended::new(v1::ExitKind::StartFailed).because(error.into())
    };
    let mut socket = match sd_notify::Socket::open() {
        Ok(socket) => socket,
        Err(source) => return cannot_start(source),
    };
    let mut child = match program.command(Some(&socket)).spawn() {
        Ok(child) => child,
        Err(source) => return cannot_start(source),
    };
    let output = futures_util::future::join(
        log_lines(incarnation.clone(), "stdout", child.stdout().take()),
        log_lines(incarnation.clone(), "stderr", child.stderr().take()),
    );
    let mut output = std::pin::pin!(output.map(drop).fuse());
    let (mut ready, mut listening) = (Some(ready), true);
    if !program.notify
        && let Some(ready) = ready.take()
    {
        ready();
    }
    let grace = loop {
        tokio::select! {
            status = child.wait() => {
                // Grandchildren that outlived the leader go with it.
                let _ = child.signal(Signal::SIGKILL as i32);
                let _ = timeout(Duration::from_millis(200), &mut output).await;
                return ended(&program, status);
            }
            said = socket.next(), if listening => match said {
                Ok(said) => heed(said, &incarnation, &mut ready),
                Err(error) => {
                    tracing::warn!(ward = %incarnation.ward, %error, "notifications can no longer be read");
                    listening = false;
                }
            },
            () = &mut output => {}
            grace = ordered_to_stop(&mut stop) => break grace,
        }
    };
    incarnation.stop.cancel();
    stop_group(&program, child, grace, output).await
}

fn heed(said: Vec<sd_notify::Message>, incarnation: &Incarnation, ready: &mut Option<impl FnOnce()>) {
    use sd_notify::Message;
    for message in said {
        match message {
            Message::Ready => {
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            Message::Pulse => incarnation.heart.pulse(),
            Message::Status(text) => drop(incarnation.status.send_replace(text)),
            Message::Stopping => drop(incarnation.status.send_replace("stopping".to_owned())),
        }
    }
}

async fn stop_group(
    program: &Program,
    mut child: Box<dyn ChildWrapper>,
    grace: Duration,
    mut output: impl Future<Output = ()> + Unpin,
) -> Ended {
    let _ = child.signal(program.stop_signal as i32);
    let ended_well = {
        let patience = tokio::time::sleep(grace);
        let mut patience = std::pin::pin!(patience);
        let mut drained = false;
        loop {
            tokio::select! {
                _ = child.wait() => break true,
                () = &mut output, if !drained => drained = true,
                () = &mut patience => break false,
            }
        }
    };
    // The rest of the group, or all of it.
    let _ = child.signal(Signal::SIGKILL as i32);
    if ended_well || timeout(REAP_PATIENCE, child.wait()).await.is_ok() {
        return Ended::new(v1::ExitKind::Stopped);
    }
    let rest = async move { drop(child.wait().await) };
    Ended { rest: Some(Box::pin(rest)), ..Ended::new(v1::ExitKind::Abandoned) }
}

fn ended(program: &Program, status: std::io::Result<std::process::ExitStatus>) -> Ended {
    match status {
        Ok(status) if status.success() => Ended::new(v1::ExitKind::Done),
        Ok(status) => {
            let error = NodeError::ProgramEnded { program: program.name(), status: status.to_string() };
            Ended::new(v1::ExitKind::Failed).because(error.into())
        }
        Err(e) => {
            let error = NodeError::ProgramEnded { program: program.name(), status: e.to_string() };
            Ended::new(v1::ExitKind::Failed).because(error.into())
        }
    }
}

async fn log_lines(
    incarnation: Arc<Incarnation>,
    stream: &'static str,
    from: Option<impl AsyncRead + Unpin>,
) {
    let Some(from) = from else { return };
    let mut reader = BufReader::with_capacity(LONGEST_LINE, from);
    let mut line = Vec::with_capacity(256);
    loop {
        let Ok(available) = reader.fill_buf().await else { return };
        if available.is_empty() {
            if !line.is_empty() {
                log_line(&incarnation, stream, &line);
            }
            return;
        }
        let end = available.iter().position(|b| *b == b'\n');
        let take = end.unwrap_or(available.len());
        line.extend_from_slice(&available[..take.min(LONGEST_LINE.saturating_sub(line.len()))]);
        reader.consume(end.map_or(take, |end| end + 1));
        if end.is_some() {
            log_line(&incarnation, stream, &line);
            line.clear();
        }
    }
}

fn log_line(incarnation: &Incarnation, stream: &'static str, line: &[u8]) {
    tracing::info!(target: "ward", ward = %incarnation.ward, incarnation = incarnation.number, stream,
        "{}", String::from_utf8_lossy(line));
}
