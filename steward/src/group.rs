//! Groups: who is restarted with whom, when a group gives up or shuts down, and what its parent makes
//! of it. How a restart of several wards is carried out is in `plan`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    backoff::Streak,
    core::Steward,
    intensity::Restarts,
    plan::{End, Ending, Plan},
    table::Table,
    tree::Member,
    types::{
        AutoShutdown, Backoff, Cause, GroupSpec, GroupView, NodeName, Phase, Reach, Restart, Strategy, Time,
        Verdict, WardId, What,
    },
    ward::{Intent, Pending, Then, Ward},
};

/// Where a group's spec comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Configured,
    Declared,
    /// A ward or a group named it, nobody described it.
    Implied,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) spec: GroupSpec,
    pub(crate) origin: Origin,
    /// Nodes that declare it.
    pub(crate) declared_by: BTreeSet<NodeName>,
    /// As the spec says, unless that is impossible.
    pub(crate) parent: Option<Arc<str>>,
    pub(crate) subgroups: BTreeSet<Arc<str>>,
    /// Places of its own wards, in start order.
    pub(crate) members: Vec<u32>,
    pub(crate) restarts: Restarts,
    /// Of its own restarts, by its parent.
    streak: Streak,
    pub(crate) gave_up: bool,
    /// It ended, and its parent has not restarted it. (One whose wards have all ended has not.)
    pub(crate) over: bool,
    pub(crate) plan: Option<Plan>,
}

impl Group {
    pub(crate) fn new(spec: GroupSpec, origin: Origin) -> Self {
        Self {
            spec,
            origin,
            declared_by: BTreeSet::new(),
            parent: None,
            subgroups: BTreeSet::new(),
            members: Vec::new(),
            restarts: Restarts::default(),
            streak: Streak::default(),
            gave_up: false,
            over: false,
            plan: None,
        }
    }

    pub(crate) fn view(&self, wards: &Table, now: Time) -> GroupView<'_> {
        GroupView {
            spec: &self.spec,
            parent: self.parent.as_ref(),
            members: wards.ids(&self.members).cloned().collect(),
            recent: self.restarts.recent(now, self.spec.period),
            gave_up: self.gave_up,
        }
    }

    pub(crate) fn is_worth_keeping(&self) -> bool {
        let described = self.origin == Origin::Configured || !self.declared_by.is_empty();
        described || !self.members.is_empty() || !self.subgroups.is_empty()
    }

    /// It is stopping its wards because it gave up or shuts down.
    pub(crate) fn is_ending(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.end.is_some())
    }

    /// Another steward restarted it.
    pub(crate) fn recall_restart(&mut self, backoff: &Backoff, at: Time) {
        self.streak.recall(backoff, at);
    }

    /// It begins anew: what was is forgotten.
    fn renew(&mut self) {
        (self.gave_up, self.over, self.plan) = (false, false, None);
        self.restarts.clear();
    }
}

impl Steward {
    /// A ward that is to be restarted is down: counts the restart, and restarts those it concerns.
    pub(crate) fn failed(&mut self, id: &WardId, cause: Cause) {
        let Some(name) = self.wards.get(id).map(|ward| ward.group().clone()) else { return };
        if self.is_ending(id) {
            self.end_ward(id);
        } else if self.groups.get(&name).is_some_and(|group| group.gave_up) {
            self.gave_up_before(&name, id, cause);
        } else if !self.is_end_expected(id, &cause) {
            self.member_failed(&name, &Member::Ward(id.clone()), id, cause);
        }
    }

    /// Whether a plan was about to stop this ward, which is down: then all that is left is what the plan
    /// wants to follow.
    pub(crate) fn is_end_expected(&mut self, id: &WardId, cause: &Cause) -> bool {
        let expected = self.expects_end_of(id);
        if expected && self.will_start(id) {
            self.wait(id, Pending { due: None, cause: cause.clone(), free: false, ticket: None });
        } else if expected {
            self.rest(id);
        }
        expected
    }

