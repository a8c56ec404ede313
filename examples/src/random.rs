//! Random numbers whose sequence is fixed for ever, so that a seed in a report can be used again.

/// A small generator: SplitMix64.
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, or nothing when there is none. The bias is 2^-40 for bounds met here.
    pub(crate) fn below(&mut self, bound: usize) -> Option<usize> {
        let bound = u64::try_from(bound).ok().filter(|&bound| bound > 0)?;
        usize::try_from(self.next() % bound).ok()
    }

    pub(crate) fn pick<'s, T>(&mut self, from: &'s [T]) -> Option<&'s T> {
        self.below(from.len()).and_then(|at| from.get(at))
    }
}
