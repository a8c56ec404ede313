//! Crash to running again where a supervisor decides, over loopback.

use std::{sync::Arc, time::Instant};

use tokio::sync::{Notify, oneshot};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use wardkeep::daemon::Supervisor;
use wardkeep_node::Node;
use wardkeep_steward::Config;

use super::{
    Patient, crashes,
    local::{fragile, group},
    percentiles, runtime,
};
use crate::{
    beside::{Contestant, LATENCY, side_by_side},
    erlang,
    report::Table,
};

pub const TRIP: &str = "one gRPC round trip to the node (tonic, health check)";
pub const IN_MEMORY: &str = "wardkeep: supervisor with its history in memory";
const ON_DISK: &str = "wardkeep: supervisor with its history on disk";
const ERLANG_TRIP: &str = "Erlang/OTP: one message to another node and back";
const ERLANG: &str = "Erlang/OTP: a supervisor's child on another node";
const TIMES: usize = 100;

pub fn table(rounds: usize) -> Table {
    let about = "The same crash on a node that attends a supervisor: the node tells, the supervisor writes its decision \
        down and commands, the node starts. Node, supervisor and whoever asks share a process and two cores, and talk over \
        loopback; 100 times a round with a pause before each, as the round trips. Erlang's two nodes are processes; its \
        supervisor writes nothing down.";
    let mut contestants = vec![
        Contestant::new(TRIP, || percentiles(runtime().block_on(trips()))),
        Contestant::new(IN_MEMORY, || percentiles(runtime().block_on(heal(None)))),
        Contestant::new(ON_DISK, || {
            let folder = tempfile::tempdir().expect("a folder");
            percentiles(runtime().block_on(heal(Some(folder.path()))))
        }),
    ];
    if erlang::is_here() {
        let times = TIMES.to_string();
        let of_two = |job: &'static str, times: String| move || erlang::figures_of_two(&[job, &times]);
        contestants.push(Contestant::new(ERLANG_TRIP, of_two("trip", times.clone())));
        contestants.push(Contestant::new(ERLANG, of_two("afar", times)));
    }
    side_by_side(
        ("From a crash to running again, through a supervisor", about),
        &LATENCY,
        TRIP,
        rounds,
        contestants,
    )
}

pub fn note(remote: &Table) -> String {
    format!(
        "The way from node to supervisor and back is one round trip; all of it takes {:.1} of them with the history in \
        memory, {:.1} with it on disk, where nothing is commanded before SQLite has confirmed that it is written \
        (`synchronous=FULL`): that is one write to the disk.",
        remote.median(IN_MEMORY, 0) / remote.median(TRIP, 0),
        remote.median(ON_DISK, 0) / remote.median(TRIP, 0),
    )
}

async fn trips() -> Vec<f64> {
    let node = Node::builder("asked").bind("127.0.0.1:0").await.expect("a node");
    let uri = format!("http://{}", node.local_addr());
    let (stop, stopped) = oneshot::channel::<()>();
    let hosting = tokio::task::spawn(node.run_until(async { drop(stopped.await) }));
    let channel = tonic::transport::Endpoint::from_shared(uri).expect("a URI").connect().await;
    let mut client = HealthClient::new(channel.expect("the node answers"));
    let mut took = Vec::new();
    for _ in 0..TIMES {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        let begin = Instant::now();
        client.check(HealthCheckRequest::default()).await.expect("it is well");
        took.push(begin.elapsed().as_nanos() as f64 / 1_000.0);
    }
    drop((client, stop));
    hosting.await.expect("no panic").expect("the node ends well");
    took
}

async fn heal(history: Option<&std::path::Path>) -> Vec<f64> {
    let config = Config { restart_burst: 1_000_000, ..Config::default() };
    let mut supervisor = Supervisor::builder().steward(config);
    if let Some(folder) = history {
        supervisor = supervisor.data_dir(folder);
    }
    let supervisor = supervisor.bind("127.0.0.1:0").await.expect("a supervisor");
    let uri = format!("http://{}", supervisor.local_addr());
    let (stop_supervisor, stopped) = oneshot::channel::<()>();
    let supervising = tokio::task::spawn(supervisor.run_until(async { drop(stopped.await) }));

    let (patient, mut began) = Patient::new();
    let go = Arc::new(Notify::new());
    let node = Node::builder("watched").supervisor(&uri).ward(fragile(patient, go.clone(), true));
    let node = node.group(group("fragile")).bind("127.0.0.1:0").await.expect("a node");
    let mut snapshots = node.handle().snapshots();
    let (stop_node, stopped) = oneshot::channel::<()>();
    let hosting = tokio::task::spawn(node.run_until(async { drop(stopped.await) }));
    snapshots.wait_for(|now| now.attending).await.expect("it attends");
    drop(snapshots);
    let took = crashes(TIMES, &mut began, || go.notify_one()).await;
    drop(stop_node);
    hosting.await.expect("no panic").expect("the node ends well");
    drop(stop_supervisor);
    supervising.await.expect("no panic").expect("the supervisor ends well");
    took
}
