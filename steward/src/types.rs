//! The vocabulary of the steward: what it is told, what it answers.

use std::{fmt, sync::Arc, time::Duration};

use crate::slots::Slots;

/// A point in time: the distance from an origin the caller chose once and keeps (monotonic).
pub type Time = Duration;

/// The name of a node.
pub type NodeName = Arc<str>;

/// A ward, by node and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WardId {
    /// The node that hosts it.
    pub node: NodeName,
    /// Its name on that node.
    pub ward: Arc<str>,
}

impl WardId {
    /// Names a ward.
    pub fn new(node: impl Into<Arc<str>>, ward: impl Into<Arc<str>>) -> Self {
        Self { node: node.into(), ward: ward.into() }
    }
}

impl fmt::Display for WardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.ward)
    }
}

/// OTP's restart types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Restart {
    /// Always restarted.
    #[default]
    Permanent,
    /// Restarted unless it ended well.
    Transient,
    /// Never restarted.
    Temporary,
}

/// OTP's strategies: who is restarted beside the ward that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Nobody.
    #[default]
    OneForOne,
    /// All of the group.
    OneForAll,
    /// Those that start after it.
    RestForOne,
}

/// OTP's automatic shutdown: whether a group ends because its significant members have ended, for
/// good and by themselves. Its other members are stopped in reverse start order; they rest until the
/// group is restarted by the one it is in, or an operator starts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AutoShutdown {
    /// It does not.
    #[default]
    Never,
    /// As soon as one of them has.
    AnySignificant,
    /// When the last that was active has.
    AllSignificant,
}

/// What follows when a group in no other group gives up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Escalate {
    /// Its node's process is started anew, if all of it is on one node, the ward that failed is
    /// [in the process](WardSpec::in_process), the node can be restarted, and neither it nor the fleet
    /// had such a restart lately ([`Config::escalation_pause`], [`Config::escalation_gap`]). Otherwise
    /// the group is quarantined.
    #[default]
    Node,
    /// It is quarantined.
    Quarantine,
}

/// What a ward promises and how it is treated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WardSpec {
    /// Name, unique on its node.
    pub name: Arc<str>,
    /// Group; `None` is the node's own group.
    pub group: Option<Arc<str>>,
    /// What follows its end.
    pub restart: Restart,
    /// A unit of work older than this is a stall. `None`: work may take for ever.
    pub stall_timeout: Option<Duration>,
    /// A pulse is due at least this often. `None`: it need not pulse.
    pub pulse_timeout: Option<Duration>,
    /// It must be ready this long after its start. `None`: unlimited.
    pub start_timeout: Option<Duration>,
    /// What an ordinary stop allows before it becomes forceful: `ZERO` is OTP's `brutal_kill`, `MAX`
    /// its `infinity`.
    pub grace: Duration,
    /// Started by an operator only.
    pub manual_start: bool,
    /// Its end counts for its group's [`AutoShutdown`]. Without a meaning for permanent wards.
    pub significant: bool,
    /// It runs in the process of its node (a task, a service), not in one of its own.
    pub in_process: bool,
}

impl WardSpec {
    /// A permanent ward in its node's process, without timeouts and with a grace of 5 s.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            group: None,
            restart: Restart::Permanent,
            stall_timeout: None,
            pulse_timeout: None,
            start_timeout: None,
            grace: Duration::from_secs(5),
            manual_start: false,
            significant: false,
            in_process: true,
        }
    }
}

