//! Requests: read once and shared between attempts, or passed through to a single one.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http_body::Frame;
use http_body_util::BodyExt as _;
use tonic::{Status, body::Body};

use crate::{
    error::{CallError, Phase},
    member::Cost,
};

/// How far an attempt got, seen from outside of it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    phase: AtomicU8,
    begun: AtomicBool,
    cost: OnceLock<Cost>,
}

impl Progress {
    pub(crate) fn reached(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Relaxed))
    }

    /// The member says that it has begun the work.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Relaxed);
    }

    /// Whether it has; true once.
    pub(crate) fn take_begun(&self) -> bool {
        self.begun.swap(false, Relaxed)
    }

    /// What the member said of the end of the attempt, which nobody waited for. The first word counts.
    pub(crate) fn cost(&self, cost: Cost) {
        let _ = self.cost.set(cost);
    }

    pub(crate) fn told(&self) -> Option<Cost> {
        self.cost.get().copied()
    }
}

/// The body of a request.
#[derive(Clone)]
pub(crate) enum Payload {
    /// Read whole; any attempt can have it.
    Shared(Bytes),
    /// Passed through to one attempt at a time.
    Once(Arc<Mutex<Passed>>),
}

/// Of a body that is passed through so much is kept, to send it again should nobody have looked at it.
const KEPT: usize = 64 << 10;

/// A body that is passed through.
pub(crate) struct Passed {
    rest: Option<Body>,
    /// What has been read of it.
    kept: Vec<Bytes>,
    size: usize,
    /// More has been read than is kept.
    lost: bool,
    /// The attempt that sends it: the latest.
    turn: u32,
}

impl Payload {
    pub(crate) fn once(body: Body) -> Self {
        let passed = Passed { rest: Some(body), kept: Vec::new(), size: 0, lost: false, turn: 0 };
        Self::Once(Arc::new(Mutex::new(passed)))
    }

    /// Whether another attempt can send it from its beginning.
    pub(crate) fn is_at_hand(&self) -> bool {
        match self {
            Self::Shared(_) => true,
            Self::Once(passed) => !passed.lock().unwrap_or_else(PoisonError::into_inner).lost,
        }
    }

    /// Reads a body of at most `limit` bytes.
    pub(crate) async fn read(mut body: Body, limit: usize, method: &str) -> Result<Self, CallError> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|status| CallError::RequestUnreadable { method: method.to_owned(), status })?;
            let Ok(chunk) = frame.into_data() else { continue };
            if first.len() + all.len() + chunk.len() > limit {
                return Err(CallError::RequestTooLarge { method: method.to_owned(), limit });
            }
            // A unary request is one chunk, and is not copied.
            if first.is_empty() && all.is_empty() {
                first = chunk;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&chunk);
            }
        }
        Ok(Self::Shared(if all.is_empty() { first } else { all.freeze() }))
    }
}

/// What all attempts of a call have in common.
pub(crate) struct Template {
    pub(crate) parts: Parts,
    pub(crate) payload: Payload,
}

impl Template {
    /// A request for one attempt, which tells of its progress.
    pub(crate) fn request(&self, progress: Arc<Progress>) -> http::Request<Body> {
        let body = Sending { payload: Some(self.payload.clone()), passing: None, progress };
        let mut request = http::Request::new(Body::new(body));
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.version_mut() = self.parts.version;
        *request.headers_mut() = self.parts.headers.clone();
        *request.extensions_mut() = self.parts.extensions.clone();
        request
    }
}

/// The body of an attempt's request.
struct Sending {
    /// Until the first poll.
    payload: Option<Payload>,
    passing: Option<Passing>,
    progress: Arc<Progress>,
}

/// An attempt's turn with a body that is passed through.
struct Passing {
    passed: Arc<Mutex<Passed>>,
    turn: u32,
    /// Sent of what is kept.
    sent: usize,
}

