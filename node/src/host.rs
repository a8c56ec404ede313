//! The host: owns the state of every ward of a node, starts and stops them, and writes down each
//! change. It decides nothing: a steward does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::Utc;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::JoinSet,
};
use wardkeep_proto::{Error, duration, timestamp, v1};
use wardkeep_steward::Phase;

use crate::{
    census::{Census, Usage},
    context::Incarnation,
    error::NodeError,
    heart::{Delta, Heart, Sweep},
    ledger::Ledger,
    panics::Contained,
    text::cut,
    ward::{self, Ended, Route, Seat, Shared, Ward, guard::Guard, output::Tail},
    wire,
};

/// Longest line that a ward has about itself.
const LONGEST_STATUS: usize = 512;
/// Longest text of an error within a message about a ward; the ledger has more of it.
const LONGEST_WHAT: usize = 2_048;
const MOST_CAUSES: usize = 4;

/// See the [module](self).
pub(crate) struct Host {
    node: Arc<str>,
    runtime: Handle,
    /// By slot, which is also their start order.
    wards: Vec<Hosted>,
    next_slot: usize,
    runs: JoinSet<(usize, u64, Ended)>,
    /// What is left of incarnations that ended: calls that may finish, threads that do not return.
    rests: JoinSet<()>,
    readies: FuturesUnordered<BoxFuture<'static, Option<(usize, u64)>>>,
    leaked: Arc<AtomicU32>,
    guard: Arc<Guard>,
    changes: Vec<v1::WardChange>,
    ledger: Ledger,
}

struct Hosted {
    /// Never used again for another ward of this node.
    slot: usize,
    ward: Ward,
    /// The present incarnation runs as the ward was described before.
    outdated: bool,
    /// It is being removed: no steward knows of it any more, and it is not started again.
    leaving: bool,
    route: Arc<Route>,
    heart: Arc<Heart>,
    sweep: Sweep,
    phase: Phase,
    /// An operator stopped it: it stays so whoever is steward.
    held: bool,
    /// It was no operator: a steward gave up on it.
    quarantined: bool,
    /// The latest incarnation ended by a failure.
    failed: bool,
    number: u64,
    running: Option<Running>,
    started_at: Option<chrono::DateTime<Utc>>,
    last_error_id: String,
    status: String,
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

struct Running {
    incarnation: Arc<Incarnation>,
    stop: watch::Sender<Option<Duration>>,
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
        wards: Vec<(Ward, Arc<Route>)>,
        now: Duration,
        ledger: Ledger,
    ) -> Self {
        let mut host = Self {
            node,
            runtime,
            wards: Vec::with_capacity(wards.len()),
            next_slot: 0,
            runs: JoinSet::new(),
            rests: JoinSet::new(),
            readies: FuturesUnordered::new(),
            leaked: Arc::default(),
            guard: Arc::default(),
            changes: Vec::new(),
            ledger,
        };
        for (ward, route) in wards {
            host.add(ward, route, now);
        }
        host
    }

    /// Hosts a ward, the last in the start order. Its slot.
    pub(crate) fn add(&mut self, ward: Ward, route: Arc<Route>, now: Duration) -> usize {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.wards.push(Hosted::new(slot, ward, route, now));
        slot
    }

    /// Describes a ward anew. What its program is begins with its next incarnation, the rest holds at once.
    pub(crate) fn describe(&mut self, slot: usize, ward: Ward, outdated: bool) {
        let Some(hosted) = self.at_mut(slot) else { return };
        if let (Some(tail), ward::Work::Process(program)) = (&hosted.tail, &ward.work) {
            tail.limit(program.output);
        }
        hosted.outdated |= outdated && hosted.running.is_some();
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
        let gone = self.wards.iter().filter(|hosted| hosted.leaving && hosted.running.is_none());
        gone.map(|hosted| hosted.slot).collect()
    }

