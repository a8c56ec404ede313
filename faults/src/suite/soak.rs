//! Random faults for a long time on one cluster under load: nothing may be wrong, and nothing may grow.
//!
//! The supervisor and the node `formula` are never killed, so that what they hold can be compared between the
//! beginning and the end; everything else happens to them too.

use std::{path::Path as FilePath, time::Duration};

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::{
    Outcome, Trying as _,
    answer::Path,
    attack,
    cluster::{Cluster, Options, PATIENCE},
    load::{Load, Pace, Tally},
    pb::{Kind, Trouble},
    process::{Usage, signal, usage},
    proxy::Faults,
};

/// Between two faults: fewer than a group is allowed restarts.
const PAUSE: Duration = Duration::from_secs(6);
/// Growth that is none: what allocators and connections take or leave from one moment to the next.
const SLACK_BYTES: u64 = 32 << 20;
const SLACK_FILES: usize = 24;
const SLACK_THREADS: usize = 8;
/// The history is kept to this, and its log beside it.
const HISTORY: u64 = 4 << 20;
const HISTORY_LOG: u64 = 8 << 20;

/// What happens, to one node.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill,
    Terminate,
    Freeze,
    Partition,
    Late,
    Reset,
    Panic,
    Block,
    Flap,
    RapidReset,
    Garbage,
    Silent,
}

const GENTLE: [Blow; 10] = [
    Blow::Freeze,
    Blow::Partition,
    Blow::Late,
    Blow::Reset,
    Blow::Panic,
    Blow::Block,
    Blow::Flap,
    Blow::RapidReset,
    Blow::Garbage,
    Blow::Silent,
];

/// What the cluster holds at one moment.
#[derive(Debug)]
struct Sample {
    supervisor: Usage,
    node: Usage,
    suite: Usage,
    history: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Soaked {
    /// One line each.
    pub lines: Vec<String>,
    /// What did not hold.
    pub broken: Vec<String>,
}

/// Makes faults for so long, as the seed says. `say` gets a line now and then.
///
/// # Errors
/// The cluster does not start, or does not heal.
pub async fn run(program: &FilePath, time: Duration, seed: u64, say: impl Fn(&str)) -> Outcome<Soaked> {
    let config = format!("[history]\nmax_bytes = \"{HISTORY}B\"\n");
    let options = Options { proxies: true, restart_on_panic: true, config, ..Options::default() };
    let cluster = Cluster::start(program, options, seed).await?;
    let pace = Pace { rate: 100, ..Pace::default() };
    let load = Load::begin(&cluster.uri(), pace, seed)?;
    let mut dice = fastrand::Rng::with_seed(seed);
    let begun = Instant::now();
    // What is loaded, opened and cached at first is no growth, and some blows take memory once that the
    // allocator keeps.
    let warm = (time / 3).min(Duration::from_secs(600));
    let (mut first, mut blows, mut told) = (None, 0, begun);
    while begun.elapsed() < time {
        let (blow, path) = choose(&mut dice);
        let what = format!("blow {blows}, {blow:?} of {path}");
        strike(&cluster, blow, path, dice.u64(..)).await.trying(&what)?;
        cluster.well(PATIENCE).await.trying(&what)?;
        blows += 1;
        sleep(PAUSE).await;
        if begun.elapsed() >= warm && first.is_none() {
            first = Some(sample(&cluster).await?);
        }
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            say(&line(begun.elapsed(), blows, &load.tally(), &sample(&cluster).await?));
        }
    }
    let last = sample(&cluster).await?;
    let tally = load.cease().await;
    cluster.stop().await?;
    let first =
        first.ok_or_else(|| crate::Stuck("too short: no time was left to compare with".to_owned()))?;
    let mut broken = grown(&first, &last);
    if tally.failed + tally.wrong + tally.lost > 0 {
        broken.push(format!(
            "failed {}, wrong {}, lost {}: {:?}",
            tally.failed, tally.wrong, tally.lost, tally.told
        ));
    }
    let lines = vec![line(warm, 0, &Tally::default(), &first), line(begun.elapsed(), blows, &tally, &last)];
    Ok(Soaked { lines, broken })
}

fn choose(dice: &mut fastrand::Rng) -> (Blow, Path) {
    let path = Path::ALL[dice.usize(0..3)];
    let hard = path != Path::Formula && dice.u8(0..4) == 0;
    let blow = match hard {
        true => [Blow::Kill, Blow::Terminate][dice.usize(0..2)],
        false => GENTLE[dice.usize(0..GENTLE.len())],
    };
    (blow, path)
}

