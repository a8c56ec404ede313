//! Groups within groups: who is in which, and in which order all of them start.

use std::{collections::BTreeSet, iter, sync::Arc};

use crate::{
    core::Steward,
    group::{Group, Origin},
    types::{GroupSpec, NodeName, Restart, WardId},
    ward::{Intent, Ward},
};

/// No group is deeper than this below the outermost one.
pub const MAX_DEPTH: usize = 16;

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Member {
    Ward(WardId),
    Group(Arc<str>),
}

/// Where something stands in the start order: rank of its node, slot on it.
type Place = (Option<u64>, Option<u32>);

impl Steward {
    /// Describes a group. What is already described under a name stays.
    pub(crate) fn declare(&mut self, spec: GroupSpec, origin: Origin) {
        let known = self.groups.get(&spec.name).map(|group| group.origin);
        match known {
            Some(Origin::Implied) if origin != Origin::Implied => self.describe(spec, origin),
            Some(_) => {}
            None => self.describe(spec, origin),
        }
    }

    pub(crate) fn describe(&mut self, spec: GroupSpec, origin: Origin) {
        let (name, parent) = (spec.name.clone(), spec.parent.clone());
        match self.groups.get_mut(&name) {
            Some(group) => (group.spec, group.origin) = (spec, origin),
            None => {
                self.groups.insert(name.clone(), Group::new(spec, origin));
                self.recall_group(&name);
            }
        }
        self.unlink(&name);
        if let Some(parent) = parent {
            self.link(&name, parent);
        }
    }

    /// Describes a group anew, unless a configuration did and this is none.
    pub(crate) fn redescribe(&mut self, spec: GroupSpec, by: Option<NodeName>) {
        let (name, origin) = match by {
            Some(_) => (spec.name.clone(), Origin::Declared),
            None => (spec.name.clone(), Origin::Configured),
        };
        let configured = self.groups.get(&name).is_some_and(|group| group.origin == Origin::Configured);
        if !configured || by.is_none() {
            self.dirty.insert(name.clone());
            self.describe(spec, origin);
        }
        if let (Some(group), Some(by)) = (self.groups.get_mut(&name), by) {
            group.declared_by.insert(by);
        }
        self.prune_groups();
    }

    /// Forgets what someone said of a group.
    pub(crate) fn withdraw(&mut self, name: &Arc<str>, by: Option<&NodeName>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let nobody = match by {
            Some(node) => {
                group.declared_by.remove(node);
                group.origin == Origin::Declared && group.declared_by.is_empty()
            }
            None => group.origin == Origin::Configured,
        };
        if nobody {
            self.dirty.insert(name.clone());
            self.describe(GroupSpec::new(name.clone()), Origin::Implied);
        }
        self.prune_groups();
    }

    /// A node declares these groups, and no others.
    pub(crate) fn declares(&mut self, node: &NodeName, groups: &BTreeSet<Arc<str>>) {
        for (name, group) in &mut self.groups {
            if groups.contains(name) {
                group.declared_by.insert(node.clone());
            } else {
                group.declared_by.remove(node);
            }
        }
    }

    fn link(&mut self, name: &Arc<str>, parent: Arc<str>) {
        self.declare(GroupSpec::new(parent.clone()), Origin::Implied);
        let circle = self.chain(&parent).any(|group| group.spec.name == *name);
        if circle || self.chain(&parent).count() + self.height(name) > MAX_DEPTH {
            return;
        }
        if let Some(group) = self.groups.get_mut(&parent) {
            group.subgroups.insert(name.clone());
        }
        if let Some(group) = self.groups.get_mut(name) {
            group.parent = Some(parent);
        }
    }

    fn unlink(&mut self, name: &Arc<str>) {
        let parent = self.groups.get_mut(name).and_then(|group| group.parent.take());
        if let Some(parent) = parent {
            if let Some(group) = self.groups.get_mut(&parent) {
                group.subgroups.remove(name);
            }
            self.dirty.insert(parent);
        }
    }

    /// Levels of groups from this one down.
    fn height(&self, name: &str) -> usize {
        let below = self.groups.get(name).into_iter().flat_map(|group| &group.subgroups);
        1 + below.map(|name| self.height(name)).max().unwrap_or(0)
    }

    /// Forgets groups that nobody described and nobody is in.
    pub(crate) fn prune_groups(&mut self) {
        loop {
            let idle = self.groups.values().filter(|group| !group.is_worth_keeping());
            let gone: Vec<_> = idle.map(|group| group.spec.name.clone()).collect();
            if gone.is_empty() {
                return;
            }
            for name in gone {
                self.unlink(&name);
                self.groups.remove(&name);
                self.dirty.insert(name);
            }
        }
    }

