//! Programs that are run for one request, or one unit of work: they end with it.

use std::{fs, process::ExitStatus, sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _,
    future::{FusedFuture as _, join},
};
use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::{Pid, SysconfVar, sysconf},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Child,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use wardkeep_proto::Error;

use super::{Program, guard::Group};
use crate::{calls::Attempt, context::WardContext, error::NodeError};

/// For what it printed last. Who has left its group may hold its output open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Processes whose time is looked at when a program is killed.
const MOST_PROCESSES: usize = 64;

/// What a program that has ended leaves. See [`WardContext::run`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, 16 MiB at most unless [told otherwise](Program::captures).
    pub stdout: Vec<u8>,
    /// What it printed besides, no more than that.
    pub stderr: Vec<u8>,
    /// It printed more than was kept.
    pub cut: bool,
    /// User and system time of its own, and of what it started and waited for, to the 10 ms of the kernel's clock.
    pub cpu: Duration,
}

/// A program that runs. What is left of its group is killed when this is dropped.
struct Errand {
    child: Child,
    group: Option<Group>,
    attempt: Option<Arc<Attempt>>,
}

impl Errand {
    /// Waits for its end, and leaves it there to be asked what it used.
    async fn ended(&self, deaths: &mut Signal) {
        while self.child.id().is_some_and(|pid| !has_ended(pid)) {
            if deaths.recv().await.is_none() {
                return;
            }
        }
    }

    /// What it used; its call is told. Only one that has not been waited for can be asked.
    fn used(&self) -> Duration {
        let used = self.child.id().map(processor_time).unwrap_or_default();
        if let Some(attempt) = &self.attempt {
            attempt.worked(used);
        }
        used
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.used();
        drop(self.group.take());
    }
}

/// Runs it to its end, however long that takes.
pub(crate) async fn run(context: &WardContext, program: &Program) -> Result<Output, Error> {
    if context.is_cancelled() {
        return Err(NodeError::Cancelled.into());
    }
    let cannot = |source| Error::from(NodeError::CannotStart { program: program.name(), source });
    // Before it starts, so that its end is not missed.
    let mut deaths = signal(SignalKind::child()).map_err(cannot)?;
    let (child, group) = context.of_incarnation().home.guard.start(program.errand()).map_err(cannot)?;
    let mut errand = Errand { child, group: Some(group), attempt: context.attempt() };
    let (out, err) = (errand.child.stdout.take(), errand.child.stderr.take());
    let (mut stdout, mut stderr) = (Kept::up_to(program.captures), Kept::up_to(program.captures));
    let (ended, cpu) = {
        let mut reading = std::pin::pin!(join(stdout.read(out), stderr.read(err)).fuse());
        loop {
            tokio::select! {
                biased;
                () = context.cancelled() => return Err(NodeError::Cancelled.into()),
                () = errand.ended(&mut deaths) => break,
                _ = &mut reading, if !reading.is_terminated() => {}
            }
        }
        let cpu = errand.used();
        let ended = errand.child.wait().await;
        // Grandchildren that outlived it go with it.
        drop(errand);
        if !reading.is_terminated() {
            let _ = timeout(LAST_WORDS, &mut reading).await;
        }
        (ended, cpu)
    };
    let status = ended.map_err(|e| {
        Error::from(NodeError::ProgramEnded { program: program.name(), status: e.to_string() })
    })?;
    Ok(Output { status, cut: stdout.cut || stderr.cut, stdout: stdout.bytes, stderr: stderr.bytes, cpu })
}

/// The beginning of a stream; the rest is read and thrown away.
struct Kept {
    bytes: Vec<u8>,
    most: usize,
    cut: bool,
}

impl Kept {
    fn up_to(most: usize) -> Self {
        Self { bytes: Vec::new(), most, cut: false }
    }

    /// Reads to the end; an error is one.
    async fn read(&mut self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            let room = n.min(self.most - self.bytes.len());
            self.bytes.extend_from_slice(&chunk[..room]);
            self.cut |= room < n;
        }
    }
}

/// Whether a child is dead, or not there: then there is nothing to wait for either.
fn has_ended(pid: u32) -> bool {
    let dead = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    !matches!(waitid(Id::Pid(Pid::from_raw(pid.cast_signed())), dead), Ok(WaitStatus::StillAlive))
}

/// What this process, its children and theirs have used so far, as far as the kernel tells.
fn processor_time(pid: u32) -> Duration {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u32::try_from(n).ok());
    let ticks = ticks.filter(|n| *n > 0).unwrap_or(100);
    let (mut due, mut seen, mut used) = (vec![pid.to_string()], 0, 0_u64);
    while let Some(pid) = due.pop().filter(|_| seen < MOST_PROCESSES) {
        seen += 1;
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        // proc(5) counts from 1; after the name comes the third.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let times = fields.split_ascii_whitespace().skip(14 - 3).take(4);
        used += times.filter_map(|time| time.parse::<u64>().ok()).sum::<u64>();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        due.extend(children.split_ascii_whitespace().map(str::to_owned));
    }
    Duration::from_secs(used) / ticks
}
