//! Formulas in conjunctive normal form, and DIMACS, the text that all solvers read.

use std::{fmt::Write as _, str::FromStr as _};

/// Most variables of a formula: a model has to fit into a reply.
pub const MOST_VARIABLES: u32 = 1 << 22;

/// A formula: each clause needs one of its literals to be true. Variables are numbered from 1; a negative
/// literal is true where its variable is false.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formula {
    variables: u32,
    clauses: usize,
    /// All clauses, each ended by a 0, as in DIMACS.
    literals: Vec<i32>,
}

/// Why a text is no formula.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFormula {
    /// No line says how many variables and clauses there are.
    #[error("line {line}: there must be one line \"p cnf VARIABLES CLAUSES\", before the first clause")]
    Header {
        /// Counted from 1.
        line: usize,
    },
    /// More variables than a solver is asked for here.
    #[error("line {line}: {found} variables are more than the {MOST_VARIABLES} that are solved for here")]
    TooLarge {
        /// Counted from 1.
        line: usize,
        /// What the header says.
        found: u64,
    },
    /// Something that is no literal.
    #[error("line {line}: {found:?} is not a literal between 1 and {variables}, or its negation")]
    Literal {
        /// Counted from 1.
        line: usize,
        /// The start of it.
        found: String,
        /// What the header says.
        variables: u32,
    },
    /// The text ends inside a clause.
    #[error("the last clause does not end with 0")]
    Unended,
    /// The text is not whole.
    #[error("the first line promises {promised} clauses, and there are {found}")]
    Clauses {
        /// What the header says.
        promised: u64,
        /// What follows it.
        found: usize,
    },
}

impl Formula {
    /// The formula of these clauses.
    pub fn new<C: AsRef<[i32]>>(clauses: impl IntoIterator<Item = C>) -> Self {
        let mut formula = Self::default();
        for clause in clauses {
            let clause = clause.as_ref().iter().copied().filter(|literal| *literal != 0);
            formula.literals.extend(clause.inspect(|literal| {
                formula.variables = formula.variables.max(literal.unsigned_abs());
            }));
            formula.end_clause();
        }
        formula
    }

    fn end_clause(&mut self) {
        self.literals.push(0);
        self.clauses += 1;
    }

    /// Reads DIMACS CNF: comments, one header, clauses over any number of lines. A line that begins with `%`
    /// ends it, as in the files of SATLIB.
    ///
    /// # Errors
    /// It is none, or not a whole one.
    pub fn parse(dimacs: &[u8]) -> Result<Self, BadFormula> {
        let mut formula = Self::default();
        let mut promised = None;
        let mut last = 0;
        for (at, text) in dimacs.split(|byte| *byte == b'\n').enumerate() {
            let line = at + 1;
            match text.trim_ascii_start().first() {
                None | Some(b'c') => continue,
                Some(b'%') => break,
                Some(b'p') if promised.is_none() => {
                    let header = header(text).ok_or(BadFormula::Header { line })?;
                    formula.variables = u32::try_from(header.0)
                        .ok()
                        .filter(|variables| *variables <= MOST_VARIABLES)
                        .ok_or(BadFormula::TooLarge { line, found: header.0 })?;
                    promised = Some(header.1);
                }
                Some(_) if promised.is_none() => return Err(BadFormula::Header { line }),
                Some(_) => last = formula.read_literals(text, line, last)?,
            }
        }
        let promised = promised.ok_or(BadFormula::Header { line: 1 })?;
        if last != 0 {
            return Err(BadFormula::Unended);
        }
        if promised != formula.clauses as u64 {
            return Err(BadFormula::Clauses { promised, found: formula.clauses });
        }
        Ok(formula)
    }

