//! Nodes: their sessions, reports and silences.

use std::{collections::BTreeSet, mem, time::Duration};

use crate::{
    alarms::nanos,
    core::Steward,
    detector::Detector,
    escalate::Escalation,
    launch::Launch,
    types::{Beats, Cause, NodeName, Phase, Time, Verdict, WardId, What, WorkBeat},
    ward::seconds,
};

/// A node that said goodbye and stays away longer than this is unreachable after all.
pub const GOODBYE_PATIENCE: Duration = Duration::from_secs(10);

/// A node without a launcher that has been away longer than this is forgotten.
pub const FORGET_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) boot: u128,
    pub(crate) attached: bool,
    /// When it said goodbye (patient).
    pub(crate) left: Option<Time>,
    /// Its process is known to have ended, and none has attached since.
    pub(crate) exited: bool,
    pub(crate) verdict: Verdict,
    /// When it was last heard, real and patient.
    pub(crate) heard: Option<Time>,
    pub(crate) heard_patient: Time,
    /// Its last report (patient): only what reports vouch for is judged.
    pub(crate) reported: Time,
    pub(crate) detector: Detector,
    /// Its runtime is late, but not so late that it is stalled.
    pub(crate) lagging: bool,
    /// It seems ill, which is no verdict yet.
    pub(crate) suspected: bool,
    /// Place among the nodes, by first session.
    pub(crate) rank: u64,
    /// For how long its runtime has not run, as last reported.
    pub(crate) lag: Duration,
    /// Places of its wards, by slot: in start order, with [`NOWHERE`](crate::table::NOWHERE) for those
    /// that left.
    pub(crate) order: Vec<u32>,
    /// Places of wards that have work in progress.
    pub(crate) busy: Vec<u32>,
    /// Places of wards that are to be looked at when the next report vouches for them.
    pub(crate) unvouched: Vec<u32>,
    pub(crate) launch: Option<Launch>,
    /// Its process can be told to start anew.
    pub(crate) restartable: bool,
    /// Threads that abandoned wards have left behind.
    pub(crate) leaked: u32,
    /// It is to restart.
    pub(crate) escalation: Option<Escalation>,
    /// When it was last to.
    pub(crate) escalated: Option<Time>,
}

impl Node {
    pub(crate) fn is_ready(&self) -> bool {
        self.attached && self.verdict != Verdict::Unreachable
    }

    /// A session began.
    pub(crate) fn begin(&mut self, boot: u128, now: Time, patient: Time) {
        (self.boot, self.attached, self.left, self.exited) = (boot, true, None, false);
        (self.heard, self.heard_patient, self.reported) = (Some(now), patient, patient);
        self.lag = Duration::ZERO;
        self.detector.restarted();
        self.lagging = false;
        if let Some(launch) = &mut self.launch {
            launch.attended();
        }
    }

    /// Its silence would be news.
    fn is_expected(&self) -> bool {
        self.heard.is_some() && !self.exited && self.left.is_none() && self.verdict != Verdict::Unreachable
    }
}

impl Steward {
    pub(crate) fn detach(&mut self, name: &NodeName, goodbye: bool) {
        let patient = self.patient();
        let Some(node) = self.node_mut(name).filter(|node| node.attached) else { return };
        node.attached = false;
        node.left = goodbye.then_some(patient);
        self.touch_wards_of(name);
        self.note(Some(name), None, What::NodeLeft { goodbye }, Cause::default());
    }

    /// A node, heard of before or not.
    pub(crate) fn node_entry(&mut self, name: &NodeName) -> &mut Node {
        let rank = self.next_rank;
        self.next_rank += 1;
        let memory = &mut self.memory;
        self.nodes.entry(name.clone()).or_insert_with(|| {
            let escalated = memory.escalated.remove(name);
            Node { rank, escalated, ..Node::default() }
        })
    }

