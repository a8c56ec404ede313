//! Where calls go, by the full name of their service. It follows the wards that come and go: calls see
//! one table or the next, never half of one.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use tonic_health::pb::health_server::{Health, HealthServer};
use wardkeep_proto::Error;

use crate::{
    built_in::Services,
    entrance::Way,
    error::NodeError,
    ward::{Route, Ward},
};

/// A table of ways.
pub(crate) type Table = HashMap<String, Way>;

/// See the [module](self).
pub(crate) struct Ways {
    node: String,
    now: Arc<ArcSwap<Table>>,
    /// The node's own health service.
    health: Table,
    /// What reflection tells beside what belongs to wards.
    descriptors: Vec<&'static [u8]>,
}

impl Ways {
    pub(crate) fn new(
        node: String,
        health: HealthServer<impl Health>,
        descriptors: Vec<&'static [u8]>,
    ) -> Self {
        let health = Services::new().with(health).into_ways();
        Self { node, now: Arc::default(), health, descriptors }
    }

    /// For the entrance.
    pub(crate) fn table(&self) -> Arc<ArcSwap<Table>> {
        self.now.clone()
    }

    /// Makes it so that these wards, and no others, are found.
    ///
    /// # Errors
    /// [`NodeError::Misconfigured`]: two of them answer one service, or a descriptor set cannot be read.
    /// Nothing has changed then.
    pub(crate) fn lead_to<'a>(
        &self,
        wards: impl Iterator<Item = (&'a Ward, &'a Arc<Route>)> + Clone,
    ) -> Result<(), Error> {
        let mut descriptors = self.descriptors.clone();
        descriptors.extend(wards.clone().flat_map(|(ward, _)| ward.descriptors.iter().copied()));
        let mut table = Services::new().reflecting(&descriptors)?.into_ways();
        table.extend(self.health.clone());
        for (ward, route) in wards {
            for service in &ward.services {
                if table.insert(service.clone(), Way::Ward(route.clone())).is_some() {
                    let twice = format!("two wards of node {} answer the service {service}", self.node);
                    return Err(NodeError::Misconfigured(twice).into());
                }
            }
        }
        self.now.store(Arc::new(table));
        Ok(())
    }
}
