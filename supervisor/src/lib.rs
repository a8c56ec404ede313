//! wardkeep
