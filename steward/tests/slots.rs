//! Reports speak of wards by slot, and nobody's deadline is moved when he pulses: it is found out when it
//! is reached.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::time::Duration;

use wardkeep_steward::*;

const SECOND: Duration = Duration::from_secs(1);

fn report(name: &str) -> WardReport {
    let spec = WardSpec { pulse_timeout: Some(5 * SECOND), ..WardSpec::new(name) };
    WardReport { spec, phase: Phase::Running, incarnation: 1, held: false, failed: false }
}

fn fleet(wards: &[&str]) -> Steward {
    let mut steward = Steward::new(Config::default());
    let wards = wards.iter().map(|name| report(name)).collect();
    steward.step(SECOND, Event::NodeAttached { node: "n".into(), boot: 7, wards, groups: vec![] });
    steward
}

/// Reports that these slots pulse, each half second until `until`, and says who stalled when.
fn pulse(steward: &mut Steward, from: Duration, until: Duration, slots: &[u32]) -> Vec<(Duration, String)> {
    let mut stalled = Vec::new();
    let mut now = from;
    let mut next_report = from;
    while now < until {
        let event = if now >= next_report {
            next_report += SECOND / 2;
            let beats = Beats { pulsed: slots.iter().copied().collect(), worked: vec![] };
            Event::Report { node: "n".into(), runtime_lag: Duration::ZERO, beats }
        } else {
            Event::Tick
        };
        for action in steward.step(now, event) {
            let Action::Note(Note { ward, what: What::WardVerdict(Verdict::Stalled), .. }) = action else {
                continue;
            };
            stalled.extend(ward.map(|id| (now, id.ward.to_string())));
        }
        now = steward.next_wake().map_or(next_report, |wake| wake.min(next_report));
    }
    stalled
}

