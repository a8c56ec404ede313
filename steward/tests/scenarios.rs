//! What the steward does when things break, told as small stories.
#![allow(missing_docs, clippy::expect_used)]

mod common;

use common::{World, because, ms};
use wardkeep_steward::*;

fn id(ward: &str) -> WardId {
    WardId::new("n", ward)
}

fn in_group(name: &str) -> WardSpec {
    WardSpec { group: Some("g".into()), ..WardSpec::new(name) }
}

/// Three wards in a group of this strategy, up and with an empty log.
fn group(strategy: Strategy) -> World {
    group_of(strategy, ["a", "b", "c"].map(in_group).into())
}

fn group_of(strategy: Strategy, wards: Vec<WardSpec>) -> World {
    let spec = GroupSpec { strategy, ..GroupSpec::new("g") };
    up(World::new(Steward::new(Config::default()).with_groups([spec])).with_node("n", wards))
}

fn one(spec: WardSpec) -> World {
    up(World::new(Steward::new(Config::default())).with_node("n", vec![spec]))
}

fn up(mut world: World) -> World {
    world.run(ms(3_000));
    world.log.clear();
    world
}

#[test]
fn wards_of_a_new_node_are_started_in_order_but_not_those_that_wait_for_an_operator() {
    let manual = WardSpec { manual_start: true, ..WardSpec::new("b") };
    let mut world = World::new(Steward::new(Config::default()))
        .with_node("n", vec![WardSpec::new("a"), manual, WardSpec::new("c")]);
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["+a", "+c"]);
    world.step(Event::StartWard { ward: id("b"), cause: because("asked") });
    world.run(ms(1_000));
    assert_eq!(world.phase(&id("b")), Phase::Running);
}

#[test]
fn a_crashed_ward_is_restarted_at_once_and_its_error_leads_through_to_the_start() {
    let mut world = one(WardSpec::new("a"));
    world.crash(&id("a"));
    world.run(ms(100));
    assert_eq!(world.phase(&id("a")), Phase::Running);
    for what in [What::WardVerdict(Verdict::Crashed), What::WardStarting] {
        let (_, note) = world.notes().find(|(_, note)| note.what == what).expect("the note");
        assert_eq!(note.cause.error_id.as_deref(), Some("E1"));
    }
    let start = world.log.iter().find_map(|(_, action)| match action {
        Action::Start { cause, after_incarnation, .. } => Some((cause.clone(), *after_incarnation)),
        _ => None,
    });
    let (cause, after) = start.expect("a start");
    assert_eq!((cause.traceparent.as_deref(), after), (Some("T1"), 1));
}

#[test]
fn restart_types_are_those_of_otp() {
    let cases = [
        (Restart::Permanent, ExitKind::Done, true),
        (Restart::Permanent, ExitKind::Failed, true),
        (Restart::Transient, ExitKind::Done, false),
        (Restart::Transient, ExitKind::Panicked, true),
        (Restart::Temporary, ExitKind::Failed, false),
    ];
    for (restart, kind, again) in cases {
        let mut world = one(WardSpec { restart, ..WardSpec::new("a") });
        world.exit(&id("a"), kind);
        world.run(ms(1_000));
        let phase = if again { Phase::Running } else { Phase::Stopped };
        assert_eq!(world.phase(&id("a")), phase, "{restart:?} after {kind:?}");
    }
}

#[test]
fn one_for_one_restarts_the_failed_ward_alone() {
    let mut world = group(Strategy::OneForOne);
    world.crash(&id("b"));
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["+b"]);
}

#[test]
fn one_for_all_stops_the_others_in_reverse_order_and_starts_all_in_order() {
    let mut world = group(Strategy::OneForAll);
    world.crash(&id("b"));
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["-c", "-a", "+a", "+b", "+c"]);
    let recent = world.steward.groups(world.now).find(|view| &*view.spec.name == "g").expect("it").recent;
    assert_eq!(recent, 1);
}

#[test]
fn a_group_that_is_described_anew_goes_on_as_it_is_and_heals_as_it_is_told() {
    let mut world = group(Strategy::OneForOne);
    let spec = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::new("g") };
    world.step(Event::GroupDescribed { group: spec.clone(), by: None });
    world.run(ms(5_000));
    assert_eq!(world.commands(), Vec::<String>::new());
    // What a node declares does not change what is configured.
    world.step(Event::GroupDescribed { group: GroupSpec::new("g"), by: Some("n".into()) });
    world.crash(&id("b"));
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["-c", "-a", "+a", "+b", "+c"]);
    world.log.clear();
    world.step(Event::GroupWithdrawn { group: "g".into(), by: None });
    world.crash(&id("b"));
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["+b"]);
}

