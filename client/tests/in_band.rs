//! Attempts that nobody waits for are withdrawn in band at members that are nodes, and reset elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::*;
use http::{Request, Response};
use tokio::sync::{Notify, Semaphore};
use tonic::{Status, body::Body};
use uuid::Uuid;
use wardkeep_client::{
    Attempt, CallSummary, Ending, Observe, Policy, Replicated, ResponseExt as _, Restraint,
};
use wardkeep_proto::v1::{
    self, AttemptEnd, Fate, GetFleetRequest, ListErrorsRequest, WithdrawReply, WithdrawRequest,
};

/// What a node does with a withdrawal.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Ends the attempt and says so.
    Ends,
    /// Says so, and lets it go on.
    Pretends,
    /// Knows nothing of it.
    Denies,
    /// Never answers.
    Silent,
}

/// An attempt.
type Name = (Uuid, u32);

/// A node whose GetFleet hangs until it is withdrawn.
#[derive(Clone)]
struct Node {
    manner: Manner,
    /// Handlers that began, and those that were dropped.
    begun: Arc<Semaphore>,
    dropped: Arc<Semaphore>,
    named: Arc<Mutex<Vec<Name>>>,
    cuts: Arc<Mutex<HashMap<Name, Arc<Notify>>>>,
}

impl Node {
    fn new(manner: Manner) -> Self {
        let none = || Arc::new(Semaphore::new(0));
        let (named, cuts) = (Arc::default(), Arc::default());
        Self { manner, begun: none(), dropped: none(), named, cuts }
    }

    async fn puppet(&self) -> Puppet {
        let this = self.clone();
        Puppet::node(move |request| this.clone().answer(request), self.clone()).await
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        if request.uri().path().ends_with("ListErrors") {
            return whole(&v1::ErrorList::default());
        }
        let name = {
            let text = |name: &str| request.headers().get(name).unwrap().to_str().unwrap();
            (text("wardkeep-request-id").parse().unwrap(), text("wardkeep-attempt").parse().unwrap())
        };
        let cut = self.cuts.lock().unwrap().entry(name).or_default().clone();
        let _dropped = Dropped(self.dropped.clone());
        self.begun.add_permits(1);
        cut.notified().await;
        let mut end = Status::cancelled("withdrawn").into_http();
        end.headers_mut().insert("wardkeep-fate", "running;wall=2000;busy=30".parse().unwrap());
        end
    }

