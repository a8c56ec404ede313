//! Families of formulas, from easy to hard, that unlike solvers are unlike good at. The same family, size and seed
//! always make the same formula.

use std::fmt;

use super::Formula;
use crate::random::SplitMix64;

/// Clauses per variable at which random 3-SAT is hardest, and as often satisfiable as not.
const THRESHOLD: f64 = 4.26;

/// A kind of formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Random clauses of three literals, at the threshold.
    Random,
    /// The same, of those that a hidden assignment satisfies.
    Planted,
    /// One pigeon more than there are holes: no.
    Pigeonhole,
    /// The parity of some variables, added up in two orders with two results: no.
    Parity,
}

/// One formula of a family.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Where it is from.
    pub family: Family,
    /// How large it is.
    pub size: u32,
    /// The formula.
    pub formula: Formula,
    /// Whether it can be satisfied, if that is known by the way it was made.
    pub satisfiable: Option<bool>,
}

impl Family {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Random, Self::Planted, Self::Pigeonhole, Self::Parity];

    /// Sizes worth a table, from small to large.
    pub fn sizes(self) -> &'static [u32] {
        match self {
            Self::Random => &[150, 175, 200, 225, 250],
            Self::Planted => &[200, 300, 400, 500, 2_000],
            Self::Pigeonhole => &[6, 7, 8, 9, 10],
            Self::Parity => &[16, 24, 32, 40, 60],
        }
    }

    /// Its formula of this size (at least 3) and seed.
    pub fn make(self, size: u32, seed: u64) -> Instance {
        // Neighbouring seeds and sizes must not give neighbouring sequences.
        let mut random = SplitMix64(seed);
        random = SplitMix64(random.next() ^ u64::from(size));
        let (formula, satisfiable) = match self {
            Self::Random => (three_sat(size, &mut random, |_| true), None),
            Self::Planted => (planted(size, &mut random), Some(true)),
            Self::Pigeonhole => (pigeonhole(size), Some(false)),
            Self::Parity => (parity(size, &mut random), Some(false)),
        };
        Instance { family: self, size, formula, satisfiable }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Random => "random",
            Self::Planted => "planted",
            Self::Pigeonhole => "pigeonhole",
            Self::Parity => "parity",
        })
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.family, self.size)
    }
}

fn coin(random: &mut SplitMix64) -> bool {
    random.next() >> 63 == 0
}

/// Literals of these variables, numbered from 1.
fn literals(variables: u32) -> impl Iterator<Item = i32> {
    1..=variables.cast_signed()
}

/// Clauses over three different variables each, of which only those that are `wanted` count.
fn three_sat(variables: u32, random: &mut SplitMix64, wanted: impl Fn(&[i32]) -> bool) -> Formula {
    let all: Vec<i32> = literals(variables.max(3)).collect();
    let number = (f64::from(variables) * THRESHOLD).round() as usize;
    let clauses = std::iter::repeat_with(|| {
        let mut clause = Vec::with_capacity(3);
        while clause.len() < 3 {
            match random.pick(&all) {
                Some(variable) if !clause.contains(variable) && !clause.contains(&-variable) => {
                    clause.push(if coin(random) { *variable } else { -variable });
                }
                _ => {}
            }
        }
        clause
    });
    Formula::new(clauses.filter(|clause| wanted(clause)).take(number))
}

fn planted(variables: u32, random: &mut SplitMix64) -> Formula {
    let plant = plant(variables, random);
    three_sat(variables, random, |clause| clause.iter().any(|literal| plant.contains(literal)))
}

/// A random assignment.
fn plant(variables: u32, random: &mut SplitMix64) -> std::collections::HashSet<i32> {
    literals(variables.max(3)).map(|variable| if coin(random) { variable } else { -variable }).collect()
}

