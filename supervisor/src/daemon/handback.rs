//! What was decided elsewhere: by a node's own steward while it had the mandate, and by another supervisor.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use wardkeep_proto::v1::{self, EventKind};
use wardkeep_steward::{Event, WardId};

use super::fleet::Fleet;

impl Fleet {
    /// Writes down what a node's own steward did, if that is news, and returns the restarts among it: they count.
    /// `known`: the number of the latest event that is none.
    pub(super) fn told_meanwhile(&mut self, node: &Arc<str>, hello: &v1::Hello, known: u64) -> Vec<Event> {
        // A node that does not count its events tells each once.
        let news = hello.history.iter().filter(|event| event.sequence == 0 || event.sequence > known);
        let mut counts = Vec::new();
        for event in news {
            let decision = event
                .decision
                .as_ref()
                .filter(|_| matches!(event.kind(), EventKind::WardRestart | EventKind::GroupRestart));
            counts.extend(decision.map(|decision| self.counts(node, event, decision, hello.at.as_ref())));
            let of_ward = || self.group_of(&WardId::new(node.clone(), event.ward.as_str()));
            let group = if event.group.is_empty() { of_ward() } else { event.group.clone() };
            let told = v1::Event {
                at: event.at,
                kind: event.kind,
                node: node.to_string(),
                ward: event.ward.clone(),
                incarnation: event.incarnation,
                verdict: event.verdict,
                text: format!("{} (by the node's own steward)", event.text),
                error: event.error.clone(),
                actor: event.actor.clone(),
                epoch: self.settings.epoch,
                traceparent: event.traceparent.clone(),
                group,
                decision: decision.cloned(),
                boot_id: hello.node.as_ref().map(|info| info.boot_id.clone()).unwrap_or_default(),
                ..Default::default()
            };
            self.chronicle.event(told);
        }
        counts
    }

    fn counts(
        &self,
        node: &Arc<str>,
        event: &v1::Event,
        decision: &v1::Decision,
        sent: Option<&prost_types::Timestamp>,
    ) -> Event {
        let now = Utc::now();
        let date = |at: &prost_types::Timestamp| {
            DateTime::from_timestamp(at.seconds, u32::try_from(at.nanos).unwrap_or_default())
        };
        // By the node's own clock, whatever it shows.
        let sent = sent.and_then(date).unwrap_or(now);
        let at = event.at.as_ref().and_then(date).unwrap_or(sent);
        let age = sent.signed_duration_since(at).to_std().unwrap_or_default();
        let group = (event.kind() == EventKind::GroupRestart).then(|| event.group.as_str().into());
        Event::RestartTold {
            ward: WardId::new(node.clone(), event.ward.as_str()),
            group,
            counts_for: decision.group.as_str().into(),
            anew: decision.groups.iter().map(|group| group.as_str().into()).collect(),
            at: self.now().saturating_sub(age),
        }
    }

    /// Nodes obey another supervisor: said once for each.
    pub(super) fn tell_of_a_higher_epoch(&mut self, highest: u64) {
        let ours = self.settings.epoch;
        if highest > ours.max(self.superseded) {
            self.superseded = highest;
            let text = format!(
                "a supervisor of epoch {highest} has authority over nodes that come here: this one, of epoch {ours}, has none over them"
            );
            self.tell(EventKind::Steward, "", text, "");
        }
    }
}
