//! The solvers: how each is called, and how its answer is read.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A program that solves formulas. Each is a package of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Solver {
    /// MiniSat, the small one that many others come from.
    Minisat,
    /// PicoSAT.
    Picosat,
    /// CaDiCaL.
    Cadical,
    /// CryptoMiniSat, which knows exclusive or.
    Cryptominisat,
    /// clasp, made for answer set programming.
    Clasp,
}

/// What a solver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Yes, and these literals are true.
    Satisfiable(Vec<i32>),
    /// No.
    Unsatisfiable,
}

/// Why what a solver said is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It gave up.
    #[error("it does not know")]
    Unknown,
    /// It failed, or was killed.
    #[error("it ended with {0}")]
    Ended(String),
    /// It does not come to an end.
    #[error("it prints more than anybody reads")]
    Endless,
    /// Exit code and output do not fit together, or the output is none of a solver's.
    #[error("it ended with exit code {code}, and its output does not fit: {why}")]
    Garbled {
        /// The exit code.
        code: i32,
        /// What is wrong.
        why: String,
    },
}

/// Exit codes that all solvers share.
const SATISFIABLE: i32 = 10;
const UNSATISFIABLE: i32 = 20;

impl Solver {
    /// All there are.
    pub const ALL: [Self; 5] =
        [Self::Minisat, Self::Picosat, Self::Cadical, Self::Cryptominisat, Self::Clasp];

    /// Its name, which is that of its package.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minisat => "minisat",
            Self::Picosat => "picosat",
            Self::Cadical => "cadical",
            Self::Cryptominisat => "cryptominisat",
            Self::Clasp => "clasp",
        }
    }

    /// What it is called on `PATH`.
    fn program(self) -> &'static str {
        match self {
            Self::Cryptominisat => "cryptominisat5",
            other => other.name(),
        }
    }

    /// Where it is; `None` if it is not installed.
    pub fn find(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join(self.program())).find(|file| file.is_file())
    }

    /// Those that are installed, and where.
    pub fn installed() -> Vec<(Self, PathBuf)> {
        Self::ALL.into_iter().filter_map(|solver| Some((solver, solver.find()?))).collect()
    }

    /// Arguments to solve this file. MiniSat writes its answer into `result`, the others print it.
    pub fn args(self, formula: &Path, result: &Path) -> Vec<OsString> {
        let mut args: Vec<OsString> = match self {
            Self::Minisat => vec!["-verb=0".into()],
            Self::Picosat => Vec::new(),
            Self::Cadical => vec!["-q".into()],
            Self::Cryptominisat => vec!["--verb".into(), "0".into()],
            Self::Clasp => vec!["--verbose=0".into()],
        };
        args.push(formula.into());
        args.extend((self == Self::Minisat).then(|| result.into()));
        args
    }

    /// What makes it tell its version, if it does.
    pub fn version_arg(self) -> Option<&'static str> {
        (self != Self::Minisat).then_some("--version")
    }

    /// Reads what it said: its exit code, and what it printed or, MiniSat, wrote.
    ///
    /// # Errors
    /// It is no answer. Whether a model is one, only the formula can tell.
    pub fn read(self, code: i32, said: &[u8]) -> Result<Answer, NoAnswer> {
        if !matches!(code, SATISFIABLE | UNSATISFIABLE) {
            let unknown = code == 0 && self != Self::Picosat;
            let says_so = said.starts_with(b"s UNKNOWN") || said.starts_with(b"INDET");
            return Err(if unknown || says_so {
                NoAnswer::Unknown
            } else {
                NoAnswer::Ended(format!("exit code {code}"))
            });
        }
        let garbled = |why: String| NoAnswer::Garbled { code, why };
        let text = std::str::from_utf8(said).map_err(|_| garbled("it is not text".to_owned()))?;
        let (verdict, model) = if self == Self::Minisat { result_file(text) } else { s_and_v_lines(text) };
        match (code, verdict.map(str::trim_end)) {
            (SATISFIABLE, Some("SATISFIABLE" | "SAT")) => model.map(Answer::Satisfiable).map_err(garbled),
            (UNSATISFIABLE, Some("UNSATISFIABLE" | "UNSAT")) => Ok(Answer::Unsatisfiable),
            (_, Some(other)) => Err(garbled(format!("it says {:?}", cut(other)))),
            (_, None) => Err(garbled("it says neither yes nor no".to_owned())),
        }
    }
}

type Read<'a> = (Option<&'a str>, Result<Vec<i32>, String>);

/// MiniSat's: `SAT` and a line of literals, or `UNSAT`.
fn result_file(text: &str) -> Read<'_> {
    let mut lines = text.lines();
    (lines.next(), literals(lines))
}

/// That of SAT competitions: `s SATISFIABLE`, lines `v 1 -2 ... 0`, and comments.
fn s_and_v_lines(text: &str) -> Read<'_> {
    let verdict = text.lines().find_map(|line| line.strip_prefix("s "));
    (verdict, literals(text.lines().filter_map(|line| line.strip_prefix("v "))))
}

