//! Whatever happens in whatever order, some things hold.
#![allow(missing_docs, clippy::expect_used)]

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{FakeWard, World, because, ms};
use proptest::{prelude::*, strategy::Strategy};
use wardkeep_steward::*;

const NODES: [&str; 3] = ["m", "n", "o"];
/// In group g; in g; in its node's own; in i, which is in g; in i; in j, which is in i.
const WARDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Clone, Debug)]
enum Mishap {
    Crash(WardId),
    Done(WardId),
    Hang(WardId),
    Break(WardId, bool),
    Stop(WardId),
    Start(WardId),
    Restart(WardId),
    /// Its node hosts it no longer, or again.
    Leave(WardId),
    Join(WardId),
    Disconnect(&'static str, bool),
    Connect(&'static str),
    Freeze(&'static str, bool),
    Reboot(&'static str),
    /// A message about incarnation -`back` of what is now.
    Stale(WardId, u64, u8),
    Duplicate,
    Lag(&'static str, u16),
    /// The steward itself is away.
    Away(u16),
    /// What is sent takes so long to arrive.
    Delay(u16),
    Leak(&'static str, u8),
    Pass(u16),
}

fn ward() -> impl Strategy<Value = WardId> {
    (prop::sample::select(&NODES[..]), prop::sample::select(&WARDS[..])).prop_map(|(n, w)| WardId::new(n, w))
}

fn node() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&NODES[..])
}

/// What breaks by itself; wards that are well stay well.
fn weather() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        3 => ward().prop_map(Mishap::Crash),
        1 => (ward(), any::<bool>()).prop_map(|(ward, on)| Mishap::Break(ward, on)),
        1 => (node(), any::<bool>()).prop_map(|(node, bye)| Mishap::Disconnect(node, bye)),
        2 => node().prop_map(Mishap::Connect),
        1 => (node(), any::<bool>()).prop_map(|(node, on)| Mishap::Freeze(node, on)),
        3 => (ward(), 0..4_u64, any::<u8>()).prop_map(|(ward, back, what)| Mishap::Stale(ward, back, what)),
        2 => Just(Mishap::Duplicate),
        1 => (node(), 0..5_000_u16).prop_map(|(node, lag)| Mishap::Lag(node, lag)),
        1 => (0..5_000_u16).prop_map(Mishap::Away),
        1 => (0..400_u16).prop_map(Mishap::Delay),
        1 => (node(), 0..4_u8).prop_map(|(node, threads)| Mishap::Leak(node, threads)),
        6 => (0..3_000_u16).prop_map(Mishap::Pass),
    ]
}

fn anything() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        10 => weather(),
        1 => ward().prop_map(Mishap::Done),
        1 => ward().prop_map(Mishap::Hang),
        1 => ward().prop_map(Mishap::Stop),
        1 => ward().prop_map(Mishap::Start),
        1 => ward().prop_map(Mishap::Restart),
        1 => ward().prop_map(Mishap::Leave),
        2 => ward().prop_map(Mishap::Join),
        1 => node().prop_map(Mishap::Reboot),
    ]
}

fn strategy() -> impl Strategy<Value = wardkeep_steward::Strategy> {
    use wardkeep_steward::Strategy::{OneForAll, OneForOne, RestForOne};
    prop::sample::select(&[OneForOne, OneForAll, RestForOne][..])
}

/// How the three groups are.
#[derive(Clone, Debug)]
struct Shape {
    strategies: [wardkeep_steward::Strategy; 3],
    restarts: [Restart; 3],
    shutdowns: [AutoShutdown; 3],
    /// Of the groups i and j, and of the wards that can be.
    significant: [bool; 4],
    /// Which nodes start anew when they are told to, or only say so.
    restartable: [bool; 3],
    idle: [bool; 3],
}

fn restart() -> impl Strategy<Value = Restart> {
    prop::sample::select(
        &[Restart::Permanent, Restart::Permanent, Restart::Transient, Restart::Temporary][..],
    )
}

