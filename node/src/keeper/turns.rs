//! The time that wards have had: what the age of their work is counted in.
//!
//! It stands still while the runtime of the wards does, be that for a flood of calls, for other programs that want the
//! machine, or for a pause of it: nobody got a turn, so nobody is late. A runtime that stands still for good, or for most
//! of the time, is another matter, for then it may be a ward that holds it up, and that is found by its work. So no more
//! is forgiven than [`FORGIVEN`], and that comes back slowly.

use std::time::Duration;

/// At most so much in a row.
const FORGIVEN: Duration = Duration::from_secs(2);
/// It comes back with this share of the time that counts: of time as a whole, no more than a fifth is forgiven.
const SHARE: u32 = 4;

#[derive(Debug)]
pub(super) struct Turns {
    had: Duration,
    forgivable: Duration,
}

impl Default for Turns {
    fn default() -> Self {
        Self { had: Duration::ZERO, forgivable: FORGIVEN }
    }
}

impl Turns {
    /// So much time has passed; `ran` if the runtime did meanwhile.
    pub(super) fn pass(&mut self, time: Duration, ran: bool) {
        let forgiven = if ran { Duration::ZERO } else { time.min(self.forgivable) };
        let counts = time - forgiven;
        self.had += counts;
        self.forgivable = (self.forgivable - forgiven + counts / SHARE).min(FORGIVEN);
    }

    /// All that counts so far.
    pub(super) fn had(&self) -> Duration {
        self.had
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pass(turns: &mut Turns, times: u32, ran: bool) -> Duration {
        let before = turns.had();
        (0..times).for_each(|_| turns.pass(50 * MS, ran));
        turns.had() - before
    }

    #[test]
    fn a_runtime_that_stands_still_for_a_moment_makes_nobody_late() {
        let mut turns = Turns::default();
        assert_eq!(pass(&mut turns, 10, true), 500 * MS);
        assert_eq!(pass(&mut turns, 30, false), Duration::ZERO);
        assert_eq!(pass(&mut turns, 10, true), 500 * MS);
    }

    #[test]
    fn one_that_stands_still_for_good_makes_late_whoever_works() {
        let mut turns = Turns::default();
        assert_eq!(pass(&mut turns, 40, false), Duration::ZERO);
        assert!(pass(&mut turns, 40, false) >= 1_600 * MS);
    }

    #[test]
    fn one_that_runs_now_and_then_is_forgiven_no_more_than_a_fifth() {
        let mut turns = Turns::default();
        (0..1_000).for_each(|_| {
            pass(&mut turns, 1, true);
            pass(&mut turns, 9, false);
        });
        let (all, had) = (500_000 * MS, turns.had());
        assert!(all - had <= all / 5 + FORGIVEN, "{had:?} of {all:?}");
    }
}
