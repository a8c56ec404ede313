//! Follows the directory: its views become the members, and its absence changes nothing.

use std::{future::Future, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};
use tower::Layer as _;
use wardkeep_proto::v1::{DirectoryView, WatchDirectoryRequest, directory_client::DirectoryClient};

use crate::{
    error::chain,
    member::Member,
    view::Members,
    wellform::{WellFormed, WellFormedChannel},
};

/// A directory that has accepted a watch says at once whom it knows.
const FIRST_VIEW: Duration = Duration::from_secs(5);
/// A directory that has just come back knows nobody until its nodes have found it again. An empty
/// view is believed only if it stays the last word for so long.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) struct Follower {
    pub(crate) channel: WellFormedChannel<Channel>,
    /// For messages.
    pub(crate) uri: String,
    /// Full name of a gRPC service; empty: all members.
    pub(crate) service: String,
    pub(crate) members: Arc<Members>,
    /// Becomes true with the first view.
    pub(crate) seen: watch::Sender<bool>,
}

impl Follower {
    /// A watch lasts as long as its directory does. That it is away, the follower says itself.
    pub(crate) fn guard(channel: Channel, uri: &str) -> WellFormedChannel<Channel> {
        WellFormed::of(uri).default_deadline(Duration::MAX).quiet().layer(channel)
    }

    /// Until stopped: watch, and when the directory is gone try again with growing, jittered pauses.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(3))
            .without_max_times()
            .with_jitter();
        let mut pauses = backoff.build();
        let mut away = false;
        loop {
            let mut viewed = false;
            let Some(ended) = unless(&stop, self.watch(&mut viewed)).await else { return };
            if viewed {
                (pauses, away) = (backoff.build(), false);
            }
            if !std::mem::replace(&mut away, true) {
                tracing::warn!(
                    directory = self.uri,
                    why = chain(&ended),
                    "the directory is away; its last view stays"
                );
            }
            let pause = pauses.next().unwrap_or(SETTLE);
            if unless(&stop, tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// One watch, to its end.
    async fn watch(&self, viewed: &mut bool) -> Status {
        match self.views(viewed).await {
            Ok(()) => Status::unavailable("the directory ended the watch"),
            Err(status) => status,
        }
    }

    async fn views(&self, viewed: &mut bool) -> Result<(), Status> {
        let late = |_| Status::deadline_exceeded("the directory did not answer");
        let mut client = DirectoryClient::new(self.channel.clone());
        let request = WatchDirectoryRequest { service: self.service.clone() };
        let opened = timeout(FIRST_VIEW, client.watch(request)).await.map_err(late)??;
        let mut views = opened.into_inner();
        let mut next = timeout(FIRST_VIEW, views.message()).await.map_err(late)??;
        while let Some(view) = next {
            if !std::mem::replace(viewed, true) {
                tracing::debug!(directory = self.uri, "following the directory");
            }
            next = self.take(view, &mut views).await?;
        }
        Ok(())
    }

    /// Adopts a view and waits for the next one.
    async fn take(
        &self,
        view: DirectoryView,
        views: &mut Streaming<DirectoryView>,
    ) -> Result<Option<DirectoryView>, Status> {
        let members: Vec<Member> = view.members.into_iter().filter_map(Member::from_proto).collect();
        let sudden = members.is_empty() && !self.members.is_empty();
        if sudden && let Ok(next) = timeout(SETTLE, views.message()).await {
            return next;
        }
        self.members.replace(members);
        self.seen.send_replace(true);
        views.message().await
    }
}

/// What the future says; `None` if told to stop first.
async fn unless<T>(stop: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    stop.run_until_cancelled(future).await
}
