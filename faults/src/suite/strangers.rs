//! Strangers at the door of a node and of the supervisor: silent, slow, flooding, talking nonsense, too many.

use std::{net::SocketAddr, time::Duration};

use super::{Fault, Finding, Scene, TEMPLATE, quiet};
use crate::{
    Outcome, Trying as _,
    answer::Path,
    attack::{self, Flood},
    cluster::Options,
    process::{Usage, usage},
};

const VICTIM: Path = Path::Table;
const OF_NODE: &str = "/wardkeep.faults.v1.Answer/AskOnce";
const OF_SUPERVISOR: &str = "/wardkeep.v1.Operator/GetFleet";
/// Strangers at a time.
const CROWD: usize = 200;
/// A connection that does not begin is closed within 10 s, one that does not get on within 20 s; and this for
/// the machine.
const CLOSED_WITHIN: Duration = Duration::from_secs(13);
const CUT_OFF_WITHIN: Duration = Duration::from_secs(23);
/// Open files that a node is allowed in `fd-exhaustion`: fewer than there are strangers.
const FILES: u64 = 96;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "silent-connections",
        promised: "200 connections each to a node and the supervisor that say nothing: closed within 10 s, nobody \
                   else notices",
        inject: |scene| Box::pin(silent(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "slow-loris",
        promised: "200 connections each to a node and the supervisor that never finish their first headers: closed \
                   within 20 s, nobody else notices",
        inject: |scene| Box::pin(slow_loris(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "fd-exhaustion",
        promised: "more silent connections to a node than it may have open files: it does not spin, answers those it \
                   knows, and is well when they are closed",
        cluster: |_| Options {
            node_args: vec![(VICTIM, format!("--max-files={FILES}"))],
            ..Options::default()
        },
        inject: |scene| Box::pin(crowd(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "rapid-reset",
        promised: "10,000 requests opened and reset on one connection each to a node and the supervisor: nobody else \
                   notices, memory grows by less than 128 MiB",
        inject: |scene| Box::pin(rapid_reset(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "malformed-headers",
        promised: "20,000 requests with headers nobody may send, and headers without an end, to a node and the \
                   supervisor: cut off, nobody else notices",
        short: true,
        inject: |scene| Box::pin(malformed(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "garbage",
        promised: "messages that are oversized, cut short or noise, to a node and the supervisor: each is refused, \
                   nobody else notices",
        short: true,
        inject: |scene| Box::pin(garbage(scene)),
        ..TEMPLATE
    },
];

/// Those who are attacked: address, PID, a path of theirs.
fn targets(scene: &Scene) -> [(&'static str, SocketAddr, u32, &'static str); 2] {
    let node = (VICTIM.name(), scene.cluster.place(VICTIM).address, scene.was(VICTIM).0, OF_NODE);
    let pid = scene.cluster.supervisor_pid().unwrap_or(0);
    [node, ("the supervisor", scene.cluster.address(), pid, OF_SUPERVISOR)]
}

/// Memory may grow by so much for an attack, and not more.
const MEMORY: u64 = 128 << 20;

fn holds_its_memory(found: &mut Finding, who: &str, before: Usage, after: Usage) {
    let grown = after.bytes.saturating_sub(before.bytes);
    found.holds(grown < MEMORY, || format!("{who} has grown by {} MiB", grown >> 20));
}

async fn silent(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let mut found = Finding::default();
    let [(_, node, ..), (_, supervisor, ..)] = targets(scene);
    let (at_node, at_supervisor) =
        tokio::join!(attack::silent(node, CROWD), attack::silent(supervisor, CROWD));
    let all = at_node.len() + at_supervisor.len();
    let everyone = at_node.into_iter().chain(at_supervisor).collect();
    let closed = attack::closed(everyone, CLOSED_WITHIN).await;
    found.holds((all, closed) == (2 * CROWD, 2 * CROWD), || {
        format!("{} of {} connections were closed, {all} were open", closed, 2 * CROWD)
    });
    found.detected = Some(scene.begun.elapsed());
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

async fn slow_loris(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let mut found = Finding::default();
    let [(_, node, ..), (_, supervisor, ..)] = targets(scene);
    let (at_node, at_supervisor) = tokio::join!(
        attack::slow_loris(node, CROWD, CUT_OFF_WITHIN),
        attack::slow_loris(supervisor, CROWD, CUT_OFF_WITHIN)
    );
    found.holds((at_node, at_supervisor) == (CROWD, CROWD), || {
        format!("{at_node} and {at_supervisor} of {CROWD} each were cut off")
    });
    found.detected = Some(scene.begun.elapsed());
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

async fn crowd(scene: &mut Scene) -> Outcome<Finding> {
    let [(_, node, pid, _), _] = targets(scene);
    scene.begin();
    let before = usage(pid);
    let strangers = attack::silent(node, CROWD).await;
    let crowded = usage(pid);
    // With nothing left to accept with, and some waiting: the loop must not turn for nothing.
    quiet(Duration::from_secs(3)).await;
    let spent = usage(pid).cpu.saturating_sub(crowded.cpu);
    let mut found = Finding::default();
    found.holds(crowded.files as u64 + 1 >= FILES, || {
        format!("{} files are open of {FILES}: nothing was exhausted ({before:?})", crowded.files)
    });
    found.holds(spent < Duration::from_millis(1_500), || format!("it spent {spent:?} of CPU in 3 s"));
    found.detected = Some(scene.begun.elapsed());
    let closed = attack::closed(strangers, CLOSED_WITHIN * 3).await;
    found.holds(closed > 0, || "no stranger was closed".to_owned());
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

async fn rapid_reset(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let mut found = Finding::default();
    for (who, address, pid, path) in targets(scene) {
        let before = usage(pid);
        let flood = attack::rapid_reset(address, path, 10_000).await.trying(who)?;
        holds_its_memory(&mut found, who, before, usage(pid));
        found.holds(flood.cut_off || flood.sent == 10_000, || format!("{who}: {flood:?}"));
    }
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

async fn malformed(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let mut found = Finding::default();
    for (who, address, pid, _) in targets(scene) {
        let before = usage(pid);
        let bad: Flood = attack::malformed_headers(address, 20_000).await.trying(who)?;
        found.holds(bad.cut_off, || format!("{who}, malformed headers: {bad:?}"));
        let endless = attack::endless_headers(address, 10_000).await.trying(who)?;
        found.holds(endless.cut_off, || format!("{who}, endless headers: {endless:?}"));
        holds_its_memory(&mut found, who, before, usage(pid));
    }
    found.detected = Some(scene.begun.elapsed());
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

async fn garbage(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let mut found = Finding::default();
    for (who, address, pid, path) in targets(scene) {
        let before = usage(pid);
        let taken = attack::garbage(address, path, scene.seed).await.trying(who)?;
        found.holds(taken == 0, || format!("{who} took {taken} messages that are none"));
        holds_its_memory(&mut found, who, before, usage(pid));
    }
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}
