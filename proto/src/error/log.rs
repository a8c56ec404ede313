//! The log of errors: each once, whole, and a flood of one failure a few times and then by numbers.

use std::{
    collections::{HashMap, VecDeque},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::Error;
use crate::v1;

/// What counts as one flood.
const WINDOW: Duration = Duration::from_secs(10);
/// Errors of a group that are logged whole in a window.
const WHOLE: u32 = 20;
/// Groups whose floods are told apart; those that are too many share one allowance.
const MOST_GROUPS: usize = 1_024;
/// The latest errors, which are not logged again when they pass a second place in this process.
const MOST_RECENT: usize = 256;
/// Longest text of the log, in bytes.
const LONGEST: usize = 64 * 1024;

impl Error {
    /// Writes the whole record to the log (target `wardkeep::error`): ERROR if it is malformed, else
    /// WARN. Once in a process, however often this is called; of a flood of the same failure, the first
    /// in every ten seconds, and how many there were.
    ///
    /// With OTLP export the line is a log record with `exception.type` and `exception.stacktrace`, as in
    /// OpenTelemetry's conventions for exceptions.
    pub fn log(&self) {
        if !self.is_for_the_log() {
            return;
        }
        let e = self.as_proto();
        macro_rules! record {
            ($level:ident) => {
                tracing::$level!(target: "wardkeep::error", code = ?self.code(), error.id = %e.id,
                    exception.type = %format_args!("{}/{}", e.domain, e.kind),
                    machine = %e.machine, node = %e.node, ward = %e.ward, incarnation = e.incarnation,
                    group = %e.group_hash, exact = %e.exact_hash, request = %e.request_id,
                    trace = %e.trace_id, malformed = e.malformed,
                    exception.stacktrace = %Stack(&e.hops),
                    causes = ?e.causes.iter().map(|c| cut(&c.what)).collect::<Vec<_>>(),
                    "{}", cut(&e.what))
            };
        }
        if e.malformed { record!(error) } else { record!(warn) }
    }

    /// Logs the error, and has it written down by the node whose call is being served, if one is: so that
    /// its ID can be looked up. For errors that do not themselves leave through that node.
    pub fn record(&self) {
        self.log();
        if let Some(recorder) = crate::context::current().and_then(|context| context.recorder.clone()) {
            recorder.write(self);
        }
    }

    /// One line for an error that was made elsewhere and passes through: its record is there. Of a flood,
    /// as few as [`Error::log`] writes.
    pub fn log_passing(&self) {
        if !self.is_for_the_log() {
            return;
        }
        let e = self.as_proto();
        tracing::info!(target: "wardkeep::error", code = ?self.code(), error.id = %e.id, node = %e.node,
            ward = %e.ward, machine = %e.machine, "passed on: {}/{}", e.domain, e.kind);
    }

    fn is_for_the_log(&self) -> bool {
        let verdict = book().admit(self.group_hash(), self.id(), Instant::now());
        if let Verdict::WholeAfter(kept_back) = verdict {
            tell(self.group_hash(), kept_back);
        }
        verdict != Verdict::KeepBack
    }
}

/// Tells how many errors were kept out of the log by floods that are over. For whoever has a clock; a
/// flood that goes on is told of anyway.
pub fn tell_kept_back(now: Instant) {
    // The book is closed before anything is written.
    let told = book().settle(now);
    for (group, kept_back) in told {
        tell(&group, kept_back);
    }
}

/// Whether a line that is no error of its own is logged: as few of a kind as of errors of a group.
pub(super) fn admits(kind: &str) -> bool {
    let verdict = book().admit(kind, "", Instant::now());
    if let Verdict::WholeAfter(kept_back) = verdict {
        tell(kind, kept_back);
    }
    verdict != Verdict::KeepBack
}

fn tell(group: &str, kept_back: u64) {
    tracing::warn!(target: "wardkeep::error", group, kept_back,
        "{kept_back} more errors of this group were kept out of the log");
}

/// A text as the log takes it.
pub(super) fn cut(text: &str) -> &str {
    crate::prefix(text, LONGEST)
}

/// A stack on one line, where it arose first.
struct Stack<'a>(&'a [v1::Hop]);

