//! What a ward remembers of calls, so that none is carried out twice: those that run, and for a while those
//! that have ended well, with their replies. No I/O, no clock.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// From a call's end on.
    pub(crate) window: Duration,
    /// Calls, those that run included.
    pub(crate) entries: usize,
    /// Of all replies together.
    pub(crate) bytes: usize,
}

/// A call's ID and its method.
pub(crate) type Key = (Uuid, Arc<str>);

/// See the [module](self). `R` stands for a call that runs, `P` for a reply.
#[derive(Debug)]
pub(crate) struct Memory<R, P> {
    limits: Limits,
    entries: HashMap<Key, Entry<R, P>>,
    /// Those that have ended, oldest first.
    ended: VecDeque<(Instant, Key)>,
    /// Those of them whose reply is kept.
    kept: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry<R, P> {
    /// Of the request.
    hash: u64,
    state: State<R, P>,
}

#[derive(Debug)]
enum State<R, P> {
    Running(R),
    Ended { reply: Option<P>, bytes: usize },
}

/// What is known of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found<R, P> {
    /// Nothing: it may begin.
    Nothing,
    Running(R),
    /// It ended so.
    Ended(P),
    /// It ended well, but its reply was too large, or there was no room for it.
    ReplyGone,
    /// Its ID was used for another request.
    Other,
    /// Nothing, and no more can be remembered.
    NoRoom,
}

