//! What the supervisor tells of, and when it was told.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;
use wardkeep_proto::v1::{self, EventKind, Verdict, operator_client::OperatorClient};

/// An event, and when it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it arrived.
    pub at: Instant,
    /// What it says.
    pub event: v1::Event,
}

/// Follows the events of a supervisor, over its restarts. Dropped, it follows no more.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<Vec<Seen>>>,
    changed: watch::Receiver<()>,
    _following: JoinSet<()>,
}

impl Observer {
    /// Begins to follow, from the first event that is kept; returns when it hears the supervisor.
    pub async fn begin(operator: OperatorClient<Channel>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (tell, mut changed) = watch::channel(());
        let mut following = JoinSet::new();
        following.spawn(follow(operator, seen.clone(), tell));
        let _ = timeout(Duration::from_secs(10), changed.changed()).await;
        Self { seen, changed, _following: following }
    }

    /// All that was heard so far.
    pub fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for an event that arrives after `since`; how long after.
    pub async fn hears(
        &self,
        since: Instant,
        patience: Duration,
        is: impl Fn(&v1::Event) -> bool,
    ) -> Option<Duration> {
        let mut changed = self.changed.clone();
        let heard = async {
            loop {
                changed.mark_unchanged();
                let all = self.all();
                if let Some(seen) = all.iter().find(|seen| seen.at >= since && is(&seen.event)) {
                    return Some(seen.at - since);
                }
                changed.changed().await.ok()?;
            }
        };
        timeout(patience, heard).await.ok().flatten()
    }

    /// Waits for this verdict on a node.
    pub async fn judges_node(&self, node: &str, verdict: Verdict, since: Instant) -> Option<Duration> {
        let is =
            |e: &v1::Event| e.kind() == EventKind::NodeVerdict && e.node == node && e.verdict() == verdict;
        self.hears(since, Duration::from_secs(30), is).await
    }

    /// Waits for this verdict on a ward.
    pub async fn judges_ward(
        &self,
        node: &str,
        ward: &str,
        verdict: Verdict,
        since: Instant,
    ) -> Option<Duration> {
        let is = |e: &v1::Event| {
            e.kind() == EventKind::WardVerdict
                && (e.node.as_str(), e.ward.as_str()) == (node, ward)
                && e.verdict() == verdict
        };
        self.hears(since, Duration::from_secs(30), is).await
    }
}

async fn follow(mut operator: OperatorClient<Channel>, seen: Arc<Mutex<Vec<Seen>>>, tell: watch::Sender<()>) {
    let mut after_sequence = 0;
    loop {
        let request = v1::WatchEventsRequest { follow: true, after_sequence, ..Default::default() };
        if let Ok(events) = operator.watch_events(request).await {
            let mut events = events.into_inner();
            while let Ok(Some(event)) = events.message().await {
                after_sequence = after_sequence.max(event.sequence);
                let at = Instant::now();
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen { at, event });
                tell.send_replace(());
            }
        }
        if tell.is_closed() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}
