//! What nodes host changes while they attend: wards join and leave, groups are declared anew.

use std::sync::Arc;

use chrono::Utc;
use wardkeep_node::wire;
use wardkeep_proto::{timestamp, v1};
use wardkeep_steward::{Event, WardId};

use super::{fleet::Fleet, hello, history::Lane};

impl Fleet {
    /// A ward joins, or one that is known is described anew.
    pub(super) fn joined(&mut self, node: Arc<str>, joined: v1::WardJoined) {
        let Some(record) = self.nodes.get_mut(&node) else { return };
        let ward = joined.ward.unwrap_or_default();
        let spec = ward.spec.clone().unwrap_or_default();
        let is_new = record.slot(&spec.name).is_none();
        let fits = hello::ward(&spec)
            .and_then(|()| hello::few("wards", record.len() + usize::from(is_new), hello::WARDS))
            .and_then(|()| record.join(joined.slot, ward.clone()));
        if let Err(what) = fits {
            return self.expel(&node, what);
        }
        if is_new {
            self.tell_of_ward(&node, &spec.name, "joined its node");
        }
        self.state_changed = true;
        self.step(Event::WardJoined { node: node.clone(), ward: wire::ward_report(&ward) });
        // Its group may be one that the node has not been told of.
        self.heirs.insert(node);
    }

    /// A ward leaves: nothing that was decided about it matters any more.
    pub(super) fn ward_left(&mut self, node: Arc<str>, slot: u32) {
        let Some(ward) = self.nodes.get_mut(&node).and_then(|record| record.leave(slot)) else {
            return self.expel(&node, format!("slot {slot}, which no ward has, is left"));
        };
        self.chronicle.settle(&node, &ward, Lane::Ward, "its node has it no longer");
        self.chronicle.release(&node, &ward);
        self.tell_of_ward(&node, &ward, "left its node");
        self.step(Event::WardLeft { ward: WardId::new(node, ward) });
    }

    fn tell_of_ward(&mut self, node: &str, ward: &str, text: &str) {
        self.state_changed = true;
        tracing::info!(node, ward, "{text}");
        self.chronicle.event(v1::Event {
            at: Some(timestamp(Utc::now())),
            kind: v1::EventKind::Steward.into(),
            node: node.to_owned(),
            ward: ward.to_owned(),
            text: text.to_owned(),
            epoch: self.settings.epoch,
            ..Default::default()
        });
    }

    /// A node declares other groups than before.
    pub(super) fn groups_changed(&mut self, node: Arc<str>, groups: Vec<v1::GroupSpec>) {
        if let Err(what) = hello::groups(&node, &groups) {
            return self.expel(&node, what);
        }
        let Some(record) = self.nodes.get_mut(&node) else { return };
        let before = std::mem::replace(&mut record.groups, groups.clone());
        for spec in groups.iter().filter(|spec| !before.contains(spec)) {
            let group = wire::group_spec(spec);
            self.step(Event::GroupDescribed { group, by: Some(node.clone()) });
        }
        let gone = before.iter().filter(|old| !groups.iter().any(|spec| spec.name == old.name));
        for old in gone {
            let group = old.name.as_str().into();
            self.step(Event::GroupWithdrawn { group, by: Some(node.clone()) });
            self.declare_again(&old.name);
        }
        self.groups_are_news();
        self.state_changed = true;
    }

    /// Groups are others than nodes were told: their own stewards go on with what they are now.
    pub(super) fn groups_are_news(&mut self) {
        let attending = self.nodes.iter().filter(|(_, record)| record.session.is_some());
        self.heirs.extend(attending.map(|(node, _)| node.clone()));
    }

    /// Somebody's description of a group was withdrawn: another node may have one.
    pub(super) fn declare_again(&mut self, group: &str) {
        let declared = self.nodes.iter().find_map(|(node, record)| {
            let spec = record.groups.iter().find(|spec| spec.name == group)?;
            record.session.as_ref().map(|_| (node.clone(), wire::group_spec(spec)))
        });
        if let Some((node, group)) = declared {
            self.step(Event::GroupDescribed { group, by: Some(node) });
        }
    }
}
