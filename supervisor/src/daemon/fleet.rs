//! The one task that owns everything: what nodes tell, what the steward makes of it, and what is
//! told to nodes, clients and operators.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::Utc;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tonic::Status;
use uuid::Uuid;
use wardkeep_node::{story, wire};
use wardkeep_proto::{
    Error, duration, machine_name, timestamp, trace,
    v1::{self, command, node_message::Kind as Up, steward_message::Kind as Down},
};
use wardkeep_steward::{Action, Cause, Config, Event, GroupSpec, Steward, WardId};

use super::{
    SupervisorError, directory,
    error_store::{ErrorStore, Found},
    event_log::{EventLog, Reading},
    launcher,
    record::{self, NodeRecord, Session},
};

/// Pictures that only show work counters are made at most this often; changes of state show at once.
const REPORTS_SHOWN: Duration = Duration::from_millis(250);
/// Messages taken in one go.
const BATCH: usize = 256;

/// One session of one node. A node that comes back has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionId(u64);

impl SessionId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// What the fleet is told and asked.
pub(super) enum Msg {
    Attach {
        session: SessionId,
        hello: Box<v1::Hello>,
        down: mpsc::Sender<Result<v1::StewardMessage, Status>>,
        peer: Option<IpAddr>,
    },
    Up {
        session: SessionId,
        kind: Up,
    },
    Detached {
        session: SessionId,
    },
    /// The launcher saw a node's process end.
    ProcessExited {
        node: String,
        how: String,
    },
    /// An operator's wish. The answer says whether it was taken on, not whether it has happened.
    Wish {
        wish: Wish,
        cause: Cause,
        actor: String,
        answer: oneshot::Sender<Result<(), Error>>,
    },
    ListErrors {
        answer: oneshot::Sender<v1::ErrorList>,
    },
    FindError {
        id: String,
        answer: oneshot::Sender<Found>,
    },
    ReadEvents {
        after: u64,
        limit: usize,
        answer: oneshot::Sender<Reading>,
    },
    Shutdown,
}

/// What operators wish for.
pub(super) enum Wish {
    StartWard(WardId),
    StopWard(WardId),
    RestartWard(WardId),
    RestartNode { node: String, drain: Option<prost_types::Duration> },
    Drain { node: String, on: bool },
}

/// What the fleet is given.
pub(super) struct Settings {
    pub(super) epoch: u64,
    pub(super) steward: Config,
    pub(super) mandate_grace: Duration,
    pub(super) groups: Vec<GroupSpec>,
    pub(super) launchable: Vec<String>,
}

pub(super) struct Fleet {
    settings: Settings,
    steward: Steward,
    nodes: BTreeMap<Arc<str>, NodeRecord>,
    log: EventLog,
    errors: ErrorStore,
    picture: watch::Sender<Arc<v1::Fleet>>,
    view: watch::Sender<Arc<v1::DirectoryView>>,
    launcher: mpsc::Sender<launcher::Order>,
    origin: Instant,
    started_at: prost_types::Timestamp,
    state_changed: bool,
    reported: bool,
    shown_at: Instant,
}

impl Fleet {
    pub(super) fn new(
        settings: Settings,
        picture: watch::Sender<Arc<v1::Fleet>>,
        view: watch::Sender<Arc<v1::DirectoryView>>,
        launcher: mpsc::Sender<launcher::Order>,
    ) -> Self {
        let origin = Instant::now();
        Self {
            steward: Steward::new(settings.steward).with_groups(settings.groups.clone()),
            settings,
            nodes: BTreeMap::new(),
            log: EventLog::new(),
            errors: ErrorStore::default(),
            picture,
            view,
            launcher,
            origin,
            started_at: timestamp(Utc::now()),
            state_changed: true,
            reported: false,
            shown_at: origin,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Msg>) {
        for node in self.settings.launchable.clone() {
            self.step(Event::NodeLaunchable { node: node.into() });
        }
        self.show();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake = self.origin + self.steward.next_wake().unwrap_or(Duration::from_secs(1));
            let wake = if self.reported { wake.min(self.shown_at + REPORTS_SHOWN) } else { wake };
            tokio::select! {
                n = inbox.recv_many(&mut batch, BATCH) => if n == 0 { return },
                () = tokio::time::sleep_until(wake) => {}
            }
            for msg in batch.drain(..) {
                if matches!(msg, Msg::Shutdown) {
                    return;
                }
                self.hear(msg);
            }
            if self.steward.next_wake().is_some_and(|due| due <= self.origin.elapsed()) {
                self.step(Event::Tick);
            }
            if self.state_changed || (self.reported && self.shown_at.elapsed() >= REPORTS_SHOWN) {
                self.show();
            }
        }
    }

