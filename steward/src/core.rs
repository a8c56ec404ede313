//! The steward itself: one event and a time in, actions out.
//!
//! A step first takes the event in, then settles: whatever is due is done, plans of groups go on, and
//! each thing that was touched says anew when it wants to be woken. All clocks that could end in a
//! verdict run in *patient* time: real time less what the steward itself was late by.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use crate::{
    agenda::{Agenda, Key},
    alarms::{Alarms, NEVER, nanos},
    budget::Budget,
    detector::{self, Detector},
    group::{Group, Origin},
    memory::Memory,
    node::Node,
    table::Table,
    types::{
        Action, Cause, Config, Event, GroupSpec, GroupView, NodeName, NodeView, Note, Reach, Time, Verdict,
        WardId, WardSpec, WardView, What,
    },
    ward::{Ward, seconds},
};

/// A step settles in a few rounds; the limit only guards against a mistake in here.
const ROUNDS: usize = 64;

/// So many alarms that were superseded are kept, and one for each eight wards, before they are cleared away.
const SPARE_ALARMS: usize = 1_024;

/// Decides who is unhealthy, what is restarted, and when to give up. See the crate's documentation.
#[derive(Debug)]
pub struct Steward {
    pub(crate) config: Config,
    /// See [`detector::deviations`].
    pub(crate) deviations: f64,
    /// The same for a mere suspicion.
    pub(crate) suspicious: f64,
    /// Grows when a node becomes suspected, or no longer is.
    pub(crate) suspicions: u64,
    pub(crate) now: Time,
    /// Real time less patient time.
    pub(crate) slack: Duration,
    /// Most nodes fell silent together: all silences may last twice as long.
    pub(crate) doubled: bool,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) wards: Table,
    pub(crate) groups: BTreeMap<Arc<str>, Group>,
    pub(crate) budget: Budget,
    /// Wards that wait for the fleet's budget, in order of their tickets.
    pub(crate) queue: BTreeMap<u64, WardId>,
    pub(crate) next_ticket: u64,
    /// It was said that the budget is spent.
    pub(crate) dry: bool,
    pub(crate) next_rank: u64,
    pub(crate) agenda: Agenda,
    alarms: Alarms,
    /// Places of wards whose alarms are to be set.
    touched: Vec<u32>,
    pub(crate) touched_nodes: BTreeSet<NodeName>,
    /// Groups whose plans may go on.
    pub(crate) dirty: BTreeSet<Arc<str>>,
    pub(crate) out: Vec<Action>,
    pub(crate) memory: Memory,
    /// When a node was last restarted by escalation.
    pub(crate) escalated: Option<Time>,
}

