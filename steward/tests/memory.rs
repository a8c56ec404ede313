//! A steward that goes on with what one before it knew.

use std::time::Duration;

use wardkeep_steward::{
    Action, Cause, Config, Event, ExitKind, GroupEnd, GroupSpec, Memory, Phase, Rest, Restart, Resume,
    Steward, Verdict, WardId, WardMemory, WardReport, WardSpec, What,
};

const SECOND: Duration = Duration::from_secs(1);
const NOW: Duration = Duration::from_secs(1_000);

fn ward() -> WardId {
    WardId::new("n", "w")
}

fn knows(ward_memory: WardMemory) -> Steward {
    let memory = Memory { wards: [(ward(), ward_memory)].into(), ..Memory::default() };
    Steward::new(Config::default()).with_memory(memory)
}

fn attached(phase: Phase, incarnation: u64) -> Event {
    let spec = WardSpec { group: Some("g".into()), ..WardSpec::new("w") };
    let report = WardReport { spec, phase, incarnation, held: false, failed: true };
    let group = GroupSpec { intensity: 2, ..GroupSpec::new("g") };
    Event::NodeAttached { node: "n".into(), boot: 7, wards: vec![report], groups: vec![group] }
}

fn starts(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Start { .. })).count()
}

fn crash(steward: &mut Steward, now: Duration, incarnation: u64) -> Vec<Action> {
    let cause = Cause::default();
    steward.step(now, Event::WardExited { ward: ward(), incarnation, kind: ExitKind::Panicked, cause })
}

#[test]
fn restarts_that_another_steward_counted_count() {
    let memory =
        Memory { groups: [("g".into(), vec![NOW - 9 * SECOND, NOW - SECOND])].into(), ..Memory::default() };
    let mut steward = Steward::new(Config::default()).with_memory(memory);
    steward.step(NOW, attached(Phase::Running, 3));
    assert_eq!(steward.group("g", NOW).unwrap().recent, 2);
    let actions = crash(&mut steward, NOW + SECOND, 3);
    let gave_up = |a: &Action| matches!(a, Action::Note(note) if matches!(note.what, What::GroupGaveUp { recent: 3, .. }));
    assert!(actions.iter().any(gave_up), "{actions:?}");
}

#[test]
fn the_pause_before_a_restart_goes_on_growing() {
    let decided = vec![NOW - 3 * SECOND, NOW - 2 * SECOND];
    let mut steward = knows(WardMemory { boot: 7, restarts: 2, decided, ..WardMemory::default() });
    steward.step(NOW, attached(Phase::Running, 3));
    assert_eq!(steward.wards(NOW).next().unwrap().restarts, 2);
    let actions = crash(&mut steward, NOW + SECOND, 3);
    let delay = actions.iter().find_map(|action| match action {
        Action::Note(note) => match note.what {
            What::WardRestart { delay, .. } => Some(delay),
            _ => None,
        },
        _ => None,
    });
    assert!(delay.unwrap() >= Duration::from_millis(200), "the third in a row: {delay:?}");
}

#[test]
fn what_was_to_rest_rests_though_its_node_has_started_it() {
    for (rest, phase) in [(Rest::Down, Phase::Stopped), (Rest::Quarantined, Phase::Quarantined)] {
        let mut steward = knows(WardMemory { rests: Some(rest), ..WardMemory::default() });
        let actions = steward.step(NOW, attached(Phase::Running, 1));
        assert!(actions.iter().any(|a| matches!(a, Action::Stop { incarnation: 1, .. })), "{actions:?}");
        let kind = ExitKind::Stopped;
        let exited = Event::WardExited { ward: ward(), incarnation: 1, kind, cause: Cause::default() };
        assert_eq!(starts(&steward.step(NOW + SECOND, exited)), 0);
        assert_eq!(steward.wards(NOW).next().unwrap().phase, phase);
        assert_eq!(steward.group("g", NOW).unwrap().gave_up, rest == Rest::Quarantined);
    }
}

fn resume(incarnation: u64, free: bool) -> WardMemory {
    let due = NOW + 5 * SECOND;
    let cause = Cause { reason: "it panicked".into(), ..Cause::default() };
    WardMemory {
        boot: 7,
        restarts: 4,
        resume: Some(Resume { incarnation, due, free, cause }),
        ..WardMemory::default()
    }
}

