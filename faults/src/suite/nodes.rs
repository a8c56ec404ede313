//! Nodes that die, hang, abort, run out of something, or are told to go.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;
use wardkeep_client::Policy;
use wardkeep_proto::v1::{EventKind, Verdict};

use super::{Fault, Finding, NOTICE_A_DEATH, NOTICE_SILENCE, Scene, TEMPLATE, quiet};
use crate::{
    Outcome, Stuck,
    answer::Path,
    cluster::Options,
    load::{Load, Pace},
    pb::{Kind, Trouble},
    process::signal,
};

/// The node that it happens to.
const VICTIM: Path = Path::Loop;
/// How long a frozen node stays frozen after it was noticed.
const FROZEN: Duration = Duration::from_secs(2);
/// What a node in a small place may take: enough to live, and quickly eaten.
const MEMORY: u64 = 768 << 20;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "kill-node",
        promised: "kill -9 of a node: noticed within a round trip + 100 ms, launched anew, no call fails",
        short: true,
        notice: Some(NOTICE_A_DEATH),
        inject: |scene| Box::pin(kill(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "freeze-node",
        promised: "SIGSTOP of a node, SIGCONT after 2 s more: noticed within 3 s, no restart, no call fails",
        short: true,
        notice: Some(NOTICE_SILENCE),
        inject: |scene| Box::pin(freeze(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "hang-node",
        promised: "SIGSTOP of a node for good: noticed within 3 s, launched anew, no call fails",
        notice: Some(NOTICE_SILENCE),
        inject: |scene| Box::pin(hang(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "abort-node",
        promised: "a handler aborts its process: noticed at once, launched anew, no call fails",
        notice: Some(Duration::from_millis(500)),
        inject: |scene| Box::pin(abort(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "out-of-memory",
        promised: "a node's memory is all taken: its process ends and is launched anew, no call fails",
        cluster: |_| Options {
            node_args: vec![(VICTIM, format!("--max-memory={MEMORY}"))],
            ..Options::default()
        },
        inject: |scene| Box::pin(eat_memory(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "sigterm-node",
        promised: "SIGTERM of a node under load: it drains, work in progress ends well, exit 0; no call fails, \
                   even if sent once",
        short: true,
        notice: Some(NOTICE_A_DEATH),
        inject: |scene| Box::pin(terminate(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "restart-node",
        promised: "an operator restarts a node under load: same PID, new boot; no call fails, even if sent once",
        inject: |scene| Box::pin(restart(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "kill-two-nodes",
        promised: "kill -9 of two of three nodes: noticed as one is, both launched anew, no call fails that the \
                   third can answer",
        notice: Some(NOTICE_A_DEATH),
        pace: || Pace { policy: Policy::All(3), ..Pace::default() },
        inject: |scene| Box::pin(kill_several(scene, &[Path::Formula, Path::Loop])),
        ..TEMPLATE
    },
    Fault {
        name: "kill-all-nodes",
        promised: "kill -9 of all nodes at once: noticed as one is, all launched anew; calls may fail meanwhile",
        short: true,
        may_fail: true,
        notice: Some(NOTICE_A_DEATH),
        inject: |scene| Box::pin(kill_several(scene, &Path::ALL)),
        ..TEMPLATE
    },
    Fault {
        name: "freeze-all-nodes",
        promised: "SIGSTOP of all nodes, SIGCONT 5 s later: nothing is restarted; calls may fail meanwhile",
        may_fail: true,
        inject: |scene| Box::pin(freeze_all(scene)),
        ..TEMPLATE
    },
];

async fn kill(scene: &mut Scene) -> Outcome<Finding> {
    kill_several(scene, &[VICTIM]).await
}

async fn kill_several(scene: &mut Scene, victims: &[Path]) -> Outcome<Finding> {
    scene.begin();
    for path in victims {
        signal(scene.was(*path).0, Signal::SIGKILL)?;
    }
    let mut detected = Some(Duration::ZERO);
    for path in victims {
        // The last of them counts.
        let took = scene.is_judged(*path, Verdict::Unreachable).await;
        detected = detected.zip(took).map(|(a, b)| a.max(b));
    }
    let healed = scene.heals(|now| victims.iter().all(|path| scene.is_anew(now, *path))).await;
    Ok(Finding { detected, healed, nodes: victims.to_vec(), ..Finding::default() })
}

async fn freeze(scene: &mut Scene) -> Outcome<Finding> {
    let pid = scene.was(VICTIM).0;
    scene.begin();
    signal(pid, Signal::SIGSTOP)?;
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    quiet(FROZEN).await;
    signal(pid, Signal::SIGCONT)?;
    let healed = scene.heals(|_| true).await;
    Ok(Finding { detected, healed, ..Finding::default() })
}

async fn hang(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    signal(scene.was(VICTIM).0, Signal::SIGSTOP)?;
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    Ok(Finding { detected, healed, nodes: vec![VICTIM], ..Finding::default() })
}

async fn abort(scene: &mut Scene) -> Outcome<Finding> {
    dies_of(scene, Trouble { kind: Kind::Abort.into(), ..Trouble::default() }).await
}

async fn eat_memory(scene: &mut Scene) -> Outcome<Finding> {
    dies_of(scene, Trouble { kind: Kind::EatMemory.into(), ..Trouble::default() }).await
}

async fn dies_of(scene: &mut Scene, trouble: Trouble) -> Outcome<Finding> {
    scene.begin();
    scene.cluster.trouble(VICTIM, trouble).await?;
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    Ok(Finding { detected, healed, nodes: vec![VICTIM], ..Finding::default() })
}

/// Loads that a graceful end must not harm, beside the usual one: slow calls, sent to one node each.
fn once(scene: &Scene) -> Outcome<Load> {
    let pace = Pace { policy: Policy::Single, rate: 60, wait: Duration::from_millis(300), ..Pace::default() };
    Load::begin(&scene.cluster.uri(), pace, scene.seed + 1)
}

async fn terminate(scene: &mut Scene) -> Outcome<Finding> {
    let slow = once(scene)?;
    slow.goes_on(60).await;
    scene.begin();
    signal(scene.was(VICTIM).0, Signal::SIGTERM)?;
    let left = |e: &wardkeep_proto::v1::Event| e.node == VICTIM.name() && e.kind() == EventKind::NodeLeft;
    let detected = scene.observer.hears(scene.begun, Duration::from_secs(30), left).await;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    slow.goes_on(60).await;
    let mut found =
        Finding { detected, healed, nodes: vec![VICTIM], more: slow.cease().await, ..Finding::default() };
    let ended = scene
        .observer
        .all()
        .into_iter()
        .map(|seen| seen.event)
        .find(|event| event.node == VICTIM.name() && event.text.contains("exit status"));
    found.holds(ended.as_ref().is_some_and(|event| event.text.contains("exit status: 0")), || {
        format!("exit 0 was promised, but {:?}", ended.map(|event| event.text))
    });
    Ok(found)
}

async fn restart(scene: &mut Scene) -> Outcome<Finding> {
    let slow = once(scene)?;
    slow.goes_on(60).await;
    let (pid, _) = scene.was(VICTIM);
    scene.begin();
    let request = wardkeep_proto::v1::NodeRequest {
        node: VICTIM.name().to_owned(),
        reason: "the fault suite".to_owned(),
        actor: "faults".to_owned(),
        ..Default::default()
    };
    let mut operator = scene.cluster.operator();
    operator.restart_node(request).await.map_err(|s| Stuck(format!("restart of a node: {s}")))?;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    slow.goes_on(60).await;
    let now = scene.cluster.facts(VICTIM).await?.pid;
    let mut found = Finding { healed, nodes: vec![VICTIM], more: slow.cease().await, ..Finding::default() };
    found.holds(now == pid, || format!("in place was promised, but PID {pid} became {now}"));
    Ok(found)
}

async fn freeze_all(scene: &mut Scene) -> Outcome<Finding> {
    let pids: Vec<u32> = Path::ALL.into_iter().map(|path| scene.was(path).0).collect();
    let begun: Instant = scene.begin();
    for pid in &pids {
        signal(*pid, Signal::SIGSTOP)?;
    }
    let doubts =
        |e: &wardkeep_proto::v1::Event| e.kind() == EventKind::Steward || e.kind() == EventKind::NodeVerdict;
    let detected = scene.observer.hears(begun, Duration::from_secs(10), doubts).await;
    tokio::time::sleep_until(begun + Duration::from_secs(5)).await;
    for pid in &pids {
        signal(*pid, Signal::SIGCONT)?;
    }
    let healed = scene.heals(|_| true).await;
    Ok(Finding { detected, healed, ..Finding::default() })
}
