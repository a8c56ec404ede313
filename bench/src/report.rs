//! What a group of measurements says: kept as JSON, from which the page and the plots are made.

use std::{fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A group.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Report {
    pub group: String,
    pub title: String,
    /// The command that measures it again.
    pub command: String,
    pub machine: Machine,
    pub rounds: usize,
    pub tables: Vec<Table>,
    pub goals: Vec<Goal>,
    /// Paragraphs that explain the figures.
    pub notes: Vec<String>,
}

/// Things measured side by side.
#[derive(Debug, Deserialize, Serialize)]
pub struct Table {
    pub name: String,
    pub about: String,
    pub columns: Vec<String>,
    /// The row that the others' first column is divided by, round by round.
    pub baseline: String,
    pub rows: Vec<Row>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Row {
    pub name: String,
    /// One for each column; `None` where it makes no sense.
    pub cells: Vec<Option<Spread>>,
    /// To the baseline.
    pub ratio: Option<Spread>,
}

/// A figure over its rounds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Spread {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

/// What was aimed at, and what came of it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Goal {
    pub what: String,
    pub met: bool,
}

impl Spread {
    /// `None` of no rounds.
    pub fn of(rounds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        let (lowest, highest) = (*rounds.first()?, *rounds.last()?);
        let median = (rounds[(rounds.len() - 1) / 2] + rounds[rounds.len() / 2]) / 2.0;
        Some(Self { median, lowest, highest })
    }
}

impl Table {
    /// A row's figure.
    pub fn median(&self, row: &str, column: usize) -> f64 {
        let row = self.rows.iter().find(|it| it.name == row).expect("a row of this table");
        row.cells[column].map_or(f64::NAN, |spread| spread.median)
    }
}

/// A path within the repository.
pub fn path(below: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", below].iter().collect()
}

pub fn save(report: &Report) -> Result<()> {
    let file = path(&format!("bench/results/{}.json", report.group));
    fs::create_dir_all(file.parent().expect("a folder"))?;
    fs::write(file, serde_json::to_string_pretty(report)? + "\n")?;
    Ok(())
}

/// All that were measured, by name.
pub fn load() -> Result<Vec<Report>> {
    let files = fs::read_dir(path("bench/results"))?.collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<_> = files.into_iter().map(|file| file.path()).collect();
    files.retain(|file| file.extension().is_some_and(|it| it == "json"));
    files.sort();
    files.iter().map(|file| Ok(serde_json::from_slice(&fs::read(file)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_and_both_ends() {
        let spread = Spread::of([3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((spread.median, spread.lowest, spread.highest), (2.5, 1.0, 10.0));
        assert!(Spread::of([]).is_none());
    }
}
