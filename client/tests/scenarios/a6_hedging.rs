//! The hedging scenarios of grpc-java's `RetriableStreamTest`, with gRFC A6's text where the two differ,
//! set up by a JSON service config.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tonic::{Code, Status, body::Body};
use wardkeep_client::{Ending, Member, ReplicatedBuilder, ResponseExt as _};
use wardkeep_proto::v1::{Event, GetErrorRequest, WatchEventsRequest};

use crate::{
    common::{framed, frames, operator, within},
    stage::*,
};

fn config(max_attempts: u32, throttling: &str) -> Stage {
    let json = format!(
        r#"{{"methodConfig": [{{
            "name": [{{"service": "wardkeep.v1.Operator", "method": "GetFleet"}}],
            "hedgingPolicy": {{"maxAttempts": {max_attempts}, "hedgingDelay": "0.1s",
                               "nonFatalStatusCodes": ["UNAVAILABLE", "INTERNAL"]}}}}]{throttling}}}"#
    );
    Stage::new().with(|builder| builder.service_config(&json))
}

#[tokio::test(start_paused = true)]
async fn hedging_one_hedge_receives_non_fatal_and_one_fatal_status() {
    let stage = config(4, "")
        .replica("a", |_| Hangs)
        .replica("b", |_| Fails(350, Code::FailedPrecondition))
        .replica("c", |_| Fails(50, Code::Unavailable))
        .replica("d", |_| Hangs);
    assert_eq!(code(&stage.channel()).await, Code::FailedPrecondition);
    // c's failure brought d forward; b's was fatal, and ended all.
    assert_eq!(stage.starts(), [(0, "a"), (100, "b"), (200, "c"), (250, "d")]);
    assert_eq!(stage.now(), 450);
    assert_eq!(stage.dropped(), ["a", "d"]);
}

#[tokio::test(start_paused = true)]
async fn hedging_everything_is_sent_with_every_copy() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let log = log.clone();
        async move {
            let note = text(request.headers(), "x-note").unwrap();
            let previous = text(request.headers(), "grpc-previous-rpc-attempts");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            log.lock().unwrap().push((note, previous, body));
            std::future::pending::<Result<http::Response<Body>, Never>>().await
        }
    });
    let over = |b: ReplicatedBuilder, name| b.member_over(Member::new(name, "http://x:1"), service.clone());
    let stage = Stage::new().policy(hedged(100, 3));
    let stage = stage.with(|b| ["a", "b", "c"].into_iter().fold(b, over).default_deadline(MS * 500));
    let asks = GetErrorRequest { id: "an ID".to_owned() };
    let mut request = tonic::Request::new(asks.clone());
    request.metadata_mut().insert("x-note", "kept".parse().unwrap());
    within(operator(&stage.channel()).get_error(request)).await.unwrap_err();
    let body = framed(&asks);
    let copy = |previous: Option<&str>| ("kept".to_owned(), previous.map(str::to_owned), body.clone());
    assert_eq!(*seen.lock().unwrap(), [copy(None), copy(Some("1")), copy(Some("2"))]);
}

#[tokio::test(start_paused = true)]
async fn hedging_max_attempts() {
    let stage = config(4, "")
        .replica("a", |_| Fails(610, Code::Internal))
        .replica("b", |_| Answers(900))
        .replica("c", |_| Fails(430, Code::Unavailable))
        .replica("d", |_| Fails(320, Code::Internal))
        .replica("e", |_| Answers(0))
        .replica("f", |_| Answers(0));
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!(reply.winner().unwrap().node, "b");
    assert_eq!(stage.starts(), [(0, "a"), (100, "b"), (200, "c"), (300, "d")]);
    let endings: Vec<_> = reply.attempts().iter().map(|a| a.ending).collect();
    let failed = Ending::Failed;
    assert_eq!(
        endings,
        [failed(Code::Internal), Ending::Won, failed(Code::Unavailable), failed(Code::Internal)]
    );
}