fn shape() -> impl Strategy<Value = Shape> {
    use AutoShutdown::{AllSignificant, AnySignificant, Never};
    let shutdown = || prop::sample::select(&[Never, Never, AnySignificant, AllSignificant][..]);
    let three = |_: usize| (strategy(), restart(), shutdown());
    let nodes = || any::<[bool; 3]>();
    let groups = [three(0), three(1), three(2)];
    (groups, any::<[bool; 4]>(), nodes(), nodes()).prop_map(|(groups, significant, restartable, idle)| {
        Shape {
            strategies: groups.map(|(strategy, ..)| strategy),
            restarts: groups.map(|(_, restart, _)| restart),
            shutdowns: groups.map(|(.., shutdown)| shutdown),
            significant,
            restartable,
            idle,
        }
    })
}

impl Shape {
    /// One-for-one throughout, and nothing shuts down.
    fn plain() -> Self {
        Self {
            strategies: Default::default(),
            restarts: Default::default(),
            shutdowns: Default::default(),
            significant: [false; 4],
            restartable: [true, true, false],
            idle: [false; 3],
        }
    }

    fn groups(&self) -> [GroupSpec; 3] {
        let [_, i, j, _] = self.significant;
        [("g", None, false), ("i", Some("g"), i), ("j", Some("i"), j)]
            .map(|(name, parent, significant)| (GroupSpec::new(name), parent, significant))
            .into_iter()
            .enumerate()
            .map(|(n, (spec, parent, significant))| GroupSpec {
                strategy: self.strategies[n],
                intensity: 3,
                period: ms(10_000),
                parent: parent.map(Into::into),
                restart: self.restarts[n],
                significant,
                auto_shutdown: self.shutdowns[n],
                ..spec
            })
            .collect::<Vec<_>>()
            .try_into()
            .expect("three")
    }

    fn spec(&self, id: &WardId) -> WardSpec {
        let (group, restart) = match &*id.ward {
            "a" => (Some("g"), Restart::Permanent),
            "b" if &*id.node == "o" => (Some("g"), Restart::Temporary),
            "b" => (Some("g"), Restart::Transient),
            "c" => (None, Restart::Permanent),
            "d" => (Some("i"), Restart::Permanent),
            "e" => (Some("i"), Restart::Transient),
            _ => (Some("j"), if &*id.node == "m" { Restart::Transient } else { Restart::Permanent }),
        };
        WardSpec {
            restart,
            group: group.map(Into::into),
            stall_timeout: Some(ms(1_000)),
            start_timeout: Some(ms(2_000)),
            significant: match &*id.ward {
                "b" => self.significant[0],
                _ => self.significant[3],
            },
            ..WardSpec::new(id.ward.clone())
        }
    }

    fn world(&self, seed: u64) -> World {
        let config = Config {
            seed,
            restart_burst: 4,
            escalation_pause: ms(30_000),
            escalation_gap: ms(5_000),
            leaked_threads: 2,
            ..Config::default()
        };
        let mut world = World::new(Steward::new(config).with_groups(self.groups()));
        for (n, name) in NODES.into_iter().enumerate() {
            let wards = WARDS.map(|ward| self.spec(&WardId::new(name, ward)));
            world = world.with_node(name, wards.into());
            let node = world.nodes.get_mut(name).expect("it");
            (node.restartable, node.idle) = (self.restartable[n], self.idle[n]);
            world.connect(name);
        }
        world
    }
}

fn befall(world: &mut World, shape: &Shape, mishap: Mishap) {
    match mishap {
        Mishap::Crash(ward) => world.crash(&ward),
        Mishap::Done(ward) => world.exit(&ward, ExitKind::Done),
        Mishap::Hang(ward) => world.hang(&ward),
        Mishap::Break(ward, on) => {
            if let Some(ward) = world.ward(&ward) {
                ward.broken = on;
            }
        }
        Mishap::Leave(ward) => leave(world, &ward),
        Mishap::Join(ward) => join(world, shape, &ward),
        Mishap::Stop(ward) => world.step(Event::StopWard { ward, cause: because("asked") }),
        Mishap::Start(ward) => world.step(Event::StartWard { ward, cause: because("asked") }),
        Mishap::Restart(ward) => world.step(Event::RestartWard { ward, cause: because("asked") }),
        Mishap::Disconnect(node, goodbye) => world.disconnect(node, goodbye),
        Mishap::Connect(node) => world.connect(node),
        Mishap::Freeze(node, on) => freeze(world, node, on),
        Mishap::Reboot(node) => world.reboot(node),
        Mishap::Stale(ward, back, what) => stale(world, ward, back, what),
        Mishap::Duplicate => {
            let copy = world.inbox.first_key_value().map(|(_, (node, event))| (node.clone(), event.clone()));
            if let Some((node, event)) = copy {
                world.send(&node, event);
            }
        }
        Mishap::Lag(node, lag) => world.nodes.get_mut(node).expect("it").lag = ms(lag.into()),
        Mishap::Away(millis) => world.now += ms(millis.into()),
        Mishap::Delay(millis) => world.delay = ms(millis.into()),
        Mishap::Leak(node, threads) => {
            world.step(Event::ThreadsLeaked { node: node.into(), threads: threads.into() });
        }
        Mishap::Pass(millis) => world.run(ms(millis.into())),
    }
}

