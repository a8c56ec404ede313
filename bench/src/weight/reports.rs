//! A report on its way from the node's columns to the steward's.

use std::time::Duration;

use prost::Message;
use wardkeep_node::wire;
use wardkeep_proto::v1;
use wardkeep_steward::{Beats, Event, Steward, WorkBeat};

use super::growth::{PULSE_TIMEOUT, attach};
use crate::{
    beside::{Contestant, side_by_side},
    machine::thread_nanos,
    report::Table,
};

const WARDS: u32 = 1_000;
const TIMES: u32 = 200;
pub const ALL: &str = "idle wards: encode, decode, steward";
/// The longest column that there can be of pulses alone.
pub const SCATTERED: &str = "idle wards, every other one: encode, decode, steward";

/// What a report would be with a message for each ward.
#[derive(Clone, PartialEq, Message)]
struct Plain {
    #[prost(message, repeated, tag = "1")]
    beats: Vec<PlainBeat>,
}

#[derive(Clone, PartialEq, Message)]
struct PlainBeat {
    #[prost(uint32, tag = "1")]
    slot: u32,
    #[prost(uint32, tag = "2")]
    pulses: u32,
    #[prost(uint32, tag = "3")]
    begun: u32,
    #[prost(uint32, tag = "4")]
    ended: u32,
    #[prost(uint32, tag = "5")]
    oldest: u32,
}

pub fn table(rounds: usize) -> Table {
    let about = "A node's report of 1,000 wards, per ward: real messages and a real steward, without the connection \
        between them. *Idle* wards pulse, *busy* ones begin, end and have work, too. Where \
        every other ward pulsed, a report is the longest that pulses make. Beside it, what it would take to \
        encode and decode a message for each ward.";
    let contestants = vec![
        part("idle wards: encode", |_, beats, _| drop(encode(beats))),
        part("idle wards: decode", |_, _, bytes| drop(decode(bytes))),
        part("idle wards: steward", |steward, beats, _| _ = steward.take(beats.clone())),
        part(ALL, |steward, beats, _| _ = steward.take(decode(&encode(beats)))),
        scattered(),
        busy("busy wards: encode, decode, steward"),
        plain("a message for each idle ward: encode, decode"),
    ];
    side_by_side(("A report", about), &["ns per ward", "bytes per ward"], ALL, rounds, contestants)
}

/// A steward that knows the wards, and its clock.
struct Home {
    steward: Steward,
    now: Duration,
}

impl Home {
    fn new() -> Self {
        let mut home = Self { steward: Steward::new(Default::default()), now: Duration::from_secs(1) };
        home.steward.step(home.now, attach(0, WARDS));
        home
    }

    fn take(&mut self, beats: Beats) -> usize {
        self.now += Duration::from_millis(500);
        let report = Event::Report { node: "node-0000".into(), runtime_lag: Duration::ZERO, beats };
        self.steward.step(self.now, report).len()
    }
}

fn encode(beats: &Beats) -> Vec<u8> {
    let report = v1::Report { sequence: 7, ..wire::report(beats) };
    let kind = Some(v1::node_message::Kind::Report(report));
    v1::NodeMessage { kind }.encode_to_vec()
}

fn decode(bytes: &[u8]) -> Beats {
    match v1::NodeMessage::decode(bytes) {
        Ok(v1::NodeMessage { kind: Some(v1::node_message::Kind::Report(report)) }) => {
            wire::beats(report, WARDS as usize).expect("a report")
        }
        other => panic!("{other:?}"),
    }
}

fn part<'a>(name: &str, run: impl Fn(&mut Home, &Beats, &[u8]) + 'a) -> Contestant<'a> {
    of(name, Beats { pulsed: (0..WARDS).collect(), worked: vec![] }, run)
}

/// The even ones and the odd ones, in turn: nobody is overdue.
fn scattered<'a>() -> Contestant<'a> {
    let every_other = |first| Beats { pulsed: (first..WARDS).step_by(2).collect(), worked: vec![] };
    let odd = every_other(1);
    of(SCATTERED, every_other(0), move |steward, even, _| {
        let beats = if steward.now.subsec_millis() == 0 { even } else { &odd };
        _ = steward.take(decode(&encode(beats)));
    })
}

fn busy<'a>(name: &str) -> Contestant<'a> {
    let work = |slot| WorkBeat { slot, begun: 9, ended: 8, oldest: Some(PULSE_TIMEOUT / 100) };
    let beats = Beats { pulsed: (0..WARDS).collect(), worked: (0..WARDS).map(work).collect() };
    of(name, beats, |steward, beats, _| _ = steward.take(decode(&encode(beats))))
}

fn of<'a>(name: &str, beats: Beats, run: impl Fn(&mut Home, &Beats, &[u8]) + 'a) -> Contestant<'a> {
    let (mut home, bytes) = (Home::new(), encode(&beats));
    Contestant::new(name, move || {
        let begin = thread_nanos();
        (0..TIMES).for_each(|_| run(&mut home, &beats, &bytes));
        vec![per_ward(begin), bytes.len() as f64 / f64::from(WARDS)]
    })
}

fn plain<'a>(name: &str) -> Contestant<'a> {
    Contestant::new(name, || {
        let begin = thread_nanos();
        let mut size = 0;
        for _ in 0..TIMES {
            let beat = |slot| PlainBeat { slot, pulses: 1, ..Default::default() };
            let bytes = Plain { beats: (0..WARDS).map(beat).collect() }.encode_to_vec();
            size = bytes.len();
            assert!(Plain::decode(&*bytes).is_ok_and(|plain| plain.beats.len() == WARDS as usize));
        }
        vec![per_ward(begin), size as f64 / f64::from(WARDS)]
    })
}

fn per_ward(begin: f64) -> f64 {
    (thread_nanos() - begin) / f64::from(TIMES) / f64::from(WARDS)
}
