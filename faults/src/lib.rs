//! What breaks wardkeep on purpose: a TCP fault [`proxy`] for tests, and the fault suite, which runs a real
//! [`cluster`] of processes, or of [`containers`], under a steady [`load`] of replicated calls with checked answers, injects a fault
//! and says what came of it. `docs/faults.md` has the table.
#![forbid(unsafe_code)]

pub mod answer;
pub mod attack;
pub mod cluster;
pub mod containers;
pub mod load;
pub mod node;
pub mod observe;
pub mod process;
pub mod proxy;
pub mod suite;
pub mod world;

/// Messages, clients and servers of the package `wardkeep.faults.v1`.
#[allow(missing_docs, clippy::derive_partial_eq_without_eq)]
pub mod pb {
    tonic::include_proto!("wardkeep.faults.v1");

    /// Descriptors of `wardkeep.faults.v1`, for reflection and for clients.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/wardkeep.faults.v1.bin"));
}

/// Why the suite itself cannot go on, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Stuck(pub String);

/// What can be done or not.
pub type Outcome<T> = Result<T, Stuck>;

/// Says what was tried.
pub trait Trying<T> {
    /// # Errors
    /// It failed: the line says what, and why.
    fn trying(self, what: impl std::fmt::Display) -> Outcome<T>;
}

impl<T, E: std::fmt::Display> Trying<T> for Result<T, E> {
    fn trying(self, what: impl std::fmt::Display) -> Outcome<T> {
        self.map_err(|why| Stuck(format!("{what}: {why}")))
    }
}
