//! What a node adds to a call, beside tonic alone and tonic with the usual layers.

use std::{cell::RefCell, time::Duration};

use tonic::transport::{Channel, Endpoint};
use wardkeep_client::{Member, Policy, Replicated};

use crate::{
    beside::{Contestant, side_by_side, side_by_side_in},
    echo::{DESCRIPTORS, Kind, Layout, Server},
    load::{Caller, Way, percentile},
    report::{Goal, Report, Table},
};

const BARE: &str = "tonic";
const LAYERS: &str = "tonic with timeout, concurrency limit, trace";
const WARD: &str = "wardkeep: a ward, everything on";
const TONIC_DEFAULT: &str = "tonic, as its guide has it";
const WARDKEEP_DEFAULT: &str = "wardkeep: node and Replicated, by default";

const THROUGHPUT: [&str; 4] = [
    "calls a second",
    "server's CPU in µs a call",
    "client's CPU in µs a call",
    "server's allocations a call",
];
const LATENCY: [&str; 4] =
    ["p50 in µs", "p99 in µs", "server's CPU in µs a call", "client's CPU in µs a call"];

const LASTS: Duration = Duration::from_secs(1);
/// Calls over which allocations are counted.
const COUNTED: u64 = 1_000;
/// Between calls at low load: with what a call takes, about 900 a second.
const PAUSE: Duration = Duration::from_millis(1);
/// Connections of a client that has several.
pub const CHANNELS: usize = 4;

pub fn measure(rounds: usize) -> Result<Report, Box<dyn std::error::Error>> {
    let pairs: Vec<_> = [(BARE, Kind::Bare), (LAYERS, Kind::Layers), (WARD, Kind::Ward)]
        .into_iter()
        .map(|(name, kind)| (name, Pair::pinned(kind)))
        .collect();
    let mut tables: Vec<Table> =
        [64, 1, 512].into_iter().map(|at_a_time| throughput(rounds, &pairs, at_a_time)).collect();
    tables.push(low_load(rounds, &pairs));
    drop(pairs);
    tables.push(default_set_up(rounds));
    let goals = goals(&tables);
    let notes = vec![bound(&tables[0]), DEFAULTS.to_owned()];
    Ok(Report {
        group: "node".into(),
        title: "Node".into(),
        command: "cargo measure node".into(),
        rounds,
        tables,
        goals,
        notes,
        ..Default::default()
    })
}

fn goals(tables: &[Table]) -> Vec<Goal> {
    let mut goals: Vec<Goal> = tables[..3]
        .iter()
        .map(|table| {
            let ratio = table.ratio(WARD, 0);
            let what = format!(
                "{}: a ward carries at least 0.97 of bare tonic on the same runtime layout: {ratio}",
                table.name.to_lowercase()
            );
            Goal { what, met: ratio.median >= 0.97 }
        })
        .collect();
    let p99 = tables[3].ratio(WARD, 1);
    goals.push(Goal {
        what: format!("p99 at low load is within 5 % of bare tonic's: {p99} of it"),
        met: p99.median <= 1.05,
    });
    let times = tables[4].ratio(WARDKEEP_DEFAULT, 0);
    goals.push(Goal {
        what: format!(
            "wardkeep's default node and client carry at least 1.5 times what tonic's default set-up carries: {times} times"
        ),
        met: times.median >= 1.5,
    });
    goals
}

/// What bounds a ward.
fn bound(busy: &Table) -> String {
    let more = |column| busy.median(WARD, column) - busy.median(BARE, column);
    format!(
        "What bounds a ward: {:.1} µs of CPU and {:.0} allocations a call more than tonic alone, 64 calls in flight. It reads and keeps \
        the request's context, counts the call as work, holds handler and body under deadline and cancellation, and signs the reply. By time \
        (perf) that is spread thin: headers, clocks, the gate, futures of more than 1 KiB, which glibc's allocator is slow with. What would \
        lift it: another allocator, which is the program's choice. Spans of calls are made for export only.",
        more(1),
        more(3),
    )
}

const DEFAULTS: &str = "What bounds the default set-ups: node and client use the runtime of the program they are in, \
    usually one of many threads. The rows of one thread each say what a runtime per core and \
    several connections would bring. It is not the default: a handler that blocks its thread would stop all connections \
    of that core, where now other threads go on, and a node notices that its wards' one runtime is stuck, not that one of several is. \
    What would lift it: connections spread over runtimes of one thread each, with a sign of life of each of them.";

/// A server and its only client.
struct Pair<W> {
    server: RefCell<Server>,
    caller: Caller<W>,
}

impl Pair<Channel> {
    /// A core for each of the two.
    fn pinned(kind: Kind) -> Self {
        let server = Server::start(kind, Layout::Pinned(0));
        let uri = server.uri();
        Self::new(server, Caller::new(Layout::Pinned(1), || (0..CHANNELS).map(|_| channel(&uri)).collect()))
    }
}

