//! Servers that know nothing of wardkeep, with tonic's default limits, bear racing calls; and connections
//! are replaced before their own limits end them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use http::HeaderMap;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Code,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use wardkeep_client::{Member, Policy, Replicated, Restraint};
use wardkeep_proto::{Error, v1::WardRequest};

use crate::{
    common::{
        builder, fleet, framed, operator,
        raw::{Raw, Step},
        within,
    },
    stage::get,
};

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
async fn race(channel: &Replicated, times: usize, at_a_time: usize) -> usize {
    let failed = AtomicUsize::new(0);
    let calls = stream::iter(0..times).for_each_concurrent(at_a_time, |_| {
        let (mut client, failed) = (HealthClient::new(channel.clone()), &failed);
        async move {
            if let Err(status) = client.check(HealthCheckRequest::default()).await {
                eprintln!("{:?}", Error::from_status(&status));
                failed.fetch_add(1, SeqCst);
            }
        }
    });
    let patience = Duration::from_secs(120 + times as u64 / 50);
    tokio::time::timeout(patience, calls).await.expect("the test hangs");
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
    // For a long run: WARDKEEP_RACING_CALLS=100000.
    let calls = std::env::var("WARDKEEP_RACING_CALLS").map_or(5_000, |n| n.parse().unwrap());
    assert_eq!(race(&channel, calls, 64).await, 0);
    // On a machine so busy that a server does not run for half a second, a connection may break all the
    // same: then the calls on it are sent again.
    let stats = channel.stats();
    assert_eq!((stats.calls, stats.failed_calls), (calls as u64, 0));
    assert!(stats.attempts >= 2 * stats.calls && stats.ejected == 0, "{stats:?}");
    eprintln!("{stats:?}");
    channel.close().await;
}

/// ENHANCE_YOUR_CALM: resets were taken for an attack.
const CALM: u32 = 11;

#[tokio::test]
async fn a_connection_that_is_ended_for_too_many_resets_costs_no_call_and_no_trust() {
    // Both members end the connection of their first request; afterwards they answer.
    let mut members = Vec::new();
    let mut peers = Vec::new();
    for name in ["a", "b"] {
        let asked = AtomicUsize::new(0);
        let peer = Raw::start(move |_| {
            if asked.fetch_add(1, SeqCst) == 0 {
                return vec![Step::GoAway(CALM)];
            }
            let head = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
            let answer = framed(&fleet("raw"));
            vec![
                Step::Head(200, HeaderMap::new()),
                Step::Data(answer),
                Step::Trailers(HeaderMap::from_iter(head)),
            ]
        })
        .await;
        members.push(Member::new(name, &peer.uri));
        peers.push(peer);
    }
    let channel = builder(members).policy(Policy::All(2)).build().unwrap();
    for _ in 0..3 {
        get(&channel).await.unwrap();
    }
    let stats = channel.stats();
    assert!(stats.transparent >= 1 && stats.ejected == 0, "{stats:?}");
}

#[tokio::test]
async fn what_may_not_be_repeated_is_sent_again_only_if_it_was_refused_unlooked_at() {
    const REFUSED_STREAM: u32 = 7;
    for (step, asked) in [(Step::Reset(REFUSED_STREAM), 2), (Step::GoAway(CALM), 1)] {
        let times = Arc::new(AtomicUsize::new(0));
        let count = times.clone();
        let peer = Raw::start(move |_| {
            if count.fetch_add(1, SeqCst) == 0 {
                return vec![step.clone()];
            }
            vec![Step::Only(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "5".parse().unwrap())]))]
        })
        .await;
        let channel = builder([peer.member()]).build().unwrap();
        let status = within(operator(&channel).restart_ward(WardRequest::default())).await.unwrap_err();
        assert_eq!(times.load(SeqCst), asked);
        assert_eq!(status.code(), if asked == 2 { Code::NotFound } else { Code::Unavailable });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_when_connections_are_replaced() {
    let mut servers = JoinSet::new();
    let restraint = Restraint::default().step_down(false).cancels_per_second(1_000_000).renew_after(50);
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
