//! The two tables of "The Tail at Scale" (Dean and Barroso, CACM 56(2), 2013), as a simulation at their parameters.
//!
//! The decisions are the client's own; what is simulated are servers and network. Their distributions are set so
//! that the column without hedging is the paper's; the other column is what comes out.

use std::time::Duration;

use wardkeep_client::{
    HedgeDelay, Policy, Restraint,
    testing::{Calls, Dice, Pilot, Server, World},
};

use super::side::percentile;
use crate::report::{Row, Spread, Table};

const MS: Duration = Duration::from_millis(1);

pub const HEDGED: &str = "wardkeep hedged after 10 ms, simulated";
pub const TIED: &str = "wardkeep tied after 1 ms, simulated";
pub const SINGLE: &str = "wardkeep single, simulated";
const PAPER_SINGLE: &str = "the paper, without";
const PAPER_HEDGED: &str = "the paper, hedged after 10 ms";
const PAPER_TIED: &str = "the paper, tied after 1 ms";

const KEYS: u64 = 1_000;
const READS: u64 = 1_500;
const PARTS: usize = 100;

/// A BigTable read of 1,000 keys on 100 servers.
pub fn hedged(rounds: usize) -> Table {
    let about = format!(
        "A read of 1,000 keys from 100 servers ends with the last of them. A simulation at the paper's parameters: {READS} such reads \
        a round, each key at one of the three servers that have it, the copy after 10 ms at another. Set so that the row without \
        hedging is the paper's: a key takes longer than 10 ms with a probability of 2 %, and longer than t beyond that with 2 % \
        (10 ms / t)^1.907, which makes the p99.9 of a whole read 1,800 ms; below, evenly 1 to 10 ms."
    );
    let columns = ["p50 in ms", "p99 in ms", "p99.9 in ms", "more requests in %"];
    let policies = [(SINGLE, Policy::Single), (HEDGED, hedge())];
    let name = "The Tail at Scale: hedged reads of 1,000 keys";
    let mut table = simulated((name, &about), &columns, policies, rounds, keys);
    table.rows.push(quoted(PAPER_SINGLE, &[None, None, Some(1_800.0), None]));
    table.rows.push(quoted(PAPER_HEDGED, &[None, None, Some(74.0), Some(2.0)]));
    table
}

/// Each policy with each seed.
fn simulated(
    (name, about): (&str, &str),
    columns: &[&str],
    policies: [(&str, Policy); 2],
    rounds: usize,
    play: impl Fn(Policy, u64) -> Vec<f64>,
) -> Table {
    eprintln!("{name}");
    let played =
        policies.map(|(_, policy)| (0..rounds as u64).map(|seed| play(policy, seed)).collect::<Vec<_>>());
    let row = |at: usize| Row {
        name: policies[at].0.to_owned(),
        cells: (0..columns.len()).map(|n| Spread::of(played[at].iter().map(|round| round[n]))).collect(),
        ratio: Spread::of(played[at].iter().zip(&played[0]).map(|(it, base)| it[0] / base[0]))
            .filter(|_| at > 0),
        also: Vec::new(),
    };
    Table {
        name: name.to_owned(),
        about: about.to_owned(),
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
        baseline: policies[0].0.to_owned(),
        also: Vec::new(),
        rows: vec![row(0), row(1)],
    }
}

fn hedge() -> Policy {
    Policy::Hedged { delay: HedgeDelay::Fixed(MS * 10), max_attempts: 2 }
}

/// How long a server takes for a key.
fn key(dice: &mut Dice) -> Duration {
    let unit = 1.0 - dice.unit();
    if unit < 0.02 {
        (MS * 10).mul_f64((0.02 / unit).powf(1.0 / 1.907))
    } else {
        MS + (MS * 9).mul_f64(dice.unit())
    }
}

fn keys(policy: Policy, seed: u64) -> Vec<f64> {
    let mut dice = Dice::new(seed);
    let server = Server { slots: usize::MAX >> 8, queue: 0, tells_load: false };
    let mut world = World::new(vec![server; PARTS], Duration::ZERO, |_| key(&mut dice));
    for part in 0..PARTS {
        let members = (0..3).map(|copy| (part + copy) % PARTS).collect();
        world.add(Pilot::new(policy, Restraint::default(), 3), members);
    }
    let calls = (0..READS * KEYS).map(|n| {
        let read = n / KEYS;
        Calls {
            at: MS * 2_000 * u32::try_from(read).unwrap_or(0),
            by: (n % PARTS as u64) as usize,
            tag: read,
        }
    });
    let mut last = vec![0.0f64; usize::try_from(READS).unwrap_or(0)];
    world.run(calls, MS * 20_000, |seen| {
        let took = seen.took.map_or(f64::INFINITY, |took| took.as_secs_f64() * 1_000.0);
        let read = &mut last[usize::try_from(seen.tag).unwrap_or(0)];
        *read = read.max(took);
    });
    last.sort_by(f64::total_cmp);
    let tally = world.tally();
    let more = (tally.attempts as f64 / tally.calls as f64 - 1.0) * 100.0;
    vec![percentile(&last, 0.5), percentile(&last, 0.99), percentile(&last, 0.999), more]
}