impl<W: Way> Pair<W> {
    fn new(server: Server, caller: Caller<W>) -> Self {
        Self { server: RefCell::new(server), caller }
    }

    fn throughput(&self, at_a_time: usize) -> Vec<f64> {
        let mut server = self.server.borrow_mut();
        let before = server.used();
        let load = self.caller.closed(at_a_time, LASTS);
        let cpu = server.used().cpu - before.cpu;
        vec![
            load.calls / load.seconds,
            cpu / load.calls * 1e6,
            load.cpu / load.calls * 1e6,
            self.allocations(&mut server),
        ]
    }

    /// In a stretch of its own: counting takes time.
    fn allocations(&self, server: &mut Server) -> f64 {
        self.caller.wake();
        let before = server.count(true);
        self.caller.times(COUNTED);
        (server.count(false).allocations - before.allocations) / COUNTED as f64
    }

    fn low_load(&self) -> Vec<f64> {
        let mut server = self.server.borrow_mut();
        self.caller.wake();
        let before = server.used();
        let (took, load) = self.caller.one_by_one(3 * LASTS, PAUSE);
        let cpu = server.used().cpu - before.cpu;
        vec![
            percentile(&took, 50),
            percentile(&took, 99),
            cpu / load.calls * 1e6,
            load.cpu / load.calls * 1e6,
        ]
    }
}

/// As tonic's guide opens one, but that small messages do not wait.
fn channel(uri: &str) -> Channel {
    Endpoint::from_shared(uri.to_owned()).expect("a URI").tcp_nodelay(true).connect_lazy()
}

fn throughput(rounds: usize, pairs: &[(&str, Pair<Channel>)], at_a_time: usize) -> Table {
    let name = format!("{at_a_time} {} in flight", if at_a_time == 1 { "call" } else { "calls" });
    let about = format!(
        "Unary calls of 100 bytes each way, {at_a_time} at a time for a second. Server and client are processes with one \
        thread each, on a core of their own; the client has {CHANNELS} connections and is the same for all. *Everything on*: \
        context, deadline, work lane, a limit of calls, errors, the log that nodes have."
    );
    let contestants =
        pairs.iter().map(|(name, pair)| Contestant::new(*name, move || pair.throughput(at_a_time))).collect();
    side_by_side_in((&name, &about), (&THROUGHPUT, &[1]), BARE, rounds, contestants)
}

fn low_load(rounds: usize, pairs: &[(&str, Pair<Channel>)]) -> Table {
    let about = "One call each millisecond for 3 s, on the same servers and clients: both have gone to sleep before each call.";
    let contestants = pairs.iter().map(|(name, pair)| Contestant::new(*name, || pair.low_load())).collect();
    side_by_side_in(("At low load", about), (&LATENCY, &[1]), BARE, rounds, contestants)
}

fn default_set_up(rounds: usize) -> Table {
    let about = format!(
        "64 calls in flight for a second, nothing bound to a core. *As its guide has it*: `#[tokio::main]` on both sides, one \
        channel. *By default*: a node and a `Replicated` channel to it (`Policy::Single`) with the settings they come \
        with, under the same `#[tokio::main]`. *One thread each*: a single-threaded runtime on both sides, {CHANNELS} \
        connections."
    );
    let tonic = {
        let server = Server::start(Kind::Bare, Layout::Default);
        let uri = server.uri();
        Pair::new(server, Caller::new(Layout::Default, || vec![channel(&uri)]))
    };
    let wardkeep = {
        let server = Server::start(Kind::Ward, Layout::Default);
        let uri = server.uri();
        Pair::new(server, Caller::new(Layout::Default, || vec![single(&uri)]))
    };
    let bare = Pair::pinned(Kind::Bare);
    let apart = {
        let server = Server::start(Kind::Ward, Layout::Pinned(0));
        let uri = server.uri();
        let caller = Caller::new(Layout::Pinned(1), || (0..CHANNELS).map(|_| single(&uri)).collect());
        Pair::new(server, caller)
    };
    let contestants = vec![
        Contestant::new(TONIC_DEFAULT, || tonic.throughput(64)),
        Contestant::new(WARDKEEP_DEFAULT, || wardkeep.throughput(64)),
        Contestant::new("tonic, one thread each", || bare.throughput(64)),
        Contestant::new("wardkeep: node and Replicated, one thread each", || apart.throughput(64)),
    ];
    side_by_side(("Default set-ups", &about), &THROUGHPUT, TONIC_DEFAULT, rounds, contestants)
}

fn single(uri: &str) -> Replicated {
    Replicated::builder()
        .methods(DESCRIPTORS)
        .policy(Policy::Single)
        .members([Member::new("echo", uri)])
        .build()
        .expect("a channel")
}
