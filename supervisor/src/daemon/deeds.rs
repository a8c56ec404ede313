//! What the steward wants: written down first, then done. Told to nodes, to the launcher, and to the
//! story of what happened.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chrono::Utc;
use wardkeep_node::{story, wire};
use wardkeep_proto::{
    duration, timestamp, trace,
    v1::{self, command, steward_message::Kind as Down},
};
use wardkeep_steward::{
    Action, Asked, Cause, Event, GroupView, Note, Phase, Reach, Steward, Verdict, WardId, What,
};

use super::{
    chronicle::Deed,
    failpoint,
    fleet::Fleet,
    history::{Aim, Intent, Lane},
    launcher,
};

impl Fleet {
    pub(super) fn step(&mut self, event: Event) {
        let now = self.now();
        let mut latest = Cause::default();
        // Afterwards the steward has gone on, and takes it for up.
        let was_up = matches!(&event, Event::StartWard { ward, .. } if self.is_up(ward));
        for action in self.steward.step(now, event) {
            self.decide(action, &mut latest, was_up);
        }
    }

    fn is_up(&self, ward: &WardId) -> bool {
        let up = |phase| matches!(phase, Phase::Running | Phase::Starting);
        self.steward.ward(ward).is_some_and(|view| up(view.phase))
    }

    /// Drafts what is to be written and done. `latest`: of what the steward told of last.
    fn decide(&mut self, action: Action, latest: &mut Cause, was_up: bool) {
        self.state_changed = true;
        match action {
            Action::Note(note) => {
                self.keep(&note);
                self.intend_noted(&note, was_up);
                self.changes_legacy(&note);
                *latest = note.cause;
            }
            Action::Start { ward, after_incarnation, cause } => {
                self.intend_start(&ward, after_incarnation, &cause);
                self.command_ward(&ward, &cause, |slot| {
                    command::Kind::Start(v1::StartWard { slot, after_incarnation })
                });
            }
            Action::Hold { ward, incarnation, quarantined } => {
                if let Some(record) = self.nodes.get_mut(&ward.node)
                    && let Some(slot) = record.slot(&ward.ward)
                {
                    record.hold(slot, true);
                }
                self.chronicle.hold(&ward.node, &ward.ward, quarantined);
                self.command_ward(&ward, latest, |slot| {
                    command::Kind::Hold(v1::HoldWard { slot, incarnation, quarantined, released: false })
                });
            }
            Action::Release { ward, incarnation } => {
                if let Some(record) = self.nodes.get_mut(&ward.node)
                    && let Some(slot) = record.slot(&ward.ward)
                {
                    record.hold(slot, false);
                }
                self.command_ward(&ward, latest, |slot| {
                    command::Kind::Hold(v1::HoldWard {
                        slot,
                        incarnation,
                        quarantined: false,
                        released: true,
                    })
                });
            }
            Action::Stop { ward, incarnation, grace, cause } => {
                self.intend_stop(&ward, incarnation, &cause);
                let grace = Some(duration(grace));
                self.command_ward(&ward, &cause, |slot| {
                    command::Kind::Stop(v1::StopWard { slot, incarnation, grace })
                });
            }
            Action::RestartNode { node, cause } => {
                let intent = self.intent(Aim::RestartNode, &node, "", 0, &cause);
                self.chronicle.intend(intent);
                let kind = command::Kind::RestartNode(v1::RestartNode { drain_timeout: None });
                self.command(&node, kind, &cause, true);
            }
            Action::Launch { node, cause } => {
                let intent = self.intent(Aim::Launch, &node, "", 0, &cause);
                self.chronicle.intend(intent);
                let order = launcher::Order { node: node.to_string(), reason: cause.reason };
                self.chronicle.deed(Deed::Launch(order));
            }
        }
    }

    /// Does what is written down.
    pub(super) fn carry_out(&mut self) {
        for deed in self.chronicle.ready() {
            match deed {
                Deed::Tell { node, session, message, restart } => {
                    let now = self.nodes.get(&node).and_then(|record| record.session.as_ref());
                    // A node that came back meanwhile has been told anew.
                    if now.is_some_and(|now| now.id == session) {
                        self.send(&node, message);
                        if restart {
                            failpoint::reach("restart-sent");
                        }
                    }
                }
                Deed::Launch(order) => {
                    let node = order.node.clone();
                    if self.launcher.try_send(launcher::Told::Launch(order)).is_err() {
                        tracing::error!(%node, "the launcher does not take orders; the steward will order again");
                    }
                }
                Deed::Configure(launches) => {
                    if self.launcher.try_send(launcher::Told::Configure(launches)).is_err() {
                        tracing::error!(
                            "the launcher does not take orders: it goes on with the nodes it knew"
                        );
                    }
                }
                Deed::Answer { to, taken_on } => {
                    // Whoever waits for the effect must not take an older picture for it.
                    if self.state_changed {
                        self.show();
                    }
                    // An operator who has gone away gets no answer, but the wish stands.
                    let _ = to.send(taken_on);
                }
            }
        }
        self.bequeath();
        if let Some(news) = self.chronicle.news() {
            self.tell(v1::EventKind::Steward, "", news, "");
        }
    }

