//! A node that is frozen (SIGSTOP): how long until it is found unreachable.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::sync::oneshot;
use wardkeep::daemon::Supervisor;
use wardkeep_node::{Node, Ward};
use wardkeep_proto::v1::{self, operator_client::OperatorClient};
use wardkeep_steward::Config;

use super::runtime;
use crate::{
    beside::{Contestant, side_by_side},
    child, erlang,
    report::Table,
};

pub const DEFAULT: &str = "wardkeep: reports each 500 ms (default)";

pub const NOTE: &str = "A frozen node's connection stands, so that nothing is closed that could be noticed: silence is all \
    there is. The verdict comes when it is longer than the node's own rhythm explains, within a floor (1.5 s by default) and a \
    ceiling (2.5 s); one less patient costs false alarms where packets are lost. Erlang's \
    nodes tick four times within the net tick time, and notice after three to five quarters of it: 45 to 75 s by default, here 1.5 to \
    2.5 s. Left out: ractor_cluster, whose pings have no deadline (a frozen peer was not noticed within 300 s).";

pub fn table(rounds: usize) -> Table {
    let about = "A node in a process of its own is stopped by SIGSTOP after it has reported for a while; the time until the \
        supervisor's picture of the fleet says that it is unreachable, asked each 5 ms (Erlang: until the other node is told that it \
        is down).";
    let quick = Config {
        pulse_interval: Duration::from_millis(100),
        silence_floor: Duration::from_millis(300),
        silence_ceiling: Duration::from_millis(500),
        ..Config::default()
    };
    let mut contestants = vec![
        Contestant::new(DEFAULT, || vec![runtime().block_on(freeze(Config::default()))]),
        Contestant::new("wardkeep: reports each 100 ms, floor 300 ms, ceiling 500 ms", move || {
            vec![runtime().block_on(freeze(quick))]
        }),
    ];
    if erlang::is_here() {
        let name = "Erlang/OTP: a net tick time of 2 s (the default is 60)";
        contestants.push(Contestant::new(name, || erlang::figures_of_two(&["freeze", "2"])));
    }
    side_by_side(("From a freeze to its being noticed", about), &["time in s"], DEFAULT, rounds, contestants)
}

async fn freeze(config: Config) -> f64 {
    let supervisor = Supervisor::builder().steward(config).bind("127.0.0.1:0").await.expect("a supervisor");
    let uri = format!("http://{}", supervisor.local_addr());
    let (stop, stopped) = oneshot::channel::<()>();
    let supervising = tokio::task::spawn(supervisor.run_until(async { drop(stopped.await) }));
    let mut node = child::command(&format!("node {uri}")).stdout(Stdio::null()).spawn().expect("a node");
    let channel = tonic::transport::Endpoint::from_shared(uri).expect("a URI").connect().await;
    let mut operator = OperatorClient::new(channel.expect("the supervisor answers"));
    let verdict = |fleet: v1::Fleet| fleet.nodes.first().filter(|node| node.attending).map(v1::Node::verdict);
    let mut seen = async |wanted: v1::Verdict| {
        loop {
            let fleet =
                operator.get_fleet(v1::GetFleetRequest::default()).await.expect("a fleet").into_inner();
            if verdict(fleet) == Some(wanted) {
                return Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    seen(v1::Verdict::Healthy).await;
    // Its rhythm becomes known.
    tokio::time::sleep(config.pulse_interval * 10).await;
    let pid = Pid::from_raw(i32::try_from(node.id()).expect("a process ID"));
    let begin = Instant::now();
    kill(pid, Signal::SIGSTOP).expect("it is ours");
    let found = tokio::time::timeout(Duration::from_secs(60), seen(v1::Verdict::Unreachable)).await;
    node.kill().and_then(|()| node.wait()).expect("it ends");
    drop(stop);
    supervising.await.expect("no panic").expect("the supervisor ends well");
    (found.expect("it is noticed") - begin).as_secs_f64()
}

/// A node, until it is killed.
pub fn job(args: &[String]) {
    runtime().block_on(async {
        let idle = Ward::task("idle", |context| async move {
            context.cancelled().await;
            Ok(())
        });
        let node = Node::builder("frozen").supervisor(&args[0]).ward(idle);
        let node = node.bind("127.0.0.1:0").await.expect("a node");
        node.run_until(std::future::pending()).await.expect("it runs");
    });
}
