//! Trouble comes as it was asked for, and every handler is counted to its end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use tonic::{Code, Request};
use wardkeep_examples::{
    pb::{TroubleRequest, trouble_request::Kind, trouble_server::Trouble as _},
    trouble::{Counters, MAX_BYTES, MAX_DEPTH, Trouble},
};

fn request(kind: Kind, millis: u32, bytes: u32, depth: u32) -> Request<TroubleRequest> {
    Request::new(TroubleRequest { kind: kind.into(), millis, bytes, depth })
}

/// Started, finished, dropped, panicked.
fn counts(counters: &Counters) -> [u64; 4] {
    [counters.started(), counters.finished(), counters.dropped(), counters.panicked()]
}

fn service() -> (Trouble, Arc<Counters>) {
    let trouble = Trouble::default();
    let counters = trouble.counters();
    (trouble, counters)
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(3600), work).await.expect("trouble took for ever")
}

#[tokio::test(start_paused = true)]
async fn a_reply_has_the_size_that_was_asked_for_after_the_time_that_was_asked_for() {
    let (trouble, counters) = service();
    let before = tokio::time::Instant::now();
    let reply = in_time(trouble.make(request(Kind::Slow, 1500, 7, 0))).await.unwrap().into_inner();
    assert_eq!((reply.number, reply.payload.len()), (1, 7));
    assert_eq!(before.elapsed().as_millis(), 1500);
    assert_eq!(counts(&counters), [1, 1, 0, 0]);
}

#[tokio::test]
async fn each_failure_has_its_code() {
    let (trouble, counters) = service();
    let kinds = [
        (Kind::BareStatus, Code::FailedPrecondition),
        (Kind::InternalStatus, Code::Internal),
        (Kind::HugeError, Code::Unknown),
    ];
    for (kind, code) in kinds {
        let status = in_time(trouble.make(request(kind, 0, 99_999, 0))).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert_eq!(status.message().len() == 99_999, kind == Kind::HugeError);
    }
    assert_eq!(counts(&counters), [3, 3, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_caller_goes_is_counted_as_dropped() {
    let (trouble, counters) = service();
    let mut call = Box::pin(trouble.make(request(Kind::Slow, 60_000, 0, 0)));
    assert!((&mut call).now_or_never().is_none());
    assert_eq!(counts(&counters), [1, 0, 0, 0]);
    drop(call);
    assert_eq!(counts(&counters), [1, 0, 1, 0]);

    let mut stream = trouble.make_stream(request(Kind::Ok, 0, 0, 3)).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    assert_eq!(counts(&counters), [2, 0, 2, 0]);
}

#[tokio::test]
async fn a_stream_has_as_many_messages_as_it_is_deep_and_at_least_one() {
    let (trouble, counters) = service();
    for (depth, messages) in [(0, 1), (1, 1), (5, 5)] {
        let stream = trouble.make_stream(request(Kind::Ok, 0, 2, depth)).await.unwrap().into_inner();
        let numbers: Vec<u32> = in_time(stream.map(|reply| reply.unwrap().number).collect()).await;
        assert_eq!(numbers, (1..=messages).collect::<Vec<_>>());
    }
    assert_eq!(counts(&counters), [3, 3, 0, 0]);
}

#[tokio::test]
async fn a_stream_ends_at_its_first_error() {
    let (trouble, counters) = service();
    let stream = trouble.make_stream(request(Kind::InternalStatus, 0, 0, 5)).await.unwrap().into_inner();
    let replies: Vec<_> = in_time(stream.collect()).await;
    assert!(matches!(replies.as_slice(), [Err(status)] if status.code() == Code::Internal));
    assert_eq!(counts(&counters), [1, 1, 0, 0]);
}

#[tokio::test]
async fn panics_come_where_they_were_asked_for() {
    let (trouble, counters) = service();
    for kind in [Kind::Panic, Kind::PanicMidStream] {
        assert!(AssertUnwindSafe(trouble.make(request(kind, 0, 0, 0))).catch_unwind().await.is_err());
    }
    let mut stream = trouble.make_stream(request(Kind::PanicMidStream, 0, 0, 1)).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    assert!(AssertUnwindSafe(stream.next()).catch_unwind().await.is_err());
    drop(stream);
    assert_eq!(counts(&counters), [3, 0, 0, 3]);
}

#[tokio::test]
async fn trouble_nobody_defined_is_refused() {
    let (trouble, counters) = service();
    let unknown = Request::new(TroubleRequest { kind: 99, ..TroubleRequest::default() });
    let refused = [
        trouble.make(unknown).await.unwrap_err(),
        trouble.make(request(Kind::Ok, 0, MAX_BYTES + 1, 0)).await.unwrap_err(),
        trouble.make(request(Kind::DeepChain, 0, 0, MAX_DEPTH + 1)).await.unwrap_err(),
    ];
    assert!(refused.iter().all(|status| status.code() == Code::InvalidArgument));
    assert_eq!(counts(&counters), [0; 4]);
}
