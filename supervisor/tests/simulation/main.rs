//! Whole clusters in a simulated world (turmoil): the real supervisor, nodes, wards and client over a simulated
//! network and clock, and mishaps made from a seed. docs/testing.md tells what is simulated and how a seed
//! is lived through again.
//!
//! Each world has a process of its own, so that nothing of another one is in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, clippy::disallowed_methods)]
#![allow(clippy::print_stdout, clippy::print_stderr, unreachable_pub)]

mod book;
mod chance;
mod check;
mod cluster;
mod hosts;
mod late;
mod mishap;
mod net;
mod seeds;
mod sum;

use seeds::{Outcome, count, first_broken, lived_through, seeds};
use wardkeep_node::testing::Flaw;

/// A world in this process: which one is said by the environment.
#[test]
fn a_world() {
    seeds::live_here();
}

#[test]
fn whatever_befalls_a_cluster_its_promises_hold_and_it_heals() {
    let (seeds, workers) = (seeds(), seeds::workers());
    let all = seeds.len();
    let begun = std::time::Instant::now();
    let broken = lived_through(seeds, None, workers);
    println!("{all} worlds in {:.0} s", begun.elapsed().as_secs_f64());
    for Outcome { seed, broken, .. } in &broken {
        eprintln!("seed {seed}: {}", broken.as_deref().unwrap_or("?"));
        eprintln!("    WARDKEEP_SEED={seed} cargo test -p wardkeep --test simulation -- --nocapture");
    }
    assert!(broken.is_empty(), "promises were broken in {} of {all} worlds", broken.len());
}

#[test]
fn the_same_seed_leads_to_the_same_world() {
    for seed in 1..=count("WARDKEEP_TWICE", 2) {
        let [one, other] = [(); 2].map(|()| seeds::live_elsewhere(seed, None));
        assert!(!one.trace.is_empty());
        let differ = one.trace.lines().zip(other.trace.lines()).find(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}");
        assert_eq!(one.trace.lines().count(), other.trace.lines().count(), "seed {seed}");
    }
}

/// The test of the test.
#[test]
fn nodes_that_forget_epochs_or_do_not_wait_for_stops_are_found_out_within_100_seeds() {
    for flaw in [Flaw::ForgetsEpochs, Flaw::HurriesStops] {
        let found = first_broken(1..=100, flaw);
        let (seed, broken) = found.unwrap_or_else(|| panic!("{flaw:?} was not found out"));
        println!("{flaw:?} was found out by seed {seed}: {broken}");
    }
}
