//! What the fleet has decided, on its way into the history and out again as deeds.
//!
//! Everything that happens in one turn of the fleet is drafted, handed to the writer as one write,
//! and carried out (told to nodes, to those who follow, to operators) once that is confirmed, in
//! order. A disk that cannot be written, or does not answer for [`PATIENCE`], holds nobody up: what
//! waits for it is carried out from memory, and that is said.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    sync::{broadcast, oneshot},
    time::Instant,
};
use wardkeep_proto::{Error, timestamp, v1};

use super::{
    failpoint,
    fleet::SessionId,
    history::{Aim, Change, Failing, History, HoldKey, Intent, Intents, Lane, Retention, Write},
    launcher,
    metrics::{Histogram, WRITES},
};

/// Deeds wait no longer than this for the disk.
const PATIENCE: Duration = Duration::from_secs(2);
/// Events a follower may lag behind; a slower one misses some, and sees it by the sequence.
const LAG: usize = 1_024;

/// Something to be done once the decision is written.
pub(super) enum Deed {
    /// For a node, as long as this is its session.
    Tell { node: Arc<str>, session: SessionId, message: v1::steward_message::Kind, restart: bool },
    /// For the launcher.
    Launch(launcher::Order),
    /// For the launcher: these are the nodes to launch from now on.
    Configure(Vec<launcher::Launch>),
    /// An operator hears whether the wish was taken on.
    Answer { to: oneshot::Sender<Result<(), Error>>, taken_on: Result<(), Error> },
}

/// What waits for its confirmation.
struct Waiting {
    ticket: u64,
    since: Instant,
    events: Vec<Arc<v1::Event>>,
    deeds: Vec<Deed>,
    marks: Marks,
}

/// For failpoints: what the write is about.
#[derive(Clone, Copy, Default)]
struct Marks {
    opens_restart: bool,
    closes_restart: bool,
}

pub(super) struct Chronicle {
    history: History,
    followers: broadcast::Sender<Arc<v1::Event>>,
    pub(super) intents: Intents,
    holds: BTreeMap<HoldKey, bool>,
    /// Sequence of the last event.
    last: u64,
    draft: Write,
    deeds: Vec<Deed>,
    marks: Marks,
    waiting: VecDeque<Waiting>,
    /// The disk does not answer: since when, and the ticket it owes.
    stuck: Option<(Instant, DateTime<Utc>, u64)>,
    /// It was said that the history is not written.
    told: bool,
    /// `None`: in memory only.
    path: Option<PathBuf>,
    max_bytes: u64,
    /// How long decisions waited.
    waited: Histogram,
}

impl Chronicle {
    pub(super) fn new(
        history: History,
        followers: broadcast::Sender<Arc<v1::Event>>,
        intents: Intents,
        holds: Vec<(HoldKey, bool)>,
        last: u64,
        (path, max_bytes): (Option<PathBuf>, u64),
    ) -> Self {
        Self {
            history,
            followers,
            intents,
            holds: holds.into_iter().collect(),
            last,
            draft: Write::default(),
            deeds: Vec::new(),
            marks: Marks::default(),
            waiting: VecDeque::new(),
            stuck: None,
            told: false,
            path,
            max_bytes,
            waited: Histogram::new(WRITES),
        }
    }

    /// Those who follow get it from here.
    pub(super) fn followers() -> broadcast::Sender<Arc<v1::Event>> {
        broadcast::Sender::new(LAG)
    }

    /// Keeps so much of what happened from now on.
    pub(super) fn retain(&mut self, retention: Retention) {
        self.max_bytes = retention.max_bytes;
        self.history.retain(retention);
    }

    // --- drafting ---

    /// Sequence of the last event.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Something happened.
    pub(super) fn event(&mut self, mut event: v1::Event) {
        self.last += 1;
        event.sequence = self.last;
        self.draft.events.push(Arc::new(event));
    }

    /// Something is to be done, once what led to it is written.
    pub(super) fn deed(&mut self, deed: Deed) {
        self.deeds.push(deed);
    }

    /// Something was decided whose effect is to be seen.
    pub(super) fn intend(&mut self, intent: Intent) {
        self.marks.opens_restart |= intent.aim.is_restart() || intent.aim == Aim::RestartNode;
        let changes = self.intents.open(intent);
        self.draft.changes.extend(changes);
    }

