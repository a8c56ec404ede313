//! What calls and channels tell of themselves.

use std::sync::{Arc, Mutex};

use tonic::Code;
use tower::Layer as _;
use wardkeep_client::{
    CallSummary, Ending, Member, Observe, Phase, Policy, Replicated, ResponseExt as _, SentOnce,
};

use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn a_reply_tells_of_every_attempt() {
    let stage = Stage::new()
        .policy(hedged(10, 3))
        .replica("a", |_| Fails(25, Code::Internal))
        .replica("b", |_| Hangs)
        .replica("c", |_| Answers(30));
    let reply = get(&stage.channel()).await.unwrap();
    let told: Vec<_> = reply
        .attempts()
        .iter()
        .map(|a| (a.number, a.node.as_str(), a.started_after.as_millis(), a.took.as_millis(), a.ending))
        .collect();
    let expected = [
        (1, "a", 0, 25, Ending::Failed(Code::Internal)),
        (2, "b", 10, 40, Ending::Cancelled),
        (3, "c", 20, 30, Ending::Won),
    ];
    assert_eq!(told, expected);
    assert_eq!(reply.attempts()[1].phase, Phase::Headers);
    assert_eq!(reply.winner().unwrap().sent_once, None);
}

#[tokio::test(start_paused = true)]
async fn a_reply_tells_why_it_had_one_attempt() {
    let stage = Stage::new().policy(Policy::Single).replica("a", |_| Answers(1));
    let reply = get(&stage.channel()).await.unwrap();
    assert_eq!(reply.winner().unwrap().sent_once, Some(SentOnce::Policy));
    let unknown = Replicated::builder()
        .member_over(Member::new("a", "http://a:1"), stage.service("a", |_| Answers(1)))
        .build()
        .unwrap();
    let reply = get(&unknown).await.unwrap();
    assert_eq!(reply.winner().unwrap().sent_once, Some(SentOnce::NotIdempotent));
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(String, Code, usize)>>>);

impl Observe for Seen {
    fn called(&self, call: &CallSummary<'_>) {
        self.0.lock().unwrap().push((call.method.to_owned(), call.code, call.attempts.len()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_is_told_of_each_call() {
    let seen = Seen::default();
    let act = |n| if n == 0 { Answers(1) } else { Fails(1, Code::InvalidArgument) };
    let stage = Stage::new().with(|b| b.observer(seen.clone())).replica("a", act);
    let channel = stage.channel();
    get(&channel).await.unwrap();
    get(&channel).await.unwrap_err();
    let method = "/wardkeep.v1.Operator/GetFleet".to_owned();
    let expected = [(method.clone(), Code::Ok, 1), (method, Code::InvalidArgument, 1)];
    assert_eq!(*seen.0.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn the_same_as_a_layer_over_channels_of_ones_own() {
    let stage = Stage::new();
    let layer = Stage::new().policy(hedged(10, 2)).builder.into_layer().unwrap();
    let services = vec![
        (
            Member::new("a", "http://a:1"),
            tower::util::BoxCloneSyncService::new(stage.service("a", |_| Hangs)),
        ),
        (
            Member::new("b", "http://b:1"),
            tower::util::BoxCloneSyncService::new(stage.service("b", |_| Answers(5))),
        ),
    ];
    assert_eq!(answer(&layer.layer(services)).await, "b");
    assert_eq!(stage.starts(), [(0, "a"), (10, "b")]);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_each_member_is_told_is_what_is_left() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let told = text(request.headers(), "grpc-timeout").unwrap();
        let previous = text(request.headers(), "grpc-previous-rpc-attempts");
        let left = wardkeep_proto::context::parse_timeout(&told).unwrap();
        log.lock().unwrap().push((left.as_millis(), previous));
        std::future::pending::<Result<http::Response<tonic::body::Body>, Never>>()
    });
    let stage = Stage::new().policy(hedged(100, 2)).with(|b| {
        let b = b.member_over(Member::new("a", "http://a:1"), service.clone());
        b.member_over(Member::new("b", "http://b:1"), service).default_deadline(MS * 1_000)
    });
    assert_eq!(code(&stage.channel()).await, Code::DeadlineExceeded);
    assert_eq!(*seen.lock().unwrap(), [(1_000, None), (900, Some("1".to_owned()))]);
    assert_eq!(stage.now(), 1_000);
}