#[test]
fn a_group_that_is_declared_waits_for_its_wards() {
    let mut steward = Steward::new(Config::default());
    let pool = GroupSpec { intensity: 77, ..GroupSpec::new("pool") };
    let attach = |groups| Event::NodeAttached { node: "n".into(), boot: 1, wards: vec![], groups };
    steward.step(ms(0), attach(vec![pool]));
    let spec = WardSpec { group: Some("pool".into()), ..WardSpec::new("a") };
    let ward = WardReport { spec, phase: Phase::Stopped, incarnation: 0, held: false, failed: false };
    steward.step(ms(1), Event::WardJoined { node: "n".into(), ward });
    assert_eq!(steward.group("pool", ms(1)).expect("it").spec.intensity, 77);
    steward.step(ms(2), Event::WardLeft { ward: id("a") });
    assert_eq!(steward.groups(ms(2)).count(), 1);
    // Declared by nobody, and empty.
    steward.step(ms(3), attach(vec![]));
    assert_eq!(steward.groups(ms(3)).count(), 0);
}

#[test]
fn rest_for_one_leaves_those_before_alone() {
    let mut world = group(Strategy::RestForOne);
    world.crash(&id("b"));
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["-c", "+b", "+c"]);
}

#[test]
fn temporary_wards_end_with_their_group_and_do_not_come_back() {
    let temporary = WardSpec { restart: Restart::Temporary, ..in_group("b") };
    let mut world = group_of(Strategy::OneForAll, vec![in_group("a"), temporary, in_group("c")]);
    world.crash(&id("a"));
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["-c", "-b", "+a", "+c"]);
    assert_eq!(world.phase(&id("b")), Phase::Stopped);
}

#[test]
fn a_failure_while_the_group_starts_is_counted_and_begins_anew() {
    let mut world = group(Strategy::OneForAll);
    world.ward(&id("b")).expect("it").broken = true;
    world.crash(&id("c"));
    world.run(ms(150));
    world.ward(&id("b")).expect("it").broken = false;
    world.run(ms(5_000));
    for ward in ["a", "b", "c"] {
        assert_eq!(world.phase(&id(ward)), Phase::Running, "{ward}: {:?}", world.commands());
    }
}

#[test]
fn a_group_over_two_nodes_does_not_wait_for_the_one_that_is_away() {
    let spec = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::new("g") };
    let world = World::new(Steward::new(Config::default()).with_groups([spec]));
    let mut world = up(world.with_node("n", vec![in_group("a")]).with_node("m", vec![in_group("b")]));
    world.disconnect("m", false);
    world.crash(&id("a"));
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["+a"]);
    world.connect("m");
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["+a"], "healthy work is kept");
}

#[test]
fn a_ward_whose_node_went_away_in_the_middle_of_its_groups_restart_is_started_when_it_is_back() {
    let spec = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::new("g") };
    let world = World::new(Steward::new(Config::default()).with_groups([spec]));
    let mut world = up(world.with_node("n", vec![in_group("a")]).with_node("m", vec![in_group("b")]));
    world.ward(&id("a")).expect("it").fails = 1;
    world.crash(&id("a"));
    world.run(ms(10));
    assert_eq!(world.commands(), ["-b", "+a"]);
    world.disconnect("m", false);
    world.run(ms(1_000));
    world.connect("m");
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["-b", "+a", "+a", "+b"]);
}

