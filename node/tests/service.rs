//! Service wards: calls, errors, panics, deadlines, callers that go away, health and reflection.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use support::*;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};
use tonic_health::{ServingStatus, pb::health_client::HealthClient};
use wardkeep_node::OnPanic;
use wardkeep_proto::v1::{self, directory_client::DirectoryClient};

#[tokio::test]
async fn a_reply_says_which_incarnation_of_which_ward_on_which_node_answered() {
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        node.running("trouble", 1).await;
        let reply = node.client().await.start_ward(make("ok")).await.unwrap();
        let header = |key: &str| reply.metadata().get(key).unwrap().to_str().unwrap().to_owned();
        assert_eq!(header("wardkeep-node"), "n");
        assert_eq!(header("wardkeep-ward"), "trouble");
        assert_eq!(header("wardkeep-incarnation"), "1");
        node.until(|now| find(now, "trouble").work_in_progress == 0).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_unknown_service_is_refused_with_a_well_formed_error() {
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        let refused = DirectoryClient::new(node.channel().await)
            .watch(v1::WatchDirectoryRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        let error = well_formed(&refused);
        assert_eq!((error.kind(), error.is_malformed()), ("NO_SUCH_SERVICE", false));
        assert_eq!(error.as_proto().node, "n");
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn health_follows_the_ward_and_a_draining_node_takes_no_calls() {
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        node.running("trouble", 1).await;
        let mut health = HealthClient::new(node.channel().await);
        let check = |service: &str| tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let name = "wardkeep.v1.Operator";
        let serving = ServingStatus::Serving as i32;
        for service in ["", name] {
            assert_eq!(health.check(check(service)).await.unwrap().get_ref().status, serving, "{service}");
        }
        let unknown = health.check(check("no.Such")).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        well_formed(&unknown);

        node.handle.drain(true).await;
        node.until(|now| now.draining).await;
        for service in ["", name] {
            assert_ne!(health.check(check(service)).await.unwrap().get_ref().status, serving, "{service}");
        }
        let refused = node.client().await.start_ward(make("ok")).await.unwrap_err();
        assert_eq!((refused.code(), well_formed(&refused).kind()), (Code::Unavailable, "NODE_DRAINING"));
        assert!(well_formed(&refused).retry_after().is_some());

        node.handle.drain(false).await;
        node.until(|now| !now.draining).await;
        for service in ["", name] {
            assert_eq!(health.check(check(service)).await.unwrap().get_ref().status, serving, "{service}");
        }
        node.client().await.start_ward(make("ok")).await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn reflection_lists_the_wards_services_in_both_versions() {
    use tonic_reflection::pb::{v1 as r1, v1alpha as ra};
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        let channel = node.channel().await;
        let ask = tokio_stream::once(r1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(r1::server_reflection_request::MessageRequest::ListServices(String::new())),
        });
        let mut client = r1::server_reflection_client::ServerReflectionClient::new(channel.clone());
        let mut answers = client.server_reflection_info(ask).await.unwrap().into_inner();
        let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
        let r1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
            panic!("{answer:?}")
        };
        assert!(list.service.iter().any(|s| s.name == "wardkeep.v1.Operator"), "{list:?}");
        assert!(list.service.iter().any(|s| s.name == "grpc.health.v1.Health"), "{list:?}");

        let ask = tokio_stream::once(ra::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(ra::server_reflection_request::MessageRequest::ListServices(String::new())),
        });
        let mut client = ra::server_reflection_client::ServerReflectionClient::new(channel);
        let mut answers = client.server_reflection_info(ask).await.unwrap().into_inner();
        let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
        let ra::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
            panic!("{answer:?}")
        };
        assert!(list.service.iter().any(|s| s.name == "wardkeep.v1.Operator"), "{list:?}");
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_panic_fails_its_call_with_one_malformed_error_and_a_contained_ward_goes_on() {
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        let failed = client.start_ward(make("panic")).await.unwrap_err();
        assert_eq!(failed.code(), Code::Internal);
        let error = well_formed(&failed);
        assert!(error.is_malformed());
        assert_eq!(error.what(), "panicked: asked to");
        assert!(!failed.message().contains("asked to"), "users see the friendly line");
        let hop = error.as_proto().hops.last().unwrap().clone();
        assert!(hop.sites[0].file.ends_with("tests/support/mod.rs"), "{hop:?}");
        assert_eq!((hop.ward.as_str(), hop.incarnation), ("trouble", 1));
        let reply = client.start_ward(make("ok")).await.unwrap().into_inner();
        assert_eq!(reply.after.unwrap().incarnation, 1);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_panic_under_restart_brings_a_fresh_incarnation_and_calls_in_progress_finish() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).on_panic(OnPanic::Restart)]).await;
        node.running("trouble", 1).await;
        let mut slow_client = node.client().await;
        let slow = tokio::spawn(async move { slow_client.start_ward(make("gate")).await });
        insides.started.reaches(1).await;
        let mut client = node.client().await;
        let failed = client.start_ward(make("panic")).await.unwrap_err();
        let error = well_formed(&failed);
        let ward = node.running("trouble", 2).await;
        assert_eq!(ward.last_error_id, error.id());
        let reply = client.start_ward(make("ok")).await.unwrap().into_inner();
        assert_eq!(reply.after.unwrap().incarnation, 2);
        insides.gate.open();
        let reply = slow.await.unwrap().unwrap();
        assert_eq!(reply.metadata().get("wardkeep-incarnation").unwrap(), "1");
        node.until(|now| now.leaked_threads == 0).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_panic_in_the_middle_of_a_stream_ends_it_with_well_formed_trailers() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let ask = v1::WatchEventsRequest { limit: 1, ..Default::default() };
        let mut events = node.client().await.watch_events(ask).await.unwrap().into_inner();
        let mut seen = 0;
        let failed = loop {
            match events.message().await {
                Ok(Some(_)) => seen += 1,
                Ok(None) => panic!("ended well"),
                Err(status) => break status,
            }
        };
        let error = well_formed(&failed);
        assert!(error.is_malformed() && error.what().contains("mid-stream"), "{error:?}");
        assert!(error.as_proto().hops[0].sites[0].file.ends_with("tests/support/mod.rs"));
        assert!(!error.as_proto().request_id.is_empty(), "it knows its request");
        assert!(seen <= 2);
        insides.dropped.reaches(1).await;

        let ask = v1::WatchEventsRequest { limit: 4, ..Default::default() };
        let mut events = node.client().await.watch_events(ask).await.unwrap().into_inner();
        assert!(events.message().await.unwrap().is_some());
        let bare = events.message().await.unwrap_err();
        assert_eq!((bare.code(), well_formed(&bare).is_malformed()), (Code::DataLoss, true));

        let all: Vec<_> = node
            .client()
            .await
            .watch_events(v1::WatchEventsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .collect()
            .await;
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(Result::is_ok));
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn bare_statuses_are_adopted_and_only_the_unmodelled_ones_are_bugs() {
    within(async {
        let node = node([trouble(&Insides::default())]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        let missing = client.start_ward(make("not found")).await.unwrap_err();
        let error = well_formed(&missing);
        assert_eq!((missing.code(), error.what()), (Code::NotFound, "no such book"));
        assert!(!error.is_malformed());
        assert_eq!((error.as_proto().node.as_str(), error.as_proto().ward.as_str()), ("n", "trouble"));

        let internal = client.start_ward(make("internal")).await.unwrap_err();
        assert!(well_formed(&internal).is_malformed());
        assert!(!internal.message().contains("secret"));

        // A handler's own well-formed error keeps its kind and is told where it arose.
        let modelled = client.start_ward(make("well-formed")).await.unwrap_err();
        let error = well_formed(&modelled);
        assert_eq!((error.kind(), error.as_proto().ward.as_str()), ("CANCELLED", "trouble"));
        assert!(!error.is_malformed());
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_call_that_never_ends_ends_at_its_deadline_and_its_handler_is_dropped() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        // tonic's own timer would race against the node's: this caller has none.
        let mut request = Request::new(make("deadline"));
        request.metadata_mut().insert("grpc-timeout", "100m".parse().unwrap());
        let failed = node.raw_client().await.start_ward(request).await.unwrap_err();
        assert_eq!(failed.code(), Code::DeadlineExceeded);
        let error = well_formed(&failed);
        assert!(!error.is_malformed());
        assert_eq!(error.as_proto().hops[0].method, "/wardkeep.v1.Operator/StartWard");
        insides.dropped.reaches(1).await;
        insides.cancelled.reaches(1).await;
        let inherited = insides.remaining_ms.load(SeqCst);
        assert!((1..=100).contains(&inherited), "{inherited}");
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_handler_and_its_blocking_work_with_it() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        {
            let mut client = client.clone();
            let call = tokio::spawn(async move { client.start_ward(make("preempted")).await });
            insides.started.reaches(2).await;
            call.abort();
        }
        insides.dropped.reaches(1).await;
        insides.cancelled.reaches(1).await;
        insides.preempted.reaches(1).await;

        // Work ends when blocking work really returns, not when nobody waits for it any more.
        {
            let mut client = client.clone();
            let call = tokio::spawn(async move { client.start_ward(make("blocking")).await });
            insides.started.reaches(4).await;
            call.abort();
        }
        insides.dropped.reaches(2).await;
        assert_eq!(insides.returned.get(), 0);
        insides.gate.open();
        insides.returned.reaches(1).await;
        assert_eq!(insides.preempted.get(), 2);
        client.start_ward(make("ok")).await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_panic_while_a_cancelled_handler_is_dropped_harms_nobody() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let mut client = node.client().await;
        let mut other = client.clone();
        let call = tokio::spawn(async move { other.start_ward(make("panic in drop")).await });
        insides.started.reaches(1).await;
        let mut same_connection = client.clone();
        let bystander = tokio::spawn(async move { same_connection.start_ward(make("gate")).await });
        insides.started.reaches(2).await;
        call.abort();
        insides.dropped.reaches(1).await;
        insides.gate.open();
        bystander.await.unwrap().unwrap();
        client.start_ward(make("ok")).await.unwrap();
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn streams_end_at_their_deadline_even_if_the_caller_does_not_read() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides).stall_timeout(Duration::from_millis(200))]).await;
        node.running("trouble", 1).await;
        let ask = |limit| {
            let mut ask = Request::new(v1::WatchEventsRequest { limit, ..Default::default() });
            ask.metadata_mut().insert("grpc-timeout", "900m".parse().unwrap());
            ask
        };
        // More than any window holds, and a caller that reads none of it.
        let unread = node.raw_client().await.watch_events(ask(2)).await.unwrap();
        insides.dropped.reaches(1).await;
        // It was the caller who was slow: that is no stall of the ward.
        assert_eq!(node.running("trouble", 1).await.incarnation, 1);
        drop(unread);

        // An endless stream that is read, and is never pending, ends too.
        let mut read = node.raw_client().await.watch_events(ask(2)).await.unwrap().into_inner();
        let failed = loop {
            match read.message().await {
                Ok(message) => assert!(message.is_some()),
                Err(status) => break status,
            }
        };
        assert_eq!(failed.code(), Code::DeadlineExceeded, "{failed:?}");
        well_formed(&failed);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_leaves_in_the_middle_of_a_stream_ends_it() {
    within(async {
        let insides = Insides::default();
        let node = node([trouble(&insides)]).await;
        node.running("trouble", 1).await;
        let ask = v1::WatchEventsRequest { limit: 3, ..Default::default() };
        let mut events = node.client().await.watch_events(ask).await.unwrap().into_inner();
        assert!(events.message().await.unwrap().is_some());
        assert_eq!(insides.dropped.get(), 0);
        drop(events);
        insides.dropped.reaches(1).await;
        node.stop().await;
    })
    .await;
}
