//! What is known of one member: how fast it answers, how busy it is, and whether to trust it now.
//!
//! Pure: the time is given, counted from any fixed moment.

use std::time::Duration;

/// After so long half of what was seen is forgotten.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// What a failure adds to the time a member seems to take: who fails fast is not fast.
const PENALTY: Duration = Duration::from_secs(1);
/// Failures in a row until a member is on probation.
const STRIKES: u32 = 3;
/// The first probation; each further one without a success between lasts twice as long.
pub(crate) const PROBATION: Duration = Duration::from_secs(2);
const LONGEST_PROBATION: Duration = Duration::from_secs(30);
/// A probe that has not been answered after so long no longer keeps others away.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// A member that returns gets its full share after so long.
const SLOW_START: Duration = Duration::from_secs(10);
/// A member that nobody has asked for so long is asked by the next call that can move on.
const STALE: Duration = Duration::from_secs(5);
/// A load that was told is believed for so long.
const LOAD_LASTS: Duration = Duration::from_secs(5);
/// Answers before the utilisation is estimated from their times.
const ENOUGH: u32 = 50;
/// How far one answer moves the running median.
const STRIDE: f64 = 1.02;

/// What an attempt tells of its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sample {
    /// It answered after so long.
    Answered(Duration),
    /// It failed after so long.
    Failed(Duration),
    /// It was cancelled after so long: its answer would have taken at least that.
    AtLeast(Duration),
    /// As `AtLeast`, and far longer than others took.
    Overdue(Duration),
    /// As `Failed`, because it has no room for more.
    Full(Duration),
    /// It could not be reached.
    Unreachable,
}

/// A loser took far longer than the winner: so many times its time, and so much more.
const OVERDUE: (u32, Duration) = (3, Duration::from_millis(10));

impl Sample {
    /// What an attempt tells that was cut off after so long. `won`: how long the one that won took, if one
    /// did; `to_blame`: the call's time ran out, and this attempt had enough of it.
    pub(crate) fn of_cut_off(took: Duration, won: Option<Duration>, to_blame: bool) -> Self {
        let (times, more) = OVERDUE;
        match won {
            Some(won) if took >= won.saturating_mul(times) && took >= won + more => Self::Overdue(took),
            None if to_blame => Self::Failed(took),
            _ => Self::AtLeast(took),
        }
    }
}

/// Whether to trust a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    /// Asked after all others.
    Probation,
    /// Its probation has been served: one call may try it.
    ProbeDue,
}

#[derive(Clone, Copy, Debug)]
struct Served {
    until: Duration,
    times: u32,
    unreachable: bool,
    probed_at: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct Track {
    /// Seconds spent, and answers given: both fade. Their quotient is the most likely mean of a time
    /// that was not always seen to its end (exponential, censored to the right).
    spent: f64,
    answers: f64,
    faded_at: Duration,
    /// The running median in seconds, and the least it has been lately.
    median: f64,
    floor: f64,
    seen: u32,
    load: Option<(f64, Duration)>,
    strikes: u32,
    probation: Option<Served>,
    back_since: Option<Duration>,
    asked_at: Duration,
}

impl Track {
    pub(crate) fn new() -> Self {
        Self {
            spent: 0.0,
            answers: 0.0,
            faded_at: Duration::ZERO,
            median: 0.0,
            floor: 0.0,
            seen: 0,
            load: None,
            strikes: 0,
            probation: None,
            back_since: None,
            asked_at: Duration::ZERO,
        }
    }

    pub(crate) fn record(&mut self, now: Duration, sample: Sample) {
        self.fade(now);
        match sample {
            Sample::Answered(took) => {
                self.spent += took.as_secs_f64();
                self.answers += 1.0;
                self.strikes = 0;
                self.center(took, true);
                if self.probation.take().is_some() {
                    self.back_since = Some(now);
                }
            }
            Sample::Failed(took) => {
                self.spent += took.max(PENALTY).as_secs_f64();
                self.strike(now, 1, false);
            }
            Sample::Full(took) => {
                self.spent += took.max(PENALTY).as_secs_f64();
                self.strike(now, 1, false);
                self.told_load(now, 1.0);
            }
            Sample::AtLeast(took) => {
                self.spent += took.as_secs_f64();
                self.center(took, false);
            }
            Sample::Overdue(took) => {
                self.spent += took.as_secs_f64();
                self.center(took, false);
                self.strike(now, 1, false);
            }
            Sample::Unreachable => self.strike(now, STRIKES, true),
        }
    }

    /// The mean time to an answer in seconds, drawn towards `usual` while little is known.
    pub(crate) fn mean(&self, now: Duration, usual: f64) -> f64 {
        let left = faded(now.saturating_sub(self.faded_at));
        (self.spent * left + usual) / (self.answers * left + 1.0)
    }

