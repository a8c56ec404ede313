//! How a node leaves: for good, or to come back at once as a fresh image of its program.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, timeout},
};
use wardkeep_proto::v1::{self, node_message::Kind as Up, steward_message::Kind as Down};

use super::{GOODBYE_PATIENCE, Keeper, SERVER_PATIENCE, SWEEP};
use crate::session::Tidings;

/// What wards have together when the node ends, beside the longest grace of one: whatever they do, it ends.
const MORE_FOR_ALL: Duration = Duration::from_secs(10);

impl Keeper {
    /// Drains, sends callers away, says goodbye, stops all wards in reverse order, ends the server.
    pub(super) async fn leave(
        &mut self,
        restarting: bool,
        grace: Option<Duration>,
        inbox: &mut mpsc::Receiver<Tidings>,
    ) {
        self.drain(true).await;
        self.setup.ending.leave();
        self.setup.mandate.resign();
        // Before the wards stop: their ends are no failures for a steward to heal.
        self.send(Up::Goodbye(v1::Goodbye { restarting }));
        self.queue.clear();
        // One budget for all: each ward gets what those before it have left, and at the end of the node no more than
        // its own grace.
        let patience = grace.unwrap_or_else(|| self.setup.host.longest_grace().saturating_add(MORE_FOR_ALL));
        let by = Instant::now().checked_add(patience);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for slot in self.setup.host.slots().into_iter().rev() {
            let Some(number) = self.setup.host.running(slot) else { continue };
            let left = by.map(|by| by.saturating_duration_since(Instant::now()));
            let own = self.setup.host.grace(slot);
            let time = if grace.is_some() { left } else { left.map(|left| left.min(own)) };
            if self.setup.host.stop(slot, number, time).is_err() {
                continue;
            }
            while self.setup.host.running(slot).is_some() {
                tokio::select! {
                    noticed = self.setup.host.noticed() => self.setup.host.settle(noticed),
                    // The supervisor goes on hearing of us, and is answered.
                    _ = sweep.tick() => self.sweep(),
                    Some(tidings) = inbox.recv() => self.decline(tidings).await,
                }
                self.settle().await;
            }
        }
        self.show_last();
        // No program is left to be guarded, and no zombie for the image that may come.
        self.setup.host.guard().dismiss().await;
        self.setup.ending.stop();
        let _ = timeout(SERVER_PATIENCE, self.setup.server_ended.cancelled()).await;
        let _ = timeout(GOODBYE_PATIENCE, self.send_last_errors()).await;
        if self.link.take().is_some() {
            // Our end of the session is closed; the supervisor closes its own when it has read all.
            let closed = async { while !matches!(inbox.recv().await, Some(Tidings::Lost(_)) | None) {} };
            let _ = timeout(GOODBYE_PATIENCE, closed).await;
        }
    }

    /// While the node leaves, nothing new is begun.
    async fn decline(&mut self, tidings: Tidings) {
        match tidings {
            Tidings::Down(v1::StewardMessage { kind: Some(Down::Command(command)) }) => {
                self.welcomed = false;
                drop(self.obey(command).await);
            }
            Tidings::Down(v1::StewardMessage { kind: Some(Down::ReadOutput(asked)) }) => {
                self.asked_for_output(asked);
            }
            Tidings::Lost(_) => {
                // A leaving node needs no other session.
                self.stop_session.cancel();
                drop(self.hear(tidings).await);
            }
            Tidings::Down(_) | Tidings::Dialled(_) => {}
        }
    }
}