    /// Tells nodes what their own stewards go on with if they lose us.
    fn bequeath(&mut self) {
        let now = self.now();
        for node in std::mem::take(&mut self.heirs) {
            let Some(record) = self.nodes.get(&node) else { continue };
            let slot = |id: &WardId| record.slot(&id.ward);
            let legacy = wire::legacy_message(&self.steward.legacy(&node, now), now, slot);
            self.send(&node, Down::Legacy(legacy));
        }
    }

    /// A restart counts for all nodes that its group is on, and so does it that groups begin anew.
    fn changes_legacy(&mut self, note: &Note) {
        self.heirs.extend(heirs(&self.steward, note));
    }

    // --- the story ---

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
        if let (What::Asked(_), Some(intent)) = (&note.what, &self.resuming) {
            event.kind = v1::EventKind::Steward.into();
            let who = if intent.actor.is_empty() { "the steward" } else { &intent.actor };
            event.text = format!("goes on with a restart by {who}: {}", note.cause.reason);
        }
        tracing::info!(target: "steward", error, "{place}: {}", event.text);
        event.epoch = self.settings.epoch;
        if matches!(note.what, What::Asked(_)) {
            event.actor.clone_from(&self.actor);
        }
        self.explain(note, &mut event);
        self.chronicle.event(event);
    }

    /// What a verdict rests on, and what a decision leaves.
    fn explain(&self, note: &Note, event: &mut v1::Event) {
        let record = note.node.as_ref().and_then(|node| self.nodes.get(node));
        // Of a decision about a whole group, the group is told of already.
        if let Some(ward) = note.ward.as_ref().filter(|_| event.group.is_empty()) {
            event.group = self.group_of(ward);
        }
        let reach = note.reach.as_deref().cloned().unwrap_or_default();
        let Reach { counts_for, groups, escalates_to, .. } = reach;
        let of = counts_for.as_deref().unwrap_or(&event.group);
        let group = self.steward.group(of, self.now());
        let text = |name: Option<Arc<str>>| name.as_deref().unwrap_or_default().to_owned();
        let (escalates_to, groups) = (text(escalates_to), groups.iter().map(ToString::to_string).collect());
        let decision = |recent, delay, gave_up| {
            let group = group.as_ref()?;
            let (intensity, period) = (group.spec.intensity, Some(duration(group.spec.period)));
            let group = group.spec.name.to_string();
            let restarts_node = matches!(note.what, What::NodeRestart { .. });
            Some(v1::Decision {
                recent,
                intensity,
                period,
                delay,
                gave_up,
                group,
                groups,
                escalates_to,
                restarts_node,
            })
        };
        match &note.what {
            What::NodeAttended { .. } => {
                event.boot_id = record.map(|record| record.boot.to_string()).unwrap_or_default();
            }
            What::NodeVerdict(verdict) if *verdict != Verdict::Healthy => {
                event.evidence = record.map(|record| record.evidence(None));
            }
            What::WardVerdict(_) | What::WardExited(_) => {
                let ward = note.ward.as_ref().map(|ward| &*ward.ward);
                event.evidence = record.map(|record| record.evidence(ward));
            }
            What::WardRestart { recent, delay, .. } | What::GroupRestart { recent, delay, .. } => {
                event.decision = decision(*recent, Some(duration(*delay)), false);
            }
            What::GroupGaveUp { recent, .. } | What::GroupFailed { recent, .. } => {
                event.decision = decision(*recent, None, true);
            }
            What::NodeRestart { group: Some(_) } => {
                let recent = group.as_ref().map_or(0, |group| group.recent);
                event.decision = decision(recent, None, false);
            }
            What::NodeRestart { group: None } => {
                event.decision = Some(v1::Decision { restarts_node: true, ..Default::default() });
            }
            What::GroupShutDown { .. } => event.decision = decision(0, None, false),
            What::Asked(Asked::Start | Asked::Restart) => {
                let recent = group.as_ref().map_or(0, |group| group.recent);
                let groups = self.without_restarts(&event.group);
                event.decision =
                    decision(recent, None, false).map(|decision| v1::Decision { groups, ..decision });
            }
            _ => {}
        }
    }

    /// Of a group and those it is in, the ones of which no restart counts.
    fn without_restarts(&self, group: &str) -> Vec<String> {
        let first = self.steward.group(group, self.now());
        let up = |view: &GroupView<'_>| self.steward.group(view.parent?, self.now());
        let forgiven = std::iter::successors(first, up).filter(|view| view.recent == 0);
        forgiven.map(|view| view.spec.name.to_string()).collect()
    }

    /// A ward's group; empty if the ward is not known.
    pub(super) fn group_of(&self, ward: &WardId) -> String {
        let record = self.nodes.get(&ward.node);
        record.and_then(|record| Some(record.group(record.slot(&ward.ward)?))).unwrap_or_default()
    }

    // --- intents ---

    pub(super) fn intent(&self, aim: Aim, node: &str, ward: &str, incarnation: u64, cause: &Cause) -> Intent {
        let boot = self.nodes.get(node).map(|record| record.boot.to_string()).unwrap_or_default();
        let now = Utc::now().timestamp_millis();
        Intent {
            id: 0,
            aim,
            node: node.to_owned(),
            ward: ward.to_owned(),
            incarnation,
            boot,
            counted: false,
            asked: false,
            drain_ms: None,
            decided_at: now,
            due_at: now,
            reason: cause.reason.clone(),
            actor: String::new(),
            error_id: cause.error_id.as_deref().unwrap_or_default().to_owned(),
            traceparent: cause.traceparent.as_deref().unwrap_or_default().to_owned(),
            epoch: self.settings.epoch,
        }
    }

    /// `was_up`: the ward that is to start already did so before.
    fn intend_noted(&mut self, note: &Note, was_up: bool) {
        let Some(ward) = &note.ward else { return };
        let intent = self.intent(Aim::Restart, &ward.node, &ward.ward, note.incarnation, &note.cause);
        let after = |delay: Duration| {
            intent.due_at.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX))
        };
        match &note.what {
            What::WardRestart { delay, .. } => {
                let due_at = after(*delay);
                self.chronicle.intend(Intent { counted: true, due_at, ..intent });
                self.intend_starts(note, Some(ward), due_at);
            }
            What::GroupRestart { delay, .. } => self.intend_starts(note, None, after(*delay)),
            What::GroupFailed { .. } => {
                self.intend_starts(note, None, intent.due_at);
                self.rest(note, "its group gave up", true);
            }
            What::GroupGaveUp { .. } => self.rest(note, "its group gave up", true),
            What::GroupShutDown { .. } => {
                self.intend_starts(note, None, intent.due_at);
                self.rest(note, "its group shut down", false);
            }
            // Its stop follows, and after that it is to run again.
            What::WardVerdict(Verdict::Stalled) => self.chronicle.intend(intent),
            What::Asked(asked @ (Asked::Start | Asked::Restart)) => {
                self.chronicle.release(&ward.node, &ward.ward);
                // A start of what runs is nothing to wait for.
                if !(was_up && *asked == Asked::Start) {
                    let actor = self.resuming.as_ref().map_or(&self.actor, |before| &before.actor).clone();
                    self.chronicle.intend(Intent { asked: true, actor, ..intent });
                }
            }
            _ => {}
        }
    }

    /// Who is started by a restart of more than one ward. `failed` has its own intent.
    fn intend_starts(&mut self, note: &Note, failed: Option<&WardId>, due_at: i64) {
        let starts = note.reach.iter().flat_map(|reach| &reach.starts).filter(|id| Some(*id) != failed);
        for id in starts {
            self.chronicle.release(&id.node, &id.ward);
            let incarnation = self.steward.ward(id).map_or(0, |view| view.incarnation);
            let intent = self.intent(Aim::RestartWithGroup, &id.node, &id.ward, incarnation, &note.cause);
            self.chronicle.intend(Intent { due_at, ..intent });
        }
    }

    /// Who ends with a group that nobody restarts, and rests from now on.
    fn rest(&mut self, note: &Note, why: &str, quarantined: bool) {
        for id in note.reach.iter().flat_map(|reach| &reach.ends) {
            self.chronicle.settle(&id.node, &id.ward, Lane::Ward, why);
            self.chronicle.hold(&id.node, &id.ward, quarantined);
        }
    }

    fn intend_start(&mut self, ward: &WardId, after: u64, cause: &Cause) {
        self.chronicle.release(&ward.node, &ward.ward);
        if self.open_restart(ward).is_none_or(|intent| intent.incarnation != after) {
            let intent = self.intent(Aim::Restart, &ward.node, &ward.ward, after, cause);
            self.chronicle.intend(intent);
        }
    }

    /// A stop is part of a restart that was decided, or the end of it.
    fn intend_stop(&mut self, ward: &WardId, incarnation: u64, cause: &Cause) {
        let rests = self.chronicle.rests(&ward.node, &ward.ward);
        if !rests && self.open_restart(ward).is_some_and(|intent| intent.incarnation == incarnation) {
            return;
        }
        let intent = self.intent(Aim::Stop, &ward.node, &ward.ward, incarnation, cause);
        self.chronicle.intend(intent);
    }

    pub(super) fn open_restart(&self, ward: &WardId) -> Option<&Intent> {
        let intent = self.chronicle.intents.get(&ward.node, &ward.ward, Lane::Ward);
        intent.filter(|intent| intent.aim.is_restart())
    }

    // --- commands ---

    fn command_ward(&mut self, ward: &WardId, cause: &Cause, kind: impl FnOnce(u32) -> command::Kind) {
        let slot = self.nodes.get(&ward.node).and_then(|record| record.slot(&ward.ward));
        if let Some(slot) = slot {
            let restart = self.open_restart(ward).is_some();
            self.command(&ward.node, kind(slot), cause, restart);
        }
    }

    /// `restart`: it is part of one that was decided.
    pub(super) fn command(&mut self, node: &Arc<str>, kind: command::Kind, cause: &Cause, restart: bool) {
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
        let session = session.id;
        let command = v1::Command {
            id,
            epoch: self.settings.epoch,
            reason: cause.reason.clone(),
            traceparent: traceparent.unwrap_or_default(),
            kind: Some(kind),
        };
        let message = Down::Command(command);
        self.chronicle.deed(Deed::Tell { node: node.clone(), session, message, restart });
    }

    /// To a node, at once. One that does not read loses its session and is told anew when it is back.
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
        self.chronicle.event(v1::Event {
            at: Some(timestamp(Utc::now())),
            kind: kind.into(),
            node: node.to_owned(),
            text,
            actor: actor.to_owned(),
            epoch: self.settings.epoch,
            ..Default::default()
        });
    }

    /// Tells the steward what a node says of itself.
    pub(super) fn attached(&mut self, node: Arc<str>, hello: &v1::Hello, boot: u128) {
        self.step(Event::NodeAttached {
            node: node.clone(),
            boot,
            wards: hello.wards.iter().map(wire::ward_report).collect(),
            groups: hello.groups.iter().map(wire::group_spec).collect(),
        });
        self.find_launcher(&node);
        if hello.restartable {
            self.step(Event::NodeRestartable { node });
        }
    }
}