    fn hear(&mut self, msg: Msg) {
        match msg {
            Msg::Attach { session, hello, down, peer } => self.attach(session, &hello, down, peer),
            Msg::Up { session, kind } => self.up(session, kind),
            Msg::Detached { session } => self.detached(session),
            Msg::ProcessExited { node, how } => {
                let cause = Cause { reason: format!("its process ended: {how}"), ..Cause::default() };
                self.step(Event::NodeProcessExited { node: node.into(), cause });
            }
            Msg::Wish { wish, cause, actor, answer } => {
                // An operator who has gone away gets no answer, but the wish stands.
                let _ = answer.send(self.wish(wish, cause, &actor));
            }
            Msg::ListErrors { answer } => {
                let _ = answer.send(self.errors.list());
            }
            Msg::FindError { id, answer } => {
                let _ = answer.send(self.errors.find(&id));
            }
            Msg::ReadEvents { after, limit, answer } => {
                let _ = answer.send(self.log.read(after, limit));
            }
            Msg::Shutdown => {}
        }
    }

    // --- sessions ---

    fn attach(
        &mut self,
        id: SessionId,
        hello: &v1::Hello,
        down: mpsc::Sender<Result<v1::StewardMessage, Status>>,
        peer: Option<IpAddr>,
    ) {
        let boot = match self.admit(hello) {
            Ok(boot) => boot,
            Err(error) => {
                error.log();
                // The queue of a new session has room.
                let _ = down.try_send(Err(error.into()));
                return;
            }
        };
        let record = NodeRecord::new(hello, Session { id, down, next_command: 1 }, peer);
        let name: Arc<str> = record.info.name.as_str().into();
        self.nodes.insert(name.clone(), record);
        self.state_changed = true;
        let welcome = v1::Welcome {
            epoch: self.settings.epoch,
            pulse_interval: Some(duration(self.settings.steward.pulse_interval)),
            mandate_grace: Some(duration(self.settings.mandate_grace)),
        };
        self.send(&name, Down::Welcome(welcome));
        for event in &hello.history {
            let text = format!("{} (by the node's own steward)", event.text);
            self.log.push(v1::Event { node: name.to_string(), text, ..event.clone() });
        }
        self.step(Event::NodeAttached {
            node: name,
            boot: boot.as_u128(),
            wards: hello.wards.iter().map(wire::ward_report).collect(),
            groups: hello.groups.iter().map(wire::group_spec).collect(),
        });
    }

    /// Whether a node may attend under the name it claims.
    fn admit(&self, hello: &v1::Hello) -> Result<Uuid, Error> {
        let protocol = |what: &str| Error::from(SupervisorError::Protocol(what.to_owned()));
        if hello.protocol != 1 {
            return Err(protocol(&format!("it speaks version {}, this supervisor speaks 1", hello.protocol)));
        }
        let node =
            hello.node.as_ref().filter(|n| !n.name.is_empty()).ok_or_else(|| protocol("it has no name"))?;
        let boot = Uuid::parse_str(&node.boot_id).map_err(|_| protocol("its boot ID is not a UUID"))?;
        let Some(known) = self.nodes.get(node.name.as_str()).filter(|known| known.session.is_some()) else {
            return Ok(boot);
        };
        // UUIDv7 sorts by time: the younger boot is the same node come back; an older one beside a
        // living session is a second process under the same name.
        if boot.to_string() < known.info.boot_id {
            let (pid, boot) = (known.info.pid, known.info.boot_id.clone());
            return Err(SupervisorError::NameTaken { name: node.name.clone(), pid, boot }.into());
        }
        Ok(boot)
    }

