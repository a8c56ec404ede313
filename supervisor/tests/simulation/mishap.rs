//! What befalls a cluster: made from a seed.

use std::time::Duration;

use super::{
    book::{Place, Poke},
    cluster::NODES,
    hosts::WARDS,
};

/// Between hosts, by name.
pub type Link = (&'static str, &'static str);

#[derive(Clone, Debug)]
pub enum Mishap {
    Poke(Place, Poke),
    /// It fails whenever it starts, or no longer.
    Break(Place, bool),
    CrashNode(&'static str),
    BounceNode(&'static str),
    CrashSupervisor,
    BounceSupervisor,
    /// Another supervisor, that knows nothing, takes the place of the first; or the first is back.
    Supplant(bool),
    Cut(Link),
    CutOneWay(Link),
    Mend(Link),
    /// Nothing arrives for a while, and then all of it does.
    Hold(Link),
    Release(Link),
    Ask(super::book::Ask),
}

pub const PEOPLE: [&str; 2] = ["client", "operator"];

/// The mishaps of a seed, in order, and when.
pub fn plan(seed: u64) -> Vec<(Duration, Mishap)> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut plan = Vec::new();
    let mut at = Duration::from_secs(3);
    for _ in 0..dice.usize(8..24) {
        at += Duration::from_millis(dice.u64(20..3_000));
        one(&mut dice, at, &mut plan);
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn one(dice: &mut fastrand::Rng, at: Duration, plan: &mut Vec<(Duration, Mishap)>) {
    use super::book::Ask;
    let node = NODES[dice.usize(..NODES.len())];
    let ward = WARDS[dice.usize(..WARDS.len())];
    let lasts = Duration::from_millis(dice.u64(100..9_000));
    let mut both = |first, second| plan.extend([(at, first), (at + lasts, second)]);
    match dice.u32(..24) {
        0..5 => {
            let ward = ["flaky", "flaky", "trio", "sum"][dice.usize(..4)];
            let poke = [Poke::Fail, Poke::Panic, Poke::Hang, Poke::Idle][dice.usize(..4)];
            plan.push((at, Mishap::Poke((node, ward), poke)));
        }
        5 => {
            let ward = ["flaky", "trio"][dice.usize(..2)];
            both(Mishap::Break((node, ward), true), Mishap::Break((node, ward), false));
        }
        6..8 => both(Mishap::CrashNode(node), Mishap::BounceNode(node)),
        8 => plan.push((at, Mishap::BounceNode(node))),
        9..11 => both(Mishap::CrashSupervisor, Mishap::BounceSupervisor),
        22..24 => both(Mishap::Supplant(true), Mishap::Supplant(false)),
        11..14 => {
            let link = link(dice, node);
            both(Mishap::Cut(link), Mishap::Mend(link));
        }
        14 => {
            let (a, b) = link(dice, node);
            let link = if dice.bool() { (a, b) } else { (b, a) };
            both(Mishap::CutOneWay(link), Mishap::Mend(link));
        }
        15..17 => {
            let link = link(dice, node);
            both(Mishap::Hold(link), Mishap::Release(link));
        }
        17 => plan.push((at, Mishap::Ask(Ask::Restart((node, ward))))),
        18 => both(Mishap::Ask(Ask::Stop((node, ward))), Mishap::Ask(Ask::Start((node, ward)))),
        19 => both(Mishap::Ask(Ask::Drain(node)), Mishap::Ask(Ask::Undrain(node))),
        _ => plan.push((at, Mishap::Ask(Ask::LateSession { node, same_boot: dice.bool() }))),
    }
}

fn link(dice: &mut fastrand::Rng, node: &'static str) -> Link {
    match dice.u32(..3) {
        0 => (node, PEOPLE[0]),
        _ => (node, super::cluster::SUPERVISORS[0]),
    }
}
