//! Replicated gRPC requests: a channel under any tonic-generated client.
//!
//! A call goes to several members: at once, or to the next when the one before is late. The first
//! *success*, read to its trailers, wins; the others are cancelled, and their handlers see it. A fast error
//! never beats a slower good answer.
//!
//! ```no_run
//! use wardkeep_client::{Member, Policy, Replicated, ResponseExt as _};
//! use wardkeep_proto::v1::{GetFleetRequest, operator_client::OperatorClient};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Replicated::builder()
//!     .members([Member::new("a", "http://10.0.0.1:7500"), Member::new("b", "http://10.0.0.2:7500")])
//!     .methods(wardkeep_proto::FILE_DESCRIPTOR_SET)
//!     .policy(Policy::All(2))
//!     .build()?;
//! let mut client = OperatorClient::new(channel);
//! let reply = client.get_fleet(GetFleetRequest {}).await?;
//! println!("{:?}", reply.winner());
//! # Ok(())
//! # }
//! ```
//!
//! # Theory of operation
//!
//! * **What is sent more than once.** Only what may be repeated: methods whose descriptors say
//!   `NO_SIDE_EFFECTS` or `IDEMPOTENT`, and what the caller declares. Everything else is sent once,
//!   its bodies passed through unread in both directions; it moves on to another member only if
//!   the one before could not be connected to, so that it saw nothing.
//! * **When a reply wins.** Unary: when its trailers say OK after exactly one whole message.
//!   Server-streaming: when its first message is whole, or it ends well without one; the rest
//!   passes through. Repeatable but not in the descriptors: at its trailers, or where a second
//!   message begins.
//! * **When an error wins.** A [fatal](ReplicatedBuilder::fatal_codes) one at once. One that all
//!   members agree on, if it speaks of state (`NOT_FOUND` and the like), and the error of a call
//!   that was sent once, as the member gave it. Otherwise a call fails with one error of the domain
//!   `wardkeep.client` that lists every attempt and has the most telling of their codes.
//! * **How many are asked, and when**, says the [`Policy`], per method, in code or as a
//!   [service config](ReplicatedBuilder::service_config) of gRFC A6.
//! * **Who is asked.** Members that are ready and offer the service (if none is ready, all that offer it: what
//!   the directory says may be old, and a member that must not be asked refuses at once). Of two of them the one that is expected
//!   to answer sooner, given how long it took lately, what it has in flight and how busy it says it is. A
//!   cancelled attempt counts as "at least this long", an error as very long. Who fails three times in a row,
//!   or cannot be reached, is on probation and then probed by one call at a time; who comes back starts
//!   slowly. Copies go to [unlike](Diversity) members of the same version. A member that could not be
//!   reached, or that says `UNAVAILABLE`, is replaced by one that was not asked yet.
//! * **How far it goes** says [`Restraint`]: replication costs little, and less the busier the members are.
//! * **Time.** Each call has a deadline by its own timer: its `grpc-timeout`, what is left to the
//!   request being served, or the default. Each attempt tells its member what is left.
//! * **Cancelling.** All attempts run inside the caller's future. Dropping it cancels them all. At nodes of ours
//!   they are withdrawn in band, and end in a task of the channel's own; elsewhere their streams are reset, and
//!   connections are [set up](endpoint()) to survive any number of that. Where the server is a
//!   stranger that might not, losers beyond what it bears are left to finish for a moment.
//! * **What a reply tells.** [`winner()`](ResponseExt::winner), and every attempt
//!   ([`attempts()`](ResponseExt::attempts)); an [`Observe`]r is told of every call, and each attempt is a
//!   span with the names of OpenTelemetry's conventions for RPC.
//!
//! Errors reach callers as `tonic::Status` with their details;
//! `wardkeep_proto::Error::from_status` reads them. [`WellFormed`] does the same for a channel of one's own.
#![forbid(unsafe_code)]

