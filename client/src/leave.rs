//! How an attempt ends that nobody waits for any more.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::{
    attempt::{Call, Verdict},
    channel::{BoxFuture, Link},
    member::{Attempt, Cost, Ending, Told},
    request::Progress,
    withdraw::Withdrawn,
};

/// The stream of an attempt that its member has withdrawn ends within so long, or is reset.
const PATIENCE: Duration = Duration::from_millis(500);

/// What an attempt is told.
pub(crate) enum Exit {
    /// Its stream is to be reset.
    Reset,
    /// It may finish, within so long.
    Within(Duration),
    /// It is being withdrawn in band.
    InBand { answer: BoxFuture<Withdrawn>, ending: Ending },
}

/// How far a withdrawal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The stream has ended by itself.
    Ended,
    /// It is to be reset.
    Reset,
}

/// Lets an attempt go on that is being withdrawn, until its stream has ended and its member has answered.
pub(crate) async fn ended(
    running: Pin<&mut impl Future<Output = Verdict>>,
    answer: impl Future<Output = Withdrawn>,
    progress: &Progress,
) -> Left {
    let (mut running, mut answer) = (running, pin!(answer));
    let (mut over, mut told) = (false, None);
    let both = async {
        while !over || told.is_none() {
            tokio::select! {
                biased;
                _ = running.as_mut(), if !over => over = true,
                word = answer.as_mut(), if told.is_none() => {
                    told = Some(word);
                    if word == Withdrawn::Reset {
                        return;
                    }
                }
            }
        }
    };
    let _ = timeout(PATIENCE, both).await;
    // The trailers, if they have come, know the whole cost.
    if let Some(Withdrawn::Ended { fate, wall, busy }) = told {
        progress.cost(Cost { fate, wall, busy });
    }
    if over { Left::Ended } else { Left::Reset }
}

/// Counts an attempt that was withdrawn, and tells of it.
pub(crate) fn account(call: &Call, link: &Link, left: Left, attempt: impl FnOnce() -> Attempt) {
    let attempt = attempt();
    if left == Left::Reset {
        // Whatever the connection bears: its member is one of ours.
        link.may_cancel(Instant::now(), attempt.took);
    }
    let cost = attempt.cost();
    link.stats().losers.ended(cost.filter(|_| left == Left::Ended));
    if let (Some(observer), Some(_)) = (&call.observer, cost) {
        observer.lost(&call.context.method, &attempt);
    }
}

/// What is told of it.
pub(crate) fn story(
    call: &Call,
    link: &Link,
    number: u32,
    started: Instant,
    progress: &Arc<Progress>,
    ending: Ending,
) -> Attempt {
    Attempt {
        number,
        node: link.peer.name.clone(),
        started_after: started.saturating_duration_since(call.started),
        took: started.elapsed(),
        phase: progress.phase(),
        ending,
        told: Told(progress.clone()),
    }
}
