//! The keeper: a thread of its own with a small runtime of its own, so that a node keeps beating,
//! obeying and healing even while the runtime of its wards is stuck.
//!
//! One task owns everything here: the wards' states ([`Host`]), the mandate, the session. It turns
//! what happens into events for the steward in charge, and that steward's actions into deeds.

pub(crate) mod apply;
mod leave;
mod members;
mod obey;
mod outputs;
mod tend;
mod turns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::Utc;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};
use wardkeep_proto::{
    Error, timestamp,
    v1::{self, node_message::Kind as Up, steward_message::Kind as Down},
};
use wardkeep_steward::{Action, Event, Note, WardId, What};

use self::{apply::ConfigFile, turns::Turns};
use crate::{
    host::Host,
    ledger::Ledger,
    mandate::Mandate,
    reexec,
    scribe::Scribe,
    server::Ending,
    session::{self, Link, Tidings},
    story,
    ward::Ward,
    ways::Ways,
    wire,
};

/// How often hearts are swept and overdue things looked for.
const SWEEP: Duration = Duration::from_millis(50);
/// A gap between two sweeps counts for no more than this.
const LONGEST_TURN: Duration = Duration::from_millis(200);
/// How often the own steward hears of heartbeats; a supervisor says how often it wants to.
const OWN_REPORTS: Duration = Duration::from_millis(200);
/// Snapshots may take one part in so many of the time, and one more.
const PICTURE_SHARE: u32 = 9;
/// A change is not kept back for longer.
const LONGEST_UNSEEN: Duration = Duration::from_secs(1);
/// The wards' runtime is asked for a sign of life at each sweep. One later than this is overdue.
const PROBE_OVERDUE: Duration = Duration::from_millis(400);
/// For connections to finish before the process is replaced or ends.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);
/// For the health service to take note.
const HEALTH_PATIENCE: Duration = Duration::from_millis(100);
/// For the supervisor to hear the goodbye.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(500);

/// What the node's owner asks of it.
pub(crate) enum Order {
    /// Take no new calls, or take them again.
    Drain(bool, oneshot::Sender<()>),
    /// Host one more ward.
    Add(Box<Ward>, oneshot::Sender<Result<(), Error>>),
    /// Stop this one, and host it no longer.
    Remove(String, oneshot::Sender<Result<(), Error>>),
    /// What an operator would ask of the node's own steward.
    #[cfg(any(test, feature = "testing"))]
    Ask(Event),
    /// End: drain, stop all wards in reverse order, say goodbye.
    Shutdown(oneshot::Sender<()>),
}

/// What anyone may know of a node, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSnapshot {
    /// Its wards, in start order.
    pub wards: Vec<v1::Ward>,
    /// It takes no new calls.
    pub draining: bool,
    /// A supervisor decides over its wards.
    pub attending: bool,
    /// The node itself does. Neither: the supervisor was lost and may be back any moment.
    pub alone: bool,
    /// Threads that did not return when their ward was abandoned.
    pub leaked_threads: u32,
}

/// Where snapshots are shown. They are made only if anyone looks: of a node of very many wards they would
/// be most of its memory.
pub(crate) struct Shown {
    sender: watch::Sender<Arc<NodeSnapshot>>,
    /// Handles share it, and clone it for those who look.
    _own: Arc<watch::Receiver<Arc<NodeSnapshot>>>,
}

impl Shown {
    pub(crate) fn new() -> (Self, Arc<watch::Receiver<Arc<NodeSnapshot>>>) {
        let (sender, own) = watch::channel(Arc::default());
        let own = Arc::new(own);
        (Self { sender, _own: own.clone() }, own)
    }

    fn is_looked_at(&self) -> bool {
        self.sender.receiver_count() > 1
    }
}

