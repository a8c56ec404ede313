//! Where calls go, by the full name of their service. It follows the wards that come and go: calls see
//! one table or the next, never half of one.

use std::{collections::HashMap, iter, sync::Arc};

use arc_swap::ArcSwap;
use wardkeep_proto::Error;

use crate::{
    built_in::Services,
    entrance::Way,
    error::NodeError,
    methods::Methods,
    ward::{Route, Ward},
};

/// A table of ways.
pub(crate) type Table = HashMap<String, Way>;

/// See the [module](self).
pub(crate) struct Ways {
    node: String,
    now: Arc<ArcSwap<Table>>,
    /// The node's own services.
    built_in: Table,
    /// What reflection tells beside what belongs to wards.
    descriptors: Vec<&'static [u8]>,
}

impl Ways {
    pub(crate) fn new(node: String, built_in: Services, descriptors: Vec<&'static [u8]>) -> Self {
        Self { node, now: Arc::default(), built_in: built_in.into_ways(), descriptors }
    }

    /// Where calls find a ward that is new here.
    ///
    /// # Errors
    /// [`NodeError::Misconfigured`]: what is said of it does not go together.
    pub(crate) fn route(&self, ward: &Ward) -> Result<Option<Arc<Route>>, Error> {
        if ward.services().is_empty() {
            return Ok(ward.route(&Methods::default()).map_err(NodeError::Misconfigured)?);
        }
        let methods = Methods::read(&[self.descriptors.as_slice(), ward.described()].concat())?;
        Ok(ward.route(&methods).map_err(NodeError::Misconfigured)?)
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
        wards: impl Iterator<Item = (&'a Ward, Option<&'a Arc<Route>>)> + Clone,
    ) -> Result<(), Error> {
        let mut descriptors = self.descriptors.clone();
        descriptors.extend(wards.clone().flat_map(|(ward, _)| ward.described().iter().copied()));
        let mut table = Services::new().reflecting(&descriptors)?.into_ways();
        table.extend(self.built_in.clone());
        for (ward, route) in wards {
            for (service, route) in ward.services().iter().zip(iter::repeat(route).flatten()) {
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
