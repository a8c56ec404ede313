//! Members that hang or are gone, and connections that survive cancelled calls: 10,000 of them, or as many as
//! `WARDKEEP_CALLS` says. (A million takes minutes in a release build: `WARDKEEP_CALLS=1000000 cargo test --release
//! -p wardkeep-client --test connections -- --test-threads 1 --nocapture losers`.)

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
    runtime::Handle,
    sync::{Notify, Semaphore},
};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;
use wardkeep_client::{Member, Policy, Replicated, ResponseExt as _, Restraint};
use wardkeep_proto::{
    Error,
    v1::{
        AttemptEnd, ErrorList, Fate, Fleet, GetFleetRequest, ListErrorsRequest, Supervisor, WithdrawReply,
        WithdrawRequest, replica_server::Replica,
    },
};

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

fn calls() -> usize {
    std::env::var("WARDKEEP_CALLS").map_or(10_000, |n| n.parse().unwrap())
}

/// So many calls at a time, none of which may fail.
async fn call_often(channel: &Replicated, times: usize, at_a_time: usize) {
    let failed = AtomicUsize::new(0);
    let calls = stream::iter(0..times).for_each_concurrent(at_a_time, |_| {
        let (mut client, failed) = (operator(channel), &failed);
        async move {
            if let Err(status) = client.get_fleet(GetFleetRequest {}).await {
                eprintln!("{:?}", Error::from_status(&status));
                failed.fetch_add(1, SeqCst);
            }
        }
    });
    // On a busy machine it takes as long as it takes.
    let patience = Duration::from_secs(300 + times as u64 / 50);
    tokio::time::timeout(patience, calls).await.expect("the calls hang");
    assert_eq!(failed.into_inner(), 0);
}

/// A reply of about 100 B.
fn reply(name: &str) -> Fleet {
    let supervisor = Supervisor { machine: name.to_owned(), version: "v".repeat(88), ..Default::default() };
    Fleet { supervisor: Some(supervisor), ..Default::default() }
}

type Name = (Uuid, u32);

/// The two members of a race, at the side of their servers: the attempts of a call meet there.
#[derive(Clone, Default)]
struct Ring {
    /// By request: the slow one has begun.
    begun: Arc<Mutex<HashMap<Uuid, Arc<Semaphore>>>>,
    /// Attempts at the slow one that last.
    cuts: Arc<Mutex<HashMap<Name, Arc<Notify>>>>,
    /// Handlers of the slow one that were dropped, or ended because they were withdrawn.
    over: Arc<AtomicUsize>,
}

fn name(request: &http::Request<tonic::body::Body>) -> Name {
    let text = |key| request.headers()[key].to_str().unwrap();
    (text("wardkeep-request-id").parse().unwrap(), text("wardkeep-attempt").parse().unwrap())
}

/// By which members are known for nodes.
fn is_greeting(request: &http::Request<tonic::body::Body>) -> bool {
    request.uri().path() == GREETING
}

const GREETING: &str = "/wardkeep.v1.Operator/ListErrors";

impl Ring {
    fn of(&self, id: Uuid) -> Arc<Semaphore> {
        self.begun.lock().unwrap().entry(id).or_insert_with(|| Arc::new(Semaphore::new(0))).clone()
    }

    fn is_empty(&self) -> bool {
        self.begun.lock().unwrap().is_empty() && self.cuts.lock().unwrap().is_empty()
    }
}

/// Of the slow one.
struct Slow(Ring, Name);

impl Drop for Slow {
    fn drop(&mut self) {
        self.0.cuts.lock().unwrap().remove(&self.1);
        self.0.over.fetch_add(1, SeqCst);
    }
}

#[tonic::async_trait]
impl Replica for Ring {
    async fn withdraw(&self, request: Request<WithdrawRequest>) -> Result<Response<WithdrawReply>, Status> {
        let attempts = request.into_inner().attempts.into_iter().map(|attempt| {
            let name = (Uuid::from_slice(&attempt.call_id).unwrap(), attempt.attempt);
            let cut = self.cuts.lock().unwrap().get(&name).cloned();
            let fate = if cut.is_some() { Fate::Running } else { Fate::Finished };
            cut.inspect(|cut| cut.notify_one());
            AttemptEnd { fate: fate.into(), ..Default::default() }
        });
        Ok(Response::new(WithdrawReply { attempts: attempts.collect() }))
    }
}

/// What this process holds in memory, in MiB.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4 / 1_024
}

