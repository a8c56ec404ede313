//! What the example programs are made of:
//!
//! * [`pb`]: the messages and services of `wardkeep.examples.v1`;
//! * [`search`]: one code search, answered by three unlike data paths that always agree;
//! * [`search_node`]: that search as a ward of a node;
//! * [`sat`]: formulas, and the SAT solvers that decide them;
//! * [`sat_node`]: such a solver as a ward of a node;
//! * [`trouble`]: a service that misbehaves on request.
//!
//! [`search`] knows nothing of gRPC: it is what a user of wardkeep would have before wardkeep.
#![forbid(unsafe_code)]

mod failure;
mod random;
pub mod sat;
pub mod sat_node;
pub mod search;
pub mod search_node;
pub mod trouble;

pub use failure::Failure;

/// Messages, clients and servers of the package `wardkeep.examples.v1`.
#[allow(missing_docs, clippy::derive_partial_eq_without_eq)]
pub mod pb {
    tonic::include_proto!("wardkeep.examples.v1");

    /// Descriptors of `wardkeep.examples.v1`, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/wardkeep.examples.v1.bin"));
}
