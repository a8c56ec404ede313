//! The scenario matrix of OTP's `supervisor_SUITE`, under the names its cases have there. What they say
//! is told anew in our words: a supervisor is a group, a child a ward or a group in it. Where we differ by
//! design (docs/decisions/0006), the case says how.
//!
//! Cases without a meaning here:
//! * `sup_start_ignore_init`, `sup_start_error_return`, `sup_start_fail`: a group has no code of its own that
//!   could fail or decline. `sup_start_ignore_temporary_child*`, `sup_start_ignore_permanent_child_*`,
//!   `simple_one_for_one_restart_ignore`: a ward cannot decline its start; the nearest is one that only an
//!   operator starts (`sup_start_ignore_child`).
//! * `sup_start_map*`, `sup_flags`, `child_specs*`, `code_change*`, `significant_upgrade_*`: checks and live
//!   changes of Erlang's spec terms. Ours are typed; a node that attends again brings changed ones.
//! * `faulty_application_shutdown`: OTP applications. `simple_global_supervisor`: names of processes.
//! * `extra_return`, `simple_one_for_one_extra`, `which_children*`, `get_callback_module`, `format_log_*`,
//!   `already_started_outside_supervisor`: return values and log forms of OTP's functions.
//! * `do_not_save_start_parameters_*`, `do_not_save_child_specs_*`: temporary wards keep their spec, for it
//!   belongs to their node; a node that lets one go says so (`simple_one_for_one_scale_many_...`).
#![allow(missing_docs, clippy::expect_used)]

mod common;

use common::{FakeWard, World, because, ms};
use wardkeep_steward::*;

use Restart::{Permanent, Temporary, Transient};
use Strategy::{OneForAll, OneForOne, RestForOne};

fn id(ward: &str) -> WardId {
    WardId::new("n", ward)
}

fn ward(name: &str, restart: Restart) -> WardSpec {
    WardSpec { group: Some("g".into()), restart, ..WardSpec::new(name) }
}

/// A group that does not pause before restarts, as OTP does not.
fn group(strategy: Strategy, intensity: u32) -> GroupSpec {
    let backoff = Backoff { first: ms(0), max: ms(0), reset: ms(0) };
    GroupSpec { strategy, intensity, period: ms(3_600_000), backoff, ..GroupSpec::new("g") }
}

fn inner(name: &str, restart: Restart) -> GroupSpec {
    GroupSpec { name: name.into(), parent: Some("g".into()), restart, ..group(OneForOne, 0) }
}

fn in_group(name: &str, of: &str) -> WardSpec {
    WardSpec { group: Some(of.into()), ..WardSpec::new(name) }
}

fn significant(name: &str, restart: Restart) -> WardSpec {
    WardSpec { significant: true, ..ward(name, restart) }
}

fn never_short_of_restarts() -> Config {
    Config { restart_burst: u32::MAX, ..Config::default() }
}

/// These groups over these wards of one node, all up, with an empty log.
fn world(groups: impl IntoIterator<Item = GroupSpec>, wards: impl Into<Vec<WardSpec>>) -> World {
    let steward = Steward::new(never_short_of_restarts()).with_groups(groups);
    let mut world = World::new(steward).with_node("n", wards.into());
    world.run(ms(1_000));
    world.log.clear();
    world
}

/// One group of permanent wards a, b, c.
fn three(strategy: Strategy, intensity: u32) -> World {
    world([group(strategy, intensity)], ["a", "b", "c"].map(|name| ward(name, Permanent)))
}

fn settle(world: &mut World) {
    world.run(ms(500));
}

fn exit(world: &mut World, ward: &str, kind: ExitKind) {
    world.exit(&id(ward), kind);
    settle(world);
}

fn crash(world: &mut World, ward: &str) {
    exit(world, ward, ExitKind::Panicked);
}

fn fails(world: &mut World, ward: &str, times: u32) {
    world.ward(&id(ward)).expect("it").fails = times;
}

fn ask_stop(world: &mut World, ward: &str) {
    world.step(Event::StopWard { ward: id(ward), cause: because("asked") });
    settle(world);
}

fn ask_start(world: &mut World, ward: &str) {
    world.step(Event::StartWard { ward: id(ward), cause: because("asked") });
    settle(world);
}

fn done(world: &mut World) -> String {
    let commands = world.commands().concat();
    world.log.clear();
    commands
}

