//! The faults, what is promised about each, and how that is found to hold or not.

mod containers;
mod network;
mod nodes;
mod report;
pub mod soak;
mod strangers;
mod supervisors;
mod wards;

use std::{
    future::Future,
    path::Path as FilePath,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;
use wardkeep_proto::v1::{EventKind, GetFleetRequest, Verdict, operator_client::OperatorClient};

pub use self::report::{Row, table};

use crate::{
    Outcome, Trying as _,
    answer::Path,
    cluster::{Cluster, Options, Picture},
    load::{Load, Pace, Tally},
    observe::Observer,
    world::Powers,
};

/// Calls that are made before a fault, and after it.
const BREATH: u64 = 60;
/// A node that is killed is noticed within a round trip, which is nothing here, and this.
pub const NOTICE_A_DEATH: Duration = Duration::from_millis(100);
/// Silence is noticed within this.
pub const NOTICE_SILENCE: Duration = Duration::from_secs(3);

/// A fault that the suite can make.
#[derive(Clone, Copy)]
pub struct Fault {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What holds meanwhile, beside what always does: no wrong answer, none lost, no restart of what was well.
    pub promised: &'static str,
    /// It is among those that CI makes.
    pub short: bool,
    /// What the cluster is made of.
    pub home: Home,
    needs: Needs,
    /// Calls may fail: no healthy replica is left for a while.
    may_fail: bool,
    /// It is to be noticed within this.
    notice: Option<Duration>,
    cluster: fn(Powers) -> Options,
    pace: fn() -> Pace,
    inject: Inject,
}

/// Makes the fault and waits until it has healed.
type Inject = for<'a> fn(&'a mut Scene) -> Pin<Box<dyn Future<Output = Outcome<Finding>> + Send + 'a>>;

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Processes of this machine.
    Process,
    /// Containers of its engine.
    Docker,
}

impl Home {
    /// How the report has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
        }
    }
}

/// What a fault cannot be made without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    Network,
    Mount,
    Faketime,
    Failpoints,
    Docker,
}

impl Needs {
    /// Why it cannot be made here.
    fn lacking(self, powers: Powers) -> Option<&'static str> {
        match self {
            Self::Network if !powers.network => Some("needs root, iproute2 and nft"),
            Self::Mount if !powers.mount => Some("needs root"),
            Self::Faketime if powers.faketime.is_none() => Some("needs Debian's libfaketime"),
            Self::Docker if !powers.docker => Some("Docker does not answer"),
            Self::Failpoints if !cfg!(debug_assertions) => Some("needs a debug build"),
            _ => None,
        }
    }
}

/// A cluster under load, and someone who watches.
pub struct Scene {
    /// It.
    pub cluster: Cluster,
    /// Hears what the supervisor tells.
    pub observer: Observer,
    /// What goes on meanwhile.
    pub load: Load,
    /// How it was before the fault.
    pub before: Picture,
    /// When the fault began.
    pub begun: Instant,
    /// What this machine allows.
    pub powers: Powers,
    /// For whatever is random.
    pub seed: u64,
}

/// What a fault was seen to do.
#[derive(Debug, Default)]
pub struct Finding {
    /// The fault was noticed, so long after it began.
    detected: Option<Duration>,
    /// All was well again, so long after it began.
    healed: Option<Duration>,
    /// Nodes whose process may have been started anew for it.
    nodes: Vec<Path>,
    /// Wards that may have been restarted for it.
    wards: Vec<(Path, &'static str)>,
    /// Calls beside those of the load.
    more: Tally,
    /// What was promised and did not hold.
    broken: Vec<String>,
}

impl Finding {
    /// Only if the condition holds is the promise kept.
    fn holds(&mut self, condition: bool, otherwise: impl FnOnce() -> String) {
        if !condition {
            self.broken.push(otherwise());
        }
    }
}

impl Scene {
    /// The fault begins now.
    fn begin(&mut self) -> Instant {
        self.begun = Instant::now();
        self.begun
    }

