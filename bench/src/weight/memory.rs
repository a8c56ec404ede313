//! What one more supervised task takes, in this process and beside the peers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use wardkeep_node::{Node, Ward};

use crate::{
    beside::{Contestant, side_by_side},
    child, counted, erlang, machine,
    report::Table,
};

pub const WARDKEEP: &str = "wardkeep: a task ward that pulses and sleeps";
const BARE: &str = "tokio: a task that sleeps";
const COLUMNS: [&str; 3] = ["live in bytes", "resident in bytes", "CPU in µs a second"];
const FEW: usize = 1_000;
const MANY: usize = 21_000;
const BEAT: Duration = Duration::from_secs(1);

pub fn table(rounds: usize) -> Table {
    let about = "One more task that wakes once a second, pulses where there is a pulse, and sleeps (actors only wait for messages): the difference between \
        21,000 and 1,000 of them, each number in a process of its own. *Live* are those asked of the allocator that live, \
        *resident* is what the system says, *CPU* that of the whole process. A ward is one of a node that is alone: task, \
        node's record and its own steward's record are in it, and its pulse is watched over. Actors have a supervisor. \
        Erlang's live bytes are its own count of its memory.";
    let kinds = [
        (BARE, "task"),
        ("tokio: a task with an interval and a token", "token"),
        (WARDKEEP, "ward"),
        ("wardkeep: a task ward with an interval that can be cancelled", "patient-ward"),
        ("ractor: an actor", "ractor"),
        ("kameo: an actor", "kameo"),
    ];
    let mut contestants: Vec<_> = kinds
        .into_iter()
        .map(|(name, kind)| {
            Contestant::new(name, move || {
                let [few, many] = [FEW, MANY].map(|n| child::figures(&format!("memory {kind} {n}")));
                few.iter().zip(many).map(|(few, many)| (many - few) / (MANY - FEW) as f64).collect()
            })
        })
        .collect();
    if erlang::is_here() {
        contestants.push(Contestant::new("Erlang/OTP: a supervised process", || {
            let [few, many] = [FEW, MANY].map(|n| erlang::figures(&["memory", &n.to_string()])[0]);
            vec![(many - few) / (MANY - FEW) as f64, f64::NAN, f64::NAN]
        }));
    }
    side_by_side(("Memory of a supervised task", about), &COLUMNS, BARE, rounds, contestants)
}

pub fn note(memory: &Table) -> String {
    let (ward, bare) = (memory.median(WARDKEEP, 0), memory.median(BARE, 0));
    format!(
        "What bounds the memory of a ward: of its {ward:.0} bytes {bare:.0} are what tokio takes for the task itself, with its \
        timer (in steps of 128 bytes). The rest is its incarnation (name, counters, the means to stop it), the node's \
        record of it, the steward's, and its alarm. A token, an interval, a unit of work or a status are paid for by the wards \
        that use them."
    )
}

/// In a process of its own.
pub fn job(args: &[String]) -> Vec<f64> {
    let [kind, many] = args else { panic!("memory KIND N") };
    let many: usize = many.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let resident = machine::resident_mib();
        counted::begin();
        let up = Arc::new(AtomicUsize::new(0));
        let held: Box<dyn std::any::Any> = match kind.as_str() {
            "task" => Box::new(tasks(many, &up)),
            "token" => Box::new(tasks_with_token(many, &up)),
            "ward" => Box::new(wards(many, &up, false).await),
            "patient-ward" => Box::new(wards(many, &up, true).await),
            "ractor" => Box::new(super::super::peers::ractor::idle(many, &up).await),
            "kameo" => Box::new(super::super::peers::kameo::idle(many, &up).await),
            other => panic!("no kind of task: {other}"),
        };
        while up.load(Relaxed) < many {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(1_500)).await;
        let (live, cpu) = (counted::live() as f64, machine::cpu_seconds());
        let resident = machine::resident_mib() - resident;
        sleep(Duration::from_secs(3)).await;
        let cpu = (machine::cpu_seconds() - cpu) / 3.0;
        drop(held);
        vec![live, resident * f64::from(1 << 20), cpu * 1e6]
    })
}

fn tasks(many: usize, up: &Arc<AtomicUsize>) -> Vec<tokio::task::JoinHandle<()>> {
    let task = |_| {
        let up = up.clone();
        tokio::task::spawn(async move {
            up.fetch_add(1, Relaxed);
            loop {
                sleep(BEAT).await;
            }
        })
    };
    (0..many).map(task).collect()
}

fn tasks_with_token(
    many: usize,
    up: &Arc<AtomicUsize>,
) -> Vec<(CancellationToken, tokio::task::JoinHandle<()>)> {
    let task = |_| {
        let (up, token) = (up.clone(), CancellationToken::new());
        let told = token.clone();
        let task = tokio::task::spawn(async move {
            up.fetch_add(1, Relaxed);
            let mut beat = tokio::time::interval(BEAT);
            loop {
                tokio::select! {
                    _ = beat.tick() => {}
                    () = told.cancelled() => return,
                }
            }
        });
        (token, task)
    };
    (0..many).map(task).collect()
}

/// A node that is alone.
async fn wards(many: usize, up: &Arc<AtomicUsize>, patient: bool) -> tokio::task::JoinHandle<()> {
    let mut node = Node::builder("heavy");
    for n in 0..many {
        let (name, up) = (format!("ward-{n:05}"), up.clone());
        let ward = if patient {
            Ward::task(name, move |context| {
                up.fetch_add(1, Relaxed);
                async move {
                    let mut beat = tokio::time::interval(BEAT);
                    loop {
                        tokio::select! {
                            _ = beat.tick() => context.pulse(),
                            () = context.cancelled() => return Ok(()),
                        }
                    }
                }
            })
        } else {
            Ward::task(name, move |context| {
                up.fetch_add(1, Relaxed);
                async move {
                    while !context.is_cancelled() {
                        context.pulse();
                        sleep(BEAT).await;
                    }
                    Ok(())
                }
            })
        };
        node = node.ward(ward.pulse_timeout(5 * BEAT));
    }
    let node = node.bind("127.0.0.1:0").await.expect("a node");
    tokio::task::spawn(async move { node.run_until(std::future::pending()).await.expect("it runs") })
}
