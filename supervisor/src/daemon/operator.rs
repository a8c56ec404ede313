//! The operators' API: one picture of everything, wishes that are answered when they have come
//! true, and the story of what happened.

mod config;

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::{
    sync::{
        Semaphore,
        broadcast::{self, error::RecvError},
        mpsc, oneshot, watch,
    },
    time::{Instant, timeout_at},
};
use tonic::{Request, Response, Status};
use wardkeep_proto::{
    Error,
    context::{self, DEFAULT_DEADLINE},
    v1::{self, operator_server::Operator},
};
use wardkeep_steward::{Cause, GroupSpec, WardId};

use super::{
    SupervisorError, apply,
    error_store::Found,
    fleet::Msg,
    history::{Filter, Reader},
    output::{self, READERS},
    record, tame,
    wish::Wish,
};

/// The caller's deadline comes a little later than ours, so that it gets our answer and not its own.
const MARGIN: Duration = Duration::from_millis(150);

/// Events read from the history at a time.
const PAGE: usize = 256;

pub(super) struct Api {
    fleet: mpsc::Sender<Msg>,
    picture: watch::Receiver<Arc<v1::Fleet>>,
    past: Past,
    /// Of those who read output.
    seats: Arc<Semaphore>,
    /// The supervisor's own configuration file.
    config: Option<apply::Read>,
}

/// What happened, and what is to come.
pub(super) struct Past {
    pub(super) reader: Reader,
    /// Weak: those who follow leave when the fleet does.
    pub(super) followers: broadcast::WeakSender<Arc<v1::Event>>,
}

impl Api {
    pub(super) fn new(
        fleet: mpsc::Sender<Msg>,
        picture: watch::Receiver<Arc<v1::Fleet>>,
        past: Past,
        config: Option<apply::Read>,
    ) -> Self {
        Self { fleet, picture, past, seats: Arc::new(Semaphore::new(READERS)), config }
    }

    async fn wish(&self, wish: Wish, reason: &str, actor: &str) -> Result<(), Error> {
        let (cause, actor) = who_and_why(reason, actor);
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
        let deadline = Self::deadline(begun);
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

fn who_and_why(reason: &str, actor: &str) -> (Cause, String) {
    let (mut reason, mut actor) = (reason.to_owned(), actor.to_owned());
    tame::sentence(&mut reason);
    tame::id(&mut actor);
    let asked = if actor.is_empty() { "an operator".to_owned() } else { format!("{actor} asked for it") };
    let reason = if reason.is_empty() { asked } else { format!("{asked}: {reason}") };
    let traceparent = context::current().and_then(|c| c.traceparent.clone());
    (Cause { reason, traceparent, ..Cause::default() }, actor)
}

impl Api {
    /// When we give up waiting, so that the caller hears of it.
    fn deadline(begun: Instant) -> Instant {
        context::current().map_or(begun + DEFAULT_DEADLINE, |c| c.deadline) - MARGIN
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

    async fn apply_config(
        &self,
        request: Request<v1::ConfigRequest>,
    ) -> Result<Response<v1::ConfigOutcome>, Status> {
        let mut request = request.into_inner();
        tame::sentence(&mut request.node);
        let before = self.look().await?;
        let outcome = self.apply(&request).await?;
        if !request.dry_run && !request.detach {
            self.until_applied(&request.node, &before, &outcome).await?;
        }
        Ok(Response::new(outcome))
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
        let nothing = match found {
            Found::One(error) => return Ok(Response::new(v1::Error::clone(&error))),
            Found::None => SupervisorError::NoSuchError(id),
            Found::Many(many) => SupervisorError::WhichError { id, many },
        };
        // An error that has its place is not written down: looking for errors must not make them.
        Err(Error::from(nothing).at(super::NAME, "", 0).into())
    }

    type WatchEventsStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let subscribe = || self.past.followers.upgrade().map(|followers| followers.subscribe());
        let future = if request.follow {
            Some(subscribe().ok_or(SupervisorError::ShuttingDown).map_err(Error::from)?)
        } else {
            None
        };
        let filter = self.filter(request);
        Ok(Response::new(Box::pin(Story::new(self.past.reader.clone(), filter, future).stream())))
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
        let reader = output::Reader::new(self.fleet.clone(), request, seat);
        let stream = stream::try_unfold(reader, async |mut reader| {
            let next = reader.next().await.map_err(Status::from)?;
            Ok(next.map(|output| (output, reader)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Api {
    fn filter(&self, mut request: v1::WatchEventsRequest) -> Filter {
        // No name is longer; what is, is found nowhere.
        tame::sentence(&mut request.node);
        tame::sentence(&mut request.ward);
        let fleet = self.picture.borrow();
        let spec = |ward: &&v1::Ward| ward.spec.as_ref().is_some_and(|spec| spec.name == request.ward);
        let ward = fleet.wards.iter().filter(|ward| ward.node == request.node).find(spec);
        let group = ward.and_then(|ward| ward.spec.as_ref()).map(|spec| spec.group.clone());
        let group = group.filter(|group| !group.is_empty());
        let own = || GroupSpec::of_node(&request.node).name.to_string();
        Filter {
            after: request.after_sequence,
            since: request
                .since
                .map(|at| at.seconds.saturating_mul(1_000).saturating_add(i64::from(at.nanos) / 1_000_000)),
            newest: request.limit as usize,
            groups: record::chain(&fleet, &group.unwrap_or_else(own)),
            node: request.node,
            ward: request.ward,
        }
    }
}

/// Events, page by page out of the history, and then as they come.
struct Story {
    reader: Reader,
    filter: Filter,
    /// Sequence of the last one read; `None`: none yet.
    read: Option<u64>,
    page: std::vec::IntoIter<v1::Event>,
    in_the_past: bool,
    future: Option<broadcast::Receiver<Arc<v1::Event>>>,
}

impl Story {
    fn new(reader: Reader, filter: Filter, future: Option<broadcast::Receiver<Arc<v1::Event>>>) -> Self {
        Self { reader, filter, read: None, page: Vec::new().into_iter(), in_the_past: true, future }
    }

    fn stream(self) -> impl Stream<Item = Result<v1::Event, Status>> + Send {
        stream::unfold(Some(self), |story| async move {
            let mut story = story?;
            match story.next().await {
                Ok(event) => event.map(|event| (Ok(event), Some(story))),
                Err(what) => {
                    let what = format!("the history cannot be read: {what}");
                    Some((Err(Error::from(SupervisorError::Failed(what)).into()), None))
                }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<v1::Event>, String> {
        while self.in_the_past {
            if let Some(event) = self.page.next() {
                self.read = Some(event.sequence);
                return Ok(Some(event));
            }
            let page = self.reader.page(&self.filter, self.read, PAGE).await?;
            self.in_the_past = !page.is_empty();
            self.page = page.into_iter();
        }
        let Some(future) = &mut self.future else { return Ok(None) };
        let after = self.read.unwrap_or(self.filter.after);
        loop {
            match future.recv().await {
                Ok(event) if event.sequence > after && self.filter.fits(&event) => {
                    self.read = Some(event.sequence);
                    return Ok(Some(v1::Event::clone(&event)));
                }
                // A slow reader misses some; the gap in the sequence says so.
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }
}
