//! The node's configuration file, read anew while it runs.
//!
//! The file is the truth: what differs from what the node was last told is made so. All of it is checked
//! before any of it is done. Wards that run as they were described before are named in the answer: the
//! steward restarts them.

use std::{collections::VecDeque, fmt, sync::Arc};

use wardkeep_proto::{
    Error,
    v1::{self, ConfigAction, ConfigEffect, node_message::Kind as Up},
};
use wardkeep_steward::{Event, GroupSpec};

use super::Keeper;
use crate::{
    error::NodeError,
    settings::{self, Entry, named},
    ward::Ward,
    wire,
};

/// What a node's configuration file says.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// All of it, for telling what has changed.
    pub entries: Vec<Entry>,
    /// Groups, each with an entry.
    pub groups: Vec<GroupSpec>,
    /// Wards in start order, each with an entry.
    pub wards: Vec<Ward>,
}

type Read = Arc<dyn Fn() -> Result<Configuration, String> + Send + Sync>;

/// A file and what it said when it was last read.
#[derive(Clone)]
pub(crate) struct ConfigFile {
    pub(crate) now: Configuration,
    pub(crate) read: Read,
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigFile").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Someone asked for it.
pub(super) struct Asked {
    command: u64,
    dry_run: bool,
    read: Result<Configuration, String>,
}

/// Wards that are still to go, one after the other, before it is answered.
pub(super) struct Applying {
    command: u64,
    changes: Vec<v1::ConfigChange>,
    /// By name, the next one first.
    removing: VecDeque<String>,
}

impl Keeper {
    /// Reads the file, where that holds nobody up.
    pub(super) fn asked_to_apply(&mut self, command: u64, dry_run: bool) -> Result<(), Error> {
        let Some(file) = &self.setup.config else {
            let answer = v1::ConfigAnswer { id: command, hosted_from_code: true, ..Default::default() };
            self.send(Up::ConfigAnswer(answer));
            return Ok(());
        };
        if self.applying.is_some() || !self.reading.is_empty() {
            let busy = "its configuration is being applied at this moment: try again when that is done";
            return Err(NodeError::Unfit(busy.to_owned()).into());
        }
        let read = file.read.clone();
        self.reading.spawn_blocking(move || Asked { command, dry_run, read: read() });
        Ok(())
    }

    pub(super) async fn apply(&mut self, asked: Asked) {
        let Asked { command, dry_run, read } = asked;
        let made = match read {
            Ok(now) if dry_run => self.would_change(&now),
            Ok(now) => self.make_so(command, now).await,
            Err(what) => Err(NodeError::Unfit(what).into()),
        };
        match made {
            Ok(Some(answer)) => self.send(Up::ConfigAnswer(v1::ConfigAnswer { id: command, ..answer })),
            Ok(None) => {}
            Err(error) => self.refuse_to_apply(command, error),
        }
    }

    pub(super) fn refuse_to_apply(&mut self, command: u64, error: Error) {
        let error = error.at(self.name(), "", 0);
        self.setup.ledger.write(&error);
        let error = Some(error.into_proto());
        self.send(Up::ConfigAnswer(v1::ConfigAnswer { id: command, error, ..Default::default() }));
    }

    fn changes_to(&self, after: &Configuration) -> Vec<v1::ConfigChange> {
        let before = self.setup.config.as_ref().map(|file| file.now.entries.as_slice());
        settings::diff(before.unwrap_or_default(), &after.entries)
    }

    fn would_change(&self, after: &Configuration) -> Result<Option<v1::ConfigAnswer>, Error> {
        let changes = self.changes_to(after);
        self.check_changes(&changes, after)?;
        let host = &self.setup.host;
        let again = changes.iter().filter(|change| change.effect() == ConfigEffect::Restarts);
        let again: Vec<_> = again.map(|change| change.name.as_str()).collect();
        let outdated = host.outdated();
        let runs = |name: &str| host.slot(name).is_some_and(|slot| host.running(slot).is_some());
        let all = host.routes().map(|(ward, _)| ward.name());
        let restarts = all
            .filter(|name| outdated.iter().any(|other| other == name) || (again.contains(name) && runs(name)))
            .map(str::to_owned)
            .collect();
        Ok(Some(v1::ConfigAnswer { changes, restarts, ..Default::default() }))
    }

