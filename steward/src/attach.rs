//! A session begins: what the node says of its wards is compared with what is known of them.
//! Running work is adopted as it is; what should run and does not is started.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    core::Steward,
    group::Origin,
    node::Node,
    types::{Cause, GroupSpec, NodeName, Phase, Restart, Verdict, WardId, WardReport, What},
    ward::{Intent, Order, Pending, Then, Ward},
};

/// Ends that were missed: dealt with when all wards of the node are known.
type Missed = Vec<(WardId, Option<Then>, Cause)>;

impl Steward {
    pub(crate) fn attach(
        &mut self,
        name: &NodeName,
        boot: u128,
        reports: Vec<WardReport>,
        groups: Vec<GroupSpec>,
    ) {
        let names = groups.iter().map(|spec| spec.name.clone()).collect();
        for spec in groups {
            self.declare(spec, Origin::Declared);
        }
        self.declares(name, &names);
        let again = self.nodes.get(name).is_some_and(|node| node.heard.is_some() && node.boot == boot);
        let reports = self.enroll(name, boot, again, reports);
        self.note(Some(name), None, What::NodeAttended { again }, Cause::default());
        self.judge_node(name, Verdict::Healthy, because("it attends again"));
        self.adopt(reports);
    }

    /// One more ward of an attached node.
    pub(crate) fn join(&mut self, name: &NodeName, report: WardReport) {
        self.heard(name);
        let id = WardId::new(name.clone(), report.spec.name.clone());
        let Some(node) = self.nodes.get(name).filter(|node| node.attached) else {
            return self.note(
                Some(name),
                None,
                What::StaleDropped,
                because("a ward of a node without a session"),
            );
        };
        let slot = |id: &WardId| self.wards.get(id).map(|ward| ward.slot);
        let last = || node.order.last().and_then(slot).map_or(0, |slot| slot + 1);
        let (old, slot) = (slot(&id), slot(&id).unwrap_or_else(last));
        if let Some(node) = self.nodes.get_mut(name).filter(|_| old.is_none()) {
            node.order.push(id.clone());
        }
        self.enroll_ward(&id, slot, &report, old.is_some());
        self.sort_members(std::slice::from_ref(&id));
        self.adopt(vec![(id, report, old.is_some())]);
    }

    /// A node hosts a ward no longer.
    pub(crate) fn leave(&mut self, id: &WardId) {
        self.heard(&id.node);
        if let Some(node) = self.nodes.get_mut(&id.node) {
            node.order.retain(|other| other != id);
        }
        self.remove_ward(id);
        self.prune_groups();
    }

    fn adopt(&mut self, reports: Vec<(WardId, WardReport, bool)>) {
        let mut missed = Missed::new();
        for (id, report, known) in reports {
            match report.phase {
                Phase::Starting | Phase::Running | Phase::Stopping => self.adopt_live(&id, &report),
                Phase::Stopped | Phase::Backoff | Phase::Quarantined => {
                    self.adopt_down(&id, &report, known, &mut missed);
                }
            }
        }
        for (id, then, cause) in missed {
            match then {
                Some(then) => self.conclude(&id, then, cause),
                None => self.failed(&id, cause),
            }
        }
        self.prune_groups();
    }

    /// Makes the node's list of wards what it says. Returns each ward with whether it was known
    /// from this boot.
    fn enroll(
        &mut self,
        name: &NodeName,
        boot: u128,
        again: bool,
        reports: Vec<WardReport>,
    ) -> Vec<(WardId, WardReport, bool)> {
        let (now, patient, rank) = (self.now, self.patient(), self.next_rank);
        self.next_rank += 1;
        self.touched_nodes.insert(name.clone());
        let node = self.nodes.entry(name.clone()).or_insert_with(|| Node { rank, ..Node::default() });
        node.begin(boot, now, patient);
        let before = std::mem::take(&mut node.order);
        let mut seen = BTreeSet::new();
        let reports: Vec<_> = reports
            .into_iter()
            .map(|report| (WardId::new(name.clone(), report.spec.name.clone()), report))
            .filter(|(id, _)| seen.insert(id.clone()))
            .collect();
        node.order = reports.iter().map(|(id, _)| id.clone()).collect();
        for id in before.iter().filter(|id| !seen.contains(*id)) {
            self.remove_ward(id);
        }
        let enrolled: Vec<_> = reports
            .into_iter()
            .enumerate()
            .map(|(slot, (id, report))| {
                let known = again && self.wards.contains_key(&id);
                self.enroll_ward(&id, slot, &report, known);
                (id, report, known)
            })
            .collect();
        let ids: Vec<_> = enrolled.iter().map(|(id, ..)| id.clone()).collect();
        self.sort_members(&ids);
        enrolled
    }

