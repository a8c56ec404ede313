//! Chance that comes out the same for the same seed.

use std::time::Duration;

use crate::choose::mix;

/// A source of random numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// At least 0, and less than 1.
    pub fn unit(&mut self) -> f64 {
        // The 53 bits that a float holds.
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Time to the next of events that come at random, so many a second.
    pub fn until_next(&mut self, per_second: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.unit()).ln() / per_second)
    }

    /// Lognormal, by its median and the standard deviation of its logarithm.
    pub fn lognormal(&mut self, median: Duration, sigma: f64) -> Duration {
        let (one, two) = (1.0 - self.unit(), self.unit());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
        median.mul_f64((sigma * normal).exp())
    }

    /// With this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}
