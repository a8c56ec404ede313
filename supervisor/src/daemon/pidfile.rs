//! Which process a launched node is, kept where the next supervisor finds it: a supervisor that was
//! killed leaves its nodes running, and they are not to be launched twice.
//!
//! A process is known by its PID and the time it began, so that a PID used again is not taken for
//! it. A node that re-executes itself in place stays the same process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A process of this machine, at one time of its use of PIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// In the kernel's own count; empty where there is no `/proc`.
    born: String,
}

impl Process {
    /// The process that has this PID now.
    pub(super) fn of(pid: u32) -> Self {
        Self { pid, born: state_and_birth(pid).map(|(_, born)| born).unwrap_or_default() }
    }

    /// In the place of a process that could not be started.
    pub(super) fn none() -> Self {
        Self { pid: 0, born: String::new() }
    }

    /// Whether it still runs.
    pub(super) fn lives(&self) -> bool {
        let Some(pid) = self.target() else { return false };
        match state_and_birth(self.pid) {
            // Z, X: it has ended, and waits for its parent to take note.
            Some((state, born)) => born == self.born && !matches!(state, 'Z' | 'X'),
            None => self.born.is_empty() && kill(pid, None).is_ok(),
        }
    }

    /// Sends a signal, if it still runs.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.target().filter(|_| self.lives()) {
            // It may have ended by itself meanwhile.
            let _ = kill(pid, signal);
        }
    }

    fn target(&self) -> Option<Pid> {
        i32::try_from(self.pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
    }
}

/// From `/proc/PID/stat`, where the program's name stands in parentheses and may contain anything.
fn state_and_birth(pid: u32) -> Option<(char, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.to_owned()))
}

fn path(dir: &Path, node: &str) -> PathBuf {
    dir.join(format!("{node}.pid"))
}

/// Remembers which process a node is.
pub(super) fn remember(dir: &Path, node: &str, process: &Process) -> io::Result<()> {
    let beside = dir.join(format!("{node}.pid.new"));
    fs::write(&beside, format!("{} {}\n", process.pid, process.born))?;
    fs::rename(beside, path(dir, node))
}

/// The process has ended.
pub(super) fn forget(dir: &Path, node: &str) {
    // If it stays, it names a process that does not live.
    let _ = fs::remove_file(path(dir, node));
}

/// The process of a node that a supervisor before us launched, if it still runs.
pub(super) fn survivor(dir: &Path, node: &str) -> Option<Process> {
    let text = fs::read_to_string(path(dir, node)).ok()?;
    let (pid, born) = text.trim_end_matches('\n').split_once(' ')?;
    let process = Process { pid: pid.parse().ok()?, born: born.to_owned() };
    process.lives().then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(survivor(dir.path(), "n"), None);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id());
        remember(dir.path(), "n", &process).unwrap();
        assert_eq!(survivor(dir.path(), "n"), Some(process.clone()));
        process.signal(Signal::SIGKILL);
        child.wait().unwrap();
        assert!(!process.lives());
        assert_eq!(survivor(dir.path(), "n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_process_under_the_same_pid_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("n.pid"), format!("{} 1\n", std::process::id())).unwrap();
        assert_eq!(survivor(dir.path(), "n"), None);
        for damaged in ["", "x y", "1 ", "-1 5", "0 0"] {
            fs::write(dir.path().join("n.pid"), damaged).unwrap();
            assert_eq!(survivor(dir.path(), "n"), None, "{damaged:?}");
        }
    }
}
