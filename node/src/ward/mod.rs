//! What a node hosts. A [`Ward`] says what it is, what it promises and how it is treated; one file
//! per kind says how it runs and how it is brought to an end.

pub(crate) mod guard;
mod orphan;
pub(crate) mod output;
mod probe;
mod process;
mod program;
mod sd_notify;
mod service;
mod task;

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tonic::{body::Body, server::NamedService};
use tower::{Service, util::BoxCloneSyncService};
use wardkeep_proto::{Error, v1};
use wardkeep_steward::{Restart, WardSpec};

pub use program::Program;
pub(crate) use service::{Live, Route};

use self::{guard::Guard, output::Tail};
use crate::context::{Incarnation, WardContext};

pub(crate) type BoxedService = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;
type ServiceFactory = Arc<dyn Fn(WardContext) -> BoxedService + Send + Sync>;
type TaskFactory = Arc<dyn Fn(WardContext) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// What is abandoned gets this long, after its grace and its abort, before it is left behind.
const ABORT_PATIENCE: Duration = Duration::from_millis(250);

/// One supervised unit of a node: a tonic service, a background task or an external program.
#[derive(Clone)]
pub struct Ward {
    pub(crate) spec: WardSpec,
    pub(crate) services: Vec<String>,
    pub(crate) descriptors: Vec<&'static [u8]>,
    pub(crate) work: Work,
}

#[derive(Clone)]
pub(crate) enum Work {
    Service { factory: ServiceFactory, on_panic: OnPanic },
    Task(TaskFactory),
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
        let factory: ServiceFactory = Arc::new(move |context| BoxCloneSyncService::new(factory(context)));
        let mut ward = Self::new(name, Work::Service { factory, on_panic: OnPanic::default() });
        ward.services.push(S::NAME.to_owned());
        ward
    }

    /// A background loop. It ends well with `Ok`, fails with `Err` or a panic, and should return
    /// soon after [`WardContext::cancelled`].
    pub fn task<F, Fut>(name: impl Into<Arc<str>>, factory: F) -> Self
    where
        F: Fn(WardContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let factory: TaskFactory = Arc::new(move |context| Box::pin(factory(context)));
        Self::new(name, Work::Task(factory))
    }

    /// An external program, in a process group of its own.
    pub fn process(name: impl Into<Arc<str>>, program: Program) -> Self {
        let pulse_timeout = program.default_pulse_timeout();
        let mut ward = Self::new(name, Work::Process(Arc::new(program)));
        ward.spec.pulse_timeout = pulse_timeout;
        ward
    }

    fn new(name: impl Into<Arc<str>>, work: Work) -> Self {
        Self { spec: WardSpec::new(name), services: Vec::new(), descriptors: Vec::new(), work }
    }

    /// Puts it into a group. A name without a declaration has the default strategy and limits.
    #[must_use]
    pub fn group(mut self, name: impl Into<Arc<str>>) -> Self {
        self.spec.group = Some(name.into());
        self
    }

    /// What follows its end.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.spec.restart = restart;
        self
    }

    /// A unit of work older than this is a stall, and the ward is restarted. A call is one unit, of
    /// which the time it waits for its caller does not count, and each message of a streamed reply
    /// begins anew: a stream must say something at least this often.
    #[must_use]
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.spec.stall_timeout = Some(timeout);
        self
    }

    /// The ward's code calls [`WardContext::pulse`] (a program: `WATCHDOG=1`) at least this often.
    #[must_use]
    pub fn pulse_timeout(mut self, timeout: Duration) -> Self {
        self.spec.pulse_timeout = Some(timeout);
        if let Work::Process(program) = &mut self.work {
            Arc::make_mut(program).pulses_within(timeout);
        }
        self
    }

    /// It must be ready this long after its start.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.spec.start_timeout = Some(timeout);
        self
    }

    /// What a stop allows before it becomes forceful.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.spec.grace = grace;
        self
    }

    /// Its end counts for the automatic shutdown of its group. For transient and temporary wards.
    #[must_use]
    pub fn significant(mut self) -> Self {
        self.spec.significant = true;
        self
    }

    /// It does not start with its node but when an operator starts it.
    #[must_use]
    pub fn manual_start(mut self) -> Self {
        self.spec.manual_start = true;
        self
    }

    /// What a panic in a handler means. Service wards only.
    #[must_use]
    pub fn on_panic(mut self, what: OnPanic) -> Self {
        if let Work::Service { on_panic, .. } = &mut self.work {
            *on_panic = what;
        }
        self
    }

    /// An encoded `FileDescriptorSet` that server reflection tells while the node hosts this ward: for one that
    /// comes and goes. (Those given to [`NodeBuilder::descriptors`](crate::NodeBuilder::descriptors) stay.)
    #[must_use]
    pub fn descriptors(mut self, encoded: &'static [u8]) -> Self {
        self.descriptors.push(encoded);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What does not go together, in one line.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.work {
            Work::Process(program) => {
                program.check(self.spec.pulse_timeout).map_err(|what| format!("ward {}: {what}", self.name()))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn kind(&self) -> v1::WardKind {
        match self.work {
            Work::Service { .. } => v1::WardKind::Service,
            Work::Task(_) => v1::WardKind::Task,
            Work::Process(_) => v1::WardKind::Process,
        }
    }
}

impl fmt::Debug for Ward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ward")
            .field("kind", &self.kind())
            .field("spec", &self.spec)
            .field("services", &self.services)
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
    fn new(kind: v1::ExitKind) -> Self {
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
    work: Work,
    route: Arc<Route>,
    incarnation: Arc<Incarnation>,
    stop: StopSignal,
    shared: Shared,
    ready: impl FnOnce() + Send,
) -> Ended {
    match work {
        Work::Service { factory, on_panic } => {
            service::run(factory, on_panic, route, incarnation, stop, shared.leaked, ready).await
        }
        Work::Task(factory) => task::run(factory, incarnation, stop, shared.leaked, ready).await,
        Work::Process(program) => process::run(program, incarnation, stop, shared, ready).await,
    }
}

/// Something that is left behind and counted until it ends after all.
async fn counted(leaked: Arc<AtomicU32>, rest: impl Future<Output = ()>) {
    leaked.fetch_add(1, Relaxed);
    rest.await;
    leaked.fetch_sub(1, Relaxed);
}
