//! Replies: how far they are read to be judged, and the bodies callers get.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt as _;
use tokio::time::Sleep;
use tonic::{Status, body::Body};
use wardkeep_proto::{
    Error,
    context::{RequestContext, sync_scope},
};

use crate::{
    channel::{BoxError, InFlight},
    error::{AttemptError, CallError, arose_here},
    judge::{self, BAD_FLAG, NOT_ONE},
    peer::{self, Peer},
};

/// Finds the borders of gRPC messages in a body's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Framing {
    head: [u8; 5],
    head_len: usize,
    /// Bytes of the current message that are still to come.
    missing: usize,
    /// Messages of which at least one byte was seen.
    pub(crate) begun: usize,
    /// Messages seen whole.
    pub(crate) complete: usize,
    /// Messages may be compressed.
    encoded: bool,
    /// A message was neither compressed as its head announced, nor plain.
    pub(crate) bad_flag: bool,
}

impl Framing {
    /// Of a reply with this head.
    pub(crate) fn of(head: &HeaderMap) -> Self {
        Self { encoded: peer::encoding(head).is_some(), ..Default::default() }
    }

    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.missing > 0 {
                let n = self.missing.min(bytes.len());
                self.missing -= n;
                bytes = &bytes[n..];
                if self.missing == 0 {
                    self.complete += 1;
                }
                continue;
            }
            if self.head_len == 0 {
                self.begun += 1;
                self.bad_flag |= bytes[0] > u8::from(self.encoded);
            }
            self.head[self.head_len] = bytes[0];
            self.head_len += 1;
            bytes = &bytes[1..];
            if self.head_len == self.head.len() {
                self.head_len = 0;
                let [_, a, b, c, d] = self.head;
                self.missing = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.missing == 0 {
                    self.complete += 1;
                }
            }
        }
    }

    /// No message is half seen.
    pub(crate) fn is_whole(&self) -> bool {
        self.begun == self.complete
    }
}

/// A reply that was read to its end.
pub(crate) struct Collected {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Collected {
    pub(crate) fn new(chunks: VecDeque<Bytes>, trailers: HeaderMap) -> Self {
        Self { chunks, trailers: Some(trailers) }
    }
}

impl http_body::Body for Collected {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let chunk = self.chunks.pop_front().map(Frame::data);
        let frame = chunk.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }
}

/// A reply that goes to the caller as it comes: still under the call's deadline, with its framing and
/// its end checked, and in flight on its member until it ends or is dropped.
pub(crate) struct Passing {
    /// What was read to judge it.
    read: VecDeque<Bytes>,
    rest: Option<Body>,
    seen: Framing,
    /// No more and no less than one message is right.
    one: bool,
    peer: Arc<Peer>,
    deadline: Pin<Box<Sleep>>,
    allowed: Duration,
    context: Arc<RequestContext>,
    in_flight: Option<InFlight>,
}

impl Passing {
    pub(crate) fn new(
        read: VecDeque<Bytes>,
        rest: Body,
        seen: Framing,
        peer: Arc<Peer>,
        context: Arc<RequestContext>,
        allowed: Duration,
    ) -> Self {
        Self {
            read,
            rest: Some(rest),
            seen,
            one: false,
            peer,
            deadline: Box::pin(tokio::time::sleep_until(context.deadline)),
            allowed,
            context,
            in_flight: None,
        }
    }

    /// Occupies its member.
    pub(crate) fn in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    pub(crate) fn expecting_one(mut self, one: bool) -> Self {
        self.one = one;
        self
    }

    fn end(&mut self) {
        self.rest = None;
        self.in_flight = None;
    }

    fn check_data(&mut self, chunk: &[u8]) -> Result<(), Status> {
        self.seen.feed(chunk);
        if self.seen.bad_flag { Err(self.failed(self.peer.malformed(BAD_FLAG))) } else { Ok(()) }
    }

