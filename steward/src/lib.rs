//! The supervision state machine of wardkeep: events and a time in, actions out.
//!
//! The steward does no I/O, knows no clock and draws no random numbers: the same events at the same
//! times with the same seed give the same actions. Its home (the supervisor, or a node that is alone)
//! feeds it with [`Steward::step`], carries out what it answers, and sends a [`Event::Tick`] at
//! [`Steward::next_wake`] at the latest. It survives any order of events; nothing in it grows beyond
//! the fleet it watches.
//!
//! # Theory of operation
//!
//! * **Incarnations order everything.** The node numbers a ward's incarnations, one more at each start
//!   (a start that fails included). Messages about an older one are dropped with a note, a newer one
//!   is believed, and each command names the one it means.
//! * **A verdict is classified.** Crashed is pushed by the node; stalled is judged by the oldest unit
//!   of work, else the pulse, only while the node's reports vouch for it; runtime-stalled and
//!   unreachable are about nodes and restart no ward.
//! * **A restart is decided by the ward's group**: strategy, intensity and period as in OTP, then a
//!   pause with jitter, then the fleet's budget. Who is restarted together stops in reverse start
//!   order and starts in start order, one after the other.
//! * **Groups nest.** One that gave up, or shut down because its significant members had ended, is for
//!   the group it is in a member that ended; the outermost one that gives up is quarantined.
//! * **Healthy work is kept.** A node that comes back with the same boot ID keeps what runs. What
//!   operators stopped, and what the steward quarantined, rests until an operator starts it.
//! * **It doubts itself first.** Time in which the steward was late counts as nobody's silence, and
//!   when most nodes fall silent together all get twice the patience.
//!
//! ```
//! use std::time::Duration;
//! use wardkeep_steward::{Action, Cause, Config, Event, ExitKind, Phase, Steward, WardId, WardReport, WardSpec};
//!
//! let mut steward = Steward::new(Config::default());
//! let report = WardReport { spec: WardSpec::new("search"), phase: Phase::Running, incarnation: 1, held: false, failed: false };
//! let attached =
//!     Event::NodeAttached { node: "trigram".into(), boot: 7, wards: vec![report], groups: vec![] };
//! steward.step(Duration::from_secs(1), attached);
//!
//! let ward = WardId::new("trigram", "search");
//! let cause = Cause { reason: "panicked".into(), ..Cause::default() };
//! let exited = Event::WardExited { ward, incarnation: 1, kind: ExitKind::Panicked, cause };
//! let actions = steward.step(Duration::from_secs(2), exited);
//! assert!(actions.iter().any(|action| matches!(action, Action::Start { after_incarnation: 1, .. })));
//! ```
#![forbid(unsafe_code)]

mod agenda;
mod alarms;
mod attach;
mod backoff;
mod budget;
mod core;
mod detector;
mod escalate;
mod group;
mod intensity;
mod launch;
mod life;
mod memory;
mod node;
mod plan;
mod slots;
mod table;
mod tree;
mod types;
mod ward;

pub use crate::core::Steward;
pub use escalate::ESCALATION_PATIENCE;
pub use life::REPEAT_AFTER;
pub use memory::{GroupEnd, MOST_DECIDED, Memory, Rest, Resume, WardMemory};
pub use node::{FORGET_AFTER, GOODBYE_PATIENCE};
pub use plan::START_PATIENCE;
pub use slots::Slots;
pub use tree::MAX_DEPTH;
pub use types::*;
