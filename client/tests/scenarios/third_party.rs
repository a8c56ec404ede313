//! Servers that know nothing of wardkeep, with tonic's default limits, bear racing calls; and connections
//! are replaced before their own limits end them.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures_util::{StreamExt as _, stream};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use wardkeep_client::{Member, Policy, Replicated, Restraint};
use wardkeep_proto::Error;

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// With all limits as tonic sets them.
async fn plain(servers: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let (_, health) = tonic_health::server::health_reporter();
    let router = Server::builder().add_service(health);
    servers.spawn(async move { router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap() });
    uri
}

/// So many calls, so many of them at a time: how many failed.
async fn race(channel: &Replicated, calls: usize, at_a_time: usize) -> usize {
    let failed = AtomicUsize::new(0);
    let calls = stream::iter(0..calls).for_each_concurrent(at_a_time, |_| {
        let (mut client, failed) = (HealthClient::new(channel.clone()), &failed);
        async move {
            if let Err(status) = client.check(HealthCheckRequest::default()).await {
                eprintln!("{:?}", Error::from_status(&status));
                failed.fetch_add(1, SeqCst);
            }
        }
    });
    tokio::time::timeout(std::time::Duration::from_secs(120), calls).await.expect("the test hangs");
    failed.into_inner()
}

async fn channel(servers: &mut JoinSet<()>, restraint: Restraint) -> Replicated {
    let (a, b) = (plain(servers).await, plain(servers).await);
    Replicated::builder()
        .members([Member::new("a", a), Member::new("b", b)])
        .policy_for(CHECK, Policy::All(2))
        .restraint(restraint)
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_racing_calls_to_servers_with_default_limits_lose_none() {
    let mut servers = JoinSet::new();
    // All copies go out, however busy this machine: that is the hard case.
    let channel = channel(&mut servers, Restraint::default().step_down(false)).await;
    assert_eq!(race(&channel, 5_000, 64).await, 0);
    let stats = channel.stats();
    assert_eq!((stats.calls, stats.attempts, stats.cancelled), (5_000, 10_000 + stats.transparent, 5_000));
    assert_eq!(stats.connections, 2, "no connection broke: {stats:?}");
    channel.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn even_without_restraint_calls_survive_what_their_cancels_do_to_connections() {
    let mut servers = JoinSet::new();
    let reckless = Restraint::default().step_down(false).cancels_per_second(u32::MAX).renew_after(200);
    let channel = channel(&mut servers, reckless).await;
    assert_eq!(race(&channel, 3_000, 64).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_when_connections_are_replaced() {
    let mut servers = JoinSet::new();
    let restraint =
        Restraint::default().step_down(false).cancels_per_second(1_000_000).renew_after(50);
    let channel = channel(&mut servers, restraint).await;
    assert_eq!(race(&channel, 3_000, 32).await, 0);
    let stats = channel.stats();
    assert!(stats.renewed > 0 && stats.connections > 2, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losers_left_to_finish_are_gone_when_the_channel_is_closed() {
    let mut servers = JoinSet::new();
    let restraint = Restraint::default().step_down(false).cancels_per_second(1);
    let channel = channel(&mut servers, restraint).await;
    assert_eq!(race(&channel, 500, 64).await, 0);
    let twin = channel.clone();
    assert!(twin.stats().left_to_finish > 0, "{:?}", twin.stats());
    channel.close().await;
    assert_eq!(twin.stats().lingering, 0);
}
