//! What a node hosts. A [`Ward`] says what it is, what it promises and how it is treated; one file
//! per kind says how it runs and how it is brought to an end.

pub(crate) mod errand;
pub(crate) mod guard;
mod orphan;
pub(crate) mod output;
mod probe;
mod process;
mod program;
mod sd_notify;
mod service;
pub(crate) mod task;
mod terms;

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;
use tonic::{body::Body, server::NamedService};
use tower::{Service, ServiceExt as _};
use wardkeep_proto::{Error, v1};
use wardkeep_steward::{Restart, WardSpec};

pub use errand::Output;
pub use program::Program;
pub(crate) use service::{Live, Route};

use self::{guard::Guard, output::Tail, terms::Terms};
use crate::{
    context::{Incarnation, WardContext},
    memory::Limits,
    methods::Methods,
    twins::Twins,
};

/// A tonic server of any type: each call gets a clone of it.
pub(crate) trait Serve: Send + Sync {
    fn serve(&self, request: http::Request<Body>) -> BoxFuture<'static, http::Response<Body>>;
}

impl<S> Serve for S
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    fn serve(&self, request: http::Request<Body>) -> BoxFuture<'static, http::Response<Body>> {
        Box::pin(self.clone().oneshot(request).map(|answer| answer.unwrap_or_else(|never| match never {})))
    }
}

pub(crate) type BoxedService = Arc<dyn Serve>;
type ServiceFactory = Arc<dyn Fn(WardContext) -> BoxedService + Send + Sync>;
type TaskFactory = Arc<dyn task::Launch>;

/// What is abandoned gets this long, after its grace and its abort, before it is left behind.
const ABORT_PATIENCE: Duration = Duration::from_millis(250);

/// One supervised unit of a node: a tonic service, a background task or an external program.
#[derive(Clone)]
pub struct Ward {
    pub(crate) name: Arc<str>,
    /// Wards that differ by name only share it: the name in it is nobody's.
    pub(crate) spec: Arc<WardSpec>,
    pub(crate) work: Work,
    /// Something was asked of it that only service wards have.
    misplaced: Option<&'static str>,
}

#[derive(Clone)]
pub(crate) enum Work {
    Task(TaskFactory),
    Watched(Box<Watched>),
}

impl Work {
    pub(crate) fn watched(&self) -> Option<&Watched> {
        match self {
            Work::Watched(watched) => Some(watched),
            Work::Task(_) => None,
        }
    }

    fn watched_mut(&mut self) -> Option<&mut Watched> {
        match self {
            Work::Watched(watched) => Some(watched),
            Work::Task(_) => None,
        }
    }
}

/// What is run by a task of its host's, beside what it consists of.
#[derive(Clone)]
pub(crate) enum Watched {
    /// With the full names of the gRPC services it answers.
    Service {
        factory: ServiceFactory,
        names: Arc<[String]>,
        descriptors: Vec<&'static [u8]>,
        terms: Terms,
    },
    Process(Arc<Program>),
}

/// What a panic in a handler means for a service ward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// The call fails, is logged and counted; the ward goes on. So one request that always panics
    /// cannot take the service away from everyone else.
    #[default]
    Contain,
    /// The call fails and the ward counts as crashed: a fresh incarnation takes over at once, calls
    /// in progress may finish. For services whose state cannot be trusted after a panic.
    Restart,
}

