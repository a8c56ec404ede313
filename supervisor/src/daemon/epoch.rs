//! The authority number of this supervisor's steward: higher than that of any before it.
//!
//! It is the time of its start in milliseconds, or one more than the last one kept in the data
//! directory, whichever is higher: a clock that was set back does not take authority away.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use chrono::Utc;
use wardkeep_proto::Error;

use super::SupervisorError;

#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) number: u64,
    /// Held for as long as this supervisor lives; the system lets go of it when the process ends.
    _alone: Option<fs::File>,
}

/// Fixes the epoch of this run, and keeps it if there is where.
pub(super) fn next(data_dir: Option<&Path>) -> Result<Epoch, Error> {
    let now = u64::try_from(Utc::now().timestamp_millis()).unwrap_or(0);
    let Some(dir) = data_dir else { return Ok(Epoch { number: now, _alone: None }) };
    let file = dir.join("epoch");
    let cannot = |source| SupervisorError::DataDir { path: file.clone(), source };
    fs::create_dir_all(dir).map_err(cannot)?;
    let alone = lock(dir)?;
    let last = match fs::read_to_string(&file) {
        Ok(text) => Some(text.trim().parse::<u64>().map_err(|e| {
            cannot(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{e}; remove the file if it is damaged"),
            ))
        })?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(cannot(e).into()),
    };
    let number = last.map_or(now, |last| now.max(last.saturating_add(1)));
    replace(dir, &file, number).map_err(cannot)?;
    Ok(Epoch { number, _alone: Some(alone) })
}

/// Two supervisors on the same data would take each other's nodes away.
fn lock(dir: &Path) -> Result<fs::File, Error> {
    let path = dir.join("lock");
    let cannot = |source| SupervisorError::DataDir { path: path.clone(), source };
    let file = fs::File::create(&path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(SupervisorError::DataDirInUse { path: dir.to_path_buf() }.into())
        }
        Err(fs::TryLockError::Error(e)) => Err(cannot(e).into()),
    }
}

/// Never half a number: written beside, synced, renamed.
fn replace(dir: &Path, file: &Path, number: u64) -> io::Result<()> {
    let beside = dir.join("epoch.new");
    let mut out = fs::File::create(&beside)?;
    writeln!(out, "{number}")?;
    out.sync_all()?;
    fs::rename(&beside, file)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_grows_even_if_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = next(Some(dir.path())).unwrap();
        let ahead = first.number + 1_000_000_000;
        drop(first);
        fs::write(dir.path().join("epoch"), ahead.to_string()).unwrap();
        let second = next(Some(dir.path())).unwrap();
        assert_eq!(second.number, ahead + 1);
    }

    #[test]
    fn two_supervisors_do_not_share_their_data() {
        let dir = tempfile::tempdir().unwrap();
        let first = next(Some(dir.path())).unwrap();
        let refused = next(Some(dir.path())).unwrap_err();
        assert_eq!(refused.kind(), "DATA_DIR_IN_USE");
        drop(first);
        next(Some(dir.path())).unwrap();
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("epoch"), "x").unwrap();
        let error = next(Some(dir.path())).unwrap_err();
        assert!(error.what().contains("epoch"), "{error}");
    }
}
