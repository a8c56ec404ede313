//! The guard: a small process beside the node that ends what the node would leave behind, were it
//! killed. The kernel ends the programs themselves then (`orphan.rs`), but not what they have started.
//!
//! It is a shell in a process group of its own, deaf to signals, that reads which groups there are
//! from a pipe. A program that begins has a mark in its environment, of which the guard hears before: the node may be killed
//! before it gets a turn to say which group it is. When the node's end of the pipe closes, however the node ended, it sends SIGKILL to
//! every group that is still listed, and ends. A clean end leaves it nothing to do.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Display,
    io::{self, ErrorKind, PipeWriter, Write as _},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use uuid::Uuid;

/// Reads `? MARK` of what is about to begin, `+ GROUP` once it has, and `- GROUP`. An incomplete last line is not heeded.
/// The pipe does not end before what was begun has its own environment: until then it is that process, too, that holds
/// the pipe open.
const SCRIPT: &str = r#"
set -f
trap '' HUP INT QUIT TERM PIPE ALRM USR1 USR2 TSTP TTIN TTOU
groups=' ' mark=
while read -r sign group; do
  case $sign in
  '?') mark=$group ;;
  +) groups="$groups$group " mark= ;;
  -) case $groups in *" $group "*) groups="${groups%%" $group "*} ${groups#*" $group "}" ;; esac ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
[ "$mark" ] || exit 0
set +f
grep -lzxF "WARDKEEP_PROGRAM=$mark" /proc/[0-9]*/environ | while IFS=/ read -r _ _ leader _; do
  kill -s KILL -- "-$leader"
done
"#;
/// Which start of a program a process descends from.
const MARK: &str = "WARDKEEP_PROGRAM";
const SHELL: &str = "/bin/sh";
/// For a guard that has nothing left to do to end.
const PATIENCE: Duration = Duration::from_secs(1);
/// Groups that are remembered when they have ended: what is left of them is reaped a moment later.
const PAST: usize = 256;
/// A guard that ends by itself is replaced so often.
const REPLACEMENTS: u32 = 5;

/// See the [module](self). Started with the first program.
#[derive(Debug, Default)]
pub(crate) struct Guard(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    groups: BTreeSet<i32>,
    /// The last of those that have ended.
    past: VecDeque<i32>,
    post: Option<Post>,
    lost: u32,
    /// There can be none.
    vain: bool,
}

/// A guard that runs.
#[derive(Debug)]
struct Post {
    shell: Child,
    pipe: PipeWriter,
    /// What the pipe had no room for.
    unwritten: Vec<u8>,
}

/// A program's process group, from its start on. What is left of it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Group {
    id: Pid,
    guard: Arc<Guard>,
}

impl Guard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program that leads a group of its own. Until it is known here nobody can ask whether it is: else
    /// one that ends at once might be reaped as an orphan.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(self: &Arc<Self>, mut command: Command) -> io::Result<(Child, Group)> {
        let mark = Uuid::now_v7();
        let mut state = self.state();
        state.mount();
        state.tell('?', mark);
        let child = command.env(MARK, mark.to_string()).spawn()?;
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok());
        let leader = leader.ok_or_else(|| io::Error::other("it cannot be watched"))?;
        state.groups.insert(leader);
        state.tell('+', leader);
        drop(state);
        Ok((child, Group { id: Pid::from_raw(leader), guard: self.clone() }))
    }

    /// Writes what had to wait, and replaces a guard that has ended. To be called now and then.
    pub(crate) fn tend(&self) {
        let mut state = self.state();
        if let Some(post) = &mut state.post {
            let ended = !matches!(post.shell.try_wait(), Ok(None));
            if ended || post.flush().is_err() {
                state.replace();
            }
        }
    }

    /// Whether a child of this process is the guard or a program, and so not for others to reap.
    pub(crate) fn knows(&self, pid: i32) -> bool {
        let state = self.state();
        let shell = state.post.as_ref().and_then(|post| post.shell.id());
        state.groups.contains(&pid) || shell.is_some_and(|shell| i64::from(shell) == i64::from(pid))
    }

    /// Whether this group is, or was, a program's.
    pub(crate) fn knows_group(&self, group: i32) -> bool {
        let state = self.state();
        state.groups.contains(&group) || state.past.contains(&group)
    }

    /// Dismisses the guard and waits for its end. It ends what is still listed.
    pub(crate) async fn dismiss(&self) {
        let Some(Post { mut shell, pipe, .. }) = self.state().post.take() else { return };
        drop(pipe);
        if timeout(PATIENCE, shell.wait()).await.is_err() {
            let _ = shell.start_kill();
            let _ = timeout(PATIENCE, shell.wait()).await;
        }
    }
}

impl State {
    fn mount(&mut self) {
        if self.post.is_some() || self.vain {
            return;
        }
        match Post::start(&self.groups) {
            Ok(post) => self.post = Some(post),
            Err(error) => {
                self.vain = true;
                // With PID 1 the kernel ends everything else in its namespace.
                if std::process::id() != 1 {
                    tracing::warn!(
                        "cannot start {SHELL} ({error}): if this node is killed, what its programs have started \
                         lives on; install {SHELL} or run the node as PID 1"
                    );
                }
            }
        }
    }

    fn tell(&mut self, sign: char, of: impl Display) {
        let Some(post) = &mut self.post else { return };
        // A write to memory does not fail.
        let _ = writeln!(post.unwritten, "{sign} {of}");
        if post.flush().is_err() {
            self.replace();
        }
    }

