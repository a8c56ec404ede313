//! What crosses the wire between the parts of wardkeep, and what every part needs to speak of it:
//!
//! * [`v1`]: the messages and services of `wardkeep.v1`, generated at build time without `protoc`;
//! * [`Error`]: the well-formed error, its kinds and its `google.rpc` form;
//! * [`context`]: what a request carries from hop to hop (request ID, attempt, time left);
//! * [`trace`]: W3C trace context in and out of headers.
//!
//! Nothing here opens a socket or starts a task.
#![deny(unsafe_code)]

pub mod context;
mod convert;
pub mod error;
pub mod trace;

pub use error::{Error, Kind, ResultExt};

/// Messages, clients and servers of the package `wardkeep.v1`.
#[allow(missing_docs, clippy::derive_partial_eq_without_eq, clippy::large_enum_variant)]
pub mod v1 {
    tonic::include_proto!("wardkeep.v1");
}

/// Descriptors of `wardkeep.v1`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wardkeep.v1.bin"));

/// Name of this machine in errors and in `NodeInfo.machine`, unless configured otherwise.
pub fn machine_name() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| gethostname::gethostname().to_string_lossy().into_owned())
}

pub use convert::{duration, prefix, timestamp};