#[test]
fn too_many_restarts_quarantine_the_group_until_an_operator_starts_its_wards() {
    let mut world = group(Strategy::OneForOne);
    world.ward(&id("b")).expect("it").broken = true;
    world.crash(&id("b"));
    world.run(ms(30_000));
    let gave_up = What::GroupGaveUp { group: "g".into(), recent: 6 };
    assert_eq!(world.noted(&gave_up), 1);
    for ward in ["a", "b", "c"] {
        assert_eq!(world.phase(&id(ward)), Phase::Quarantined, "{ward}");
    }
    assert!(world.commands().ends_with(&["-c".into(), "-a".into()]), "{:?}", world.commands());

    world.ward(&id("b")).expect("it").broken = false;
    world.reboot("n");
    world.run(ms(1_000));
    assert_eq!(world.phase(&id("b")), Phase::Quarantined, "a new boot lifts no quarantine");
    world.step(Event::StartWard { ward: id("b"), cause: because("fixed") });
    world.run(ms(1_000));
    assert_eq!(world.phase(&id("b")), Phase::Running);
    assert_eq!(world.phase(&id("a")), Phase::Quarantined);
    let view = world.steward.groups(world.now).find(|view| &*view.spec.name == "g").expect("it");
    assert_eq!((view.gave_up, view.recent), (false, 0));
}

#[test]
fn work_that_is_overdue_is_a_stall_and_the_ward_gets_little_grace() {
    let mut world = one(WardSpec { stall_timeout: Some(ms(1_000)), ..WardSpec::new("a") });
    let began = world.now;
    world.hang(&id("a"));
    world.run(ms(3_000));
    let (at, note) =
        world.notes().find(|(_, note)| note.what == What::WardVerdict(Verdict::Stalled)).expect("a verdict");
    assert!(at - began < ms(1_100), "{:?}", at - began);
    assert_eq!(note.cause.reason, "work overdue: 1.001 s, allowed 1 s");
    let grace = world.log.iter().find_map(|(_, action)| match action {
        Action::Stop { grace, .. } => Some(*grace),
        _ => None,
    });
    assert_eq!(grace, Some(ms(250)));
    assert_eq!(world.commands(), ["-a", "+a"]);
    assert_eq!(world.phase(&id("a")), Phase::Running);
}

#[test]
fn an_idle_ward_is_healthy_for_ever() {
    let mut world = one(WardSpec { stall_timeout: Some(ms(1_000)), ..WardSpec::new("a") });
    world.run(ms(600_000));
    assert_eq!(world.commands(), [""; 0]);
}

#[test]
fn a_pulse_that_stays_away_is_a_stall_but_not_while_the_runtime_is_stalled() {
    let mut world = one(WardSpec { pulse_timeout: Some(ms(2_000)), ..WardSpec::new("a") });
    world.nodes.get_mut("n").expect("it").lag = ms(5_000);
    world.run(ms(1_000));
    assert_eq!(world.verdict("n"), Verdict::RuntimeStalled);
    world.hang(&id("a"));
    world.run(ms(5_000));
    assert_eq!(world.commands(), [""; 0]);
    world.nodes.get_mut("n").expect("it").lag = ms(0);
    world.run(ms(3_000));
    assert_eq!(world.verdict("n"), Verdict::Healthy);
    assert_eq!(world.commands(), ["-a", "+a"]);
}

#[test]
fn a_ward_that_is_never_ready_is_stalled_after_its_start_timeout() {
    let spec = WardSpec { start_timeout: Some(ms(1_000)), ..WardSpec::new("a") };
    let mut world = World::new(Steward::new(Config::default())).with_node("n", vec![spec]);
    world.disconnect("n", false);
    world.ward(&id("a")).expect("it").never_ready = true;
    world.reboot("n");
    world.log.clear();
    world.run(ms(1_300));
    assert_eq!(world.noted(&What::WardVerdict(Verdict::Stalled)), 1);
    assert_eq!(world.commands(), ["-a", "+a"]);
}

#[test]
fn a_frozen_node_is_unreachable_its_wards_are_let_be_and_it_comes_back_healthy() {
    let mut world = one(WardSpec { stall_timeout: Some(ms(1_000)), ..WardSpec::new("a") });
    let began = world.now;
    world.nodes.get_mut("n").expect("it").frozen = true;
    world.run(ms(20_000));
    let (at, _) = world
        .notes()
        .find(|(_, note)| note.what == What::NodeVerdict(Verdict::Unreachable))
        .expect("a verdict");
    assert!(at - began <= ms(2_500), "{:?}", at - began);
    let verdicts: Vec<_> = world.steward.wards(world.now).map(|ward| ward.verdict).collect();
    assert_eq!(verdicts, [Verdict::Unreachable]);
    world.nodes.get_mut("n").expect("it").frozen = false;
    world.run(ms(2_000));
    assert_eq!(world.verdict("n"), Verdict::Healthy);
    assert_eq!(world.commands(), [""; 0]);
}

