//! Before a group is quarantined its node may be restarted, and so may one that leaks threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use fleet_support::*;
use wardkeep_proto::v1::{self, EventKind, ExitKind, WardState, command::Kind, node_message::Kind as Up};

/// A node with one task ward, whose group may restart it once.
fn node() -> v1::Hello {
    let mut hello = hello("n", &["w"]);
    let spec = hello.wards[0].spec.as_mut().unwrap();
    (spec.group, spec.kind) = ("g".into(), v1::WardKind::Task.into());
    hello.groups = vec![v1::GroupSpec { name: "g".into(), intensity: 1, ..Default::default() }];
    hello.restartable = true;
    hello
}

fn failed() -> v1::Exit {
    v1::Exit { kind: ExitKind::Failed.into(), ..Default::default() }
}

/// The next command that is not about holding a ward.
async fn ordered(node: &mut FakeNode) -> v1::Command {
    loop {
        let command = node.command().await;
        if !matches!(command.kind, Some(Kind::Hold(_))) {
            return command;
        }
    }
}

/// Its ward fails once more than it may.
async fn fail_too_often(node: &mut FakeNode) {
    node.ended(0, 1, failed()).await;
    assert!(matches!(ordered(node).await.kind, Some(Kind::Start(_))));
    node.change(0, 2, WardState::Starting).await;
    node.change(0, 2, WardState::Running).await;
    node.ended(0, 2, failed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_gives_up_has_its_node_restarted_once_and_is_then_quarantined() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let mut events = sup.events().await;
        let (mut fake, _) = FakeNode::attend(&sup, node()).await.unwrap();
        fail_too_often(&mut fake).await;
        let order = ordered(&mut fake).await;
        assert!(matches!(order.kind, Some(Kind::RestartNode(_))), "{order:?}");
        let told = events.says("restarted in place, for group g of its wards gave up").await;
        assert_eq!((told.kind(), told.node.as_str(), told.ward.as_str()), (EventKind::NodeRestart, "n", "w"));
        drop(fake);

        // Another boot: its ward begins anew, with a whole budget. It does not help.
        let (mut again, _) = FakeNode::attend(&sup, node()).await.unwrap();
        sup.ward("n", "w", |ward| ward.state() == WardState::Running).await;
        fail_too_often(&mut again).await;
        let _reporter = again.keep_reporting();
        events.kind(EventKind::GroupGaveUp).await;
        sup.ward("n", "w", |ward| ward.state() == WardState::Quarantined).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaks_too_many_threads_is_restarted() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let (mut fake, _) = FakeNode::attend(&sup, node()).await.unwrap();
        fake.send(Up::Report(v1::Report { leaked_threads: 17, ..Default::default() })).await;
        let order = fake.command().await;
        assert!(matches!(order.kind, Some(Kind::RestartNode(_))), "{order:?}");
        assert_eq!(order.reason, "17 threads are leaked, allowed 16");
    }))
    .await;
}
