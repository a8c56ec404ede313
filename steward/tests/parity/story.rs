//! A story: a tree of groups and wards, and what befalls it, drawn from a seed.

use std::fmt::{self, Display, Formatter};

use wardkeep_steward::{AutoShutdown, Restart, Strategy};

/// splitmix64: the same story on every machine.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Less than `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.below(of.len())].clone()) }
    }
}

#[derive(Clone, Debug)]
pub struct Ward {
    pub name: String,
    pub restart: Restart,
    pub significant: bool,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    pub strategy: Strategy,
    pub intensity: u32,
    pub shutdown: AutoShutdown,
    pub restart: Restart,
    pub significant: bool,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug)]
pub enum Member {
    Ward(Ward),
    Group(Group),
}

/// How a ward ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Normal,
    Shutdown,
    ShutdownWith,
    Crash,
    Kill,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// The ward ends; after that, these fail to start so many times.
    Exit(String, Exit, Vec<(String, u32)>),
    /// The ward crashes and fails to start so many times; before the second attempt, something else comes.
    Meanwhile(String, u32, Box<Op>),
    /// Wards of this group crash at once.
    Exits(String, Vec<String>),
    /// `terminate_child`, `delete_child`, `restart_child`, `start_child`, by group.
    Stop(String, String),
    Delete(String, String),
    Start(String, String),
    Join(String, Ward),
}

/// Draws trees.
pub struct Drawer<'a> {
    pub dice: &'a mut Dice,
    wards: u8,
    groups: u8,
}

impl<'a> Drawer<'a> {
    pub fn new(dice: &'a mut Dice) -> Self {
        Self { dice, wards: 0, groups: 0 }
    }

    /// A group with 1 to 6 wards, in a third of all cases with others in it.
    pub fn tree(&mut self) -> Group {
        let depth = if self.dice.one_in(3) { 1 + self.dice.below(2) } else { 0 };
        self.group(depth, if depth == 0 { 6 } else { 3 }, AutoShutdown::Never)
    }

    fn group(&mut self, depth: usize, most: usize, around: AutoShutdown) -> Group {
        self.groups += 1;
        let name = format!("g{}", self.groups);
        let shutdown = [AutoShutdown::Never, AutoShutdown::AnySignificant, AutoShutdown::AllSignificant];
        let strategies = [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne];
        let shutdown = if self.dice.one_in(2) { AutoShutdown::Never } else { shutdown[self.dice.below(3)] };
        let (restart, significant) = self.member_of(around);
        let (strategy, intensity) =
            (strategies[self.dice.below(3)], u32::try_from(self.dice.below(5)).unwrap());
        let mut members = Vec::new();
        let groups = if depth > 0 { 1 + self.dice.below(2) } else { 0 };
        for _ in 0..1 + self.dice.below(most) {
            members.push(Member::Ward(self.ward(shutdown)));
        }
        for _ in 0..groups {
            members.insert(
                self.dice.below(members.len() + 1),
                Member::Group(self.group(depth - 1, most, shutdown)),
            );
        }
        Group { name, strategy, intensity, shutdown, restart, significant, members }
    }

    /// Wards are named by letters.
    pub fn has_names(&self) -> bool {
        self.wards < 26
    }

    pub fn ward(&mut self, around: AutoShutdown) -> Ward {
        let name = char::from(b'a' + self.wards).to_string();
        self.wards += 1;
        let (restart, significant) = self.member_of(around);
        Ward { name, restart, significant }
    }

    /// OTP allows significant members only where they mean something.
    fn member_of(&mut self, around: AutoShutdown) -> (Restart, bool) {
        use Restart::{Permanent, Temporary, Transient};
        let restart = [Permanent, Permanent, Transient, Temporary][self.dice.below(4)];
        let may = around != AutoShutdown::Never && restart != Permanent;
        (restart, may && self.dice.one_in(2))
    }
}

// What follows writes stories as the Erlang terms that interop/erlang/wardkeep_peer.erl reads.

impl Display for Group {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let strategy = match self.strategy {
            Strategy::OneForOne => "one_for_one",
            Strategy::OneForAll => "one_for_all",
            Strategy::RestForOne => "rest_for_one",
        };
        let shutdown = match self.shutdown {
            AutoShutdown::Never => "never",
            AutoShutdown::AnySignificant => "any_significant",
            AutoShutdown::AllSignificant => "all_significant",
        };
        let Self { name, intensity, significant, members, .. } = self;
        let restart = restart(self.restart);
        let members = list(members.iter().map(|member| match member {
            Member::Ward(ward) => ward.to_string(),
            Member::Group(group) => group.to_string(),
        }));
        write!(f, "{{group,{name},{strategy},{intensity},{shutdown},{restart},{significant},{members}}}")
    }
}

impl Display for Ward {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{{ward,{},{},{}}}", self.name, restart(self.restart), self.significant)
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Op::Exit(ward, exit, fails) => {
                let exit = match exit {
                    Exit::Normal => "normal",
                    Exit::Shutdown => "shutdown",
                    Exit::ShutdownWith => "{shutdown,why}",
                    Exit::Crash => "crash",
                    Exit::Kill => "kill",
                };
                let fails = list(fails.iter().map(|(ward, times)| format!("{{{ward},{times}}}")));
                write!(f, "{{exit,{ward},{exit},{fails}}}")
            }
            Op::Meanwhile(ward, times, op) => write!(f, "{{meanwhile,{ward},{times},{op}}}"),
            Op::Exits(group, wards) => write!(f, "{{exits,{group},{}}}", list(wards.iter().cloned())),
            Op::Stop(group, ward) => write!(f, "{{stop,{group},{ward}}}"),
            Op::Delete(group, ward) => write!(f, "{{delete,{group},{ward}}}"),
            Op::Start(group, ward) => write!(f, "{{start,{group},{ward}}}"),
            Op::Join(group, ward) => write!(f, "{{join,{group},{ward}}}"),
        }
    }
}

fn restart(restart: Restart) -> &'static str {
    match restart {
        Restart::Permanent => "permanent",
        Restart::Transient => "transient",
        Restart::Temporary => "temporary",
    }
}

pub fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}
