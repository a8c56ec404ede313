//! The one thing here that needs `unsafe`: a program must not outlive the node that started it, even if the node is
//! killed, and must hear the signal that it is to be stopped by. Only code between fork and exec can arrange that.
#![allow(unsafe_code)]

use nix::sys::{
    prctl,
    signal::{SigHandler, Signal, signal},
};
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

/// Has the program begin with the system's own answer to this signal. A node that a shell has started in its background
/// ignores SIGINT, what it starts inherits that, and a shell among those cannot even undo it.
pub(super) fn hears(command: &mut Command, stop_signal: Signal) {
    // SAFETY: as above; the closure installs no handler.
    unsafe {
        command.pre_exec(move || {
            // Of SIGKILL it is refused: nobody is deaf to that.
            let _ = signal(stop_signal, SigHandler::SigDfl);
            Ok(())
        });
    }
}
