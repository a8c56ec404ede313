//! Places where a test can have the supervisor die, or its disk be full. In debug builds only: a
//! release build has none of it.
//!
//! `WARDKEEP_FAILPOINT=NAME` aborts the process the first time it gets there, `NAME*2` the second.
//! `WARDKEEP_DISK_FULL=FILE`: while the file exists nothing can be written.

/// Dies here, if told to.
#[cfg(debug_assertions)]
pub(super) fn reach(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    };
    static TOLD: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let told = TOLD.get_or_init(|| {
        let text = std::env::var("WARDKEEP_FAILPOINT").ok()?;
        let (name, times) = text.split_once('*').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicU32::new(times.parse().ok()?)))
    });
    if let Some((wanted, left)) = told
        && wanted == name
        && left.fetch_sub(1, Relaxed) == 1
    {
        std::process::abort();
    }
}

/// Whether the disk is to count as full.
#[cfg(debug_assertions)]
pub(super) fn disk_is_full() -> bool {
    use std::{path::PathBuf, sync::OnceLock};
    static FLAG: OnceLock<Option<PathBuf>> = OnceLock::new();
    FLAG.get_or_init(|| std::env::var_os("WARDKEEP_DISK_FULL").map(PathBuf::from))
        .as_ref()
        .is_some_and(|flag| flag.exists())
}

#[cfg(not(debug_assertions))]
pub(super) fn reach(_: &str) {}

#[cfg(not(debug_assertions))]
pub(super) fn disk_is_full() -> bool {
    false
}
