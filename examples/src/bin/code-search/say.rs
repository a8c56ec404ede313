//! The story on stderr, line by line, and progress where someone watches.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::Mutex,
};

use indicatif::{ProgressBar, ProgressStyle};
use wardkeep_examples::search::Progress;

/// Tells the story. stdout is for the result alone.
pub(crate) struct Say {
    terminal: bool,
}

impl Say {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    pub(crate) fn line(&self, text: &str) {
        // Nobody may be listening; the work goes on.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A bar on a terminal, nothing elsewhere.
    pub(crate) fn progress(&self) -> Bar {
        let bar = if self.terminal { ProgressBar::no_length() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{msg:>10} {wide_bar} {bytes}/{total_bytes}") {
            bar.set_style(style);
        }
        Bar { bar, stage: Mutex::new("") }
    }
}

pub(crate) struct Bar {
    bar: ProgressBar,
    stage: Mutex<&'static str>,
}

impl Bar {
    pub(crate) fn at(&self, progress: Progress) {
        if let Ok(mut stage) = self.stage.lock()
            && *stage != progress.stage
        {
            *stage = progress.stage;
            self.bar.set_message(progress.stage);
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }

    pub(crate) fn done(&self) {
        self.bar.finish_and_clear();
    }
}
