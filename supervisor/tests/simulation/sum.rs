//! A service whose answers can be checked, as `protoc` would have made it.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{Request, Response, uri::PathAndQuery};
use tonic::{Status, body::Body, server::NamedService};
use tonic_prost::ProstCodec;
use tower::Service;

pub const NAME: &str = "simulation.Sum";
pub const ADD: &str = "/simulation.Sum/Add";

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Add {
    #[prost(uint64, tag = "1")]
    pub a: u64,
    #[prost(uint64, tag = "2")]
    pub b: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Added {
    #[prost(uint64, tag = "1")]
    pub sum: u64,
}

/// Whether a call gets an answer at all.
pub trait Mood: Clone + Send + Sync + 'static {
    fn answers(&self) -> bool;
}

#[derive(Clone)]
pub struct SumServer<M>(pub M);

impl<M> NamedService for SumServer<M> {
    const NAME: &'static str = NAME;
}

impl<M: Mood> tonic::server::UnaryService<Add> for SumServer<M> {
    type Response = Added;
    type Future = BoxFuture<'static, Result<tonic::Response<Added>, Status>>;

    fn call(&mut self, request: tonic::Request<Add>) -> Self::Future {
        let mood = self.0.clone();
        Box::pin(async move {
            let Add { a, b } = request.into_inner();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            if !mood.answers() {
                std::future::pending::<()>().await;
            }
            Ok(tonic::Response::new(Added { sum: a.wrapping_add(b) }))
        })
    }
}

impl<M: Mood> Service<Request<Body>> for SumServer<M> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Added, Add>::default());
            Ok(grpc.unary(service, request).await)
        })
    }
}

pub async fn add(channel: wardkeep_client::Replicated, a: u64, b: u64) -> Result<u64, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    let codec = ProstCodec::<Add, Added>::default();
    let path = PathAndQuery::from_static(ADD);
    let reply = grpc.unary(tonic::Request::new(Add { a, b }), path, codec).await?;
    Ok(reply.into_inner().sum)
}