/// Wards that share a strategy and a budget of restarts.
///
/// A group can be a member of another, its `parent`: it stands there where the first of its wards
/// stands, and one that gives up or shuts down is for its parent a member that ended well (OTP's exit
/// reason `shutdown`): restarted if permanent, as a whole and with a new budget of restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Name. A node's own group is named `NODE/` by [`GroupSpec::of_node`].
    pub name: Arc<str>,
    /// Who is restarted with whom.
    pub strategy: Strategy,
    /// At most this many restarts in `period`, else the group gives up.
    pub intensity: u32,
    /// See `intensity`.
    pub period: Duration,
    /// Pauses between restarts.
    pub backoff: Backoff,
    /// The group it is a member of. One that would close a circle, or nest groups more than 16 deep,
    /// counts as none.
    pub parent: Option<Arc<str>>,
    /// What follows its end, if it has a parent.
    pub restart: Restart,
    /// Its end counts for its parent's [`AutoShutdown`]. Without a meaning for permanent groups.
    pub significant: bool,
    /// Whether it ends when its significant members have.
    pub auto_shutdown: AutoShutdown,
    /// What follows when it gives up, if it has no parent.
    pub escalate: Escalate,
}

impl GroupSpec {
    /// One-for-one, 5 restarts in 30 s, default backoff, permanent, in no other group, [`Escalate::Node`].
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            strategy: Strategy::OneForOne,
            intensity: 5,
            period: Duration::from_secs(30),
            backoff: Backoff::default(),
            parent: None,
            restart: Restart::Permanent,
            significant: false,
            auto_shutdown: AutoShutdown::Never,
            escalate: Escalate::Node,
        }
    }

    /// The group of the wards of a node that name none.
    pub fn of_node(node: &str) -> Self {
        Self::new(format!("{node}/"))
    }
}

/// The pause before a restart: none before the first in a row, then `first`, doubled each time up
/// to `max`, each between half and the whole of that (jitter). After `reset` without a failure the
/// next is a first one again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the second restart in a row.
    pub first: Duration,
    /// Upper limit.
    pub max: Duration,
    /// Quiet period that forgets.
    pub reset: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            max: Duration::from_secs(30),
            reset: Duration::from_secs(60),
        }
    }
}

/// What holds for the whole fleet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Nodes are asked to report this often.
    pub pulse_interval: Duration,
    /// A silence shorter than this is never a verdict.
    pub silence_floor: Duration,
    /// A silence longer than this always is.
    pub silence_ceiling: Duration,
    /// The suspicion (phi, Hayashibara et al. 2004) between the two that is a verdict.
    pub phi_threshold: f64,
    /// A node's runtime that has not run a due probe for so long is stalled.
    pub runtime_stall: Duration,
    /// Restarts of the whole fleet: at most this many at once ...
    pub restart_burst: u32,
    /// ... and one more each such interval. What is over budget waits.
    pub restart_refill: Duration,
    /// An unreachable node with a launcher is restarted out of band after this silence.
    pub relaunch_after: Duration,
    /// A node is restarted by escalation (see [`Escalate`]) at most once in this time ...
    pub escalation_pause: Duration,
    /// ... and only one node of the fleet in this.
    pub escalation_gap: Duration,
    /// More threads than this that abandoned wards have left behind escalate to their node's restart.
    pub leaked_threads: u32,
    /// A process that was launched has so long to attend; then it is launched anew.
    pub attend_timeout: Duration,
    /// A gap between two steps longer than this means that the steward itself was late.
    pub own_lateness: Duration,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pulse_interval: Duration::from_millis(500),
            silence_floor: Duration::from_millis(1_500),
            silence_ceiling: Duration::from_millis(2_500),
            phi_threshold: 8.0,
            runtime_stall: Duration::from_secs(2),
            restart_burst: 50,
            restart_refill: Duration::from_millis(100),
            relaunch_after: Duration::from_secs(15),
            escalation_pause: Duration::from_secs(3_600),
            escalation_gap: Duration::from_secs(300),
            leaked_threads: 16,
            attend_timeout: Duration::from_secs(60),
            own_lateness: Duration::from_secs(1),
            seed: 0,
        }
    }
}

