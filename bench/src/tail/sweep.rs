//! From idle to half as much again as the servers can bear, with real servers and in virtual time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use wardkeep_client::testing::{Calls, Dice, Pilot, Server, World};

use super::{
    runtime,
    servers::{MEDIANS, PLACES, Servers, WAIT, takes},
    side::percentile,
    ways::{ALL, DEADLINE, HEDGED, NAIVE, SINGLE, TIED, TOWER, UNRESTRAINED, Way, policy, restraint},
};
use crate::report::{Row, Spread, Table};

/// Offered load, in percent of what the servers can bear.
pub const LOADS: [u32; 9] = [5, 10, 25, 50, 75, 90, 100, 125, 150];
/// Below that all are asked at the same time, each its own servers: it takes long, and costs little.
const TOGETHER: u32 = 25;
pub const OURS: [&str; 4] = [ALL, HEDGED, TIED, UNRESTRAINED];
const WAYS: [&str; 7] = [SINGLE, ALL, UNRESTRAINED, HEDGED, TIED, TOWER, NAIVE];

/// Long enough for many hundred calls, or for queues to fill; where calls are lost, for thousands: two in a hundred are
/// to be told from chance.
fn lasts(load: u32) -> Duration {
    Duration::from_millis(match load {
        ..TOGETHER => 9_000,
        ..100 => 1_500,
        _ => 6_000,
    })
}

/// What became of the calls at one load: good answers in time, in percent of the calls, and p99.9 in ms.
type Point = (f64, f64);

/// Goodput, and p99.9.
pub fn tables(rounds: usize) -> (Table, Table) {
    let runtime = runtime();
    let capacity = runtime.block_on(capacity());
    eprintln!("the servers bear {capacity:.0} calls a second");
    let mut seen = vec![vec![Vec::new(); LOADS.len()]; WAYS.len()];
    for round in 0..rounds {
        for (at, load) in LOADS.into_iter().enumerate() {
            eprintln!("sweep: round {} of {rounds}, {load} %", round + 1);
            let rate = capacity * f64::from(load) / 100.0;
            let seed = (round * LOADS.len() + at) as u64;
            let points = runtime.block_on(async {
                let mut points = Vec::new();
                if load < TOGETHER {
                    let all = WAYS.map(|name| offered(name, rate, lasts(load), seed));
                    return futures_util::future::join_all(all).await;
                }
                for turn in 0..WAYS.len() {
                    let way = (turn + round) % WAYS.len();
                    points.push((way, offered(WAYS[way], rate, lasts(load), seed).await));
                }
                points.sort_by_key(|(way, _)| *way);
                points.into_iter().map(|(_, point)| point).collect()
            });
            points.into_iter().enumerate().for_each(|(way, point)| seen[way][at].push(point));
        }
    }
    let about = format!(
        "The same servers, but for {PLACES} calls at a time: {capacity:.0} calls a second of capacity (measured: 48 calls at a time, single). Calls come at random \
        (open loop), each with 250 ms to be answered."
    );
    split(&about, "", &seen, &WAYS)
}

/// The same in virtual time, with the channel's own decisions: no machine is in the way.
pub fn simulated(rounds: usize) -> (Table, Table) {
    let ways = [SINGLE, ALL, UNRESTRAINED, HEDGED, TIED];
    let mut seen = vec![vec![Vec::new(); LOADS.len()]; ways.len()];
    for round in 0..rounds {
        for (way, name) in ways.into_iter().enumerate() {
            for (at, load) in LOADS.into_iter().enumerate() {
                seen[way][at].push(played(name, f64::from(load) / 100.0, round as u64));
            }
        }
    }
    let about = "A simulation: the decisions are those of the client (the same code), servers and network are queues in virtual time; \
        20,000 calls a round and load, 0.1 ms one way.";
    split(about, ", simulated", &seen, &ways)
}

