//! How long it takes from a caller's decision to the end of a handler, by a reset and by a withdrawal, beside one
//! round trip: `cargo run --release -p wardkeep-node --example cancel_latency -- [CALLS]`. And from a reset to the end of the
//! last process of a program's group.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it prints what it measured")]

use std::{
    convert::Infallible,
    error::Error as StdError,
    future::pending,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, body::Body, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;
use tower::Service;
use uuid::Uuid;
use wardkeep_node::{Node, Program, Ward, WardContext};
use wardkeep_proto::v1::{AttemptRef, Fate, WithdrawReply, WithdrawRequest, replica_client::ReplicaClient};

type Failure = Box<dyn StdError + Send + Sync>;

/// Tells when it was dropped.
struct OnDrop(mpsc::UnboundedSender<Instant>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(Instant::now());
    }
}

/// `/probe.Probe/Echo` answers, `Hang` never does, `Run` runs a shell with children.
#[derive(Clone)]
struct Probe {
    begun: mpsc::UnboundedSender<()>,
    ended: mpsc::UnboundedSender<Instant>,
    script: String,
}

impl Service<Request<Body>> for Probe {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        let what = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            let codec = ProstCodec::<WithdrawReply, WithdrawRequest>::default();
            let answer = tower::service_fn(move |request: tonic::Request<WithdrawRequest>| {
                let (this, what) = (this.clone(), what.clone());
                async move {
                    if what == "Hang" {
                        let _dropped = OnDrop(this.ended.clone());
                        let _ = this.begun.send(());
                        pending::<()>().await;
                    }
                    if what == "Run" {
                        let context =
                            WardContext::of(&request).ok_or_else(|| Status::internal("no context"))?;
                        context.run(&Program::new("/bin/sh").arg("-c").arg(&this.script)).await?;
                    }
                    Ok::<_, Status>(tonic::Response::new(WithdrawReply::default()))
                }
            });
            Ok(tonic::server::Grpc::new(codec).unary(answer, request).await)
        })
    }
}

impl tonic::server::NamedService for Probe {
    const NAME: &'static str = "probe.Probe";
}

async fn call(channel: Channel, method: &'static str, id: Uuid) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = tonic::Request::new(WithdrawRequest::default());
    let id = id.to_string().parse().map_err(|_| Status::internal("an ID is text"))?;
    request.metadata_mut().insert("wardkeep-request-id", id);
    let codec = ProstCodec::<WithdrawRequest, WithdrawReply>::default();
    grpc.unary(request, http::uri::PathAndQuery::from_static(method), codec).await.map(drop)
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!("{what:<42} p50 {:>9.1?}  p99 {:>9.1?}  ({} times)", at(0.5), at(0.99), took.len());
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let calls: usize = std::env::args().nth(1).map_or(Ok(5_000), |n| n.parse())?;
    let dir = tempfile::tempdir()?;
    let held = dir.path().join("held");
    nix::unistd::mkfifo(&held, nix::sys::stat::Mode::S_IRWXU)?;
    let script =
        format!("exec 3>{}; trap '' TERM; sleep 1000 & sleep 1000 & printf x >&3; wait", held.display());
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let (ended, mut has_ended) = mpsc::unbounded_channel();
    let probe = Probe { begun, ended, script };
    let node = Node::builder("probe").ward(Ward::service("probe", move |_| probe.clone()));
    let node = node.bind("127.0.0.1:0").await?;
    let uri = format!("http://{}", node.local_addr());
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(node.run_until(async move { drop(stopped.await) }));
    let channel = wardkeep_client::endpoint(&uri)?.connect().await?;
    while call(channel.clone(), "/probe.Probe/Echo", Uuid::now_v7()).await.is_err() {}

    let mut trips = Vec::new();
    for _ in 0..calls {
        let asked = Instant::now();
        call(channel.clone(), "/probe.Probe/Echo", Uuid::now_v7()).await?;
        trips.push(asked.elapsed());
    }
    tell("one round trip", trips);

    let mut took = Vec::new();
    for _ in 0..calls {
        let hangs = tokio::spawn(call(channel.clone(), "/probe.Probe/Hang", Uuid::now_v7()));
        has_begun.recv().await;
        let decided = Instant::now();
        hangs.abort();
        let dropped = has_ended.recv().await.ok_or("no handler was dropped")?;
        took.push(dropped.saturating_duration_since(decided));
    }
    tell("reset -> handler dropped", took);

    let (mut took, mut answered) = (Vec::new(), Vec::new());
    let mut replica = ReplicaClient::new(channel.clone());
    for _ in 0..calls {
        let id = Uuid::now_v7();
        let hangs = tokio::spawn(call(channel.clone(), "/probe.Probe/Hang", id));
        has_begun.recv().await;
        let decided = Instant::now();
        let attempts = vec![AttemptRef { call_id: id.as_bytes().to_vec(), attempt: 1 }];
        let reply = replica.withdraw(WithdrawRequest { attempts }).await?.into_inner();
        answered.push(decided.elapsed());
        if reply.attempts.first().map(|end| end.fate()) != Some(Fate::Running) {
            return Err("it was not running".into());
        }
        let dropped = has_ended.recv().await.ok_or("no handler was dropped")?;
        took.push(dropped.saturating_duration_since(decided));
        let _ = hangs.await?;
    }
    tell("withdrawal -> handler dropped", took);
    tell("withdrawal -> its answer", answered);

    let mut took = Vec::new();
    for _ in 0..(calls / 50).clamp(1, 200) {
        use tokio::io::AsyncReadExt as _;
        let mut group = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&held)?;
        let runs = tokio::spawn(call(channel.clone(), "/probe.Probe/Run", Uuid::now_v7()));
        group.read_exact(&mut [0]).await?;
        let decided = Instant::now();
        runs.abort();
        group.read_to_end(&mut Vec::new()).await?;
        took.push(decided.elapsed());
    }
    tell("reset -> a shell and two children gone", took);
    drop(stop);
    Ok(run.await??)
}