impl Ward {
    /// Any tonic server, unchanged. The factory makes a fresh one for each incarnation.
    ///
    /// Defaults: permanent, no stall timeout, 5 s of grace.
    pub fn service<S, F>(name: impl Into<Arc<str>>, factory: F) -> Self
    where
        F: Fn(WardContext) -> S + Send + Sync + 'static,
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let factory: ServiceFactory = Arc::new(move |context| Arc::new(factory(context)));
        let (names, terms) = ([S::NAME.to_owned()].into(), Terms::default());
        Self::new(
            name,
            Work::Watched(Box::new(Watched::Service { factory, names, descriptors: Vec::new(), terms })),
        )
    }

    /// A background loop. It ends well with `Ok`, fails with `Err` or a panic, and should return
    /// soon after [`WardContext::cancelled`].
    pub fn task<F, Fut>(name: impl Into<Arc<str>>, factory: F) -> Self
    where
        F: Fn(WardContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Error>> + Send + 'static,
    {
        Self::new(name, Work::Task(Arc::new(task::Factory(factory))))
    }

    /// An external program, in a process group of its own.
    pub fn process(name: impl Into<Arc<str>>, program: Program) -> Self {
        let pulse_timeout = program.default_pulse_timeout();
        let mut ward = Self::new(name, Work::Watched(Box::new(Watched::Process(Arc::new(program)))));
        Arc::make_mut(&mut ward.spec).pulse_timeout = pulse_timeout;
        ward
    }

    fn new(name: impl Into<Arc<str>>, work: Work) -> Self {
        Self { name: name.into(), spec: Arc::new(WardSpec::new("")), work, misplaced: None }
    }

    /// Puts it into a group. A name without a declaration has the default strategy and limits.
    #[must_use]
    pub fn group(mut self, name: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.spec).group = Some(name.into());
        self
    }

    /// What follows its end.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        Arc::make_mut(&mut self.spec).restart = restart;
        self
    }

    /// A unit of work older than this is a stall, and the ward is restarted. A call is one unit, of
    /// which the time it waits for its caller does not count, and each message of a streamed reply
    /// begins anew: a stream must say something at least this often.
    #[must_use]
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.spec).stall_timeout = Some(timeout);
        self
    }

    /// The ward's code calls [`WardContext::pulse`] (a program: `WATCHDOG=1`) at least this often.
    #[must_use]
    pub fn pulse_timeout(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.spec).pulse_timeout = Some(timeout);
        if let Some(Watched::Process(program)) = self.work.watched_mut() {
            Arc::make_mut(program).pulses_within(timeout);
        }
        self
    }

    /// It must be ready this long after its start.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.spec).start_timeout = Some(timeout);
        self
    }

    /// What a stop allows before it becomes forceful.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        Arc::make_mut(&mut self.spec).grace = grace;
        self
    }

    /// Its end counts for the automatic shutdown of its group. For transient and temporary wards.
    #[must_use]
    pub fn significant(mut self) -> Self {
        Arc::make_mut(&mut self.spec).significant = true;
        self
    }

    /// It does not start with its node but when an operator starts it.
    #[must_use]
    pub fn manual_start(mut self) -> Self {
        Arc::make_mut(&mut self.spec).manual_start = true;
        self
    }

    /// What a panic in a handler means. Service wards only.
    #[must_use]
    pub fn on_panic(self, what: OnPanic) -> Self {
        self.on_terms("on_panic", |terms| terms.on_panic = what)
    }

    /// Works on at most so many calls at a time; more wait for their turn, as many again unless
    /// [`queue`](Self::queue) says otherwise. Further ones are refused with `RESOURCE_EXHAUSTED` and told when to try
    /// again. A streamed reply counts until its end, blocking work ([`WardContext::blocking`]) until it really
    /// returns. What waits is no work yet: it cannot stall, and if its caller leaves or its deadline passes it
    /// is never begun. Service wards only.
    #[must_use]
    pub fn concurrency(self, calls: usize) -> Self {
        self.on_terms("concurrency", |terms| terms.concurrency = Some(calls))
    }

    /// So many calls may wait for their turn, in the order of arrival; 0: none. For wards with a
    /// [`concurrency`](Self::concurrency).
    #[must_use]
    pub fn queue(self, calls: usize) -> Self {
        self.on_terms("queue", |terms| terms.queue = Some(calls))
    }

    /// Carries out no call twice: of those with the same ID (see [`CALL_ID`](wardkeep_proto::context::CALL_ID)), method
    /// and request one runs, and all of them get its reply, whatever their attempt; those that come within
    /// `window` after it ended well get that reply again, whatever has become of the incarnation. The same ID
    /// with another request is refused (`INVALID_ARGUMENT`). A call that failed may be tried again.
    ///
    /// At most `max_entries` calls and `max_bytes` of replies are remembered. When there is no room for a reply the
    /// oldest goes: its call is then refused if it comes again (`ALREADY_EXISTS`). When there is no room for a call the
    /// oldest that has ended is forgotten, and if none has, new ones are refused (`RESOURCE_EXHAUSTED`). Requests are read
    /// whole, up to `max_bytes`.
    ///
    /// This holds for unary methods, and not for those without side effects (`NO_SIDE_EFFECTS`): repeating those
    /// harms nobody. Calls that stream are never deduped, nor those without an ID. The service must be in
    /// [the node's descriptors](crate::NodeBuilder::descriptors), or in [its own](Self::descriptors). Service wards
    /// only.
    #[must_use]
    pub fn dedupe(self, window: Duration, max_entries: usize, max_bytes: usize) -> Self {
        let limits = Limits { window, entries: max_entries, bytes: max_bytes };
        self.on_terms("dedupe", |terms| terms.dedupe = Some(limits))
    }

    /// Where calls find it.
    ///
    /// # Errors
    /// What does not go together, in one line.
    pub(crate) fn route(&self, methods: &Methods) -> Result<Option<Arc<Route>>, String> {
        let Some(Watched::Service { names, terms, .. }) = self.work.watched() else { return Ok(None) };
        let twins = terms.dedupe.map(|limits| Twins::new(limits, names, methods)).transpose();
        let twins = twins.map_err(|what| format!("ward {}: {what}", self.name()))?;
        Ok(Some(Route::new(self.name.clone(), twins)))
    }

    fn on_terms(mut self, what: &'static str, set: impl FnOnce(&mut Terms)) -> Self {
        match self.work.watched_mut() {
            Some(Watched::Service { terms, .. }) => set(terms),
            _ => self.misplaced = Some(what),
        }
        self
    }

    /// An encoded `FileDescriptorSet` that server reflection tells while the node hosts this ward: for one that
    /// comes and goes. (Those given to [`NodeBuilder::descriptors`](crate::NodeBuilder::descriptors) stay.) Service
    /// wards only.
    #[must_use]
    pub fn descriptors(mut self, encoded: &'static [u8]) -> Self {
        match self.work.watched_mut() {
            Some(Watched::Service { descriptors, .. }) => descriptors.push(encoded),
            _ => self.misplaced = Some("descriptors"),
        }
        self
    }

    /// See [`Self::descriptors`].
    pub(crate) fn described(&self) -> &[&'static [u8]] {
        match self.work.watched() {
            Some(Watched::Service { descriptors, .. }) => descriptors,
            _ => &[],
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What does not go together, in one line.
    pub(crate) fn check(&self) -> Result<(), String> {
        if let Some(what) = self.misplaced {
            return Err(format!("ward {}: {what} is for service wards", self.name()));
        }
        let checked = match self.work.watched() {
            Some(Watched::Process(program)) => program.check(self.spec.pulse_timeout),
            Some(Watched::Service { terms, .. }) => terms.check().map_err(str::to_owned),
            None => Ok(()),
        };
        checked.map_err(|what| format!("ward {}: {what}", self.name()))
    }

    /// Full names of the gRPC services it answers.
    pub(crate) fn services(&self) -> &[String] {
        match self.work.watched() {
            Some(Watched::Service { names, .. }) => names,
            _ => &[],
        }
    }

    /// What it promises, under its name.
    pub(crate) fn promises(&self) -> WardSpec {
        WardSpec { name: self.name.clone(), ..(*self.spec).clone() }
    }

    pub(crate) fn kind(&self) -> v1::WardKind {
        match self.work.watched() {
            None => v1::WardKind::Task,
            Some(Watched::Service { .. }) => v1::WardKind::Service,
            Some(Watched::Process(_)) => v1::WardKind::Process,
        }
    }
}

impl fmt::Debug for Ward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ward")
            .field("name", &self.name)
            .field("kind", &self.kind())
            .field("spec", &self.spec)
            .field("services", &self.services())
            .finish()
    }
}