/// What the keeper is given.
pub(crate) struct Setup {
    pub(crate) info: v1::NodeInfo,
    pub(crate) host: Host,
    pub(crate) ways: Ways,
    /// `None`: it is hosted from code.
    pub(crate) config: Option<ConfigFile>,
    pub(crate) groups: Vec<wardkeep_steward::GroupSpec>,
    pub(crate) mandate: Mandate,
    pub(crate) supervisor: Option<session::Supervisor>,
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) health: HealthReporter,
    pub(crate) shown: Shown,
    pub(crate) orders: mpsc::Receiver<Order>,
    /// Answered on the wards' runtime.
    pub(crate) probe: Arc<Probe>,
    pub(crate) reexec: reexec::Plan,
    /// The steward may have it carried out, not only an operator.
    pub(crate) restartable: bool,
    /// Of the server, which says through `server_ended` that it has ended.
    pub(crate) ending: Ending,
    pub(crate) server_ended: CancellationToken,
    /// Nobody runs the node any more.
    pub(crate) owner_gone: CancellationToken,
    pub(crate) origin: Instant,
    /// Starts what puts names to stacks.
    pub(crate) scribe: fn() -> Scribe,
    pub(crate) ledger: Ledger,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) hooks: crate::testing::Hooks,
}

/// How the wards' runtime is asked whether it still runs tasks.
#[derive(Default)]
pub(crate) struct Probe {
    asked: Notify,
    answers: AtomicU64,
}

/// Answers for as long as this runtime runs tasks. It is asked from outside rather than by a timer, for a runtime
/// needs that at times: where a task blocks the thread that looked after timers and sockets, the others sleep
/// on, and nobody looks after those until something wakes them.
pub(crate) async fn beat(probe: Arc<Probe>) {
    loop {
        probe.asked.notified().await;
        probe.answers.fetch_add(1, Relaxed);
    }
}

/// Runs until it is told to end. The error: the node could not restart itself and must end.
pub(crate) async fn run(setup: Setup) -> Result<(), Error> {
    let (tidings, inbox) = mpsc::channel(256);
    let stop_session = CancellationToken::new();
    let mut session = JoinSet::new();
    if let Some(supervisor) = setup.supervisor.clone() {
        session.spawn(session::keep(supervisor, setup.ledger.clone(), tidings.clone(), stop_session.clone()));
    }
    let owner_gone = setup.owner_gone.clone();
    let mut keeper = Keeper {
        link: None,
        stop_session: stop_session.clone(),
        welcomed: false,
        last_lost: String::new(),
        report_sequence: 0,
        report_every: OWN_REPORTS,
        next_report: Duration::ZERO,
        lived: Duration::ZERO,
        turns: Turns::default(),
        swept_at: Duration::ZERO,
        answers: 0,
        unlived: Duration::ZERO,
        probe_seen: (0, Duration::ZERO),
        queue: Vec::new(),
        leaked_shown: 0,
        unseen: true,
        next_picture: Duration::ZERO,
        scribe: (setup.scribe)(),
        tending: tend::Tending::default(),
        waiting: Vec::new(),
        farewells: Vec::new(),
        reading: JoinSet::new(),
        applying: None,
        setup,
    };
    let ended = keeper.run(inbox, owner_gone).await;
    stop_session.cancel();
    drop(tidings);
    let _ = timeout(Duration::from_secs(1), async { while session.join_next().await.is_some() {} }).await;
    ended
}

struct Keeper {
    setup: Setup,
    link: Option<Link>,
    stop_session: CancellationToken,
    welcomed: bool,
    last_lost: String,
    report_sequence: u64,
    report_every: Duration,
    next_report: Duration,
    /// The time that this process has had.
    lived: Duration,
    /// Of that, what wards have had.
    turns: Turns,
    /// When that was last advanced.
    swept_at: Duration,
    /// Value of the probe at the last sweep.
    answers: u64,
    /// Time since the last report that is not in it.
    unlived: Duration,
    /// Last value of the probe, and since when.
    probe_seen: (u64, Duration),
    /// Actions of the own steward still to be done.
    queue: Vec<Action>,
    leaked_shown: u32,
    /// Something has changed since the last snapshot.
    unseen: bool,
    /// No snapshot is made before.
    next_picture: Duration,
    scribe: Scribe,
    tending: tend::Tending,
    /// Questions about output.
    waiting: Vec<outputs::Waiting>,
    /// Who waits for wards to be gone, by slot.
    farewells: Vec<(usize, oneshot::Sender<Result<(), Error>>)>,
    /// Its configuration file, being read.
    reading: JoinSet<apply::Asked>,
    applying: Option<apply::Applying>,
}

