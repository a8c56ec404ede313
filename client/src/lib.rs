//! wardkeep-client
