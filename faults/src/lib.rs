//! What breaks wardkeep on purpose: a TCP fault [`proxy`] for tests, and the fault suite, which runs a real
//! [`cluster`] of processes under a steady [`load`] of replicated calls with checked answers, injects a fault
//! and says what came of it. `docs/faults.md` has the table.
#![forbid(unsafe_code)]

pub mod proxy;
