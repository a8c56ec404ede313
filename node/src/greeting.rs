//! Notices whether a new connection ever says that it speaks HTTP/2: hyper itself would wait for that
//! for ever, and the connection would count against the limit for as long.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
    time::timeout,
};

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`, and the header of the SETTINGS frame that must follow.
const GREETING_BYTES: usize = 24 + 9;

/// A connection whose greeting is waited for.
pub(crate) struct Greeted<I> {
    io: I,
    missing: usize,
    heard: Option<oneshot::Sender<()>>,
}

/// The wait for it.
pub(crate) struct Greeting {
    heard: oneshot::Receiver<()>,
    patience: Duration,
}

/// Watches over a connection's greeting.
pub(crate) fn watch<I>(io: I, patience: Duration) -> (Greeted<I>, Greeting) {
    let (heard, is_heard) = oneshot::channel();
    (Greeted { io, missing: GREETING_BYTES, heard: Some(heard) }, Greeting { heard: is_heard, patience })
}

impl Greeting {
    /// Completes when the greeting did not come in time; never if it did.
    pub(crate) async fn missed(self) {
        if let Ok(Ok(())) = timeout(self.patience, self.heard).await {
            std::future::pending().await
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Greeted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buf.filled().len() - before);
            if self.missing == 0
                && let Some(heard) = self.heard.take()
            {
                let _ = heard.send(());
            }
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Greeted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
