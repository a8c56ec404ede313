//! Clients that know nothing of replication work over it unchanged.

use std::time::Duration;

use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    codegen::{Bytes, StdError},
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use wardkeep_client::{Member, Policy, Replicated};

use crate::common::within;

/// A server as anyone writes it: health and reflection.
async fn server(servers: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("a.B", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
    let router = Server::builder().add_service(health).add_service(reflection);
    servers.spawn(async move { router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap() });
    uri
}

async fn channel(servers: &mut JoinSet<()>) -> Replicated {
    let (a, b) = (server(servers).await, server(servers).await);
    Replicated::builder()
        .members([Member::new("a", a), Member::new("b", b)])
        .policy_for("/grpc.health.v1.Health/Check", Policy::All(2))
        .methods(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .policy_for("/grpc.health.v1.Health/Watch", Policy::All(2))
        .build()
        .unwrap()
}

/// Code that only knows what `tonic::transport::Channel` is.
async fn check<T>(channel: T, service: &str) -> Result<ServingStatus, Status>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<StdError> + Send,
{
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(HealthClient::new(channel).check(request).await?.into_inner().status())
}

#[tokio::test]
async fn an_application_that_only_knows_a_channels_bounds() {
    let mut servers = JoinSet::new();
    let channel = channel(&mut servers).await;
    assert_eq!(within(check(channel.clone(), "a.B")).await.unwrap(), ServingStatus::Serving);
    let refused = within(check(channel, "nobody")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn the_health_client_watches_over_it() {
    let mut servers = JoinSet::new();
    let mut client = HealthClient::new(channel(&mut servers).await);
    let request = HealthCheckRequest { service: "a.B".to_owned() };
    let mut watch = within(client.watch(request)).await.unwrap().into_inner();
    let first = within(watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let more = tokio::time::timeout(Duration::from_millis(50), watch.message()).await;
    assert!(more.is_err(), "it goes on: {more:?}");
}

#[tokio::test]
async fn the_reflection_client_streams_both_ways_over_it() {
    let mut servers = JoinSet::new();
    let mut client = ServerReflectionClient::new(channel(&mut servers).await);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let asks = tokio_stream::iter([list.clone(), list]);
    let mut answers = within(client.server_reflection_info(asks)).await.unwrap().into_inner();
    for _ in 0..2 {
        let answer = within(answers.message()).await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("no list: {answer:?}")
        };
        assert!(list.service.iter().any(|service| service.name == "grpc.health.v1.Health"));
    }
    assert!(within(answers.message()).await.unwrap().is_none());
}