#[test]
fn a_restart_that_was_decided_comes_when_it_is_due_and_once() {
    let mut steward = knows(resume(3, false));
    assert_eq!(starts(&steward.step(NOW, attached(Phase::Stopped, 3))), 0);
    assert_eq!(steward.wards(NOW).next().unwrap().phase, Phase::Backoff);
    assert_eq!(starts(&steward.step(NOW + 4 * SECOND, Event::Tick)), 0);
    let actions = steward.step(NOW + 5 * SECOND, Event::Tick);
    let start = Action::Start {
        ward: ward(),
        after_incarnation: 3,
        cause: Cause { reason: "it panicked".into(), ..Cause::default() },
    };
    assert!(actions.contains(&start), "{actions:?}");
    assert_eq!(steward.wards(NOW).next().unwrap().restarts, 5);
    assert_eq!(steward.group("g", NOW).unwrap().recent, 0, "it was counted when it was decided");
    assert_eq!(starts(&steward.step(NOW + 6 * SECOND, Event::Tick)), 0);
}

#[test]
fn nothing_is_done_about_a_ward_that_has_gone_on_since() {
    let mut steward = knows(resume(3, false));
    assert_eq!(starts(&steward.step(NOW, attached(Phase::Running, 4))), 0);
    assert_eq!(starts(&steward.step(NOW + 9 * SECOND, Event::Tick)), 0);
    let view = steward.wards(NOW).next().unwrap();
    assert_eq!((view.phase, view.verdict, view.incarnation), (Phase::Running, Verdict::Healthy, 4));
}

#[test]
fn a_transient_ward_stopped_for_a_restart_is_not_forgotten() {
    let mut steward = knows(resume(3, true));
    let Event::NodeAttached { node, boot, mut wards, groups } = attached(Phase::Stopped, 3) else {
        unreachable!()
    };
    (wards[0].failed, wards[0].spec.restart) = (false, Restart::Transient);
    steward.step(NOW, Event::NodeAttached { node, boot, wards, groups });
    assert_eq!(starts(&steward.step(NOW + 5 * SECOND, Event::Tick)), 1);
}

#[test]
fn a_steward_leaves_its_groups_and_counts_to_another() {
    let mut first = Steward::new(Config::default());
    first.step(NOW, attached(Phase::Running, 1));
    for (incarnation, at) in [(1, NOW), (2, NOW + SECOND)] {
        crash(&mut first, at, incarnation);
        // The pause before it is over.
        first.step(at + SECOND / 2, Event::Tick);
        first.step(at + SECOND / 2, Event::WardStarting { ward: ward(), incarnation: incarnation + 1 });
        first.step(at + SECOND / 2, Event::WardRunning { ward: ward(), incarnation: incarnation + 1 });
    }
    let (groups, memory) = first.legacy("n", NOW + 3 * SECOND);
    assert_eq!((&*groups[0].name, groups[0].intensity), ("g", 2));
    let mut second = Steward::new(Config::default()).with_groups(groups).with_memory(memory);
    let Event::NodeAttached { node, boot, wards, .. } = attached(Phase::Running, 3) else { unreachable!() };
    second.step(NOW + 3 * SECOND, Event::NodeAttached { node, boot, wards, groups: vec![] });
    assert_eq!(second.wards(NOW).next().unwrap().restarts, 2);
    let actions = crash(&mut second, NOW + 4 * SECOND, 3);
    let gave_up = |a: &Action| matches!(a, Action::Note(note) if matches!(note.what, What::GroupGaveUp { recent: 3, .. }));
    assert!(actions.iter().any(gave_up), "{actions:?}");
    assert_eq!(first.legacy("nobody", NOW), (Vec::new(), Memory::default()));
}

/// A node with a transient ward w in g, which is in p, and what was decided of w before.
fn nested(memory: Memory, phase: Phase, incarnation: u64) -> (Steward, Vec<Action>) {
    let spec = WardSpec { group: Some("g".into()), restart: Restart::Transient, ..WardSpec::new("w") };
    let report = WardReport { spec, phase, incarnation, held: false, failed: false };
    let inner = GroupSpec { intensity: 0, parent: Some("p".into()), ..GroupSpec::new("g") };
    let groups = vec![inner, GroupSpec { intensity: 1, ..GroupSpec::new("p") }];
    let mut steward = Steward::new(Config::default()).with_memory(memory);
    let actions =
        steward.step(NOW, Event::NodeAttached { node: "n".into(), boot: 7, wards: vec![report], groups });
    (steward, actions)
}

fn ending() -> Memory {
    let end = GroupEnd { recent: Some(1), ward: ward(), cause: Cause::default() };
    Memory { ending: [("g".into(), end)].into(), ..Memory::default() }
}

