//! One supervisor's steward over fleets of growing size.

use std::{fmt::Write as _, time::Duration};

use prost::Message as _;
use wardkeep_node::wire;
use wardkeep_proto::v1;
use wardkeep_steward::{Action, Beats, Config, Event, Phase, Steward, Verdict, WardReport, WardSpec, What};

use crate::{
    beside::{Contestant, side_by_side},
    child, counted,
    machine::{self, thread_nanos},
    report::Table,
};

pub const PULSE_TIMEOUT: Duration = Duration::from_secs(5);
pub const LARGEST: &str = "1,000,000 wards on 1,000 nodes";
/// Wards and nodes.
const SIZES: [(&str, u32, u32); 4] = [
    ("1,000 wards on 10 nodes", 1_000, 10),
    ("10,000 wards on 100 nodes", 10_000, 100),
    ("100,000 wards on 1,000 nodes", 100_000, 1_000),
    (LARGEST, 1_000_000, 1_000),
];
const COLUMNS: [&str; 8] = [
    "% of a core",
    "ns per ward and second",
    "bytes per ward and second",
    "memory in MiB",
    "bytes of memory per ward",
    "longest step in ms",
    "stall found after its deadline, p50 in ms",
    "p99 in ms",
];
/// So long does each fleet live, by its own clock.
const LIVES: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// Wards that stall.
const STALLS: usize = 100;

pub fn table(rounds: usize) -> Table {
    let about = "One steward over simulated sessions: each node reports once a second that its wards pulse, and all \
        that a report takes at the supervisor is done (decoded, checked, taken in by the steward, its alarms served), on one \
        thread, in a process of its own for each fleet. The fleet's clock is simulated, as fast as it goes; there are no \
        sockets, no history and no pictures of the fleet. A hundred wards stop pulsing at different times: their deadline is \
        5 s after the last pulse that was reported.";
    let contestants = SIZES.map(|(name, wards, nodes)| {
        Contestant::new(name, move || child::figures(&format!("growth {wards} {nodes}")))
    });
    side_by_side(("A fleet that grows", about), &COLUMNS, SIZES[0].0, rounds, contestants.into())
}

pub fn note(growth: &Table) -> String {
    let mut text = "Where it stops being linear: ".to_owned();
    let per_ward: Vec<_> = SIZES.iter().map(|(name, ..)| growth.median(name, 1)).collect();
    let _ = write!(
        text,
        "a ward and second takes {} ns in the four fleets. A larger fleet does nothing that a smaller one does not: what \
        grows is the time that memory takes, once the records of the wards (about {:.0} bytes each) fit no cache, and, \
        where a node has few wards, the part of a report that is for the node. The longest step is the one in which the \
        alarms of all wards that were attached at once go off for the first time; after it they are as far apart as the \
        reports. What would lift it: a second steward on another core, for other nodes.",
        per_ward.iter().map(|ns| format!("{ns:.0}")).collect::<Vec<_>>().join(", "),
        growth.median(LARGEST, 4),
    );
    text
}

/// A node's session begins.
pub fn attach(node: u32, wards: u32) -> Event {
    let ward = |n: u32| WardReport {
        spec: WardSpec { pulse_timeout: Some(PULSE_TIMEOUT), ..WardSpec::new(format!("ward-{n:04}")) },
        phase: Phase::Running,
        incarnation: 1,
        held: false,
        failed: false,
    };
    let wards = (0..wards).map(ward).collect();
    Event::NodeAttached { node: name(node).into(), boot: u128::from(node), wards, groups: vec![] }
}

fn name(node: u32) -> String {
    format!("node-{node:04}")
}

