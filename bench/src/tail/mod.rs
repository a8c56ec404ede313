//! The slow tail: what each way of asking several servers does about it, and what that costs.

mod paper;
mod servers;
mod side;
mod sweep;
mod ways;

use crate::report::{Goal, Report, Table};

use sweep::{LOADS, OURS};
use ways::{ALL, BARE, HEDGED, SINGLE, UNRESTRAINED};

pub fn measure(rounds: usize) -> Result<Report, Box<dyn std::error::Error>> {
    let side = side::table(rounds);
    let (goodput, tail) = sweep::tables(rounds.div_ceil(3));
    let (simulated, simulated_tail) = sweep::simulated(rounds.div_ceil(3));
    let keys = paper::hedged(rounds.div_ceil(3));
    let [idle, busy] = paper::CELLS.map(|cell| paper::tied(cell, rounds.div_ceil(3)));
    let mut goals = Vec::new();
    for (table, how) in [(&goodput, "real servers"), (&simulated, "simulated")] {
        goals.push(never_worse(table, how));
    }
    for (table, how) in [(&tail, "real servers"), (&simulated_tail, "simulated")] {
        goals.push(as_good_as_all(table, how));
    }
    goals.push(shorter(&side));
    goals.push(papers("hedged reads of 1,000 keys, p99.9", &keys, paper::HEDGED, 2, 74.0, 1_800.0));
    goals.push(papers("tied reads, mostly idle, p99", &idle, paper::TIED, 2, 42.0, 67.0));
    goals.push(papers("tied reads, busy, p99", &busy, paper::TIED, 2, 67.0, 108.0));
    let more = |table: &Table| table.median(paper::TIED, 4) - table.median(paper::SINGLE, 4);
    let [more_idle, more_busy] = [&idle, &busy].map(more);
    goals.push(Goal {
        what: format!("tied reads cost the disks less than 1 % more: {more_idle:.2} % and {more_busy:.2} %"),
        met: more_idle.max(more_busy) < 1.0,
    });
    let curves = [&tail, &goodput].map(|table| table.name.clone()).to_vec();
    Ok(Report {
        group: "tail".into(),
        title: "Tail".into(),
        command: "cargo measure tail".into(),
        rounds,
        tables: vec![side, goodput, tail, simulated, simulated_tail, keys, idle, busy],
        goals,
        notes: NOTES.map(str::to_owned).to_vec(),
        curves,
        ..Default::default()
    })
}

const NOTES: [&str; 5] = [
    "Tied copies cut what is spent in queues: a copy goes out while the first one waits, and the one that waits longer is taken \
    back. Where calls are slow after they have begun, and no queue is there, a tied call is a single one until it takes longer than \
    99 of 100: against such a tail hedging is the means.",
    "Hedges are 5 % of the calls at most. At the 95th percentile that is as much as is asked for, so a part of the budget is kept for \
    calls that are still not answered after a second delay: p99.9 is then what the slowest calls get, and not chance. What \
    `all` has beyond it costs two to three times the work.",
    "Below a quarter of the load all copies go out, and still do until the servers are three quarters busy, the copies included; from \
    there copies are hedges, and from nine tenths on there are none. Servers say how busy they are (`wardkeep-load`, a mean over about \
    sixteen calls' time, or at once if a crowd waits). Between a quarter and about a half of the load p99.9 depends on which of the two \
    it is just then.",
    "Of the two simulated tables the rows without hedging are set to be the paper's; its service times are not known. A disk's own time has a \
    p99 of 37 ms here, with 10 ms around it: that is as far as anything can get that is done about queues. The paper's tied reads on an idle \
    cluster are a little below, so its disks were steadier than that; on the busy one ours are shorter. All clients of the simulation tie their \
    reads and hear how busy disks are; how many of the paper's did is not said.",
    "`tower::hedge` has no budget but its percentile, takes what comes first even if it is an error, and the servers in turn; naive copies \
    multiply the load. Both are on our connections here: on tonic's own they would break them (see Cancel).",
];

/// Of ours, at all loads: the goodput is that of single, but for 2 %.
fn never_worse(table: &Table, how: &str) -> Goal {
    let restrained = OURS.into_iter().filter(|name| *name != UNRESTRAINED);
    let all = restrained.flat_map(|name| {
        let parts = move |at| table.median(name, at) / table.median(SINGLE, at) * 100.0;
        (0..LOADS.len()).map(move |at| (parts(at), name, LOADS[at]))
    });
    let (least, name, load) = all.min_by(|one, two| one.0.total_cmp(&two.0)).expect("some");
    Goal {
        what: format!(
            "from 5 % to 150 % of the load no policy has less than 98 % of the goodput of single, {how}: {least:.1} % at least ({name}, \
            at {load} %)"
        ),
        met: least >= 98.0,
    }
}

/// Below a quarter of the load p99.9 is that of all copies.
fn as_good_as_all(table: &Table, how: &str) -> Goal {
    let row = table.rows.iter().find(|row| row.name == UNRESTRAINED).expect("a row of this table");
    let low = (0..LOADS.len()).filter(|at| LOADS[*at] < 25);
    // By chance the one or the other is the better one.
    let met = low.clone().all(|at| {
        let highest = row.cells[at].map_or(f64::NAN, |cell| cell.highest);
        table.median(ALL, at) <= highest
    });
    let figures: Vec<String> = low
        .map(|at| {
            let (ours, all) = (table.median(ALL, at), table.median(UNRESTRAINED, at));
            format!("{ours:.1} of {all:.1} ms at {} %", LOADS[at])
        })
        .collect();
    Goal {
        what: format!(
            "below a quarter of the load p99.9 is within the spread of copies that nothing restrains, {how}: {}",
            figures.join(", ")
        ),
        met,
    }
}

fn shorter(side: &Table) -> Goal {
    let at = |name| (side.median(name, side::P999), side.median(name, side::COPIES));
    let ((bare, _), (hedged, copies), (all, three)) = (at(BARE), at(HEDGED), at(ALL));
    Goal {
        what: format!(
            "p99.9 with {copies:.2} copies per call is less than half of that of bare tonic: {hedged:.0} of {bare:.0} ms (and {all:.0} \
            ms with {three:.2})"
        ),
        met: hedged < bare / 2.0,
    }
}

/// As the paper has it, give or take what a simulation of other machines can say.
fn papers(what: &str, table: &Table, row: &str, column: usize, theirs: f64, without: f64) -> Goal {
    let ours = table.median(row, column);
    Goal {
        what: format!(
            "{what}, is the paper's within 15 %, or shorter: from {without} to {theirs} ms there, to {ours:.0} ms here"
        ),
        met: ours <= theirs * 1.15,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}
