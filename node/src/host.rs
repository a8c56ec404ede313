//! The host: owns the state of every ward of a node, starts and stops them, and writes down each
//! change. It decides nothing: a steward does.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{
            AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use chrono::Utc;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::JoinSet,
};
use wardkeep_proto::{Error, duration, timestamp, v1};
use wardkeep_steward::{Beats, Phase, WardReport, WorkBeat};

use crate::{
    census::{Census, Usage},
    context::{Home, Incarnation},
    error::NodeError,
    heart::{Delta, Sweep},
    ledger::Ledger,
    panics::Contained,
    text::cut,
    ward::{self, Ended, Route, Seat, Shared, Ward, guard::Guard, output::Tail, task},
    wire,
};

/// Longest line that a ward has about itself.
const LONGEST_STATUS: usize = 512;
/// Longest text of an error within a message about a ward; the ledger has more of it.
const LONGEST_WHAT: usize = 2_048;
const MOST_CAUSES: usize = 4;

/// See the [module](self).
pub(crate) struct Host {
    home: Arc<Home>,
    /// By slot, which is also their start order.
    wards: Vec<Hosted>,
    next_slot: u32,
    /// Slots in the order of the wards' names.
    by_name: Vec<u32>,
    runs: JoinSet<(usize, u64, Ended)>,
    /// What is left of incarnations that ended: calls that may finish, threads that do not return.
    rests: JoinSet<()>,
    readies: FuturesUnordered<BoxFuture<'static, Option<(usize, u64)>>>,
    leaked: Arc<AtomicU32>,
    changes: Vec<v1::WardChange>,
    /// Errors that are still to be written down.
    unwritten: Vec<Error>,
    /// A test wants it not to wait until a ward has stopped.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) hurries: bool,
}

/// There may be very many of them: what an idle task has no use for is made when it is first needed.
struct Hosted {
    /// Never used again for another ward of this node.
    slot: u32,
    ward: Ward,
    /// The present incarnation runs as the ward was described before.
    outdated: bool,
    /// It is being removed: no steward knows of it any more, and it is not started again.
    leaving: bool,
    /// The latest one.
    incarnation: Option<Arc<Incarnation>>,
    /// `None`: it does not run.
    control: Option<Control>,
    sweep: Sweep,
    phase: Phase,
    /// An operator stopped it: it stays so whoever is steward.
    held: bool,
    /// It was no operator: a steward gave up on it.
    quarantined: bool,
    /// The latest incarnation ended by a failure.
    failed: bool,
    number: u64,
    /// In milliseconds of Unix time; 0: never.
    started_at: i64,
    more: Option<Box<More>>,
}

/// What is known of wards that do more than pulse.
#[derive(Default)]
struct More {
    /// Of a service.
    route: Option<Arc<Route>>,
    last_error_id: String,
    status: String,
    /// Told so far: see [`Route`].
    fenced: u64,
    work_begun: u64,
    work_ended: u64,
    oldest_work: Option<Duration>,
    /// Where its program is, for as long as it runs.
    seat: Seat,
    usage: Option<Usage>,
    measured_at: chrono::DateTime<Utc>,
    /// What its program printed, if it is one.
    tail: Option<Arc<Tail>>,
}

/// How a running incarnation is told to stop.
enum Control {
    /// A task of its own. It tells its end by itself.
    Task(task::Running),
    /// A task of ours watches over it.
    Watched(watch::Sender<Option<Duration>>),
    /// A task that was told.
    Stopping,
}

/// Something the host noticed by itself.
pub(crate) enum Noticed {
    Ready(usize, u64),
    Ended(usize, u64, Ended),
    /// Leftovers of an old incarnation ended after all.
    RestGone,
}

