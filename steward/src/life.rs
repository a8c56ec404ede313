//! The life of a ward: starts, stops, ends, stalls, and what operators ask for.

use std::time::Duration;

use crate::{
    core::Steward,
    node::Node,
    tree::Member,
    types::{Action, Asked, Cause, ExitKind, Phase, Restart, Time, Verdict, WardId, What},
    ward::{Intent, Order, Overdue, Pending, Then, Ward},
};

/// A command that has shown no effect for so long (a stop: beyond its grace) is sent again. Commands
/// name an incarnation, so a repeated one does nothing if the first arrived.
pub const REPEAT_AFTER: Duration = Duration::from_secs(10);

impl Steward {
    /// Tells a node to start a ward. `restart`: counted as one of the steward's restarts.
    pub(crate) fn start(&mut self, id: &WardId, cause: Cause, restart: bool) {
        let patient = self.patient();
        self.cancel_pending(id);
        let Some(ward) = self.ward_mut(id) else { return };
        ward.intent = Intent::Up;
        ward.restarts += u64::from(restart);
        ward.cause = Some(Box::new(cause.clone()));
        ward.order = None;
        ward.enter(Phase::Starting, patient);
        self.note(None, Some(id), What::WardStarting, cause.clone());
        self.send_start(id, cause);
    }

    fn send_start(&mut self, id: &WardId, cause: Cause) {
        let Some(ward) = self.wards.get(id) else { return };
        let after_incarnation = ward.incarnation;
        self.out.push(Action::Start { ward: id.clone(), after_incarnation, cause });
    }

    /// Decides that what runs of a ward is to end. `grace`: if another than its spec says.
    pub(crate) fn order_stop(&mut self, id: &WardId, then: Then, grace: Option<Duration>, cause: Cause) {
        let patient = self.patient();
        self.cancel_pending(id);
        let Some(ward) = self.ward_mut(id) else { return };
        let grace = grace.unwrap_or(ward.spec().grace).min(ward.spec().grace);
        ward.order = Some(Box::new(Order { then, grace, cause, sent: None }));
        ward.enter(Phase::Stopping, patient);
        self.send_stop(id);
    }

    /// Sends the stop of a ward as soon as its incarnation is known and its node there.
    pub(crate) fn send_stop(&mut self, id: &WardId) {
        let patient = self.patient();
        if !self.nodes.get(&id.node).is_some_and(|node| node.attached) {
            return;
        }
        let Some(ward) = self.ward_mut(id).filter(|ward| ward.live) else { return };
        let incarnation = ward.incarnation;
        let Some(order) = ward.order.as_mut().filter(|order| order.sent.is_none()) else { return };
        order.sent = Some(patient);
        let (grace, cause) = (order.grace, order.cause.clone());
        self.out.push(Action::Stop { ward: id.clone(), incarnation, grace, cause });
    }

    /// Whether a message is about the present incarnation, or a newer one (which is then believed).
    fn is_fresh(&mut self, id: &WardId, incarnation: u64) -> bool {
        let patient = self.patient();
        self.heard(&id.node);
        let known = self.wards.get(id).map(|ward| (ward.incarnation, ward.live));
        match known {
            Some((known, true)) if incarnation == known => true,
            Some((known, _)) if incarnation > known => {
                self.believe(id, incarnation, Some(patient));
                if let Some(ward) = self.ward_mut(id).filter(|ward| ward.order.is_none()) {
                    ward.enter(Phase::Starting, patient);
                }
                true
            }
            _ => {
                let reason = format!("a message about incarnation {incarnation}");
                self.note(None, Some(id), What::StaleDropped, Cause { reason, ..Cause::default() });
                false
            }
        }
    }

    /// Another incarnation lives: what was decided about the one before is settled.
    pub(crate) fn believe(&mut self, id: &WardId, incarnation: u64, began: Option<Time>) {
        let patient = self.patient();
        self.cancel_pending(id);
        let Some(ward) = self.ward_mut(id) else { return };
        ward.begin(incarnation, began);
        ward.work = None;
        let order = ward.order.take_if(|order| order.sent.is_none() || order.then == Then::Settle);
        ward.order = order.map(|order| Box::new(Order { sent: None, ..*order }));
        self.wards.lives(id, patient);
    }

    /// A ward that lives though it should rest is stopped; one at rest by itself is wanted again.
    pub(crate) fn enforce(&mut self, id: &WardId) {
        let Some(ward) = self.ward_mut(id) else { return };
        match ward.intent {
            Intent::Resting if ward.order.is_none() => ward.intent = Intent::Up,
            Intent::Down | Intent::Ended | Intent::Quarantined if ward.order.is_none() => {
                let reason = "it is to rest".into();
                self.order_stop(id, Then::Settle, None, Cause { reason, ..Cause::default() });
            }
            _ => self.send_stop(id),
        }
    }

