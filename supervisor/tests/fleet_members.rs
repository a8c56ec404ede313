//! Wards that come and go on a node that attends: the supervisor heals what is there, and knows of nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet_support::*;
use tokio::sync::watch;
use wardkeep_node::{
    Configuration, GroupSpec, Node, NodeBuilder, NodeHandle, Program, Ward,
    settings::{Effect, Entry},
};
use wardkeep_proto::v1::{self, EventKind, WardState, node_message::Kind as Up};

/// A node, and the handle to it.
async fn node_with_handle(builder: NodeBuilder) -> (NodeHandle, tokio::task::JoinSet<()>) {
    let node = builder.bind("127.0.0.1:0").await.unwrap();
    let handle = node.handle();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { node.run_until(std::future::pending()).await.unwrap() });
    (handle, tasks)
}

fn pool() -> GroupSpec {
    GroupSpec { intensity: 200, ..GroupSpec::new("pool") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_workers_come_crash_and_go_and_a_new_session_knows_those_that_are_left() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let (handle, _node) = node_with_handle(attending(&sup, "n").group(pool())).await;
        sup.node("n", |n| n.attending).await;
        let poke = watch::Sender::new(0_u64);
        for number in 0..100 {
            let name = format!("w{number}");
            let ward = if number % 10 == 0 { fragile(&name, &poke) } else { calm(&name) };
            handle.add(ward.group("pool")).await.unwrap();
        }
        let running = |fleet: &v1::Fleet, n: usize, incarnation: u64| {
            let so = |w: &&v1::Ward| w.state() == WardState::Running && w.incarnation == incarnation;
            fleet.wards.iter().filter(so).count() == n
        };
        sup.until(|fleet| running(fleet, 100, 1).then_some(())).await;
        poke.send_replace(1);
        sup.until(|fleet| running(fleet, 10, 2).then_some(())).await;
        for number in (5..100).step_by(10) {
            handle.remove(&format!("w{number}")).await.unwrap();
        }
        let fleet = sup.until(|fleet| (fleet.wards.len() == 90).then(|| fleet.clone())).await;
        assert!(running(&fleet, 80, 1) && running(&fleet, 10, 2));
        let group = fleet.groups.iter().find(|g| g.spec.as_ref().unwrap().name == "pool").unwrap();
        assert_eq!((group.members.len(), group.recent_restarts), (90, 10));
        assert_eq!(sup.events().await.says("left its node").await.ward, "w5");

        // The same node in another session, with holes where wards were: each is still who it was.
        let address = sup.uri.trim_start_matches("http://").to_owned();
        sup.running.stop().await;
        handle.remove("w6").await.unwrap();
        let sup = supervisor_at(quick(), &address).await;
        sup.until(|fleet| (running(fleet, 79, 1) && running(fleet, 10, 2)).then_some(())).await;
        sup.operator.clone().restart_ward(of_ward("n", "w97")).await.unwrap();
        poke.send_replace(2);
        sup.until(|fleet| running(fleet, 10, 3).then_some(())).await;
        handle.add(calm("w5").group("pool")).await.unwrap();
        sup.runs("n", "w5", 1).await;
        sup.runs("n", "w97", 2).await;
        sup.runs("n", "w96", 1).await;
        sup.operator.clone().stop_ward(of_ward("n", "w96")).await.unwrap();
        handle.remove("w96").await.unwrap();
        handle.add(calm("w96")).await.unwrap();
        // What was held is forgotten with the ward that was.
        sup.runs("n", "w96", 1).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_offered_a_service_for_as_long_as_it_is_hosted() {
    within(async {
        let sup = supervisor(quick()).await;
        let (handle, _node) = node_with_handle(attending(&sup, "n")).await;
        sup.node("n", |n| n.attending).await;
        let mut views = sup.directory(HANGING).await;
        handle.add(hanging("h")).await.unwrap();
        view_until(&mut views, |view| offers(view) == [("h".to_owned(), 1, true)]).await;
        handle.remove("h").await.unwrap();
        view_until(&mut views, |view| view.members.is_empty()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_told_when_it_is_full_and_a_peer_that_lies_about_slots_is_expelled() {
    within(async {
        let sup = supervisor(quick()).await;
        let idle = |n: usize| Ward::process(format!("w{n}"), Program::new("true")).manual_start();
        let builder = (0..1_023).fold(attending(&sup, "n"), |node, n| node.ward(idle(n)));
        let (handle, _node) = node_with_handle(builder).await;
        sup.node("n", |n| n.attending).await;
        handle.add(idle(1_023)).await.unwrap();
        let full = handle.add(idle(1_024)).await.unwrap_err();
        assert_eq!(full.kind(), "TOO_MANY_WARDS");
        assert_eq!(
            full.what(),
            "node n has a supervisor, which takes on no more than 1024 wards of one node"
        );
        handle.remove("w7").await.unwrap();
        handle.add(idle(1_024)).await.unwrap();
        sup.until(|fleet| fleet.wards.iter().any(|w| w.spec.as_ref().unwrap().name == "w1024").then_some(()))
            .await;
        let many = (0..1_025).fold(Node::builder("m").supervisor(&sup.uri), |node, n| node.ward(idle(n)));
        assert_eq!(many.bind("127.0.0.1:0").await.err().unwrap().kind(), "TOO_MANY_WARDS");

        let join = |slot: u32, name: &str| {
            let ward = hello("x", &[name]).wards.into_iter().next();
            Up::WardJoined(v1::WardJoined { slot, ward })
        };
        for (messages, says) in [
            (vec![join(1, "b")], "ward b joins in slot 1, which is not free"),
            (
                vec![Up::WardLeft(v1::WardLeft { slot: 1 }), join(1, "c")],
                "ward c joins in slot 1, which is not free",
            ),
            (vec![join(7, "a")], "ward a joins in slot 7, which is not free"),
            (vec![Up::WardLeft(v1::WardLeft { slot: 9 })], "slot 9, which no ward has, is left"),
            (vec![join(2, "")], "a ward has an empty name"),
        ] {
            let (mut fake, _) = FakeNode::attend(&sup, hello("x", &["a", "b2"])).await.unwrap();
            for message in messages {
                fake.send(message).await;
            }
            let told = error(&fake.end().await.expect("an error"));
            assert!(told.kind() == "PROTOCOL" && told.what().ends_with(says), "{says}: {}", told.what());
        }
        let (fake, _) = FakeNode::attend(&sup, hello("x", &["a"])).await.unwrap();
        let _reporter = fake.keep_reporting();
        fake.send(join(u32::MAX, "far")).await;
        sup.ward("x", "far", |_| true).await;
    })
    .await;
}

fn entry(name: &str, program: &str) -> Entry {
    Entry::new("ward", name).key("command", Effect::Restarts, program)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_wards_that_are_to_restart_the_first_that_fails_is_the_last() {
    within(async {
        let sup = supervisor(quick()).await;
        let described = |program: &'static str| {
            let ward = |name: &'static str| {
                Ward::process(name, Program::new(program).arg("1000"))
                    .group("g")
                    .grace(Duration::from_millis(200))
            };
            Configuration {
                entries: vec![entry("a", program), entry("b", program)],
                groups: Vec::new(),
                wards: vec![ward("a"), ward("b")],
            }
        };
        let file = Arc::new(Mutex::new(described("sleep")));
        let read = file.clone();
        let node = attending(&sup, "n")
            .configured("a file", described("sleep"), move || Ok(read.lock().unwrap().clone()));
        let group = GroupSpec { intensity: 0, ..GroupSpec::new("g") };
        let (_handle, _node) = node_with_handle(node.group(group)).await;
        sup.runs("n", "b", 1).await;
        let request = |dry_run| v1::ConfigRequest {
            node: "n".into(),
            dry_run,
            actor: "ana@ops".into(),
            ..Default::default()
        };
        let mut operator = sup.operator.clone();
        assert!(operator.apply_config(request(false)).await.unwrap().into_inner().changes.is_empty());

        *file.lock().unwrap() = described("/does/not/exist");
        let mut events = sup.events().await;
        let would = operator.apply_config(request(true)).await.unwrap().into_inner();
        assert_eq!(would.restarts, ["a", "b"]);
        let failed = error(&operator.apply_config(request(false)).await.unwrap_err());
        assert!(failed.what().starts_with("n/a as it is configured now: it is quarantined"), "{failed}");
        let told = events.says("is quarantined with its new configuration").await;
        assert_eq!((told.kind(), told.actor.as_str()), (EventKind::Operator, "ana@ops"));
        assert!(told.text.ends_with("not restarted for it: b"), "{}", told.text);

        let (_, _code) = real_node(attending(&sup, "code").ward(calm("c"))).await;
        sup.runs("code", "c", 1).await;
        let of_code = v1::ConfigRequest { node: "code".into(), ..Default::default() };
        assert!(operator.apply_config(of_code).await.unwrap().into_inner().hosted_from_code);
        let own = operator.apply_config(v1::ConfigRequest::default()).await.unwrap().into_inner();
        assert!(own.hosted_from_code);
    })
    .await;
}

/// This slot's ward has begun a unit of work, and is at it.
fn works(slot: u32) -> Up {
    Up::Report(v1::Report {
        worked: vec![slot],
        work_begun: vec![1],
        work_ended: vec![0],
        oldest_work_ms: vec![1],
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_are_about_the_wards_in_their_slots_whatever_holes_there_are() {
    within(async {
        let sup = supervisor(quick()).await;
        let holes = v1::Hello { slots: vec![2, 5], ..hello("n", &["a", "b"]) };
        let (mut fake, _) = FakeNode::attend(&sup, holes).await.unwrap();
        let busy = async |name: &'static str| {
            let fleet = sup.until(|fleet| {
                ward(fleet, "n", name).filter(|w| w.work_in_progress > 0).map(|_| fleet.clone())
            });
            let at_work = fleet.await.wards.into_iter().filter(|w| w.work_in_progress > 0);
            at_work.map(|w| w.spec.unwrap().name).collect::<Vec<_>>()
        };
        fake.send(works(5)).await;
        assert_eq!(busy("b").await, ["b"]);
        let joins = hello("n", &["c"]).wards.into_iter().next();
        fake.send(Up::WardJoined(v1::WardJoined { slot: 9, ward: joins })).await;
        fake.send(works(9)).await;
        assert_eq!(busy("c").await, ["c"]);
        fake.send(Up::WardLeft(v1::WardLeft { slot: 2 })).await;
        fake.send(works(5)).await;
        assert_eq!(busy("b").await, ["b"]);
        // It was about a ward that has left since; that is no lie.
        fake.send(works(2)).await;
        fake.send(works(9)).await;
        assert_eq!(busy("c").await, ["c"]);
        fake.send(works(10)).await;
        let told = error(&fake.end().await.expect("an error"));
        assert!(told.what().ends_with("a report about slot 10, which no ward has"), "{}", told.what());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ward_that_left_and_joined_again_while_its_node_was_away_counts_from_the_beginning() {
    within(async {
        let sup = supervisor(quick()).await;
        let first = hello("n", &["a", "b"]);
        let mut before = first.clone();
        before.wards[1].incarnation = 7;
        let (fake, _) = FakeNode::attend(&sup, before).await.unwrap();
        sup.runs("n", "b", 7).await;
        drop(fake);
        let again = v1::Hello { slots: vec![0, 2], ..first };
        let (fake, _) = FakeNode::attend(&sup, again).await.unwrap();
        let _reporter = fake.keep_reporting();
        sup.runs("n", "b", 1).await;
    })
    .await;
}
