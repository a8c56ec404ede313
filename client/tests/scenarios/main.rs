//! Replicated calls in the situations that others have written down in their tests, and in some more.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod stage;

mod a6_hedging;
mod brpc_backup;
mod cassandra_speculative;
mod drop_in;
mod finagle_backup;
mod ill_replicas;
mod quorum;
mod restraint;
mod third_party;
mod tied;
mod told;
mod tower_hedge;