/// What a node says of one ward when its session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WardReport {
    /// Its spec.
    pub spec: WardSpec,
    /// Where it is.
    pub phase: Phase,
    /// Its latest incarnation; 0 if it never started.
    pub incarnation: u64,
    /// It was told to stay down ([`Action::Hold`]) and has not been started since.
    pub held: bool,
    /// Its latest incarnation ended by a failure ([`ExitKind::is_failure`]).
    pub failed: bool,
}

impl WardReport {
    /// Stands in the slot of a ward that has left, so that those after it keep theirs.
    pub fn nobody() -> Self {
        let spec = WardSpec::new("");
        Self { spec, phase: Phase::Stopped, incarnation: 0, held: false, failed: false }
    }

    pub(crate) fn is_nobody(&self) -> bool {
        self.spec.name.is_empty()
    }
}

/// Where a ward is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not running, and nobody wants it to.
    Stopped,
    /// Told to start, not yet ready.
    Starting,
    /// Ready.
    Running,
    /// Told to stop, not yet ended.
    Stopping,
    /// Waits for its restart.
    Backoff,
    /// The steward gave up on it; an operator's start brings it back.
    Quarantined,
}

/// How an incarnation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitKind {
    /// By itself, and well.
    Done,
    /// With an error, or an exit code other than 0.
    Failed,
    /// By a panic.
    Panicked,
    /// As it was told to.
    Stopped,
    /// Not at all: it was told to, and had to be fenced and left behind.
    Abandoned,
    /// Before it began: it could not be started.
    StartFailed,
}

impl ExitKind {
    /// Whether `transient` wards are restarted after it.
    pub fn is_failure(self) -> bool {
        !matches!(self, ExitKind::Done | ExitKind::Stopped)
    }
}

/// What is known of a ward's or node's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Nothing wrong is known.
    #[default]
    Healthy,
    /// Exited or panicked.
    Crashed,
    /// A unit of work, or the ward's pulse, is overdue.
    Stalled,
    /// The pulse thread beats, the async runtime does not.
    RuntimeStalled,
    /// Nothing arrives.
    Unreachable,
}

/// Why something is done: carried from the event to the actions and notes it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// A short reason for people ("panicked", "work overdue for 1.2 s", "asked by ana@ops: deploy").
    pub reason: String,
    /// The well-formed error behind it.
    pub error_id: Option<Arc<str>>,
    /// W3C traceparent of the call that led here.
    pub traceparent: Option<Arc<str>>,
}

/// The heartbeats of a node's wards since its last report. Wards go by slot: the place in the list that
/// the node attached with, those that joined since after them in order. The slot of a ward that left is
/// not given to another one. Slots that no ward has are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beats {
    /// Slots of wards that pulsed.
    pub pulsed: Slots,
    /// Wards that began or ended work, or have some in progress. Of the others, none is.
    pub worked: Vec<WorkBeat>,
}

/// The work lane of one ward since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkBeat {
    /// The ward.
    pub slot: u32,
    /// Units of work begun.
    pub begun: u32,
    /// Units of work ended.
    pub ended: u32,
    /// Age of the oldest unit in progress.
    pub oldest: Option<Duration>,
}