/// The nodes whose own stewards would have to know of this, if they had to take over.
fn heirs(steward: &Steward, note: &Note) -> BTreeSet<Arc<str>> {
    let reach = note.reach.iter().flat_map(|reach| reach.counts_for.iter().chain(&reach.groups));
    reach.flat_map(|group| steward.nodes_of_group(group)).collect()
}

#[cfg(test)]
mod tests {
    use wardkeep_steward::{Config, ExitKind, GroupSpec, Strategy, WardReport, WardSpec};

    use super::*;

    #[test]
    fn a_restart_is_told_to_all_nodes_on_which_a_group_that_counts_it_or_begins_anew_has_wards() {
        // The outer group has a ward on o itself, and the inner ones on n and m.
        let within = |name: &str, parent: &str| GroupSpec {
            parent: Some(parent.into()),
            intensity: 0,
            ..GroupSpec::new(name)
        };
        let outer = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::new("outer") };
        let groups = [outer, within("first", "outer"), within("second", "outer"), GroupSpec::new("other")];
        let mut steward = Steward::new(Config::default()).with_groups(groups);
        for (node, group) in [("n", "first"), ("m", "second"), ("o", "outer"), ("p", "other")] {
            let spec = WardSpec { group: Some(group.into()), ..WardSpec::new("w") };
            let phase = Phase::Running;
            let ward = WardReport { spec, phase, incarnation: 1, held: false, failed: false };
            let wards = vec![ward];
            let attached = Event::NodeAttached { node: node.into(), boot: 1, wards, groups: vec![] };
            steward.step(Duration::from_secs(1), attached);
        }
        let kind = ExitKind::Panicked;
        let crash = |ward| Event::WardExited { ward, incarnation: 1, kind, cause: Cause::default() };
        let of = |actions: Vec<Action>, about: fn(&What) -> bool| {
            let note = actions.into_iter().find_map(|action| match action {
                Action::Note(note) if about(&note.what) => Some(note),
                _ => None,
            });
            note.expect("it is told of")
        };
        let told = |steward: &Steward, note: &Note| heirs(steward, note).into_iter().collect::<Vec<_>>();
        let actions = steward.step(Duration::from_secs(2), crash(WardId::new("n", "w")));
        let whole = of(actions, |what| matches!(what, What::GroupRestart { .. }));
        assert_eq!(told(&steward, &whole), ["m".into(), "n".into(), "o".into()]);
        let actions = steward.step(Duration::from_secs(3), crash(WardId::new("p", "w")));
        let alone = of(actions, |what| matches!(what, What::WardRestart { .. }));
        assert_eq!(told(&steward, &alone), ["p".into()]);
    }
}
