//! Processes of the suite: found by a mark in their environment, so that none is left, whoever started it.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Outcome, Trying as _};

/// Marks the processes of one cluster.
pub const MARK: &str = "WARDKEEP_FAULTS_RUN";
/// The PID of the suite's process: those of its cluster end when it has.
pub const PARENT: &str = "WARDKEEP_FAULTS_PARENT";
/// How often they look.
const LOOK: Duration = Duration::from_millis(250);

/// Sends a signal.
///
/// # Errors
/// There is no such process.
pub fn signal(pid: u32, signal: Signal) -> Outcome<()> {
    kill(Pid::from_raw(pid.cast_signed()), signal).trying(format!("{signal} to process {pid}"))
}

/// The processes that carry this mark.
pub fn marked(run: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={run}").into_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let carries = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
    };
    pids.filter(|pid| *pid != std::process::id()).filter(carries).collect()
}

/// Kills what carries this mark, until nothing does.
pub fn kill_marked(run: &str) {
    // A supervisor may be launching just now: those are found the next time.
    for _ in 0..100 {
        let left = marked(run);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = signal(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends this process when the suite's has ended, however it did, and with it those of its cluster: one that
/// is frozen cannot see to it itself.
pub fn end_with_the_suite() {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|pid| pid.parse::<u32>().ok()) else { return };
    std::thread::spawn(move || {
        while fs::exists(format!("/proc/{parent}")).unwrap_or(false) {
            std::thread::sleep(LOOK);
        }
        if let Ok(run) = std::env::var(MARK) {
            kill_marked(&run);
        }
        std::process::exit(1);
    });
}

/// Waits until the suite that this one is a part of has ended. Without one: forever.
pub async fn suite_ended() {
    let Some(parent) = std::env::var(PARENT).ok() else { return std::future::pending().await };
    while fs::exists(format!("/proc/{parent}")).unwrap_or(false) {
        tokio::time::sleep(LOOK).await;
    }
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory.
    pub bytes: u64,
    /// Open file descriptors.
    pub files: usize,
    /// Threads.
    pub threads: usize,
    /// User and system time.
    pub cpu: Duration,
}

/// What a process uses now; nothing if there is none.
pub fn usage(pid: u32) -> Usage {
    let of = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = of("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    // After the name, which is in brackets and may have spaces: utime and stime are the 12th and 13th.
    let stat = of("stat");
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Usage {
        bytes: field("VmRSS:") * 1024,
        files: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
        threads: usize::try_from(field("Threads:")).unwrap_or(0),
        // USER_HZ is 100 on every Linux there is.
        cpu: Duration::from_millis(ticks * 10),
    }
}