    pub(crate) fn starting(&mut self, id: &WardId, incarnation: u64) {
        if self.is_fresh(id, incarnation) {
            self.enforce_unless_ending(id);
        }
    }

    pub(crate) fn running(&mut self, id: &WardId, incarnation: u64) {
        if !self.is_fresh(id, incarnation) {
            return;
        }
        let patient = self.patient();
        self.enforce_unless_ending(id);
        let Some(ward) = self.ward_mut(id).filter(|ward| ward.phase == Phase::Starting) else { return };
        ward.verdict = Verdict::Healthy;
        ward.enter(Phase::Running, patient);
        let cause = ward.cause.take().map(|cause| *cause).unwrap_or_default();
        self.wards.lives(id, patient);
        self.note(None, Some(id), What::WardRunning, cause);
    }

    /// A group that ends stops its wards in its own order.
    fn enforce_unless_ending(&mut self, id: &WardId) {
        if self.is_ending(id) {
            self.send_stop(id);
        } else {
            self.enforce(id);
        }
    }

    pub(crate) fn exited(&mut self, id: &WardId, incarnation: u64, kind: ExitKind, cause: Cause) {
        if !self.is_fresh(id, incarnation) {
            return;
        }
        let Some(ward) = self.ward_mut(id) else { return };
        ward.live = false;
        ward.is_idle_now();
        let order = ward.order.take();
        self.note(None, Some(id), What::WardExited(kind), cause.clone());
        match order {
            Some(order) => {
                let order = *order;
                let error_id = cause.error_id.or(order.cause.error_id);
                let traceparent = order.cause.traceparent.or(cause.traceparent);
                self.conclude(id, order.then, Cause { reason: order.cause.reason, error_id, traceparent });
            }
            None => {
                if kind.is_failure() {
                    if let Some(ward) = self.ward_mut(id) {
                        ward.erred(cause.error_id.as_ref());
                    }
                    self.judge_ward(id, Verdict::Crashed, cause.clone());
                }
                self.ended(id, kind.is_failure(), cause);
            }
        }
    }

    /// A stop that was asked for is done.
    pub(crate) fn conclude(&mut self, id: &WardId, then: Then, cause: Cause) {
        let now = self.now;
        let Some(ward) = self.ward_mut(id) else { return };
        (ward.live, ward.order) = (false, None);
        let up = ward.intent == Intent::Up;
        match then {
            Then::Fail => {
                ward.erred(cause.error_id.as_ref());
                self.ended(id, true, cause);
            }
            Then::Again if up => self.wait(id, Pending { due: Some(now), cause, free: true, ticket: None }),
            Then::Plan if up => {
                let due = (!self.will_start(id)).then_some(now);
                self.wait(id, Pending { due, cause, free: false, ticket: None });
            }
            _ => self.settle_down(id),
        }
    }

    /// A ward ended, by itself or because it was stalled.
    fn ended(&mut self, id: &WardId, failure: bool, cause: Cause) {
        let Some(ward) = self.ward_mut(id) else { return };
        let again = match ward.spec().restart {
            Restart::Permanent => true,
            Restart::Transient => failure,
            Restart::Temporary => false,
        };
        if ward.intent != Intent::Up {
            return self.settle_down(id);
        }
        ward.phase = Phase::Stopped;
        match self.is_end_expected(id, &cause) {
            true => {}
            false if again => self.failed(id, cause),
            false => {
                self.rest(id);
                self.rested(id, cause);
            }
        }
    }

    pub(crate) fn rest(&mut self, id: &WardId) {
        if let Some(ward) = self.ward_mut(id) {
            ward.intent = Intent::Resting;
        }
        self.settle_down(id);
    }

    /// It ended by itself, and for good.
    fn rested(&mut self, id: &WardId, cause: Cause) {
        if let Some(group) = self.wards.get(id).map(|ward| ward.group().clone()) {
            self.significant_ended(&group, &Member::Ward(id.clone()), id, cause);
        }
    }

    /// A ward that is down is where its intent wants it.
    pub(crate) fn settle_down(&mut self, id: &WardId) {
        let patient = self.patient();
        self.cancel_pending(id);
        let Some(ward) = self.ward_mut(id) else { return };
        let (intent, group) = (ward.intent, ward.group().clone());
        let lost = intent == Intent::Ended && self.groups.get(&group).is_some_and(|group| group.gave_up);
        let quarantined = intent == Intent::Quarantined || lost;
        let Some(ward) = self.ward_mut(id) else { return };
        ward.enter(if quarantined { Phase::Quarantined } else { Phase::Stopped }, patient);
        self.hold(id);
    }

