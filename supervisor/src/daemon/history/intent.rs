//! What was decided and has not been seen through yet. Kept so that a supervisor that was killed
//! goes on with it: once, and not twice.
//!
//! There is at most one intent per ward, and one of each lane per node; a newer one takes its place.

use std::collections::BTreeMap;

use super::store::{Change, Millis};

/// What is to come true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::daemon) enum Aim {
    /// The ward runs (it did not, or is to be replaced): an incarnation after the one named.
    Restart,
    /// The same, because another ward of its group failed.
    RestartWithGroup,
    /// The incarnation named has ended, and nothing follows.
    Stop,
    /// The node's process is another one.
    Launch,
    /// The node has re-executed itself: another boot.
    RestartNode,
    /// The node takes no new calls.
    Drain,
    /// It takes calls again.
    Undrain,
}

/// What an intent is about; a newer one of the same lane takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::daemon) enum Lane {
    Ward,
    Process,
    Drain,
}

impl Aim {
    const ALL: [(Aim, &'static str); 7] = [
        (Aim::Restart, "restart"),
        (Aim::RestartWithGroup, "restart_with_group"),
        (Aim::Stop, "stop"),
        (Aim::Launch, "launch"),
        (Aim::RestartNode, "restart_node"),
        (Aim::Drain, "drain"),
        (Aim::Undrain, "undrain"),
    ];

    /// As it is stored.
    pub(super) fn word(self) -> &'static str {
        Self::ALL.iter().find(|(aim, _)| *aim == self).map_or("", |(_, word)| word)
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(aim, _)| *aim)
    }

    /// It is to run in an incarnation after the one named.
    pub(in crate::daemon) fn is_restart(self) -> bool {
        matches!(self, Aim::Restart | Aim::RestartWithGroup)
    }

    /// An operator's order for a node, which the node may never have read.
    pub(in crate::daemon) fn is_order(self) -> bool {
        matches!(self, Aim::RestartNode | Aim::Drain | Aim::Undrain)
    }

    pub(in crate::daemon) fn lane(self) -> Lane {
        match self {
            Aim::Restart | Aim::RestartWithGroup | Aim::Stop => Lane::Ward,
            Aim::Launch | Aim::RestartNode => Lane::Process,
            Aim::Drain | Aim::Undrain => Lane::Drain,
        }
    }
}

/// Something decided.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::daemon) struct Intent {
    /// Never used again. Given by [`Intents::open`].
    pub(in crate::daemon) id: u64,
    pub(in crate::daemon) aim: Aim,
    pub(in crate::daemon) node: String,
    /// Empty: it is about the node.
    pub(in crate::daemon) ward: String,
    /// The incarnation that ended, or is to end.
    pub(in crate::daemon) incarnation: u64,
    /// Boot ID of the node then.
    pub(in crate::daemon) boot: String,
    /// The steward decided it, and counted it as one of its group's restarts.
    pub(in crate::daemon) counted: bool,
    /// An operator asked for it.
    pub(in crate::daemon) asked: bool,
    /// How long a node may drain.
    pub(in crate::daemon) drain_ms: Option<i64>,
    pub(in crate::daemon) decided_at: Millis,
    /// Not before this.
    pub(in crate::daemon) due_at: Millis,
    pub(in crate::daemon) reason: String,
    /// Who asked.
    pub(in crate::daemon) actor: String,
    pub(in crate::daemon) error_id: String,
    pub(in crate::daemon) traceparent: String,
    pub(in crate::daemon) epoch: u64,
}

/// Those that are open.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Intents {
    open: BTreeMap<(String, String, Lane), Intent>,
    last: u64,
}

impl Intents {
    pub(in crate::daemon) fn new(open: Vec<Intent>, last: u64) -> Self {
        let key = |intent: &Intent| (intent.node.clone(), intent.ward.clone(), intent.aim.lane());
        Self { open: open.into_iter().map(|intent| (key(&intent), intent)).collect(), last }
    }