fn alive(world: &World) -> String {
    world
        .nodes
        .values()
        .flat_map(|node| &node.wards)
        .filter(|ward| ward.live)
        .map(|ward| &*ward.spec.name)
        .collect()
}

fn gave_up(world: &World, name: &str) -> bool {
    world.steward.groups(world.now).any(|view| &*view.spec.name == name && view.gave_up)
}

fn count(world: &World, phase: Phase) -> usize {
    world.steward.wards(world.now).filter(|view| view.phase == phase).count()
}

// ---- start and stop

#[test]
fn sup_start_normal() {
    let world = world([group(OneForOne, 2)], []);
    assert!(world.log.is_empty());
    assert!(!gave_up(&world, "g"));
}

#[test]
fn sup_start_ignore_child() {
    let manual = WardSpec { manual_start: true, ..ward("a", Permanent) };
    let mut world = world([group(OneForAll, 2)], [manual, ward("b", Permanent)]);
    assert_eq!((alive(&world).as_str(), world.phase(&id("a"))), ("b", Phase::Stopped));
    crash(&mut world, "b");
    assert_eq!(done(&mut world), "+b", "it is not started with the others either");
}

/// OTP leaves a child whose first start fails to its caller; here it is a failure like any other, for a
/// ward is started by what its spec says, and by nobody who could wait for the answer.
#[test]
fn sup_start_child_returns_error() {
    let mut world = three(OneForOne, 2);
    world.join("n", FakeWard { fails: 1, ..FakeWard::new(ward("d", Permanent)) });
    settle(&mut world);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("+d+d", "abcd"));
}

#[test]
fn sup_start_restart_child_returns_error() {
    let mut world = three(OneForOne, 2);
    ask_stop(&mut world, "b");
    fails(&mut world, "b", 1);
    ask_start(&mut world, "b");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-b+b+b", "abc"));
}

/// The graces of the stops that were sent, and which wards they were for.
fn graces(world: &World) -> Vec<(String, std::time::Duration)> {
    let stop = |(_, action): &(Time, Action)| match action {
        Action::Stop { ward, grace, .. } => Some((ward.ward.to_string(), *grace)),
        _ => None,
    };
    world.log.iter().filter_map(stop).collect()
}

fn with_grace(grace: std::time::Duration) -> World {
    let stubborn = WardSpec { grace, ..ward("b", Permanent) };
    let mut world = world([group(OneForAll, 2)], [ward("a", Permanent), stubborn, ward("c", Permanent)]);
    world.ward(&id("b")).expect("it").stubborn = true;
    crash(&mut world, "c");
    world
}

/// `infinity`: whatever it takes, nothing goes on before it has ended, and it is told once.
#[test]
fn sup_stop_infinity() {
    let mut world = with_grace(std::time::Duration::MAX);
    world.run(ms(24 * 3_600_000));
    assert_eq!(graces(&world), [("b".into(), std::time::Duration::MAX)]);
    assert_eq!(done(&mut world), "-b");
    exit(&mut world, "b", ExitKind::Stopped);
    assert_eq!(done(&mut world), "-a+a+b+c");
}

/// A time-out is the node's to keep; a stop that has no effect long after it is sent again.
#[test]
fn sup_stop_timeout() {
    let mut world = with_grace(ms(1_000));
    assert_eq!(graces(&world), [("b".into(), ms(1_000))]);
    world.run(ms(1_000) + REPEAT_AFTER);
    assert_eq!(graces(&world).len(), 2);
    exit(&mut world, "b", ExitKind::Abandoned);
    assert_eq!(done(&mut world), "-b-b-a+a+b+c", "what was left behind is replaced");
}

#[test]
fn sup_stop_brutal_kill() {
    let mut world = with_grace(ms(0));
    assert_eq!(graces(&world), [("b".into(), ms(0))]);
    exit(&mut world, "b", ExitKind::Abandoned);
    assert_eq!(done(&mut world), "-b-a+a+b+c");
}

#[test]
fn child_adm() {
    let mut world = three(OneForOne, 2);
    world.join("n", FakeWard::new(ward("d", Permanent)));
    settle(&mut world);
    assert_eq!(done(&mut world), "+d");
    ask_stop(&mut world, "d");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-d", "abc"));
    ask_start(&mut world, "d");
    assert_eq!(done(&mut world), "+d");
    ask_start(&mut world, "d");
    assert_eq!(done(&mut world), "", "it runs");
    ask_stop(&mut world, "d");
    world.leave(&id("d"));
    ask_start(&mut world, "d");
    assert_eq!(done(&mut world), "-d", "it is not known any more");
    assert_eq!(world.steward.wards(world.now).count(), 3);
}

