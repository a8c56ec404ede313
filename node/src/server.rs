//! An HTTP/2 server with a listener and a lifetime that its caller owns, and limits on everything
//! a peer can make it hold.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, rt::Executor, server::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    transport::server::{Connected as _, TcpConnectInfo},
};
use tower::Service;

use crate::{
    greeting,
    sizes::{Curbed, Limited},
};

/// Where connections come from.
pub trait Listener: Send + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next one.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Option<TcpConnectInfo>)>> + Send;
}

impl Listener for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Option<TcpConnectInfo>)> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Small replies must not wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set; the connection has probably gone");
        }
        let info = stream.connect_info();
        Ok((stream, Some(info)))
    }
}

/// What a server allows its peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's backlog.
    pub connections: usize,
    /// Calls at a time on one connection.
    pub streams: u32,
    /// Streams that may be reset before they were accepted. Replicated requests reset losers all
    /// the time: at least twice the calls in flight.
    pub pending_resets: usize,
    /// Bytes of headers per request.
    pub header_bytes: u32,
    /// How long a new connection may take to say that it speaks HTTP/2.
    pub handshake_timeout: Duration,
    /// Bytes of a message, in either direction, whatever the services allow themselves. tonic's own
    /// limit on requests, 4 MiB unless a service raises it, is a smaller one.
    pub message_bytes: usize,
    /// Silence after which a connection is probed. Whoever is in the middle of a request's headers cannot
    /// answer the probe, so this and the next are also how long headers may take.
    pub keepalive_interval: Duration,
    /// How long the answer to the probe may take.
    pub keepalive_timeout: Duration,
    /// What connections get to finish their calls when the server ends.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            streams: 4_096,
            pending_resets: 16_384,
            header_bytes: 32 * 1024,
            handshake_timeout: Duration::from_secs(10),
            message_bytes: 64 << 20,
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Spawns what a connection needs where it can be waited for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Serves until `stop` is cancelled: then no more connections are accepted, those open are told to
/// go away and may finish, for [`Limits::shutdown_grace`] at most. Returns the listener.
pub async fn serve<L, S>(mut listener: L, service: S, limits: Limits, stop: CancellationToken) -> L
where
    L: Listener,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let tasks = TaskTracker::new();
    let end = CancellationToken::new();
    // Whoever drops this future, instead of stopping it, drops the connections with it.
    let _end_with_me = end.clone().drop_guard();
    let permits = Arc::new(Semaphore::new(limits.connections));
    let builder = builder(limits, tasks.clone());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let permit = permits.clone().acquire_owned().await.ok();
                (permit, listener.accept().await)
            } => accepted,
        };
        let (permit, (io, info)) = match accepted {
            (permit, Ok(accepted)) => (permit, accepted),
            (_, Err(error)) if is_about_the_peer(&error) => continue,
            (_, Err(error)) => {
                // Out of file descriptors, for instance: without a pause this loop eats a core.
                tracing::warn!(%error, "cannot accept a connection; trying again in 100 ms");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = info.as_ref().and_then(TcpConnectInfo::remote_addr);
        let (io, greeting) = greeting::watch(io, limits.handshake_timeout);
        let connection = builder.serve_connection(
            TokioIo::new(io),
            Stamp { inner: service.clone(), info, message_bytes: limits.message_bytes },
        );
        let (stop, end) = (stop.clone(), end.clone());
        tasks.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = watch_connection(connection, peer, stop, end) => {}
                () = greeting.missed() => tracing::debug!(?peer, "no HTTP/2 preface in time; connection closed"),
            }
        });
    }
    tasks.close();
    if timeout(limits.shutdown_grace, tasks.wait()).await.is_err() {
        tracing::warn!(grace = ?limits.shutdown_grace, "calls did not end in time; closing their connections");
        end.cancel();
        let _ = timeout(Duration::from_secs(1), tasks.wait()).await;
    }
    listener
}

/// A connection that was gone before it could be accepted says nothing about the next one.
fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::Interrupted)
}

fn builder(limits: Limits, tasks: TaskTracker) -> http2::Builder<Tracked> {
    let mut builder = http2::Builder::new(Tracked(tasks));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(limits.pending_resets)
        .max_header_list_size(limits.header_bytes)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

async fn watch_connection<I, S>(
    connection: http2::Connection<TokioIo<I>, Stamp<S>, Tracked>,
    peer: Option<SocketAddr>,
    stop: CancellationToken,
    end: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut connection = std::pin::pin!(connection);
    let mut told = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(?peer, %error, "connection ended");
                }
                return;
            }
            () = stop.cancelled(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = end.cancelled() => return,
        }
    }
}

/// Puts the peer's address where tonic's `Request::remote_addr` looks for it, and holds messages to their
/// limit.
#[derive(Clone)]
struct Stamp<S> {
    inner: S,
    info: Option<TcpConnectInfo>,
    message_bytes: usize,
}

impl<S> hyper::service::Service<Request<Incoming>> for Stamp<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<Curbed<Body>>;
    type Error = Infallible;
    type Future = Curbing<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let most = self.message_bytes;
        let mut request = request.map(|body| Body::new(Limited::new(body, most)));
        if let Some(info) = &self.info {
            request.extensions_mut().insert(info.clone());
        }
        // The entrance is always ready: what limits calls stands behind it.
        Curbing { inner: self.inner.clone().call(request), most }
    }
}

pin_project_lite::pin_project! {
    /// The answer, with its limit.
    struct Curbing<F> {
        #[pin]
        inner: F,
        most: usize,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for Curbing<F> {
    type Output = Result<Response<Curbed<Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.inner.poll(cx).map_ok(|response| response.map(|body| Curbed::new(body, *this.most)))
    }
}
