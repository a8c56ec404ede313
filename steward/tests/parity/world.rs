//! The steward's side of a story: one node that does at once what it is told, on a clock that stands
//! still, without backoff and with no limit on the fleet's restarts.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use wardkeep_steward::{
    Action, Backoff, Cause, Config, Event, ExitKind, GroupSpec, Note, Phase, Restart, Steward, Strategy,
    Time, WardId, WardReport, WardSpec, What,
};

use crate::story::{Exit, Group, Member, Op, Ward};

const NOW: Time = Duration::from_secs(1);
const NODE: &str = "n";

pub struct World {
    steward: Steward,
    root: String,
    inbox: VecDeque<Event>,
    /// Incarnation, and whether it lives.
    wards: BTreeMap<String, (u64, bool)>,
    fails: BTreeMap<String, u32>,
    log: String,
    /// The group that everything is in is no more.
    pub over: bool,
}

impl World {
    /// All is started. The word says what was done: see [`World::play`].
    pub fn new(tree: &Group) -> (Self, String) {
        let config = Config { restart_burst: u32::MAX, restart_refill: Duration::ZERO, ..Config::default() };
        let (mut groups, mut wards) = (Vec::new(), Vec::new());
        flatten(tree, None, &mut groups, &mut wards);
        let mut world = Self {
            steward: Steward::new(config).with_groups(groups),
            root: tree.name.clone(),
            inbox: VecDeque::new(),
            wards: wards.iter().map(|spec| (spec.name.to_string(), (0, false))).collect(),
            fails: BTreeMap::new(),
            log: String::new(),
            over: false,
        };
        let wards = wards.into_iter().map(report).collect();
        let word = world.run(vec![Event::NodeAttached { node: NODE.into(), boot: 1, wards, groups: vec![] }]);
        (world, word)
    }

    /// Does what an op says; answers with what followed, as the peer has it.
    pub fn play(&mut self, op: &Op) -> String {
        let cause = || Cause { reason: "a story".into(), ..Cause::default() };
        match op {
            Op::Exit(ward, exit, fails) => {
                self.fails = fails.iter().cloned().collect();
                let kind = match exit {
                    Exit::Normal => ExitKind::Done,
                    Exit::Shutdown | Exit::ShutdownWith => ExitKind::Stopped,
                    Exit::Crash => ExitKind::Panicked,
                    Exit::Kill => ExitKind::Failed,
                };
                self.end(ward, kind);
                self.run(vec![])
            }
            Op::Exits(_, wards) => {
                wards.iter().for_each(|ward| self.end(ward, ExitKind::Panicked));
                self.run(vec![])
            }
            Op::Stop(_, ward) => self.run(vec![Event::StopWard { ward: id(ward), cause: cause() }]),
            Op::Start(_, ward) => self.run(vec![Event::StartWard { ward: id(ward), cause: cause() }]),
            Op::Delete(_, ward) => self.run(vec![Event::WardLeft { ward: id(ward) }]),
            Op::Join(group, ward) => {
                self.wards.insert(ward.name.clone(), (0, false));
                let ward = report(spec(ward, group));
                self.run(vec![Event::WardJoined { node: NODE.into(), ward }])
            }
        }
    }

    pub fn is_alive(&self, ward: &str) -> bool {
        self.wards.get(ward).is_some_and(|(_, alive)| *alive)
    }

    /// It rests, as far as the steward is concerned.
    pub fn is_at_rest(&self, ward: &str) -> bool {
        self.steward.wards(NOW).any(|view| *view.id == id(ward) && view.phase == Phase::Stopped)
    }

    fn end(&mut self, ward: &str, kind: ExitKind) {
        let Some((incarnation, alive)) = self.wards.get_mut(ward).filter(|(_, alive)| *alive) else { return };
        *alive = false;
        let cause = Cause { reason: "it ended".into(), ..Cause::default() };
        self.inbox.push_back(Event::WardExited { ward: id(ward), incarnation: *incarnation, kind, cause });
    }

    fn run(&mut self, events: Vec<Event>) -> String {
        self.inbox.extend(events);
        while let Some(event) = self.inbox.pop_front() {
            for action in self.steward.step(NOW, event) {
                self.obey(action);
            }
        }
        self.fails.clear();
        let alive: String =
            self.wards.iter().filter(|(_, (_, alive))| *alive).map(|(name, _)| name.as_str()).collect();
        let over = if self.over { "!" } else { "" };
        format!("{}/{alive}{over}", std::mem::take(&mut self.log))
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::Start { ward, after_incarnation, .. } => {
                let name = ward.ward.to_string();
                self.log += &format!("+{name}");
                let broken = self.fails.get_mut(&name).filter(|fails| **fails > 0).map(|fails| *fails -= 1);
                let incarnation = after_incarnation + 1;
                assert_eq!(self.wards.get(&name), Some(&(after_incarnation, false)), "start of {name}");
                self.wards.insert(name, (incarnation, broken.is_none()));
                self.inbox.push_back(if broken.is_some() {
                    let kind = ExitKind::StartFailed;
                    Event::WardExited { ward, incarnation, kind, cause: Cause::default() }
                } else {
                    Event::WardRunning { ward, incarnation }
                });
            }
            Action::Stop { ward, .. } => {
                if self.is_alive(&ward.ward) {
                    self.log += &format!("-{}", ward.ward);
                    self.end(&ward.ward, ExitKind::Stopped);
                }
            }
            Action::Note(note) => self.heed(&note),
            Action::Hold { .. } | Action::Launch { .. } => {}
        }
    }

    fn heed(&mut self, note: &Note) {
        match &note.what {
            // What begins anew has nothing that fails to start.
            What::GroupFailed { .. } => self.fails.clear(),
            What::GroupShutDown { group } => {
                self.fails.clear();
                self.over |= **group == *self.root;
            }
            What::GroupGaveUp { group, .. } if **group == *self.root => self.over = true,
            _ => {}
        }
    }
}

fn id(ward: &str) -> WardId {
    WardId::new(NODE, ward)
}

fn report(spec: WardSpec) -> WardReport {
    WardReport { spec, phase: Phase::Stopped, incarnation: 0, held: false, failed: false }
}

fn spec(ward: &Ward, group: &str) -> WardSpec {
    WardSpec {
        group: Some(group.into()),
        restart: ward.restart,
        significant: ward.significant,
        ..WardSpec::new(ward.name.as_str())
    }
}

fn flatten(group: &Group, parent: Option<&str>, groups: &mut Vec<GroupSpec>, wards: &mut Vec<WardSpec>) {
    groups.push(GroupSpec {
        strategy: group.strategy,
        intensity: group.intensity,
        period: Duration::from_secs(3_600),
        backoff: Backoff { first: Duration::ZERO, max: Duration::ZERO, ..Backoff::default() },
        parent: parent.map(Into::into),
        restart: group.restart,
        significant: group.significant,
        auto_shutdown: group.shutdown,
        ..GroupSpec::new(group.name.as_str())
    });
    for member in &group.members {
        match member {
            Member::Ward(ward) => wards.push(spec(ward, &group.name)),
            Member::Group(inner) => flatten(inner, Some(&group.name), groups, wards),
        }
    }
}

/// A restart of a group's member may concern others of it.
pub fn is_joint(group: &Group) -> bool {
    group.strategy != Strategy::OneForOne
}

pub fn is_temporary(restart: Restart) -> bool {
    restart == Restart::Temporary
}
