//! Cancelling losers: how soon their handlers are gone, and whether connections live through millions of it.

mod flood;
mod gone;

use crate::report::{Goal, Report, Table};

pub use flood::job as flood;

pub fn measure(rounds: usize, cancels: u64) -> Result<Report, Box<dyn std::error::Error>> {
    let gone = gone::table(rounds);
    let flood = flood::table(cancels);
    let goals = goals(&gone, &flood);
    let notes = vec![gone::NOTE.to_owned(), flood::NOTE.to_owned()];
    Ok(Report {
        group: "cancel".into(),
        title: "Cancel".into(),
        command: "cargo measure cancel".into(),
        rounds,
        tables: vec![gone, flood],
        goals,
        notes,
        ..Default::default()
    })
}

fn goals(gone: &Table, flood: &Table) -> Vec<Goal> {
    let at = |column| (gone.median(gone::OURS, column), gone.median(gone::RESET, column));
    let ((p50, p50_reset), (p99, p99_reset)) = (at(0), at(1));
    let ours: Vec<_> = flood.rows.iter().filter(|row| row.name != flood::NAIVE).collect();
    let sum = |column: usize| {
        ours.iter().filter_map(|row| row.cells[column]).map(|cell| cell.median).fold(0.0, |sum, it| sum + it)
    };
    let grown = |from: usize, to: usize| {
        let growth = ours.iter().filter_map(|row| Some(row.cells[to]?.median / row.cells[from]?.median));
        growth.fold(0.0, f64::max)
    };
    let naive = |column: usize| flood.median(flood::NAIVE, column);
    vec![
        Goal {
            what: format!(
                "from the first reply to the end of the loser's handler, p50: at most 0.6 of a round trip: {p50:.2} in band, \
                {p50_reset:.2} by a reset"
            ),
            met: p50.max(p50_reset) <= 0.6,
        },
        Goal {
            what: format!("p99: at most 2 round trips: {p99:.2} in band, {p99_reset:.2} by a reset"),
            met: p99.max(p99_reset) <= 2.0,
        },
        Goal {
            what: format!(
                "no connection lost and no call failed: {:.0} and {:.0} of {:.0} cancels (tonic's defaults: {:.0} and {:.0} of {:.0})",
                sum(flood::LOST),
                sum(flood::FAILED),
                sum(flood::CANCELS),
                naive(flood::LOST),
                naive(flood::FAILED),
                naive(flood::CANCELS)
            ),
            met: sum(flood::LOST) + sum(flood::FAILED) == 0.0,
        },
        Goal {
            what: format!(
                "memory and tasks are flat from early to late (at most a tenth more): {:.2} and {:.2} times",
                grown(flood::MIB, flood::MIB + 1),
                grown(flood::TASKS, flood::TASKS + 1)
            ),
            met: grown(flood::MIB, flood::MIB + 1) <= 1.1 && grown(flood::TASKS, flood::TASKS + 1) <= 1.1,
        },
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}