#[test]
fn child_adm_simple() {
    let mut world = world([group(OneForOne, 2)], []);
    for name in ["a", "b"] {
        world.join("n", FakeWard::new(ward(name, Permanent)));
    }
    settle(&mut world);
    crash(&mut world, "a");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("+a+b+a", "ab"));
    world.leave(&id("a"));
    world.step(Event::WardExited {
        ward: id("a"),
        incarnation: 2,
        kind: ExitKind::Failed,
        cause: because("late"),
    });
    settle(&mut world);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("", "b"));
}

// ---- restart types

/// A ward of this type beside a bystander; what follows its end.
fn after_end(restart: Restart, kind: ExitKind) -> (String, Phase) {
    let mut world = world([group(OneForOne, 2)], [ward("a", restart), ward("b", Permanent)]);
    exit(&mut world, "a", kind);
    (done(&mut world), world.phase(&id("a")))
}

fn is_restarted(restart: Restart, kinds: &[ExitKind]) {
    for kind in kinds {
        assert_eq!(after_end(restart, *kind), ("+a".into(), Phase::Running), "{restart:?} after {kind:?}");
    }
}

fn is_left(restart: Restart, kinds: &[ExitKind]) {
    for kind in kinds {
        assert_eq!(after_end(restart, *kind), (String::new(), Phase::Stopped), "{restart:?} after {kind:?}");
    }
}

const ABNORMAL: [ExitKind; 4] =
    [ExitKind::Failed, ExitKind::Panicked, ExitKind::Abandoned, ExitKind::StartFailed];

#[test]
fn permanent_normal() {
    is_restarted(Permanent, &[ExitKind::Done]);
}

#[test]
fn transient_normal() {
    is_left(Transient, &[ExitKind::Done]);
}

#[test]
fn temporary_normal() {
    is_left(Temporary, &[ExitKind::Done]);
}

#[test]
fn permanent_shutdown() {
    is_restarted(Permanent, &[ExitKind::Stopped]);
}

#[test]
fn transient_shutdown() {
    is_left(Transient, &[ExitKind::Stopped]);
}

#[test]
fn temporary_shutdown() {
    is_left(Temporary, &[ExitKind::Stopped]);
}

#[test]
fn permanent_abnormal() {
    is_restarted(Permanent, &ABNORMAL);
}

#[test]
fn transient_abnormal() {
    is_restarted(Transient, &ABNORMAL);
}

#[test]
fn temporary_abnormal() {
    is_left(Temporary, &ABNORMAL);
}

#[test]
fn temporary_bystander() {
    for strategy in [OneForAll, RestForOne] {
        let mut world = world([group(strategy, 2)], [ward("a", Permanent), ward("b", Temporary)]);
        crash(&mut world, "a");
        assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-b+a", "a"), "{strategy:?}");
    }
}

// ---- strategies

#[test]
fn multiple_restarts() {
    for strategy in [OneForOne, OneForAll, RestForOne] {
        let mut world = three(strategy, 4);
        for ward in ["a", "b", "c"] {
            world.crash(&id(ward));
        }
        settle(&mut world);
        assert_eq!(alive(&world), "abc", "{strategy:?}");
        assert!(!gave_up(&world, "g"));
    }
}

#[test]
fn one_for_one() {
    let mut world = three(OneForOne, 2);
    crash(&mut world, "a");
    assert_eq!(done(&mut world), "+a");
    assert_eq!(alive(&world), "abc");
}

/// Gives up with the third restart; what is left stops in reverse order. OTP's supervisor would be gone:
/// here its wards are quarantined until an operator starts them.
fn escalates(strategy: Strategy, order: &str) {
    let mut world = three(strategy, 2);
    fails(&mut world, "b", 5);
    crash(&mut world, "b");
    assert_eq!(done(&mut world), order);
    assert!(gave_up(&world, "g"));
    assert_eq!((alive(&world).as_str(), count(&world, Phase::Quarantined)), ("", 3));
    fails(&mut world, "b", 0);
    for ward in ["a", "b", "c"] {
        ask_start(&mut world, ward);
    }
    assert_eq!((alive(&world).as_str(), gave_up(&world, "g")), ("abc", false));
}

