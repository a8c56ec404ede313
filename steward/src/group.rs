//! Groups: who is restarted with whom, in which order, and when a group gives up.
//!
//! A restart of more than one ward is a plan: stops one by one in reverse start order, each waiting
//! for the exit of the one before, then starts one by one in start order. What a plan cannot reach
//! (wards of nodes that are away) it skips; those are dealt with when their node is back.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    core::Steward,
    intensity::Restarts,
    types::{Cause, GroupSpec, GroupView, Phase, Restart, Strategy, Time, Verdict, WardId, What},
    ward::{Intent, Pending, Then},
};

/// A plan waits so long for a ward to be ready before it starts the next one anyway: a ward that may
/// take for ever to start must not keep its group down.
pub const START_PATIENCE: Duration = Duration::from_secs(30);

/// Where a group's spec comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Configured,
    Declared,
    /// A ward named it, nobody described it.
    Implied,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) spec: GroupSpec,
    pub(crate) origin: Origin,
    /// In start order.
    pub(crate) members: Vec<WardId>,
    pub(crate) restarts: Restarts,
    pub(crate) gave_up: bool,
    pub(crate) plan: Option<Plan>,
}

#[derive(Debug)]
pub(crate) struct Plan {
    /// In start order: taken from the end.
    stops: Vec<WardId>,
    starts: VecDeque<WardId>,
    /// No start before this.
    due: Time,
    cause: Cause,
}

impl Group {
    pub(crate) fn new(spec: GroupSpec, origin: Origin) -> Self {
        Self { spec, origin, members: Vec::new(), restarts: Restarts::default(), gave_up: false, plan: None }
    }

    pub(crate) fn view(&self, now: Time) -> GroupView<'_> {
        GroupView {
            spec: &self.spec,
            members: &self.members,
            recent: self.restarts.recent(now, self.spec.period),
            gave_up: self.gave_up,
        }
    }

    pub(crate) fn is_worth_keeping(&self) -> bool {
        self.origin == Origin::Configured || !self.members.is_empty()
    }

    pub(crate) fn drop_from_plan(&mut self, id: &WardId) {
        if let Some(plan) = &mut self.plan {
            plan.stops.retain(|other| other != id);
            plan.starts.retain(|other| other != id);
        }
    }

    /// A plan is going to start it.
    pub(crate) fn will_start(&self, id: &WardId) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.starts.contains(id))
    }

    /// A plan is still stopping wards, and this one belongs to it: its end is no news.
    fn expects_end_of(&self, id: &WardId) -> bool {
        self.will_start(id) && self.plan.as_ref().is_some_and(|plan| !plan.stops.is_empty())
    }

    /// Whom a failure concerns, the failed one included, in start order.
    fn affected(&self, failed: &WardId) -> &[WardId] {
        let at = self.members.iter().position(|id| id == failed);
        match (self.spec.strategy, at) {
            (Strategy::OneForAll, _) => &self.members,
            (Strategy::RestForOne, Some(at)) => self.members.get(at..).unwrap_or_default(),
            (Strategy::OneForOne, Some(at)) => self.members.get(at..=at).unwrap_or_default(),
            (_, None) => &[],
        }
    }
}

impl Steward {
    /// A ward that is to be restarted is down: counts the restart, and restarts those it concerns.
    pub(crate) fn failed(&mut self, id: &WardId, cause: Cause) {
        let (now, patient, seed) = (self.now, self.patient(), self.config.seed);
        let Some(group) = self.wards.get(id).and_then(|ward| self.groups.get_mut(&ward.group)) else {
            return;
        };
        let waits = Pending { due: None, cause: cause.clone(), free: false, ticket: None };
        if group.gave_up {
            return self.quarantine(id);
        }
        if group.expects_end_of(id) {
            return self.wait(id, waits);
        }
        let (intensity, backoff) = (group.spec.intensity, group.spec.backoff);
        let added = group.restarts.add(now, intensity, group.spec.period);
        if !added.allowed {
            return self.give_up(id, added.recent, cause);
        }
        let alone = group.spec.strategy == Strategy::OneForOne;
        let Some(ward) = self.ward_mut(id) else { return };
        let delay = ward.streak.next(&backoff, now, seed, &id.to_string());
        ward.enter(Phase::Backoff, patient);
        let due = now.saturating_add(delay);
        self.wait(id, Pending { due: alone.then_some(due), ..waits });
        let what = What::WardRestart { recent: added.recent, intensity, delay };
        self.note(None, Some(id), what, cause.clone());
        if !alone {
            self.plan_restart(id, due, cause);
        }
    }

