//! The bodies of a call under the same guards as its handler: counted as work until the last byte,
//! bounded by the deadline, dropped when the ward is stopped, panics contained, the end well-formed.
//!
//! All of that holds even for a caller that sends or reads slowly, or not at all: what waits for its
//! caller is no stall of the ward, and is let go at its deadline though nobody polls it.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, task_tracker::TaskTrackerToken},
};
use tonic::{Status, body::Body};
use wardkeep_proto::Error;

use crate::{
    call::{self, Call},
    calls::Ticket,
    context::EndOnDrop,
    gate::Pass,
    heart::WorkGuard,
    panics, wellform,
};

/// How long a body that is being polled at its deadline is left alone before the next try.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What a call holds while it lasts; dropping it ends the work and cancels the call's context.
pub(crate) struct Claim {
    pub(crate) _end: EndOnDrop,
    pub(crate) course: Arc<Course>,
    pub(crate) _pass: Option<Arc<Pass>>,
    pub(crate) _token: TaskTrackerToken,
    pub(crate) _ticket: Option<Ticket>,
}

/// How a call goes.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) work: WorkGuard,
    /// Its caller went away in the middle of the request.
    broke_off: AtomicBool,
}

impl Course {
    pub(crate) fn new(work: WorkGuard) -> Self {
        Self { work, broke_off: AtomicBool::new(false) }
    }

    pub(crate) fn broke_off(&self) -> bool {
        self.broke_off.load(Relaxed)
    }
}

/// A request's body. While the handler waits for more of it, the ward is not what is slow.
pub(crate) struct Inbound {
    inner: Body,
    course: Arc<Course>,
}

