//! Supervisors that die, at any moment, run out of disk, meet a second one, or live by another clock. Whoever
//! runs a supervisor starts it again when it has ended: here that is the suite.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};
use wardkeep_proto::v1::{self, EventKind};

use super::{Fault, Finding, Needs, Scene, TEMPLATE, quiet};
use crate::{
    Outcome, Stuck, Trying as _,
    answer::Path,
    cluster::{Options, PATIENCE},
    pb::{Kind, Trouble},
    process,
    world::Powers,
};

const VICTIM: Path = Path::Formula;
/// How long the fleet is without a supervisor: longer than `mandate_grace`.
const AWAY: Duration = Duration::from_secs(4);
/// Where a supervisor can be made to die while it restarts a ward.
const POINTS: [&str; 6] = [
    "restart-decided",
    "restart-written",
    "restart-sent",
    "restart-effect",
    "restart-closing",
    "restart-closed",
];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "kill-supervisor",
        promised: "kill -9 of the supervisor, back after 4 s: nodes go on, then attend again; nothing is restarted, \
                   no call fails, what was told is kept",
        short: true,
        inject: |scene| Box::pin(kill(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "kill-supervisor-mid-restart",
        promised: "the supervisor dies at each of six moments of a restart: the ward is restarted once each time, \
                   nothing else is, no call fails",
        needs: Needs::Failpoints,
        cluster: |_| Options { config: patient_group(), ..Options::default() },
        inject: |scene| Box::pin(kill_mid_restart(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "supervisor-disk-full",
        promised: "the supervisor's disk is full while a node is killed: it heals from memory and says so; writes \
                   again when there is room; no call fails",
        needs: Needs::Mount,
        inject: |scene| Box::pin(disk_full(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "sigterm-supervisor",
        promised: "SIGTERM of the supervisor: exit 0 in order, with the nodes it launched; back, it launches them \
                   anew; calls may fail meanwhile",
        may_fail: true,
        inject: |scene| Box::pin(terminate(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "two-supervisors-one-disk",
        promised: "a second supervisor on the same data: it is refused in one line, and nothing else happens",
        short: true,
        inject: |scene| Box::pin(second_on_same_disk(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "two-supervisors-two-disks",
        promised: "nodes are led to a second supervisor with data of its own, and back: nothing is restarted, each \
                   ward has one steward at a time, no call fails",
        cluster: |_| Options { proxies: true, ..Options::default() },
        inject: |scene| Box::pin(second_on_other_disk(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "clock-plus-1h",
        promised: "all clocks jump an hour ahead: nothing is restarted, no call fails",
        needs: Needs::Faketime,
        cluster: clocks,
        inject: |scene| Box::pin(clock(scene, "+3600")),
        ..TEMPLATE
    },
    Fault {
        name: "clock-minus-1h",
        promised: "all clocks jump an hour back, and the supervisor is killed then: nothing is restarted, the next \
                   one is obeyed, no call fails",
        needs: Needs::Faketime,
        cluster: clocks,
        inject: |scene| Box::pin(clock_back(scene)),
        ..TEMPLATE
    },
];

/// Six restarts in a row are meant here, and no reason to give up.
fn patient_group() -> String {
    format!(
        "[[group]]\nname = \"{VICTIM}-tick\"\nintensity = 20\nbackoff_first = \"50ms\"\nbackoff_max = \"200ms\"\n"
    )
}

async fn back(scene: &mut Scene) -> Outcome<()> {
    scene.cluster.start_supervisor(&[])
}

/// Time without an answer from the supervisor.
pub(super) async fn unheard(scene: &Scene) -> Option<Duration> {
    let deadline = scene.begun + Duration::from_secs(10);
    while Instant::now() < deadline {
        if scene.cluster.fleet().await.is_err() {
            return Some(scene.begun.elapsed());
        }
        sleep(Duration::from_millis(5)).await;
    }
    None
}

async fn kill(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    scene.cluster.kill_supervisor().await?;
    let detected = unheard(scene).await;
    sleep(AWAY).await;
    // Wards go on without it.
    let alone = scene.cluster.answers(VICTIM).await;
    back(scene).await?;
    let healed = scene.heals(|_| true).await;
    let mut found = Finding { detected, healed, ..Finding::default() };
    found.holds(alone.is_ok(), || format!("a node without its supervisor: {alone:?}"));
    Ok(found)
}

async fn kill_mid_restart(scene: &mut Scene) -> Outcome<Finding> {
    let mut found = Finding { wards: vec![(VICTIM, "tick")], ..Finding::default() };
    let mut wanted = Scene::incarnation(&scene.before, VICTIM, "tick");
    scene.begin();
    for point in POINTS {
        scene.cluster.kill_supervisor().await?;
        scene.cluster.start_supervisor(&[("WARDKEEP_FAILPOINT", point)])?;
        scene.cluster.well(PATIENCE).await?;
        let flap = Trouble { kind: Kind::Flap.into(), millis: 0, times: 1 };
        scene.cluster.trouble(VICTIM, flap).await?;
        let ended = scene.cluster.supervisor_ended().await?;
        found.holds(!ended.success(), || format!("{point}: it ended with {ended}"));
        found.detected.get_or_insert(scene.begun.elapsed());
        back(scene).await?;
        wanted += 1;
        let is = |now: &crate::cluster::Picture| Scene::incarnation(now, VICTIM, "tick");
        let now = scene.cluster.until(PATIENCE, |now| is(now) >= wanted).await?;
        scene.cluster.well(PATIENCE).await?;
        found.holds(is(&now) == wanted, || format!("{point}: incarnation {wanted}, not {}", is(&now)));
    }
    found.healed = scene.heals(|_| true).await;
    Ok(found)
}

/// The data directory is on a small disk from the beginning of this supervisor.
async fn disk_full(scene: &mut Scene) -> Outcome<Finding> {
    scene.cluster.signal_supervisor(Signal::SIGKILL)?;
    scene.cluster.supervisor_ended().await?;
    scene.cluster.move_to_small_disk(8 << 20)?;
    back(scene).await?;
    scene.cluster.well(PATIENCE).await?;

    scene.begin();
    let filler = scene.cluster.fill_disk()?;
    let pid = scene.was(VICTIM).0;
    process::signal(pid, Signal::SIGKILL)?;
    let says = |fleet: &v1::Fleet| {
        let history = fleet.supervisor.as_ref().and_then(|s| s.history.as_ref());
        history.is_some_and(|history| history.not_written_since.is_some())
    };
    let detected = until_fleet(scene, says).await?;
    let healed = scene.heals(|now| scene.is_anew(now, VICTIM)).await;
    std::fs::remove_file(&filler).trying("the filler")?;
    until_fleet(scene, |fleet| !says(fleet)).await?;
    let mut found = Finding { detected: Some(detected), healed, nodes: vec![VICTIM], ..Finding::default() };
    let dropped = scene.cluster.fleet().await?.supervisor.and_then(|s| s.history).map_or(0, |h| h.dropped);
    found.holds(dropped == 0, || format!("{dropped} events were dropped"));
    Ok(found)
}

async fn until_fleet(scene: &Scene, is: impl Fn(&v1::Fleet) -> bool) -> Outcome<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if scene.cluster.fleet().await.is_ok_and(|fleet| is(&fleet)) {
            return Ok(begun.elapsed());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(Stuck("the supervisor does not say how it stands with its history".to_owned()))
}

async fn terminate(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    scene.cluster.signal_supervisor(Signal::SIGTERM)?;
    let detected = unheard(scene).await;
    let ended = scene.cluster.supervisor_ended().await?;
    let left = Path::ALL.into_iter().filter(|path| process::usage(scene.was(*path).0).threads > 0);
    let left: Vec<_> = left.collect();
    let mut found = Finding { detected, nodes: Path::ALL.to_vec(), ..Finding::default() };
    found.holds(ended.success(), || format!("exit 0 was promised, not {ended}"));
    found.holds(left.is_empty(), || format!("still run: {left:?}"));
    back(scene).await?;
    found.healed = scene.heals(|now| Path::ALL.iter().all(|path| scene.is_anew(now, *path))).await;
    Ok(found)
}

async fn second_on_same_disk(scene: &mut Scene) -> Outcome<Finding> {
    let begun = scene.begin();
    let listen = ([127, 0, 0, 1], 0).into();
    let mut second = scene.cluster.second_supervisor(listen, &scene.cluster.data_dir())?;
    let ended = timeout(Duration::from_secs(10), second.wait()).await;
    let detected = ended.is_ok().then(|| begun.elapsed());
    let text = std::fs::read_to_string(scene.cluster.beside("second.log")).unwrap_or_default();
    let said: Vec<_> = text.lines().filter(|line| line.contains("data")).collect();
    let healed = scene.heals(|_| true).await;
    let mut found = Finding { detected, healed, ..Finding::default() };
    let refused = matches!(ended, Ok(Ok(status)) if !status.success());
    found.holds(refused && said.len() == 1, || format!("{ended:?}: {text}"));
    Ok(found)
}

async fn second_on_other_disk(scene: &mut Scene) -> Outcome<Finding> {
    // A port of its own, outside those of outgoing connections.
    let listen =
        std::net::TcpListener::bind("127.0.0.1:0").trying("a port")?.local_addr().trying("a port")?;
    let mut second = scene.cluster.second_supervisor(listen, &scene.cluster.beside("second"))?;
    wait_for(listen).await?;
    scene.begin();
    let lead = |to| {
        for place in &scene.cluster.nodes {
            if let Some(proxy) = &place.supervisor {
                proxy.lead_to(to);
                proxy.reset_share(1.0);
            }
        }
    };
    lead(listen);
    let endpoint = wardkeep_client::endpoint(&format!("http://{listen}")).trying("its address")?;
    let mut other = v1::operator_client::OperatorClient::new(endpoint.connect_lazy());
    let deadline = Instant::now() + PATIENCE;
    let detected = loop {
        let fleet =
            other.get_fleet(v1::GetFleetRequest {}).await.trying("the second supervisor")?.into_inner();
        if fleet.nodes.iter().filter(|node| node.attending).count() == 3 {
            break Some(scene.begun.elapsed());
        }
        if Instant::now() > deadline {
            break None;
        }
        sleep(Duration::from_millis(20)).await;
    };
    quiet(Duration::from_secs(3)).await;
    lead(scene.cluster.address());
    // The first has the lower epoch now: nodes do not obey it until it has a higher one, which it gets by
    // being started anew. That is what keeps two stewards from one ward.
    quiet(Duration::from_secs(2)).await;
    let mut refused = false;
    for _ in 0..20 {
        // A node that dials, hears the epoch and leaves is attending for a moment.
        refused |= scene.cluster.picture().await?.values().any(|facts| !facts.well);
        quiet(Duration::from_millis(50)).await;
    }
    let mut found = Finding { detected, ..Finding::default() };
    found.holds(refused, || "the nodes obey a steward of an old epoch".to_owned());
    scene.cluster.kill_supervisor().await?;
    back(scene).await?;
    found.healed = scene.heals(|_| true).await;
    let pid = second.id().unwrap_or(0);
    process::signal(pid, Signal::SIGTERM)?;
    let ended = timeout(Duration::from_secs(20), second.wait()).await;
    found.holds(matches!(ended, Ok(Ok(status)) if status.success()), || format!("the second: {ended:?}"));
    Ok(found)
}

async fn wait_for(address: std::net::SocketAddr) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = tokio::net::TcpStream::connect(address).await {
        if Instant::now() > deadline {
            return Err(Stuck(format!("{address}: {why}")));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

// --- clocks ---

/// Where the clocks of the cluster are told what to show.
fn clock_file() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("wardkeep-faults-clock-{}", std::process::id()))
}

fn set_clock(offset: &str) -> Outcome<()> {
    // In one step: a process that reads half of it would be somewhere else in time.
    let file = clock_file();
    let beside = file.with_extension("new");
    std::fs::write(&beside, format!("{offset}\n")).trying(beside.display())?;
    std::fs::rename(&beside, &file).trying(file.display())
}

/// The monotonic clock, which waits are measured by, stays what it is: so it does when a real clock is set.
fn clocks(powers: Powers) -> Options {
    // Where it cannot be written the fault itself will say so.
    let _ = set_clock("+0");
    let env = [
        ("LD_PRELOAD", powers.faketime.unwrap_or_default().to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", clock_file().to_string_lossy().into_owned()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_DONT_RESET", "1".to_owned()),
    ];
    let env = env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Options { env, ..Options::default() }
}

/// When the supervisor thinks it is.
async fn its_time(scene: &Scene) -> Outcome<i64> {
    Ok(scene.cluster.fleet().await?.at.map_or(0, |at| at.seconds))
}

async fn jump(scene: &mut Scene, offset: &str) -> Outcome<Finding> {
    let before = its_time(scene).await?;
    scene.begin();
    set_clock(offset)?;
    let mut moved = 0;
    let mut detected = None;
    while scene.begun.elapsed() < Duration::from_secs(5) && detected.is_none() {
        moved = its_time(scene).await? - before;
        detected = (moved.abs() > 3_000).then(|| scene.begun.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    let mut found = Finding { detected, ..Finding::default() };
    found.holds(detected.is_some(), || format!("the clock was to jump by an hour, not by {moved} s"));
    // Whatever is due by the clock on the wall would be by now.
    quiet(Duration::from_secs(5)).await;
    Ok(found)
}

async fn clock(scene: &mut Scene, offset: &str) -> Outcome<Finding> {
    let found = jump(scene, offset).await?;
    let healed = scene.heals(|_| true).await;
    let _ = std::fs::remove_file(clock_file());
    Ok(Finding { healed, ..found })
}

async fn clock_back(scene: &mut Scene) -> Outcome<Finding> {
    let mut found = jump(scene, "-3600").await?;
    scene.cluster.kill_supervisor().await?;
    back(scene).await?;
    let attended = |e: &v1::Event| e.kind() == EventKind::NodeAttended;
    let again = Instant::now();
    let obeyed = scene.observer.hears(again, Duration::from_secs(20), attended).await;
    found.holds(obeyed.is_some(), || "the next supervisor is not obeyed".to_owned());
    found.healed = scene.heals(|_| true).await;
    let _ = std::fs::remove_file(clock_file());
    Ok(found)
}
