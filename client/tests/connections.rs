//! Members that hang or are gone, and connections that survive cancelled calls.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::*;
use futures_util::{StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tonic::Code;
use wardkeep_client::{Member, Policy, Replicated, ResponseExt as _};
use wardkeep_proto::{Error, v1::GetFleetRequest};

#[tokio::test]
async fn a_member_that_never_speaks_http2_does_not_hold_up_the_others() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = (Member::new("silent", format!("http://{}", silent.local_addr().unwrap())), silent);
    let good = Puppet::good("good").await;
    let channel = all(vec![silent.0.clone(), good.member("good")]);
    for _ in 0..4 {
        let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
        assert_eq!(reply.winner().unwrap().node, "good");
    }
}

/// Connects, but to port 9 never.
async fn dial(uri: http::Uri) -> std::io::Result<TokioIo<TcpStream>> {
    if uri.port_u16() == Some(9) {
        std::future::pending::<()>().await;
    }
    Ok(TokioIo::new(TcpStream::connect(uri.authority().unwrap().as_str()).await?))
}

#[tokio::test]
async fn a_hung_connect_is_given_up_and_the_next_member_asked() {
    let good = Puppet::good("good").await;
    let members = [Member::new("hole", "http://127.0.0.1:9"), good.member("good")];
    let channel = builder(members)
        .policy(Policy::Single)
        .connector(tower::service_fn(dial))
        .connect_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!((reply.winner().unwrap().node.as_str(), reply.winner().unwrap().attempts), ("good", 2));
    assert_eq!(channel.stats().connection_errors, 1);
    assert_eq!(channel.stats().connections, 1);
}

#[tokio::test]
async fn the_deadline_holds_while_connecting() {
    let channel = builder([Member::new("hole", "http://127.0.0.1:9")])
        .connector(tower::service_fn(dial))
        .connect_timeout(Duration::from_secs(60))
        .default_deadline(Duration::from_millis(100))
        .build()
        .unwrap();
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(Error::from_status(&status).what().contains("phase connect"));
}

#[tokio::test]
async fn a_single_call_survives_dead_members() {
    let good = Puppet::good("good").await;
    let members = vec![nobody("gone 1").await, nobody("gone 2").await, good.member("good")];
    let channel = builder(members).policy(Policy::Single).build().unwrap();
    for _ in 0..2 {
        let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
        assert_eq!(reply.winner().unwrap().node, "good");
    }
    // The first call met both; the second knew better.
    assert_eq!(channel.stats().attempts, 4);
}

const CALLS: usize = 10_000;

/// 64 calls at a time, none of which may fail.
async fn call_often(channel: &Replicated, times: usize) {
    let failed = AtomicUsize::new(0);
    let calls = stream::iter(0..times).for_each_concurrent(64, |_| {
        let (mut client, failed) = (operator(channel), &failed);
        async move {
            if let Err(status) = client.get_fleet(GetFleetRequest {}).await {
                eprintln!("{:?}", Error::from_status(&status));
                failed.fetch_add(1, SeqCst);
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(120), calls).await.expect("the calls hang");
    assert_eq!(failed.into_inner(), 0);
}

/// Lets the handlers of one request's attempts meet.
#[derive(Default)]
struct Twins(Mutex<HashMap<String, Arc<Semaphore>>>);

impl Twins {
    fn of(&self, request: &http::Request<tonic::body::Body>) -> Arc<Semaphore> {
        let id = request.headers()["wardkeep-request-id"].to_str().unwrap().to_owned();
        self.0.lock().unwrap().entry(id).or_insert_with(|| Arc::new(Semaphore::new(0))).clone()
    }
}

/// Each call has one loser, whose handler has begun when the winner answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_cancelled_losers_cost_no_connection() {
    let (twins, dropped) = (Arc::new(Twins::default()), Arc::new(Semaphore::new(0)));
    let (t, d) = (twins.clone(), dropped.clone());
    let slow = Puppet::start(move |request| {
        t.of(&request).add_permits(1);
        let guard = Dropped(d.clone());
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    })
    .await;
    let fast = Puppet::start(move |request| {
        let begun = twins.of(&request);
        async move {
            begun.acquire().await.unwrap().forget();
            whole(&fleet("fast"))
        }
    })
    .await;
    let channel = all(vec![slow.member("slow"), fast.member("fast")]);
    call_often(&channel, CALLS).await;
    assert_eq!((slow.accepted.load(SeqCst), fast.accepted.load(SeqCst)), (1, 1));
    let stats = channel.stats();
    assert_eq!((stats.calls as usize, stats.wins["fast"] as usize), (CALLS, CALLS));
    assert_eq!((stats.cancelled as usize, stats.connections), (CALLS, 2));
    assert_eq!(slow.asked(), CALLS);
    within(dropped.acquire_many(u32::try_from(CALLS).unwrap())).await.unwrap().forget();
}

/// Equal members: resets cross replies on the wire, and come before requests are accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_photo_finishes_cost_no_connection() {
    let (a, b) = (Puppet::good("a").await, Puppet::good("b").await);
    let channel = all(vec![a.member("a"), b.member("b")]);
    call_often(&channel, CALLS).await;
    assert_eq!((a.accepted.load(SeqCst), b.accepted.load(SeqCst)), (1, 1));
    assert_eq!(channel.stats().wins.values().sum::<u64>() as usize, CALLS);
    assert_eq!(channel.stats().cancelled as usize, CALLS);
}