#[test]
fn the_end_of_a_group_that_was_cut_off_goes_on_and_the_group_it_is_in_decides_then() {
    // It had been stopped by then: its start is part of what is decided now.
    let memory = Memory { wards: [(ward(), resume(3, true))].into(), ..ending() };
    let (mut steward, actions) = nested(memory, Phase::Stopped, 3);
    assert_eq!(starts(&actions), 1);
    assert_eq!(steward.group("p", NOW).unwrap().recent, 1);
    assert_eq!(starts(&steward.step(NOW + 9 * SECOND, Event::Tick)), 0);
    // It had not.
    let (mut steward, actions) = nested(ending(), Phase::Running, 3);
    assert!(
        actions.iter().any(|action| matches!(action, Action::Stop { incarnation: 3, .. })),
        "{actions:?}"
    );
    assert!(steward.is_planned(&ward()) || steward.ward(&ward()).unwrap().phase == Phase::Stopping);
    let exited =
        Event::WardExited { ward: ward(), incarnation: 3, kind: ExitKind::Stopped, cause: Cause::default() };
    assert_eq!(starts(&steward.step(NOW + SECOND, exited)), 1);
    // The one it is in has no restart left.
    let memory = Memory { groups: [("p".into(), vec![NOW - SECOND])].into(), ..ending() };
    let (steward, actions) = nested(memory, Phase::Stopped, 3);
    assert_eq!(starts(&actions), 0);
    assert!(steward.group("p", NOW).unwrap().gave_up && steward.group("g", NOW).unwrap().gave_up);
}

#[test]
fn groups_that_gave_up_are_known_and_so_are_the_pauses_between_their_restarts() {
    let rests = WardMemory { rests: Some(Rest::Quarantined), ..WardMemory::default() };
    let wards = [(ward(), rests)];
    let memory = |gave_up: &[&str]| Memory {
        gave_up: gave_up.iter().map(|name| (*name).into()).collect(),
        wards: wards.clone().into(),
        ..Memory::default()
    };
    let (mut steward, _) = nested(memory(&["g", "p"]), Phase::Stopped, 3);
    assert!(steward.group("p", NOW).unwrap().gave_up);
    assert_eq!(steward.ward(&ward()).unwrap().phase, Phase::Quarantined);
    steward.step(NOW + SECOND, Event::StartWard { ward: ward(), cause: Cause::default() });
    assert!(!steward.group("p", NOW).unwrap().gave_up);
    let (steward, _) = nested(memory(&["g"]), Phase::Stopped, 3);
    assert_eq!(steward.ward(&ward()).unwrap().phase, Phase::Quarantined);
    assert!(!steward.group("p", NOW).unwrap().gave_up);

    let restarted = [("g".into(), vec![NOW - 2 * SECOND, NOW - SECOND])];
    let (_, actions) = nested(Memory { restarted: restarted.into(), ..ending() }, Phase::Stopped, 3);
    let delay = actions.iter().find_map(|action| match action {
        Action::Note(note) => match note.what {
            What::GroupRestart { delay, .. } => Some(delay),
            _ => None,
        },
        _ => None,
    });
    assert!(delay.unwrap() >= Duration::from_millis(200), "the third in a row: {delay:?}");
}

fn told(at: Duration) -> Event {
    Event::RestartTold { ward: ward(), group: None, counts_for: "g".into(), anew: vec![], at }
}

#[test]
fn restarts_that_another_steward_made_meanwhile_count_as_ones_own() {
    let mut steward = Steward::new(Config::default());
    steward.step(NOW, attached(Phase::Running, 3));
    for ago in [9 * SECOND, SECOND] {
        steward.step(NOW, told(NOW - ago));
    }
    let view = steward.ward(&ward()).unwrap();
    assert_eq!((view.restarts, steward.group("g", NOW).unwrap().recent), (2, 2));
    let actions = crash(&mut steward, NOW + SECOND, 3);
    let gave_up = |a: &Action| matches!(a, Action::Note(note) if matches!(note.what, What::GroupGaveUp { recent: 3, .. }));
    assert!(actions.iter().any(gave_up), "{actions:?}");
}

#[test]
fn what_a_node_tells_of_groups_that_its_wards_are_not_in_counts_for_nobody() {
    let mut steward = Steward::new(Config::default());
    steward.step(NOW, attached(Phase::Running, 3));
    let other = GroupSpec { parent: Some("q".into()), ..GroupSpec::new("other") };
    steward.step(NOW, Event::GroupDescribed { group: other, by: None });
    let counts = |steward: &Steward| steward.groups(NOW).map(|group| group.recent).sum::<u32>();
    for counts_for in ["other", "q", "nobody's"] {
        let anew = vec!["g".into()];
        let of =
            Event::RestartTold { ward: ward(), group: None, counts_for: counts_for.into(), anew, at: NOW };
        steward.step(NOW, of);
    }
    assert_eq!((counts(&steward), steward.ward(&ward()).unwrap().restarts), (0, 0));
    // Nor does one that is to come.
    steward.step(NOW, told(NOW + 100 * SECOND));
    assert_eq!(steward.group("g", NOW + 31 * SECOND).unwrap().recent, 0);
}
