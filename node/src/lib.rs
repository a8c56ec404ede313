//! wardkeep-node
