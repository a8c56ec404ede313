//! The one task that owns everything: what nodes tell, what the steward makes of it, and what is
//! told to nodes, clients and operators.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::Utc;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::Instant,
};
use tonic::Status;
use uuid::Uuid;
use wardkeep_node::Ledger;
use wardkeep_node::wire;
use wardkeep_proto::{
    Error, duration, machine_name, timestamp,
    v1::{self, node_message::Kind as Up, steward_message::Kind as Down},
};
use wardkeep_steward::{Cause, Config, Event, GroupSpec, Steward, WardId};

use super::{
    Configuration, SupervisorError, apply,
    chronicle::{Chronicle, Deed},
    directory,
    error_store::{ErrorStore, Found},
    history::{History, Intent, Intents, Lane, REMEMBERED, State, recall},
    launch::{Deaf, launchable},
    launcher::{self, How, Launch},
    metrics::{Histogram, LATENESS, Measured, Tally},
    output::{Answer, Questions, Wanted},
    record::{self, NodeRecord, Session},
    rollout::Rollouts,
    wish::Wish,
};

/// Pictures that only show work counters are made at most this often; changes of state show at once.
const REPORTS_SHOWN: Duration = Duration::from_millis(250);
/// Pictures are made at most this often, and for a large fleet more rarely: they may take one tenth
/// of the time.
const PICTURES_APART: Duration = Duration::from_millis(10);
/// Messages taken in one go.
const BATCH: usize = 256;
/// Nodes known, past ones included; the steward forgets those that have been away for long.
const NODES: usize = 16_384;
/// How often it is looked for orders whose effect has not been seen for too long.
const ORDERS: Duration = Duration::from_secs(5);
/// Asleep no longer than this.
const NAP: Duration = Duration::from_secs(1);
/// After a node was lost, a Hello of a boot before may still come for so long.
const LATEST: Duration = Duration::from_secs(15);

/// One session of one node. A node that comes back has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionId(u64);

