//! A call to one incarnation of a ward, from its headers to its response's headers.
//!
//! It waits for its turn, gives the handler its context, counts the work, holds the deadline, contains panics,
//! drops the call when its caller has gone, it was withdrawn or its ward is stopped, and lets nothing
//! out that is not a well-formed error.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tonic::body::Body;
use tracing::Instrument as _;
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
    error::Code,
    trace, v1,
};

use crate::{
    body::{CallBody, Claim, Course, Inbound},
    calls::{Attempt, Calls, Ticket},
    context::{CallParts, End, EndOnDrop, Failure, Incarnation, WardContext},
    entrance::{refuse, unbegun},
    error::NodeError,
    gate::{Full, Gate, Pass},
    load,
    panics::{self, Contained},
    tied, twins,
    ward::{Live, OnPanic},
    wellform,
};

/// A call, and where it is served.
pub(crate) struct Call {
    pub(crate) live: Arc<Live>,
    pub(crate) context: Arc<RequestContext>,
    pub(crate) span: tracing::Span,
    /// Says "too late" to it: its ward's end, or its own.
    pub(crate) cut: CancellationToken,
    /// Set if it can be named from outside.
    pub(crate) attempt: Option<Arc<Attempt>>,
    /// Its reply's head has been sent when it is let in.
    is_tied: bool,
    /// Set if its caller wants to know how busy the ward is.
    load_of: Option<Arc<Calls>>,
}

/// What a call holds of its ward from its arrival on, be it let in or not.
pub(crate) struct Presence {
    token: TaskTrackerToken,
    ticket: Option<Ticket>,
}

impl Presence {
    /// For a call that cannot be named from outside.
    pub(crate) fn unnamed(call: &Call) -> Self {
        Self { token: call.incarnation().work().token(), ticket: None }
    }
}

/// Serves a call.
pub(crate) async fn serve(live: Arc<Live>, calls: Arc<Calls>, request: Request<Body>) -> Response<Body> {
    let incarnation = live.incarnation.clone();
    let headers = request.headers();
    let mut context = RequestContext::from_headers(request.uri().path(), headers, Instant::now());
    let id = context::call_id(headers, &context);
    let load_of = headers.contains_key(context::REQUEST_ID).then(|| calls.clone());
    let is_tied = headers.get(context::TIED).is_some_and(|value| value == "1");
    context.enter(incarnation.home.node.clone(), incarnation.ward.clone(), incarnation.number);
    context.recorder = Some(incarnation.recorder().clone());
    let span = tracing::info_span!(target: trace::CALLS, "ward.call", otel.name = %context.method, otel.kind = "server",
        rpc.system = "grpc", ward = %incarnation.ward, incarnation = incarnation.number,
        request = %context.request_id, attempt = context.attempt);
    trace::follow(&span, headers);

    let token = incarnation.work().token();
    let named = id.and_then(|id| {
        let cut = incarnation.abort().child_token();
        calls.enter((id, context.attempt), cut.clone()).map(|ticket| (ticket, cut))
    });
    let (ticket, cut) =
        named.map_or((None, incarnation.abort().clone()), |(ticket, cut)| (Some(ticket), cut));
    let attempt = ticket.as_ref().map(|ticket| ticket.attempt.clone());
    let presence = Presence { token, ticket };
    let twins = live.twins.clone().filter(|twins| twins.concern(&context.method)).zip(id);
    let call = Arc::new(Call { live, context: Arc::new(context), span, cut, attempt, is_tied, load_of });
    if let Some((twins, id)) = twins {
        return Box::pin(twins::serve(twins, call, id, presence, request, is_tied)).await;
    }
    match call.admit().await {
        Ok(pass) if is_tied => tied::serve(call, pass, presence, request),
        Ok(pass) => call.handle(pass, presence, request).await,
        Err(error) => unbegun(call.fail(error)),
    }
}

impl Call {
    pub(crate) fn incarnation(&self) -> &Arc<Incarnation> {
        &self.live.incarnation
    }

    /// A run of it that goes on for others, too.
    pub(crate) fn run_of(first: &Self, cut: CancellationToken) -> Self {
        let (live, context, span) = (first.live.clone(), first.context.clone(), first.span.clone());
        Self { live, context, span, cut, attempt: None, is_tied: false, load_of: None }
    }

