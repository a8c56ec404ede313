//! brpc's backup requests (`backup_request_ms`).

use tonic::Code;
use wardkeep_client::{Policy, ResponseExt as _};
use wardkeep_proto::v1::ListErrorsRequest;

use crate::{
    common::{operator, within},
    stage::*,
};

#[tokio::test(start_paused = true)]
async fn no_backup_if_the_answer_comes_in_time() {
    let stage = Stage::new().policy(hedged(50, 2)).replica("a", |_| Answers(49)).replica("b", |_| Answers(0));
    assert_eq!(answer(&stage.channel()).await, "a");
    assert_eq!(stage.starts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_backup_goes_to_another_server_than_the_first() {
    let stage = Stage::new()
        .policy(hedged(50, 5))
        .with(|b| b.restraint(unrestrained()))
        .replica("a", |_| Answers(500))
        .replica("b", |_| Answers(500));
    let channel = stage.channel();
    for _ in 0..10 {
        stage.clear();
        get(&channel).await.unwrap();
        let mut names: Vec<_> = stage.starts().into_iter().map(|(_, name)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"], "once each, though five attempts are allowed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_before_the_backup_is_due_is_answered_with_another_server_at_once() {
    let stage = Stage::new()
        .policy(hedged(50, 2))
        .replica("a", |_| Fails(5, Code::Unavailable))
        .replica("b", |_| Answers(5));
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!((reply.winner().unwrap().attempts, stage.now()), (2, 10));
}

#[tokio::test(start_paused = true)]
async fn a_backup_later_than_the_deadline_is_never_sent() {
    let stage = Stage::new()
        .policy(hedged(500, 2))
        .with(|b| b.default_deadline(MS * 200))
        .replica("a", |_| Hangs)
        .replica("b", |_| Answers(0));
    assert_eq!(code(&stage.channel()).await, Code::DeadlineExceeded);
    assert_eq!(stage.starts(), [(0, "a")]);
}

#[tokio::test(start_paused = true)]
async fn a_method_may_do_without_the_backup_that_others_have() {
    let stage = Stage::new()
        .policy(hedged(10, 2))
        .with(|b| b.policy_for("/wardkeep.v1.Operator/GetFleet", Policy::Single))
        .replica("a", |_| Answers(50))
        .replica("b", |_| Answers(50));
    let channel = stage.channel();
    get(&channel).await.unwrap();
    assert_eq!(stage.starts().len(), 1);
    let _ = within(operator(&channel).list_errors(ListErrorsRequest::default())).await;
    assert_eq!(stage.starts().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn without_a_backup_delay_a_late_server_is_waited_for() {
    let stage =
        Stage::new().policy(Policy::Single).replica("a", |_| Answers(5_000)).replica("b", |_| Answers(0));
    assert_eq!(answer(&stage.channel()).await, "a");
    assert_eq!(stage.starts(), [(0, "a")]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_has_a_timeout_of_its_own() {
    let stage = Stage::new()
        .policy(Policy::Single)
        .with(|b| b.attempt_timeout(MS * 100))
        .replica("a", |_| Hangs)
        .replica("b", |_| Answers(5));
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!((reply.winner().unwrap().node.as_str(), stage.now()), ("b", 105));
}