/// What the steward is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node's session began. Its running wards are adopted as they are; what should run and does
    /// not is started.
    NodeAttached {
        /// Its name.
        node: NodeName,
        /// Its boot ID: another one means that everything it ran before is gone.
        boot: u128,
        /// Its wards, in start order.
        wards: Vec<WardReport>,
        /// Groups it declares. What is already known under a name stays.
        groups: Vec<GroupSpec>,
    },
    /// A node's session ended.
    NodeDetached {
        /// Its name.
        node: NodeName,
        /// It said goodbye: its silence is no failure.
        goodbye: bool,
    },
    /// An attached node hosts one more ward, the last in its start order and in the next slot (or an old
    /// one with another spec, which keeps its place). As in [`Event::NodeAttached`], it is started if it should run.
    WardJoined {
        /// Its node.
        node: NodeName,
        /// The ward.
        ward: WardReport,
    },
    /// A group is described anew. It holds from now on; nothing is restarted for it.
    GroupDescribed {
        /// What it is from now on.
        group: GroupSpec,
        /// The node that declares it. `None`: it is configured, and wins over what nodes declare under the
        /// same name, as with [`Steward::with_groups`](crate::Steward::with_groups).
        by: Option<NodeName>,
    },
    /// Someone describes a group no longer. If nobody does, it has the default strategy and limits for as long
    /// as there are wards in it.
    GroupWithdrawn {
        /// Its name.
        group: Arc<str>,
        /// The node that declared it. `None`: it was configured.
        by: Option<NodeName>,
    },
    /// A node no longer hosts a ward. What is known of it is forgotten; nothing is stopped.
    WardLeft {
        /// The ward.
        ward: WardId,
    },
    /// Someone (a launcher) can start this node's process anew.
    NodeLaunchable {
        /// Its name.
        node: NodeName,
        /// How long the launcher may take: the node is waited for so much longer.
        takes: Duration,
        /// The launcher has not started it by itself: if it does not attend within
        /// [`Config::relaunch_after`], it is launched.
        awaited: bool,
    },
    /// Nobody can any longer. One that has never attended is forgotten.
    NodeUnlaunchable {
        /// Its name.
        node: NodeName,
    },
    /// An operator wants a node's process started anew by its launcher, now.
    LaunchNode {
        /// Its name.
        node: NodeName,
        /// Who and why.
        cause: Cause,
    },
    /// The launcher has done its part: the node is waited for from now on.
    NodeLaunched {
        /// Its name.
        node: NodeName,
    },
    /// The launcher could not do it: it is tried again, with longer and longer pauses, for as long as
    /// the node stays away.
    LaunchFailed {
        /// Its name.
        node: NodeName,
        /// Why.
        cause: Cause,
    },
    /// Another steward, which had authority over an attached node's wards for a while, restarted one of them, or a
    /// group it is in. It counts as if this steward had.
    RestartTold {
        /// The ward, or the one that led to the restart of its group.
        ward: WardId,
        /// The group that was restarted as a whole, if it was not the ward alone.
        group: Option<Arc<str>>,
        /// The group whose restarts it is one of. One that the ward is not in counts nothing.
        counts_for: Arc<str>,
        /// Groups within it that began anew: what was counted of them is forgotten.
        anew: Vec<Arc<str>>,
        /// When it was decided, on this steward's clock.
        at: Time,
    },
    /// An attached node's next report is about a time in part of which the node did not run (it was frozen, or got no
    /// turn), and so no ward on it could pulse.
    NodeSlept {
        /// Its name.
        node: NodeName,
        /// That part.
        slept: Duration,
    },
    /// This boot of an attached node can be told to start its process anew.
    NodeRestartable {
        /// Its name.
        node: NodeName,
    },
    /// How many threads abandoned wards have left behind on an attached node.
    ThreadsLeaked {
        /// Its name.
        node: NodeName,
        /// All of them.
        threads: u32,
    },
    /// The launcher saw the node's process end.
    NodeProcessExited {
        /// Its name.
        node: NodeName,
        /// How it ended.
        cause: Cause,
    },
    /// A report arrived.
    Report {
        /// Its node.
        node: NodeName,
        /// How long the node's runtime has been overdue.
        runtime_lag: Duration,
        /// What its wards have done.
        beats: Beats,
    },
    /// A ward is ready.
    WardRunning {
        /// The ward.
        ward: WardId,
        /// Its incarnation.
        incarnation: u64,
    },
    /// A ward was told to start and is on its way.
    WardStarting {
        /// The ward.
        ward: WardId,
        /// Its new incarnation.
        incarnation: u64,
    },
    /// An incarnation ended.
    WardExited {
        /// The ward.
        ward: WardId,
        /// The incarnation that ended.
        incarnation: u64,
        /// How.
        kind: ExitKind,
        /// Error and trace, where there are some.
        cause: Cause,
    },
    /// An operator wants a ward started (this lifts a quarantine).
    StartWard {
        /// The ward.
        ward: WardId,
        /// Who and why.
        cause: Cause,
    },
    /// An operator wants a ward stopped; it stays so.
    StopWard {
        /// The ward.
        ward: WardId,
        /// Who and why.
        cause: Cause,
    },
    /// An operator wants a ward restarted. Costs nothing of the intensity.
    RestartWard {
        /// The ward.
        ward: WardId,
        /// Who and why.
        cause: Cause,
    },
    /// Time passed. To be sent at [`crate::Steward::next_wake`] at the latest.
    Tick,
}

