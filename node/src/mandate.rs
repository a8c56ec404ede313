//! Who decides over this node's wards: its own steward or its supervisor's. Exactly one at a time.
//!
//! A node decides for itself from its start until a supervisor welcomes it, and again when it has
//! been without a session for longer than the grace it was granted. Pure: no clock, no I/O.

use std::time::Duration;

use crate::text::cut;
use wardkeep_steward::{
    Action, Config, Event, GroupSpec, Memory, NodeName, Phase, Steward, WardId, WardReport,
};

/// Longest history kept for a supervisor to come.
const HISTORY: usize = 256;
/// Longest sentence of it, in bytes.
const LONGEST_TEXT: usize = 1_024;

pub(crate) struct Mandate {
    node: NodeName,
    boot: u128,
    groups: Vec<GroupSpec>,
    seed: u64,
    holder: Holder,
    /// Highest epoch obeyed.
    epoch: u64,
    grace: Duration,
    history: Vec<wardkeep_proto::v1::Event>,
    /// The number of its latest event, and of the latest that a supervisor was told of.
    numbered: (u64, u64),
    /// What the supervisor leaves to the own steward.
    legacy: (Vec<GroupSpec>, Memory),
}

enum Holder {
    Own(Box<Steward>),
    Theirs {
        lost_at: Option<Duration>,
    },
    /// The node leaves: nothing is started any more.
    Nobody,
}

impl Mandate {
    pub(crate) fn new(node: NodeName, boot: u128, groups: Vec<GroupSpec>, seed: u64) -> Self {
        Self {
            node,
            boot,
            groups,
            seed,
            holder: Holder::Nobody,
            epoch: 0,
            grace: Duration::from_secs(2),
            history: Vec::new(),
            numbered: (0, 0),
            legacy: Default::default(),
        }
    }

    pub(crate) fn boot(&self) -> u128 {
        self.boot
    }

    pub(crate) fn is_own(&self) -> bool {
        matches!(self.holder, Holder::Own(_))
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The node's own steward takes over the wards as they are.
    pub(crate) fn take(&mut self, now: Duration, wards: Vec<WardReport>) -> Vec<Action> {
        let config = Config { seed: self.seed, ..Config::default() };
        let (groups, memory) = self.legacy.clone();
        let mut steward = Box::new(Steward::new(config).with_groups(groups).with_memory(memory));
        let actions = steward.step(
            now,
            Event::NodeAttached {
                node: self.node.clone(),
                boot: self.boot,
                wards,
                groups: self.groups.clone(),
            },
        );
        self.holder = Holder::Own(steward);
        actions
    }

    /// The own steward has decided that this ward is started again, and waits.
    pub(crate) fn is_to_restart(&self, ward: &str) -> bool {
        match &self.holder {
            Holder::Own(steward) => {
                let view = steward.ward(&WardId::new(self.node.clone(), ward));
                view.is_some_and(|view| view.phase == Phase::Backoff)
            }
            Holder::Theirs { .. } | Holder::Nobody => false,
        }
    }

    /// The groups that the node declares from now on.
    pub(crate) fn declare(&mut self, groups: Vec<GroupSpec>) {
        self.groups = groups;
    }

    /// A supervisor welcomed the node. False: one with a higher epoch did so before.
    pub(crate) fn hand_over(&mut self, epoch: u64, grace: Duration) -> bool {
        if epoch < self.epoch || matches!(self.holder, Holder::Nobody) {
            return false;
        }
        self.epoch = epoch;
        self.grace = grace;
        let told = self.numbered.1;
        self.history.retain(|event| event.sequence > told);
        // It will tell.
        self.legacy = Default::default();
        self.holder = Holder::Theirs { lost_at: None };
        true
    }

    /// What the supervisor leaves to the own steward, should it have to take over.
    pub(crate) fn inherit(&mut self, legacy: (Vec<GroupSpec>, Memory)) {
        self.legacy = legacy;
    }

    /// As if no supervisor had ever been obeyed.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn forget_epoch(&mut self) {
        self.epoch = 0;
    }

