//! Erlang/OTP, where it is installed (Debian: `apt install erlang-base`).

use std::{net::TcpListener, path::PathBuf, process::Command};

use crate::{child, report};

/// Whether it is here.
pub fn is_here() -> bool {
    let there = Command::new("escript").arg(script()).arg("version").output();
    let here = there.is_ok_and(|output| output.status.success());
    if !here {
        eprintln!("no Erlang here: its rows are left out");
    }
    here
}

fn script() -> PathBuf {
    report::path("bench/erlang/peer.escript")
}

/// Runs a job of the script.
pub fn figures(job: &[&str]) -> Vec<f64> {
    let mut command = Command::new("escript");
    command.arg(script()).args(job);
    child::figures_of(command)
}

/// The same for a job that wants two nodes, which talk over loopback and leave nothing behind.
pub fn figures_of_two(job: &[&str]) -> Vec<f64> {
    let home = tempfile::tempdir().expect("a folder");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let mut command = Command::new("escript");
    command.arg(script()).args(job);
    // Both nodes' daemon, and the cookie that lets them in.
    command.env("ERL_EPMD_PORT", port.to_string()).env("HOME", home.path()).env("ERL_CRASH_DUMP_BYTES", "0");
    child::figures_of(command)
}

/// The release of OTP.
pub fn version() -> Option<String> {
    let output = Command::new("escript").arg(script()).arg("version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
