//! What an operator stopped stays down, whoever is steward.

use std::time::Duration;

use wardkeep_steward::{
    Action, Cause, Config, Event, ExitKind, Phase, Steward, WardId, WardReport, WardSpec, What,
};

const SECOND: Duration = Duration::from_secs(1);

fn attached(phase: Phase, held: bool) -> Event {
    let report = WardReport { spec: WardSpec::new("w"), phase, incarnation: 3, held, failed: false };
    Event::NodeAttached { node: "n".into(), boot: 1, wards: vec![report], groups: vec![] }
}

#[test]
fn a_node_is_told_to_hold_what_an_operator_stopped() {
    let ward = WardId::new("n", "w");
    let mut steward = Steward::new(Config::default());
    steward.step(SECOND, attached(Phase::Running, false));
    let asked = steward.step(2 * SECOND, Event::StopWard { ward: ward.clone(), cause: Cause::default() });
    let hold = Action::Hold { ward: ward.clone(), incarnation: 3, quarantined: false };
    assert!(asked.contains(&hold), "{asked:?}");
    let exited = Event::WardExited { ward, incarnation: 3, kind: ExitKind::Stopped, cause: Cause::default() };
    assert!(!steward.step(3 * SECOND, exited).iter().any(|a| matches!(a, Action::Start { .. })));
}

#[test]
fn a_steward_without_memory_leaves_a_held_ward_down_and_starts_one_that_is_not() {
    let starts = |held| {
        let actions = Steward::new(Config::default()).step(SECOND, attached(Phase::Stopped, held));
        actions.iter().filter(|a| matches!(a, Action::Start { .. })).count()
    };
    assert_eq!((starts(true), starts(false)), (0, 1));
}

#[test]
fn what_one_steward_quarantined_stays_so_under_the_next_and_an_operator_lifts_it() {
    let mut steward = Steward::new(Config::default());
    let started = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::Start { .. }));
    assert!(!started(&steward.step(SECOND, attached(Phase::Quarantined, true))));
    let view = |steward: &Steward| steward.wards(SECOND).next().unwrap().phase;
    assert_eq!(view(&steward), Phase::Quarantined);
    assert!(steward.groups(SECOND).next().unwrap().gave_up);
    let ward = WardId::new("n", "w");
    let mut actions = steward.step(2 * SECOND, Event::StartWard { ward, cause: Cause::default() });
    actions.extend(steward.step(3 * SECOND, Event::Tick));
    assert!(started(&actions), "{actions:?}");
    assert!(!steward.groups(SECOND).next().unwrap().gave_up);
}

#[test]
fn one_that_lived_on_when_its_group_gave_up_elsewhere_is_quarantined_in_so_many_words_when_it_fails() {
    let report = |name, phase, held| {
        let spec = WardSpec { group: Some("g".into()), ..WardSpec::new(name) };
        WardReport { spec, phase, incarnation: 3, held, failed: false }
    };
    let wards = vec![report("gone", Phase::Quarantined, true), report("lives", Phase::Running, false)];
    let mut steward = Steward::new(Config::default());
    steward.step(SECOND, Event::NodeAttached { node: "n".into(), boot: 1, wards, groups: vec![] });
    let ward = WardId::new("n", "lives");
    let (kind, cause) = (ExitKind::Panicked, Cause::default());
    let actions =
        steward.step(2 * SECOND, Event::WardExited { ward: ward.clone(), incarnation: 3, kind, cause });
    let told = |action: &Action| match action {
        Action::Note(note) => {
            let ends = note.reach.as_ref().is_some_and(|reach| reach.ends == [ward.clone()]);
            ends && matches!(note.what, What::GroupGaveUp { .. })
        }
        _ => false,
    };
    assert!(actions.iter().any(told), "{actions:?}");
    let held = Action::Hold { ward: ward.clone(), incarnation: 3, quarantined: true };
    assert!(actions.contains(&held), "{actions:?}");
}

#[test]
fn a_transient_ward_that_failed_while_nobody_had_authority_is_started_and_one_that_ended_well_is_not() {
    let starts = |failed| {
        let spec = WardSpec { restart: wardkeep_steward::Restart::Transient, ..WardSpec::new("w") };
        let report = WardReport { spec, phase: Phase::Stopped, incarnation: 3, held: false, failed };
        let mut steward = Steward::new(Config::default());
        let event = Event::NodeAttached { node: "n".into(), boot: 1, wards: vec![report], groups: vec![] };
        let mut actions = steward.step(SECOND, event);
        actions.extend(steward.step(2 * SECOND, Event::Tick));
        actions.iter().filter(|a| matches!(a, Action::Start { .. })).count()
    };
    assert_eq!((starts(true), starts(false)), (1, 0));
}

#[test]
fn a_restart_that_another_steward_began_is_finished_under_the_next() {
    let mut steward = Steward::new(Config::default());
    steward.step(SECOND, attached(Phase::Stopping, false));
    let ward = WardId::new("n", "w");
    let exited = Event::WardExited { ward, incarnation: 3, kind: ExitKind::Stopped, cause: Cause::default() };
    let mut actions = steward.step(2 * SECOND, exited);
    actions.extend(steward.step(3 * SECOND, Event::Tick));
    assert!(actions.iter().any(|a| matches!(a, Action::Start { .. })), "{actions:?}");
}
