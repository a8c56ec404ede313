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
    budget::Budget,
    detector::{self, Detector},
    group::{Group, Origin},
    memory::Memory,
    node::Node,
    types::{
        Action, Cause, Config, Event, GroupSpec, GroupView, NodeName, NodeView, Note, Time, Verdict, WardId,
        WardView, What,
    },
    ward::{Ward, seconds},
};

/// A step settles in a few rounds; the limit only guards against a mistake in here.
const ROUNDS: usize = 64;

/// Decides who is unhealthy, what is restarted, and when to give up. See the crate's documentation.
#[derive(Debug)]
pub struct Steward {
    pub(crate) config: Config,
    /// See [`detector::deviations`].
    pub(crate) deviations: f64,
    pub(crate) now: Time,
    /// Real time less patient time.
    pub(crate) slack: Duration,
    /// Most nodes fell silent together: all silences may last twice as long.
    pub(crate) doubled: bool,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) wards: BTreeMap<WardId, Ward>,
    pub(crate) groups: BTreeMap<Arc<str>, Group>,
    pub(crate) budget: Budget,
    /// Wards that wait for the fleet's budget, in order of their tickets.
    pub(crate) queue: BTreeMap<u64, WardId>,
    pub(crate) next_ticket: u64,
    /// It was said that the budget is spent.
    pub(crate) dry: bool,
    pub(crate) next_rank: u64,
    pub(crate) agenda: Agenda,
    pub(crate) touched: BTreeSet<WardId>,
    pub(crate) touched_nodes: BTreeSet<NodeName>,
    /// Groups whose plans may go on.
    pub(crate) dirty: BTreeSet<Arc<str>>,
    pub(crate) out: Vec<Action>,
    pub(crate) memory: Memory,
}

impl Steward {
    /// A steward that knows of nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            deviations: detector::deviations(config.phi_threshold),
            now: Time::ZERO,
            slack: Duration::ZERO,
            doubled: false,
            nodes: BTreeMap::new(),
            wards: BTreeMap::new(),
            groups: BTreeMap::new(),
            budget: Budget::new(&config),
            queue: BTreeMap::new(),
            next_ticket: 0,
            dry: false,
            next_rank: 0,
            agenda: Agenda::default(),
            touched: BTreeSet::new(),
            touched_nodes: BTreeSet::new(),
            dirty: BTreeSet::new(),
            out: Vec::new(),
            memory: Memory::default(),
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
        self.touched.extend(self.wards.keys().cloned());
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
        self.agenda.first().map(|at| at.max(self.now.saturating_add(Duration::from_millis(1))))
    }

    /// All wards, by node and start order.
    pub fn wards(&self, now: Time) -> impl Iterator<Item = WardView<'_>> {
        let patient = now.max(self.now).saturating_sub(self.slack);
        self.nodes.values().flat_map(move |node| {
            let unreachable = node.verdict == Verdict::Unreachable;
            node.order.iter().filter_map(move |id| self.view(id, unreachable, patient))
        })
    }

    /// One ward as it is now.
    pub fn ward(&self, id: &WardId) -> Option<WardView<'_>> {
        let unreachable = self.nodes.get(&id.node).is_some_and(|node| node.verdict == Verdict::Unreachable);
        self.view(id, unreachable, self.patient())
    }

    fn view(&self, id: &WardId, unreachable: bool, patient: Time) -> Option<WardView<'_>> {
        let (id, ward) = self.wards.get_key_value(id)?;
        Some(WardView {
            id,
            spec: &ward.spec,
            phase: ward.phase,
            verdict: if unreachable { Verdict::Unreachable } else { ward.verdict },
            incarnation: ward.incarnation,
            restarts: ward.restarts,
            last_error_id: ward.last_error_id.as_ref(),
            in_progress: ward.work.in_progress,
            work_ended: ward.work.ended,
            oldest_work: ward.oldest_work(patient),
            restart_due: ward.pending.as_ref().and_then(|pending| pending.due),
        })
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.nodes.iter().map(|(name, node)| NodeView {
            name,
            boot: node.boot,
            attached: node.attached,
            verdict: node.verdict,
            last_heard: node.heard,
        })
    }

    /// All groups, by name.
    pub fn groups(&self, now: Time) -> impl Iterator<Item = GroupView<'_>> {
        let now = now.max(self.now);
        self.groups.values().map(move |group| group.view(now))
    }

    /// One group by name.
    pub fn group(&self, name: &str, now: Time) -> Option<GroupView<'_>> {
        self.groups.get(name).map(|group| group.view(now.max(self.now)))
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
        self.out.push(Action::Note(Note { node, ward: ward.cloned(), incarnation, what, cause }));
    }

    /// Whether wards of this node can be told anything, and be judged.
    pub(crate) fn ready(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(Node::is_ready)
    }

    /// A ward to be changed: it is asked anew when to be woken, and plans of its groups may go on.
    pub(crate) fn ward_mut(&mut self, id: &WardId) -> Option<&mut Ward> {
        let ward = self.wards.get_mut(id)?;
        self.touched.insert(id.clone());
        let mut next = Some(&ward.group);
        while let Some(name) = next {
            self.dirty.insert(name.clone());
            next = self.groups.get(name).and_then(|group| group.parent.as_ref());
        }
        Some(ward)
    }

    pub(crate) fn node_mut(&mut self, name: &str) -> Option<&mut Node> {
        let (key, _) = self.nodes.get_key_value(name)?;
        self.touched_nodes.insert(key.clone());
        self.nodes.get_mut(name)
    }

    /// It was not there for a while though something was due: what it did not hear then was no silence.
    fn doubt_itself(&mut self, now: Time) {
        let gap = now.saturating_sub(self.now);
        let late = self.agenda.first().map_or(Duration::ZERO, |due| now.saturating_sub(due));
        // A wake that is served at once after a long quiet is not lateness.
        if gap > self.config.own_lateness && late > self.config.own_lateness / 10 {
            self.slack = self.slack.saturating_add(gap);
            let reason = format!("the steward itself was away for {}", seconds(gap));
            self.note(None, None, What::DoubtsItself { patience: gap }, Cause { reason, ..Cause::default() });
            self.touched.extend(self.wards.keys().cloned());
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
                    Key::Ward(id) => {
                        self.wake_ward(&id);
                        self.touched.insert(id);
                    }
                }
            }
            self.grant();
            while let Some(group) = self.dirty.pop_first() {
                let wake = self.drive(&group);
                self.agenda.set(Key::Group(group), wake);
            }
            self.reindex();
            if self.agenda.first().is_none_or(|at| at > self.now) {
                break;
            }
        }
    }

    fn reindex(&mut self) {
        for id in mem::take(&mut self.touched) {
            let at = self.ward_wake(&id);
            self.agenda.set(Key::Ward(id), at);
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
