//! Worlds in processes of their own, several at a time.

use std::{
    ops::RangeInclusive,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use wardkeep_node::testing::Flaw;

use super::cluster;

/// Which world a process is to live through.
const SEED: &str = "WARDKEEP_SEED";
const FLAW: &str = "WARDKEEP_FLAW";
/// It was started for one world alone.
const ALONE: &str = "WARDKEEP_ONE_WORLD";
/// Stands before the lines of a trace.
const MARK: &str = "|";

pub struct Outcome {
    pub seed: u64,
    pub trace: String,
    pub broken: Option<String>,
}

pub fn count(variable: &str, unless: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(unless)
}

/// How many at a time.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Those to live through: one, if it was named; else `WARDKEEP_SEEDS` of them.
pub fn seeds() -> RangeInclusiveOfSeeds {
    match std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => RangeInclusiveOfSeeds(seed..=seed),
        None => {
            let first = count("WARDKEEP_FIRST_SEED", 1);
            let many = count("WARDKEEP_SEEDS", if cfg!(debug_assertions) { 40 } else { 300 });
            RangeInclusiveOfSeeds(first..=first + many - 1)
        }
    }
}

pub struct RangeInclusiveOfSeeds(RangeInclusive<u64>);

impl RangeInclusiveOfSeeds {
    pub fn len(&self) -> u64 {
        self.0.end() - self.0.start() + 1
    }
}

/// Those in which a promise was broken.
pub fn lived_through(seeds: RangeInclusiveOfSeeds, flaw: Option<Flaw>, workers: usize) -> Vec<Outcome> {
    let (first, last) = (*seeds.0.start(), *seeds.0.end());
    let next = AtomicU64::new(first);
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > last || broken.lock().unwrap().len() >= 10 {
                        return;
                    }
                    let outcome = live_elsewhere(seed, flaw);
                    if first == last {
                        println!("{}", outcome.trace);
                    }
                    if outcome.broken.is_some() {
                        broken.lock().unwrap().push(outcome);
                    }
                }
            });
        }
    });
    broken.into_inner().unwrap()
}

/// The first seed that finds a flaw out.
pub fn first_broken(mut seeds: RangeInclusive<u64>, flaw: Flaw) -> Option<(u64, String)> {
    seeds.find_map(|seed| live_elsewhere(seed, Some(flaw)).broken.map(|broken| (seed, broken)))
}

/// Lives through a world in another process.
pub fn live_elsewhere(seed: u64, flaw: Option<Flaw>) -> Outcome {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_world", "--nocapture", "--test-threads=1"]);
    command.env(SEED, seed.to_string()).env(ALONE, "1").stdin(Stdio::null());
    if let Some(flaw) = flaw {
        command.env(FLAW, format!("{flaw:?}"));
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let trace: String =
        said.lines().filter_map(|line| line.strip_prefix(MARK)).map(|line| format!("{line}\n")).collect();
    let last = trace.lines().last().unwrap_or_default();
    let broken = match last.strip_prefix("END ") {
        Some("well") if output.status.success() => None,
        Some(broken) => Some(broken.to_owned()),
        None => Some(format!("it died: {} {}", output.status, String::from_utf8_lossy(&output.stderr))),
    };
    Outcome { seed, trace, broken }
}

/// Lives through the world that the environment says, or the first.
pub fn live_here() {
    let seed = count(SEED, 1);
    let flaw = std::env::var(FLAW).ok().and_then(|flaw| match flaw.as_str() {
        "ForgetsEpochs" => Some(Flaw::ForgetsEpochs),
        "HurriesStops" => Some(Flaw::HurriesStops),
        _ => None,
    });
    let told = std::env::var("RUST_LOG").is_ok();
    if told {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
    let story = std::thread::spawn(move || cluster::live_through(seed, flaw)).join().unwrap();
    let end = story.broken.as_deref().unwrap_or("well").replace('\n', " ");
    let mut text: String = story.trace.iter().map(|line| format!("{MARK}{line}\n")).collect();
    text.push_str(&format!("{MARK}END {end}\n"));
    // The lines of the test harness must not be between them.
    print!("\n{text}");
    if std::env::var_os(ALONE).is_none() {
        assert_eq!(story.broken, None, "seed {seed}");
    }
}