impl Passing {
    fn begin(passed: Arc<Mutex<Passed>>) -> Self {
        let turn = {
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            passed.turn += 1;
            passed.turn
        };
        Self { passed, turn, sent: 0 }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut guard = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = &mut *guard;
        // Never less than the whole.
        if passed.turn != self.turn || (passed.lost && self.sent == 0) {
            return Poll::Ready(Some(Err(Status::unavailable("the request is sent by another attempt"))));
        }
        if let Some(chunk) = passed.kept.get(self.sent).filter(|_| !passed.lost) {
            self.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        let Some(rest) = passed.rest.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(http_body::Body::poll_frame(Pin::new(rest), cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(chunk) = frame.data_ref() {
                    self.sent += 1;
                    passed.size += chunk.len();
                    passed.lost |= passed.size > KEPT;
                    if passed.lost {
                        passed.kept = Vec::new();
                    } else {
                        passed.kept.push(chunk.clone());
                    }
                }
            }
            Some(Err(_)) => passed.lost = true,
            None => passed.rest = None,
        }
        Poll::Ready(frame)
    }

    fn is_over(&self) -> bool {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let caught_up = passed.lost || self.sent >= passed.kept.len();
        passed.turn == self.turn
            && caught_up
            && passed.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.payload.take() {
            Some(Payload::Shared(bytes)) => {
                // hyper takes what it asked for; nothing but the reply is left to wait for.
                self.progress.reached(Phase::Headers);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            Some(Payload::Once(passed)) => {
                self.progress.reached(Phase::Send);
                self.passing = Some(Passing::begin(passed));
            }
            None => {}
        }
        let Some(passing) = self.passing.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(passing.poll(cx));
        if frame.is_none() {
            self.progress.reached(Phase::Headers);
            self.passing = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_none() && self.passing.as_ref().is_none_or(Passing::is_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};

    fn body(chunks: &[&'static str]) -> Body {
        let frames: Vec<_> = chunks.iter().map(|c| Ok::<_, Status>(Frame::data(Bytes::from(*c)))).collect();
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_request_is_read_up_to_its_bound_and_no_further() {
        let Ok(Payload::Shared(bytes)) = Payload::read(body(&["ab", "cd", "e"]), 5, "/m").await else {
            panic!("5 bytes fit into 5")
        };
        assert_eq!(bytes, "abcde");
        let refused = Payload::read(body(&["ab", "cd", "ef"]), 5, "/m").await.err();
        assert!(matches!(refused, Some(CallError::RequestTooLarge { limit: 5, .. })));
    }

    #[tokio::test]
    async fn a_single_chunk_is_not_copied() {
        let bytes = Bytes::from(vec![1; 100]);
        let Ok(Payload::Shared(read)) = Payload::read(Body::new(Full::new(bytes.clone())), 100, "/m").await
        else {
            panic!("100 bytes fit into 100")
        };
        assert_eq!(read.as_ptr(), bytes.as_ptr());
    }

    #[tokio::test]
    async fn a_body_that_was_not_begun_can_be_sent_by_the_next_attempt() {
        let template =
            Template { parts: http::Request::new(()).into_parts().0, payload: Payload::once(body(&["x"])) };
        drop(template.request(Arc::default()));
        let progress = Arc::new(Progress::default());
        let request = template.request(progress.clone());
        assert_eq!(progress.phase(), Phase::Connect);
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "x");
        assert_eq!(progress.phase(), Phase::Headers);
    }

    fn template(chunks: &[&'static str]) -> Template {
        Template { parts: http::Request::new(()).into_parts().0, payload: Payload::once(body(chunks)) }
    }

    async fn text(request: http::Request<Body>) -> Result<Bytes, Status> {
        Ok(request.into_body().collect().await?.to_bytes())
    }

    #[tokio::test]
    async fn a_body_that_was_sent_is_sent_whole_again_by_the_next_attempt_and_by_no_other() {
        let template = template(&["a", "b", "c"]);
        let mut half = template.request(Arc::default()).into_body();
        assert_eq!(half.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        assert_eq!(text(template.request(Arc::default())).await.unwrap(), "abc");
        assert!(half.frame().await.unwrap().is_err(), "its turn is over");
        assert!(template.payload.is_at_hand());
        assert_eq!(text(template.request(Arc::default())).await.unwrap(), "abc");
    }

    #[tokio::test]
    async fn of_a_body_too_long_to_be_kept_nothing_is_sent_again() {
        static LONG: [u8; KEPT] = [b'x'; KEPT];
        let template = template(&["a", std::str::from_utf8(&LONG).unwrap(), "b"]);
        assert_eq!(text(template.request(Arc::default())).await.unwrap().len(), KEPT + 2);
        assert!(!template.payload.is_at_hand());
        assert!(text(template.request(Arc::default())).await.is_err());
    }
}
