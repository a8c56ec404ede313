//! Which programs nodes of this machine run, seen from outside: the proof that losers are gone.

use std::collections::BTreeSet;

/// The process groups of the programs that these nodes, processes of this machine, run now: node and group.
pub fn groups_of(nodes: &[u32]) -> Vec<(u32, i32)> {
    let leads = |(pid, stat): (i32, Stat)| {
        let parent = u32::try_from(stat.parent).ok().filter(|parent| nodes.contains(parent))?;
        (stat.group == pid && is_program(pid, stat.parent)).then_some((parent, pid))
    };
    alive().filter_map(leads).collect()
}

/// A node's guard leads a group, too, and is no program; nor is what has only just been forked.
fn is_program(pid: i32, node: i32) -> bool {
    let command = |pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = command(pid);
    !line.ends_with(b"\0wardkeep-guard\0") && line != command(node)
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

/// What is needed of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    zombie: bool,
    parent: i32,
    group: i32,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name before may have spaces and parentheses of its own.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(Self {
            zombie: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = Stat::parse("12 (a) b) (c) Z 3 4 5 0").unwrap();
        assert_eq!(stat, Stat { zombie: true, parent: 3, group: 4 });
        for garbage in ["", "1 (a", "1 (a) R", "1 (a) R x 4", "1 (a) R 3"] {
            assert_eq!(Stat::parse(garbage), None, "{garbage:?}");
        }
    }
}