    /// Waits until all is well, and wards and nodes are as wished. How long after the fault's beginning.
    async fn heals(&self, is: impl Fn(&Picture) -> bool) -> Option<Duration> {
        self.cluster.until(crate::cluster::PATIENCE, is).await.ok()?;
        self.cluster.well(crate::cluster::PATIENCE).await.ok()?;
        Some(self.begun.elapsed())
    }

    /// As it was before the fault: which start of the node, and which incarnation of its ward.
    fn was(&self, path: Path) -> (u32, String) {
        self.before.get(path.name()).map(|facts| (facts.pid, facts.boot.clone())).unwrap_or_default()
    }

    fn incarnation(picture: &Picture, path: Path, ward: &str) -> u64 {
        picture.get(path.name()).and_then(|facts| facts.wards.get(ward)).copied().unwrap_or(0)
    }

    /// Whether the node's process is another one, or anew, since before the fault.
    fn is_anew(&self, picture: &Picture, path: Path) -> bool {
        picture.get(path.name()).is_some_and(|facts| facts.boot != self.was(path).1)
    }

    async fn is_judged(&self, path: Path, verdict: Verdict) -> Option<Duration> {
        self.observer.judges_node(path.name(), verdict, self.begun).await
    }
}

/// All faults, in the order in which they are made.
pub fn all() -> Vec<Fault> {
    let parts = [nodes::FAULTS, wards::FAULTS, supervisors::FAULTS, network::FAULTS, strangers::FAULTS];
    [&parts.concat(), containers::FAULTS].concat()
}

impl Fault {
    /// Why it cannot be made here.
    pub fn lacking(&self, powers: Powers) -> Option<&'static str> {
        self.needs.lacking(powers)
    }

    /// Starts a cluster, makes the fault, and says what came of it. `program` is this suite's, or, for a cluster of
    /// containers, the image that has it.
    pub async fn row(&self, program: &FilePath, powers: Powers, seed: u64) -> Row {
        let mut row = Row::of(self);
        match self.scene(program, powers, seed).await {
            Ok(mut scene) => {
                if let Err(stuck) = self.play(&mut scene, &mut row).await {
                    row.broken.push(stuck.to_string());
                }
                self.close(scene, &mut row).await;
            }
            Err(stuck) => row.broken.push(stuck.to_string()),
        }
        row.ok = row.broken.is_empty();
        row
    }

    async fn scene(&self, program: &FilePath, powers: Powers, seed: u64) -> Outcome<Scene> {
        let cluster = match self.home {
            Home::Process => Cluster::start(program, (self.cluster)(powers), seed).await?,
            Home::Docker => Cluster::start_in_containers(&program.to_string_lossy()).await?,
        };
        let observer = Observer::begin(cluster.operator()).await;
        let load = Load::begin(&cluster.uri(), (self.pace)(), seed)?;
        load.goes_on(BREATH).await;
        let before = cluster.picture().await?;
        Ok(Scene { cluster, observer, load, before, begun: Instant::now(), powers, seed })
    }

    async fn play(&self, scene: &mut Scene, row: &mut Row) -> Outcome<()> {
        let machine = RoundTrips::begin(scene.cluster.operator());
        let found = (self.inject)(scene).await?;
        let round_trip = machine.slowest();
        scene.load.goes_on(BREATH).await;
        let after = scene.cluster.well(crate::cluster::PATIENCE).await.trying("afterwards")?;
        row.count_restarts(&scene.before, &after, &found);
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        (row.detected_ms, row.healed_ms) = (found.detected.map(millis), found.healed.map(millis));
        row.add(&found.more);
        row.broken.extend(found.broken);
        if let Some(within) = self.notice
            && found.detected.is_none_or(|took| took > within + round_trip)
        {
            row.broken.push(format!("to be noticed within {within:?} and a round trip of {round_trip:?}"));
        }
        if found.healed.is_none() {
            row.broken.push("did not heal".to_owned());
        }
        // What was told has been written, and is there for whoever asks later.
        let gaps = history_gaps(scene).await?;
        if gaps > 0 {
            row.broken.push(format!("{gaps} events that were told are not in the history"));
            row.lost += gaps;
        }
        Ok(())
    }