#[test]
fn one_for_one_escalation() {
    escalates(OneForOne, "+b+b-c-a");
}

#[test]
fn one_for_all() {
    let mut world = three(OneForAll, 2);
    crash(&mut world, "b");
    assert_eq!(done(&mut world), "-c-a+a+b+c");
}

#[test]
fn one_for_all_escalation() {
    escalates(OneForAll, "-c-a+a+b-a+a+b-a");
}

#[test]
fn one_for_all_other_child_fails_restart() {
    let mut world = three(OneForAll, 3);
    fails(&mut world, "c", 1);
    crash(&mut world, "a");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c-b+a+b+c-b-a+a+b+c", "abc"));
}

#[test]
fn rest_for_one() {
    let mut world = three(RestForOne, 2);
    crash(&mut world, "b");
    assert_eq!(done(&mut world), "-c+b+c");
}

#[test]
fn rest_for_one_escalation() {
    escalates(RestForOne, "-c+b+b-a");
}

#[test]
fn rest_for_one_other_child_fails_restart() {
    let mut world = three(RestForOne, 3);
    fails(&mut world, "c", 1);
    crash(&mut world, "b");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c+b+c+c", "abc"));
}

/// OTP starts what someone terminated along with the others; here that person has the last word.
#[test]
fn what_an_operator_stopped_is_not_started_with_its_group() {
    let mut world = three(OneForAll, 2);
    ask_stop(&mut world, "a");
    crash(&mut world, "b");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-a-c+b+c", "bc"));
}

#[test]
fn restarts_older_than_the_period_do_not_count() {
    let spec = GroupSpec { period: ms(10_000), ..group(OneForOne, 2) };
    let mut world = world([spec], ["a", "b", "c"].map(|name| ward(name, Permanent)));
    for _ in 0..20 {
        crash(&mut world, "a");
        crash(&mut world, "b");
        world.run(ms(10_001));
    }
    assert_eq!((alive(&world).as_str(), gave_up(&world, "g")), ("abc", false));
    for ward in ["a", "b", "c"] {
        crash(&mut world, ward);
    }
    assert!(gave_up(&world, "g"));
}

// ---- dynamic groups

/// Wards that come and go at run time.
fn dynamic(intensity: u32, restart: Restart, names: &[&str]) -> World {
    let mut world = world([group(OneForOne, intensity)], []);
    for name in names {
        world.join("n", FakeWard::new(ward(name, restart)));
    }
    settle(&mut world);
    world.log.clear();
    world
}

#[test]
fn simple_one_for_one() {
    let mut world = dynamic(2, Permanent, &["a", "b"]);
    crash(&mut world, "a");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("+a", "ab"));
}

/// OTP stops such children in no order; we in the reverse order of their coming.
#[test]
fn simple_one_for_one_shutdown() {
    let mut world = dynamic(0, Permanent, &["a", "b", "c"]);
    crash(&mut world, "b");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c-a", ""));
}

#[test]
fn simple_one_for_one_escalation() {
    let mut world = dynamic(4, Permanent, &["a", "b"]);
    fails(&mut world, "a", 9);
    crash(&mut world, "a");
    assert_eq!((done(&mut world).as_str(), gave_up(&world, "g")), ("+a+a+a+a-b", true));
}

#[test]
fn simple_one_for_one_scale_many_temporary_children() {
    let mut world = dynamic(0, Temporary, &[]);
    for round in 0..10 {
        let names: Vec<_> = (0..200).map(|n| format!("w{round}-{n}")).collect();
        for name in &names {
            world.join("n", FakeWard::new(ward(name, Temporary)));
        }
        settle(&mut world);
        for name in &names {
            world.exit(&id(name), ExitKind::Done);
        }
        settle(&mut world);
        for name in &names {
            world.leave(&id(name));
        }
    }
    let views = world.steward.groups(world.now).map(|view| view.members.len()).sum::<usize>();
    assert_eq!((world.steward.wards(world.now).count(), views), (0, 0), "nothing is kept of them");
}

#[test]
fn order_of_children() {
    let mut world = three(OneForAll, 2);
    for name in ["e", "d"] {
        world.join("n", FakeWard::new(ward(name, Permanent)));
        settle(&mut world);
    }
    assert_eq!(done(&mut world), "+e+d");
    world.leave(&id("b"));
    crash(&mut world, "a");
    assert_eq!(done(&mut world), "-d-e-c+a+c+e+d");
}

