//! What a service ward is asked under.

use std::sync::Arc;

use super::OnPanic;
use crate::{gate::Gate, memory::Limits};

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(super) on_panic: OnPanic,
    pub(super) concurrency: Option<usize>,
    pub(super) queue: Option<usize>,
    pub(super) dedupe: Option<Limits>,
}

impl Terms {
    pub(super) fn gate(&self) -> Option<Arc<Gate>> {
        let limit = self.concurrency?;
        Some(Arc::new(Gate::new(limit, self.queue.unwrap_or(limit))))
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        match (self.concurrency, self.queue) {
            (Some(0), _) => Err("a concurrency of 0 lets no call in"),
            (None, Some(_)) => Err("it has a queue and no concurrency that would let anyone wait"),
            _ if self.dedupe.is_some_and(|limits| limits.entries == 0 || limits.window.is_zero()) => {
                Err("to dedupe, it must remember at least one call for some time")
            }
            _ => Ok(()),
        }
    }
}
