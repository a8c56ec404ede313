//! What the replicated channel adds to a call, and what it takes away of a slow one.

use std::{cell::RefCell, time::Duration};

use tonic::transport::Channel;
use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, Restraint};

use crate::{
    beside::{Contestant, side_by_side, side_by_side_in},
    echo::{DESCRIPTORS, Kind, Layout, Server},
    load::{Caller, Way, percentile},
    report::{Goal, Report, Table},
};

const BARE: &str = "tonic's Channel";
const SINGLE: &str = "Replicated, single";
const ALL_2: &str = "Replicated, all(2)";
const ALL_3: &str = "Replicated, all(3)";
const HEDGED: &str = "Replicated, hedged, none fired";
const IDEAL: &str = "the first of the three, each measured alone";

const ONE: [&str; 5] = [
    "p50 in µs",
    "p99 in µs",
    "client's CPU in µs a call",
    "servers' CPU in µs a call",
    "all CPU in µs a call",
];
const MANY: [&str; 4] =
    ["calls a second", "client's CPU in µs a call", "servers' CPU in µs a call", "attempts a call"];

const LASTS: Duration = Duration::from_secs(1);
const SERVERS: usize = 3;
/// Calls of a round to servers that are slow on purpose.
const SLOW_CALLS: u64 = 300;

pub fn measure(rounds: usize) -> Result<Report, Box<dyn std::error::Error>> {
    let servers: Vec<Server> = (0..SERVERS).map(|_| Server::start(Kind::Ward, Layout::Pinned(0))).collect();
    let uris: Vec<String> = servers.iter().map(Server::uri).collect();
    let servers = RefCell::new(servers);
    let set_ups = SetUps::new(&uris);
    let one = set_ups.one_at_a_time(rounds, &servers);
    let many = set_ups.many(rounds, &servers);
    drop((set_ups, servers));
    let slow = slow(rounds);
    let goals = goals(&one, &many, &slow);
    Ok(Report {
        group: "client".into(),
        title: "Client".into(),
        command: "cargo measure client".into(),
        rounds,
        tables: vec![one, many, slow],
        goals,
        notes: vec![NOTE.to_owned()],
        ..Default::default()
    })
}

fn goals(one: &Table, many: &Table, slow: &Table) -> Vec<Goal> {
    let (single, three) = (one.ratio(SINGLE, 0), one.ratio(ALL_3, 0));
    let (rate, dear) = (many.ratio(SINGLE, 0), one.ratio(ALL_3, 4));
    let (ideal, raced) = (slow.median(IDEAL, 1), slow.median(ALL_3, 1));
    vec![
        Goal {
            what: format!("one call at a time, single takes at most 1.03 of a bare channel's p50: {single}"),
            met: single.median <= 1.03,
        },
        Goal {
            what: format!("64 in flight, it carries at least 0.97 of a bare channel's calls: {rate}"),
            met: rate.median >= 0.97,
        },
        Goal {
            what: format!("all(3) at low load takes at most 1.15 of a bare channel's p50: {three}"),
            met: three.median <= 1.15,
        },
        Goal {
            what: format!(
                "three copies take at most 2.7 times the CPU of one over a bare channel, both sides together: {dear} times"
            ),
            met: dear.median <= 2.7,
        },
        Goal {
            what: format!(
                "of three that are slow at random, p99 is within 1 ms of the ideal: {raced:.2} ms, ideal {ideal:.2} ms"
            ),
            met: raced <= ideal + 1.0,
        },
    ]
}

const NOTE: &str = "What bounds the client: by time (perf, one thread each, 64 in flight) nothing stands out. Of what a call costs more than \
    over a bare channel, allocating, freeing and copying is a third (a call's and an attempt's future, the race, their shared state), \
    eight more fields of headers each way and their HPACK a fifth, the rest the race, the choice of a member, clocks and timers. \
    And the server's half counts: the node looks up, names and signs each such call. What would lift it: a way around the race for calls \
    that are sent once, at the price of two ways that must behave the same; one allocation for all that an attempt shares.";

