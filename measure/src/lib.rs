//! What the benchmarks (`bench/`, outside of the workspace) and CI have in common: what a group of
//! measurements says, the page that is made of it, and counts of instructions. Neither needs any peer.
#![forbid(unsafe_code)]

pub mod counts;
pub mod page;
pub mod report;