    /// Touches no more than what changed: of wards that only pulse, a column of times.
    pub(crate) fn report(&mut self, name: &NodeName, runtime_lag: Duration, beats: &Beats) {
        let (patient, config) = (self.patient(), self.config);
        let known = self.node_mut(name).filter(|node| node.attached && !node.exited);
        let Some(node) = known else {
            let cause = Cause { reason: "a report without a session".into(), ..Cause::default() };
            return self.note(Some(name), None, What::StaleDropped, cause);
        };
        node.detector.arrived(patient, &config);
        node.reported = patient;
        node.lagging = runtime_lag > config.runtime_stall / 2;
        self.heard(name);
        let Some(node) = self.nodes.get_mut(name) else { return };
        let before = mem::replace(&mut node.lag, runtime_lag);
        // Less than before: it has run in between.
        let again = if runtime_lag < before { Duration::ZERO } else { before };
        self.excuse(name, runtime_lag.saturating_sub(again));
        let Some(node) = self.nodes.get_mut(name) else { return };
        let (order, busy) = (mem::take(&mut node.order), mem::take(&mut node.busy));
        let unvouched = mem::take(&mut node.unvouched);
        let pulsed = nanos(patient);
        for run in beats.pulsed.runs() {
            let end = (run.end as usize).min(order.len());
            for place in order.get(run.start as usize..end).unwrap_or_default() {
                self.wards.set_pulsed(*place, pulsed);
            }
        }
        let busy = self.work(&order, busy, &beats.worked, patient);
        unvouched.into_iter().for_each(|place| self.touch(place));
        if let Some(node) = self.nodes.get_mut(name) {
            (node.order, node.busy) = (order, busy);
        }
        let (verdict, reason) = if runtime_lag > config.runtime_stall {
            let allowed = seconds(config.runtime_stall);
            let lag = seconds(runtime_lag);
            (Verdict::RuntimeStalled, format!("its runtime is overdue for {lag}, allowed {allowed}"))
        } else {
            (Verdict::Healthy, "its runtime runs".into())
        };
        self.judge_node(name, verdict, Cause { reason, ..Cause::default() });
    }

    /// While a node, or its runtime, does not run, no ward on it can pulse: such time is not held against them. (It
    /// is against their work, if the node runs: that may be what holds the runtime up.)
    pub(crate) fn excuse(&mut self, name: &NodeName, time: Duration) {
        let (patient, time) = (nanos(self.patient()), nanos(time));
        let Some(node) = self.nodes.get(name).filter(|_| time > 0) else { return };
        for place in &node.order {
            let pulsed = nanos(self.wards.pulsed(*place));
            self.wards.set_pulsed(*place, pulsed.saturating_add(time).min(patient));
        }
    }

    /// What a report says of work; what is not listed has none in progress. Takes those that were busy
    /// before, returns those that are now.
    fn work(&mut self, order: &[u32], before: Vec<u32>, worked: &[WorkBeat], patient: Time) -> Vec<u32> {
        let mut busy = Vec::with_capacity(worked.len());
        for beat in worked {
            let Some(&place) = order.get(beat.slot as usize) else { continue };
            let Some(ward) = self.wards.at_mut(place).filter(|ward| ward.live) else { continue };
            // Work older than its incarnation was that of the one before.
            let most = ward.began().map_or(Duration::MAX, |began| patient.saturating_sub(began));
            let work = ward.work.get_or_insert_default();
            work.ended = work.ended.saturating_add(u64::from(beat.ended));
            work.in_progress =
                work.in_progress.saturating_add(u64::from(beat.begun)).saturating_sub(u64::from(beat.ended));
            match beat.oldest {
                None => (work.oldest, work.in_progress) = (None, 0),
                Some(age) => {
                    work.oldest = Some((age.min(most), patient));
                    work.in_progress = work.in_progress.max(1);
                    if !mem::replace(&mut work.listed, true) {
                        busy.push(place);
                    }
                }
            }
            if beat.begun > 0 || beat.ended > 0 {
                self.wards.set_pulsed(place, nanos(patient));
            }
            self.touch(place);
        }
        for place in before {
            let Some(ward) = self.wards.at_mut(place) else { continue };
            if ward.work.as_ref().is_none_or(|work| !work.listed) {
                ward.is_idle_now();
                self.touch(place);
            }
        }
        for place in &busy {
            if let Some(work) = self.wards.at_mut(*place).and_then(|ward| ward.work.as_mut()) {
                work.listed = false;
            }
        }
        busy
    }

