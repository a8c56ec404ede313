//! What follows when a group gives up: its node's restart, then quarantine.
#![allow(missing_docs, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;

use common::{World, because, ms};
use wardkeep_steward::*;

const HOUR: u64 = 3_600_000;

fn id(ward: &str) -> WardId {
    WardId::new("n", ward)
}

/// A group "pair" of the wards a and b on node n, which can be restarted, and c in the node's own group.
fn world(pair: GroupSpec) -> World {
    let of_pair = |name| WardSpec { group: Some("pair".into()), ..WardSpec::new(name) };
    let world = World::new(Steward::new(Config::default()).with_groups([pair]));
    let mut world = world.with_node("n", vec![of_pair("a"), of_pair("b"), WardSpec::new("c")]);
    restartable(&mut world, "n");
    world.run(ms(1_000));
    world
}

fn pair() -> GroupSpec {
    GroupSpec { intensity: 2, ..GroupSpec::new("pair") }
}

fn restartable(world: &mut World, node: &str) {
    world.nodes.get_mut(node).expect("it").restartable = true;
    world.connect(node);
}

/// It crashes just often enough for its group to give up.
fn crash_until_given_up(world: &mut World, id: &WardId) {
    world.ward(id).expect("it").fails = 2;
    world.crash(id);
    world.run(ms(5_000));
}

fn restarts_of(world: &World, node: &str) -> usize {
    let node = NodeName::from(node);
    world.log.iter().filter(|(_, a)| matches!(a, Action::RestartNode { node: of, .. } if *of == node)).count()
}

fn phases(world: &World) -> [Phase; 3] {
    ["a", "b", "c"].map(|ward| world.phase(&id(ward)))
}

#[test]
fn the_node_of_a_group_that_gives_up_is_restarted_and_its_wards_begin_anew() {
    let mut world = world(pair());
    crash_until_given_up(&mut world, &id("a"));
    world.run(ms(1_000));
    assert_eq!(restarts_of(&world, "n"), 1);
    assert_eq!(world.nodes["n"].boot, 2);
    assert!(!world.notes().any(|(_, note)| matches!(note.what, What::GroupGaveUp { .. })));
    let restart = What::NodeRestart { group: Some("pair".into()) };
    let note = world.notes().find(|(_, note)| note.what == restart).expect("a note").1;
    assert_eq!((note.ward.as_ref(), note.cause.error_id.as_deref()), (Some(&id("a")), Some("E1")));
    // Their budget of restarts is whole again.
    world.crash(&id("a"));
    world.run(ms(1_000));
    assert_eq!(phases(&world), [Phase::Running; 3]);
}

#[test]
fn the_second_time_within_the_pause_is_a_quarantine_that_an_operator_can_lift() {
    let mut world = world(pair());
    world.ward(&id("a")).expect("it").broken = true;
    world.crash(&id("a"));
    world.run(ms(60_000));
    assert_eq!(restarts_of(&world, "n"), 1, "{}", world.told());
    assert_eq!(phases(&world), [Phase::Quarantined, Phase::Quarantined, Phase::Running]);
    world.ward(&id("a")).expect("it").broken = false;
    for ward in ["a", "b"] {
        world.step(Event::StartWard { ward: id(ward), cause: because("mended") });
    }
    world.run(ms(5_000));
    assert_eq!(phases(&world), [Phase::Running; 3]);
    // An hour later its node may be restarted again.
    world.run(ms(HOUR));
    crash_until_given_up(&mut world, &id("a"));
    assert_eq!(restarts_of(&world, "n"), 2);
}

#[test]
fn what_a_restart_of_the_node_would_not_help_is_quarantined_at_once() {
    let quarantines = |mut world: World| {
        crash_until_given_up(&mut world, &id("a"));
        assert_eq!(restarts_of(&world, "n"), 0);
        assert_eq!(phases(&world), [Phase::Quarantined, Phase::Quarantined, Phase::Running]);
    };
    quarantines(world(GroupSpec { escalate: Escalate::Quarantine, ..pair() }));
    // A boot that nobody says can be restarted.
    let mut fixed = world(pair());
    fixed.nodes.get_mut("n").expect("it").restartable = false;
    fixed.reboot("n");
    fixed.run(ms(1_000));
    quarantines(fixed);
    // A program has a process of its own.
    let mut programs = world(pair());
    programs.ward(&id("a")).expect("it").spec.in_process = false;
    programs.connect("n");
    quarantines(programs);
    // A failure that goes with the group, not with the node.
    let elsewhere = WardSpec { group: Some("pair".into()), ..WardSpec::new("elsewhere") };
    let mut spans = world(pair()).with_node("o", vec![elsewhere]);
    spans.run(ms(1_000));
    quarantines(spans);
}

