//! What programs print: read line by line, logged, and the last of it kept. A program that prints
//! without end costs a bounded share of memory and time: it is read no faster than a certain pace,
//! which is then its own, and not every line is logged.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    time::{Instant, sleep_until, timeout_at},
};
use wardkeep_proto::{timestamp, v1};

use crate::{context::Incarnation, text::cut};

/// A line longer than this is cut.
const LONGEST_LINE: usize = 4_096;
/// Read at once; nobody else has their turn meanwhile.
const CHUNK: usize = 8 * 1_024;
const TURN: Duration = Duration::from_millis(100);
/// Read in a turn, of each stream: 20 MiB and 200,000 lines a second.
const BYTES_A_TURN: usize = 2 * 1_024 * 1_024;
const LINES_A_TURN: usize = 20_000;
/// Logged in a turn, of each stream: 1,000 lines a second.
const LOGGED_A_TURN: usize = 100;

/// How much of a program's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutputLimits {
    pub(crate) lines: usize,
    /// What lines take beside their text included.
    pub(crate) bytes: usize,
}

impl Default for OutputLimits {
    fn default() -> Self {
        Self { lines: 1_000, bytes: 256 * 1_024 }
    }
}

/// The last lines that a ward's programs printed, over its incarnations.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    limits: OutputLimits,
    lines: VecDeque<Line>,
    bytes: usize,
    /// Sequence number of the last line there was.
    newest: u64,
}

#[derive(Debug)]
struct Line {
    at: DateTime<Utc>,
    incarnation: u64,
    stream: v1::OutputStream,
    text: Box<str>,
    cut: bool,
}

/// Some of the lines, for a message.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Page {
    pub(crate) lines: Vec<v1::OutputLine>,
    /// Lines before these that are not kept any more.
    pub(crate) dropped: u64,
    /// Sequence number of the last line there was.
    pub(crate) newest: u64,
}

impl Line {
    fn size(&self) -> usize {
        self.text.len() + size_of::<Self>()
    }
}

impl Kept {
    fn trim(&mut self) {
        while self.lines.len() > self.limits.lines || self.bytes > self.limits.bytes {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.size();
        }
    }
}

impl Tail {
    pub(crate) fn new(limits: OutputLimits) -> Self {
        Self { kept: Mutex::new(Kept { limits, ..Kept::default() }) }
    }

    /// Keeps so much from now on.
    pub(crate) fn limit(&self, limits: OutputLimits) {
        let kept = &mut *self.kept();
        kept.limits = limits;
        kept.trim();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Line) {
        let kept = &mut *self.kept();
        kept.newest += 1;
        kept.bytes += line.size();
        kept.lines.push_back(line);
        kept.trim();
    }

    /// Sequence number of the last line there was; 0: none yet.
    pub(crate) fn newest(&self) -> u64 {
        self.kept().newest
    }

    /// Lines after `after`, of these the newest so many (0: all); a part of them where they are more
    /// than `most` lines or bytes.
    pub(crate) fn read(&self, after: u64, newest: u64, most: (usize, usize)) -> Page {
        let kept = self.kept();
        let first = kept.newest + 1 - kept.lines.len() as u64;
        let wanted = match newest {
            0 => after.saturating_add(1),
            // What was not asked for is not missed.
            n => after.saturating_add(1).max((kept.newest + 1).saturating_sub(n)).max(first),
        };
        let begin = wanted.max(first);
        let mut page = Page { dropped: begin.saturating_sub(wanted), newest: kept.newest, lines: Vec::new() };
        let mut bytes = 0;
        let skipped = usize::try_from(begin - first).unwrap_or(usize::MAX);
        for (line, sequence) in kept.lines.iter().skip(skipped).zip(begin..).take(most.0) {
            bytes += line.size();
            if bytes > most.1 && !page.lines.is_empty() {
                break;
            }
            page.lines.push(v1::OutputLine {
                sequence,
                at: Some(timestamp(line.at)),
                incarnation: line.incarnation,
                stream: line.stream.into(),
                text: line.text.to_string(),
                cut: line.cut,
            });
        }
        page
    }
}

/// Reads one stream of a program to its end.
pub(super) async fn read(
    from: Option<impl AsyncRead + Unpin>,
    stream: v1::OutputStream,
    incarnation: &Incarnation,
    tail: &Tail,
) {
    let Some(from) = from else { return };
    let mut reader = BufReader::with_capacity(CHUNK, from);
    let mut lines = Lines { stream, incarnation, tail, line: Vec::new(), long: false, pace: Pace::new() };
    loop {
        let available = if lines.pace.unlogged == 0 {
            reader.fill_buf().await
        } else {
            // A flood that is over has its end told.
            match timeout_at(lines.pace.ends, reader.fill_buf()).await {
                Ok(available) => available,
                Err(_) => {
                    lines.turn().await;
                    continue;
                }
            }
        };
        // A stream that cannot be read has ended, too.
        let Ok(available @ [_, ..]) = available else { return };
        let length = available.len();
        lines.take(available);
        reader.consume(length);
        lines.turn().await;
    }
}

/// A stream's lines as they come. What stands without a line end when this is dropped is the last one.
struct Lines<'a> {
    stream: v1::OutputStream,
    incarnation: &'a Incarnation,
    tail: &'a Tail,
    line: Vec<u8>,
    /// The line has more bytes than are kept of it.
    long: bool,
    pace: Pace,
}

struct Pace {
    ends: Instant,
    bytes: usize,
    lines: usize,
    logged: usize,
    unlogged: u64,
}

