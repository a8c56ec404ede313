//! The largest message that passes, in either direction, whatever the services behind are set to. It is the
//! length a message begins with that is judged: nothing of one that is too long is kept.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;
use wardkeep_proto::Error;

use crate::error::NodeError;

/// A flag and a length stand before each message.
const PREFIX: usize = 5;

/// Follows the messages in a stream of bytes.
#[derive(Debug)]
struct Sizes {
    most: usize,
    prefix: [u8; PREFIX],
    have: usize,
    /// Of the present message.
    left: usize,
}

impl Sizes {
    fn new(most: usize) -> Self {
        Self { most, prefix: [0; PREFIX], have: 0, left: 0 }
    }

    /// # Errors
    /// A message that begins in these bytes is longer than it may be: so long.
    fn see(&mut self, mut bytes: &[u8]) -> Result<(), usize> {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let taken = (PREFIX - self.have).min(bytes.len());
            self.prefix[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.have = 0;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                if self.left > self.most {
                    return Err(self.left);
                }
            }
        }
        Ok(())
    }
}

/// What is told of a message that is too long.
fn refusal(bytes: usize, most: usize, what: &'static str) -> Status {
    Error::from(NodeError::MessageTooLarge { what, bytes, most }).into()
}

/// A request's body: it fails at the first message that is too long.
pub(crate) struct Limited<B> {
    inner: B,
    sizes: Sizes,
    failed: bool,
}

impl<B> Limited<B> {
    pub(crate) fn new(inner: B, most: usize) -> Self {
        Self { inner, sizes: Sizes::new(most), failed: false }
    }
}

impl<B> Body for Limited<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx).map_err(Into::into);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(bytes) = self.sizes.see(data)
        {
            self.failed = true;
            return Poll::Ready(Some(Err(refusal(bytes, self.sizes.most, "request").into())));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response's body: in place of the first message that is too long come trailers that say so.
pub(crate) struct Curbed<B> {
    inner: B,
    sizes: Sizes,
    failed: bool,
}

impl<B> Curbed<B> {
    pub(crate) fn new(inner: B, most: usize) -> Self {
        Self { inner, sizes: Sizes::new(most), failed: false }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Curbed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(bytes) = self.sizes.see(data)
        {
            self.failed = true;
            let status = refusal(bytes, self.sizes.most, "reply");
            tracing::error!(bytes, most = self.sizes.most, "a reply is too long to be sent");
            let mut trailers = http::HeaderMap::new();
            // Where it cannot be written the stream ends without trailers, which is an error as well.
            let _ = status.add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat()
    }

    #[test]
    fn messages_are_followed_however_their_bytes_are_cut() {
        let bytes = [message(3), message(0), message(10), message(1)].concat();
        for piece in 1..=bytes.len() {
            let mut sizes = Sizes::new(10);
            assert!(bytes.chunks(piece).all(|chunk| sizes.see(chunk).is_ok()), "{piece}");
            let mut sizes = Sizes::new(9);
            let seen: Result<Vec<_>, _> = bytes.chunks(piece).map(|chunk| sizes.see(chunk)).collect();
            assert_eq!(seen, Err(10), "{piece}");
        }
    }
}