    /// Takes an intent on. One about the same that is still open is superseded; one that aims at
    /// the same is brought up to date.
    pub(in crate::daemon) fn open(&mut self, mut intent: Intent) -> Vec<Change> {
        let key = (intent.node.clone(), intent.ward.clone(), intent.aim.lane());
        let mut changes = Vec::new();
        match self.open.get(&key) {
            Some(old) if old.aim == intent.aim && old.incarnation == intent.incarnation => intent.id = old.id,
            old => {
                if let Some(old) = old {
                    let outcome = "something else was decided".to_owned();
                    changes.push(Change::Close { id: old.id, at: intent.decided_at, outcome });
                }
                self.last += 1;
                intent.id = self.last;
            }
        }
        changes.push(Change::Open(intent.clone()));
        self.open.insert(key, intent);
        changes
    }

    pub(in crate::daemon) fn get(&self, node: &str, ward: &str, lane: Lane) -> Option<&Intent> {
        self.open.get(&(node.to_owned(), ward.to_owned(), lane))
    }

    pub(in crate::daemon) fn close(
        &mut self,
        node: &str,
        ward: &str,
        lane: Lane,
        at: Millis,
        outcome: impl Into<String>,
    ) -> Option<Change> {
        let intent = self.open.remove(&(node.to_owned(), ward.to_owned(), lane))?;
        Some(Change::Close { id: intent.id, at, outcome: outcome.into() })
    }

    pub(in crate::daemon) fn orders(&self) -> impl Iterator<Item = &Intent> {
        self.open.values().filter(|intent| intent.aim.is_order())
    }

    /// All that are about a node or its wards.
    pub(in crate::daemon) fn of_node(&self, node: &str) -> Vec<Intent> {
        let from = (node.to_owned(), String::new(), Lane::Ward);
        self.open.range(from..).take_while(|((name, ..), _)| name == node).map(|(_, i)| i.clone()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::daemon::history) fn intent(aim: Aim, ward: &str, incarnation: u64) -> Intent {
        Intent {
            id: 0,
            aim,
            node: "n".into(),
            ward: ward.into(),
            incarnation,
            boot: "b".into(),
            counted: true,
            asked: false,
            drain_ms: None,
            decided_at: 1_000,
            due_at: 1_200,
            reason: "it panicked".into(),
            actor: String::new(),
            error_id: "e".into(),
            traceparent: String::new(),
            epoch: 7,
        }
    }

    #[test]
    fn a_ward_has_one_intent_and_a_newer_one_supersedes_it() {
        let mut intents = Intents::default();
        assert_eq!(intents.open(intent(Aim::Restart, "w", 3)).len(), 1);
        // The same, decided more closely.
        let changes = intents.open(Intent { due_at: 9_000, ..intent(Aim::Restart, "w", 3) });
        assert!(matches!(&changes[..], [Change::Open(Intent { id: 1, due_at: 9_000, .. })]), "{changes:?}");
        let changes = intents.open(intent(Aim::Stop, "w", 3));
        assert!(
            matches!(&changes[..], [Change::Close { id: 1, .. }, Change::Open(Intent { id: 2, .. })]),
            "{changes:?}"
        );
        assert!(matches!(intents.close("n", "w", Lane::Ward, 5, "x"), Some(Change::Close { id: 2, .. })));
        assert_eq!(intents.close("n", "w", Lane::Ward, 5, "x"), None);
    }

    #[test]
    fn a_node_can_be_drained_while_it_is_restarted() {
        let mut intents = Intents::new(vec![Intent { id: 4, ..intent(Aim::Drain, "", 0) }], 9);
        assert!(matches!(
            &intents.open(intent(Aim::RestartNode, "", 0))[..],
            [Change::Open(Intent { id: 10, .. })]
        ));
        intents.open(intent(Aim::Restart, "w", 1));
        assert_eq!(intents.of_node("n").len(), 3);
        assert!(intents.of_node("m").is_empty());
    }

    #[test]
    fn aims_are_stored_as_words() {
        for (aim, word) in Aim::ALL {
            assert_eq!((aim.word(), Aim::from_word(word)), (word, Some(aim)));
        }
        assert_eq!(Aim::from_word("nonsense"), None);
    }
}