/// The same three servers, called in each way.
struct SetUps {
    bare: Caller<Channel>,
    replicated: Vec<(&'static str, Caller<Replicated>, Replicated)>,
}

impl SetUps {
    fn new(uris: &[String]) -> Self {
        let layout = Layout::Pinned(1);
        // The settings are the ones that all connections of the replicated channel have.
        let bare =
            Caller::new(layout, || vec![wardkeep_client::endpoint(&uris[0]).expect("a URI").connect_lazy()]);
        let late = HedgeDelay::Fixed(Duration::from_secs(20));
        let policies = [
            (SINGLE, Policy::Single),
            (ALL_2, Policy::All(2)),
            (ALL_3, Policy::All(3)),
            (HEDGED, Policy::Hedged { delay: late, max_attempts: 2 }),
        ];
        let open = |(name, policy)| {
            let many = if policy == Policy::Single { 1 } else { SERVERS };
            let channel = channel(&uris[..many], policy);
            (name, Caller::new(layout, || vec![channel.clone()]), channel)
        };
        Self { bare, replicated: policies.into_iter().map(open).collect() }
    }

    fn one_at_a_time(&self, rounds: usize, servers: &RefCell<Vec<Server>>) -> Table {
        let about = "Unary calls of 100 bytes each way, one after another for a second. Three nodes on one core, the client \
            on the other, one thread each. A bare channel and *single* have one of the nodes; the others have all three. \
            The bare channel has the settings of wardkeep's.";
        let contestants =
            self.each(|caller, _| one_at_a_time(caller, servers), |caller| one_at_a_time(caller, servers));
        side_by_side_in(("One call at a time", about), (&ONE, &[4]), BARE, rounds, contestants)
    }

    fn many(&self, rounds: usize, servers: &RefCell<Vec<Server>>) -> Table {
        let about = "The same with 64 calls in flight. `Restraint::step_down` is off: else copies would be spared, as the nodes \
            are busy.";
        let contestants = self.each(
            |caller, channel| {
                let before = channel.stats().attempts;
                let mut figures = many(caller, servers);
                let calls = figures.pop().expect("how many calls");
                figures.push((channel.stats().attempts - before) as f64 / calls);
                figures
            },
            |caller| {
                let mut figures = many(caller, servers);
                figures.pop();
                figures.push(1.0);
                figures
            },
        );
        side_by_side(("64 calls in flight", about), &MANY, BARE, rounds, contestants)
    }

    fn each<'a>(
        &'a self,
        replicated: impl Fn(&Caller<Replicated>, &Replicated) -> Vec<f64> + Copy + 'a,
        bare: impl Fn(&Caller<Channel>) -> Vec<f64> + 'a,
    ) -> Vec<Contestant<'a>> {
        let mut all = vec![Contestant::new(BARE, move || bare(&self.bare))];
        all.extend(
            self.replicated
                .iter()
                .map(|(name, caller, channel)| Contestant::new(*name, move || replicated(caller, channel))),
        );
        all
    }
}

fn channel(uris: &[String], policy: Policy) -> Replicated {
    let members = uris.iter().enumerate().map(|(n, uri)| Member::new(format!("echo-{n}"), uri.clone()));
    Replicated::builder()
        .methods(DESCRIPTORS)
        .policy(policy)
        .restraint(Restraint::default().step_down(false))
        .members(members)
        .build()
        .expect("a channel")
}

fn cpu(servers: &RefCell<Vec<Server>>) -> f64 {
    servers.borrow_mut().iter_mut().map(|server| server.used().cpu).sum()
}

fn one_at_a_time<W: Way>(caller: &Caller<W>, servers: &RefCell<Vec<Server>>) -> Vec<f64> {
    let before = cpu(servers);
    let (took, load) = caller.one_by_one(LASTS, Duration::ZERO);
    let theirs = (cpu(servers) - before) / load.calls * 1e6;
    let ours = load.cpu / load.calls * 1e6;
    vec![percentile(&took, 50), percentile(&took, 99), ours, theirs, ours + theirs]
}

