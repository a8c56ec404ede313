//! When wards want to be looked at: one alarm per ward, and none of them is moved when a deadline moves
//! further away, as it does with every pulse. An alarm that goes off too early is set anew then.
//!
//! What is due soon is in a heap, what is due later in unsorted buckets, so that setting an alarm costs
//! the same however many there are.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    mem,
    time::Duration,
};

use crate::types::Time;

/// Nanoseconds since the origin; what lies beyond (584 years) counts as then.
pub(crate) type Nanos = u64;

/// No alarm is set.
pub(crate) const NEVER: Nanos = Nanos::MAX;

pub(crate) fn nanos(at: Time) -> Nanos {
    Nanos::try_from(at.as_nanos()).unwrap_or(NEVER - 1).min(NEVER - 1)
}

/// About 67 ms.
const BUCKET: u32 = 26;
const BUCKET_SPAN: Nanos = 1 << BUCKET;

/// A ward's place in the table, and when its alarm goes off.
type Entry = (Nanos, u32);

#[derive(Debug, Default)]
pub(crate) struct Alarms {
    /// All before the bucket `next`.
    near: BinaryHeap<Reverse<Entry>>,
    next: u64,
    far: BTreeMap<u64, Bucket>,
    many: usize,
}

#[derive(Debug)]
struct Bucket {
    first: Nanos,
    /// Nanoseconds since its beginning, and the ward.
    entries: Vec<(u32, u32)>,
}

impl Bucket {
    fn all(self, number: u64) -> impl Iterator<Item = Entry> {
        self.entries.into_iter().map(move |(after, ward)| ((number << BUCKET) + Nanos::from(after), ward))
    }
}

impl Alarms {
    pub(crate) fn add(&mut self, at: Nanos, ward: u32) {
        self.many += 1;
        let number = at >> BUCKET;
        if number < self.next {
            return self.near.push(Reverse((at, ward)));
        }
        let bucket = self.far.entry(number).or_insert(Bucket { first: at, entries: Vec::new() });
        bucket.first = bucket.first.min(at);
        bucket.entries.push(((at & (BUCKET_SPAN - 1)) as u32, ward));
    }

    /// When the first goes off.
    pub(crate) fn first(&self) -> Option<Time> {
        let near = self.near.peek().map(|Reverse((at, _))| *at);
        near.or_else(|| self.far.first_key_value().map(|(_, bucket)| bucket.first)).map(Duration::from_nanos)
    }

    /// One that goes off by `now`, earliest first.
    pub(crate) fn next_due(&mut self, now: Nanos) -> Option<Entry> {
        while self.near.is_empty() {
            self.far.first_key_value().filter(|(_, bucket)| bucket.first <= now)?;
            let (number, bucket) = self.far.pop_first()?;
            self.next = number + 1;
            self.near = bucket.all(number).map(Reverse).collect();
        }
        let Reverse((at, _)) = self.near.peek()?;
        if *at > now {
            return None;
        }
        self.many -= 1;
        self.near.pop().map(|Reverse(entry)| entry)
    }

    /// So many are kept, those that were superseded included.
    pub(crate) fn len(&self) -> usize {
        self.many
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(Entry) -> bool) {
        let all = mem::take(self);
        self.next = all.next;
        let far = all.far.into_iter().flat_map(|(number, bucket)| bucket.all(number));
        for (at, ward) in all.near.into_iter().map(|Reverse(entry)| entry).chain(far) {
            if keep((at, ward)) {
                self.add(at, ward);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn due(alarms: &mut Alarms, now: Nanos) -> Vec<Entry> {
        std::iter::from_fn(|| alarms.next_due(now)).collect()
    }

    #[test]
    fn they_go_off_in_order_however_far_they_were_when_they_were_set() {
        let mut alarms = Alarms::default();
        for (ward, at) in [7, 3, 5, 1, 5, 900].into_iter().enumerate() {
            alarms.add(at * SECOND, ward as u32);
        }
        assert_eq!(alarms.first(), Some(Duration::from_secs(1)));
        assert_eq!(due(&mut alarms, SECOND / 2), []);
        assert_eq!(due(&mut alarms, 4 * SECOND), [(SECOND, 3), (3 * SECOND, 1)]);
        alarms.add(2 * SECOND, 6);
        assert_eq!(alarms.first(), Some(Duration::from_secs(2)));
        assert_eq!(
            due(&mut alarms, 10 * SECOND),
            [(2 * SECOND, 6), (5 * SECOND, 2), (5 * SECOND, 4), (7 * SECOND, 0)]
        );
        assert_eq!((alarms.len(), alarms.first()), (1, Some(Duration::from_secs(900))));
    }

    #[test]
    fn one_within_a_bucket_is_not_due_before_its_time() {
        let mut alarms = Alarms::default();
        alarms.add(SECOND, 0);
        alarms.add(SECOND + 1_000, 1);
        assert_eq!(due(&mut alarms, SECOND), [(SECOND, 0)]);
        assert_eq!(alarms.first(), Some(Duration::from_nanos(SECOND + 1_000)));
    }

    #[test]
    fn what_was_superseded_can_be_cleared_away() {
        let mut alarms = Alarms::default();
        (0..100).for_each(|ward| alarms.add(u64::from(ward) * SECOND, ward));
        alarms.retain(|(_, ward)| ward % 2 == 1);
        assert_eq!(alarms.len(), 50);
        assert_eq!(alarms.first(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_end_of_time_is_a_time() {
        assert_eq!(nanos(Duration::MAX), NEVER - 1);
    }
}