#[test]
fn a_node_that_comes_back_with_the_same_boot_keeps_its_work_and_what_was_stopped_rests() {
    let mut world = group(Strategy::OneForAll);
    world.step(Event::StopWard { ward: id("b"), cause: because("asked") });
    world.run(ms(100));
    world.disconnect("n", false);
    world.run(ms(5_000));
    assert_eq!(world.verdict("n"), Verdict::Unreachable);
    world.connect("n");
    world.run(ms(5_000));
    assert_eq!(world.commands(), ["-b"]);
    assert_eq!(world.phase(&id("b")), Phase::Stopped);
    assert_eq!(world.noted(&What::NodeAttended { again: true }), 1);
}

#[test]
fn a_stop_asked_for_while_the_node_is_away_is_carried_out_when_it_is_back() {
    let mut world = one(WardSpec::new("a"));
    world.disconnect("n", false);
    world.step(Event::StopWard { ward: id("a"), cause: because("asked") });
    assert_eq!(world.commands(), [""; 0]);
    world.connect("n");
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["-a"]);
    assert_eq!(world.phase(&id("a")), Phase::Stopped);
}

#[test]
fn an_operators_restart_costs_nothing() {
    let mut world = one(WardSpec::new("a"));
    for _ in 0..20 {
        world.step(Event::RestartWard { ward: id("a"), cause: because("asked") });
        world.run(ms(100));
        assert_eq!(world.phase(&id("a")), Phase::Running);
    }
    assert_eq!(world.steward.groups(world.now).map(|group| group.recent).sum::<u32>(), 0);
}

#[test]
fn a_goodbye_is_no_failure_unless_it_lasts() {
    let mut world = one(WardSpec::new("a"));
    world.disconnect("n", true);
    world.run(GOODBYE_PATIENCE - ms(1));
    assert_eq!(world.verdict("n"), Verdict::Healthy);
    world.run(ms(2));
    assert_eq!(world.verdict("n"), Verdict::Unreachable);
}

#[test]
fn a_process_that_ended_is_launched_anew() {
    let mut world = one(WardSpec::new("a"));
    world.step(Event::NodeLaunchable { node: "n".into(), takes: ms(0), awaited: false });
    world.step(Event::NodeProcessExited { node: "n".into(), cause: because("killed by signal 9") });
    assert_eq!(world.noted(&What::NodeVerdict(Verdict::Unreachable)), 1);
    world.run(ms(1_000));
    assert_eq!(world.commands(), ["!n", "+a"]);
    assert_eq!(world.verdict("n"), Verdict::Healthy);
}

#[test]
fn a_silent_node_with_a_launcher_is_launched_after_a_while_and_again_if_that_does_not_help() {
    let mut steward = Steward::new(Config::default());
    let attached = Event::NodeAttached { node: "n".into(), boot: 1, wards: vec![], groups: vec![] };
    steward.step(ms(0), attached);
    steward.step(ms(0), Event::NodeLaunchable { node: "n".into(), takes: ms(0), awaited: false });
    let mut launches = Vec::new();
    while let Some(at) = steward.next_wake().filter(|at| *at < ms(150_000)) {
        let launch = |action: &Action| matches!(action, Action::Launch { .. });
        if steward.step(at, Event::Tick).iter().any(launch) {
            launches.push(at.as_secs());
        }
    }
    // What was launched has time to come up.
    assert_eq!(launches, [15, 75, 135]);
}

