//! Draws stories by playing them on the steward: what comes next depends on what is alive.

use std::fmt::Write as _;

use wardkeep_steward::{AutoShutdown, Strategy};

use crate::{
    story::{Dice, Drawer, Exit, Group, Member, Op, Ward, list},
    world::{World, is_joint, is_temporary},
};

pub struct Story {
    seed: u64,
    tree: Group,
    ops: Vec<Op>,
    /// What the steward did at the start and after each op.
    pub words: Vec<String>,
}

/// A ward and where it is.
#[derive(Clone)]
struct Place {
    ward: Ward,
    group: String,
    joint: bool,
    strategy: Strategy,
    outermost: bool,
}

impl Story {
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let mut drawer = Drawer::new(&mut dice);
        let tree = drawer.tree();
        let (world, word) = World::new(&tree);
        let mut places = Vec::new();
        place(&tree, true, &mut places);
        let mut teller =
            Teller { drawer, world, places, flat: is_flat(&tree), ops: vec![], words: vec![word] };
        let length = 1 + teller.drawer.dice.below(14);
        while teller.ops.len() < length && !teller.world.over {
            teller.go_on(&tree);
        }
        let (ops, words) = (teller.ops, teller.words);
        Self { seed, tree, ops, words }
    }

    /// As the peer reads it, but for its number.
    pub fn term(&self) -> String {
        format!("{},{}", self.tree, list(self.ops.iter().map(Op::to_string)))
    }

    /// Both tellings, side by side.
    pub fn against(&self, answer: &[String]) -> String {
        let mut text = format!("seed {}\n{}\n", self.seed, self.tree);
        let start = std::iter::once("start".to_owned());
        for (n, op) in start.chain(self.ops.iter().map(Op::to_string)).enumerate() {
            let (ours, theirs) = (self.words.get(n), answer.get(n));
            let sign = if ours == theirs { ' ' } else { '*' };
            let word = |word: Option<&String>| word.cloned().unwrap_or_default();
            let _ = writeln!(text, "{sign} {op:<40} steward {:<30} OTP {}", word(ours), word(theirs));
        }
        text
    }
}

struct Teller<'a> {
    drawer: Drawer<'a>,
    world: World,
    places: Vec<Place>,
    flat: bool,
    ops: Vec<Op>,
    words: Vec<String>,
}