    /// Returns the last literal read, 0 after a clause that has ended.
    fn read_literals(&mut self, text: &[u8], line: usize, mut last: i32) -> Result<i32, BadFormula> {
        for word in text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            let number = std::str::from_utf8(word).ok().and_then(|word| i32::from_str(word).ok());
            last = number.filter(|literal| literal.unsigned_abs() <= self.variables).ok_or_else(|| {
                let found = String::from_utf8_lossy(word).chars().take(20).collect();
                BadFormula::Literal { line, found, variables: self.variables }
            })?;
            if last == 0 { self.end_clause() } else { self.literals.push(last) }
        }
        Ok(last)
    }

    /// How many variables it may speak of.
    pub fn variables(&self) -> u32 {
        self.variables
    }

    /// Its clauses.
    pub fn clauses(&self) -> impl ExactSizeIterator<Item = &[i32]> {
        let mut rest = self.literals.as_slice();
        (0..self.clauses).map(move |_| {
            let end = rest.iter().position(|literal| *literal == 0).unwrap_or(rest.len());
            let (clause, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            clause
        })
    }

    /// As DIMACS: the same bytes for the same formula, without comments and whatever else solvers may not know.
    pub fn to_dimacs(&self) -> String {
        let mut text = format!("p cnf {} {}\n", self.variables, self.clauses);
        for clause in self.clauses() {
            for literal in clause {
                // Writing to a string does not fail.
                let _ = write!(text, "{literal} ");
            }
            text.push_str("0\n");
        }
        text
    }

    /// The first clause, counted from 1, that has no literal of these; `None` if there is none, and no variable is
    /// both true and false: then they are a model.
    pub fn unsatisfied_by(&self, literals: &[i32]) -> Option<usize> {
        let mut values = vec![0_i32; self.variables as usize + 1];
        for literal in literals {
            // Variables that the formula does not speak of do no harm.
            if let Some(value) = values.get_mut(literal.unsigned_abs() as usize) {
                // Both signs make it 0: no literal of this variable is true.
                *value = if *value == -literal { 0 } else { *literal };
            }
        }
        let holds = |literal: &i32| values[literal.unsigned_abs() as usize] == *literal;
        self.clauses().position(|clause| !clause.iter().any(holds)).map(|at| at + 1)
    }
}

/// Variables and clauses of `p cnf VARIABLES CLAUSES`.
fn header(line: &[u8]) -> Option<(u64, u64)> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    (words.next()? == "p" && words.next()? == "cnf").then_some(())?;
    let header = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn comments_odd_line_breaks_and_the_end_of_satlib_are_read() {
        let text = b"c a comment\np  cnf 3 3\n1 -2\n 0 3 0\r\nc 9 9\n-1\n-3 0\n%\n0\n";
        let formula = Formula::parse(text).unwrap();
        assert_eq!(formula.clauses().collect::<Vec<_>>(), [&[1, -2][..], &[3], &[-1, -3]]);
        assert_eq!(formula.to_dimacs(), "p cnf 3 3\n1 -2 0\n3 0\n-1 -3 0\n");
    }

    #[test]
    fn what_is_no_formula_is_told_by_its_line() {
        let literal = |line, found: &str| BadFormula::Literal { line, found: found.into(), variables: 2 };
        for (text, why) in [
            ("", BadFormula::Header { line: 1 }),
            ("c only\n1 0\n", BadFormula::Header { line: 2 }),
            ("p cnf 2\n", BadFormula::Header { line: 1 }),
            ("p cnf -1 0\n", BadFormula::Header { line: 1 }),
            ("p cnf 2 1 1\n", BadFormula::Header { line: 1 }),
            ("p cnf 99999999999 1\n", BadFormula::TooLarge { line: 1, found: 99_999_999_999 }),
            ("p cnf 2 1\n1 3 0\n", literal(2, "3")),
            ("p cnf 2 1\n1 x 0\n", literal(2, "x")),
            ("p cnf 2 1\n-2147483648 0\n", literal(2, "-2147483648")),
            ("p cnf 2 1\np cnf 2 1\n1 0\n", literal(2, "p")),
            ("p cnf 2 1\n1 2", BadFormula::Unended),
            ("p cnf 2 2\n1 0\n", BadFormula::Clauses { promised: 2, found: 1 }),
        ] {
            assert_eq!(Formula::parse(text.as_bytes()), Err(why), "{text:?}");
        }
    }

    #[test]
    fn a_model_needs_a_true_literal_in_each_clause_and_no_variable_both_ways() {
        let formula = Formula::new([&[1, -2][..], &[2, 3]]);
        assert_eq!(formula.unsatisfied_by(&[1, 2, -3]), None);
        assert_eq!(formula.unsatisfied_by(&[1, 2, 77]), None);
        assert_eq!(formula.unsatisfied_by(&[-1, 2, 3]), Some(1));
        assert_eq!(formula.unsatisfied_by(&[1]), Some(2));
        assert_eq!(formula.unsatisfied_by(&[1, 2, -2]), Some(2));
        assert_eq!(Formula::new([&[][..]]).unsatisfied_by(&[]), Some(1));
        assert_eq!(Formula::default().unsatisfied_by(&[]), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(clauses in prop::collection::vec(prop::collection::vec(-50..50_i32, 0..6), 0..30)) {
            let formula = Formula::new(&clauses);
            prop_assert_eq!(formula.clauses().len(), clauses.len());
            prop_assert_eq!(Formula::parse(formula.to_dimacs().as_bytes()).unwrap(), formula);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(text in "(p cnf [0-9]{1,3} [0-9]{1,2}\n)?[-0-9pc% \n\\PC]{0,60}") {
            let _ = Formula::parse(text.as_bytes());
        }
    }
}
