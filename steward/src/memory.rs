//! What a steward before this one knew and this one goes on with: restarts already counted, wards
//! that rest on somebody's wish, restarts that were decided and not yet seen through.
//!
//! Given once, at the beginning. Each part is used when its group or ward is first heard of.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    core::Steward,
    plan::{End, Ending},
    types::{Cause, GroupSpec, NodeName, Phase, Time, WardId, WardReport},
    ward::{Intent, Pending},
};

/// What a steward before this one knew. See [`Steward::with_memory`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// When restarts of each group's members were decided, oldest first.
    pub groups: BTreeMap<Arc<str>, Vec<Time>>,
    /// When nodes were last restarted by escalation.
    pub escalated: BTreeMap<NodeName, Time>,
    /// When each group itself was restarted by the one it is in, oldest first.
    pub restarted: BTreeMap<Arc<str>, Vec<Time>>,
    /// Groups that gave up and have not begun anew since.
    pub gave_up: BTreeSet<Arc<str>>,
    /// Groups that were ending, and of which the group they are in had yet to decide.
    pub ending: BTreeMap<Arc<str>, GroupEnd>,
    /// What is known of wards.
    pub wards: BTreeMap<WardId, WardMemory>,
}

/// The end of a group that was not seen through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEnd {
    /// After so many restarts within its period; `None`: it shut down.
    pub recent: Option<u32>,
    /// The ward that led there.
    pub ward: WardId,
    /// Why.
    pub cause: Cause,
}

/// What is known of a ward.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WardMemory {
    /// The boot of its node of which `restarts` tells.
    pub boot: u128,
    /// Restarts by the steward.
    pub restarts: u64,
    /// When its own restarts were decided, oldest first.
    pub decided: Vec<Time>,
    /// It rests until an operator starts it.
    pub rests: Option<Rest>,
    /// A restart that was decided.
    pub resume: Option<Resume>,
}

/// Why a ward rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// An operator stopped it.
    Down,
    /// The steward gave up on it.
    Quarantined,
}

/// A restart that was decided and whose effect has not been seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// The incarnation before. Nothing is left to do if the ward has gone on since.
    pub incarnation: u64,
    /// Not before this.
    pub due: Time,
    /// Costs nothing: an operator asked for it.
    pub free: bool,
    /// Why.
    pub cause: Cause,
}

/// No pause grows any more after so many failures in a row.
pub const MOST_DECIDED: usize = 64;

impl Steward {
    /// What another steward needs to go on with the wards of a node: the groups they are in, outermost
    /// first, and the restarts counted so far. Times are on this steward's clock. That wards rest is
    /// not in it: their node knows.
    pub fn legacy(&self, node: &str, now: Time) -> (Vec<GroupSpec>, Memory) {
        let now = now.max(self.now);
        let (mut specs, mut memory) = (Vec::new(), Memory::default());
        let Some(node) = self.nodes.get(node) else { return (specs, memory) };
        for place in &node.order {
            let Some(ward) = self.wards.at(*place) else { continue };
            let id = &ward.id;
            let mut chain: Vec<_> = self.groups_of(id).collect();
            chain.reverse();
            for group in chain {
                let name = &group.spec.name;
                if !memory.groups.contains_key(name) {
                    memory.groups.insert(name.clone(), group.restarts.times(now, group.spec.period));
                    specs.push(group.spec.clone());
                }
            }
            let (failures, last) = ward.streak.row().unwrap_or_default();
            if ward.restarts > 0 || failures > 0 {
                let decided = vec![last; usize::try_from(failures).unwrap_or_default().min(MOST_DECIDED)];
                let known =
                    WardMemory { boot: node.boot, restarts: ward.restarts, decided, ..WardMemory::default() };
                memory.wards.insert(id.clone(), known);
            }
        }
        memory.groups.retain(|_, times| !times.is_empty());
        (specs, memory)
    }