    /// Something of this node's session arrived.
    pub(crate) fn heard(&mut self, name: &NodeName) {
        let (now, patient) = (self.now, self.patient());
        let Some(node) = self.node_mut(name).filter(|node| node.attached && !node.exited) else { return };
        (node.heard, node.heard_patient) = (Some(now), patient);
        let lagging = node.lagging;
        if mem::replace(&mut node.suspected, lagging) != lagging {
            self.suspicions += 1;
        }
        let Some(node) = self.nodes.get_mut(name) else { return };
        if let Some(launch) = &mut node.launch {
            launch.heard();
        }
        if node.verdict == Verdict::Unreachable {
            self.judge_node(
                name,
                Verdict::Healthy,
                Cause { reason: "heard again".into(), ..Cause::default() },
            );
            self.stop_what_should_rest(name);
        }
        if self.doubled && !self.most_are_silent(patient) {
            self.doubled = false;
        }
    }

    /// Its group may have given up while it was not heard.
    fn stop_what_should_rest(&mut self, name: &NodeName) {
        for id in self.wards_of(name).into_iter().filter(|id| self.is_up(id)).collect::<Vec<_>>() {
            self.enforce(&id);
        }
    }

    /// Changes the verdict on a node, if it is another one.
    pub(crate) fn judge_node(&mut self, name: &NodeName, verdict: Verdict, cause: Cause) {
        let Some(node) = self.node_mut(name).filter(|node| node.verdict != verdict) else { return };
        node.verdict = verdict;
        self.touch_wards_of(name);
        self.note(Some(name), None, What::NodeVerdict(verdict), cause);
    }

    /// Its wards may be told something again, or no longer.
    pub(crate) fn touch_wards_of(&mut self, name: &NodeName) {
        for id in self.wards_of(name) {
            self.ward_mut(&id);
        }
    }

    /// The wards of a node in start order.
    fn wards_of(&self, name: &NodeName) -> Vec<WardId> {
        let order = self.nodes.get(name).map(|node| node.order.as_slice()).unwrap_or_default();
        self.wards.ids(order).cloned().collect()
    }

    pub(crate) fn wake_node(&mut self, name: &NodeName) {
        let patient = self.patient();
        self.suspect(name, patient);
        let Some(node) = self.nodes.get(name) else { return };
        if !node.attached && node.launch.is_none() && patient >= forget_at(node) {
            return self.forget(name);
        }
        let away = node.left.is_some_and(|left| patient >= left.saturating_add(GOODBYE_PATIENCE));
        if away && node.verdict != Verdict::Unreachable {
            let reason = "it said goodbye and has not come back".into();
            self.judge_node(name, Verdict::Unreachable, Cause { reason, ..Cause::default() });
        } else if node.is_awaited() && patient >= self.awaited_until(node) {
            let reason = format!("it has not attended for {}", seconds(self.config.relaunch_after));
            self.judge_node(name, Verdict::Unreachable, Cause { reason, ..Cause::default() });
        } else if node.is_expected() && patient >= self.silence_ends(node) {
            self.judge_silence(name, patient);
        }
        self.wake_launch(name, patient);
        self.wake_escalation(name);
    }

    /// Its silence is longer than usual, though it is no verdict yet.
    fn suspect(&mut self, name: &NodeName, patient: Time) {
        let Some(node) = self.nodes.get(name).filter(|node| node.is_expected() && !node.suspected) else {
            return;
        };
        if patient < self.suspicion_begins(node) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(name) {
            node.suspected = true;
            self.suspicions += 1;
        }
    }

    fn judge_silence(&mut self, name: &NodeName, patient: Time) {
        if !self.doubled && self.most_are_silent(patient) {
            self.doubled = true;
            let reason = "most nodes fell silent together".into();
            let patience = self.config.silence_floor;
            self.note(None, None, What::DoubtsItself { patience }, Cause { reason, ..Cause::default() });
            self.touched_nodes.extend(self.nodes.keys().cloned());
            return;
        }
        let silence =
            self.nodes.get(name).map_or(Duration::ZERO, |n| patient.saturating_sub(n.heard_patient));
        let reason = format!("nothing heard for {}", seconds(silence));
        self.judge_node(name, Verdict::Unreachable, Cause { reason, ..Cause::default() });
    }

