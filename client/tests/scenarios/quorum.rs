//! Answers that several members give alike.

use tonic::Code;
use wardkeep_client::{Ending, Policy, ResponseExt as _};
use wardkeep_proto::Error;

use crate::stage::*;

fn quorum(equal: u32, of: u32) -> Stage {
    Stage::new().policy(Policy::Quorum { equal, of })
}

#[tokio::test(start_paused = true)]
async fn the_answer_is_what_enough_members_say_alike() {
    let stage = quorum(2, 3)
        .replica("a", |_| Says(1, "wrong"))
        .replica("b", |_| Says(20, "right"))
        .replica("c", |_| Says(30, "right"));
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!(stage.now(), 30);
    let endings: Vec<_> = reply.attempts().iter().map(|attempt| attempt.ending).collect();
    assert_eq!(endings, [Ending::Answered, Ending::Won, Ending::Answered]);
    assert_eq!(reply.into_inner().supervisor.unwrap().machine, "right");
}

#[tokio::test(start_paused = true)]
async fn those_that_are_not_needed_are_cancelled() {
    let stage =
        quorum(2, 3).replica("a", |_| Says(5, "x")).replica("b", |_| Says(5, "x")).replica("c", |_| Hangs);
    assert_eq!(answer(&stage.channel()).await, "x");
    assert_eq!((stage.now(), stage.dropped()), (5, vec!["c"]));
}

#[tokio::test(start_paused = true)]
async fn disagreement_is_an_error_that_says_who_said_what() {
    let stage = quorum(2, 3)
        .replica("a", |_| Says(1, "one"))
        .replica("b", |_| Says(2, "two"))
        .replica("c", |_| Fails(3, Code::Internal));
    let status = get(&stage.channel()).await.unwrap_err();
    let error = Error::from_status(&status);
    assert_eq!((status.code(), error.kind()), (Code::Aborted, "NO_QUORUM"));
    for part in ["no 2 equal answers", "a (http://a:1)", "answer 1", "b (http://b:1)", "answer 2", "c fails"]
    {
        assert!(error.what().contains(part), "{part:?} is not in {:?}", error.what());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_reached_is_replaced() {
    let stage = quorum(2, 2)
        .replica("a", |_| Unreachable(1))
        .replica("b", |_| Says(1, "x"))
        .replica("c", |_| Says(1, "x"));
    assert_eq!(answer(&stage.channel()).await, "x");
}

#[tokio::test(start_paused = true)]
async fn one_deliberate_refusal_is_one_voice_of_several() {
    let stage = quorum(2, 3)
        .replica("a", |_| Fails(1, Code::InvalidArgument))
        .replica("b", |_| Says(2, "x"))
        .replica("c", |_| Says(3, "x"));
    assert_eq!(answer(&stage.channel()).await, "x");
    let refused = quorum(2, 3)
        .replica("a", |_| Fails(1, Code::NotFound))
        .replica("b", |_| Says(2, "x"))
        .replica("c", |_| Fails(3, Code::NotFound));
    assert_eq!(code(&refused.channel()).await, Code::NotFound);
}

#[test]
fn a_quorum_that_cannot_be_had_is_refused_when_the_channel_is_built() {
    let error = quorum(3, 2).builder.build().unwrap_err();
    assert_eq!((error.kind(), error.code()), ("BAD_POLICY", Code::InvalidArgument));
}
