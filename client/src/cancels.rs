//! How many calls may be cancelled on a connection. Pure.
//!
//! A cancel is a stream reset, and servers take many of them for an attack. The usual limit is on streams
//! that were reset before the server got round to them, 20 at a time. How many those are can be known from
//! here: a server accepts streams in order, so a reply to a request that was sent after a reset shows that
//! the stream that was reset has been accepted.

use std::{collections::VecDeque, time::Duration};

/// Resets that may be on their way, half of what servers bear by default.
const UNSEEN: usize = 10;

/// A request that is so old has been accepted by any server that is alive.
pub(crate) const ACCEPTED: Duration = Duration::from_millis(500);

/// What has been cancelled on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Cancels {
    per_second: u32,
    /// The server is one of ours: it knows cancels for what they are.
    lifted: bool,
    started: u64,
    /// For each reset that the server may not have seen yet: the requests started before it.
    unseen: VecDeque<u64>,
    tokens: f64,
    filled_at: Duration,
    /// Since the connection was opened.
    pub(crate) total: u64,
}

impl Cancels {
    pub(crate) fn new(per_second: u32) -> Self {
        let tokens = f64::from(per_second);
        let (unseen, filled_at) = (VecDeque::with_capacity(UNSEEN), Duration::ZERO);
        Self { per_second, lifted: false, started: 0, unseen, tokens, filled_at, total: 0 }
    }

    /// A request is sent; its number is for [`Cancels::answered`].
    pub(crate) fn started(&mut self) -> u64 {
        self.started += 1;
        self.started
    }

    /// The head of the reply to this request has come. `ours`: from one of our nodes.
    pub(crate) fn answered(&mut self, number: u64, ours: bool) {
        self.lifted |= ours;
        while self.unseen.front().is_some_and(|before| *before < number) {
            self.unseen.pop_front();
        }
    }

    /// Whether a request sent so long ago may be cancelled now; if so, it will be.
    pub(crate) fn take(&mut self, now: Duration, age: Duration) -> bool {
        if !self.lifted {
            let passed = now.saturating_sub(self.filled_at).as_secs_f64();
            let most = f64::from(self.per_second);
            self.tokens = (self.tokens + passed * most).min(most);
            self.filled_at = now;
            let young = age < ACCEPTED;
            if self.tokens < 1.0 || young && self.unseen.len() >= UNSEEN {
                return false;
            }
            self.tokens -= 1.0;
            if young {
                self.unseen.push_back(self.started);
            }
        }
        self.total += 1;
        true
    }

    /// A new connection is used.
    pub(crate) fn renewed(&mut self) {
        self.total = 0;
        self.unseen.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn only_so_many_resets_are_on_their_way_and_an_answer_to_a_later_request_settles_them() {
        let mut cancels = Cancels::new(100);
        let early = cancels.started();
        assert_eq!((0..20).filter(|_| cancels.take(NOW, Duration::ZERO)).count(), UNSEEN);
        cancels.answered(early, false);
        assert!(!cancels.take(NOW, Duration::ZERO), "a request from before the resets shows nothing");
        assert!(cancels.take(NOW, ACCEPTED), "what is old has been seen");
        let later = cancels.started();
        cancels.answered(later, false);
        assert!(cancels.take(NOW, Duration::ZERO));
    }

    #[test]
    fn only_so_many_in_a_second() {
        let mut cancels = Cancels::new(5);
        let mut cancel = |at| {
            let number = cancels.started();
            let taken = cancels.take(at, Duration::ZERO);
            cancels.answered(number + 1, false);
            taken
        };
        assert_eq!((0..20).filter(|_| cancel(NOW)).count(), 5);
        assert_eq!((0..20).filter(|_| cancel(NOW * 2)).count(), 5);
    }

    #[test]
    fn our_own_nodes_bear_any_number() {
        let mut cancels = Cancels::new(1);
        let number = cancels.started();
        cancels.answered(number, true);
        assert!((0..1_000).all(|_| cancels.take(NOW, Duration::ZERO)));
        assert_eq!(cancels.total, 1_000);
    }

    proptest! {
        #[test]
        fn a_stranger_never_has_more_than_its_half_of_unseen_resets(
            moves in prop::collection::vec(0u8..3, 1..400),
        ) {
            let mut cancels = Cancels::new(1_000);
            // Requests in the order sent; true: reset. The server accepts them in that order.
            let (mut sent, mut accepted) = (Vec::new(), 0usize);
            for step in moves {
                match step {
                    0 => { cancels.started(); sent.push(false); }
                    1 if sent.iter().any(|reset| !reset) && cancels.take(NOW, Duration::ZERO) => {
                        let i = sent.iter().rposition(|reset| !reset).unwrap();
                        sent[i] = true;
                    }
                    // It answers the next one it finds alive.
                    2 => if let Some(i) = (accepted..sent.len()).find(|i| !sent[*i]) {
                        accepted = i + 1;
                        cancels.answered(i as u64 + 1, false);
                    },
                    _ => {}
                }
                let pending = sent.iter().skip(accepted).filter(|reset| **reset).count();
                prop_assert!(pending <= UNSEEN, "{pending} resets are pending");
            }
        }
    }
}
