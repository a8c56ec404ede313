//! Replies to tied requests: their head leaves as soon as their work begins, so that whoever sent twins of the
//! request elsewhere can withdraw those that still wait. What the handler says in its head follows as the
//! body's first frame; over HTTP/2 it is a reply like any other.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body};
use wardkeep_proto::context::{self, BEGAN, HEAD_FLAG, MOST_HEAD_BYTES};

use crate::{
    call::{self, Call, Presence},
    error::NodeError,
    gate::Pass,
};

/// Has the ward answer a call that was let in. The handler has a task of its own, so that it goes on, and ends
/// at its deadline, though the caller does not read.
pub(crate) fn serve(
    call: Arc<Call>,
    pass: Option<Arc<Pass>>,
    presence: Presence,
    request: Request<Body>,
) -> Response<Body> {
    let runtime = &call.incarnation().home.runtime;
    let run = AbortOnDropHandle::new(runtime.spawn(call.clone().handle(pass, presence, request)));
    let of_run = call.clone();
    let answer = run.map(move |ended| match ended {
        Ok(response) => response,
        // Panics are contained within: only a runtime that shuts down drops it.
        Err(_) => of_run.fail(of_run.within(|| NodeError::Cancelled.into())),
    });
    begun(call, answer.boxed())
}

/// The reply to a tied request whose work has begun, and whose answer is to come.
pub(crate) fn begun(call: Arc<Call>, answer: BoxFuture<'static, Response<Body>>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(BEGAN, HeaderValue::from_static("1"));
    call::sign(headers, call.incarnation());
    *response.body_mut() = Body::new(Tied { call, stage: Stage::Answer(answer) });
    response
}

struct Tied {
    call: Arc<Call>,
    stage: Stage,
}

enum Stage {
    Answer(BoxFuture<'static, Response<Body>>),
    Body(Body),
    Over,
}

impl Tied {
    /// What an answer begins with.
    fn open(&mut self, answer: Response<Body>) -> Frame<Bytes> {
        let (head, body) = answer.into_parts();
        let mut headers = head.headers;
        // Said already.
        for key in [context::NODE, context::WARD, context::INCARNATION] {
            headers.remove(key);
        }
        if headers.contains_key("grpc-status") {
            self.stage = Stage::Over;
            headers.remove(header::CONTENT_TYPE);
            return Frame::trailers(headers);
        }
        match head_frame(&headers) {
            Some(frame) => {
                self.stage = Stage::Body(body);
                Frame::data(frame)
            }
            None => {
                self.stage = Stage::Over;
                drop(body);
                let method = self.call.context.method.to_string();
                let failed = self.call.fail(self.call.within(|| NodeError::HeadTooLong { method }.into()));
                let mut trailers = failed.into_parts().0.headers;
                trailers.remove(header::CONTENT_TYPE);
                Frame::trailers(trailers)
            }
        }
    }
}

/// `None` if it is too long.
fn head_frame(headers: &HeaderMap) -> Option<Bytes> {
    const FLAG_AND_LENGTH: usize = 5;
    let length: usize = headers.iter().map(|(key, value)| key.as_str().len() + value.len() + 4).sum();
    let wire_length = u32::try_from(length).ok().filter(|_| length <= MOST_HEAD_BYTES)?;
    let mut frame = BytesMut::with_capacity(FLAG_AND_LENGTH + length);
    frame.put_u8(HEAD_FLAG);
    frame.put_u32(wire_length);
    for (key, value) in headers {
        frame.put_slice(key.as_str().as_bytes());
        frame.put_slice(b": ");
        frame.put_slice(value.as_bytes());
        frame.put_slice(b"\r\n");
    }
    Some(frame.freeze())
}

impl http_body::Body for Tied {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.stage {
            Stage::Over => Poll::Ready(None),
            Stage::Body(body) => Pin::new(body).poll_frame(cx),
            Stage::Answer(answer) => {
                let answer = ready!(answer.poll_unpin(cx));
                Poll::Ready(Some(Ok(self.open(answer))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.stage {
            Stage::Over => true,
            Stage::Body(body) => body.is_end_stream(),
            Stage::Answer(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.stage {
            Stage::Over => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_lines_after_a_flag_and_a_length() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        headers.append("a-bin", HeaderValue::from_static("AAE"));
        let frame = head_frame(&headers).unwrap();
        assert_eq!(&frame[..], b"\x80\x00\x00\x00\x21grpc-encoding: gzip\r\na-bin: AAE\r\n".as_slice());
        headers.insert("long", HeaderValue::try_from("x".repeat(MOST_HEAD_BYTES)).unwrap());
        assert_eq!(head_frame(&headers), None);
    }
}
