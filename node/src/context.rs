//! What a ward's code holds of the world: its name and incarnation, its heartbeats, and the news
//! that it should stop.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use wardkeep_proto::{
    Error,
    context::{self, Recorder, RequestContext},
    v1,
};

use crate::{
    call::metered,
    calls::Attempt,
    error::NodeError,
    gate::Pass,
    heart::{Heart, WorkGuard},
    ledger::Ledger,
    panics,
    ward::{Output, Program, errand, guard::Guard},
    wellform::Origin,
};

/// One run of a ward, from start to end. Its number, unlike its ward's name, never returns.
#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) node: Arc<str>,
    pub(crate) ward: Arc<str>,
    pub(crate) number: u64,
    pub(crate) heart: Arc<Heart>,
    /// Says "stop" to the ward's own code.
    pub(crate) stop: CancellationToken,
    /// Says "too late" to calls in progress: they are dropped.
    pub(crate) abort: CancellationToken,
    /// Calls and blocking work in progress.
    pub(crate) work: TaskTracker,
    /// Where the ward's code runs.
    pub(crate) runtime: Handle,
    /// Where its errors are written down.
    pub(crate) ledger: Ledger,
    /// The same, for what its calls run into.
    pub(crate) recorder: Recorder,
    /// Watches over programs that are run for its calls.
    pub(crate) guard: Arc<Guard>,
    failure: OnceLock<Failure>,
    failed: Notify,
    pub(crate) status: tokio::sync::watch::Sender<String>,
}

/// Why an incarnation cannot go on.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: v1::ExitKind,
    pub(crate) error: Error,
    pub(crate) traceparent: Option<Arc<str>>,
}

impl Incarnation {
    pub(crate) fn new(
        node: Arc<str>,
        ward: Arc<str>,
        number: u64,
        heart: Arc<Heart>,
        runtime: Handle,
        ledger: Ledger,
        guard: Arc<Guard>,
    ) -> Arc<Self> {
        Arc::new(Self {
            recorder: ledger.recorder(node.clone(), ward.clone(), number),
            node,
            ward,
            number,
            heart,
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            work: TaskTracker::new(),
            runtime,
            ledger,
            guard,
            failure: OnceLock::new(),
            failed: Notify::new(),
            status: tokio::sync::watch::Sender::new(String::new()),
        })
    }

    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { node: &self.node, ward: &self.ward, incarnation: self.number, ledger: &self.ledger }
    }

    /// Records the first failure and wakes whoever watches over this incarnation.
    pub(crate) fn fail(&self, failure: Failure) {
        if self.failure.set(failure).is_ok() {
            self.failed.notify_one();
        }
    }

    /// Ends when the incarnation failed.
    pub(crate) async fn failed(&self) -> Failure {
        loop {
            let woken = self.failed.notified();
            if let Some(failure) = self.failure.get() {
                return failure.clone();
            }
            woken.await;
        }
    }
}

/// A ward's view of its incarnation and, within a call, of the call.
///
/// Wards get one when they start. A handler gets the one of its call with
/// [`WardContext::of`]; the difference is that it is also cancelled when the caller has gone or its
/// deadline has passed.
#[derive(Clone, Debug)]
pub struct WardContext {
    incarnation: Arc<Incarnation>,
    call: Option<Arc<CallParts>>,
}

/// What a context knows of its call.
#[derive(Debug)]
pub(crate) struct CallParts {
    pub(crate) request: RequestContext,
    pub(crate) cancel: CancellationToken,
    /// Whose cost is kept account of, if it is.
    pub(crate) attempt: Option<Arc<Attempt>>,
    /// Its place in its ward, while it has one.
    pub(crate) pass: Weak<Pass>,
}

impl WardContext {
    pub(crate) fn of_ward(incarnation: Arc<Incarnation>) -> Self {
        Self { incarnation, call: None }
    }

    pub(crate) fn of_call(incarnation: Arc<Incarnation>, call: CallParts) -> Self {
        Self { incarnation, call: Some(Arc::new(call)) }
    }

    pub(crate) fn attempt(&self) -> Option<Arc<Attempt>> {
        self.call.as_ref()?.attempt.clone()
    }

    pub(crate) fn of_incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// Writes an error down as one that arose in this ward, without ending anything: it is logged, its ID
    /// can be looked up, and it is counted with its like. For failures that a ward lives with.
    pub fn report(&self, error: wardkeep_proto::Error) {
        let Incarnation { node, ward, number, ledger, .. } = &*self.incarnation;
        ledger.write(&error.at(node, ward, *number));
    }