    fn enroll_ward(&mut self, id: &WardId, slot: usize, report: &WardReport, known: bool) {
        let spec = report.spec.clone();
        let group: Arc<str> = match &spec.group {
            Some(group) => group.clone(),
            None => GroupSpec::of_node(&id.node).name,
        };
        self.declare(GroupSpec::new(group.clone()), Origin::Implied);
        let regrouped = self.wards.get(id).is_some_and(|ward| ward.group != group);
        if known && !regrouped {
            if let Some(ward) = self.ward_mut(id) {
                (ward.spec, ward.slot) = (spec, slot);
            }
            return;
        }
        self.drop_from_plans(id);
        let old = self.wards.get(id).map(|ward| ward.group.clone());
        if let Some(old) = old.and_then(|old| self.groups.get_mut(&old)) {
            old.members.retain(|member| member != id);
        }
        if known {
            let now = self.now;
            if let Some(ward) = self.ward_mut(id) {
                (ward.spec, ward.slot, ward.group) = (spec, slot, group.clone());
                if let Some(pending) = &mut ward.pending {
                    pending.due.get_or_insert(now);
                }
            }
        } else {
            let rests = self.wards.get(id).map(|ward| ward.intent);
            self.cancel_pending(id);
            let mut ward = Ward::new(spec, group.clone());
            ward.slot = slot;
            // What people decided, or have yet to look at, outlives a boot.
            if let Some(intent @ (Intent::Down | Intent::Quarantined)) = rests {
                ward.intent = intent;
            } else if report.held && report.phase != Phase::Quarantined {
                ward.intent = Intent::Down;
            }
            self.wards.insert(id.clone(), ward);
            self.recall_ward(id, report);
        }
        if let Some(group) = self.groups.get_mut(&group) {
            group.members.push(id.clone());
        }
        self.ward_mut(id);
    }

    fn adopt_live(&mut self, id: &WardId, report: &WardReport) {
        let patient = self.patient();
        let Some(ward) = self.wards.get(id) else { return };
        if !ward.live || ward.incarnation != report.incarnation {
            self.believe(id, report.incarnation, None);
        }
        let Some(ward) = self.ward_mut(id) else { return };
        (ward.work.pulsed, ward.work.oldest) = (patient, None);
        let stopping = report.phase == Phase::Stopping;
        // What its group had in mind for it is past; what it did itself, or people want, is not.
        let mut order = ward.order.take().filter(|order| stopping || order.then != Then::Plan);
        if stopping && order.is_none() && !report.held && ward.spec.restart != Restart::Temporary {
            // Another steward began to stop it, not for good: so it is to come back.
            let cause = because("its restart was under way");
            order = Some(Order { then: Then::Again, grace: ward.spec.grace, cause, sent: None });
        }
        ward.order = order.map(|order| Order { sent: stopping.then_some(patient), ..order });
        let phase = if ward.order.is_some() { Phase::Stopping } else { report.phase };
        ward.enter(phase, patient);
        if phase == Phase::Running {
            ward.verdict = Verdict::Healthy;
        }
        if phase == Phase::Stopping && ward.order.is_none() {
            return;
        }
        self.enforce(id);
    }

    fn adopt_down(&mut self, id: &WardId, report: &WardReport, known: bool, missed: &mut Missed) {
        let Some(ward) = self.ward_mut(id) else { return };
        let same = known && ward.incarnation == report.incarnation;
        let (was_live, was_starting) =
            (known && ward.live, same && ward.phase == Phase::Starting && !ward.live);
        let order = ward.order.take();
        (ward.incarnation, ward.live) = (report.incarnation, false);
        (ward.work.in_progress, ward.work.oldest) = (0, None);
        let wanted = ward.pending.as_ref().is_some_and(|pending| pending.free);
        if report.phase == Phase::Quarantined && ward.intent == Intent::Up && !wanted {
            ward.intent = Intent::Quarantined;
            let group = ward.group.clone();
            // Another steward gave up, and handed over.
            if let Some(group) = self.groups.get_mut(&group) {
                group.gave_up = true;
            }
        }
        let Some(ward) = self.ward_mut(id) else { return };
        if ward.intent != Intent::Up {
            return self.settle_down(id);
        }
        let (waits, restart) = (ward.pending.is_some() && ward.phase == Phase::Backoff, ward.spec.restart);
        let planned = matches!(report.phase, Phase::Backoff) || was_starting || waits;
        // Down as far as anything that follows is concerned.
        ward.phase = Phase::Stopped;
        if let Some(order) = order.filter(|_| known) {
            missed.push((id.clone(), Some(order.then), order.cause));
        } else if waits {
            ward.phase = Phase::Backoff;
        } else if report.failed && report.incarnation > 0 && restart == Restart::Transient {
            missed.push((id.clone(), None, because("it failed while nobody could see to it")));
        } else if !planned && report.incarnation > 0 && restart != Restart::Permanent {
            ward.intent = Intent::Resting;
            self.settle_down(id);
        } else if was_live && !planned {
            missed.push((id.clone(), None, because("it ended while its node was away")));
        } else {
            self.start_or_leave_to_plan(id);
        }
    }

    fn start_or_leave_to_plan(&mut self, id: &WardId) {
        let cause = because("its node attends");
        if self.will_start(id) {
            self.wait(id, Pending { due: None, cause, free: false, ticket: None });
        } else {
            self.start(id, cause, false);
        }
    }
}

fn because(reason: &str) -> Cause {
    Cause { reason: reason.into(), ..Cause::default() }
}
