//! A response's body under the same guards as its handler: counted as work until its last byte,
//! bounded by the deadline, dropped when its ward is stopped, its panics contained, its end
//! well-formed.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio_util::{
    sync::{DropGuard, WaitForCancellationFutureOwned},
    task::task_tracker::TaskTrackerToken,
};
use tonic::{Status, body::Body};
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
};

use crate::{entrance, error::NodeError, heart::WorkGuard, panics, ward::Live, wellform};

/// What a call holds while it lasts; dropping it ends the work and cancels the call's context.
pub(crate) struct Claim {
    pub(crate) _cancel: DropGuard,
    pub(crate) _work: WorkGuard,
    pub(crate) _token: TaskTrackerToken,
}

/// See the [module](self).
pub(crate) struct CallBody {
    inner: Option<Body>,
    claim: Option<Claim>,
    live: Arc<Live>,
    context: RequestContext,
    deadline: Pin<Box<tokio::time::Sleep>>,
    aborted: Pin<Box<WaitForCancellationFutureOwned>>,
    span: tracing::Span,
}

impl CallBody {
    pub(crate) fn new(
        inner: Body,
        claim: Claim,
        live: Arc<Live>,
        context: RequestContext,
        span: tracing::Span,
    ) -> Self {
        let ended = inner.is_end_stream();
        Self {
            inner: Some(inner),
            claim: (!ended).then_some(claim),
            deadline: Box::pin(tokio::time::sleep_until(context.deadline)),
            aborted: Box::pin(live.incarnation.abort.clone().cancelled_owned()),
            live,
            context,
            span,
        }
    }

    /// Ends the body with this error in its trailers.
    fn fail(&mut self, error: Error) -> Frame<Bytes> {
        let incarnation = &self.live.incarnation;
        let error = error.at(&incarnation.node, &incarnation.ward, incarnation.number);
        error.log();
        entrance::crash_if_panicked(&self.live, &error, &self.span);
        self.finish();
        let mut trailers = HeaderMap::new();
        // Our own header values are always valid.
        let _ = Status::from(error).add_header(&mut trailers);
        Frame::trailers(trailers)
    }

    fn finish(&mut self) {
        self.inner = None;
        self.claim = None;
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(None) };
        let span = this.span.clone();
        let _entered = span.enter();
        let polled =
            context::sync_scope(this.context.clone(), || panics::contain(|| Pin::new(inner).poll_frame(cx)));
        let polled = match polled {
            Ok(polled) => polled,
            Err(panic) => return Poll::Ready(Some(Ok(this.fail(panic)))),
        };
        if polled.is_pending() {
            if this.aborted.as_mut().poll(cx).is_ready() {
                let error = NodeError::Stopped(this.live.incarnation.ward.to_string());
                return Poll::Ready(Some(Ok(this.fail(error.into()))));
            }
            if this.deadline.as_mut().poll(cx).is_ready() {
                let error = entrance::deadline_passed(&this.context);
                return Poll::Ready(Some(Ok(this.fail(error))));
            }
        }
        Poll::Ready(match ready!(polled) {
            None => {
                this.finish();
                None
            }
            Some(Err(status)) => {
                let error = Error::from_status(&status);
                Some(Ok(this.fail(error)))
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    wellform::headers(trailers, &this.live.incarnation);
                    this.finish();
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}