    /// It is gone.
    pub(crate) fn forget(&mut self, slot: usize) -> Option<Ward> {
        let index = self.index(slot)?;
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
    pub(crate) fn routes(&self) -> impl Iterator<Item = (&Ward, &Arc<Route>)> + Clone {
        self.wards.iter().map(|hosted| (&hosted.ward, &hosted.route))
    }

    /// Slots in start order, of wards that are to go, too.
    pub(crate) fn slots(&self) -> Vec<usize> {
        self.wards.iter().map(|hosted| hosted.slot).collect()
    }

    fn index(&self, slot: usize) -> Option<usize> {
        // While none has left, a slot is a position.
        match self.wards.get(slot) {
            Some(hosted) if hosted.slot == slot => Some(slot),
            _ => self.wards.binary_search_by_key(&slot, |hosted| hosted.slot).ok(),
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
            if let Some(hosted) = self.wards.iter_mut().find(|hosted| hosted.ward.name() == name) {
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
        let named = |hosted: &&Hosted| !hosted.leaving && hosted.ward.name() == ward;
        self.wards.iter().find(named).map(|hosted| hosted.slot)
    }

    pub(crate) fn name(&self, slot: usize) -> Option<Arc<str>> {
        self.at(slot).map(|hosted| hosted.ward.spec.name.clone())
    }

    /// Full names of the gRPC services it answers.
    pub(crate) fn services(&self, slot: usize) -> &[String] {
        self.at(slot).map(|hosted| hosted.ward.services.as_slice()).unwrap_or_default()
    }

    pub(crate) fn leaked(&self) -> u32 {
        self.leaked.load(Relaxed)
    }

    /// What ends the programs' own children if this process is killed.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// What a ward's program printed; `None` if it is no process ward.
    pub(crate) fn output(&self, slot: usize) -> Option<&Tail> {
        self.at(slot)?.tail.as_deref()
    }

    pub(crate) fn runs_programs(&self) -> bool {
        self.wards.iter().any(|hosted| hosted.seat.group().is_some())
    }

    /// Writes down what programs use, and says what has been written down.
    pub(crate) fn measure(&mut self, census: &Census) -> v1::Usages {
        let at = Utc::now();
        let mut wards = Vec::new();
        for hosted in self.wards.iter_mut().filter(|hosted| !hosted.leaving) {
            let Some(group) = hosted.seat.group() else { continue };
            let mut usage = census.usage(group);
            // What a process used is not counted any more once it is gone and nobody waited for it.
            usage.cpu = usage.cpu.max(hosted.usage.map(|before| before.cpu).unwrap_or_default());
            hosted.usage = Some(usage);
            hosted.measured_at = at;
            let slot = wire_slot(hosted.slot);
            wards.push(v1::WardUsage { slot, incarnation: hosted.number, usage: hosted.usage() });
        }
        v1::Usages { wards }
    }

    /// Starts the ward's next incarnation, unless it has gone on since `after`.
    ///
    /// # Errors
    /// [`NodeError::OtherIncarnation`] for a late or repeated order.
    pub(crate) fn start(&mut self, slot: usize, after: u64, now: Duration) -> Result<(), Error> {
        let (node, runtime, ledger) = (self.node.clone(), self.runtime.clone(), self.ledger.clone());
        let (leaked, guard) = (self.leaked.clone(), self.guard.clone());
        let hosted = self.get(slot)?;
        if hosted.leaving || hosted.running.is_some() || hosted.number != after {
            return Err(hosted.other_incarnation(after));
        }
        hosted.number += 1;
        (hosted.held, hosted.quarantined, hosted.failed) = (false, false, false);
        hosted.outdated = false;
        hosted.phase = Phase::Starting;
        hosted.started_at = Some(Utc::now());
        hosted.status = String::new();
        let number = hosted.number;
        // A heart of its own: what an abandoned incarnation still does is not this one's doing.
        hosted.heart = Arc::new(Heart::new(hosted.ward.spec.stall_timeout));
        hosted.sweep = Sweep::new(now);
        hosted.work_ended = hosted.work_begun;
        hosted.oldest_work = None;
        let incarnation = Incarnation::new(
            node,
            hosted.ward.spec.name.clone(),
            number,
            hosted.heart.clone(),
            runtime,
            ledger,
        );
        let (stop, stopped) = watch::channel(None);
        let (ready, is_ready) = oneshot::channel();
        hosted.running = Some(Running { incarnation: incarnation.clone(), stop });
        let work = hosted.ward.work.clone();
        let route = hosted.route.clone();
        // As the heart: one that was left behind has its own.
        (hosted.seat, hosted.usage) = (Seat::default(), None);
        let shared = Shared { leaked, guard, seat: hosted.seat.clone(), tail: hosted.tail.clone() };
        self.runs.spawn(async move {
            let announce = move || {
                let _ = ready.send(());
            };
            let run = Contained::new(ward::run(work, route, incarnation, stopped, shared, announce));
            (slot, number, run.await.unwrap_or_else(Ended::by_bug))
        });
        self.readies.push(Box::pin(async move { is_ready.await.ok().map(|()| (slot, number)) }));
        self.note(slot, None);
        Ok(())
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
        if hosted.running.is_none() {
            hosted.phase = hosted.rest();
        }
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
        let hosted = self.get(slot)?;
        if hosted.number != incarnation {
            return Err(hosted.other_incarnation(incarnation));
        }
        let Some(running) = &hosted.running else { return Ok(()) };
        running.stop.send_replace(Some(grace.unwrap_or(hosted.ward.spec.grace)));
        hosted.phase = Phase::Stopping;
        self.note(slot, None);
        Ok(())
    }

    /// The present incarnation, if it has not ended.
    pub(crate) fn running(&self, slot: usize) -> Option<u64> {
        self.at(slot).and_then(|hosted| hosted.running.as_ref()).map(|r| r.incarnation.number)
    }

    /// Waits until something happens to a ward. Cancel safe.
    pub(crate) async fn noticed(&mut self) -> Noticed {
        loop {
            tokio::select! {
                biased;
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
        let (node, ledger) = (self.node.clone(), self.ledger.clone());
        let Some(hosted) = self.at_mut(slot) else { return };
        hosted.running = None;
        hosted.outdated = false;
        hosted.oldest_work = None;
        // Where it ended by itself this has been done; a bug of ours must not leave a dead route.
        hosted.route.current.store(None);
        hosted.phase = hosted.rest();
        hosted.failed = !matches!(ended.kind, v1::ExitKind::Done | v1::ExitKind::Stopped);
        let error = ended.error.map(|e| e.at(&node, &hosted.ward.spec.name, number));
        if let Some(error) = &error {
            error.id().clone_into(&mut hosted.last_error_id);
            error.what().clone_into(&mut hosted.status);
            cut(&mut hosted.status, LONGEST_STATUS);
            // A failed call has been logged where it failed; a task or a program has not.
            if !matches!(hosted.ward.work, ward::Work::Service { .. }) {
                ledger.write(error);
            }
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
            status: hosted.status.clone(),
            at: Some(timestamp(Utc::now())),
        };
        self.changes.push(change);
    }

    /// The changes since the last call, in order.
    pub(crate) fn take_changes(&mut self) -> Vec<v1::WardChange> {
        std::mem::take(&mut self.changes)
    }

    /// Turns the rings of all hearts and takes note of what wards say of themselves.
    pub(crate) fn sweep(&mut self, now: Duration) {
        for index in 0..self.wards.len() {
            let hosted = &mut self.wards[index];
            let slot = hosted.slot;
            hosted.sweep.turn(&hosted.heart, now);
            let said = hosted.running.as_ref().map(|r| {
                let mut said = r.incarnation.status.borrow().clone();
                cut(&mut said, LONGEST_STATUS);
                said
            });
            if let Some(said) = said
                && !said.is_empty()
                && said != hosted.status
            {
                hosted.status = said;
                self.note(slot, None);
            }
        }
    }

    /// The heartbeats since the last call: slot and what changed, for wards that beat or work.
    pub(crate) fn beats(&mut self, now: Duration) -> Vec<(usize, Delta)> {
        let mut beats = Vec::new();
        for hosted in self.wards.iter_mut().filter(|hosted| !hosted.leaving) {
            let delta = hosted.sweep.delta(&hosted.heart, now);
            hosted.work_begun += u64::from(delta.begun);
            hosted.work_ended += u64::from(delta.ended);
            hosted.oldest_work = delta.oldest_work;
            if !delta.is_quiet() {
                beats.push((hosted.slot, delta));
            }
        }
        beats
    }

    /// All wards as they are now.
    pub(crate) fn view(&self) -> Vec<v1::Ward> {
        self.shown().map(|hosted| hosted.view(&self.node)).collect()
    }

    /// One ward as it is now.
    pub(crate) fn view_of(&self, slot: usize) -> Option<v1::Ward> {
        self.at(slot).map(|hosted| hosted.view(&self.node))
    }

    /// The slots of those in [`Self::view`]; empty if they are their positions.
    pub(crate) fn view_slots(&self) -> Vec<u32> {
        let slots = || self.shown().map(|hosted| hosted.slot);
        if slots().enumerate().all(|(position, slot)| position == slot) {
            return Vec::new();
        }
        slots().map(wire_slot).collect()
    }

    fn shown(&self) -> impl Iterator<Item = &Hosted> {
        self.wards.iter().filter(|hosted| !hosted.leaving)
    }

    fn get(&mut self, slot: usize) -> Result<&mut Hosted, Error> {
        let node = self.node.clone();
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
    fn new(slot: usize, ward: Ward, route: Arc<Route>, now: Duration) -> Self {
        Self {
            slot,
            outdated: false,
            leaving: false,
            heart: Arc::new(Heart::new(ward.spec.stall_timeout)),
            sweep: Sweep::new(now),
            phase: Phase::Stopped,
            held: false,
            quarantined: false,
            failed: false,
            number: 0,
            running: None,
            started_at: None,
            last_error_id: String::new(),
            status: String::new(),
            work_begun: 0,
            work_ended: 0,
            oldest_work: None,
            seat: Seat::default(),
            usage: None,
            measured_at: chrono::DateTime::UNIX_EPOCH,
            tail: match &ward.work {
                ward::Work::Process(program) => Some(Arc::new(Tail::new(program.output))),
                _ => None,
            },
            ward,
            route,
        }
    }

    fn other_incarnation(&self, asked: u64) -> Error {
        NodeError::OtherIncarnation { ward: self.ward.name().to_owned(), asked, present: self.number }.into()
    }

    /// Where it is when it does not run.
    fn rest(&self) -> Phase {
        if self.quarantined { Phase::Quarantined } else { Phase::Stopped }
    }

    fn view(&self, node: &str) -> v1::Ward {
        v1::Ward {
            node: node.to_owned(),
            spec: Some(wire::ward_spec_message(&self.ward.spec, self.ward.kind(), &self.ward.services)),
            state: wire::state(self.phase).into(),
            verdict: v1::Verdict::Healthy.into(),
            incarnation: self.number,
            started_at: self.started_at.map(timestamp),
            restarts: self.number.saturating_sub(1),
            last_error_id: self.last_error_id.clone(),
            status: self.status.clone(),
            work_in_progress: self.work_begun.saturating_sub(self.work_ended),
            oldest_work: self.oldest_work.map(duration),
            work_done: self.work_ended,
            held: self.held,
            failed: self.failed,
            usage: self.usage(),
        }
    }

    fn usage(&self) -> Option<v1::ProcessUsage> {
        let (usage, group) = (self.usage?, self.seat.group()?);
        Some(v1::ProcessUsage {
            pid: group.unsigned_abs(),
            processes: usage.processes,
            cpu: Some(duration(usage.cpu)),
            resident_bytes: usage.resident,
            at: Some(timestamp(self.measured_at)),
        })
    }
}