impl Pace {
    fn new() -> Self {
        Self { ends: Instant::now() + TURN, bytes: 0, lines: 0, logged: 0, unlogged: 0 }
    }
}

impl Lines<'_> {
    fn take(&mut self, bytes: &[u8]) {
        let now = Utc::now();
        self.pace.bytes += bytes.len();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            self.long |= text.len() > room;
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                self.end_line(now);
            }
        }
    }

    fn end_line(&mut self, at: DateTime<Utc>) {
        let bytes = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        // What stands for bytes that are not UTF-8 is longer than they are.
        let cut = cut(&mut text, LONGEST_LINE) || self.long;
        self.pace.lines += 1;
        if self.pace.logged < LOGGED_A_TURN {
            self.pace.logged += 1;
            self.log(&text);
        } else {
            self.pace.unlogged += 1;
        }
        let incarnation = self.incarnation.number;
        self.tail.push(Line { at, incarnation, stream: self.stream, text: text.into_boxed_str(), cut });
        self.line.clear();
        self.long = false;
    }

    fn log(&self, text: &str) {
        let Self { incarnation, stream, .. } = self;
        tracing::info!(target: "ward", ward = %incarnation.ward, incarnation = incarnation.number,
            stream = name(*stream), "{text}");
    }

    /// Lets others have their turn; waits for the next where all of this one is used.
    async fn turn(&mut self) {
        if self.pace.bytes >= BYTES_A_TURN || self.pace.lines >= LINES_A_TURN {
            sleep_until(self.pace.ends).await;
        } else {
            tokio::task::yield_now().await;
        }
        if Instant::now() >= self.pace.ends {
            self.tell_unlogged();
            self.pace = Pace::new();
        }
    }

    fn tell_unlogged(&self) {
        if self.pace.unlogged > 0 {
            let Self { incarnation, stream, pace, .. } = self;
            tracing::warn!(target: "ward", ward = %incarnation.ward, incarnation = incarnation.number,
                stream = name(*stream), "{} lines are not in this log: too many at once", pace.unlogged);
        }
    }
}

impl Drop for Lines<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.end_line(Utc::now());
        }
        self.tell_unlogged();
    }
}

fn name(stream: v1::OutputStream) -> &'static str {
    match stream {
        v1::OutputStream::Stdout => "stdout",
        v1::OutputStream::Stderr => "stderr",
        v1::OutputStream::Unspecified => "?",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: (usize, usize) = (500, 64 * 1_024);

    fn tail(lines: usize, bytes: usize) -> Tail {
        Tail::new(OutputLimits { lines, bytes })
    }

    fn print(tail: &Tail, text: &str) {
        let (at, stream) = (DateTime::UNIX_EPOCH, v1::OutputStream::Stdout);
        tail.push(Line { at, incarnation: 1, stream, text: text.into(), cut: false });
    }

    fn texts(page: &Page) -> Vec<&str> {
        page.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn the_newest_lines_are_kept_and_those_that_are_gone_are_counted() {
        let tail = tail(3, 10_000);
        for n in 1..=5 {
            print(&tail, &n.to_string());
        }
        let all = tail.read(0, 0, MOST);
        assert_eq!((texts(&all), all.dropped, all.newest), (vec!["3", "4", "5"], 2, 5));
        assert_eq!(all.lines.iter().map(|line| line.sequence).collect::<Vec<_>>(), [3, 4, 5]);
        let newest = tail.read(0, 2, MOST);
        assert_eq!((texts(&newest), newest.dropped), (vec!["4", "5"], 0));
        let more_than_there_are = tail.read(0, 9, MOST);
        assert_eq!((texts(&more_than_there_are), more_than_there_are.dropped), (vec!["3", "4", "5"], 0));
        let after = tail.read(4, 0, MOST);
        assert_eq!((texts(&after), after.dropped), (vec!["5"], 0));
        assert!(tail.read(5, 0, MOST).lines.is_empty());
        // From another life of the node.
        assert!(tail.read(u64::MAX, 0, MOST).lines.is_empty());
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_to_be() {
        let tail = tail(0, 10_000);
        print(&tail, "secret");
        let page = tail.read(0, 0, MOST);
        assert_eq!((page.lines.len(), page.dropped, page.newest), (0, 1, 1));
    }

    proptest! {
        #[test]
        fn a_tail_stays_within_its_limits_and_pages_add_up(
            sizes in proptest::collection::vec(0_usize..300, 0..60),
            lines in 0_usize..20,
            bytes in 0_usize..4_000,
            most in 1_usize..7,
        ) {
            let tail = tail(lines, bytes);
            for size in &sizes {
                print(&tail, &"x".repeat(*size));
            }
            prop_assert!(tail.kept().bytes <= bytes && tail.kept().lines.len() <= lines);
            let counted: usize = tail.kept().lines.iter().map(Line::size).sum();
            prop_assert_eq!(counted, tail.kept().bytes);
            let (mut after, mut seen, mut dropped) = (0, 0, 0);
            loop {
                let page = tail.read(after, 0, (most, 500));
                dropped += page.dropped;
                let Some(last) = page.lines.last() else { break };
                prop_assert!(page.lines.len() <= most);
                prop_assert_eq!(page.lines[0].sequence, after + page.dropped + 1);
                (after, seen) = (last.sequence, seen + page.lines.len() as u64);
            }
            prop_assert_eq!(seen + dropped, sizes.len() as u64);
        }
    }
}