impl<R: Clone, P: Clone> Memory<R, P> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, entries: HashMap::new(), ended: VecDeque::new(), kept: VecDeque::new(), bytes: 0 }
    }

    /// What is known of a call with this request.
    pub(crate) fn find(&mut self, key: &Key, hash: u64, now: Instant) -> Found<R, P> {
        while let Some((at, oldest)) = self.ended.front()
            && now.saturating_duration_since(*at) >= self.limits.window
        {
            let oldest = oldest.clone();
            self.ended.pop_front();
            self.forget(&oldest);
        }
        match self.entries.get(key) {
            Some(entry) if entry.hash != hash => Found::Other,
            Some(Entry { state: State::Running(run), .. }) => Found::Running(run.clone()),
            Some(Entry { state: State::Ended { reply: Some(reply), .. }, .. }) => Found::Ended(reply.clone()),
            Some(_) => Found::ReplyGone,
            None if self.entries.len() < self.limits.entries => Found::Nothing,
            None => match self.ended.pop_front() {
                Some((_, oldest)) => {
                    self.forget(&oldest);
                    Found::Nothing
                }
                None => Found::NoRoom,
            },
        }
    }

    /// It runs.
    pub(crate) fn begin(&mut self, key: Key, hash: u64, run: R) {
        self.entries.insert(key, Entry { hash, state: State::Running(run) });
    }

    /// It ended well, with a reply of so many bytes.
    pub(crate) fn keep(&mut self, key: &Key, reply: P, bytes: usize, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let fits = bytes <= self.limits.bytes;
        entry.state = State::Ended { reply: fits.then_some(reply), bytes: if fits { bytes } else { 0 } };
        self.ended.push_back((now, key.clone()));
        if fits {
            self.kept.push_back(key.clone());
            self.bytes += bytes;
        }
        while self.bytes > self.limits.bytes {
            let Some(oldest) = self.kept.pop_front() else { break };
            if let Some(Entry { state: State::Ended { reply, bytes }, .. }) = self.entries.get_mut(&oldest) {
                *reply = None;
                self.bytes -= std::mem::take(bytes);
            }
        }
    }

    /// It did not end well: it may be tried again. One that has ended is not forgotten so.
    pub(crate) fn give_up(&mut self, key: &Key) {
        if let Some(Entry { state: State::Running(_), .. }) = self.entries.get(key) {
            self.entries.remove(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(Entry { state: State::Ended { bytes, .. }, .. }) = self.entries.remove(key) {
            self.bytes -= bytes;
        }
        // Replies end in the order in which their calls do.
        if self.kept.front() == Some(key) {
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(n: u8) -> Key {
        (Uuid::from_bytes([n; 16]), "/a.B/C".into())
    }

    fn memory(entries: usize, bytes: usize) -> Memory<u8, u8> {
        Memory::new(Limits { window: 10 * SECOND, entries, bytes })
    }

    #[test]
    fn a_call_runs_once_and_is_remembered_for_its_window() {
        let (mut memory, start) = (memory(9, 99), Instant::now());
        assert_eq!(memory.find(&key(1), 7, start), Found::Nothing);
        memory.begin(key(1), 7, 1);
        assert_eq!(memory.find(&key(1), 7, start), Found::Running(1));
        assert_eq!(memory.find(&key(1), 8, start), Found::Other);
        assert_eq!(memory.find(&(key(1).0, "/a.B/D".into()), 8, start), Found::Nothing);
        memory.keep(&key(1), 42, 3, start + SECOND);
        assert_eq!(memory.find(&key(1), 7, start + 10 * SECOND), Found::Ended(42));
        assert_eq!(memory.find(&key(1), 8, start + 10 * SECOND), Found::Other);
        assert_eq!(memory.find(&key(1), 8, start + 11 * SECOND), Found::Nothing);
        assert_eq!((memory.entries.len(), memory.bytes, memory.kept.len()), (0, 0, 0));
    }

    #[test]
    fn what_failed_may_be_tried_again() {
        let (mut memory, now) = (memory(9, 99), Instant::now());
        memory.begin(key(1), 7, 1);
        memory.give_up(&key(1));
        assert_eq!(memory.find(&key(1), 8, now), Found::Nothing);
    }

    #[test]
    fn the_oldest_makes_room_and_what_runs_is_never_forgotten() {
        let (mut memory, now) = (memory(2, 5), Instant::now());
        for n in 1..=2 {
            memory.begin(key(n), 7, n);
        }
        assert_eq!(memory.find(&key(3), 7, now), Found::NoRoom);
        memory.keep(&key(1), 1, 4, now);
        memory.keep(&key(2), 2, 4, now);
        assert_eq!(memory.find(&key(1), 7, now), Found::ReplyGone, "no room for both replies");
        assert_eq!(memory.find(&key(2), 7, now), Found::Ended(2));
        assert_eq!(memory.find(&key(3), 7, now), Found::Nothing);
        memory.begin(key(3), 7, 3);
        assert_eq!(memory.find(&key(2), 7, now), Found::Ended(2), "the first made room");
        memory.keep(&key(3), 3, 6, now);
        assert_eq!(memory.find(&key(3), 7, now), Found::ReplyGone, "larger than all that is kept");
        assert_eq!(memory.find(&key(2), 7, now), Found::Ended(2));
    }

    proptest! {
        #[test]
        fn no_more_is_kept_than_allowed_whatever_happens(
            steps in prop::collection::vec((0u8..12, 0u64..2, 0usize..8, 0u64..4), 0..200),
        ) {
            let (mut memory, mut now) = (memory(4, 10), Instant::now());
            for (n, hash, bytes, seconds) in steps {
                now += seconds as u32 * SECOND;
                match memory.find(&key(n), hash, now) {
                    Found::Nothing => memory.begin(key(n), hash, n),
                    Found::Running(_) if bytes == 7 => memory.give_up(&key(n)),
                    Found::Running(_) => memory.keep(&key(n), n, bytes * 2, now),
                    _ => {}
                }
                prop_assert!(memory.entries.len() <= 4 && memory.bytes <= 10);
                prop_assert!(memory.ended.len() <= 4 && memory.kept.len() <= memory.ended.len());
                let kept: usize = memory.entries.values().map(|entry| match &entry.state {
                    State::Ended { bytes, .. } => *bytes,
                    State::Running(_) => 0,
                }).sum();
                prop_assert_eq!(kept, memory.bytes);
            }
        }
    }
}
