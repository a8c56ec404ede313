//! The errors that arose anywhere: grouped by what is the same failure, the latest of each group
//! kept whole. Bounded, however many arrive: a flood of one failure costs one group.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use wardkeep_proto::v1;

/// Groups kept; the one quiet for longest goes first.
const MOST_GROUPS: usize = 1_000;
/// Whole records kept per group; the oldest goes first.
const MOST_RECORDS: usize = 20;
/// Places named per group.
const MOST_PLACES: usize = 20;

#[derive(Default)]
pub(super) struct ErrorStore {
    groups: BTreeMap<String, Group>,
    records: BTreeMap<String, Arc<v1::Error>>,
    dropped: u64,
    clock: u64,
    /// All that were told of since the supervisor's start, whatever is still known of them.
    seen: u64,
    /// Of those, the malformed ones.
    malformed: u64,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) groups: usize,
    pub(super) seen: u64,
    pub(super) malformed: u64,
    pub(super) dropped: u64,
}

#[derive(Default)]
struct Group {
    summary: v1::ErrorGroup,
    places: BTreeSet<String>,
    ids: VecDeque<String>,
    /// When (by arrival) it was last seen.
    seen: u64,
}

/// What asking for one error by its ID, or the beginning of it, leads to.
pub(super) enum Found {
    One(Arc<v1::Error>),
    None,
    Many(usize),
}

impl ErrorStore {
    /// Takes in what a node sent.
    pub(super) fn add(&mut self, records: v1::ErrorRecords) {
        self.dropped = self.dropped.saturating_add(records.dropped);
        for record in records.records {
            self.add_one(record);
        }
        for tally in records.tallies {
            match self.groups.get_mut(&tally.group_hash) {
                Some(group) => {
                    self.clock += 1;
                    group.seen = self.clock;
                    group.summary.count = group.summary.count.saturating_add(tally.count);
                    self.seen = self.seen.saturating_add(tally.count);
                    if group.summary.malformed {
                        self.malformed = self.malformed.saturating_add(tally.count);
                    }
                    group.summary.last_at = tally.last_at.or(group.summary.last_at);
                }
                // Forgotten in the meantime.
                None => self.dropped = self.dropped.saturating_add(tally.count),
            }
        }
    }

    fn add_one(&mut self, record: v1::Error) {
        // The same error may be told by more than one node that it passed.
        if record.id.is_empty() || self.records.contains_key(&record.id) {
            return;
        }
        self.clock += 1;
        self.seen = self.seen.saturating_add(1);
        self.malformed = self.malformed.saturating_add(record.malformed.into());
        if !self.groups.contains_key(&record.group_hash) && self.groups.len() == MOST_GROUPS {
            self.forget_the_quietest();
        }
        let group = self.groups.entry(record.group_hash.clone()).or_default();
        group.seen = self.clock;
        group.note(&record);
        group.ids.push_back(record.id.clone());
        if group.ids.len() > MOST_RECORDS
            && let Some(oldest) = group.ids.pop_front()
        {
            self.records.remove(&oldest);
        }
        self.records.insert(record.id.clone(), Arc::new(record));
    }

    fn forget_the_quietest(&mut self) {
        let quietest = self.groups.iter().min_by_key(|(_, group)| group.seen).map(|(hash, _)| hash.clone());
        let forgotten = quietest.and_then(|hash| self.groups.remove(&hash));
        let count = forgotten.as_ref().map_or(0, |group| group.summary.count);
        self.dropped = self.dropped.saturating_add(count);
        for id in forgotten.into_iter().flat_map(|group| group.ids) {
            self.records.remove(&id);
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let Self { groups, seen, malformed, dropped, .. } = self;
        Totals { groups: groups.len(), seen: *seen, malformed: *malformed, dropped: *dropped }
    }

    /// All groups, the latest first.
    pub(super) fn list(&self) -> v1::ErrorList {
        let mut groups: Vec<_> = self.groups.values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.seen));
        let summary = |group: &Group| v1::ErrorGroup {
            places: group.places.iter().cloned().collect(),
            ..group.summary.clone()
        };
        v1::ErrorList { groups: groups.into_iter().map(summary).collect(), dropped: self.dropped }
    }

    /// The error with this ID, or the only one whose ID begins so.
    pub(super) fn find(&self, id: &str) -> Found {
        let mut matches = self.records.range(id.to_owned()..).take_while(|(found, _)| found.starts_with(id));
        match (matches.next(), matches.next()) {
            (None, _) => Found::None,
            (Some((_, record)), None) => Found::One(record.clone()),
            (Some((found, record)), Some(_)) if found == id => Found::One(record.clone()),
            (Some(_), Some(_)) => Found::Many(2 + matches.count()),
        }
    }
}