    /// An effect was seen, or is no longer looked for.
    pub(super) fn settle(&mut self, node: &str, ward: &str, lane: Lane, outcome: impl Into<String>) {
        let restart = |intent: &Intent| intent.aim.is_restart() || intent.aim == Aim::RestartNode;
        let restart = self.intents.get(node, ward, lane).is_some_and(restart);
        let closed = self.intents.close(node, ward, lane, Utc::now().timestamp_millis(), outcome);
        self.marks.closes_restart |= restart && closed.is_some();
        self.draft.changes.extend(closed);
    }

    /// A ward rests from now on.
    pub(super) fn hold(&mut self, node: &str, ward: &str, quarantined: bool) {
        let ward = (node.to_owned(), ward.to_owned());
        if self.holds.insert(ward.clone(), quarantined) != Some(quarantined) {
            self.draft.changes.push(Change::Hold { ward, quarantined });
        }
    }

    /// It rests no longer.
    pub(super) fn release(&mut self, node: &str, ward: &str) {
        let ward = (node.to_owned(), ward.to_owned());
        if self.holds.remove(&ward).is_some() {
            self.draft.changes.push(Change::Release { ward });
        }
    }

    pub(super) fn rests(&self, node: &str, ward: &str) -> bool {
        self.holds.contains_key(&(node.to_owned(), ward.to_owned()))
    }

    /// A node is gone for good.
    pub(super) fn forget(&mut self, node: &str) {
        for intent in self.intents.of_node(node) {
            self.settle(node, &intent.ward, intent.aim.lane(), "its node was forgotten");
        }
        let wards: Vec<_> = self.holds.keys().filter(|(name, _)| name == node).cloned().collect();
        for (node, ward) in wards {
            self.release(&node, &ward);
        }
    }

    // --- writing ---

    /// Hands over what was drafted.
    pub(super) fn commit(&mut self) {
        if self.draft.is_empty() && self.deeds.is_empty() {
            return;
        }
        let marks = std::mem::take(&mut self.marks);
        if marks.opens_restart {
            failpoint::reach("restart-decided");
        }
        if marks.closes_restart {
            failpoint::reach("restart-closing");
        }
        let write = std::mem::take(&mut self.draft);
        let events = write.events.clone();
        let ticket = self.history.push(write);
        let deeds = std::mem::take(&mut self.deeds);
        self.waiting.push_back(Waiting { ticket, since: Instant::now(), events, deeds, marks });
    }

    /// Waits until more is written, or can no longer be. Cancel safe.
    pub(super) async fn progressed(&mut self) {
        self.history.progressed().await;
    }

