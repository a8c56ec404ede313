//! Tied requests: the node that begins says so, and the copies that wait elsewhere are withdrawn.

use std::sync::{Arc, Mutex};

use tonic::Code;
use wardkeep_client::{Ending, HedgeDelay, Member, Policy, ResponseExt as _};
use wardkeep_proto::Error;

use crate::{
    common::{fleet, whole},
    stage::*,
};

fn tied(max_attempts: u32) -> Stage {
    Stage::new().policy(Policy::Tied { delay: HedgeDelay::Fixed(MS), max_attempts })
}

fn begins(after: u64, then: Does) -> Does {
    Begins(after, Box::new(then))
}

#[tokio::test(start_paused = true)]
async fn the_copy_that_waits_is_withdrawn_before_it_starts() {
    let stage = tied(2).replica("a", |_| begins(5, Answers(50))).replica("b", |_| begins(30, Answers(0)));
    let channel = stage.channel();
    let reply = get(&channel).await.unwrap();
    let dropped = stage.log().into_iter().find(|(.., what)| *what == Dropped).unwrap();
    assert_eq!(dropped, (5, "b", Dropped));
    let endings: Vec<_> = reply.attempts().iter().map(|attempt| attempt.ending).collect();
    assert_eq!(endings, [Ending::Won, Ending::Withdrawn]);
    assert_eq!((reply.winner().unwrap().node.as_str(), channel.stats().withdrawn), ("a", 1));
}

#[tokio::test(start_paused = true)]
async fn the_handlers_own_metadata_reach_the_caller_and_the_frame_does_not() {
    let stage = tied(2).replica("a", |_| begins(0, Answers(5)));
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!(reply.metadata().get("x-late").unwrap(), "yes");
    assert!(reply.metadata().get("wardkeep-began").is_none());
    assert_eq!(reply.into_inner().supervisor.unwrap().machine, "a");
}

#[tokio::test(start_paused = true)]
async fn copies_say_that_they_are_tied_and_others_do_not() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        log.lock().unwrap().push(text(request.headers(), "wardkeep-tied"));
        async { Ok::<_, Never>(whole(&fleet("x"))) }
    });
    for stage in [tied(2), Stage::new().policy(hedged(1, 2))] {
        let stage = stage.with(|b| b.member_over(Member::new("x", "http://x:1"), service.clone()));
        get(&stage.channel()).await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), [Some("1".to_owned()), None]);
}

#[tokio::test(start_paused = true)]
async fn when_two_have_begun_the_first_answer_wins() {
    let stage = tied(2).replica("a", |_| begins(3, Answers(100))).replica("b", |_| begins(2, Answers(20)));
    // Both say so in the same moment: a at 3, b at 1 + 2.
    let reply = get(&stage.channel()).await.unwrap();
    assert!(["a", "b"].contains(&reply.winner().unwrap().node.as_str()));
    assert!(stage.now() <= 103);
}

#[tokio::test(start_paused = true)]
async fn when_the_one_that_began_fails_the_one_withdrawn_is_asked_again() {
    let stage = tied(2)
        .replica("a", |_| begins(5, Fails(20, Code::Internal)))
        .replica("b", |n| if n == 0 { Hangs } else { Answers(3) });
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!((reply.winner().unwrap().node.as_str(), stage.now()), ("b", 28));
    assert_eq!(stage.starts(), [(0, "a"), (1, "b"), (25, "b")]);
}

#[tokio::test(start_paused = true)]
async fn when_the_one_that_began_gets_stuck_another_is_asked_though_much_later() {
    let stage = tied(2)
        .with(|b| b.restraint(unrestrained()))
        .replica("a", |_| begins(5, Hangs))
        .replica("b", |n| if n == 0 { Hangs } else { Answers(3) });
    assert_eq!(answer(&stage.channel()).await, "b");
    let starts = stage.starts();
    assert_eq!(starts.len(), 3);
    assert!(starts[2].0 >= 100, "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn servers_that_know_nothing_of_it_just_answer() {
    let stage = tied(2).replica("a", |_| Answers(30)).replica("b", |_| Answers(10));
    assert_eq!(answer(&stage.channel()).await, "b");
}

#[tokio::test(start_paused = true)]
async fn garbage_in_place_of_the_metadata_is_a_well_formed_error() {
    for garbage in ["\0\0\0\0\0", "no frame", "\u{0}", "x"] {
        let stage = tied(2).replica("a", move |_| begins(0, Says(1, garbage)));
        let status = get(&stage.channel()).await.unwrap_err();
        let error = Error::from_status(&status);
        assert_eq!(status.code(), Code::Internal, "{garbage:?}");
        assert!(error.what().contains("metadata"), "{}", error.what());
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_at_once_needs_no_metadata() {
    let stage = tied(2).replica("a", |_| begins(0, Fails(1, Code::Internal)));
    assert_eq!(code(&stage.channel()).await, Code::Internal);
}