/// How an incarnation is told to end: `None` until it is, then the grace it is given.
pub(crate) type StopSignal = watch::Receiver<Option<Duration>>;

/// Waits for the order to stop.
async fn ordered_to_stop(signal: &mut StopSignal) -> Duration {
    match signal.wait_for(Option::is_some).await {
        Ok(grace) => grace.unwrap_or_default(),
        // The host is gone: so is any reason to be patient.
        Err(_) => Duration::ZERO,
    }
}

/// How an incarnation ended.
pub(crate) struct Ended {
    pub(crate) kind: v1::ExitKind,
    pub(crate) error: Option<Error>,
    pub(crate) traceparent: Option<Arc<str>>,
    /// What is left of it: calls that may finish, or a thread that does not return.
    pub(crate) rest: Option<BoxFuture<'static, ()>>,
}

impl Ended {
    pub(crate) fn new(kind: v1::ExitKind) -> Self {
        Self { kind, error: None, traceparent: None, rest: None }
    }

    /// Not the ward's code failed but ours around it.
    pub(crate) fn by_bug(error: Error) -> Self {
        Self::new(v1::ExitKind::Failed).because(error)
    }

    fn because(mut self, error: Error) -> Self {
        self.error = Some(error);
        self
    }
}

/// What an incarnation is given of its node's.
pub(crate) struct Shared {
    /// Counts threads that do not return.
    pub(crate) leaked: Arc<AtomicU32>,
    pub(crate) guard: Arc<Guard>,
    pub(crate) seat: Seat,
    /// Process wards have one.
    pub(crate) tail: Option<Arc<Tail>>,
}

/// Says which process group an incarnation's program leads, while it does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seat(Arc<AtomicI32>);

impl Seat {
    pub(crate) fn group(&self) -> Option<i32> {
        Some(self.0.load(Relaxed)).filter(|group| *group != 0)
    }

    fn take(&self, group: i32) -> Seated {
        self.0.store(group, Relaxed);
        Seated(self.clone())
    }
}

/// The seat is empty again when this is dropped.
struct Seated(Seat);

impl Drop for Seated {
    fn drop(&mut self) {
        self.0.0.store(0, Relaxed);
    }
}

/// Runs one incarnation to its end. `ready` is called when it has begun to serve. Never takes
/// longer after an order to stop than its grace and a constant, whatever the ward's code does.
pub(crate) async fn run(
    work: Watched,
    route: Arc<Route>,
    incarnation: Arc<Incarnation>,
    stop: StopSignal,
    shared: Shared,
    ready: impl FnOnce() + Send,
) -> Ended {
    match work {
        Watched::Service { factory, terms, .. } => {
            service::run(factory, terms, route, incarnation, stop, shared.leaked, ready).await
        }
        Watched::Process(program) => process::run(program, incarnation, stop, shared, ready).await,
    }
}

/// Something that is left behind and counted until it ends after all.
async fn counted(leaked: Arc<AtomicU32>, rest: impl Future<Output = ()>) {
    leaked.fetch_add(1, Relaxed);
    rest.await;
    leaked.fetch_sub(1, Relaxed);
}
