//! Plans: the restart, or the end, of more than one ward.
//!
//! Stops come one by one in reverse start order, each waiting for the exit of the one before, then
//! starts one by one in start order. What a plan cannot reach (wards of nodes that are away) it skips;
//! those are dealt with when their node is back. A group within another may come by a plan of its own
//! while the outer one starts its wards: the outer plan waits for it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    core::Steward,
    group::Group,
    types::{Cause, Phase, Time, WardId},
    ward::{Intent, Pending, Then},
};

/// A plan waits so long for a ward to be ready before it starts the next one anyway: a ward that may
/// take for ever to start must not keep its group down.
pub const START_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Plan {
    /// In start order: taken from the end.
    pub(crate) stops: Vec<WardId>,
    pub(crate) starts: VecDeque<WardId>,
    /// No start before this.
    pub(crate) due: Time,
    pub(crate) cause: Cause,
    /// Groups whose plans come before the starts of this one.
    pub(crate) below: Vec<Arc<str>>,
    /// The group ends.
    pub(crate) end: Option<End>,
}

/// The end of a group.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) how: Ending,
    /// The ward that led there.
    pub(crate) ward: WardId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    GaveUp { recent: u32 },
    ShutDown,
}

impl Plan {
    /// It is still stopping wards, and this one belongs to it: its end is no news.
    fn expects_end_of(&self, id: &WardId) -> bool {
        !self.stops.is_empty() && (self.starts.contains(id) || self.stops.contains(id))
    }
}

impl Steward {
    /// A plan is going to start it.
    pub(crate) fn will_start(&self, id: &WardId) -> bool {
        self.plans_for(id).any(|plan| plan.starts.contains(id))
    }

    pub(crate) fn expects_end_of(&self, id: &WardId) -> bool {
        self.plans_for(id).any(|plan| plan.expects_end_of(id))
    }

    /// Whether the restart, or the end, of a group that is under way has yet to come to it.
    pub fn is_planned(&self, id: &WardId) -> bool {
        self.plans_for(id).any(|plan| plan.starts.contains(id) || plan.stops.contains(id))
    }

    /// A group it is in is ending.
    pub(crate) fn is_ending(&self, id: &WardId) -> bool {
        self.groups_of(id).any(Group::is_ending)
    }

    fn plans_for(&self, id: &WardId) -> impl Iterator<Item = &Plan> {
        self.groups_of(id).filter_map(|group| group.plan.as_ref())
    }

    pub(crate) fn drop_from_plans(&mut self, id: &WardId) {
        let groups: Vec<_> = self.groups_of(id).map(|group| group.spec.name.clone()).collect();
        for name in groups {
            if let Some(plan) = self.groups.get_mut(&name).and_then(|group| group.plan.as_mut()) {
                plan.stops.retain(|other| other != id);
                plan.starts.retain(|other| other != id);
            }
        }
    }

    /// Carries a group's plan as far as it goes now; says when it wants to be asked again, if not
    /// after the next event of one of its wards.
    pub(crate) fn drive(&mut self, name: &Arc<str>) -> Option<Time> {
        loop {
            let plan = self.groups.get(name)?.plan.as_ref()?;
            if let Some(id) = plan.stops.last().cloned() {
                let (returns, ends) = (plan.starts.contains(&id), plan.end.is_some());
                if self.drive_stop(&id, returns, ends, plan.cause.clone()) {
                    return None;
                }
                self.groups.get_mut(name)?.plan.as_mut()?.stops.pop();
            } else if plan.below.iter().any(|name| self.has_plan(name)) {
                return None;
            } else if let Some(id) = plan.starts.front().cloned() {
                match self.drive_start(&id, plan.due, plan.cause.clone()) {
                    Step::Wait(wake) => return wake,
                    Step::Next => {}
                }
                self.groups.get_mut(name)?.plan.as_mut()?.starts.pop_front();
                self.release(&id);
            } else {
                let plan = self.groups.get_mut(name)?.plan.take()?;
                let around: Vec<_> = self.chain(name).skip(1).map(|group| group.spec.name.clone()).collect();
                self.dirty.extend(around);
                if let Some(end) = plan.end {
                    self.group_ended(name, end, plan.cause);
                }
                return None;
            }
        }
    }

    fn has_plan(&self, name: &str) -> bool {
        self.groups.get(name).is_some_and(|group| group.plan.is_some())
    }

    /// A ward that a plan left out while it was down waits no longer for the plan.
    pub(crate) fn release(&mut self, id: &WardId) {
        let now = self.now;
        if let Some(pending) = self.ward_mut(id).and_then(|ward| ward.pending.as_mut()) {
            pending.due.get_or_insert(now);
        }
    }

    /// Whether the plan has to wait for this ward's end. `returns`: the plan starts it again; `ends`: it
    /// is the end of the group.
    fn drive_stop(&mut self, id: &WardId, returns: bool, ends: bool, cause: Cause) -> bool {
        if !self.ready(&id.node) {
            return false;
        }
        let Some(ward) = self.wards.get(id) else { return false };
        if ward.phase == Phase::Stopping {
            return true;
        }
        let spared = match ward.intent {
            Intent::Quarantined | Intent::Ended => false,
            // An operator brought it back meanwhile.
            _ => ends || !self.is_up(id),
        };
        if ward.is_down() || spared {
            return false;
        }
        let up = ward.intent == Intent::Up;
        if let Some(ward) = self.ward_mut(id).filter(|_| up && !returns) {
            ward.intent = Intent::Resting;
        }
        let then = if up && returns { Then::Plan } else { Then::Settle };
        self.order_stop(id, then, None, cause);
        true
    }

    fn drive_start(&mut self, id: &WardId, due: Time, cause: Cause) -> Step {
        let (now, patient) = (self.now, self.patient());
        if !self.ready(&id.node) {
            return Step::Next;
        }
        let Some(ward) = self.wards.get(id) else { return Step::Next };
        let until = ward.since().saturating_add(START_PATIENCE);
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
}

enum Step {
    /// Until the next event of the ward, or this time.
    Wait(Option<Time>),
    Next,
}
