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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Whether there is none left.
    fn is_spent(patience: &Patience) -> bool {
        let spent = std::pin::pin!(patience.spent());
        spent.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_flood_uses_it_up_and_time_brings_it_back() {
        let now = Instant::now();
        let patience = Patience::new(1_000, now);
        (0..1_000).for_each(|_| patience.abandoned(now));
        assert!(!is_spent(&patience));
        (0..250).for_each(|_| patience.abandoned(now + SECOND));
        assert!(!is_spent(&patience), "a quarter is back");
        patience.abandoned(now + SECOND);
        assert!(is_spent(&patience));
    }

    #[test]
    fn a_racing_client_that_wins_now_and_then_never_uses_it_up() {
        let now = Instant::now();
        let patience = Patience::new(1_000, now);
        for _ in 0..100_000 {
            patience.answered();
            (0..10).for_each(|_| patience.abandoned(now));
        }
        assert!(!is_spent(&patience));
    }

    #[test]
    fn little_by_little_comes_back_as_well() {
        let mut now = Instant::now();
        let patience = Patience::new(100, now);
        // Twenty a second, as against twenty-five that come back, and looked at too often for a whole one each time.
        for _ in 0..10_000 {
            now += SECOND / 20;
            patience.abandoned(now);
        }
        assert!(!is_spent(&patience));
    }

    /// Frames that are there, and then an error, the end, or nothing yet.
    struct Came(VecDeque<&'static str>, Then);

    #[derive(Clone, Copy)]
    enum Then {
        Reset,
        Ends,
        Waits,
    }

    impl Body for Came {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            match (self.0.pop_front(), self.1) {
                (Some(data), _) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(data.as_bytes()))))),
                (None, Then::Reset) => Poll::Ready(Some(Err("reset"))),
                (None, Then::Ends) => Poll::Ready(None),
                (None, Then::Waits) => Poll::Pending,
            }
        }
    }

    fn came(frames: &[&'static str], then: Then) -> Ahead<Came> {
        Ahead::new(Came(frames.iter().copied().collect(), then))
    }

    /// What is read of it now.
    fn read(body: &mut Ahead<Came>) -> Result<String, &'static str> {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut all = String::new();
        while let Poll::Ready(Some(frame)) = Pin::new(&mut *body).poll_frame(cx) {
            let data = frame?.into_data().unwrap_or_default();
            all.push_str(std::str::from_utf8(&data).unwrap());
        }
        Ok(all)
    }

    #[test]
    fn a_reset_is_seen_behind_the_message_that_came_before_it() {
        let cx = &mut Context::from_waker(Waker::noop());
        for frames in [&[][..], &["a"]] {
            assert!(came(frames, Then::Reset).is_abandoned(cx));
            assert!(!came(frames, Then::Ends).is_abandoned(cx));
            assert!(!came(frames, Then::Waits).is_abandoned(cx));
        }
        assert!(!came(&["a", "b"], Then::Reset).is_abandoned(cx), "so far nobody looks");
    }

    #[test]
    fn what_was_read_ahead_is_there_for_whom_it_is_meant() {
        let cx = &mut Context::from_waker(Waker::noop());
        for frames in [&[][..], &["a"], &["a", "b"], &["a", "b", "c"]] {
            for then in [Then::Ends, Then::Waits] {
                let mut body = came(frames, then);
                assert!(!body.is_abandoned(cx));
                assert!(!body.is_end_stream() || frames.is_empty());
                assert_eq!(read(&mut body), Ok(frames.concat()));
            }
        }
        let mut body = came(&["a", "b", "c"], Then::Reset);
        assert!(!body.is_abandoned(cx));
        assert_eq!(read(&mut body), Err("reset"), "what comes later is told, too");
    }
}
