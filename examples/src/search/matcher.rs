//! The one place that turns text into hits: all engines share it, so they cannot disagree on lines and columns.

use memchr::{memchr, memchr_iter, memmem, memrchr};

use super::{Hit, KeepGoing, Query, Stopped};

/// Text read between two questions to the caller, in bytes.
const STRIDE: usize = 64 * 1024;
/// Characters of a line that a hit shows.
const SHOWN_CHARS: usize = 200;

/// Finds the lines of a text that contain the query.
pub(super) struct Matcher<'q> {
    finder: memmem::Finder<'q>,
    width: usize,
}

impl<'q> Matcher<'q> {
    pub(super) fn new(query: &'q Query) -> Self {
        let needle = query.as_str().as_bytes();
        Self { finder: memmem::Finder::new(needle), width: needle.len() }
    }

    /// Appends one hit per matching line of this file until `hits` has `upto` of them.
    pub(super) fn collect(
        &self,
        path: &str,
        text: &str,
        upto: usize,
        hits: &mut Vec<Hit>,
        keep_going: KeepGoing<'_>,
    ) -> Result<(), Stopped> {
        let bytes = text.as_bytes();
        let (mut from, mut line, mut counted) = (0, 1, 0);
        while hits.len() < upto {
            let Some(found) = self.next(bytes, from, keep_going)? else { break };
            line += memchr_iter(b'\n', &bytes[counted..found]).count();
            counted = found;
            let start = memrchr(b'\n', &bytes[..found]).map_or(0, |newline| newline + 1);
            let end = memchr(b'\n', &bytes[found..]).map_or(bytes.len(), |newline| found + newline);
            hits.push(Hit {
                path: path.to_owned(),
                line: count(line),
                column: count(found - start + 1),
                text: shown(&text[start..end]).to_owned(),
            });
            from = end;
        }
        Ok(())
    }

    /// Where the query next occurs at or after `from`.
    fn next(
        &self,
        bytes: &[u8],
        mut from: usize,
        keep_going: KeepGoing<'_>,
    ) -> Result<Option<usize>, Stopped> {
        loop {
            if !keep_going() {
                return Err(Stopped);
            }
            let end = bytes.len().min(from + STRIDE + self.width - 1);
            if let Some(at) = self.finder.find(&bytes[from..end]) {
                return Ok(Some(from + at));
            }
            if end == bytes.len() {
                return Ok(None);
            }
            from += STRIDE;
        }
    }
}

/// Files are at most [`super::MAX_FILE_BYTES`] long, so the numbers fit.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn shown(line: &str) -> &str {
    let line = line.strip_suffix('\r').unwrap_or(line);
    line.char_indices().nth(SHOWN_CHARS).map_or(line, |(end, _)| &line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(query: &str, text: &str) -> Vec<(u32, u32, String)> {
        let query = Query::new(query).unwrap();
        let mut hits = Vec::new();
        Matcher::new(&query).collect("f", text, usize::MAX, &mut hits, &|| true).unwrap();
        hits.into_iter().map(|hit| (hit.line, hit.column, hit.text)).collect()
    }

    #[test]
    fn a_line_is_one_hit_at_its_first_column() {
        assert_eq!(hits("aaa", "aaaa aaa\nb\n aaa"), [(1, 1, "aaaa aaa".into()), (3, 2, " aaa".into())]);
    }

    #[test]
    fn the_end_of_a_line_is_not_shown() {
        assert_eq!(hits("one", "one\r\ntwo\r\n"), [(1, 1, "one".into())]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = "é".repeat(300);
        assert_eq!(hits("éé", &text), [(1, 1, "é".repeat(200))]);
    }

    #[test]
    fn a_match_across_a_stride_is_found_at_its_place() {
        for shift in 0..8 {
            let text = format!("{}needle\nneedle", "x".repeat(STRIDE - shift));
            let found: Vec<_> =
                hits("needle", &text).into_iter().map(|(line, column, _)| (line, column)).collect();
            assert_eq!(found, [(1, u32::try_from(STRIDE - shift + 1).unwrap()), (2, 1)]);
        }
    }
}
