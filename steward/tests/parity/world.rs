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
    /// What comes in the middle of a ward's next start that fails.
    meanwhile: Option<(String, Op)>,
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
            meanwhile: None,
            log: String::new(),
            over: false,
        };
        let wards = wards.into_iter().map(report).collect();
        let word = world.run(vec![Event::NodeAttached { node: NODE.into(), boot: 1, wards, groups: vec![] }]);
        (world, word)
    }

    /// Does what an op says; answers with what followed, as the peer has it.
    pub fn play(&mut self, op: &Op) -> String {
        match op {
            Op::Meanwhile(ward, times, op) => {
                self.meanwhile = Some((ward.clone(), *op.clone()));
                return self.play(&Op::Exit(ward.clone(), Exit::Crash, vec![(ward.clone(), *times)]));
            }
            op => self.begin(op),
        }
        self.run(vec![])
    }

    fn begin(&mut self, op: &Op) {
        let cause = || Cause { reason: "a story".into(), ..Cause::default() };
        let event = match op {
            Op::Exit(ward, exit, fails) => {
                self.fails.extend(fails.iter().cloned());
                let kind = match exit {
                    Exit::Normal => ExitKind::Done,
                    Exit::Shutdown | Exit::ShutdownWith => ExitKind::Stopped,
                    Exit::Crash => ExitKind::Panicked,
                    Exit::Kill => ExitKind::Failed,
                };
                return self.end(ward, kind);
            }
            Op::Exits(_, wards) => return wards.iter().for_each(|ward| self.end(ward, ExitKind::Panicked)),
            Op::Meanwhile(..) => return,
            Op::Stop(_, ward) => Event::StopWard { ward: id(ward), cause: cause() },
            Op::Start(_, ward) => Event::StartWard { ward: id(ward), cause: cause() },
            Op::Delete(_, ward) => Event::WardLeft { ward: id(ward) },
            Op::Join(group, ward) => {
                self.wards.insert(ward.name.clone(), (0, false));
                Event::WardJoined { node: NODE.into(), ward: report(spec(ward, group)) }
            }
        };
        self.inbox.push_back(event);
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
        self.forget();
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
                if let Some((_, op)) = self.meanwhile.take_if(|(of, _)| *of == name && broken.is_some()) {
                    self.begin(&op);
                }
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
            Action::Hold { .. }
            | Action::Release { .. }
            | Action::Launch { .. }
            | Action::RestartNode { .. } => {}
        }
    }

    fn forget(&mut self) {
        self.fails.clear();
        self.meanwhile = None;
    }

    fn heed(&mut self, note: &Note) {
        match &note.what {
            // What begins anew has nothing that fails to start.
            What::GroupFailed { .. } => self.forget(),
            What::GroupShutDown { group } => {
                self.forget();
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
