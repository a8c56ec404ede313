//! What a steward before this one knew and this one goes on with: restarts already counted, wards
//! that rest on somebody's wish, restarts that were decided and not yet seen through.
//!
//! Given once, at the beginning. Each part is used when its group or ward is first heard of.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    core::Steward,
    types::{Cause, Phase, Time, WardId, WardReport},
    ward::{Intent, Pending},
};

/// What a steward before this one knew. See [`Steward::with_memory`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// When restarts of each group were decided, oldest first.
    pub groups: BTreeMap<Arc<str>, Vec<Time>>,
    /// What is known of wards.
    pub wards: BTreeMap<WardId, WardMemory>,
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

impl Steward {
    /// Goes on with what a steward before this one knew. Times are on this steward's clock.
    #[must_use]
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = memory;
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.recall_group(&name);
        }
        self
    }

    /// A group is heard of for the first time.
    pub(crate) fn recall_group(&mut self, name: &Arc<str>) {
        let Some(times) = self.memory.groups.remove(name) else { return };
        let Some(group) = self.groups.get_mut(name) else { return };
        for at in times {
            group.restarts.add(at, u32::MAX, group.spec.period);
        }
    }

    /// A ward is heard of for the first time.
    pub(crate) fn recall_ward(&mut self, id: &WardId, report: &WardReport) {
        let Some(known) = self.memory.wards.remove(id) else { return };
        let boot = self.nodes.get(&id.node).map(|node| node.boot);
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
                ward.intent = Intent::Quarantined;
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