/// How the loop goes on.
enum Next {
    Go,
    Shutdown(oneshot::Sender<()>),
    Restart(Duration),
}

impl Keeper {
    async fn run(
        &mut self,
        mut inbox: mpsc::Receiver<Tidings>,
        owner_gone: CancellationToken,
    ) -> Result<(), Error> {
        let reports = self.setup.host.reports();
        self.queue = self.setup.mandate.take(self.now(), reports);
        self.settle().await;
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                order = self.setup.orders.recv() => match order {
                    Some(Order::Drain(on, answer)) => {
                        self.drain(on).await;
                        let _ = answer.send(());
                        Next::Go
                    }
                    Some(Order::Add(ward, answer)) => {
                        let _ = answer.send(self.admit(*ward).await.map(drop));
                        Next::Go
                    }
                    Some(Order::Remove(ward, answer)) => { self.remove(&ward, answer); Next::Go }
                    #[cfg(any(test, feature = "testing"))]
                    Some(Order::Ask(event)) => {
                        let actions = self.setup.mandate.step(self.now(), event);
                        self.queue.extend(actions);
                        Next::Go
                    }
                    Some(Order::Shutdown(done)) => Next::Shutdown(done),
                    None => Next::Shutdown(oneshot::channel().0),
                },
                // The future that ran the node was dropped.
                () = owner_gone.cancelled() => Next::Shutdown(oneshot::channel().0),
                Some(tidings) = inbox.recv() => self.hear(tidings).await,
                noticed = self.setup.host.noticed() => { self.setup.host.settle(noticed); Next::Go }
                Some(Ok(asked)) = self.reading.join_next() => { self.apply(asked).await; Next::Go }
                _ = sweep.tick() => { self.sweep(); Next::Go }
            };
            self.settle().await;
            match next {
                Next::Go => {}
                Next::Shutdown(done) => {
                    self.leave(false, None, &mut inbox).await;
                    let _ = done.send(());
                    return Ok(());
                }
                Next::Restart(drain) => {
                    self.leave(true, Some(drain), &mut inbox).await;
                    // Whoever wants the node to end wants it more than whoever wanted it anew.
                    if let Ok(Order::Shutdown(done)) = self.setup.orders.try_recv() {
                        let _ = done.send(());
                        return Ok(());
                    }
                    return Err(self.setup.reexec.execute(&self.setup.host.held()));
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.setup.origin.elapsed()
    }

    fn name(&self) -> &str {
        &self.setup.info.name
    }

    // --- what happens ---

    async fn hear(&mut self, tidings: Tidings) -> Next {
        match tidings {
            Tidings::Dialled(link) => {
                self.link = Some(link);
                self.welcomed = false;
                self.waiting.clear();
                let hello = self.hello();
                self.setup.mandate.told();
                self.send(Up::Hello(hello));
                Next::Go
            }
            Tidings::Lost(why) => {
                self.link = None;
                self.waiting.clear();
                let now = self.now();
                if std::mem::take(&mut self.welcomed) || self.last_lost != why {
                    tracing::warn!(node = %self.name(), "no session with the supervisor: {why}");
                }
                self.last_lost = why;
                self.setup.mandate.session_lost(now);
                self.publish();
                Next::Go
            }
            Tidings::Down(message) => match message.kind {
                Some(Down::Welcome(welcome)) => {
                    self.welcome(&welcome);
                    Next::Go
                }
                Some(Down::Command(command)) => self.obey(command).await,
                Some(Down::ReadOutput(asked)) => {
                    self.asked_for_output(asked);
                    Next::Go
                }
                Some(Down::Legacy(legacy)) => {
                    self.inherit(&legacy);
                    Next::Go
                }
                // A message of a later version: nothing we could do about it.
                None => Next::Go,
            },
        }
    }

    fn welcome(&mut self, welcome: &v1::Welcome) {
        #[cfg(any(test, feature = "testing"))]
        if self.setup.hooks.has(crate::testing::Flaw::ForgetsEpochs) {
            self.setup.mandate.forget_epoch();
        }
        let grace = wire::to_duration(welcome.mandate_grace).unwrap_or(Duration::from_secs(2));
        if !self.setup.mandate.hand_over(welcome.epoch, grace) {
            tracing::warn!(
                epoch = welcome.epoch,
                highest = self.setup.mandate.epoch(),
                "a steward of an old epoch is not obeyed"
            );
            self.link = None;
            return;
        }
        #[cfg(any(test, feature = "testing"))]
        self.setup.hooks.obeyed(welcome.epoch);
        self.queue.clear();
        self.welcomed = true;
        self.last_lost.clear();
        self.report_every = wire::to_duration(welcome.pulse_interval)
            .unwrap_or(Duration::from_millis(500))
            .clamp(Duration::from_millis(20), Duration::from_secs(60));
        self.next_report = self.now();
        tracing::info!(node = %self.name(), epoch = welcome.epoch, "attends the supervisor");
        self.publish();
    }

    fn inherit(&mut self, legacy: &v1::Legacy) {
        let (host, node) = (&self.setup.host, self.setup.info.name.as_str());
        let ward = |slot| host.name(slot).map(|ward| WardId::new(node, ward));
        let inherited = wire::legacy(legacy, self.now(), self.setup.mandate.boot(), ward);
        self.setup.mandate.inherit(inherited);
    }

    /// Sweeps the hearts, reports when it is time, takes the mandate when nobody has it.
    fn sweep(&mut self) {
        let now = self.now();
        wardkeep_proto::error::tell_kept_back(Instant::now());
        // A process that was frozen, or a thread that got no turn, has not worked meanwhile: such
        // time does not make work overdue.
        let turn = now.saturating_sub(self.swept_at);
        self.unlived += turn.saturating_sub(LONGEST_TURN);
        let turn = turn.min(LONGEST_TURN);
        self.lived += turn;
        self.swept_at = now;
        let answers = self.setup.probe.answers.load(Relaxed);
        self.turns.pass(turn, std::mem::replace(&mut self.answers, answers) != answers);
        self.setup.probe.asked.notify_one();
        self.setup.host.sweep(self.turns.had());
        if let Some(usages) = self.tending.turn(&mut self.setup.host, now) {
            self.publish();
            if self.welcomed {
                self.send(Up::Usages(usages));
            }
        }
        self.answer_waiting();
        self.show();
        if self.setup.mandate.grace_is_over(now) {
            tracing::warn!(node = %self.name(), "no supervisor for too long: the node heals its own wards now");
            self.report_every = OWN_REPORTS;
            let reports = self.setup.host.reports();
            self.queue.extend(self.setup.mandate.take(now, reports));
            self.publish();
        }
        if self.welcomed
            && self.link.is_some()
            && let Some(records) = self.scribe.next(&self.setup.ledger)
        {
            self.send(Up::Errors(records));
        }
        if now >= self.next_report {
            self.next_report = now + self.report_every;
            self.report(now);
        }
        if self.setup.mandate.next_wake().is_some_and(|due| due <= now) {
            let actions = self.setup.mandate.step(now, Event::Tick);
            self.queue.extend(actions);
        }
    }

    fn runtime_lag(&mut self, now: Duration) -> Duration {
        let count = self.setup.probe.answers.load(Relaxed);
        if count != self.probe_seen.0 {
            self.probe_seen = (count, now);
        }
        let silent = now.saturating_sub(self.probe_seen.1);
        if silent < PROBE_OVERDUE { Duration::ZERO } else { silent }
    }

    fn report(&mut self, now: Duration) {
        let lag = self.runtime_lag(self.lived);
        let beats = self.setup.host.beats(self.turns.had());
        let slept = std::mem::take(&mut self.unlived);
        if self.setup.mandate.is_own() {
            let node: Arc<str> = self.setup.info.name.as_str().into();
            if !slept.is_zero() {
                let actions = self.setup.mandate.step(now, Event::NodeSlept { node: node.clone(), slept });
                self.queue.extend(actions);
            }
            let actions = self.setup.mandate.step(now, Event::Report { node, runtime_lag: lag, beats });
            self.queue.extend(actions);
            return;
        }
        self.report_sequence += 1;
        let report = v1::Report {
            sequence: self.report_sequence,
            runtime_lag_ms: u32::try_from(lag.as_millis()).unwrap_or(u32::MAX),
            leaked_threads: self.setup.host.leaked(),
            unlived_ms: u32::try_from(slept.as_millis()).unwrap_or(u32::MAX),
            ..wire::report(&beats)
        };
        self.send(Up::Report(report));
    }

    // --- what follows from it ---

    /// Tells the steward in charge of every change, and does what it wants, until all is quiet. What is only to be
    /// read comes after what heals.
    async fn settle(&mut self) {
        let mut touched = false;
        loop {
            for change in self.setup.host.take_changes() {
                touched = true;
                self.tell(change).await;
            }
            let actions = std::mem::take(&mut self.queue);
            let quiet = actions.is_empty();
            touched |= !quiet;
            let mut notes = Vec::new();
            for action in actions {
                match action {
                    Action::Note(note) => notes.push(note),
                    deed => self.act(deed),
                }
            }
            if touched {
                // The thread that is to run what was just started may wait for this very core.
                std::thread::yield_now();
            }
            self.setup.host.write_down();
            notes.iter().for_each(|note| self.keep_note(note));
            if quiet {
                break;
            }
        }
        touched |= self.see_off().await;
        self.go_on_applying();
        let leaked = self.setup.host.leaked();
        if std::mem::replace(&mut self.leaked_shown, leaked) != leaked || touched {
            self.publish();
        }
    }

    async fn tell(&mut self, change: v1::WardChange) {
        let slot = change.slot as usize;
        let Some(ward) = self.setup.host.name(slot) else { return };
        self.show_health(slot, change.state()).await;
        if self.setup.host.is_leaving(slot) {
            return;
        }
        if self.setup.mandate.is_own() {
            let now = self.now();
            if let Some(event) = wire::ward_event(WardId::new(self.name(), ward), &change) {
                let actions = self.setup.mandate.step(now, event);
                self.queue.extend(actions);
            }
        }
        self.send(Up::WardChange(change));
    }

    /// Does what the node's own steward wants.
    fn act(&mut self, action: Action) {
        let host = &mut self.setup.host;
        let done = match action {
            Action::Start { ward, after_incarnation, .. } => {
                host.slot(&ward.ward).map_or(Ok(()), |slot| host.start(slot, after_incarnation))
            }
            Action::Stop { ward, incarnation, grace, .. } => {
                host.slot(&ward.ward).map_or(Ok(()), |slot| host.stop(slot, incarnation, Some(grace)))
            }
            Action::Hold { ward, incarnation, quarantined } => {
                host.slot(&ward.ward).map_or(Ok(()), |slot| host.hold(slot, incarnation, quarantined))
            }
            Action::Release { ward, incarnation } => {
                host.slot(&ward.ward).map_or(Ok(()), |slot| host.release(slot, incarnation))
            }
            // A process cannot start itself anew when it has ended.
            // Nobody told the node's own steward that its process can be launched or restarted. A note is kept, not done.
            Action::Launch { .. } | Action::RestartNode { .. } | Action::Note(_) => Ok(()),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "the order came too late");
        }
    }

