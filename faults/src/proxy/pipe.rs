//! One direction of a connection: a delay line between a reader and a writer.

use std::{collections::VecDeque, io, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::faults::{Direction, Faults, Way};

/// Bytes that are read at once, at most.
pub const PIECE: usize = 16 * 1024;
/// Pieces under way per direction of a connection, at most.
pub const PIECES: usize = 64;

/// Bytes, and when they are to leave.
struct Piece {
    due: Instant,
    bytes: Bytes,
}

/// Carries bytes from one to the other until the first ends, then tells the second so. `copy` gets each
/// piece as it comes in, if it can take it.
///
/// # Errors
/// One of them broke.
pub(super) async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    faults: watch::Receiver<Faults>,
    mut dice: fastrand::Rng,
    copy: Option<mpsc::Sender<Bytes>>,
) -> io::Result<()> {
    let (line, pieces) = mpsc::channel(PIECES);
    let reading = async {
        let mut latest = Instant::now();
        loop {
            let mut bytes = bytes::BytesMut::with_capacity(PIECE);
            if from.read_buf(&mut bytes).await? == 0 {
                drop(line);
                drop(copy);
                return Ok(());
            }
            let bytes = bytes.freeze();
            if let Some(copy) = &copy {
                // A twin that does not keep up is missing bytes, and breaks: it is only a twin.
                let _ = copy.try_send(bytes.clone());
            }
            let late = lateness(faults.borrow().way(direction), &mut dice);
            latest = latest.max(Instant::now() + late);
            if line.send(Piece { due: latest, bytes }).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = write(&mut to, pieces, direction, faults.clone());
    tokio::try_join!(reading, writing).map(|_| ())
}

fn lateness(way: &Way, dice: &mut fastrand::Rng) -> Duration {
    let jitter = way.jitter.as_secs_f64();
    let late = way.latency.as_secs_f64() + jitter * (dice.f64() * 2.0 - 1.0);
    Duration::try_from_secs_f64(late).unwrap_or_default()
}

async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    mut pieces: mpsc::Receiver<Piece>,
    direction: Direction,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    while let Some(piece) = pieces.recv().await {
        sleep_until(piece.due).await;
        let mut slices = VecDeque::from([piece.bytes]);
        while let Some(mut bytes) = slices.pop_front() {
            open(&mut faults, direction).await;
            let way = faults.borrow().way(direction).clone();
            let most = way.slice.unwrap_or(PIECE).max(1);
            if bytes.len() > most {
                slices.push_front(bytes.split_off(most));
            }
            if let Some(rate) = way.bandwidth {
                sleep(Duration::from_secs_f64(bytes.len() as f64 / rate.max(1) as f64)).await;
            }
            to.write_all(&bytes).await?;
            if way.slice.is_some() {
                // So that each slice is a segment of its own, and the reader gets a turn.
                to.flush().await?;
                tokio::task::yield_now().await;
            }
        }
    }
    open(&mut faults, direction).await;
    let slow = faults.borrow().slow_close;
    sleep(slow).await;
    to.shutdown().await
}

/// Waits while nothing may pass.
async fn open(faults: &mut watch::Receiver<Faults>, direction: Direction) {
    // If the proxy has gone, so will this.
    let _ = faults.wait_for(|faults| !faults.way(direction).blackhole).await;
}