impl SessionId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// What the fleet is told and asked.
#[allow(clippy::large_enum_variant, reason = "nearly all messages are of the largest kind")]
pub(super) enum Msg {
    Attach {
        session: SessionId,
        hello: Box<v1::Hello>,
        boot: Uuid,
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
    /// A node's launcher has done its part, or why it could not.
    LauncherDone {
        node: String,
        outcome: Result<String, String>,
    },
    /// An operator's wish. The answer says whether it was taken on, not whether it has happened.
    Wish {
        wish: Wish,
        cause: Cause,
        actor: String,
        answer: oneshot::Sender<Result<(), Error>>,
    },
    /// The supervisor's configuration file, read anew.
    ApplyOwn {
        now: Box<Configuration>,
        wanted: apply::Wanted,
    },
    /// A node is to read its own.
    ApplyOfNode {
        node: String,
        wanted: apply::Wanted,
    },
    /// For a picture that shows all that has been told of.
    Look {
        answer: oneshot::Sender<Arc<v1::Fleet>>,
    },
    /// For what is to be told to a monitoring system.
    Measure {
        answer: oneshot::Sender<Box<Measured>>,
    },
    ListErrors {
        answer: oneshot::Sender<v1::ErrorList>,
    },
    FindError {
        id: String,
        answer: oneshot::Sender<Found>,
    },
    ReadOutput {
        wanted: Wanted,
        answer: oneshot::Sender<Answer>,
    },
    Shutdown,
}

/// What the fleet is given.
pub(super) struct Settings {
    pub(super) epoch: u64,
    pub(super) steward: Config,
    pub(super) mandate_grace: Duration,
    pub(super) groups: Vec<GroupSpec>,
    /// What is launched, and how.
    pub(super) launches: Vec<Launch>,
    /// Nodes that can be launched, and how: those named above, and those that have attended and that a name
    /// with a `*` fits.
    pub(super) launchable: BTreeMap<String, How>,
    /// What it is configured by, if that is a file.
    pub(super) config: Option<apply::ConfigFile>,
    /// The supervisor's own errors.
    pub(super) ledger: Ledger,
}

/// What there was before, and where it goes on.
pub(super) struct Remembered {
    pub(super) state: State,
    pub(super) history: History,
    pub(super) followers: broadcast::Sender<Arc<v1::Event>>,
    /// Where it is kept (`None`: in memory only), and at most how much of it.
    pub(super) kept: (Option<PathBuf>, u64),
}

pub(super) struct Fleet {
    pub(super) settings: Settings,
    pub(super) steward: Steward,
    pub(super) nodes: BTreeMap<Arc<str>, NodeRecord>,
    /// Which node a session is of. Those that were ended are not in it.
    sessions: HashMap<SessionId, Arc<str>>,
    /// Nodes whose sessions were ended because they do not read: the steward is to be told.
    pub(super) lost: Vec<Arc<str>>,
    /// Who has the wish that is being dealt with.
    pub(super) actor: String,
    /// The intent of an earlier supervisor that is being gone on with.
    pub(super) resuming: Option<Intent>,
    pub(super) chronicle: Chronicle,
    errors: ErrorStore,
    pub(super) tally: Tally,
    /// How late this loop did what was due.
    lateness: Histogram,
    pub(super) questions: Questions,
    /// Nodes that were told to restart in place and have not answered.
    pub(super) deaf: Deaf,
    pub(super) applying: apply::Applying,
    pub(super) rollouts: Rollouts,
    picture: watch::Sender<Arc<v1::Fleet>>,
    view: watch::Sender<Arc<v1::DirectoryView>>,
    pub(super) launcher: mpsc::Sender<launcher::Told>,
    origin: Instant,
    started_at: prost_types::Timestamp,
    /// Nodes whose own stewards need to know more than they were told.
    pub(super) heirs: BTreeSet<Arc<str>>,
    /// The highest epoch that nodes have obeyed, if that is another supervisor's.
    pub(super) superseded: u64,
    pub(super) state_changed: bool,
    reported: bool,
    /// The steward's count of them, when it was last looked at.
    suspicions: u64,
    shown_at: Instant,
    /// Between two pictures.
    apart: Duration,
    orders_seen_to: Instant,
}

impl Fleet {
    pub(super) fn new(
        settings: Settings,
        remembered: Remembered,
        picture: watch::Sender<Arc<v1::Fleet>>,
        view: watch::Sender<Arc<v1::DirectoryView>>,
        launcher: mpsc::Sender<launcher::Told>,
    ) -> Self {
        let origin = Instant::now();
        let Remembered { state, history, followers, kept } = remembered;
        let memory = recall(&state, Utc::now().timestamp_millis(), REMEMBERED);
        let intents = Intents::new(state.intents, state.last_intent);
        Self {
            steward: Steward::new(settings.steward).with_groups(settings.groups.clone()).with_memory(memory),
            settings,
            nodes: BTreeMap::new(),
            sessions: HashMap::new(),
            lost: Vec::new(),
            actor: String::new(),
            resuming: None,
            chronicle: Chronicle::new(history, followers, intents, state.holds, state.last_sequence, kept),
            errors: ErrorStore::default(),
            tally: Tally::default(),
            lateness: Histogram::new(LATENESS),
            questions: Questions::default(),
            deaf: Deaf::default(),
            applying: apply::Applying::default(),
            rollouts: Rollouts::new(),
            picture,
            view,
            launcher,
            origin,
            started_at: timestamp(Utc::now()),
            heirs: BTreeSet::new(),
            superseded: 0,
            state_changed: true,
            reported: false,
            suspicions: 0,
            shown_at: origin,
            apart: PICTURES_APART,
            orders_seen_to: origin,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Msg>) {
        let (epoch, version) = (self.settings.epoch, env!("CARGO_PKG_VERSION"));
        let text = format!("the supervisor begins: version {version} on {}, epoch {epoch}", machine_name());
        self.tell(v1::EventKind::Steward, "", text, "");
        for (node, how) in self.settings.launchable.clone() {
            self.step(launchable(&node, how));
        }
        self.show();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            self.chronicle.commit();
            self.carry_out();
            self.tell_of_the_lost();
            self.launch_the_deaf();
            self.go_on_rolling();
            self.chronicle.commit();
            self.collect_own_errors();
            let idle = self.idle_for();
            tokio::select! {
                n = inbox.recv_many(&mut batch, BATCH) => if n == 0 { return self.end().await },
                () = tokio::time::sleep(idle) => {}
                () = self.chronicle.progressed() => {}
            }
            for msg in batch.drain(..) {
                if matches!(msg, Msg::Shutdown) {
                    return self.end().await;
                }
                self.hear(msg);
            }
            if let Some(late) = self.steward.next_wake().and_then(|due| self.now().checked_sub(due)) {
                self.lateness.observe(late);
                self.step(Event::Tick);
                self.tell_of_the_lost();
                self.reported = true;
            }
            if self.orders_seen_to.elapsed() >= ORDERS {
                self.orders_seen_to = Instant::now();
                self.give_up_orders();
            }
            let suspicions = self.steward.suspicions();
            self.state_changed |= std::mem::replace(&mut self.suspicions, suspicions) != suspicions;
            if self.picture_due().is_some_and(|due| due <= Instant::now()) {
                self.show();
            }
        }
    }