    fn keep_note(&mut self, note: &Note) {
        // That it attends itself is no news, and a start is told once: when the ward runs.
        if matches!(note.what, What::NodeAttended { .. } | What::WardStarting) {
            return;
        }
        let mut event = story::event(note);
        event.decision = story::decision(note, |group| self.setup.mandate.period(group));
        let error = event.error.as_ref().map(|e| e.id.as_str());
        tracing::info!(target: "steward", error, "{}: {}", event.ward, event.text);
        self.setup.mandate.remember(event);
    }

    /// The health service stands on the wards' runtime; where that is stuck it may never let go of
    /// its lock, and is not worth being stuck for as well.
    async fn set_health(&self, service: &str, status: ServingStatus) {
        if timeout(HEALTH_PATIENCE, self.setup.health.set_service_status(service, status)).await.is_err() {
            tracing::warn!(node = %self.name(), service, "health cannot be shown: its lock is held");
        }
    }

    async fn show_health(&self, slot: usize, state: v1::WardState) {
        let serving = serving(state == v1::WardState::Running && !self.setup.draining.load(Relaxed));
        for service in self.setup.host.services(slot) {
            self.set_health(service, serving).await;
        }
    }

    async fn drain(&mut self, on: bool) {
        self.setup.draining.store(on, Relaxed);
        self.set_health("", serving(!on)).await;
        for slot in self.setup.host.slots() {
            if let Some(ward) = self.setup.host.view_of(slot) {
                self.show_health(slot, ward.state()).await;
            }
        }
        self.send(Up::DrainChange(v1::DrainChange { draining: on }));
        self.publish();
    }

