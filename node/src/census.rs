//! Looks at the processes of this machine (of this PID namespace), now and then: what the programs of
//! wards use, and which orphans have ended that nobody but this process can reap.

use std::{fs, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

/// One process, as `/proc/PID/stat` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
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
pub(crate) struct Census(Vec<Process>);

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

/// Ended children of this process, and whether they are for it to reap.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    before: Vec<(i32, u64)>,
}

impl Census {
    /// Takes some 10 µs a process: not for a thread that has other things to do.
    pub(crate) fn take() -> Self {
        let Ok(entries) = fs::read_dir("/proc") else { return Self::default() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        // One that has gone meanwhile is none.
        let stat = |pid| fs::read(format!("/proc/{pid}/stat")).ok();
        Self(pids.filter_map(|pid| Process::read(&String::from_utf8_lossy(&stat(pid)?))).collect())
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
        for process in self.0.iter().filter(|process| process.group == group) {
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
    /// Those that were inherited and that this process alone can reap. Left alone are what `ours` knows; the
    /// process's own group, to which children of other code in this process belong; and whatever was
    /// not seen dead before: whoever waits for a child of its own has time to.
    pub(crate) fn due(
        &mut self,
        census: &Census,
        (me, my_group): (i32, i32),
        ours: impl Fn(i32) -> bool,
    ) -> Vec<i32> {
        let dead: Vec<_> = census
            .0
            .iter()
            .filter(|p| p.zombie && p.parent == me && p.group != my_group && !ours(p.pid))
            .map(|p| (p.pid, p.started))
            .collect();
        let due = dead.iter().filter(|dead| self.before.contains(dead)).map(|dead| dead.0).collect();
        self.before = dead;
        due
    }
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
            zombie: matches!(fields.first(), Some(&"Z" | &"X")),
            started: number(22)?,
            cpu: (14..=17).filter_map(number).fold(0, u64::saturating_add),
            resident: number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b Z (c) S 7 40 40 0 -1 4194304 95 0 0 0 150 50 30 20 20 0 1 0 9001 2560000 300 \
                        18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0";

    fn process(pid: i32, group: i32, zombie: bool) -> Process {
        Process { pid, parent: 1, group, zombie, started: 5, cpu: 100, resident: 2 }
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let read = Process::read(STAT).unwrap();
        let wanted =
            Process { pid: 42, parent: 7, group: 40, zombie: false, started: 9001, cpu: 250, resident: 300 };
        assert_eq!(read, wanted);
        for broken in ["", "42", "42 (a", "42 (a) S", "x (a) S 7 40"] {
            assert_eq!(Process::read(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_group_uses_what_its_processes_use_together() {
        let census = Census(vec![
            process(2, 2, false),
            process(3, 2, false),
            process(4, 2, true),
            process(5, 5, false),
        ]);
        let usage = census.usage(2);
        assert_eq!((usage.processes, usage.resident % (6 * 1_024)), (2, 0));
        assert_eq!(usage.cpu, census.usage(5).cpu * 3);
        assert_eq!(census.usage(9), Usage::default());
        assert!(Census::take().usage(nix::unistd::getpgrp().as_raw()).processes > 0);
    }

    #[test]
    fn orphans_are_due_when_seen_dead_twice_and_children_of_others_never() {
        let census = Census(vec![
            process(2, 2, true),
            process(3, 3, true),
            process(4, 1, true),
            process(5, 5, false),
            Process { parent: 9, ..process(6, 6, true) },
        ]);
        let mut orphans = Orphans::default();
        let due = |orphans: &mut Orphans, census: &Census| orphans.due(census, (1, 1), |pid| pid == 3);
        assert!(due(&mut orphans, &census).is_empty());
        assert_eq!(due(&mut orphans, &census), [2]);
        // Another process that came to have its number.
        let reused = Census(vec![Process { started: 6, ..process(2, 2, true) }]);
        assert!(due(&mut orphans, &reused).is_empty());
    }
}
