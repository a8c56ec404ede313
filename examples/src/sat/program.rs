//! Runs an external program for one request. The program leads a process group of its own; the whole group is killed
//! when the run is dropped (its caller has gone, its deadline has passed, its ward was stopped) and when the node
//! ends, however that ends.

use std::{
    collections::BTreeSet, ffi::OsString, io, os::unix::process::ExitStatusExt as _, path::Path,
    process::Stdio, time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, SysconfVar, sysconf},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::Instant,
};

/// Becomes the program. Beside it, in its group, waits what kills the group when the pipe to the node closes; it is no
/// child of the program, which may wait for its children.
const SHELL: &str = r#"
exec 3<&0 </dev/null
({ read -r _; kill -s KILL 0; } <&3 >/dev/null 2>&1 &)
exec "$@" 3<&-
"#;
/// Most that is kept of what a program prints to its standard error.
const MOST_COMPLAINTS: usize = 4 * 1024;

/// A program that has ended by itself.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, or the signal that ended it.
    pub ended: Result<i32, Signal>,
    /// What it printed to its standard output.
    pub printed: Vec<u8>,
    /// The beginning of what it printed to its standard error.
    pub complained: String,
    /// How long it ran.
    pub wall: Duration,
    /// What it used of the processors.
    pub cpu: Duration,
}

/// A process group, killed when this is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

/// Runs a program to its end. Drop the future to kill it.
///
/// # Errors
/// It cannot be started, or prints more than `most_printed` bytes.
pub async fn run(program: &Path, args: &[OsString], most_printed: usize) -> io::Result<Finished> {
    let began = Instant::now();
    // Found out here: the shell would tell by an exit code that could be the program's own.
    if !program.is_file() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such file"));
    }
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SHELL, "sh"]).arg(program).args(args).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (pid, _group) = group(&child)?;
    let _open_while_this_lives = child.stdin.take();
    let (printed, complained) = (child.stdout.take(), child.stderr.take());
    let (printed, complained) = tokio::try_join!(read(printed, most_printed), read_start(complained))?;
    // Its output has ended, so it has, or does now: it is still there to be asked until it is waited for.
    let cpu = cpu_time(pid);
    let status = child.wait().await?;
    let signal = status.signal().and_then(|signal| Signal::try_from(signal).ok());
    Ok(Finished {
        ended: status.code().ok_or(signal.unwrap_or(Signal::SIGKILL)),
        printed,
        complained,
        wall: began.elapsed(),
        cpu,
    })
}

fn group(child: &Child) -> io::Result<(i32, Group)> {
    let pid = child.id().ok_or_else(|| io::Error::other("it has ended already"))?.cast_signed();
    Ok((pid, Group(Pid::from_raw(pid))))
}

async fn read(stream: Option<impl AsyncRead + Unpin>, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(most as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it prints more than {most} bytes")));
    }
    Ok(bytes)
}

/// Reads all of it, for a full pipe would stop the program, and keeps the start.
async fn read_start(stream: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut start = Vec::new();
    (&mut stream).take(MOST_COMPLAINTS as u64).read_to_end(&mut start).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&start).trim().to_owned())
}

fn cpu_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let ticks = stat.and_then(|stat| Stat::parse(&stat)).map_or(0, |stat| stat.cpu_ticks);
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// What is needed of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    zombie: bool,
    parent: i32,
    group: i32,
    cpu_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name before may have spaces and parentheses of its own.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            zombie: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            cpu_ticks: number(11)? + number(12)?,
        })
    }
}

/// The process groups of the programs that these nodes, processes of this machine, run now: node and group.
pub fn groups_of(nodes: &[u32]) -> Vec<(u32, i32)> {
    let leads = |(pid, stat): (i32, Stat)| {
        let parent = u32::try_from(stat.parent).ok().filter(|parent| nodes.contains(parent))?;
        (stat.group == pid).then_some((parent, pid))
    };
    alive().filter_map(leads).collect()
}

/// Which of these process groups have anything left. What has ended, and was only not yet waited for, is gone.
pub fn left_of(groups: &[i32]) -> BTreeSet<i32> {
    alive().map(|(_, stat)| stat.group).filter(|group| groups.contains(group)).collect()
}

/// All processes that run.
fn alive() -> impl Iterator<Item = (i32, Stat)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = Stat::parse(&std::fs::read_to_string(entry.path().join("stat")).ok()?)?;
        (!stat.zombie).then_some((pid, stat))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, most: usize) -> io::Result<Finished> {
        run(Path::new("/bin/sh"), &["-c".into(), script.into()], most).await
    }

    #[tokio::test]
    async fn what_a_program_prints_and_how_it_ends_is_told() {
        let finished = sh("echo yes; echo no >&2; exit 10", 100).await.unwrap();
        assert_eq!(finished.ended, Ok(10));
        assert_eq!((finished.printed.as_slice(), finished.complained.as_str()), (&b"yes\n"[..], "no"));
        assert_eq!(sh("kill -s TERM $$", 0).await.unwrap().ended, Err(Signal::SIGTERM));
    }

    #[tokio::test]
    async fn a_program_that_prints_too_much_or_is_not_there_is_an_error() {
        assert!(sh("yes", 1_000).await.unwrap_err().to_string().contains("more than 1000 bytes"));
        assert!(run(Path::new("/no/such/solver"), &[], 0).await.is_err());
    }

    #[tokio::test]
    async fn its_processor_time_is_counted() {
        let finished =
            sh("while :; do read -r stat </proc/$$/stat; set -- $stat; [ ${14} -lt 3 ] || exit 0; done", 0);
        assert!(finished.await.unwrap().cpu >= Duration::from_millis(1));
    }

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = Stat::parse("12 (a) b) (c) Z 3 4 5 0 -1 0 0 0 0 0 21 2 0 0").unwrap();
        assert_eq!(stat, Stat { zombie: true, parent: 3, group: 4, cpu_ticks: 23 });
        for garbage in ["", "1 (a", "1 (a) R", "1 (a) R x 4 5 0 -1 0 0 0 0 0 21 2", "1 (a) R 3 4 5 0 0"] {
            assert_eq!(Stat::parse(garbage), None, "{garbage:?}");
        }
    }
}