    /// The context of the call this request belongs to; `None` outside a node.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.incarnation.node
    }

    /// Name of the ward.
    pub fn ward(&self) -> &str {
        &self.incarnation.ward
    }

    /// Which run of the ward this is, from 1.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.number
    }

    /// The request being served, within a call.
    pub fn request(&self) -> Option<&RequestContext> {
        self.call.as_ref().map(|call| &call.request)
    }

    /// Time left until the caller stops waiting, within a call.
    pub fn remaining(&self) -> Option<Duration> {
        self.request().map(|request| request.remaining(Instant::now()))
    }

    /// Outside calls: cancelled when the ward is to stop. Within a call: when nobody waits for it any
    /// more, or when its ward has stopped and the grace for calls in progress is over.
    pub fn cancellation(&self) -> &CancellationToken {
        self.call.as_ref().map_or(&self.incarnation.stop, |call| &call.cancel)
    }

    /// Waits until it is cancelled.
    pub async fn cancelled(&self) {
        self.cancellation().cancelled().await;
    }

    /// Runs a program as part of this ward and call, in a process group of its own. The whole group is killed
    /// (SIGKILL) as soon as this future is dropped, the context is cancelled or the deadline passes, and what is left of
    /// it once the program has ended; with the node that is killed it ends, too. Of the program its path, arguments,
    /// environment and directory count. It reads nothing.
    ///
    /// ```
    /// # use wardkeep_node::{Program, WardContext};
    /// # use wardkeep_proto::Error;
    /// async fn solve(context: &WardContext, file: &str) -> Result<Vec<u8>, Error> {
    ///     Ok(context.run(&Program::new("minisat").arg(file)).await?.stdout)
    /// }
    /// ```
    ///
    /// # Errors
    /// It cannot be started ([`NodeError::CannotStart`]); or it was killed before its end
    /// ([`NodeError::Cancelled`]). How it ended is for the caller to judge.
    pub async fn run(&self, program: &Program) -> Result<Output, Error> {
        errand::run(self, program).await
    }

    /// Whether there is no point in going on.
    pub fn is_cancelled(&self) -> bool {
        self.cancellation().is_cancelled() || self.remaining() == Some(Duration::ZERO)
    }

    /// To be asked now and then by long computations, with `?`.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`] when there is no point in going on.
    pub fn preempt_point(&self) -> Result<(), NodeError> {
        if self.is_cancelled() { Err(NodeError::Cancelled) } else { Ok(()) }
    }

    /// "I am alive": for wards with a pulse timeout. Costs one atomic add.
    pub fn pulse(&self) {
        self.incarnation.heart.pulse();
    }

    /// Begins a unit of work of a task ward, which is to end with [`WorkUnit::done`]. The oldest one is
    /// what the stall timeout is held against. Calls of service wards are counted by themselves.
    ///
    /// ```
    /// # use wardkeep_node::WardContext;
    /// # async fn fetch() -> Result<(), wardkeep_proto::Error> { Ok(()) }
    /// async fn poll(context: WardContext) -> Result<(), wardkeep_proto::Error> {
    ///     while !context.is_cancelled() {
    ///         let unit = context.work();
    ///         fetch().await?;
    ///         unit.done();
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn work(&self) -> WorkUnit {
        WorkUnit { _work: self.incarnation.heart.work(), context: self.clone(), done: false }
    }

    /// A line about itself, shown to operators.
    pub fn set_status(&self, status: impl Into<String>) {
        self.incarnation.status.send_replace(status.into());
    }

    /// Runs blocking or computing work on a thread of its own, as part of this ward and call: it
    /// counts as work until it really returns, even if nobody waits for it any more, and it can ask
    /// [`WardContext::preempt_point`] whether to go on.
    ///
    /// # Errors
    /// A malformed error if the work panicked.
    pub fn blocking<T, F>(&self, work: F) -> impl Future<Output = Result<T, Error>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> T + Send + 'static,
    {
        let context = self.clone();
        let claim = Claim {
            _work: self.incarnation.heart.work(),
            // It has its call's place for as long as it has a thread.
            _pass: self.call.as_ref().and_then(|call| call.pass.upgrade()),
            _token: self.incarnation.work.token(),
        };
        let span = tracing::Span::current();
        let run = self.incarnation.runtime.spawn_blocking(move || {
            let _claim = claim;
            let _entered = span.enter();
            // The error of a panic is made within the request's scope: it knows the way it came.
            let run = || panics::contain(|| metered(context.attempt().as_deref(), || work(&context)));
            match context.request().cloned() {
                Some(request) => context::sync_scope(request, run),
                None => run(),
            }
        });
        async move {
            match run.await {
                Ok(result) => result,
                // Only a runtime that shuts down refuses blocking work.
                Err(_) => Err(NodeError::Cancelled.into()),
            }
        }
    }
}

/// One unit of work in progress. Dropping it without [`WorkUnit::done`] is a failure (`WORK_DROPPED`):
/// it is written down and counted with its like, as work that was lost. Not so if the ward
/// was told to stop, nor in a panic, which is told by itself.
#[derive(Debug)]
#[must_use = "dropping a unit of work that is not done is a failure"]
pub struct WorkUnit {
    _work: WorkGuard,
    context: WardContext,
    done: bool,
}

impl WorkUnit {
    /// The work was done.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for WorkUnit {
    fn drop(&mut self) {
        if !self.done && !self.context.is_cancelled() && !std::thread::panicking() {
            let ward = self.context.ward().to_owned();
            self.context.report(NodeError::WorkDropped { ward }.into());
        }
    }
}

/// Held by blocking work for as long as it runs.
struct Claim {
    _work: WorkGuard,
    _pass: Option<Arc<Pass>>,
    _token: TaskTrackerToken,
}
