//! `Stewardship.Attend`, the supervisor's side: carries a session's messages to the fleet and back.

use std::sync::Arc;

use futures_util::Stream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Duration, timeout},
};
use tonic::{Code, Request, Response, Status, Streaming};
use wardkeep_node::Ledger;
use wardkeep_proto::{
    Error,
    v1::{self, node_message::Kind as Up, stewardship_server::Stewardship},
};

use super::{
    SupervisorError,
    fleet::{Msg, SessionId},
    hello, tame,
};

/// Commands that may wait for a node that does not read; beyond, its session is ended.
/// Has room for a start and a hold of each ward a node may have.
pub(super) const DOWN_QUEUE: usize = 2 * super::hello::WARDS + 16;
/// For the first message.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Attend {
    fleet: mpsc::Sender<Msg>,
    /// Each session keeps a place in the fleet's inbox for its end.
    seats: Arc<Semaphore>,
    sessions: usize,
    ledger: Ledger,
}

impl Attend {
    /// `sessions`: at most so many at a time.
    pub(super) fn new(fleet: mpsc::Sender<Msg>, sessions: usize, ledger: Ledger) -> Self {
        Self { fleet, seats: Arc::new(Semaphore::new(sessions)), sessions, ledger }
    }
}

/// Writes an error of a session down, and makes it what its node is told.
fn refuse(error: Error, ledger: &Ledger) -> Status {
    let error = error.at(super::NAME, "", 0);
    ledger.write(&error);
    error.into()
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
        let refused = |error: Error| refuse(error, &self.ledger);
        let mut hello = first_message(&mut up).await.map_err(refused)?;
        let boot = hello::check(&hello).map_err(|what| refused(protocol(what)))?;
        tame::hello(&mut hello);
        let seat = self.seats.clone().try_acquire_owned().map_err(|_| {
            refused(SupervisorError::Full { what: "sessions of nodes", most: self.sessions }.into())
        })?;
        let (down, queue) = mpsc::channel(DOWN_QUEUE);
        let session = SessionId::next();
        let ending = |_| Status::from(Error::from(SupervisorError::ShuttingDown));
        let place = self.fleet.clone().reserve_owned().await.map_err(ending)?;
        let attached = Msg::Attach { session, hello: Box::new(hello), boot, down, peer };
        self.fleet.send(attached).await.map_err(|_| ending(mpsc::error::SendError(())))?;
        let farewell = Farewell { session, place: Some(place), _seat: seat };
        // What comes up is read as part of the stream that goes down: when the node goes away the
        // stream is dropped, and with it the reading. No task is left behind.
        let reading = read(up, session, self.fleet.clone(), self.ledger.clone());
        Ok(Response::new(Box::pin(down_stream(queue, reading, farewell))))
    }
}

fn protocol(what: impl Into<String>) -> Error {
    SupervisorError::Protocol(what.into()).into()
}

/// A stream that broke is what it is; one that cannot be read is the node's doing.
fn unreadable(status: &Status) -> Error {
    match status.code() {
        Code::OutOfRange | Code::Internal | Code::InvalidArgument => protocol(status.message()),
        _ => Error::from_status(status),
    }
}

async fn first_message(up: &mut Streaming<v1::NodeMessage>) -> Result<v1::Hello, Error> {
    match timeout(HELLO_PATIENCE, up.message()).await {
        Ok(Ok(Some(v1::NodeMessage { kind: Some(Up::Hello(hello)) }))) => Ok(hello),
        Ok(Ok(Some(_))) => Err(protocol("its first message is not Hello")),
        Ok(Ok(None)) => Err(protocol("it ended the session without a Hello")),
        Ok(Err(status)) => Err(unreadable(&status)),
        Err(_) => Err(protocol(format!("no Hello within {HELLO_PATIENCE:?}"))),
    }
}

/// Passes messages on until the node ends the session or falls away.
async fn read(
    mut up: Streaming<v1::NodeMessage>,
    session: SessionId,
    fleet: mpsc::Sender<Msg>,
    ledger: Ledger,
) -> Option<Status> {
    loop {
        let kind = match up.message().await {
            Ok(Some(v1::NodeMessage { kind: Some(kind) })) => kind,
            // A message of a later version of the protocol.
            Ok(Some(v1::NodeMessage { kind: None })) => continue,
            Ok(None) => return None,
            Err(status) => {
                let error = unreadable(&status);
                return Some(match error.kind() {
                    "PROTOCOL" => refuse(error, &ledger),
                    _ => error.into(),
                });
            }
        };
        let Some(kind) = bounded(kind) else {
            let error = protocol(format!("a report about more than {} wards", hello::WARDS));
            return Some(refuse(error, &ledger));
        };
        if fleet.send(Msg::Up { session, kind }).await.is_err() {
            return Some(Error::from(SupervisorError::ShuttingDown).into());
        }
    }
}

/// What waits for the fleet, or is kept by it, is bounded before it gets there.
fn bounded(mut kind: Up) -> Option<Up> {
    match &mut kind {
        Up::WardChange(change) => tame::change(change),
        Up::CommandDone(done) => done.error.iter_mut().for_each(tame::error),
        Up::Errors(errors) => tame::errors(errors),
        Up::Output(output) => tame::output(output),
        Up::Usages(usages) => usages.wards.truncate(hello::WARDS),
        Up::Report(report) => {
            let columns = [&report.worked, &report.work_begun, &report.work_ended, &report.oldest_work_ms];
            let runs = report.pulsed.len() / 2;
            if runs > hello::WARDS || columns.iter().any(|column| column.len() > hello::WARDS) {
                return None;
            }
        }
        Up::WardJoined(joined) => joined.ward.iter_mut().for_each(tame::ward),
        // The fleet says what is wrong with more than there may be.
        Up::GroupsChanged(changed) => changed.groups.truncate(hello::WARDS + 1),
        Up::ConfigAnswer(answer) => tame::config(answer),
        // A second one is refused unseen.
        Up::Hello(hello) => *hello = v1::Hello::default(),
        Up::DrainChange(_) | Up::Goodbye(_) | Up::WardLeft(_) => {}
    }
    Some(kind)
}

/// Tells the fleet that the session ended, however it ended: its place in the inbox was taken when
/// the session began.
struct Farewell {
    session: SessionId,
    place: Option<mpsc::OwnedPermit<Msg>>,
    _seat: OwnedSemaphorePermit,
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