/// And, last, how many calls there were.
fn many<W: Way>(caller: &Caller<W>, servers: &RefCell<Vec<Server>>) -> Vec<f64> {
    let before = cpu(servers);
    let load = caller.closed(64, LASTS);
    let theirs = (cpu(servers) - before) / load.calls * 1e6;
    vec![load.calls / load.seconds, load.cpu / load.calls * 1e6, theirs, load.calls]
}

/// Three servers that are slow at random, each for reasons of its own.
fn slow(rounds: usize) -> Table {
    let about = format!(
        "Each server waits 2 ms and on average 3 ms more before it answers, and 40 ms longer once in fifty calls; which calls \
        are slow is drawn anew at each server, and is the same each time a call is made. {SLOW_CALLS} calls a round, one \
        after another: to each server alone over a bare channel, then to all of them. The ideal is, for each call, the \
        shortest of the three times measured alone."
    );
    let servers: Vec<Server> =
        (1..=3).map(|seed| Server::slow(Kind::Ward, Layout::Pinned(0), seed)).collect();
    let uris: Vec<String> = servers.iter().map(Server::uri).collect();
    let alone: Vec<_> = uris
        .iter()
        .map(|uri| {
            let open = || vec![wardkeep_client::endpoint(uri).expect("a URI").connect_lazy()];
            Caller::new(Layout::Pinned(1), open)
        })
        .collect();
    let raced = |policy| {
        let channel = channel(&uris, policy);
        Caller::new(Layout::Pinned(1), || vec![channel.clone()])
    };
    let (all_2, all_3) = (raced(Policy::All(2)), raced(Policy::All(3)));
    let hedged = raced(Policy::Hedged { delay: HedgeDelay::Percentile(90.0), max_attempts: 3 });
    // Measured in the turn of the first, used in those of the others.
    let times = RefCell::new(Vec::new());
    let mut first = 0;
    let contestants = vec![
        Contestant::new(IDEAL, || {
            let calls = first..first + SLOW_CALLS;
            first += SLOW_CALLS;
            alone.iter().for_each(Caller::wake);
            let each: Vec<_> = alone.iter().map(|caller| caller.each(calls.clone())).collect();
            let ideal = (0..each[0].len()).map(|i| each.iter().map(|it| it[i]).fold(f64::MAX, f64::min));
            let ideal = millis(ideal.collect());
            *times.borrow_mut() = each;
            ideal
        }),
        Contestant::new("the first server, over a bare channel", || {
            let times = times.borrow();
            times.first().map_or_else(|| vec![f64::NAN; 2], |it: &Vec<f64>| millis(it.clone()))
        }),
        Contestant::new(HEDGED_OFTEN, calls_in_turn(&hedged)),
        Contestant::new(ALL_2, calls_in_turn(&all_2)),
        Contestant::new(ALL_3, calls_in_turn(&all_3)),
    ];
    side_by_side_in(
        ("Three that are slow at random", &about),
        (&["p50 in ms", "p99 in ms"], &[1]),
        IDEAL,
        rounds,
        contestants,
    )
}

const HEDGED_OFTEN: &str = "Replicated, hedged after the 90th percentile";

/// The same calls in the same rounds.
fn calls_in_turn<W: Way>(caller: &Caller<W>) -> impl FnMut() -> Vec<f64> + '_ {
    let mut first = 0;
    move || {
        caller.wake();
        let calls = first..first + SLOW_CALLS;
        first += SLOW_CALLS;
        millis(caller.each(calls))
    }
}

fn millis(mut micros: Vec<f64>) -> Vec<f64> {
    micros.sort_by(f64::total_cmp);
    [50, 99].map(|percent| percentile(&micros, percent) / 1_000.0).to_vec()
}
