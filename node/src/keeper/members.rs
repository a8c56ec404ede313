//! Wards that come and go while the node runs.
//!
//! A ward that goes is forgotten by whoever is steward before it is stopped: so its end is no failure to
//! heal. What is known of it is gone when nothing of it runs any more.

use tokio::{sync::oneshot, time::timeout};
use wardkeep_proto::{
    Error,
    v1::{self, node_message::Kind as Up},
};
use wardkeep_steward::{Event, WardId};

use super::{HEALTH_PATIENCE, Keeper};
use crate::{error::NodeError, host::wire_slot, ward::Ward, wire};

impl Keeper {
    /// Hosts one more ward. Its slot.
    pub(super) async fn admit(&mut self, ward: Ward) -> Result<usize, Error> {
        self.check(&ward)?;
        let (serves, route) = (!ward.services().is_empty(), self.setup.ways.route(&ward)?);
        let slot = self.setup.host.add(ward, route);
        if serves && let Err(error) = self.setup.ways.lead_to(self.setup.host.routes()) {
            self.setup.host.forget(slot);
            return Err(error);
        }
        self.show_health(slot, v1::WardState::Stopped).await;
        self.tell_of(slot);
        Ok(slot)
    }

    /// The rules of supervisors, and of this node.
    pub(super) fn check(&self, ward: &Ward) -> Result<(), Error> {
        let host = &self.setup.host;
        if self.setup.supervisor.is_some() && host.len() >= wire::MOST_WARDS {
            let node = self.name().to_owned();
            return Err(NodeError::TooManyWards { node, most: wire::MOST_WARDS }.into());
        }
        self.check_words(ward)?;
        if host.routes().any(|(other, _)| other.name() == ward.name()) {
            let twice = format!("node {} has a ward named {} already", self.name(), ward.name());
            return Err(NodeError::Misconfigured(twice).into());
        }
        Ok(())
    }

    /// What is said of the ward alone.
    pub(super) fn check_words(&self, ward: &Ward) -> Result<(), Error> {
        wire::check_name("ward", ward.name()).map_err(NodeError::Misconfigured)?;
        if let Some(group) = &ward.spec.group {
            wire::check_name("group", group).map_err(NodeError::Misconfigured)?;
        }
        Ok(ward.check().map_err(NodeError::Misconfigured)?)
    }

    /// Tells whoever is steward of a ward that has joined, or is described anew.
    pub(super) fn tell_of(&mut self, slot: usize) {
        let Some(ward) = self.setup.host.view_of(slot) else { return };
        if self.setup.mandate.is_own() {
            let (now, node) = (self.now(), self.name().into());
            let report = self.setup.host.report_of(slot);
            let joined = report.map(|ward| Event::WardJoined { node, ward });
            let actions = joined.map(|joined| self.setup.mandate.step(now, joined));
            self.queue.extend(actions.into_iter().flatten());
        }
        self.send(Up::WardJoined(v1::WardJoined { slot: wire_slot(slot), ward: Some(ward) }));
        self.publish();
    }

    pub(super) fn remove(&mut self, ward: &str, answer: oneshot::Sender<Result<(), Error>>) {
        match self.setup.host.slot(ward) {
            Some(slot) => {
                self.dismiss(slot);
                self.farewells.push((slot, answer));
            }
            None => {
                let (node, ward) = (self.name().to_owned(), ward.to_owned());
                let _ = answer.send(Err(NodeError::NoSuchWard { node, ward }.into()));
            }
        }
    }

    /// Has a ward forgotten, then stopped.
    pub(super) fn dismiss(&mut self, slot: usize) {
        let Some(ward) = self.setup.host.name(slot) else { return };
        self.setup.host.dismiss(slot);
        if self.setup.mandate.is_own() {
            let (now, ward) = (self.now(), WardId::new(self.name(), ward));
            let actions = self.setup.mandate.step(now, Event::WardLeft { ward });
            self.queue.extend(actions);
        }
        self.send(Up::WardLeft(v1::WardLeft { slot: wire_slot(slot) }));
        if let Some(number) = self.setup.host.running(slot) {
            // It is this incarnation, and no other.
            let _ = self.setup.host.stop(slot, number, None);
        }
        self.publish();
    }

    /// Forgets the wards that have gone. Whether there were any.
    pub(super) async fn see_off(&mut self) -> bool {
        let departed = self.setup.host.departed();
        for slot in &departed {
            let Some(ward) = self.setup.host.forget(*slot) else { continue };
            if !ward.services().is_empty() {
                if let Err(error) = self.setup.ways.lead_to(self.setup.host.routes()) {
                    tracing::warn!(node = %self.name(), %error, "calls still find a ward that has gone");
                }
                for service in ward.services() {
                    // As with `set_health`: its lock may never be free again.
                    let cleared = self.setup.health.clear_service_status(service);
                    let _ = timeout(HEALTH_PATIENCE, cleared).await;
                }
            }
            for (_, answer) in self.farewells.extract_if(.., |(of, _)| of == slot) {
                let _ = answer.send(Ok(()));
            }
        }
        !departed.is_empty()
    }
}
