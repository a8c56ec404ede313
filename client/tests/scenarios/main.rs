//! Replicated calls in the situations that others have written down in their tests, and in some more.
//!
//! Of theirs these are not here, or end otherwise:
//!
//! | there | here |
//! |---|---|
//! | grpc-java `hedging_receiveHeaders` | a head commits nothing: a reply that may still fail is none (`a6_hedging`) |
//! | grpc-java `hedging_perRpcBufferLimitExceeded` | a request over the limit is refused before any copy is sent, since copies share one buffer that is filled first |
//! | grpc-java `hedging_channelBufferLimitExceeded` | no such limit: a channel holds as many requests as it has calls, each within the limit for one |
//! | grpc-java `hedging_transparentRetry` | up to four times, not once: `decide/tests.rs`; of a refused stream: `third_party` |
//! | grpc-java `hedging_throttledByOtherCall` | the copy that was due already is not sent either, as A6 says |
//! | tower: percentile of mock latencies | of what was seen |
//! | Finagle: the original fails before the backup is due | another member is asked at once (`brpc_backup`): gRFC A6, not an error |
//! | Finagle: `sendInterrupts = false` | losers are always ended; which are left to finish for a moment, `third_party` |
//! | Finagle: `maxExtraLoad` changed while it runs, stacks and parameters | settings are those a channel was built with |
//! | brpc: a backup to the only server | never twice to one member (`cassandra_speculative`, "unable to speculate") |
//! | Cassandra: speculation that lacked replicas is counted | `winner().attempts` tells; nothing was refused, so no counter grows |

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
