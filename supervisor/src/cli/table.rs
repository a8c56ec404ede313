//! Tables for eyes: no borders, no more columns than the terminal has, and colour only where a
//! state is named.

use comfy_table::{ColumnConstraint, ContentArrangement, Width, presets};

use super::{exit::one_line, out::Out};

/// How a cell is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// No meaning.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// In between.
    Warn,
    /// Something is wrong.
    Bad,
}

/// Invisible operators of width 0: they mark colour while widths are computed, and are replaced
/// by escapes, or by nothing, afterwards. Never part of a cell's own text.
const MARKS: [(char, &str); 4] =
    [('\u{2061}', "\u{1b}[32m"), ('\u{2062}', "\u{1b}[33m"), ('\u{2063}', "\u{1b}[31m"), (END, "\u{1b}[0m")];
const END: char = '\u{2064}';

/// Blanks between columns.
const PADDING: u16 = 2;
/// The last column is left at least so much room, if it can use it.
const ROOM: u16 = 6;

/// One cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell(String);

impl Cell {
    /// Text with a meaning.
    pub(crate) fn toned(text: &str, tone: Tone) -> Self {
        let text = clean(text);
        let mark = match tone {
            Tone::Plain => return Self(text),
            Tone::Good => MARKS[0].0,
            Tone::Warn => MARKS[1].0,
            Tone::Bad => MARKS[2].0,
        };
        Self(format!("{mark}{text}{END}"))
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self(clean(text.as_ref()))
    }
}

fn clean(text: &str) -> String {
    one_line(text).replace(|c| MARKS.iter().any(|(mark, _)| *mark == c), "")
}

/// A table in the making.
#[derive(Debug)]
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// With a heading.
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        let mut table = Self::bare();
        table.0.set_header(heading);
        table
    }

    /// Without a heading.
    pub(crate) fn bare() -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        Self(table)
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.0.add_row(cells.map(|cell| cell.0));
    }

    /// Makes the first columns at least so wide, so that tables printed one after the other line up.
    pub(crate) fn at_least(&mut self, widths: &[u16]) {
        for (i, width) in widths.iter().enumerate() {
            if let Some(column) = self.0.column_mut(i) {
                // The padding between columns counts.
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + PADDING)));
            }
        }
    }

    /// Only the last column is to be broken into lines; the first too where names are too long to
    /// leave the last one room.
    fn protect(&mut self, width: u16) {
        let needed = self.0.column_max_content_widths();
        let Some((last, others)) = needed.split_last() else { return };
        let taken: u16 = others.iter().map(|w| w.saturating_add(PADDING)).fold(0, u16::saturating_add);
        let fits = taken.saturating_add(ROOM.min(*last)) <= width;
        for (i, needed) in others.iter().enumerate().skip(usize::from(!fits)) {
            if let Some(column) = self.0.column_mut(i).filter(|c| c.constraint().is_none()) {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(needed + PADDING)));
            }
        }
    }

    /// The text, each line ended, fit to the width and coloured as `out` says.
    pub(crate) fn render(mut self, out: &Out) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, PADDING));
        }
        match out.width {
            // The last column's padding is trimmed away.
            Some(width) => {
                self.protect(width);
                self.0
                    .set_content_arrangement(ContentArrangement::Dynamic)
                    .set_width(width.saturating_add(PADDING));
            }
            None => {
                self.0.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        let mut text = String::new();
        for line in self.0.lines() {
            text.push_str(&paint(&line, out.colour));
            text.push('\n');
        }
        text
    }
}

fn paint(line: &str, colour: bool) -> String {
    let mut painted = line.trim_end().to_owned();
    for (mark, escape) in MARKS {
        painted = painted.replace(mark, if colour { escape } else { "" });
    }
    painted.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Format;

    fn out(width: Option<u16>, colour: bool) -> Out {
        Out { format: Format::Table, width, colour, terminal: colour }
    }

    fn sample() -> Table {
        let mut table = Table::new(["NAME", "STATE", "NOTE"]);
        table.row(["a".into(), Cell::toned("running", Tone::Good), "x\u{1b}[2J\n y".into()]);
        table.row(["long-name".into(), Cell::toned("backoff", Tone::Bad), "word ".repeat(30).into()]);
        table
    }

    #[test]
    fn columns_line_up_and_nothing_is_cut_when_piped() {
        let text = sample().render(&out(None, false));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "NAME       STATE    NOTE");
        assert_eq!(lines[1], "a          running  x [2J  y");
        assert!(lines[2].len() > 150);
    }

    #[test]
    fn a_terminals_width_is_kept() {
        let text = sample().render(&out(Some(80), false));
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert!(text.lines().count() > 3);
    }

    #[test]
    fn only_the_state_is_coloured_and_colour_moves_nothing() {
        let plain = sample().render(&out(Some(80), false));
        let coloured = sample().render(&out(Some(80), true));
        assert!(
            coloured.contains("\u{1b}[32mrunning\u{1b}[0m")
                && coloured.contains("\u{1b}[31mbackoff\u{1b}[0m")
        );
        let mut stripped = coloured;
        for (_, escape) in MARKS {
            stripped = stripped.replace(escape, "");
        }
        assert_eq!(stripped, plain);
    }

    #[test]
    fn only_the_last_column_is_broken_into_lines_and_the_first_if_need_be() {
        let render = |name: &str| {
            let mut table = Table::new(["NAME", "STATE", "NOTE"]);
            table.row([name.into(), "quarantined".into(), "word ".repeat(9).into()]);
            table.render(&out(Some(44), false))
        };
        assert!(render("trigram/search").contains("trigram/search  quarantined  word"));
        assert!(render("trigram-6cde1fd178cf").contains("trigram-6cde1fd178cf  quarantined  word"));
        let long = render(&"n".repeat(60));
        assert!(long.contains("  quarantined  word") && long.lines().all(|l| l.len() <= 44), "{long}");
    }
}