impl Host {
    pub(crate) fn new(
        node: Arc<str>,
        runtime: Handle,
        wards: Vec<(Ward, Option<Arc<Route>>)>,
        ledger: Ledger,
    ) -> Self {
        let mut specs = HashMap::new();
        let hosted = |(slot, (mut ward, route)): (u32, (Ward, Option<Arc<Route>>))| {
            ward.spec = specs.entry(ward.spec.clone()).or_insert(ward.spec).clone();
            Hosted::new(slot, ward, route)
        };
        let wards: Vec<_> = (0..).zip(wards).map(hosted).collect();
        let next_slot = wire_slot(wards.len());
        let mut by_name: Vec<_> = (0..next_slot).collect();
        by_name.sort_unstable_by_key(|slot: &u32| &wards[*slot as usize].ward.name);
        Self {
            home: Home::new(node, runtime, ledger, Arc::default()),
            wards,
            next_slot,
            by_name,
            runs: JoinSet::new(),
            rests: JoinSet::new(),
            readies: FuturesUnordered::new(),
            leaked: Arc::default(),
            changes: Vec::new(),
            unwritten: Vec::new(),
            #[cfg(any(test, feature = "testing"))]
            hurries: false,
        }
    }

    /// Hosts a ward, the last in the start order, under a name that no other has. Its slot.
    pub(crate) fn add(&mut self, ward: Ward, route: Option<Arc<Route>>) -> usize {
        let slot = self.next_slot;
        self.next_slot += 1;
        let (Ok(at) | Err(at)) = self.named(ward.name());
        self.by_name.insert(at, slot);
        self.wards.push(Hosted::new(slot, ward, route));
        slot as usize
    }

    /// Describes a ward anew. What its program is begins with its next incarnation, the rest holds at once.
    pub(crate) fn describe(&mut self, slot: usize, ward: Ward, outdated: bool) {
        let Some(hosted) = self.at_mut(slot) else { return };
        let tail = hosted.more.as_ref().and_then(|more| more.tail.as_ref());
        if let (Some(tail), Some(ward::Watched::Process(program))) = (tail, ward.work.watched()) {
            tail.limit(program.output);
        }
        hosted.outdated |= outdated && hosted.control.is_some();
        hosted.ward = ward;
    }

    /// The ward is to go: it is not started again, and no longer shown. To be stopped by the caller.
    pub(crate) fn dismiss(&mut self, slot: usize) {
        if let Some(hosted) = self.at_mut(slot) {
            hosted.leaving = true;
        }
    }

    /// Wards that are to go and do not run any more.
    pub(crate) fn departed(&self) -> Vec<usize> {
        let gone = self.wards.iter().filter(|hosted| hosted.leaving && hosted.control.is_none());
        gone.map(|hosted| hosted.slot as usize).collect()
    }

    /// It is gone.
    pub(crate) fn forget(&mut self, slot: usize) -> Option<Ward> {
        let index = self.index(slot)?;
        self.by_name.retain(|other| *other as usize != slot);
        Some(self.wards.remove(index).ward)
    }

    pub(crate) fn is_leaving(&self, slot: usize) -> bool {
        self.at(slot).is_none_or(|hosted| hosted.leaving)
    }

    /// Wards that run as they were described before, in start order.
    pub(crate) fn outdated(&self) -> Vec<String> {
        let outdated = self.wards.iter().filter(|hosted| hosted.outdated && !hosted.leaving);
        outdated.map(|hosted| hosted.ward.name().to_owned()).collect()
    }

    /// All of them, with where calls find them.
    pub(crate) fn routes(&self) -> impl Iterator<Item = (&Ward, Option<&Arc<Route>>)> + Clone {
        self.wards
            .iter()
            .map(|hosted| (&hosted.ward, hosted.more.as_ref().and_then(|more| more.route.as_ref())))
    }

    /// Slots in start order, of wards that are to go, too.
    pub(crate) fn slots(&self) -> Vec<usize> {
        self.wards.iter().map(|hosted| hosted.slot as usize).collect()
    }

    fn index(&self, slot: usize) -> Option<usize> {
        // While none has left, a slot is a position.
        match self.wards.get(slot) {
            Some(hosted) if hosted.slot as usize == slot => Some(slot),
            _ => self.wards.binary_search_by_key(&slot, |hosted| hosted.slot as usize).ok(),
        }
    }

    fn at(&self, slot: usize) -> Option<&Hosted> {
        self.wards.get(self.index(slot)?)
    }

    fn at_mut(&mut self, slot: usize) -> Option<&mut Hosted> {
        let index = self.index(slot)?;
        self.wards.get_mut(index)
    }

