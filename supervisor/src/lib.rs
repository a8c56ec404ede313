//! The supervisor of wardkeep and its command line.
//!
//! [`daemon::Supervisor`] is the daemon: nodes attend it, its steward heals their wards, clients
//! find wards through its directory, operators ask and command through its API. [`cli`] is the
//! command `wardkeep`; [`serve`] what its `serve` subcommands do; [`config`] the files they read.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod serve;