/// In a process of its own.
pub fn job(args: &[String]) -> Vec<f64> {
    let (wards, nodes) = match args {
        [wards, nodes] => (number(wards), number(nodes)),
        _ => panic!("growth WARDS NODES"),
    };
    let each = wards / nodes;
    let resident = machine::resident_mib();
    counted::begin();
    let config = Config { pulse_interval: SECOND, ..Config::default() };
    let mut steward = Steward::new(config);
    for node in 0..nodes {
        steward.step(SECOND, attach(node, each));
    }
    let names: Vec<wardkeep_steward::NodeName> = (0..nodes).map(|node| name(node).into()).collect();
    // Who stalls, and when, spread over fleet and time.
    let stalls = STALLS.min(wards as usize / 10);
    let stall = |n: usize| {
        let at = SECOND * 5 + (LIVES - SECOND * 15) * n as u32 / stalls as u32;
        let ward = (n as u64 * 7_919 * u64::from(each) + n as u64 * 13) % u64::from(wards);
        (at, (ward / u64::from(each)) as u32, (ward % u64::from(each)) as u32)
    };
    let stalling: Vec<_> = (0..stalls).map(stall).collect();

    let (mut busy, mut longest, mut bytes) = (0.0, 0.0_f64, 0);
    let mut late = Vec::new();
    let mut take = |now: Duration, actions: Vec<Action>| {
        for action in actions {
            if let Action::Note(note) = action
                && note.what == What::WardVerdict(Verdict::Stalled)
                && let Some(id) = note.ward
            {
                let of: (u32, u32) = (number(&id.node[5..]), number(&id.ward[5..]));
                let stall = stalling.iter().find(|(_, node, slot)| (*node, *slot) == of);
                late.push((now, stall.expect("it stalled").0, of.0));
            }
        }
    };
    for second in 0..LIVES.as_secs() as u32 {
        // The nodes' part is not counted.
        let messages: Vec<_> = (0..nodes)
            .map(|node| {
                let now = SECOND * 2 + SECOND * (second * nodes + node) / nodes;
                let stalled = stalling.iter().filter(|(at, of, _)| *of == node && *at <= now);
                let silent: Vec<_> = stalled.map(|(.., slot)| *slot).collect();
                let pulsed = (0..each).filter(|slot| !silent.contains(slot)).collect();
                let beats = Beats { pulsed, worked: vec![] };
                let report = v1::Report { sequence: second.into(), ..wire::report(&beats) };
                let kind = Some(v1::node_message::Kind::Report(report));
                (now, node, v1::NodeMessage { kind }.encode_to_vec())
            })
            .collect();
        bytes += messages.iter().map(|(.., message)| message.len()).sum::<usize>();
        let begin = thread_nanos();
        for (now, node, message) in messages {
            while let Some(wake) = steward.next_wake().filter(|wake| *wake < now) {
                let begin = thread_nanos();
                let actions = steward.step(wake, Event::Tick);
                longest = longest.max(thread_nanos() - begin);
                take(wake, actions);
            }
            let Ok(v1::NodeMessage { kind: Some(v1::node_message::Kind::Report(report)) }) =
                v1::NodeMessage::decode(&*message)
            else {
                panic!("a report");
            };
            let beats = wire::beats(report, each as usize).expect("a report that fits");
            let node = names[node as usize].clone();
            let begin = thread_nanos();
            let actions = steward.step(now, Event::Report { node, runtime_lag: Duration::ZERO, beats });
            longest = longest.max(thread_nanos() - begin);
            take(now, actions);
        }
        busy += thread_nanos() - begin;
    }
    let seconds = LIVES.as_secs_f64();
    assert!(late.len() == stalls, "{} of {stalls} stalls were found", late.len());
    // The last pulse that was reported is that of the node's last report before it stalled.
    let mut late: Vec<f64> = late
        .iter()
        .map(|(found, at, node)| {
            let mut last = SECOND * 2 + SECOND * *node / nodes;
            while last + SECOND < *at {
                last += SECOND;
            }
            (found.as_secs_f64() - (last + PULSE_TIMEOUT).as_secs_f64()) * 1_000.0
        })
        .collect();
    late.sort_by(f64::total_cmp);
    let per_ward = f64::from(wards);
    let live = counted::live() as f64;
    vec![
        busy / 1e9 / seconds * 100.0,
        busy / seconds / per_ward,
        bytes as f64 / seconds / per_ward,
        machine::resident_mib() - resident,
        live / per_ward,
        longest / 1e6,
        late[late.len() / 2],
        late[late.len() * 99 / 100],
    ]
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}
