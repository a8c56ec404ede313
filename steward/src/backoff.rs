//! The pause before the next restart: see [`Backoff`]. Jitter is a pure function of the seed and of
//! who waits, so that a run can be repeated exactly.

use std::time::Duration;

use crate::{
    alarms::{NEVER, Nanos, nanos},
    types::{Backoff, Time},
};

/// How many failures in a row there were, and when the last restart was due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Streak {
    failures: u32,
    /// [`NEVER`] if there was none.
    last: Nanos,
}

impl Default for Streak {
    fn default() -> Self {
        Self { failures: 0, last: NEVER }
    }
}

impl Streak {
    /// The pause before a restart decided at `now`; `salt` tells apart who waits.
    pub(crate) fn next(&mut self, backoff: &Backoff, now: Time, seed: u64, salt: &str) -> Duration {
        self.forget(backoff, now);
        let full = match self.failures {
            0 => Duration::ZERO,
            n => backoff.first.saturating_mul(1_u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(backoff.max),
        };
        let delay = jitter(full, mix(seed ^ hash(salt) ^ u64::from(self.failures)));
        self.failures = self.failures.saturating_add(1);
        self.last = nanos(now.saturating_add(delay));
        delay
    }

    /// How many failures there were in a row, and when the last restart was due.
    pub(crate) fn row(&self) -> Option<(u32, Time)> {
        (self.last != NEVER).then(|| (self.failures, Duration::from_nanos(self.last)))
    }

    fn forget(&mut self, backoff: &Backoff, now: Time) {
        if self.last == NEVER || now.saturating_sub(Duration::from_nanos(self.last)) > backoff.reset {
            self.failures = 0;
        }
    }

    /// A restart that a steward before this one decided.
    pub(crate) fn recall(&mut self, backoff: &Backoff, at: Time) {
        self.forget(backoff, at);
        self.failures = self.failures.saturating_add(1);
        self.last = nanos(at);
    }
}

/// Between half and the whole of `full`.
fn jitter(full: Duration, random: u64) -> Duration {
    let half = full / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
    full.saturating_sub(Duration::from_nanos(if nanos == 0 { 0 } else { random % nanos }))
}

/// One step of splitmix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a: the same on every machine and in every build.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Duration::from_secs(100);

    #[test]
    fn the_first_is_immediate_and_the_next_double_up_to_the_limit() {
        let backoff =
            Backoff { first: Duration::from_secs(1), max: Duration::from_secs(6), ..Backoff::default() };
        let mut streak = Streak::default();
        assert_eq!(streak.next(&backoff, NOW, 7, "n/w"), Duration::ZERO);
        for full in [1, 2, 4, 6, 6, 6].map(Duration::from_secs) {
            let delay = streak.next(&backoff, NOW, 7, "n/w");
            assert!(delay >= full / 2 && delay <= full, "{delay:?} of {full:?}");
        }
    }

    #[test]
    fn a_quiet_period_forgets() {
        let backoff = Backoff::default();
        let mut streak = Streak::default();
        streak.next(&backoff, NOW, 0, "w");
        assert!(streak.next(&backoff, NOW, 0, "w") > Duration::ZERO);
        assert_eq!(streak.next(&backoff, NOW + backoff.reset * 2, 0, "w"), Duration::ZERO);
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses_and_two_wards_differ() {
        let pauses = |seed, salt| {
            let mut streak = Streak::default();
            [(); 8].map(|()| streak.next(&Backoff::default(), NOW, seed, salt))
        };
        assert_eq!(pauses(1, "a"), pauses(1, "a"));
        assert_ne!(pauses(1, "a"), pauses(1, "b"));
        assert_ne!(pauses(1, "a"), pauses(2, "a"));
    }

    #[test]
    fn absurd_settings_neither_panic_nor_overflow() {
        let backoff = Backoff { first: Duration::MAX, max: Duration::MAX, reset: Duration::MAX };
        let mut streak = Streak::default();
        for _ in 0..100 {
            streak.next(&backoff, NOW, 0, "w");
        }
    }
}
