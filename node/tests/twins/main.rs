//! What a node does for requests that are sent more than once: queues, tied replies, withdrawals, dedupe.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods, unreachable_pub)]

mod dedupe;
mod gate;
mod program;
mod race;
#[path = "../support/mod.rs"]
mod support;
mod tied;
mod withdraw;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use support::*;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tower::Service as _;
use uuid::Uuid;
use wardkeep_proto::v1;

pub const START: &str = "/wardkeep.v1.Operator/StartWard";
pub const WATCH: &str = "/wardkeep.v1.Operator/WatchEvents";

/// A reply as its frames came.
pub struct Raw {
    pub head: http::response::Parts,
    pub body: hyper::body::Incoming,
}

/// Who speaks HTTP/2 and nothing more.
#[derive(Clone)]
pub struct Caller(RawChannel);

impl Caller {
    pub async fn to(node: &Running) -> Self {
        Self(node.raw_channel().await)
    }

    /// All calls on its connection together may be sent 64 KiB before they read.
    pub async fn narrow(node: &Running) -> Self {
        Self(node.raw_channel_with(65_535).await)
    }

    /// Sends a request now; the future is the reply's head. What is sent later arrives later.
    pub fn call<M: prost::Message>(
        &self,
        path: &str,
        message: &M,
        headers: &[(&'static str, String)],
    ) -> impl Future<Output = Raw> + Send + use<M> {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.encoded_len()).unwrap());
        message.encode(&mut body).unwrap();
        let mut request = http::Request::post(format!("http://n{path}"));
        for (key, value) in [("content-type", "application/grpc".to_owned()), ("te", "trailers".to_owned())]
            .iter()
            .chain(headers)
        {
            request = request.header(*key, value);
        }
        let request = request.body(Body::new(Full::new(body.freeze()))).unwrap();
        let sent = self.0.clone().call(request);
        async move {
            let (head, body) = sent.await.unwrap().into_parts();
            Raw { head, body }
        }
    }

    pub fn start(
        &self,
        what: &str,
        headers: &[(&'static str, String)],
    ) -> impl Future<Output = Raw> + Send + use<> {
        self.call(START, &make(what), headers)
    }

    /// Sends a request now, and waits beside the test for how it ends.
    pub fn end_of(&self, what: &str, headers: &[(&'static str, String)]) -> JoinHandle<HeaderMap> {
        let sent = self.start(what, headers);
        tokio::spawn(async move { sent.await.end().await })
    }

    pub async fn withdraw(&self, names: &[(Uuid, u32)]) -> Vec<v1::AttemptEnd> {
        let attempts = names
            .iter()
            .map(|(id, attempt)| v1::AttemptRef { call_id: id.as_bytes().to_vec(), attempt: *attempt });
        let request = v1::WithdrawRequest { attempts: attempts.collect() };
        let mut reply = self.call("/wardkeep.v1.Replica/Withdraw", &request, &[]).await;
        let mut data = BytesMut::new();
        while let Some(chunk) = reply.data().await {
            data.extend_from_slice(&chunk);
        }
        v1::WithdrawReply::decode(&data[5..]).unwrap().attempts
    }
}

impl Raw {
    pub fn header(&self, key: &str) -> Option<&str> {
        self.head.headers.get(key).map(|value| value.to_str().unwrap())
    }

    /// The next frame of data; `None` at the end of them.
    pub async fn data(&mut self) -> Option<Bytes> {
        self.body.frame().await?.unwrap().into_data().ok()
    }

    /// What the reply ends with: of one that has no body, its head.
    pub async fn end(mut self) -> HeaderMap {
        if self.head.headers.contains_key("grpc-status") {
            return self.head.headers;
        }
        while let Some(frame) = self.body.frame().await {
            if let Ok(trailers) = frame.unwrap().into_trailers() {
                return trailers;
            }
        }
        panic!("it ended without trailers")
    }
}

/// Code and kind of the failure that these trailers tell of.
pub fn failure(end: &HeaderMap) -> (tonic::Code, String) {
    let status = tonic::Status::from_header_map(end).expect("a status");
    if status.code() == tonic::Code::Ok {
        return (status.code(), String::new());
    }
    (status.code(), well_formed(&status).kind().to_owned())
}

/// The headers by which an attempt can be named.
pub fn named(id: Uuid, attempt: u32) -> [(&'static str, String); 2] {
    [("wardkeep-request-id", id.to_string()), ("wardkeep-attempt", attempt.to_string())]
}

pub fn text<'a>(headers: &'a HeaderMap, key: &str) -> &'a str {
    headers.get(key).unwrap_or_else(|| panic!("no {key} in {headers:?}")).to_str().unwrap()
}

/// Waits until as many calls wait at the ward's gate as may: further ones are refused at once. Those that were
/// sent before by this caller are there by then.
pub async fn is_full(caller: &Caller) {
    while probe(caller).await != tonic::Code::ResourceExhausted {}
}

/// Waits until there is room at the ward's gate.
pub async fn has_room(caller: &Caller) {
    while probe(caller).await == tonic::Code::ResourceExhausted {}
}

/// A call that waits for a moment at most.
async fn probe(caller: &Caller) -> tonic::Code {
    failure(&caller.start("probe", &[("grpc-timeout", "20m".to_owned())]).await.end().await).0
}
