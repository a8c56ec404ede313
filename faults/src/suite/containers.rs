//! What a container engine does to containers, by an operator's hand or by itself. The supervisor has the launcher
//! `docker`; the engine starts nothing anew by itself.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};
use wardkeep_client::Policy;
use wardkeep_proto::v1::{EventKind, Verdict};

use super::{
    Fault, Finding, Home, NOTICE_A_DEATH, NOTICE_SILENCE, Needs, Scene, TEMPLATE, quiet, supervisors::unheard,
};
use crate::{
    Outcome,
    answer::Path,
    load::{Load, Pace},
    pb::{Kind, Trouble},
};

/// The container that it happens to.
const VICTIM: Path = Path::Loop;
/// Where two are concerned, the other one.
const SECOND: Path = Path::Table;
/// How long a paused container stays paused after it was noticed.
const PAUSED: Duration = Duration::from_secs(2);
/// How long a container is off the network.
const UNPLUGGED: Duration = Duration::from_secs(6);
/// Where most nodes fall silent together the steward doubts itself first.
const NOTICE_MOST_SILENT: Duration = Duration::from_secs(5);
/// How long there is no supervisor.
const AWAY: Duration = Duration::from_secs(4);

const CONTAINERS: Fault = Fault { home: Home::Docker, needs: Needs::Docker, ..TEMPLATE };

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "docker-kill-node",
        promised: "docker kill of a node: noticed within a round trip + 100 ms, its container started anew, no call fails",
        short: true,
        notice: Some(NOTICE_A_DEATH),
        inject: |scene| Box::pin(kill(scene, &[VICTIM])),
        ..CONTAINERS
    },
    Fault {
        name: "docker-pause-node",
        promised: "docker pause of a node, unpause after 2 s more: noticed within 3 s, no restart, no call fails",
        short: true,
        notice: Some(NOTICE_SILENCE),
        inject: |scene| Box::pin(pause(scene)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-pause-node-for-good",
        promised: "docker pause of a node for good: noticed within 3 s, its container started anew, no call fails",
        notice: Some(NOTICE_SILENCE),
        inject: |scene| Box::pin(pause_for_good(scene)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-kill-one-pause-another",
        promised: "docker kill of a node and pause of another: answers keep coming from the third, both noticed within 5 s and \
                   started anew, no call fails",
        notice: Some(NOTICE_MOST_SILENT),
        pace: || Pace { policy: Policy::All(3), ..Pace::default() },
        inject: |scene| Box::pin(kill_and_pause(scene)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-kill-all-nodes",
        promised: "docker kill of all nodes at once: noticed, all containers started anew; calls may fail meanwhile",
        may_fail: true,
        notice: Some(NOTICE_A_DEATH),
        inject: |scene| Box::pin(kill(scene, &Path::ALL)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-disconnect-node",
        promised: "docker network disconnect of a node for 6 s, then connect: noticed within 3 s, well again without \
                   a restart, no call fails",
        short: true,
        notice: Some(NOTICE_SILENCE),
        inject: |scene| Box::pin(disconnect(scene)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-stop-node",
        promised: "docker stop of a node under load, then start: it drains, exit 0; no call fails, even if sent once",
        short: true,
        inject: |scene| Box::pin(stop(scene)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-out-of-memory",
        promised: "a node takes more than its container's memory: the kernel kills it, its container is started anew, \
                   no call fails",
        short: true,
        inject: |scene| Box::pin(eat_memory(scene)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-kill-supervisor",
        promised: "docker kill of the supervisor, start after 4 s: nodes go on, then attend again; nothing is restarted, \
                   no call fails, what was told is kept",
        short: true,
        inject: |scene| Box::pin(kill_supervisor(scene)),
        ..CONTAINERS
    },
    Fault {
        name: "docker-pause-supervisor",
        promised: "docker pause of the supervisor for 6 s: nodes go on by themselves, then obey again; nothing is \
                   restarted, no call fails",
        inject: |scene| Box::pin(pause_supervisor(scene)),
        ..CONTAINERS
    },
];

async fn kill(scene: &mut Scene, victims: &[Path]) -> Outcome<Finding> {
    let began = SystemTime::now();
    scene.begin();
    for path in victims {
        scene.cluster.containers()?.tell("kill", path.name()).await?;
    }
    let mut detected = Some(Duration::ZERO);
    for path in victims {
        let took = loses(scene, *path).await;
        // The engine takes its time to do it, and the command to have it done: what counts is when it was dead.
        let ended = scene.cluster.containers()?.ended_at(path.name()).await?;
        let took = took.map(|took| took.saturating_sub(ended.duration_since(began).unwrap_or_default()));
        detected = detected.zip(took).map(|(a, b)| a.max(b));
    }
    let healed = scene.heals(|now| victims.iter().all(|path| scene.is_anew(now, *path))).await;
    Ok(Finding { detected, healed, nodes: victims.to_vec(), ..Finding::default() })
}

/// The supervisor notices that a node's connection has ended. The verdict takes longer: it may be the network.
async fn loses(scene: &Scene, path: Path) -> Option<Duration> {
    let lost = |e: &wardkeep_proto::v1::Event| e.node == path.name() && e.text.contains("session broke off");
    scene.observer.hears(scene.begun, Duration::from_secs(30), lost).await
}

async fn pause(scene: &mut Scene) -> Outcome<Finding> {
    scene.cluster.containers()?.tell("pause", VICTIM.name()).await?;
    scene.begin();
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    quiet(PAUSED).await;
    scene.cluster.containers()?.tell("unpause", VICTIM.name()).await?;
    let healed = scene.heals(|_| true).await;
    Ok(Finding { detected, healed, ..Finding::default() })
}

async fn pause_for_good(scene: &mut Scene) -> Outcome<Finding> {
    scene.cluster.containers()?.tell("pause", VICTIM.name()).await?;
    scene.begin();
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    Ok(Finding { detected, healed, nodes: vec![VICTIM], ..Finding::default() })
}

async fn kill_and_pause(scene: &mut Scene) -> Outcome<Finding> {
    let killing = Instant::now();
    let containers = scene.cluster.containers()?;
    containers.tell("kill", VICTIM.name()).await?;
    containers.tell("pause", SECOND.name()).await?;
    let begun = scene.begin();
    let killed = scene.observer.judges_node(VICTIM.name(), Verdict::Unreachable, killing).await;
    let paused = scene.observer.judges_node(SECOND.name(), Verdict::Unreachable, begun).await;
    let both = [VICTIM, SECOND];
    let healed = scene.heals(|now| both.iter().all(|path| scene.is_anew(now, *path))).await;
    let mut found = Finding { detected: paused, healed, nodes: both.to_vec(), ..Finding::default() };
    found.holds(killed.is_some(), || "nobody has noticed that a node was killed".to_owned());
    Ok(found)
}

async fn disconnect(scene: &mut Scene) -> Outcome<Finding> {
    scene.cluster.containers()?.disconnect(VICTIM).await?;
    scene.begin();
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    sleep_until(scene.begun + UNPLUGGED).await;
    scene.cluster.containers()?.connect(VICTIM).await?;
    let healed = scene.heals(|_| true).await;
    Ok(Finding { detected, healed, ..Finding::default() })
}

/// Calls that are slow and sent to one node each: what a graceful end must not harm.
fn once(scene: &Scene) -> Outcome<Load> {
    let pace = Pace { policy: Policy::Single, rate: 60, wait: Duration::from_millis(300), ..Pace::default() };
    Load::begin(&scene.cluster.uri(), pace, scene.seed + 1)
}

async fn stop(scene: &mut Scene) -> Outcome<Finding> {
    let slow = once(scene)?;
    slow.goes_on(60).await;
    scene.begin();
    let containers = scene.cluster.containers()?;
    containers.tell("stop", VICTIM.name()).await?;
    let left = |e: &wardkeep_proto::v1::Event| e.node == VICTIM.name() && e.kind() == EventKind::NodeLeft;
    let detected = scene.observer.hears(scene.begun, Duration::from_secs(30), left).await;
    let code = containers.field(VICTIM.name(), ".State.ExitCode").await?;
    // Whoever stops a container starts it again: a node that said goodbye is not brought back by the supervisor.
    containers.tell("start", VICTIM.name()).await?;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    slow.goes_on(60).await;
    let mut found =
        Finding { detected, healed, nodes: vec![VICTIM], more: slow.cease().await, ..Finding::default() };
    found.holds(code == "0", || format!("exit 0 was promised, but it was {code}"));
    found.holds(detected.is_some(), || "it has not said goodbye".to_owned());
    Ok(found)
}

async fn eat_memory(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let trouble = Trouble { kind: Kind::EatMemory.into(), ..Trouble::default() };
    scene.cluster.trouble(VICTIM, trouble).await?;
    let detected = loses(scene, VICTIM).await;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    let mut found = Finding { detected, healed, nodes: vec![VICTIM], ..Finding::default() };
    let told = scene.observer.all().into_iter().map(|seen| seen.event);
    let launched =
        told.filter(|e| e.node == VICTIM.name() && e.text.contains("its launcher's container")).count();
    found.holds(launched == 1, || format!("its container was started {launched} times"));
    Ok(found)
}

async fn kill_supervisor(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    scene.cluster.containers()?.tell("kill", "supervisor").await?;
    away(scene, "start").await
}

async fn pause_supervisor(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    scene.cluster.containers()?.tell("pause", "supervisor").await?;
    away(scene, "unpause").await
}

/// The supervisor is away, and comes back when it is told to.
async fn away(scene: &mut Scene, back: &str) -> Outcome<Finding> {
    let detected = unheard(scene).await;
    quiet(AWAY).await;
    // Wards go on without it.
    let alone = scene.cluster.answers(VICTIM).await;
    scene.cluster.containers()?.tell(back, "supervisor").await?;
    let healed = scene.heals(|_| true).await;
    let mut found = Finding { detected, healed, ..Finding::default() };
    found.holds(alone.is_ok(), || format!("a node without its supervisor: {alone:?}"));
    Ok(found)
}
