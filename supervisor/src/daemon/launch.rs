//! Restarting nodes out of band: by operators, and where a node does not answer in band.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use wardkeep_proto::v1;
use wardkeep_steward::{Cause, Event, Verdict};

use super::{
    fleet::Fleet,
    launcher::{How, Launch},
};

/// A node that was told to restart in place answers within this, or it is restarted by its launcher.
const ANSWER: Duration = Duration::from_secs(5);

/// Nodes that were told to restart in place and have not answered.
#[derive(Default)]
pub(super) struct Deaf(BTreeMap<Arc<str>, Told>);

struct Told {
    command: u64,
    until: Instant,
    cause: Cause,
}

impl Deaf {
    pub(super) fn told(&mut self, node: Arc<str>, command: u64, cause: Cause) {
        self.0.insert(node, Told { command, until: Instant::now() + ANSWER, cause });
    }

    /// A node has obeyed a command, or refused it.
    pub(super) fn answered(&mut self, node: &str, command: u64) {
        if self.0.get(node).is_some_and(|told| told.command == command) {
            self.0.remove(node);
        }
    }

    /// It attends anew: it does not owe an answer any more.
    pub(super) fn attends(&mut self, node: &str) {
        self.0.remove(node);
    }

    /// Whether no answer is owed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The nodes that are named in full, and how each is launched.
pub(super) fn named(launches: &[Launch]) -> BTreeMap<String, How> {
    let named = launches.iter().filter(|launch| !launch.node.contains('*'));
    named.map(|launch| (launch.node.clone(), launch.how)).collect()
}

/// What the steward is told of a node that can be launched.
pub(super) fn launchable(node: &str, how: How) -> Event {
    Event::NodeLaunchable { node: node.into(), takes: how.takes(), awaited: how != How::Process }
}

impl Fleet {
    /// A node attends that may be among those which a launcher knows by a part of their name.
    pub(super) fn find_launcher(&mut self, node: &Arc<str>) {
        if self.settings.launchable.contains_key(&**node) {
            return;
        }
        if let Some(Launch { how, .. }) = Launch::find(&self.settings.launches, node) {
            self.settings.launchable.insert(node.to_string(), how);
            self.step(launchable(node, how));
        }
    }

    /// Has its launcher start a node's process anew. False: it has none.
    pub(super) fn launch(&mut self, node: &Arc<str>, cause: &Cause) -> bool {
        let Some(how) = self.settings.launchable.get(&**node).copied() else { return false };
        let actor = self.actor.clone();
        let text = format!("restart by its launcher ({}): {}", how.word(), cause.reason);
        self.tell(v1::EventKind::NodeRestart, node, text, &actor);
        self.step(Event::LaunchNode { node: node.clone(), cause: cause.clone() });
        true
    }

    /// Launches the nodes that had the time to answer, or cannot any more, and have not.
    pub(super) fn launch_the_deaf(&mut self) {
        if self.deaf.is_empty() {
            return;
        }
        let silent = |node: &str| {
            self.steward.nodes().any(|view| **view.name == *node && view.verdict == Verdict::Unreachable)
        };
        let now = Instant::now();
        let due = self.deaf.0.iter().filter(|(node, told)| told.until <= now || silent(node));
        for node in due.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            let Some(told) = self.deaf.0.remove(&node) else { continue };
            let reason = format!("it does not answer in band; {}", told.cause.reason);
            self.actor = String::new();
            self.launch(&node, &Cause { reason, ..told.cause });
        }
    }

    pub(super) fn launcher_done(&mut self, node: Arc<str>, outcome: Result<String, String>) {
        match outcome {
            Ok(done) => {
                let text = format!("its launcher's {done}");
                self.tell(v1::EventKind::NodeRestart, &node, text, "");
                self.step(Event::NodeLaunched { node });
            }
            Err(why) => {
                let reason = format!("its launcher failed: {why}");
                self.tell(v1::EventKind::NodeRestart, &node, reason.clone(), "");
                let cause = Cause { reason, ..Cause::default() };
                self.step(Event::LaunchFailed { node, cause });
            }
        }
    }
}