    /// The session with the supervisor ended.
    pub(crate) fn session_lost(&mut self, now: Duration) {
        if let Holder::Theirs { lost_at } = &mut self.holder {
            lost_at.get_or_insert(now);
        }
    }

    /// Whether it is time to [`Mandate::take`] over.
    pub(crate) fn grace_is_over(&self, now: Duration) -> bool {
        matches!(self.holder, Holder::Theirs { lost_at: Some(at) } if now.saturating_sub(at) >= self.grace)
    }

    /// The node leaves: nobody starts anything on it any more.
    pub(crate) fn resign(&mut self) {
        self.holder = Holder::Nobody;
    }

    /// Tells the own steward, if it decides.
    pub(crate) fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match &mut self.holder {
            Holder::Own(steward) => steward.step(now, event),
            Holder::Theirs { .. } | Holder::Nobody => Vec::new(),
        }
    }

    /// When the own steward wants to be woken.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        match &self.holder {
            Holder::Own(steward) => steward.next_wake(),
            Holder::Theirs { .. } | Holder::Nobody => None,
        }
    }

    /// What the own steward did, for the supervisor to know. The oldest is dropped when full.
    pub(crate) fn remember(&mut self, mut event: wardkeep_proto::v1::Event) {
        cut(&mut event.text, LONGEST_TEXT);
        self.numbered.0 += 1;
        event.sequence = self.numbered.0;
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(event);
    }

    /// A supervisor is being told all of the history: if it welcomes the node, it need not be told again.
    pub(crate) fn told(&mut self) {
        self.numbered.1 = self.numbered.0;
    }

    /// In which restarts of a group are counted, if the own steward decides.
    pub(crate) fn period(&self, group: &str) -> Option<Duration> {
        match &self.holder {
            Holder::Own(steward) => Some(steward.group(group, Duration::ZERO)?.spec.period),
            Holder::Theirs { .. } | Holder::Nobody => None,
        }
    }

    pub(crate) fn history(&self) -> &[wardkeep_proto::v1::Event] {
        &self.history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn mandate() -> Mandate {
        let mut mandate = Mandate::new("n".into(), 1, Vec::new(), 0);
        mandate.take(Duration::ZERO, Vec::new());
        mandate
    }

    #[test]
    fn a_node_decides_for_itself_until_it_is_welcomed_and_again_after_the_grace() {
        let mut mandate = mandate();
        assert!(mandate.is_own());
        assert!(mandate.hand_over(7, 2 * SECOND));
        assert!(!mandate.is_own());
        mandate.session_lost(10 * SECOND);
        mandate.session_lost(11 * SECOND);
        assert!(!mandate.grace_is_over(11 * SECOND));
        assert!(mandate.grace_is_over(12 * SECOND));
        mandate.take(12 * SECOND, Vec::new());
        assert!(mandate.is_own());
    }

    #[test]
    fn a_supervisor_of_a_lower_epoch_is_not_obeyed() {
        let mut mandate = mandate();
        assert!(mandate.hand_over(7, SECOND));
        assert!(!mandate.hand_over(6, SECOND));
        assert!(mandate.hand_over(7, SECOND));
        assert_eq!(mandate.epoch(), 7);
    }

    #[test]
    fn a_supervisor_that_welcomes_the_node_is_told_once_and_of_what_came_later_the_next_one() {
        let mut mandate = mandate();
        let texts = |mandate: &Mandate| {
            mandate.history().iter().map(|event| (event.sequence, event.text.clone())).collect::<Vec<_>>()
        };
        let event = |text: &str| wardkeep_proto::v1::Event { text: text.into(), ..Default::default() };
        mandate.remember(event("a"));
        mandate.told();
        mandate.remember(event("b"));
        assert_eq!(texts(&mandate), [(1, "a".into()), (2, "b".into())]);
        assert!(mandate.hand_over(7, SECOND));
        assert_eq!(texts(&mandate), [(2, "b".into())]);
    }

    #[test]
    fn a_leaving_node_takes_no_new_authority() {
        let mut mandate = mandate();
        mandate.resign();
        assert!(!mandate.hand_over(9, SECOND));
        mandate.session_lost(SECOND);
        assert!(!mandate.grace_is_over(100 * SECOND));
    }
}