    /// Goes on with what a steward before this one knew. Times are on this steward's clock.
    #[must_use]
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.escalated = memory.escalated.values().max().copied();
        self.memory = memory;
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.recall_group(&name);
        }
        self
    }

    /// Another steward restarted a ward, or a group it is in, in the meantime.
    pub(crate) fn restart_told(
        &mut self,
        id: &WardId,
        whole: Option<&Arc<str>>,
        counts_for: &Arc<str>,
        anew: &[Arc<str>],
        at: Time,
    ) {
        let at = at.min(self.now);
        if !self.groups_of(id).any(|group| group.spec.name == *counts_for) {
            return;
        }
        let within = self.subtree(counts_for);
        for name in anew.iter().filter(|name| *name != counts_for && within.contains(name)) {
            if let Some(group) = self.groups.get_mut(name) {
                group.restarts.clear();
            }
        }
        let Some(group) = self.groups.get_mut(counts_for) else { return };
        group.restarts.add(at, u32::MAX, group.spec.period);
        let backoff = group.spec.backoff;
        if let Some(group) = whole.filter(|name| within.contains(name)).and_then(|n| self.groups.get_mut(n)) {
            group.recall_restart(&backoff, at);
        }
        if let Some(ward) = self.ward_mut(id) {
            ward.restarts += 1;
            if whole.is_none() {
                ward.streak.recall(&backoff, at);
            }
        }
    }

    /// A group is heard of for the first time.
    pub(crate) fn recall_group(&mut self, name: &Arc<str>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        for at in self.memory.groups.remove(name).unwrap_or_default() {
            group.restarts.add(at, u32::MAX, group.spec.period);
        }
        if self.memory.gave_up.remove(name) {
            (group.gave_up, group.over) = (true, true);
        }
    }

    /// Wards of groups that were ending are there: their ends go on.
    pub(crate) fn recall_ends(&mut self, wards: &[WardId]) {
        if self.memory.ending.is_empty() {
            return;
        }
        let names: BTreeSet<_> =
            wards.iter().flat_map(|id| self.groups_of(id)).map(|group| group.spec.name.clone()).collect();
        for name in names {
            let Some(GroupEnd { recent, ward, cause }) = self.memory.ending.remove(&name) else { continue };
            let how = recent.map_or(Ending::ShutDown, |recent| Ending::GaveUp { recent });
            self.end_group(&name, End { how, ward }, cause);
        }
    }

    /// A ward is heard of for the first time.
    pub(crate) fn recall_ward(&mut self, id: &WardId, report: &WardReport) {
        let Some(known) = self.memory.wards.remove(id) else { return };
        let boot = self.nodes.get(&id.node).map(|node| node.boot);
        let gave_up: Vec<_> = self.groups_of(id).map(|group| group.gave_up).collect();
        let Some(ward) = self.wards.get_mut(id) else { return };
        if boot == Some(known.boot) {
            ward.restarts = known.restarts;
        }
        let Some(group) = self.groups.get_mut(ward.group()) else { return };
        for at in known.decided {
            ward.streak.recall(&group.spec.backoff, at);
        }
        match known.rests {
            Some(Rest::Down) => ward.intent = Intent::Down,
            Some(Rest::Quarantined) => {
                // A group that gave up within another may yet be restarted by that one.
                let inner = gave_up.contains(&true) && gave_up.last() == Some(&false);
                ward.intent = if inner { Intent::Ended } else { Intent::Quarantined };
                group.gave_up = true;
            }
            None => {}
        }
        let down = matches!(report.phase, Phase::Stopped | Phase::Backoff) && !report.held;
        let same = |resume: &Resume| boot == Some(known.boot) && resume.incarnation == report.incarnation;
        let resume = known.resume.filter(|resume| down && same(resume));
        if let Some(Resume { due, free, cause, .. }) = resume.filter(|_| known.rests.is_none()) {
            ward.intent = Intent::Up;
            ward.pending = Some(Box::new(Pending { due: Some(due), cause, free, ticket: None }));
            ward.phase = Phase::Backoff;
        }
    }
}
