//! What happened, in order: a bounded buffer, and a channel for those who follow.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::broadcast;
use wardkeep_proto::v1;

/// Events kept for those who ask later; the oldest are dropped.
const KEPT: usize = 10_000;
/// Events a follower may lag behind; a slower one misses some, and sees it by the sequence.
const LAG: usize = 1_024;

pub(super) struct EventLog {
    kept: VecDeque<Arc<v1::Event>>,
    followers: broadcast::Sender<Arc<v1::Event>>,
    last: u64,
}

/// What a reader gets: what is there, and what is to come.
pub(super) struct Reading {
    pub(super) past: Vec<Arc<v1::Event>>,
    pub(super) future: broadcast::Receiver<Arc<v1::Event>>,
}

impl EventLog {
    pub(super) fn new() -> Self {
        Self { kept: VecDeque::new(), followers: broadcast::Sender::new(LAG), last: 0 }
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn push(&mut self, mut event: v1::Event) {
        self.last += 1;
        event.sequence = self.last;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        let event = Arc::new(event);
        self.kept.push_back(event.clone());
        // Without followers there is nobody to tell.
        let _ = self.followers.send(event);
    }

    /// Events after `after`, the newest `limit` of them (0: all).
    pub(super) fn read(&self, after: u64, limit: usize) -> Reading {
        let newer = self.kept.iter().filter(|event| event.sequence > after);
        let skip = if limit == 0 { 0 } else { newer.clone().count().saturating_sub(limit) };
        Reading { past: newer.skip(skip).cloned().collect(), future: self.followers.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_read_in_order() {
        let mut log = EventLog::new();
        for _ in 0..KEPT + 5 {
            log.push(v1::Event::default());
        }
        let all = log.read(0, 0).past;
        assert_eq!((all.len(), all[0].sequence), (KEPT, 6));
        let newest: Vec<_> = log.read(0, 2).past.iter().map(|e| e.sequence).collect();
        assert_eq!(newest, [KEPT as u64 + 4, KEPT as u64 + 5]);
        assert!(log.read(log.last(), 0).past.is_empty());
    }
}
