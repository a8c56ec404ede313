//! With one good replica left, every call succeeds within its deadline, whatever the others do.

use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tonic::Status;
use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, ResponseExt as _};

use crate::{
    common::{Puppet, builder, fleet, framed, frames},
    stage::get,
};

const DEADLINE: Duration = Duration::from_secs(8);

/// To port 9 nobody ever connects.
async fn dial(uri: http::Uri) -> std::io::Result<TokioIo<TcpStream>> {
    if uri.port_u16() == Some(9) {
        std::future::pending::<()>().await;
    }
    Ok(TokioIo::new(TcpStream::connect(uri.authority().unwrap().as_str()).await?))
}

/// Something that listens and is no gRPC server.
async fn listener(tasks: &mut JoinSet<()>, says: Option<&'static [u8]>) -> Member {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member = Member::new("ill", format!("http://{}", listener.local_addr().unwrap()));
    tasks.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut io, _)) = listener.accept().await {
            if let Some(says) = says {
                let _ = io.write_all(says).await;
                let _ = io.read(&mut [0; 1_024]).await;
            }
            kept.push(io);
        }
    });
    member
}

/// A way to the puppet that stops carrying anything after the first request has passed.
async fn paused(tasks: &mut JoinSet<()>, puppet: &Puppet) -> Member {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member = Member::new("ill", format!("http://{}", listener.local_addr().unwrap()));
    let to = puppet.uri.trim_start_matches("http://").to_owned();
    tasks.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.unwrap();
            let mut bytes = [0; 64 << 10];
            // The client's preface and first frames reach the server; what it says to them gets lost.
            for _ in 0..2 {
                let n = near.read(&mut bytes).await.unwrap_or(0);
                let _ = far.write_all(&bytes[..n]).await;
            }
            kept.push((near, far));
        }
    });
    member
}

fn channel(members: Vec<Member>, policy: Policy) -> Replicated {
    builder(members)
        .policy(policy)
        .connector(tower::service_fn(dial))
        .connect_timeout(Duration::from_millis(200))
        .default_deadline(DEADLINE)
        .build()
        .unwrap()
}

async fn survive(ill: Member, what: &str) {
    let good = Puppet::good("good").await;
    let delay = HedgeDelay::Fixed(Duration::from_millis(20));
    // Two that say the same are enough.
    let channel = channel(
        vec![ill.clone(), good.member("good"), good.member("as good")],
        Policy::Quorum { equal: 2, of: 3 },
    );
    for _ in 0..6 {
        if let Err(status) = get(&channel).await {
            panic!("{what}, a quorum: {status:?}");
        }
    }
    for policy in
        [Policy::All(2), Policy::Hedged { delay, max_attempts: 3 }, Policy::Tied { delay, max_attempts: 3 }]
    {
        let mut twin = ill.clone();
        twin.name = "ill too".to_owned();
        for members in [vec![ill.clone(), good.member("good")], vec![ill.clone(), twin, good.member("good")]]
        {
            let policy = if let Policy::All(_) = policy { Policy::All(members.len() as u32) } else { policy };
            let channel = self::channel(members, policy);
            for _ in 0..6 {
                match get(&channel).await {
                    Ok(reply) => assert_eq!(reply.winner().unwrap().node, "good", "{what}, {policy:?}"),
                    Err(status) => panic!("{what}, {policy:?}: {status:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn one_that_hangs_in_connect() {
    survive(Member::new("ill", "http://127.0.0.1:9"), "hangs in connect").await;
}

#[tokio::test]
async fn one_that_accepts_and_says_nothing() {
    let mut tasks = JoinSet::new();
    survive(listener(&mut tasks, None).await, "says nothing").await;
}

#[tokio::test]
async fn one_that_answers_garbage() {
    let mut tasks = JoinSet::new();
    survive(listener(&mut tasks, Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")).await, "speaks HTTP/1").await;
    survive(listener(&mut tasks, Some(&[0xff; 200])).await, "speaks noise").await;
    let garbage = Puppet::start(|_| async {
        frames(vec![Frame::data(Bytes::from_static(b"\x07garbage of more than five bytes"))], None)
    });
    survive(garbage.await.member("ill"), "garbage in frames").await;
}

#[tokio::test]
async fn one_that_answers_headers_and_stalls() {
    let held = std::sync::Mutex::new(Vec::new());
    let stalling = Puppet::start(move |_| {
        let (more, rest) = mpsc::channel(1);
        held.lock().unwrap().push(more);
        let half = framed(&fleet("ill")).slice(..4);
        std::future::ready(frames(vec![Frame::data(half)], Some(rest)))
    });
    survive(stalling.await.member("ill"), "stalls after its headers").await;
}

#[tokio::test]
async fn one_that_answers_an_error_at_once() {
    let refusing = Puppet::refusing(Status::internal("no")).await;
    survive(refusing.member("ill"), "fails at once").await;
    let unavailable = Puppet::refusing(Status::unavailable("no")).await;
    survive(unavailable.member("ill"), "is unavailable").await;
}

#[tokio::test]
async fn one_that_is_paused_in_the_middle_of_a_call() {
    let mut tasks = JoinSet::new();
    let behind = Puppet::good("ill").await;
    survive(paused(&mut tasks, &behind).await, "is paused").await;
}
