//! A cluster in a simulated world: two supervisors (of which one is dialled), three nodes, a client, an operator.

use std::time::Duration;

use wardkeep::daemon::testing::Disk;
use wardkeep_node::{Strategy, testing::Flaw};
use wardkeep_proto::v1::{self, WardState};

use super::{
    book::{Ask, Book, Place},
    chance, check, hosts,
    hosts::WARDS,
    mishap::{Link, Mishap, plan},
};

pub const NODES: [&str; 3] = ["n0", "n1", "n2"];
pub const SUPERVISORS: [&str; 2] = ["sup-0", "sup-1"];

/// Hosts take turns of this length.
const TURN: Duration = Duration::from_millis(10);
/// After the last mishap, for all to find each other, and for what gives up to do so; and again after
/// operators have started what rests.
const HEAL: Duration = Duration::from_secs(30);
/// In which nothing may happen any more.
const STAY: Duration = Duration::from_secs(6);

/// How a world went.
pub struct Story {
    pub trace: Vec<String>,
    /// The promise it broke.
    pub broken: Option<String>,
}

struct World<'a> {
    sim: turmoil::Sim<'a>,
    book: Book,
    disks: [Disk; 2],
    up: [bool; 2],
}

/// Lives through the world of a seed. To be called on a thread of its own.
pub fn live_through(seed: u64, flaw: Option<Flaw>) -> Story {
    chance::rule(seed);
    let mut world = World::new(seed, flaw);
    let broken = world.live(seed).err();
    let book = world.book.clone();
    drop(world);
    Story { trace: book.trace(), broken: book.broken_promise().or(broken) }
}

