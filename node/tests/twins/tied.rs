//! Replies to tied requests.

use http_body_util::BodyExt as _;
use prost::Message as _;
use tonic::Code;
use wardkeep_proto::v1;

use crate::{
    Caller, WATCH, failure, is_full,
    support::{Insides, node, trouble, within},
    text,
};

fn tied() -> [(&'static str, String); 1] {
    [("wardkeep-tied", "1".to_owned())]
}

/// The lines of a frame with the rest of the head.
fn lines(frame: &[u8]) -> Vec<String> {
    assert_eq!(frame[0], 0x80);
    let length = u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize;
    assert_eq!(frame.len(), 5 + length, "it comes by itself");
    let text = std::str::from_utf8(&frame[5..]).unwrap();
    text.strip_suffix("\r\n").unwrap().split("\r\n").map(str::to_owned).collect()
}

#[tokio::test]
async fn the_head_comes_when_the_work_begins_and_the_rest_as_ever() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let mut reply = caller.start("gate", &tied()).await;
        assert_eq!((reply.header("wardkeep-began"), reply.header("grpc-status")), (Some("1"), None));
        assert_eq!(reply.header("content-type"), Some("application/grpc"));
        assert_eq!(
            (reply.header("wardkeep-ward"), reply.header("wardkeep-incarnation")),
            (Some("trouble"), Some("1"))
        );
        insides.started.reaches(1).await;
        assert_eq!(insides.returned.get(), 0);
        insides.gate.open();
        let first = reply.data().await.unwrap();
        assert_eq!(lines(&first), ["content-type: application/grpc"]);
        let message = reply.data().await.unwrap();
        v1::WardOutcome::decode(&message[5..]).unwrap();
        assert_eq!(failure(&reply.end().await).0, Code::Ok);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn no_head_comes_while_the_request_waits() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).concurrency(1).queue(1)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let first = caller.start("gate", &tied()).await;
        let waits = tokio::spawn(caller.start("ok", &tied()));
        is_full(&caller).await;
        assert!(!waits.is_finished());
        insides.gate.open();
        assert_eq!(failure(&first.end().await).0, Code::Ok);
        let second = waits.await.unwrap();
        assert_eq!(second.header("wardkeep-began"), Some("1"));
        assert_eq!(failure(&second.end().await).0, Code::Ok);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_handler_that_fails_says_so_in_the_trailers_and_one_that_was_not_asked_answers_as_ever() {
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        for (what, code, kind) in [
            ("not found", Code::NotFound, "NOT_FOUND"),
            ("panic", Code::Internal, "PANIC"),
            ("well-formed", Code::Cancelled, "CANCELLED"),
        ] {
            let mut reply = caller.start(what, &tied()).await;
            assert_eq!(reply.header("wardkeep-began"), Some("1"), "{what}");
            let frame = reply.body.frame().await.unwrap().unwrap();
            let trailers = frame.into_trailers().expect("nothing but trailers");
            assert_eq!(failure(&trailers), (code, kind.to_owned()), "{what}");

            let plain = caller.start(what, &[]).await;
            assert_eq!(plain.header("wardkeep-began"), None);
            assert_eq!(failure(&plain.end().await), (code, kind.to_owned()));
        }
        let mut plain = caller.start("ok", &[("wardkeep-tied", "0".to_owned())]).await;
        assert_eq!(plain.header("wardkeep-began"), None);
        assert_eq!(plain.data().await.unwrap()[0], 0);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_may_be_tied_too() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let mut reply = caller.call(WATCH, &v1::WatchEventsRequest::default(), &tied()).await;
        assert_eq!(reply.header("wardkeep-began"), Some("1"));
        lines(&reply.data().await.unwrap());
        let mut bytes = Vec::new();
        let trailers = loop {
            match reply.body.frame().await.unwrap().unwrap().into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => break frame.into_trailers().unwrap(),
            }
        };
        let mut messages = 0;
        while !bytes.is_empty() {
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            assert_eq!(v1::Event::decode(&bytes[5..5 + length]).unwrap().sequence, messages);
            bytes.drain(..5 + length);
            messages += 1;
        }
        assert_eq!((messages, text(&trailers, "grpc-status")), (3, "0"));

        // One message, then a panic.
        let ask = v1::WatchEventsRequest { limit: 1, ..Default::default() };
        let reply = caller.call(WATCH, &ask, &tied()).await;
        assert_eq!(failure(&reply.end().await), (Code::Internal, "PANIC".to_owned()));
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_leaves_a_tied_call_takes_its_handler_with_it() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let caller = Caller::to(&node).await;
        let reply = caller.start("forever", &tied()).await;
        insides.started.reaches(1).await;
        drop(reply);
        insides.dropped.reaches(1).await;
        insides.cancelled.reaches(1).await;
        let deadline = [("wardkeep-tied", "1".to_owned()), ("grpc-timeout", "50m".to_owned())];
        let reply = caller.start("forever", &deadline).await;
        assert_eq!(failure(&reply.end().await).0, Code::DeadlineExceeded);
        insides.dropped.reaches(2).await;
        node.stop().await;
    })
    .await;
}
