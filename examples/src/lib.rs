//! wardkeep-examples