/// Each call has one loser, whose handler has begun when the winner answers.
async fn losers_cost_nothing(in_flight: usize, in_band: bool) {
    let (ring, calls) = (Ring::default(), calls());
    let (at_slow, at_fast) = (ring.clone(), ring.clone());
    let slow = move |request: http::Request<_>| {
        let (ring, name, greeting) = (at_slow.clone(), name(&request), is_greeting(&request));
        async move {
            if greeting {
                return whole(&ErrorList::default());
            }
            let cut = ring.cuts.lock().unwrap().entry(name).or_default().clone();
            let _slow = Slow(ring.clone(), name);
            ring.of(name.0).add_permits(1);
            cut.notified().await;
            Status::cancelled("withdrawn").into_http()
        }
    };
    let fast = move |request: http::Request<_>| {
        let (ring, (id, _), greeting) = (at_fast.clone(), name(&request), is_greeting(&request));
        async move {
            if greeting {
                return whole(&ErrorList::default());
            }
            ring.of(id).acquire().await.unwrap().forget();
            ring.begun.lock().unwrap().remove(&id);
            whole(&reply("fast"))
        }
    };
    let slow = Puppet::node(slow, ring.clone()).await;
    let fast = Puppet::node(fast, ring.clone()).await;
    let restraint = Restraint::default().step_down(false).withdraw_in_band(in_band);
    let members = [slow.member("slow"), fast.member("fast")];
    let both = Policy::Quorum { equal: 2, of: 2 };
    let channel = builder(members).policy(Policy::All(2)).policy_for(GREETING, both).restraint(restraint);
    let channel = channel.build().unwrap();
    within(operator(&channel).list_errors(ListErrorsRequest::default())).await.unwrap();

    // Connections, tables and the allocator have grown to their size after a quarter.
    call_often(&channel, calls / 4, in_flight).await;
    let settled = async || {
        while ring.over.load(SeqCst) < channel.stats().cancelled as usize || channel.stats().lingering > 0 {
            tokio::task::yield_now().await;
        }
    };
    within(settled()).await;
    let metrics = Handle::current().metrics();
    let (memory, tasks) = (resident(), metrics.num_alive_tasks());
    call_often(&channel, calls - calls / 4, in_flight).await;
    within(settled()).await;

    let stats = channel.stats();
    eprintln!(
        "{in_flight} in flight, in band: {in_band}: {memory} MiB, {tasks} tasks at a quarter; {} MiB, {} tasks at the end; {stats:?}",
        resident(),
        metrics.num_alive_tasks()
    );
    // One connection each: none was ended, by whichever side.
    assert_eq!((slow.accepted.load(SeqCst), fast.accepted.load(SeqCst)), (1, 1));
    assert_eq!((stats.connections, stats.renewed, stats.transparent), (2, 0, 0));
    assert_eq!((stats.calls as usize, stats.failed_calls, stats.cancelled as usize), (calls + 1, 0, calls));
    assert_eq!((slow.asked(), ring.over.load(SeqCst)), (calls + 1, calls));
    let ended = stats.losers.running + stats.losers.finished + stats.losers.reset;
    // What had not left when the winner was known is reset all the same.
    assert!(if in_band { (1..=calls as u64).contains(&ended) } else { ended == 0 }, "{stats:?}");
    assert!(stats.members.values().all(|member| member.in_flight == 0) && ring.is_empty());
    assert!(metrics.num_alive_tasks() <= tasks + 2, "{} tasks, {tasks} before", metrics.num_alive_tasks());
    assert!(resident() <= memory + 32, "{} MiB, {memory} before", resident());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losers_that_are_reset_cost_no_connection_64_at_a_time() {
    losers_cost_nothing(64, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losers_that_are_reset_cost_no_connection_512_at_a_time() {
    losers_cost_nothing(512, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losers_that_are_withdrawn_cost_no_connection_64_at_a_time() {
    losers_cost_nothing(64, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losers_that_are_withdrawn_cost_no_connection_512_at_a_time() {
    losers_cost_nothing(512, true).await;
}

/// Equal members: resets cross replies on the wire, and come before requests are accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn photo_finishes_cost_no_connection() {
    let (a, b) = (Puppet::good("a").await, Puppet::good("b").await);
    // Both copies, however busy the machine is.
    let restraint = Restraint::default().step_down(false);
    let channel = builder(vec![a.member("a"), b.member("b")]).policy(Policy::All(2)).restraint(restraint);
    let channel = channel.build().unwrap();
    let calls = calls();
    call_often(&channel, calls, 64).await;
    assert_eq!((a.accepted.load(SeqCst), b.accepted.load(SeqCst)), (1, 1));
    assert_eq!(channel.stats().wins.values().sum::<u64>() as usize, calls);
    assert_eq!(channel.stats().cancelled as usize, calls);
}
