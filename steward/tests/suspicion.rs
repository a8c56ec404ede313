//! What seems ill is suspected before it is judged, and no longer once it is well.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::time::Duration;

use wardkeep_steward::*;

const MS: Duration = Duration::from_millis(1);

fn fleet(ward: WardSpec) -> Steward {
    let mut steward = Steward::new(Config::default());
    let ward = WardReport { spec: ward, phase: Phase::Running, incarnation: 1, held: false, failed: false };
    steward.step(MS, Event::NodeAttached { node: "n".into(), boot: 7, wards: vec![ward], groups: vec![] });
    steward
}

fn report(steward: &mut Steward, at: Duration, lag: Duration, worked: Vec<WorkBeat>) {
    let beats = Beats { pulsed: Slots::default(), worked };
    steward.step(at, Event::Report { node: "n".into(), runtime_lag: lag, beats });
}

/// Its rhythm is known by the time that is given back: that of its last report.
fn steady(steward: &mut Steward) -> Duration {
    (1..=10).for_each(|n| report(steward, MS * 500 * n, Duration::ZERO, vec![]));
    MS * 5_000
}

fn is_suspected(steward: &Steward) -> bool {
    steward.nodes().next().unwrap().suspected
}

/// Wakes it when it wants to be woken, up to this time. When it came to suspect, and to judge.
fn wait(steward: &mut Steward, until: Duration) -> (Option<Duration>, Option<Duration>) {
    let (mut suspected, mut judged) = (None, None);
    while let Some(at) = steward.next_wake().filter(|at| *at <= until) {
        steward.step(at, Event::Tick);
        if is_suspected(steward) {
            suspected.get_or_insert(at);
        }
        if steward.nodes().next().unwrap().verdict == Verdict::Unreachable {
            judged.get_or_insert(at);
        }
    }
    (suspected, judged)
}

#[test]
fn a_node_that_misses_its_report_is_suspected_at_once_and_judged_much_later() {
    let mut steward = fleet(WardSpec::new("w"));
    let last = steady(&mut steward);
    assert_eq!(wait(&mut steward, last + MS * 700), (None, None), "a report may be a little late");
    let (suspected, judged) = wait(&mut steward, last + MS * 3_000);
    assert_eq!(suspected.map(|at| at - last), Some(MS * 750));
    assert_eq!(judged.map(|at| at - last), Some(MS * 1_500));
    assert!(!is_suspected(&steward), "a verdict is more than a suspicion");
}

#[test]
fn a_suspicion_ends_with_the_next_report_and_each_change_is_counted() {
    let mut steward = fleet(WardSpec::new("w"));
    let last = steady(&mut steward);
    let before = steward.suspicions();
    wait(&mut steward, last + MS * 1_000);
    assert!(is_suspected(&steward));
    report(&mut steward, last + MS * 1_000, Duration::ZERO, vec![]);
    assert!(!is_suspected(&steward));
    assert_eq!(steward.suspicions(), before + 2);
}

#[test]
fn a_node_whose_runtime_is_late_is_suspected_before_it_counts_as_stalled() {
    let mut steward = fleet(WardSpec::new("w"));
    let last = steady(&mut steward);
    report(&mut steward, last + MS * 500, MS * 1_100, vec![]);
    let node = steward.nodes().next().unwrap();
    assert!(node.suspected && node.verdict == Verdict::Healthy);
    report(&mut steward, last + MS * 1_000, MS * 10, vec![]);
    assert!(!is_suspected(&steward));
}

#[test]
fn a_ward_is_suspected_when_its_work_has_taken_half_of_what_it_may() {
    let spec = WardSpec { stall_timeout: Some(MS * 4_000), ..WardSpec::new("w") };
    let mut steward = fleet(spec);
    let last = steady(&mut steward);
    let work = WorkBeat { slot: 0, begun: 1, ended: 0, oldest: Some(MS * 1_800) };
    report(&mut steward, last + MS * 500, Duration::ZERO, vec![work]);
    let suspected = |steward: &Steward, at| steward.wards(at).next().unwrap().suspected;
    assert!(!suspected(&steward, last + MS * 500));
    assert!(suspected(&steward, last + MS * 800));
    let done = WorkBeat { slot: 0, begun: 0, ended: 1, oldest: None };
    report(&mut steward, last + MS * 1_000, Duration::ZERO, vec![done]);
    assert!(!suspected(&steward, last + MS * 1_000));
}
