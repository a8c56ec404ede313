//! On a terminal: colour, width, and questions.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a test that fails")]

mod cli_support;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::Stdio,
};

use cli_support::*;
use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Instead of keys: a signal, once the question is on the screen.
const INTERRUPT: &str = "";

/// Runs the binary on a terminal 80 columns wide, types `keys`, and returns what the screen got.
async fn on_terminal(args: &[&str], env: &[(&str, &str)], keys: &str) -> (i32, String) {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let mut command = command(args);
    command.stdin(side(&slave)).stdout(side(&slave)).stderr(side(&slave)).envs(env.iter().copied());
    let mut child = command.spawn().unwrap();
    drop((command, slave));
    let mut keyboard = File::from(master.try_clone().unwrap());
    keyboard.write_all(keys.as_bytes()).unwrap();
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap());
    let mut to_interrupt = keys == INTERRUPT;
    let screen = tokio::task::spawn_blocking(move || {
        let (mut screen, mut seen, mut chunk) = (File::from(master), Vec::new(), [0; 4_096]);
        // Reading fails once the last process has left the terminal.
        while let Ok(n @ 1..) = screen.read(&mut chunk) {
            seen.extend_from_slice(&chunk[..n]);
            if to_interrupt && String::from_utf8_lossy(&seen).contains("[y/N]") {
                to_interrupt = false;
                kill(pid, Signal::SIGINT).unwrap();
            }
        }
        String::from_utf8(seen).unwrap()
    });
    let code =
        tokio::time::timeout(PATIENCE, child.wait()).await.expect("it hangs").unwrap().code().unwrap_or(-1);
    (code, tokio::time::timeout(PATIENCE, screen).await.expect("it hangs").unwrap())
}

#[tokio::test]
async fn a_change_shows_its_target_and_asks() {
    let cluster = Cluster::well().await;
    let args = ["node", "restart", "trigram", "--supervisor", &cluster.address];
    let (code, screen) = on_terminal(&args, &[], "n\n").await;
    assert_eq!(code, 2, "{screen}");
    assert!(screen.contains("restart node trigram (pid 4711, 3 wards, 3 in progress)"), "{screen}");
    assert!(screen.contains("Go on? [y/N]") && screen.contains("nothing was changed"), "{screen}");
    assert_eq!(cluster.asked(), []);
    let (code, screen) = on_terminal(&args, &[], "y\n").await;
    assert_eq!(code, 0, "{screen}");
    assert_eq!(cluster.asked().len(), 1);
    let (code, screen) = on_terminal(&args, &[], INTERRUPT).await;
    assert_eq!(code, 130, "{screen}");
    assert_eq!(cluster.asked().len(), 1);
}

#[tokio::test]
async fn states_are_coloured_on_a_terminal_unless_told_otherwise() {
    let cluster = Cluster::start(Script { fleet: ill_fleet(), ..Default::default() }).await;
    let args = ["status", "--supervisor", &cluster.address];
    let (code, screen) = on_terminal(&args, &[], "").await;
    assert_eq!(code, 1);
    assert!(screen.contains("\u{1b}[32mrunning\u{1b}[0m"), "{screen}");
    assert!(screen.contains("\u{1b}[31mquarantined\u{1b}[0m"), "{screen}");
    for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let (_, screen) = on_terminal(&args, &[env], "").await;
        assert!(!screen.contains('\u{1b}'), "{screen}");
        let widest = screen.lines().skip(5).map(|l| l.chars().count()).max().unwrap();
        assert!(widest <= 80, "{widest} columns:\n{screen}");
    }
}

#[tokio::test]
async fn json_is_indented_for_a_person() {
    let cluster = Cluster::well().await;
    let args = ["group", "show", "search", "-o", "json", "--supervisor", &cluster.address];
    let (code, screen) = on_terminal(&args, &[], "").await;
    assert_eq!(code, 0);
    assert!(screen.lines().count() > 10, "{screen}");
    serde_json::from_str::<serde_json::Value>(&screen).unwrap();
}
