//! Wards that hang in their work: fenced, replaced, and their threads counted until they return.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use support::*;
use tonic::Code;
use wardkeep_proto::v1::{self, WardState};

const STALL: Duration = Duration::from_millis(300);

async fn hangs_and_is_replaced(how: &'static str) {
    let insides = Insides::default();
    let node = node([trouble(&insides).stall_timeout(STALL).grace(Duration::from_millis(50))]).await;
    node.running("trouble", 1).await;
    let mut client = node.client().await;
    let hanging = tokio::spawn(async move { client.start_ward(make(how)).await });
    insides.started.reaches(1).await;
    node.running("trouble", 2).await;
    node.until(|now| now.leaked_threads == 1).await;
    let reply = node.client().await.start_ward(make("ok")).await.unwrap().into_inner();
    assert_eq!(reply.after.unwrap().incarnation, 2);
    // What the old one still does is not held against the new one.
    let mut snapshots = node.handle.snapshots();
    let restarted_again = snapshots.wait_for(|now| find(now, "trouble").incarnation > 2);
    assert!(tokio::time::timeout(3 * STALL, restarted_again).await.is_err());
    insides.gate.open();
    node.until(|now| now.leaked_threads == 0).await;
    insides.returned.reaches(1).await;
    // Its late reply is fenced off.
    let late = hanging.await.unwrap().unwrap_err();
    assert_eq!((late.code(), well_formed(&late).kind()), (Code::Unavailable, "WARD_STOPPED"));
    // Where there was one: blocking work does not reply by itself.
    let replies = u64::from(how == "park");
    node.until(|now| find(now, "trouble").fenced_replies == replies).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_work_that_hangs_gets_its_ward_replaced_and_counts_as_leaked_until_it_returns() {
    within(hangs_and_is_replaced("blocking")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_blocks_its_thread_gets_its_ward_replaced() {
    within(hangs_and_is_replaced("park")).await;
}

#[tokio::test]
async fn a_runtime_that_stands_still_for_a_moment_is_no_stall_of_its_wards() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).stall_timeout(STALL)]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        let call = tokio::spawn(async move { client.start_ward(make("gate")).await });
        insides.started.reaches(1).await;
        // All but the keeper is on this thread.
        std::thread::sleep(4 * STALL);
        insides.gate.open();
        let reply = call.await.unwrap().unwrap();
        assert_eq!(reply.metadata().get("wardkeep-incarnation").unwrap(), "1");
        node.running("trouble", 1).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_is_slow_to_send_its_request_is_no_stall() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).stall_timeout(STALL).grace(Duration::from_millis(50))]).await;
        node.running("trouble", 1).await;
        // A request whose only message never comes.
        let (_keep_open, messages) = tokio::sync::mpsc::channel::<v1::WardRequest>(1);
        let body = tokio_stream::wrappers::ReceiverStream::new(messages);
        let mut grpc = tonic::client::Grpc::new(node.channel().await);
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/wardkeep.v1.Operator/StartWard");
        let codec = tonic_prost::ProstCodec::<_, v1::WardOutcome>::default();
        let mut never_sent = std::pin::pin!(grpc.client_streaming(tonic::Request::new(body), path, codec));
        let waited = tokio::time::timeout(4 * STALL, &mut never_sent).await;
        assert!(waited.is_err(), "nothing can be answered yet");
        assert_eq!(node.running("trouble", 1).await.incarnation, 1);
        let now = node.until(|_| true).await;
        assert_eq!(find(&now, "trouble").state(), WardState::Running);
        node.stop().await;
    })
    .await;
}