    async fn close(&self, scene: Scene, row: &mut Row) {
        let tally = scene.load.cease().await;
        row.add(&tally);
        if row.wrong > 0 {
            row.broken.push("wrong answers".to_owned());
        }
        if row.lost > 0 {
            row.broken.push("calls that never ended".to_owned());
        }
        if row.failed > 0 && !self.may_fail {
            row.broken.push(format!("{} failed calls: {}", row.failed, row.told.join("; ")));
        }
        if row.false_restarts > 0 {
            row.broken.push(format!("{} restarts of what was well", row.false_restarts));
        }
        if !row.broken.is_empty() {
            row.story = story(&scene.observer);
        }
        drop(scene.observer);
        if let Err(stuck) = scene.cluster.stop().await {
            row.broken.push(stuck.to_string());
        }
    }
}

/// How long it takes to ask the supervisor something and be answered, while a fault lasts. On a machine that is
/// busy with other things that is long, and nothing can be noticed sooner.
struct RoundTrips {
    slowest: Arc<Mutex<Duration>>,
    _asking: JoinSet<()>,
}

impl RoundTrips {
    fn begin(mut operator: OperatorClient<Channel>) -> Self {
        let slowest = Arc::new(Mutex::new(Duration::ZERO));
        let told = slowest.clone();
        let mut asking = JoinSet::new();
        asking.spawn(async move {
            loop {
                let begun = Instant::now();
                // One that is not answered, because the supervisor is what is broken, tells nothing.
                if operator.get_fleet(GetFleetRequest {}).await.is_ok() {
                    let mut slowest = told.lock().unwrap_or_else(PoisonError::into_inner);
                    *slowest = slowest.max(begun.elapsed());
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        Self { slowest, _asking: asking }
    }

    fn slowest(&self) -> Duration {
        *self.slowest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of the events that were told are not kept.
async fn history_gaps(scene: &Scene) -> Outcome<u64> {
    let mut operator = scene.cluster.operator();
    let request = wardkeep_proto::v1::WatchEventsRequest::default();
    let mut kept = operator.watch_events(request).await.trying("the history")?.into_inner();
    let mut sequences = std::collections::HashSet::new();
    // What is told after this question need not be among the answers.
    let told = scene.observer.all();
    while let Some(event) = kept.message().await.trying("the history")? {
        sequences.insert((event.sequence, event.text));
    }
    let missing =
        told.iter().filter(|seen| !sequences.contains(&(seen.event.sequence, seen.event.text.clone())));
    Ok(missing.count() as u64)
}

/// What the supervisor told, for whoever reads of a promise that did not hold.
fn story(observer: &Observer) -> Vec<String> {
    let all = observer.all();
    let first = all.first().map(|seen| seen.at);
    let told = all.iter().filter(|seen| seen.event.kind() != EventKind::WardStarted).map(|seen| {
        let after = first.map_or(0, |first| (seen.at - first).as_millis());
        format!("{after:>7} ms  {}/{} {}", seen.event.node, seen.event.ward, seen.event.text)
    });
    let told: Vec<String> = told.collect();
    told[told.len().saturating_sub(30)..].to_vec()
}

/// A while in which nothing is to happen.
async fn quiet(time: Duration) {
    sleep(time).await;
}

fn plain(_: Powers) -> Options {
    Options::default()
}

fn usual() -> Pace {
    Pace::default()
}

/// What most faults have in common.
const TEMPLATE: Fault = Fault {
    name: "",
    promised: "",
    short: false,
    home: Home::Process,
    needs: Needs::Nothing,
    may_fail: false,
    notice: None,
    cluster: plain,
    pace: usual,
    inject: |_| Box::pin(async { Ok(Finding::default()) }),
};
