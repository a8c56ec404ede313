//! What is known of a simulated world from outside it: what befell it, what its wards and callers saw, and
//! whether anything in that breaks a promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use wardkeep_proto::v1;

use super::{chance, sum::Mood};

/// Connections of a time before are known to be dead after this, and directories are up to date.
const SETTLED: Duration = Duration::from_secs(15);

/// A ward, or (no ward) a node.
pub type Place = (&'static str, &'static str);

/// What a ward is made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poke {
    Fail,
    Panic,
    /// Goes on without pulses, and does not listen.
    Hang,
    /// Goes on without pulses.
    Idle,
}

/// Shared by all who write in it.
#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    trace: Vec<String>,
    broken_promises: Vec<String>,
    supervisor: usize,
    pokes: BTreeMap<Place, Poke>,
    /// Wards that fail whenever they start.
    broken: BTreeSet<Place>,
    boots: BTreeMap<&'static str, Boot>,
    lives: BTreeMap<Place, Life>,
    soundness: BTreeMap<&'static str, Soundness>,
    calls: Calls,
    asks: Vec<Ask>,
    picture: Option<(Duration, v1::Fleet)>,
}

#[derive(Default)]
struct Boot {
    number: u64,
    obeyed: u64,
}

#[derive(Default)]
struct Life {
    boot: u64,
    incarnation: u64,
    live: Option<u64>,
    /// How often it may still begin: things happened that are answered by a restart.
    excuses: u64,
    /// So many orders about it are on their way.
    orders: u64,
    /// It does not do what it is there for, and is to be restarted.
    hangs: bool,
}

/// Whether a node can be called, as far as the world goes.
#[derive(Default)]
struct Soundness {
    since: Duration,
    against: BTreeSet<&'static str>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub good: u64,
    pub failed: u64,
}

/// What an operator is to do.
#[derive(Clone, Debug)]
pub enum Ask {
    Start(Place),
    Stop(Place),
    Restart(Place),
    Drain(&'static str),
    Undrain(&'static str),
    /// Opens a session as if it were one of this node's, from before.
    LateSession {
        node: &'static str,
        same_boot: bool,
    },
    Look,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap()
    }

    pub fn write(&self, line: impl Into<String>) {
        self.pages().write(line.into());
    }

    pub fn break_promise(&self, what: impl Into<String>) {
        self.pages().break_promise(what.into());
    }

    pub fn trace(&self) -> Vec<String> {
        self.pages().trace.clone()
    }

    pub fn broken_promise(&self) -> Option<String> {
        self.pages().broken_promises.first().cloned()
    }

    // --- supervisors ---

    /// The host of the supervisor that is dialled.
    pub fn supervisor(&self) -> &'static str {
        super::cluster::SUPERVISORS[self.pages().supervisor]
    }

    pub fn supplant(&self, supervisor: usize) {
        self.pages().supervisor = supervisor;
    }

    // --- nodes ---

    /// A node begins. Its number of its boots.
    pub fn boots(&self, node: &'static str) -> u64 {
        let mut pages = self.pages();
        let boot = pages.boots.entry(node).or_default();
        *boot = Boot { number: boot.number + 1, obeyed: 0 };
        let number = boot.number;
        pages.write(format!("{node} boots for the {number}. time"));
        number
    }

    /// A node carries out a command of this epoch.
    pub fn obeys(&self, node: &'static str, epoch: u64) {
        let mut pages = self.pages();
        let boot = pages.boots.entry(node).or_default();
        let before = boot.obeyed;
        boot.obeyed = before.max(epoch);
        if epoch < before {
            pages.break_promise(format!("{node} obeys epoch {epoch} after {before}"));
        }
        pages.write(format!("{node} obeys epoch {epoch}"));
    }

    // --- wards ---

    pub fn poke(&self, place: Place, poke: Poke) {
        self.pages().pokes.insert(place, poke);
    }

    pub fn break_ward(&self, place: Place, on: bool) {
        let mut pages = self.pages();
        if on {
            pages.broken.insert(place);
        } else {
            pages.broken.remove(&place);
        }
    }

    pub fn nothing_is_broken(&self) {
        let mut pages = self.pages();
        pages.pokes.clear();
        pages.broken.clear();
    }

    /// Something happened that may be answered by a restart of this ward, or of those beside it.
    pub fn excuse(&self, place: Place) {
        self.pages().excuse(place);
    }

    pub fn is_broken(&self, place: Place) -> bool {
        self.pages().broken.contains(&place)
    }

    /// What a ward is made to do now. It may be restarted for it.
    pub fn take_poke(&self, place: Place) -> Option<Poke> {
        let mut pages = self.pages();
        let poke = pages.pokes.remove(&place)?;
        pages.excuse(place);
        // Not so a sum: where another node answers as well, its call is withdrawn before it is late.
        pages.lives.entry(place).or_default().hangs =
            place.1 != "sum" && matches!(poke, Poke::Hang | Poke::Idle);
        Some(poke)
    }

    /// An incarnation begins.
    pub fn begins(&self, place: Place, boot: u64, incarnation: u64) -> Alive {
        self.pages().begins(place, boot, incarnation);
        Alive { book: self.clone(), place, boot, incarnation }
    }

