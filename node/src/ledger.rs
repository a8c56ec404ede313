//! Errors that arose on this node: each is logged once, whole, and kept for the supervisor, so that
//! its ID can be looked up from anywhere. Of a flood of the same failure a few are kept whole, and the
//! rest are counted.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use prost::Message as _;
use wardkeep_proto::{Error, context::Recorder, v1};

use crate::text::cut;

/// Records that may wait for the supervisor.
const MOST_WAITING: usize = 1_024;
/// Records of one group that may wait: as many as a supervisor keeps.
const MOST_OF_A_GROUP: u32 = 20;
/// Groups that may wait; errors of further ones are dropped, and counted.
const MOST_GROUPS: usize = 256;
/// Errors that are recognised when they come again.
const MOST_RECENT: usize = 64;
/// Longest text of a record: what is longer is in the node's own log.
const LONGEST_TEXT: usize = 16 * 1024;
/// A message to the supervisor holds no more than this.
const MOST_RECORDS: usize = 64;
const MOST_BYTES: usize = 1024 * 1024;

/// Where errors of a process are written down, for whoever collects them. Cheap to clone. Bounded: what
/// nobody takes is counted.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Waiting>>);

#[derive(Debug)]
struct Waiting {
    most_groups: usize,
    records: VecDeque<v1::Error>,
    groups: HashMap<String, Tally>,
    dropped: u64,
    /// IDs of the latest errors: one that passes two places counts once.
    recent: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Tally {
    /// Whole records that wait.
    whole: u32,
    further: u64,
    last_at: Option<prost_types::Timestamp>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            most_groups: MOST_GROUPS,
            records: VecDeque::new(),
            groups: HashMap::new(),
            dropped: 0,
            recent: VecDeque::new(),
        }
    }
}

impl Ledger {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// For a process whose errors nobody collects: they are logged.
    pub(crate) fn of_nobody() -> Self {
        Self(Arc::new(Mutex::new(Waiting { most_groups: 0, ..Waiting::default() })))
    }

    /// Logs the error and keeps its record.
    pub fn write(&self, error: &Error) {
        error.log();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(error.as_proto());
    }

    /// For a call of this ward: what goes wrong on its way, in the client above all, is written down here.
    pub(crate) fn recorder(&self, node: Arc<str>, ward: Arc<str>, incarnation: u64) -> Recorder {
        let ledger = self.clone();
        Recorder::new(move |error| ledger.write(&error.clone().at(&node, &ward, incarnation)))
    }

    /// Takes back a message that could not be sent, for the next time. What there is no room for is counted.
    pub(crate) fn give_back(&self, message: v1::ErrorRecords) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).give_back(message);
    }

    /// The next message for whoever collects; `None` when there is nothing to tell.
    pub fn take(&self) -> Option<v1::ErrorRecords> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Waiting {
    fn add(&mut self, record: &v1::Error) {
        if self.recent.contains(&record.id) {
            return;
        }
        if self.recent.len() == MOST_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(record.id.clone());
        self.keep(record.clone());
    }

    fn keep(&mut self, record: v1::Error) {
        let room = self.records.len() < MOST_WAITING;
        let Some(tally) = self.tally(&record.group_hash, record.occurred_at) else {
            self.dropped += 1;
            return;
        };
        if tally.whole >= MOST_OF_A_GROUP || !room {
            tally.further += 1;
            return;
        }
        tally.whole += 1;
        self.records.push_back(within_bounds(record));
    }

    /// What is known of a group, one of whose errors arose then; `None`: there is no room for it.
    fn tally(&mut self, group: &str, at: Option<prost_types::Timestamp>) -> Option<&mut Tally> {
        if !self.groups.contains_key(group) {
            if self.groups.len() >= self.most_groups {
                return None;
            }
            self.groups.insert(group.to_owned(), Tally::default());
        }
        let tally = self.groups.get_mut(group)?;
        let when = |at: &prost_types::Timestamp| (at.seconds, at.nanos);
        if at.as_ref().map(when) >= tally.last_at.as_ref().map(when) {
            tally.last_at = at;
        }
        Some(tally)
    }

    fn give_back(&mut self, message: v1::ErrorRecords) {
        message.records.into_iter().for_each(|record| self.keep(record));
        for v1::ErrorTally { group_hash, count, last_at } in message.tallies {
            match self.tally(&group_hash, last_at) {
                Some(tally) => tally.further += count,
                None => self.dropped += count,
            }
        }
        self.dropped += message.dropped;
    }

    fn take(&mut self) -> Option<v1::ErrorRecords> {
        let mut message = v1::ErrorRecords::default();
        let mut bytes = 0;
        while message.records.len() < MOST_RECORDS && bytes < MOST_BYTES {
            let Some(record) = self.records.pop_front() else { break };
            bytes += record.encoded_len();
            if let Some(tally) = self.groups.get_mut(&record.group_hash) {
                tally.whole = tally.whole.saturating_sub(1);
            }
            message.records.push(record);
        }
        // After the records, so that whoever reads them knows the groups by then.
        if self.records.is_empty() {
            let tallies = self.groups.drain().filter(|(_, tally)| tally.further > 0);
            message.tallies = tallies
                .map(|(group_hash, tally)| v1::ErrorTally {
                    group_hash,
                    count: tally.further,
                    last_at: tally.last_at,
                })
                .collect();
        }
        message.dropped = std::mem::take(&mut self.dropped);
        let nothing = message.records.is_empty() && message.tallies.is_empty() && message.dropped == 0;
        (!nothing).then_some(message)
    }
}

