//! The well-formed errors that trouble makes.

use tonic::Status;

/// A well-formed error with a chain of this many causes.
pub(super) fn well_formed(depth: u32) -> Status {
    Status::unavailable(format!("trouble was asked for a well-formed error with {depth} causes"))
}