    /// Puts a ward that is down in wait for its start.
    pub(crate) fn wait(&mut self, id: &WardId, pending: Pending) {
        let patient = self.patient();
        self.cancel_pending(id);
        let Some(ward) = self.ward_mut(id) else { return };
        ward.intent = Intent::Up;
        ward.pending = Some(pending);
        ward.enter(Phase::Backoff, patient);
    }

    pub(crate) fn quarantine(&mut self, id: &WardId) {
        let patient = self.patient();
        self.cancel_pending(id);
        let Some(ward) = self.ward_mut(id) else { return };
        ward.intent = Intent::Quarantined;
        if ward.is_down() {
            ward.enter(Phase::Quarantined, patient);
        }
        self.hold(id);
    }

    /// Plans the restart of all that a failure concerns; what an earlier plan has not done yet is
    /// taken over.
    fn plan_restart(&mut self, id: &WardId, due: Time, cause: Cause) {
        let Some(group) = self.wards.get(id).and_then(|ward| self.groups.get(&ward.group)) else { return };
        let name = group.spec.name.clone();
        let follows = |other: &WardId| self.wards.get(other).is_some_and(|ward| ward.follows_group());
        let affected: BTreeSet<&WardId> = group.affected(id).iter().collect();
        let (mut stops, mut starts) = (Vec::new(), VecDeque::new());
        for other in group.members.iter().filter(|other| self.ready(&other.node)) {
            let concerned = affected.contains(other);
            if concerned && self.wards.get(other).is_some_and(|ward| !ward.is_down()) {
                stops.push(other.clone());
            }
            if (concerned && follows(other)) || group.will_start(other) {
                starts.push_back(other.clone());
            }
        }
        let due = group.plan.as_ref().map_or(due, |plan| plan.due.max(due));
        for other in starts.iter().filter(|other| *other != id) {
            // Those that wait for their own restart now wait for the plan.
            if self.wards.get(other).is_some_and(|ward| ward.is_down()) {
                let pending = Pending { due: None, cause: cause.clone(), free: false, ticket: None };
                self.wait(other, pending);
            }
        }
        if let Some(group) = self.groups.get_mut(&name) {
            group.plan = Some(Plan { stops, starts, due, cause });
        }
        self.dirty.insert(name);
    }

    fn give_up(&mut self, id: &WardId, recent: u32, cause: Cause) {
        let Some(name) = self.wards.get(id).map(|ward| ward.group.clone()) else { return };
        let what = What::GroupGaveUp { group: name.clone(), recent };
        self.note(None, Some(id), what, cause.clone());
        let Some(group) = self.groups.get_mut(&name) else { return };
        group.gave_up = true;
        let members = group.members.clone();
        for member in &members {
            if self.wards.get(member).is_some_and(|ward| ward.intent != Intent::Down) {
                self.quarantine(member);
            }
        }
        let up = |member: &&WardId| self.wards.get(member).is_some_and(|ward| !ward.is_down());
        let stops = members.iter().filter(up).cloned().collect();
        let plan = Plan { stops, starts: VecDeque::new(), due: self.now, cause };
        if let Some(group) = self.groups.get_mut(&name) {
            group.plan = Some(plan);
        }
        self.dirty.insert(name);
    }

    /// An operator brings a ward of the group back.
    pub(crate) fn forgive_group(&mut self, id: &WardId) {
        let Some(group) = self.wards.get(id).and_then(|ward| self.groups.get_mut(&ward.group)) else {
            return;
        };
        group.restarts.clear();
        group.gave_up = false;
    }

