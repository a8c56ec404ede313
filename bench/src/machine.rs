//! What it was measured on and with. No names of hosts or people.

use std::{collections::BTreeMap, process::Command};

use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike as _,
    },
    time::{ClockId, clock_gettime},
};
use procfs::Current as _;
use serde::Deserialize;
use wardkeep_measure::report::Machine;

/// Crates whose versions are named.
const NAMED: [&str; 9] =
    ["anyhow", "h2", "hyper", "kameo", "ractor", "tokio", "tonic", "tonic-types", "tower"];

pub fn describe() -> Result<Machine, Box<dyn std::error::Error>> {
    let memory = procfs::Meminfo::current()?.mem_total as f64;
    Ok(Machine {
        date: chrono::Utc::now().format("%Y-%m-%d").to_string(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cores: std::thread::available_parallelism()?.get(),
        memory_gib: (memory / f64::from(1 << 30) * 10.0).round() / 10.0,
        load_before: procfs::LoadAverage::current()?.one,
        versions: versions()?,
    })
}

fn versions() -> Result<BTreeMap<String, String>, Box<dyn std::error::Error>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let lock: Lock = toml::from_str(include_str!("../Cargo.lock"))?;
    let named = lock.package.into_iter().filter(|it| NAMED.contains(&it.name.as_str()));
    let mut versions: BTreeMap<_, _> = named.map(|it| (it.name, it.version)).collect();
    let rustc = Command::new("rustc").arg("--version").output()?;
    let rustc = String::from_utf8(rustc.stdout)?;
    versions.insert("rustc".into(), rustc.split(' ').nth(1).unwrap_or_default().to_owned());
    versions.extend(crate::erlang::version().map(|version| ("Erlang/OTP".to_owned(), version)));
    Ok(versions)
}

/// CPU time of this process so far, in seconds.
pub fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process can ask for its own usage");
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

/// CPU time of this thread so far, in nanoseconds: what else the machine does is not in it. (What `getrusage` says of
/// a thread that runs may be some milliseconds old.)
pub fn thread_nanos() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a thread can ask for its own time");
    time.num_nanoseconds() as f64
}

/// Resident memory of this process, in MiB.
pub fn resident_mib() -> f64 {
    let pages = procfs::process::Process::myself().and_then(|me| me.statm()).map_or(0, |it| it.resident);
    pages as f64 * procfs::page_size() as f64 / f64::from(1 << 20)
}
