//! What the proxy does to connections, and what it leaves alone.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use wardkeep_faults::proxy::{Faults, Proxy, Way};

async fn within<T>(test: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), test).await.expect("the test hangs")
}

/// A server that sends back what it gets, and says what each connection brought when it has ended.
struct Echo {
    proxy: Proxy,
    ended: mpsc::Receiver<io::Result<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

async fn echo(seed: u64) -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, ended) = mpsc::channel(64);
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            count.fetch_add(1, SeqCst);
            open.spawn(async move {
                let (mut all, mut piece) = (Vec::new(), [0; 1_024]);
                let end = loop {
                    match stream.read(&mut piece).await {
                        Ok(0) => break Ok(all),
                        Ok(n) => {
                            all.extend_from_slice(&piece[..n]);
                            if let Err(e) = stream.write_all(&piece[..n]).await {
                                break Err(e);
                            }
                        }
                        Err(e) => break Err(e),
                    }
                };
                let _ = tell.send(end).await;
            });
        }
    });
    let proxy = Proxy::start("127.0.0.1:0", address, seed).await.unwrap();
    Echo { proxy, ended, connections, _server: server }
}

impl Echo {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.proxy.address()).await.unwrap()
    }
}

/// Sends a word and waits until it is back.
async fn round_trip(stream: &mut TcpStream, word: &[u8]) -> io::Result<()> {
    stream.write_all(word).await?;
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).await?;
    assert_eq!(back, word);
    Ok(())
}

#[tokio::test]
async fn with_no_fault_bytes_and_ends_pass_unchanged() {
    within(async {
        let mut echo = echo(1).await;
        let mut stream = echo.connect().await;
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let (mut read, mut write) = stream.split();
        let (back, ()) = tokio::join!(
            async {
                let mut back = Vec::new();
                read.read_to_end(&mut back).await.unwrap();
                back
            },
            async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            }
        );
        assert!(back == sent);
        assert!(echo.ended.recv().await.unwrap().unwrap() == sent);
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn latency_holds_in_both_directions_and_the_order_is_kept_under_jitter() {
    within(async {
        let echo = echo(2).await;
        echo.proxy.set(Faults::late(Duration::from_millis(30), Duration::from_millis(20)));
        let mut stream = echo.connect().await;
        let begun = Instant::now();
        for n in 0..20_u32 {
            round_trip(&mut stream, &n.to_be_bytes()).await.unwrap();
        }
        // 20 round trips of twice 30 ms, less at most 20 ms each way.
        assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_blackhole_in_one_direction_holds_bytes_back_and_loses_none() {
    within(async {
        let mut echo = echo(3).await;
        let mut stream = echo.connect().await;
        round_trip(&mut stream, b"before").await.unwrap();
        let hole = Way { blackhole: true, ..Way::default() };
        echo.proxy.set(Faults { down: hole, ..Faults::default() });
        stream.write_all(b"meanwhile").await.unwrap();
        let mut word = [0; 9];
        assert!(timeout(Duration::from_millis(100), stream.read_exact(&mut word)).await.is_err());
        // Neither does the end of a connection pass.
        stream.shutdown().await.unwrap();
        assert_eq!(echo.ended.recv().await.unwrap().unwrap(), b"beforemeanwhile");
        echo.proxy.set(Faults::default());
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"meanwhile");
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_under_way_is_bounded_and_the_sender_waits() {
    within(async {
        let echo = echo(4).await;
        echo.proxy.set(Faults::partition());
        let mut stream = echo.connect().await;
        let piece = vec![0; 1 << 20];
        let much = async {
            for _ in 0..64 {
                stream.write_all(&piece).await.unwrap();
            }
        };
        assert!(
            timeout(Duration::from_millis(500), much).await.is_err(),
            "64 MiB went nowhere and were taken"
        );
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn slices_and_bandwidth_change_when_bytes_arrive_not_which() {
    within(async {
        let echo = echo(5).await;
        let way = Way { slice: Some(7), bandwidth: Some(20_000), ..Way::default() };
        echo.proxy.set(Faults { up: way, ..Faults::default() });
        let mut stream = echo.connect().await;
        let begun = Instant::now();
        round_trip(&mut stream, &[42; 2_000]).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(95), "{:?}", begun.elapsed());
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn connections_are_refused_and_reset_by_the_dice_of_the_seed() {
    async fn fates(seed: u64) -> Vec<bool> {
        let echo = echo(seed).await;
        echo.proxy.set(Faults { refuse: 0.5, ..Faults::default() });
        let mut fates = Vec::new();
        for _ in 0..20 {
            let mut stream = echo.connect().await;
            fates.push(round_trip(&mut stream, b"hello").await.is_ok());
        }
        let counts = echo.proxy.counts();
        assert_eq!(counts.refused as usize, fates.iter().filter(|lives| !**lives).count());
        echo.proxy.stop().await;
        fates
    }
    within(async {
        let fates_of_7 = fates(7).await;
        assert!(fates_of_7.contains(&true) && fates_of_7.contains(&false));
        assert_eq!(fates_of_7, fates(7).await);
        assert_ne!(fates_of_7, fates(8).await);
    })
    .await;
}

#[tokio::test]
async fn a_reset_reaches_both_sides_as_one() {
    within(async {
        let mut echo = echo(9).await;
        let mut stream = echo.connect().await;
        round_trip(&mut stream, b"hello").await.unwrap();
        echo.proxy.reset_share(1.0);
        let client = stream.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(client.kind(), io::ErrorKind::ConnectionReset);
        let server = echo.ended.recv().await.unwrap().unwrap_err();
        assert_eq!(server.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(echo.proxy.counts().reset, 1);
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_close_can_be_slow_to_arrive() {
    within(async {
        let echo = echo(10).await;
        echo.proxy.set(Faults { slow_close: Duration::from_millis(150), ..Faults::default() });
        let mut stream = echo.connect().await;
        round_trip(&mut stream, b"hello").await.unwrap();
        let begun = Instant::now();
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        // Once each way.
        assert!(begun.elapsed() >= Duration::from_millis(300));
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_twin_repeats_a_whole_connection_and_its_answers_reach_nobody() {
    within(async {
        let mut echo = echo(11).await;
        echo.proxy.set(Faults { duplicate: true, ..Faults::default() });
        let mut stream = echo.connect().await;
        round_trip(&mut stream, b"first").await.unwrap();
        round_trip(&mut stream, b"second").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        for _ in 0..2 {
            assert_eq!(echo.ended.recv().await.unwrap().unwrap(), b"firstsecond");
        }
        assert_eq!(echo.connections.load(SeqCst), 2);
        echo.proxy.stop().await;
    })
    .await;
}

#[tokio::test]
async fn when_it_has_stopped_nothing_of_it_is_left() {
    within(async {
        let mut echo = echo(12).await;
        let mut held = Vec::new();
        for _ in 0..10 {
            let mut stream = echo.connect().await;
            round_trip(&mut stream, b"hello").await.unwrap();
            held.push(stream);
        }
        let address = echo.proxy.address();
        echo.proxy.stop().await;
        for _ in 0..10 {
            assert!(echo.ended.recv().await.unwrap().is_err());
        }
        assert!(TcpStream::connect(address).await.is_err());
    })
    .await;
}
