//! Members follow the directory, and stay while it is away.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{
    raw::{Raw, Step},
    *,
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use wardkeep_client::{HedgeDelay, Policy, Replicated, ResponseExt as _};
use wardkeep_proto::v1::{
    self, DirectoryView, GetFleetRequest, NodeInfo, Offer, WatchDirectoryRequest,
    directory_server::{Directory, DirectoryServer},
};

const SERVICE: &str = "wardkeep.v1.Operator";

#[derive(Clone)]
struct Fake {
    views: watch::Sender<DirectoryView>,
    cut: watch::Receiver<CancellationToken>,
    /// Watches so far.
    opened: watch::Sender<u32>,
}

#[tonic::async_trait]
impl Directory for Fake {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<DirectoryView, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchDirectoryRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(request.into_inner().service, SERVICE);
        let cut = self.cut.borrow().clone();
        self.opened.send_modify(|n| *n += 1);
        let views = WatchStream::new(self.views.subscribe()).map(Ok);
        let views = futures_util::StreamExt::take_until(views, cut.cancelled_owned());
        Ok(Response::new(Box::pin(views)))
    }
}

struct Running {
    uri: String,
    fake: Fake,
    cut: watch::Sender<CancellationToken>,
    _server: JoinSet<()>,
}

async fn directory(first: Vec<v1::Member>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let (cut, cut_rx) = watch::channel(CancellationToken::new());
    let view = DirectoryView { version: 1, members: first };
    let fake = Fake { views: watch::Sender::new(view), cut: cut_rx, opened: watch::Sender::new(0) };
    let mut server = JoinSet::new();
    let service = DirectoryServer::new(fake.clone());
    server.spawn(async move {
        let incoming = TcpIncoming::from(listener);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    Running { uri, fake, cut, _server: server }
}

fn entry(name: &str, puppet: &Puppet, ready: bool) -> v1::Member {
    let node = NodeInfo { name: name.into(), uri: puppet.uri.clone(), ..Default::default() };
    let offer = Offer { service: SERVICE.into(), ward: "w".into(), incarnation: 1, ready, suspected: false };
    v1::Member { node: Some(node), ready: true, offers: vec![offer], suspected: false }
}

async fn known(channel: &Replicated, names: &[&str]) {
    let mut members = channel.members();
    let same =
        |m: &Arc<[wardkeep_client::Member]>| m.iter().map(|m| m.name.as_str()).eq(names.iter().copied());
    within(members.wait_for(same)).await.unwrap();
}

#[tokio::test]
async fn members_come_and_go_with_the_directory() {
    let (a, b) = (Puppet::good("a").await, Puppet::good("b").await);
    let running = directory(vec![entry("a", &a, true)]).await;
    let channel = Replicated::builder()
        .directory(&running.uri, SERVICE)
        .methods(wardkeep_proto::FILE_DESCRIPTOR_SET)
        .build()
        .unwrap();
    // The first call waits for the first view.
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(reply.winner().unwrap().node, "a");

    let both = vec![entry("a", &a, true), entry("b", &b, true)];
    running.fake.views.send_replace(DirectoryView { version: 2, members: both });
    known(&channel, &["a", "b"]).await;
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(reply.winner().unwrap().attempts, 2);

    running.fake.views.send_replace(DirectoryView { version: 3, members: vec![entry("b", &b, true)] });
    known(&channel, &["b"]).await;
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!((reply.winner().unwrap().node.as_str(), reply.winner().unwrap().attempts), ("b", 1));
    within(channel.close()).await;
}

#[tokio::test]
async fn a_ward_that_is_not_ready_is_not_asked() {
    let (a, b) = (Puppet::good("a").await, Puppet::good("b").await);
    let running = directory(vec![entry("a", &a, false), entry("b", &b, true)]).await;
    let channel = Replicated::builder().directory(&running.uri, SERVICE).assume_idempotent().build().unwrap();
    known(&channel, &["a", "b"]).await;
    for _ in 0..4 {
        let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
        assert_eq!(reply.winner().unwrap().node, "b");
    }
    assert_eq!(a.asked(), 0);
}

/// Far longer than the test may take.
const NEVER: HedgeDelay = HedgeDelay::Fixed(Duration::from_secs(3_600));

#[tokio::test]
async fn whoever_waits_for_a_member_that_becomes_suspected_asks_the_next_at_once() {
    let (hung, good) = (Puppet::mute().await, Puppet::good("good").await);
    let running = directory(vec![entry("hung", &hung, true)]).await;
    let channel = Replicated::builder()
        .directory(&running.uri, SERVICE)
        .methods(wardkeep_proto::FILE_DESCRIPTOR_SET)
        .policy(Policy::Hedged { delay: NEVER, max_attempts: 2 })
        .build()
        .unwrap();
    known(&channel, &["hung"]).await;
    let view = |version, suspected| {
        let hung = v1::Member { suspected, ..entry("hung", &hung, true) };
        DirectoryView { version, members: vec![hung, entry("good", &good, true)] }
    };
    running.fake.views.send_replace(view(2, false));
    known(&channel, &["hung", "good"]).await;
    // Calls take turns: one of two goes to each.
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let mut client = operator(&channel);
            async move { client.get_fleet(GetFleetRequest {}).await }
        })
        .collect();
    let suspects = async {
        while hung.asked() == 0 {
            tokio::task::yield_now().await;
        }
        running.fake.views.send_replace(view(3, true));
    };
    let (replies, ()) = within(async { tokio::join!(futures_util::future::join_all(calls), suspects) }).await;
    let attempts: Vec<u32> = replies.iter().map(|r| r.as_ref().unwrap().winner().unwrap().attempts).collect();
    assert_eq!(attempts.iter().sum::<u32>(), 3, "{attempts:?}");
    // From then on it is asked last.
    for _ in 0..4 {
        let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
        assert_eq!((reply.winner().unwrap().node.as_str(), reply.winner().unwrap().attempts), ("good", 1));
    }
    assert_eq!(hung.asked(), 1);
}