    /// What went wrong in the supervisor itself is looked up as what nodes tell of.
    fn collect_own_errors(&mut self) {
        wardkeep_proto::error::tell_kept_back(Instant::now());
        while let Some(records) = self.settings.ledger.take() {
            self.errors.add(records);
        }
    }

    /// The steward's clock. What it remembers of before this supervisor's start lies before
    /// [`REMEMBERED`] on it.
    pub(super) fn now(&self) -> Duration {
        REMEMBERED + self.origin.elapsed()
    }

    async fn end(mut self) {
        self.tell(v1::EventKind::Steward, "", "the supervisor ends, as it was told to".to_owned(), "");
        self.chronicle.close().await;
    }

    /// What peers ask for may lie beyond the end of time: a nap is always short.
    fn idle_for(&self) -> Duration {
        let step = self.steward.next_wake().map(|at| at.saturating_sub(self.now()));
        let due = [self.picture_due(), self.chronicle.due()].into_iter().flatten();
        let due = due.map(|at| at.saturating_duration_since(Instant::now()));
        step.into_iter().chain(due).fold(NAP, Duration::min)
    }

    /// When the next picture is to be made, if there is anything new to be seen on it.
    fn picture_due(&self) -> Option<Instant> {
        if self.state_changed {
            Some(self.shown_at + self.apart)
        } else {
            self.reported.then(|| self.shown_at + self.apart.max(REPORTS_SHOWN))
        }
    }

    fn hear(&mut self, msg: Msg) {
        match msg {
            Msg::Attach { session, hello, boot, down, peer } => {
                self.attach(Session { id: session, down, next_command: 1 }, &hello, boot, peer);
            }
            Msg::Up { session, kind } => self.up(session, kind),
            Msg::Detached { session } => self.detached(session),
            Msg::ProcessExited { node, how } => {
                let cause = Cause { reason: format!("its process ended: {how}"), ..Cause::default() };
                self.step(Event::NodeProcessExited { node: node.into(), cause });
            }
            Msg::LauncherDone { node, outcome } => self.launcher_done(node.into(), outcome),
            Msg::Wish { wish, cause, actor, answer } => {
                let taken_on = self.wish(wish, cause, actor);
                self.chronicle.deed(Deed::Answer { to: answer, taken_on });
            }
            Msg::ApplyOwn { now, wanted } => self.apply_own(now, wanted),
            Msg::ApplyOfNode { node, wanted } => self.apply_of_node(&node, wanted),
            Msg::Look { answer } => {
                if self.state_changed {
                    self.show();
                }
                let _ = answer.send(self.picture.borrow().clone());
            }
            Msg::Measure { answer } => {
                let _ = answer.send(Box::new(self.measured()));
            }
            Msg::ListErrors { answer } => {
                self.collect_own_errors();
                let _ = answer.send(self.errors.list());
            }
            Msg::FindError { id, answer } => {
                self.collect_own_errors();
                let _ = answer.send(self.errors.find(&id));
            }
            Msg::ReadOutput { wanted, answer } => self.ask_for_output(&wanted, answer),
            Msg::Shutdown => {}
        }
        self.tell_of_the_lost();
    }

    // --- sessions ---

    fn attach(&mut self, session: Session, hello: &v1::Hello, boot: Uuid, peer: Option<IpAddr>) {
        let info = hello.node.as_ref();
        let name: Arc<str> = info.map(|info| info.name.as_str()).unwrap_or_default().into();
        if let Err(error) = self.admit(&name, boot, hello) {
            self.tell_of_a_higher_epoch(hello.highest_epoch);
            let error = error.at(super::NAME, "", 0);
            self.settings.ledger.write(&error);
            // The queue of a new session has room.
            let _ = session.down.try_send(Err(error.into()));
            return;
        }
        self.supersede(&name, boot, info.map_or(0, |info| info.pid));
        self.deaf.attends(&name);
        let known =
            self.nodes.get(&name).filter(|record| record.boot == boot).map_or(0, |record| record.story);
        self.sessions.insert(session.id, name.clone());
        self.nodes.insert(name.clone(), NodeRecord::new(hello, boot, session, peer));
        self.state_changed = true;
        let welcome = v1::Welcome {
            epoch: self.settings.epoch,
            pulse_interval: Some(duration(self.settings.steward.pulse_interval)),
            mandate_grace: Some(duration(self.settings.mandate_grace)),
        };
        self.send(&name, Down::Welcome(welcome));
        let counts = self.told_meanwhile(&name, hello, known);
        self.settle_at_attach(&name, hello, &boot.to_string());
        self.attached(name.clone(), hello, boot.as_u128());
        counts.into_iter().for_each(|event| self.step(event));
        self.resume(&name);
        self.heirs.insert(name);
    }