#[test]
fn a_ward_that_stops_pulsing_is_stalled_at_its_deadline_however_many_pulse_beside_it() {
    let names: Vec<_> = (0..1_000).map(|n| format!("w{n:04}")).collect();
    let mut steward = fleet(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let all: Vec<_> = (0..1_000).collect();
    assert_eq!(pulse(&mut steward, 2 * SECOND, 20 * SECOND, &all), []);
    let others: Vec<_> = all.into_iter().filter(|slot| *slot != 500).collect();
    let stalled = pulse(&mut steward, 20 * SECOND, 40 * SECOND, &others);
    // Its last pulse was at 19.5 s; its deadline lies 5 s and the least excess after that.
    let deadline = Duration::from_millis(24_501);
    assert_eq!(stalled, [(deadline, "w0500".to_owned())]);
}

#[test]
fn the_slot_of_a_ward_that_left_is_not_given_to_another_one() {
    let mut steward = fleet(&["a", "b", "c"]);
    steward.step(SECOND, Event::WardLeft { ward: WardId::new("n", "c") });
    steward.step(SECOND, Event::WardJoined { node: "n".into(), ward: report("d") });
    // "d" is in slot 3: pulses of slot 2 are nobody's.
    let stalled = pulse(&mut steward, 2 * SECOND, 10 * SECOND, &[0, 1, 2]);
    assert_eq!(stalled.iter().map(|(_, ward)| ward.as_str()).collect::<Vec<_>>(), ["d"]);
    let stalled = pulse(&mut steward, 10 * SECOND, 20 * SECOND, &[0, 1, 3]);
    assert!(stalled.is_empty(), "{stalled:?}");
    assert_eq!(
        steward.wards(20 * SECOND).map(|ward| ward.id.ward.to_string()).collect::<Vec<_>>(),
        ["a", "b", "d"]
    );
}

#[test]
fn a_ward_is_not_judged_before_a_report_vouches_for_its_silence() {
    let mut steward = fleet(&["a", "b"]);
    assert!(pulse(&mut steward, 2 * SECOND, 5 * SECOND, &[0]).is_empty());
    // "b" would be overdue at 6 s; the last report before the node falls silent was at 4.5 s.
    for at in [6_000, 6_010] {
        let actions = steward.step(Duration::from_millis(at), Event::Tick);
        let ward = |action: &Action| matches!(action, Action::Note(Note { ward: Some(_), .. }));
        assert!(!actions.iter().any(ward), "{actions:?}");
    }
    let stalled = pulse(&mut steward, Duration::from_millis(6_300), 8 * SECOND, &[0]);
    assert_eq!(stalled.iter().map(|(_, ward)| ward.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn nobody_keeps_the_slot_of_a_ward_that_left_before_the_session() {
    let mut steward = Steward::new(Config::default());
    let wards = vec![report("a"), WardReport::nobody(), report("c"), WardReport::nobody()];
    steward.step(SECOND, Event::NodeAttached { node: "n".into(), boot: 7, wards, groups: vec![] });
    steward.step(SECOND, Event::WardJoined { node: "n".into(), ward: report("e") });
    assert!(pulse(&mut steward, 2 * SECOND, 10 * SECOND, &[0, 2, 4]).is_empty());
    assert_eq!(steward.wards(10 * SECOND).count(), 3);
    let stalled = pulse(&mut steward, 10 * SECOND, 20 * SECOND, &[0, 1, 2, 3]);
    assert_eq!(stalled.iter().map(|(_, ward)| ward.as_str()).collect::<Vec<_>>(), ["e"]);
}

/// Reports at these times, each with the lag of the runtime and whether the ward pulsed. True: it stalled.
fn stalls(reports: &[(u64, u64, bool)]) -> bool {
    let mut steward = Steward::new(Config::default());
    let spec = WardSpec { pulse_timeout: Some(2 * SECOND), ..WardSpec::new("w") };
    let ward = WardReport { spec, phase: Phase::Running, incarnation: 1, held: false, failed: false };
    let mut now = SECOND;
    steward.step(now, Event::NodeAttached { node: "n".into(), boot: 7, wards: vec![ward], groups: vec![] });
    let stalled = |actions: Vec<Action>| {
        actions.iter().any(
            |action| matches!(action, Action::Note(note) if note.what == What::WardVerdict(Verdict::Stalled)),
        )
    };
    let mut any = false;
    for (at, lag, pulsed) in reports {
        let at = SECOND + Duration::from_millis(*at);
        while let Some(wake) = steward.next_wake().filter(|wake| *wake < at) {
            now = wake.max(now);
            any |= stalled(steward.step(now, Event::Tick));
        }
        let beats = Beats { pulsed: pulsed.then_some(0).into_iter().collect(), worked: vec![] };
        let runtime_lag = Duration::from_millis(*lag);
        any |= stalled(steward.step(at, Event::Report { node: "n".into(), runtime_lag, beats }));
        now = at;
    }
    any
}

#[test]
fn time_in_which_a_nodes_runtime_did_not_run_is_not_held_against_its_wards() {
    // It stood still from 0.1 s on, not for long enough to be called stalled, and again.
    let late = [
        (500, 400, false),
        (1_000, 900, false),
        (1_500, 1_400, false),
        (2_000, 1_900, false),
        (2_500, 0, false),
        (3_000, 400, false),
        (3_500, 900, false),
        (4_000, 0, false),
        (4_500, 0, true),
    ];
    assert!(!stalls(&late));
    // It was called stalled, and ran again a moment before the ward did.
    let stalled = [(1_000, 900, false), (2_000, 1_900, false), (3_000, 2_900, false), (3_500, 0, false)];
    assert!(!stalls(&stalled));
    // While the runtime runs, time counts.
    let silent: Vec<_> = (1..=5).map(|n| (500 * n, 0, false)).collect();
    assert!(stalls(&silent));
    let after: Vec<_> = stalled.into_iter().chain((8..=12).map(|n| (500 * n, 0, false))).collect();
    assert!(stalls(&after));
}

#[test]
fn time_in_which_a_node_itself_did_not_run_is_not_held_against_its_wards() {
    let mut steward = fleet(&["w"]);
    assert_eq!(pulse(&mut steward, 2 * SECOND, 4 * SECOND, &[0]), []);
    let stalled = |actions: &[Action]| {
        let is = |action: &Action| matches!(action, Action::Note(note) if matches!(note.what, What::WardVerdict(_)));
        actions.iter().any(is)
    };
    // Frozen from 4 s on, for so long that it is held to be unreachable. It reports before the ward has had a turn.
    let mut now = 4 * SECOND;
    while let Some(wake) = steward.next_wake().filter(|wake| *wake < 10 * SECOND) {
        now = wake.max(now);
        assert!(!stalled(&steward.step(now, Event::Tick)));
    }
    assert_eq!(steward.nodes().next().unwrap().verdict, Verdict::Unreachable);
    let back = Duration::from_millis(10_001);
    steward.step(back, Event::NodeSlept { node: "n".into(), slept: 6 * SECOND });
    let report = || Event::Report { node: "n".into(), runtime_lag: Duration::ZERO, beats: Beats::default() };
    assert!(!stalled(&steward.step(back, report())));
    // From then on it has what it had left: its last pulse was half a second before the node froze.
    let found = pulse(&mut steward, back + SECOND / 2, 20 * SECOND, &[]);
    assert_eq!(found, [(Duration::from_millis(14_501), "w".to_owned())]);
}

#[test]
fn work_that_had_time_left_when_its_node_fell_silent_is_nobodys_stall() {
    let mut steward = Steward::new(Config::default());
    let spec = WardSpec { stall_timeout: Some(SECOND), ..WardSpec::new("w") };
    let ward = WardReport { spec, phase: Phase::Running, incarnation: 1, held: false, failed: false };
    steward
        .step(SECOND, Event::NodeAttached { node: "n".into(), boot: 7, wards: vec![ward], groups: vec![] });
    // The unit is 5 ms old at the last report before the node is frozen, and has 995 ms left.
    let oldest = Some(Duration::from_millis(5));
    let worked = vec![WorkBeat { slot: 0, begun: 1, ended: 0, oldest }];
    let beats = Beats { pulsed: Slots::default(), worked };
    steward.step(2 * SECOND, Event::Report { node: "n".into(), runtime_lag: Duration::ZERO, beats });
    for at in (2_100..4_000).step_by(5) {
        for action in steward.step(Duration::from_millis(at), Event::Tick) {
            let stalled =
                matches!(&action, Action::Note(note) if note.what == What::WardVerdict(Verdict::Stalled));
            assert!(!stalled, "at {at} ms: {action:?}");
        }
    }
}
