//! The one thing here that needs `unsafe`: a program must not outlive the node that started it,
//! even if the node is killed. Only code between fork and exec can arrange that.
#![allow(unsafe_code)]

use nix::sys::{prctl, signal::Signal};
use tokio::process::Command;

/// Has the kernel kill the program when the thread that starts it ends. The keeper's thread starts
/// the programs of process wards and lives as long as the node. Those that are run for a request are started by
/// threads that may end before them: for those there is the guard.
pub(super) fn dies_with_its_node(command: &mut Command) {
    // SAFETY: prctl(2) is a plain system call; the closure neither allocates nor locks, as is
    // required between fork and exec.
    unsafe {
        command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
    }
}