    /// When patience with the disk ends.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.since + PATIENCE)
    }

    /// Deeds whose time has come. Those who follow have been told.
    pub(super) fn ready(&mut self) -> Vec<Deed> {
        let progress = self.history.progress();
        if self.stuck.is_some_and(|(.., owed)| progress.written >= owed) {
            tracing::info!("history: the disk answers again");
            self.stuck = None;
        }
        let mut ready = Vec::new();
        while let Some(first) = self.waiting.front() {
            let written = first.ticket <= progress.written;
            let late = first.since.elapsed() >= PATIENCE;
            if late && !written && progress.failing.is_none() && self.stuck.is_none() {
                tracing::error!(
                    "history: the disk has not answered for {PATIENCE:?}; supervising goes on from memory"
                );
                self.stuck = Some((first.since, Utc::now(), first.ticket));
            }
            if !(written || progress.failing.is_some() || self.stuck.is_some()) {
                break;
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            if !waiting.events.is_empty() {
                self.waited.observe(waiting.since.elapsed());
            }
            if waiting.marks.opens_restart {
                failpoint::reach("restart-written");
            }
            if waiting.marks.closes_restart {
                failpoint::reach("restart-closed");
            }
            for event in waiting.events {
                // Without followers there is nobody to tell.
                let _ = self.followers.send(event);
            }
            ready.extend(waiting.deeds);
        }
        ready
    }

    /// Since when it is not written, and why.
    pub(super) fn failing(&self) -> Option<Failing> {
        let why = "the disk does not answer".to_owned();
        let stuck = self.stuck.map(|(_, since, _)| Failing { since, why });
        self.history.progress().failing.or(stuck)
    }

    /// What is to be told of it, if that is another than before: that it is not written, or is again.
    pub(super) fn news(&mut self) -> Option<String> {
        let failing = self.failing();
        if failing.is_some() == std::mem::replace(&mut self.told, failing.is_some()) {
            return None;
        }
        Some(match failing {
            Some(Failing { why, .. }) => {
                format!("the history is not written: {why}; supervising goes on from memory")
            }
            None => match self.history.progress().dropped {
                0 => "the history is written again, nothing is missing".to_owned(),
                lost => format!("the history is written again; {lost} events are missing since the start"),
            },
        })
    }

    /// How long decisions have waited for the disk.
    pub(super) fn waited(&self) -> &Histogram {
        &self.waited
    }

    /// Events that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.history.waiting()
    }

    /// For those who look.
    pub(super) fn picture(&self) -> v1::History {
        let (progress, failing) = (self.history.progress(), self.failing());
        v1::History {
            durable: self.path.is_some(),
            path: self.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            bytes: progress.used,
            max_bytes: self.max_bytes,
            not_written_since: failing.as_ref().map(|failing| timestamp(failing.since)),
            not_written_why: failing.map(|failing| failing.why).unwrap_or_default(),
            dropped: progress.dropped,
        }
    }

    /// Writes what is left.
    pub(super) async fn close(mut self) {
        self.commit();
        self.history.close().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::{super::history, *};

    fn chronicle() -> (Chronicle, std::sync::mpsc::Sender<()>, broadcast::Receiver<Arc<v1::Event>>) {
        let (let_it, waits) = std::sync::mpsc::channel();
        let (history, followers) = (history::on_a_slow_disk(waits), Chronicle::followers());
        let follower = followers.subscribe();
        let chronicle = Chronicle::new(history, followers, Intents::default(), Vec::new(), 7, (None, 0));
        (chronicle, let_it, follower)
    }

    fn draft(chronicle: &mut Chronicle) {
        chronicle.event(v1::Event::default());
        chronicle.deed(Deed::Answer { to: oneshot::channel().0, taken_on: Ok(()) });
        chronicle.commit();
    }

    async fn progress(chronicle: &mut Chronicle) {
        timeout(Duration::from_secs(20), chronicle.progressed()).await.expect("it hangs");
    }

    #[tokio::test]
    async fn nothing_is_done_or_told_before_it_is_written() {
        let (mut chronicle, let_it, mut follower) = chronicle();
        draft(&mut chronicle);
        assert!(chronicle.ready().is_empty());
        assert!(follower.try_recv().is_err());
        let_it.send(()).unwrap();
        progress(&mut chronicle).await;
        assert_eq!(chronicle.ready().len(), 1);
        assert_eq!(follower.try_recv().unwrap().sequence, 8);
        assert_eq!(chronicle.news(), None);
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_waited_for_no_longer_than_this_and_that_is_said() {
        let (mut chronicle, let_it, mut follower) = chronicle();
        draft(&mut chronicle);
        chronicle.waiting[0].since -= PATIENCE;
        assert!(chronicle.due().unwrap() <= Instant::now());
        assert_eq!(chronicle.ready().len(), 1);
        assert_eq!(follower.try_recv().unwrap().sequence, 8);
        assert!(
            chronicle.news().unwrap().contains("the disk does not answer; supervising goes on from memory")
        );
        // From now on it is not waited for at all, until it has answered.
        draft(&mut chronicle);
        assert_eq!(chronicle.ready().len(), 1);
        assert!(chronicle.picture().not_written_since.is_some());
        let_it.send(()).unwrap();
        progress(&mut chronicle).await;
        assert!(chronicle.ready().is_empty());
        assert_eq!(chronicle.failing().map(|failing| failing.why), None);
        assert_eq!(chronicle.news().unwrap(), "the history is written again, nothing is missing");
        draft(&mut chronicle);
        assert!(chronicle.ready().is_empty(), "it is waited for again");
    }

    #[tokio::test]
    async fn a_ward_rests_and_is_released_once() {
        let (mut chronicle, _let_it, _follower) = chronicle();
        for _ in 0..2 {
            chronicle.hold("n", "w", true);
        }
        assert!(chronicle.rests("n", "w"));
        chronicle.forget("n");
        chronicle.release("n", "w");
        let ward = ("n".to_owned(), "w".to_owned());
        assert_eq!(
            chronicle.draft.changes,
            [Change::Hold { ward: ward.clone(), quarantined: true }, Change::Release { ward }]
        );
    }
}