/// A node without a session tells when it attends again.
fn leave(world: &mut World, id: &WardId) {
    let node = &world.nodes[&id.node];
    if node.frozen || world.ward(id).is_none() {
        return;
    }
    if world.nodes[&id.node].connected {
        world.leave(id);
    } else {
        world.nodes.get_mut(&id.node).expect("it").wards.retain(|ward| ward.spec.name != id.ward);
    }
}

/// It goes on with the numbers of its incarnations, as long as its node does.
fn join(world: &mut World, shape: &Shape, id: &WardId) {
    if world.nodes[&id.node].frozen || world.ward(id).is_some() {
        return;
    }
    let incarnation =
        world.steward.wards(world.now).find(|view| view.id == id).map_or(0, |view| view.incarnation);
    let ward = FakeWard { incarnation: incarnation + 5, ..FakeWard::new(shape.spec(id)) };
    if world.nodes[&id.node].connected {
        world.join(&id.node, ward);
    } else {
        world.nodes.get_mut(&id.node).expect("it").wards.push(ward);
    }
}

/// What a frozen node had sent is lost here: it comes back with a new session.
fn freeze(world: &mut World, node: &'static str, on: bool) {
    let was = std::mem::replace(&mut world.nodes.get_mut(node).expect("it").frozen, on);
    if was && !on {
        world.connect(node);
    }
}

fn stale(world: &mut World, ward: WardId, back: u64, what: u8) {
    let Some((incarnation, live)) = world.ward(&ward).map(|ward| (ward.incarnation, ward.live)) else {
        return;
    };
    let Some(incarnation) = incarnation.checked_sub(back + u64::from(live)).filter(|n| *n > 0) else {
        return;
    };
    // Only what could have been said: its end may still be on its way.
    let told = world.steward.wards(world.now).any(|view| *view.id == ward && view.incarnation > incarnation);
    if !told {
        return;
    }
    world.step(match what % 3 {
        0 => Event::WardExited { ward, incarnation, kind: ExitKind::Panicked, cause: because("late") },
        1 => Event::WardRunning { ward, incarnation },
        _ => Event::WardStarting { ward, incarnation },
    });
}

/// No group restarts more often than it may without giving up.
fn intensity_holds(world: &World, shape: &Shape) {
    let groups: BTreeMap<_, _> = world
        .steward
        .groups(world.now)
        .map(|g| (g.spec.name.clone(), (g.spec.clone(), g.parent.cloned())))
        .collect();
    let group_of = |id: &WardId| shape.spec(id).group.unwrap_or(GroupSpec::of_node(&id.node).name);
    let mut restarts: BTreeMap<Arc<str>, Vec<Time>> = BTreeMap::new();
    for (at, note) in world.notes() {
        let Some(ward) = &note.ward else { continue };
        let group = match &note.what {
            What::NodeRestart { group: Some(group) } => {
                within(&groups, group).iter().for_each(|group| drop(restarts.remove(group)));
                continue;
            }
            What::WardRestart { .. } => group_of(ward),
            What::GroupRestart { group, .. } => {
                within(&groups, group).iter().for_each(|group| drop(restarts.remove(group)));
                groups[group].1.clone().expect("a group around it")
            }
            What::Asked(Asked::Start | Asked::Restart) => {
                // It may lift a quarantine, from all groups around.
                let mut group = Some(group_of(ward));
                while let Some(name) = group {
                    group = groups.get(&name).and_then(|(_, parent)| parent.clone());
                    restarts.remove(&name);
                }
                continue;
            }
            _ => continue,
        };
        // It is gone if nothing is in it any more.
        let Some((spec, _)) = groups.get(&group) else { continue };
        let seen = restarts.entry(group.clone()).or_default();
        seen.push(at);
        seen.retain(|then| at - *then <= spec.period);
        assert!(seen.len() <= spec.intensity as usize, "{group} restarts too often: {seen:?}");
        if spec.strategy != wardkeep_steward::Strategy::OneForOne {
            // What is restarted with others begins anew.
            for inner in within(&groups, &group).into_iter().filter(|inner| *inner != group) {
                restarts.remove(&inner);
            }
        }
    }
}