#[test]
fn a_process_that_never_attends_is_launched_anew_with_the_pauses_of_any_other() {
    let config = Config { attend_timeout: ms(10_000), ..Config::default() };
    let mut steward = Steward::new(config);
    steward.step(ms(0), Event::NodeLaunchable { node: "n".into(), takes: ms(0), awaited: false });
    let (mut launches, mut told) = (Vec::new(), Vec::new());
    let mut tick = |steward: &mut Steward, until| {
        while let Some(at) = steward.next_wake().filter(|at| *at < until) {
            for action in steward.step(at, Event::Tick) {
                match action {
                    Action::Launch { .. } => launches.push(at),
                    Action::Note(note) => told.push((note.what, note.cause.reason)),
                    _ => {}
                }
            }
        }
    };
    tick(&mut steward, ms(40_000));
    // A slow one attends after all; as long as it does, it is left alone.
    let attached = Event::NodeAttached { node: "n".into(), boot: 1, wards: vec![], groups: vec![] };
    steward.step(ms(40_000), attached);
    for at in (40_500..100_000).step_by(500) {
        let report = Event::Report { node: "n".into(), runtime_lag: ms(0), beats: Beats::default() };
        tick(&mut steward, ms(at));
        steward.step(ms(at), report);
    }
    assert_eq!(launches.len(), 3, "{launches:?}");
    assert_eq!(launches[0], ms(10_000));
    let pauses: Vec<_> = launches.windows(2).map(|two| two[1] - two[0] - ms(10_000)).collect();
    assert!(ms(100) <= pauses[0] && pauses[0] < pauses[1], "{pauses:?}");
    let reason = "launched 10 s ago, and has not attended since";
    let unreachable = (What::NodeVerdict(Verdict::Unreachable), reason.to_owned());
    let launch = (What::NodeLaunch { delay: ms(0) }, reason.to_owned());
    assert_eq!(told[..2], [unreachable, launch]);
}

/// A group g within p, both one for all: a and b in g, c in p.
fn nested(restart: Restart) -> World {
    let strategy = Strategy::OneForAll;
    let inner =
        GroupSpec { strategy, intensity: 0, restart, parent: Some("p".into()), ..GroupSpec::new("g") };
    let outer = GroupSpec { strategy, ..GroupSpec::new("p") };
    let transient = |name| WardSpec { restart: Restart::Transient, ..in_group(name) };
    let last = WardSpec { group: Some("p".into()), ..WardSpec::new("c") };
    let steward = Steward::new(Config::default()).with_groups([outer, inner]);
    up(World::new(steward).with_node("n", vec![transient("a"), transient("b"), last]))
}

fn reach(world: &World, fits: impl Fn(&What) -> bool) -> Reach {
    let (_, note) = world.notes().find(|(_, note)| fits(&note.what)).expect("a note");
    *note.reach.clone().expect("how far it reaches")
}

#[test]
fn decisions_about_groups_tell_how_far_they_reach() {
    let mut world = nested(Restart::Permanent);
    world.crash(&id("a"));
    world.run(ms(1_000));
    let ended = reach(&world, |what| matches!(what, What::GroupFailed { .. }));
    let wanted = Reach {
        starts: vec![id("a"), id("b")],
        groups: vec!["g".into()],
        counts_for: Some("g".into()),
        escalates_to: Some("p".into()),
        ..Reach::default()
    };
    assert_eq!(ended, wanted);
    let restart = reach(&world, |what| matches!(what, What::GroupRestart { .. }));
    let starts = ["a", "b", "c"].map(id).to_vec();
    let wanted = Reach { starts, groups: vec!["g".into()], counts_for: Some("p".into()), ..Reach::default() };
    assert_eq!(restart, wanted);
    world.log.clear();
    world.crash(&id("c"));
    world.run(ms(1_000));
    assert_eq!(reach(&world, |what| matches!(what, What::WardRestart { .. })), wanted);

    let mut world = nested(Restart::Transient);
    world.crash(&id("a"));
    world.run(ms(1_000));
    for inner in [true, false] {
        let gave_up = reach(&world, |what| match what {
            What::GroupFailed { .. } => inner,
            What::GroupGaveUp { .. } => !inner,
            _ => false,
        });
        assert_eq!(
            (gave_up.starts, gave_up.ends, gave_up.escalates_to),
            (vec![], ["a", "b"].map(id).into(), None)
        );
    }
}

#[test]
fn a_node_that_is_awaited_and_does_not_come_is_launched_and_a_launch_that_fails_is_tried_again() {
    let mut steward = Steward::new(Config::default());
    let takes = ms(30_000);
    steward.step(ms(0), Event::NodeLaunchable { node: "n".into(), takes, awaited: true });
    let is_launch = |action: &Action| matches!(action, Action::Launch { .. });
    let mut launches = Vec::new();
    let mut now = ms(0);
    while let Some(at) = steward.next_wake().filter(|at| *at < ms(300_000)) {
        now = at;
        if steward.step(at, Event::Tick).iter().any(is_launch) {
            launches.push(at.as_secs());
            if launches.len() < 3 {
                steward.step(at, Event::LaunchFailed { node: "n".into(), cause: because("exit status: 3") });
            }
        }
    }
    // Twice it fails, at once; then it is given the time it may take, and the node its own.
    assert_eq!(launches[..4], [15, 15, 15, 105]);
    let asked = steward.step(now, Event::LaunchNode { node: "n".into(), cause: because("asked for") });
    assert!(asked.iter().any(is_launch));
    steward.step(now + ms(1), Event::NodeLaunched { node: "n".into() });
    assert_eq!(steward.next_wake(), Some(now + ms(60_001)));
    steward.step(now + ms(2), Event::NodeUnlaunchable { node: "n".into() });
    assert_eq!(steward.nodes().count(), 0);
}

