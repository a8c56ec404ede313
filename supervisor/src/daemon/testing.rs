//! For simulations of whole clusters: enabled by the feature `testing`.

use std::{net::SocketAddr, time::Duration};

use wardkeep_node::server::Listener;
use wardkeep_proto::{Error, v1};

use super::{Supervisor, SupervisorBuilder, epoch, history};

/// Where a simulated supervisor keeps its history: it survives it, and clones are the same one.
#[derive(Clone, Default)]
pub struct Disk(history::Disk);

impl Disk {
    /// All that happened, as far as it is kept.
    pub fn events(&self) -> Vec<v1::Event> {
        self.0.events()
    }

    /// What was decided and is not known to have come true, in words.
    pub fn open_intents(&self) -> Vec<String> {
        self.0.intents()
    }
}

impl SupervisorBuilder {
    /// A supervisor on any listener, with a history that survives it on `disk`, where each write lasts as long
    /// as `takes` says. It has no threads: where time is simulated, every run is the same.
    ///
    /// # Errors
    /// A disk that cannot be read.
    pub fn simulated<L: Listener>(
        self,
        listener: L,
        address: SocketAddr,
        disk: &Disk,
        takes: fn() -> Duration,
    ) -> Result<Supervisor<L>, Error> {
        let (epoch, history) = (epoch::next(None)?, disk.0.open(takes)?);
        Ok(Supervisor { builder: self, listener, http: None, address, epoch, history })
    }
}
