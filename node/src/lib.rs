//! Hosts wards: any tonic service, background tasks, external programs.
//!
//! A [`Node`] starts its wards in order, counts their work and their pulses, catches their panics,
//! and restarts what fails: by the decisions of its own steward while it is alone, of its
//! supervisor's while it attends one. Exactly one of them decides at any time.
//!
//! How the parts hang together: calls come in through `server` and the `entrance`, which finds the
//! ward's present incarnation. The `keeper`, a thread with a runtime of its own, owns the `host`
//! (the wards' states) and the `mandate` (who decides), and keeps the session with the supervisor.
//! So a node goes on beating, obeying and healing while the wards' runtime is stuck.
#![deny(unsafe_code)]

mod abandoned;
mod audience;
mod body;
mod built_in;
mod call;
mod calls;
mod census;
mod context;
mod entrance;
mod error;
mod gate;
mod greeting;
mod heart;
mod host;
mod keeper;
mod ledger;
mod load;
mod mandate;
mod memory;
mod methods;
mod node;
mod panics;
mod reexec;
mod replica;
mod scribe;
pub mod server;
mod session;
pub mod settings;
mod sizes;
pub mod story;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod text;
mod tied;
mod twins;
mod ward;
mod ways;
mod wellform;
pub mod wire;

pub use audience::Audience;
pub use built_in::Services;
pub use context::{WardContext, WorkUnit};
pub use error::NodeError;
pub use keeper::{NodeSnapshot, apply::Configuration};
pub use ledger::Ledger;
pub use node::{Node, NodeBuilder, NodeHandle, open, shutdown_signal};
pub use ward::{OnPanic, Output, Program, Ward};
pub use wardkeep_steward::{Backoff, Escalate, GroupSpec, Restart, Strategy};
