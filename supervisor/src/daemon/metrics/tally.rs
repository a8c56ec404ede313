//! Counts what the steward notes, as it notes it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use wardkeep_proto::v1;
use wardkeep_steward::{Asked, ExitKind, NodeName, Note, Verdict, What};

/// Seconds; the last bucket has no end.
const SHORT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Of the loop's lateness.
pub(in crate::daemon) const LATENESS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Of writes.
pub(in crate::daemon) const WRITES: &[f64] = LATENESS;
/// Failures that are not healed and are kept in mind; of more it is not known how long they took.
const OPEN: usize = 65_536;

/// Observations, sorted into buckets.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::daemon) struct Histogram {
    bounds: &'static [f64],
    /// By bucket; one more than there are bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub(in crate::daemon) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub(in crate::daemon) fn observe(&mut self, value: Duration) {
        let value = value.as_secs_f64();
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[bucket] += 1;
        self.sum += value;
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bounds, and how many lie between each and the one before.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        self.bounds.iter().copied().chain([f64::INFINITY]).zip(self.counts.iter().copied()).collect()
    }
}

/// Counts by label, each of which is there from the beginning: what has not happened is 0, not absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counts<const N: usize, const L: usize>([([&'static str; L], u64); N]);

impl<const N: usize, const L: usize> Counts<N, L> {
    fn new(labels: [[&'static str; L]; N]) -> Self {
        Self(labels.map(|labels| (labels, 0)))
    }

    fn count(&mut self, labels: [&'static str; L]) {
        if let Some((_, count)) = self.0.iter_mut().find(|(those, _)| *those == labels) {
            *count += 1;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[&'static str; L], u64)> {
        self.0.iter().map(|(labels, count)| (labels, *count))
    }
}

/// Where something is broken.
type Place = (NodeName, Option<Arc<str>>);

/// What is broken at a place.
#[derive(Clone, Copy, Debug)]
struct Open {
    since: Duration,
    why: &'static str,
}

/// All that is counted, since the supervisor's start.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct Tally {
    /// Of what, which.
    pub(super) verdicts: Counts<6, 2>,
    /// Of what, why.
    pub(super) restarts: Counts<9, 2>,
    /// To whom.
    pub(super) escalations: Counts<3, 1>,
    pub(super) doubts: u64,
    pub(super) budget_spent: u64,
    pub(super) stale: u64,
    /// By verdict.
    pub(super) detection: [(&'static str, Histogram); 2],
    /// Of what.
    pub(super) healing: [(&'static str, Histogram); 2],
    open: HashMap<Place, Open>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            verdicts: Counts::new([
                ["ward", "crashed"],
                ["ward", "stalled"],
                ["ward", "runtime_stalled"],
                ["node", "crashed"],
                ["node", "runtime_stalled"],
                ["node", "unreachable"],
            ]),
            restarts: Counts::new([
                ["ward", "crashed"],
                ["ward", "stalled"],
                ["ward", "ended"],
                ["ward", "operator"],
                ["group", "member_failed"],
                ["node", "group_gave_up"],
                ["node", "leaked_threads"],
                ["node", "launched"],
                ["node", "operator"],
            ]),
            escalations: Counts::new([["group"], ["node"], ["quarantine"]]),
            doubts: 0,
            budget_spent: 0,
            stale: 0,
            detection: [("stalled", Histogram::new(SHORT)), ("unreachable", Histogram::new(SHORT))],
            healing: [("node", Histogram::new(SHORT)), ("ward", Histogram::new(SHORT))],
            open: HashMap::new(),
        }
    }
}

impl Tally {
    /// The steward has noted this, at this time on its clock. `evidence`: what a verdict rests on.
    pub(in crate::daemon) fn see(&mut self, note: &Note, evidence: Option<&v1::Evidence>, now: Duration) {
        let node = note.node.clone().or_else(|| note.ward.as_ref().map(|ward| ward.node.clone()));
        let place = node.map(|node| (node, note.ward.as_ref().map(|ward| ward.ward.clone())));
        match &note.what {
            What::NodeVerdict(Verdict::Healthy) | What::NodeAttended { .. } => {
                self.healed(place, "node", now)
            }
            What::NodeVerdict(verdict) => {
                self.verdicts.count(["node", word(*verdict)]);
                self.failed(place, word(*verdict), now);
                if *verdict == Verdict::Unreachable {
                    self.detected("unreachable", evidence.and_then(|it| it.last_report));
                }
            }
            What::NodeLeft { goodbye: false } => self.failed(place, "left", now),
            What::NodeLeft { goodbye: true } => self.closed(place),
            What::WardRunning => self.healed(place, "ward", now),
            What::WardVerdict(Verdict::Healthy) => {}
            What::WardVerdict(verdict) => {
                self.verdicts.count(["ward", word(*verdict)]);
                self.failed(place, word(*verdict), now);
                if *verdict == Verdict::Stalled {
                    let oldest = evidence.and_then(|it| it.oldest_work.or(it.last_pulse));
                    self.detected("stalled", oldest);
                }
            }
            What::WardExited(ExitKind::Done) => self.failed(place, "ended", now),
            What::WardRestart { .. } => {
                let why = place.and_then(|place| self.open.get(&place)).map_or("ended", |open| open.why);
                self.restarts
                    .count(["ward", if matches!(why, "stalled" | "ended") { why } else { "crashed" }]);
            }
            What::GroupRestart { .. } => self.restarts.count(["group", "member_failed"]),
            What::NodeRestart { group: Some(_) } => {
                self.restarts.count(["node", "group_gave_up"]);
                self.escalations.count(["node"]);
            }
            What::NodeRestart { group: None } => self.restarts.count(["node", "leaked_threads"]),
            What::NodeLaunch { .. } => self.restarts.count(["node", "launched"]),
            What::GroupGaveUp { .. } => self.escalations.count(["quarantine"]),
            What::GroupFailed { .. } => {
                if note.reach.as_ref().is_some_and(|reach| reach.escalates_to.is_some()) {
                    self.escalations.count(["group"]);
                }
            }
            What::Asked(asked) => {
                if *asked == Asked::Restart {
                    self.restarts.count(["ward", "operator"]);
                }
                // From here on its time is the operator's.
                self.closed(place);
            }
            What::DoubtsItself { .. } => self.doubts += 1,
            What::BudgetSpent => self.budget_spent += 1,
            What::StaleDropped => self.stale += 1,
            What::WardStarting
            | What::WardExited(_)
            | What::GroupShutDown { .. }
            | What::NodeNotRestarted => {}
        }
    }

    /// An operator has a node restarted.
    pub(in crate::daemon) fn node_restart_asked(&mut self) {
        self.restarts.count(["node", "operator"]);
    }

    /// This node is known no longer.
    pub(in crate::daemon) fn forget(&mut self, node: &str) {
        self.open.retain(|(name, _), _| **name != *node);
    }

    fn failed(&mut self, place: Option<Place>, why: &'static str, now: Duration) {
        let Some(place) = place else { return };
        if let Some(open) = self.open.get_mut(&place) {
            // It has been broken since the first time.
            open.why = why;
        } else if self.open.len() < OPEN {
            self.open.insert(place, Open { since: now, why });
        }
    }

    fn closed(&mut self, place: Option<Place>) {
        place.and_then(|place| self.open.remove(&place));
    }

    fn healed(&mut self, place: Option<Place>, of: &'static str, now: Duration) {
        let Some(open) = place.and_then(|place| self.open.remove(&place)) else { return };
        if let Some((_, histogram)) = self.healing.iter_mut().find(|(those, _)| *those == of) {
            histogram.observe(now.saturating_sub(open.since));
        }
    }

    fn detected(&mut self, verdict: &'static str, after: Option<prost_types::Duration>) {
        let after = after.and_then(|after| Duration::try_from(after).ok());
        let histogram = self.detection.iter_mut().find(|(those, _)| *those == verdict);
        if let (Some((_, histogram)), Some(after)) = (histogram, after) {
            histogram.observe(after);
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Healthy => "healthy",
        Verdict::Crashed => "crashed",
        Verdict::Stalled => "stalled",
        Verdict::RuntimeStalled => "runtime_stalled",
        Verdict::Unreachable => "unreachable",
    }
}

#[cfg(test)]
mod tests {
    use wardkeep_proto::duration;
    use wardkeep_steward::{Cause, WardId};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn of(node: &str, ward: Option<&str>, what: What) -> Note {
        Note {
            node: Some(node.into()),
            ward: ward.map(|ward| WardId::new(node, ward)),
            incarnation: 1,
            what,
            cause: Cause::default(),
            reach: None,
        }
    }

    fn told<const N: usize, const L: usize>(counts: &Counts<N, L>) -> Vec<(String, u64)> {
        counts.iter().filter(|(_, n)| *n > 0).map(|(labels, n)| (labels.join("/"), n)).collect()
    }

    #[test]
    fn a_stall_is_detected_restarted_and_healed_once() {
        let mut tally = Tally::default();
        let evidence = v1::Evidence { oldest_work: Some(duration(1_200 * MS)), ..Default::default() };
        tally.see(&of("n", Some("w"), What::WardVerdict(Verdict::Stalled)), Some(&evidence), 5_000 * MS);
        let restart = What::WardRestart { recent: 1, intensity: 5, delay: Duration::ZERO };
        tally.see(&of("n", Some("w"), restart), None, 5_000 * MS);
        tally.see(&of("n", Some("w"), What::WardExited(ExitKind::Abandoned)), None, 5_100 * MS);
        tally.see(&of("n", Some("w"), What::WardRunning), None, 5_300 * MS);
        tally.see(&of("n", Some("w"), What::WardRunning), None, 9_000 * MS);
        assert_eq!(told(&tally.verdicts), [("ward/stalled".to_owned(), 1)]);
        assert_eq!(told(&tally.restarts), [("ward/stalled".to_owned(), 1)]);
        assert_eq!((tally.detection[0].1.count(), tally.detection[0].1.sum()), (1, 1.2));
        assert_eq!((tally.healing[1].1.count(), tally.healing[1].1.sum()), (1, 0.3));
        assert!(tally.open.is_empty());
    }

    #[test]
    fn a_node_that_breaks_off_and_is_launched_anew_is_broken_from_the_first_to_the_last() {
        let mut tally = Tally::default();
        tally.see(&of("n", None, What::NodeLeft { goodbye: false }), None, 1_000 * MS);
        let evidence = v1::Evidence { last_report: Some(duration(400 * MS)), ..Default::default() };
        tally.see(&of("n", None, What::NodeVerdict(Verdict::Unreachable)), Some(&evidence), 1_400 * MS);
        tally.see(&of("n", None, What::NodeLaunch { delay: Duration::ZERO }), None, 1_400 * MS);
        tally.see(&of("n", None, What::NodeAttended { again: false }), None, 3_000 * MS);
        assert_eq!(told(&tally.restarts), [("node/launched".to_owned(), 1)]);
        assert_eq!(tally.healing[0].1.sum(), 2.0);
        assert_eq!(tally.detection[1].1.sum(), 0.4);
    }

    #[test]
    fn what_an_operator_asked_for_is_no_failure_that_heals() {
        let mut tally = Tally::default();
        tally.see(&of("n", Some("w"), What::Asked(Asked::Restart)), None, MS);
        tally.see(&of("n", Some("w"), What::WardExited(ExitKind::Stopped)), None, 2 * MS);
        tally.see(&of("n", Some("w"), What::WardRunning), None, 3 * MS);
        tally.see(&of("n", None, What::NodeLeft { goodbye: true }), None, 4 * MS);
        tally.see(&of("n", None, What::NodeAttended { again: false }), None, 5 * MS);
        assert_eq!(told(&tally.restarts), [("ward/operator".to_owned(), 1)]);
        assert!(tally.healing.iter().all(|(_, histogram)| histogram.count() == 0));
    }

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::new(&[0.1, 1.0]);
        [100 * MS, 101 * MS, 5_000 * MS].into_iter().for_each(|value| histogram.observe(value));
        assert_eq!(histogram.buckets(), [(0.1, 1), (1.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(histogram.count(), 3);
    }
}
