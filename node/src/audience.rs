//! Who may see what of an error. Callers of a listener that strangers can reach are told the code,
//! the user's line, the ID and whether to try again, and nothing else.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, header};
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};
use wardkeep_proto::{Error, context, error::read_headers};

/// Who calls a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// Our own people and programs: they get errors whole.
    #[default]
    Trusted,
    /// Anyone: they get what helps them and betrays nothing.
    Untrusted,
}

/// What a failure may carry to strangers.
const ALLOWED: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-encoding"),
    context::RETRY_PUSHBACK,
];
/// What no reply tells them: how busy we are.
const INTERNAL: [HeaderName; 2] = [context::LOAD, context::FATE];

/// Takes from a stranger's request what only our own may say: which way it has come.
pub(crate) fn doubt(mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().remove(context::HOPS);
    request
}

/// Covers a reply to a stranger.
pub(crate) fn veil(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    veil_failure(&mut head.headers);
    // Who answered is nobody's business either.
    for key in [context::NODE, context::WARD, context::INCARNATION] {
        head.headers.remove(key);
    }
    Response::from_parts(head, Body::new(Veiled(body)))
}

/// Replaces all that a failure's headers or trailers say by what may be said.
fn veil_failure(headers: &mut HeaderMap) {
    INTERNAL.iter().for_each(|key| _ = headers.remove(key));
    let Some((error, _)) = read_headers(headers) else { return };
    let covered: Vec<_> = headers.keys().filter(|key| !ALLOWED.contains(key)).cloned().collect();
    for key in covered {
        headers.remove(key);
    }
    // Our own header values are always valid.
    let _ = error.to_untrusted_status().add_header(headers);
}

/// A body whose trailers are covered.
struct Veiled(Body);

impl http_body::Body for Veiled {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| match frame {
            Ok(mut frame) => {
                if let Some(trailers) = frame.trailers_mut() {
                    veil_failure(trailers);
                }
                Ok(frame)
            }
            Err(status) => Err(Error::from_status(&status).to_untrusted_status()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