impl Group {
    fn note(&mut self, record: &v1::Error) {
        let summary = &mut self.summary;
        if summary.count == 0 {
            summary.group_hash.clone_from(&record.group_hash);
            summary.domain.clone_from(&record.domain);
            summary.kind.clone_from(&record.kind);
            summary.first_at = record.occurred_at;
        }
        summary.count = summary.count.saturating_add(1);
        summary.last_at = record.occurred_at;
        summary.last_id.clone_from(&record.id);
        summary.last_what.clone_from(&record.what);
        summary.malformed = record.malformed;
        if self.places.len() < MOST_PLACES {
            let place = [record.node.as_str(), record.ward.as_str()];
            let place = place.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/");
            self.places.insert(if place.is_empty() { record.machine.clone() } else { place });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, group: &str) -> v1::Error {
        v1::Error { id: id.into(), group_hash: group.into(), node: "n".into(), ..Default::default() }
    }

    fn add(store: &mut ErrorStore, id: &str, group: &str) {
        store.add(v1::ErrorRecords { records: vec![record(id, group)], ..Default::default() });
    }

    #[test]
    fn a_flood_of_one_failure_is_one_group_with_its_latest_records() {
        let mut store = ErrorStore::default();
        for n in 0..10_000 {
            add(&mut store, &format!("{n:05}"), "g1-a");
        }
        let list = store.list();
        assert_eq!((list.groups.len(), list.groups[0].count), (1, 10_000));
        assert_eq!(store.records.len(), MOST_RECORDS);
        assert!(matches!(store.find("09999"), Found::One(_)));
        assert!(matches!(store.find("00001"), Found::None));
    }

    #[test]
    fn what_a_node_only_counted_counts() {
        let mut store = ErrorStore::default();
        add(&mut store, "x", "g");
        let tally =
            |group: &str| v1::ErrorTally { group_hash: group.into(), count: 99_999, ..Default::default() };
        store.add(v1::ErrorRecords { tallies: vec![tally("g"), tally("unknown")], ..Default::default() });
        let list = store.list();
        assert_eq!((list.groups[0].count, list.dropped), (100_000, 99_999));
        assert_eq!(store.totals(), Totals { groups: 1, seen: 100_000, malformed: 0, dropped: 99_999 });
    }

    #[test]
    fn many_kinds_of_failure_are_bounded_and_the_quietest_goes_first() {
        let mut store = ErrorStore::default();
        add(&mut store, "first", "g1-first");
        for n in 0..MOST_GROUPS {
            add(&mut store, &format!("{n:05}"), &format!("g1-{n}"));
        }
        assert_eq!(store.list().groups.len(), MOST_GROUPS);
        assert_eq!(store.totals().seen, MOST_GROUPS as u64 + 1, "what is forgotten was seen all the same");
        assert!(matches!(store.find("first"), Found::None));
        assert_eq!(store.list().dropped, 1);
        assert_eq!(store.records.len(), MOST_GROUPS);
    }

    #[test]
    fn an_id_may_be_cut_as_long_as_it_names_one_error() {
        let mut store = ErrorStore::default();
        add(&mut store, "01aa", "g");
        add(&mut store, "01ab", "g");
        assert!(matches!(store.find("01a"), Found::Many(2)));
        assert!(matches!(store.find("01ab"), Found::One(e) if e.id == "01ab"));
        assert!(matches!(store.find("02"), Found::None));
    }

    #[test]
    fn the_same_error_told_twice_counts_once() {
        let mut store = ErrorStore::default();
        add(&mut store, "x", "g");
        add(&mut store, "x", "g");
        assert_eq!(store.list().groups[0].count, 1);
    }
}
