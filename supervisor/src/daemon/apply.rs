//! Configuration files, read anew while the supervisor runs: its own, and those of nodes.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use tokio::sync::oneshot;
use wardkeep_node::settings::{self, Entry, sentence};
use wardkeep_proto::{
    Error,
    v1::{self, command},
};
use wardkeep_steward::{Cause, Config, Event, GroupSpec};

use super::{
    SupervisorError,
    chronicle::Deed,
    fleet::{Fleet, SessionId},
    history::Retention,
    launch::{self, launchable},
    launcher::{How, Launch},
};

/// What a supervisor's configuration file says.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// How the steward judges and heals. The seed is not taken over.
    pub steward: Config,
    /// Nodes take over their own wards after so long without a session.
    pub mandate_grace: Duration,
    /// How long, and how many bytes of it, what happened is kept.
    pub history: (Duration, u64),
    /// Groups.
    pub groups: Vec<GroupSpec>,
    /// Nodes to launch.
    pub launches: Vec<Launch>,
    /// All of it, for telling what has changed.
    pub entries: Vec<Entry>,
}

/// Reads the file anew.
pub(super) type Read = Arc<dyn Fn() -> Result<Configuration, String> + Send + Sync>;

/// A file, and what it said when it was last read.
pub(super) struct ConfigFile {
    pub(super) path: String,
    pub(super) entries: Vec<Entry>,
    pub(super) read: Read,
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What was, or would be, changed.
pub(super) type Answer = Result<v1::ConfigOutcome, Error>;

/// Who wants it.
pub(super) struct Wanted {
    pub(super) dry_run: bool,
    pub(super) cause: Cause,
    pub(super) actor: String,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Nodes that were told to apply their files and have not answered, by session and command.
#[derive(Default)]
pub(super) struct Applying(HashMap<(SessionId, u64), Wanted>);

impl Applying {
    /// The session has ended: who waits learns of it.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.0.retain(|(of, _), _| *of != session);
    }
}

impl Fleet {
    /// Makes the supervisor what its file says now.
    pub(super) fn apply_own(&mut self, now: Box<Configuration>, wanted: Wanted) {
        let outcome = self.make_so(*now, &wanted);
        let _ = wanted.answer.send(outcome);
    }

    fn make_so(&mut self, now: Configuration, wanted: &Wanted) -> Answer {
        let Some(file) = &mut self.settings.config else {
            return Ok(v1::ConfigOutcome { hosted_from_code: true, ..Default::default() });
        };
        let changes = settings::diff(&file.entries, &now.entries);
        let outcome = v1::ConfigOutcome { changes, ..Default::default() };
        if wanted.dry_run {
            return Ok(outcome);
        }
        if let Some(why) = settings::refusal(&outcome.changes) {
            return Err(SupervisorError::Unfit(why).into());
        }
        file.entries = now.entries;
        self.tell_changes("", &outcome.changes, wanted);
        self.steward.configure(now.steward);
        let seed = self.settings.steward.seed;
        self.settings.steward = Config { seed, ..now.steward };
        self.settings.mandate_grace = now.mandate_grace;
        let (max_age, max_bytes) = now.history;
        self.chronicle.retain(Retention { max_age, max_bytes });
        self.describe_groups(now.groups);
        self.launch_as_configured(now.launches, &wanted.cause);
        self.state_changed = true;
        Ok(outcome)
    }

    fn describe_groups(&mut self, groups: Vec<GroupSpec>) {
        let before = std::mem::replace(&mut self.settings.groups, groups.clone());
        for group in groups.iter().filter(|group| !before.contains(group)).cloned() {
            self.step(Event::GroupDescribed { group, by: None });
        }
        for old in before.iter().filter(|old| !groups.iter().any(|group| group.name == old.name)) {
            self.step(Event::GroupWithdrawn { group: old.name.clone(), by: None });
            self.declare_again(&old.name);
        }
        self.groups_are_news();
    }

    fn launch_as_configured(&mut self, launches: Vec<Launch>, cause: &Cause) {
        let mut now = launch::named(&launches);
        for node in self.nodes.keys() {
            if let Some(Launch { how, .. }) = Launch::find(&launches, node) {
                now.insert(node.to_string(), how);
            }
        }
        let before = std::mem::replace(&mut self.settings.launchable, now.clone());
        self.settings.launches.clone_from(&launches);
        // The launcher starts those that are its children.
        self.chronicle.deed(Deed::Configure(launches));
        for (node, how) in &now {
            if before.get(node) == Some(how) {
                continue;
            }
            self.step(launchable(node, *how));
            let away = self.nodes.get(node.as_str()).is_none_or(|record| record.session.is_none());
            if *how != How::Process && !before.contains_key(node) && away {
                let (node, cause) = (node.as_str().into(), cause.clone());
                self.step(Event::LaunchNode { node, cause });
            }
        }
        for node in before.keys().filter(|node| !now.contains_key(*node)) {
            self.step(Event::NodeUnlaunchable { node: node.as_str().into() });
        }
    }

    /// Tells a node to apply its file.
    pub(super) fn apply_of_node(&mut self, node: &str, wanted: Wanted) {
        let told = self.reachable_node(node).map(|node| {
            let session = self.nodes.get(&node).and_then(|record| record.session.as_ref());
            let key = session.map(|session| (session.id, session.next_command));
            if !wanted.dry_run {
                let text = format!("its configuration is to be applied: {}", wanted.cause.reason);
                self.tell(v1::EventKind::Operator, &node, text, &wanted.actor);
            }
            let kind = command::Kind::ApplyConfig(v1::ApplyConfig { dry_run: wanted.dry_run });
            self.command(&node, kind, &wanted.cause, false);
            key
        });
        match told {
            // Who has left does not wait any more.
            Ok(Some(key)) => {
                self.applying.0.retain(|_, wanted| !wanted.answer.is_closed());
                self.applying.0.insert(key, wanted);
            }
            Ok(None) => {}
            Err(error) => drop(wanted.answer.send(Err(error))),
        }
    }

    /// A command was refused: if it was to apply a file, that is the answer.
    pub(super) fn apply_refused(&mut self, node: &str, command: u64, error: &v1::Error) {
        let session = self.nodes.get(node).and_then(|record| record.session.as_ref());
        let wanted = session.and_then(|session| self.applying.0.remove(&(session.id, command)));
        if let Some(wanted) = wanted {
            let _ = wanted.answer.send(Err(Error::from_proto(error.clone())));
        }
    }

    pub(super) fn config_answered(&mut self, node: &Arc<str>, answer: v1::ConfigAnswer) {
        let session = self.nodes.get(node).and_then(|record| record.session.as_ref());
        let wanted = session.and_then(|session| self.applying.0.remove(&(session.id, answer.id)));
        let Some(wanted) = wanted else { return };
        let v1::ConfigAnswer { changes, restarts, hosted_from_code, error, .. } = answer;
        if let Some(error) = error {
            let _ = wanted.answer.send(Err(Error::from_proto(error)));
            return;
        }
        if !wanted.dry_run {
            self.tell_changes(node, &changes, &wanted);
            self.roll_out(node, &restarts, &wanted.cause, &wanted.actor);
        }
        let _ = wanted.answer.send(Ok(v1::ConfigOutcome { changes, restarts, hosted_from_code }));
    }

    fn tell_changes(&mut self, node: &str, changes: &[v1::ConfigChange], wanted: &Wanted) {
        for change in changes {
            let text = format!("configuration applied: {}: {}", sentence(change), wanted.cause.reason);
            self.tell(v1::EventKind::Operator, node, text, &wanted.actor);
        }
    }
}
