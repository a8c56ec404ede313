//! The two halves together: the replicated channel over real nodes.

use std::time::Duration;

use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, ReplicatedBuilder, ResponseExt as _};
use wardkeep_proto::v1::{Fate, WardRequest, WatchEventsRequest, operator_client::OperatorClient};

use crate::{
    Caller, START, WATCH, failure,
    support::{Insides, Running, make, node, trouble, within},
};

/// Of two nodes, which are known for nodes when the future ends.
async fn channel(slow: &Running, fast: &Running, policy: Policy) -> Replicated {
    let members = [Member::new("slow", slow.uri()), Member::new("fast", fast.uri())];
    let channel = Replicated::builder()
        .members(members)
        .policy_for(WATCH, Policy::Quorum { equal: 2, of: 2 })
        .policy_for(START, policy)
        .build()
        .unwrap();
    let events = OperatorClient::new(channel.clone()).watch_events(WatchEventsRequest::default()).await;
    let mut events = events.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    channel
}

#[tokio::test]
async fn a_loser_is_withdrawn_in_band_and_its_cost_is_known_a_moment_later() {
    within(async {
        let (slow_insides, fast_insides) = (Insides::default(), Insides::default());
        let (slow, fast) = (node([trouble(&slow_insides)]).await, node([trouble(&fast_insides)]).await);
        slow.running("trouble", 1).await;
        fast.running("trouble", 1).await;
        let channel = channel(&slow, &fast, Policy::All(2)).await;
        let mut client = OperatorClient::new(channel.clone());
        let open = async {
            slow_insides.started.reaches(2).await;
            fast_insides.gate.open();
        };
        let (reply, ()) = tokio::join!(client.start_ward(make("gate")), open);
        let reply = reply.unwrap();
        assert_eq!(reply.winner().unwrap().node, "fast");
        slow_insides.cancelled.reaches(1).await;
        let loser = reply.attempts().iter().find(|attempt| attempt.node == "slow").unwrap();
        while loser.cost().is_none() {
            tokio::task::yield_now().await;
        }
        let cost = loser.cost().unwrap();
        assert_eq!(cost.fate, Fate::Running);
        assert!(cost.busy.unwrap() <= cost.wall.unwrap() && cost.wall.unwrap() > Duration::ZERO);
        while channel.stats().lingering > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((channel.stats().losers.running, channel.stats().losers.reset), (1, 0));
        slow_insides.gate.open();
        slow.stop().await;
        fast.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_draining_node_refuses_goes_to_another_though_it_may_not_be_repeated() {
    within(async {
        let (gone_insides, insides) = (Insides::default(), Insides::default());
        let (gone, stays) = (node([trouble(&gone_insides)]).await, node([trouble(&insides)]).await);
        gone.running("trouble", 1).await;
        stays.running("trouble", 1).await;
        gone.handle.drain(true).await;
        let builder: ReplicatedBuilder = Replicated::builder()
            .members([Member::new("gone", gone.uri()), Member::new("stays", stays.uri())])
            .methods(wardkeep_proto::FILE_DESCRIPTOR_SET);
        let channel = builder.build().unwrap();
        for _ in 0..2 {
            let request = WardRequest { reason: "said".into(), ..make("say it") };
            let reply = OperatorClient::new(channel.clone()).start_ward(request).await.unwrap();
            assert_eq!(reply.winner().unwrap().node, "stays");
            assert_eq!(reply.into_inner().after.unwrap().status, "said", "it came whole");
        }
        assert_eq!((gone_insides.started.get(), insides.started.get()), (0, 2));
        gone.stop().await;
        stays.stop().await;
    })
    .await;
}

#[tokio::test]
async fn of_tied_copies_the_one_that_waits_is_withdrawn_and_never_begun() {
    within(async {
        let (busy_insides, free_insides) = (Insides::default(), Insides::default());
        let busy = node([trouble(&busy_insides).concurrency(1).queue(8)]).await;
        let free = node([trouble(&free_insides).concurrency(8)]).await;
        busy.running("trouble", 1).await;
        free.running("trouble", 1).await;
        let tied = Policy::Tied { delay: HedgeDelay::Fixed(Duration::ZERO), max_attempts: 2 };
        let channel = channel(&busy, &free, tied).await;
        let caller = Caller::to(&busy).await;
        let first = caller.end_of("gate", &[]);
        busy_insides.started.reaches(2).await;
        for n in 1..=5 {
            let reply = OperatorClient::new(channel.clone()).start_ward(make("ok")).await.unwrap();
            assert_eq!(reply.winner().unwrap().node, "fast");
            assert_eq!(free_insides.started.get(), n + 1);
        }
        // The node has said of each copy that it is gone.
        while channel.stats().lingering > 0 {
            tokio::task::yield_now().await;
        }
        busy_insides.gate.open();
        assert_eq!(failure(&first.await.unwrap()).0, tonic::Code::Ok);
        // One more gets through the queue: those before it have left it, and none of them was begun.
        assert_eq!(failure(&caller.start("ok", &[]).await.end().await).0, tonic::Code::Ok);
        assert_eq!(busy_insides.started.get(), 3);
        busy.stop().await;
        free.stop().await;
    })
    .await;
}
