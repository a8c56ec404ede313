//! The scenarios of tower's `hedge` tests; and what tower's hedge does not do.

use tonic::Code;
use wardkeep_client::{HedgeDelay, Policy, ResponseExt as _, SentOnce};
use wardkeep_proto::v1::{NodeMessage, WardRequest, stewardship_client::StewardshipClient};

use crate::{
    common::{operator, within},
    stage::*,
};

#[tokio::test(start_paused = true)]
async fn hedge_original_completes_before_the_hedge_is_due() {
    let stage = Stage::new().policy(hedged(10, 2)).replica("a", |_| Answers(9)).replica("b", |_| Answers(0));
    assert_eq!(answer(&stage.channel()).await, "a");
    assert_eq!(stage.starts(), [(0, "a")]);
}

#[tokio::test(start_paused = true)]
async fn hedge_original_completes_first() {
    let stage =
        Stage::new().policy(hedged(10, 2)).replica("a", |_| Answers(15)).replica("b", |_| Answers(10));
    assert_eq!(answer(&stage.channel()).await, "a");
    assert_eq!(stage.starts(), [(0, "a"), (10, "b")]);
    assert_eq!(stage.dropped(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn hedge_hedge_completes_first() {
    let stage = Stage::new().policy(hedged(10, 2)).replica("a", |_| Hangs).replica("b", |_| Answers(5));
    assert_eq!(answer(&stage.channel()).await, "b");
    assert_eq!((stage.now(), stage.dropped()), (15, vec!["a"]));
}

#[tokio::test(start_paused = true)]
async fn hedge_request_that_may_not_be_repeated_is_not_hedged() {
    let stage = Stage::new().policy(hedged(10, 2)).replica("a", |_| Answers(50)).replica("b", |_| Answers(0));
    let channel = stage.channel();
    let mut client = operator(&channel);
    let reply = within(client.restart_ward(WardRequest::default())).await;
    // What came is no reply to that method; only the attempts matter.
    let once = reply.ok().and_then(|reply| reply.winner().and_then(|winner| winner.sent_once));
    assert!(once.is_none_or(|once| once == SentOnce::NotIdempotent));
    assert_eq!(stage.starts(), [(0, "a")]);
}

#[tokio::test(start_paused = true)]
async fn hedge_request_that_cannot_be_cloned_is_not_hedged() {
    let stage = Stage::new().policy(hedged(10, 2)).replica("a", |_| Answers(50)).replica("b", |_| Answers(0));
    let mut client = StewardshipClient::new(stage.channel());
    let reply = within(client.attend(tokio_stream::iter([NodeMessage::default()]))).await.unwrap();
    assert_eq!(reply.winner().unwrap().sent_once, Some(SentOnce::ClientStreaming));
    assert_eq!((stage.starts(), stage.now()), (vec![(0, "a")], 50));
}

#[tokio::test(start_paused = true)]
async fn hedge_after_a_percentile_of_what_was_seen() {
    // 100 calls of 1 to 100 ms, then one that hangs.
    let stage = Stage::new()
        .policy(Policy::Hedged { delay: HedgeDelay::Percentile(90.0), max_attempts: 2 })
        .with(|b| b.restraint(unrestrained()).diversity(wardkeep_client::Diversity::any()))
        .replica("a", |n| if n < 100 { Answers(1 + n as u64 % 40) } else { Hangs });
    let channel = stage.channel();
    for _ in 0..100 {
        get(&channel).await.unwrap();
    }
    // With nobody else to ask, nothing is hedged, whatever the delay.
    assert_eq!(channel.stats().attempts, 100);
    let stage = Stage::new()
        .policy(Policy::Hedged { delay: HedgeDelay::Percentile(90.0), max_attempts: 2 })
        .with(|b| b.restraint(unrestrained()))
        .replica("a", |n| if n < 50 { Answers(20) } else { Hangs })
        .replica("b", |_| Answers(20));
    let channel = stage.channel();
    while stage.starts().iter().filter(|(_, name)| *name == "a").count() < 50 {
        get(&channel).await.unwrap();
    }
    stage.clear();
    while stage.starts().iter().all(|(_, name)| *name == "b") {
        stage.clear();
        get(&channel).await.unwrap();
    }
    let starts = stage.starts();
    assert_eq!(starts.len(), 2, "{starts:?}");
    // To two figures, and to a whole millisecond of the timer.
    assert!((20..=21).contains(&(starts[1].0 - starts[0].0)), "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn hedge_is_not_won_by_an_error_that_comes_first() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .replica("a", |_| Answers(100))
        .replica("b", |_| Fails(1, Code::Internal));
    assert_eq!(answer(&stage.channel()).await, "a");
}

#[tokio::test(start_paused = true)]
async fn hedge_of_zero_delay_sends_all_at_once() {
    let stage = Stage::new()
        .policy(hedged(0, 3))
        .replica("a", |_| Hangs)
        .replica("b", |_| Hangs)
        .replica("c", |_| Answers(5));
    assert_eq!(answer(&stage.channel()).await, "c");
    assert_eq!(stage.starts(), [(0, "a"), (0, "b"), (0, "c")]);
}
