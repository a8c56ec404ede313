//! Deciding formulas with the SAT solvers of others.
//!
//! * [`Formula`]: reads and writes DIMACS, and checks models;
//! * [`Solver`]: the solvers that are known, how they are called and how their answers are read;
//! * [`processes`]: which of them run, and what is left of those that were killed;
//! * [`Family`]: formulas to try them with.

mod family;
mod formula;
pub mod processes;
mod solver;

pub use family::{Family, Instance};
pub use formula::{BadFormula, Formula, MOST_VARIABLES};
pub use solver::{Answer, NoAnswer, Solver};