    /// Does something as part of it, for as long as it may.
    ///
    /// # Errors
    /// It was cut off.
    pub(crate) async fn before_its_end<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        let bounded = context::scope(self.context.clone(), async {
            tokio::select! {
                biased;
                () = self.cut.cancelled() => Err(self.cut_off()),
                () = tokio::time::sleep_until(self.context.deadline) => Err(self.cut_off()),
                done = work => Ok(done),
            }
        });
        bounded.instrument(self.span.clone()).await
    }

    /// Waits until it is let in.
    ///
    /// # Errors
    /// Its work must not begin.
    pub(crate) async fn admit(&self) -> Result<Option<Arc<Pass>>, Error> {
        // Between the look at its route and here its ward may have begun to stop: nobody would wait for this call.
        if self.is_cut() || self.incarnation().is_stopped() {
            return Err(self.within(|| self.turned_away()));
        }
        let pass = match &self.live.gate {
            Some(gate) => Some(Arc::new(match gate.try_enter() {
                Some(pass) => pass,
                None => Box::pin(self.wait_at(gate)).await?,
            })),
            None => None,
        };
        if self.attempt.as_ref().is_some_and(|attempt| !attempt.begin()) {
            return Err(self.within(|| self.cut_off()));
        }
        Ok(pass)
    }

    async fn wait_at(&self, gate: &Arc<Gate>) -> Result<Pass, Error> {
        let incarnation = self.incarnation();
        let entered = context::scope(self.context.clone(), async {
            tokio::select! {
                biased;
                () = self.cut.cancelled() => Err(self.turned_away()),
                () = incarnation.stopped() => Err(self.turned_away()),
                () = tokio::time::sleep_until(self.context.deadline) => Err(self.turned_away()),
                entered = gate.enter() => entered.map_err(|Full(pushback)| {
                    let ward = incarnation.ward.to_string();
                    NodeError::QueueFull { ward, waiting: gate.waiting(), pushback }.into()
                }),
            }
        });
        entered.instrument(self.span.clone()).await
    }

    /// Has the ward answer.
    pub(crate) fn handle(
        self: Arc<Self>,
        pass: Option<Arc<Pass>>,
        presence: Presence,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let incarnation = self.incarnation();
        let course = Arc::new(Course::new(incarnation.heart.work()));
        let parts = Arc::new(CallParts {
            request: self.context.clone(),
            end: End::new(self.cut.clone()),
            attempt: self.attempt.clone(),
            pass: pass.as_ref().map(Arc::downgrade).unwrap_or_default(),
        });
        let claim = Claim {
            _end: EndOnDrop(parts.clone()),
            course: course.clone(),
            _pass: pass,
            _token: presence.token,
            _ticket: presence.ticket,
        };
        let mut request = request.map(|body| Body::new(Inbound::new(body, course)));
        request.extensions_mut().insert(WardContext::of_call(incarnation.clone(), parts));
        let handler = Metered {
            inner: Contained::new(self.live.service.serve(request)),
            attempt: self.attempt.clone(),
        };
        // Not an `async fn`, which would keep room for the request as long as it lasts.
        self.await_answer(handler, claim)
    }

    async fn await_answer(
        self: Arc<Self>,
        handler: impl Future<Output = Result<Response<Body>, Error>>,
        claim: Claim,
    ) -> Response<Body> {
        let incarnation = self.incarnation();
        // All of it within the request's scope: whatever error is made here knows the way it came.
        let guarded = context::scope(self.context.clone(), async {
            tokio::select! {
                biased;
                // First: one that heard that it was cancelled may have an answer of its own to that.
                () = self.cut_already() => Err(self.cut_off()),
                answered = handler => {
                    // The fence: an incarnation that was left behind has no say any more, whatever it answers.
                    if incarnation.abort().is_cancelled() {
                        self.live.fence();
                        return Err(self.cut_off());
                    }
                    answered
                }
                () = self.cut.cancelled() => Err(self.cut_off()),
                () = tokio::time::sleep_until(self.context.deadline) => Err(self.cut_off()),
            }
        });
        match guarded.instrument(self.span.clone()).await {
            // Nobody waits for the answer, which is only that the request was not whole: no bug of the ward.
            Ok(response) if claim.course.broke_off() => {
                panics::discard(response);
                let mut response = refuse(NodeError::Cancelled.into());
                sign(response.headers_mut(), incarnation);
                response
            }
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                if head.headers.contains_key("grpc-status") {
                    let adopt = || wellform::headers(&mut head.headers, incarnation.origin());
                    self.span.in_scope(|| self.within(adopt));
                    self.seal(&mut head.headers);
                }
                sign(&mut head.headers, incarnation);
                let body = CallBody::new(body, claim, self.clone());
                Response::from_parts(head, Body::new(if self.is_tied { body.read_now() } else { body }))
            }
            Err(error) => {
                drop(claim);
                self.fail(error)
            }
        }
    }

    /// Its end by this error, written down once.
    pub(crate) fn fail(&self, error: Error) -> Response<Body> {
        let error = self.settle(error);
        let pushback = (error.kind() == "QUEUE_FULL").then(|| error.retry_after()).flatten();
        let mut response = refuse(error);
        let headers = response.headers_mut();
        headers.extend(pushback.map(|wait| {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            (context::RETRY_PUSHBACK, HeaderValue::from(millis))
        }));
        self.seal(headers);
        sign(headers, self.incarnation());
        response
    }

    /// Says where the error arose, and writes it down, unless it is that somebody wanted it so.
    pub(crate) fn settle(&self, error: Error) -> Error {
        let incarnation = self.incarnation();
        let here = error.as_proto().node.is_empty();
        let error = error.at(&incarnation.home.node, &incarnation.ward, incarnation.number);
        self.span.in_scope(|| {
            // Withdrawn, or left by the last who waited for it: no failure.
            let wanted = self.cut.is_cancelled() && !incarnation.abort().is_cancelled();
            if here && !(wanted && error.code() == Code::Cancelled) {
                incarnation.home.ledger.write(&error);
            }
            self.crash_if_panicked(&error);
        });
        error
    }

    /// What the end of a reply says besides: its fate, if it was withdrawn, and how busy the ward is.
    pub(crate) fn seal(&self, headers: &mut HeaderMap) {
        if let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.is_withdrawn()) {
            headers.insert(context::FATE, attempt.end().header());
        }
        if let Some(calls) = &self.load_of {
            let percent = match &self.live.gate {
                Some(gate) => gate.load(),
                None => calls.utilisation.percent(&self.incarnation().home.runtime),
            };
            headers.insert(context::LOAD, load::header(percent));
        }
    }

    /// Runs a closure as part of this call.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        context::sync_scope(self.context.clone(), work)
    }

    /// Completes at once if it is cut off, without a place among those who wait for that: most handlers answer at once.
    async fn cut_already(&self) {
        poll_fn(|_| if self.cut.is_cancelled() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.is_cancelled() || Instant::now() >= self.context.deadline
    }

    /// Why it was cut off: its ward was stopped, it was withdrawn, or its time is up.
    pub(crate) fn cut_off(&self) -> Error {
        let incarnation = self.incarnation();
        let withdrawn = self.attempt.as_ref().is_some_and(|attempt| attempt.is_withdrawn());
        if incarnation.abort().is_cancelled() {
            stopped(incarnation)
        } else if withdrawn {
            NodeError::Withdrawn { method: self.context.method.to_string() }.into()
        } else if Instant::now() >= self.context.deadline {
            NodeError::DeadlineExceeded { method: self.context.method.to_string() }.into()
        } else if self.cut.is_cancelled() {
            NodeError::Cancelled.into()
        } else {
            stopped(incarnation)
        }
    }

    /// Why it was cut off before its work began: where that is for its ward's end, another may do it, whatever it is.
    fn turned_away(&self) -> Error {
        let incarnation = self.incarnation();
        let withdrawn = self.attempt.as_ref().is_some_and(|attempt| attempt.is_withdrawn());
        let ends = incarnation.is_stopped() || incarnation.abort().is_cancelled();
        if ends && !withdrawn && Instant::now() < self.context.deadline {
            NodeError::WardNotRunning { ward: incarnation.ward.to_string(), state: "stopping" }.into()
        } else {
            self.cut_off()
        }
    }

    /// A panic under [`OnPanic::Restart`] is the end of the incarnation.
    fn crash_if_panicked(&self, error: &Error) {
        let panicked = error.is_malformed() && error.kind() == "PANIC";
        if panicked && self.live.on_panic == OnPanic::Restart {
            self.incarnation().fail(Failure {
                kind: v1::ExitKind::Panicked,
                error: error.clone(),
                traceparent: trace::traceparent(&self.span).map(Into::into),
            });
        }
    }
}

/// What becomes of calls whose ward was stopped and whose grace is over.
fn stopped(incarnation: &Incarnation) -> Error {
    NodeError::Stopped(incarnation.ward.to_string()).into()
}

/// Says who answered.
pub(crate) fn sign(headers: &mut HeaderMap, incarnation: &Incarnation) {
    // A handler may pass on what another node said to it: that was about another call.
    headers.remove(context::REFUSED);
    for (key, value) in incarnation.signature() {
        headers.insert(key.clone(), value.clone());
    }
}

/// A handler whose time is measured, if somebody may ask for it.
struct Metered<F> {
    inner: F,
    attempt: Option<Arc<Attempt>>,
}

impl<F: Future + Unpin> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        metered(this.attempt.as_deref(), || Pin::new(&mut this.inner).poll(cx))
    }
}

/// Counts the time this takes as spent on the attempt.
pub(crate) fn metered<T>(attempt: Option<&Attempt>, work: impl FnOnce() -> T) -> T {
    let Some(attempt) = attempt else { return work() };
    let begun = Instant::now();
    let done = work();
    attempt.worked(begun.elapsed());
    done
}
