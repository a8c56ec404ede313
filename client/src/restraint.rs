//! What keeps replication from doing harm: settings, and the state that all calls of a channel share.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    budget::{HedgeBudget, Throttle},
    cancels::ACCEPTED,
    gate::Level,
};

/// How far replication may go. The defaults suit most services.
///
/// * Hedges (further copies by a delay) are at most 5 % of calls, after a burst of 10, the last three of which are
///   for calls that have waited for longer than one delay. Copies that replace a
///   failed attempt, or one whose member is known to be dead or stuck, are no extra load and are not counted;
///   nor is a tied copy that was taken back before its work began.
/// * As the members get busier, [`Policy::All`](crate::Policy::All) becomes hedging (three quarters, the copies
///   included), and then, as hedged and tied calls, a single attempt (nine tenths). How busy a member is it says
///   itself (`wardkeep-load`, or that it has no room), or its answers do by taking longer than at their best.
///   Quorums stay what they are.
/// * Losers at our own nodes are withdrawn in band: a message says whose work is in vain, and the node says how far
///   each had come and what it cost. No stream is reset, unless the node does not answer.
/// * Losers elsewhere are cancelled at once by a reset, but no more of them than a connection bears: on one to a
///   server that is not known to be a node of ours, at most 100 in a second, and at most 10 that the server may not
///   have seen. Beyond, a loser is left to finish for 500 ms.
/// * A connection is replaced, between calls, before all the losers cancelled on it can use up what h2
///   allows them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Restraint {
    pub(crate) hedge_ratio: f64,
    pub(crate) hedge_burst: u32,
    pub(crate) step_down: bool,
    pub(crate) rounds: u32,
    pub(crate) cancels_per_second: u32,
    pub(crate) loser_grace: Duration,
    pub(crate) in_band: bool,
    pub(crate) renew_after: u64,
}

impl Default for Restraint {
    fn default() -> Self {
        Self {
            hedge_ratio: 0.05,
            hedge_burst: 10,
            step_down: true,
            rounds: 4,
            cancels_per_second: 100,
            loser_grace: ACCEPTED,
            in_band: true,
            renew_after: 2_000_000,
        }
    }
}

impl Restraint {
    /// Hedges per call, and how many may go out before there were any calls to pay for them.
    #[must_use]
    pub fn hedge_budget(mut self, ratio: f64, burst: u32) -> Self {
        (self.hedge_ratio, self.hedge_burst) = (ratio, burst);
        self
    }

    /// Whether busy members are spared copies.
    #[must_use]
    pub fn step_down(mut self, step_down: bool) -> Self {
        self.step_down = step_down;
        self
    }

    /// How often the members of a call are asked again when all have failed in a way that may pass: they could not
    /// be connected to, or said `UNAVAILABLE`; what may not be repeated, only if none of them can have begun it.
    /// After 50 ms, then twice as long each time, with jitter, within the call's deadline and the policy's
    /// `max_attempts`; each time is paid for as a hedge, so that calls fail at once where nothing works. 4 unless set.
    #[must_use]
    pub fn ask_again(mut self, rounds: u32) -> Self {
        self.rounds = rounds;
        self
    }

    /// Cancels on one connection to a server that is not known to be a node of ours.
    #[must_use]
    pub fn cancels_per_second(mut self, cancels: u32) -> Self {
        self.cancels_per_second = cancels;
        self
    }

    /// How long a loser that is not cancelled at once may go on; 500 ms unless set. After less than that a
    /// server may not have accepted it yet, and takes its cancelling for an attack.
    #[must_use]
    pub fn loser_grace(mut self, grace: Duration) -> Self {
        self.loser_grace = grace;
        self
    }

    /// Whether losers at our own nodes are withdrawn in band, which tells what they cost. Otherwise their streams
    /// are reset.
    #[must_use]
    pub fn withdraw_in_band(mut self, in_band: bool) -> Self {
        self.in_band = in_band;
        self
    }

    /// Cancels after which a connection is replaced by a new one.
    #[must_use]
    pub fn renew_after(mut self, cancels: u64) -> Self {
        self.renew_after = cancels;
        self
    }
}

/// What all calls of a channel share.
pub(crate) struct Brakes {
    budget: Mutex<HedgeBudget>,
    throttle: Option<Mutex<Throttle>>,
    step_down: bool,
    /// Of calls sent to one member first, to two at once, three, and more.
    levels: [AtomicU8; 4],
}

impl Brakes {
    pub(crate) fn new(restraint: &Restraint, throttle: Option<Throttle>) -> Self {
        Self {
            budget: Mutex::new(HedgeBudget::new(restraint.hedge_ratio, restraint.hedge_burst)),
            throttle: throttle.map(Mutex::new),
            step_down: restraint.step_down,
            levels: Default::default(),
        }
    }

    /// A call that would be sent to so many `at_once` begins, while the members are so busy: what may be done
    /// for it.
    pub(crate) fn call(&self, utilisation: f64, at_once: usize) -> Level {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).call();
        if !self.step_down {
            return Level::Full;
        }
        let at = &self.levels[at_once.clamp(1, self.levels.len()) - 1];
        let level = match at.load(Relaxed) {
            0 => Level::Full,
            1 => Level::Hedge,
            _ => Level::Single,
        };
        let level = level.at(utilisation, at_once);
        at.store(level as u8, Relaxed);
        level
    }

    /// Whether a hedge may go out; if so, it is paid for. `again`: the call was refused one before.
    pub(crate) fn may_hedge(&self, again: bool) -> bool {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(again)
    }

    /// A copy was taken back before its work began, after a hedge was paid for.
    pub(crate) fn give_back(&self) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).give_back();
    }

    pub(crate) fn is_throttled(&self) -> bool {
        self.throttle
            .as_ref()
            .is_some_and(|t| t.lock().unwrap_or_else(PoisonError::into_inner).is_throttled())
    }

    /// An attempt ended.
    pub(crate) fn ended(&self, well: bool) {
        let Some(throttle) = &self.throttle else { return };
        let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if well { throttle.succeeded() } else { throttle.failed() }
    }
}
