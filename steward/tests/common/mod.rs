//! A small world around the steward: nodes that do what they are told, on a clock that is ours.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::expect_used)]

use std::{collections::BTreeMap, time::Duration};

use wardkeep_steward::*;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn because(reason: &str) -> Cause {
    Cause { reason: reason.into(), ..Cause::default() }
}

#[derive(Clone, Debug)]
pub struct FakeWard {
    pub spec: WardSpec,
    pub incarnation: u64,
    pub live: bool,
    pub ready: bool,
    /// Fails as soon as it starts.
    pub broken: bool,
    /// A unit of work that does not end, since then.
    pub hangs: Option<Time>,
    /// It starts, but is never ready.
    pub never_ready: bool,
    /// So many of its next starts fail.
    pub fails: u32,
    /// Does not end though it is told to.
    pub stubborn: bool,
    /// Told to stay down, in quarantine or not.
    pub held: Option<bool>,
}

impl FakeWard {
    pub fn new(spec: WardSpec) -> Self {
        Self {
            spec,
            incarnation: 0,
            live: false,
            ready: false,
            broken: false,
            hangs: None,
            never_ready: false,
            fails: 0,
            stubborn: false,
            held: None,
        }
    }

    pub fn report(&self) -> WardReport {
        WardReport {
            spec: self.spec.clone(),
            incarnation: self.incarnation,
            held: self.held.is_some(),
            failed: false,
            phase: match (self.live, self.ready) {
                (false, _) if self.held == Some(true) => Phase::Quarantined,
                (false, _) => Phase::Stopped,
                (true, false) => Phase::Starting,
                (true, true) => Phase::Running,
            },
        }
    }
}

#[derive(Debug)]
pub struct FakeNode {
    pub boot: u128,
    pub connected: bool,
    pub frozen: bool,
    pub lag: Duration,
    pub wards: Vec<FakeWard>,
    pub next_report: Time,
    /// Starts anew when it is told to, and says that it would.
    pub restartable: bool,
    /// Says that it would, and does not.
    pub idle: bool,
}

pub struct World {
    pub steward: Steward,
    pub now: Time,
    pub nodes: BTreeMap<NodeName, FakeNode>,
    /// Events on their way: by arrival and number.
    pub inbox: BTreeMap<(Time, u64), (NodeName, Event)>,
    pub sent: u64,
    pub delay: Duration,
    /// Nodes that were told to restart.
    pub restarts: Vec<NodeName>,
    /// All that the steward answered, with its time.
    pub log: Vec<(Time, Action)>,
}

impl World {
    pub fn new(steward: Steward) -> Self {
        let (nodes, inbox) = (BTreeMap::new(), BTreeMap::new());
        let (restarts, log) = (Vec::new(), Vec::new());
        Self { steward, now: ms(1_000), nodes, inbox, sent: 0, delay: ms(5), restarts, log }
    }

    /// A node with these wards attends.
    pub fn with_node(mut self, name: &str, wards: Vec<WardSpec>) -> Self {
        let wards = wards.into_iter().map(FakeWard::new).collect();
        let next_report = self.now;
        let node = FakeNode {
            boot: 1,
            connected: false,
            frozen: false,
            lag: Duration::ZERO,
            wards,
            next_report,
            restartable: false,
            idle: false,
        };
        self.nodes.insert(name.into(), node);
        self.connect(name);
        self
    }

    pub fn ward(&mut self, id: &WardId) -> Option<&mut FakeWard> {
        self.nodes.get_mut(&id.node)?.wards.iter_mut().find(|ward| ward.spec.name == id.ward)
    }

    pub fn connect(&mut self, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        (node.connected, node.frozen) = (true, false);
        let wards = node.wards.iter().map(FakeWard::report).collect();
        let boot = node.boot;
        self.inbox.retain(|_, (of, _)| &**of != name);
        let restartable = node.restartable;
        self.step(Event::NodeAttached { node: name.into(), boot, wards, groups: vec![] });
        if restartable {
            self.step(Event::NodeRestartable { node: name.into() });
        }
    }

