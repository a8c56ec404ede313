//! Ways to ask three servers.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _, select_all};
use tonic::{Status, transport::Channel};
use tower::{Service as _, hedge};
use wardkeep_client::{HedgeDelay, Policy, Replicated, Restraint, endpoint};

use super::servers::Servers;
use crate::ask::ask;

/// The longest that a call may take.
pub const DEADLINE: Duration = Duration::from_millis(250);

pub const BARE: &str = "bare tonic, the servers in turn";
pub const TOWER: &str = "tower::hedge at p95";
pub const NAIVE: &str = "naive: the first of three, the others dropped";
pub const SINGLE: &str = "wardkeep single";
pub const ALL_2: &str = "wardkeep all(2)";
pub const ALL: &str = "wardkeep all(3)";
pub const UNRESTRAINED: &str = "wardkeep all(3), without stepping down";
pub const HEDGED_FIXED: &str = "wardkeep hedged after 10 ms";
pub const HEDGED: &str = "wardkeep hedged at p95";
pub const TIED: &str = "wardkeep tied after 1 ms";
pub const QUORUM: &str = "wardkeep quorum: 2 equal of 3";

/// The policy of the rows that are ours.
pub fn policy(name: &str) -> Option<Policy> {
    let fixed = |ms| HedgeDelay::Fixed(Duration::from_millis(ms));
    Some(match name {
        SINGLE => Policy::Single,
        ALL_2 => Policy::All(2),
        ALL | UNRESTRAINED => Policy::All(3),
        HEDGED_FIXED => Policy::Hedged { delay: fixed(10), max_attempts: 2 },
        HEDGED => Policy::Hedged { delay: HedgeDelay::Percentile(95.0), max_attempts: 2 },
        TIED => Policy::Tied { delay: fixed(1), max_attempts: 2 },
        QUORUM => Policy::Quorum { equal: 2, of: 3 },
        _ => return None,
    })
}

pub fn restraint(name: &str) -> Restraint {
    Restraint::default().step_down(name != UNRESTRAINED)
}

/// The servers in turn, as a service whose copies take their turns together.
#[derive(Clone)]
pub struct Turn(Arc<[Channel]>, Arc<AtomicUsize>);

impl Turn {
    fn next(&self) -> Channel {
        self.0[self.1.fetch_add(1, Relaxed) % self.0.len()].clone()
    }
}

impl tower::Service<()> for Turn {
    type Response = ();
    type Error = Status;
    type Future = BoxFuture<'static, Result<(), Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let channel = self.next();
        async move { ask(channel, Vec::new()).await.map(drop) }.boxed()
    }
}

/// All may be hedged.
#[derive(Clone)]
pub struct Always;

impl hedge::Policy<()> for Always {
    fn clone_request(&self, (): &()) -> Option<()> {
        Some(())
    }

    fn can_retry(&self, (): &()) -> bool {
        true
    }
}

/// A way to ask.
pub enum Way {
    Bare(Turn),
    Tower(Box<Mutex<hedge::Hedge<Turn, Always>>>),
    Naive(Turn),
    Ours(Replicated),
}

impl Way {
    /// Within a runtime. The peers get the connection settings of our client: with tonic's own the connections of
    /// those that cancel would break (that is what `cargo measure cancel` is about).
    pub fn open(name: &str, servers: &Servers) -> Self {
        let open = |uri: &String| endpoint(uri).expect("an address").connect_lazy();
        let turn = Turn(servers.uris.iter().map(open).collect(), Arc::default());
        match name {
            BARE => Self::Bare(turn),
            NAIVE => Self::Naive(turn),
            TOWER => {
                let hedge = hedge::Hedge::new::<()>(turn, Always, 50, 0.95, Duration::from_secs(10));
                Self::Tower(Box::new(Mutex::new(hedge)))
            }
            _ => {
                let policy = policy(name).expect("one of ours");
                let ours = Replicated::builder().members(servers.members()).assume_idempotent();
                let ours = ours.policy(policy).restraint(restraint(name)).default_deadline(DEADLINE);
                Self::Ours(ours.build().expect("a channel"))
            }
        }
    }

    /// Whether a good answer came in time.
    pub async fn ask(&self) -> bool {
        let asked = async {
            match self {
                Self::Bare(turn) => ask(turn.next(), Vec::new()).await.is_ok(),
                Self::Naive(turn) => {
                    let copies = turn.0.iter().map(|channel| ask(channel.clone(), Vec::new()).boxed());
                    select_all(copies).await.0.is_ok()
                }
                Self::Tower(hedge) => {
                    // It is always ready.
                    let asking = {
                        let mut hedge = hedge.lock().expect("nobody panics");
                        let mut context = Context::from_waker(std::task::Waker::noop());
                        let _ = tower::Service::<()>::poll_ready(&mut *hedge, &mut context);
                        hedge.call(())
                    };
                    asking.await.is_ok()
                }
                Self::Ours(channel) => ask(channel.clone(), Vec::new()).await.is_ok(),
            }
        };
        tokio::time::timeout(DEADLINE, asked).await.unwrap_or(false)
    }
}
