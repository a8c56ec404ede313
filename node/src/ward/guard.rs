//! The guard: a small process beside the node that ends what the node would leave behind, were it
//! killed. The kernel ends the programs themselves then (`orphan.rs`), but not what they have started.
//!
//! It is a shell in a process group of its own, deaf to signals, that reads which groups there are
//! from a pipe. A program that begins says so itself, before it can start anything: its node may be killed before it
//! gets a turn. When the node's end of the pipe closes, however the node ended, it sends SIGKILL to
//! every group that is still listed, and ends. A clean end leaves it nothing to do.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, ErrorKind, PipeWriter, Write as _},
    os::fd::AsRawFd as _,
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

use super::orphan;

/// Reads `+ GROUP` and `- GROUP` of the node, and `? GROUP` of a program that is about to begin, which a `+` of the
/// same group follows, or a `!` if it could not. An incomplete last line is not heeded.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM PIPE ALRM USR1 USR2 TSTP TTIN TTOU
groups=' ' begins=
while read -r sign group; do
  case $sign in
  '?') begins=$group ;;
  '!') begins= ;;
  +) groups="$groups$group "; [ "$begins" != "$group" ] || begins= ;;
  -) case $groups in *" $group "*) groups="${groups%%" $group "*} ${groups#*" $group "}" ;; esac ;;
  esac
done
for group in $groups $begins; do kill -s KILL -- "-$group"; done
"#;
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
        let mut state = self.state();
        state.mount();
        if let Some(post) = &state.post {
            // It stays open: the command is gone before the state may change.
            orphan::announces_itself(&mut command, post.pipe.as_raw_fd());
        }
        let started = command.spawn();
        drop(command);
        let child = started.inspect_err(|_| state.tell('!', 0))?;
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

    fn tell(&mut self, sign: char, group: i32) {
        let Some(post) = &mut self.post else { return };
        // A write to memory does not fail.
        let _ = writeln!(post.unwritten, "{sign} {group}");
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
    async fn a_program_that_its_node_had_no_time_to_list_ends_all_the_same() {
        let guard = Arc::new(Guard::default());
        guard.state().mount();
        let mut command = sleepers();
        orphan::announces_itself(&mut command, guard.state().post.as_ref().unwrap().pipe.as_raw_fd());
        let mut child = command.spawn().unwrap();
        guard.dismiss().await;
        assert!(!timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap().success());
    }

    #[tokio::test]
    async fn what_could_not_begin_or_is_listed_by_then_is_not_ended_for_having_said_that_it_begins() {
        let guard = Arc::new(Guard::default());
        let (mut first, first_id) = group_of_sleepers();
        let (mut second, second_id) = group_of_sleepers();
        guard.state().mount();
        for (sign, group) in
            [('?', first_id), ('!', Pid::from_raw(0)), ('?', second_id), ('+', second_id), ('-', second_id)]
        {
            guard.state().tell(sign, group.as_raw());
        }
        guard.dismiss().await;
        for (child, id) in [(&mut first, first_id), (&mut second, second_id)] {
            assert!(child.try_wait().unwrap().is_none());
            killpg(id, Signal::SIGKILL).unwrap();
        }
    }

    #[tokio::test]
    async fn a_program_that_announces_itself_to_a_guard_that_has_gone_begins_all_the_same() {
        let (read, pipe) = io::pipe().unwrap();
        drop(read);
        let mut command = Command::new(SHELL);
        command.args(["-c", "kill -s PIPE $$"]).process_group(0);
        orphan::announces_itself(&mut command, pipe.as_raw_fd());
        let ended = timeout(Duration::from_secs(10), command.spawn().unwrap().wait()).await.unwrap().unwrap();
        // What is written into a pipe that nobody reads ends it, as ever.
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(Signal::SIGPIPE as i32));
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