/// A cluster file system: mostly idle, or beside a sort of terabytes.
#[derive(Clone, Copy)]
pub struct Cell {
    pub name: &'static str,
    /// How busy the disks are.
    utilisation: f64,
    without: [f64; 4],
    tied: [f64; 4],
}

pub const CELLS: [Cell; 2] = [
    Cell {
        name: "mostly idle",
        utilisation: 0.36,
        without: [19.0, 38.0, 67.0, 98.0],
        tied: [16.0, 29.0, 42.0, 61.0],
    },
    Cell {
        name: "beside a sort of terabytes",
        utilisation: 0.63,
        without: [24.0, 56.0, 108.0, 159.0],
        tied: [19.0, 38.0, 67.0, 108.0],
    },
];
const DISKS: usize = 30;
const CLIENTS: usize = 300;
const DISK: Duration = Duration::from_millis(8);
/// Client, network and file system around the disk.
const AROUND: f64 = 10.0;
const READ: u64 = 150_000;

/// Reads of a cluster file system.
pub fn tied(cell: Cell, rounds: usize) -> Table {
    let about = format!(
        "Reads of a cluster file system, {}. A simulation at the paper's parameters: {DISKS} disks, each a queue that takes 8 ms for a \
        read, exponentially distributed; {CLIENTS} clients, each with three disks that have its data; 0.5 ms one way; {READ} reads a \
        round. Set so that the row without is the paper's: {AROUND} ms around the disk for every read, and a load of {:.0} % of the disks.",
        cell.name,
        cell.utilisation * 100.0
    );
    let columns =
        ["p50 in ms", "p90 in ms", "p99 in ms", "p99.9 in ms", "work of disks beyond 8 ms a read in %"];
    let policies = [(SINGLE, Policy::Single), (TIED, tie())];
    let name = format!("The Tail at Scale: tied reads, {}", cell.name);
    let play = |policy, seed| reads(policy, cell.utilisation, seed);
    let mut table = simulated((&name, &about), &columns, policies, rounds, play);
    let four = |figures: [f64; 4]| figures.map(Some).to_vec();
    table.rows.push(quoted(PAPER_SINGLE, &[four(cell.without), vec![None]].concat()));
    table.rows.push(quoted(PAPER_TIED, &[four(cell.tied), vec![None]].concat()));
    table
}

fn tie() -> Policy {
    Policy::Tied { delay: HedgeDelay::Fixed(MS), max_attempts: 2 }
}

fn reads(policy: Policy, utilisation: f64, seed: u64) -> Vec<f64> {
    let (mut dice, mut spread) = (Dice::new(seed), Dice::new(seed + 1_000_000));
    let server = Server { slots: 1, queue: 10_000, tells_load: true };
    let mut world = World::new(vec![server; DISKS], MS / 2, |_| dice.until_next(1.0 / DISK.as_secs_f64()));
    for _ in 0..CLIENTS {
        let mut members: Vec<usize> = Vec::new();
        while members.len() < 3 {
            let disk = usize::try_from(spread.number()).unwrap_or(0) % DISKS;
            if !members.contains(&disk) {
                members.push(disk);
            }
        }
        world.add(Pilot::new(policy, Restraint::default(), 3), members);
    }
    let rate = DISKS as f64 * utilisation / DISK.as_secs_f64();
    let mut at = Duration::ZERO;
    let calls = (0..READ).map(|tag| {
        at += spread.until_next(rate);
        Calls { at, by: usize::try_from(spread.number()).unwrap_or(0) % CLIENTS, tag }
    });
    let mut took = Vec::new();
    world.run(calls, MS * 60_000, |seen| {
        // Clients that know nothing yet do not count.
        let counts = seen.tag >= READ / 5;
        took.extend(seen.took.filter(|_| counts).map(|took| took.as_secs_f64() * 1_000.0 + AROUND - 1.0));
    });
    took.sort_by(f64::total_cmp);
    let mut figures = [0.5, 0.9, 0.99, 0.999].map(|at| percentile(&took, at)).to_vec();
    figures.push((world.busy().as_secs_f64() / (READ as f64 * DISK.as_secs_f64()) - 1.0) * 100.0);
    figures
}

/// What a paper says has no spread.
fn quoted(name: &str, figures: &[Option<f64>]) -> Row {
    let cell = |figure: &Option<f64>| figure.and_then(|it| Spread::of([it]));
    Row { name: name.to_owned(), cells: figures.iter().map(cell).collect(), ratio: None, also: Vec::new() }
}