    fn named(&self) -> Vec<Name> {
        self.named.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl v1::replica_server::Replica for Node {
    async fn withdraw(
        &self,
        request: tonic::Request<WithdrawRequest>,
    ) -> Result<tonic::Response<WithdrawReply>, Status> {
        let mut ends = Vec::new();
        for attempt in request.into_inner().attempts {
            let name = (Uuid::from_slice(&attempt.call_id).unwrap(), attempt.attempt);
            self.named.lock().unwrap().push(name);
            let fate = if self.manner == Manner::Denies { Fate::Unknown } else { Fate::Running };
            ends.push(AttemptEnd { fate: fate.into(), ..Default::default() });
            if self.manner == Manner::Ends {
                self.cuts.lock().unwrap().entry(name).or_default().notify_one();
            }
        }
        if self.manner == Manner::Silent {
            std::future::pending::<()>().await;
        }
        Ok(tonic::Response::new(WithdrawReply { attempts: ends }))
    }
}

/// Notes what it is told of losers.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<Attempt>>>, Arc<Notify>);

impl Observe for Notes {
    fn called(&self, _: &CallSummary<'_>) {}

    fn lost(&self, method: &str, attempt: &Attempt) {
        assert_eq!(method, "/wardkeep.v1.Operator/GetFleet");
        self.0.lock().unwrap().push(attempt.clone());
        self.1.notify_one();
    }
}

/// A channel over the node and one that answers when the node's handler has begun; both are known to be nodes.
async fn channel(node: &Node, restraint: Restraint, notes: Notes) -> (Replicated, Vec<Puppet>) {
    let begun = node.begun.clone();
    let fast = Puppet::node(
        move |request| {
            let begun = begun.clone();
            async move {
                if request.uri().path().ends_with("ListErrors") {
                    return whole(&v1::ErrorList::default());
                }
                begun.acquire().await.unwrap().forget();
                whole(&fleet("fast"))
            }
        },
        Node::new(Manner::Denies),
    )
    .await;
    let slow = node.puppet().await;
    let channel = builder([slow.member("slow"), fast.member("fast")])
        .policy(Policy::All(2))
        .policy_for("/wardkeep.v1.Operator/ListErrors", Policy::Quorum { equal: 2, of: 2 })
        .restraint(restraint.step_down(false))
        .observer(notes)
        .build()
        .unwrap();
    within(operator(&channel).list_errors(ListErrorsRequest::default())).await.unwrap();
    (channel, vec![slow, fast])
}

async fn get(channel: &Replicated) -> tonic::Response<v1::Fleet> {
    within(operator(channel).get_fleet(GetFleetRequest {})).await.unwrap()
}

/// Until no loser is left.
async fn settled(channel: &Replicated) {
    within(async {
        while channel.stats().lingering > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_loser_is_withdrawn_in_band_and_tells_how_far_it_came_and_what_it_cost() {
    let (node, notes) = (Node::new(Manner::Ends), Notes::default());
    let (channel, _puppets) = channel(&node, Restraint::default(), notes.clone()).await;
    let reply = get(&channel).await;
    assert_eq!(reply.winner().unwrap().node, "fast");
    within(notes.1.notified()).await;
    let loser = reply.attempts().iter().find(|attempt| attempt.node == "slow").unwrap();
    let cost = loser.cost().unwrap();
    assert_eq!((cost.fate, loser.ending), (Fate::Running, Ending::Cancelled));
    // The trailers of the attempt know more than the answer to the withdrawal.
    assert_eq!((cost.wall, cost.busy), (Some(Duration::from_millis(2)), Some(Duration::from_micros(30))));
    assert_eq!(notes.0.lock().unwrap()[0].cost(), Some(cost));
    settled(&channel).await;
    let losers = channel.stats().losers;
    assert_eq!((losers.running, losers.reset), (1, 0));
    assert_eq!((losers.wall, losers.busy), (Duration::from_millis(2), Duration::from_micros(30)));
    assert_eq!(node.named().len(), 1);
    assert_eq!(channel.stats().members["slow"].in_flight, 0);
}

#[tokio::test]
async fn dropping_a_call_withdraws_all_its_attempts() {
    let (node, other) = (Node::new(Manner::Ends), Node::new(Manner::Ends));
    let puppets = [node.puppet().await, other.puppet().await];
    let channel = builder([puppets[0].member("a"), puppets[1].member("b")])
        .policy(Policy::All(2))
        .policy_for("/wardkeep.v1.Operator/ListErrors", Policy::Quorum { equal: 2, of: 2 })
        .build()
        .unwrap();
    within(operator(&channel).list_errors(ListErrorsRequest::default())).await.unwrap();
    let mut client = operator(&channel);
    let both = async { tokio::join!(node.begun.acquire(), other.begun.acquire()) };
    tokio::select! {
        _ = client.get_fleet(GetFleetRequest {}) => panic!("nobody answers"),
        _ = within(both) => {}
    }
    settled(&channel).await;
    assert_eq!((node.named().len(), other.named().len()), (1, 1));
    assert_eq!(node.named()[0].0, other.named()[0].0, "one call, one ID");
    assert_eq!((channel.stats().losers.running, channel.stats().losers.reset), (2, 0));
}

#[tokio::test]
async fn what_a_node_does_not_end_is_reset() {
    for manner in [Manner::Denies, Manner::Pretends, Manner::Silent] {
        let node = Node::new(manner);
        let (channel, _puppets) = channel(&node, Restraint::default(), Notes::default()).await;
        get(&channel).await;
        within(node.dropped.acquire()).await.unwrap().forget();
        settled(&channel).await;
        assert_eq!(node.named().len(), 1, "{manner:?}");
        let losers = channel.stats().losers;
        assert_eq!((losers.running, losers.reset), (0, 1), "{manner:?}");
    }
}

#[tokio::test]
async fn nothing_is_withdrawn_in_band_where_that_is_not_wanted_or_the_call_has_a_name_of_its_callers() {
    let node = Node::new(Manner::Ends);
    let (channel, _puppets) =
        channel(&node, Restraint::default().withdraw_in_band(false), Notes::default()).await;
    get(&channel).await;
    within(node.dropped.acquire()).await.unwrap().forget();
    assert_eq!((node.named().len(), channel.stats().lingering), (0, 0));

    // The caller may have given others the same name, and those must not end with this one.
    let node = Node::new(Manner::Ends);
    let (channel, _puppets) = self::channel(&node, Restraint::default(), Notes::default()).await;
    let mut request = tonic::Request::new(GetFleetRequest {});
    request.metadata_mut().insert("wardkeep-request-id", Uuid::now_v7().to_string().parse().unwrap());
    within(operator(&channel).get_fleet(request)).await.unwrap();
    within(node.dropped.acquire()).await.unwrap().forget();
    assert_eq!(node.named().len(), 0);
}

#[tokio::test]
async fn a_channel_that_is_closed_leaves_no_loser_behind() {
    let node = Node::new(Manner::Silent);
    let (channel, _puppets) = channel(&node, Restraint::default(), Notes::default()).await;
    get(&channel).await;
    let twin = channel.clone();
    within(channel.close()).await;
    assert_eq!(twin.stats().lingering, 0);
    within(node.dropped.acquire()).await.unwrap().forget();
    // From now on streams are reset, as nothing may run beside calls.
    get(&twin).await;
    within(node.dropped.acquire()).await.unwrap().forget();
    assert_eq!(twin.stats().lingering, 0);
}
