//! What is due when, but for wards, which have [alarms](crate::alarms). One entry per key: setting a key anew replaces its entry, so the agenda is no
//! larger than the fleet.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{NodeName, Time};

/// Who wants to be woken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Budget,
    Group(NodeName),
    Node(NodeName),
}

#[derive(Debug, Default)]
pub(crate) struct Agenda {
    by_time: BTreeSet<(Time, Key)>,
    by_key: BTreeMap<Key, Time>,
}

impl Agenda {
    pub(crate) fn set(&mut self, key: Key, at: Option<Time>) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key.clone()));
            self.by_key.insert(key, at);
        }
    }

    pub(crate) fn first(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes what is due at `now`, earliest first.
    pub(crate) fn take_due(&mut self, now: Time) -> Vec<Key> {
        let mut due = Vec::new();
        while self.by_time.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.by_time.pop_first() else { break };
            self.by_key.remove(&key);
            due.push(key);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_due_once_and_at_its_latest_setting() {
        let at = std::time::Duration::from_secs;
        let mut agenda = Agenda::default();
        agenda.set(Key::Budget, Some(at(1)));
        agenda.set(Key::Budget, Some(at(3)));
        agenda.set(Key::Node("n".into()), Some(at(2)));
        assert_eq!(agenda.first(), Some(at(2)));
        assert_eq!(agenda.take_due(at(2)), [Key::Node("n".into())]);
        assert_eq!(agenda.take_due(at(9)), [Key::Budget]);
        assert_eq!(agenda.first(), None);
    }
}
