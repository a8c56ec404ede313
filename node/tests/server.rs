//! What a peer can do to the server, and what it cannot.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use support::*;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use wardkeep_node::{Node, server::Limits};
use wardkeep_proto::v1::{self, operator_client::OperatorClient};

#[tokio::test]
async fn thousands_of_resets_do_not_end_the_connection() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        for _ in 0..40 {
            let calls: Vec<_> = (0..50)
                .map(|_| {
                    let mut client = client.clone();
                    async move { client.start_ward(make("forever")).await }
                })
                .collect();
            // Polled once or twice, then dropped: each is a reset.
            let all = futures_util::future::join_all(calls);
            let _ = tokio::time::timeout(Duration::from_millis(2), all).await;
        }
        client.start_ward(make("ok")).await.unwrap();
        while insides.dropped.get() < insides.started.get() {
            tokio::task::yield_now().await;
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    within(async {
        let limits = Limits { handshake_timeout: Duration::from_millis(200), ..Limits::default() };
        let node = start(Node::builder("n").ward(trouble(&Insides::default())).limits(limits)).await;
        let mut silent = TcpStream::connect(node.handle.local_addr()).await.unwrap();
        let mut talks = node.client().await;
        // Up to its end: the server closes it.
        let _ = silent.read_to_end(&mut Vec::new()).await;
        // One that greeted stays, however idle.
        node.running("trouble", 1).await;
        talks.start_ward(make("ok")).await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_message_longer_than_the_limit_passes_in_neither_direction() {
    within(async {
        let insides = Insides::default();
        let limits = Limits { message_bytes: 1_000, ..Limits::default() };
        let node = start(Node::builder("n").ward(trouble(&insides)).limits(limits)).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        for words in [make("big"), v1::WardRequest { reason: "x".repeat(2_000), ..make("ok") }] {
            let error = well_formed(&client.start_ward(words).await.unwrap_err());
            assert_eq!(
                (error.kind(), error.code()),
                ("MESSAGE_TOO_LARGE", tonic::Code::OutOfRange),
                "{error}"
            );
        }
        // The connection is as good as before.
        client.start_ward(make("ok")).await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_hanging_call_does_not_hold_up_the_end_for_longer_than_its_grace() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).grace(Duration::from_millis(100))]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        let hanging = tokio::spawn(async move { client.start_ward(make("forever")).await });
        insides.started.reaches(1).await;
        // An open health stream is nothing to wait for either.
        let mut health = tonic_health::pb::health_client::HealthClient::new(node.channel().await);
        let _watch = health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
        let begun = tokio::time::Instant::now();
        node.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let ended = hanging.await.unwrap().unwrap_err();
        assert_eq!(well_formed(&ended).kind(), "WARD_STOPPED");
        insides.dropped.reaches(1).await;
    })
    .await;
}

#[tokio::test]
async fn a_call_in_progress_may_finish_within_the_grace() {
    within(async {
        let insides = Insides::default();
        let mut node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        let call = tokio::spawn(async move { client.start_ward(make("gate")).await });
        insides.started.reaches(1).await;
        node.tell_to_stop();
        node.until(|now| find(now, "trouble").state() == v1::WardState::Stopping).await;
        insides.gate.open();
        call.await.unwrap().unwrap();
        node.ended().await;
    })
    .await;
}

#[tokio::test]
async fn clients_of_a_node_that_leaves_are_sent_away_while_their_calls_go_on() {
    within(async {
        let insides = Insides::default();
        let mut node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let connections = Counter::default();
        // Nothing but tonic, as it comes.
        let (counter, address) = (connections.clone(), node.handle.local_addr());
        let dial = tower::service_fn(move |_| {
            counter.add();
            async move { TcpStream::connect(address).await.map(hyper_util::rt::TokioIo::new) }
        });
        let uri = tonic::transport::Endpoint::try_from(node.uri()).unwrap();
        let client = OperatorClient::new(uri.connect_with_connector(dial).await.unwrap());
        let mut slow = client.clone();
        let slow = tokio::spawn(async move { slow.start_ward(make("gate")).await });
        insides.started.reaches(1).await;

        node.tell_to_stop();
        node.until(|now| find(now, "trouble").state() == v1::WardState::Stopping).await;
        // Calls may be sent elsewhere, and soon the connection on which the slow one is takes none at all.
        while connections.get() == 1 {
            let refused = client.clone().start_ward(make("ok")).await.unwrap_err();
            // So tonic says that a call was about to leave when its connection closed.
            let unsent = refused.message() == "operation was canceled";
            assert!(unsent || refused.code() == tonic::Code::Unavailable, "{refused:?}");
        }
        // Those who come now are told what they need to know.
        let refused = node.client().await.start_ward(make("ok")).await.unwrap_err();
        assert_eq!(well_formed(&refused).kind(), "NODE_DRAINING");
        assert!(refused.metadata().contains_key("wardkeep-refused"));
        let mut health = tonic_health::pb::health_client::HealthClient::new(node.channel().await);
        let health = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
        assert_eq!(
            health.get_ref().status(),
            tonic_health::pb::health_check_response::ServingStatus::NotServing
        );

        insides.gate.open();
        slow.await.unwrap().unwrap();
        node.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_in_progress_may_end_well_within_the_grace_and_one_that_goes_on_is_told_why_it_ends() {
    within(async {
        let insides = Insides::default();
        let mut node = node([trouble(&insides).grace(Duration::from_secs(1))]).await;
        node.running("trouble", 1).await;
        let ask = |limit| v1::WatchEventsRequest { limit, ..Default::default() };
        let mut streams = Vec::new();
        // The second one is silent for ever.
        for limit in [5, 3] {
            let mut stream = node.client().await.watch_events(ask(limit)).await.unwrap().into_inner();
            assert_eq!(stream.message().await.unwrap().unwrap().sequence, 0);
            streams.push(stream);
        }
        node.tell_to_stop();
        node.until(|now| find(now, "trouble").state() == v1::WardState::Stopping).await;
        let [mut ends, mut goes_on] = <[_; 2]>::try_from(streams).unwrap();
        insides.gate.open();
        assert_eq!(ends.message().await.unwrap().unwrap().sequence, 1);
        assert_eq!(ends.message().await.unwrap(), None);
        let cut = goes_on.message().await.unwrap_err();
        assert_eq!((cut.code(), well_formed(&cut).kind()), (tonic::Code::Unavailable, "WARD_STOPPED"));
        node.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_port_in_use_and_an_address_for_strangers_are_clear_errors() {
    within(async {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = Node::builder("n").bind(&address).await.err().unwrap();
        assert!(error.to_string().contains(&address), "{error}");
        let error = Node::builder("n").bind("0.0.0.0:0").await.err().unwrap();
        assert!(error.to_string().contains("--insecure"), "{error}");
        let insides = Insides::default();
        let twice =
            Node::builder("n").ward(trouble(&insides)).ward(trouble(&insides)).bind("127.0.0.1:0").await;
        assert_eq!(twice.err().unwrap().kind(), "MISCONFIGURED");
    })
    .await;
}
