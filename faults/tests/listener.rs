//! The limits of every listener: what strangers do to a node and to a supervisor, and that others notice nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::{net::SocketAddr, time::Duration};

use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use wardkeep::daemon::Supervisor;
use wardkeep_faults::{attack, pb, pb::answer_client::AnswerClient};
use wardkeep_node::{Node, Ward, server::Limits};
use wardkeep_proto::v1::{self, operator_client::OperatorClient};

const OF_NODE: &str = "/wardkeep.faults.v1.Answer/AskOnce";
const OF_SUPERVISOR: &str = "/wardkeep.v1.Operator/GetFleet";
/// A hang is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs until it is dropped.
struct Served {
    name: &'static str,
    address: SocketAddr,
    path: &'static str,
    channel: tonic::transport::Channel,
    _stop: oneshot::Sender<()>,
    _tasks: JoinSet<()>,
}

async fn channel(address: SocketAddr) -> tonic::transport::Channel {
    wardkeep_client::endpoint(&format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn a_node(limits: Limits) -> Served {
    let ward = Ward::service("answer", |_| wardkeep_faults::node::answering());
    let node = Node::builder("n").ward(ward).limits(limits).bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let address = node.local_addr();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { node.run_until(async { drop(stopped.await) }).await.unwrap() });
    let channel = channel(address).await;
    Served { name: "node", address, path: OF_NODE, channel, _stop: stop, _tasks: tasks }
}

async fn a_supervisor(limits: Limits) -> Served {
    let supervisor = Supervisor::builder().limits(limits).bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let address = supervisor.local_addr();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { supervisor.run_until(async { drop(stopped.await) }).await.unwrap() });
    let channel = channel(address).await;
    Served { name: "supervisor", address, path: OF_SUPERVISOR, channel, _stop: stop, _tasks: tasks }
}

impl Served {
    /// Someone who was connected before the strangers came is answered.
    async fn answers(&self) {
        let answered = async {
            if self.path == OF_NODE {
                let question = pb::Question { number: 3, ..Default::default() };
                let mut client = AnswerClient::new(self.channel.clone());
                // Its ward may still be starting.
                while client.ask(question).await.is_err() {
                    tokio::task::yield_now().await;
                }
            } else {
                let mut client = OperatorClient::new(self.channel.clone());
                client.get_fleet(v1::GetFleetRequest {}).await.unwrap();
            }
        };
        timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("the {} does not answer", self.name));
    }
}

async fn both(limits: Limits) -> [Served; 2] {
    let servers = [a_node(limits).await, a_supervisor(limits).await];
    for server in &servers {
        server.answers().await;
    }
    servers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_are_closed() {
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    for server in both(limits).await {
        let strangers = attack::silent(server.address, 20).await;
        assert_eq!(attack::closed(strangers, PATIENCE).await, 20, "{}", server.name);
        server.answers().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_never_end_are_cut_off_and_a_quiet_connection_is_not() {
    let (keepalive_interval, keepalive_timeout) = (Duration::from_millis(300), Duration::from_secs(2));
    for server in both(Limits { keepalive_interval, keepalive_timeout, ..Limits::default() }).await {
        // Meanwhile the other connection says nothing but its answers to the probes.
        assert_eq!(attack::slow_loris(server.address, 20, PATIENCE).await, 20, "{}", server.name);
        server.answers().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_resets_beyond_the_limit_is_cut_off_and_others_are_answered_meanwhile() {
    let limits = Limits { pending_resets: 10, ..Limits::default() };
    for server in both(limits).await {
        let (flood, ()) = tokio::join!(attack::rapid_reset(server.address, server.path, 50_000), async {
            for _ in 0..20 {
                server.answers().await;
            }
        });
        let flood = flood.unwrap();
        assert!(flood.cut_off && flood.sent < 50_000, "{}: {flood:?}", server.name);
        server.answers().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_nobody_may_send_are_cut_off_and_messages_that_are_none_refused() {
    let limits = Limits { pending_resets: 100, ..Limits::default() };
    for server in both(limits).await {
        let malformed = attack::malformed_headers(server.address, 50_000).await.unwrap();
        assert!(malformed.cut_off, "{}: {malformed:?}", server.name);
        let endless = attack::endless_headers(server.address, 50_000).await.unwrap();
        assert!(endless.cut_off, "{}: {endless:?}", server.name);
        assert_eq!(attack::garbage(server.address, server.path, 1).await.unwrap(), 0, "{}", server.name);
        server.answers().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let limits =
        Limits { connections: 3, handshake_timeout: Duration::from_millis(500), ..Limits::default() };
    for server in both(limits).await {
        // One of three places is taken by the channel that is open; the rest by the first strangers.
        let strangers = attack::silent(server.address, 6).await;
        let late = timeout(PATIENCE, channel(server.address)).await.unwrap();
        drop(late);
        assert_eq!(attack::closed(strangers, PATIENCE).await, 6, "{}", server.name);
        server.answers().await;
    }
}