#[test]
fn scale_start_stop_many_children() {
    let names: Vec<_> = (0..1_000).map(|n| format!("w{n}")).collect();
    let wards: Vec<_> = names.iter().map(|name| ward(name, Permanent)).collect();
    let mut world = world([group(OneForAll, 2)], wards);
    world.delay = ms(0);
    crash(&mut world, "w500");
    let commands = world.commands();
    assert_eq!(commands.len(), 1_999);
    assert_eq!((commands[0].as_str(), commands[998].as_str()), ("-w999", "-w0"));
    assert_eq!((commands[999].as_str(), commands[1_998].as_str()), ("+w0", "+w999"));
}

// ---- significant members

/// Significant a and b end one after the other, beside permanent c and d: what follows each end.
fn ends(shutdown: AutoShutdown, restart: Restart, kind: ExitKind) -> [String; 2] {
    let spec = GroupSpec { auto_shutdown: shutdown, ..group(OneForOne, 2) };
    let wards =
        [significant("a", restart), significant("b", restart), ward("c", Permanent), ward("d", Permanent)];
    let mut world = world([spec], wards);
    let followed = ["a", "b"].map(|ward| {
        exit(&mut world, ward, kind);
        done(&mut world)
    });
    let quarantined = count(&world, Phase::Quarantined);
    assert_eq!((quarantined, gave_up(&world, "g")), (0, false), "to shut down is no failure");
    followed
}

const WELL: [ExitKind; 2] = [ExitKind::Done, ExitKind::Stopped];

fn insignificant(restart: Restart) {
    for shutdown in [AutoShutdown::AnySignificant, AutoShutdown::AllSignificant] {
        let spec = GroupSpec { auto_shutdown: shutdown, ..group(OneForOne, 2) };
        let mut world = world([spec], [ward("a", restart), significant("b", restart)]);
        exit(&mut world, "a", ExitKind::Done);
        assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("", "b"), "{shutdown:?}");
    }
}

#[test]
fn nonsignificant_temporary() {
    insignificant(Temporary);
}

#[test]
fn nonsignificant_transient() {
    insignificant(Transient);
}

#[test]
fn significant_temporary() {
    for kind in WELL.into_iter().chain(ABNORMAL) {
        assert_eq!(ends(AutoShutdown::AnySignificant, Temporary, kind), ["-d-c-b", ""], "{kind:?}");
        assert_eq!(ends(AutoShutdown::AllSignificant, Temporary, kind), ["", "-d-c"], "{kind:?}");
    }
}

#[test]
fn significant_transient() {
    for kind in WELL {
        assert_eq!(ends(AutoShutdown::AnySignificant, Transient, kind), ["-d-c-b", ""], "{kind:?}");
        assert_eq!(ends(AutoShutdown::AllSignificant, Transient, kind), ["", "-d-c"], "{kind:?}");
    }
    for kind in ABNORMAL {
        assert_eq!(ends(AutoShutdown::AnySignificant, Transient, kind), ["+a", "+b"], "{kind:?}");
        assert_eq!(ends(AutoShutdown::AllSignificant, Transient, kind), ["+a", "+b"], "{kind:?}");
    }
}

#[test]
fn a_group_that_never_shuts_down_does_not_though_its_significant_members_end() {
    let mut world = world([group(OneForOne, 2)], [significant("a", Transient), ward("b", Permanent)]);
    exit(&mut world, "a", ExitKind::Done);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("", "b"));
}

#[test]
fn significant_simple() {
    let spec = GroupSpec { auto_shutdown: AutoShutdown::AllSignificant, ..group(OneForOne, 2) };
    let mut world = world([spec], []);
    for name in ["a", "b"] {
        world.join("n", FakeWard::new(significant(name, Temporary)));
    }
    settle(&mut world);
    world.join("n", FakeWard::new(ward("c", Permanent)));
    settle(&mut world);
    exit(&mut world, "b", ExitKind::Panicked);
    assert_eq!(done(&mut world), "+a+b+c");
    exit(&mut world, "a", ExitKind::Done);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c", ""));
}

/// What a group's restart stops, or an operator, has not ended by itself.
#[test]
fn significant_bystander() {
    for shutdown in [AutoShutdown::AnySignificant, AutoShutdown::AllSignificant] {
        let spec = GroupSpec { auto_shutdown: shutdown, ..group(OneForAll, 2) };
        let wards = [ward("a", Permanent), significant("b", Temporary), significant("c", Transient)];
        let mut world = world([spec], wards);
        crash(&mut world, "a");
        assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c-b+a+c", "ac"), "{shutdown:?}");
        ask_stop(&mut world, "c");
        assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c", "a"), "{shutdown:?}");
    }
}