#[test]
fn a_node_that_does_not_restart_leaves_its_group_quarantined() {
    let mut world = world(pair());
    world.nodes.get_mut("n").expect("it").idle = true;
    crash_until_given_up(&mut world, &id("a"));
    assert_eq!(phases(&world), [Phase::Stopped, Phase::Stopped, Phase::Running]);
    world.run(ESCALATION_PATIENCE);
    assert_eq!(world.noted(&What::NodeNotRestarted), 1);
    assert_eq!(phases(&world), [Phase::Quarantined, Phase::Quarantined, Phase::Running]);
    // Nobody brought it back: a restart that comes too late does not either.
    world.reboot("n");
    world.run(ms(5_000));
    assert_eq!(phases(&world), [Phase::Quarantined, Phase::Quarantined, Phase::Running]);
}

#[test]
fn one_node_of_a_fleet_is_restarted_where_all_fail_alike() {
    let steward = Steward::new(Config::default());
    let mut world = World::new(steward);
    for node in ["n", "o", "p"] {
        world = world.with_node(node, vec![WardSpec::new("a")]);
        restartable(&mut world, node);
    }
    world.run(ms(1_000));
    for node in ["n", "o", "p"] {
        world.ward(&WardId::new(node, "a")).expect("it").broken = true;
        world.crash(&WardId::new(node, "a"));
    }
    world.run(ms(120_000));
    let restarts: usize = ["n", "o", "p"].map(|node| restarts_of(&world, node)).iter().sum();
    assert_eq!(restarts, 1, "{}", world.told());
    for node in ["n", "o", "p"] {
        assert_eq!(world.phase(&WardId::new(node, "a")), Phase::Quarantined);
    }
}

#[test]
fn an_operator_need_not_wait_for_the_restart() {
    let mut world = world(pair());
    world.nodes.get_mut("n").expect("it").idle = true;
    crash_until_given_up(&mut world, &id("a"));
    world.step(Event::StartWard { ward: id("a"), cause: because("mended") });
    world.run(ms(1_000));
    assert_eq!(phases(&world), [Phase::Running, Phase::Quarantined, Phase::Running]);
    world.run(ESCALATION_PATIENCE);
    assert_eq!(world.noted(&What::NodeNotRestarted), 0);
    assert_eq!(phases(&world), [Phase::Running, Phase::Quarantined, Phase::Running]);
}

#[test]
fn leaked_threads_over_the_limit_restart_the_node() {
    let mut world = world(pair());
    let leak = |world: &mut World, threads| {
        world.step(Event::ThreadsLeaked { node: "n".into(), threads });
        world.run(ms(1_000));
    };
    leak(&mut world, 16);
    assert_eq!(restarts_of(&world, "n"), 0);
    leak(&mut world, 17);
    assert_eq!((restarts_of(&world, "n"), world.nodes["n"].boot), (1, 2));
    assert_eq!(world.noted(&What::NodeRestart { group: None }), 1);
    // Too soon to restart it again; it is when the pause is over, if they are still there.
    leak(&mut world, 20);
    world.run(ms(HOUR / 2));
    assert_eq!(restarts_of(&world, "n"), 1);
    world.run(ms(HOUR / 2));
    assert_eq!(restarts_of(&world, "n"), 2);
}

#[test]
fn a_steward_knows_which_node_was_restarted_before_its_time() {
    let memory = Memory { escalated: BTreeMap::from([("n".into(), ms(500))]), ..Memory::default() };
    let steward = Steward::new(Config::default()).with_groups([pair()]).with_memory(memory);
    let spec = WardSpec { group: Some("pair".into()), ..WardSpec::new("a") };
    let mut world = World::new(steward).with_node("n", vec![spec]);
    restartable(&mut world, "n");
    world.run(ms(1_000));
    crash_until_given_up(&mut world, &id("a"));
    assert_eq!(restarts_of(&world, "n"), 0);
    assert_eq!(world.phase(&id("a")), Phase::Quarantined);
}

#[test]
fn a_ward_that_an_operator_starts_before_its_group_has_stopped_it_lives_on_whoever_is_steward() {
    let of_group = |name| WardSpec { group: Some("g".into()), ..WardSpec::new(name) };
    let group = GroupSpec { intensity: 0, escalate: Escalate::Quarantine, ..GroupSpec::new("g") };
    let steward = || Steward::new(Config::default()).with_groups([group.clone()]);
    let world = World::new(steward());
    let mut world = world.with_node("n", vec![of_group("a"), of_group("b"), of_group("c")]);
    world.run(ms(1_000));
    // The last one to start is told to stop, and takes its time: a is still to come.
    world.ward(&id("c")).expect("it").stubborn = true;
    world.crash(&id("b"));
    world.run(ms(100));
    assert_eq!(phases(&world), [Phase::Running, Phase::Quarantined, Phase::Stopping]);
    world.step(Event::StartWard { ward: id("a"), cause: because("it is well") });
    world.ward(&id("c")).expect("it").stubborn = false;
    world.exit(&id("c"), ExitKind::Stopped);
    world.run(ms(1_000));
    let lives_on = |world: &World| {
        assert_eq!(
            phases(world),
            [Phase::Running, Phase::Quarantined, Phase::Quarantined],
            "{}",
            world.told()
        );
        assert_eq!(world.nodes["n"].wards[0].incarnation, 1);
    };
    lives_on(&world);
    world.steward = steward();
    world.connect("n");
    world.run(ms(1_000));
    lives_on(&world);
}
