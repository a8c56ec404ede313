//! The two halves together: the replicated channel over real nodes.

use std::time::Duration;

use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, ResponseExt as _};
use wardkeep_proto::v1::operator_client::OperatorClient;

use crate::{
    Caller, failure,
    support::{Insides, make, node, trouble, within},
};

#[tokio::test]
async fn of_tied_copies_the_one_that_waits_is_withdrawn_and_never_begun() {
    within(async {
        let (busy_insides, free_insides) = (Insides::default(), Insides::default());
        let busy = node([trouble(&busy_insides).concurrency(1).queue(8)]).await;
        let free = node([trouble(&free_insides).concurrency(8)]).await;
        busy.running("trouble", 1).await;
        free.running("trouble", 1).await;
        let caller = Caller::to(&busy).await;
        let first = caller.end_of("gate", &[]);
        busy_insides.started.reaches(1).await;

        let channel = Replicated::builder()
            .members([Member::new("busy", busy.uri()), Member::new("free", free.uri())])
            .assume_idempotent()
            .policy(Policy::Tied { delay: HedgeDelay::Fixed(Duration::ZERO), max_attempts: 2 })
            .build()
            .unwrap();
        for n in 1..=5 {
            let reply = OperatorClient::new(channel.clone()).start_ward(make("ok")).await.unwrap();
            assert_eq!(reply.winner().unwrap().node, "free");
            assert_eq!(free_insides.started.get(), n);
        }
        busy_insides.gate.open();
        assert_eq!(failure(&first.await.unwrap()).0, tonic::Code::Ok);
        // One more gets through the queue: those before it have left it, and none of them was begun.
        assert_eq!(failure(&caller.start("ok", &[]).await.end().await).0, tonic::Code::Ok);
        assert_eq!(busy_insides.started.get(), 2);
        busy.stop().await;
        free.stop().await;
    })
    .await;
}