#[tokio::test(start_paused = true)]
async fn hedging_more_than_five_attempts_are_five() {
    let stage = ["a", "b", "c", "d", "e", "f"]
        .into_iter()
        .fold(config(9, ""), |stage, name| stage.replica(name, |_| Answers(2_000)));
    assert_eq!(answer(&stage.channel()).await, "a");
    assert_eq!(stage.starts().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn hedging_receive_an_answer_cancels_all_others() {
    let stage = config(3, "").replica("a", |_| Hangs).replica("b", |_| Answers(150)).replica("c", |_| Hangs);
    assert_eq!(answer(&stage.channel()).await, "b");
    assert_eq!(stage.starts(), [(0, "a"), (100, "b"), (200, "c")]);
    assert_eq!(stage.dropped(), ["a", "c"]);
}

/// A member whose reply begins with this after 150 ms and then stalls.
fn stalling(begins: &'static [u8]) -> impl FnOnce(ReplicatedBuilder) -> ReplicatedBuilder {
    let service = tower::service_fn(move |_: http::Request<Body>| async move {
        tokio::time::sleep(MS * 150).await;
        let begins = (!begins.is_empty()).then(|| Ok::<_, Status>(Frame::data(Bytes::from_static(begins))));
        let body = StreamBody::new(stream::iter(begins).chain(stream::pending()));
        Ok::<_, Never>(frames(vec![], None).map(|_| Body::new(body)))
    });
    move |b| b.member_over(Member::new("stalling", "http://stalling:1"), service)
}

#[tokio::test(start_paused = true)]
async fn hedging_receive_headers_commits_nothing_yet() {
    // The original commits here; a reply that may still fail is none to us.
    let stage = config(3, "").with(stalling(b"")).replica("b", |_| Hangs).replica("c", |_| Answers(100));
    assert_eq!(answer(&stage.channel()).await, "c");
    assert_eq!(stage.dropped(), ["b"]);
    assert_eq!(stage.now(), 300);
}

#[tokio::test(start_paused = true)]
async fn hedging_receive_the_first_message_of_a_stream_cancels_all_others() {
    let stage = Stage::new()
        .policy(hedged(100, 3))
        .with(stalling(b"\0\0\0\0\0"))
        .replica("b", |_| Hangs)
        .replica("c", |_| Hangs);
    let channel = stage.channel();
    let mut client = operator(&channel);
    let reply = within(client.watch_events(WatchEventsRequest::default())).await.unwrap();
    assert_eq!((reply.winner().unwrap().node.as_str(), stage.now()), ("stalling", 150));
    let mut events = reply.into_inner();
    assert_eq!(within(events.message()).await.unwrap(), Some(Event::default()));
    assert_eq!((stage.starts(), stage.dropped()), (vec![(100, "b")], vec!["b"]));
}

#[tokio::test(start_paused = true)]
async fn hedging_pushback_negative() {
    for never in ["-1", "never", ""] {
        let stage = config(4, "")
            .replica("a", |_| Answers(1_000))
            .replica("b", move |_| Pushes(50, never))
            .replica("c", |_| Answers(0));
        assert_eq!(answer(&stage.channel()).await, "a");
        assert_eq!(stage.starts(), [(0, "a"), (100, "b")], "{never:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hedging_pushback_positive() {
    let stage = config(4, "")
        .replica("a", |_| Hangs)
        .replica("b", |_| Pushes(50, "300"))
        .replica("c", |_| Hangs)
        .replica("d", |_| Answers(10));
    assert_eq!(answer(&stage.channel()).await, "d");
    assert_eq!(stage.starts(), [(0, "a"), (100, "b"), (450, "c"), (550, "d")]);
}

#[tokio::test(start_paused = true)]
async fn hedging_pushback_positive_longer_and_shorter_than_the_delay() {
    let stage = config(4, "")
        .replica("a", |_| Pushes(110, "101"))
        .replica("b", |_| Pushes(120, "99"))
        .replica("c", |_| Hangs)
        .replica("d", |_| Fails(5, Code::FailedPrecondition));
    assert_eq!(code(&stage.channel()).await, Code::FailedPrecondition);
    // a's moved c from 200 to 211, b's moved d from 311 to 319; d's failure was fatal, and ended all.
    assert_eq!(stage.starts(), [(0, "a"), (100, "b"), (211, "c"), (319, "d")]);
    assert_eq!((stage.now(), stage.dropped()), (324, vec!["c"]));
}

#[tokio::test(start_paused = true)]
async fn hedging_pushback_positive_of_the_only_attempt_is_waited_for() {
    let stage = config(2, "").replica("a", |_| Pushes(20, "500")).replica("b", |_| Answers(0));
    assert_eq!(answer(&stage.channel()).await, "b");
    assert_eq!(stage.starts(), [(0, "a"), (520, "b")]);
}

#[tokio::test(start_paused = true)]
async fn hedging_cancelled() {
    let stage = config(3, "").replica("a", |_| Hangs).replica("b", |_| Hangs).replica("c", |_| Hangs);
    let channel = stage.channel();
    let call = tokio::time::timeout(MS * 150, get(&channel));
    assert!(within(call).await.is_err());
    assert_eq!(stage.dropped(), ["a", "b"]);
    tokio::time::sleep(MS * 500).await;
    assert_eq!(stage.starts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn hedging_per_rpc_buffer_limit_exceeded_nothing_is_sent() {
    let stage = Stage::new()
        .policy(hedged(100, 2))
        .with(|b| b.max_request_bytes(1_000))
        .replica("a", |_| Fails(150, Code::Internal))
        .replica("b", |_| Fails(150, Code::DataLoss));
    let channel = stage.channel();
    let ask = async |length: usize| {
        let asks = GetErrorRequest { id: "i".repeat(length) };
        within(operator(&channel).get_error(asks)).await.unwrap_err().code()
    };
    assert_eq!((ask(1_000).await, stage.starts().len()), (Code::ResourceExhausted, 0));
    assert_eq!((ask(900).await, stage.starts().len()), (Code::DataLoss, 2));
}

#[tokio::test(start_paused = true)]
async fn hedging_transparent_retry() {
    // What never left is sent elsewhere at once, and is no attempt that counts.
    let stage = config(2, "")
        .replica("a", |_| Unreachable(0))
        .replica("b", |_| Unreachable(0))
        .replica("c", |_| Hangs)
        .replica("d", |_| Answers(0));
    assert_eq!(answer(&stage.channel()).await, "d");
    assert_eq!(stage.starts(), [(0, "a"), (0, "b"), (0, "c"), (100, "d")]);
}

#[tokio::test(start_paused = true)]
async fn hedging_transparent_retry_not_allowed_after_the_server_has_answered() {
    let stage = config(2, "")
        .replica("a", |_| Fails(0, Code::Unavailable))
        .replica("b", |_| Fails(0, Code::Unavailable))
        .replica("c", |_| Answers(0));
    assert_eq!(code(&stage.channel()).await, Code::Unavailable);
    assert_eq!(stage.starts(), [(0, "a"), (0, "b")]);
}

const THROTTLING: &str = r#", "retryThrottling": {"maxTokens": 4, "tokenRatio": 1}"#;

#[tokio::test(start_paused = true)]
async fn hedging_throttled_by_other_calls() {
    // Two failures of the first call bring the tokens down to half.
    let act = |first: Does, then: Does| move |n| if n == 0 { first.clone() } else { then.clone() };
    let stage = config(2, THROTTLING)
        .replica("a", act(Fails(0, Code::Unavailable), Answers(1_000)))
        .replica("b", act(Fails(0, Code::Internal), Answers(1_000)));
    let channel = stage.channel();
    get(&channel).await.unwrap_err();
    stage.clear();
    get(&channel).await.unwrap();
    assert_eq!(stage.starts().len(), 1, "throttled: no hedge");
    stage.clear();
    get(&channel).await.unwrap();
    assert_eq!(stage.starts().len(), 2, "one success has paid for it");
}

#[tokio::test(start_paused = true)]
async fn hedging_throttled_by_its_own_hedges() {
    let names = ["a", "b", "c", "d", "e"];
    let stage = names
        .into_iter()
        .fold(config(5, THROTTLING), |stage, name| stage.replica(name, |_| Fails(0, Code::Unavailable)));
    get(&stage.channel()).await.unwrap_err();
    assert_eq!(stage.starts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_in_the_config_is_the_calls_deadline() {
    let json = r#"{"methodConfig": [{"name": [{}], "timeout": "0.2s"}]}"#;
    let stage = Stage::new().with(|b| b.service_config(json)).replica("a", |_| Hangs);
    assert_eq!(code(&stage.channel()).await, Code::DeadlineExceeded);
    assert_eq!(stage.now(), 200);
}

#[test]
fn the_config_in_the_documentation_is_one() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/replication.md")).unwrap();
    let json = text.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    Stage::new().with(|b| b.service_config(json)).builder.build().unwrap();
}

#[test]
fn a_config_that_is_wrong_is_refused_when_the_channel_is_built() {
    let built = config(1, "").builder.build();
    let what = built.unwrap_err().what().to_owned();
    assert_eq!(
        what,
        "service config: methodConfig[0].hedgingPolicy.maxAttempts: want a whole number greater than 1"
    );
}
