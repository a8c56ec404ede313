//! Connections: their settings, and one lazily opened channel per member.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt as _};
use wardkeep_proto::Error;

use crate::{
    error::{ConfigError, chain},
    member::Member,
    peer::Peer,
    stats::Stats,
};

/// How long a connection may take to open, unless set otherwise.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A member that could not be reached is asked after all others for so long.
const SHUN: Duration = Duration::from_secs(2);

/// The settings of every connection wardkeep opens.
///
/// Cancelling calls must never harm the connection they were on, so the limits by which a client
/// takes its own resets for an attack are lifted: how many reset streams it remembers, how many late
/// frames on them it accepts, and the window their small frames use up. Keepalive finds a peer that
/// is gone within 8 s, idle or not. (A server that forbids keepalive pings on idle connections, as
/// gRPC's C++ and Python servers do by default, closes such a connection; the next call opens a
/// new one.)
///
/// # Errors
/// The URI does not look like `http://host:port`.
pub fn endpoint(uri: &str) -> Result<Endpoint, Error> {
    Ok(parse(uri)?)
}

fn parse(uri: &str) -> Result<Endpoint, ConfigError> {
    let bad = |why: &str| ConfigError::Uri { uri: uri.to_owned(), why: why.to_owned() };
    let parsed: Uri = uri.parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
    match parsed.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(bad("TLS is not supported yet")),
        Some(_) => return Err(bad("unknown scheme")),
        None => return Err(bad("no scheme")),
    }
    Ok(Endpoint::from(parsed)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_max_concurrent_reset_streams(200_000)
        .http2_reset_stream_duration(Duration::from_millis(100))
        .http2_max_local_error_reset_streams(None)
        .initial_connection_window_size((1u32 << 31) - 1)
        .initial_stream_window_size(4 << 20)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true))
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Bytes in both directions.
pub(crate) trait Io: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static {}

impl<T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static> Io for T {}

type Dial = dyn Fn(Uri) -> BoxFuture<Result<Box<dyn Io>, BoxError>> + Send + Sync;

/// How connections are opened, and counted.
#[derive(Clone)]
pub(crate) struct Dialer {
    dial: Arc<Dial>,
    pub(crate) timeout: Duration,
    stats: Arc<Stats>,
}

impl Dialer {
    /// Over any connector.
    pub(crate) fn dial_with<C>(connector: C) -> Arc<Dial>
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        Arc::new(move |uri| {
            let connector = connector.clone();
            Box::pin(async move {
                let io = connector.oneshot(uri).await.map_err(Into::into)?;
                Ok(Box::new(io) as Box<dyn Io>)
            })
        })
    }

    /// `dial: None` means TCP.
    pub(crate) fn new(dial: Option<Arc<Dial>>, timeout: Duration, stats: Arc<Stats>) -> Self {
        let tcp = || {
            let mut tcp = HttpConnector::new();
            tcp.set_nodelay(true);
            Self::dial_with(tcp)
        };
        Self { dial: dial.unwrap_or_else(tcp), timeout, stats }
    }

    async fn open(self, uri: Uri) -> Result<Box<dyn Io>, BoxError> {
        let opened = match tokio::time::timeout(self.timeout, (self.dial)(uri)).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("no connection within {} ms", self.timeout.as_millis()).into()),
        };
        match &opened {
            Ok(_) => self.stats.connections.fetch_add(1, Relaxed),
            Err(_) => self.stats.connection_errors.fetch_add(1, Relaxed),
        };
        opened
    }

    /// A channel that connects when it is first used. Needs a tokio runtime.
    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Channel {
        let dialer = self.clone();
        endpoint
            .clone()
            .connect_timeout(self.timeout)
            .connect_with_connector_lazy(tower::service_fn(move |uri| dialer.clone().open(uri)))
    }
}

/// The way to one member. Lives as long as the member stays at its address, or a call uses it.
pub(crate) struct Link {
    pub(crate) peer: Arc<Peer>,
    endpoint: Result<Endpoint, String>,
    channel: OnceLock<Channel>,
    dialer: Dialer,
    in_flight: AtomicUsize,
    pub(crate) wins: Arc<AtomicU64>,
    born: Instant,
    /// Milliseconds after `born`; 0: nothing against it.
    shunned_until: AtomicU64,
}

impl Link {
    pub(crate) fn new(member: &Member, dialer: &Dialer) -> Self {
        Self {
            peer: Arc::new(Peer {
                name: member.name.clone(),
                uri: member.uri.clone(),
                trusted: member.trusted,
            }),
            endpoint: parse(&member.uri).map_err(|e| chain(&e)),
            channel: OnceLock::new(),
            dialer: dialer.clone(),
            in_flight: AtomicUsize::new(0),
            wins: dialer.stats.wins_of(&member.name),
            born: Instant::now(),
            shunned_until: AtomicU64::new(0),
        }
    }

    /// The member's channel.
    ///
    /// # Errors
    /// Why the member's address is none.
    pub(crate) fn channel(&self) -> Result<Channel, &str> {
        let endpoint = self.endpoint.as_ref().map_err(String::as_str)?;
        Ok(self.channel.get_or_init(|| self.dialer.channel(endpoint)).clone())
    }

    /// How long to wait for a request to leave before another member is tried. A little more than a
    /// connection may take, because the connector knows better why it failed.
    pub(crate) fn patience(&self) -> Duration {
        self.dialer.timeout.saturating_add(Duration::from_millis(100))
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_shunned(&self, now: Instant) -> bool {
        self.shunned_until.load(Relaxed) > self.millis(now)
    }

    /// It could not be reached.
    pub(crate) fn shun(&self, now: Instant) {
        let until = (now + SHUN).saturating_duration_since(self.born).as_millis();
        self.shunned_until.store(u64::try_from(until).unwrap_or(u64::MAX), Relaxed);
    }

    /// It answered.
    pub(crate) fn absolve(&self) {
        if self.shunned_until.load(Relaxed) != 0 {
            self.shunned_until.store(0, Relaxed);
        }
    }

    /// It is about to be asked. One that was shunned is tried by one call at a time: the others
    /// keep away until it has answered.
    pub(crate) fn probe(&self, now: Instant) {
        if self.shunned_until.load(Relaxed) != 0 {
            self.shun(now);
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }
}

/// One attempt in progress on a link.
pub(crate) struct InFlight(Arc<Link>);

impl InFlight {
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_a_port() {
        assert!(endpoint("http://127.0.0.1:7500").is_ok());
        for bad in ["127.0.0.1:7500", "", "ftp://x", "http//x", "https://x:1", "/path"] {
            let error = endpoint(bad).unwrap_err();
            assert_eq!((error.kind(), error.code()), ("BAD_ADDRESS", tonic::Code::InvalidArgument), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_cannot_be_reached_is_shunned_for_a_while_then_probed_by_one() {
        let dialer = Dialer::new(None, CONNECT_TIMEOUT, Arc::default());
        let link = Link::new(&Member::new("a", "http://127.0.0.1:1"), &dialer);
        assert!(!link.is_shunned(Instant::now()));
        link.shun(Instant::now());
        assert!(link.is_shunned(Instant::now()));
        tokio::time::advance(SHUN).await;
        assert!(!link.is_shunned(Instant::now()));
        link.probe(Instant::now());
        assert!(link.is_shunned(Instant::now()));
        link.absolve();
        assert!(!link.is_shunned(Instant::now()));
    }
}
