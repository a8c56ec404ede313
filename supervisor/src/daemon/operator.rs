//! The operators' API: one picture of everything, wishes that are answered when they have come
//! true, and the story of what happened.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tonic::{Request, Response, Status};
use wardkeep_proto::{
    Error,
    context::{self, DEFAULT_DEADLINE},
    v1::{self, operator_server::Operator},
};
use wardkeep_steward::{Cause, WardId};

use super::{
    SupervisorError,
    error_store::Found,
    fleet::Msg,
    output::{READERS, Reader},
    tame,
    wish::Wish,
};

/// The caller's deadline comes a little later than ours, so that it gets our answer and not its own.
const MARGIN: Duration = Duration::from_millis(150);

pub(super) struct Api {
    fleet: mpsc::Sender<Msg>,
    picture: watch::Receiver<Arc<v1::Fleet>>,
    /// Of those who read output.
    seats: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(fleet: mpsc::Sender<Msg>, picture: watch::Receiver<Arc<v1::Fleet>>) -> Self {
        Self { fleet, picture, seats: Arc::new(Semaphore::new(READERS)) }
    }

    async fn wish(&self, wish: Wish, reason: &str, actor: &str) -> Result<(), Error> {
        let (mut reason, mut actor) = (reason.to_owned(), actor.to_owned());
        tame::sentence(&mut reason);
        tame::id(&mut actor);
        let asked = if actor.is_empty() { "an operator".to_owned() } else { format!("{actor} asked for it") };
        let reason = if reason.is_empty() { asked } else { format!("{asked}: {reason}") };
        let cause =
            Cause { reason, traceparent: context::current().and_then(|c| c.traceparent), ..Cause::default() };
        let (answer, answered) = oneshot::channel();
        let msg = Msg::Wish { wish, cause, actor, answer };
        self.fleet.send(msg).await.map_err(|_| SupervisorError::ShuttingDown)?;
        answered.await.map_err(|_| SupervisorError::ShuttingDown)?
    }

    /// The picture of now: the latest published one may be a few milliseconds old.
    async fn look(&self) -> Result<Arc<v1::Fleet>, Error> {
        self.ask(|answer| Msg::Look { answer }).await
    }

    /// Asks the fleet something it answers at once.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Msg) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        self.fleet.send(question(answer)).await.map_err(|_| SupervisorError::ShuttingDown)?;
        Ok(answered.await.map_err(|_| SupervisorError::ShuttingDown)?)
    }

    /// Waits until the fleet looks as wished. `seen` says: yes with what, no, or that it never will.
    async fn wait<T>(
        &self,
        what: String,
        mut seen: impl FnMut(&v1::Fleet) -> Result<Option<T>, String>,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let deadline = context::current().map_or(begun + DEFAULT_DEADLINE, |c| c.deadline) - MARGIN;
        let mut picture = self.picture.clone();
        loop {
            let now = picture.borrow_and_update().clone();
            match seen(&now) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(why) => return Err(SupervisorError::Failed(format!("{what}: {why}")).into()),
            }
            match timeout_at(deadline, picture.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(SupervisorError::ShuttingDown.into()),
                Err(_) => return Err(SupervisorError::NotSeen { what, waited: begun.elapsed() }.into()),
            }
        }
    }

    async fn change_ward(
        &self,
        request: v1::WardRequest,
        wish: fn(WardId) -> Wish,
        verb: &str,
        seen: fn(before: &v1::Ward, now: &v1::Ward) -> bool,
    ) -> Result<v1::WardOutcome, Error> {
        let mut request = request;
        // No name is longer; what is, is found nowhere.
        tame::sentence(&mut request.node);
        tame::sentence(&mut request.ward);
        let id = WardId::new(request.node.as_str(), request.ward.as_str());
        let before = find_ward(&*self.look().await?, &request);
        self.wish(wish(id.clone()), &request.reason, &request.actor).await?;
        let before = before.unwrap_or_default();
        let after = if request.detach {
            None
        } else {
            let what = format!("{verb} of {id}");
            let after = self.wait(what, |fleet| match find_ward(fleet, &request) {
                Some(now) if seen(&before, &now) => Ok(Some(now)),
                Some(now)
                    if now.state() == v1::WardState::Quarantined && now.incarnation > before.incarnation =>
                {
                    Err(format!("it ended again at once and is quarantined ({})", now.status))
                }
                Some(_) => Ok(None),
                None => Err("its node has come back without it".to_owned()),
            });
            Some(after.await?)
        };
        Ok(v1::WardOutcome { before: Some(before), after })
    }

    async fn change_node(
        &self,
        request: v1::NodeRequest,
        wish: Wish,
        verb: &str,
        seen: fn(before: &v1::Node, now: &v1::Node) -> bool,
    ) -> Result<v1::NodeOutcome, Error> {
        let before = find_node(&*self.look().await?, &request.node);
        self.wish(wish, &request.reason, &request.actor).await?;
        let before = before.unwrap_or_default();
        let after = if request.detach {
            None
        } else {
            let what = format!("{verb} of {}", request.node);
            let after =
                self.wait(what, |fleet| Ok(find_node(fleet, &request.node).filter(|now| seen(&before, now))));
            Some(after.await?)
        };
        Ok(v1::NodeOutcome { before: Some(before), after })
    }
}

fn find_ward(fleet: &v1::Fleet, request: &v1::WardRequest) -> Option<v1::Ward> {
    let name = |ward: &v1::Ward| ward.spec.as_ref().is_some_and(|spec| spec.name == request.ward);
    fleet.wards.iter().find(|ward| ward.node == request.node && name(ward)).cloned()
}

