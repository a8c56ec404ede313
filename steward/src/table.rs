//! All wards: by place, which is how reports speak of them, and by name, for everything else.

use std::{cmp::Ordering, collections::BTreeMap, ops::Range, time::Duration};

use crate::{
    alarms::{Nanos, nanos},
    types::{NodeName, Time, WardId},
    ward::Ward,
};

/// Of a ward that has left.
pub(crate) const NOWHERE: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(crate) struct Table {
    wards: Vec<Option<Ward>>,
    /// Last sign of life of the ward in the same place, patient. A column of its own: all that a report
    /// of idle wards touches.
    pulsed: Vec<Nanos>,
    free: Vec<u32>,
    /// Places by name.
    by_node: BTreeMap<NodeName, Vec<u32>>,
}

impl Table {
    /// Room for so many more, without taking much more than that.
    pub(crate) fn reserve(&mut self, more: usize) {
        let more = more.saturating_sub(self.free.len());
        if self.wards.capacity() - self.wards.len() < more {
            let more = more.max(self.wards.len() / 8);
            self.wards.reserve_exact(more);
            self.pulsed.reserve_exact(more);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.wards.len() - self.free.len()
    }

    /// All places, those that nobody has included.
    pub(crate) fn places(&self) -> Range<u32> {
        0..u32::try_from(self.wards.len()).unwrap_or(NOWHERE)
    }

    pub(crate) fn at(&self, place: u32) -> Option<&Ward> {
        self.wards.get(place as usize)?.as_ref()
    }

    pub(crate) fn at_mut(&mut self, place: u32) -> Option<&mut Ward> {
        self.wards.get_mut(place as usize)?.as_mut()
    }

    pub(crate) fn ids<'a>(&'a self, places: &'a [u32]) -> impl Iterator<Item = &'a WardId> {
        places.iter().filter_map(|place| self.at(*place).map(|ward| &ward.id))
    }

    pub(crate) fn place(&self, id: &WardId) -> Option<u32> {
        let places = self.by_node.get(&id.node)?;
        places.binary_search_by(|place| self.by_name(*place, id)).ok().map(|at| places[at])
    }

    fn by_name(&self, place: u32, id: &WardId) -> Ordering {
        self.at(place).map_or(Ordering::Less, |ward| ward.id.ward.cmp(&id.ward))
    }

    pub(crate) fn get(&self, id: &WardId) -> Option<&Ward> {
        self.at(self.place(id)?)
    }

    pub(crate) fn get_mut(&mut self, id: &WardId) -> Option<&mut Ward> {
        self.at_mut(self.place(id)?)
    }

    pub(crate) fn contains(&self, id: &WardId) -> bool {
        self.place(id).is_some()
    }

    /// Takes a ward in, instead of the one of this name, if there is one. Returns its place.
    pub(crate) fn insert(&mut self, ward: Ward) -> u32 {
        if let Some(place) = self.place(&ward.id) {
            self.wards[place as usize] = Some(ward);
            return place;
        }
        let id = ward.id.clone();
        let place = match self.free.pop() {
            Some(place) => {
                self.wards[place as usize] = Some(ward);
                place
            }
            None => {
                self.wards.push(Some(ward));
                self.pulsed.push(0);
                u32::try_from(self.wards.len() - 1).unwrap_or(NOWHERE)
            }
        };
        let places = self.by_node.get(&id.node).map(Vec::as_slice).unwrap_or_default();
        let at = places.partition_point(|place| self.by_name(*place, &id) == Ordering::Less);
        self.by_node.entry(id.node).or_default().insert(at, place);
        place
    }

    pub(crate) fn remove(&mut self, id: &WardId) -> Option<Ward> {
        let place = self.place(id)?;
        if let Some(places) = self.by_node.get_mut(&id.node) {
            places.retain(|other| *other != place);
            if places.is_empty() {
                self.by_node.remove(&id.node);
            }
        }
        self.free.push(place);
        self.wards[place as usize].take()
    }

    pub(crate) fn pulsed(&self, place: u32) -> Time {
        Duration::from_nanos(self.pulsed.get(place as usize).copied().unwrap_or_default())
    }

    pub(crate) fn set_pulsed(&mut self, place: u32, patient: Nanos) {
        if let Some(pulsed) = self.pulsed.get_mut(place as usize) {
            *pulsed = patient;
        }
    }

    /// It showed a sign of life, or is thought to have.
    pub(crate) fn lives(&mut self, id: &WardId, patient: Time) {
        if let Some(place) = self.place(id) {
            self.set_pulsed(place, nanos(patient));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{types::WardSpec, ward::Terms};

    fn ward(node: &str, name: &str) -> Ward {
        let terms = Terms { spec: WardSpec::new(name), group: "g".into() };
        Ward::new(WardId::new(node, name), terms.into())
    }

    #[test]
    fn a_ward_is_found_by_name_and_by_place_until_it_leaves() {
        let mut table = Table::default();
        let places: Vec<_> = ["b", "a", "c"].map(|name| table.insert(ward("n", name))).into_iter().collect();
        table.insert(ward("m", "a"));
        assert_eq!(table.len(), 4);
        for (place, name) in places.iter().zip(["b", "a", "c"]) {
            assert_eq!(table.place(&WardId::new("n", name)), Some(*place));
            assert_eq!(&*table.at(*place).unwrap().id.ward, name);
        }
        let gone = WardId::new("n", "b");
        assert!(table.remove(&gone).is_some());
        assert!(table.remove(&gone).is_none() && table.get(&gone).is_none());
        assert_eq!(table.insert(ward("n", "d")), places[0]);
        assert!(table.contains(&WardId::new("n", "c")) && table.contains(&WardId::new("m", "a")));
    }
}
