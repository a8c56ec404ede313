//! Slots of wards, as reports name them.

use std::ops::Range;

/// Slots of a node's wards, in the order in which they were put in, as runs of consecutive ones: while all wards of a
/// node pulse, that is one run, however many they are.
///
/// ```
/// use wardkeep_steward::Slots;
///
/// let slots: Slots = [0, 1, 2, 7, 8].into_iter().collect();
/// assert_eq!(slots.runs(), [0..3, 7..9]);
/// assert_eq!(slots.iter().count(), 5);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots(Vec<Range<u32>>);

impl Slots {
    /// One more. `u32::MAX` is the slot of no ward, and left out.
    #[inline]
    pub fn push(&mut self, slot: u32) {
        self.push_run(slot..slot.saturating_add(1));
    }

    /// Some more, one after the other.
    #[inline]
    pub fn push_run(&mut self, run: Range<u32>) {
        match self.0.last_mut() {
            _ if run.is_empty() => {}
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.0.push(run),
        }
    }

    /// None of these is empty, and none goes on where the one before it ends.
    pub fn runs(&self) -> &[Range<u32>] {
        &self.0
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().cloned().flatten()
    }
}

impl FromIterator<u32> for Slots {
    fn from_iter<I: IntoIterator<Item = u32>>(slots: I) -> Self {
        let mut all = Self::default();
        slots.into_iter().for_each(|slot| all.push(slot));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_put_in_comes_out_in_order(slots in prop::collection::vec(0..9_u32, 0..20)) {
            let all: Slots = slots.iter().copied().collect();
            prop_assert_eq!(all.iter().collect::<Vec<_>>(), slots);
            prop_assert!(all.runs().iter().all(|run| !run.is_empty()));
            prop_assert!(all.runs().windows(2).all(|pair| pair[0].end != pair[1].start));
        }
    }

    #[test]
    fn the_slot_that_no_ward_has_is_left_out() {
        let slots: Slots = [u32::MAX - 1, u32::MAX, 0].into_iter().collect();
        assert_eq!(slots.iter().collect::<Vec<_>>(), [u32::MAX - 1, 0]);
    }
}