fn find_node(fleet: &v1::Fleet, name: &str) -> Option<v1::Node> {
    fleet.nodes.iter().find(|node| node.info.as_ref().is_some_and(|info| info.name == name)).cloned()
}

fn boot(node: &v1::Node) -> &str {
    node.info.as_ref().map(|info| info.boot_id.as_str()).unwrap_or_default()
}

#[tonic::async_trait]
impl Operator for Api {
    async fn get_fleet(&self, _: Request<v1::GetFleetRequest>) -> Result<Response<v1::Fleet>, Status> {
        let fleet = self.look().await?;
        Ok(Response::new(v1::Fleet::clone(&fleet)))
    }

    async fn start_ward(
        &self,
        request: Request<v1::WardRequest>,
    ) -> Result<Response<v1::WardOutcome>, Status> {
        let seen = |_: &v1::Ward, now: &v1::Ward| now.state() == v1::WardState::Running;
        Ok(Response::new(self.change_ward(request.into_inner(), Wish::StartWard, "start", seen).await?))
    }

    async fn stop_ward(
        &self,
        request: Request<v1::WardRequest>,
    ) -> Result<Response<v1::WardOutcome>, Status> {
        let seen = |_: &v1::Ward, now: &v1::Ward| {
            matches!(now.state(), v1::WardState::Stopped | v1::WardState::Quarantined)
        };
        Ok(Response::new(self.change_ward(request.into_inner(), Wish::StopWard, "stop", seen).await?))
    }

    async fn restart_ward(
        &self,
        request: Request<v1::WardRequest>,
    ) -> Result<Response<v1::WardOutcome>, Status> {
        let seen = |before: &v1::Ward, now: &v1::Ward| {
            now.state() == v1::WardState::Running && now.incarnation > before.incarnation
        };
        Ok(Response::new(self.change_ward(request.into_inner(), Wish::RestartWard, "restart", seen).await?))
    }

    async fn restart_node(
        &self,
        request: Request<v1::NodeRequest>,
    ) -> Result<Response<v1::NodeOutcome>, Status> {
        let request = request.into_inner();
        let wish = Wish::RestartNode { node: request.node.clone(), drain: request.drain_timeout };
        let seen = |before: &v1::Node, now: &v1::Node| now.attending && boot(now) != boot(before);
        Ok(Response::new(self.change_node(request, wish, "restart", seen).await?))
    }

    async fn drain_node(
        &self,
        request: Request<v1::NodeRequest>,
    ) -> Result<Response<v1::NodeOutcome>, Status> {
        let request = request.into_inner();
        let wish = Wish::Drain { node: request.node.clone(), on: true };
        let seen = |_: &v1::Node, now: &v1::Node| now.draining;
        Ok(Response::new(self.change_node(request, wish, "drain", seen).await?))
    }

    async fn undrain_node(
        &self,
        request: Request<v1::NodeRequest>,
    ) -> Result<Response<v1::NodeOutcome>, Status> {
        let request = request.into_inner();
        let wish = Wish::Drain { node: request.node.clone(), on: false };
        let seen = |_: &v1::Node, now: &v1::Node| !now.draining;
        Ok(Response::new(self.change_node(request, wish, "undrain", seen).await?))
    }

    async fn list_errors(
        &self,
        _: Request<v1::ListErrorsRequest>,
    ) -> Result<Response<v1::ErrorList>, Status> {
        Ok(Response::new(self.ask(|answer| Msg::ListErrors { answer }).await?))
    }

    async fn get_error(&self, request: Request<v1::GetErrorRequest>) -> Result<Response<v1::Error>, Status> {
        let id = request.into_inner().id;
        let found = self.ask(|answer| Msg::FindError { id: id.clone(), answer }).await?;
        match found {
            Found::One(error) => Ok(Response::new(v1::Error::clone(&error))),
            Found::None => Err(Error::from(SupervisorError::NoSuchError(id)).into()),
            Found::Many(many) => Err(Error::from(SupervisorError::WhichError { id, many }).into()),
        }
    }

    type WatchEventsStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let (answer, answered) = oneshot::channel();
        let msg = Msg::ReadEvents { after: request.after_sequence, limit: request.limit as usize, answer };
        let ending = || Status::from(Error::from(SupervisorError::ShuttingDown));
        self.fleet.send(msg).await.map_err(|_| ending())?;
        let reading = answered.await.map_err(|_| ending())?;
        let past = stream::iter(reading.past.into_iter().map(|event| Ok(v1::Event::clone(&event))));
        if !request.follow {
            return Ok(Response::new(Box::pin(past)));
        }
        let future = BroadcastStream::new(reading.future).filter_map(async |event| match event {
            Ok(event) => Some(Ok(v1::Event::clone(&event))),
            // A slow reader misses some; the gap in the sequence says so.
            Err(BroadcastStreamRecvError::Lagged(_)) => None,
        });
        Ok(Response::new(Box::pin(past.chain(future))))
    }

    type WatchOutputStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::WardOutput, Status>> + Send>>;

    async fn watch_output(
        &self,
        request: Request<v1::WatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        let mut request = request.into_inner();
        tame::sentence(&mut request.node);
        tame::sentence(&mut request.ward);
        let full = |_| Error::from(SupervisorError::Full { what: "readers of output", most: READERS });
        let seat = self.seats.clone().try_acquire_owned().map_err(full)?;
        let reader = Reader::new(self.fleet.clone(), request, seat);
        let output = stream::try_unfold(reader, async |mut reader| {
            let next = reader.next().await.map_err(Status::from)?;
            Ok(next.map(|output| (output, reader)))
        });
        Ok(Response::new(Box::pin(output)))
    }
}
