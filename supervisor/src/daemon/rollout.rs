//! Wards that are restarted one after the other, because they run as they were described before.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use wardkeep_proto::v1;
use wardkeep_steward::{Cause, Event, Phase, WardId};

use super::fleet::Fleet;

/// A ward that does not run so long after its restart ends the row.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// By node.
pub(super) type Rollouts = BTreeMap<Arc<str>, Rollout>;

pub(super) struct Rollout {
    node: Arc<str>,
    waiting: VecDeque<Arc<str>>,
    /// It was asked to restart, in this incarnation.
    now: Option<(WardId, u64, Instant)>,
    cause: Cause,
    actor: String,
}

impl Fleet {
    pub(super) fn roll_out(&mut self, node: &Arc<str>, wards: &[String], cause: &Cause, actor: &str) {
        if wards.is_empty() {
            return;
        }
        let waiting = wards.iter().map(|ward| ward.as_str().into()).collect();
        let (cause, actor) = (cause.clone(), actor.to_owned());
        // One that was under way is taken over: what it has not done is among these.
        let rollout = Rollout { node: node.clone(), waiting, now: None, cause, actor };
        self.rollouts.insert(node.clone(), rollout);
        self.go_on_rolling();
    }

    /// Restarts the next wards where the ones before run.
    pub(super) fn go_on_rolling(&mut self) {
        for node in self.rollouts.keys().cloned().collect::<Vec<_>>() {
            let attends = self.nodes.get(&node).is_some_and(|record| record.session.is_some());
            let Some(rollout) = self.rollouts.remove(&node).filter(|_| attends) else { continue };
            if let Some(rollout) = self.roll(rollout) {
                self.rollouts.insert(node, rollout);
            }
        }
    }

    /// As far as it goes now; `None`: to its end.
    fn roll(&mut self, mut rollout: Rollout) -> Option<Rollout> {
        if let Some((ward, incarnation, since)) = &rollout.now {
            let view = self.steward.ward(ward);
            let phase = view.as_ref().map(|view| view.phase);
            match phase {
                // It has left, or somebody has stopped it: neither is a failure.
                None | Some(Phase::Stopped) => {}
                Some(Phase::Running) if view.is_some_and(|view| view.incarnation > *incarnation) => {}
                Some(Phase::Quarantined) => return self.stop_rolling(&rollout, ward, "is quarantined"),
                Some(_) if since.elapsed() > PATIENCE => {
                    return self.stop_rolling(&rollout, ward, "does not run");
                }
                Some(_) => return Some(rollout),
            }
            rollout.now = None;
        }
        let (ward, incarnation) = loop {
            let ward = WardId::new(rollout.node.clone(), rollout.waiting.pop_front()?);
            let view = self.steward.ward(&ward);
            let live = view.filter(|view| matches!(view.phase, Phase::Running | Phase::Starting));
            if let Some(incarnation) = live.map(|view| view.incarnation) {
                break (ward, incarnation);
            }
        };
        rollout.now = Some((ward.clone(), incarnation, Instant::now()));
        self.actor.clone_from(&rollout.actor);
        self.step(Event::RestartWard { ward, cause: rollout.cause.clone() });
        Some(rollout)
    }

    fn stop_rolling(&mut self, rollout: &Rollout, ward: &WardId, why: &str) -> Option<Rollout> {
        let left: Vec<_> = rollout.waiting.iter().map(|ward| &**ward).collect();
        let text = match left.as_slice() {
            [] => format!("ward {} {why} with its new configuration", ward.ward),
            left => format!(
                "ward {} {why} with its new configuration; not restarted for it: {}",
                ward.ward,
                left.join(", ")
            ),
        };
        self.tell(v1::EventKind::Operator, &ward.node.clone(), text, &rollout.actor);
        None
    }
}
