//! What whoever keeps metrics is told of each call.

use std::time::Duration;

use tonic::Code;

use crate::member::Attempt;

/// A call that has ended, or been given to its caller.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CallSummary<'a> {
    /// `/package.Service/Method`: gRFC A66's label `grpc.method`, with a slash before it.
    pub method: &'a str,
    /// How it ended; of a reply that goes on after its first message, `Ok`.
    pub code: Code,
    /// From the call to that moment: `grpc.client.call.duration`.
    pub elapsed: Duration,
    /// Every attempt. Each is one of `grpc.client.attempt.started`, and its time one of
    /// `grpc.client.attempt.duration`; all but the first are `grpc.client.call.hedges` (gRFC A96).
    pub attempts: &'a [Attempt],
}

/// Is told of each call, on the caller's own task: it must be quick and must not block.
///
/// ```
/// use wardkeep_client::{CallSummary, Observe};
///
/// #[derive(Default)]
/// struct Copies(std::sync::atomic::AtomicUsize);
///
/// impl Observe for Copies {
///     fn called(&self, call: &CallSummary<'_>) {
///         self.0.fetch_add(call.attempts.len(), std::sync::atomic::Ordering::Relaxed);
///     }
/// }
/// ```
pub trait Observe: Send + Sync + 'static {
    /// A call has ended. Calls that their caller dropped are not told of.
    fn called(&self, call: &CallSummary<'_>);

    /// An attempt that nobody waited for has ended at its member, which has said what it
    /// [cost](Attempt::cost); mostly after [`called`](Self::called) has told of its call. Told of those that were
    /// withdrawn in band, on a task of the channel.
    fn lost(&self, method: &str, attempt: &Attempt) {
        let _ = (method, attempt);
    }
}