/// The literals up to the 0 that ends them.
fn literals<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<i32>, String> {
    let mut model = Vec::new();
    for word in lines.flat_map(str::split_ascii_whitespace) {
        match i32::from_str(word) {
            Ok(0) => return Ok(model),
            // There is no variable of the lowest number's size.
            Ok(literal) if literal != i32::MIN => model.push(literal),
            _ => return Err(format!("{:?} is not a literal", cut(word))),
        }
    }
    Err("its model does not end".to_owned())
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Solver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|solver| solver.name() == text);
        found.ok_or_else(|| format!("no solver is called {text:?}; there are: {names}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn garbled(code: i32, why: &str) -> Result<Answer, NoAnswer> {
        Err(NoAnswer::Garbled { code, why: why.to_owned() })
    }

    #[test]
    fn printed_answers_are_read_whatever_else_is_printed() {
        let printed = b"c CryptoMiniSat\nv 1 -2\nc in between\nv 3 0\ns SATISFIABLE\n";
        let unsatisfiable = b"c x\ns UNSATISFIABLE\nc y\n";
        for solver in &Solver::ALL[1..] {
            assert_eq!(solver.read(10, printed), Ok(Answer::Satisfiable(vec![1, -2, 3])), "{solver}");
            assert_eq!(solver.read(20, unsatisfiable), Ok(Answer::Unsatisfiable), "{solver}");
            assert_eq!(solver.read(10, b"s SATISFIABLE\nv 0\n"), Ok(Answer::Satisfiable(vec![])), "{solver}");
        }
    }

    #[test]
    fn minisats_file_is_read() {
        let read = |code, text: &[u8]| Solver::Minisat.read(code, text);
        assert_eq!(read(10, b"SAT\n1 -2 3 0\n"), Ok(Answer::Satisfiable(vec![1, -2, 3])));
        assert_eq!(read(20, b"UNSAT\n"), Ok(Answer::Unsatisfiable));
        assert_eq!(read(0, b"INDET\n"), Err(NoAnswer::Unknown));
    }

    #[test]
    fn what_does_not_fit_together_is_no_answer() {
        let read = |code, text: &[u8]| Solver::Cadical.read(code, text);
        assert_eq!(read(20, b"s SATISFIABLE\nv 1 0\n"), garbled(20, "it says \"SATISFIABLE\""));
        assert_eq!(read(10, b"s UNSATISFIABLE\n"), garbled(10, "it says \"UNSATISFIABLE\""));
        assert_eq!(read(10, b""), garbled(10, "it says neither yes nor no"));
        assert_eq!(read(10, b"s SATISFIABLE\n"), garbled(10, "its model does not end"));
        assert_eq!(read(10, b"s SATISFIABLE\nv 1 2\n"), garbled(10, "its model does not end"));
        assert_eq!(read(10, b"s SATISFIABLE\nv 1 two 0\n"), garbled(10, "\"two\" is not a literal"));
        assert_eq!(
            read(10, b"s SATISFIABLE\nv -2147483648 0\n"),
            garbled(10, "\"-2147483648\" is not a literal")
        );
        assert_eq!(read(10, b"s SATISFIABLE\xff\n"), garbled(10, "it is not text"));
    }

    #[test]
    fn a_solver_that_does_not_know_is_told_from_one_that_fails() {
        assert_eq!(Solver::Cadical.read(0, b"c UNKNOWN\n"), Err(NoAnswer::Unknown));
        assert_eq!(Solver::Clasp.read(65, b"s UNKNOWN\n"), Err(NoAnswer::Unknown));
        let failed = |code: i32| Err(NoAnswer::Ended(format!("exit code {code}")));
        assert_eq!(Solver::Cadical.read(1, b""), failed(1));
        // PicoSAT exits like that when it cannot read its input.
        assert_eq!(Solver::Picosat.read(0, b""), failed(0));
        assert_eq!(Solver::Picosat.read(0, b"s UNKNOWN\n"), Err(NoAnswer::Unknown));
    }

    proptest! {
        #[test]
        fn garbage_is_never_an_answer_and_never_a_panic(code in prop_oneof![Just(10), Just(20), -1..256], said: Vec<u8>) {
            for solver in Solver::ALL {
                prop_assert!(solver.read(code, &said).is_err());
            }
        }

        #[test]
        fn near_garbage_is_read_without_a_panic(code in prop_oneof![Just(10), Just(20)], said in "((s|v|SAT|s UNSATISFIABLE|v 0|-?[0-9]{1,12})[ \n]{0,2}){0,9}") {
            for solver in Solver::ALL {
                let _ = solver.read(code, said.as_bytes());
            }
        }

        #[test]
        fn a_model_is_read_however_its_lines_are_broken(model in prop::collection::vec((1..1_000_i32, any::<bool>()), 0..50), width in 1..9_usize) {
            let model: Vec<i32> = model.into_iter().map(|(v, sign)| if sign { v } else { -v }).collect();
            let mut words: Vec<String> = model.iter().map(i32::to_string).collect();
            words.push("0".to_owned());
            let lines: String = words.chunks(width).map(|line| format!("v {}\n", line.join(" "))).collect();
            let said = format!("s SATISFIABLE\n{lines}");
            prop_assert_eq!(Solver::Picosat.read(10, said.as_bytes()), Ok(Answer::Satisfiable(model)));
        }
    }
}
