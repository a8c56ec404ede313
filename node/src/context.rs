//! What a ward's code holds of the world: its name and incarnation, its heartbeats, and the news
//! that it should stop.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue};
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
    ward::{Ended, Output, Program, errand, guard::Guard},
    wellform::Origin,
};

/// What all wards of a node have in common.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) node: Arc<str>,
    /// Where the wards' code runs.
    pub(crate) runtime: Handle,
    /// Where their errors are written down.
    pub(crate) ledger: Ledger,
    /// Tasks that ended by themselves.
    pub(crate) ends: Ends,
    /// Watches over programs.
    pub(crate) guard: Arc<Guard>,
}

impl Home {
    pub(crate) fn new(node: Arc<str>, runtime: Handle, ledger: Ledger, guard: Arc<Guard>) -> Arc<Self> {
        Arc::new(Self { node, runtime, ledger, ends: Ends::default(), guard })
    }
}

/// One run of a ward, from start to end. Its number, unlike its ward's name, never returns.
///
/// There may be very many of them: what an idle task has no use for is made when it is first needed.
#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) home: Arc<Home>,
    pub(crate) ward: Arc<str>,
    pub(crate) number: u64,
    pub(crate) heart: Heart,
    pub(crate) slot: u32,
    /// It was told to stop by its host: who ends now does not end by himself.
    pub(crate) ordered: AtomicBool,
    stopped: AtomicBool,
    stopping: Notify,
    parts: OnceLock<Box<Parts>>,
}

#[derive(Debug)]
struct Parts {
    /// The order to stop as a token.
    stop: CancellationToken,
    abort: CancellationToken,
    work: TaskTracker,
    recorder: Recorder,
    signature: Vec<(HeaderName, HeaderValue)>,
    failure: OnceLock<Failure>,
    failed: Notify,
    status: Mutex<String>,
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
        home: Arc<Home>,
        ward: Arc<str>,
        slot: u32,
        number: u64,
        stall_timeout: Option<Duration>,
    ) -> Arc<Self> {
        Arc::new(Self {
            home,
            ward,
            number,
            heart: Heart::new(stall_timeout),
            slot,
            ordered: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            stopping: Notify::new(),
            parts: OnceLock::new(),
        })
    }

    pub(crate) fn origin(&self) -> Origin<'_> {
        let Home { node, ledger, .. } = &*self.home;
        Origin { node, ward: &self.ward, incarnation: self.number, ledger }
    }

    fn parts(&self) -> &Parts {
        self.parts.get_or_init(|| {
            let Home { node, ledger, .. } = &*self.home;
            Box::new(Parts {
                stop: CancellationToken::new(),
                abort: CancellationToken::new(),
                work: TaskTracker::new(),
                recorder: ledger.recorder(node.clone(), self.ward.clone(), self.number),
                signature: self.sign(),
                failure: OnceLock::new(),
                failed: Notify::new(),
                status: Mutex::default(),
            })
        })
    }

    /// Says "stop" to the ward's own code.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.stopping.notify_waiters();
        if let Some(parts) = self.parts.get() {
            parts.stop.cancel();
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// The same as a token.
    fn stop_token(&self) -> &CancellationToken {
        let token = &self.parts().stop;
        // Who stops looks for a token after having said so: one of both sees the other.
        if self.is_stopped() {
            token.cancel();
        }
        token
    }

    /// Waits for [`Incarnation::stop`].
    pub(crate) async fn stopped(&self) {
        let woken = self.stopping.notified();
        if !self.is_stopped() {
            woken.await;
        }
    }

    /// Says "too late" to calls in progress: they are dropped.
    pub(crate) fn abort(&self) -> &CancellationToken {
        &self.parts().abort
    }

    /// Calls and blocking work in progress.
    pub(crate) fn work(&self) -> &TaskTracker {
        &self.parts().work
    }

    /// It has begun something else than what is polled by its own task.
    pub(crate) fn has_work(&self) -> bool {
        self.parts.get().is_some_and(|parts| !parts.work.is_empty())
    }

    /// Takes down errors that its calls run into.
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.parts().recorder
    }

    /// What its replies say of who answered.
    pub(crate) fn signature(&self) -> &[(HeaderName, HeaderValue)] {
        &self.parts().signature
    }

    fn sign(&self) -> Vec<(HeaderName, HeaderValue)> {
        let text = |text: &str| HeaderValue::from_str(text).ok();
        [
            (context::NODE, text(&self.home.node)),
            (context::WARD, text(&self.ward)),
            (context::INCARNATION, Some(HeaderValue::from(self.number))),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }

    pub(crate) fn set_status(&self, status: String) {
        *self.parts().status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// What it says of itself, if anything.
    pub(crate) fn status(&self) -> Option<MutexGuard<'_, String>> {
        self.parts.get().map(|parts| parts.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records the first failure and wakes whoever watches over this incarnation.
    pub(crate) fn fail(&self, failure: Failure) {
        let parts = self.parts();
        if parts.failure.set(failure).is_ok() {
            parts.failed.notify_one();
        }
    }

    /// Ends when the incarnation failed.
    pub(crate) async fn failed(&self) -> Failure {
        let parts = self.parts();
        loop {
            let woken = parts.failed.notified();
            if let Some(failure) = parts.failure.get() {
                return failure.clone();
            }
            woken.await;
        }
    }
}

/// Tasks that ended by themselves, for their host. There are no more of them than incarnations.
#[derive(Default)]
pub(crate) struct Ends {
    ended: Mutex<VecDeque<(Arc<Incarnation>, Ended)>>,
    news: Notify,
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ends")
    }
}

impl Ends {
    pub(crate) fn tell(&self, incarnation: Arc<Incarnation>, ended: Ended) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push_back((incarnation, ended));
        self.news.notify_one();
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&self) -> (Arc<Incarnation>, Ended) {
        loop {
            let news = self.news.notified();
            if let Some(end) = self.ended.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return end;
            }
            news.await;
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
    pub(crate) request: Arc<RequestContext>,
    pub(crate) end: End,
    /// Whose cost is kept account of, if it is.
    pub(crate) attempt: Option<Arc<Attempt>>,
    /// Its place in its ward, while it has one.
    pub(crate) pass: Weak<Pass>,
}

/// The news that a call is over, or cut off. Few handlers ask for it: its token is made when one does.
#[derive(Debug)]
pub(crate) struct End {
    cut: CancellationToken,
    over: AtomicBool,
    token: OnceLock<CancellationToken>,
}

impl End {
    /// `cut` may end it early.
    pub(crate) fn new(cut: CancellationToken) -> Self {
        Self { cut, over: AtomicBool::new(false), token: OnceLock::new() }
    }

    fn token(&self) -> &CancellationToken {
        let token = self.token.get_or_init(|| self.cut.child_token());
        // Who ends it looks for a token after having said so: one of both sees the other.
        if self.over.load(SeqCst) {
            token.cancel();
        }
        token
    }

    fn has_come(&self) -> bool {
        self.over.load(SeqCst) || self.cut.is_cancelled()
    }
}

/// Dropping it ends the call.
#[derive(Debug)]
pub(crate) struct EndOnDrop(pub(crate) Arc<CallParts>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let end = &self.0.end;
        end.over.store(true, SeqCst);
        if let Some(token) = end.token.get() {
            token.cancel();
        }
    }
}