impl std::fmt::Display for Stack<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, hop) in self.0.iter().rev().enumerate() {
            if i > 0 {
                f.write_str(" <- ")?;
            }
            for site in &hop.sites {
                write!(f, "{}:{} ", site.file, site.line)?;
            }
            write!(f, "{} on {}", hop.method, hop.machine)?;
            if !hop.node.is_empty() {
                write!(f, " ({}/{}#{})", hop.node, hop.ward, hop.incarnation)?;
            }
        }
        Ok(())
    }
}

fn book() -> MutexGuard<'static, Book> {
    static BOOK: LazyLock<Mutex<Book>> = LazyLock::new(Mutex::default);
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Decides what is logged.
#[derive(Default)]
struct Book {
    groups: HashMap<String, Flood>,
    recent: VecDeque<u128>,
}

struct Flood {
    since: Instant,
    whole: u32,
    kept_back: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Whole,
    /// And say that so many of the last window were kept back.
    WholeAfter(u64),
    KeepBack,
}

impl Book {
    fn admit(&mut self, group: &str, id: &str, now: Instant) -> Verdict {
        if let Ok(id) = Uuid::try_parse(id) {
            let id = id.as_u128();
            if self.recent.contains(&id) {
                return Verdict::KeepBack;
            }
            if self.recent.len() == MOST_RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(id);
        }
        if self.groups.len() >= MOST_GROUPS && !self.groups.contains_key(group) {
            self.groups.retain(|_, flood| flood.kept_back > 0 || now < flood.since + WINDOW);
        }
        let full = self.groups.len() >= MOST_GROUPS && !self.groups.contains_key(group);
        let key = if full { "" } else { group };
        let Some(flood) = self.groups.get_mut(key) else {
            self.groups.insert(key.to_owned(), Flood { since: now, whole: 1, kept_back: 0 });
            return Verdict::Whole;
        };
        if now >= flood.since + WINDOW {
            let kept_back = std::mem::replace(flood, Flood { since: now, whole: 1, kept_back: 0 }).kept_back;
            return if kept_back > 0 { Verdict::WholeAfter(kept_back) } else { Verdict::Whole };
        }
        if flood.whole < WHOLE {
            flood.whole += 1;
            return Verdict::Whole;
        }
        flood.kept_back += 1;
        Verdict::KeepBack
    }

    /// Takes the numbers of floods that are over.
    fn settle(&mut self, now: Instant) -> Vec<(String, u64)> {
        let mut told = Vec::new();
        self.groups.retain(|group, flood| {
            let over = now >= flood.since + WINDOW;
            if over && flood.kept_back > 0 {
                told.push((group.clone(), flood.kept_back));
            }
            !over
        });
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> String {
        Uuid::from_u128(n.into()).to_string()
    }

    #[test]
    fn a_flood_is_logged_a_few_times_and_then_counted() {
        let (mut book, begin) = (Book::default(), Instant::now());
        let written = (0..100_000).filter(|n| book.admit("g", &id(*n), begin) != Verdict::KeepBack).count();
        assert_eq!(written, WHOLE as usize);
        let kept_back = 100_000 - u64::from(WHOLE);
        assert_eq!(book.admit("g", "later", begin + WINDOW), Verdict::WholeAfter(kept_back));
    }

    #[test]
    fn the_end_of_a_flood_is_told_without_another_error() {
        let (mut book, begin) = (Book::default(), Instant::now());
        for n in 0..30 {
            book.admit("g", &id(n), begin);
        }
        assert!(book.settle(begin).is_empty());
        assert_eq!(book.settle(begin + WINDOW), [("g".to_owned(), 10)]);
        assert!(book.settle(begin + WINDOW).is_empty());
    }

    #[test]
    fn an_error_that_passes_twice_is_logged_once() {
        let (mut book, now) = (Book::default(), Instant::now());
        assert_eq!(book.admit("g", &id(1), now), Verdict::Whole);
        assert_eq!(book.admit("g", &id(1), now), Verdict::KeepBack);
        assert_eq!(book.groups["g"].kept_back, 0);
    }

    #[test]
    fn ever_new_groups_are_bounded() {
        let (mut book, now) = (Book::default(), Instant::now());
        for n in 0..3 * MOST_GROUPS as u64 {
            book.admit(&format!("g{n}"), &id(n), now);
        }
        assert!(book.groups.len() <= MOST_GROUPS + 1);
        assert!(book.groups[""].kept_back > 0);
    }
}
