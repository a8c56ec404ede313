//! Measuring things beside each other: in turns, so that whatever else the machine does hits all alike.

use std::{hint::black_box, time::Instant};

use crate::report::{Row, Spread, Table};

/// One way of doing something. A round gives one figure for each of the table's columns; NaN where a
/// column makes no sense for it.
pub struct Contestant<'a> {
    name: String,
    round: Box<dyn FnMut() -> Vec<f64> + 'a>,
}

impl<'a> Contestant<'a> {
    pub fn new(name: impl Into<String>, round: impl FnMut() -> Vec<f64> + 'a) -> Self {
        Self { name: name.into(), round: Box::new(round) }
    }

    /// Runs one round.
    pub fn round(&mut self) -> Vec<f64> {
        (self.round)()
    }

    /// Times many calls of it, one by one: the columns are [`LATENCY`]. What a call gives is dropped
    /// outside of its time.
    pub fn timed<O>(name: impl Into<String>, mut call: impl FnMut() -> O + 'a) -> Self {
        Self::timed_with(name, || (), move |()| call())
    }

    /// The same for calls that use something up, which is prepared outside of their time.
    pub fn timed_with<I, O>(
        name: impl Into<String>,
        mut prepare: impl FnMut() -> I + 'a,
        mut call: impl FnMut(I) -> O + 'a,
    ) -> Self {
        Self::new(name, move || {
            let mut took: Vec<f64> = (0..CALLS)
                .map(|_| {
                    let input = black_box(prepare());
                    let begin = Instant::now();
                    let output = call(input);
                    let took = begin.elapsed();
                    drop(black_box(output));
                    took.as_nanos() as f64 / 1_000.0
                })
                .collect();
            took.sort_by(f64::total_cmp);
            vec![took[CALLS / 2], took[CALLS * 99 / 100]]
        })
    }
}

/// Calls in a round.
const CALLS: usize = 10_000;
/// The columns of what is timed call by call.
pub const LATENCY: [&str; 2] = ["p50 in µs", "p99 in µs"];

/// Runs all of them in turns, each round beginning with another one, after a round that does not count.
pub fn side_by_side(
    about: (&str, &str),
    columns: &[&str],
    baseline: &str,
    rounds: usize,
    contestants: Vec<Contestant<'_>>,
) -> Table {
    side_by_side_in(about, (columns, &[]), baseline, rounds, contestants)
}

/// The same, where more columns than the first are compared with the baseline's.
pub fn side_by_side_in(
    (name, about): (&str, &str),
    (columns, also): (&[&str], &[usize]),
    baseline: &str,
    rounds: usize,
    mut contestants: Vec<Contestant<'_>>,
) -> Table {
    let many = contestants.len();
    let mut seen = vec![Vec::new(); many];
    for round in 0..=rounds {
        eprintln!(
            "{name}: {}",
            if round == 0 { "warming up".into() } else { format!("round {round} of {rounds}") }
        );
        for turn in 0..many {
            let at = (round + turn) % many;
            let figures = contestants[at].round();
            if round > 0 {
                seen[at].push(figures);
            }
        }
    }
    let base = contestants.iter().position(|it| it.name == baseline).expect("the baseline takes part");
    let cell = |at: usize, column: usize| {
        Spread::of(seen[at].iter().map(|round: &Vec<f64>| round[column]).filter(|it| !it.is_nan()))
    };
    let ratio = |at: usize, column: usize| {
        let pairs = seen[at].iter().zip(&seen[base]).filter(|_| at != base);
        Spread::of(pairs.map(|(it, base)| it[column] / base[column]).filter(|it| !it.is_nan()))
    };
    let rows = (0..many).map(|at| Row {
        name: contestants[at].name.clone(),
        cells: (0..columns.len()).map(|column| cell(at, column)).collect(),
        ratio: ratio(at, 0),
        also: also.iter().map(|&column| ratio(at, column)).collect(),
    });
    let rows: Vec<Row> = rows.collect();
    for row in &rows {
        let cells = row.cells.iter().map(|cell| cell.map_or("-".into(), |it| format!("{:.3}", it.median)));
        eprintln!("  {:50} {}", row.name, cells.collect::<Vec<String>>().join("  "));
    }
    let columns = columns.iter().map(|&column| column.to_owned()).collect();
    let (name, about, baseline) = (name.to_owned(), about.to_owned(), baseline.to_owned());
    Table { name, about, columns, baseline, also: also.to_vec(), rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_all_rounds_but_the_first_and_ratios_are_taken_round_by_round() {
        let mut round = 0.0;
        let base = Contestant::new("base", || {
            round += 1.0;
            vec![if round == 1.0 { 1e9 } else { round }, 1.0]
        });
        let twice = Contestant::new("twice", || vec![4.0, 3.0]);
        let table = side_by_side_in(("t", ""), (&["n", "m"], &[1]), "base", 3, vec![base, twice]);
        let base = table.rows[0].cells[0].unwrap();
        assert_eq!((base.lowest, base.median, base.highest), (2.0, 3.0, 4.0));
        let ratio = table.rows[1].ratio.unwrap();
        assert_eq!((ratio.lowest, ratio.highest), (1.0, 2.0));
        assert_eq!((table.ratio("twice", 0).lowest, table.ratio("twice", 1).median), (1.0, 3.0));
        assert!(table.rows[0].ratio.is_none());
    }
}
