//! A service without a schema (bytes in, bytes out), whose calls take as long as they are told, and its client.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, uri::PathAndQuery};
use tonic::{
    Status,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes, StdError},
    server::{NamedService, UnaryService},
};
use tonic_prost::ProstCodec;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Act = dyn Fn(Vec<u8>) -> BoxFuture<Result<Vec<u8>, Status>> + Send + Sync;

/// The service.
#[derive(Clone)]
pub struct Ask(Arc<Act>);

impl Ask {
    pub fn new<F, R>(act: F) -> Self
    where
        F: Fn(Vec<u8>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<u8>, Status>> + Send + 'static,
    {
        Self(Arc::new(move |question| Box::pin(act(question))))
    }
}

impl NamedService for Ask {
    const NAME: &'static str = "wardkeep.bench.Ask";
}

impl UnaryService<Vec<u8>> for Ask {
    type Response = Vec<u8>;
    type Future = BoxFuture<Result<tonic::Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: tonic::Request<Vec<u8>>) -> Self::Future {
        let answer = (self.0)(request.into_inner());
        Box::pin(async { answer.await.map(tonic::Response::new) })
    }
}

impl tower::Service<Request<Body>> for Ask {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<Vec<u8>, Vec<u8>>::default();
            Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
        })
    }
}

/// Asks over a channel.
pub async fn ask<T>(channel: T, question: Vec<u8>) -> Result<tonic::Response<Vec<u8>>, Status>
where
    T: GrpcService<Body>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError>,
{
    let mut client = tonic::client::Grpc::new(channel);
    let unready = |error: T::Error| Status::from_error(error.into());
    client.ready().await.map_err(unready)?;
    let path = PathAndQuery::from_static("/wardkeep.bench.Ask/Say");
    let codec = ProstCodec::<Vec<u8>, Vec<u8>>::default();
    client.unary(tonic::Request::new(question), path, codec).await
}
