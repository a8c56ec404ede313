//! Connections: their settings, and one lazily opened channel per member.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{sync::watch, time::Instant};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Service, ServiceExt as _, util::BoxCloneSyncService};
use uuid::Uuid;
use wardkeep_proto::Error;

use crate::{
    cancels::Cancels,
    error::{ConfigError, chain},
    judge,
    losers::Losers,
    member::Member,
    peer::Peer,
    restraint::Restraint,
    stats::Stats,
    track::{Sample, Standing, Track},
    withdraw::{Withdrawals, Withdrawn},
};

/// How long a connection may take to open, unless set otherwise.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

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

pub(crate) fn parse(uri: &str) -> Result<Endpoint, ConfigError> {
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

pub(crate) type Dial = dyn Fn(Uri) -> BoxFuture<Result<Box<dyn Io>, BoxError>> + Send + Sync;

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

/// A channel that somebody else has set up.
pub(crate) type Given = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>;

/// How requests reach a member.
enum Way {
    /// Over a channel that is opened when it is first used, and replaced after too many cancels.
    Dialed {
        endpoint: Box<Result<Endpoint, String>>,
        channel: Mutex<Option<Channel>>,
    },
    Given(Given),
}

/// What one attempt is sent through.
pub(crate) enum Sender {
    Channel(Channel),
    Given(Given),
}

impl Sender {
    /// The request is made when it can leave.
    pub(crate) async fn send(
        self,
        request: impl FnOnce() -> http::Request<Body>,
    ) -> Result<http::Response<Body>, BoxError> {
        match self {
            Self::Channel(mut channel) => Ok(channel.ready().await?.call(request()).await?),
            Self::Given(mut given) => given.ready().await?.call(request()).await,
        }
    }
}

/// What calls learn of a member and of the connection to it.
pub(crate) struct Health {
    pub(crate) track: Track,
    pub(crate) cancels: Cancels,
}

/// What all links of a channel have in common.
#[derive(Clone)]
pub(crate) struct Wiring {
    pub(crate) dialer: Dialer,
    pub(crate) stats: Arc<Stats>,
    pub(crate) restraint: Restraint,
    /// Grows each time a member becomes suspected.
    pub(crate) suspicions: watch::Sender<u64>,
    losers: Losers,
    born: Instant,
}

impl Wiring {
    pub(crate) fn new(dialer: Dialer, stats: Arc<Stats>, restraint: Restraint, losers: Losers) -> Self {
        Self { dialer, stats, restraint, suspicions: watch::Sender::new(0), losers, born: Instant::now() }
    }

    /// The time as the pure parts count it.
    pub(crate) fn since_birth(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }
}

/// What is said of a member by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Word {
    Well,
    /// It may be dead or stuck, or only busy: a copy elsewhere is extra load.
    Suspected,
    /// It is dead, stuck or gone.
    Ill,
}

/// The way to one member. Lives as long as the member stays at its address, or a call uses it.
pub(crate) struct Link {
    pub(crate) peer: Arc<Peer>,
    way: Way,
    wiring: Wiring,
    in_flight: AtomicUsize,
    pub(crate) wins: Arc<AtomicU64>,
    /// What the directory, or whoever lists the members, thinks of it: a [`Word`].
    word: AtomicU8,
    /// It is one of our nodes, as the directory or a reply of it has said.
    is_node: AtomicBool,
    /// Made when it is first needed.
    withdrawals: OnceLock<Withdrawals>,
    health: Mutex<Health>,
}

