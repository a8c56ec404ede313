//! Servers as queues, and the calls of channels to them, in virtual time. The same input gives the same output.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use super::pilot::{Flight, Order, Pilot, Told};

/// Over about so long a server's load is a mean.
const LOAD_OVER: Duration = Duration::from_millis(250);
/// As many as it works on, and so many more, that wait: it is full.
const CROWD: usize = 7;

/// A server: works on so many requests at a time, in the order in which they came.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Requests that it works on at a time.
    pub slots: usize,
    /// Requests that wait; those beyond are refused.
    pub queue: usize,
    /// Its replies say how busy it is.
    pub tells_load: bool,
}

/// A call to make.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// When.
    pub at: Duration,
    /// By which of the channels.
    pub by: usize,
    /// For [`Seen::tag`].
    pub tag: u64,
}

/// A call that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// As it was given.
    pub tag: u64,
    /// When it ended.
    pub at: Duration,
    /// From the call to its reply; `None` if there was none, or not in time.
    pub took: Option<Duration>,
}

type Key = (u64, u32);

#[derive(Clone, Copy, Debug)]
enum Event {
    Reaches(usize, Key, bool),
    Served(usize, Key),
    Cancelled(usize, Key),
    Heard(Key, Told, Option<f64>),
    Due(u64),
    Expires(u64),
}

/// Ordered by its time, the earliest on top of the heap; of one time, as planned.
struct Planned {
    at: Duration,
    number: u64,
    event: Event,
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}

struct Queue {
    server: Server,
    running: Vec<Key>,
    waiting: VecDeque<(Key, bool)>,
    busy: Duration,
    mean: f64,
    looked: Duration,
}

impl Queue {
    /// Has the load follow what was up to now.
    fn look(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.looked);
        let share = self.running.len() as f64 / self.server.slots as f64;
        self.mean += (share - self.mean) * (1.0 - (-passed.as_secs_f64() / LOAD_OVER.as_secs_f64()).exp());
        self.busy += passed * u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        self.looked = now;
    }
}

impl Queue {
    /// As nodes tell it.
    fn load(&self) -> f64 {
        self.mean.max((self.waiting.len() as f64 / (self.server.slots + CROWD) as f64).min(1.0))
    }
}

struct Call {
    flight: Flight,
    by: usize,
    tag: u64,
    began: Duration,
    ends: Duration,
    due: Option<Duration>,
    /// The server of each attempt.
    at: Vec<usize>,
}

/// Channels, servers, and the time between them.
pub struct World<S> {
    queues: Vec<Queue>,
    pilots: Vec<(Pilot, Vec<usize>)>,
    one_way: Duration,
    service: S,
    events: BinaryHeap<Planned>,
    calls: HashMap<u64, Call>,
    number: u64,
    now: Duration,
}

impl<S: FnMut(usize) -> Duration> World<S> {
    /// `service`: how long a server works on its next request; `one_way`: what a message takes.
    pub fn new(servers: impl IntoIterator<Item = Server>, one_way: Duration, service: S) -> Self {
        let queue = |server| Queue {
            server,
            running: Vec::new(),
            waiting: VecDeque::new(),
            busy: Duration::ZERO,
            mean: 0.0,
            looked: Duration::ZERO,
        };
        Self {
            queues: servers.into_iter().map(queue).collect(),
            pilots: Vec::new(),
            one_way,
            service,
            events: BinaryHeap::new(),
            calls: HashMap::new(),
            number: 0,
            now: Duration::ZERO,
        }
    }

    /// Adds a channel, whose members are these servers.
    pub fn add(&mut self, pilot: Pilot, members: Vec<usize>) {
        self.pilots.push((pilot, members));
    }

    /// What the channels have done.
    pub fn tally(&self) -> super::Tally {
        self.pilots.iter().fold(super::Tally::default(), |sum, (pilot, _)| {
            let more = pilot.tally;
            super::Tally {
                calls: sum.calls + more.calls,
                attempts: sum.attempts + more.attempts,
                withdrawn: sum.withdrawn + more.withdrawn,
                levels: [0, 1, 2].map(|i| sum.levels[i] + more.levels[i]),
            }
        })
    }

    /// What all servers together have worked.
    pub fn busy(&self) -> Duration {
        self.queues.iter().map(|queue| queue.busy).sum()
    }

    /// Makes these calls, which are in the order of their time, each with so much time; until all have ended.
    pub fn run(
        &mut self,
        calls: impl IntoIterator<Item = Calls>,
        allowed: Duration,
        mut seen: impl FnMut(Seen),
    ) {
        for call in calls {
            self.until(call.at, &mut seen);
            self.now = self.now.max(call.at);
            self.begin(call, allowed, &mut seen);
        }
        self.until(Duration::MAX, &mut seen);
    }