#[tokio::test]
async fn the_last_view_stays_while_the_directory_is_away_and_is_replaced_when_it_is_back() {
    let (a, b) = (Puppet::good("a").await, Puppet::good("b").await);
    let running = directory(vec![entry("a", &a, true)]).await;
    let channel = Replicated::builder().directory(&running.uri, SERVICE).build().unwrap();
    known(&channel, &["a"]).await;
    // It restarts, and at first knows nobody: that is not believed at once.
    running.cut.send_replace(CancellationToken::new()).cancel();
    running.fake.views.send_replace(DirectoryView::default());
    within(running.fake.opened.subscribe().wait_for(|n| *n == 2)).await.unwrap();
    let mut members = channel.members();
    assert!(tokio::time::timeout(Duration::from_millis(300), members.changed()).await.is_err());
    let reply = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap();
    assert_eq!(reply.winner().unwrap().node, "a");
    let back = vec![entry("b", &b, true)];
    running.fake.views.send_replace(DirectoryView { version: 1, members: back });
    known(&channel, &["b"]).await;
}

#[tokio::test]
async fn a_channel_without_a_directory_to_reach_says_so_and_closes() {
    let gone = nobody("gone").await;
    let channel = Replicated::builder()
        .directory(&gone.uri, "")
        .connect_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let status = within(operator(&channel).get_fleet(GetFleetRequest {})).await.unwrap_err();
    assert_eq!(wardkeep_proto::Error::from_status(&status).kind(), "NO_MEMBERS");
    within(channel.close()).await;
}

#[tokio::test]
async fn a_directory_that_answers_with_garbage_is_asked_again() {
    let good = Puppet::good("good").await;
    let view = DirectoryView { version: 1, members: vec![entry("good", &good, true)] };
    let asked = Arc::new(AtomicUsize::new(0));
    let turn = asked.clone();
    let raw = Raw::start(move |_| {
        let mut garbage = http::HeaderMap::new();
        garbage.insert("grpc-status", "5".parse().unwrap());
        // tonic would panic on it.
        garbage.insert("grpc-status-details-bin", "*".parse().unwrap());
        let head = Step::Head(200, http::HeaderMap::new());
        match turn.fetch_add(1, SeqCst) {
            0 => vec![Step::Only(garbage)],
            1 => vec![head, Step::Trailers(garbage)],
            _ => vec![head, Step::Data(framed(&view)), Step::Seen],
        }
    })
    .await;
    let channel = Replicated::builder().directory(&raw.uri, SERVICE).build().unwrap();
    let mut members = channel.members();
    within(members.wait_for(|members| members.len() == 1)).await.unwrap();
    assert_eq!(asked.load(SeqCst), 3);
}
