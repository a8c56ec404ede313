//! The one thing here that needs `unsafe`: a program must not outlive the node that started it,
//! even if the node is killed. Only code between fork and exec can arrange that.
#![allow(unsafe_code)]

use std::{
    io::{Cursor, Write as _},
    os::fd::{BorrowedFd, RawFd},
};

use nix::{
    sys::{
        prctl,
        signal::{SigHandler, Signal, signal},
    },
    unistd::{getpid, write},
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

/// Has the program tell the guard which group it leads, before it begins. If there is no room in the pipe it says
/// nothing: its node does, a moment later.
///
/// `guard`: the end of the guard's pipe that is written to, open until the program has been started.
pub(super) fn announces_itself(command: &mut Command, guard: RawFd) {
    let announce = move || {
        let mut line = Cursor::new([0; 16]);
        let _ = writeln!(line, "? {}", getpid());
        let length = usize::try_from(line.position()).unwrap_or_default();
        // SAFETY: open, as this function's caller has it, and closed only when the program begins; for the signal there is
        // no handler but the two that the system has.
        let (pipe, heard) =
            unsafe { (BorrowedFd::borrow_raw(guard), signal(Signal::SIGPIPE, SigHandler::SigIgn)?) };
        // Without a guard it would be killed by what it writes.
        let _ = write(pipe, &line.get_ref()[..length]);
        unsafe { signal(Signal::SIGPIPE, heard)? };
        Ok(())
    };
    // SAFETY: system calls, and text in memory of its own; the closure neither allocates nor locks, as is required
    // between fork and exec.
    unsafe {
        command.pre_exec(announce);
    }
}
