//! What operators ask for: it waits for the effect, says what it sees, and lasts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use std::time::Duration;

use fleet_support::*;
use tokio::sync::watch;
use wardkeep_node::Ward;
use wardkeep_proto::{
    error::Code,
    v1::{self, EventKind, WardState, command::Kind, node_message::Kind as Up},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_answered_when_its_effect_is_seen() {
    within(Box::pin(async {
        let sup = supervisor(quick()).await;
        let mut operator = sup.operator.clone();
        let (_, _node) = real_node(attending(&sup, "n").ward(calm("c"))).await;
        sup.runs("n", "c", 1).await;
        let mut events = sup.events().await;

        let outcome = operator.restart_ward(of_ward("n", "c")).await.unwrap().into_inner();
        let (before, after) = (outcome.before.unwrap(), outcome.after.unwrap());
        assert_eq!((before.incarnation, after.incarnation), (1, 2));
        assert_eq!((after.state(), after.restarts), (WardState::Running, 0));
        let asked = events.kind(EventKind::Operator).await;
        assert_eq!(asked.actor, "ana@ops");
        assert_eq!(asked.text, "restart asked for: ana@ops asked for it: a test");

        let outcome = operator.stop_ward(of_ward("n", "c")).await.unwrap().into_inner();
        assert_eq!(outcome.after.unwrap().state(), WardState::Stopped);
        let held = sup.ward("n", "c", |w| w.state() == WardState::Stopped).await;
        assert!(held.held);
        let outcome = operator.start_ward(of_ward("n", "c")).await.unwrap().into_inner();
        let after = outcome.after.unwrap();
        assert_eq!((after.state(), after.incarnation, after.held), (WardState::Running, 3, false));

        let detached = v1::WardRequest { detach: true, ..of_ward("n", "c") };
        let outcome = operator.restart_ward(detached).await.unwrap().into_inner();
        assert!(outcome.after.is_none());
        sup.runs("n", "c", 4).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_said_at_once_or_at_the_deadline() {
    within(async {
        let sup = supervisor(quick()).await;
        let mut operator = sup.operator.clone();
        let (fake, _) = FakeNode::attend(&sup, hello("n", &["w"])).await.unwrap();
        let reporter = fake.keep_reporting();
        sup.runs("n", "w", 1).await;

        // This node does nothing it is told.
        let request = timed(of_ward("n", "w"), Duration::from_millis(600));
        let late = error(&operator.restart_ward(request).await.unwrap_err());
        assert_eq!((late.kind(), late.code()), ("NOT_SEEN", Code::DeadlineExceeded));
        assert!(late.what().starts_with("restart of n/w was asked for, but has not been seen"), "{late}");

        let none = error(&operator.stop_ward(of_ward("n", "x")).await.unwrap_err());
        assert_eq!((none.kind(), none.code()), ("NO_SUCH_WARD", Code::NotFound));
        let none = error(&operator.stop_ward(of_ward("x", "w")).await.unwrap_err());
        assert_eq!((none.kind(), none.code()), ("NO_SUCH_NODE", Code::NotFound));
        for call in [of_node("x"), of_node(""), of_node(&"x".repeat(1_000_000))] {
            let none = error(&operator.drain_node(call).await.unwrap_err());
            assert_eq!((none.kind(), none.what().lines().count()), ("NO_SUCH_NODE", 1));
        }
        drop(reporter);
        drop(fake);
        sup.node("n", |n| !n.attending).await;
        let away = error(&operator.start_ward(of_ward("n", "w")).await.unwrap_err());
        assert_eq!((away.kind(), away.code()), ("NOT_ATTENDING", Code::FailedPrecondition));
        let away = error(&operator.restart_node(of_node("n")).await.unwrap_err());
        assert_eq!(away.kind(), "NOT_ATTENDING");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ward_that_was_stopped_stays_down_whoever_is_steward_until_it_is_started() {
    within(async {
        let sup = supervisor(quick().mandate_grace(Duration::from_millis(100))).await;
        let (_, _node) = real_node(attending(&sup, "n").ward(calm("down")).ward(calm("up"))).await;
        sup.runs("n", "down", 1).await;
        sup.operator.clone().stop_ward(of_ward("n", "down")).await.unwrap();
        let address = sup.uri.trim_start_matches("http://").to_owned();
        sup.running.stop().await;
        // The node heals its own wards meanwhile, and is welcomed again.
        let sup = supervisor_at(quick(), &address).await;
        let mut events = sup.events().await;
        sup.runs("n", "up", 1).await;
        let down = sup.ward("n", "down", |w| w.held).await;
        assert_eq!((down.state(), down.incarnation), (WardState::Stopped, 1));
        // It stays so while other things happen on the node.
        sup.operator.clone().restart_ward(of_ward("n", "up")).await.unwrap();
        let down = sup.ward("n", "down", |_| true).await;
        assert_eq!((down.state(), down.incarnation), (WardState::Stopped, 1));

        sup.operator.clone().start_ward(of_ward("n", "down")).await.unwrap();
        let up = sup.runs("n", "down", 2).await;
        assert!(!up.held);
        events.says("start asked for").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_lifts_a_quarantine() {
    within(async {
        let sup = supervisor(quick()).await;
        let poke = watch::Sender::new(1_u64);
        let group = wardkeep_node::GroupSpec { intensity: 1, ..wardkeep_node::GroupSpec::new("g") };
        let ward: Ward = fragile("f", &poke).group("g");
        let (_, _node) = real_node(attending(&sup, "n").group(group).ward(ward)).await;
        poke.send_replace(50);
        sup.ward("n", "f", |w| w.state() == WardState::Quarantined).await;
        let gave_up = sup.fleet().await.groups.into_iter().find(|g| g.spec.as_ref().unwrap().name == "g");
        assert!(gave_up.unwrap().gave_up);
        poke.send_replace(0);
        let outcome = sup.operator.clone().restart_ward(of_ward("n", "f")).await.unwrap().into_inner();
        assert_eq!(outcome.before.unwrap().state(), WardState::Quarantined);
        assert_eq!(outcome.after.unwrap().state(), WardState::Running);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_is_offered_to_nobody_until_it_is_undrained() {
    within(async {
        let sup = supervisor(quick()).await;
        let mut operator = sup.operator.clone();
        let (_, _node) = real_node(attending(&sup, "n").ward(hanging("h"))).await;
        sup.runs("n", "h", 1).await;
        let mut views = sup.directory("").await;
        view_until(&mut views, |view| offers(view) == [("h".to_owned(), 1, true)]).await;
        let outcome = operator.drain_node(of_node("n")).await.unwrap().into_inner();
        assert!(!outcome.before.unwrap().draining);
        assert!(outcome.after.unwrap().draining);
        let seen = view_until(&mut views, |view| offers(view) == [("h".to_owned(), 1, false)]).await;
        assert!(!seen.last().unwrap().members[0].ready);
        assert!(!operator.undrain_node(of_node("n")).await.unwrap().into_inner().after.unwrap().draining);
        view_until(&mut views, |view| offers(view) == [("h".to_owned(), 1, true)]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restart_is_seen_by_its_new_boot() {
    within(async {
        let sup = supervisor(quick()).await;
        let (mut fake, _) = FakeNode::attend(&sup, hello("n", &[])).await.unwrap();
        let mut operator = sup.operator.clone();
        let drain_timeout = Some(prost_types::Duration { seconds: 3, nanos: 0 });
        let request = v1::NodeRequest { drain_timeout, ..of_node("n") };
        let asked = tokio::task::spawn(async move { operator.restart_node(request).await });
        let Some(Kind::RestartNode(told)) = fake.command().await.kind else { panic!("not a restart") };
        assert_eq!(told.drain_timeout, drain_timeout);
        fake.send(Up::Goodbye(v1::Goodbye { restarting: true })).await;
        assert!(fake.end().await.is_none());
        assert!(!asked.is_finished());
        let again = hello("n", &[]);
        let boot = again.node.as_ref().unwrap().boot_id.clone();
        let (_fake, _) = FakeNode::attend(&sup, again).await.unwrap();
        let outcome = asked.await.unwrap().unwrap().into_inner();
        assert_eq!(outcome.after.unwrap().info.unwrap().boot_id, boot);
        assert_ne!(outcome.before.unwrap().info.unwrap().boot_id, boot);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_read_from_where_and_as_far_as_asked() {
    within(async {
        let sup = supervisor(quick()).await;
        for i in 0..5 {
            FakeNode::attend(&sup, hello(&format!("n{i}"), &[])).await.unwrap();
        }
        let last = sup.fleet().await.supervisor.unwrap().last_event_sequence;
        let mut operator = sup.operator.clone();
        let mut read = async |request: v1::WatchEventsRequest| {
            let mut stream = operator.watch_events(request).await.unwrap().into_inner();
            let mut sequences = Vec::new();
            while let Some(event) = stream.message().await.unwrap() {
                sequences.push(event.sequence);
            }
            sequences
        };
        let all = read(v1::WatchEventsRequest::default()).await;
        assert!(all.len() >= 5);
        assert_eq!(all[0], 1);
        let newest = read(v1::WatchEventsRequest { limit: 2, ..Default::default() }).await;
        assert_eq!(newest.len(), 2);
        assert!(newest[1] >= last);
        let after = read(v1::WatchEventsRequest { after_sequence: 3, ..Default::default() }).await;
        assert_eq!(after[0], 4);
        let beyond = read(v1::WatchEventsRequest { after_sequence: u64::MAX, ..Default::default() }).await;
        assert!(beyond.is_empty());

        // Following begins with the past and misses nothing.
        let mut events = sup.events().await;
        FakeNode::attend(&sup, hello("late", &[])).await.unwrap();
        events.until(|e| e.node == "late").await;
        assert_eq!(events.seen[0].sequence, 1);
        assert!(events.seen.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_ends_at_once_though_nodes_and_watchers_hold_on() {
    within(async {
        let sup = supervisor(quick()).await;
        let (mut fake, _) = FakeNode::attend(&sup, hello("n", &["w"])).await.unwrap();
        let _reporter = fake.keep_reporting();
        let (_, _node) = real_node(attending(&sup, "real").ward(calm("c"))).await;
        sup.runs("real", "c", 1).await;
        let mut events = sup.events().await;
        let mut views = sup.directory("").await;
        let mut operator = sup.operator.clone();
        let waiting = tokio::task::spawn(async move { operator.restart_ward(of_ward("n", "w")).await });
        events.says("restart asked for").await;

        let begun = tokio::time::Instant::now();
        sup.running.stop().await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        fake.end().await;
        events.ended().await;
        while let Ok(Some(_)) = views.message().await {}
        let refused = waiting.await.unwrap().unwrap_err();
        assert_eq!(error(&refused).kind(), "SHUTTING_DOWN");
    })
    .await;
}