    fn hello(&self) -> v1::Hello {
        let highest_epoch = self.setup.mandate.epoch();
        #[cfg(any(test, feature = "testing"))]
        let highest_epoch =
            if self.setup.hooks.has(crate::testing::Flaw::ForgetsEpochs) { 0 } else { highest_epoch };
        v1::Hello {
            protocol: 1,
            node: Some(self.setup.info.clone()),
            wards: self.wards_to_tell(),
            slots: self.setup.host.view_slots(),
            groups: self.setup.groups.iter().map(wire::group_spec_message).collect(),
            highest_epoch,
            draining: self.setup.draining.load(Relaxed),
            history: self.setup.mandate.history().to_vec(),
            restartable: self.setup.restartable,
            at: Some(timestamp(Utc::now())),
        }
    }

    /// All wards, with what the own steward has decided about them: a restart it counted is not to be counted again.
    fn wards_to_tell(&self) -> Vec<v1::Ward> {
        let mut wards = self.setup.host.view();
        for ward in &mut wards {
            let name = ward.spec.as_ref().map(|spec| spec.name.as_str()).unwrap_or_default();
            if self.setup.mandate.is_to_restart(name) {
                ward.set_state(v1::WardState::Backoff);
            }
        }
        wards
    }

    /// Up to the supervisor, if there is a session. One that does not read loses its session, and
    /// with the next one everything is told anew.
    fn send(&mut self, kind: Up) {
        if let Some(link) = &self.link
            && let Err(message) = link.send(v1::NodeMessage { kind: Some(kind) })
        {
            self.link = None;
            if let Some(Up::Errors(records)) = message.kind {
                self.setup.ledger.give_back(records);
            }
        }
    }

