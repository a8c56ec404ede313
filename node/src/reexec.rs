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
    /// `None`: it cannot be carried out, for the listener is not the system's.
    listener: Option<TcpListener>,
}

/// Carries what is held from one image of this process to the next.
pub(crate) const HELD: &str = "WARDKEEP_HELD";

/// The PID, then each ward as `=name` (an operator stopped it) or `!name` (it is quarantined). Names
/// have no slash in them.
fn write_held(pid: u32, held: &[(String, bool)]) -> String {
    let ward =
        |(name, quarantined): &(String, bool)| format!("/{}{name}", if *quarantined { '!' } else { '=' });
    std::iter::once(pid.to_string()).chain(held.iter().map(ward)).collect()
}

/// What was meant for another process (a child that inherited the variable) is nothing.
fn read_held(text: &str, pid: u32) -> Vec<(String, bool)> {
    let mut parts = text.split('/');
    if parts.next() != Some(pid.to_string().as_str()) {
        return Vec::new();
    }
    parts
        .filter_map(|part| match part.split_at_checked(1)? {
            ("!", name) => Some((name.to_owned(), true)),
            ("=", name) => Some((name.to_owned(), false)),
            _ => None,
        })
        .collect()
}

/// The wards that a former image of this process held.
pub(crate) fn held() -> Vec<(String, bool)> {
    std::env::var(HELD).map(|text| read_held(&text, std::process::id())).unwrap_or_default()
}

impl Plan {
    /// # Errors
    /// If the program's path is not known.
    pub(crate) fn new(listener: TcpListener) -> std::io::Result<Self> {
        // Its path now: what stands there later, an upgrade perhaps, is what is started then.
        let program = std::env::current_exe()?;
        Ok(Self { program, args: std::env::args_os().skip(1).collect(), listener: Some(listener) })
    }

    /// One that fails: where there is no process of its own to become another.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn none() -> Self {
        Self { program: PathBuf::new(), args: Vec::new(), listener: None }
    }

    /// Does not return, unless it fails. `held`: the wards that stay down in the next image too, and
    /// whether they are quarantined.
    pub(crate) fn execute(&self, held: &[(String, bool)]) -> Error {
        let failed = |source| NodeError::CannotReexecute { program: self.program.clone(), source }.into();
        let Some(listener) = &self.listener else {
            return failed(std::io::ErrorKind::Unsupported.into());
        };
        if let Err(errno) = fcntl(listener, FcntlArg::F_SETFD(FdFlag::empty())) {
            return failed(errno.into());
        }
        // systemd's socket activation, which `listenfd` understands: LISTEN_FDS sockets from
        // LISTEN_FDS_FIRST_FD on, for the process LISTEN_PID.
        let source = Command::new(&self.program)
            .args(&self.args)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", listener.as_raw_fd().to_string())
            .env("LISTEN_PID", std::process::id().to_string())
            .env(HELD, write_held(std::process::id(), held))
            .exec();
        // Still here: no program of ours may inherit the socket.
        let _ = fcntl(listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_survives_the_change_of_images_and_means_nothing_to_another_process() {
        let held = vec![("a".to_owned(), false), ("the b".to_owned(), true)];
        let text = write_held(7, &held);
        assert_eq!(read_held(&text, 7), held);
        assert!(read_held(&text, 8).is_empty());
        assert!(read_held("7", 7).is_empty());
        assert!(read_held("7//x/=", 7).iter().all(|(name, _)| name.is_empty()));
    }
}
