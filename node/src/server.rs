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
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    transport::server::{Connected as _, TcpConnectInfo},
};
use tower::Service;

use crate::{
    abandoned::{Ahead, Patience},
    greeting,
    sizes::{Curbed, Limited},
};

/// For the calls of a connection that is closed for its resets, or that comes when the server is about to end.
const LAST_CALLS: Duration = Duration::from_secs(1);

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
    /// Streams that may be reset before they were accepted, at a time; and requests of one connection that may be reset
    /// before anyone has looked at them, in a row and four seconds or so. Replicated requests reset losers all
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

/// When a server ends. Clones are of the same server.
#[derive(Clone, Debug)]
pub struct Ending {
    stop: CancellationToken,
    /// Cancelled with it, or before.
    leaving: CancellationToken,
}

/// When this is cancelled.
impl From<CancellationToken> for Ending {
    fn from(stop: CancellationToken) -> Self {
        Self { leaving: stop.child_token(), stop }
    }
}

impl Default for Ending {
    fn default() -> Self {
        CancellationToken::new().into()
    }
}

impl Ending {
    /// It is about to end: whoever is connected is told to go away, and may finish. Who still comes is answered, as
    /// health checks and latecomers must be, but told so a moment later.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// It ends.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// When a connection that begins now is to be told.
    fn told(&self) -> impl Future<Output = ()> + use<> {
        let (Self { stop, leaving }, late) = (self.clone(), self.leaving.is_cancelled());
        async move {
            leaving.cancelled().await;
            if late {
                let _ = timeout(LAST_CALLS, stop.cancelled()).await;
            }
        }
    }
}

/// Accepts connections until `stop` is cancelled, no more at a time than there are permits.
#[derive(Debug)]
pub struct Acceptor {
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Acceptor {
    /// Of so many connections at a time.
    pub fn new(connections: usize, stop: CancellationToken) -> Self {
        Self { permits: Arc::new(Semaphore::new(connections)), stop }
    }

    /// The next connection, and its permit, which it is to have until it ends; `None` when told to stop.
    pub async fn next<L: Listener>(
        &self,
        listener: &mut L,
    ) -> Option<(L::Io, Option<TcpConnectInfo>, OwnedSemaphorePermit)> {
        let accepted = async {
            let permit = self.permits.clone().acquire_owned().await.ok()?;
            loop {
                match listener.accept().await {
                    Ok((io, info)) => return Some((io, info, permit)),
                    Err(error) if is_about_the_peer(&error) => {}
                    Err(error) => {
                        // Out of file descriptors, for instance: without a pause this loop eats a core.
                        tracing::warn!(%error, "cannot accept a connection; trying again in 100 ms");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        self.stop.run_until_cancelled(accepted).await.flatten()
    }
}

/// A connection that was gone before it could be accepted says nothing about the next one.
fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::Interrupted)
}

/// Serves until it is told to end: then no more connections are accepted, those open are told to
/// go away and may finish, for [`Limits::shutdown_grace`] at most. Returns the listener.
pub async fn serve<L, S>(mut listener: L, service: S, limits: Limits, ending: impl Into<Ending>) -> L
where
    L: Listener,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let (tasks, ending) = (TaskTracker::new(), ending.into());
    let end = CancellationToken::new();
    // Whoever drops this future, instead of stopping it, drops the connections with it.
    let _end_with_me = end.clone().drop_guard();
    let acceptor = Acceptor::new(limits.connections, ending.stop.clone());
    let builder = builder(limits, tasks.clone());
    while let Some((io, info, permit)) = acceptor.next(&mut listener).await {
        let peer = info.as_ref().and_then(TcpConnectInfo::remote_addr);
        let (io, greeting) = greeting::watch(io, limits.handshake_timeout);
        let patience = Arc::new(Patience::new(limits.pending_resets, Instant::now()));
        let stamp = Stamp {
            inner: service.clone(),
            info,
            message_bytes: limits.message_bytes,
            patience: patience.clone(),
        };
        let connection = builder.serve_connection(TokioIo::new(io), stamp);
        let (told, end) = (ending.told(), end.clone());
        tasks.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = watch_connection(connection, peer, patience, told, end) => {}
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
    patience: Arc<Patience>,
    told: impl Future<Output = ()>,
    end: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut connection = std::pin::pin!(connection);
    let (mut told, mut is_told) = (std::pin::pin!(told), false);
    let mut too_much = std::pin::pin!(async {
        patience.spent().await;
        tracing::warn!(?peer, "a connection that resets its requests before they begin is closed");
    });
    let mut closes_at = None;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(?peer, %error, "connection ended");
                }
                return;
            }
            () = told.as_mut(), if !is_told => {
                is_told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = too_much.as_mut(), if closes_at.is_none() => {
                closes_at = Some(Instant::now() + LAST_CALLS);
                connection.as_mut().graceful_shutdown();
            }
            () = async { sleep_until(closes_at.unwrap_or_else(Instant::now)).await }, if closes_at.is_some() => return,
            () = end.cancelled() => return,
        }
    }
}

/// Puts the peer's address where tonic's `Request::remote_addr` looks for it, holds messages to their limit, and lets
/// nobody see what was abandoned before.
#[derive(Clone)]
struct Stamp<S> {
    inner: S,
    info: Option<TcpConnectInfo>,
    message_bytes: usize,
    patience: Arc<Patience>,
}

impl<S> hyper::service::Service<Request<Incoming>> for Stamp<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<Curbed<Body>>;
    type Error = Infallible;
    type Future = Answering<S>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Ahead::new);
        if let Some(info) = &self.info {
            request.extensions_mut().insert(info.clone());
        }
        let service = self.inner.clone();
        let step = Step::New { new: Some((service, request)) };
        Answering { step, patience: self.patience.clone(), most: self.message_bytes }
    }
}

pin_project_lite::pin_project! {
    /// A request on its way to its answer, both held to the limit of messages.
    struct Answering<S: Service<Request<Body>>> {
        #[pin]
        step: Step<S>,
        patience: Arc<Patience>,
        most: usize,
    }
}

pin_project_lite::pin_project! {
    #[project = StepProj]
    enum Step<S: Service<Request<Body>>> {
        New { new: Option<(S, Request<Ahead<Incoming>>)> },
        Served { #[pin] answer: S::Future },
    }
}

impl<S> Future for Answering<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Output = Result<Response<Curbed<Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let most = *this.most;
        if let StepProj::New { new } = this.step.as_mut().project() {
            let Some((mut service, mut request)) = new.take() else { return Poll::Pending };
            if request.body_mut().is_abandoned(cx) {
                this.patience.abandoned(Instant::now());
                // To nobody: its stream is closed.
                return Poll::Ready(Ok(Response::new(Curbed::new(Body::empty(), most))));
            }
            // The entrance is always ready: what limits calls stands behind it.
            let answer = service.call(request.map(|body| Body::new(Limited::new(body, most))));
            this.step.set(Step::Served { answer });
        }
        let StepProj::Served { answer } = this.step.project() else { return Poll::Pending };
        answer.poll(cx).map_ok(|response| {
            this.patience.answered();
            response.map(|body| Curbed::new(body, most))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_connected_is_told_at_once_that_the_server_leaves_and_who_comes_then_a_moment_later() {
        let (ending, begun) = (Ending::default(), Instant::now());
        let there = ending.told();
        ending.leave();
        there.await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        ending.told().await;
        assert_eq!(begun.elapsed(), LAST_CALLS);
        let latest = ending.told();
        ending.stop();
        latest.await;
        assert_eq!(begun.elapsed(), LAST_CALLS);
    }
}
