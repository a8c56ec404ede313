//! One connection through a proxy.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{broadcast, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{PIECES, Shared, faults::Direction, pipe::carry, reset};

/// For the server to accept.
const CONNECT: Duration = Duration::from_secs(5);

/// Carries its bytes to its end. However it ends but well, both sides see a reset.
pub(super) async fn run(
    mut client: TcpStream,
    shared: Arc<Shared>,
    mut dice: fastrand::Rng,
    stop: CancellationToken,
) {
    let resets = shared.resets.subscribe();
    shared.open.fetch_add(1, Relaxed);
    let _counted = Counted(&shared);
    let to = *shared.to.borrow();
    let Some(Ok(Ok(mut server))) = stop.run_until_cancelled(timeout(CONNECT, TcpStream::connect(to))).await
    else {
        return reset(client);
    };
    for stream in [&client, &server] {
        // What TCP would hold back is not ours to add.
        let _ = stream.set_nodelay(true);
    }
    let (twin, copies) = twin(&shared);
    let mut dice_of_pipes = dice.fork();
    let ended = {
        let carried = both_ways((&mut client, &mut server), &shared, &mut dice_of_pipes, copies, twin);
        tokio::select! {
            ended = carried => ended,
            () = killed(resets, &mut dice) => {
                shared.reset.fetch_add(1, Relaxed);
                Err(io::ErrorKind::ConnectionReset.into())
            }
            () = stop.cancelled() => Err(io::ErrorKind::Interrupted.into()),
        }
    };
    if ended.is_err() {
        reset(client);
        reset(server);
    }
}

struct Counted<'a>(&'a Shared);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

type Copies = Option<mpsc::Sender<Bytes>>;

fn twin(shared: &Shared) -> (Option<mpsc::Receiver<Bytes>>, Copies) {
    if !shared.faults.borrow().duplicate {
        return (None, None);
    }
    let (copies, twin) = mpsc::channel(PIECES);
    (Some(twin), Some(copies))
}

async fn both_ways(
    (client, server): (&mut TcpStream, &mut TcpStream),
    shared: &Shared,
    dice: &mut fastrand::Rng,
    copies: Copies,
    twin: Option<mpsc::Receiver<Bytes>>,
) -> io::Result<()> {
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let faults = || shared.faults.subscribe();
    let up = carry(from_client, to_server, Direction::Up, faults(), dice.fork(), copies);
    let down = carry(from_server, to_client, Direction::Down, faults(), dice.fork(), None);
    let to = *shared.to.borrow();
    let twin = async {
        if let Some(pieces) = twin {
            // Whatever becomes of the twin, its original goes on.
            let _ = play(pieces, to).await;
        }
        Ok(())
    };
    tokio::try_join!(up, down, twin).map(|_| ())
}

/// Sends the pieces on a connection of its own and throws the answers away.
async fn play(mut pieces: mpsc::Receiver<Bytes>, to: std::net::SocketAddr) -> io::Result<()> {
    let mut stream = timeout(CONNECT, TcpStream::connect(to)).await??;
    let (mut read, mut write) = stream.split();
    let sending = async {
        while let Some(bytes) = pieces.recv().await {
            write.write_all(&bytes).await?;
        }
        write.shutdown().await
    };
    let hearing = async {
        let mut sink = vec![0; 4_096];
        while read.read(&mut sink).await? > 0 {}
        Ok(())
    };
    tokio::try_join!(sending, hearing).map(|_| ())
}

/// Completes when the dice say that this connection is among those to be reset.
async fn killed(mut resets: broadcast::Receiver<f64>, dice: &mut fastrand::Rng) {
    loop {
        match resets.recv().await {
            Ok(share) if dice.f64() < share => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
