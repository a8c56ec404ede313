//! The hedging scenarios of grpc-java's `RetriableStreamTest`, with gRFC A6's text where the two differ,
//! set up by a JSON service config.

use tonic::Code;
use wardkeep_client::{Ending, ResponseExt as _};

use crate::{common::within, stage::*};

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