    /// A group and those it is in, innermost first.
    pub(crate) fn chain(&self, name: &str) -> impl Iterator<Item = &Group> {
        let up = |group: &&Group| group.parent.as_ref().and_then(|parent| self.groups.get(parent));
        iter::successors(self.groups.get(name), up)
    }

    /// The groups a ward is in, innermost first.
    pub(crate) fn groups_of(&self, id: &WardId) -> impl Iterator<Item = &Group> {
        self.wards.get(id).into_iter().flat_map(|ward| self.chain(ward.group()))
    }

    /// The nodes that the wards of a group, and of those within it, are on.
    pub fn nodes_of_group(&self, name: &str) -> BTreeSet<NodeName> {
        self.wards_in(name).into_iter().map(|id| id.node).collect()
    }

    /// A group and all within it.
    pub(crate) fn subtree(&self, name: &Arc<str>) -> Vec<Arc<str>> {
        let mut all = vec![name.clone()];
        let mut next = 0;
        while let Some(group) = all.get(next).and_then(|name| self.groups.get(name)) {
            all.extend(group.subgroups.iter().cloned());
            next += 1;
        }
        all
    }

    /// A group's members in start order. A group stands where the first of its wards does; one without
    /// wards nowhere.
    pub(crate) fn members(&self, name: &str) -> Vec<Member> {
        let Some(group) = self.groups.get(name) else { return Vec::new() };
        let ward = |id: &WardId| Member::Ward(id.clone());
        if group.subgroups.is_empty() {
            return self.wards.ids(&group.members).map(ward).collect();
        }
        let mut placed: Vec<_> =
            self.wards.ids(&group.members).map(|id| (self.place(id), ward(id))).collect();
        let subgroups = group.subgroups.iter();
        placed.extend(
            subgroups.filter_map(|name| Some((self.first_place(name)?, Member::Group(name.clone())))),
        );
        placed.sort_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, member)| member).collect()
    }

    /// All wards in a group and in those within it, in start order.
    pub(crate) fn wards_in(&self, name: &str) -> Vec<WardId> {
        let wards = |member| match member {
            Member::Ward(id) => vec![id],
            Member::Group(name) => self.wards_in(&name),
        };
        self.members(name).into_iter().flat_map(wards).collect()
    }

    pub(crate) fn place(&self, id: &WardId) -> Place {
        (self.nodes.get(&id.node).map(|node| node.rank), self.wards.get(id).map(|ward| ward.slot))
    }

    fn first_place(&self, name: &str) -> Option<Place> {
        let group = self.groups.get(name)?;
        let own = self.wards.ids(&group.members).next().map(|id| self.place(id));
        own.into_iter().chain(group.subgroups.iter().filter_map(|name| self.first_place(name))).min()
    }

    /// Start order within groups that have wards of this node: nodes by their first session, wards as
    /// their node lists them.
    pub(crate) fn sort_members(&mut self, wards: &[WardId]) {
        let groups: BTreeSet<_> =
            wards.iter().filter_map(|id| self.wards.get(id)).map(|ward| ward.group().clone()).collect();
        for name in groups {
            let Some(group) = self.groups.get_mut(&name) else { continue };
            let mut members = std::mem::take(&mut group.members);
            members.sort_by_cached_key(|place| self.wards.at(*place).map(|ward| self.place(&ward.id)));
            if let Some(group) = self.groups.get_mut(&name) {
                group.members = members;
            }
        }
    }

    /// Its end counts for its group's automatic shutdown.
    pub(crate) fn is_significant(&self, member: &Member) -> bool {
        let (significant, restart) = match member {
            Member::Ward(id) => self.wards.get(id).map(|ward| (ward.spec().significant, ward.spec().restart)),
            Member::Group(name) => {
                self.groups.get(name).map(|group| (group.spec.significant, group.spec.restart))
            }
        }
        .unwrap_or_default();
        significant && restart != Restart::Permanent
    }

    /// It runs, or is going to.
    pub(crate) fn is_active(&self, member: &Member) -> bool {
        let up = |ward: &Ward| ward.intent == Intent::Up;
        match member {
            Member::Ward(id) => self.wards.get(id).is_some_and(up),
            Member::Group(name) => {
                self.groups.get(name).is_some_and(|group| !group.over)
                    || self.wards_in(name).iter().any(|id| self.wards.get(id).is_some_and(up))
            }
        }
    }
}