/// What the steward wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a ward that does not run.
    Start {
        /// The ward.
        ward: WardId,
        /// The incarnation that ended before: a node that has gone on refuses.
        after_incarnation: u64,
        /// Why.
        cause: Cause,
    },
    /// Take an incarnation down the stop ladder. It answers with [`Event::WardExited`].
    Stop {
        /// The ward.
        ward: WardId,
        /// This one and no other.
        incarnation: u64,
        /// Patience before force.
        grace: Duration,
        /// Why.
        cause: Cause,
    },
    /// Have the node remember that this ward stays down until someone starts it, whoever is steward
    /// then: an operator stopped it, or it is quarantined.
    Hold {
        /// The ward.
        ward: WardId,
        /// Its latest incarnation.
        incarnation: u64,
        /// It is quarantined: to be reported as [`Phase::Quarantined`].
        quarantined: bool,
    },
    /// Have the node forget a [`Action::Hold`] of this incarnation, which lives on: it was told to stay down once
    /// it would have ended, and an operator started it before.
    Release {
        /// The ward.
        ward: WardId,
        /// This one and no other.
        incarnation: u64,
    },
    /// Start the node's process anew through its launcher (ending the old one if it still exists).
    Launch {
        /// The node.
        node: NodeName,
        /// Why.
        cause: Cause,
    },
    /// Drain a node and start its process anew.
    RestartNode {
        /// The node.
        node: NodeName,
        /// Why.
        cause: Cause,
    },
    /// Tell whoever listens.
    Note(Note),
}

/// A decision or observation worth keeping: the material of `wardkeep events` and `explain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The node it is about, if one.
    pub node: Option<NodeName>,
    /// The ward it is about, if one.
    pub ward: Option<WardId>,
    /// The ward's incarnation then; 0 if not about a ward.
    pub incarnation: u64,
    /// What happened.
    pub what: What,
    /// What led to it.
    pub cause: Cause,
    /// Of a decision about restarts, or about a group: how far it reaches.
    pub reach: Option<Box<Reach>>,
}

/// How far a decision reaches: what is to be remembered of it until it is seen through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Wards that are to start, in start order; those that run are stopped first. Wards of nodes that are
    /// away are not among them.
    pub starts: Vec<WardId>,
    /// Wards that end and are to rest.
    pub ends: Vec<WardId>,
    /// Groups that begin anew (what was counted of them is forgotten), or that end.
    pub groups: Vec<Arc<str>>,
    /// The group whose restarts this is one of, or would have been.
    pub counts_for: Option<Arc<str>>,
    /// A group ends, and this one, which it is in, is going to restart it or to give up itself.
    pub escalates_to: Option<Arc<str>>,
}