    fn replace(&mut self) {
        // What is left of the old one is reaped by the runtime.
        self.post = None;
        self.lost += 1;
        if self.lost > REPLACEMENTS {
            self.vain = true;
            tracing::warn!("the guard has ended {} times: there will be no other", self.lost);
            return;
        }
        tracing::warn!("the guard has ended: another takes its place");
        self.mount();
    }
}

impl Post {
    fn start(groups: &BTreeSet<i32>) -> io::Result<Self> {
        let (read, pipe) = io::pipe()?;
        // Nothing here may wait for the guard. Both ends are closed where a program is executed.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut unwritten = Vec::new();
        for group in groups {
            let _ = writeln!(unwritten, "+ {group}");
        }
        // Before there is a reader, so that it knows them even if this process is killed at once.
        write(&pipe, &mut unwritten)?;
        let shell = Command::new(SHELL)
            .args(["-c", SCRIPT, "wardkeep-guard"])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(read))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { shell, pipe, unwritten })
    }

    fn flush(&mut self) -> io::Result<()> {
        write(&self.pipe, &mut self.unwritten)
    }
}

/// Writes as much as the pipe takes. An error: nobody reads it any more.
fn write(mut pipe: &PipeWriter, text: &mut Vec<u8>) -> io::Result<()> {
    while !text.is_empty() {
        match pipe.write(text) {
            Ok(written) => drop(text.drain(..written)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Group {
    pub(super) fn id(&self) -> Pid {
        self.id
    }

    /// Sends a signal to all processes of the group; none may be left.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = killpg(self.id, signal);
    }

    /// Sends a signal to its leader. Not after that has been waited for.
    pub(super) fn signal_leader(&self, signal: Signal) {
        let _ = kill(self.id, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let mut state = self.guard.state();
        state.groups.remove(&self.id.as_raw());
        if state.past.len() >= PAST {
            state.past.pop_front();
        }
        state.past.push_back(self.id.as_raw());
        state.tell('-', self.id.as_raw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleepers() -> Command {
        let mut command = Command::new(SHELL);
        command.args(["-c", "sleep 1000 & sleep 1000 & wait"]).process_group(0).kill_on_drop(true);
        command
    }

    fn group_of_sleepers() -> (Child, Pid) {
        let child = sleepers().spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap().cast_signed());
        (child, pid)
    }

    #[tokio::test]
    async fn what_is_listed_ends_with_the_pipe_and_what_is_not_lives_on() {
        let guard = Arc::new(Guard::default());
        let (mut kept, kept_id) = group_of_sleepers();
        let (mut ended, ended_id) = group_of_sleepers();
        guard.state().mount();
        for (id, sign) in [(kept_id, '+'), (ended_id, '+'), (kept_id, '-')] {
            guard.state().tell(sign, id.as_raw());
        }
        guard.dismiss().await;
        assert!(!timeout(Duration::from_secs(10), ended.wait()).await.unwrap().unwrap().success());
        assert!(kept.try_wait().unwrap().is_none());
        killpg(kept_id, Signal::SIGKILL).unwrap();
    }

    /// As when its node is killed as soon as it has begun.
    #[tokio::test]
    async fn a_program_that_its_node_had_no_time_to_list_ends_and_none_that_began_before_or_elsewhere() {
        let guard = Arc::new(Guard::default());
        guard.state().mount();
        let marks = [(); 3].map(|()| Uuid::now_v7());
        let mut begun = marks.map(|mark| sleepers().env(MARK, mark.to_string()).spawn().unwrap());
        guard.state().tell('?', marks[0]);
        guard.state().tell('+', i32::MAX);
        guard.state().tell('-', i32::MAX);
        guard.state().tell('?', marks[1]);
        guard.dismiss().await;
        let ended = timeout(Duration::from_secs(10), begun[1].wait()).await.unwrap().unwrap();
        assert!(!ended.success());
        for other in [0, 2] {
            assert!(begun[other].try_wait().unwrap().is_none());
            killpg(Pid::from_raw(begun[other].id().unwrap().cast_signed()), Signal::SIGKILL).unwrap();
        }
    }

    #[tokio::test]
    async fn a_guard_that_was_killed_is_replaced_and_knows_all_groups() {
        let guard = Arc::new(Guard::default());
        let (mut child, group) = guard.start(sleepers()).unwrap();
        let id = group.id();
        let first = guard.state().post.as_ref().unwrap().shell.id().unwrap();
        kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL).unwrap();
        let replaced = async {
            while guard.state().post.as_ref().and_then(|post| post.shell.id()) == Some(first) {
                guard.tend();
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), replaced).await.unwrap();
        assert!(guard.knows(id.as_raw()) && !guard.knows(first.cast_signed()));
        guard.dismiss().await;
        timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        drop(group);
    }

    #[tokio::test]
    async fn a_guard_that_does_not_read_holds_nobody_up() {
        let guard = Arc::new(Guard::default());
        guard.state().mount();
        let shell = guard.state().post.as_ref().unwrap().shell.id().unwrap();
        let shell = Pid::from_raw(shell.cast_signed());
        kill(shell, Signal::SIGSTOP).unwrap();
        // No such group can be.
        for _ in 0..20_000 {
            guard.state().tell('+', i32::MAX);
            guard.state().tell('-', i32::MAX);
        }
        assert!(!guard.state().post.as_ref().unwrap().unwritten.is_empty());
        kill(shell, Signal::SIGCONT).unwrap();
        let caught_up = async {
            while !guard.state().post.as_ref().unwrap().unwritten.is_empty() {
                guard.tend();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), caught_up).await.unwrap();
        guard.dismiss().await;
    }
}
