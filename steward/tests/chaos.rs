//! Whatever happens in whatever order, some things hold.
#![allow(missing_docs, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;

use common::{World, because, ms};
use proptest::{prelude::*, strategy::Strategy};
use wardkeep_steward::*;

const NODES: [&str; 3] = ["m", "n", "o"];
const WARDS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Mishap {
    Crash(WardId),
    Done(WardId),
    Hang(WardId),
    Break(WardId, bool),
    Stop(WardId),
    Start(WardId),
    Restart(WardId),
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
        1 => node().prop_map(Mishap::Reboot),
    ]
}

fn strategy() -> impl Strategy<Value = wardkeep_steward::Strategy> {
    use wardkeep_steward::Strategy::{OneForAll, OneForOne, RestForOne};
    prop::sample::select(&[OneForOne, OneForAll, RestForOne][..])
}

fn world(strategy: wardkeep_steward::Strategy, seed: u64) -> World {
    let group = GroupSpec { strategy, intensity: 3, period: ms(10_000), ..GroupSpec::new("g") };
    let config = Config { seed, restart_burst: 4, ..Config::default() };
    let mut world = World::new(Steward::new(config).with_groups([group]));
    for name in NODES {
        let spec = |ward: &str, restart, group: Option<&str>| WardSpec {
            restart,
            group: group.map(Into::into),
            stall_timeout: Some(ms(1_000)),
            start_timeout: Some(ms(2_000)),
            ..WardSpec::new(ward)
        };
        let wards = vec![
            spec("a", Restart::Permanent, Some("g")),
            spec("b", if name == "o" { Restart::Temporary } else { Restart::Transient }, Some("g")),
            spec("c", Restart::Permanent, None),
        ];
        world = world.with_node(name, wards);
    }
    world
}

fn befall(world: &mut World, mishap: Mishap) {
    match mishap {
        Mishap::Crash(ward) => world.crash(&ward),
        Mishap::Done(ward) => world.exit(&ward, ExitKind::Done),
        Mishap::Hang(ward) => world.hang(&ward),
        Mishap::Break(ward, on) => world.ward(&ward).expect("it").broken = on,
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
        Mishap::Pass(millis) => world.run(ms(millis.into())),
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
    let (incarnation, live) = world.ward(&ward).map(|ward| (ward.incarnation, ward.live)).expect("it");
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
fn intensity_holds(world: &World) {
    let groups: BTreeMap<_, _> =
        world.steward.groups(world.now).map(|g| (g.spec.name.clone(), g.spec)).collect();
    let of_ward: BTreeMap<_, _> = world
        .steward
        .wards(world.now)
        .map(|view| {
            let own = GroupSpec::of_node(&view.id.node).name;
            (view.id.clone(), view.spec.group.clone().unwrap_or(own))
        })
        .collect();
    let mut restarts: BTreeMap<_, Vec<Time>> = BTreeMap::new();
    for (at, note) in world.notes() {
        let Some(group) = note.ward.as_ref().and_then(|ward| of_ward.get(ward)) else { continue };
        match note.what {
            What::WardRestart { .. } => {
                let (seen, spec) = (restarts.entry(group).or_default(), groups[group]);
                seen.push(at);
                seen.retain(|then| at - *then <= spec.period);
                assert!(seen.len() <= spec.intensity as usize, "{group} restarts too often: {seen:?}");
            }
            What::Asked(Asked::Start | Asked::Restart) => drop(restarts.remove(group)),
            _ => {}
        }
    }
}

fn heal(world: &mut World) {
    world.delay = ms(5);
    for name in NODES {
        let node = world.nodes.get_mut(name).expect("it");
        node.lag = ms(0);
        node.wards.iter_mut().for_each(|ward| (ward.broken, ward.hangs) = (false, None));
        world.connect(name);
    }
    world.run(ms(60_000));
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
        strategy in strategy(), seed: u64, mishaps in prop::collection::vec(anything(), 0..80),
    ) {
        let mut world = world(strategy, seed);
        for mishap in mishaps {
            befall(&mut world, mishap);
        }
        heal(&mut world);
        intensity_holds(&world);
        for view in world.steward.wards(world.now) {
            prop_assert_eq!(view.phase, Phase::Running, "{} {:#?}", view.id, world.log);
            prop_assert_eq!(view.verdict, Verdict::Healthy);
        }
        let live = world.nodes.values().flat_map(|node| &node.wards).all(|ward| ward.live && ward.ready);
        prop_assert!(live);
    }

    #[test]
    fn wards_that_are_well_are_stopped_only_when_their_group_gives_up(
        seed: u64, mishaps in prop::collection::vec(weather(), 0..80),
    ) {
        let mut world = world(wardkeep_steward::Strategy::OneForOne, seed);
        for mishap in mishaps {
            befall(&mut world, mishap);
        }
        world.run(ms(10_000));
        intensity_holds(&world);
        let gave_up = world.notes().any(|(_, note)| matches!(note.what, What::GroupGaveUp { .. }));
        let stops: Vec<_> = world.log.iter().filter(|(_, a)| matches!(a, Action::Stop { .. })).collect();
        prop_assert!(gave_up || stops.is_empty(), "{stops:?} in {:#?}", world.log);
    }

    #[test]
    fn the_same_story_is_told_the_same_way_twice(
        strategy in strategy(), seed: u64, mishaps in prop::collection::vec(anything(), 0..40),
    ) {
        let tell = || {
            let mut world = world(strategy, seed);
            mishaps.iter().for_each(|mishap| befall(&mut world, mishap.clone()));
            world.log
        };
        prop_assert_eq!(tell(), tell());
    }
}
