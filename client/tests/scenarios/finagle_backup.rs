//! The scenarios of Finagle's `BackupRequestFilterTest`.

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use tonic::Code;
use wardkeep_client::{Ending, HedgeDelay, Policy, ResponseExt as _, Restraint};

use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn the_backup_request_is_sent_when_the_original_is_late_and_its_answer_is_taken() {
    let stage = Stage::new().policy(hedged(100, 2)).replica("a", |_| Hangs).replica("b", |_| Answers(50));
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!((reply.winner().unwrap().node.as_str(), stage.now()), ("b", 150));
}

#[tokio::test(start_paused = true)]
async fn the_loser_is_cancelled_and_does_not_count_as_a_failure() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .with(|b| b.restraint(unrestrained()))
        .replica("a", |_| Answers(18))
        .replica("b", |_| Answers(18));
    let channel = stage.channel();
    for _ in 0..50 {
        let reply = get(&channel).await.unwrap();
        assert_eq!(reply.attempts()[1].ending, Ending::Cancelled);
    }
    let stats = channel.stats();
    assert_eq!((stats.hedges, stats.cancelled, stats.ejected, stats.failed_calls), (50, 50, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn when_the_original_fails_after_the_backup_was_sent_the_backup_is_waited_for() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .replica("a", |_| Fails(15, Code::Internal))
        .replica("b", |_| Answers(100));
    assert_eq!(answer(&stage.channel()).await, "b");
    assert_eq!(stage.now(), 110);
}

#[tokio::test(start_paused = true)]
async fn when_the_backup_fails_first_the_original_is_waited_for() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .replica("a", |_| Answers(100))
        .replica("b", |_| Fails(5, Code::Internal));
    assert_eq!(answer(&stage.channel()).await, "a");
    assert_eq!(stage.now(), 100);
}

#[tokio::test(start_paused = true)]
async fn when_both_fail_the_error_tells_of_both() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .replica("a", |_| Fails(20, Code::Unavailable))
        .replica("b", |_| Fails(20, Code::Internal));
    let status = get(&stage.channel()).await.unwrap_err();
    let error = wardkeep_proto::Error::from_status(&status);
    assert_eq!(error.kind(), "ATTEMPTS_FAILED");
    assert!(error.what().contains("a fails") && error.what().contains("b fails"), "{}", error.what());
}

#[tokio::test(start_paused = true)]
async fn no_backup_is_sent_when_the_budget_is_used_up() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .with(|b| b.restraint(Restraint::default().hedge_budget(0.1, 2).step_down(false)))
        .replica("a", |_| Answers(15))
        .replica("b", |_| Answers(15));
    let channel = stage.channel();
    for _ in 0..100 {
        get(&channel).await.unwrap();
    }
    let stats = channel.stats();
    assert!((10..=12).contains(&stats.hedges), "{stats:?}");
    assert_eq!(stats.attempts, 100 + stats.hedges);
    assert_eq!(stats.hedges_refused, 100 - stats.hedges);
}

#[tokio::test(start_paused = true)]
async fn while_little_is_known_the_delay_is_that_of_a_cold_start() {
    let stage = Stage::new()
        .policy(Policy::Hedged { delay: HedgeDelay::Percentile(99.0), max_attempts: 2 })
        .replica("a", |_| Hangs)
        .replica("b", |_| Answers(0));
    assert_eq!(answer(&stage.channel()).await, "b");
    assert_eq!(u128::from(stage.now()), HedgeDelay::COLD.as_millis());
}

#[tokio::test(start_paused = true)]
async fn the_latency_of_late_originals_is_learnt_though_they_are_cut_off() {
    let toss = |n: usize| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1;
    // Half of all take 200 ms. If only those that won were counted, the percentile would be 1 ms for ever.
    let stage = Stage::new()
        .policy(Policy::Hedged { delay: HedgeDelay::Percentile(75.0), max_attempts: 2 })
        .with(|b| b.restraint(unrestrained()))
        .replica("a", move |n| Answers(if toss(n) { 200 } else { 1 }))
        .replica("b", move |n| Answers(if toss(n + 1_000_000) { 200 } else { 1 }));
    let channel = stage.channel();
    for _ in 0..300 {
        get(&channel).await.unwrap();
    }
    let before = channel.stats();
    for _ in 0..100 {
        get(&channel).await.unwrap();
    }
    let hedges = channel.stats().hedges - before.hedges;
    assert!(hedges <= 60, "{hedges} of 100 calls were hedged");
}

#[tokio::test(start_paused = true)]
async fn an_extra_load_that_is_none_sends_no_backup() {
    for load in [0.0, -5.0, f64::NAN, f64::INFINITY] {
        let stage = Stage::new()
            .policy(hedged(10, 2))
            .with(|b| b.restraint(Restraint::default().hedge_budget(load, 0).step_down(false)))
            .replica("a", |_| Answers(15))
            .replica("b", |_| Answers(15));
        let channel = stage.channel();
        for _ in 0..20 {
            get(&channel).await.unwrap();
        }
        let stats = channel.stats();
        assert_eq!((stats.hedges, stats.hedges_refused), (0, 20), "{load}");
    }
}

/// Milliseconds until the backup is sent, after 50 calls of 20 ms and so many that went otherwise.
async fn delay_after(many: usize, otherwise: Does) -> u64 {
    let does = Arc::new(Mutex::new(Answers(20)));
    let act = || {
        let does = does.clone();
        move |_| does.lock().unwrap().clone()
    };
    let stage = Stage::new()
        .policy(Policy::Hedged { delay: HedgeDelay::Percentile(50.0), max_attempts: 2 })
        .with(|b| b.restraint(unrestrained()).attempt_timeout(MS * 400))
        .replica("a", act())
        .replica("b", act());
    let channel = stage.channel();
    for (calls, what) in [(50, Answers(20)), (many, otherwise), (1, Hangs)] {
        stage.clear();
        *does.lock().unwrap() = what;
        join_all((0..calls).map(|_| get(&channel))).await;
    }
    let starts = stage.starts();
    starts[1].0 - starts[0].0
}

#[tokio::test(start_paused = true)]
async fn what_fails_fast_teaches_no_latency() {
    let (none, failures) = (delay_after(0, Hangs).await, delay_after(200, Fails(1, Code::Internal)).await);
    // To a whole millisecond of the timer.
    assert!((20..=21).contains(&none) && none == failures, "{none} ms, {failures} ms");
}

#[tokio::test(start_paused = true)]
async fn what_ran_into_its_timeout_counts_as_so_long() {
    assert!(delay_after(100, Hangs).await >= 400);
}