#[test]
fn a_steward_that_was_away_itself_blames_nobody() {
    let mut world = one(WardSpec { pulse_timeout: Some(ms(2_000)), ..WardSpec::new("a") });
    world.now += ms(30_000);
    world.step(Event::Tick);
    assert_eq!(world.noted(&What::DoubtsItself { patience: ms(30_000) }), 1, "{:?}", world.log);
    world.nodes.get_mut("n").expect("it").next_report = world.now;
    world.run(ms(5_000));
    assert_eq!(world.verdict("n"), Verdict::Healthy);
    assert_eq!(world.noted(&What::NodeVerdict(Verdict::Unreachable)), 0);
    assert_eq!(world.commands(), [""; 0]);
}

#[test]
fn when_most_nodes_fall_silent_together_all_get_twice_the_patience_once() {
    let mut world = World::new(Steward::new(Config::default()));
    for name in ["n", "o", "p", "q"] {
        world = world.with_node(name, vec![]);
    }
    let mut world = up(world);
    let began = world.now;
    for name in ["n", "o", "p"] {
        world.nodes.get_mut(name).expect("it").frozen = true;
    }
    world.run(ms(10_000));
    assert_eq!(world.notes().filter(|(_, n)| matches!(n.what, What::DoubtsItself { .. })).count(), 1);
    let verdicts: Vec<_> = world
        .notes()
        .filter(|(_, note)| note.what == What::NodeVerdict(Verdict::Unreachable))
        .map(|(at, _)| at - began)
        .collect();
    assert_eq!(verdicts.len(), 3);
    assert!(verdicts.iter().all(|after| *after > ms(2_000)), "{verdicts:?}");
}

#[test]
fn a_mass_failure_is_no_restart_storm() {
    let config = Config { restart_burst: 5, ..Config::default() };
    let names: Vec<_> = (0..40).map(|n| format!("w{n:02}")).collect();
    let spec =
        |name: &String| WardSpec { group: Some(format!("g-{name}").into()), ..WardSpec::new(name.as_str()) };
    let mut world = up(World::new(Steward::new(config)).with_node("n", names.iter().map(spec).collect()));
    for name in &names {
        world.crash(&id(name));
    }
    world.run(ms(50));
    assert_eq!(world.commands().len(), 5);
    world.run(ms(10_000));
    assert_eq!(world.commands().len(), 40);
    assert_eq!(world.noted(&What::BudgetSpent), 1);
}

#[test]
fn messages_about_an_older_incarnation_are_dropped() {
    let mut world = one(WardSpec::new("a"));
    world.crash(&id("a"));
    world.run(ms(1_000));
    world.log.clear();
    let cause = because("late");
    world.step(Event::WardExited { ward: id("a"), incarnation: 1, kind: ExitKind::Failed, cause });
    world.step(Event::WardRunning { ward: id("a"), incarnation: 1 });
    world.run(ms(1_000));
    assert_eq!(world.noted(&What::StaleDropped), 2);
    assert_eq!(world.commands(), [""; 0]);
    assert_eq!(world.phase(&id("a")), Phase::Running);
}

#[test]
fn a_ward_that_ended_well_in_this_boot_is_not_started_because_its_node_was_away() {
    for restart in [Restart::Transient, Restart::Temporary] {
        let mut world = one(WardSpec { restart, ..WardSpec::new("a") });
        world.exit(&id("a"), ExitKind::Done);
        world.run(ms(100));
        world.disconnect("n", false);
        world.connect("n");
        world.run(ms(1_000));
        assert_eq!(world.commands(), [""; 0], "{restart:?}");
        world.reboot("n");
        world.run(ms(1_000));
        assert_eq!(world.commands(), ["+a"], "a new boot starts it: {restart:?}");
    }
}