    fn up(&mut self, session: SessionId, kind: Up) {
        let Some(name) = self.of_session(session) else { return };
        let Some(record) = self.nodes.get_mut(&name) else { return };
        match kind {
            Up::Report(report) => {
                record.last_report_at = Some(Utc::now());
                record.leaked_threads = report.leaked_threads;
                self.reported = true;
                match wire::beats(&report, &record.names) {
                    Ok(beats) => {
                        let runtime_lag = Duration::from_millis(report.runtime_lag_ms.into());
                        self.step(Event::Report { node: name, runtime_lag, beats });
                    }
                    Err(what) => self.expel(&name, what),
                }
            }
            Up::WardChange(change) => {
                record.apply(&change);
                self.state_changed = true;
                let Some(ward) = record.names.get(change.slot as usize).cloned() else {
                    return self.expel(&name, format!("a change of slot {}, which no ward has", change.slot));
                };
                if let Some(event) = wire::ward_event(WardId { node: name, ward }, &change) {
                    self.step(event);
                }
            }
            Up::CommandDone(done) => {
                if let Some(error) = done.error {
                    tracing::warn!(node = %name, command = done.id, error = %error.id, "a command was refused: {}", error.what);
                }
            }
            Up::DrainChange(change) => {
                record.draining = change.draining;
                let text = if change.draining { "takes no new calls" } else { "takes calls again" };
                self.tell(v1::EventKind::NodeDraining, &name, text.to_owned(), "");
            }
            Up::Goodbye(goodbye) => {
                record.restarting = goodbye.restarting;
                record.session = None;
                self.step(Event::NodeDetached { node: name, goodbye: true });
            }
            Up::Errors(records) => self.errors.add(records),
            Up::Hello(_) => self.expel(&name, "a second Hello".to_owned()),
        }
    }

    fn detached(&mut self, session: SessionId) {
        let Some(name) = self.of_session(session) else { return };
        if let Some(record) = self.nodes.get_mut(&name) {
            record.session = None;
        }
        self.step(Event::NodeDetached { node: name, goodbye: false });
    }

    /// Ends the session of a node that does not keep to the protocol.
    fn expel(&mut self, name: &Arc<str>, what: String) {
        let error = Error::from(SupervisorError::Protocol(what));
        error.log();
        if let Some(session) = self.nodes.get_mut(name).and_then(|record| record.session.take()) {
            let _ = session.down.try_send(Err(error.into()));
        }
        self.step(Event::NodeDetached { node: name.clone(), goodbye: false });
    }

    fn of_session(&self, id: SessionId) -> Option<Arc<str>> {
        let mine = |record: &NodeRecord| record.session.as_ref().is_some_and(|session| session.id == id);
        self.nodes.iter().find(|(_, record)| mine(record)).map(|(name, _)| name.clone())
    }

    // --- the steward ---