/// A group that shuts down is for its parent a member that ended well; if it is significant, the parent
/// shuts down too.
#[test]
fn significant_escalation() {
    let outer = GroupSpec { auto_shutdown: AutoShutdown::AnySignificant, ..group(OneForOne, 2) };
    let shuts =
        GroupSpec { significant: true, auto_shutdown: AutoShutdown::AnySignificant, ..inner("i", Transient) };
    let done_with = WardSpec { restart: Transient, significant: true, ..in_group("c", "i") };
    let mut world =
        world([outer, shuts], [ward("a", Permanent), in_group("b", "i"), done_with, ward("d", Permanent)]);
    exit(&mut world, "c", ExitKind::Done);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-b-d-a", ""));
    assert_eq!((count(&world, Phase::Stopped), gave_up(&world, "g")), (4, false));
}

/// A new start of a node begins with what was held down, as after an operator's stop.
#[test]
fn what_shut_down_is_held_by_its_node_until_someone_starts_it() {
    let spec = GroupSpec { auto_shutdown: AutoShutdown::AnySignificant, ..group(OneForOne, 2) };
    let mut world = world([spec], [significant("a", Transient), ward("b", Permanent)]);
    exit(&mut world, "a", ExitKind::Done);
    let hold = Action::Hold { ward: id("b"), incarnation: 1, quarantined: false };
    assert!(world.log.iter().any(|(_, action)| *action == hold), "{:?}", world.log);
    ask_start(&mut world, "b");
    assert_eq!(alive(&world), "b");
}

// ---- the rest

/// A child that gets away from its supervisor: an end that nobody told of.
#[test]
fn child_unlink() {
    let mut world = three(OneForOne, 2);
    world.disconnect("n", false);
    world.crash(&id("b"));
    world.connect("n");
    settle(&mut world);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("+b", "abc"));
}

/// `g` is a, then the group i (b, c), then d.
fn nested(outer: Strategy, of: GroupSpec) -> World {
    let wards = [ward("a", Permanent), in_group("b", "i"), in_group("c", "i"), ward("d", Permanent)];
    world([group(outer, 1), of], wards)
}

#[test]
fn tree() {
    let restarted = [(OneForOne, "-b+b+c"), (OneForAll, "-b-d-a+a+b+c+d"), (RestForOne, "-b-d+b+c+d")];
    for (strategy, order) in restarted {
        let mut world = nested(strategy, inner("i", Permanent));
        crash(&mut world, "c");
        assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), (order, "abcd"), "{strategy:?}");
        assert!(!gave_up(&world, "i"));
        crash(&mut world, "b");
        assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c-d-a", ""), "{strategy:?}");
        assert!(gave_up(&world, "g"), "the outermost group gives up");
        assert_eq!(count(&world, Phase::Quarantined), 4);
    }
}

#[test]
fn a_group_begins_anew_with_a_new_budget_and_what_had_ended() {
    let once = GroupSpec { intensity: 1, ..inner("i", Permanent) };
    let over = WardSpec { restart: Temporary, ..in_group("x", "i") };
    let mut world = world([group(OneForOne, 1), once], [in_group("b", "i"), over]);
    exit(&mut world, "x", ExitKind::Done);
    crash(&mut world, "b");
    assert_eq!(done(&mut world), "+b");
    crash(&mut world, "b");
    assert_eq!(done(&mut world), "+b+x");
    crash(&mut world, "b");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("+b", "bx"));
}

/// To give up is to end well for the group around (OTP's exit reason `shutdown`): what is not permanent
/// is not restarted for it. It waits for an operator.
#[test]
fn a_transient_group_that_gives_up_is_quarantined_and_its_parent_goes_on() {
    for restart in [Transient, Temporary] {
        let mut world = nested(OneForOne, inner("i", restart));
        crash(&mut world, "b");
        assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c", "ad"));
        assert_eq!((gave_up(&world, "i"), gave_up(&world, "g")), (true, false));
        assert_eq!(count(&world, Phase::Quarantined), 2);
        ask_start(&mut world, "b");
        assert_eq!((alive(&world).as_str(), gave_up(&world, "i")), ("abd", false));
    }
}