    fn until(&mut self, at: Duration, seen: &mut impl FnMut(Seen)) {
        while self.events.peek().is_some_and(|next| next.at <= at) {
            let Some(next) = self.events.pop() else { return };
            self.now = next.at;
            self.happens(next.event, seen);
        }
    }

    fn plan(&mut self, at: Duration, event: Event) {
        self.number += 1;
        self.events.push(Planned { at, number: self.number, event });
    }

    fn begin(&mut self, call: Calls, allowed: Duration, seen: &mut impl FnMut(Seen)) {
        self.number += 1;
        let (id, now) = (self.number, self.now);
        let mut orders = Vec::new();
        let flight = self.pilots[call.by].0.begin(now, allowed, &mut orders);
        let ends = now + allowed;
        let (by, tag, began) = (call.by, call.tag, now);
        self.calls.insert(id, Call { flight, by, tag, began, ends, due: None, at: Vec::new() });
        self.plan(ends, Event::Expires(id));
        self.obey(id, orders, seen);
    }

    fn happens(&mut self, event: Event, seen: &mut impl FnMut(Seen)) {
        let (now, mut orders) = (self.now, Vec::new());
        let id = match event {
            Event::Reaches(server, key, tied) => return self.reaches(server, key, tied),
            Event::Served(server, key) => return self.ends(server, key, true),
            Event::Cancelled(server, key) => return self.ends(server, key, false),
            Event::Heard((id, attempt), told, load) => {
                let Some(call) = self.calls.get_mut(&id) else { return };
                let pilot = &mut self.pilots[call.by].0;
                pilot.told(now, &mut call.flight, attempt, (told, load), &mut orders);
                id
            }
            Event::Due(id) => {
                let Some(call) = self.calls.get_mut(&id).filter(|call| call.due == Some(now)) else { return };
                call.due = None;
                self.pilots[call.by].0.due(now, &mut call.flight, &mut orders);
                id
            }
            Event::Expires(id) => {
                let Some(call) = self.calls.get_mut(&id) else { return };
                self.pilots[call.by].0.expire(now, &mut call.flight, &mut orders);
                id
            }
        };
        self.obey(id, orders, seen);
    }

    fn obey(&mut self, id: u64, orders: Vec<Order>, seen: &mut impl FnMut(Seen)) {
        let arrives = self.now + self.one_way;
        for order in orders {
            let Some(call) = self.calls.get_mut(&id) else { return };
            match order {
                Order::Send { attempt, member } => {
                    let server = self.pilots[call.by].1[member];
                    call.at.push(server);
                    let tied = call.flight.is_tied();
                    self.plan(arrives, Event::Reaches(server, (id, attempt), tied));
                }
                Order::Cancel { attempt } => {
                    let server = call.at[attempt as usize - 1];
                    self.plan(arrives, Event::Cancelled(server, (id, attempt)));
                }
                Order::End { good } => {
                    let took = good.then_some(self.now.saturating_sub(call.began));
                    seen(Seen { tag: call.tag, at: self.now, took });
                    self.calls.remove(&id);
                }
            }
        }
        let Some(call) = self.calls.get_mut(&id) else { return };
        let wake = self.pilots[call.by].0.wake_at(&call.flight).map(|at| at.max(self.now));
        if wake != call.due && wake.is_none_or(|at| at < call.ends) {
            call.due = wake;
            if let Some(at) = wake {
                self.plan(at, Event::Due(id));
            }
        }
    }

    fn reaches(&mut self, server: usize, key: Key, tied: bool) {
        let queue = &mut self.queues[server];
        queue.look(self.now);
        if queue.running.len() < queue.server.slots {
            self.works(server, key, tied);
        } else if queue.waiting.len() < queue.server.queue {
            queue.waiting.push_back((key, tied));
        } else {
            let load = queue.server.tells_load.then_some(1.0);
            self.plan(
                self.now + self.one_way,
                Event::Heard(key, Told::Full(Duration::from_millis(10)), load),
            );
        }
    }

    fn works(&mut self, server: usize, key: Key, tied: bool) {
        self.queues[server].running.push(key);
        let took = (self.service)(server);
        self.plan(self.now + took, Event::Served(server, key));
        if tied {
            self.plan(self.now + self.one_way, Event::Heard(key, Told::Began, None));
        }
    }

    fn ends(&mut self, server: usize, key: Key, well: bool) {
        let queue = &mut self.queues[server];
        queue.look(self.now);
        queue.waiting.retain(|(waiting, _)| *waiting != key);
        // One that was cancelled before is not there.
        let Some(at) = queue.running.iter().position(|running| *running == key) else { return };
        queue.running.swap_remove(at);
        let load = queue.server.tells_load.then(|| queue.load());
        let next = queue.waiting.pop_front();
        if well {
            self.plan(self.now + self.one_way, Event::Heard(key, Told::Answer, load));
        }
        if let Some((next, tied)) = next {
            self.works(server, next, tied);
        }
    }
}