    /// The mean without that, if at least some answers are known.
    pub(crate) fn known_mean(&self) -> Option<f64> {
        (self.answers >= 1.0).then(|| self.spent / self.answers)
    }

    pub(crate) fn standing(&self, now: Duration) -> Standing {
        match self.probation {
            None => Standing::Good,
            Some(served) if served.until > now => Standing::Probation,
            Some(Served { probed_at: Some(at), .. }) if now < at + PROBE_PATIENCE => Standing::Probation,
            Some(_) => Standing::ProbeDue,
        }
    }

    /// Its probation, if any, is for not having been reachable: to try it costs nothing.
    pub(crate) fn was_unreachable(&self) -> bool {
        self.probation.is_some_and(|served| served.unreachable)
    }

    /// Whether nobody has asked it for so long that what is known of it says little.
    pub(crate) fn is_stale(&self, now: Duration) -> bool {
        now.saturating_sub(self.asked_at) >= STALE
    }

    /// A call is about to ask it.
    pub(crate) fn asked(&mut self, now: Duration) {
        self.asked_at = now;
        if let Some(served) = &mut self.probation {
            served.probed_at = Some(now);
        }
    }

    /// It is said to be well again, or is another incarnation: what was held against it is void.
    pub(crate) fn returned(&mut self, now: Duration) {
        if self.probation.take().is_some() || self.seen > 0 {
            self.back_since = Some(now);
        }
        (self.strikes, self.spent, self.answers) = (0, 0.0, 0.0);
    }

    /// What its share is divided by while it comes back: from 4 down to 1.
    pub(crate) fn slow_start(&self, now: Duration) -> f64 {
        let Some(since) = self.back_since else { return 1.0 };
        let part = now.saturating_sub(since).as_secs_f64() / SLOW_START.as_secs_f64();
        4.0 - 3.0 * part.min(1.0)
    }

    /// It said how busy it is, from 0 to 1.
    pub(crate) fn told_load(&mut self, now: Duration, load: f64) {
        self.load = Some((load, now));
    }

    /// How busy it is, from 0 to 1: what it said, else how much longer than at its best it takes now. In
    /// a queue the time grows with `1 / (1 - utilisation)`. `None`: not known.
    pub(crate) fn utilisation(&self, now: Duration) -> Option<f64> {
        if let Some((load, at)) = self.load
            && now.saturating_sub(at) < LOAD_LASTS
        {
            return Some(load);
        }
        (self.seen >= ENOUGH && self.median > 0.0).then(|| (1.0 - self.floor / self.median).max(0.0))
    }

    fn strike(&mut self, now: Duration, weight: u32, unreachable: bool) {
        self.strikes = self.strikes.saturating_add(weight);
        // What was begun before the probation says nothing new.
        let serving = self.probation.is_some_and(|served| served.until > now);
        if serving || (self.probation.is_none() && self.strikes < STRIKES) {
            return;
        }
        let times = self.probation.map_or(0, |served| served.times + 1);
        let long = PROBATION.saturating_mul(1 << times.min(4)).min(LONGEST_PROBATION);
        self.probation = Some(Served { until: now + long, times, unreachable, probed_at: None });
        self.back_since = None;
    }

    /// Moves the running median a step towards what was seen. A time that was cut off tells something
    /// only if it is the longer one already.
    fn center(&mut self, took: Duration, whole: bool) {
        let took = took.as_secs_f64().max(1e-6);
        if self.seen == 0 && whole {
            self.median = took;
        } else if took > self.median {
            self.median *= STRIDE;
        } else if whole {
            self.median /= STRIDE;
        } else {
            return;
        }
        self.seen = self.seen.saturating_add(1);
        if self.seen <= ENOUGH || self.median < self.floor {
            self.floor = self.median;
        }
    }

    fn fade(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.faded_at);
        let left = faded(passed);
        self.spent *= left;
        self.answers *= left;
        // Twice as much in a minute: what was the best may no longer be possible.
        self.floor = (self.floor * (passed.as_secs_f64() / 60.0).exp2()).min(self.median);
        self.faded_at = now;
    }
}

