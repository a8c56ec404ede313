//! Effects that are seen, and what is left of what was decided before: when a node attends, the
//! intents about it are compared with what it says. What has come true is closed, what was cut off
//! is gone on with, once.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use wardkeep_proto::v1::{self, WardState, command};
use wardkeep_steward::{Cause, Event, Phase, WardId};

use super::{
    failpoint,
    fleet::Fleet,
    history::{Aim, Intent, Lane, cause},
};

/// An operator's order for a node that was lost is sent again within this (and the time the node may drain);
/// whoever asked has seen long since that nothing came of it.
const PATIENCE_MILLIS: i64 = 15 * 60 * 1_000;

impl Fleet {
    /// A ward's state changed: what was intended may have come true.
    pub(super) fn seen(&mut self, ward: &WardId, change: &v1::WardChange) {
        let Some(intent) = self.chronicle.intents.get(&ward.node, &ward.ward, Lane::Ward) else { return };
        let ended = change.exit.is_some();
        let runs = change.state() == WardState::Running;
        let n = change.incarnation;
        let outcome = match intent.aim {
            aim if aim.is_restart() && n > intent.incarnation && runs => format!("incarnation {n} runs"),
            aim if aim.is_restart() && n > intent.incarnation && ended => {
                format!("incarnation {n} began, and ended")
            }
            Aim::Stop if ended && n >= intent.incarnation => format!("incarnation {n} ended"),
            _ => return,
        };
        if intent.aim.is_restart() {
            failpoint::reach("restart-effect");
        }
        self.chronicle.settle(&ward.node, &ward.ward, Lane::Ward, outcome);
    }

    /// A node attends: what of the intents about it has come true, or no longer can?
    pub(super) fn settle_at_attach(&mut self, node: &Arc<str>, hello: &v1::Hello, boot: &str) {
        for intent in self.chronicle.intents.of_node(node) {
            let outcome = outcome(&intent, hello, boot).or_else(|| self.overtaken(&intent, hello));
            if let Some(outcome) = outcome {
                self.chronicle.settle(node, &intent.ward, intent.aim.lane(), outcome);
            }
        }
    }

    /// A group does not wait for wards whose node was away, and does not come back to them.
    fn overtaken(&self, intent: &Intent, hello: &v1::Hello) -> Option<String> {
        let own = intent.epoch == self.settings.epoch && intent.aim == Aim::RestartWithGroup;
        let state = find(hello, &intent.ward)?.state();
        let left = own && matches!(state, WardState::Starting | WardState::Running);
        left.then(|| "its group went on while its node was away".to_owned())
    }

    /// Goes on with what this supervisor's steward does not do by itself: orders for the node that are still
    /// open, so that the session they were sent into has not brought them; and what another supervisor decided,
    /// operators' restarts and what is still to be stopped for its group.
    pub(super) fn resume(&mut self, node: &Arc<str>) {
        self.give_up_orders();
        for intent in self.chronicle.intents.of_node(node) {
            let before = intent.epoch < self.settings.epoch;
            match intent.aim {
                Aim::RestartNode | Aim::Drain | Aim::Undrain => self.resume_order(node, intent),
                Aim::Restart | Aim::RestartWithGroup if before => {
                    let why = cause(&intent);
                    self.resume_restart(node, intent, why);
                }
                // What is to rest is stopped by the steward, which lets live what its group came to do without.
                Aim::Stop => self.let_live(node, &intent.ward),
                // Processes are the launcher's.
                _ => {}
            }
        }
    }

    /// A ward was to be stopped, and lives: unless it still is, nothing more is to come of that.
    fn let_live(&mut self, node: &Arc<str>, ward: &str) {
        let ward = WardId::new(node.clone(), ward);
        let phase = self.steward.ward(&ward).map(|view| view.phase);
        if matches!(phase, Some(Phase::Starting | Phase::Running)) && !self.steward.is_planned(&ward) {
            self.chronicle.settle(node, &ward.ward, Lane::Ward, "it need not stop any more");
        }
    }

