//! `Stewardship.Attend`, the supervisor's side: carries a session's messages to the fleet and back.

use futures_util::Stream;
use tokio::{
    sync::mpsc,
    time::{Duration, timeout},
};
use tonic::{Request, Response, Status, Streaming};
use wardkeep_proto::{
    Error,
    v1::{self, node_message::Kind as Up, stewardship_server::Stewardship},
};

use super::{
    SupervisorError,
    fleet::{Msg, SessionId},
};

/// Commands that may wait for a node that does not read; beyond, its session is ended.
pub(super) const DOWN_QUEUE: usize = 1_024;
/// For the first message.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Attend {
    fleet: mpsc::Sender<Msg>,
}

impl Attend {
    pub(super) fn new(fleet: mpsc::Sender<Msg>) -> Self {
        Self { fleet }
    }
}

type Down = Result<v1::StewardMessage, Status>;

#[tonic::async_trait]
impl Stewardship for Attend {
    type AttendStream = std::pin::Pin<Box<dyn Stream<Item = Down> + Send>>;

    async fn attend(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let peer = request.remote_addr().map(|address| address.ip());
        let mut up = request.into_inner();
        let hello = first_message(&mut up).await.map_err(Status::from)?;
        let (down, queue) = mpsc::channel(DOWN_QUEUE);
        let session = SessionId::next();
        let ending = |_| Status::from(Error::from(SupervisorError::ShuttingDown));
        let place = self.fleet.clone().reserve_owned().await.map_err(ending)?;
        let attached = Msg::Attach { session, hello: Box::new(hello), down, peer };
        self.fleet.send(attached).await.map_err(|_| ending(mpsc::error::SendError(())))?;
        let farewell = Farewell { session, place: Some(place) };
        // What comes up is read as part of the stream that goes down: when the node goes away the
        // stream is dropped, and with it the reading. No task is left behind.
        let reading = read(up, session, self.fleet.clone());
        Ok(Response::new(Box::pin(down_stream(queue, reading, farewell))))
    }
}

async fn first_message(up: &mut Streaming<v1::NodeMessage>) -> Result<v1::Hello, Error> {
    match timeout(HELLO_PATIENCE, up.message()).await {
        Ok(Ok(Some(v1::NodeMessage { kind: Some(Up::Hello(hello)) }))) => Ok(hello),
        Ok(Ok(_)) => Err(SupervisorError::Protocol("its first message is not Hello".into()).into()),
        Ok(Err(status)) => Err(Error::from_status(&status)),
        Err(_) => Err(SupervisorError::Protocol(format!("no Hello within {HELLO_PATIENCE:?}")).into()),
    }
}

/// Passes messages on until the node ends the session or falls away.
async fn read(
    mut up: Streaming<v1::NodeMessage>,
    session: SessionId,
    fleet: mpsc::Sender<Msg>,
) -> Option<Status> {
    loop {
        match up.message().await {
            Ok(Some(v1::NodeMessage { kind: Some(kind) })) => {
                if fleet.send(Msg::Up { session, kind }).await.is_err() {
                    return Some(Error::from(SupervisorError::ShuttingDown).into());
                }
            }
            // A message of a later version of the protocol.
            Ok(Some(v1::NodeMessage { kind: None })) => {}
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

/// Tells the fleet that the session ended, however it ended: its place in the inbox was taken when
/// the session began.
struct Farewell {
    session: SessionId,
    place: Option<mpsc::OwnedPermit<Msg>>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            place.send(Msg::Detached { session: self.session });
        }
    }
}

/// The stream that goes down, until the node or the fleet ends the session.
fn down_stream<R>(
    queue: mpsc::Receiver<Down>,
    reading: R,
    farewell: Farewell,
) -> impl Stream<Item = Down> + Send
where
    R: Future<Output = Option<Status>> + Send + 'static,
{
    let state = Some((queue, Box::pin(reading), farewell));
    futures_util::stream::unfold(state, |state| async move {
        let (mut queue, mut reading, farewell) = state?;
        tokio::select! {
            next = queue.recv() => next.map(|item| (item, Some((queue, reading, farewell)))),
            ended = &mut reading => ended.map(|status| (Err(status), None)),
        }
    })
}
