//! What a node decided while it was alone holds when a supervisor takes over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use std::time::Duration;

use fleet_support::*;
use tokio::{sync::oneshot, task::JoinSet};
use wardkeep_node::{Backoff, GroupSpec, Node, Ward};
use wardkeep_proto::{
    error::Bug,
    v1::{self, WardState, operator_client::OperatorClient},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ward_quarantined_by_its_node_alone_is_still_quarantined_under_a_supervisor() {
    within(async {
        // An address where nobody listens yet.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let uri = format!("http://{address}");
        let hopeless = Ward::task("f", |_| async { Err(Bug::because("it never works")) }).group("g");
        let group = GroupSpec { intensity: 1, ..GroupSpec::new("g") };
        let node = Node::builder("n").supervisor(&uri).group(group).ward(hopeless);
        let node = node.bind("127.0.0.1:0").await.unwrap();
        let mut snapshots = node.handle().snapshots();
        let mut tasks = JoinSet::new();
        let (end_node, node_ends) = oneshot::channel::<()>();
        tasks.spawn(async move { node.run_until(async { drop(node_ends.await) }).await.unwrap() });
        let gave_up = |now: &std::sync::Arc<wardkeep_node::NodeSnapshot>| {
            now.wards.first().is_some_and(|ward| ward.state() == WardState::Quarantined)
        };
        let before = snapshots.wait_for(gave_up).await.unwrap().wards[0].incarnation;

        let supervisor = quick().bind(&address.to_string()).await.unwrap();
        let (end_supervisor, supervisor_ends) = oneshot::channel::<()>();
        tasks
            .spawn(async move { supervisor.run_until(async { drop(supervisor_ends.await) }).await.unwrap() });
        snapshots.wait_for(|now| now.attending).await.unwrap();
        let mut operator = OperatorClient::new(wardkeep_client::endpoint(&uri).unwrap().connect_lazy());
        let fleet = operator.get_fleet(v1::GetFleetRequest {}).await.unwrap().into_inner();
        assert_eq!(fleet.wards[0].state(), WardState::Quarantined, "{:#?}", fleet.wards);
        assert_eq!(fleet.wards[0].incarnation, before);
        let group = fleet.groups.iter().find(|g| g.spec.as_ref().unwrap().name == "g").unwrap();
        assert!(group.gave_up);

        // An operator's start is obeyed, and costs the ward another life.
        let start =
            v1::WardRequest { node: "n".into(), ward: "f".into(), detach: true, ..Default::default() };
        operator.start_ward(start).await.unwrap();
        let again = |now: &std::sync::Arc<wardkeep_node::NodeSnapshot>| now.wards[0].incarnation > before;
        snapshots.wait_for(again).await.unwrap();
        drop(end_node);
        drop(end_supervisor);
        let ended = async { while tasks.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect("both end when told");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_loses_its_supervisor_goes_on_with_its_groups_and_counts() {
    within(async {
        // Only the supervisor knows this group, and only it saw the first restart.
        let group = GroupSpec { intensity: 1, ..GroupSpec::new("g") };
        let sup = supervisor(quick().mandate_grace(Duration::from_millis(200)).group(group)).await;
        let poke = tokio::sync::watch::Sender::new(0_u64);
        let (mut snapshots, node) =
            watched_node(attending(&sup, "n").ward(fragile("f", &poke).group("g"))).await;
        sup.runs("n", "f", 1).await;
        poke.send_replace(1);
        sup.runs("n", "f", 2).await;

        sup.running.kill().await;
        snapshots.wait_for(|now| now.alone).await.unwrap();
        poke.send_replace(2);
        let ended = |now: &std::sync::Arc<wardkeep_node::NodeSnapshot>| {
            let ward = &now.wards[0];
            assert!(ward.incarnation <= 2, "its group may restart it once: {ward:?}");
            ward.state() == WardState::Quarantined
        };
        snapshots.wait_for(ended).await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_that_a_node_made_while_it_was_alone_count_for_its_supervisors() {
    within(async {
        // An address where nobody listens yet.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        let poke = tokio::sync::watch::Sender::new(0_u64);
        let group = GroupSpec { intensity: 2, ..GroupSpec::new("g") };
        let node = Node::builder("n").supervisor(format!("http://{address}")).group(group);
        let (mut snapshots, node) = watched_node(node.ward(fragile("f", &poke).group("g"))).await;
        snapshots.wait_for(ward_is(1, WardState::Running)).await.unwrap();
        poke.send_replace(1);
        snapshots.wait_for(ward_is(2, WardState::Running)).await.unwrap();

        let recent = |fleet: &v1::Fleet| {
            let group = fleet.groups.iter().find(|group| group.spec.as_ref().unwrap().name == "g")?;
            Some(group.recent_restarts).filter(|recent| *recent > 0)
        };
        let sup = supervisor_at(quick().data_dir(dir.path()), &address).await;
        assert_eq!(sup.until(recent).await, 1);
        let told = sup.events().await.says("restart 1 of 2 allowed").await;
        assert_eq!(told.decision.map(|decision| decision.group), Some("g".into()), "{}", told.text);
        assert_eq!(sup.runs("n", "f", 2).await.restarts, 1);
        poke.send_replace(2);
        sup.runs("n", "f", 3).await;
        // The next supervisor knows of all of them, and of none twice.
        sup.running.stop().await;
        let sup = supervisor_at(quick().data_dir(dir.path()), &address).await;
        sup.runs("n", "f", 3).await;
        assert_eq!(sup.until(recent).await, 2);
        poke.send_replace(3);
        let ended = sup.ward("n", "f", |ward| ward.state() == WardState::Quarantined).await;
        assert_eq!(ended.incarnation, 3);
        node.stop().await;
    })
    .await;
}

/// What it had decided, and not yet done, is done, and counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_a_node_alone_was_about_to_make_is_made_by_its_supervisor_and_counted_once() {
    within(async {
        // An address where nobody listens yet.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let poke = tokio::sync::watch::Sender::new(0_u64);
        let hour = Duration::from_secs(3_600);
        let backoff = Backoff { first: hour, max: hour, ..Backoff::default() };
        let group = GroupSpec { intensity: 3, period: hour, backoff, ..GroupSpec::new("g") };
        let node = Node::builder("n").supervisor(format!("http://{address}")).group(group);
        let (mut snapshots, node) = watched_node(node.ward(fragile("f", &poke).group("g"))).await;
        snapshots.wait_for(ward_is(1, WardState::Running)).await.unwrap();
        // The first restart has no pause before it.
        poke.send_replace(1);
        snapshots.wait_for(ward_is(2, WardState::Running)).await.unwrap();
        poke.send_replace(2);
        snapshots.wait_for(ward_is(2, WardState::Stopped)).await.unwrap();

        let sup = supervisor_at(quick(), &address).await;
        sup.runs("n", "f", 3).await;
        let fleet = sup.fleet().await;
        let group = fleet.groups.iter().find(|group| group.spec.as_ref().unwrap().name == "g").unwrap();
        assert_eq!(group.recent_restarts, 2);
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_obeys_a_later_supervisor_leaves_no_trace_with_an_earlier_one_but_that() {
    within(async {
        let sup = supervisor(quick()).await;
        let mut hello = hello("n", &["w"]);
        hello.highest_epoch = u64::MAX;
        hello.wards[0].set_state(WardState::Stopped);
        let told = v1::Event { sequence: 1, text: "it did this".into(), ..Default::default() };
        hello.history.push(told);
        for _ in 0..5 {
            let mut node =
                FakeNode::open(&sup.uri, Some(v1::node_message::Kind::Hello(hello.clone()))).await.unwrap();
            let refused = error(&node.end().await.expect("it is refused"));
            assert_eq!(
                (refused.kind(), refused.code()),
                ("SUPERSEDED", wardkeep_proto::error::Code::FailedPrecondition)
            );
        }
        assert_eq!(sup.fleet().await.nodes, []);
        let mut events =
            sup.operator.clone().watch_events(v1::WatchEventsRequest::default()).await.unwrap().into_inner();
        let mut texts = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            texts.push(event.text);
        }
        assert_eq!(texts.len(), 2, "that it began, and that it is superseded: {texts:#?}");
        assert!(texts[1].contains("has authority over nodes"), "{texts:#?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_start_that_its_node_never_heard_of_is_gone_on_with_by_the_next_supervisor() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let mut rests = hello("n", &["w"]);
        rests.wards[0].set_state(WardState::Stopped);
        rests.wards[0].held = true;
        let first = supervisor(quick().data_dir(dir.path())).await;
        let (mut node, _) = FakeNode::attend(&first, rests.clone()).await.unwrap();
        let request = v1::WardRequest { detach: true, ..of_ward("n", "w") };
        first.operator.clone().start_ward(request).await.unwrap();
        start_after(&mut node, 1).await;
        // Nothing comes of it: the node has lost the supervisor, and the command with it.
        drop(node);
        first.running.kill().await;

        let second = supervisor(quick().data_dir(dir.path())).await;
        let (mut node, _) = FakeNode::attend(&second, rests).await.unwrap();
        start_after(&mut node, 1).await;
        let mut events = second.events().await;
        assert!(events.says("goes on with a restart by ana@ops").await.text.contains("a test"));
    })
    .await;
}

/// Waits until the node is told to start a ward's next incarnation.
async fn start_after(node: &mut FakeNode, incarnation: u64) {
    loop {
        let command = node.command().await.kind;
        if let Some(v1::command::Kind::Start(start)) = command {
            assert_eq!(start.after_incarnation, incarnation);
            return;
        }
    }
}
