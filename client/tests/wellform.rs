//! A plain channel under the layer: whatever goes wrong, callers get a well-formed error.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{
    framed,
    raw::{Raw, Step},
    records::{Records, panics},
    within,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tower::Layer as _;
use wardkeep_client::{WellFormed, WellFormedChannel, endpoint};
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
    error::ERROR_ID_KEY,
    v1,
};

type Health = HealthClient<WellFormedChannel<Channel>>;

fn health(layer: WellFormed, uri: &str) -> Health {
    HealthClient::new(layer.layer(endpoint(uri).unwrap().connect_lazy()))
}

fn map(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (key, value) in pairs {
        map.append(HeaderName::from_static(key), HeaderValue::from_bytes(value).unwrap());
    }
    map
}

fn head() -> Step {
    Step::Head(200, HeaderMap::new())
}

fn message() -> Step {
    Step::Data(framed(&HealthCheckResponse { status: 1 }))
}

/// Watches, to the end. Returns the messages that came, and how it ended.
async fn watch(client: &mut Health) -> (usize, Result<(), Status>) {
    let mut stream = match within(client.watch(HealthCheckRequest::default())).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (0, Err(status)),
    };
    let mut messages = 0;
    loop {
        match within(stream.message()).await {
            Ok(Some(_)) => messages += 1,
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
    }
}

fn well_formed(status: &Status, what: &str) -> Error {
    let error = Error::from_status(status);
    let id = status.metadata().get(ERROR_ID_KEY).map(|id| id.to_str().unwrap());
    assert_eq!(id, Some(error.id()), "{what}: {status:?}");
    // Read twice, it is the same: it is in the details, not made while reading.
    assert_eq!(Error::from_status(status).occurred_at(), error.occurred_at(), "{what}");
    assert!(!error.user_message().trim().is_empty() && !error.user_message().contains('\n'), "{what}");
    error
}