/// How many errors a message tells of.
#[cfg(test)]
pub(crate) fn told_of(message: &v1::ErrorRecords) -> u64 {
    let tallied: u64 = message.tallies.iter().map(|tally| tally.count).sum();
    message.records.len() as u64 + tallied + message.dropped
}

fn within_bounds(mut record: v1::Error) -> v1::Error {
    if cut(&mut record.what, LONGEST_TEXT) {
        record.truncated.push("what".to_owned());
    }
    for cause in &mut record.causes {
        cut(&mut cause.what, LONGEST_TEXT);
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(group: impl ToString, what: &str) -> v1::Error {
        let id = uuid::Uuid::now_v7().to_string();
        v1::Error { id, group_hash: group.to_string(), what: what.to_owned(), ..Default::default() }
    }

    fn waiting() -> Waiting {
        Waiting::default()
    }

    #[test]
    fn an_error_that_passes_two_places_counts_once() {
        let (mut waiting, record) = (waiting(), record("g", "x"));
        waiting.add(&record);
        waiting.add(&record);
        let message = waiting.take().unwrap();
        assert_eq!((message.records.len(), message.tallies.len()), (1, 0));
    }

    #[test]
    fn a_flood_of_one_failure_is_a_few_records_and_a_number() {
        let mut waiting = waiting();
        for _ in 0..100_000 {
            waiting.add(&record("flood", "x"));
        }
        waiting.add(&record("other", "y"));
        let message = waiting.take().unwrap();
        assert_eq!(message.records.len(), MOST_OF_A_GROUP as usize + 1);
        let tallies: Vec<_> = message.tallies.iter().map(|t| (t.group_hash.as_str(), t.count)).collect();
        assert_eq!(tallies, [("flood", 100_000 - u64::from(MOST_OF_A_GROUP))]);
        assert_eq!(waiting.take(), None);
    }

    #[test]
    fn every_error_is_a_record_a_number_or_dropped_and_counted() {
        let mut waiting = waiting();
        let errors = 20_000;
        for n in 0..errors {
            waiting.add(&record(n % (MOST_GROUPS + 44), "x"));
        }
        let (mut whole, mut counted, mut dropped) = (0, 0, 0);
        while let Some(message) = waiting.take() {
            assert!(message.records.len() <= MOST_RECORDS);
            whole += message.records.len();
            counted += message.tallies.iter().map(|t| t.count).sum::<u64>();
            dropped += message.dropped;
        }
        assert!(dropped > 0);
        assert_eq!(whole as u64 + counted + dropped, errors as u64);
    }

    #[test]
    fn long_texts_are_cut_and_messages_bounded() {
        let mut waiting = waiting();
        for n in 0..MOST_GROUPS {
            waiting.add(&record(n, &"é".repeat(LONGEST_TEXT)));
        }
        while let Some(message) = waiting.take() {
            assert!(message.encoded_len() <= MOST_BYTES + 2 * LONGEST_TEXT);
            assert!(message.records.iter().all(|r| r.what.len() <= LONGEST_TEXT && r.truncated == ["what"]));
        }
    }

    #[test]
    fn what_did_not_arrive_is_told_again_or_counted() {
        let mut waiting = waiting();
        for n in 0..3 * MOST_OF_A_GROUP {
            waiting.add(&record(if n % 3 == 0 { "a" } else { "b" }, "x"));
        }
        let message = waiting.take().unwrap();
        let (records, all) = (message.records.len(), told_of(&message));
        assert_eq!(all, u64::from(3 * MOST_OF_A_GROUP));
        waiting.add(&record("b", "x"));
        waiting.give_back(message);
        let again = waiting.take().unwrap();
        assert_eq!((again.records.len(), told_of(&again)), (records, all + 1));
        // Into one that is full.
        waiting.most_groups = 1;
        waiting.add(&record("c", "x"));
        waiting.give_back(again);
        let last = waiting.take().unwrap();
        assert_eq!((last.dropped, told_of(&last)), (all + 1, all + 2));
    }

    #[test]
    fn what_nobody_collects_is_not_kept() {
        let ledger = Ledger::of_nobody();
        ledger.write(&wardkeep_proto::error::Bug::because("x"));
        assert!(ledger.0.lock().unwrap().records.is_empty());
    }
}
