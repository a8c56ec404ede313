//! A session begins: what the node says of its wards is compared with what is known of them.
//! Running work is adopted as it is; what should run and does not is started.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    core::Steward,
    group::Origin,
    table::NOWHERE,
    types::{Cause, GroupSpec, NodeName, Phase, Restart, Verdict, WardId, WardReport, WardSpec, What},
    ward::{Intent, Order, Pending, Terms, Then, Ward},
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
        if !again {
            self.has_restarted(name);
        }
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
        let old = self.wards.get(&id).map(|ward| ward.slot);
        let slot = old.unwrap_or_else(|| u32::try_from(node.order.len()).unwrap_or(NOWHERE));
        let place = self.enroll_ward(&id, slot, &report, old.is_some(), terms_of(name, &report));
        if let Some(node) = self.nodes.get_mut(name).filter(|_| old.is_none()) {
            node.order.push(place);
        }
        self.sort_members(std::slice::from_ref(&id));
        self.adopt(vec![(id, report, old.is_some())]);
    }

    /// A node hosts a ward no longer.
    pub(crate) fn leave(&mut self, id: &WardId) {
        self.heard(&id.node);
        let slot = self.wards.get(id).map(|ward| ward.slot as usize);
        let node = self.nodes.get_mut(&id.node);
        if let Some(place) = node.zip(slot).and_then(|(node, slot)| node.order.get_mut(slot)) {
            *place = NOWHERE;
        }
        self.remove_ward(id);
        self.prune_groups();
    }

    fn adopt(&mut self, reports: Vec<(WardId, WardReport, bool)>) {
        let mut missed = Missed::new();
        let ids: Vec<_> = reports.iter().map(|(id, ..)| id.clone()).collect();
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
        self.recall_ends(&ids);
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
        let (now, patient) = (self.now, self.patient());
        self.touched_nodes.insert(name.clone());
        let node = self.node_entry(name);
        node.begin(boot, now, patient);
        let before: Vec<_> = std::mem::take(&mut node.order)
            .into_iter()
            .filter_map(|place| self.wards.at(place).map(|ward| ward.id.clone()))
            .collect();
        let mut seen = BTreeSet::new();
        let reports: Vec<_> = reports
            .into_iter()
            .map(|report| (WardId::new(name.clone(), report.spec.name.clone()), report))
            .map(|(id, report)| (!report.is_nobody() && seen.insert(id.clone())).then_some((id, report)))
            .collect();
        for id in before.iter().filter(|id| !seen.contains(*id)) {
            self.remove_ward(id);
        }
        self.wards.reserve(reports.len());
        let mut order = Vec::with_capacity(reports.len());
        let mut enrolled = Vec::with_capacity(reports.len());
        let mut known_terms = HashMap::new();
        for (slot, named) in (0..).zip(reports) {
            let Some((id, report)) = named else {
                // Nobody's, or a second one of this name: nothing is known of the slot.
                order.push(NOWHERE);
                continue;
            };
            let known = again && self.wards.contains(&id);
            let terms = terms_of(name, &report);
            let terms = known_terms.entry(terms.clone()).or_insert(terms).clone();
            order.push(self.enroll_ward(&id, slot, &report, known, terms));
            enrolled.push((id, report, known));
        }
        if let Some(node) = self.nodes.get_mut(name) {
            node.order = order;
        }
        let ids: Vec<_> = enrolled.iter().map(|(id, ..)| id.clone()).collect();
        self.sort_members(&ids);
        enrolled
    }

    /// Returns its place.
    fn enroll_ward(
        &mut self,
        id: &WardId,
        slot: u32,
        report: &WardReport,
        known: bool,
        terms: Arc<Terms>,
    ) -> u32 {
        let group = terms.group.clone();
        self.declare(GroupSpec::new(group.clone()), Origin::Implied);
        let regrouped = self.wards.get(id).is_some_and(|ward| *ward.group() != group);
        if known && !regrouped {
            if let Some(ward) = self.ward_mut(id) {
                (ward.terms, ward.slot) = (terms, slot);
            }
            return self.wards.place(id).unwrap_or(NOWHERE);
        }
        self.drop_from_plans(id);
        let old = self.wards.place(id).and_then(|place| Some((place, self.wards.at(place)?.group())));
        if let Some((place, old)) = old
            && let Some(old) = self.groups.get_mut(old)
        {
            old.members.retain(|member| *member != place);
        }
        if known {
            let now = self.now;
            if let Some(ward) = self.ward_mut(id) {
                (ward.terms, ward.slot) = (terms, slot);
                if let Some(pending) = &mut ward.pending {
                    pending.due.get_or_insert(now);
                }
            }
        } else {
            let rests = self.wards.get(id).map(|ward| ward.intent);
            self.cancel_pending(id);
            let mut ward = Ward::new(id.clone(), terms);
            ward.slot = slot;
            // What people decided, or have yet to look at, outlives a boot.
            if let Some(intent @ (Intent::Down | Intent::Quarantined)) = rests {
                ward.intent = intent;
            } else if report.held && report.phase != Phase::Quarantined {
                ward.intent = Intent::Down;
            }
            self.wards.insert(ward);
            self.recall_ward(id, report);
        }
        let place = self.wards.place(id).unwrap_or(NOWHERE);
        if let Some(group) = self.groups.get_mut(&group) {
            group.members.push(place);
        }
        self.ward_mut(id);
        place
    }

    fn adopt_live(&mut self, id: &WardId, report: &WardReport) {
        let patient = self.patient();
        let Some(ward) = self.wards.get(id) else { return };
        if !ward.live || ward.incarnation != report.incarnation {
            self.believe(id, report.incarnation, None);
        }
        let Some(ward) = self.ward_mut(id) else { return };
        if let Some(work) = &mut ward.work {
            work.oldest = None;
        }
        let stopping = report.phase == Phase::Stopping;
        // What its group had in mind for it is past; what it did itself, or people want, is not.
        let mut order = ward.order.take().filter(|order| stopping || order.then != Then::Plan);
        if stopping && order.is_none() && !report.held && ward.spec().restart != Restart::Temporary {
            // Another steward began to stop it, not for good: so it is to come back.
            let cause = because("its restart was under way");
            let grace = ward.spec().grace;
            order = Some(Box::new(Order { then: Then::Again, grace, cause, sent: None }));
        }
        let sent = stopping.then_some(patient);
        ward.order = order.map(|order| Box::new(Order { sent, ..*order }));
        let phase = if ward.order.is_some() { Phase::Stopping } else { report.phase };
        ward.enter(phase, patient);
        if phase == Phase::Running {
            ward.verdict = Verdict::Healthy;
        }
        let ends = phase == Phase::Stopping && ward.order.is_none();
        self.wards.lives(id, patient);
        if !ends {
            self.enforce(id);
        }
        if report.held {
            // An operator started it, and its node never heard of that.
            self.release_hold(id);
        }
    }

    fn adopt_down(&mut self, id: &WardId, report: &WardReport, known: bool, missed: &mut Missed) {
        let Some(ward) = self.ward_mut(id) else { return };
        let same = known && ward.incarnation == report.incarnation;
        let (was_live, was_starting) =
            (known && ward.live, same && ward.phase == Phase::Starting && !ward.live);
        let order = ward.order.take();
        (ward.incarnation, ward.live) = (report.incarnation, false);
        ward.is_idle_now();
        let wanted = ward.pending.as_ref().is_some_and(|pending| pending.free);
        if report.phase == Phase::Quarantined && ward.intent == Intent::Up && !wanted {
            ward.intent = Intent::Quarantined;
            let group = ward.group().clone();
            // Another steward gave up, and handed over.
            if let Some(group) = self.groups.get_mut(&group) {
                group.gave_up = true;
            }
        }
        let Some(ward) = self.ward_mut(id) else { return };
        if ward.intent != Intent::Up {
            return self.settle_down(id);
        }
        let (waits, restart) = (ward.pending.is_some() && ward.phase == Phase::Backoff, ward.spec().restart);
        let planned = matches!(report.phase, Phase::Backoff) || was_starting || waits;
        // Down as far as anything that follows is concerned.
        ward.phase = Phase::Stopped;
        if let Some(order) = order.filter(|_| known) {
            missed.push((id.clone(), Some(order.then), order.cause));
        } else if waits {
            ward.phase = Phase::Backoff;
        } else if report.failed && !planned && report.incarnation > 0 && restart == Restart::Transient {
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

fn terms_of(node: &NodeName, report: &WardReport) -> Arc<Terms> {
    let group = match &report.spec.group {
        Some(group) => group.clone(),
        None => GroupSpec::of_node(node).name,
    };
    // Alike whatever the ward's name.
    Arc::new(Terms { spec: WardSpec { name: node.clone(), ..report.spec.clone() }, group })
}

fn because(reason: &str) -> Cause {
    Cause { reason: reason.into(), ..Cause::default() }
}