    /// Whether a node may attend under the name it claims.
    fn admit(&self, name: &Arc<str>, boot: Uuid, hello: &v1::Hello) -> Result<(), Error> {
        let (ours, highest) = (self.settings.epoch, hello.highest_epoch);
        match self.nodes.get(name) {
            // It would refuse whatever it was told.
            _ if highest > ours => {
                let node = name.to_string();
                Err(SupervisorError::Superseded { node, ours, highest }.into())
            }
            None if self.nodes.len() >= NODES => {
                Err(SupervisorError::Full { what: "nodes", most: NODES }.into())
            }
            // UUIDv7 sorts by time: the younger boot is the same node come back; an older one beside
            // a living session is a second process under the same name.
            Some(known) if known.session.is_some() && boot < known.boot => {
                Err(taken(name, known.info.pid, known.boot))
            }
            // Its wards would be taken for gone. A node whose clock was set back waits a little.
            Some(known) if boot < known.boot && known.lost_at.is_some_and(|at| at.elapsed() < LATEST) => {
                let late = format!(
                    "its boot is older than that of the node of its name which was here just now: it is taken for late \
                     for up to {LATEST:?}"
                );
                Err(SupervisorError::Protocol(late).into())
            }
            Some(known) if known.boot == boot && known.is_ahead_of(hello) => {
                let late = "its Hello is older than what it has said before".to_owned();
                Err(SupervisorError::Protocol(late).into())
            }
            _ => Ok(()),
        }
    }

    /// The session before, if there is one, ends. Another process is told why.
    fn supersede(&mut self, name: &Arc<str>, boot: Uuid, pid: u32) {
        let Some(record) = self.nodes.get_mut(name) else { return };
        let Some(old) = record.session.take() else { return };
        self.sessions.remove(&old.id);
        self.questions.forget(old.id);
        self.applying.forget(old.id);
        if record.boot != boot {
            let error = taken(name, pid, boot);
            let error = error.at(super::NAME, "", 0);
            self.settings.ledger.write(&error);
            let _ = old.down.try_send(Err(error.into()));
        }
    }

    fn up(&mut self, session: SessionId, kind: Up) {
        let Some(name) = self.sessions.get(&session).cloned() else { return };
        let Some(record) = self.nodes.get_mut(&name) else { return };
        match kind {
            Up::Report(report) => {
                record.last_report_at = Some(Utc::now());
                let threads = report.leaked_threads;
                let leaked = std::mem::replace(&mut record.leaked_threads, threads) != threads;
                self.reported = true;
                let runtime_lag = Duration::from_millis(report.runtime_lag_ms.into());
                let slept = Duration::from_millis(report.unlived_ms.into());
                match wire::beats(report, record.slots_used()) {
                    Ok(mut beats) => {
                        record.hear(&mut beats);
                        if !slept.is_zero() {
                            self.step(Event::NodeSlept { node: name.clone(), slept });
                        }
                        self.step(Event::Report { node: name.clone(), runtime_lag, beats });
                        if leaked {
                            self.step(Event::ThreadsLeaked { node: name, threads });
                        }
                    }
                    Err(what) => self.expel(&name, what),
                }
            }
            Up::WardChange(change) => {
                record.apply(&change);
                self.state_changed = true;
                let Some(ward) = record.name(change.slot).cloned() else {
                    return self.expel(&name, format!("a change of slot {}, which no ward has", change.slot));
                };
                let ward = WardId { node: name, ward };
                self.seen(&ward, &change);
                if let Some(event) = wire::ward_event(ward, &change) {
                    self.step(event);
                }
            }
            Up::CommandDone(done) => {
                self.deaf.answered(&name, done.id);
                if let Some(error) = done.error {
                    self.apply_refused(&name, done.id, &error);
                    tracing::warn!(node = %name, command = done.id, error = %error.id, "a command was refused: {}", error.what);
                }
            }
            Up::DrainChange(change) => {
                record.draining = change.draining;
                let text = if change.draining { "takes no new calls" } else { "takes calls again" };
                self.chronicle.settle(&name, "", Lane::Drain, text);
                self.tell(v1::EventKind::NodeDraining, &name, text.to_owned(), "");
            }
            Up::Goodbye(_) => {
                self.end_session(&name);
                if let Some(record) = self.nodes.get_mut(&name) {
                    record.lost_at = None;
                }
                self.step(Event::NodeDetached { node: name, goodbye: true });
            }
            Up::Errors(records) => self.errors.add(records),
            Up::Output(output) => self.questions.answered(session, record.boot, output),
            Up::Usages(usages) => {
                record.measured(usages);
                self.reported = true;
            }
            Up::WardJoined(joined) => self.joined(name, joined),
            Up::WardLeft(left) => self.ward_left(name, left.slot),
            Up::GroupsChanged(changed) => self.groups_changed(name, changed.groups),
            Up::ConfigAnswer(answer) => self.config_answered(&name, answer),
            Up::Hello(_) => self.expel(&name, "a second Hello".to_owned()),
        }
    }