    /// A member of a group is down and to be restarted. `ward`: where it began.
    fn member_failed(&mut self, name: &Arc<str>, member: &Member, ward: &WardId, cause: Cause) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(name) else { return };
        let GroupSpec { strategy, intensity, period, .. } = group.spec;
        let added = group.restarts.add(now, intensity, period);
        if !added.allowed {
            return self.give_up(name, added.recent, ward, cause);
        }
        let delay = self.pause_before(name, member);
        let due = now.saturating_add(delay);
        let alone = strategy == Strategy::OneForOne;
        let (recent, at) = (added.recent, self.out.len());
        let what = match member {
            Member::Ward(id) => {
                let due = alone.then_some(due);
                self.wait(id, Pending { due, cause: cause.clone(), free: false, ticket: None });
                What::WardRestart { recent, intensity, delay }
            }
            Member::Group(group) => What::GroupRestart { group: group.clone(), recent, intensity, delay },
        };
        let (starts, groups) = match member {
            Member::Ward(id) if alone => (vec![id.clone()], Vec::new()),
            Member::Group(group) if alone => {
                let (concerned, groups) = (self.concerned_anew(group), self.subtree(group));
                (self.plan_restart(group, &groups, &concerned, due, cause.clone()), groups)
            }
            _ => {
                let affected = self.affected(name, member);
                let concerned = affected.iter().flat_map(|member| self.concerned(member)).collect();
                let groups = affected.iter().filter_map(|member| match member {
                    Member::Group(name) => Some(self.subtree(name)),
                    Member::Ward(_) => None,
                });
                let groups: Vec<_> = groups.flatten().collect();
                let starts = self.plan_restart(name, &groups, &concerned, due, cause.clone());
                self.leave_behind(&affected);
                (starts, groups)
            }
        };
        let reach = Reach { starts, groups, counts_for: Some(name.clone()), ..Reach::default() };
        self.note_reach(at, ward, what, cause, reach);
    }

    /// The pause before a member's restart: its group's backoff, its own row of failures.
    fn pause_before(&mut self, name: &Arc<str>, member: &Member) -> Duration {
        let (now, seed) = (self.now, self.config.seed);
        let Some(backoff) = self.groups.get(name).map(|group| group.spec.backoff) else {
            return Duration::ZERO;
        };
        match member {
            Member::Ward(id) => {
                self.ward_mut(id).map(|ward| ward.streak.next(&backoff, now, seed, &id.to_string()))
            }
            Member::Group(name) => {
                let before = self.memory.restarted.remove(name).unwrap_or_default();
                self.groups.get_mut(name).map(|group| {
                    before.into_iter().for_each(|at| group.streak.recall(&backoff, at));
                    group.streak.next(&backoff, now, seed, name)
                })
            }
        }
        .unwrap_or_default()
    }

    /// Whom a failure concerns, the failed one included, in start order.
    fn affected(&self, name: &str, failed: &Member) -> Vec<Member> {
        let mut members = self.members(name);
        let strategy = self.groups.get(name).map(|group| group.spec.strategy).unwrap_or_default();
        match (strategy, members.iter().position(|member| member == failed)) {
            (Strategy::OneForAll, _) => members,
            (Strategy::RestForOne, Some(at)) => members.split_off(at),
            (Strategy::OneForOne, Some(at)) => vec![members.swap_remove(at)],
            (_, None) => Vec::new(),
        }
    }

    /// The wards of a member, and whether the restart of its group starts them.
    fn concerned(&self, member: &Member) -> Concerned {
        match member {
            Member::Ward(id) => {
                let follows = self.wards.get(id).is_some_and(|ward| ward.follows_group());
                [(id.clone(), follows)].into()
            }
            Member::Group(name) => {
                let again = self.groups.get(name).is_some_and(|g| g.spec.restart != Restart::Temporary);
                let mut concerned = self.concerned_anew(name);
                concerned.values_mut().for_each(|follows| *follows &= again);
                concerned
            }
        }
    }

    /// The wards of a group, and whether its restart as a whole starts them.
    fn concerned_anew(&self, name: &str) -> Concerned {
        let follows = |id: &WardId| self.wards.get(id).is_some_and(|ward| ward.follows_anew());
        self.wards_in(name).into_iter().map(|id| (id.clone(), follows(&id))).collect()
    }

    /// Plans the restart of all that a failure concerns, in `name`; what an earlier plan has not done
    /// yet is taken over. `groups` begin anew. Returns the wards that are to start.
    fn plan_restart(
        &mut self,
        name: &Arc<str>,
        groups: &[Arc<str>],
        concerned: &Concerned,
        due: Time,
        cause: Cause,
    ) -> Vec<WardId> {
        let earlier = self.groups.get_mut(name).and_then(|group| group.plan.take());
        let due = earlier.as_ref().map_or(due, |plan| plan.due.max(due));
        let earlier: BTreeSet<_> = earlier.into_iter().flat_map(|plan| plan.starts).collect();
        self.renew(groups);
        for (id, _) in concerned.iter().filter(|(_, starts)| **starts) {
            self.call_back(id);
        }
        let (mut stops, mut starts) = (Vec::new(), Vec::new());
        for id in self.wards_in(name).into_iter().filter(|id| self.ready(&id.node)) {
            let follows = concerned.get(&id);
            if follows.is_some() && self.wards.get(&id).is_some_and(|ward| !ward.is_down()) {
                stops.push(id.clone());
            }
            if follows == Some(&true) || earlier.contains(&id) {
                starts.push(id);
            }
        }
        for id in &starts {
            // Those that wait for their own restart now wait for the plan.
            if self.wards.get(id).is_some_and(|ward| ward.is_down()) {
                self.wait(id, Pending { due: None, cause: cause.clone(), free: false, ticket: None });
            }
        }
        // Those that cannot be reached now are no longer part of any plan.
        let out_of_reach = concerned.iter().filter(|(_, starts)| **starts).map(|(id, _)| id).chain(&earlier);
        for id in out_of_reach.filter(|id| !self.ready(&id.node)).cloned().collect::<Vec<_>>() {
            self.release(&id);
        }
        let below = groups.iter().filter(|group| *group != name).cloned().collect();
        if let Some(group) = self.groups.get_mut(name) {
            group.plan = Some(Plan { stops, starts: starts.clone().into(), due, cause, below, end: None });
        }
        self.dirty.insert(name.clone());
        for (id, _) in concerned.iter().filter(|(_, starts)| !**starts) {
            self.rest_if_forgotten(id);
        }
        starts
    }

    /// These groups begin anew.
    pub(crate) fn renew(&mut self, groups: &[Arc<str>]) {
        for name in groups {
            if let Some(group) = self.groups.get_mut(name) {
                group.renew();
            }
        }
    }

    /// A ward that was to be restarted, and is not among those that are restarted now.
    fn rest_if_forgotten(&mut self, id: &WardId) {
        if self.will_start(id) {
            return;
        }
        let Some(ward) = self.ward_mut(id).filter(|ward| ward.intent == Intent::Up) else { return };
        if let Some(order) = ward.order.as_mut().filter(|order| order.then == Then::Plan) {
            order.then = Then::Settle;
            ward.intent = Intent::Resting;
        } else if ward.is_down() && ward.pending.as_ref().is_some_and(|pending| !pending.free) {
            self.rest(id);
        }
    }

    /// Temporary groups do not come back with the others.
    fn leave_behind(&mut self, affected: &[Member]) {
        for member in affected {
            let Member::Group(name) = member else { continue };
            if let Some(group) = self.groups.get_mut(name) {
                group.over = group.spec.restart == Restart::Temporary;
            }
        }
    }

    /// What ended with its group is wanted again.
    fn call_back(&mut self, id: &WardId) {
        let Some(ward) = self.ward_mut(id).filter(|ward| ward.intent == Intent::Ended) else { return };
        ward.intent = Intent::Up;
        if let Some(order) = ward.order.as_mut().filter(|order| order.then == Then::Settle) {
            order.then = Then::Plan;
        }
    }

    /// Puts a ward that is down in wait for its start.
    pub(crate) fn wait(&mut self, id: &WardId, pending: Pending) {
        let patient = self.patient();
        self.cancel_pending(id);
        let Some(ward) = self.ward_mut(id) else { return };
        ward.intent = Intent::Up;
        ward.pending = Some(Box::new(pending));
        ward.enter(Phase::Backoff, patient);
    }

    /// A ward failed that lived on when its group gave up: another steward had it stop the others.
    fn gave_up_before(&mut self, name: &Arc<str>, id: &WardId, cause: Cause) {
        let now = self.now;
        let recent = self.groups.get(name).map_or(0, |group| group.restarts.recent(now, group.spec.period));
        let (ends, groups) = (vec![id.clone()], vec![name.clone()]);
        let reach = Reach { ends, groups, counts_for: Some(name.clone()), ..Reach::default() };
        let what = What::GroupGaveUp { group: name.clone(), recent };
        self.note_reach(self.out.len(), id, what, cause, reach);
        self.quarantine(id);
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

    /// Its group ends.
    fn end_ward(&mut self, id: &WardId) {
        let Some(ward) = self.ward_mut(id).filter(|ward| ward.intent == Intent::Up) else { return };
        ward.intent = Intent::Ended;
        if ward.is_down() {
            self.settle_down(id);
        }
    }

    /// Too many restarts. The outermost group gives up for good, one in another is that one's business.
    fn give_up(&mut self, name: &Arc<str>, recent: u32, ward: &WardId, cause: Cause) {
        let inner = self.groups.get(name).is_some_and(|group| group.parent.is_some());
        if inner {
            let what = What::GroupFailed { group: name.clone(), recent };
            let reach = self.reach_of_end(name);
            self.note_reach(self.out.len(), ward, what, cause.clone(), reach);
        } else if !self.escalate_group(name, recent, ward, &cause) {
            self.abandon(name, recent, ward, &cause);
        }
        self.end_group(name, End { how: Ending::GaveUp { recent }, ward: ward.clone() }, cause);
    }

    /// Quarantines all wards of a group but those that people stopped. If it is in another group, they
    /// come back when that one begins anew; else an operator has to start them.
    pub(crate) fn abandon(&mut self, name: &Arc<str>, recent: u32, ward: &WardId, cause: &Cause) {
        let inner = self.groups.get(name).is_some_and(|group| group.parent.is_some());
        let what = What::GroupGaveUp { group: name.clone(), recent };
        let ends =
            |ward: &Ward| if inner { ward.intent == Intent::Ended } else { ward.intent != Intent::Down };
        let reach = self.reach_of_rest(name, ends);
        self.note_reach(self.out.len(), ward, what, cause.clone(), reach);
        for group in self.subtree(name) {
            if let Some(group) = self.groups.get_mut(&group) {
                group.gave_up = true;
            }
        }
        for id in self.wards_in(name) {
            let Some(ward) = self.wards.get(&id).filter(|ward| ward.intent != Intent::Down) else { continue };
            let (ended, down) = (ward.intent == Intent::Ended, ward.is_down());
            match inner {
                false => self.quarantine(&id),
                true if ended && down => self.settle_down(&id),
                true => {}
            }
        }
    }

    /// How far the end of a group reaches: its wards come back if the group it is in is to restart it.
    fn reach_of_end(&self, name: &Arc<str>) -> Reach {
        let group = self.groups.get(name).filter(|group| group.spec.restart == Restart::Permanent);
        let parent = group.and_then(|group| group.parent.clone());
        let parent = parent.filter(|name| self.groups.get(name).is_some_and(|group| !group.gave_up));
        if parent.is_none() {
            return self.reach_of_rest(name, |ward| matches!(ward.intent, Intent::Up | Intent::Ended));
        }
        let returns =
            |id: &WardId| self.ready(&id.node) && self.wards.get(id).is_some_and(|ward| ward.follows_anew());
        let starts = self.wards_in(name).into_iter().filter(returns).collect();
        let (groups, counts_for) = (self.subtree(name), Some(name.clone()));
        Reach { starts, groups, counts_for, escalates_to: parent, ..Reach::default() }
    }

    /// How far the end of a group reaches that nobody restarts.
    fn reach_of_rest(&self, name: &Arc<str>, ends: impl Fn(&Ward) -> bool) -> Reach {
        let ends = self.wards_in(name).into_iter().filter(|id| self.wards.get(id).is_some_and(&ends));
        let (ends, groups, counts_for) = (ends.collect(), self.subtree(name), Some(name.clone()));
        Reach { ends, groups, counts_for, ..Reach::default() }
    }

    /// Stops what runs of a group, in its own order.
    pub(crate) fn end_group(&mut self, name: &Arc<str>, end: End, cause: Cause) {
        for group in self.subtree(name) {
            if let Some(group) = self.groups.get_mut(&group) {
                group.plan = None;
            }
        }
        let plan = |stops| Plan {
            stops,
            starts: Vec::new().into(),
            due: Time::ZERO,
            cause,
            below: Vec::new(),
            end: Some(end),
        };
        let wards = self.wards_in(name);
        let up = |id: &&WardId| self.wards.get(id).is_some_and(|ward| !ward.is_down());
        let stops = wards.iter().filter(up).cloned().collect();
        if let Some(group) = self.groups.get_mut(name) {
            group.plan = Some(plan(stops));
        }
        for id in &wards {
            self.end_ward(id);
        }
        self.dirty.insert(name.clone());
    }

    /// A group has stopped its wards: what its parent makes of it.
    pub(crate) fn group_ended(&mut self, name: &Arc<str>, end: End, cause: Cause) {
        let Some(group) = self.groups.get(name) else { return };
        let (parent, restart) = (group.parent.clone(), group.spec.restart);
        if let Some(parent) = &parent {
            let lost = self.groups.get(parent).is_some_and(|group| group.gave_up);
            if restart == Restart::Permanent && !lost {
                return self.member_failed(parent, &Member::Group(name.clone()), &end.ward, cause);
            }
            if let Ending::GaveUp { recent } = end.how {
                self.abandon(name, recent, &end.ward, &cause);
            }
        }
        if let Some(group) = self.groups.get_mut(name) {
            group.over = true;
        }
        if end.how == Ending::ShutDown {
            let ended = |id: &WardId| self.wards.get(id).is_some_and(|ward| ward.intent == Intent::Ended);
            let ended: Vec<_> = self.wards_in(name).into_iter().filter(ended).collect();
            ended.iter().for_each(|id| self.hold(id));
        }
        if let Some(parent) = parent {
            self.significant_ended(&parent, &Member::Group(name.clone()), &end.ward, cause);
        }
    }

    /// A member ended for good: its group may be one that ends then.
    pub(crate) fn significant_ended(
        &mut self,
        name: &Arc<str>,
        member: &Member,
        ward: &WardId,
        cause: Cause,
    ) {
        let Some(group) = self.groups.get(name) else { return };
        if group.gave_up || !self.is_significant(member) || self.chain(name).any(Group::is_ending) {
            return;
        }
        let left = |member: &Member| self.is_significant(member) && self.is_active(member);
        let ends = match group.spec.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => !self.members(name).iter().any(left),
        };
        if ends {
            let reach = self.reach_of_end(name);
            let what = What::GroupShutDown { group: name.clone() };
            self.note_reach(self.out.len(), ward, what, cause.clone(), reach);
            self.end_group(name, End { how: Ending::ShutDown, ward: ward.clone() }, cause);
        }
    }

    /// An operator brings a ward of the group back.
    pub(crate) fn forgive_group(&mut self, id: &WardId) {
        let groups: Vec<_> = self.groups_of(id).map(|group| group.spec.name.clone()).collect();
        for name in groups {
            if let Some(group) = self.groups.get_mut(&name) {
                group.restarts.clear();
                group.gave_up = false;
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

/// Wards that are to stop, and whether they are to start again.
type Concerned = BTreeMap<WardId, bool>;
