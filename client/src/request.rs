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

use crate::error::{CallError, Phase};

/// How far an attempt got, seen from outside of it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    phase: AtomicU8,
    begun: AtomicBool,
    fate: OnceLock<String>,
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

    /// What the member said of the attempt's end.
    pub(crate) fn ended_as(&self, fate: String) {
        let _ = self.fate.set(fate);
    }

    pub(crate) fn fate(&self) -> Option<String> {
        self.fate.get().cloned()
    }
}

/// The body of a request.
#[derive(Clone)]
pub(crate) enum Payload {
    /// Read whole; any attempt can have it.
    Shared(Bytes),
    /// Not read. The first attempt that begins to send it takes it.
    Once(Arc<Mutex<Option<Body>>>),
}

impl Payload {
    pub(crate) fn once(body: Body) -> Self {
        Self::Once(Arc::new(Mutex::new(Some(body))))
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
        let body = Sending { payload: Some(self.payload.clone()), taken: None, progress };
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
    taken: Option<Body>,
    progress: Arc<Progress>,
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
            Some(Payload::Once(slot)) => {
                self.progress.reached(Phase::Send);
                self.taken = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            None => {}
        }
        let Some(body) = self.taken.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if frame.is_none() {
            self.progress.reached(Phase::Headers);
            self.taken = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_none() && self.taken.as_ref().is_none_or(Body::is_end_stream)
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
}
