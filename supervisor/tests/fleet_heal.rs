//! Crash, stall, silence: what the supervisor sees, what it does, what it tells of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use std::time::Duration;

use fleet_support::*;
use tokio::sync::watch;
use wardkeep_proto::v1::{
    self, EventKind, Verdict, WardState, command::Kind, directory_client::DirectoryClient,
    node_message::Kind as Up,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_attends_and_its_wards_are_seen_by_operators_and_offered_to_clients() {
    within(async {
        let sup = supervisor(quick()).await;
        let mut views = sup.directory(HANGING).await;
        assert!(views.message().await.unwrap().unwrap().members.is_empty());
        let (uri, _node) =
            real_node(attending(&sup, "n").label("path", "x").ward(hanging("h")).ward(calm("c"))).await;
        sup.runs("n", "h", 1).await;
        sup.runs("n", "c", 1).await;
        let fleet = sup.fleet().await;
        let info = node(&fleet, "n").unwrap().info.clone().unwrap();
        assert_eq!((info.uri.as_str(), info.labels["path"].as_str()), (uri.as_str(), "x"));
        assert_eq!(node(&fleet, "n").unwrap().verdict(), Verdict::Healthy);
        let names: Vec<_> = fleet.wards.iter().map(|w| w.spec.as_ref().unwrap().name.as_str()).collect();
        assert_eq!(names, ["h", "c"]);

        let seen = view_until(&mut views, |view| offers(view) == [("h".to_owned(), 1, true)]).await;
        assert_eq!(seen.last().unwrap().members[0].node.as_ref().unwrap().uri, uri);
        assert!(seen.is_sorted_by_key(|view| view.version));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_seen_before_the_next_report_and_the_ward_is_restarted_over_the_wire() {
    within(async {
        // Only a push can tell of it: the next report is far away.
        let config = wardkeep_steward::Config {
            pulse_interval: Duration::from_secs(20),
            silence_floor: Duration::from_secs(60),
            silence_ceiling: Duration::from_secs(60),
            ..Default::default()
        };
        let sup = supervisor(quick().steward(config)).await;
        let poke = watch::Sender::new(0);
        let (_, _node) = real_node(attending(&sup, "n").ward(fragile("f", &poke))).await;
        sup.runs("n", "f", 1).await;
        let mut events = sup.events().await;
        poke.send_replace(1);
        sup.runs("n", "f", 2).await;
        events.says("runs, incarnation 2").await;

        let story: Vec<_> = events.seen.iter().filter(|e| e.ward == "f").collect();
        let from = story.iter().position(|e| e.text.starts_with("incarnation 1 panicked")).unwrap();
        let told: Vec<_> = story[from..].iter().map(|e| (e.kind(), e.text.as_str())).collect();
        assert_eq!(told[0].0, EventKind::WardStopped);
        assert_eq!(told[1].0, EventKind::WardVerdict);
        assert!(told[1].1.starts_with("incarnation 1 crashed"), "{told:?}");
        assert_eq!(told[2].0, EventKind::WardRestart);
        assert!(told[2].1.starts_with("restart 1 of 5 allowed"), "{told:?}");
        assert_eq!(told[3].0, EventKind::WardRestart);
        assert!(told[3].1.starts_with("told to start"), "{told:?}");
        assert_eq!(told[4].0, EventKind::WardStarted);
        assert_eq!(told.len(), 5);
        assert!(told.iter().take(4).all(|(_, text)| text.contains("poked for the 1. time")), "{told:?}");

        let id = sup.ward("n", "f", |w| w.incarnation == 2).await.last_error_id;
        assert!(!id.is_empty());
        assert!(story[from..from + 4].iter().all(|e| e.error.as_ref().unwrap().id == id));
        let epoch = sup.fleet().await.supervisor.unwrap().epoch;
        assert!(story[from..].iter().all(|e| e.epoch == epoch));
        let sequences: Vec<_> = events.seen.iter().map(|e| e.sequence).collect();
        assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequences:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_hangs_is_a_stall_and_the_ward_is_not_offered_until_it_runs_anew() {
    within(async {
        let sup = supervisor(quick()).await;
        let (uri, _node) = real_node(attending(&sup, "n").ward(hanging("h"))).await;
        sup.runs("n", "h", 1).await;
        let mut views = sup.directory("").await;
        view_until(&mut views, |view| offers(view) == [("h".to_owned(), 1, true)]).await;
        let mut events = sup.events().await;
        let mut client = DirectoryClient::new(channel(&uri).await);
        let call =
            tokio::task::spawn(async move { client.watch(v1::WatchDirectoryRequest::default()).await });

        let verdict = events.until(|e| e.kind() == EventKind::WardVerdict).await;
        assert_eq!(verdict.verdict(), Verdict::Stalled);
        assert!(verdict.text.contains("work overdue"), "{}", verdict.text);
        let evidence = verdict.evidence.unwrap();
        assert!(evidence.oldest_work.is_some() && evidence.last_pulse.is_some(), "{evidence:?}");
        assert_eq!(verdict.group, "n/");
        let seen = view_until(&mut views, |view| offers(view) == [("h".to_owned(), 2, true)]).await;
        let between = &seen[..seen.len() - 1];
        // It is suspected while its work is late, and not ready from the verdict on.
        let is_suspected = |view: &&v1::DirectoryView| view.members.iter().all(|m| m.offers[0].suspected);
        let suspected = between.iter().take_while(is_suspected).count();
        let after = &between[suspected..];
        assert!(!after.is_empty() && suspected <= 1, "{between:?}");
        assert!(after.iter().flat_map(offers).all(|(_, _, ready)| !ready), "{between:?}");
        assert!(call.await.unwrap().is_err());
        assert_eq!(sup.runs("n", "h", 2).await.restarts, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_unreachable_though_its_connection_stands_and_healthy_again_once_heard() {
    within(async {
        let sup = supervisor(quick()).await;
        let (fake, welcome) = FakeNode::attend(&sup, hello("n", &["w"])).await.unwrap();
        assert_eq!(welcome.pulse_interval.unwrap().nanos, 50_000_000);
        let mut views = sup.directory("").await;
        let mut events = sup.events().await;
        let reporter = fake.keep_reporting();
        view_until(&mut views, |view| offers(view) == [("w".to_owned(), 1, true)]).await;
        drop(reporter);

        let verdict = events.kind(EventKind::NodeVerdict).await;
        assert_eq!(verdict.verdict(), Verdict::Unreachable);
        assert!(verdict.text.starts_with("unreachable: nothing heard for"), "{}", verdict.text);
        let silent = sup.node("n", |n| n.verdict() == Verdict::Unreachable).await;
        assert!(silent.attending);
        let w = sup.ward("n", "w", |w| w.verdict() == Verdict::Unreachable).await;
        assert_eq!(w.state(), WardState::Unknown);
        view_until(&mut views, |view| offers(view) == [("w".to_owned(), 1, false)]).await;

        let _reporter = fake.keep_reporting();
        assert_eq!(events.kind(EventKind::NodeVerdict).await.verdict(), Verdict::Healthy);
        view_until(&mut views, |view| offers(view) == [("w".to_owned(), 1, true)]).await;
        sup.runs("n", "w", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_breaks_off_is_told_from_a_goodbye() {
    within(async {
        let sup = supervisor(quick()).await;
        let mut events = sup.events().await;
        let first = hello("n", &["w"]);
        let (fake, _) = FakeNode::attend(&sup, first.clone()).await.unwrap();
        drop(fake);
        let left = events.kind(EventKind::NodeLeft).await;
        assert!(left.text.starts_with("its session broke off"), "{}", left.text);
        sup.node("n", |n| !n.attending).await;
        assert_eq!(events.kind(EventKind::NodeVerdict).await.verdict(), Verdict::Unreachable);

        // The same boot again: nothing is restarted.
        let (mut fake, _) = FakeNode::attend(&sup, first).await.unwrap();
        assert_eq!(events.says("attends again").await.kind(), EventKind::NodeAttended);
        fake.send(Up::Goodbye(v1::Goodbye { restarting: true })).await;
        assert_eq!(events.kind(EventKind::NodeLeft).await.text, "said goodbye");
        assert!(fake.end().await.is_none());
        let gone = sup.node("n", |n| !n.attending).await;
        assert_eq!(gone.verdict(), Verdict::Healthy);

        // Another boot: what it ran before is gone, and is started where it should run.
        let mut anew = hello("n", &["w"]);
        anew.wards[0].state = WardState::Stopped.into();
        anew.wards[0].incarnation = 0;
        let (mut fake, _) = FakeNode::attend(&sup, anew).await.unwrap();
        assert_eq!(events.kind(EventKind::NodeAttended).await.text, "attends");
        let Some(Kind::Start(start)) = fake.command().await.kind else { panic!("not a start") };
        assert_eq!((start.slot, start.after_incarnation), (0, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_under_one_name_the_younger_wins_and_the_older_is_told_why() {
    within(async {
        let sup = supervisor(quick()).await;
        let older = hello("n", &[]);
        let mut younger = hello("n", &[]);
        younger.node.as_mut().unwrap().pid = 4_712;
        let (mut first, _) = FakeNode::attend(&sup, older.clone()).await.unwrap();
        let (second, _) = FakeNode::attend(&sup, younger.clone()).await.unwrap();
        let told = error(&first.end().await.expect("an error"));
        assert_eq!((told.kind(), told.code()), ("NAME_TAKEN", wardkeep_proto::error::Code::AlreadyExists));
        assert!(told.what().contains("another node named n (PID 4712"), "{}", told.what());

        let refused = FakeNode::attend(&sup, older).await.err().expect("refused");
        assert_eq!(error(&refused).kind(), "NAME_TAKEN");
        let _reporter = second.keep_reporting();
        let info = sup.node("n", |n| n.attending).await.info.unwrap();
        assert_eq!(info.pid, 4_712);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_supervisor_has_a_higher_epoch_and_adopts_what_runs() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let sup = supervisor(quick().data_dir(dir.path())).await;
        let poke = watch::Sender::new(0);
        let node = attending(&sup, "n").ward(calm("c")).ward(fragile("f", &poke));
        let (_, _node) = real_node(node).await;
        poke.send_replace(1);
        sup.runs("n", "c", 1).await;
        sup.runs("n", "f", 2).await;
        let epoch = sup.fleet().await.supervisor.unwrap().epoch;
        let address = sup.uri.trim_start_matches("http://").to_owned();
        sup.running.stop().await;

        let sup = supervisor_at(quick().data_dir(dir.path()), &address).await;
        sup.runs("n", "c", 1).await;
        sup.runs("n", "f", 2).await;
        assert!(sup.fleet().await.supervisor.unwrap().epoch > epoch);
        // It obeys the new one.
        poke.send_replace(2);
        sup.runs("n", "f", 3).await;
        sup.runs("n", "c", 1).await;
    })
    .await;
}
