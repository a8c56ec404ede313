//! A network that is slow, lossy, one-way, or breaks connections.

use std::time::Duration;

use wardkeep_client::Policy;
use wardkeep_proto::v1::Verdict;

use super::{Fault, Finding, NOTICE_SILENCE, Needs, Scene, TEMPLATE, quiet};
use crate::{
    Outcome,
    answer::Path,
    cluster::{Options, Place},
    load::Pace,
    proxy::{Faults, Proxy, Way},
    world::{Filter, Powers},
};

const VICTIM: Path = Path::Formula;
/// How long the network is bad.
const BAD: Duration = Duration::from_secs(12);
/// What keepalive and reconnection may take on top.
const PARTED: Duration = Duration::from_secs(6);

fn proxies(_: Powers) -> Options {
    Options { proxies: true, ..Options::default() }
}

/// Packets that are lost come again later; a call may take its time then.
fn calm() -> Pace {
    Pace { policy: Policy::All(2), rate: 100, deadline: Duration::from_secs(30), ..Pace::default() }
}

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "latency",
        promised: "40 ms more or less by 30 ms on every connection, both ways, for 12 s: nothing is noticed, no call \
                   fails",
        cluster: proxies,
        inject: |scene| Box::pin(late(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "partition",
        promised: "a node is cut off from all for 6 s: noticed within 3 s, well again without a restart, no call fails",
        short: true,
        notice: Some(NOTICE_SILENCE),
        cluster: proxies,
        inject: |scene| Box::pin(partition(scene, Faults::partition())),
        ..TEMPLATE
    },
    Fault {
        name: "one-way-partition",
        promised: "nothing a node sends arrives for 6 s, though it hears all: noticed within 3 s, well again without \
                   a restart, no call fails",
        notice: Some(NOTICE_SILENCE),
        cluster: proxies,
        inject: |scene| Box::pin(mute(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "one-way-partition-packets",
        promised: "packets from clients to a node are dropped for 6 s, and those from it are not: no call fails, \
                   nothing is restarted",
        needs: Needs::Network,
        inject: |scene| Box::pin(deaf(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "supervisor-unreachable",
        promised: "all nodes are cut off from the supervisor for 6 s, not from clients: they heal their own wards \
                   meanwhile; nothing is restarted, no call fails",
        cluster: proxies,
        inject: |scene| Box::pin(supervisor_away(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "connection-loss",
        promised: "for 12 s a tenth of all connections is reset each second, and one in fifty new ones refused: \
                   no call fails, nothing is restarted",
        short: true,
        cluster: proxies,
        inject: |scene| Box::pin(resets(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "slow-network",
        promised: "256 KiB/s in slices of 100 bytes, ends that arrive a second late, for 12 s: no call fails, \
                   nothing is restarted",
        cluster: proxies,
        inject: |scene| Box::pin(slow(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "duplicates",
        promised: "everything clients send arrives twice, on two connections: answers stay right, no call fails",
        cluster: proxies,
        inject: |scene| Box::pin(duplicates(scene)),
        ..TEMPLATE
    },
    Fault {
        name: "loss-5",
        promised: "5 % of all packets are lost for 12 s: no call fails, nothing is restarted",
        needs: Needs::Network,
        pace: calm,
        inject: |scene| Box::pin(loss(scene, 5)),
        ..TEMPLATE
    },
    Fault {
        name: "loss-10",
        promised: "10 % of all packets are lost for 12 s: no call fails, nothing is restarted",
        needs: Needs::Network,
        pace: calm,
        inject: |scene| Box::pin(loss(scene, 10)),
        ..TEMPLATE
    },
    Fault {
        name: "loss-20",
        promised: "20 % of all packets are lost for 12 s: no call fails, nothing is restarted",
        needs: Needs::Network,
        pace: calm,
        inject: |scene| Box::pin(loss(scene, 20)),
        ..TEMPLATE
    },
];

fn each<'a>(places: impl IntoIterator<Item = &'a Place>) -> impl Iterator<Item = &'a Proxy> {
    places.into_iter().flat_map(|place| [&place.clients, &place.supervisor]).flatten()
}

async fn for_a_while(scene: &mut Scene, faults: &Faults) -> Outcome<Finding> {
    scene.begin();
    each(&scene.cluster.nodes).for_each(|proxy| proxy.set(faults.clone()));
    quiet(BAD).await;
    each(&scene.cluster.nodes).for_each(|proxy| proxy.set(Faults::default()));
    let healed = scene.heals(|_| true).await;
    Ok(Finding { healed, ..Finding::default() })
}

async fn late(scene: &mut Scene) -> Outcome<Finding> {
    for_a_while(scene, &Faults::late(Duration::from_millis(40), Duration::from_millis(30))).await
}

async fn resets(scene: &mut Scene) -> Outcome<Finding> {
    for_a_while(scene, &Faults { refuse: 0.02, kill_per_second: 0.1, ..Faults::default() }).await
}

async fn slow(scene: &mut Scene) -> Outcome<Finding> {
    let way = Way { bandwidth: Some(256 << 10), slice: Some(100), ..Way::default() };
    let faults = Faults { slow_close: Duration::from_secs(1), ..Faults::both(way) };
    for_a_while(scene, &faults).await
}

async fn partition(scene: &mut Scene, faults: Faults) -> Outcome<Finding> {
    scene.begin();
    each([scene.cluster.place(VICTIM)]).for_each(|proxy| proxy.set(faults.clone()));
    parted(scene).await
}

async fn mute(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let hole = || Way { blackhole: true, ..Way::default() };
    let place = scene.cluster.place(VICTIM);
    // Clients connect to it, and it connects to the supervisor: what it sends goes down there, and up here.
    if let Some(clients) = &place.clients {
        clients.set(Faults { down: hole(), ..Faults::default() });
    }
    if let Some(supervisor) = &place.supervisor {
        supervisor.set(Faults { up: hole(), ..Faults::default() });
    }
    parted(scene).await
}

async fn parted(scene: &mut Scene) -> Outcome<Finding> {
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    tokio::time::sleep_until(scene.begun + PARTED).await;
    each([scene.cluster.place(VICTIM)]).for_each(|proxy| proxy.set(Faults::default()));
    let healed = scene.heals(|_| true).await;
    Ok(Finding { detected, healed, ..Finding::default() })
}

async fn deaf(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let filter = Filter::one_way(&[scene.cluster.place(VICTIM).address.port()])?;
    // Its session with the supervisor is a connection of its own, which is whole: only clients notice.
    quiet(PARTED).await;
    drop(filter);
    let healed = scene.heals(|_| true).await;
    Ok(Finding { healed, ..Finding::default() })
}

async fn supervisor_away(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let ways = || scene.cluster.nodes.iter().filter_map(|place| place.supervisor.as_ref());
    ways().for_each(|proxy| proxy.set(Faults::partition()));
    let detected = scene.is_judged(VICTIM, Verdict::Unreachable).await;
    tokio::time::sleep_until(scene.begun + PARTED).await;
    ways().for_each(|proxy| proxy.set(Faults::default()));
    let healed = scene.heals(|_| true).await;
    Ok(Finding { detected, healed, ..Finding::default() })
}

async fn duplicates(scene: &mut Scene) -> Outcome<Finding> {
    scene.begin();
    let faults = Faults { duplicate: true, ..Faults::default() };
    let clients = || scene.cluster.nodes.iter().filter_map(|place| place.clients.as_ref());
    for proxy in clients() {
        proxy.set(faults.clone());
        // A connection is doubled from its beginning or not at all. One node after another: with all
        // connections gone at once no healthy one would be left.
        proxy.reset_share(1.0);
        quiet(Duration::from_secs(1)).await;
    }
    quiet(BAD).await;
    clients().for_each(|proxy| proxy.set(Faults::default()));
    let healed = scene.heals(|_| true).await;
    Ok(Finding { healed, ..Finding::default() })
}

async fn loss(scene: &mut Scene, percent: u32) -> Outcome<Finding> {
    scene.begin();
    let filter = Filter::loss(percent, &scene.cluster.ports())?;
    quiet(BAD).await;
    drop(filter);
    let healed = scene.heals(|_| true).await;
    Ok(Finding { healed, ..Finding::default() })
}
