//! Measures the three data paths of the code search over a corpus: build time, memory, and latency by kind of query.
//!
//! `cargo run --release -p wardkeep-examples --example engine_bench -- [QUERIES] [LIMIT] [MAX_MIB] [DIR]`
#![allow(clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;
use wardkeep_examples::search::{Corpus, DataPath, Drawn, Engine, QueryKind, draw};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).map_or(Ok(default), |arg| arg.parse());
    let (queries, limit) = (usize::try_from(number(0, 2000)?)?, usize::try_from(number(1, 50)?)?);
    let max_bytes = number(2, 48)? << 20;
    let before = Instant::now();
    let corpus = Arc::new(match args.get(3) {
        Some(dir) => Corpus::from_dir(Path::new(dir), max_bytes, &|_| {})?,
        None => Corpus::of_this_build(max_bytes, &|_| {})?,
    });
    println!(
        "corpus: {} files, {} bytes, cut: {}, read in {:.2?}, memory {} MiB",
        corpus.files.len(),
        corpus.bytes,
        corpus.truncated,
        before.elapsed(),
        memory("VmRSS:")?
    );
    let before = Instant::now();
    let drawn = draw(&corpus, 1, queries);
    println!("{} queries drawn in {:.2?}, memory {} MiB", drawn.len(), before.elapsed(), memory("VmRSS:")?);

    let mut fastest = vec![Duration::MAX; drawn.len()];
    let mut winners = vec![DataPath::Scan; drawn.len()];
    let mut answers = Vec::new();
    let (mut engines, mut dirs) = (Vec::new(), Vec::new());
    for data_path in DataPath::ALL {
        let dir = tempfile::tempdir()?;
        let (before, rss) = (Instant::now(), memory("VmRSS:")?);
        let engine = data_path.build(Arc::clone(&corpus), dir.path(), &|_| {})?;
        let disk: u64 =
            fs::read_dir(dir.path())?.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        println!(
            "\n{data_path}: built in {:.2?}, memory {} -> {} MiB (peak so far {}), disk {} MiB",
            before.elapsed(),
            rss,
            memory("VmRSS:")?,
            memory("VmHWM:")?,
            disk >> 20
        );
        let mut times: BTreeMap<Option<QueryKind>, Vec<(Duration, &str)>> = BTreeMap::new();
        for (n, Drawn { kind, query }) in drawn.iter().enumerate() {
            let before = Instant::now();
            let answer = engine.search(query, limit, &|| true)?;
            let took = before.elapsed();
            times.entry(Some(*kind)).or_default().push((took, query.as_str()));
            times.entry(None).or_default().push((took, query.as_str()));
            if took < fastest[n] {
                (fastest[n], winners[n]) = (took, data_path);
            }
            match answers.get(n) {
                None => answers.push(answer),
                Some(first) => assert_eq!(*first, answer, "{query}"),
            }
        }
        for (kind, times) in times {
            let name = kind.map_or("all", QueryKind::as_str);
            report(name, times);
        }
        engines.push(engine);
        dirs.push(dir);
    }
    println!("\nfastest of three, per query:");
    report("all", fastest.into_iter().map(|took| (took, "")).collect());
    for kind in QueryKind::ALL {
        let wins = |path| {
            drawn
                .iter()
                .zip(&winners)
                .filter(|(drawn, winner)| drawn.kind == kind && **winner == path)
                .count()
        };
        let wins: Vec<String> =
            DataPath::ALL.into_iter().map(|path| format!("{path} {}", wins(path))).collect();
        println!("  {kind:12} fastest: {}", wins.join(", "));
    }
    race(&engines, &drawn, limit)
}

/// Asks all engines at once, takes the first answer and stops the others: what replication can give without a network.
fn race(engines: &[Box<dyn Engine>], drawn: &[Drawn], limit: usize) -> Result<(), Box<dyn Error>> {
    println!("\nall three at once, the first answer stops the others:");
    let mut times: BTreeMap<Option<QueryKind>, Vec<(Duration, &str)>> = BTreeMap::new();
    let mut wins: BTreeMap<(QueryKind, DataPath), usize> = BTreeMap::new();
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let (answered, answers) = mpsc::channel();
        let runners: Vec<_> = engines
            .iter()
            .map(|engine| {
                let (ask, asked) = mpsc::channel::<(&Drawn, Arc<AtomicBool>)>();
                let answered = answered.clone();
                scope.spawn(move || {
                    for (drawn, open) in asked {
                        let answer = engine.search(&drawn.query, limit, &|| open.load(Ordering::Relaxed));
                        if answered.send((engine.data_path(), answer.is_ok())).is_err() {
                            break;
                        }
                    }
                });
                ask
            })
            .collect();
        for drawn in drawn {
            let (before, open) = (Instant::now(), Arc::new(AtomicBool::new(true)));
            for runner in &runners {
                runner.send((drawn, Arc::clone(&open))).map_err(|_| "an engine has gone")?;
            }
            let mut winner = None;
            for _ in &runners {
                let (path, ok) = answers.recv()?;
                if ok && winner.is_none() {
                    open.store(false, Ordering::Relaxed);
                    winner = Some((path, before.elapsed()));
                }
            }
            let (path, took) = winner.ok_or("no engine answered")?;
            *wins.entry((drawn.kind, path)).or_default() += 1;
            times.entry(Some(drawn.kind)).or_default().push((took, drawn.query.as_str()));
            times.entry(None).or_default().push((took, drawn.query.as_str()));
        }
        Ok(())
    })?;
    for (kind, times) in times {
        report(kind.map_or("all", QueryKind::as_str), times);
    }
    println!("  wins: {wins:?}");
    Ok(())
}

fn report(name: &str, mut times: Vec<(Duration, &str)>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].0.as_secs_f64() * 1e3;
    let slowest = times.iter().rev().take(2).map(|(_, query)| *query).collect::<Vec<_>>();
    println!(
        "  {name:12} n {:5}  p50 {:8.3}  p90 {:8.3}  p99 {:8.3}  max {:8.3} ms  slowest {slowest:?}",
        times.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

/// A line of `/proc/self/status`, in MiB.
fn memory(key: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024)
}
