//! The HTTP port. It has little to say and many may ask: connections, headers and time are limited, and a request's
//! body is not read.

use std::{convert::Infallible, net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wardkeep_node::server::{Acceptor, Limits};

use super::{
    Measured,
    families::families,
    process,
    text::{Format, text},
};
use crate::daemon::fleet::Msg;

/// Connections at a time; more wait in the kernel's backlog.
const CONNECTIONS: usize = 64;
/// A connection's whole life, however it is used: nobody keeps one by reading slowly.
const LIFE: Duration = Duration::from_secs(120);
/// For the last answer of a connection, when its time is up or the supervisor ends.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// For the fleet to answer. Prometheus gives up after ten seconds, unless told otherwise.
const FLEET_PATIENCE: Duration = Duration::from_secs(5);

/// Answers until `stop` is cancelled, and what was asked by then.
pub(in crate::daemon) async fn serve(
    mut listener: TcpListener,
    fleet: mpsc::Sender<Msg>,
    limits: Limits,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let acceptor = Acceptor::new(CONNECTIONS.min(limits.connections), stop.clone());
    while let Some((stream, info, permit)) = acceptor.next(&mut listener).await {
        let (fleet, stop) = (fleet.clone(), stop.clone());
        tasks.spawn(async move {
            let _permit = permit;
            connection(stream, info.and_then(|info| info.remote_addr()), fleet, limits, stop).await;
        });
    }
    tasks.close();
    let _ = timeout(2 * LAST_ANSWER, tasks.wait()).await;
}

async fn connection(
    stream: TcpStream,
    peer: Option<SocketAddr>,
    fleet: mpsc::Sender<Msg>,
    limits: Limits,
    stop: CancellationToken,
) {
    let answer = service_fn(move |request| {
        let fleet = fleet.clone();
        async move { Ok::<_, Infallible>(answer(&request, &fleet).await) }
    });
    // hyper needs a little room in any case.
    let header_bytes = usize::try_from(limits.header_bytes).unwrap_or(usize::MAX).max(8 * 1_024);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake_timeout)
        .max_buf_size(header_bytes)
        .serve_connection(TokioIo::new(stream), answer);
    let mut served = pin!(served);
    let over = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(LIFE) => {}
        }
    };
    tokio::select! {
        ended = served.as_mut() => return closed(peer, ended),
        () = over => {}
    }
    served.as_mut().graceful_shutdown();
    if let Ok(ended) = timeout(LAST_ANSWER, served).await {
        closed(peer, ended);
    }
}

fn closed(peer: Option<SocketAddr>, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(?peer, %error, "connection for metrics ended");
    }
}

async fn answer(request: &Request<Incoming>, fleet: &mpsc::Sender<Msg>) -> Response<Full<Bytes>> {
    let method = request.method();
    if method != Method::GET && method != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => {}
        "/" => return plain(StatusCode::OK, "wardkeep supervisor: see /metrics\n"),
        _ => return plain(StatusCode::NOT_FOUND, "there is only /metrics\n"),
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let format = Format::wanted(accept);
    let Some(measured) = measure(fleet).await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the supervisor does not answer\n");
    };
    match text(families(&measured, process::own().as_ref()), format) {
        Ok(text) => reply(StatusCode::OK, format.content_type(), text),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written down");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written down\n")
        }
    }
}

async fn measure(fleet: &mpsc::Sender<Msg>) -> Option<Measured> {
    let asked = async {
        let (answer, answered) = oneshot::channel();
        fleet.send(Msg::Measure { answer }).await.ok()?;
        answered.await.ok()
    };
    timeout(FLEET_PATIENCE, asked).await.ok().flatten().map(|measured| *measured)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", text)
}

fn reply(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
