//! The scenarios of Cassandra's `ReadExecutorTest`: speculative reads.

use tonic::Code;
use wardkeep_client::{HedgeDelay, Policy};

use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn never_speculating_does_not_speculate() {
    let stage =
        Stage::new().policy(Policy::Single).replica("a", |_| Answers(900)).replica("b", |_| Answers(0));
    let channel = stage.channel();
    assert_eq!(answer(&channel).await, "a");
    assert_eq!((channel.stats().hedges, channel.stats().hedges_refused), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn unable_to_speculate_without_another_replica() {
    let stage = Stage::new().policy(hedged(10, 2)).replica("a", |_| Answers(100));
    let channel = stage.channel();
    assert_eq!(answer(&channel).await, "a");
    assert_eq!((channel.stats().attempts, channel.stats().hedges), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn speculation_succeeded() {
    let stage = Stage::new().policy(hedged(10, 2)).replica("a", |_| Hangs).replica("b", |_| Answers(1));
    let channel = stage.channel();
    assert_eq!(answer(&channel).await, "b");
    let stats = channel.stats();
    assert_eq!((stats.hedges, stats.wins["b"], stats.failed_calls), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn speculation_failed_when_the_second_replica_is_no_better() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .with(|b| b.default_deadline(MS * 300))
        .replica("a", |_| Hangs)
        .replica("b", |_| Hangs);
    let channel = stage.channel();
    assert_eq!(code(&channel).await, Code::DeadlineExceeded);
    let stats = channel.stats();
    assert_eq!((stats.hedges, stats.failed_calls), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn speculation_that_ends_in_failures_ends_the_call_with_the_last_of_them() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .replica("a", |_| Fails(30, Code::Internal))
        .replica("b", |_| Fails(40, Code::Internal));
    let channel = stage.channel();
    assert_eq!((code(&channel).await, stage.now()), (Code::Internal, 50));
    let stats = channel.stats();
    assert_eq!((stats.hedges, stats.failed_calls), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn race_with_a_failure_that_is_not_speculative() {
    // The first fails in the very moment in which the second is due: there is one second, not two.
    let stage = Stage::new()
        .policy(hedged(10, 3))
        .replica("a", |_| Fails(10, Code::Unavailable))
        .replica("b", |_| Answers(5))
        .replica("c", |_| Hangs);
    assert_eq!(answer(&stage.channel()).await, "b");
    assert!(stage.starts().iter().filter(|(at, _)| *at == 10).count() <= 2);
    assert_eq!(stage.now(), 15);
}

#[tokio::test(start_paused = true)]
async fn always_speculating_asks_the_extra_replica_at_once() {
    let stage = Stage::new().policy(Policy::All(2)).replica("a", |_| Hangs).replica("b", |_| Answers(7));
    assert_eq!(answer(&stage.channel()).await, "b");
    assert_eq!(stage.starts(), [(0, "a"), (0, "b")]);
}

#[tokio::test(start_paused = true)]
async fn speculation_waits_for_a_percentile_of_the_replicas_latency() {
    let stage = Stage::new()
        .policy(Policy::Hedged { delay: HedgeDelay::Percentile(99.0), max_attempts: 2 })
        .replica("a", |n| Answers(if n == 60 { 500 } else { 8 }))
        .replica("b", |_| Answers(8));
    let channel = stage.channel();
    let mut late = 0;
    for _ in 0..140 {
        stage.clear();
        let before = stage.now();
        get(&channel).await.unwrap();
        late += usize::from(stage.starts().len() == 2);
        assert!(stage.now() - before <= 17, "never as slow as the slow one");
    }
    assert_eq!(late, 1);
}
