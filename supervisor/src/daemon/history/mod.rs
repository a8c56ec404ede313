//! The durable history: what happened, what was decided and not yet seen through, which wards rest.
//!
//! What the fleet decides is handed over as a [`Write`] and acted upon once it is confirmed: so
//! whatever a node was told can be read here. One thread writes (`writer`), all that waits in one
//! transaction; the fleet never waits for the disk. Engines stand behind [`Store`].

#[cfg(any(test, feature = "testing"))]
mod disk;
mod intent;
mod memory;
mod recall;
mod sqlite;
mod store;
mod writer;

#[cfg(test)]
mod conformance;

use std::path::Path;

use wardkeep_proto::Error;

#[cfg(any(test, feature = "testing"))]
pub(super) use self::disk::Disk;
pub(super) use self::{
    intent::{Aim, Intent, Intents, Lane},
    recall::{REMEMBERED, cause, recall},
    store::{Change, Filter, HoldKey, Retention, State, Write},
    writer::{Failing, History, Reader},
};
use self::{memory::MemoryStore, sqlite::SqliteStore, store::Store};
use super::SupervisorError;

/// The file in the data directory.
const FILE: &str = "history.db";

/// A store, and what it held when it was opened.
pub(super) struct Opened {
    store: Box<dyn Store>,
    /// Not on a thread but in a task, with a disk that takes so long.
    #[cfg(any(test, feature = "testing"))]
    in_task: Option<fn() -> std::time::Duration>,
    pub(super) state: State,
    last_intent: u64,
    /// Where it is; `None`: in memory only.
    pub(super) path: Option<std::path::PathBuf>,
}

/// Opens the history in a data directory; without one it is kept in memory only.
///
/// # Errors
/// One line: the file is damaged, of a later version, not a history, or cannot be written.
pub(super) async fn open(data_dir: Option<&Path>) -> Result<Opened, Error> {
    let Some(dir) = data_dir else {
        return Ok(Opened::new(Box::new(MemoryStore::default()), State::default(), None));
    };
    let path = dir.join(FILE);
    let at = path.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let mut store = SqliteStore::open(&at)?;
        let state = store.state(recall::since())?;
        Ok::<_, store::StoreError>((store, state))
    });
    let opened =
        opened.await.map_err(|e| SupervisorError::Failed(format!("history cannot be opened: {e}")))?;
    let (store, state) =
        opened.map_err(|e| SupervisorError::History { path: path.clone(), what: e.to_string() })?;
    Ok(Opened::new(Box::new(store), state, Some(path)))
}

impl Opened {
    fn new(store: Box<dyn Store>, state: State, path: Option<std::path::PathBuf>) -> Self {
        Self {
            store,
            #[cfg(any(test, feature = "testing"))]
            in_task: None,
            last_intent: state.last_intent,
            state,
            path,
        }
    }

    /// Starts the writer.
    pub(super) fn start(self, retention: Retention) -> History {
        #[cfg(any(test, feature = "testing"))]
        if let Some(takes) = self.in_task {
            return History::start_in_task(self.store, retention, self.last_intent, takes);
        }
        History::start(self.store, retention, self.last_intent)
    }
}

/// A history on a disk that takes each write when the test lets it.
#[cfg(test)]
pub(super) fn on_a_slow_disk(let_it: std::sync::mpsc::Receiver<()>) -> History {
    use std::{sync::Arc, time::Duration};

    use wardkeep_proto::v1;

    use self::store::StoreError;

    struct Slow(MemoryStore, std::sync::mpsc::Receiver<()>);

    impl Store for Slow {
        fn commit(&mut self, writes: &[Arc<Write>]) -> Result<(), StoreError> {
            // The test has ended: so does the writer.
            let _ = self.1.recv();
            self.0.commit(writes)
        }
        fn state(&mut self, since: i64) -> Result<State, StoreError> {
            self.0.state(since)
        }
        fn locate(&mut self, filter: &Filter) -> Result<u64, StoreError> {
            self.0.locate(filter)
        }
        fn page(&mut self, filter: &Filter, after: u64, limit: usize) -> Result<Vec<v1::Event>, StoreError> {
            self.0.page(filter, after, limit)
        }
        fn trim(&mut self, retention: &Retention, now: i64) -> Result<bool, StoreError> {
            self.0.trim(retention, now)
        }
        fn used(&mut self) -> Result<u64, StoreError> {
            self.0.used()
        }
    }
    let retention = Retention { max_age: Duration::from_secs(1 << 40), max_bytes: u64::MAX };
    History::start(Box::new(Slow(MemoryStore::default(), let_it)), retention, 0)
}
