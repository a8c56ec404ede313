//! Errors that arose on this node: each is logged once, whole, and kept for the supervisor, so that
//! its ID can be looked up from anywhere.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use prost::Message as _;
use tokio::sync::mpsc;
use wardkeep_proto::{Error, v1};

use crate::text::cut;

/// Records that may wait for the supervisor; further ones are dropped, and counted.
const QUEUE: usize = 1_024;
/// Longest text of a record: what is longer is in the node's own log.
const LONGEST_TEXT: usize = 16 * 1024;
/// A message to the supervisor holds no more than this.
const MOST_RECORDS: usize = 64;
const MOST_BYTES: usize = 1024 * 1024;

/// Where errors are written down. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    queue: mpsc::Sender<v1::Error>,
    waiting: Arc<Mutex<mpsc::Receiver<v1::Error>>>,
    dropped: Arc<AtomicU64>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self::with_room(QUEUE)
    }

    /// For a process whose errors nobody collects: they are logged.
    pub(crate) fn of_nobody() -> Self {
        Self::with_room(1)
    }

    fn with_room(room: usize) -> Self {
        let (queue, waiting) = mpsc::channel(room);
        Self { queue, waiting: Arc::new(Mutex::new(waiting)), dropped: Arc::default() }
    }

    /// Logs the error and keeps its record.
    pub(crate) fn write(&self, error: &Error) {
        error.log();
        let mut record = error.as_proto().clone();
        if cut(&mut record.what, LONGEST_TEXT) {
            record.truncated.push("what".to_owned());
        }
        for cause in &mut record.causes {
            cut(&mut cause.what, LONGEST_TEXT);
        }
        if self.queue.try_send(record).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// The next message to the supervisor; `None` when there is nothing to tell.
    pub(crate) fn take(&self) -> Option<v1::ErrorRecords> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut message = v1::ErrorRecords::default();
        let mut bytes = 0;
        while message.records.len() < MOST_RECORDS && bytes < MOST_BYTES {
            let Ok(record) = waiting.try_recv() else { break };
            bytes += record.encoded_len();
            message.records.push(record);
        }
        message.dropped = self.dropped.swap(0, Relaxed);
        (!message.records.is_empty() || message.dropped > 0).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use wardkeep_proto::error::Bug;

    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_and_long_texts_are_cut() {
        let ledger = Ledger::new();
        for _ in 0..QUEUE + 5 {
            ledger.write(&Bug::because("é".repeat(LONGEST_TEXT)));
        }
        let first = ledger.take().unwrap();
        assert_eq!((first.records.len(), first.dropped), (MOST_RECORDS, 5));
        assert!(first.records[0].what.len() <= LONGEST_TEXT);
        assert_eq!(first.records[0].truncated, ["what"]);
        let mut rest = 0;
        while let Some(message) = ledger.take() {
            assert!(message.encoded_len() <= MOST_BYTES + 2 * LONGEST_TEXT);
            rest += message.records.len();
        }
        assert_eq!(rest, QUEUE - MOST_RECORDS);
    }
}