/// What a [`Note`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A session began; `again` if the same boot was known before.
    NodeAttended {
        /// Same boot ID as before.
        again: bool,
    },
    /// A session ended.
    NodeLeft {
        /// On purpose.
        goodbye: bool,
    },
    /// The verdict on a node changed.
    NodeVerdict(Verdict),
    /// The node's process is started anew, after `delay`.
    NodeLaunch {
        /// Pause before it.
        delay: Duration,
    },
    /// The node is drained and its process started anew, as the last way before a quarantine, or because
    /// it has leaked too many threads.
    NodeRestart {
        /// The group that gave up.
        group: Option<Arc<str>>,
    },
    /// A node that was to restart has not.
    NodeNotRestarted,
    /// The steward asked for a start.
    WardStarting,
    /// A ward is ready.
    WardRunning,
    /// An incarnation ended.
    WardExited(ExitKind),
    /// Something is wrong with a ward.
    WardVerdict(Verdict),
    /// A restart was decided.
    WardRestart {
        /// Restarts of the group within its period, this one included.
        recent: u32,
        /// How many are allowed.
        intensity: u32,
        /// Pause before it.
        delay: Duration,
    },
    /// Too many restarts: the group's wards are stopped and quarantined.
    GroupGaveUp {
        /// The group.
        group: Arc<str>,
        /// Restarts seen within the period.
        recent: u32,
    },
    /// Too many restarts in a group within another: its wards are stopped, then its parent decides.
    GroupFailed {
        /// The group.
        group: Arc<str>,
        /// Restarts seen within the period.
        recent: u32,
    },
    /// The restart of a whole group was decided by the group it is in.
    GroupRestart {
        /// The group.
        group: Arc<str>,
        /// Restarts of its parent within the period, this one included.
        recent: u32,
        /// How many are allowed.
        intensity: u32,
        /// Pause before it.
        delay: Duration,
    },
    /// Its significant members have ended: the group's other wards are stopped.
    GroupShutDown {
        /// The group.
        group: Arc<str>,
    },
    /// An operator asked for something.
    Asked(Asked),
    /// The steward was late itself, or most nodes fell silent together: it grants more patience.
    DoubtsItself {
        /// The extra patience.
        patience: Duration,
    },
    /// Restarts wait for the fleet's restart budget.
    BudgetSpent,
    /// A message about an older incarnation or boot was dropped.
    StaleDropped,
}

/// What operators ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// Start.
    Start,
    /// Stop.
    Stop,
    /// Restart.
    Restart,
}

/// What is known of a ward, for show.
#[derive(Clone, Debug, PartialEq)]
pub struct WardView<'a> {
    /// Its name.
    pub id: &'a WardId,
    /// Its spec.
    pub spec: WardSpec,
    /// Where it is.
    pub phase: Phase,
    /// Health.
    pub verdict: Verdict,
    /// Latest incarnation.
    pub incarnation: u64,
    /// Restarts by the steward.
    pub restarts: u64,
    /// Error of its last failure.
    pub last_error_id: Option<&'a Arc<str>>,
    /// Units in progress.
    pub in_progress: u64,
    /// Units ended in this incarnation.
    pub work_ended: u64,
    /// Age of the oldest unit in progress, at the time asked for.
    pub oldest_work: Option<Duration>,
    /// Its work has taken more than half of what it may, at the time asked for: it is no verdict yet.
    pub suspected: bool,
    /// When its restart is due.
    pub restart_due: Option<Time>,
}

/// What is known of a node, for show.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView<'a> {
    /// Its name.
    pub name: &'a NodeName,
    /// Boot ID of its latest session.
    pub boot: u128,
    /// It has a session now.
    pub attached: bool,
    /// Health.
    pub verdict: Verdict,
    /// Healthy by the verdict, but later than it should be: its report, or its runtime.
    pub suspected: bool,
    /// When it was last heard.
    pub last_heard: Option<Time>,
}

/// What is known of a group, for show.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupView<'a> {
    /// Its spec.
    pub spec: &'a GroupSpec,
    /// The group it is a member of.
    pub parent: Option<&'a Arc<str>>,
    /// Its own wards (not those of groups in it) in start order.
    pub members: Vec<WardId>,
    /// Restarts within the period, at the time asked for.
    pub recent: u32,
    /// It gave up and nobody has brought it back.
    pub gave_up: bool,
}
