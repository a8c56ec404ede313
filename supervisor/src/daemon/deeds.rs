//! What the steward wants, done: told to nodes, to the launcher, and to the story of what happened.

use std::sync::Arc;

use chrono::Utc;
use wardkeep_node::story;
use wardkeep_proto::{
    duration, timestamp, trace,
    v1::{self, command, steward_message::Kind as Down},
};
use wardkeep_steward::{Action, Cause, Event, Note, WardId, What};

use super::{fleet::Fleet, launcher};

impl Fleet {
    pub(super) fn step(&mut self, event: Event) {
        let now = self.origin.elapsed();
        let mut latest = Cause::default();
        for action in self.steward.step(now, event) {
            self.act(action, &mut latest);
        }
    }

    /// `latest`: of what the steward told of last.
    fn act(&mut self, action: Action, latest: &mut Cause) {
        self.state_changed = true;
        match action {
            Action::Note(note) => {
                self.keep(&note);
                *latest = note.cause;
            }
            Action::Start { ward, after_incarnation, cause } => {
                self.command_ward(&ward, &cause, |slot| {
                    command::Kind::Start(v1::StartWard { slot, after_incarnation })
                });
            }
            Action::Hold { ward, incarnation, quarantined } => {
                if let Some(record) = self.nodes.get_mut(&ward.node)
                    && let Some(slot) = record.slot(&ward.ward)
                {
                    record.hold(slot);
                }
                self.command_ward(&ward, latest, |slot| {
                    command::Kind::Hold(v1::HoldWard { slot, incarnation, quarantined })
                });
            }
            Action::Stop { ward, incarnation, grace, cause } => {
                let grace = Some(duration(grace));
                self.command_ward(&ward, &cause, |slot| {
                    command::Kind::Stop(v1::StopWard { slot, incarnation, grace })
                });
            }
            Action::Launch { node, cause } => {
                let order = launcher::Order { node: node.to_string(), reason: cause.reason };
                if self.launcher.try_send(order).is_err() {
                    tracing::error!(%node, "the launcher does not take orders; the steward will order again");
                }
            }
        }
    }

    fn keep(&mut self, note: &Note) {
        let mut event = story::event(note);
        let error = event.error.as_ref().map(|e| e.id.as_str());
        let place = [event.node.as_str(), event.ward.as_str()];
        let place = place.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/");
        if matches!(note.what, What::StaleDropped) {
            // Nothing came of it, and a broken node may send any number: not worth a place in the log.
            tracing::debug!(target: "steward", error, "{place}: {}", event.text);
            return;
        }
        tracing::info!(target: "steward", error, "{place}: {}", event.text);
        event.epoch = self.settings.epoch;
        if matches!(note.what, What::Asked(_)) {
            event.actor.clone_from(&self.actor);
        }
        self.log.push(event);
    }

    fn command_ward(&mut self, ward: &WardId, cause: &Cause, kind: impl FnOnce(u32) -> command::Kind) {
        let slot = self.nodes.get(&ward.node).and_then(|record| record.slot(&ward.ward));
        if let Some(slot) = slot {
            self.command(&ward.node, kind(slot), cause);
        }
    }

    pub(super) fn command(&mut self, node: &Arc<str>, kind: command::Kind, cause: &Cause) {
        // The decision is part of the trace of the call that led to it.
        let span = tracing::info_span!("steward.decide", %node, reason = %cause.reason);
        if let Some(parent) = &cause.traceparent {
            trace::follow_parent(&span, parent);
        }
        let traceparent = trace::traceparent(&span).or(cause.traceparent.as_deref().map(str::to_owned));
        let Some(session) = self.nodes.get_mut(node).and_then(|record| record.session.as_mut()) else {
            return;
        };
        let id = session.next_command;
        session.next_command += 1;
        let command = v1::Command {
            id,
            epoch: self.settings.epoch,
            reason: cause.reason.clone(),
            traceparent: traceparent.unwrap_or_default(),
            kind: Some(kind),
        };
        self.send(node, Down::Command(command));
    }

    /// To a node. One that does not read loses its session and is told anew when it is back.
    pub(super) fn send(&mut self, node: &Arc<str>, kind: Down) {
        let session = self.nodes.get(node).and_then(|record| record.session.as_ref());
        let Some(session) = session else { return };
        if session.down.try_send(Ok(v1::StewardMessage { kind: Some(kind) })).is_err() {
            tracing::warn!(%node, "does not read what it is told; its session is ended");
            self.end_session(node);
            self.lost.push(node.clone());
        }
    }

    /// Writes an event that is not the steward's.
    pub(super) fn tell(&mut self, kind: v1::EventKind, node: &str, text: String, actor: &str) {
        self.state_changed = true;
        tracing::info!(node, actor, "{text}");
        self.log.push(v1::Event {
            at: Some(timestamp(Utc::now())),
            kind: kind.into(),
            node: node.to_owned(),
            text,
            actor: actor.to_owned(),
            epoch: self.settings.epoch,
            ..Default::default()
        });
    }
}