fn split(about: &str, how: &str, seen: &[Vec<Vec<Point>>], ways: &[&str]) -> (Table, Table) {
    let columns = |unit: &str| LOADS.map(|load| format!("at {load} % in {unit}")).to_vec();
    let table = |name: String, about: String, unit: &str, of: &dyn Fn(&Point) -> f64| {
        let row = |way: usize| {
            let cell = |at: &Vec<Point>| Spread::of(at.iter().map(of).filter(|it| !it.is_nan()));
            // At the last load: where it costs most.
            let pairs = seen[way].last().into_iter().flatten().zip(seen[0].last().into_iter().flatten());
            let ratio = Spread::of(pairs.map(|(it, base)| of(it) / of(base)).filter(|_| way > 0));
            Row {
                name: ways[way].to_owned(),
                cells: seen[way].iter().map(cell).collect(),
                ratio,
                also: Vec::new(),
            }
        };
        let rows = (0..ways.len()).map(row).collect();
        Table { name, about, columns: columns(unit), baseline: ways[0].to_owned(), also: Vec::new(), rows }
    };
    let goodput = table(
        format!("Good answers in time over offered load{how}"),
        format!("{about} In percent of the calls; the last column is for the highest load."),
        "%",
        &|(good, _): &Point| *good,
    );
    let tail = table(
        format!("p99.9 over offered load{how}"),
        format!("Of the answers that came in time. {about} The last column is for the highest load."),
        "ms",
        &|(_, tail): &Point| *tail,
    );
    (goodput, tail)
}

/// Calls that the servers can answer in a second.
async fn capacity() -> f64 {
    let servers = Servers::start(PLACES, 99).await;
    let way = Arc::new(Way::open(SINGLE, &servers));
    let (begin, lasts) = (Instant::now(), Duration::from_secs(3));
    let mut callers = JoinSet::new();
    for _ in 0..48 {
        let way = way.clone();
        callers.spawn(async move {
            let mut good = 0.0;
            while begin.elapsed() < lasts {
                good += f64::from(u8::from(way.ask().await));
            }
            good
        });
    }
    let good: f64 = callers.join_all().await.into_iter().sum();
    drop(way);
    servers.stop().await;
    good / begin.elapsed().as_secs_f64()
}

/// So many calls a second, with fresh servers and a fresh client; the first fifth does not count.
async fn offered(name: &str, rate: f64, lasts: Duration, seed: u64) -> Point {
    let servers = Servers::start(PLACES, seed).await;
    let way = Arc::new(Way::open(name, &servers));
    let mut dice = Dice::new(seed);
    let begin = tokio::time::Instant::now();
    let (mut at, mut calls, mut asking) = (Duration::ZERO, 0.0, JoinSet::new());
    while at < lasts {
        at += dice.until_next(rate);
        tokio::time::sleep_until(begin + at).await;
        let (way, counts) = (way.clone(), at > lasts / 5);
        calls += f64::from(u8::from(counts));
        asking.spawn(async move {
            let asked = Instant::now();
            let good = way.ask().await;
            (good && counts).then(|| asked.elapsed().as_secs_f64() * 1_000.0)
        });
    }
    let mut took: Vec<f64> = asking.join_all().await.into_iter().flatten().collect();
    took.sort_by(f64::total_cmp);
    drop(way);
    servers.stop().await;
    (took.len() as f64 * 100.0 / calls, percentile(&took, 0.999))
}

fn played(name: &str, load: f64, seed: u64) -> Point {
    let (calls, warm) = (20_000u64, 4_000);
    // What the machine does not take: places over mean times.
    let mut dice = Dice::new(seed + 1_000);
    let mean = |median, dice: &mut Dice| (0..20_000).map(|_| takes(dice, median)).sum::<Duration>() / 20_000;
    let capacity: f64 =
        MEDIANS.map(|median| PLACES as f64 / mean(median, &mut dice).as_secs_f64()).iter().sum();
    let mut world = World::new(
        [Server { slots: PLACES, queue: PLACES * WAIT, tells_load: true }; 3],
        Duration::from_micros(100),
        |server: usize| takes(&mut dice, MEDIANS[server]),
    );
    world.add(Pilot::new(policy(name).expect("one of ours"), restraint(name), 3), vec![0, 1, 2]);
    let (mut at, mut arrivals) = (Duration::ZERO, Dice::new(seed));
    let arrivals = (0..calls).map(|tag| {
        at += arrivals.until_next(capacity * load);
        Calls { at, by: 0, tag }
    });
    let mut took = Vec::new();
    world.run(arrivals, DEADLINE, |seen| {
        took.extend(seen.took.filter(|_| seen.tag >= warm).map(|took| took.as_secs_f64() * 1_000.0));
    });
    took.sort_by(f64::total_cmp);
    (took.len() as f64 * 100.0 / (calls - warm) as f64, percentile(&took, 0.999))
}
