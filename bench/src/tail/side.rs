//! All ways beside each other, on three unlike servers with time to spare.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    runtime,
    servers::{MANY_PLACES, Servers},
    ways::{ALL, ALL_2, BARE, HEDGED, HEDGED_FIXED, NAIVE, QUORUM, SINGLE, TIED, TOWER, Way},
};
use crate::{
    beside::{Contestant, side_by_side},
    machine,
    report::Table,
};

const WAYS: [&str; 10] = [BARE, TOWER, NAIVE, SINGLE, ALL_2, ALL, HEDGED_FIXED, HEDGED, TIED, QUORUM];
const COLUMNS: [&str; 8] = [
    "p50 in ms",
    "p95 in ms",
    "p99 in ms",
    "p99.9 in ms",
    "copies that began, per call",
    "work of servers per call in ms",
    "CPU per call in µs",
    "failed in %",
];
pub const P999: usize = 3;
pub const COPIES: usize = 4;

/// Calls at a time. An eighth of what the servers have places for.
const CALLERS: usize = 6;
const LASTS: Duration = Duration::from_millis(1_200);

pub fn table(rounds: usize) -> Table {
    let about = "Three unlike servers (wardkeep nodes; lognormal times with medians of 4, 5 and 6 ms and a sigma of 0.3; one call in \
        fifty takes 100 ms longer; 16 calls at a time, 64 wait), 6 calls at a time from one client, 1.2 s a round. CPU is that of clients and \
        servers together, which share a process.";
    let runtime = runtime();
    let servers = runtime.block_on(Servers::start(MANY_PLACES, 1));
    let opened: Vec<(&str, Arc<Way>)> = {
        let _entered = runtime.enter();
        WAYS.iter().map(|name| (*name, Arc::new(Way::open(name, &servers)))).collect()
    };
    let contestants = opened.into_iter().map(|(name, way)| {
        let (runtime, servers) = (&runtime, &servers);
        Contestant::new(name, move || runtime.block_on(round(&way, servers)))
    });
    let contestants = contestants.collect();
    let name = "Latency and load of each way to ask three servers";
    let table = side_by_side((name, about), &COLUMNS, BARE, rounds, contestants);
    runtime.block_on(servers.stop());
    table
}

async fn round(way: &Arc<Way>, servers: &Servers) -> Vec<f64> {
    let (begun, worked) = servers.worked();
    let (cpu, begin) = (machine::cpu_seconds(), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let way = way.clone();
        callers.spawn(async move {
            let (mut took, mut failed) = (Vec::new(), 0.0);
            while begin.elapsed() < LASTS {
                let asked = Instant::now();
                if way.ask().await {
                    took.push(asked.elapsed().as_secs_f64() * 1_000.0);
                } else {
                    failed += 1.0;
                }
            }
            (took, failed)
        });
    }
    let all = callers.join_all().await;
    let failed: f64 = all.iter().map(|(_, failed)| failed).sum();
    let mut took: Vec<f64> = all.into_iter().flat_map(|(took, _)| took).collect();
    took.sort_by(f64::total_cmp);
    let calls = took.len() as f64 + failed;
    let (cpu, after) = (machine::cpu_seconds() - cpu, servers.worked());
    let at = |share: f64| percentile(&took, share);
    vec![
        at(0.5),
        at(0.95),
        at(0.99),
        at(0.999),
        (after.0 - begun) / calls,
        (after.1 - worked) * 1_000.0 / calls,
        cpu * 1e6 / calls,
        failed * 100.0 / calls,
    ]
}

/// Of sorted figures; NaN of none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