/// The part that is left of what was seen so long ago.
fn faded(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NOW: Duration = Duration::from_secs(100);

    fn track(samples: impl IntoIterator<Item = Sample>) -> Track {
        let mut track = Track::new();
        samples.into_iter().for_each(|sample| track.record(NOW, sample));
        track
    }

    #[test]
    fn a_cancelled_attempt_took_at_least_that_long() {
        let steady = track([Sample::Answered(5 * MS); 20]);
        assert!((steady.mean(NOW, 0.005) - 0.005).abs() < 1e-9);
        // It won once in 20 times, and lost after 5 ms otherwise: it is not as fast as the winner.
        let loser = track([Sample::Answered(5 * MS)].into_iter().chain([Sample::AtLeast(5 * MS); 19]));
        assert!(loser.mean(NOW, 0.005) > 0.04, "{}", loser.mean(NOW, 0.005));
    }

    #[test]
    fn a_fast_error_attracts_nobody() {
        let good = track([Sample::Answered(20 * MS); 20]);
        let failing = track([Sample::Answered(20 * MS), Sample::Failed(MS)]);
        assert!(failing.mean(NOW, 0.02) > 10.0 * good.mean(NOW, 0.02));
    }

    #[test]
    fn what_was_seen_is_forgotten_over_time() {
        let slow = track([Sample::Answered(Duration::from_secs(1)); 20]);
        assert!(slow.mean(NOW, 0.01) > 0.9);
        assert!(slow.mean(NOW + HALF_LIFE * 12, 0.01) < 0.02);
    }

    #[test]
    fn three_failures_in_a_row_mean_probation_and_one_answer_ends_it() {
        let mut member = track([Sample::Failed(MS), Sample::Failed(MS), Sample::Answered(MS)]);
        member.record(NOW, Sample::Failed(MS));
        member.record(NOW, Sample::Overdue(MS));
        assert_eq!(member.standing(NOW), Standing::Good);
        member.record(NOW, Sample::Failed(MS));
        assert_eq!(member.standing(NOW), Standing::Probation);
        let served = NOW + PROBATION;
        assert_eq!(member.standing(served), Standing::ProbeDue);
        member.asked(served);
        assert_eq!(member.standing(served), Standing::Probation, "one probe at a time");
        assert_eq!(member.standing(served + PROBE_PATIENCE), Standing::ProbeDue);
        member.record(served, Sample::Answered(MS));
        assert_eq!(member.standing(served), Standing::Good);
        assert!(member.slow_start(served) > 3.9);
        assert!(member.slow_start(served + SLOW_START) <= 1.0);
    }

    #[test]
    fn each_probe_that_fails_doubles_the_probation_up_to_a_limit() {
        let mut member = track([Sample::Unreachable]);
        let mut now = NOW;
        for long in [2, 4, 8, 16, 30, 30] {
            assert_eq!(member.standing(now + Duration::from_millis(long * 1_000 - 1)), Standing::Probation);
            now += Duration::from_secs(long);
            assert_eq!(member.standing(now), Standing::ProbeDue, "after {long} s");
            member.asked(now);
            member.record(now, Sample::Unreachable);
        }
    }

    #[test]
    fn failures_of_calls_begun_before_the_probation_do_not_lengthen_it() {
        let member = track([Sample::Failed(MS); 60]);
        assert_eq!(member.standing(NOW + PROBATION), Standing::ProbeDue);
    }

    #[test]
    fn one_that_returned_starts_slowly_and_without_a_past() {
        let mut member = track([Sample::Answered(MS), Sample::Unreachable]);
        member.returned(NOW);
        assert_eq!(member.standing(NOW), Standing::Good);
        assert!(member.slow_start(NOW) > 3.9);
        let mut fresh = Track::new();
        fresh.returned(NOW);
        assert!(fresh.slow_start(NOW) <= 1.0, "one that is new is not returning");
    }

    #[test]
    fn one_that_nobody_asks_gets_stale() {
        let mut member = Track::new();
        member.asked(NOW);
        assert!(!member.is_stale(NOW + STALE / 2) && member.is_stale(NOW + STALE));
    }

    #[test]
    fn utilisation_is_what_was_told_or_how_much_longer_than_at_its_best() {
        let mut member = track([Sample::Answered(10 * MS); 60]);
        let idle = member.utilisation(NOW).unwrap();
        assert!(idle < 0.15, "{idle}");
        for _ in 0..200 {
            member.record(NOW, Sample::Answered(40 * MS));
        }
        let busy = member.utilisation(NOW).unwrap();
        assert!((0.65..0.85).contains(&busy), "{busy}");
        member.told_load(NOW, 0.1);
        assert_eq!(member.utilisation(NOW), Some(0.1));
        assert!(member.utilisation(NOW + LOAD_LASTS).unwrap() > 0.5);
        assert_eq!(Track::new().utilisation(NOW), None);
    }

    #[test]
    fn who_has_no_room_is_as_busy_as_can_be_for_a_while() {
        let member = track([Sample::Answered(MS), Sample::Full(MS)]);
        assert_eq!(member.utilisation(NOW), Some(1.0));
        assert_eq!(member.utilisation(NOW + LOAD_LASTS), None);
    }

    #[test]
    fn a_slow_tail_is_no_load() {
        let tail = (0..500).map(|i| Sample::Answered(if i % 25 == 0 { 100 * MS } else { 5 * MS }));
        let member = track(tail);
        assert!(member.utilisation(NOW).unwrap() < 0.3);
    }
}