async fn strike(cluster: &Cluster, blow: Blow, path: Path, seed: u64) -> Outcome<()> {
    const ASK: &str = "/wardkeep.faults.v1.Answer/AskOnce";
    let place = cluster.place(path);
    let facts = cluster.facts(path).await?;
    let proxies = || [&place.clients, &place.supervisor].into_iter().flatten();
    let for_a_while = async |faults: Faults, time| {
        proxies().for_each(|proxy| proxy.set(faults.clone()));
        sleep(time).await;
        proxies().for_each(|proxy| proxy.set(Faults::default()));
    };
    let trouble = |kind: Kind, millis| Trouble { kind: kind.into(), millis, times: 1 };
    let anew = |before: String| {
        cluster.until(PATIENCE, move |now| now.get(path.name()).is_some_and(|facts| facts.boot != before))
    };
    match blow {
        Blow::Kill => {
            signal(facts.pid, Signal::SIGKILL)?;
            anew(facts.boot).await?;
        }
        Blow::Terminate => {
            signal(facts.pid, Signal::SIGTERM)?;
            anew(facts.boot).await?;
        }
        Blow::Freeze => {
            signal(facts.pid, Signal::SIGSTOP)?;
            sleep(Duration::from_secs(4)).await;
            signal(facts.pid, Signal::SIGCONT)?;
        }
        Blow::Partition => for_a_while(Faults::partition(), Duration::from_secs(4)).await,
        Blow::Late => {
            let late = Faults::late(Duration::from_millis(30), Duration::from_millis(25));
            for_a_while(late, Duration::from_secs(3)).await;
        }
        Blow::Reset => proxies().for_each(|proxy| proxy.reset_share(1.0)),
        Blow::Panic => cluster.trouble(path, trouble(Kind::Panic, 0)).await?,
        Blow::Block => cluster.trouble(path, trouble(Kind::BlockThread, 3_000)).await?,
        Blow::Flap => cluster.trouble(path, trouble(Kind::Flap, 0)).await?,
        Blow::RapidReset => {
            attack::rapid_reset(place.address, ASK, 500).await.trying("rapid reset")?;
        }
        Blow::Garbage => {
            attack::garbage(place.address, ASK, seed).await.trying("garbage")?;
        }
        Blow::Silent => drop(attack::silent(cluster.address(), 50).await),
    }
    Ok(())
}

async fn sample(cluster: &Cluster) -> Outcome<Sample> {
    let node = cluster.facts(Path::Formula).await?.pid;
    let size = |name: &str| std::fs::metadata(cluster.data_dir().join(name)).map_or(0, |file| file.len());
    Ok(Sample {
        supervisor: usage(cluster.supervisor_pid().unwrap_or(0)),
        node: usage(node),
        suite: usage(std::process::id()),
        history: size("history.db") + size("history.db-wal"),
    })
}

fn line(at: Duration, blows: u32, tally: &Tally, sample: &Sample) -> String {
    let of =
        |usage: &Usage| format!("{} MiB {} fds {} threads", usage.bytes >> 20, usage.files, usage.threads);
    format!(
        "{:>5} s  {blows} faults, {} calls, {} failed, {} wrong, {} lost; supervisor {}; node {}; suite {}; \
         history {} KiB",
        at.as_secs(),
        tally.calls,
        tally.failed,
        tally.wrong,
        tally.lost,
        of(&sample.supervisor),
        of(&sample.node),
        of(&sample.suite),
        sample.history >> 10
    )
}

/// What is more at the end than at the beginning.
fn grown(first: &Sample, last: &Sample) -> Vec<String> {
    let mut broken = Vec::new();
    let pairs = [
        ("the supervisor", first.supervisor, last.supervisor),
        ("the node", first.node, last.node),
        ("the suite", first.suite, last.suite),
    ];
    for (who, first, last) in pairs {
        let more = last.bytes > first.bytes + first.bytes / 4 + SLACK_BYTES
            || last.files > first.files + SLACK_FILES
            || last.threads > first.threads + SLACK_THREADS;
        if more {
            broken.push(format!("{who} has grown from {first:?} to {last:?}"));
        }
    }
    if last.history > HISTORY + HISTORY_LOG {
        broken.push(format!("the history has grown to {} KiB", last.history >> 10));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_story_and_the_witnesses_are_not_killed() {
        let story = |seed| {
            let mut dice = fastrand::Rng::with_seed(seed);
            (0..500).map(|_| choose(&mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(format!("{:?}", story(1)), format!("{:?}", story(1)));
        assert_ne!(format!("{:?}", story(1)), format!("{:?}", story(2)));
        let killed = |(blow, path): &(Blow, Path)| {
            *path == Path::Formula && matches!(blow, Blow::Kill | Blow::Terminate)
        };
        assert!(!story(3).iter().any(killed));
        assert!(story(3).iter().any(|(blow, _)| matches!(blow, Blow::Kill)));
    }

    #[test]
    fn what_grows_is_told() {
        let sample = |bytes, files| {
            let usage = Usage { bytes, files, ..Usage::default() };
            Sample { supervisor: usage, node: usage, suite: usage, history: 0 }
        };
        assert!(grown(&sample(1 << 20, 10), &sample(2 << 20, 20)).is_empty());
        assert_eq!(grown(&sample(1 << 20, 10), &sample(1 << 30, 10)).len(), 3);
        assert_eq!(grown(&sample(1 << 20, 10), &sample(1 << 20, 100)).len(), 3);
    }
}