impl Inbound {
    pub(crate) fn new(inner: Body, course: Arc<Course>) -> Self {
        Self { inner, course }
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_pending() {
            self.course.work.pause()
        } else {
            self.course.work.resume()
        }
        // An error with details is one of ours, about what the caller sent: it is to be told.
        if matches!(&polled, Poll::Ready(Some(Err(status))) if status.details().is_empty()) {
            self.course.broke_off.store(true, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What a response still needs of its ward.
struct Held {
    inner: Body,
    claim: Claim,
}

impl Drop for Held {
    fn drop(&mut self) {
        panics::discard(std::mem::take(&mut self.inner));
    }
}

/// A body that its watch may let go of.
type Shared = Arc<Mutex<Option<Held>>>;

fn lock(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    // Panics are contained within: what is behind the lock is whole.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A response's body.
pub(crate) struct CallBody {
    held: Shared,
    /// Read ahead: a response that is complete lets go of its ward before it is sent.
    next: Option<Frame<Bytes>>,
    /// What follows that.
    after: Option<Frame<Bytes>>,
    over: bool,
    call: Arc<Call>,
    /// Its deadline, or that it was cut off. Most bodies never wait.
    limit: Option<BoxFuture<'static, ()>>,
    watch: Option<AbortOnDropHandle<()>>,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

impl CallBody {
    pub(crate) fn new(inner: Body, claim: Claim, call: Arc<Call>) -> Self {
        let over = inner.is_end_stream();
        Self {
            held: Arc::new(Mutex::new((!over).then_some(Held { inner, claim }))),
            next: None,
            after: None,
            over,
            limit: None,
            watch: None,
            call,
        }
    }

    /// For a body that is not the first to be sent: it is polled when its caller has taken what comes before, which
    /// may be never. So what is there is taken now.
    pub(crate) fn read_now(mut self) -> Self {
        if self.over {
            return self;
        }
        let call = self.call.clone();
        let _entered = call.span.enter();
        // It is polled again by whoever wants more.
        let cx = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = self.poll_ward(cx) {
            self.next = frame;
            if !self.over
                && let Poll::Ready(frame) = self.poll_ward(cx)
            {
                self.after = frame;
            }
        }
        self.await_caller();
        self
    }

    /// It is the caller's turn. If that takes its time, the rest is let go at the deadline.
    fn await_caller(&mut self) {
        if let Some(held) = lock(&self.held).as_ref() {
            held.claim.course.work.pause();
        }
        if !self.over {
            self.watch_over();
        }
    }

    /// Polls the ward's body: contained, within the call's context, its end well-formed.
    fn poll_ward(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let polled: Option<Result<Polled, Error>> = lock(&self.held).as_mut().map(|held| {
            held.claim.course.work.resume();
            let inner = Pin::new(&mut held.inner);
            let poll = || call::metered(self.call.attempt.as_deref(), || inner.poll_frame(cx));
            self.call.within(|| panics::contain(poll))
        });
        let Some(polled) = polled else { return Poll::Ready(Some(self.cut_off())) };
        match polled {
            Err(panic) => Poll::Ready(Some(self.fail(panic))),
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(None)) => {
                self.finish();
                Poll::Ready(None)
            }
            Ok(Poll::Ready(Some(Err(status)))) => {
                let error = self.call.within(|| Error::from_status(&status));
                Poll::Ready(Some(self.fail(error)))
            }
            Ok(Poll::Ready(Some(Ok(mut frame)))) => {
                // The fence: what was left behind has no say any more.
                if self.call.incarnation().abort().is_cancelled() {
                    self.call.live.fence();
                    return Poll::Ready(Some(self.cut_off()));
                }
                if let Some(trailers) = frame.trailers_mut() {
                    let origin = self.call.incarnation().origin();
                    self.call.within(|| wellform::headers(trailers, origin));
                    self.finish();
                    self.call.seal(trailers);
                } else if self.call.is_cut() {
                    return Poll::Ready(Some(self.cut_off()));
                }
                Poll::Ready(Some(frame))
            }
        }
    }

    /// After a message: learns whether it was the last, and sees to it that the rest is let go in
    /// time if the caller reads no further.
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        if let Some(held) = lock(&self.held).as_ref() {
            held.claim.course.work.renew();
        }
        match self.poll_ward(cx) {
            Poll::Ready(Some(frame)) => self.next = Some(frame),
            Poll::Ready(None) => {}
            Poll::Pending => return self.watch_over(),
        }
        self.await_caller();
    }

    /// A body is polled only while its caller reads. The watch does not depend on that.
    fn watch_over(&mut self) {
        if self.watch.is_none() {
            let (held, deadline, cut) =
                (self.held.clone(), self.call.context.deadline, self.call.cut.clone());
            let runtime = &self.call.incarnation().home.runtime;
            let watch = runtime.spawn(let_go_in_time(held, deadline, cut));
            self.watch = Some(AbortOnDropHandle::new(watch));
        }
    }

    /// The end of a body whose ward was stopped, that was withdrawn, or whose time is up.
    fn cut_off(&mut self) -> Frame<Bytes> {
        let error = self.call.within(|| self.call.cut_off());
        self.fail(error)
    }

    /// Ends the body with this error in its trailers.
    fn fail(&mut self, error: Error) -> Frame<Bytes> {
        self.finish();
        let error = self.call.settle(error);
        let mut trailers = HeaderMap::new();
        // Our own header values are always valid.
        let _ = Status::from(error).add_header(&mut trailers);
        self.call.seal(&mut trailers);
        Frame::trailers(trailers)
    }

    fn finish(&mut self) {
        self.over = true;
        self.watch = None;
        let held = lock(&self.held).take();
        drop(held);
    }
}

/// Ends at the call's deadline, or when it is cut off before.
async fn limit(deadline: Instant, cut: CancellationToken) {
    tokio::select! {
        () = cut.cancelled() => {}
        () = tokio::time::sleep_until(deadline) => {}
    }
}

/// Lets go of a body then.
async fn let_go_in_time(held: Shared, deadline: Instant, cut: CancellationToken) {
    limit(deadline, cut).await;
    loop {
        // Where it is being polled just now, the poll must not be waited for on this thread.
        let taken = match held.try_lock() {
            Ok(mut held) => Some(held.take()),
            Err(_) => None,
        };
        if taken.is_some() {
            return;
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        let call = this.call.clone();
        let _entered = call.span.enter();
        let ready = match this.next.take() {
            Some(frame) => {
                this.next = this.after.take();
                frame
            }
            None if this.over => return Poll::Ready(None),
            None => match this.poll_ward(cx) {
                Poll::Ready(Some(frame)) => frame,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let limit = || Box::pin(limit(this.call.context.deadline, this.call.cut.clone()));
                    ready!(this.limit.get_or_insert_with(|| limit()).as_mut().poll(cx));
                    this.cut_off()
                }
            },
        };
        if ready.is_data() && !this.over && this.next.is_none() {
            this.read_ahead(cx);
        }
        Poll::Ready(Some(Ok(ready)))
    }

    fn is_end_stream(&self) -> bool {
        self.over && self.next.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.next {
            None if self.over => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for CallBody {
    fn drop(&mut self) {
        self.finish();
    }
}
