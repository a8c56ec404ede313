//! A channel's decisions over servers in virtual time: the same pure parts that carry out real calls, driven by a
//! simulation of queues instead of sockets. For tests and measurements; nothing of it is promised.

mod dice;
mod pilot;
mod world;

#[cfg(test)]
mod overload;

pub use dice::Dice;
pub use pilot::{Pilot, Tally};
pub use world::{Calls, Seen, Server, World};
