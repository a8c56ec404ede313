//! Restart in place: the process becomes a fresh image of its program, with the same PID and the
//! same listening socket, so that no connection is refused meanwhile.

use std::{
    ffi::OsString,
    net::TcpListener,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use wardkeep_proto::Error;

use crate::error::NodeError;

/// Everything needed to start anew, gathered while all is well.
#[derive(Debug)]
pub(crate) struct Plan {
    program: PathBuf,
    args: Vec<OsString>,
    listener: TcpListener,
}

impl Plan {
    /// # Errors
    /// If the program's path is not known.
    pub(crate) fn new(listener: TcpListener) -> std::io::Result<Self> {
        // Its path now: what stands there later, an upgrade perhaps, is what is started then.
        let program = std::env::current_exe()?;
        Ok(Self { program, args: std::env::args_os().skip(1).collect(), listener })
    }

    /// Does not return, unless it fails.
    pub(crate) fn execute(&self) -> Error {
        let failed = |source| NodeError::CannotReexecute { program: self.program.clone(), source }.into();
        if let Err(errno) = fcntl(&self.listener, FcntlArg::F_SETFD(FdFlag::empty())) {
            return failed(errno.into());
        }
        // systemd's socket activation, which `listenfd` understands: LISTEN_FDS sockets from
        // LISTEN_FDS_FIRST_FD on, for the process LISTEN_PID.
        let source = Command::new(&self.program)
            .args(&self.args)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", self.listener.as_raw_fd().to_string())
            .env("LISTEN_PID", std::process::id().to_string())
            .exec();
        // Still here: no program of ours may inherit the socket.
        let _ = fcntl(&self.listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        failed(source)
    }
}

/// The socket that a former image of this process, or systemd, left open for us. There is one, for
/// the first node that asks: taken twice, it would be closed under the first one's feet.
pub(crate) fn inherited() -> Option<TcpListener> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Relaxed) {
        return None;
    }
    listenfd::ListenFd::from_env().take_tcp_listener(0).ok().flatten()
}
