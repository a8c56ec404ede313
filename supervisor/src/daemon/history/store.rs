//! What an engine has to do to keep the history.

use std::sync::Arc;

use wardkeep_proto::v1;

use super::intent::Intent;

/// Milliseconds since 1970, UTC.
pub(in crate::daemon) type Millis = i64;

/// A ward that rests, by node and name.
pub(in crate::daemon) type HoldKey = (String, String);

/// Keeps the history. Everything blocks; all calls come from one thread.
pub(super) trait Store: Send {
    /// Writes all of this or nothing; when it returns without an error it is durable. The same
    /// write may come again after an error.
    fn commit(&mut self, writes: &[Arc<Write>]) -> Result<(), StoreError>;

    /// What a supervisor that starts has to know. Decisions: those since `since`.
    fn state(&mut self, since: Millis) -> Result<State, StoreError>;

    /// The sequence after which the events asked for begin.
    fn locate(&mut self, filter: &Filter) -> Result<u64, StoreError>;

    /// The first `limit` events after `after` that fit the filter's place, in order.
    fn page(&mut self, filter: &Filter, after: u64, limit: usize) -> Result<Vec<v1::Event>, StoreError>;

    /// Drops a little of what is too old or too much, never the newest event. Returns whether there
    /// is more to drop.
    fn trim(&mut self, retention: &Retention, now: Millis) -> Result<bool, StoreError>;

    /// Bytes in use.
    fn used(&mut self) -> Result<u64, StoreError>;
}

/// What is written in one go, before anything of it is acted upon.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Write {
    /// With their sequence.
    pub(in crate::daemon) events: Vec<Arc<v1::Event>>,
    /// In this order.
    pub(in crate::daemon) changes: Vec<Change>,
}

impl Write {
    pub(in crate::daemon) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.changes.is_empty()
    }
}

/// A change of what is remembered beside events.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::daemon) enum Change {
    /// Something was decided; one of the same ID is replaced.
    Open(Intent),
    /// Its effect was seen, or it was given up.
    Close { id: u64, at: Millis, outcome: String },
    /// A ward rests until an operator starts it.
    Hold { ward: HoldKey, quarantined: bool },
    /// It rests no longer.
    Release { ward: HoldKey },
}

/// What a supervisor that starts has to know.
#[derive(Debug, Default)]
pub(in crate::daemon) struct State {
    /// Of the newest event; 0: none.
    pub(in crate::daemon) last_sequence: u64,
    /// The highest ID of an intent, open or closed.
    pub(in crate::daemon) last_intent: u64,
    /// Open ones.
    pub(in crate::daemon) intents: Vec<Intent>,
    /// Wards that rest, and whether they are quarantined.
    pub(in crate::daemon) holds: Vec<(HoldKey, bool)>,
    /// Restarts, ends of groups, operators' actions and arrivals of nodes, oldest first.
    pub(in crate::daemon) decisions: Vec<v1::Event>,
}

/// The kinds of [`State::decisions`].
pub(super) const DECISIONS: [v1::EventKind; 7] = [
    v1::EventKind::NodeRestart,
    v1::EventKind::WardRestart,
    v1::EventKind::GroupGaveUp,
    v1::EventKind::GroupRestart,
    v1::EventKind::GroupShutDown,
    v1::EventKind::Operator,
    v1::EventKind::NodeAttended,
];
/// So many of them at most, the newest.
pub(super) const MOST_DECISIONS: usize = 20_000;

/// Which events are asked for.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Filter {
    /// Only those of a higher sequence.
    pub(in crate::daemon) after: u64,
    /// Only from the first on that is no older.
    pub(in crate::daemon) since: Option<Millis>,
    /// At most so many, the newest. 0: no limit.
    pub(in crate::daemon) newest: usize,
    /// Only what concerns this node (empty: any) ...
    pub(in crate::daemon) node: String,
    /// ... and this ward of it (empty: all of it) ...
    pub(in crate::daemon) ward: String,
    /// ... which is in these groups, innermost first.
    pub(in crate::daemon) groups: Vec<String>,
}

/// What is told of a group concerns all in it.
pub(super) const OF_GROUPS: [v1::EventKind; 3] =
    [v1::EventKind::GroupGaveUp, v1::EventKind::GroupRestart, v1::EventKind::GroupShutDown];

impl Filter {
    /// Whether an event fits the place asked for. (Engines may ask an index instead.)
    pub(in crate::daemon) fn fits(&self, event: &v1::Event) -> bool {
        if self.node.is_empty() || event.node.is_empty() {
            return true;
        }
        if self.ward.is_empty() {
            return event.node == self.node;
        }
        let own = event.node == self.node && (event.ward == self.ward || event.ward.is_empty());
        own || (OF_GROUPS.contains(&event.kind()) && self.groups.contains(&event.group))
    }
}

/// How long, and how much, is kept.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct Retention {
    pub(in crate::daemon) max_age: std::time::Duration,
    pub(in crate::daemon) max_bytes: u64,
}

/// Why a store cannot do what it is asked. One line, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct StoreError(pub(super) String);

/// When an event was, if it says so.
pub(super) fn millis(event: &v1::Event) -> Millis {
    event.at.map_or(0, |at| at.seconds.saturating_mul(1_000).saturating_add(i64::from(at.nanos) / 1_000_000))
}
