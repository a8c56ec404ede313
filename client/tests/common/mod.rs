//! Members that do what a test tells them, over real sockets.
#![allow(dead_code, unreachable_pub)]

pub mod raw;
pub mod records;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Status,
    body::Body,
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};
use wardkeep_client::{Member, Policy, Replicated, ReplicatedBuilder};
use wardkeep_proto::v1::{
    Fleet, Supervisor, WithdrawReply, WithdrawRequest,
    operator_client::OperatorClient,
    replica_server::{Replica, ReplicaServer},
};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The Operator service, answered by a closure that speaks HTTP.
#[derive(Clone)]
struct Act(Arc<dyn Fn(Request<Body>) -> BoxFuture<Response<Body>> + Send + Sync>);

impl NamedService for Act {
    const NAME: &'static str = "wardkeep.v1.Operator";
}

impl tower::Service<Request<Body>> for Act {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let reply = (self.0)(request);
        Box::pin(async { Ok(reply.await) })
    }
}

/// Any of them.
struct Boxed(Box<dyn Replica>);

#[tonic::async_trait]
impl Replica for Boxed {
    async fn withdraw(
        &self,
        request: tonic::Request<WithdrawRequest>,
    ) -> Result<tonic::Response<WithdrawReply>, Status> {
        self.0.withdraw(request).await
    }
}

pub struct Puppet {
    pub uri: String,
    pub accepted: Arc<AtomicUsize>,
    /// Requests whose handler began.
    pub asked: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Puppet {
    pub async fn start<F, R>(act: F) -> Self
    where
        F: Fn(Request<Body>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve(act, None).await
    }

    /// One that says it is a node, and takes withdrawals.
    pub async fn node<F, R>(act: F, replica: impl Replica) -> Self
    where
        F: Fn(Request<Body>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let signed = move |request| {
            let reply = act(request);
            async move {
                let mut reply = reply.await;
                reply.headers_mut().insert("wardkeep-node", HeaderValue::from_static("n"));
                reply
            }
        };
        Self::serve(signed, Some(ReplicaServer::from_arc(Arc::new(Boxed(Box::new(replica)))))).await
    }

    async fn serve<F, R>(act: F, replica: Option<ReplicaServer<Boxed>>) -> Self
    where
        F: Fn(Request<Body>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (accepted, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = accepted.clone();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).map(move |connection| {
            count.fetch_add(1, SeqCst);
            connection
        });
        let count = asked.clone();
        let act = Act(Arc::new(move |request| {
            count.fetch_add(1, SeqCst);
            Box::pin(act(request))
        }));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut server = Server::builder().http2_max_pending_accept_reset_streams(Some(8_192));
            server
                .add_service(act)
                .add_optional_service(replica)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { uri, accepted, asked, _server: server }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    pub fn member(&self, name: &str) -> Member {
        Member::new(name, &self.uri)
    }

    /// Always answers GetFleet as this supervisor.
    pub async fn good(name: &'static str) -> Self {
        Self::start(move |_| async move { whole(&fleet(name)) }).await
    }

    /// Never answers.
    pub async fn mute() -> Self {
        Self::start(|_| std::future::pending()).await
    }

    pub async fn refusing(status: Status) -> Self {
        Self::start(move |_| std::future::ready(status.clone().into_http())).await
    }
}

/// A member at whose address nobody listens.
pub async fn nobody(name: &str) -> Member {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Member::new(name, format!("http://{}", listener.local_addr().unwrap()))
}

pub fn fleet(machine: &str) -> Fleet {
    let supervisor = Supervisor { machine: machine.to_owned(), ..Default::default() };
    Fleet { supervisor: Some(supervisor), ..Default::default() }
}

pub fn framed(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(encoded.len()).unwrap());
    bytes.extend_from_slice(&encoded);
    bytes.freeze()
}

pub fn trailers(pairs: &[(&'static str, &'static str)]) -> Frame<Bytes> {
    let mut map = HeaderMap::new();
    pairs.iter().for_each(|(k, v)| _ = map.append(*k, HeaderValue::from_static(v)));
    Frame::trailers(map)
}

pub fn ok() -> Frame<Bytes> {
    trailers(&[("grpc-status", "0")])
}

/// A reply of these frames; more come from the receiver, if there is one, until it closes.
pub fn frames(first: Vec<Frame<Bytes>>, then: Option<mpsc::Receiver<Frame<Bytes>>>) -> Response<Body> {
    let first = tokio_stream::iter(first);
    let body = match then {
        None => Body::new(StreamBody::new(first.map(Ok::<_, Status>))),
        Some(rest) => Body::new(StreamBody::new(first.chain(ReceiverStream::new(rest)).map(Ok::<_, Status>))),
    };
    let mut reply = Response::new(body);
    reply.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    reply
}

pub fn whole(message: &impl Message) -> Response<Body> {
    frames(vec![Frame::data(framed(message)), ok()], None)
}

/// With the methods of wardkeep.v1 known.
pub fn builder(members: impl IntoIterator<Item = Member>) -> ReplicatedBuilder {
    Replicated::builder().members(members).methods(wardkeep_proto::FILE_DESCRIPTOR_SET)
}

pub fn all(members: Vec<Member>) -> Replicated {
    let n = u32::try_from(members.len()).unwrap();
    builder(members).policy(Policy::All(n)).build().unwrap()
}

pub fn operator(channel: &Replicated) -> OperatorClient<Replicated> {
    OperatorClient::new(channel.clone())
}

/// Adds a permit when dropped.
pub struct Dropped(pub Arc<Semaphore>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

/// A hang fails the test.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("the test hangs")
}