    /// Ends orders whose effect has not been seen for too long. To be called now and then.
    pub(super) fn give_up_orders(&mut self) {
        let now = Utc::now().timestamp_millis();
        let overdue = |intent: &&Intent| now.saturating_sub(intent.decided_at) > patience(intent);
        let overdue: Vec<_> = self.chronicle.intents.orders().filter(overdue).cloned().collect();
        for intent in overdue {
            let within = Duration::from_millis(patience(&intent).unsigned_abs());
            let outcome = format!("its effect was not seen within {}", humantime::format_duration(within));
            let text = format!("gives up on {}: {outcome}; ask again", what(intent.aim));
            self.tell(v1::EventKind::Steward, &intent.node, text, &intent.actor);
            self.chronicle.settle(&intent.node, "", intent.aim.lane(), outcome);
        }
    }

    fn resume_restart(&mut self, node: &Arc<str>, intent: Intent, why: Cause) {
        let ward = WardId::new(node.clone(), intent.ward.as_str());
        let record = self.nodes.get(node);
        if self.steward.is_planned(&ward) {
            // Its group is being restarted, and ends or begins with it in its turn.
            return;
        }
        let known = record.and_then(|record| record.ward(record.slot(&ward.ward)?));
        let state = known.map(v1::Ward::state);
        let held = known.is_some_and(|ward| ward.held);
        match state {
            // Its node never heard that it was to start, and keeps it down: so does the steward.
            Some(WardState::Stopped | WardState::Quarantined) if held && intent.asked => {
                self.resuming = Some(intent);
                self.step(Event::StartWard { ward, cause: why });
                self.resuming = None;
            }
            // Its node keeps it down: nobody starts it but an operator.
            Some(WardState::Stopped | WardState::Quarantined) if held => {
                self.chronicle.settle(&ward.node, &ward.ward, Lane::Ward, "it rests until it is asked for");
            }
            // The steward knows of it, and starts it when it is due.
            Some(WardState::Stopped | WardState::Backoff | WardState::Quarantined) | None => {}
            Some(_) if intent.asked || intent.aim == Aim::RestartWithGroup => {
                self.resuming = Some(intent);
                self.step(Event::RestartWard { ward, cause: why });
                self.resuming = None;
            }
            Some(WardState::Stopping) => {}
            // A verdict of another steward: this one has its own eyes.
            Some(_) => {
                self.chronicle.settle(node, &ward.ward, Lane::Ward, "it still runs and is judged anew");
            }
        }
    }

    /// Sends an order again. Another boot would have ended that for a restart, so none comes twice.
    fn resume_order(&mut self, node: &Arc<str>, intent: Intent) {
        let kind = match intent.aim {
            Aim::RestartNode => {
                let drain_timeout = intent.drain_ms.map(prost_millis);
                command::Kind::RestartNode(v1::RestartNode { drain_timeout })
            }
            aim => command::Kind::Drain(v1::Drain { on: aim == Aim::Drain }),
        };
        let mut why = cause(&intent);
        let text = if intent.epoch < self.settings.epoch {
            format!("goes on with {}: {}", what(intent.aim), why.reason)
        } else {
            why.reason.clone_from(&intent.reason);
            format!(
                "orders {} again, which its last session may not have brought: {}",
                what(intent.aim),
                why.reason
            )
        };
        self.tell(v1::EventKind::Steward, node, text, &intent.actor);
        let restart = intent.aim == Aim::RestartNode;
        self.chronicle.intend(Intent { epoch: self.settings.epoch, ..intent });
        self.command(node, kind, &why, restart);
    }
}

/// An order in a word.
pub(super) fn what(aim: Aim) -> &'static str {
    match aim {
        Aim::RestartNode => "restart in place",
        Aim::Drain => "drain",
        Aim::Undrain => "undrain",
        Aim::Restart | Aim::RestartWithGroup | Aim::Stop | Aim::Launch => "",
    }
}

fn patience(order: &Intent) -> i64 {
    PATIENCE_MILLIS.saturating_add(order.drain_ms.unwrap_or(0).max(0))
}

