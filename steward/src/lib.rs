//! The supervision state machine of wardkeep.
#![forbid(unsafe_code)]

mod types;
pub use types::*;
