//! A history in memory that survives its supervisor, for simulations.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use wardkeep_proto::{Error, v1};

use super::{
    Opened, SupervisorError,
    memory::MemoryStore,
    recall,
    store::{Filter, Millis, Retention, State, Store, StoreError, Write},
};

/// See the [module](self). Clones are the same one.
#[derive(Clone, Default)]
pub(in crate::daemon) struct Disk(Arc<Mutex<MemoryStore>>);

impl Disk {
    fn store(&self) -> MutexGuard<'_, MemoryStore> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it. `takes`: how long a write lasts, asked for each.
    pub(in crate::daemon) fn open(&self, takes: fn() -> Duration) -> Result<Opened, Error> {
        let state = self.store().state(recall::since());
        let state = state.map_err(|e| SupervisorError::Failed(e.to_string()))?;
        Ok(Opened { in_task: Some(takes), ..Opened::new(Box::new(self.clone()), state, None) })
    }

    /// All events in it.
    pub(in crate::daemon) fn events(&self) -> Vec<v1::Event> {
        self.store().page(&Filter::default(), 0, usize::MAX).unwrap_or_default()
    }

    /// What was decided and has not come true, in words.
    pub(in crate::daemon) fn intents(&self) -> Vec<String> {
        let open = self.store().state(0).map(|state| state.intents).unwrap_or_default();
        open.iter().map(|intent| format!("{intent:?}")).collect()
    }
}

impl Store for Disk {
    fn commit(&mut self, writes: &[Arc<Write>]) -> Result<(), StoreError> {
        self.store().commit(writes)
    }

    fn state(&mut self, since: Millis) -> Result<State, StoreError> {
        self.store().state(since)
    }

    fn locate(&mut self, filter: &Filter) -> Result<u64, StoreError> {
        self.store().locate(filter)
    }

    fn page(&mut self, filter: &Filter, after: u64, limit: usize) -> Result<Vec<v1::Event>, StoreError> {
        self.store().page(filter, after, limit)
    }

    fn trim(&mut self, retention: &Retention, now: Millis) -> Result<bool, StoreError> {
        self.store().trim(retention, now)
    }

    fn used(&mut self) -> Result<u64, StoreError> {
        self.store().used()
    }
}