    /// Carries a group's plan as far as it goes now; says when it wants to be asked again, if not
    /// after the next event of one of its wards.
    pub(crate) fn drive(&mut self, name: &Arc<str>) -> Option<Time> {
        loop {
            let plan = self.groups.get(name)?.plan.as_ref()?;
            if let Some(id) = plan.stops.last().cloned() {
                if self.drive_stop(&id, plan.cause.clone()) {
                    return None;
                }
                self.groups.get_mut(name)?.plan.as_mut()?.stops.pop();
            } else if let Some(id) = plan.starts.front().cloned() {
                match self.drive_start(&id, plan.due, plan.cause.clone()) {
                    Step::Wait(wake) => return wake,
                    Step::Next => {}
                }
                self.groups.get_mut(name)?.plan.as_mut()?.starts.pop_front();
                self.release(&id);
            } else {
                self.groups.get_mut(name)?.plan = None;
                return None;
            }
        }
    }

    /// A ward that the plan skipped while it was down waits no longer for the plan.
    fn release(&mut self, id: &WardId) {
        let now = self.now;
        if let Some(pending) = self.ward_mut(id).and_then(|ward| ward.pending.as_mut()) {
            pending.due.get_or_insert(now);
        }
    }

    /// Whether the plan has to wait for this ward's end.
    fn drive_stop(&mut self, id: &WardId, cause: Cause) -> bool {
        if !self.ready(&id.node) {
            return false;
        }
        let Some(ward) = self.wards.get(id) else { return false };
        if ward.phase == Phase::Stopping {
            return true;
        }
        let gave_up = self.groups.get(&ward.group).is_some_and(|group| group.gave_up);
        let spared = match ward.intent {
            Intent::Quarantined => false,
            // An operator brought it back meanwhile.
            _ => gave_up || !self.is_up(id),
        };
        if ward.is_down() || spared {
            return false;
        }
        let temporary = ward.spec.restart == Restart::Temporary;
        let then = match ward.intent {
            Intent::Up if !temporary => Then::Plan,
            _ => Then::Settle,
        };
        if let Some(ward) = self.ward_mut(id).filter(|ward| temporary && ward.intent == Intent::Up) {
            ward.intent = Intent::Resting;
        }
        self.order_stop(id, then, None, cause);
        true
    }

    fn drive_start(&mut self, id: &WardId, due: Time, cause: Cause) -> Step {
        let (now, patient) = (self.now, self.patient());
        if !self.ready(&id.node) {
            return Step::Next;
        }
        let Some(ward) = self.wards.get(id) else { return Step::Next };
        let until = ward.since.saturating_add(START_PATIENCE);
        match ward.phase {
            Phase::Stopped | Phase::Backoff if ward.intent == Intent::Up => {
                if ward.pending.as_ref().is_none_or(|pending| pending.due.is_none()) {
                    let cause = ward.pending.as_ref().map_or(cause, |pending| pending.cause.clone());
                    self.wait(id, Pending { due: Some(due.max(now)), cause, free: false, ticket: None });
                }
                Step::Wait(None)
            }
            Phase::Starting if patient < until => Step::Wait(Some(self.real(until))),
            _ => Step::Next,
        }
    }

    /// Describes groups. What is already described under a name stays.
    pub(crate) fn declare(&mut self, spec: GroupSpec, origin: Origin) {
        match self.groups.get_mut(&spec.name) {
            Some(group) if group.origin == Origin::Implied && origin != Origin::Implied => {
                (group.spec, group.origin) = (spec, origin);
            }
            Some(_) => {}
            None => {
                let name = spec.name.clone();
                self.groups.insert(name.clone(), Group::new(spec, origin));
                self.recall_group(&name);
            }
        }
    }

    /// The verdict a failed ward has until it runs again.
    pub(crate) fn judge_ward(&mut self, id: &WardId, verdict: Verdict, cause: Cause) {
        if let Some(ward) = self.ward_mut(id) {
            ward.verdict = verdict;
        }
        self.note(None, Some(id), What::WardVerdict(verdict), cause);
    }
}

enum Step {
    /// Until the next event of the ward, or this time.
    Wait(Option<Time>),
    Next,
}
