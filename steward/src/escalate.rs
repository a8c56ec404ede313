//! The rung between a group and quarantine: a node whose process is started anew.
//!
//! What a process has collected (leaked threads, poisoned state, exhausted descriptors) outlives the
//! restart of a ward in it. So a group that gives up has one more way before it is quarantined, if all
//! of it is on one node and the ward that failed shares that node's process. It is a rare way: a node
//! goes it once in [`Config::escalation_pause`](crate::Config::escalation_pause), and the fleet once in
//! [`Config::escalation_gap`](crate::Config::escalation_gap), so that a bad release, which fails
//! everywhere at once, does not restart every node.

use std::{sync::Arc, time::Duration};

use crate::{
    core::Steward,
    node::Node,
    types::{Action, Cause, Escalate, NodeName, Reach, Time, WardId, What},
    ward::seconds,
};

/// A node that was told to restart and has not come back with another boot after so long will not.
pub const ESCALATION_PATIENCE: Duration = Duration::from_secs(60);

/// A node that is to be restarted.
#[derive(Debug)]
pub(crate) struct Escalation {
    /// When it was told to (patient).
    since: Time,
    /// On whose behalf.
    group: Option<GaveUp>,
}

/// A group that is down until its node is back.
#[derive(Clone, Debug)]
struct GaveUp {
    name: Arc<str>,
    recent: u32,
    ward: WardId,
}

impl Steward {
    pub(crate) fn restartable(&mut self, name: &NodeName) {
        if let Some(node) = self.node_mut(name) {
            node.restartable = true;
        }
    }

    /// Instead of a group's quarantine, its node's restart. False: quarantine it.
    pub(crate) fn escalate_group(
        &mut self,
        name: &Arc<str>,
        recent: u32,
        ward: &WardId,
        cause: &Cause,
    ) -> bool {
        let asks = self.groups.get(name).is_some_and(|group| group.spec.escalate == Escalate::Node);
        let shares = self.wards.get(ward).is_some_and(|ward| ward.spec().in_process);
        let there = self.wards_in(name).iter().all(|id| id.node == ward.node);
        if !(asks && shares && there && self.may_restart(&ward.node)) {
            return false;
        }
        let group = GaveUp { name: name.clone(), recent, ward: ward.clone() };
        self.restart_node(&ward.node, Some(group), cause.clone());
        true
    }

    /// Threads that abandoned wards have left behind, over all of a node's life.
    pub(crate) fn threads_leaked(&mut self, name: &NodeName, threads: u32) {
        if let Some(node) = self.node_mut(name).filter(|node| node.attached) {
            node.leaked = threads;
        }
        self.wake_escalation(name);
    }

    /// Whether a group of this ward waits for its node's restart.
    pub(crate) fn is_escalating(&self, id: &WardId) -> bool {
        self.escalating(id).is_some()
    }

    fn escalating(&self, id: &WardId) -> Option<&GaveUp> {
        let group = self.nodes.get(&id.node)?.escalation.as_ref()?.group.as_ref()?;
        self.groups_of(id).any(|of| of.spec.name == group.name).then_some(group)
    }

    /// A boot that was not known attends: what gave up begins anew.
    pub(crate) fn has_restarted(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        (node.leaked, node.restartable) = (0, false);
        let Some(GaveUp { name, .. }) = node.escalation.take().and_then(|escalation| escalation.group) else {
            return;
        };
        self.renew(&self.subtree(&name));
    }

    /// An operator starts one of its wards rather than wait: the others are quarantined.
    pub(crate) fn forestall(&mut self, id: &WardId) {
        let Some(GaveUp { name, recent, ward }) = self.escalating(id).cloned() else { return };
        if let Some(node) = self.nodes.get_mut(&id.node) {
            node.escalation = None;
        }
        let reason = "an operator brings its wards back one by one".into();
        self.abandon(&name, recent, &ward, &Cause { reason, ..Cause::default() });
    }

    pub(crate) fn wake_escalation(&mut self, name: &NodeName) {
        let patient = self.patient();
        let Some(node) = self.node_mut(name) else { return };
        if let Some(Escalation { group, .. }) = node.escalation.take_if(|e| patient >= e.ends()) {
            let reason = format!("not restarted within {}", seconds(ESCALATION_PATIENCE));
            let cause = Cause { reason, ..Cause::default() };
            self.note(Some(name), None, What::NodeNotRestarted, cause.clone());
            if let Some(GaveUp { name, recent, ward }) = group {
                self.abandon(&name, recent, &ward, &cause);
            }
        } else if self.leaks_too_much(name) && self.may_restart(name) {
            let threads = self.nodes.get(name).map_or(0, |node| node.leaked);
            let allowed = self.config.leaked_threads;
            let reason = format!("{threads} threads are leaked, allowed {allowed}");
            self.restart_node(name, None, Cause { reason, ..Cause::default() });
        }
    }

    /// When the above has something to do.
    pub(crate) fn escalation_wake(&self, name: &NodeName) -> Option<Time> {
        let node = self.nodes.get(name)?;
        match &node.escalation {
            Some(escalation) => Some(self.real(escalation.ends())),
            None if self.leaks_too_much(name) && node.restartable && node.is_ready() => {
                Some(self.next_escalation(node).max(self.now))
            }
            None => None,
        }
    }

    fn leaks_too_much(&self, name: &NodeName) -> bool {
        self.nodes.get(name).is_some_and(|node| node.attached && node.leaked > self.config.leaked_threads)
    }

    fn may_restart(&self, name: &NodeName) -> bool {
        let Some(node) = self.nodes.get(name) else { return false };
        node.restartable
            && node.is_ready()
            && node.escalation.is_none()
            && self.now >= self.next_escalation(node)
    }

    /// When a node may be restarted again.
    fn next_escalation(&self, node: &Node) -> Time {
        let again = node.escalated.map(|at| at.saturating_add(self.config.escalation_pause));
        let next = self.escalated.map(|at| at.saturating_add(self.config.escalation_gap));
        again.max(next).unwrap_or(Time::ZERO)
    }

    fn restart_node(&mut self, name: &NodeName, group: Option<GaveUp>, cause: Cause) {
        let (now, since) = (self.now, self.patient());
        self.escalated = Some(now);
        let what = What::NodeRestart { group: group.as_ref().map(|group| group.name.clone()) };
        if let Some(node) = self.node_mut(name) {
            (node.escalated, node.escalation) = (Some(now), Some(Escalation { since, group: group.clone() }));
        }
        match group {
            Some(GaveUp { name: group, ward, .. }) => {
                let groups = self.subtree(&group);
                let reach = Reach { groups, counts_for: Some(group), ..Reach::default() };
                self.note_reach(self.out.len(), &ward, what, cause.clone(), reach);
            }
            None => self.note(Some(name), None, what, cause.clone()),
        }
        self.out.push(Action::RestartNode { node: name.clone(), cause });
    }
}

impl Escalation {
    fn ends(&self) -> Time {
        self.since.saturating_add(ESCALATION_PATIENCE)
    }
}