    pub fn disconnect(&mut self, name: &str, goodbye: bool) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.connected = false;
        self.inbox.retain(|_, (of, _)| &**of != name);
        self.step(Event::NodeDetached { node: name.into(), goodbye });
    }

    /// A node hosts one more ward.
    pub fn join(&mut self, name: &str, ward: FakeWard) {
        let report = ward.report();
        self.nodes.get_mut(name).expect("a node").wards.push(ward);
        self.step(Event::WardJoined { node: name.into(), ward: report });
    }

    /// A node no longer hosts a ward.
    pub fn leave(&mut self, id: &WardId) {
        let node = self.nodes.get_mut(&id.node).expect("a node");
        node.wards.retain(|ward| ward.spec.name != id.ward);
        self.inbox.retain(|_, (of, event)| {
            *of != id.node || !matches!(event, Event::WardExited { ward, .. } if ward == id)
        });
        self.step(Event::WardLeft { ward: id.clone() });
    }

    /// The process ends and a new one attends at once.
    pub fn reboot(&mut self, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.boot += 1;
        for ward in &mut node.wards {
            (ward.incarnation, ward.live, ward.ready, ward.hangs) = (0, false, false, None);
        }
        self.disconnect(name, false);
        self.connect(name);
    }

    pub fn crash(&mut self, id: &WardId) {
        self.exit(id, ExitKind::Panicked);
    }

    pub fn exit(&mut self, id: &WardId, kind: ExitKind) {
        let Some(ward) = self.ward(id).filter(|ward| ward.live) else { return };
        (ward.live, ward.ready, ward.hangs) = (false, false, None);
        let incarnation = ward.incarnation;
        let cause =
            Cause { error_id: Some("E1".into()), traceparent: Some("T1".into()), ..because("it broke") };
        self.send(&id.node, Event::WardExited { ward: id.clone(), incarnation, kind, cause });
    }

    pub fn hang(&mut self, id: &WardId) {
        let now = self.now;
        if let Some(ward) = self.ward(id).filter(|ward| ward.live) {
            ward.hangs = Some(now);
        }
    }

    pub fn send(&mut self, node: &NodeName, event: Event) {
        self.sent += 1;
        if self.nodes.get(node).is_some_and(|node| node.connected) {
            self.inbox.insert((self.now + self.delay, self.sent), (node.clone(), event));
        }
    }

    pub fn step(&mut self, event: Event) {
        let actions = self.steward.step(self.now, event);
        for action in actions {
            self.log.push((self.now, action.clone()));
            self.obey(action);
        }
        for name in std::mem::take(&mut self.restarts) {
            self.reboot(&name);
        }
        let wake = self.steward.next_wake();
        assert!(wake.is_none_or(|at| at > self.now), "{wake:?} is not after {:?}", self.now);
    }

    fn obey(&mut self, action: Action) {
        // What is sent to a node that is frozen is lost: it comes back with a new session.
        let deaf = |id: &WardId| self.nodes.get(&id.node).is_none_or(|node| node.frozen || !node.connected);
        match action {
            Action::Start { ward, .. } | Action::Stop { ward, .. } if deaf(&ward) => {}
            Action::Start { ward, after_incarnation, .. } => self.obey_start(&ward, after_incarnation),
            Action::Stop { ward: id, incarnation, .. } => {
                let of = self.ward(&id).filter(|ward| ward.incarnation == incarnation && ward.live);
                if of.is_some_and(|ward| !ward.stubborn) {
                    self.exit(&id, ExitKind::Stopped);
                }
            }
            Action::Launch { node, .. } => {
                if self.nodes.contains_key(&node) {
                    self.reboot(&node);
                }
            }
            Action::RestartNode { node: name, .. } => {
                let node = &self.nodes[&name];
                assert!(node.restartable, "{name} cannot be restarted");
                if node.connected && !node.frozen && !node.idle {
                    self.restarts.push(name);
                }
            }
            Action::Hold { ward, .. } | Action::Release { ward, .. } if deaf(&ward) => {}
            Action::Hold { ward: id, incarnation, quarantined } => {
                if let Some(ward) = self.ward(&id).filter(|ward| ward.incarnation == incarnation) {
                    ward.held = Some(quarantined);
                }
            }
            Action::Release { ward: id, incarnation } => {
                if let Some(ward) = self.ward(&id).filter(|ward| ward.incarnation == incarnation) {
                    ward.held = None;
                }
            }
            Action::Note(_) => {}
        }
    }

    fn obey_start(&mut self, id: &WardId, after: u64) {
        let Some(ward) = self.ward(id) else { panic!("start of an unknown ward {id}") };
        assert!(!ward.live, "start of {id}, which runs");
        if ward.incarnation != after {
            return;
        }
        (ward.live, ward.incarnation, ward.ready) = (true, after + 1, !ward.never_ready);
        ward.held = None;
        let broken = ward.broken || ward.fails > 0;
        ward.fails = ward.fails.saturating_sub(1);
        let (ready, incarnation) = (ward.ready, after + 1);
        self.send(&id.node, Event::WardStarting { ward: id.clone(), incarnation });
        if broken {
            self.exit(id, ExitKind::Failed);
        } else if ready {
            self.send(&id.node, Event::WardRunning { ward: id.clone(), incarnation });
        }
    }

    /// Lets time pass: what is sent arrives, reports are due, the steward wakes.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        let mut wakes = 0;
        loop {
            let arrival = self.inbox.first_key_value().map(|((at, _), _)| *at);
            let speaks = |node: &&FakeNode| node.connected && !node.frozen;
            let report = self.nodes.values().filter(speaks).map(|node| node.next_report).min();
            let wake = self.steward.next_wake();
            let Some(next) = [arrival, report, wake].into_iter().flatten().min().filter(|at| *at <= until)
            else {
                break;
            };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let frozen: Vec<_> =
                    self.nodes.iter().filter(|(_, node)| node.frozen).map(|(name, _)| name.clone()).collect();
                let first = self.inbox.pop_first().map(|(_, sent)| sent);
                if let Some((_, event)) = first.filter(|(node, _)| !frozen.contains(node)) {
                    self.step(event);
                }
            } else if report == Some(next) {
                self.report();
            } else {
                wakes += 1;
                assert!(wakes < 20_000, "the steward spins");
                self.step(Event::Tick);
            }
        }
        self.now = until;
    }

    fn report(&mut self) {
        let now = self.now;
        let mut events = Vec::new();
        for (name, node) in &mut self.nodes {
            if !node.connected || node.frozen || node.next_report > now {
                continue;
            }
            node.next_report = now + ms(500);
            let ready = || (0..).zip(&node.wards).filter(|(_, ward)| ward.ready);
            let pulsed = ready().filter(|(_, ward)| ward.hangs.is_none()).map(|(slot, _)| slot).collect();
            let hung = ready().filter_map(|(slot, ward)| Some((slot, ward.hangs?)));
            let worked = hung
                .map(|(slot, since)| WorkBeat { slot, oldest: Some(now - since), ..WorkBeat::default() })
                .collect();
            let beats = Beats { pulsed, worked };
            events.push(Event::Report { node: name.clone(), runtime_lag: node.lag, beats });
        }
        events.into_iter().for_each(|event| self.step(event));
    }

    pub fn notes(&self) -> impl Iterator<Item = (Time, &Note)> {
        self.log.iter().filter_map(|(at, action)| match action {
            Action::Note(note) => Some((*at, note)),
            _ => None,
        })
    }

    /// All that happened, a line each.
    pub fn told(&self) -> String {
        let line = |(at, action): &(Time, Action)| match action {
            Action::Note(note) => {
                let of = note
                    .ward
                    .as_ref()
                    .map(ToString::to_string)
                    .or(note.node.as_ref().map(ToString::to_string));
                format!(
                    "{at:>8.3?} {} {} {:?}: {}\n",
                    of.unwrap_or_default(),
                    note.incarnation,
                    note.what,
                    note.cause.reason
                )
            }
            Action::Start { ward, .. } => format!("{at:>8.3?} +{ward}\n"),
            Action::Stop { ward, .. } => format!("{at:>8.3?} -{ward}\n"),
            other => format!("{at:>8.3?} {other:?}\n"),
        };
        self.log.iter().map(line).collect()
    }

    pub fn noted(&self, what: &What) -> usize {
        self.notes().filter(|(_, note)| note.what == *what).count()
    }

    /// Starts and stops in order, as "+ward" and "-ward".
    pub fn commands(&self) -> Vec<String> {
        let command = |(_, action): &(Time, Action)| match action {
            Action::Start { ward, .. } => Some(format!("+{}", ward.ward)),
            Action::Stop { ward, .. } => Some(format!("-{}", ward.ward)),
            Action::Launch { node, .. } => Some(format!("!{node}")),
            Action::RestartNode { node, .. } => Some(format!("^{node}")),
            Action::Hold { .. } | Action::Release { .. } | Action::Note(_) => None,
        };
        self.log.iter().filter_map(command).collect()
    }

    pub fn phase(&self, id: &WardId) -> Phase {
        let now = self.now;
        self.steward.wards(now).find(|view| view.id == id).expect("a known ward").phase
    }

    pub fn verdict(&self, node: &str) -> Verdict {
        self.steward.nodes().find(|view| &**view.name == node).expect("a known node").verdict
    }
}