    fn step(&mut self, event: Event) {
        let now = self.origin.elapsed();
        for action in self.steward.step(now, event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        self.state_changed = true;
        match action {
            Action::Note(note) => {
                let mut event = story::event(&note);
                event.epoch = self.settings.epoch;
                let error = event.error.as_ref().map(|e| e.id.as_str());
                let place = [event.node.as_str(), event.ward.as_str()];
                let place =
                    place.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/");
                tracing::info!(target: "steward", error, "{place}: {}", event.text);
                self.log.push(event);
            }
            Action::Start { ward, after_incarnation, cause } => {
                self.command_ward(&ward, &cause, |slot| {
                    command::Kind::Start(v1::StartWard { slot, after_incarnation })
                });
            }
            Action::Hold { ward, incarnation } => {
                self.command_ward(&ward, &Cause::default(), |slot| {
                    command::Kind::Hold(v1::HoldWard { slot, incarnation })
                });
            }
            Action::Stop { ward, incarnation, grace, cause } => {
                let grace = Some(duration(grace));
                self.command_ward(&ward, &cause, |slot| {
                    command::Kind::Stop(v1::StopWard { slot, incarnation, grace })
                });
            }
            Action::Launch { node, cause } => {
                let order = launcher::Order { node: node.to_string(), reason: cause.reason };
                if self.launcher.try_send(order).is_err() {
                    tracing::error!(%node, "the launcher does not take orders; the steward will order again");
                }
            }
        }
    }

    fn command_ward(&mut self, ward: &WardId, cause: &Cause, kind: impl FnOnce(u32) -> command::Kind) {
        let slot = self.nodes.get(&ward.node).and_then(|record| record.slot(&ward.ward));
        if let Some(slot) = slot {
            self.command(&ward.node, kind(slot), cause);
        }
    }

    fn command(&mut self, node: &Arc<str>, kind: command::Kind, cause: &Cause) {
        // The decision is part of the trace of the call that led to it.
        let span = tracing::info_span!("steward.decide", %node, reason = %cause.reason);
        if let Some(parent) = &cause.traceparent {
            trace::follow_parent(&span, parent);
        }
        let traceparent = trace::traceparent(&span).or(cause.traceparent.as_deref().map(str::to_owned));
        let Some(session) = self.nodes.get_mut(node).and_then(|record| record.session.as_mut()) else {
            return;
        };
        let id = session.next_command;
        session.next_command += 1;
        let command = v1::Command {
            id,
            epoch: self.settings.epoch,
            reason: cause.reason.clone(),
            traceparent: traceparent.unwrap_or_default(),
            kind: Some(kind),
        };
        self.send(node, Down::Command(command));
    }

    /// To a node. One that does not read loses its session and is told anew when it is back.
    fn send(&mut self, node: &Arc<str>, kind: Down) {
        let Some(record) = self.nodes.get_mut(node) else { return };
        let Some(session) = &record.session else { return };
        if session.down.try_send(Ok(v1::StewardMessage { kind: Some(kind) })).is_err() {
            tracing::warn!(%node, "does not read what it is told; its session is ended");
            record.session = None;
            self.step(Event::NodeDetached { node: node.clone(), goodbye: false });
        }
    }

    // --- operators ---

    fn wish(&mut self, wish: Wish, cause: Cause, actor: &str) -> Result<(), Error> {
        match wish {
            Wish::StartWard(ward) => {
                self.reachable_ward(&ward)?;
                self.step(Event::StartWard { ward, cause });
            }
            Wish::StopWard(ward) => {
                self.reachable_ward(&ward)?;
                self.step(Event::StopWard { ward, cause });
            }
            Wish::RestartWard(ward) => {
                self.reachable_ward(&ward)?;
                self.step(Event::RestartWard { ward, cause });
            }
            Wish::RestartNode { node, drain } => {
                let node = self.reachable_node(&node)?;
                self.tell(
                    v1::EventKind::NodeRestart,
                    &node,
                    format!("restart in place: {}", cause.reason),
                    actor,
                );
                let kind = command::Kind::RestartNode(v1::RestartNode { drain_timeout: drain });
                self.command(&node, kind, &cause);
            }
            Wish::Drain { node, on } => {
                let node = self.reachable_node(&node)?;
                let what = if on { "drain" } else { "undrain" };
                self.tell(v1::EventKind::Operator, &node, format!("{what}: {}", cause.reason), actor);
                self.command(&node, command::Kind::Drain(v1::Drain { on }), &cause);
            }
        }
        Ok(())
    }

    fn reachable_node(&self, name: &str) -> Result<Arc<str>, Error> {
        let Some((name, record)) = self.nodes.get_key_value(name) else {
            return Err(SupervisorError::NoSuchNode(name.to_owned()).into());
        };
        if record.session.is_none() {
            return Err(SupervisorError::NotAttending(name.to_string()).into());
        }
        Ok(name.clone())
    }

    fn reachable_ward(&self, ward: &WardId) -> Result<(), Error> {
        let node = self.reachable_node(&ward.node)?;
        match self.nodes.get(&node).and_then(|record| record.slot(&ward.ward)) {
            Some(_) => Ok(()),
            None => {
                let (node, ward) = (node.to_string(), ward.ward.to_string());
                Err(SupervisorError::NoSuchWard { node, ward }.into())
            }
        }
    }

    /// Writes an event that is not the steward's.
    fn tell(&mut self, kind: v1::EventKind, node: &str, text: String, actor: &str) {
        self.state_changed = true;
        tracing::info!(node, actor, "{text}");
        self.log.push(v1::Event {
            at: Some(timestamp(Utc::now())),
            kind: kind.into(),
            node: node.to_owned(),
            text,
            actor: actor.to_owned(),
            epoch: self.settings.epoch,
            ..Default::default()
        });
    }

    // --- pictures ---

    fn show(&mut self) {
        let supervisor = v1::Supervisor {
            machine: machine_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.settings.epoch,
            started_at: Some(self.started_at),
            last_event_sequence: self.log.last(),
        };
        let now = self.origin.elapsed();
        let fleet = record::fleet(supervisor, &self.nodes, &self.settings.launchable, &self.steward, now);
        let members = directory::view(&fleet);
        self.view.send_if_modified(|view| {
            let changed = view.members != members || view.version == 0;
            if changed {
                *view = Arc::new(v1::DirectoryView { version: view.version + 1, members });
            }
            changed
        });
        self.picture.send_replace(Arc::new(fleet));
        (self.state_changed, self.reported, self.shown_at) = (false, false, Instant::now());
    }
}