#[tokio::test]
async fn heads_trailers_and_streams_that_are_wrong_end_well_formed() {
    let before = panics();
    let bad: [(&'static str, &[u8]); 2] = [("grpc-status", b"5"), ("grpc-status-details-bin", b"AAAA=")];
    let bare: [(&'static str, &[u8]); 2] = [("grpc-status", b"5"), ("grpc-message", b"no such service")];
    let html = map(&[("content-type", b"text/html")]);
    let cut = Step::Data(Bytes::from_static(&[0, 0, 0, 0, 9]));
    let steps: Vec<(&str, Vec<Step>, Code, bool)> = vec![
        ("a garbled head", vec![Step::Only(map(&bad))], Code::NotFound, true),
        ("garbled trailers", vec![head(), Step::Trailers(map(&bad))], Code::NotFound, true),
        ("garbled in the middle", vec![head(), message(), Step::Trailers(map(&bad))], Code::NotFound, true),
        ("a deliberate head", vec![Step::Only(map(&bare))], Code::NotFound, false),
        ("deliberate trailers", vec![head(), message(), Step::Trailers(map(&bare))], Code::NotFound, false),
        (
            "HTML",
            vec![Step::Head(503, html), Step::Data(Bytes::from_static(b"<html>")), Step::End],
            Code::Unavailable,
            true,
        ),
        ("no trailers", vec![head(), message(), Step::End], Code::Internal, true),
        ("half a message", vec![head(), message(), cut, Step::End], Code::Internal, true),
        ("a reset", vec![Step::Reset(8)], Code::Unavailable, false),
        ("a reset in the middle", vec![head(), Step::Reset(2)], Code::Unavailable, false),
    ];
    let scripts: Vec<_> = steps.iter().map(|(_, steps, ..)| steps.clone()).collect();
    let turn = Arc::new(Mutex::new(0));
    let now = turn.clone();
    let raw = Raw::start(move |_| scripts[*now.lock().unwrap()].clone()).await;
    let records = Records::listen();
    let mut client = health(WellFormed::of(&raw.uri), &raw.uri);
    for (number, (name, _, code, malformed)) in steps.iter().enumerate() {
        *turn.lock().unwrap() = number;
        let unary = within(client.check(HealthCheckRequest::default())).await.map(|_| ());
        for (what, ended) in
            [(format!("{name}, unary"), unary), (format!("{name}, stream"), watch(&mut client).await.1)]
        {
            let status = ended.expect_err(&what);
            let error = well_formed(&status, &what);
            assert_eq!((status.code(), error.is_malformed()), (*code, *malformed), "{what}: {error:?}");
        }
        assert_eq!(records.take_malformed().len(), if *malformed { 2 } else { 0 }, "{name}");
    }
    assert_eq!((raw.connections(), panics() - before), (1, 0));
}

#[tokio::test]
async fn what_is_fine_passes_as_it_is() {
    let raw =
        Raw::start(|_| vec![head(), message(), Step::Trailers(map(&[("grpc-status", b"0"), ("x", b"y")]))])
            .await;
    let mut client = health(WellFormed::of(&raw.uri), &raw.uri);
    let told = within(client.check(HealthCheckRequest::default())).await.unwrap();
    assert_eq!(told.metadata().get("x").unwrap(), "y");
    assert_eq!(told.into_inner().status, 1);
    let (messages, ended) = watch(&mut client).await;
    assert!(messages == 1 && ended.is_ok());
}

#[tokio::test]
async fn a_connection_that_cannot_be_opened_names_the_address_and_the_cause() {
    let nobody = common::nobody("x").await.uri;
    let mut client = health(WellFormed::of(&nobody), &nobody);
    let status = within(client.check(HealthCheckRequest::default())).await.unwrap_err();
    let error = well_formed(&status, "nobody");
    assert_eq!((error.kind(), error.code()), ("CONNECT_FAILED", Code::Unavailable));
    assert!(error.what().contains(&nobody) && error.what().contains("refused"), "{error:?}");
    assert!(!error.user_message().contains("127.0.0.1"));
}

#[tokio::test]
async fn a_passed_deadline_is_one_before_the_head_and_in_the_middle() {
    let pause = Duration::from_millis(200);
    for steps in [vec![Step::Seen], vec![head(), message(), Step::Seen]] {
        let raw = Raw::start(move |_| steps.clone()).await;
        let mut client = health(WellFormed::of(&raw.uri).default_deadline(pause), &raw.uri);
        let (_, ended) = watch(&mut client).await;
        let status = ended.unwrap_err();
        let error = well_formed(&status, "late");
        assert_eq!((status.code(), error.is_malformed()), (Code::DeadlineExceeded, false), "{error:?}");
    }
}

#[tokio::test]
async fn a_servers_own_timer_is_a_passed_deadline_too() {
    let expired = map(&[("grpc-status", b"1"), ("grpc-message", b"Timeout expired")]);
    let raw = Raw::start(move |_| vec![Step::Only(expired.clone())]).await;
    let mut client = health(WellFormed::of(&raw.uri), &raw.uri);
    let status = within(client.check(HealthCheckRequest::default())).await.unwrap_err();
    assert_eq!(
        (status.code(), well_formed(&status, "expired").is_malformed()),
        (Code::DeadlineExceeded, false)
    );
}

#[tokio::test]
async fn a_call_tells_where_it_comes_from_and_what_time_is_left() {
    let asked = Arc::new(Mutex::new(HeaderMap::new()));
    let seen = asked.clone();
    let raw = Raw::start(move |headers| {
        *seen.lock().unwrap() = headers.clone();
        vec![Step::Only(map(&[("grpc-status", b"13")]))]
    })
    .await;
    let now = Instant::now();
    let mut outer = RequestContext::from_headers("/outer/Call", &HeaderMap::new(), now);
    outer.deadline = now + Duration::from_secs(7);
    outer.enter("node-1", "ward-1", 3);
    let mut client = health(WellFormed::of(&raw.uri), &raw.uri);
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(3_600));
    let call = context::scope(outer.clone(), client.check(request));
    let status = within(call).await.unwrap_err();
    let told = RequestContext::from_headers("/x", &asked.lock().unwrap(), now);
    assert_eq!((told.request_id, told.hops().len()), (outer.request_id, 1));
    assert!(told.deadline <= outer.deadline, "no longer than the request it serves");
    assert_eq!((told.hops()[0].node.as_str(), told.hops()[0].incarnation), ("node-1", 3));
    assert_eq!(well_formed(&status, "outer").as_proto().request_id, outer.request_id.to_string());
}

#[tokio::test]
async fn a_stranger_tells_callers_nothing() {
    let theirs = v1::Error {
        machine: "SECRET".into(),
        ..Error::from_status(&Status::not_found("SECRET")).into_proto()
    };
    let mut headers = HeaderMap::new();
    wardkeep_proto::error::write_headers(&mut headers, Error::from_proto(theirs.clone()));
    headers.insert("x", HeaderValue::from_static("SECRET"));
    let raw = Raw::start(move |_| vec![Step::Only(headers.clone())]).await;
    let mut client = health(WellFormed::of(&raw.uri).stranger(), &raw.uri);
    let status = within(client.check(HealthCheckRequest::default())).await.unwrap_err();
    let error = well_formed(&status, "stranger");
    assert_eq!((status.code(), error.machine()), (Code::NotFound, wardkeep_proto::machine_name()));
    let all = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
    assert!(!all.contains("SECRET") && !all.contains(&theirs.id), "{all}");
}
