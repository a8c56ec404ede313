//! The questions of the suite, and three unlike ways to the answer. Whoever asks knows it, so that a wrong
//! answer cannot pass for a good one.

use std::{fmt, str::FromStr};

/// Questions are at most so large: the slowest way must be quick enough.
pub const LARGEST: u64 = 4_096;

/// How a node finds its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// n(n+1)(2n+1)/6.
    Formula,
    /// Adds up.
    Loop,
    /// Has added up before.
    Table,
}

impl Path {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Formula, Self::Loop, Self::Table];

    /// Its name, which is also that of the node that goes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Formula => "formula",
            Self::Loop => "loop",
            Self::Table => "table",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|path| path.name() == text);
        named.ok_or_else(|| format!("no path {text}; there are formula, loop and table"))
    }
}

/// The sum of the squares of 1 to `number`, for whoever asks.
pub fn expected(number: u64) -> u64 {
    let n = u128::from(number);
    // Truncated on purpose: answers are modulo 2^64.
    (n * (n + 1) * (2 * n + 1) / 6) as u64
}

/// What a node answers with.
#[derive(Debug)]
pub struct Answers {
    path: Path,
    table: Vec<u64>,
}

impl Answers {
    /// Prepares a path.
    pub fn new(path: Path) -> Self {
        let squares = 0..=(if path == Path::Table { LARGEST } else { 0 });
        let table = squares.scan(0_u64, |sum, n| {
            *sum = sum.wrapping_add(n.wrapping_mul(n));
            Some(*sum)
        });
        Self { path, table: table.collect() }
    }

    /// How it answers.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The answer; `None`: the question is too large.
    pub fn find(&self, number: u64) -> Option<u64> {
        if number > LARGEST {
            return None;
        }
        match self.path {
            Path::Formula => Some(expected(number)),
            Path::Loop => Some((1..=number).fold(0, |sum, n| sum.wrapping_add(n.wrapping_mul(n)))),
            Path::Table => self.table.get(usize::try_from(number).ok()?).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_paths_lead_to_the_same_answer() {
        for path in Path::ALL {
            let answers = Answers::new(path);
            for number in [0, 1, 2, 3, 100, LARGEST] {
                assert_eq!(answers.find(number), Some(expected(number)), "{path} {number}");
            }
            assert_eq!(answers.find(LARGEST + 1), None);
            assert_eq!(path.name().parse(), Ok(path));
        }
        assert_eq!(expected(3), 14);
    }
}
