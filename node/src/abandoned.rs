//! Requests whose caller resets them before anyone has looked at them.
//!
//! Racing clients do that when a node is slow to look, and floods do nothing else (CVE-2023-44487). Such a request goes
//! no further than here: no context, no handler, no error, so it costs next to nothing. What tells a flood apart is that
//! nothing else comes of its connection: each has [`Patience`] for so many such requests in a short time, and more for
//! each request that is answered. One that has used it up is told to go away.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{sync::Notify, time::Instant};

/// What a request has to be asked for, to learn that its stream was reset: what came before the reset is read first,
/// and that is one message, in one frame, of nearly all requests.
const AHEAD: usize = 2;
/// A request that is answered makes up for so many that were abandoned: of racing clients' calls a node wins some.
const PER_ANSWER: u64 = 16;
/// All of it is back after so long in which nothing is abandoned.
const RECOVERY: Duration = Duration::from_secs(4);

/// What a connection may still abandon.
#[derive(Debug)]
pub(crate) struct Patience {
    most: u64,
    answered: AtomicU64,
    account: Mutex<Account>,
    spent: Notify,
}

#[derive(Debug)]
struct Account {
    left: u64,
    answered: u64,
    filled_at: Instant,
}

impl Patience {
    /// For so many requests, in no time.
    pub(crate) fn new(most: usize, now: Instant) -> Self {
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        Self {
            most,
            answered: AtomicU64::new(0),
            account: Mutex::new(Account { left: most, answered: 0, filled_at: now }),
            spent: Notify::new(),
        }
    }

    /// A request has been answered.
    pub(crate) fn answered(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    /// A request has been abandoned.
    pub(crate) fn abandoned(&self, now: Instant) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = self.answered.load(Relaxed);
        let for_answers = (answered - account.answered).saturating_mul(PER_ANSWER);
        let elapsed = now.saturating_duration_since(account.filled_at);
        let share = elapsed.as_secs_f64() / RECOVERY.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let for_time = (self.most as f64 * share) as u64;
        // Less than one is kept for the next time.
        if for_time > 0 {
            account.filled_at = now;
        }
        account.answered = answered;
        account.left = account.left.saturating_add(for_answers).saturating_add(for_time).min(self.most);
        match account.left.checked_sub(1) {
            Some(left) => account.left = left,
            None => self.spent.notify_one(),
        }
    }

    /// Completes when there is none left.
    pub(crate) async fn spent(&self) {
        self.spent.notified().await;
    }
}

/// A request's body, of which a little can be read before it is anyone's.
pub(crate) struct Ahead<B: Body> {
    inner: B,
    read: VecDeque<Frame<Bytes>>,
    over: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Ahead<B> {
    pub(crate) fn new(inner: B) -> Self {
        Self { inner, read: VecDeque::new(), over: false }
    }

    /// Whether its caller has abandoned it already, as far as can be seen without waiting. To be asked when it is about
    /// to be served: until then its caller had time to reset it.
    pub(crate) fn is_abandoned(&mut self, cx: &mut Context<'_>) -> bool {
        while !self.over && self.read.len() < AHEAD {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.read.push_back(frame),
                Poll::Ready(Some(Err(_))) => return true,
                Poll::Ready(None) => self.over = true,
                Poll::Pending => break,
            }
        }
        false
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Ahead<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if self.over => Poll::Ready(None),
            None => Pin::new(&mut self.inner).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && (self.over || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self.read.is_empty() {
            true if self.over => SizeHint::with_exact(0),
            true => self.inner.size_hint(),
            false => SizeHint::default(),
        }
    }
}
