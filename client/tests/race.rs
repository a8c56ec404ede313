//! Who wins a replicated call, and what becomes of the others.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::*;
use http_body::Frame;
use http_body_util::BodyExt as _;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};
use wardkeep_client::{Policy, Replicated, ResponseExt as _};
use wardkeep_proto::{
    Error, Kind,
    context::{self, RequestContext},
    error::Bug,
    v1::{Event, GetFleetRequest, WardRequest, WatchEventsRequest},
};

/// What a node says that is not there for a moment.
#[derive(Debug, thiserror::Error)]
#[error("the node restarts")]
struct Restarting;

impl Kind for Restarting {
    fn domain(&self) -> &'static str {
        "test"
    }

    fn reason(&self) -> &'static str {
        "RESTARTING"
    }

    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn user_message(&self) -> String {
        "Please come back soon.".to_owned()
    }
}

#[tokio::test]
async fn a_generated_client_works_unchanged_and_learns_who_won() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let act = |name: &'static str| {
        let seen = seen.clone();
        move |request: http::Request<tonic::body::Body>| {
            let text = |key: &str| request.headers()[key].to_str().unwrap().to_owned();
            seen.lock().unwrap().push((text("wardkeep-request-id"), text("wardkeep-attempt")));
            let left = context::parse_timeout(&text("grpc-timeout")).unwrap();
            assert!(left > Duration::from_secs(20) && left <= Duration::from_secs(30));
            std::future::ready(whole(&fleet(name)))
        }
    };
    let (a, b) = (Puppet::start(act("a")).await, Puppet::start(act("b")).await);
    let channel = all(vec![a.member("a"), b.member("b")]);
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    let winner = reply.winner().unwrap().clone();
    assert_eq!(reply.into_inner().supervisor.unwrap().machine, winner.node);
    assert_eq!(winner.attempts, 2);
    let stats = channel.stats();
    assert_eq!((stats.calls, stats.attempts, stats.cancelled), (1, 2, 1));
    assert_eq!(stats.wins[&winner.node], 1);
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    assert!(seen.iter().all(|(id, _)| *id == seen[0].0), "one request ID: {seen:?}");
}

#[tokio::test]
async fn a_fast_error_does_not_beat_a_slow_success() {
    // Whoever is asked first fails, and the second answers when the third is asked: then the failure has been seen.
    let (asked, third) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let act = || {
        let (asked, third) = (asked.clone(), third.clone());
        move |_| {
            let (turn, third) = (asked.fetch_add(1, SeqCst), third.clone());
            async move {
                match turn {
                    0 => Status::unavailable("broken").into_http(),
                    1 => {
                        third.notified().await;
                        whole(&fleet("good"))
                    }
                    _ => {
                        third.notify_one();
                        std::future::pending().await
                    }
                }
            }
        }
    };
    let members = [Puppet::start(act()).await, Puppet::start(act()).await, Puppet::start(act()).await];
    let named = members.iter().zip(["a", "b", "c"]).map(|(puppet, name)| puppet.member(name));
    let channel = builder(named).policy(Policy::All(2)).build().unwrap();
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(reply.into_inner().supervisor.unwrap().machine, "good");
}

#[tokio::test]
async fn a_fatal_code_ends_the_race_and_keeps_its_details() {
    let details = ErrorDetails::with_bad_request_violation("title", "is no field");
    let refusal = Status::with_error_details(Code::InvalidArgument, "no such field", details);
    let (bad, mute) = (Puppet::refusing(refusal).await, Puppet::mute().await);
    let channel = all(vec![mute.member("mute"), bad.member("bad")]);
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no such field"));
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "title");
}

#[tokio::test]
async fn the_losers_handler_is_dropped() {
    let (begun, dropped) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (b, d) = (begun.clone(), dropped.clone());
    let slow = Puppet::start(move |_| {
        b.add_permits(1);
        let guard = Dropped(d.clone());
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    })
    .await;
    let fast = Puppet::start(move |_| {
        let begun = begun.clone();
        async move {
            begun.acquire().await.unwrap().forget();
            whole(&fleet("fast"))
        }
    })
    .await;
    let channel = all(vec![slow.member("slow"), fast.member("fast")]);
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(reply.winner().unwrap().node, "fast");
    within(dropped.acquire()).await.unwrap().forget();
}

