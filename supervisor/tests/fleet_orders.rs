//! Orders for nodes that get lost on their way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use fleet_support::*;
use wardkeep_proto::v1::{self, command::Kind};

async fn again(sup: &Sup, before: FakeNode, hello: &v1::Hello) -> FakeNode {
    drop(before);
    sup.node("n", |node| !node.attending).await;
    FakeNode::attend(sup, hello.clone()).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_a_lost_session_took_with_it_is_sent_again_until_its_effect_is_seen() {
    within(async {
        let sup = supervisor(quick()).await;
        let (mut operator, mut events) = (sup.operator.clone(), sup.events().await);
        let order = || v1::NodeRequest { detach: true, ..of_node("n") };
        let first = hello("n", &["w"]);
        let (mut fake, _) = FakeNode::attend(&sup, first.clone()).await.unwrap();
        operator.restart_node(order()).await.unwrap();
        let told = fake.command().await;
        assert!(matches!(told.kind, Some(Kind::RestartNode(_))), "{told:?}");

        fake = again(&sup, fake, &first).await;
        let repeated = fake.command().await;
        assert_eq!((&repeated.kind, &repeated.reason), (&told.kind, &told.reason));
        let event = events.says("orders restart in place again").await;
        assert_eq!(event.actor, "ana@ops");

        // It was meant for the boot before: this one is told what comes next, and nothing else.
        let mut second = hello("n", &["w"]);
        fake = again(&sup, fake, &second).await;
        operator.drain_node(order()).await.unwrap();
        let told = fake.command().await;
        assert_eq!(told.kind, Some(Kind::Drain(v1::Drain { on: true })));
        fake = again(&sup, fake, &second).await;
        assert_eq!(fake.command().await.kind, told.kind);

        // It had obeyed, and that was not heard.
        second.draining = true;
        fake = again(&sup, fake, &second).await;
        operator.undrain_node(order()).await.unwrap();
        let told = fake.command().await;
        assert_eq!(told.kind, Some(Kind::Drain(v1::Drain { on: false })));
        fake = again(&sup, fake, &second).await;
        assert_eq!(fake.command().await.kind, told.kind);
    })
    .await;
}
