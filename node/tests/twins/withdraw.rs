//! Attempts that are withdrawn in band.

use std::time::Duration;

use tonic::Code;
use uuid::Uuid;
use wardkeep_node::{Audience, Node};
use wardkeep_proto::v1::{self, Fate};

use crate::{
    Caller, WATCH, failure, is_full, named,
    support::{Insides, node, start, trouble, within},
    text,
};

fn fates(ends: &[v1::AttemptEnd]) -> Vec<Fate> {
    ends.iter().map(v1::AttemptEnd::fate).collect()
}

#[tokio::test]
async fn an_attempt_that_waits_never_runs_and_one_that_runs_is_dropped_and_both_streams_end_cancelled() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).concurrency(1).queue(1)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let [first, second] = [1, 2].map(|attempt| (Uuid::now_v7(), attempt));
        let runs = caller.end_of("forever", &named(first.0, first.1));
        insides.started.reaches(1).await;
        let waits = caller.end_of("forever", &named(second.0, second.1));
        is_full(&caller).await;

        let ends = caller.withdraw(&[second, first, (first.0, 7), (Uuid::nil(), 1)]).await;
        assert_eq!(fates(&ends), [Fate::Queued, Fate::Running, Fate::Unknown, Fate::Unknown]);
        assert!(ends[0].wall.is_none() && ends[1].wall.is_some());
        insides.dropped.reaches(1).await;
        insides.cancelled.reaches(1).await;
        let (runs, waits) = (runs.await.unwrap(), waits.await.unwrap());
        for end in [&runs, &waits] {
            assert_eq!(failure(end), (Code::Cancelled, "WITHDRAWN".to_owned()));
        }
        assert_eq!(text(&waits, "wardkeep-fate"), "queued");
        assert!(text(&runs, "wardkeep-fate").starts_with("running;wall="), "{runs:?}");
        assert_eq!(insides.started.get(), 1);
        // It can be asked again.
        assert_eq!(fates(&caller.withdraw(&[second, first]).await), [Fate::Queued, Fate::Running]);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn of_one_that_has_ended_its_cost_is_told_and_nothing_else_happens() {
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let id = Uuid::now_v7();
        let reply = caller.start("ok", &named(id, 3)).await.end().await;
        assert_eq!(failure(&reply).0, Code::Ok);
        assert!(!reply.contains_key("wardkeep-fate"));
        let end = caller.withdraw(&[(id, 3)]).await.remove(0);
        assert_eq!(end.fate(), Fate::Finished);
        assert!(end.wall.is_some() && end.busy.is_some());
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn blocking_work_learns_of_a_withdrawal_at_its_preempt_point() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let id = Uuid::now_v7();
        let call = caller.end_of("preempted", &named(id, 1));
        insides.started.reaches(2).await;
        assert_eq!(fates(&caller.withdraw(&[(id, 1)]).await), [Fate::Running]);
        insides.preempted.reaches(1).await;
        insides.dropped.reaches(1).await;
        assert_eq!(failure(&call.await.unwrap()).1, "WITHDRAWN");
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_can_be_withdrawn_in_its_middle_tied_or_not_read_or_not() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let mut dropped = 0;
        for tied in ["0", "1"] {
            // One message, then silence; and without end.
            for limit in [3, 2] {
                let id = Uuid::now_v7();
                let mut headers = named(id, 1).to_vec();
                headers.push(("wardkeep-tied", tied.to_owned()));
                let ask = v1::WatchEventsRequest { limit, ..Default::default() };
                let mut reply = caller.call(WATCH, &ask, &headers).await;
                reply.data().await.unwrap();
                assert_eq!(fates(&caller.withdraw(&[(id, 1)]).await), [Fate::Running]);
                dropped += 1;
                insides.dropped.reaches(dropped).await;
                let end = reply.end().await;
                assert_eq!(failure(&end), (Code::Cancelled, "WITHDRAWN".to_owned()));
                assert!(text(&end, "wardkeep-fate").starts_with("running;"));
            }
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_call_that_shares_the_id_of_the_request_it_serves_is_not_known_by_it() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        // As a ward calls on while it serves a request.
        let mut serving = wardkeep_proto::context::RequestContext::from_headers(
            "/a.B/C",
            &http::HeaderMap::new(),
            tokio::time::Instant::now(),
        );
        for hop in 0..2 {
            serving.enter("other", "ward", hop);
        }
        let mut headers = http::HeaderMap::new();
        serving.write(&mut headers, tokio::time::Instant::now());
        let hops = text(&headers, "wardkeep-hops-bin").to_owned();
        let nested = |own: Option<Uuid>| {
            let mut headers = named(serving.request_id, 1).to_vec();
            headers.push(("wardkeep-hops-bin", hops.clone()));
            headers.extend(own.map(|own| ("wardkeep-call-id", own.to_string())));
            caller.end_of("forever", &headers)
        };
        let own = Uuid::now_v7();
        let (unnamed, named) = (nested(None), nested(Some(own)));
        insides.started.reaches(2).await;
        let names = [(serving.request_id, 1), (own, 1)];
        assert_eq!(fates(&caller.withdraw(&names).await), [Fate::Unknown, Fate::Running]);
        assert_eq!(failure(&named.await.unwrap()).1, "WITHDRAWN");
        assert!(!unnamed.is_finished());
        unnamed.abort();
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn load_is_told_to_those_who_sent_a_request_id_and_not_to_strangers() {
    within(async {
        let insides = Insides::default();
        for (ward, has_places) in [(trouble(&insides).concurrency(2), true), (trouble(&insides), false)] {
            let node = node([ward]).await;
            node.running("trouble", 1).await;
            let caller = Caller::to(&node).await;
            for (what, code) in [("not found", Code::NotFound), ("panic", Code::Internal), ("ok", Code::Ok)] {
                let end = caller.start(what, &named(Uuid::now_v7(), 1)).await.end().await;
                assert_eq!(failure(&end).0, code);
                let load = text(&end, "wardkeep-load");
                assert_eq!((load.len(), load.as_bytes()[1]), (4, b'.'), "{load}");
                assert!(!caller.start(what, &[]).await.end().await.contains_key("wardkeep-load"));
            }
            // Of two places this one has one. What is told is a mean, which comes near it.
            let mut tied = named(Uuid::now_v7(), 1).to_vec();
            tied.push(("wardkeep-tied", "1".to_owned()));
            let begun = caller.start("forever", &tied).await;
            let mut load = if has_places { 0.0 } else { 0.5 };
            while load < 0.45 {
                let beside = caller.start("ok", &named(Uuid::now_v7(), 1)).await.end().await;
                load = text(&beside, "wardkeep-load").parse().unwrap();
                assert!(load <= 0.65, "{load}");
            }
            drop(begun);
            node.stop().await;
        }
        let open = Node::builder("n").ward(trouble(&insides).concurrency(1)).audience(Audience::Untrusted);
        let node = start(open).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        for what in ["ok", "not found"] {
            let end = caller.start(what, &named(Uuid::now_v7(), 1)).await.end().await;
            assert!(!end.contains_key("wardkeep-load"), "{end:?}");
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn thousands_are_withdrawn_at_once_and_their_connection_goes_on() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let id = Uuid::now_v7();
        let calls: Vec<_> = (0..1_000).map(|attempt| caller.end_of("forever", &named(id, attempt))).collect();
        insides.started.reaches(1_000).await;
        let names: Vec<_> = (0..1_000).map(|attempt| (id, attempt)).collect();
        let ends = caller.withdraw(&names).await;
        assert!(fates(&ends).iter().all(|fate| *fate == Fate::Running));
        for call in calls {
            assert_eq!(failure(&call.await.unwrap()).0, Code::Cancelled);
        }
        insides.dropped.reaches(1_000).await;
        let too_many: Vec<_> = (0..1_025).map(|attempt| (id, attempt)).collect();
        let attempts =
            too_many.iter().map(|(id, n)| v1::AttemptRef { call_id: id.as_bytes().to_vec(), attempt: *n });
        let request = v1::WithdrawRequest { attempts: attempts.collect() };
        let end = caller.call("/wardkeep.v1.Replica/Withdraw", &request, &[]).await.end().await;
        assert_eq!(failure(&end), (Code::InvalidArgument, "BAD_REQUEST".to_owned()));
        assert_eq!(failure(&caller.start("ok", &[]).await.end().await).0, Code::Ok);
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_is_withdrawn_just_as_it_is_let_in_either_runs_or_does_not() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).concurrency(1).queue(64)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        for _ in 0..50 {
            let id = Uuid::now_v7();
            let calls: Vec<_> = (0..8).map(|attempt| caller.end_of("ok", &named(id, attempt))).collect();
            let names: Vec<_> = (0..8).map(|attempt| (id, attempt)).collect();
            let before = insides.started.get();
            let ends = caller.withdraw(&names).await;
            let mut ran = 0;
            for (call, end) in calls.into_iter().zip(&ends) {
                let told = call.await.unwrap();
                let fate = told.get("wardkeep-fate").map(|fate| fate.to_str().unwrap().to_owned());
                match end.fate() {
                    Fate::Queued => assert_eq!(fate.as_deref(), Some("queued")),
                    Fate::Finished | Fate::Unknown => assert_eq!(failure(&told).0, Code::Ok),
                    Fate::Running | Fate::Unspecified => {}
                }
                ran += u64::from(fate.as_deref() != Some("queued"));
            }
            assert!(insides.started.get() - before <= ran);
        }
        tokio::time::timeout(Duration::from_secs(5), caller.start("ok", &[])).await.unwrap();
        node.stop().await;
    })
    .await;
}