impl Teller<'_> {
    fn play(&mut self, op: Op) {
        self.words.push(self.world.play(&op));
        self.ops.push(op);
    }

    fn go_on(&mut self, tree: &Group) {
        match self.drawer.dice.below(13) {
            0 => self.stop(),
            1 => self.start(),
            2 if self.drawer.has_names() => self.join(tree),
            3 => self.exits(),
            4 => self.meanwhile(tree),
            _ => self.exit(),
        }
    }

    fn alive(&self) -> Vec<Place> {
        self.places.iter().filter(|place| self.world.is_alive(&place.ward.name)).cloned().collect()
    }

    fn exit(&mut self) {
        let alive = self.alive();
        let Some(place) = self.drawer.dice.pick(&alive) else { return };
        let exits = [
            Exit::Normal,
            Exit::Shutdown,
            Exit::ShutdownWith,
            Exit::Crash,
            Exit::Crash,
            Exit::Crash,
            Exit::Kill,
            Exit::Kill,
        ];
        let exit = exits[self.drawer.dice.below(exits.len())];
        let mut fails = Vec::new();
        for other in self.places.iter().filter(|other| other.group == place.group) {
            let likely = if other.ward.name == place.ward.name { 2 } else { 4 };
            if self.drawer.dice.one_in(likely) {
                fails.push((other.ward.name.clone(), 1 + u32::try_from(self.drawer.dice.below(3)).unwrap()));
            }
        }
        self.play(Op::Exit(place.ward.name, exit, fails));
    }

    /// Several crash before anybody hears of it.
    fn exits(&mut self) {
        let alive = self.alive();
        let Some(place) = self.drawer.dice.pick(&alive) else { return };
        let mut wards: Vec<_> = alive
            .iter()
            .filter(|other| other.group == place.group)
            .map(|other| other.ward.name.clone())
            .collect();
        while wards.len() > 3 {
            wards.swap_remove(self.drawer.dice.below(wards.len()));
        }
        if place.strategy == Strategy::RestForOne {
            // Of two failures, OTP deals with one after the other, the steward with both at once.
            wards.sort();
        }
        self.play(Op::Exits(place.group, wards));
    }

    /// Something comes between a start that fails and the next attempt. Where the others of a group wait
    /// for that one, OTP gives all of them up with a ward that is stopped then; the steward does not.
    fn meanwhile(&mut self, tree: &Group) {
        let alive: Vec<_> = self.alive().into_iter().filter(|p| !is_temporary(p.ward.restart)).collect();
        let Some(place) = self.drawer.dice.pick(&alive) else { return };
        let (group, name) = (place.group.clone(), place.ward.name.clone());
        let others: Vec<_> = alive.iter().filter(|p| p.group == group && p.ward.name != name).collect();
        let op = match (self.drawer.dice.below(3), self.drawer.dice.pick(&others)) {
            (0, _) if place.outermost && !place.joint => Op::Stop(group, name.clone()),
            (1, _) if place.outermost && self.drawer.has_names() => self.joins(tree),
            (_, Some(other)) => Op::Exit(other.ward.name.clone(), Exit::Kill, vec![]),
            _ => return,
        };
        let times = 1 + u32::try_from(self.drawer.dice.below(2)).unwrap();
        self.play(Op::Meanwhile(name, times, Box::new(op)));
    }

    /// OTP forgets at a restart of the group that someone stopped a ward, the steward does not: where
    /// there can be one, it is started or deleted at once.
    fn stop(&mut self) {
        let alive: Vec<_> =
            self.alive().into_iter().filter(|p| p.outermost || !is_temporary(p.ward.restart)).collect();
        let Some(place) = self.drawer.dice.pick(&alive) else { return };
        let (group, name) = (place.group.clone(), place.ward.name.clone());
        self.play(Op::Stop(group.clone(), name.clone()));
        if is_temporary(place.ward.restart) {
            return self.places.retain(|place| place.ward.name != name);
        }
        let free = place.outermost && !place.joint;
        match self.drawer.dice.below(3) {
            0 if free => {}
            1 if place.outermost => {
                self.play(Op::Delete(group, name.clone()));
                self.places.retain(|place| place.ward.name != name);
            }
            _ => self.play(Op::Start(group, name)),
        }
    }

    /// Brings back what was stopped or ended well.
    fn start(&mut self) {
        let resting: Vec<_> = self
            .places
            .iter()
            .filter(|place| !is_temporary(place.ward.restart) && self.world.is_at_rest(&place.ward.name))
            .filter(|place| self.flat || place.outermost)
            .cloned()
            .collect();
        let Some(place) = self.drawer.dice.pick(&resting) else { return };
        self.play(Op::Start(place.group, place.ward.name));
    }

    /// OTP forgets with a group what joined it.
    fn join(&mut self, tree: &Group) {
        let op = self.joins(tree);
        self.play(op);
    }

    fn joins(&mut self, tree: &Group) -> Op {
        let ward = self.drawer.ward(tree.shutdown);
        self.places.push(Place {
            ward: ward.clone(),
            group: tree.name.clone(),
            joint: is_joint(tree),
            strategy: tree.strategy,
            outermost: true,
        });
        Op::Join(tree.name.clone(), ward)
    }
}

fn place(group: &Group, outermost: bool, places: &mut Vec<Place>) {
    for member in &group.members {
        match member {
            Member::Ward(ward) => places.push(Place {
                ward: ward.clone(),
                group: group.name.clone(),
                joint: is_joint(group),
                strategy: group.strategy,
                outermost,
            }),
            Member::Group(inner) => place(inner, false, places),
        }
    }
}

fn is_flat(tree: &Group) -> bool {
    tree.members.iter().all(|member| matches!(member, Member::Ward(_)))
        && tree.shutdown == AutoShutdown::Never
}
