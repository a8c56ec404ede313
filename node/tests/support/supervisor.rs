//! A supervisor whose every word the test decides.

use std::{pin::Pin, sync::atomic::AtomicU64, time::Duration};

use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use wardkeep_node::{
    Services,
    server::{Limits, serve},
};
use wardkeep_proto::{
    duration,
    v1::{
        self,
        command::Kind,
        node_message::Kind as Up,
        steward_message::Kind as Down,
        stewardship_server::{Stewardship, StewardshipServer},
    },
};

/// Listens, and hands every session to the test.
pub struct FakeSupervisor {
    pub uri: String,
    sessions: mpsc::Receiver<Session>,
    stop: CancellationToken,
    _serving: JoinHandle<()>,
}

/// A session from the supervisor's side.
pub struct Session {
    up: Streaming<v1::NodeMessage>,
    down: mpsc::Sender<Result<v1::StewardMessage, Status>>,
}

#[derive(Clone)]
struct Door(mpsc::Sender<Session>);

#[tonic::async_trait]
impl Stewardship for Door {
    type AttendStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::StewardMessage, Status>> + Send>>;

    async fn attend(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let (down, messages) = mpsc::channel(16);
        let session = Session { up: request.into_inner(), down };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl FakeSupervisor {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (door, sessions) = mpsc::channel(4);
        let service = Services::new().with(StewardshipServer::new(Door(door))).into_service("fake");
        let stop = CancellationToken::new();
        let limits = Limits { shutdown_grace: Duration::from_millis(10), ..Limits::default() };
        let serving = serve(listener, service, limits, stop.clone());
        let _serving = tokio::task::spawn(async move { drop(serving.await) });
        Self { uri, sessions, stop, _serving }
    }

    /// The next session that a node opens, and what it said first.
    pub async fn session(&mut self) -> (Session, v1::Hello) {
        let mut session = self.sessions.recv().await.unwrap();
        match session.next().await {
            Up::Hello(hello) => (session, hello),
            other => panic!("the first message is {other:?}"),
        }
    }
}

impl Drop for FakeSupervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Session {
    pub async fn send(&self, kind: Option<Down>) {
        self.down.send(Ok(v1::StewardMessage { kind })).await.unwrap();
    }

    pub async fn welcome(&self, epoch: u64, mandate_grace: Duration) {
        let pulse_interval = Some(duration(Duration::from_millis(50)));
        let mandate_grace = Some(duration(mandate_grace));
        self.send(Some(Down::Welcome(v1::Welcome { epoch, pulse_interval, mandate_grace }))).await;
    }

    /// The next message.
    pub async fn next(&mut self) -> Up {
        self.up.message().await.unwrap().expect("the node ended the session").kind.unwrap()
    }

    /// The first message from now on that is wanted.
    pub async fn find<T>(&mut self, mut wanted: impl FnMut(Up) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await) {
                return found;
            }
        }
    }

    /// The next end of a ward's incarnation.
    pub async fn exit(&mut self) -> v1::WardChange {
        self.find(|up| match up {
            Up::WardChange(change) if change.exit.is_some() => Some(change),
            _ => None,
        })
        .await
    }

    /// The next report of this state.
    pub async fn change(&mut self, state: v1::WardState) -> v1::WardChange {
        self.find(|up| match up {
            Up::WardChange(change) if change.state() == state => Some(change),
            _ => None,
        })
        .await
    }

    pub async fn report(&mut self) -> v1::Report {
        self.find(|up| match up {
            Up::Report(report) => Some(report),
            _ => None,
        })
        .await
    }

    /// Sends a command; returns its ID.
    pub async fn order(&self, epoch: u64, kind: Option<Kind>) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let command = v1::Command { id, epoch, kind, reason: "test".to_owned(), ..Default::default() };
        self.send(Some(Down::Command(command))).await;
        id
    }

    /// Sends a command and waits for what the node says of it. What it says of other things
    /// meanwhile is passed over.
    pub async fn command(&mut self, epoch: u64, kind: Kind) -> Result<(), wardkeep_proto::Error> {
        let id = self.order(epoch, Some(kind)).await;
        let done = self
            .find(|up| match up {
                Up::CommandDone(done) if done.id == id => Some(done),
                _ => None,
            })
            .await;
        done.error.map_or(Ok(()), |error| Err(wardkeep_proto::Error::from_proto(error)))
    }

    /// Waits until the node has closed its side.
    pub async fn closed(&mut self) {
        while let Ok(Some(_)) = self.up.message().await {}
    }
}