fn pigeonhole(holes: u32) -> Formula {
    let (holes, pigeons) = (holes.cast_signed(), holes.cast_signed() + 1);
    let sits = |pigeon: i32, hole: i32| pigeon * holes + hole + 1;
    let somewhere = (0..pigeons).map(|pigeon| (0..holes).map(|hole| sits(pigeon, hole)).collect());
    let alone = (0..holes).flat_map(|hole| {
        (0..pigeons).flat_map(move |a| (0..a).map(move |b| vec![-sits(a, hole), -sits(b, hole)]))
    });
    Formula::new(somewhere.chain(alone).collect::<Vec<Vec<i32>>>())
}

/// Two chains of exclusive ors over the same variables, in two orders: the sum is even, and it is odd.
fn parity(variables: u32, random: &mut SplitMix64) -> Formula {
    let mut order: Vec<i32> = literals(variables).collect();
    let mut next = variables.cast_signed();
    let mut clauses = Vec::new();
    for odd in [false, true] {
        let mut sum = order[0];
        for variable in &order[1..] {
            next += 1;
            clauses.extend(sum_of(sum, *variable, next));
            sum = next;
        }
        clauses.push(vec![if odd { sum } else { -sum }]);
        shuffle(&mut order, random);
    }
    Formula::new(clauses)
}

/// `a ^ b = sum`.
fn sum_of(a: i32, b: i32, sum: i32) -> [Vec<i32>; 4] {
    [vec![-a, -b, -sum], vec![a, b, -sum], vec![a, -b, sum], vec![-a, b, sum]]
}

fn shuffle(order: &mut [i32], random: &mut SplitMix64) {
    for at in (1..order.len()).rev() {
        if let Some(other) = random.below(at + 1) {
            order.swap(at, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tries all assignments.
    fn brute_force(formula: &Formula) -> bool {
        let all = 1..=formula.variables().cast_signed();
        (0..1_u64 << formula.variables()).any(|bits| {
            let model: Vec<i32> =
                all.clone().map(|v| if bits >> (v - 1) & 1 == 1 { v } else { -v }).collect();
            formula.unsatisfied_by(&model).is_none()
        })
    }

    #[test]
    fn what_is_known_of_small_formulas_is_so() {
        let small =
            [(Family::Pigeonhole, 3), (Family::Parity, 3), (Family::Parity, 6), (Family::Planted, 12)];
        for (family, size) in small {
            for seed in 0..4 {
                let instance = family.make(size, seed);
                assert_eq!(Some(brute_force(&instance.formula)), instance.satisfiable, "{instance}");
            }
        }
    }

    #[test]
    fn random_formulas_at_the_threshold_are_now_satisfiable_and_now_not() {
        let found: Vec<bool> = (0..12).map(|s| brute_force(&Family::Random.make(12, s).formula)).collect();
        assert!(found.contains(&true) && found.contains(&false), "{found:?}");
    }

    proptest! {
        #[test]
        fn a_plant_satisfies_its_formula(size in 3..200_u32, seed: u64) {
            let plant: Vec<i32> = plant(size, &mut SplitMix64(seed)).into_iter().collect();
            prop_assert_eq!(planted(size, &mut SplitMix64(seed)).unsatisfied_by(&plant), None);
        }

        #[test]
        fn the_same_seed_makes_the_same_formula_and_another_another(size in 8..25_u32, seed: u64) {
            for family in Family::ALL {
                let made = |seed| family.make(size, seed).formula.to_dimacs();
                prop_assert_eq!(made(seed), made(seed));
                prop_assert_eq!(made(seed) == made(seed ^ 1), family == Family::Pigeonhole);
            }
        }

        #[test]
        fn clauses_have_three_different_variables(size in 3..100_u32, seed: u64) {
            let formula = Family::Random.make(size, seed).formula;
            for clause in formula.clauses() {
                let mut variables: Vec<u32> = clause.iter().map(|l| l.unsigned_abs()).collect();
                variables.sort_unstable();
                variables.dedup();
                prop_assert_eq!(variables.len(), 3);
            }
        }
    }
}