#[tokio::test]
async fn dropping_a_call_drops_the_handlers_of_all_its_attempts() {
    let (begun, dropped) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let act = || {
        let (begun, dropped) = (begun.clone(), dropped.clone());
        move |_| {
            begun.add_permits(1);
            let guard = Dropped(dropped.clone());
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        }
    };
    let (a, b) = (Puppet::start(act()).await, Puppet::start(act()).await);
    let channel = all(vec![a.member("a"), b.member("b")]);
    let mut client = operator(&channel);
    tokio::select! {
        _ = client.get_fleet(GetFleetRequest {}) => panic!("nobody answers"),
        both = within(begun.acquire_many(2)) => both.unwrap().forget(),
    }
    within(dropped.acquire_many(2)).await.unwrap().forget();
}

#[tokio::test]
async fn a_bidirectional_stream_passes_through_unread() {
    let echo = Puppet::start(|request| async {
        let end = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let body = request.into_body().with_trailers(async { Some(Ok(end)) });
        frames(vec![], None).map(|_| Body::new(body))
    })
    .await;
    let channel = all(vec![echo.member("echo")]);
    let (say, said) = mpsc::channel(1);
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let path = http::uri::PathAndQuery::from_static("/wardkeep.v1.Operator/Echo");
    let codec = tonic_prost::ProstCodec::<Event, Event>::default();
    let request = tonic::Request::new(ReceiverStream::new(said));
    let mut heard = within(grpc.streaming(request, path, codec)).await.unwrap().into_inner();
    for sequence in 1..=3 {
        say.send(Event { sequence, ..Default::default() }).await.unwrap();
        assert_eq!(within(heard.message()).await.unwrap().unwrap().sequence, sequence);
    }
    drop(say);
    assert!(within(heard.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn when_all_fail_one_error_tells_of_every_attempt() {
    let theirs = Bug::because("index is corrupt");
    let broken = Puppet::refusing(theirs.clone().into()).await;
    let busy = Puppet::refusing(Status::resource_exhausted("try later")).await;
    let gone = nobody("gone").await;
    let address = gone.uri.clone();
    let channel = all(vec![gone, busy.member("busy"), broken.member("broken")]);
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    let error = Error::from_status(&status);
    assert_eq!((error.domain(), error.kind()), ("wardkeep.client", "ATTEMPTS_FAILED"));
    for part in
        ["gone", &address, "phase connect", "Connection refused", "busy", "ResourceExhausted", "corrupt"]
    {
        assert!(error.what().contains(part), "{part:?} is not in {:?}", error.what());
    }
    assert_eq!(error.as_proto().related_ids.len(), 3);
    assert!(error.as_proto().related_ids.contains(&theirs.id().to_owned()));
    assert!(!error.as_proto().request_id.is_empty());
    assert_eq!(channel.stats().failed_calls, 1);
}

#[tokio::test]
async fn the_same_deliberate_answer_from_all_reaches_the_caller_as_given() {
    let (a, b) = (
        Puppet::refusing(Status::not_found("no such book")).await,
        Puppet::refusing(Status::not_found("no such book")).await,
    );
    let channel = all(vec![a.member("a"), b.member("b")]);
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such book"));
}

/// Refuses each time with an error of its own, and writes down its ID.
async fn busy_node(ids: &Arc<Mutex<Vec<String>>>) -> Puppet {
    let ids = ids.clone();
    Puppet::start(move |_| {
        let error = Error::new(Restarting);
        ids.lock().unwrap().push(error.id().to_owned());
        std::future::ready(Status::from(error).into_http())
    })
    .await
}

#[tokio::test]
async fn when_one_member_is_all_there_is_its_own_error_is_the_callers_however_often_it_was_asked() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let busy = busy_node(&ids).await;
    for policy in [Policy::Single, Policy::All(2)] {
        ids.lock().unwrap().clear();
        let channel = builder([busy.member("busy")]).policy(policy).build().unwrap();
        let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
        let error = Error::from_status(&status);
        let ids = ids.lock().unwrap();
        assert!(ids.len() > 1, "it is asked again: {ids:?}");
        assert_eq!((error.kind(), error.id()), ("RESTARTING", &**ids.last().unwrap()), "{policy:?}");
        assert_eq!(error.user_message(), "Please come back soon.");
    }
}

#[tokio::test]
async fn when_its_connection_fails_as_well_the_error_is_still_what_the_member_has_said() {
    let asked = AtomicUsize::new(0);
    let said = Error::new(Restarting);
    let ended = Status::from(said.clone()).into_http::<Body>().headers().clone();
    let peer = raw::Raw::start(move |_| match asked.fetch_add(1, SeqCst) {
        0 => vec![raw::Step::Only(ended.clone())],
        _ => vec![raw::Step::Reset(2)],
    })
    .await;
    let channel = builder([peer.member()]).build().unwrap();
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(Error::from_status(&status).id(), said.id(), "{status:?}");
}

#[tokio::test]
async fn the_very_same_error_from_all_reaches_the_caller_as_it_is() {
    let one = Error::new(Restarting);
    let refusing = || Puppet::refusing(one.clone().into());
    let (a, b) = (refusing().await, refusing().await);
    let channel = all(vec![a.member("a"), b.member("b")]);
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(Error::from_status(&status).id(), one.id());
    // Two that are only alike are two.
    let ids = Arc::new(Mutex::new(Vec::new()));
    let (a, b) = (busy_node(&ids).await, busy_node(&ids).await);
    let channel = all(vec![a.member("a"), b.member("b")]);
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    let error = Error::from_status(&status);
    assert_eq!(error.kind(), "ATTEMPTS_FAILED");
    let (mut told, mut ids) = (error.as_proto().related_ids.clone(), ids.lock().unwrap().clone());
    told.sort();
    ids.sort();
    assert_eq!(told, ids);
}

#[tokio::test]
async fn a_deadline_is_kept_by_the_calls_own_timer() {
    let (a, b) = (Puppet::mute().await, Puppet::mute().await);
    let channel =
        builder([a.member("a"), b.member("b")]).default_deadline(Duration::from_millis(200)).build().unwrap();
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let error = Error::from_status(&status);
    assert_eq!(error.kind(), "DEADLINE_EXCEEDED");
    assert!(error.what().contains("phase headers"), "{}", error.what());
    assert!(error.what().contains("within 200 ms") || error.what().contains("within 199 ms"));
}

#[tokio::test]
async fn a_call_never_outlives_the_request_it_serves() {
    let mute = Puppet::mute().await;
    let channel = all(vec![mute.member("mute")]);
    let now = tokio::time::Instant::now();
    let mut outer = RequestContext::from_headers("/outer/Call", &http::HeaderMap::new(), now);
    outer.deadline = now + Duration::from_millis(100);
    let mut request = tonic::Request::new(GetFleetRequest {});
    request.set_timeout(Duration::from_secs(15));
    let mut client = operator(&channel);
    let status = within(context::scope(outer.clone(), client.get_fleet(request))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(Error::from_status(&status).as_proto().request_id, outer.request_id.to_string());
}

#[tokio::test]
async fn a_member_that_stalls_after_its_headers_does_not_hold_up_the_others() {
    let held = Mutex::new(Vec::new());
    let stalling = Puppet::start(move |_| {
        let (more, rest) = mpsc::channel(1);
        held.lock().unwrap().push(more);
        let half = framed(&fleet("stalling")).slice(..4);
        std::future::ready(frames(vec![Frame::data(half)], Some(rest)))
    })
    .await;
    let good = Puppet::good("good").await;
    let channel = all(vec![stalling.member("stalling"), good.member("good")]);
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(reply.winner().unwrap().node, "good");

    let alone =
        builder([stalling.member("stalling")]).default_deadline(Duration::from_millis(200)).build().unwrap();
    let status = within(operator(&alone).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(Error::from_status(&status).what().contains("phase body"));
}

#[tokio::test]
async fn a_truncated_reply_is_no_success() {
    let truncated = Puppet::start(|_| async {
        frames(vec![Frame::data(framed(&fleet("truncated")).slice(..7)), ok()], None)
    })
    .await;
    let empty = Puppet::start(|_| async { frames(vec![ok()], None) }).await;
    let good = Puppet::good("good").await;
    let channel = all(vec![truncated.member("t"), empty.member("e"), good.member("good")]);
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(reply.winner().unwrap().node, "good");
}

#[tokio::test]
async fn details_that_are_not_base64_do_not_panic() {
    const BAD: &[(&str, &str)] = &[("grpc-status", "9"), ("grpc-status-details-bin", "*not base64*")];
    let in_trailers = Puppet::start(|_| async { frames(vec![trailers(BAD)], None) }).await;
    let in_headers = Puppet::start(|_| async {
        let mut reply = frames(vec![], None);
        BAD.iter().for_each(|(k, v)| _ = reply.headers_mut().insert(*k, v.parse().unwrap()));
        reply
    })
    .await;
    for puppet in [in_trailers, in_headers] {
        for channel in [all(vec![puppet.member("x")]), Replicated::from_static_members([puppet.member("x")])]
        {
            let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
        }
    }
}

#[tokio::test]
async fn what_may_not_be_repeated_is_sent_once() {
    let act = |_| async { whole(&fleet("x")) };
    let (a, b) = (Puppet::start(act).await, Puppet::start(act).await);
    let asked = || a.asked() + b.asked();
    let members = vec![a.member("a"), b.member("b")];
    let known = all(members.clone());
    within(operator(&known).restart_ward(WardRequest::default())).await.unwrap();
    assert_eq!(asked(), 1);
    let unknown = Replicated::builder().members(members).policy(Policy::All(2)).build().unwrap();
    within(operator(&unknown).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(asked(), 2);
}

#[tokio::test]
async fn what_may_not_be_repeated_moves_on_from_a_member_nobody_could_reach() {
    let good = Puppet::good("good").await;
    for _ in 0..2 {
        let channel = Replicated::from_static_members([nobody("gone").await, good.member("good")]);
        let reply = within(operator(&channel).restart_ward(WardRequest::default())).await.unwrap();
        let winner = reply.winner().unwrap();
        assert_eq!((winner.node.as_str(), winner.attempts), ("good", 2));
        // From now on the member that could not be reached comes last.
        let reply = within(operator(&channel).restart_ward(WardRequest::default())).await.unwrap();
        assert_eq!(reply.winner().unwrap().attempts, 1);
    }
}

#[tokio::test]
async fn a_stream_is_committed_at_its_first_message_and_then_passes_through() {
    let event = |n| Frame::data(framed(&Event { sequence: n, ..Default::default() }));
    let dropped = Arc::new(Semaphore::new(0));
    let (begun, d) = (Arc::new(Semaphore::new(0)), dropped.clone());
    let b = begun.clone();
    let slow = Puppet::start(move |_| {
        b.add_permits(1);
        let guard = Dropped(d.clone());
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    })
    .await;
    let (feed, rest) = mpsc::channel(4);
    let rest = Arc::new(Mutex::new(Some(rest)));
    let fast = Puppet::start(move |_| {
        let (begun, rest) = (begun.clone(), rest.lock().unwrap().take());
        async move {
            begun.acquire().await.unwrap().forget();
            frames(vec![event(1)], rest)
        }
    })
    .await;
    let channel = all(vec![slow.member("slow"), fast.member("fast")]);
    let reply = within(operator(&channel).watch_events(WatchEventsRequest::default())).await.unwrap();
    assert_eq!(reply.winner().unwrap().node, "fast");
    within(dropped.acquire()).await.unwrap().forget();
    let mut events = reply.into_inner();
    assert_eq!(within(events.message()).await.unwrap().unwrap().sequence, 1);
    feed.send(event(2)).await.unwrap();
    assert_eq!(within(events.message()).await.unwrap().unwrap().sequence, 2);
    feed.send(trailers(&[("grpc-status", "8"), ("grpc-message", "enough")])).await.unwrap();
    let status = within(events.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "enough"));
}

#[tokio::test]
async fn a_stream_that_was_passed_on_still_has_its_deadline() {
    let (_feed, rest) = mpsc::channel(1);
    let rest = Arc::new(Mutex::new(Some(rest)));
    let puppet = Puppet::start(move |_| {
        let first = Frame::data(framed(&Event::default()));
        std::future::ready(frames(vec![first], rest.lock().unwrap().take()))
    })
    .await;
    let channel = builder([puppet.member("x")]).default_deadline(Duration::from_millis(300)).build().unwrap();
    let mut events =
        within(operator(&channel).watch_events(WatchEventsRequest::default())).await.unwrap().into_inner();
    assert!(within(events.message()).await.unwrap().is_some());
    let status = within(events.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(Error::from_status(&status).kind(), "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn methods_declared_idempotent_without_descriptors_are_raced_to_their_trailers() {
    let (mute, good) = (Puppet::mute().await, Puppet::good("good").await);
    let channel = Replicated::builder()
        .members([mute.member("mute"), good.member("good")])
        .policy_for("/wardkeep.v1.Operator/GetFleet", Policy::All(2))
        .build()
        .unwrap();
    for _ in 0..2 {
        let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
        assert_eq!(reply.winner().unwrap().node, "good");
    }
}

#[tokio::test]
async fn requests_and_replies_over_their_bounds_are_refused_in_so_many_words() {
    let good = Puppet::good("a name of more than twenty bytes").await;
    let small = builder([good.member("x")]).max_request_bytes(4).build().unwrap();
    let status = within(operator(&small).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(Error::from_status(&status).kind(), "REQUEST_TOO_LARGE");
    let small = builder([good.member("x")]).max_reply_bytes(20).build().unwrap();
    let status = within(operator(&small).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(Error::from_status(&status).what().contains("larger than 20 bytes"));
}

#[tokio::test]
async fn without_members_a_call_fails_at_once_and_says_that_it_will_pass() {
    let channel = all(vec![]);
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    let error = Error::from_status(&status);
    assert_eq!((error.code(), error.kind()), (Code::Unavailable, "NO_MEMBERS"));
    assert!(error.retry_after().is_some());
}
