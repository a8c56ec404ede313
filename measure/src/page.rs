//! `docs/benchmarks.md`, from the results.

use std::{fmt::Write as _, fs};

use crate::report::{self, Report, Spread, Table};

const PAGE: &str = "docs/benchmarks.md";

const HEAD: &str = "\
# Benchmarks

Made by `cargo measure` from `bench/results/*.json`; edits here are lost. Figures are of one machine on one day and no
promise: what carries over is how things compare. Whatever is in one table ran in turns, several rounds;
a figure is the median of its rounds, with the lowest and the highest in brackets, and the last column divides the first
by the baseline's, round by round (where others are compared as well, its head says which). The clock has steps of about
0.01 µs and takes 0.02 µs itself: below 0.1 µs a figure says little more than that it is small.
";

/// Makes it anew.
///
/// # Errors
/// It cannot be written.
pub fn write(reports: &[Report]) -> std::io::Result<()> {
    fs::write(report::path(PAGE), render(reports))
}

fn render(reports: &[Report]) -> String {
    let mut page = HEAD.to_owned();
    for report in reports {
        // A string takes everything.
        let _ = group(&mut page, report);
    }
    page
}

fn group(page: &mut String, report: &Report) -> std::fmt::Result {
    let machine = &report.machine;
    let versions: Vec<_> =
        machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    writeln!(page, "\n## {}\n\n    {}\n", report.title, report.command)?;
    writeln!(
        page,
        "{}: {}, {} cores, {} GiB; load average before: {:.1}; {} rounds. {}.",
        machine.date,
        machine.system,
        machine.cores,
        machine.memory_gib,
        machine.load_before,
        report.rounds,
        versions.join(", "),
    )?;
    if machine.load_before > machine.cores as f32 {
        writeln!(
            page,
            "\nThe machine was busy with other work: times are longer and rates lower than on a calm one, and they differ \
            more from run to run than the brackets say."
        )?;
    }
    let drawn = report.curves.first().unwrap_or(&report.tables[0].name);
    writeln!(page, "\n![{drawn}](benchmarks/{}.svg)", report.group)?;
    if !report.goals.is_empty() {
        writeln!(page, "\nGoals:\n")?;
    }
    for goal in &report.goals {
        writeln!(page, "* {}: {}.", if goal.met { "Met" } else { "**Missed**" }, goal.what)?;
    }
    for it in &report.tables {
        table(page, it, &report.command)?;
    }
    for note in &report.notes {
        writeln!(page, "\n{note}")?;
    }
    Ok(())
}

fn table(page: &mut String, table: &Table, command: &str) -> std::fmt::Result {
    writeln!(page, "\n### {}\n\n{} (`{command}`)\n", table.name, table.about)?;
    let mut columns = table.columns.clone();
    columns.push(format!("to *{}*", table.baseline));
    let also = table.also.iter().filter_map(|&column| table.columns.get(column));
    columns.extend(also.map(|column| {
        let column = column.rsplit_once(" in ").map_or(column.as_str(), |(column, _)| column);
        format!("{column}, to *{}*", table.baseline)
    }));
    writeln!(page, "| | {} |", columns.join(" | "))?;
    writeln!(page, "|---|{}", "---:|".repeat(columns.len()))?;
    for row in &table.rows {
        let ratios = std::iter::once(row.ratio).chain(row.also.iter().copied());
        let ratio = |it| if row.name == table.baseline { "1".to_owned() } else { cell(it) };
        let cells: Vec<_> = row.cells.iter().copied().map(cell).chain(ratios.map(ratio)).collect();
        writeln!(page, "| {} | {} |", row.name, cells.join(" | "))?;
    }
    Ok(())
}

fn cell(it: Option<Spread>) -> String {
    it.map_or("—".to_owned(), spread)
}

/// A figure, and both ends where they differ.
pub(crate) fn spread(Spread { median, lowest, highest }: Spread) -> String {
    if lowest == highest {
        return number(median);
    }
    format!("{} ({}–{})", number(median), number(lowest), number(highest))
}

/// Three digits that count.
fn number(n: f64) -> String {
    let whole = n.abs().log10().floor().max(-3.0) as i32 + 1;
    if n == 0.0 || n.fract() == 0.0 && n.abs() < 1e15 {
        return grouped(n);
    }
    let decimals = usize::try_from(3 - whole.min(3)).unwrap_or(0);
    if decimals == 0 { grouped(n.round()) } else { format!("{n:.decimals$}") }
}

/// 1234567 -> 1,234,567
fn grouped(n: f64) -> String {
    let digits = format!("{:.0}", n.abs());
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if n < 0.0 { format!("-{out}") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_agrees_with_the_results() {
        let page = fs::read_to_string(report::path(PAGE)).unwrap();
        assert_eq!(page, render(&report::load().unwrap()), "run: cargo measure --render");
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let numbers = [0.0, 0.0456, 1.2345, 12.345, 123.45, 1_234.5, 1_234_567.0, -20.0];
        let texts = ["0", "0.0456", "1.23", "12.3", "123", "1,235", "1,234,567", "-20"];
        assert_eq!(numbers.map(number), texts);
    }
}