    /// Has the node remember what people decided about a ward, or have yet to look at.
    pub(crate) fn hold(&mut self, id: &WardId) {
        if !self.nodes.get(&id.node).is_some_and(|node| node.attached) {
            return;
        }
        let Some(ward) = self.wards.get(id) else { return };
        // A group that is still ending, or whose node is to restart, may yet begin anew.
        let for_good = match ward.intent {
            Intent::Down | Intent::Quarantined => true,
            Intent::Ended => !self.is_ending(id) && !self.is_escalating(id),
            Intent::Up | Intent::Resting => false,
        };
        if for_good {
            let quarantined = ward.intent == Intent::Quarantined || ward.phase == Phase::Quarantined;
            let incarnation = ward.incarnation;
            self.out.push(Action::Hold { ward: id.clone(), incarnation, quarantined });
        }
    }

    pub(crate) fn cancel_pending(&mut self, id: &WardId) {
        let pending = self.wards.get_mut(id).and_then(|ward| ward.pending.take());
        if let Some(ticket) = pending.and_then(|pending| pending.ticket) {
            self.queue.remove(&ticket);
        }
    }

    pub(crate) fn asked_start(&mut self, id: &WardId, cause: Cause) {
        self.asked(id, Asked::Start, cause, |steward, cause| steward.bring_up(id, cause));
    }

    pub(crate) fn asked_restart(&mut self, id: &WardId, cause: Cause) {
        self.asked(id, Asked::Restart, cause, |steward, cause| {
            if steward.is_up(id) {
                steward.lift(id);
                steward.order_stop(id, Then::Again, None, cause);
            } else {
                steward.bring_up(id, cause);
            }
        });
    }

    pub(crate) fn asked_stop(&mut self, id: &WardId, cause: Cause) {
        self.asked(id, Asked::Stop, cause, |steward, cause| {
            let Some(ward) = steward.ward_mut(id) else { return };
            ward.intent = Intent::Down;
            let (down, ordered) = (ward.is_down(), ward.order.is_some());
            steward.drop_from_plans(id);
            steward.hold(id);
            match (down, ordered) {
                (true, _) => steward.settle_down(id),
                (false, true) => steward.change_order(id, Then::Settle, cause),
                (false, false) => steward.order_stop(id, Then::Settle, None, cause),
            }
        });
    }

    fn asked(&mut self, id: &WardId, asked: Asked, cause: Cause, then: impl FnOnce(&mut Self, Cause)) {
        if self.wards.contains(id) {
            self.note(None, Some(id), What::Asked(asked), cause.clone());
            then(self, cause);
        }
    }

    /// An operator wants it to run: no quarantine, no pause, no price.
    fn bring_up(&mut self, id: &WardId, cause: Cause) {
        let now = self.now;
        self.lift(id);
        let Some(ward) = self.wards.get(id) else { return };
        if ward.is_down() {
            self.wait(id, Pending { due: Some(now), cause, free: true, ticket: None });
        } else if ward.phase == Phase::Stopping {
            self.change_order(id, Then::Again, cause);
        }
    }

    fn lift(&mut self, id: &WardId) {
        self.forestall(id);
        let lost = |ward: &Ward| ward.intent == Intent::Quarantined || ward.phase == Phase::Quarantined;
        let lost = self.wards.get(id).is_some_and(lost);
        if lost {
            self.forgive_group(id);
        }
        if let Some(ward) = self.ward_mut(id) {
            ward.intent = Intent::Up;
        }
        if lost {
            self.release_hold(id);
        }
    }

    /// Its node may have been told to keep it down once it has ended; but it is not going to end.
    pub(crate) fn release_hold(&mut self, id: &WardId) {
        if !self.nodes.get(&id.node).is_some_and(|node| node.attached) {
            return;
        }
        let lives_on = |ward: &&Ward| ward.live && ward.intent == Intent::Up && ward.order.is_none();
        if let Some(ward) = self.wards.get(id).filter(lives_on) {
            self.out.push(Action::Release { ward: id.clone(), incarnation: ward.incarnation });
        }
    }

    /// Something else follows a stop that is on its way.
    fn change_order(&mut self, id: &WardId, then: Then, cause: Cause) {
        let grace = self.wards.get(id).map_or(Duration::ZERO, |ward| ward.spec().grace);
        let patient = self.patient();
        let Some(ward) = self.ward_mut(id) else { return };
        let sent = match &ward.order {
            Some(order) => order.sent,
            None => Some(patient),
        };
        ward.order = Some(Box::new(Order { then, grace, cause, sent }));
    }