    /// What could fail later fails here, before anything has changed.
    fn check_changes(&self, changes: &[v1::ConfigChange], after: &Configuration) -> Result<(), Error> {
        let (host, node) = (&self.setup.host, self.name());
        let added = named(changes, "ward", ConfigAction::Added);
        if self.setup.supervisor.is_some() && host.slots().len() + added.len() > wire::MOST_WARDS {
            let node = node.to_owned();
            return Err(NodeError::TooManyWards { node, most: wire::MOST_WARDS }.into());
        }
        for ward in &after.wards {
            if added.contains(&ward.name()) {
                self.check(ward)?;
            } else {
                self.check_words(ward)?;
            }
        }
        let unknown = named(changes, "ward", ConfigAction::Changed);
        if let Some(ward) = unknown.into_iter().find(|ward| host.slot(ward).is_none()) {
            let gone = format!("ward {ward} of the file has been removed from node {node}: restart the node");
            return Err(NodeError::Unfit(gone).into());
        }
        Ok(())
    }

    async fn make_so(
        &mut self,
        command: u64,
        after: Configuration,
    ) -> Result<Option<v1::ConfigAnswer>, Error> {
        let changes = self.changes_to(&after);
        if let Some(why) = settings::refusal(&changes) {
            return Err(NodeError::Unfit(why).into());
        }
        self.check_changes(&changes, &after)?;
        self.describe_groups(&changes, &after);
        let changed = named(&changes, "ward", ConfigAction::Changed);
        let added = named(&changes, "ward", ConfigAction::Added);
        let anew = |name: &str| {
            changes.iter().any(|change| change.name == name && change.effect() == ConfigEffect::Restarts)
        };
        for ward in &after.wards {
            let name = ward.name().to_owned();
            if added.contains(&ward.name()) {
                self.admit(ward.clone()).await?;
            } else if changed.contains(&ward.name())
                && let Some(slot) = self.setup.host.slot(&name)
            {
                self.setup.host.describe(slot, ward.clone(), anew(&name));
                self.tell_of(slot);
            }
        }
        let removing =
            named(&changes, "ward", ConfigAction::Removed).into_iter().map(str::to_owned).collect();
        if let Some(file) = &mut self.setup.config {
            file.now = after;
        }
        self.applying = Some(Applying { command, changes, removing });
        Ok(None)
    }

    fn describe_groups(&mut self, changes: &[v1::ConfigChange], after: &Configuration) {
        let gone = named(changes, "group", ConfigAction::Removed);
        let mut others = named(changes, "group", ConfigAction::Changed);
        others.extend(named(changes, "group", ConfigAction::Added));
        if gone.is_empty() && others.is_empty() {
            return;
        }
        let described = after.groups.iter().filter(|group| others.contains(&&*group.name));
        let groups = &mut self.setup.groups;
        groups.retain(|group| !gone.contains(&&*group.name));
        let by = || Some(self.setup.info.name.as_str().into());
        let mut events: Vec<_> =
            gone.iter().map(|name| Event::GroupWithdrawn { group: (*name).into(), by: by() }).collect();
        for group in described {
            match groups.iter_mut().find(|known| known.name == group.name) {
                Some(known) => *known = group.clone(),
                None => groups.push(group.clone()),
            }
            events.push(Event::GroupDescribed { group: group.clone(), by: by() });
        }
        self.setup.mandate.declare(groups.clone());
        let groups = groups.iter().map(wire::group_spec_message).collect();
        let now = self.now();
        for event in events {
            let actions = self.setup.mandate.step(now, event);
            self.queue.extend(actions);
        }
        self.send(Up::GroupsChanged(v1::GroupsChanged { groups }));
    }

    /// Has the next ward go, once the one before is gone; answers when all are.
    pub(super) fn go_on_applying(&mut self) {
        let Some(applying) = &mut self.applying else { return };
        while let Some(ward) = applying.removing.front() {
            match self.setup.host.slot(ward) {
                Some(slot) => return self.dismiss(slot),
                // It is on its way, or gone.
                None if self.setup.host.routes().any(|(other, _)| other.name() == ward) => return,
                None => drop(applying.removing.pop_front()),
            }
        }
        let Some(Applying { command, changes, .. }) = self.applying.take() else { return };
        let restarts = self.setup.host.outdated();
        let answer = v1::ConfigAnswer { id: command, changes, restarts, ..Default::default() };
        self.send(Up::ConfigAnswer(answer));
    }
}
