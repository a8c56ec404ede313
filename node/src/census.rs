//! Looks at the processes of this machine (of this PID namespace), now and then: what the programs of
//! wards use, and which orphans have ended that nobody but this process can reap.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use nix::unistd::{SysconfVar, sysconf};

/// One process, as `/proc/PID/stat` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    zombie: bool,
    /// With the PID, this names a process for good.
    started: u64,
    /// In ticks, of its children that it has waited for, too.
    cpu: u64,
    /// In pages.
    resident: u64,
}

/// All processes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    processes: Vec<Process>,
    /// Children of this process that a thread other than its first has started. The first inherits orphans.
    /// `None`: not known here.
    of_threads: Option<BTreeSet<i32>>,
}

/// What the processes of a group use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// How many there are; those that have ended and are not yet reaped do not count.
    pub(crate) processes: u32,
    /// User and system time of those there are, and of their children that have ended.
    pub(crate) cpu: Duration,
    /// Resident memory in bytes. What they share counts for each of them.
    pub(crate) resident: u64,
}

/// This process, as its children may have it from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Us {
    pub(crate) pid: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
}

/// A process for good: PID and start.
type Name = (i32, u64);

/// What has ended and may be an orphan may also be a child that other code in this process started and waits for
/// later: it is left to that for so long.
const UNSURE: Duration = Duration::from_secs(5 * 60);

/// Ended children of this process, and whether they are for it to reap.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// Since when each was seen dead.
    dead: BTreeMap<Name, Duration>,
    /// Who was seen as a child of others.
    of_others: BTreeSet<Name>,
}

impl Census {
    /// Takes some 10 µs a process: not for a thread that has other things to do.
    pub(crate) fn take() -> Self {
        // Before the processes: a child of a thread that ends in between is the first thread's by then.
        let of_threads = children_of_threads();
        let Ok(entries) = fs::read_dir("/proc") else { return Self::default() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        // One that has gone meanwhile is none.
        let stat = |pid| fs::read(format!("/proc/{pid}/stat")).ok();
        let read = |pid| Process::read(&String::from_utf8_lossy(&stat(pid)?));
        Self { processes: pids.filter_map(read).collect(), of_threads }
    }

    /// What a process group uses.
    pub(crate) fn usage(&self, group: i32) -> Usage {
        let unit = |name, otherwise| {
            sysconf(name)
                .ok()
                .flatten()
                .and_then(|n| u64::try_from(n).ok())
                .filter(|n| *n > 0)
                .unwrap_or(otherwise)
        };
        let (ticks, page) = (unit(SysconfVar::CLK_TCK, 100), unit(SysconfVar::PAGE_SIZE, 4_096));
        let mut usage = Usage::default();
        let mut cpu = 0_u64;
        for process in self.processes.iter().filter(|process| process.group == group) {
            usage.processes += u32::from(!process.zombie);
            cpu = cpu.saturating_add(process.cpu);
            usage.resident = usage.resident.saturating_add(process.resident.saturating_mul(page));
        }
        let millis = u128::from(cpu) * 1_000 / u128::from(ticks);
        usage.cpu = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        usage
    }
}

impl Orphans {
    /// Those that were inherited and that this process alone can reap. Left alone are what `ours` knows, what
    /// other code in this process may have started, and whatever was not seen dead before. `led` knows
    /// the groups of programs; `now` is any clock.
    pub(crate) fn due(
        &mut self,
        census: &Census,
        us: Us,
        now: Duration,
        ours: impl Fn(i32) -> bool,
        led: impl Fn(i32) -> bool,
    ) -> Vec<i32> {
        let child = |p: &&Process| p.parent == us.pid;
        let known = std::mem::take(&mut self.of_others);
        self.of_others = census
            .processes
            .iter()
            .filter(|p| !child(p) || known.contains(&p.name()))
            .map(Process::name)
            .collect();
        let before = std::mem::take(&mut self.dead);
        let dead = census.processes.iter().filter(child).filter(|p| p.zombie && !ours(p.pid));
        let mut due = Vec::new();
        for process in dead {
            let since = before.get(&process.name()).copied();
            self.dead.insert(process.name(), since.unwrap_or(now));
            let inherited = self.of_others.contains(&process.name()) || process.is_inherited(us, &led);
            let of_thread = census.of_threads.as_ref().is_none_or(|all| all.contains(&process.pid));
            let own = process.group == us.group || of_thread;
            let unsure = |since| now.saturating_sub(since) >= UNSURE;
            if since.is_some_and(|since| inherited || (!own && unsure(since))) {
                due.push(process.pid);
            }
        }
        due
    }
}

impl Process {
    fn name(&self) -> Name {
        (self.pid, self.started)
    }