    /// Does what is due for a ward.
    pub(crate) fn wake_ward(&mut self, id: &WardId) {
        let (now, patient) = (self.now, self.patient());
        if self.ward_wake(id).is_none_or(|at| at > now) {
            return;
        }
        let runtime_stalled = self.is_runtime_stalled(id);
        let pulsed = self.wards.place(id).map(|place| self.wards.pulsed(place)).unwrap_or_default();
        let Some(ward) = self.ward_mut(id) else { return };
        match ward.phase {
            Phase::Backoff => self.claim(id),
            Phase::Stopping if !ward.live => {
                // It was to end before it began, and it never began.
                let Some(order) = ward.order.take() else { return };
                self.conclude(id, order.then, order.cause);
            }
            Phase::Stopping => {
                if let Some(order) = &mut ward.order {
                    order.sent = None;
                }
                self.send_stop(id);
            }
            Phase::Starting if !ward.live => {
                ward.enter(Phase::Starting, patient);
                let cause = ward.cause.as_deref().cloned().unwrap_or_default();
                self.send_start(id, cause);
            }
            _ => {
                if let Some((_, overdue)) = ward.overdue_at(runtime_stalled, pulsed) {
                    self.stalled(id, overdue);
                }
            }
        }
    }

    /// When a ward wants to be woken: as [`Self::wake_ward`] has it.
    fn ward_wake(&self, id: &WardId) -> Option<Time> {
        let place = self.wards.place(id)?;
        let (ward, node) = (self.wards.at(place)?, self.nodes.get(&id.node)?);
        self.wake_of(place, ward, node).filter(|_| !self.is_unvouched(place, ward, node))
    }

    /// When a ward wants to be woken, if reports vouch for it then.
    pub(crate) fn wake_of(&self, place: u32, ward: &Ward, node: &Node) -> Option<Time> {
        if !node.is_ready() {
            return None;
        }
        match ward.phase {
            Phase::Backoff => ward.pending.as_ref().filter(|p| p.ticket.is_none()).and_then(|p| p.due),
            Phase::Starting | Phase::Stopping if !ward.live => {
                Some(self.real(ward.since().saturating_add(REPEAT_AFTER)))
            }
            Phase::Stopping => {
                let order = ward.order.as_ref()?;
                let sent = order.sent.unwrap_or_else(|| self.patient());
                Some(self.real(sent.saturating_add(order.grace).saturating_add(REPEAT_AFTER)))
            }
            Phase::Starting | Phase::Running => ward
                .overdue_at(node.verdict == Verdict::RuntimeStalled, self.wards.pulsed(place))
                .map(|(at, _)| self.real(at)),
            Phase::Stopped | Phase::Quarantined => None,
        }
    }

    /// It is overdue at a time for which no report vouches yet: the next one may tell that it is not.
    pub(crate) fn is_unvouched(&self, place: u32, ward: &Ward, node: &Node) -> bool {
        let judged = ward.phase == Phase::Running || ward.phase == Phase::Starting && ward.live;
        let overdue = || ward.overdue_at(node.verdict == Verdict::RuntimeStalled, self.wards.pulsed(place));
        judged && overdue().is_some_and(|(at, _)| at > self.vouched_until(node))
    }

    /// A restart is due: at once if the fleet's budget allows, else in its turn.
    fn claim(&mut self, id: &WardId) {
        let now = self.now;
        let Some(pending) = self.wards.get(id).and_then(|ward| ward.pending.as_ref()) else { return };
        let (free, cause) = (pending.free, pending.cause.clone());
        if free || (self.queue.is_empty() && self.budget.take(now)) {
            return self.start(id, cause, !free);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.insert(ticket, id.clone());
        if let Some(pending) = self.ward_mut(id).and_then(|ward| ward.pending.as_mut()) {
            pending.ticket = Some(ticket);
        }
        if !std::mem::replace(&mut self.dry, true) {
            self.note(None, Some(id), What::BudgetSpent, cause);
        }
    }

    fn stalled(&mut self, id: &WardId, overdue: Overdue) {
        let patient = self.patient();
        let Some(place) = self.wards.place(id) else { return };
        let Some(ward) = self.wards.at(place) else { return };
        let (age, allowed) = ward.owed(overdue, self.wards.pulsed(place), patient);
        let cause = Cause { reason: overdue.reason(age, allowed), ..Cause::default() };
        self.judge_ward(id, Verdict::Stalled, cause.clone());
        // Who has kept others waiting for so long is not given as long again.
        self.order_stop(id, Then::Fail, Some(allowed / 4), cause);
    }
}
