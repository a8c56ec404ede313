//! systemd's notification protocol (sd_notify(3)), the receiving side: one datagram socket per
//! incarnation, so that programs written for systemd's watchdog need no change.

use std::{io, path::Path, time::Duration};

use tempfile::TempDir;
use tokio::{
    net::UnixDatagram,
    time::{Instant, sleep_until},
};

/// Datagrams heard in a turn; a program that says more waits.
const MOST_A_TURN: u32 = 200;
const TURN: Duration = Duration::from_millis(100);

/// What a program said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// `READY=1`
    Ready,
    /// `WATCHDOG=1`
    Pulse,
    /// `STATUS=...`
    Status(String),
    /// `STOPPING=1`
    Stopping,
}

/// The socket and the private folder it lives in.
pub(super) struct Socket {
    socket: UnixDatagram,
    folder: TempDir,
    buffer: Box<[u8; 4096]>,
    turn_ends: Instant,
    heard: u32,
}

impl Socket {
    /// Opens one in a folder that only this user can enter.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn open() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("wardkeep-").tempdir()?;
        let socket = UnixDatagram::bind(folder.path().join("notify"))?;
        Ok(Self { socket, folder, buffer: Box::new([0; 4096]), turn_ends: Instant::now(), heard: 0 })
    }

    /// For the program's `NOTIFY_SOCKET`.
    pub(super) fn path(&self) -> std::path::PathBuf {
        Path::new(self.folder.path()).join("notify")
    }

    /// The next datagram's messages. Fields we do not know are passed over, as systemd does. Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Message>> {
        if self.heard >= MOST_A_TURN {
            sleep_until(self.turn_ends).await;
        }
        if Instant::now() >= self.turn_ends {
            (self.turn_ends, self.heard) = (Instant::now() + TURN, 0);
        }
        let n = self.socket.recv(&mut self.buffer[..]).await?;
        self.heard += 1;
        Ok(parse(&String::from_utf8_lossy(&self.buffer[..n])))
    }
}

fn parse(datagram: &str) -> Vec<Message> {
    datagram
        .lines()
        .filter_map(|line| match line.split_once('=')? {
            ("READY", "1") => Some(Message::Ready),
            ("WATCHDOG", "1") => Some(Message::Pulse),
            ("STOPPING", "1") => Some(Message::Stopping),
            ("STATUS", text) => Some(Message::Status(text.chars().take(200).collect())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_talks_without_end_is_heard_at_a_bounded_pace() {
        let mut socket = Socket::open().unwrap();
        let program = UnixDatagram::unbound().unwrap();
        let begun = Instant::now();
        // However slow the machine, no more than so many fit into a turn.
        for _ in 0..=3 * MOST_A_TURN {
            program.send_to(b"WATCHDOG=1", socket.path()).await.unwrap();
            assert_eq!(socket.next().await.unwrap(), [Message::Pulse]);
        }
        assert!(begun.elapsed() >= TURN * 3, "{:?}", begun.elapsed());
    }

    #[test]
    fn known_fields_are_read_and_unknown_ones_passed_over() {
        let said = parse("READY=1\nSTATUS=serving 3=4\nMAINPID=7\nWATCHDOG=1\ngarbage\nWATCHDOG=trigger\n");
        assert_eq!(said, [Message::Ready, Message::Status("serving 3=4".into()), Message::Pulse]);
    }
}