#[test]
fn what_the_outermost_group_quarantined_waits_for_an_operator_wherever_it_was() {
    let mut world = nested(OneForAll, inner("i", Permanent));
    crash(&mut world, "b");
    crash(&mut world, "c");
    assert_eq!(count(&world, Phase::Quarantined), 4);
    ask_start(&mut world, "a");
    crash(&mut world, "a");
    assert_eq!(alive(&world), "a", "its group is restarted without them");
}

/// The world asserts that nothing that runs is started.
#[test]
fn a_ward_that_is_asked_for_before_its_group_has_stopped_it_is_spared() {
    let wards = [ward("a", Permanent), in_group("b", "i"), in_group("c", "i"), in_group("d", "i")];
    let mut world = world([group(OneForOne, 0), inner("i", Permanent)], wards);
    world.ward(&id("d")).expect("it").stubborn = true;
    crash(&mut world, "b");
    crash(&mut world, "a");
    assert_eq!((done(&mut world).as_str(), gave_up(&world, "g")), ("-d", true));
    ask_start(&mut world, "c");
    exit(&mut world, "d", ExitKind::Stopped);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("", "c"));
}

#[test]
fn a_ward_that_could_not_be_reached_when_its_group_gave_up_is_stopped_when_it_is_heard_again() {
    let groups = [group(OneForOne, 1), inner("i", Transient)];
    let steward = Steward::new(never_short_of_restarts()).with_groups(groups);
    let world = World::new(steward).with_node("n", vec![in_group("b", "i")]);
    let mut world = world.with_node("m", vec![in_group("c", "i")]);
    settle(&mut world);
    let frozen = |world: &mut World, on| world.nodes.get_mut("m").expect("it").frozen = on;
    frozen(&mut world, true);
    world.run(ms(20_000));
    crash(&mut world, "b");
    assert!(gave_up(&world, "i"));
    assert_eq!(alive(&world), "c");
    frozen(&mut world, false);
    world.run(ms(2_000));
    assert_eq!((alive(&world).as_str(), count(&world, Phase::Quarantined)), ("", 2));
}

#[test]
fn a_group_restarts_inside_while_the_groups_around_go_on() {
    let of = GroupSpec { strategy: OneForAll, intensity: 3, ..inner("i", Permanent) };
    let mut world = nested(OneForAll, of);
    crash(&mut world, "c");
    assert_eq!(done(&mut world), "-b+b+c");
    fails(&mut world, "c", 1);
    crash(&mut world, "a");
    assert_eq!(done(&mut world), "-d-c-b+a+b+c-b+b+c+d", "d waits until the group before it is up");
}

/// What a group's restart has ended does not count among what is still active.
#[test]
fn a_significant_group_that_is_left_behind_does_not_keep_the_group_around_it_from_shutting_down() {
    let outer = GroupSpec { auto_shutdown: AutoShutdown::AllSignificant, ..group(OneForAll, 2) };
    let left = GroupSpec { significant: true, ..inner("i", Temporary) };
    let wards = [ward("a", Permanent), in_group("b", "i"), significant("c", Transient)];
    let mut world = world([outer, left], wards);
    crash(&mut world, "a");
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-c-b+a+c", "ac"));
    exit(&mut world, "c", ExitKind::Done);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-a", ""));
}

#[test]
fn a_temporary_group_that_is_left_behind_in_the_middle_of_its_restart_rests() {
    let of = GroupSpec { strategy: OneForAll, intensity: 3, ..inner("i", Temporary) };
    let mut world = nested(OneForAll, of);
    world.ward(&id("b")).expect("it").stubborn = true;
    crash(&mut world, "c");
    assert_eq!(world.phase(&id("c")), Phase::Backoff);
    crash(&mut world, "a");
    exit(&mut world, "b", ExitKind::Stopped);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("-b-d+a+d", "ad"));
    assert_eq!(count(&world, Phase::Stopped), 2);
}

#[test]
fn a_circle_of_groups_is_cut_and_very_deep_nesting_too() {
    let of = |name: &str, parent: &str| GroupSpec {
        name: name.into(),
        parent: Some(parent.into()),
        ..group(OneForAll, 9)
    };
    let mut circle =
        world([of("x", "y"), of("y", "z"), of("z", "x")], [in_group("a", "x"), in_group("b", "y")]);
    crash(&mut circle, "a");
    assert_eq!(alive(&circle), "ab");
    let deep: Vec<_> = (0..1_000).map(|n| of(&format!("d{n}"), &format!("d{}", n + 1))).collect();
    let mut deep = world(deep, [in_group("a", "d0"), in_group("b", "d999")]);
    crash(&mut deep, "a");
    assert_eq!(alive(&deep), "ab");
    let most = deep.steward.groups(deep.now).filter(|view| view.parent.is_some()).count();
    assert!(most > 900, "{most}");
}