mod attempt;
mod began;
mod budget;
mod builder;
mod cancels;
mod channel;
mod checked;
mod choose;
mod decide;
mod directory;
mod error;
mod field;
mod gate;
mod judge;
mod leave;
mod losers;
mod member;
mod methods;
mod observe;
mod peer;
mod policy;
mod race;
mod reply;
mod request;
mod restraint;
mod rules;
mod service_config;
mod stats;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
mod track;
mod view;
mod wellform;
mod window;
mod withdraw;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body};
use tower::Service;

pub use builder::{Replicate, ReplicatedBuilder};
pub use channel::endpoint;
pub use checked::Checked;
pub use choose::Diversity;
pub use error::Phase;
pub use member::{Attempt, Cost, Ending, Member, Offer, ResponseExt, Winner};
pub use methods::SentOnce;
pub use observe::{CallSummary, Observe};
pub use policy::{HedgeDelay, Policy};
pub use restraint::Restraint;
pub use stats::{LoserStats, MemberStats, StatsSnapshot};
pub use wellform::{WellFormed, WellFormedChannel};
pub use withdraw::{Withdrawals, Withdrawn};

use channel::BoxFuture;
use error::CallError;
use losers::Losers;
use methods::Methods;
use policy::Codes;
use restraint::Brakes;
use stats::Stats;
use view::{Members, Order};
use window::Windows;

/// A channel to several members at once: see the [crate](self). Cheap to clone; clones share
/// members, connections and counters.
#[derive(Clone)]
pub struct Replicated {
    inner: Arc<Inner>,
}

/// What all clones of the handle own together.
struct Inner {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What calls need; outlives the handles while calls run.
struct Shared {
    members: Arc<Members>,
    /// True once the members are known.
    first_view: watch::Receiver<bool>,
    /// How long a call waits for the members to become known.
    view_patience: Duration,
    methods: Methods,
    fatal: Codes,
    default_deadline: Duration,
    max_request_bytes: usize,
    max_reply_bytes: usize,
    attempt_timeout: Option<Duration>,
    stats: Arc<Stats>,
    windows: Windows,
    brakes: Brakes,
    rounds: u32,
    losers: Losers,
    observer: Option<Arc<dyn Observe>>,
}

impl Shared {
    /// The members to ask, in order.
    async fn candidates(&self, method: &str, repeatable: bool) -> Result<Order, CallError> {
        let order = self.members.order(method, repeatable, Instant::now());
        if !matches!(order, Err(CallError::NoMembers { .. })) || *self.first_view.borrow() {
            return order;
        }
        let mut first_view = self.first_view.clone();
        // Whether it came, or the wait was in vain: the next look tells.
        let _ = timeout(self.view_patience, first_view.wait_for(|seen| *seen)).await;
        self.members.order(method, repeatable, Instant::now())
    }
}

impl Replicated {
    /// Begins to set up a channel.
    pub fn builder() -> ReplicatedBuilder {
        ReplicatedBuilder::default()
    }

    /// A channel to these members with default settings. Without descriptors no method is known to
    /// be idempotent, so each call is sent once, to a member in turn. An address that is none shows
    /// as an error of the calls that try it.
    pub fn from_static_members(members: impl IntoIterator<Item = Member>) -> Self {
        Self::builder().members(members).build_static()
    }

    /// The members, now and as they change.
    pub fn members(&self) -> watch::Receiver<Arc<[Member]>> {
        self.inner.shared.members.watch()
    }

    /// The counters.
    pub fn stats(&self) -> StatsSnapshot {
        let shared = &self.inner.shared;
        let lingering = shared.losers.count();
        StatsSnapshot { members: shared.members.stats(Instant::now()), lingering, ..shared.stats.snapshot() }
    }

    /// Stops following the directory, cancels losers that have not ended yet, and waits until that is done.
    /// Clones keep the members they last knew; their connections close when the last clone and call are gone.
    pub async fn close(self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl fmt::Debug for Replicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.inner.shared.members.watch().borrow().clone();
        f.debug_struct("Replicated").field("members", &members).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Replicated {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let now = Instant::now();
        let shared = self.inner.shared.clone();
        let context = race::context_of(&request, shared.default_deadline, now);
        let id = race::name(&mut request, &context);
        Box::pin(race::call(shared, request, context, id, now))
    }
}
