//! Counts of instructions, kept beside the code: a rise beyond a tenth is a failure, and nothing but a person
//! who means it changes what is kept.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use crate::report;

/// How many instructions each piece of work takes, by its name.
pub type Counts = BTreeMap<String, u64>;

/// A count may be so many percent higher than the one that is kept.
pub const LEEWAY: u64 = 10;

/// Where they are kept.
pub fn file() -> PathBuf {
    report::path("bench/counts.json")
}

/// Those that are kept.
///
/// # Errors
/// The file cannot be read.
pub fn kept() -> io::Result<Counts> {
    Ok(serde_json::from_slice(&fs::read(file())?)?)
}

/// Keeps these from now on.
///
/// # Errors
/// The file cannot be written.
pub fn keep(counts: &Counts) -> io::Result<()> {
    fs::write(file(), serde_json::to_string_pretty(counts)? + "\n")
}

/// What callgrind wrote into its file says in all; `None` if nothing was counted.
pub fn total(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    total.trim().parse().ok().filter(|total| *total > 0)
}

/// Compares counts with those that are kept: a line for each, and whether all is well.
pub fn compare(kept: &Counts, now: &Counts) -> (Vec<String>, bool) {
    let mut well = true;
    let mut lines = Vec::new();
    for (name, &count) in now {
        let verdict = match kept.get(name) {
            None => {
                well = false;
                "is not in the file".to_owned()
            }
            Some(&before) => {
                // A ratio of what is far below 2^53.
                let percent = (count as f64 / before as f64 - 1.0) * 100.0;
                let too_many = count.saturating_mul(100) > before.saturating_mul(100 + LEEWAY);
                well &= !too_many;
                format!("{percent:+.1} % of {before}{}", if too_many { ": too many" } else { "" })
            }
        };
        lines.push(format!("{name:30} {count:>12} {verdict}"));
    }
    for name in kept.keys().filter(|name| !now.contains_key(*name)) {
        well = false;
        lines.push(format!("{name:30} is in the file, and was not counted"));
    }
    (lines, well)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(list: &[(&str, u64)]) -> Counts {
        list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn a_tenth_more_passes_and_anything_beyond_fails() {
        let kept = counts(&[("pulse", 1_000), ("pick", 10)]);
        for (pulse, well) in [(1, true), (1_000, true), (1_100, true), (1_101, false)] {
            assert_eq!(compare(&kept, &counts(&[("pulse", pulse), ("pick", 10)])).1, well, "{pulse}");
        }
    }

    #[test]
    fn what_is_new_or_gone_is_a_failure_until_the_file_says_so() {
        let kept = counts(&[("pulse", 1_000)]);
        assert!(!compare(&kept, &counts(&[])).1);
        let (lines, well) = compare(&kept, &counts(&[("pick", 10), ("pulse", 1_000)]));
        assert!(!well && lines[0].contains("is not in the file"), "{lines:?}");
    }

    #[test]
    fn a_count_of_nothing_is_none() {
        assert_eq!(total("events: Ir\ntotals: 1234\n"), Some(1_234));
        assert_eq!((total("totals: 0"), total("summary: 7")), (None, None));
    }
}
