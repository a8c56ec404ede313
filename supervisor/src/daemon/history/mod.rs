//! The durable history: what happened, what was decided and not yet seen through, which wards rest.
//!
//! What the fleet decides is handed over as a [`Write`] and acted upon once it is confirmed: so
//! whatever a node was told can be read here. One thread writes (`writer`), all that waits in one
//! transaction; the fleet never waits for the disk. Engines stand behind [`Store`].

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
    pub(super) state: State,
    /// Where it is; `None`: in memory only.
    pub(super) path: Option<std::path::PathBuf>,
}

/// Opens the history in a data directory; without one it is kept in memory only.
///
/// # Errors
/// One line: the file is damaged, of a later version, not a history, or cannot be written.
pub(super) async fn open(data_dir: Option<&Path>) -> Result<Opened, Error> {
    let Some(dir) = data_dir else {
        return Ok(Opened { store: Box::new(MemoryStore::default()), state: State::default(), path: None });
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
    Ok(Opened { store: Box::new(store), state, path: Some(path) })
}

impl Opened {
    /// Starts the writer.
    pub(super) fn start(self, retention: Retention) -> History {
        History::start(self.store, retention)
    }
}