    /// The last errors of a node that leaves: why its wards failed to stop well, say.
    async fn send_last_errors(&mut self) {
        while self.link.is_some() {
            match self.scribe.next(&self.setup.ledger) {
                Some(records) => self.send(Up::Errors(records)),
                None if self.scribe.is_busy() => tokio::time::sleep(Duration::from_millis(5)).await,
                None => return,
            }
        }
    }

    /// Shows how the node is, if anyone looks: at once, but where there are many wards not all the time.
    fn publish(&mut self) {
        self.unseen = true;
        self.show();
    }

    /// How the node was at last.
    fn show_last(&mut self) {
        (self.unseen, self.next_picture) = (true, Duration::ZERO);
        self.show();
    }

    fn show(&mut self) {
        let begun = self.now();
        if !self.unseen || begun < self.next_picture || !self.setup.shown.is_looked_at() {
            return;
        }
        self.unseen = false;
        self.setup.shown.sender.send_replace(Arc::new(NodeSnapshot {
            wards: self.setup.host.view(),
            draining: self.setup.draining.load(Relaxed),
            attending: self.welcomed,
            alone: self.setup.mandate.is_own(),
            leaked_threads: self.setup.host.leaked(),
        }));
        let now = self.now();
        self.next_picture = now + (now.saturating_sub(begun) * PICTURE_SHARE).min(LONGEST_UNSEEN);
    }
}

fn serving(yes: bool) -> ServingStatus {
    if yes { ServingStatus::Serving } else { ServingStatus::NotServing }
}