/// A group and all within it.
fn within(groups: &BTreeMap<Arc<str>, (GroupSpec, Option<Arc<str>>)>, name: &Arc<str>) -> Vec<Arc<str>> {
    let mut all = vec![name.clone()];
    for inner in groups.iter().filter(|(_, (_, parent))| parent.as_ref() == Some(name)) {
        all.extend(within(groups, inner.0));
    }
    all
}

/// What is wrong goes away. Then nothing is left half done, whatever gave up or was stopped.
fn calm(world: &mut World, shape: &Shape) {
    world.delay = ms(5);
    for name in NODES {
        let node = world.nodes.get_mut(name).expect("it");
        node.lag = ms(0);
        node.wards.iter_mut().for_each(|ward| (ward.broken, ward.hangs) = (false, None));
        world.connect(name);
        for ward in WARDS {
            join(world, shape, &WardId::new(name, ward));
        }
    }
    world.run(ms(120_000));
    let half_done =
        |view: &WardView<'_>| matches!(view.phase, Phase::Starting | Phase::Stopping | Phase::Backoff);
    let left: Vec<_> =
        world.steward.wards(world.now).filter(half_done).map(|view| view.id.to_string()).collect();
    assert!(left.is_empty(), "half done: {left:?}\n{}", world.told());
    for (name, node) in &world.nodes {
        for ward in &node.wards {
            let id = WardId::new(name.clone(), ward.spec.name.clone());
            assert_eq!(ward.live, world.phase(&id) == Phase::Running, "{id}");
        }
    }
}

fn heal(world: &mut World) {
    for name in NODES {
        for ward in WARDS {
            world.step(Event::StartWard { ward: WardId::new(name, ward), cause: because("healed") });
        }
    }
    world.run(ms(60_000));
}

/// More with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(192)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    /// The world itself asserts that nothing that runs is started, and that the steward never spins.
    #[test]
    fn whatever_happens_the_fleet_heals_when_its_causes_are_gone(
        shape in shape(), seed: u64, mishaps in prop::collection::vec(anything(), 0..80),
    ) {
        let mut world = shape.world(seed);
        for mishap in mishaps {
            befall(&mut world, &shape, mishap);
        }
        calm(&mut world, &shape);
        heal(&mut world);
        intensity_holds(&world, &shape);
        for view in world.steward.wards(world.now) {
            prop_assert_eq!(view.phase, Phase::Running, "{}\n{}", view.id, world.told());
            prop_assert_eq!(view.verdict, Verdict::Healthy);
        }
        let live = world.nodes.values().flat_map(|node| &node.wards).all(|ward| ward.live && ward.ready);
        prop_assert!(live);
    }

    #[test]
    fn wards_that_are_well_are_stopped_only_when_their_group_gives_up(
        seed: u64, mishaps in prop::collection::vec(weather(), 0..80),
    ) {
        let shape = Shape::plain();
        let mut world = shape.world(seed);
        for mishap in mishaps {
            befall(&mut world, &shape, mishap);
        }
        world.run(ms(10_000));
        intensity_holds(&world, &shape);
        let ended = |what: &What| {
            use What::{GroupFailed, GroupGaveUp, NodeRestart};
            matches!(what, GroupGaveUp { .. } | GroupFailed { .. } | NodeRestart { .. })
        };
        let gave_up = world.notes().any(|(_, note)| ended(&note.what));
        let stops: Vec<_> = world.log.iter().filter(|(_, a)| matches!(a, Action::Stop { .. })).collect();
        prop_assert!(gave_up || stops.is_empty(), "{stops:?} in\n{}", world.told());
    }

    #[test]
    fn the_same_story_is_told_the_same_way_twice(
        shape in shape(), seed: u64, mishaps in prop::collection::vec(anything(), 0..40),
    ) {
        let tell = || {
            let mut world = shape.world(seed);
            mishaps.iter().for_each(|mishap| befall(&mut world, &shape, mishap.clone()));
            world.log
        };
        prop_assert_eq!(tell(), tell());
    }
}
