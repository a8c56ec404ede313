//! Crash to running again within one process.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
};
use wardkeep_node::{Node, Ward};
use wardkeep_proto::Error;
use wardkeep_steward::{Backoff, GroupSpec};

use super::{Patient, crashes, percentiles, runtime};
use crate::{
    beside::{Contestant, LATENCY, side_by_side},
    erlang, peers,
    report::Table,
};

pub const WARDKEEP: &str = "wardkeep: a task ward panics";
const JOIN_SET: &str = "tokio: a JoinSet whose owner spawns anew";
const TIMES: usize = 200;
/// A node restarts so many of its wards at once; then its budget has to be refilled.
const OF_ONE_NODE: usize = 40;

pub const NOTE: &str = "What wardkeep does between a crash and the next start, and the peers do not: the panic becomes a \
    well-formed error with its stack and its hashes; a steward on a thread of its own judges, counts against intensity and budget, \
    and decides; so a node heals while the runtime of its wards is stuck. That takes two changes of thread. What is logged and written \
    down comes after the start. Of the time of a panic, a fifth each go to the capture of its stack, to unwinding and the error, to the \
    wake of the steward's thread and to that of the ward's, and a sixth to the decision. The row of a ward that returns an error shows \
    what unwinding adds.";

/// No pause between restarts, and as many as it takes: the subject is the first of a row.
pub fn group(name: &str) -> GroupSpec {
    let none = Backoff { first: Duration::ZERO, max: Duration::ZERO, ..Backoff::default() };
    GroupSpec { intensity: u32::MAX, backoff: none, ..GroupSpec::new(name) }
}

pub fn table(rounds: usize) -> Table {
    let about = "From the moment before the panic to the first statement of what runs instead, 200 times a round with a \
        pause before each. Nothing is printed; what is logged goes into a writer that counts and forgets.";
    let mut contestants = vec![
        Contestant::new(JOIN_SET, || percentiles(runtime().block_on(join_set()))),
        Contestant::new(WARDKEEP, || wardkeep(true)),
        Contestant::new("wardkeep: a task ward returns an error", || wardkeep(false)),
        Contestant::new("ractor: a supervisor that spawns anew", || {
            percentiles(runtime().block_on(async {
                let (patient, mut began) = Patient::new();
                let crash = peers::ractor::heal(patient).await;
                crashes(TIMES, &mut began, crash).await
            }))
        }),
        Contestant::new("kameo: a supervised actor", || {
            percentiles(runtime().block_on(async {
                let (patient, mut began) = Patient::new();
                let crash = peers::kameo::heal(patient).await;
                crashes(TIMES, &mut began, crash).await
            }))
        }),
    ];
    if erlang::is_here() {
        contestants.push(Contestant::new("Erlang/OTP: a supervisor's child", || {
            erlang::figures(&["heal", &TIMES.to_string()])
        }));
    }
    side_by_side(("From a crash to running again", about), &LATENCY, JOIN_SET, rounds, contestants)
}

async fn join_set() -> Vec<f64> {
    let (patient, mut began) = Patient::new();
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let task = move || {
        let (patient, wait) = (patient.clone(), wait.clone());
        async move {
            patient.runs();
            wait.notified().await;
            patient.crash()
        }
    };
    let owner = tokio::task::spawn(async move {
        let mut tasks = JoinSet::<()>::new();
        tasks.spawn(task());
        while let Some(Err(_)) = tasks.join_next().await {
            tasks.spawn(task());
        }
    });
    let took = crashes(TIMES, &mut began, || go.notify_one()).await;
    owner.abort();
    took
}

fn wardkeep(panics: bool) -> Vec<f64> {
    let runtime = runtime();
    let took = (0..TIMES / OF_ONE_NODE).flat_map(|_| runtime.block_on(on_a_node(panics))).collect();
    percentiles(took)
}

/// A ward that crashes when it is told to.
pub fn fragile(patient: Patient, go: Arc<Notify>, panics: bool) -> Ward {
    Ward::task("fragile", move |_| {
        let (patient, go) = (patient.clone(), go.clone());
        async move {
            patient.runs();
            go.notified().await;
            if panics {
                patient.crash();
            }
            patient.crashes();
            Err::<(), _>(Error::from(crate::errors::failure()))
        }
    })
    .group("fragile")
}

async fn on_a_node(panics: bool) -> Vec<f64> {
    let (patient, mut began) = Patient::new();
    let go = Arc::new(Notify::new());
    let node = Node::builder("alone").ward(fragile(patient, go.clone(), panics)).group(group("fragile"));
    let node = node.bind("127.0.0.1:0").await.expect("a node");
    let (stop, stopped) = oneshot::channel::<()>();
    let hosting = tokio::task::spawn(node.run_until(async { drop(stopped.await) }));
    let took = crashes(OF_ONE_NODE, &mut began, || go.notify_one()).await;
    drop(stop);
    hosting.await.expect("no panic").expect("the node ends well");
    took
}