impl Link {
    /// `given`: the channel to it, if it is not to be dialled.
    pub(crate) fn new(member: &Member, given: Option<Given>, wiring: &Wiring) -> Self {
        let way = given.map(Way::Given).unwrap_or_else(|| Way::Dialed {
            endpoint: Box::new(parse(&member.uri).map_err(|e| chain(&e))),
            channel: Mutex::default(),
        });
        let cancels = Cancels::new(wiring.restraint.cancels_per_second);
        Self {
            peer: Arc::new(Peer {
                name: member.name.clone(),
                uri: member.uri.clone(),
                trusted: member.trusted,
            }),
            way,
            wiring: wiring.clone(),
            in_flight: AtomicUsize::new(0),
            wins: wiring.stats.wins_of(&member.name),
            word: AtomicU8::new(Word::Well as u8),
            is_node: AtomicBool::new(member.is_node && member.trusted),
            withdrawals: OnceLock::new(),
            health: Mutex::new(Health { track: Track::new(), cancels }),
        }
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next request goes through.
    ///
    /// # Errors
    /// Why the member's address is none.
    pub(crate) fn sender(&self) -> Result<Sender, &str> {
        let (endpoint, channel) = match &self.way {
            Way::Given(given) => return Ok(Sender::Given(given.clone())),
            Way::Dialed { endpoint, channel } => ((**endpoint).as_ref().map_err(String::as_str)?, channel),
        };
        let mut channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
        if channel.is_some() && self.is_worn() {
            // Calls that run on the old connection keep it until they end.
            *channel = None;
            self.wiring.stats.renewed.fetch_add(1, Relaxed);
        }
        let open = || self.wiring.dialer.channel(endpoint);
        Ok(Sender::Channel(channel.get_or_insert_with(open).clone()))
    }

    /// Whether its connection has seen so many cancels that the next call takes a new one.
    fn is_worn(&self) -> bool {
        let cancels = &mut self.health().cancels;
        let worn = cancels.total >= self.wiring.restraint.renew_after;
        if worn {
            cancels.renewed();
        }
        worn
    }

    /// How long to wait for a request to leave before another member is tried. A little more than a
    /// connection may take, because the connector knows better why it failed.
    pub(crate) fn patience(&self) -> Duration {
        self.wiring.dialer.timeout.saturating_add(Duration::from_millis(100))
    }

    pub(crate) fn record(&self, now: Instant, sample: Sample) {
        let at = self.wiring.since_birth(now);
        let fell = {
            let track = &mut self.health().track;
            let before = track.standing(at);
            track.record(at, sample);
            before == Standing::Good && track.standing(at) != Standing::Good
        };
        if fell {
            self.wiring.stats.ejected.fetch_add(1, Relaxed);
            tracing::debug!(node = self.peer.name, ?sample, "on probation");
            self.wiring.suspicions.send_modify(|n| *n += 1);
        }
    }

    /// It is about to be asked. If it has served its probation, this is the one call that tries it.
    pub(crate) fn asked(&self, now: Instant) {
        self.health().track.asked(self.wiring.since_birth(now));
    }

    /// What is said of it.
    pub(crate) fn hear(&self, word: Word) {
        if self.word.swap(word as u8, Relaxed) < word as u8 {
            self.wiring.suspicions.send_modify(|n| *n += 1);
        }
    }

    pub(crate) fn returned(&self, now: Instant) {
        self.health().track.returned(self.wiring.since_birth(now));
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.wiring.stats
    }

    /// Whether it is suspected, by others or by its own record.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.is_suspected() || self.is_ill(now)
    }

    /// Whether it is more than suspected: it has been found dead or stuck, or does not answer.
    pub(crate) fn is_ill(&self, now: Instant) -> bool {
        let at = self.wiring.since_birth(now);
        self.word.load(Relaxed) >= Word::Ill as u8 || self.health().track.standing(at) != Standing::Good
    }

    pub(crate) fn is_suspected(&self) -> bool {
        self.word.load(Relaxed) >= Word::Suspected as u8
    }

    /// The head of the reply to the request of this number has come. `ours`: it is from one of our nodes.
    pub(crate) fn answered(&self, number: u64, ours: bool) {
        if ours {
            self.is_node.store(true, Relaxed);
        }
        self.health().cancels.answered(number, ours);
    }

    /// Begins to withdraw an attempt in band; how that goes says the future. `None` if that cannot be done here:
    /// the member is not known for a node of ours, or its channel is somebody else's, which may lead elsewhere.
    pub(crate) fn withdraw(
        self: &Arc<Self>,
        call_id: Uuid,
        attempt: u32,
    ) -> Option<impl Future<Output = Withdrawn> + Send + use<>> {
        let wiring = &self.wiring;
        if !wiring.restraint.in_band || !self.is_node.load(Relaxed) || matches!(self.way, Way::Given(_)) {
            return None;
        }
        if self.withdrawals.get().is_none() {
            let (withdrawals, run) = Withdrawals::new(self.as_channel());
            // Of two made in the same moment one ends at once.
            if wiring.losers.run(run) {
                let _ = self.withdrawals.set(withdrawals);
            }
        }
        Some(self.withdrawals.get()?.withdraw(call_id, attempt))
    }

    /// For messages to the member itself, over the connection that its calls take at that time.
    fn as_channel(
        self: &Arc<Self>,
    ) -> impl Service<
        http::Request<Body>,
        Response = http::Response<Body>,
        Error = BoxError,
        Future = BoxFuture<Result<http::Response<Body>, BoxError>>,
    > + Send
    + use<> {
        let link = Arc::downgrade(self);
        tower::service_fn(move |request| -> BoxFuture<_> {
            let link = link.upgrade();
            Box::pin(async move {
                let link = link.ok_or("the member has gone")?;
                let sender = link.sender().map_err(str::to_owned)?;
                sender.send(|| request).await
            })
        })
    }

    /// Whether a request that was sent so long ago may be cancelled now; if so, it will be.
    pub(crate) fn may_cancel(&self, now: Instant, age: Duration) -> bool {
        let at = self.wiring.since_birth(now);
        // How somebody else's channel bears cancels is their affair.
        matches!(self.way, Way::Given(_)) || self.health().cancels.take(at, age)
    }

    /// Takes from the end of a reply how busy the member is.
    pub(crate) fn hear_load(&self, trailers: &HeaderMap) {
        if let Some(load) = judge::load(trailers).filter(|_| self.peer.trusted) {
            let at = self.wiring.since_birth(Instant::now());
            self.health().track.told_load(at, load);
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
}
