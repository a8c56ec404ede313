//! The result on stdout, and nothing but the result; everything else on stderr.

use std::{
    env,
    io::{self, ErrorKind, IsTerminal as _, Write as _},
};

use serde::Serialize;

use super::{
    args::Format,
    exit::{Exit, Failure},
};

/// Where a command's result goes, and how it is to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    /// What was asked for with `-o`.
    pub(crate) format: Format,
    /// Columns to fit; `None`: as many as needed.
    pub(crate) width: Option<u16>,
    /// States and verdicts may be coloured.
    pub(crate) colour: bool,
    /// stdout is a terminal.
    pub(crate) terminal: bool,
}

impl Out {
    /// Looks at stdout and the environment (`COLUMNS`, `NO_COLOR`, `TERM`).
    pub(crate) fn new(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let dumb = env::var_os("TERM").is_some_and(|t| t == "dumb");
        let no_colour = env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let columns = env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).filter(|c| *c >= 20);
        let measured = || terminal_size::terminal_size_of(io::stdout()).map(|(w, _)| w.0).filter(|w| *w > 0);
        let width = columns.or_else(|| if terminal { measured().or(Some(80)) } else { None });
        Self { format, width, colour: terminal && !dumb && !no_colour, terminal }
    }

    /// Writes text as it is. A reader who has gone ends the program quietly.
    ///
    /// # Errors
    /// stdout cannot be written.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::quiet()),
            Err(e) => Err(Failure::new(Exit::Failed, format!("cannot write to stdout: {e}"))),
        }
    }

    /// Writes one line.
    ///
    /// # Errors
    /// stdout cannot be written.
    pub(crate) fn line(&self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Writes one JSON document: indented for a terminal, else on one line. With `jsonl` always
    /// on one line.
    ///
    /// # Errors
    /// stdout cannot be written.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let pretty = self.terminal && self.format != Format::Jsonl;
        let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        let text = text.map_err(|e| Failure::new(Exit::Failed, format!("cannot write JSON: {e}")))?;
        self.line(&text)
    }

    /// Tells on stderr how far it is. Silent where stderr is to be read by programs.
    pub(crate) fn progress(&self, line: &str) {
        if !self.format.is_json() {
            stderr_line(line);
        }
    }
}

/// Says on stderr why the command failed.
pub(crate) fn report(failure: &Failure, json: bool) {
    if failure.message.is_empty() {
        return;
    }
    if json { stderr_line(&failure.json().to_string()) } else { stderr_line(&failure.line()) }
}

fn stderr_line(line: &str) {
    // Nobody is left to be told if this fails.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
