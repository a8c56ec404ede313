//! Replication never makes overload worse: three unlike servers, from idle to half as much again as they can bear.

use std::time::Duration;

use super::{Calls, Dice, Pilot, Server, Tally, World};
use crate::{HedgeDelay, Policy, Restraint};

const MS: Duration = Duration::from_millis(1);
const MEDIANS: [f64; 3] = [4.0, 5.0, 6.0];
const SLOTS: usize = 8;
/// Mean of the lognormal times that go with these medians and this sigma, and of the tail.
const SIGMA: f64 = 0.3;

struct Outcome {
    /// Good answers in time, per call.
    good: f64,
    p999: Duration,
    tally: Tally,
}

fn capacity() -> f64 {
    let mean = |median: f64| (median * (SIGMA * SIGMA / 2.0).exp() + 2.0) / 1_000.0;
    MEDIANS.map(|median| SLOTS as f64 / mean(median)).iter().sum()
}

fn play(policy: Policy, restraint: Restraint, load: f64, tells_load: bool, calls: usize) -> Outcome {
    let mut dice = Dice::new(7);
    let service = move |server: usize| {
        let took = dice.lognormal(MS.mul_f64(MEDIANS[server]), SIGMA);
        if dice.chance(0.02) { took + MS * 100 } else { took }
    };
    let server = Server { slots: SLOTS, queue: SLOTS * 4, tells_load };
    let mut world = World::new([server; 3], MS / 10, service);
    world.add(Pilot::new(policy, restraint, 3), vec![0, 1, 2]);
    let (mut at, mut dice) = (Duration::ZERO, Dice::new(11));
    let arrivals = (0..calls as u64).map(move |tag| {
        at += dice.until_next(load * capacity());
        Calls { at, by: 0, tag }
    });
    let mut took = Vec::new();
    world.run(arrivals, MS * 250, |seen| took.extend(seen.took));
    took.sort();
    Outcome {
        good: took.len() as f64 / calls as f64,
        p999: took[took.len() * 999 / 1_000],
        tally: world.tally(),
    }
}

fn policies() -> [(&'static str, Policy); 4] {
    let hedged = Policy::Hedged { delay: HedgeDelay::Percentile(95.0), max_attempts: 2 };
    let tied = Policy::Tied { delay: HedgeDelay::Fixed(MS), max_attempts: 2 };
    [("all(2)", Policy::All(2)), ("all(3)", Policy::All(3)), ("hedged", hedged), ("tied", tied)]
}

#[test]
fn at_no_load_does_replication_cost_answers() {
    for tells_load in [true, false] {
        for load in [0.5, 0.75, 0.9, 1.5] {
            let single = play(Policy::Single, Restraint::default(), load, tells_load, 3_000);
            for (name, policy) in policies() {
                let it = play(policy, Restraint::default(), load, tells_load, 3_000);
                let story = format!(
                    "{name} at {load}, load told: {tells_load}: {:.4} of {:.4}, p99.9 {:?} of {:?}, {:?}",
                    it.good, single.good, it.p999, single.p999, it.tally
                );
                println!("{story}");
                assert!(it.good >= single.good * 0.98, "{story}");
            }
        }
    }
}

#[test]
fn below_a_quarter_of_the_load_all_are_sent_and_the_tail_is_theirs() {
    for load in [0.05, 0.15, 0.24] {
        let unrestrained = play(Policy::All(3), Restraint::default().step_down(false), load, true, 3_000);
        let all = play(Policy::All(3), Restraint::default(), load, true, 3_000);
        assert!(all.p999 <= unrestrained.p999, "{:?}, not {:?}", all.p999, unrestrained.p999);
        assert!(all.p999 < MS * 20, "{:?}", all.p999);
    }
}

#[test]
fn copies_that_nothing_restrains_do_cost_answers() {
    let [single, all] = [(Policy::Single, true), (Policy::All(3), false)]
        .map(|(policy, step_down)| play(policy, Restraint::default().step_down(step_down), 0.9, true, 3_000));
    assert!(all.good < single.good * 0.98, "{} of {}: the others prove nothing", all.good, single.good);
}

#[test]
fn the_same_seed_plays_the_same_story() {
    let [one, two] = [(); 2].map(|()| play(Policy::default(), Restraint::default(), 0.5, true, 2_000));
    assert_eq!((one.tally, one.p999), (two.tally, two.p999));
}