impl WardContext {
    pub(crate) fn of_ward(incarnation: Arc<Incarnation>) -> Self {
        Self { incarnation, call: None }
    }

    pub(crate) fn of_call(incarnation: Arc<Incarnation>, call: Arc<CallParts>) -> Self {
        Self { incarnation, call: Some(call) }
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
        let Incarnation { home, ward, number, .. } = &*self.incarnation;
        home.ledger.write(&error.at(&home.node, ward, *number));
    }

    /// The context of the call this request belongs to; `None` outside a node.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.incarnation.home.node
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
        self.call.as_ref().map(|call| &*call.request)
    }

    /// Time left until the caller stops waiting, within a call.
    pub fn remaining(&self) -> Option<Duration> {
        self.request().map(|request| request.remaining(Instant::now()))
    }

    /// Outside calls: cancelled when the ward is to stop. Within a call: when nobody waits for it any
    /// more, or when its ward has stopped and the grace for calls in progress is over.
    pub fn cancellation(&self) -> &CancellationToken {
        self.call.as_ref().map_or_else(|| self.incarnation.stop_token(), |call| call.end.token())
    }

    /// Waits until it is cancelled.
    pub async fn cancelled(&self) {
        match &self.call {
            Some(call) => call.end.token().cancelled().await,
            None => self.incarnation.stopped().await,
        }
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
        match &self.call {
            Some(call) => call.end.has_come() || self.remaining() == Some(Duration::ZERO),
            None => self.incarnation.is_stopped(),
        }
    }

    /// To be asked now and then by long computations, with `?`.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`] when there is no point in going on.
    pub fn preempt_point(&self) -> Result<(), NodeError> {
        if self.is_cancelled() { Err(NodeError::Cancelled) } else { Ok(()) }
    }

    /// "I am alive": for wards with a pulse timeout. Costs a load and a store.
    #[inline]
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
        self.incarnation.set_status(status.into());
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
            _token: self.incarnation.work().token(),
        };
        let span = tracing::Span::current();
        let run = self.incarnation.home.runtime.spawn_blocking(move || {
            let _claim = claim;
            let _entered = span.enter();
            // The error of a panic is made within the request's scope: it knows the way it came.
            let run = || panics::contain(|| metered(context.attempt().as_deref(), || work(&context)));
            match &context.call {
                Some(call) => context::sync_scope(call.request.clone(), run),
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