    /// When (patient) the silence of an expected node is a suspicion.
    fn suspicion_begins(&self, node: &Node) -> Time {
        let patience = node.detector.patience(&self.config, self.deviations);
        node.heard_patient.saturating_add(node.detector.suspicion(&self.config, self.suspicious, patience))
    }

    /// When (patient) the silence of an expected node is a verdict.
    fn silence_ends(&self, node: &Node) -> Time {
        let patience = node.detector.patience(&self.config, self.deviations);
        node.heard_patient.saturating_add(patience.saturating_mul(1 + u32::from(self.doubled)))
    }

    /// Of three nodes or more, most have missed two reports, and have done so together.
    fn most_are_silent(&self, patient: Time) -> bool {
        let silent_since = patient.saturating_sub(self.config.pulse_interval.saturating_mul(2));
        let expected = || self.nodes.values().filter(|node| node.is_expected());
        let all = expected().count();
        let silent = || expected().filter(|node| node.heard_patient <= silent_since);
        let latest = silent().map(|node| node.heard_patient).max().unwrap_or_default();
        let together = silent()
            .filter(|node| latest.saturating_sub(node.heard_patient) <= self.config.silence_floor)
            .count();
        all >= 3 && together * 2 > all
    }

    pub(crate) fn node_wake(&self, name: &NodeName) -> Option<Time> {
        let wakes = [self.session_wake(name), self.escalation_wake(name)];
        wakes.into_iter().flatten().min()
    }

    fn session_wake(&self, name: &NodeName) -> Option<Time> {
        let node = self.nodes.get(name)?;
        let launch = self.launch_wake(node);
        if node.verdict == Verdict::Unreachable {
            let forgotten = !node.attached && node.launch.is_none();
            return launch.or(forgotten.then(|| self.real(forget_at(node))));
        }
        let silence = match node.left {
            Some(left) => Some(self.real(left.saturating_add(GOODBYE_PATIENCE))),
            None if node.is_awaited() => Some(self.real(self.awaited_until(node))),
            None if node.is_expected() => {
                let suspicion = self.suspicion_begins(node);
                let next = if node.suspected { self.silence_ends(node) } else { suspicion };
                Some(self.real(next))
            }
            None => None,
        };
        silence.into_iter().chain(launch).min()
    }

    pub(crate) fn forget(&mut self, name: &NodeName) {
        let wards = self.wards_of(name);
        self.nodes.remove(name);
        for id in &wards {
            self.remove_ward(id);
        }
        self.declares(name, &BTreeSet::new());
        self.prune_groups();
    }

    /// Removes a ward and every trace of it.
    pub(crate) fn remove_ward(&mut self, id: &WardId) {
        self.cancel_pending(id);
        self.drop_from_plans(id);
        self.ward_mut(id);
        // Its place may be given to another one.
        let Some(place) = self.wards.place(id) else { return };
        if let Some(node) = self.nodes.get_mut(&id.node) {
            node.busy.retain(|other| *other != place);
            node.unvouched.retain(|other| *other != place);
        }
        let Some(ward) = self.wards.remove(id) else { return };
        if let Some(group) = self.groups.get_mut(ward.group()) {
            group.members.retain(|member| *member != place);
        }
    }

    /// Wards that run here count as healthy again when their node is.
    pub(crate) fn is_runtime_stalled(&self, id: &WardId) -> bool {
        self.nodes.get(&id.node).is_some_and(|node| node.verdict == Verdict::RuntimeStalled)
    }

    /// The last (patient) time for which reports of a node vouch: when the next one is due. Not longer, or work in
    /// progress on a node that was frozen would be judged by a clock that went on without it.
    pub(crate) fn vouched_until(&self, node: &Node) -> Time {
        node.reported.saturating_add(self.config.pulse_interval)
    }

    /// Whether a ward is up as far as can be told now.
    pub(crate) fn is_up(&self, id: &WardId) -> bool {
        self.wards.get(id).is_some_and(|ward| matches!(ward.phase, Phase::Starting | Phase::Running))
    }
}

fn forget_at(node: &Node) -> Time {
    node.heard_patient.saturating_add(FORGET_AFTER)
}