    /// Takes over what a former image of this process held.
    pub(crate) fn hold_as_before(&mut self, held: &[(String, bool)]) {
        for (name, quarantined) in held {
            if let Some(hosted) = self.slot(name).and_then(|slot| self.at_mut(slot)) {
                (hosted.held, hosted.quarantined) = (true, *quarantined);
                hosted.phase = hosted.rest();
            }
        }
    }

    /// What stays down until someone starts it: names, and whether they are quarantined.
    pub(crate) fn held(&self) -> Vec<(String, bool)> {
        let held = self.wards.iter().filter(|hosted| hosted.held && !hosted.leaving);
        held.map(|hosted| (hosted.ward.name().to_owned(), hosted.quarantined)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.wards.len()
    }

    /// Of a ward that is not to go.
    pub(crate) fn slot(&self, ward: &str) -> Option<usize> {
        let at = self.named(ward).ok()?;
        let slot = self.by_name[at] as usize;
        (!self.is_leaving(slot)).then_some(slot)
    }

    /// Where it is among the names, or would be.
    fn named(&self, ward: &str) -> Result<usize, usize> {
        let name = |slot: &u32| self.at(*slot as usize).map_or("", |hosted| hosted.ward.name());
        self.by_name.binary_search_by(|slot| name(slot).cmp(ward))
    }

    pub(crate) fn name(&self, slot: usize) -> Option<Arc<str>> {
        self.at(slot).map(|hosted| hosted.ward.name.clone())
    }

    /// Full names of the gRPC services it answers.
    pub(crate) fn services(&self, slot: usize) -> &[String] {
        self.at(slot).map(|hosted| hosted.ward.services()).unwrap_or_default()
    }

    pub(crate) fn leaked(&self) -> u32 {
        self.leaked.load(Relaxed)
    }

    /// What ends the programs' own children if this process is killed.
    pub(crate) fn guard(&self) -> &Guard {
        &self.home.guard
    }

    /// What a ward's program printed; `None` if it is no process ward.
    pub(crate) fn output(&self, slot: usize) -> Option<&Tail> {
        self.at(slot)?.more.as_ref()?.tail.as_deref()
    }

    pub(crate) fn runs_programs(&self) -> bool {
        self.wards.iter().any(|hosted| hosted.seat().is_some())
    }

    /// Writes down what programs use, and says what has been written down.
    pub(crate) fn measure(&mut self, census: &Census) -> v1::Usages {
        let at = Utc::now();
        let mut wards = Vec::new();
        for hosted in self.wards.iter_mut().filter(|hosted| !hosted.leaving) {
            let Some(group) = hosted.seat() else { continue };
            let slot = hosted.slot;
            let mut usage = census.usage(group);
            let more = hosted.more();
            // What a process used is not counted any more once it is gone and nobody waited for it.
            usage.cpu = usage.cpu.max(more.usage.map(|before| before.cpu).unwrap_or_default());
            (more.usage, more.measured_at) = (Some(usage), at);
            wards.push(v1::WardUsage { slot, incarnation: hosted.number, usage: hosted.usage() });
        }
        v1::Usages { wards }
    }

    /// Starts the ward's next incarnation, unless it has gone on since `after`.
    ///
    /// # Errors
    /// [`NodeError::OtherIncarnation`] for a late or repeated order.
    pub(crate) fn start(&mut self, slot: usize, after: u64) -> Result<(), Error> {
        let home = self.home.clone();
        let hosted = self.get(slot)?;
        if hosted.leaving || hosted.control.is_some() || hosted.number != after {
            return Err(hosted.other_incarnation(after));
        }
        hosted.number += 1;
        (hosted.held, hosted.quarantined, hosted.failed) = (false, false, false);
        hosted.outdated = false;
        hosted.phase = Phase::Starting;
        hosted.started_at = Utc::now().timestamp_millis();
        if let Some(more) = &mut hosted.more {
            more.status = String::new();
            (more.work_ended, more.oldest_work) = (more.work_begun, None);
            // As the heart: one that was left behind has its own.
            (more.seat, more.usage) = (Seat::default(), None);
        }
        let number = hosted.number;
        // With a heart of its own: what an abandoned incarnation still does is not this one's doing.
        let stall_timeout = hosted.ward.spec.stall_timeout;
        let place = hosted.slot;
        let incarnation = Incarnation::new(home, hosted.ward.name.clone(), place, number, stall_timeout);
        hosted.incarnation = Some(incarnation.clone());
        hosted.sweep = Sweep::default();
        match hosted.ward.work.clone() {
            ward::Work::Task(factory) => {
                hosted.control = Some(Control::Task(factory.launch(incarnation)));
                self.note(slot, None);
                // It is ready as soon as it is told to run.
                self.settle(Noticed::Ready(slot, number));
            }
            ward::Work::Watched(work) => {
                self.watch(slot, number, *work, incarnation);
                self.note(slot, None);
            }
        }
        Ok(())
    }

    fn watch(&mut self, slot: usize, number: u64, work: ward::Watched, incarnation: Arc<Incarnation>) {
        let (leaked, guard) = (self.leaked.clone(), self.home.guard.clone());
        let Some(hosted) = self.at_mut(slot) else { return };
        let (stop, stopped) = watch::channel(None);
        let (ready, is_ready) = oneshot::channel();
        hosted.control = Some(Control::Watched(stop));
        let name = hosted.ward.name.clone();
        let more = hosted.more();
        let route = more.route.clone().unwrap_or_else(|| Route::new(name, None));
        let shared = Shared { leaked, guard, seat: more.seat.clone(), tail: more.tail.clone() };
        self.runs.spawn(async move {
            let announce = move || {
                let _ = ready.send(());
            };
            let run = Contained::new(ward::run(work, route, incarnation, stopped, shared, announce));
            (slot, number, run.await.unwrap_or_else(Ended::by_bug))
        });
        self.readies.push(Box::pin(async move { is_ready.await.ok().map(|()| (slot, number)) }));
    }

    /// Remembers that the ward stays down once it is, until it is told to start.
    ///
    /// # Errors
    /// [`NodeError::OtherIncarnation`] if it has gone on.
    pub(crate) fn hold(&mut self, slot: usize, incarnation: u64, quarantined: bool) -> Result<(), Error> {
        let hosted = self.get(slot)?;
        if hosted.number != incarnation {
            return Err(hosted.other_incarnation(incarnation));
        }
        (hosted.held, hosted.quarantined) = (true, quarantined);
        if hosted.control.is_none() {
            hosted.phase = hosted.rest();
        }
        Ok(())
    }

    /// Need not stay down, when this incarnation, which lives, has ended.
    ///
    /// # Errors
    /// [`NodeError::OtherIncarnation`] if it has gone on.
    pub(crate) fn release(&mut self, slot: usize, incarnation: u64) -> Result<(), Error> {
        let hosted = self.get(slot)?;
        if hosted.number != incarnation || hosted.control.is_none() {
            return Err(hosted.other_incarnation(incarnation));
        }
        (hosted.held, hosted.quarantined) = (false, false);
        Ok(())
    }

    /// Sends this incarnation down the stop ladder. Nothing happens to a ward that does not run.
    ///
    /// # Errors
    /// [`NodeError::OtherIncarnation`] if it is not the present one.
    pub(crate) fn stop(
        &mut self,
        slot: usize,
        incarnation: u64,
        grace: Option<Duration>,
    ) -> Result<(), Error> {
        let leaked = self.leaked.clone();
        let hosted = self.get(slot)?;
        if hosted.number != incarnation {
            return Err(hosted.other_incarnation(incarnation));
        }
        let grace = grace.unwrap_or(hosted.ward.spec.grace);
        let told = hosted.incarnation.clone();
        let mut stopping = None;
        match hosted.control.take().zip(told) {
            None => return Ok(()),
            Some((Control::Watched(stop), _)) => {
                stop.send_replace(Some(grace));
                hosted.control = Some(Control::Watched(stop));
            }
            Some((Control::Task(running), told)) => {
                hosted.control = Some(Control::Stopping);
                told.ordered.store(true, SeqCst);
                stopping = Some(task::stop(running, told, grace, leaked));
            }
            Some((Control::Stopping, _)) => hosted.control = Some(Control::Stopping),
        }
        hosted.phase = Phase::Stopping;
        if let Some(stopping) = stopping {
            self.runs.spawn(async move { (slot, incarnation, stopping.await) });
        }
        self.note(slot, None);
        #[cfg(any(test, feature = "testing"))]
        if self.hurries {
            self.ended(slot, incarnation, Ended::new(v1::ExitKind::Stopped));
        }
        Ok(())
    }

    /// What a ward is allowed at its stop.
    pub(crate) fn grace(&self, slot: usize) -> Duration {
        self.at(slot).map_or(Duration::ZERO, |hosted| hosted.ward.spec.grace)
    }

    /// The longest that any is allowed.
    pub(crate) fn longest_grace(&self) -> Duration {
        self.wards.iter().map(|hosted| hosted.ward.spec.grace).max().unwrap_or_default()
    }

    /// The present incarnation, if it has not ended.
    pub(crate) fn running(&self, slot: usize) -> Option<u64> {
        self.at(slot).filter(|hosted| hosted.control.is_some()).map(|hosted| hosted.number)
    }

    /// Waits until something happens to a ward. Cancel safe.
    pub(crate) async fn noticed(&mut self) -> Noticed {
        let home = self.home.clone();
        loop {
            tokio::select! {
                biased;
                (incarnation, ended) = home.ends.next() => {
                    return Noticed::Ended(incarnation.slot as usize, incarnation.number, Ended {
                        rest: task::rest_of(incarnation, self.leaked.clone()).map(|rest| rest.boxed()),
                        ..ended
                    });
                }
                Some(ready) = self.readies.next() => {
                    if let Some((slot, number)) = ready {
                        return Noticed::Ready(slot, number);
                    }
                }
                Some(ended) = self.runs.join_next() => {
                    // A run neither panics (it is contained) nor is it aborted.
                    if let Ok((slot, number, ended)) = ended {
                        return Noticed::Ended(slot, number, ended);
                    }
                }
                Some(_) = self.rests.join_next() => return Noticed::RestGone,
                else => std::future::pending().await,
            }
        }
    }

    /// Writes down what was noticed.
    pub(crate) fn settle(&mut self, noticed: Noticed) {
        match noticed {
            Noticed::Ready(slot, number) => {
                let Some(hosted) = self.at_mut(slot) else { return };
                if hosted.number == number && hosted.phase == Phase::Starting {
                    hosted.phase = Phase::Running;
                    self.note(slot, None);
                }
            }
            Noticed::Ended(slot, number, ended) => self.ended(slot, number, ended),
            Noticed::RestGone => {}
        }
    }

    fn ended(&mut self, slot: usize, number: u64, ended: Ended) {
        if let Some(rest) = ended.rest {
            self.rests.spawn(rest);
        }
        let home = self.home.clone();
        let Some(hosted) = self.at_mut(slot) else { return };
        // A task that ended by itself just when it was told to stop is told of twice.
        if hosted.number != number || hosted.control.take().is_none() {
            return;
        }
        hosted.outdated = false;
        if let Some(more) = &mut hosted.more {
            more.oldest_work = None;
            // Where it ended by itself this has been done; a bug of ours must not leave a dead route.
            if let Some(route) = &more.route {
                route.current.store(None);
            }
        }
        hosted.phase = hosted.rest();
        hosted.failed = !matches!(ended.kind, v1::ExitKind::Done | v1::ExitKind::Stopped);
        let error = ended.error.map(|e| e.at(&home.node, &hosted.ward.name, number));
        if let Some(error) = &error {
            let more = hosted.more();
            error.id().clone_into(&mut more.last_error_id);
            error.what().clone_into(&mut more.status);
            cut(&mut more.status, LONGEST_STATUS);
        }
        // A failed call has been logged where it failed; a task or a program has not.
        if hosted.ward.kind() != v1::WardKind::Service {
            self.unwritten.extend(error.clone());
        }
        let exit = v1::Exit {
            kind: ended.kind.into(),
            error: error.map(short),
            traceparent: ended.traceparent.as_deref().unwrap_or_default().to_owned(),
        };
        self.note(slot, Some(exit));
    }

    fn note(&mut self, slot: usize, exit: Option<v1::Exit>) {
        let Some(hosted) = self.at(slot) else { return };
        let change = v1::WardChange {
            slot: wire_slot(slot),
            incarnation: hosted.number,
            state: wire::state(hosted.phase).into(),
            exit,
            status: hosted.more.as_ref().map(|more| more.status.clone()).unwrap_or_default(),
            at: Some(timestamp(Utc::now())),
            fenced_replies: hosted.fenced(),
        };
        self.changes.push(change);
    }

    /// The changes since the last call, in order.
    pub(crate) fn take_changes(&mut self) -> Vec<v1::WardChange> {
        std::mem::take(&mut self.changes)
    }

    /// Logs the errors that wards ended with, and keeps their records. A ward need not wait for that to be started
    /// again.
    pub(crate) fn write_down(&mut self) {
        self.unwritten.drain(..).for_each(|error| self.home.ledger.write(&error));
    }

    /// Turns the rings of all hearts and takes note of what wards say of themselves.
    pub(crate) fn sweep(&mut self, now: Duration) {
        for index in 0..self.wards.len() {
            let hosted = &mut self.wards[index];
            let Some(incarnation) = &hosted.incarnation else { continue };
            hosted.sweep.turn(&incarnation.heart, now);
            if hosted.has_news() {
                let slot = hosted.slot as usize;
                self.note(slot, None);
            }
        }
    }

    /// The heartbeats since the last call.
    pub(crate) fn beats(&mut self, now: Duration) -> Beats {
        let mut beats = Beats::default();
        for hosted in self.wards.iter_mut().filter(|hosted| !hosted.leaving) {
            let slot = hosted.slot;
            let Some(incarnation) = &hosted.incarnation else { continue };
            if hosted.sweep.pulsed(&incarnation.heart) {
                beats.pulsed.push(slot);
            }
            let Some(Delta { begun, ended, oldest }) = hosted.sweep.delta(&incarnation.heart, now) else {
                continue;
            };
            let more = hosted.more();
            more.work_begun += u64::from(begun);
            more.work_ended += u64::from(ended);
            more.oldest_work = oldest;
            if begun > 0 || ended > 0 || oldest.is_some() {
                beats.worked.push(WorkBeat { slot, begun, ended, oldest });
            }
        }
        beats
    }

    /// All wards as they are now.
    pub(crate) fn view(&self) -> Vec<v1::Ward> {
        self.shown().map(|hosted| hosted.view(&self.home.node)).collect()
    }

    /// One ward as it is now.
    pub(crate) fn view_of(&self, slot: usize) -> Option<v1::Ward> {
        self.at(slot).map(|hosted| hosted.view(&self.home.node))
    }

    /// The slots of those in [`Self::view`]; empty if they are their positions.
    pub(crate) fn view_slots(&self) -> Vec<u32> {
        let slots = || self.shown().map(|hosted| hosted.slot);
        if slots().zip(0..).all(|(slot, position)| position == slot) {
            return Vec::new();
        }
        slots().collect()
    }

    fn shown(&self) -> impl Iterator<Item = &Hosted> {
        self.wards.iter().filter(|hosted| !hosted.leaving)
    }

    /// All wards as a steward is told of them, each in its slot.
    pub(crate) fn reports(&self) -> Vec<WardReport> {
        let mut reports = Vec::with_capacity(self.next_slot as usize);
        for hosted in self.shown() {
            reports.resize_with(hosted.slot as usize, WardReport::nobody);
            reports.push(hosted.report());
        }
        reports.resize_with(self.next_slot as usize, WardReport::nobody);
        reports
    }

    /// One ward as a steward is told of it.
    pub(crate) fn report_of(&self, slot: usize) -> Option<WardReport> {
        self.at(slot).map(Hosted::report)
    }

    fn get(&mut self, slot: usize) -> Result<&mut Hosted, Error> {
        let node = self.home.node.clone();
        self.at_mut(slot)
            .ok_or_else(|| NodeError::Misconfigured(format!("node {node} has no ward in slot {slot}")).into())
    }
}

/// The error as a message about its ward carries it: one ward's words must not fill a session.
fn short(error: Error) -> v1::Error {
    let mut record = error.into_proto();
    if cut(&mut record.what, LONGEST_WHAT) {
        record.truncated.push("what".to_owned());
    }
    record.causes.truncate(MOST_CAUSES);
    for cause in &mut record.causes {
        cut(&mut cause.what, LONGEST_WHAT);
    }
    record
}

/// On the wire.
pub(crate) fn wire_slot(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

impl Hosted {
    fn new(slot: u32, ward: Ward, route: Option<Arc<Route>>) -> Self {
        let tail = match ward.work.watched() {
            Some(ward::Watched::Process(program)) => Some(Arc::new(Tail::new(program.output))),
            _ => None,
        };
        let more = route.is_some() || tail.is_some();
        Self {
            slot,
            outdated: false,
            leaving: false,
            ward,
            incarnation: None,
            control: None,
            sweep: Sweep::default(),
            phase: Phase::Stopped,
            held: false,
            quarantined: false,
            failed: false,
            number: 0,
            started_at: 0,
            more: more.then(|| Box::new(More { route, tail, ..More::default() })),
        }
    }

    fn report(&self) -> WardReport {
        WardReport {
            spec: self.ward.promises(),
            phase: self.phase,
            incarnation: self.number,
            held: self.held,
            failed: self.failed,
        }
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    fn seat(&self) -> Option<i32> {
        self.more.as_ref()?.seat.group()
    }

    fn other_incarnation(&self, asked: u64) -> Error {
        NodeError::OtherIncarnation { ward: self.ward.name().to_owned(), asked, present: self.number }.into()
    }

    /// Where it is when it does not run.
    fn rest(&self) -> Phase {
        if self.quarantined { Phase::Quarantined } else { Phase::Stopped }
    }

    fn view(&self, node: &str) -> v1::Ward {
        let spec = self.ward.promises();
        let mut view = v1::Ward {
            node: node.to_owned(),
            spec: Some(wire::ward_spec_message(&spec, self.ward.kind(), self.ward.services())),
            state: wire::state(self.phase).into(),
            verdict: v1::Verdict::Healthy.into(),
            incarnation: self.number,
            started_at: chrono::DateTime::from_timestamp_millis(self.started_at)
                .filter(|_| self.started_at > 0)
                .map(timestamp),
            restarts: self.number.saturating_sub(1),
            held: self.held,
            failed: self.failed,
            usage: self.usage(),
            fenced_replies: self.fenced(),
            ..Default::default()
        };
        if let Some(more) = &self.more {
            view.last_error_id = more.last_error_id.clone();
            view.status = more.status.clone();
            view.work_in_progress = more.work_begun.saturating_sub(more.work_ended);
            view.oldest_work = more.oldest_work.map(duration);
            view.work_done = more.work_ended;
        }
        view
    }

    /// Replies of incarnations that were left behind.
    fn fenced(&self) -> u64 {
        let route = self.more.as_ref().and_then(|more| more.route.as_ref());
        route.map_or(0, |route| route.fenced.load(Relaxed))
    }

    /// What it says of itself has changed, or more of its replies were fenced off.
    fn has_news(&mut self) -> bool {
        let fenced = self.fenced();
        let known = self.more.as_ref().map_or((0, ""), |more| (more.fenced, more.status.as_str()));
        let runs = self.control.is_some();
        let status = self.incarnation.as_ref().and_then(|incarnation| incarnation.status());
        let said = status.filter(|said| runs && !said.is_empty() && **said != known.1).map(|said| {
            let mut said = said.clone();
            cut(&mut said, LONGEST_STATUS);
            said
        });
        let said = said.filter(|said| said != known.1);
        if fenced == known.0 && said.is_none() {
            return false;
        }
        let more = self.more();
        more.fenced = fenced;
        if let Some(said) = said {
            more.status = said;
        }
        true
    }

    fn usage(&self) -> Option<v1::ProcessUsage> {
        let more = self.more.as_ref()?;
        let (usage, group) = (more.usage?, more.seat.group()?);
        Some(v1::ProcessUsage {
            pid: group.unsigned_abs(),
            processes: usage.processes,
            cpu: Some(duration(usage.cpu)),
            resident_bytes: usage.resident,
            at: Some(timestamp(more.measured_at)),
        })
    }
}