impl Steward {
    /// A steward that knows of nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            deviations: detector::deviations(config.phi_threshold),
            suspicious: detector::deviations(detector::SUSPICIOUS),
            suspicions: 0,
            now: Time::ZERO,
            slack: Duration::ZERO,
            doubled: false,
            nodes: BTreeMap::new(),
            wards: Table::default(),
            groups: BTreeMap::new(),
            budget: Budget::new(&config),
            queue: BTreeMap::new(),
            next_ticket: 0,
            dry: false,
            next_rank: 0,
            agenda: Agenda::default(),
            alarms: Alarms::default(),
            touched: Vec::new(),
            touched_nodes: BTreeSet::new(),
            dirty: BTreeSet::new(),
            out: Vec::new(),
            memory: Memory::default(),
            escalated: None,
        }
    }

    /// Groups known from configuration, before any node declares them. They win over what nodes
    /// declare.
    #[must_use]
    pub fn with_groups(mut self, groups: impl IntoIterator<Item = GroupSpec>) -> Self {
        for spec in groups {
            self.describe(spec, Origin::Configured);
        }
        self
    }

    /// Judges by other settings from now on. The restart budget and the seed stay what they are.
    pub fn configure(&mut self, config: Config) {
        let kept = self.config;
        let (restart_burst, restart_refill, seed) = (kept.restart_burst, kept.restart_refill, kept.seed);
        self.config = Config { restart_burst, restart_refill, seed, ..config };
        self.deviations = detector::deviations(config.phi_threshold);
        if kept.pulse_interval != config.pulse_interval {
            // The rhythm that was seen is not the one that is to come.
            for node in self.nodes.values_mut() {
                node.detector = Detector::default();
            }
        }
        for place in self.wards.places() {
            self.touch(place);
        }
        self.touched_nodes.extend(self.nodes.keys().cloned());
        self.reindex();
    }

    /// Takes an event in and says what is to be done, in this order. A `now` before that of the last
    /// step counts as that of the last step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let now = now.max(self.now);
        self.doubt_itself(now);
        self.now = now;
        self.handle(event);
        self.settle();
        mem::take(&mut self.out)
    }

    /// When a [`Event::Tick`] is due at the latest; `None`: nothing is pending. Always after the last step.
    pub fn next_wake(&self) -> Option<Time> {
        self.first_due().map(|at| at.max(self.now.saturating_add(Duration::from_millis(1))))
    }

    fn first_due(&self) -> Option<Time> {
        self.agenda.first().into_iter().chain(self.alarms.first()).min()
    }

    /// All wards, by node and start order.
    pub fn wards(&self, now: Time) -> impl Iterator<Item = WardView<'_>> {
        let patient = now.max(self.now).saturating_sub(self.slack);
        self.nodes.values().flat_map(move |node| {
            let unreachable = node.verdict == Verdict::Unreachable;
            let wards = node.order.iter().filter_map(|place| self.wards.at(*place));
            wards.map(move |ward| view(ward, unreachable, patient))
        })
    }

    /// One ward as it is now.
    pub fn ward(&self, id: &WardId) -> Option<WardView<'_>> {
        let unreachable = self.nodes.get(&id.node).is_some_and(|node| node.verdict == Verdict::Unreachable);
        self.wards.get(id).map(|ward| view(ward, unreachable, self.patient()))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.nodes.iter().map(|(name, node)| NodeView {
            name,
            boot: node.boot,
            attached: node.attached,
            verdict: node.verdict,
            suspected: node.suspected && node.verdict == Verdict::Healthy,
            last_heard: node.heard,
        })
    }

    /// Grows each time a node becomes suspected, or no longer is: nothing else tells of it.
    pub fn suspicions(&self) -> u64 {
        self.suspicions
    }

    /// All groups, by name.
    pub fn groups(&self, now: Time) -> impl Iterator<Item = GroupView<'_>> {
        let now = now.max(self.now);
        self.groups.values().map(move |group| group.view(&self.wards, now))
    }

    /// One group by name.
    pub fn group(&self, name: &str, now: Time) -> Option<GroupView<'_>> {
        self.groups.get(name).map(|group| group.view(&self.wards, now.max(self.now)))
    }

    /// What it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn patient(&self) -> Time {
        self.now.saturating_sub(self.slack)
    }

    pub(crate) fn real(&self, patient: Time) -> Time {
        patient.saturating_add(self.slack)
    }

    pub(crate) fn note(&mut self, node: Option<&NodeName>, ward: Option<&WardId>, what: What, cause: Cause) {
        let incarnation = ward.and_then(|id| self.wards.get(id)).map_or(0, |ward| ward.incarnation);
        let node = node.or(ward.map(|id| &id.node)).cloned();
        self.out.push(Action::Note(Note {
            node,
            ward: ward.cloned(),
            incarnation,
            what,
            cause,
            reach: None,
        }));
    }

    /// Tells of a decision about groups, which `ward` led to: `at` this place among the actions, before
    /// what follows from it.
    pub(crate) fn note_reach(&mut self, at: usize, ward: &WardId, what: What, cause: Cause, reach: Reach) {
        let incarnation = self.wards.get(ward).map_or(0, |ward| ward.incarnation);
        let (node, ward, reach) = (Some(ward.node.clone()), Some(ward.clone()), Some(Box::new(reach)));
        self.out.insert(at, Action::Note(Note { node, ward, incarnation, what, cause, reach }));
    }

    /// Whether wards of this node can be told anything, and be judged.
    pub(crate) fn ready(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(Node::is_ready)
    }

    /// A ward to be changed: it is asked anew when to be woken, and plans of its groups may go on.
    pub(crate) fn ward_mut(&mut self, id: &WardId) -> Option<&mut Ward> {
        let place = self.wards.place(id)?;
        self.touch(place);
        let ward = self.wards.at_mut(place)?;
        let mut next = Some(&ward.terms.group);
        while let Some(name) = next {
            self.dirty.insert(name.clone());
            next = self.groups.get(name).and_then(|group| group.parent.as_ref());
        }
        Some(ward)
    }

    /// It is asked anew when to be woken.
    pub(crate) fn touch(&mut self, place: u32) {
        if let Some(ward) = self.wards.at_mut(place)
            && !std::mem::replace(&mut ward.touched, true)
        {
            self.touched.push(place);
        }
    }

    pub(crate) fn node_mut(&mut self, name: &str) -> Option<&mut Node> {
        let (key, _) = self.nodes.get_key_value(name)?;
        self.touched_nodes.insert(key.clone());
        self.nodes.get_mut(name)
    }

    /// It was not there for a while though something was due: what it did not hear then was no silence.
    fn doubt_itself(&mut self, now: Time) {
        let gap = now.saturating_sub(self.now);
        let late = self.first_due().map_or(Duration::ZERO, |due| now.saturating_sub(due));
        // A wake that is served at once after a long quiet is not lateness.
        if gap > self.config.own_lateness && late > self.config.own_lateness / 10 {
            self.slack = self.slack.saturating_add(gap);
            let reason = format!("the steward itself was away for {}", seconds(gap));
            self.note(None, None, What::DoubtsItself { patience: gap }, Cause { reason, ..Cause::default() });
            self.touched_nodes.extend(self.nodes.keys().cloned());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::NodeAttached { node, boot, wards, groups } => self.attach(&node, boot, wards, groups),
            Event::NodeDetached { node, goodbye } => self.detach(&node, goodbye),
            Event::WardJoined { node, ward } => self.join(&node, ward),
            Event::WardLeft { ward } => self.leave(&ward),
            Event::GroupDescribed { group, by } => self.redescribe(group, by),
            Event::GroupWithdrawn { group, by } => self.withdraw(&group, by.as_ref()),
            Event::NodeLaunchable { node, takes, awaited } => self.launchable(&node, takes, awaited),
            Event::NodeUnlaunchable { node } => self.unlaunchable(&node),
            Event::LaunchNode { node, cause } => self.asked_launch(&node, cause),
            Event::NodeLaunched { node } => self.launched(&node),
            Event::LaunchFailed { node, cause } => self.launch_failed(&node, cause),
            Event::RestartTold { ward, group, counts_for, anew, at } => {
                self.restart_told(&ward, group.as_ref(), &counts_for, &anew, at);
            }
            Event::NodeSlept { node, slept } => self.excuse(&node, slept),
            Event::NodeRestartable { node } => self.restartable(&node),
            Event::ThreadsLeaked { node, threads } => self.threads_leaked(&node, threads),
            Event::NodeProcessExited { node, cause } => self.process_exited(&node, &cause),
            Event::Report { node, runtime_lag, beats } => self.report(&node, runtime_lag, &beats),
            Event::WardRunning { ward, incarnation } => self.running(&ward, incarnation),
            Event::WardStarting { ward, incarnation } => self.starting(&ward, incarnation),
            Event::WardExited { ward, incarnation, kind, cause } => {
                self.exited(&ward, incarnation, kind, cause);
            }
            Event::StartWard { ward, cause } => self.asked_start(&ward, cause),
            Event::StopWard { ward, cause } => self.asked_stop(&ward, cause),
            Event::RestartWard { ward, cause } => self.asked_restart(&ward, cause),
            Event::Tick => {}
        }
    }

    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            for key in self.agenda.take_due(self.now) {
                match key {
                    Key::Budget => {}
                    Key::Group(name) => {
                        self.dirty.insert(name);
                    }
                    Key::Node(name) => {
                        self.wake_node(&name);
                        self.touched_nodes.insert(name);
                    }
                }
            }
            self.wake_wards();
            self.grant();
            while let Some(group) = self.dirty.pop_first() {
                let wake = self.drive(&group);
                self.agenda.set(Key::Group(group), wake);
            }
            self.reindex();
            if self.first_due().is_none_or(|at| at > self.now) {
                break;
            }
        }
    }

    /// Looks at the wards whose alarms go off, and wakes those for which something is due.
    fn wake_wards(&mut self) {
        let (now, alarm) = (self.now, nanos(self.now));
        let (mut due, mut again, mut unvouched) = (Vec::new(), Vec::new(), Vec::new());
        let mut of_node: Option<(&NodeName, Option<&Node>)> = None;
        while let Some((at, place)) = self.alarms.next_due(alarm) {
            // One that was superseded.
            let Some(ward) = self.wards.at(place).filter(|ward| ward.alarm == at) else { continue };
            // Wards of a node are mostly due together.
            let node = match of_node {
                Some((name, node)) if Arc::ptr_eq(name, &ward.id.node) => node,
                _ => self.nodes.get(&ward.id.node),
            };
            of_node = Some((&ward.id.node, node));
            let wake = node.and_then(|node| self.wake_of(place, ward, node));
            match wake {
                Some(wake) if wake > now => again.push((place, nanos(wake))),
                Some(_) if node.is_some_and(|node| self.is_unvouched(place, ward, node)) => {
                    unvouched.push((ward.id.node.clone(), place));
                }
                Some(_) => due.push(ward.id.clone()),
                None => again.push((place, NEVER)),
            }
        }
        for (place, at) in again {
            self.set_alarm(place, at);
        }
        for (node, place) in unvouched {
            self.set_alarm(place, NEVER);
            if let Some(node) = self.nodes.get_mut(&node) {
                node.unvouched.push(place);
            }
        }
        for id in due {
            if let Some(ward) = self.wards.get_mut(&id) {
                ward.alarm = NEVER;
            }
            self.wake_ward(&id);
            // Asked anew even if nothing came of it.
            self.ward_mut(&id);
        }
    }

    fn set_alarm(&mut self, place: u32, at: u64) {
        let Some(ward) = self.wards.at_mut(place) else { return };
        ward.alarm = at;
        if at == NEVER {
            return;
        }
        self.alarms.add(at, place);
        if self.alarms.len() > self.wards.len() / 8 * 9 + SPARE_ALARMS {
            let wards = &self.wards;
            self.alarms.retain(|(at, place)| wards.at(place).is_some_and(|ward| ward.alarm == at));
        }
    }

    fn reindex(&mut self) {
        for place in mem::take(&mut self.touched) {
            let Some(ward) = self.wards.at_mut(place) else { continue };
            ward.touched = false;
            let Some(ward) = self.wards.at(place) else { continue };
            let node = self.nodes.get(&ward.id.node);
            let wake = node.and_then(|node| self.wake_of(place, ward, node)).map_or(NEVER, nanos);
            // One that is set too early finds out when it goes off.
            if wake < ward.alarm {
                self.set_alarm(place, wake);
            }
        }
        for name in mem::take(&mut self.touched_nodes) {
            let at = self.node_wake(&name);
            self.agenda.set(Key::Node(name), at);
        }
        let at = (!self.queue.is_empty()).then(|| self.budget.next(self.now));
        self.agenda.set(Key::Budget, at);
    }

    /// Lets the wards that wait for the fleet's budget start, as far as it goes.
    fn grant(&mut self) {
        if self.queue.is_empty() && self.dry && self.budget.is_full(self.now) {
            self.dry = false;
        }
        while let Some((&ticket, _)) = self.queue.first_key_value() {
            if self.budget.next(self.now) > self.now {
                break;
            }
            let Some(id) = self.queue.remove(&ticket) else { break };
            let ready = self.ready(&id.node);
            let Some(pending) = self.ward_mut(&id).and_then(|ward| ward.pending.as_mut()) else { continue };
            pending.ticket = None;
            let cause = pending.cause.clone();
            // A node that went away meanwhile costs nothing: its ward asks again when it is back.
            if ready && self.budget.take(self.now) {
                self.start(&id, cause, true);
            }
        }
    }
}

fn view(ward: &Ward, unreachable: bool, patient: Time) -> WardView<'_> {
    let work = ward.work.as_deref();
    WardView {
        id: &ward.id,
        spec: WardSpec { name: ward.id.ward.clone(), ..ward.spec().clone() },
        phase: ward.phase,
        verdict: if unreachable { Verdict::Unreachable } else { ward.verdict },
        incarnation: ward.incarnation,
        restarts: ward.restarts,
        last_error_id: ward.last_error_id.as_deref(),
        in_progress: work.map_or(0, |work| work.in_progress),
        work_ended: work.map_or(0, |work| work.ended),
        oldest_work: ward.oldest_work(patient),
        suspected: !unreachable && ward.is_suspected(patient),
        restart_due: ward.pending.as_ref().and_then(|pending| pending.due),
    }
}