    /// The end of the reply: if it tells of a failure, of a well-formed one.
    fn check_end(&mut self, trailers: &mut HeaderMap) -> Result<(), Status> {
        if let Some(in_flight) = &self.in_flight {
            in_flight.link().hear_load(trailers);
        }
        let end = || judge::end(&self.peer, trailers, &self.seen);
        let error = match sync_scope(self.context.clone(), end) {
            Ok(Some(failure)) => {
                if arose_here(&failure) {
                    failure.record();
                }
                None
            }
            Ok(None) => (self.one && self.seen.complete != 1).then(|| self.peer.malformed(NOT_ONE)),
            Err(malformed) => Some(malformed),
        };
        self.end();
        error.map_or(Ok(()), |error| Err(self.failed(error)))
    }

    fn failed(&mut self, error: AttemptError) -> Status {
        self.end();
        sync_scope(self.context.clone(), || {
            let error = Error::from(error);
            error.record();
            error.into()
        })
    }

    fn broken(&mut self, cause: String) -> Status {
        self.end();
        let error = CallError::ReplyBroken {
            method: self.context.method.to_string(),
            node: self.peer.name.clone(),
            uri: self.peer.uri.clone(),
            cause,
        };
        sync_scope(self.context.clone(), || error.into_error().into())
    }

    fn overdue(&mut self) -> Status {
        self.end();
        let error = CallError::Deadline {
            method: self.context.method.to_string(),
            allowed: self.allowed,
            attempts: Vec::new(),
        };
        sync_scope(self.context.clone(), || error.into_error().into())
    }
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(chunk) = this.read.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        let Some(rest) = this.rest.as_mut() else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut *rest).poll_frame(cx) else {
            ready!(this.deadline.as_mut().poll(cx));
            return Poll::Ready(Some(Err(this.overdue())));
        };
        Poll::Ready(match frame {
            Some(Ok(mut frame)) => {
                let checked = match frame.data_ref() {
                    Some(chunk) => this.check_data(chunk),
                    None => frame.trailers_mut().map_or(Ok(()), |trailers| this.check_end(trailers)),
                };
                Some(checked.map(|()| frame))
            }
            Some(Err(cause)) => {
                let cause = this.peer.cause(&cause);
                Some(Err(this.broken(cause)))
            }
            None => match judge::unended(&this.peer, rest) {
                AttemptError::Transport { cause, .. } => Some(Err(this.broken(cause))),
                malformed => Some(Err(this.failed(malformed))),
            },
        })
    }
}

/// Any body as tonic's.
pub(crate) fn body<B>(body: B) -> Body
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let bytes = |mut data: B::Data| -> Bytes { data.copy_to_bytes(data.remaining()) };
    Body::new(body.map_frame(move |frame| frame.map_data(bytes)).map_err(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
        bytes.resize(5 + len, 7);
        bytes
    }

    #[test]
    fn messages_are_found_however_their_bytes_are_cut() {
        let bytes = [message(0), message(3), message(300), message(0)].concat();
        for size in [1, 2, 3, 5, 7, 64, 1_000] {
            let mut framing = Framing::default();
            bytes.chunks(size).for_each(|chunk| framing.feed(chunk));
            assert_eq!((framing.begun, framing.complete), (4, 4), "chunks of {size}");
            assert!(framing.is_whole());
        }
    }

    #[test]
    fn a_message_begins_at_its_first_byte_and_completes_at_its_last() {
        let mut framing = Framing::default();
        let two = [message(2), message(2)].concat();
        framing.feed(&two[..6]);
        assert_eq!((framing.begun, framing.complete), (1, 0));
        framing.feed(&two[6..7]);
        assert_eq!((framing.begun, framing.complete), (1, 1));
        framing.feed(&two[7..8]);
        assert_eq!((framing.begun, framing.complete), (2, 1));
        assert!(!framing.is_whole());
    }
}