/// How an intent ended, if it did, as a node that attends shows it.
fn outcome(intent: &Intent, hello: &v1::Hello, boot: &str) -> Option<String> {
    let another = intent.boot != boot;
    match intent.aim {
        Aim::RestartNode | Aim::Launch if another => Some(format!("boot {boot} attends")),
        Aim::Launch => Some("the process there was attends again".to_owned()),
        Aim::RestartNode => None,
        Aim::Drain | Aim::Undrain => {
            let seen = hello.draining == (intent.aim == Aim::Drain);
            if seen { Some("seen".to_owned()) } else { another.then(|| format!("boot {boot} attends")) }
        }
        Aim::Restart | Aim::RestartWithGroup | Aim::Stop if another => {
            Some(format!("its process is gone: boot {boot} attends"))
        }
        Aim::Restart | Aim::RestartWithGroup | Aim::Stop => {
            let Some(ward) = find(hello, &intent.ward) else {
                return Some("its node has it no longer".to_owned());
            };
            let n = ward.incarnation;
            let live = matches!(ward.state(), WardState::Starting | WardState::Running | WardState::Stopping);
            match intent.aim {
                _ if n > intent.incarnation => {
                    Some(format!("incarnation {n} was seen when its node attended"))
                }
                Aim::Stop if !live => Some(format!("incarnation {n} had ended when its node attended")),
                _ => None,
            }
        }
    }
}

fn find<'a>(hello: &'a v1::Hello, name: &str) -> Option<&'a v1::Ward> {
    hello.wards.iter().find(|ward| ward.spec.as_ref().is_some_and(|spec| spec.name == name))
}

fn prost_millis(ms: i64) -> prost_types::Duration {
    prost_types::Duration { seconds: ms / 1_000, nanos: i32::try_from(ms % 1_000 * 1_000_000).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(aim: Aim, incarnation: u64) -> Intent {
        Intent {
            id: 1,
            aim,
            node: "n".into(),
            ward: "w".into(),
            incarnation,
            boot: "b".into(),
            counted: true,
            asked: false,
            drain_ms: None,
            decided_at: 0,
            due_at: 0,
            reason: String::new(),
            actor: String::new(),
            error_id: String::new(),
            traceparent: String::new(),
            epoch: 1,
        }
    }

    fn hello(state: WardState, incarnation: u64, draining: bool) -> v1::Hello {
        let spec = Some(v1::WardSpec { name: "w".into(), ..Default::default() });
        let ward = v1::Ward { spec, state: state.into(), incarnation, ..Default::default() };
        v1::Hello { wards: vec![ward], draining, ..Default::default() }
    }

    #[test]
    fn a_restart_is_done_when_the_ward_has_gone_on_and_else_it_is_not() {
        let seen =
            |state, n, boot| outcome(&intent(Aim::Restart, 3), &hello(state, n, false), boot).is_some();
        assert!(seen(WardState::Running, 4, "b") && seen(WardState::Stopped, 4, "b"));
        assert!(!seen(WardState::Running, 3, "b") && !seen(WardState::Stopped, 3, "b"));
        assert!(seen(WardState::Running, 1, "another"), "its process is gone");
        let nowhere = v1::Hello::default();
        assert!(outcome(&intent(Aim::Restart, 3), &nowhere, "b").is_some());
    }

    #[test]
    fn a_stop_is_done_when_what_was_to_end_has_ended() {
        let seen = |state, n| outcome(&intent(Aim::Stop, 3), &hello(state, n, false), "b").is_some();
        assert!(seen(WardState::Stopped, 3) && seen(WardState::Running, 4));
        assert!(!seen(WardState::Running, 3) && !seen(WardState::Stopping, 3));
    }

    #[test]
    fn a_node_is_restarted_when_its_boot_is_another_and_drained_when_it_says_so() {
        let seen = |aim, draining, boot| {
            outcome(&intent(aim, 0), &hello(WardState::Running, 1, draining), boot).is_some()
        };
        assert!(seen(Aim::RestartNode, false, "another") && !seen(Aim::RestartNode, false, "b"));
        assert!(seen(Aim::Drain, true, "b") && !seen(Aim::Drain, false, "b"));
        assert!(seen(Aim::Undrain, false, "b") && !seen(Aim::Undrain, true, "b"));
        assert!(seen(Aim::Launch, false, "b") && seen(Aim::Launch, false, "another"));
    }
}
