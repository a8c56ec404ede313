//! Wards that panic, flap, hang or lose their program, and a runtime that stands still.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use wardkeep_proto::v1::{self, EventKind, Verdict, WardState};

use super::{Fault, Finding, NOTICE_SILENCE, Scene, TEMPLATE};
use crate::{
    Outcome, Stuck, Trying as _,
    answer::Path,
    cluster::Options,
    pb::{Kind, Question, Trouble},
    process::signal,
};

const VICTIM: Path = Path::Table;
/// Calls that panic, and how many of them at a time.
const STORM: usize = 1_000;
const AT_A_TIME: usize = 20;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "panic-storm",
        promised: "1,000 calls that panic in the handlers of one node: each is told so, nothing else fails, nothing \
                   is restarted",
        short: true,
        inject: |scene| Box::pin(storm(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "ward-panic",
        promised: "a panic in a ward that is to be restarted for it: noticed at once, a new incarnation, no call fails",
        short: true,
        notice: Some(Duration::from_millis(250)),
        cluster: |_| Options { restart_on_panic: true, ..Options::default() },
        inject: |scene| Box::pin(panic(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "flapping-ward",
        promised: "a ward fails four times, soon after each start: restarted four times with growing pauses, and well",
        inject: |scene| Box::pin(flap(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "hopeless-ward",
        promised: "a ward fails again and again: its node is restarted once, then the ward is quarantined while \
                   the rest is well; an operator brings it back; no call fails",
        inject: |scene| Box::pin(hopeless(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "stuck-thread",
        promised: "a handler blocks its thread for 8 s: stalled after 1 s, noticed within 3 s, replaced without \
                   waiting for it, no call fails",
        short: true,
        notice: Some(NOTICE_SILENCE),
        inject: |scene| Box::pin(stick(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "blocked-runtime",
        promised: "all threads of a node's runtime are blocked for 6 s: noticed within 3 s as what it is, not as a \
                   dead node; well when they are free; no call fails",
        notice: Some(NOTICE_SILENCE),
        inject: |scene| Box::pin(block(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "kill-program",
        promised: "the program of a process ward is killed: noticed at once, started anew, no call fails",
        notice: Some(Duration::from_millis(250)),
        inject: |scene| Box::pin(kill_program(scene)),
        ..TEMPLATE
    },
];

fn trouble(kind: Kind, millis: u32, times: u32) -> Trouble {
    Trouble { kind: kind.into(), millis, times }
}

async fn storm(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let alone = scene.cluster.alone(VICTIM)?;
    let question = Question { number: 1, wait_ms: 0, trouble: Some(trouble(Kind::Panic, 0, 1)) };
    let (mut calls, mut told, mut begun) = (JoinSet::new(), 0, 0);
    let mut found = Finding::default();
    while told < STORM {
        while begun < STORM && calls.len() < AT_A_TIME {
            let mut client = alone.clone();
            calls.spawn(async move { client.ask_once(question).await });
            begun += 1;
        }
        let Some(ended) = calls.join_next().await else { break };
        told += 1;
        let status = ended.trying("a call")?.err();
        let error = status.map(|status| wardkeep_proto::Error::from_status(&status));
        let kind = error.as_ref().map(|error| error.kind().to_owned());
        found.holds(kind.as_deref() == Some("PANIC"), || format!("PANIC was promised, not {error:?}"));
        found.broken.truncate(3);
    }
    let panics = |error: &v1::ErrorGroup| error.kind == "PANIC" && error.count >= STORM as u64;
    let mut all = false;
    for _ in 0..200 {
        let asked = scene.cluster.operator().list_errors(v1::ListErrorsRequest {}).await.trying("errors")?;
        all = asked.into_inner().groups.iter().any(panics);
        if all {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    found.holds(all, || "the supervisor has not counted all panics within 5 s".to_owned());
    found.detected = all.then(|| scene.begun.elapsed());
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

async fn restarted(
    scene: &mut Scene,
    ward: &'static str,
    verdict: Verdict,
    what: Trouble,
) -> Outcome<Finding> {
    scene.begin();
    scene.cluster.trouble(VICTIM, what).await?;
    let detected = scene.observer.judges_ward(VICTIM.name(), ward, verdict, scene.begun).await;
    let restarts = u64::from(what.times.max(1));
    let wanted = Scene::incarnation(&scene.before, VICTIM, ward) + restarts;
    let healed = scene.heals(|now| Scene::incarnation(now, VICTIM, ward) >= wanted).await;
    let mut found = Finding { detected, healed, wards: vec![(VICTIM, ward)], ..Finding::default() };
    let after = scene.cluster.picture().await?;
    let is = Scene::incarnation(&after, VICTIM, ward);
    found.holds(is == wanted, || format!("incarnation {wanted} was promised, not {is}"));
    Ok(found)
}

async fn panic(scene: &mut Scene) -> Outcome<Finding> {
    restarted(scene, "answer", Verdict::Crashed, trouble(Kind::Panic, 0, 1)).await
}

async fn flap(scene: &mut Scene) -> Outcome<Finding> {
    restarted(scene, "tick", Verdict::Crashed, trouble(Kind::Flap, 0, 4)).await
}

async fn stick(scene: &mut Scene) -> Outcome<Finding> {
    restarted(scene, "answer", Verdict::Stalled, trouble(Kind::BlockThread, 8_000, 1)).await
}

async fn hopeless(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let flap = trouble(Kind::Flap, 0, 1_000_000);
    scene.cluster.trouble(VICTIM, flap).await?;
    let detected = scene.observer.judges_ward(VICTIM.name(), "tick", Verdict::Crashed, scene.begun).await;
    // Its node is restarted for it, and with the new process the cause would be gone: it is not to be.
    scene.cluster.until(crate::cluster::PATIENCE, |now| scene.is_anew(now, VICTIM)).await?;
    scene.cluster.well(crate::cluster::PATIENCE).await?;
    scene.cluster.trouble(VICTIM, flap).await?;
    let quarantined = |fleet: &v1::Fleet| {
        fleet.wards.iter().any(|w| w.node == VICTIM.name() && w.state() == WardState::Quarantined)
    };
    let deadline = tokio::time::Instant::now() + crate::cluster::PATIENCE;
    while !quarantined(&scene.cluster.fleet().await?) {
        if tokio::time::Instant::now() > deadline {
            return Err(Stuck("the ward is not quarantined".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gave_up = |e: &v1::Event| e.kind() == EventKind::GroupGaveUp;
    let mut found =
        Finding { detected, nodes: vec![VICTIM], wards: vec![(VICTIM, "tick")], ..Finding::default() };
    // The picture is a moment ahead of what is written, and told.
    let told = scene.observer.hears(scene.begun, Duration::from_secs(20), gave_up).await;
    found.holds(told.is_some(), || "nobody was told".to_owned());
    scene.cluster.trouble(VICTIM, trouble(Kind::Flap, 0, 0)).await?;
    let answers = scene.cluster.answers(VICTIM).await;
    found.holds(answers.is_ok(), || format!("its node meanwhile: {answers:?}"));
    let request = v1::WardRequest {
        node: VICTIM.name().to_owned(),
        ward: "tick".to_owned(),
        reason: "the fault suite".to_owned(),
        actor: "faults".to_owned(),
        ..Default::default()
    };
    scene.cluster.operator().start_ward(request).await.trying("the start of a quarantined ward")?;
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

async fn block(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    scene.cluster.trouble(VICTIM, trouble(Kind::BlockRuntime, 6_000, 1)).await?;
    let detected = scene.is_judged(VICTIM, Verdict::RuntimeStalled).await;
    let healed = scene.heals(|_| true).await;
    let mut found = Finding { detected, healed, wards: vec![(VICTIM, "answer")], ..Finding::default() };
    let dead = |e: &v1::Event| {
        e.node == VICTIM.name() && e.kind() == EventKind::NodeVerdict && e.verdict() == Verdict::Unreachable
    };
    let dead = scene.observer.all().iter().any(|seen| dead(&seen.event));
    found.holds(!dead, || "it was taken for dead, though it beats".to_owned());
    Ok(found)
}

async fn kill_program(scene: &mut Scene) -> Outcome<Finding> {
    let known = |now: &crate::cluster::Picture| now.get(VICTIM.name()).is_some_and(|facts| facts.program > 0);
    let picture = scene.cluster.until(Duration::from_secs(15), known).await?;
    let program = picture.get(VICTIM.name()).map_or(0, |facts| facts.program);
    scene.begin();
    signal(program, Signal::SIGKILL)?;
    let detected = scene.observer.judges_ward(VICTIM.name(), "program", Verdict::Crashed, scene.begun).await;
    let wanted = Scene::incarnation(&scene.before, VICTIM, "program") + 1;
    let healed = scene.heals(|now| Scene::incarnation(now, VICTIM, "program") == wanted).await;
    Ok(Finding { detected, healed, wards: vec![(VICTIM, "program")], ..Finding::default() })
}
