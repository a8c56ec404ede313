//! A history in memory, for a supervisor without a data directory: the newest events, and nothing
//! survives the process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use prost::Message as _;
use wardkeep_proto::v1;

use super::{
    intent::Intent,
    store::{Change, DECISIONS, Filter, HoldKey, Millis, Retention, State, Store, StoreError, Write, millis},
};

/// Events kept; the oldest are dropped.
const KEPT: usize = 10_000;
/// Dropped in one step.
const STEP: usize = 500;

#[derive(Default)]
pub(super) struct MemoryStore {
    events: VecDeque<Arc<v1::Event>>,
    bytes: u64,
    intents: BTreeMap<u64, Intent>,
    last_intent: u64,
    holds: BTreeMap<HoldKey, bool>,
}

impl MemoryStore {
    fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes = self.bytes.saturating_sub(event.encoded_len() as u64);
        }
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Open(intent) => {
                self.last_intent = self.last_intent.max(intent.id);
                self.intents.insert(intent.id, intent.clone());
            }
            Change::Close { id, .. } => drop(self.intents.remove(id)),
            Change::Hold { ward, quarantined } => drop(self.holds.insert(ward.clone(), *quarantined)),
            Change::Release { ward } => drop(self.holds.remove(ward)),
        }
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, writes: &[Arc<Write>]) -> Result<(), StoreError> {
        for write in writes {
            write.changes.iter().for_each(|change| self.change(change));
            for event in &write.events {
                if self.events.back().is_some_and(|last| last.sequence >= event.sequence) {
                    continue;
                }
                self.bytes += event.encoded_len() as u64;
                self.events.push_back(event.clone());
                if self.events.len() > KEPT {
                    self.drop_oldest();
                }
            }
        }
        Ok(())
    }

    fn state(&mut self, since: Millis) -> Result<State, StoreError> {
        let decision = |event: &&Arc<v1::Event>| millis(event) >= since && DECISIONS.contains(&event.kind());
        Ok(State {
            last_sequence: self.events.back().map_or(0, |event| event.sequence),
            last_intent: self.last_intent,
            intents: self.intents.values().cloned().collect(),
            holds: self.holds.iter().map(|(ward, quarantined)| (ward.clone(), *quarantined)).collect(),
            decisions: self.events.iter().filter(decision).map(|event| v1::Event::clone(event)).collect(),
        })
    }

    fn locate(&mut self, filter: &Filter) -> Result<u64, StoreError> {
        let first = match filter.since {
            Some(since) => self.events.iter().find(|event| millis(event) >= since).map(|e| e.sequence),
            None => Some(0),
        };
        // Nothing is as young: what comes after the newest.
        let first = first.unwrap_or_else(|| self.events.back().map_or(0, |e| e.sequence + 1));
        let after = filter.after.max(first.saturating_sub(1));
        if filter.newest == 0 {
            return Ok(after);
        }
        let fitting = self.events.iter().rev().filter(|e| e.sequence > after && filter.fits(e));
        Ok(fitting.take(filter.newest).last().map_or(after, |e| e.sequence - 1))
    }

    fn page(&mut self, filter: &Filter, after: u64, limit: usize) -> Result<Vec<v1::Event>, StoreError> {
        let from = self.events.partition_point(|event| event.sequence <= after);
        let fitting = self.events.range(from..).filter(|event| filter.fits(event));
        Ok(fitting.take(limit).map(|event| v1::Event::clone(event)).collect())
    }

    fn trim(&mut self, retention: &Retention, now: Millis) -> Result<bool, StoreError> {
        let age = i64::try_from(retention.max_age.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(age);
        for _ in 0..STEP {
            let old = self.events.front().is_some_and(|event| millis(event) < oldest);
            if self.events.len() < 2 || !(old || self.bytes > retention.max_bytes) {
                return Ok(false);
            }
            self.drop_oldest();
        }
        Ok(true)
    }

    fn used(&mut self) -> Result<u64, StoreError> {
        Ok(self.bytes)
    }
}
