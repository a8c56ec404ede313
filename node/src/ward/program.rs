//! What a process ward runs, and how.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::Stdio, time::Duration};

use nix::sys::signal::Signal;
use tokio::process::Command;
use wardkeep_proto::Error;

use super::{orphan, output::OutputLimits, probe::Probe, sd_notify};
use crate::error::NodeError;

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
    pub(super) notify: bool,
    watchdog: Option<Duration>,
    pub(super) stop_signal: Signal,
    pub(super) stops_children: bool,
    pub(crate) output: OutputLimits,
    pub(super) captures: usize,
    pub(super) probe: Option<Probe>,
}

const ENDS_NOTHING: [Signal; 6] =
    [Signal::SIGSTOP, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGCONT, Signal::SIGCHLD];

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
            stops_children: false,
            output: OutputLimits::default(),
            captures: 16 * 1024 * 1024,
            probe: None,
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

    /// The signal that asks it to stop, by name (`SIGINT` or `INT`); by default SIGTERM. After the ward's
    /// grace SIGKILL follows.
    ///
    /// # Errors
    /// [`NodeError::Misconfigured`] if there is no such signal, or it ends no program.
    pub fn stop_signal(mut self, name: &str) -> Result<Self, Error> {
        let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
        let found = full.parse().ok().filter(|signal| !ENDS_NOTHING.contains(signal));
        self.stop_signal = found.ok_or_else(|| {
            let why =
                format!("{name:?} is not a signal that ends a program, such as \"SIGTERM\" or \"SIGINT\"");
            Error::from(NodeError::Misconfigured(why))
        })?;
        Ok(self)
    }

    /// The stop signal goes to the program alone, which stops its own children; by default it goes to
    /// all processes of its group. What is left of the group when the program has ended, or its grace is
    /// over, is killed in either case.
    #[must_use]
    pub fn stops_its_children(mut self) -> Self {
        self.stops_children = true;
        self
    }

    /// How much of what it prints is kept for `wardkeep ward logs`: so many lines, and so many bytes, what
    /// lines take beside their text included. By default 1,000 lines and 256 KiB.
    #[must_use]
    pub fn keeps_output(mut self, lines: usize, bytes: usize) -> Self {
        self.output = OutputLimits { lines, bytes };
        self
    }

    /// Of what it prints, [`WardContext::run`](crate::WardContext::run) hands back so many bytes of each stream; the
    /// rest is read and thrown away. By default 16 MiB.
    #[must_use]
    pub fn captures(mut self, bytes: usize) -> Self {
        self.captures = bytes;
        self
    }

    /// It serves gRPC health (`grpc.health.v1`) at this URI (`http://host:port`), for this service (empty: the
    /// server as a whole). It is asked every second and has 500 ms to answer: it is ready at its first
    /// SERVING, and each SERVING is a pulse; anything else is none. Its ward then has a pulse timeout, by
    /// default three times what lies between two pulses.
    ///
    /// # Errors
    /// The URI is none.
    pub fn probe(mut self, uri: &str, service: impl Into<String>) -> Result<Self, Error> {
        self.probe = Some(Probe::new(uri, service.into())?);
        Ok(self)
    }

    /// How often the [probe](Self::probe) asks, and how long it waits for an answer.
    ///
    /// # Errors
    /// [`NodeError::Misconfigured`] if either is 0, or there is no probe.
    pub fn probes_every(mut self, interval: Duration, timeout: Duration) -> Result<Self, Error> {
        let wrong = |why: &str| Error::from(NodeError::Misconfigured(why.to_owned()));
        let Some(probe) = &mut self.probe else { return Err(wrong("there is no probe to have an interval")) };
        if interval.is_zero() || timeout.is_zero() {
            return Err(wrong("interval and timeout of a probe must be longer than nothing"));
        }
        (probe.interval, probe.timeout) = (interval, timeout);
        Ok(self)
    }

    /// The pulse timeout it has unless told otherwise.
    pub(super) fn default_pulse_timeout(&self) -> Option<Duration> {
        self.probe.as_ref().map(|probe| probe.longest_pause().saturating_mul(3))
    }

    /// What does not go together.
    pub(super) fn check(&self, pulse_timeout: Option<Duration>) -> Result<(), String> {
        let Some(probe) = &self.probe else { return Ok(()) };
        if self.notify {
            return Err("it has a probe and notifies: one of them says when it is ready".to_owned());
        }
        let pause = probe.longest_pause();
        match pulse_timeout {
            Some(timeout) if timeout <= pause => Err(format!(
                "pulse_timeout ({timeout:?}) must be longer than its probe's interval and timeout together ({pause:?})"
            )),
            _ => Ok(()),
        }
    }

    /// As systemd does, tells the program how often it must pulse.
    pub(super) fn pulses_within(&mut self, timeout: Duration) {
        self.watchdog = Some(timeout);
    }

    /// To be started by the keeper's thread, with which it ends.
    pub(super) fn command(&self, notify: Option<&sd_notify::Socket>) -> Command {
        let mut command = self.errand();
        if let Some(timeout) = self.watchdog.filter(|_| self.probe.is_none()) {
            command.env("WATCHDOG_USEC", timeout.as_micros().to_string());
        }
        if let Some(socket) = notify {
            command.env("NOTIFY_SOCKET", socket.path());
        }
        orphan::dies_with_its_node(&mut command);
        orphan::hears(&mut command, self.stop_signal);
        command
    }

    /// To be started by any thread.
    pub(super) fn errand(&self) -> Command {
        let mut command = Command::new(&self.path);
        for key in NOT_INHERITED {
            command.env_remove(key);
        }
        command.args(&self.args).envs(&self.env).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.process_group(0);
        command
    }

    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }
}