    fn detached(&mut self, session: SessionId) {
        let Some(name) = self.sessions.get(&session).cloned() else { return };
        self.end_session(&name);
        self.step(Event::NodeDetached { node: name, goodbye: false });
    }

    /// Ends the session of a node that does not keep to the protocol.
    pub(super) fn expel(&mut self, name: &Arc<str>, what: String) {
        let error = Error::from(SupervisorError::Protocol(what));
        let error = error.at(super::NAME, "", 0);
        self.settings.ledger.write(&error);
        if let Some(session) = self.end_session(name) {
            let _ = session.down.try_send(Err(error.into()));
        }
        self.step(Event::NodeDetached { node: name.clone(), goodbye: false });
    }

    /// The steward is to be told by the caller.
    pub(super) fn end_session(&mut self, name: &Arc<str>) -> Option<Session> {
        let record = self.nodes.get_mut(name)?;
        let session = record.session.take()?;
        record.lost_at = Some(Instant::now());
        self.sessions.remove(&session.id);
        self.questions.forget(session.id);
        self.applying.forget(session.id);
        self.state_changed = true;
        Some(session)
    }

    fn tell_of_the_lost(&mut self) {
        while let Some(node) = self.lost.pop() {
            // One that has come back meanwhile is not lost.
            if self.nodes.get(&node).is_none_or(|record| record.session.is_none()) {
                self.step(Event::NodeDetached { node, goodbye: false });
            }
        }
    }

    // --- pictures ---

    pub(super) fn show(&mut self) {
        self.chronicle.commit();
        let begun = Instant::now();
        if self.nodes.len() > self.steward.nodes().count() {
            self.forget();
        }
        let supervisor = v1::Supervisor {
            machine: machine_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.settings.epoch,
            started_at: Some(self.started_at),
            last_event_sequence: self.chronicle.last(),
            history: Some(self.chronicle.picture()),
            config_file: self.settings.config.as_ref().map(|file| file.path.clone()).unwrap_or_default(),
        };
        let now = self.now();
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
        self.apart = PICTURES_APART.max(begun.elapsed() * 9);
    }

    fn measured(&mut self) -> Measured {
        self.collect_own_errors();
        self.show();
        Measured {
            fleet: self.picture.borrow().clone(),
            tally: self.tally.clone(),
            errors: self.errors.totals(),
            lateness: self.lateness.clone(),
            writes: self.chronicle.waited().clone(),
            waiting: self.chronicle.waiting(),
            // One is the service's own.
            watchers: self.view.receiver_count().saturating_sub(1),
            sessions: self.sessions.len(),
        }
    }

    /// What the steward has forgotten is gone.
    fn forget(&mut self) {
        let known: BTreeSet<_> = self.steward.nodes().map(|view| view.name.clone()).collect();
        let gone =
            |(name, record): &(&Arc<str>, &NodeRecord)| record.session.is_none() && !known.contains(*name);
        for name in self.nodes.iter().filter(gone).map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.nodes.remove(&name);
            self.chronicle.forget(&name);
            self.tally.forget(&name);
        }
    }

    pub(super) fn is_known(&self, node: &str) -> bool {
        self.steward.nodes().any(|view| **view.name == *node)
    }
}

fn taken(name: &str, pid: u32, boot: Uuid) -> Error {
    SupervisorError::NameTaken { name: name.to_owned(), pid, boot: boot.to_string() }.into()
}