    /// Somebody else must have started it: what this process starts is in its session, or begins one; and
    /// nobody but programs starts others in their groups.
    fn is_inherited(&self, us: Us, led: impl Fn(i32) -> bool) -> bool {
        let session = self.session != us.session && self.session != self.pid;
        session || (self.group != self.pid && led(self.group))
    }
}

/// See [`Census::of_threads`].
fn children_of_threads() -> Option<BTreeSet<i32>> {
    let first = std::process::id().to_string();
    let mut all = BTreeSet::new();
    for thread in fs::read_dir("/proc/self/task").ok()? {
        let thread = thread.ok()?;
        let children = fs::read_to_string(thread.path().join("children"));
        match children {
            Ok(_) if thread.file_name().to_str() == Some(&first) => {}
            Ok(children) => {
                all.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()))
            }
            // It has ended meanwhile, or the kernel does not tell.
            Err(_) if thread.path().exists() => return None,
            Err(_) => {}
        }
    }
    Some(all)
}

impl Process {
    /// `PID (name) state parent group ...`; the name may contain anything.
    fn read(stat: &str) -> Option<Self> {
        let pid = stat.split_once(' ')?.0.parse().ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // proc(5) counts from 1 and the PID; here the state, its third, is the first.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let id = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
        Some(Self {
            pid,
            parent: id(4)?,
            group: id(5)?,
            session: id(6)?,
            zombie: matches!(fields.first(), Some(&"Z" | &"X")),
            started: number(22)?,
            cpu: (14..=17).filter_map(number).fold(0, u64::saturating_add),
            resident: number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;

    use super::*;

    const STAT: &str = "42 (a) b Z (c) S 7 40 40 0 -1 4194304 95 0 0 0 150 50 30 20 20 0 1 0 9001 2560000 300 \
                        18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0";

    fn process(pid: i32, group: i32, zombie: bool) -> Process {
        Process { pid, parent: 1, group, session: 1, zombie, started: 5, cpu: 100, resident: 2 }
    }

    fn census(processes: impl Into<Vec<Process>>) -> Census {
        Census { processes: processes.into(), of_threads: Some([8].into()) }
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let read = Process::read(STAT).unwrap();
        let wanted = Process {
            pid: 42,
            parent: 7,
            group: 40,
            session: 40,
            zombie: false,
            started: 9001,
            cpu: 250,
            resident: 300,
        };
        assert_eq!(read, wanted);
        for broken in ["", "42", "42 (a", "42 (a) S", "x (a) S 7 40"] {
            assert_eq!(Process::read(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_group_uses_what_its_processes_use_together() {
        let census =
            census([process(2, 2, false), process(3, 2, false), process(4, 2, true), process(5, 5, false)]);
        let usage = census.usage(2);
        assert_eq!((usage.processes, usage.resident % (6 * 1_024)), (2, 0));
        assert_eq!(usage.cpu, census.usage(5).cpu * 3);
        assert_eq!(census.usage(9), Usage::default());
        assert!(Census::take().usage(nix::unistd::getpgrp().as_raw()).processes > 0);
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn due(orphans: &mut Orphans, census: &Census, now: u32) -> Vec<i32> {
        let us = Us { pid: 1, group: 1, session: 1 };
        orphans.due(census, us, SECOND * now, |pid| pid == 3, |group| group == 3)
    }

    #[test]
    fn orphans_are_due_when_seen_dead_twice_and_children_of_others_never() {
        let other = Process { parent: 9, ..process(6, 3, true) };
        let census = census([process(2, 3, true), process(3, 3, true), process(5, 3, false), other]);
        let mut orphans = Orphans::default();
        assert!(due(&mut orphans, &census, 0).is_empty());
        assert_eq!(due(&mut orphans, &census, 2), [2]);
        // Another process that came to have its number.
        let reused = Census { processes: vec![Process { started: 6, ..process(2, 3, true) }], ..census };
        assert!(due(&mut orphans, &reused, 4).is_empty());
    }

    #[test]
    fn what_must_have_been_started_by_others_is_reaped_and_what_may_not_is_left_for_long() {
        let session = |pid, session| Process { session, ..process(pid, session, true) };
        let seen = Process { parent: 9, zombie: false, ..process(5, 5, true) };
        let mut orphans = Orphans::default();
        assert!(due(&mut orphans, &census([seen]), 0).is_empty());
        let all = census([
            // Of another session, which another process began; of a program's group; a child of another before.
            session(2, 7),
            process(4, 3, true),
            process(5, 5, true),
            // In our own group; begins a group, or a session; the same, and another thread has started it.
            process(6, 1, true),
            process(7, 7, true),
            session(9, 9),
            process(8, 8, true),
        ]);
        assert!(due(&mut orphans, &all, 2).is_empty());
        assert_eq!(due(&mut orphans, &all, 4), [2, 4, 5]);
        assert_eq!(due(&mut orphans, &all, 300), [2, 4, 5]);
        assert_eq!(due(&mut orphans, &all, 302), [2, 4, 5, 7, 9]);
        let unknown = Census { of_threads: None, ..all };
        assert_eq!(due(&mut orphans, &unknown, 999), [2, 4, 5], "in doubt they stay");
    }

    #[test]
    fn children_are_known_by_the_thread_that_started_them() {
        let mut child = std::process::Command::new("true").process_group(0).spawn().unwrap();
        let pid = child.id().cast_signed();
        // A test runs on a thread of its own.
        assert!(children_of_threads().is_none_or(|all| all.contains(&pid)));
        child.wait().unwrap();
        assert!(children_of_threads().is_none_or(|all| !all.contains(&pid)));
    }
}