    pub fn hangs(&self, place: Place) -> bool {
        self.pages().lives.get(&place).is_some_and(|life| life.hangs)
    }

    pub fn lives(&self, place: Place) -> Option<u64> {
        self.pages().lives.get(&place).and_then(|life| life.live)
    }

    // --- calls ---

    /// Something speaks against calling this node, or no longer.
    pub fn unsound(&self, node: &'static str, why: &'static str, on: bool) {
        let mut pages = self.pages();
        let soundness = pages.soundness.entry(node).or_default();
        soundness.since = chance::now();
        if on {
            soundness.against.insert(why);
        } else {
            soundness.against.remove(why);
        }
    }

    /// Since when a node can be called without doubt, if that is long enough.
    pub fn sound_since(&self, node: &str) -> Option<Duration> {
        let pages = self.pages();
        let soundness = pages.soundness.get(node)?;
        let long = chance::now().saturating_sub(soundness.since) >= SETTLED;
        (soundness.against.is_empty() && long).then_some(soundness.since)
    }

    pub fn call_ended(&self, what: &str, good: bool) {
        let mut pages = self.pages();
        if good {
            pages.calls.good += 1;
        } else {
            pages.calls.failed += 1;
        }
        pages.write(format!("call: {what}"));
    }

    pub fn calls(&self) -> Calls {
        self.pages().calls
    }

    // --- operators ---

    /// An operator gives an order about this ward. It may be carried out until well after the answer, and
    /// until then the ward may boot.
    pub fn orders(&self, place: Place) {
        let mut pages = self.pages();
        pages.excuse(place);
        pages.lives.entry(place).or_default().orders += 1;
    }

    /// That order has been answered.
    pub fn ordered(&self, place: Place) {
        self.pages().lives.entry(place).or_default().orders -= 1;
    }

    pub fn ask(&self, ask: Ask) {
        self.pages().asks.push(ask);
    }

    pub fn asked(&self) -> Option<Ask> {
        let mut pages = self.pages();
        (!pages.asks.is_empty()).then(|| pages.asks.remove(0))
    }

    pub fn seen(&self, fleet: v1::Fleet) {
        self.pages().picture = Some((chance::now(), fleet));
    }

    /// The latest picture, if it is no older than that.
    pub fn picture(&self, since: Duration) -> Option<v1::Fleet> {
        self.pages().picture.as_ref().filter(|(at, _)| *at >= since).map(|(_, fleet)| fleet.clone())
    }
}

impl Pages {
    fn write(&mut self, line: String) {
        self.trace.push(format!("{:9.3} {line}", chance::now().as_secs_f64()));
    }

    fn break_promise(&mut self, what: String) {
        self.write(format!("BROKEN: {what}"));
        self.broken_promises.push(what);
    }

    fn excuse(&mut self, (node, ward): Place) {
        if ward == "trio" || ward.is_empty() {
            for ((at, name), life) in &mut self.lives {
                if *name == "trio" || (ward.is_empty() && *at == node) {
                    life.excuses += 1;
                }
            }
        } else {
            self.lives.entry((node, ward)).or_default().excuses += 1;
        }
    }

    fn begins(&mut self, place: Place, boot: u64, incarnation: u64) {
        self.write(format!("{}/{} begins: boot {boot}, incarnation {incarnation}", place.0, place.1));
        let life = self.lives.entry(place).or_default();
        let mut wrong = Vec::new();
        if let Some(other) = life.live {
            wrong.push(format!("{place:?}: incarnation {incarnation} begins while {other} lives"));
        }
        if boot == life.boot {
            if incarnation <= life.incarnation {
                wrong.push(format!("{place:?}: incarnation {incarnation} begins after {}", life.incarnation));
            }
            match life.excuses.checked_sub(1) {
                Some(left) => life.excuses = left,
                None => wrong.push(format!("{place:?}: incarnation {incarnation} begins for no reason")),
            }
        } else if place.1 != "trio" {
            // A mate that hung before this boot may yet be noticed: trios keep what excuses them.
            life.excuses = life.orders;
        }
        life.hangs = false;
        (life.boot, life.incarnation, life.live) = (boot, incarnation, Some(incarnation));
        wrong.into_iter().for_each(|what| self.break_promise(what));
    }
}

/// An incarnation, for as long as it lives.
pub struct Alive {
    book: Book,
    place: Place,
    boot: u64,
    incarnation: u64,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut pages = self.book.pages();
        let (node, ward) = self.place;
        pages.write(format!("{node}/{ward} ends: boot {}, incarnation {}", self.boot, self.incarnation));
        if let Some(life) = pages.lives.get_mut(&self.place)
            && life.boot == self.boot
            && life.live == Some(self.incarnation)
        {
            life.live = None;
        }
    }
}

/// How the sum of a node is disposed.
#[derive(Clone)]
pub struct SumMood {
    pub book: Book,
    pub place: Place,
    pub hangs: Arc<std::sync::atomic::AtomicBool>,
}

impl Mood for SumMood {
    fn answers(&self) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        if self.book.take_poke(self.place).is_some() {
            self.hangs.store(true, Relaxed);
        }
        !self.hangs.load(Relaxed)
    }
}
