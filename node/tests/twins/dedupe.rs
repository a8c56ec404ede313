//! Calls that come more than once and are carried out once.

use std::time::Duration;

use prost::Message as _;
use tonic::Code;
use uuid::Uuid;
use wardkeep_node::OnPanic;
use wardkeep_proto::v1::{self, Fate};

use crate::{
    Caller, Raw, START, WATCH, failure, named,
    support::{Insides, Running, make, node, trouble, within},
};

const WINDOW: Duration = Duration::from_secs(60);

async fn a_node(insides: &Insides, entries: usize, bytes: usize) -> (Running, Caller) {
    let node = node([trouble(insides).dedupe(WINDOW, entries, bytes)]).await;
    node.running("trouble", 1).await;
    let caller = Caller::to(&node).await;
    (node, caller)
}

fn call(
    caller: &Caller,
    what: &'static str,
    id: Uuid,
    attempt: u32,
) -> tokio::task::JoinHandle<(Option<String>, http::HeaderMap)> {
    let sent = caller.start(what, &named(id, attempt));
    tokio::spawn(async move {
        let reply = sent.await;
        let twin = reply.header("wardkeep-twin").map(str::to_owned);
        (twin, reply.end().await)
    })
}

#[tokio::test]
async fn a_twin_joins_the_one_that_runs_and_a_later_one_gets_the_same_reply() {
    within(async {
        let insides = Insides::default();
        let (node, caller) = a_node(&insides, 100, 1 << 20).await;
        let id = Uuid::now_v7();
        let first = call(&caller, "gate", id, 1);
        insides.started.reaches(1).await;
        let second = call(&caller, "gate", id, 2);
        // A third joins, and leaves again: that harms nobody.
        let third = call(&caller, "gate", id, 3);
        while caller.withdraw(&[(id, 3)]).await[0].fate() == Fate::Unknown {}
        assert_eq!(failure(&third.await.unwrap().1).1, "WITHDRAWN");
        insides.gate.open();
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        assert_eq!((failure(&first.1).0, first.0), (Code::Ok, None));
        assert_eq!((failure(&second.1).0, second.0.as_deref()), (Code::Ok, Some("joined")));
        let mut replayed = caller.start("gate", &named(id, 4)).await;
        assert_eq!(replayed.header("wardkeep-twin"), Some("replayed"));
        assert_eq!(replayed.header("wardkeep-ward"), Some("trouble"));
        v1::WardOutcome::decode(&replayed.data().await.unwrap()[5..]).unwrap();
        assert_eq!(failure(&replayed.end().await).0, Code::Ok);
        assert_eq!(insides.started.get(), 1);
        // Those without an ID are all their own.
        for n in 2..4 {
            caller.start("ok", &[]).await.end().await;
            assert_eq!(insides.started.get(), n);
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_same_id_with_another_request_is_refused() {
    within(async {
        let insides = Insides::default();
        let (node, caller) = a_node(&insides, 100, 1 << 20).await;
        let id = Uuid::now_v7();
        let running = call(&caller, "gate", id, 1);
        insides.started.reaches(1).await;
        let other = caller.start("ok", &named(id, 2)).await.end().await;
        assert_eq!(failure(&other), (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned()));
        insides.gate.open();
        running.await.unwrap();
        let other = caller.start("ok", &named(id, 2)).await.end().await;
        assert_eq!(failure(&other).1, "REQUEST_ID_REUSED");
        assert_eq!(insides.started.get(), 1);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_told_to_all_who_wait_and_the_next_attempt_is_a_fresh_one() {
    within(async {
        let insides = Insides::default();
        let (node, caller) = a_node(&insides, 100, 1 << 20).await;
        let id = Uuid::now_v7();
        for n in 1..3 {
            let (twin, end) = call(&caller, "panic", id, n).await.unwrap();
            assert_eq!((twin, failure(&end).1.as_str()), (None, "PANIC"));
            assert_eq!(insides.started.get(), u64::from(n));
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_run_goes_on_without_whoever_began_it_and_ends_with_the_last_who_waits() {
    within(async {
        let insides = Insides::default();
        let (node, caller) = a_node(&insides, 100, 1 << 20).await;
        let id = Uuid::now_v7();
        let first = call(&caller, "forever", id, 1);
        insides.started.reaches(1).await;
        let second = call(&caller, "forever", id, 2);
        while caller.withdraw(&[(id, 2)]).await[0].fate() == Fate::Unknown {}
        second.await.unwrap();
        // Now a tied one, whose head says that the work has begun.
        let mut headers = named(id, 3).to_vec();
        headers.push(("wardkeep-tied", "1".to_owned()));
        let third = caller.start("forever", &headers).await;
        assert_eq!(third.header("wardkeep-began"), Some("1"));
        first.abort();
        // The first has gone; what it began goes on for the third.
        while caller.withdraw(&[(id, 1)]).await[0].fate() == Fate::Unknown {}
        assert_eq!((insides.started.get(), insides.dropped.get()), (1, 0));
        drop(third);
        insides.dropped.reaches(1).await;
        // Nothing is known of it: it begins anew.
        let again = call(&caller, "forever", id, 4);
        insides.started.reaches(2).await;
        again.abort();
        insides.dropped.reaches(2).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_one_incarnation_has_done_the_next_does_not_do_again() {
    within(async {
        let insides = Insides::default();
        let ward = trouble(&insides).on_panic(OnPanic::Restart).dedupe(WINDOW, 100, 1 << 20);
        let node = node([ward]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let id = Uuid::now_v7();
        assert_eq!(failure(&caller.start("ok", &named(id, 1)).await.end().await).0, Code::Ok);
        caller.start("panic", &[]).await.end().await;
        node.running("trouble", 2).await;
        let begun = insides.started.get();
        let replayed = caller.start("ok", &named(id, 2)).await;
        assert_eq!(replayed.header("wardkeep-twin"), Some("replayed"));
        assert_eq!(failure(&replayed.end().await).0, Code::Ok);
        assert_eq!(insides.started.get(), begun);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn no_more_is_remembered_than_there_is_room_for() {
    within(async {
        let insides = Insides::default();
        let (node, caller) = a_node(&insides, 2, 300).await;
        let long = |reason: usize| v1::WardRequest { reason: "x".repeat(reason), ..make("ok") };
        let say =
            async |id: Uuid, reason: usize| -> Raw { caller.call(START, &long(reason), &named(id, 1)).await };
        let [a, b, c] = [(); 3].map(|()| Uuid::now_v7());
        // Both replies do not fit: the older one goes, and that it was done stays known.
        for id in [a, b] {
            assert_eq!(failure(&say(id, 80).await.end().await).0, Code::Ok);
        }
        let gone = say(a, 80).await.end().await;
        assert_eq!(failure(&gone), (Code::AlreadyExists, "ALREADY_DONE".to_owned()));
        assert_eq!(say(b, 80).await.header("wardkeep-twin"), Some("replayed"));
        // A third takes the place of the oldest.
        assert_eq!(failure(&say(c, 1).await.end().await).0, Code::Ok);
        assert_eq!(insides.started.get(), 3);
        let too_long = say(Uuid::now_v7(), 400).await.end().await;
        assert_eq!(failure(&too_long), (Code::ResourceExhausted, "REQUEST_TOO_LONG".to_owned()));
        // What runs is never forgotten.
        let running =
            [call(&caller, "forever", Uuid::now_v7(), 1), call(&caller, "forever", Uuid::now_v7(), 1)];
        insides.started.reaches(5).await;
        let full = say(Uuid::now_v7(), 1).await.end().await;
        assert_eq!(failure(&full), (Code::ResourceExhausted, "TOO_MANY_TO_REMEMBER".to_owned()));
        running.iter().for_each(tokio::task::JoinHandle::abort);
        insides.dropped.reaches(5).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn streams_and_methods_without_side_effects_are_carried_out_each_time() {
    within(async {
        let insides = Insides::default();
        let (node, caller) = a_node(&insides, 100, 1 << 20).await;
        let id = Uuid::now_v7();
        for n in 1..3 {
            let reply = caller.call(WATCH, &v1::WatchEventsRequest::default(), &named(id, n)).await;
            assert_eq!(reply.header("wardkeep-twin"), None);
            assert_eq!(failure(&reply.end().await).0, Code::Ok);
            assert_eq!(insides.started.get(), u64::from(n));
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_attempts_come_at_once_and_leave_again_no_call_that_ends_well_runs_twice() {
    within(async {
        let insides = Insides::default();
        let ward = trouble(&insides).concurrency(4).queue(10_000).dedupe(WINDOW, 10_000, 1 << 20);
        let node = node([ward]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let mut ids = Vec::new();
        for _ in 0..30 {
            let id = Uuid::now_v7();
            let attempts: Vec<_> = (1..=5).map(|attempt| call(&caller, "ok", id, attempt)).collect();
            // Of each some are withdrawn, wherever they are; never all.
            caller.withdraw(&[(id, 1), (id, 3)]).await;
            ids.push((id, attempts));
        }
        let mut own = 0;
        for (id, attempts) in ids {
            let mut good = 0;
            for attempt in attempts {
                let (twin, end) = attempt.await.unwrap();
                let is_good = failure(&end).0 == Code::Ok;
                assert!(is_good || failure(&end).1 == "WITHDRAWN", "{end:?}");
                good += u64::from(is_good);
                own += u64::from(is_good && twin.is_none());
            }
            assert!(good >= 3);
            let again = caller.start("ok", &named(id, 6)).await;
            assert_eq!(again.header("wardkeep-twin"), Some("replayed"));
        }
        assert!(own <= 30, "{own} of 30 were told that theirs was the one that ran");
        // Some began for one that was withdrawn before a twin came, and were ended: those may run again.
        let ended = insides.dropped.get();
        assert_eq!(insides.started.get(), ended);
        node.stop().await;
    })
    .await;
}
