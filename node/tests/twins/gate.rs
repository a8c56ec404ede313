//! A ward that works on so many calls at once.

use std::time::Duration;

use tonic::Code;
use wardkeep_node::{Node, Ward};
use wardkeep_proto::v1;

use crate::{
    Caller, failure, has_room, is_full, named,
    support::{Insides, find, node, trouble, well_formed, within},
    text,
};

#[tokio::test]
async fn who_finds_no_room_to_wait_is_refused_and_told_when_to_come_back() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).concurrency(1).queue(1)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let first = caller.end_of("gate", &[]);
        insides.started.reaches(1).await;
        let second = caller.end_of("ok", &named(uuid::Uuid::now_v7(), 1));
        is_full(&caller).await;
        let refused = caller.start("ok", &named(uuid::Uuid::now_v7(), 1)).await.end().await;
        assert_eq!(failure(&refused), (Code::ResourceExhausted, "QUEUE_FULL".to_owned()));
        let error = well_formed(&tonic::Status::from_header_map(&refused).unwrap());
        let millis: u128 = text(&refused, "grpc-retry-pushback-ms").parse().unwrap();
        assert_eq!(error.retry_after().unwrap().as_millis(), millis);
        assert!(millis > 0 && !error.is_malformed());
        assert_eq!(text(&refused, "wardkeep-load"), "1.00");
        assert_eq!(insides.started.get(), 1, "who waits has not begun");
        insides.gate.open();
        assert_eq!(failure(&first.await.unwrap()).0, Code::Ok);
        assert_eq!(failure(&second.await.unwrap()).0, Code::Ok);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn work_whose_deadline_passes_or_whose_caller_leaves_while_it_waits_is_never_begun() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).concurrency(1).queue(1)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let first = caller.end_of("gate", &[]);
        insides.started.reaches(1).await;
        let late = caller.start("late", &[("grpc-timeout", "50m".to_owned())]).await.end().await;
        assert_eq!(failure(&late), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));

        let leaves = caller.end_of("leaves", &[]);
        is_full(&caller).await;
        leaves.abort();
        has_room(&caller).await;
        assert_eq!(insides.started.get(), 1);

        insides.gate.open();
        assert_eq!(failure(&first.await.unwrap()).0, Code::Ok);
        let begun = insides.started.get();
        assert_eq!(failure(&caller.start("ok", &[]).await.end().await).0, Code::Ok);
        assert_eq!(insides.started.get(), begun + 1);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn who_waits_is_sent_away_when_the_ward_stops_while_who_runs_may_finish() {
    within(async {
        let insides = Insides::default();
        let mut node = node([trouble(&insides).concurrency(1).queue(1)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let first = caller.end_of("gate", &[]);
        insides.started.reaches(1).await;
        let waits = caller.end_of("ok", &[]);
        is_full(&caller).await;
        node.tell_to_stop();
        node.until(|now| find(now, "trouble").state() == v1::WardState::Stopping).await;
        assert_eq!(failure(&waits.await.unwrap()), (Code::Unavailable, "WARD_NOT_RUNNING".to_owned()));
        insides.gate.open();
        assert_eq!(failure(&first.await.unwrap()).0, Code::Ok);
        node.ended().await;
        assert_eq!(insides.started.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn blocking_work_keeps_its_place_until_it_really_returns() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).concurrency(1).queue(0)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let call = caller.end_of("blocking", &[]);
        insides.started.reaches(2).await;
        call.abort();
        insides.dropped.reaches(1).await;
        assert_eq!(failure(&caller.start("ok", &[]).await.end().await).1, "QUEUE_FULL");
        insides.gate.open();
        insides.returned.reaches(1).await;
        has_room(&caller).await;
        assert_eq!(failure(&caller.start("ok", &[]).await.end().await).0, Code::Ok);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_call_that_waits_for_its_turn_is_no_stall() {
    within(async {
        let insides = Insides::default();
        let stall = Duration::from_millis(300);
        let ward = trouble(&insides).concurrency(1).stall_timeout(stall);
        let node = node([ward]).await;
        node.running("trouble", 1).await;
        // What streams is no stall as long as it waits for its caller, and holds its place all the while.
        let caller = Caller::to(&node).await;
        let ask = v1::WatchEventsRequest { limit: 2, ..Default::default() };
        let _unread = caller.call(crate::WATCH, &ask, &[]).await;
        insides.started.reaches(1).await;
        let waits = caller.end_of("ok", &[]);
        let mut snapshots = node.handle.snapshots();
        let restarted = snapshots.wait_for(|now| find(now, "trouble").incarnation > 1);
        assert!(tokio::time::timeout(3 * stall, restarted).await.is_err());
        assert!(!waits.is_finished());
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_reply_that_is_done_keeps_no_place_and_is_no_stall_though_its_caller_does_not_read() {
    within(async {
        let insides = Insides::default();
        let stall = Duration::from_millis(300);
        let node = node([trouble(&insides).concurrency(2).queue(0).stall_timeout(stall)]).await;
        node.running("trouble", 1).await;
        // Takes all that its connection may be sent.
        let caller = Caller::narrow(&node).await;
        let endless = v1::WatchEventsRequest { limit: 2, ..Default::default() };
        let _unread = caller.call(crate::WATCH, &endless, &[]).await;
        let other = Caller::to(&node).await;
        let mut done = Vec::new();
        for tied in ["0", "1"] {
            done.push(caller.start("ok", &[("wardkeep-tied", tied.to_owned())]).await);
            has_room(&other).await;
        }
        let mut snapshots = node.handle.snapshots();
        let restarted = snapshots.wait_for(|now| find(now, "trouble").incarnation > 1);
        assert!(tokio::time::timeout(3 * stall, restarted).await.is_err());
        drop(done);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_the_node_starts() {
    let insides = Insides::default();
    let task = || Ward::task("t", |_| async { Ok(()) });
    let wards = [
        trouble(&insides).concurrency(0),
        trouble(&insides).queue(3),
        trouble(&insides).dedupe(Duration::ZERO, 1, 1),
        trouble(&insides).dedupe(Duration::from_secs(1), 1, 1),
        task().concurrency(1),
    ];
    for ward in wards {
        let shown = format!("{ward:?}");
        let refused = Node::builder("n").ward(ward).bind("127.0.0.1:0").await.err();
        assert_eq!(refused.map(|e| e.kind().to_owned()).as_deref(), Some("MISCONFIGURED"), "{shown}");
    }
}
