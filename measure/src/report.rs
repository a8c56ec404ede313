//! What a group of measurements says: kept as JSON, from which the page and the plots are made.

use std::{collections::BTreeMap, fmt, fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::page;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What it was measured on and with. No names of hosts or people.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Machine {
    /// The day.
    pub date: String,
    /// Operating system and architecture.
    pub system: String,
    /// As many as this process may use.
    pub cores: usize,
    /// All of its memory.
    pub memory_gib: f64,
    /// The load average of the minute before: what else went on.
    pub load_before: f32,
    /// Of what was measured, and of what it was built with.
    pub versions: BTreeMap<String, String>,
}

/// A group.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Report {
    /// Its name on the command line, and that of its files.
    pub group: String,
    /// Its headline.
    pub title: String,
    /// The command that measures it again.
    pub command: String,
    /// Where it was measured.
    pub machine: Machine,
    /// How often each thing was measured; some tables take fewer.
    pub rounds: usize,
    /// The first one is drawn.
    pub tables: Vec<Table>,
    /// What was aimed at.
    pub goals: Vec<Goal>,
    /// Tables to be drawn as curves; if there are none, the first table is drawn row by row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<String>,
    /// Paragraphs that explain the figures.
    pub notes: Vec<String>,
}

/// Things measured side by side.
#[derive(Debug, Deserialize, Serialize)]
pub struct Table {
    /// Its headline.
    pub name: String,
    /// How it was measured.
    pub about: String,
    /// What is measured, each with its unit.
    pub columns: Vec<String>,
    /// The row that the others' first column is divided by, round by round.
    pub baseline: String,
    /// Columns beside the first that are compared with the baseline's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<usize>,
    /// What was compared.
    pub rows: Vec<Row>,
}

/// One of the things that were compared.
#[derive(Debug, Deserialize, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// One for each column; `None` where it makes no sense.
    pub cells: Vec<Option<Spread>>,
    /// To the baseline.
    pub ratio: Option<Spread>,
    /// The same of the columns in [`Table::also`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Option<Spread>>,
}

/// A figure over its rounds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

/// What was aimed at, and what came of it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Goal {
    /// The goal, and the figure that came of it.
    pub what: String,
    /// Whether it was reached.
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

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&page::spread(*self))
    }
}

impl Table {
    /// A row's figure; NaN if there is none.
    pub fn median(&self, row: &str, column: usize) -> f64 {
        let cell = self.row(row).and_then(|row| *row.cells.get(column)?);
        cell.map_or(f64::NAN, |spread| spread.median)
    }

    /// What a row's figure is to the baseline's: of the first column, or one of [`Table::also`]. NaN if it was
    /// not compared.
    pub fn ratio(&self, row: &str, column: usize) -> Spread {
        let also = self.also.iter().position(|&it| it == column);
        let ratio = self.row(row).and_then(|row| match (column, also) {
            (0, _) => row.ratio,
            (_, Some(index)) => *row.also.get(index)?,
            _ => None,
        });
        ratio.unwrap_or(Spread { median: f64::NAN, lowest: f64::NAN, highest: f64::NAN })
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// A path within the repository that this was built from.
pub fn path(below: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", below].iter().collect()
}

/// Keeps a group's figures.
///
/// # Errors
/// The file cannot be written.
pub fn save(report: &Report) -> Result<()> {
    let file = path(&format!("bench/results/{}.json", report.group));
    fs::create_dir_all(path("bench/results"))?;
    fs::write(file, serde_json::to_string_pretty(report)? + "\n")?;
    Ok(())
}

/// All that were measured, by name.
///
/// # Errors
/// A file cannot be read, or is none of ours.
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
