//! What the supervisor's own process uses, as the kernel says.

use std::{fs, io, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Process {
    pub(super) cpu: Duration,
    /// Bytes.
    pub(super) resident: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
    pub(super) threads: u64,
    /// Seconds since 1970.
    pub(super) started_at: f64,
}

/// Units the kernel counts in.
#[derive(Clone, Copy)]
struct Units {
    ticks_per_second: f64,
    page: u64,
}

/// Of this process; `None` where there is no such kernel.
pub(super) fn own() -> Option<Process> {
    let number = |of| u32::try_from(sysconf(of).ok()??).ok();
    let units = Units {
        ticks_per_second: f64::from(number(SysconfVar::CLK_TCK)?),
        page: number(SysconfVar::PAGE_SIZE)?.into(),
    };
    let read = |file: &str| fs::read_to_string(file);
    let fds = fs::read_dir("/proc/self/fd").map(|files| files.count() as u64);
    let texts: io::Result<_> =
        (|| Ok((read("/proc/self/stat")?, read("/proc/self/limits")?, read("/proc/stat")?)))();
    let (stat, limits, system) = texts.ok()?;
    // One of them is the directory itself.
    parse(&stat, &limits, &system, units)
        .map(|process| Process { open_fds: fds.unwrap_or(1).saturating_sub(1), ..process })
}

fn parse(stat: &str, limits: &str, system: &str, units: Units) -> Option<Process> {
    // The program's name is in parentheses, and may have anything in it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // By their number in proc(5); the state, the third, is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let max_fds = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let boot: u32 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "to within a tick for longer than machines last")]
    let seconds = |ticks: u64| ticks as f64 / units.ticks_per_second;
    Some(Process {
        cpu: Duration::try_from_secs_f64(seconds(field(14)? + field(15)?)).ok()?,
        resident: field(24)?.saturating_mul(units.page),
        open_fds: 0,
        max_fds: max_fds.split_whitespace().next()?.parse().unwrap_or(u64::MAX),
        threads: field(20)?,
        started_at: f64::from(boot) + seconds(field(22)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "77 (a) b (c) S 1 77 77 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 12345 22000000 512 \
        18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
        Max open files            1024                 1048576              files\n";

    #[test]
    fn what_the_kernel_says_is_read_whatever_the_program_is_called() {
        let units = Units { ticks_per_second: 100.0, page: 4_096 };
        let read = parse(STAT, LIMITS, "cpu 1 2\nbtime 1000\n", units).unwrap();
        let wanted = Process {
            cpu: Duration::from_secs(3),
            resident: 512 * 4_096,
            open_fds: 0,
            max_fds: 1_024,
            threads: 9,
            started_at: 1_123.45,
        };
        assert_eq!(read, wanted);
        assert_eq!(parse("nonsense", LIMITS, "btime 1\n", units), None);
    }

    #[test]
    fn this_process_is_measured() {
        let own = own().unwrap();
        assert!(own.resident > 1 << 20 && own.open_fds >= 3 && own.threads >= 1, "{own:?}");
    }
}
