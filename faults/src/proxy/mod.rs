//! A TCP proxy that does to connections what networks do.
//!
//! ```no_run
//! use std::time::Duration;
//! use wardkeep_faults::proxy::{Faults, Proxy};
//!
//! # async fn example() -> std::io::Result<()> {
//! let proxy = Proxy::start("127.0.0.1:0", "127.0.0.1:7500".parse().unwrap(), 1).await?;
//! // Clients connect to proxy.address().
//! proxy.set(Faults::late(Duration::from_millis(20), Duration::from_millis(5)));
//! proxy.set(Faults::partition());
//! proxy.reset_share(0.5);
//! proxy.set(Faults::default());
//! proxy.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Faults can be changed at any time and hold at once for open connections too. What is under way is
//! bounded per connection and direction ([`PIECES`] pieces of [`PIECE`] bytes); beyond, the sender waits, as it would for a
//! full window. One task accepts, one per connection carries its bytes; [`Proxy::stop`] waits for all of
//! them. With one seed the same connections meet the same fate in the same order.

mod connection;
mod faults;
mod pipe;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{broadcast, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

pub use faults::{Faults, Way};
pub use pipe::{PIECE, PIECES};

/// Connections at a time; more are refused.
const CONNECTIONS: usize = 4_096;
/// How often the dice are thrown for connections that are killed at random.
const THROW: Duration = Duration::from_millis(100);

/// A running proxy. Dropped, it ends without waiting for its connections; see [`Proxy::stop`].
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    accepting: JoinSet<()>,
}

/// What the tasks of a proxy have in common.
#[derive(Debug)]
struct Shared {
    faults: watch::Sender<Faults>,
    to: watch::Sender<SocketAddr>,
    /// Resets open connections: this share of them.
    resets: broadcast::Sender<f64>,
    open: AtomicUsize,
    accepted: AtomicU64,
    refused: AtomicU64,
    reset: AtomicU64,
}

/// What a proxy has seen since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Connections open now.
    pub open: usize,
    /// Connections that were let through.
    pub accepted: u64,
    /// Connections that were reset at once.
    pub refused: u64,
    /// Open connections that were reset.
    pub reset: u64,
}

impl Proxy {
    /// Listens on `listen` (port 0: the system chooses) and leads to `to`.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(listen: &str, to: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            faults: watch::Sender::new(Faults::default()),
            to: watch::Sender::new(to),
            resets: broadcast::Sender::new(16),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            reset: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, shared.clone(), seed, stop.clone()));
        Ok(Self { address, shared, stop, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it does, from now on.
    pub fn set(&self, faults: Faults) {
        self.shared.faults.send_replace(faults);
    }

    /// What it does now.
    pub fn faults(&self) -> Faults {
        self.shared.faults.borrow().clone()
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, to: SocketAddr) {
        self.shared.to.send_replace(to);
    }

    /// Resets this share of the open connections, with RST to both sides.
    pub fn reset_share(&self, share: f64) {
        // Nobody listens where no connection is open.
        let _ = self.shared.resets.send(share);
    }

    /// What it has seen.
    pub fn counts(&self) -> Counts {
        let shared = &self.shared;
        Counts {
            open: shared.open.load(Relaxed),
            accepted: shared.accepted.load(Relaxed),
            refused: shared.refused.load(Relaxed),
            reset: shared.reset.load(Relaxed),
        }
    }

    /// Closes the listener and resets what is open; returns when nothing of it runs.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.accepting.join_next().await.is_some() {}
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, seed: u64, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut throw = interval(THROW);
    throw.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            _ = throw.tick() => {
                let share = shared.faults.borrow().kill_per_second;
                if share > 0.0 {
                    // The share that is left after a second is the one after each throw, ten times over.
                    let each = 1.0 - (1.0 - share.min(1.0)).powf(THROW.as_secs_f64());
                    let _ = shared.resets.send(each);
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let refuse = shared.faults.borrow().refuse;
                    let rng = dice.fork();
                    if connections.len() >= CONNECTIONS || dice.f64() < refuse {
                        shared.refused.fetch_add(1, Relaxed);
                        reset(client);
                        continue;
                    }
                    shared.accepted.fetch_add(1, Relaxed);
                    connections.spawn(connection::run(client, shared.clone(), rng, stop.clone()));
                }
                // Out of file descriptors, or the peer has gone: neither may make this loop spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Closes with RST.
fn reset(stream: TcpStream) {
    // Where it cannot be set the connection has ended already.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