impl World<'_> {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let book = Book::default();
        let disks = [Disk::default(), Disk::default()];
        let mut sim = turmoil::Builder::new()
            .tick_duration(TURN)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(25))
            .simulation_duration(Duration::from_secs(3_600))
            .tcp_capacity(4_096)
            .enable_random_order()
            .rng_seed(seed)
            .build();
        let strategy = [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne][(seed % 3) as usize];
        for (host, disk) in SUPERVISORS.into_iter().zip(&disks) {
            let (disk, book) = (disk.clone(), book.clone());
            sim.host(host, move || hosts::supervisor(host, disk.clone(), book.clone()));
        }
        for name in NODES {
            let told = book.clone();
            sim.host(name, move || hosts::node(name, strategy, flaw, told.clone()));
        }
        let told = book.clone();
        sim.client("client", hosts::client(told));
        let told = book.clone();
        sim.client("operator", hosts::operator(told));
        Self { sim, book, disks, up: [true; 2] }
    }

    fn live(&mut self, seed: u64) -> Result<(), String> {
        self.set_supervisor(1, false);
        for (at, mishap) in plan(seed) {
            self.until(at)?;
            self.befall(mishap);
        }
        self.calm();
        self.becomes(check::settled)?;
        self.start_what_rests()?;
        self.becomes(check::healed)?;
        let (lives, calls) = (self.lives(), self.book.calls());
        self.pass(STAY)?;
        if lives != self.lives() {
            return Err(format!("all was well, and yet {lives:?} became {:?}", self.lives()));
        }
        let after = self.book.calls();
        if after.failed > calls.failed || after.good == calls.good {
            return Err(format!("all was well, and yet {calls:?} became {after:?}"));
        }
        for disk in &self.disks {
            check::intensity(&disk.events())?;
        }
        Ok(())
    }

    fn lives(&self) -> Vec<Option<u64>> {
        let tasks = WARDS.into_iter().filter(|ward| *ward != "sum");
        tasks.flat_map(|ward| NODES.map(|node| self.book.lives((node, ward)))).collect()
    }

    // --- time ---

    fn until(&mut self, at: Duration) -> Result<(), String> {
        while chance::now() < at {
            self.sim.step().map_err(|error| format!("a host ended: {error}"))?;
            chance::pass(TURN);
            if let Some(broken) = self.book.broken_promise() {
                return Err(broken);
            }
        }
        Ok(())
    }

    fn pass(&mut self, time: Duration) -> Result<(), String> {
        self.until(chance::now() + time)
    }

    /// Lets time pass until it is so.
    fn becomes(&mut self, so: fn(&v1::Fleet, &Disk, &Book) -> Result<(), String>) -> Result<(), String> {
        let patience = chance::now() + HEAL;
        loop {
            self.pass(Duration::from_secs(1))?;
            let seen = self.look()?;
            match so(&seen, &self.disks[0], &self.book) {
                Ok(()) => return Ok(()),
                Err(not) if chance::now() > patience => return Err(not),
                Err(_) => {}
            }
        }
    }

    /// What an operator sees.
    fn look(&mut self) -> Result<v1::Fleet, String> {
        let since = chance::now();
        self.book.ask(Ask::Look);
        for _ in 0..100 {
            self.pass(Duration::from_millis(100))?;
            if let Some(fleet) = self.book.picture(since) {
                return Ok(fleet);
            }
        }
        Err("the supervisor does not answer its operator".to_owned())
    }

    // --- mishaps ---

    fn set_supervisor(&mut self, which: usize, up: bool) {
        if self.up[which] && !up {
            self.sim.crash(SUPERVISORS[which]);
        } else if up {
            self.sim.bounce(SUPERVISORS[which]);
        }
        self.up[which] = up;
    }

    fn befall(&mut self, mishap: Mishap) {
        self.book.write(format!("* {mishap:?}"));
        let book = self.book.clone();
        match mishap {
            Mishap::Poke(place, poke) => {
                if place.1 == "sum" {
                    book.unsound(place.0, "its sum", true);
                }
                book.poke(place, poke);
            }
            Mishap::Break(place, on) => book.break_ward(place, on),
            Mishap::CrashNode(node) => self.crash(node),
            Mishap::BounceNode(node) => {
                self.crash(node);
                self.sim.bounce(node);
                book.unsound(node, "it is down", false);
            }
            Mishap::CrashSupervisor => self.set_supervisor(0, false),
            Mishap::BounceSupervisor => self.set_supervisor(0, true),
            Mishap::Supplant(on) => {
                if on && !self.up[1] {
                    self.set_supervisor(1, true);
                }
                // The other goes on as if nothing had happened.
                let (this, other) = if on { (1, 0) } else { (0, 1) };
                for node in NODES {
                    self.sim.repair(node, SUPERVISORS[this]);
                    self.sim.partition(node, SUPERVISORS[other]);
                }
                book.supplant(this);
            }
            Mishap::Cut(link) => {
                self.cut(link);
                self.sim.partition(link.0, link.1);
            }
            Mishap::CutOneWay(link) => {
                self.cut(link);
                self.sim.partition_oneway(link.0, link.1);
            }
            Mishap::Mend(link) => {
                self.sim.repair(link.0, link.1);
                self.mended(link);
            }
            Mishap::Hold(link) => {
                self.cut(link);
                self.sim.hold(link.0, link.1);
            }
            Mishap::Release(link) => {
                self.sim.release(link.0, link.1);
                self.mended(link);
            }
            Mishap::Ask(ask) => self.ask(ask),
        }
    }

    fn crash(&mut self, node: &'static str) {
        self.book.unsound(node, "it is down", true);
        // Its session ends with it: so do others' wards, perhaps.
        self.book.excuse((node, ""));
        NODES.into_iter().for_each(|other| self.book.excuse((other, "trio")));
        self.sim.crash(node);
    }

    fn cut(&self, (a, b): Link) {
        let client = [a, b].contains(&"client");
        for node in [a, b].into_iter().filter(|host| client && NODES.contains(host)) {
            self.book.unsound(node, "its link", true);
        }
    }

    fn mended(&self, (a, b): Link) {
        let client = [a, b].contains(&"client");
        for node in [a, b].into_iter().filter(|host| client && NODES.contains(host)) {
            self.book.unsound(node, "its link", false);
        }
    }

    fn ask(&mut self, ask: Ask) {
        match &ask {
            Ask::Start(place) | Ask::Stop(place) | Ask::Restart(place) => {
                if place.1 == "sum" {
                    self.book.unsound(place.0, "its sum", true);
                }
            }
            Ask::Drain(node) => self.book.unsound(node, "it drains", true),
            Ask::Undrain(node) => self.book.unsound(node, "it drains", false),
            Ask::LateSession { .. } | Ask::Look => {}
        }
        self.book.ask(ask);
    }

    // --- the end ---

    /// Nothing is wrong any more.
    fn calm(&mut self) {
        self.book.write("* calm");
        self.book.nothing_is_broken();
        for node in NODES {
            for other in ["client", "operator"].into_iter().chain(SUPERVISORS) {
                self.sim.release(node, other);
                self.sim.repair(node, other);
            }
            self.mended((node, "client"));
            if !self.sim.is_host_running(node) {
                self.befall(Mishap::BounceNode(node));
            }
        }
        // Whichever was there: a supervisor that is younger than all has their authority.
        self.set_supervisor(1, false);
        self.set_supervisor(0, true);
        self.book.supplant(0);
    }

    /// The operators' way back.
    fn start_what_rests(&mut self) -> Result<(), String> {
        for node in NODES {
            self.ask(Ask::Undrain(node));
        }
        let fleet = self.look()?;
        for node in NODES {
            for ward in WARDS {
                let place: Place = (node, ward);
                if check::state(&fleet, place) != Some(WardState::Running) {
                    self.ask(Ask::Start(place));
                }
            }
        }
        Ok(())
    }
}