#[test]
fn count_children() {
    let mut world = three(OneForOne, 2);
    ask_stop(&mut world, "b");
    let views = world.steward.groups(world.now).map(|view| view.members.len()).sum::<usize>();
    assert_eq!((views, count(&world, Phase::Running)), (3, 2));
}

#[test]
fn count_children_supervisor() {
    let world = nested(OneForOne, inner("i", Permanent));
    let of: Vec<_> = world
        .steward
        .groups(world.now)
        .map(|view| (view.spec.name.to_string(), view.parent.map(ToString::to_string), view.members.len()))
        .collect();
    assert_eq!(of, [("g".into(), None, 2), ("i".into(), Some("g".into()), 2)]);
}

/// With pauses between its attempts, a ward that does not come up is seen to wait.
#[test]
fn count_restarting_children() {
    let spec = GroupSpec { backoff: Backoff::default(), ..group(OneForOne, 50) };
    let mut world = world([spec], [ward("a", Permanent), ward("b", Permanent)]);
    world.ward(&id("a")).expect("it").broken = true;
    world.crash(&id("a"));
    world.run(ms(20));
    assert_eq!((count(&world, Phase::Backoff), count(&world, Phase::Running)), (1, 1));
    world.ward(&id("a")).expect("it").broken = false;
    world.run(ms(30_000));
    assert_eq!((count(&world, Phase::Backoff), count(&world, Phase::Running)), (0, 2));
}

/// A ward that fails to start again and again, in a group that would go on for very long: whatever else
/// is asked for is done meanwhile, and the loop can be ended.
fn hangs(strategy: Strategy) -> World {
    let mut world = three(strategy, 1_000_000);
    world.ward(&id("b")).expect("it").broken = true;
    world.crash(&id("b"));
    world.run(ms(200));
    assert!(!gave_up(&world, "g"));
    world.log.clear();
    world.run(ms(200));
    assert!(!world.commands().is_empty(), "it goes on");
    world
}

#[test]
fn hanging_restart_loop() {
    let mut world = hangs(OneForOne);
    world.join("n", FakeWard::new(ward("d", Permanent)));
    world.crash(&id("a"));
    settle(&mut world);
    for ward in ["a", "c", "d"] {
        assert_eq!(world.phase(&id(ward)), Phase::Running, "{ward}");
    }
    ask_start(&mut world, "b");
    ask_stop(&mut world, "b");
    world.log.clear();
    settle(&mut world);
    assert_eq!((done(&mut world).as_str(), world.phase(&id("b"))), ("", Phase::Stopped));
}

#[test]
fn hanging_restart_loop_rest_for_one() {
    let mut world = hangs(RestForOne);
    assert_eq!(world.phase(&id("a")), Phase::Running);
    ask_stop(&mut world, "b");
    settle(&mut world);
    assert_eq!(alive(&world), "ac", "those after it do not wait for it for ever");
    world.ward(&id("b")).expect("it").broken = false;
    ask_start(&mut world, "b");
    assert_eq!(alive(&world), "abc");
}

#[test]
fn hanging_restart_loop_simple() {
    let mut world = dynamic(1_000_000, Permanent, &["a", "b"]);
    world.ward(&id("a")).expect("it").broken = true;
    world.crash(&id("a"));
    settle(&mut world);
    world.leave(&id("a"));
    world.log.clear();
    settle(&mut world);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("", "b"));
}

/// A stop, too, may hang: a start that is asked for meanwhile follows it.
#[test]
fn a_start_that_is_asked_for_during_a_stop_follows_it() {
    let mut world = three(OneForOne, 2);
    world.ward(&id("b")).expect("it").stubborn = true;
    ask_stop(&mut world, "b");
    ask_start(&mut world, "b");
    assert_eq!(done(&mut world), "-b");
    exit(&mut world, "b", ExitKind::Abandoned);
    assert_eq!((done(&mut world).as_str(), alive(&world).as_str()), ("+b", "abc"));
}
