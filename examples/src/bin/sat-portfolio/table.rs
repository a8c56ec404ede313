//! Families of formulas, each solver alone, and all at once, side by side.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::Duration,
};

use comfy_table::{CellAlignment, Table, presets};
use tokio::time::Instant;
use wardkeep_client::ResponseExt as _;
use wardkeep_examples::{
    pb::solve_reply,
    sat::{Family, Instance},
};

use crate::{
    Failure,
    cluster::{Cluster, Outcome, solve},
    race,
    score::{Time, best, par2, virtual_best},
};

/// What was found out about one formula.
struct Row {
    instance: Instance,
    alone: Vec<Time>,
    portfolio: Time,
    winner: Option<String>,
    /// What everybody who answered said.
    satisfiable: Option<bool>,
    /// How long after the answer each process of the race was gone.
    gone: Vec<Duration>,
    /// Answers that cannot be true.
    wrong: Vec<String>,
}

pub(crate) async fn table(
    limit: Duration,
    seed: u64,
    sizes: usize,
    supervisor: Option<&str>,
) -> Result<u8, Failure> {
    let cluster = Cluster::join(supervisor).await?;
    let rows = rows(&cluster, limit, seed, sizes).await;
    let names: Vec<String> = cluster.nodes.iter().map(|node| node.name.clone()).collect();
    cluster.stop().await;
    let rows = rows?;
    show(&names, &rows, limit.as_secs_f64()).map_err(Failure::failed)?;
    let wrong: Vec<&str> = rows.iter().flat_map(|row| &row.wrong).map(String::as_str).collect();
    if wrong.is_empty() { Ok(0) } else { Err(Failure::failed(wrong.join("; "))) }
}

async fn rows(cluster: &Cluster, limit: Duration, seed: u64, sizes: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        for size in family.sizes().iter().take(sizes) {
            let row = row(cluster, family.make(*size, seed), limit).await?;
            // The story goes to stderr; stdout is for the result.
            let winner = row.winner.as_deref().unwrap_or("nobody");
            let _ = writeln!(io::stderr(), "{}: {winner} wins, {}", row.instance, seconds(row.portfolio));
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Each solver alone, then all at once.
async fn row(cluster: &Cluster, instance: Instance, limit: Duration) -> Result<Row, Failure> {
    let dimacs = instance.formula.to_dimacs().into_bytes();
    let satisfiable = instance.satisfiable;
    let mut row = Row {
        instance,
        alone: Vec::new(),
        portfolio: None,
        winner: None,
        satisfiable,
        gone: Vec::new(),
        wrong: Vec::new(),
    };
    for (at, node) in cluster.nodes.iter().enumerate() {
        let mut client = cluster.alone(at)?;
        let began = Instant::now();
        let outcome = solve(&mut client, dimacs.clone(), limit).await;
        let took = began.elapsed();
        let time = row.heed(&node.name, &outcome).then_some(took.as_secs_f64());
        row.alone.push(time);
        // What is still being killed must not cost the next one time.
        cluster.all_gone(&[]).await?;
    }
    let run = race::run(cluster, dimacs, limit).await?;
    row.portfolio = row.heed("the portfolio", &run.outcome).then_some(run.took.as_secs_f64());
    if let Outcome::Answered(reply) = &run.outcome {
        row.winner = reply.winner().map(|winner| winner.node.clone());
    }
    row.gone = run.gone.into_iter().map(|(.., gone)| gone).collect();
    Ok(row)
}

impl Row {
    /// Whether it is an answer; compares it with what is known.
    fn heed(&mut self, who: &str, outcome: &Outcome) -> bool {
        let reply = match outcome {
            Outcome::Answered(reply) => reply.get_ref(),
            Outcome::OutOfTime => return false,
            Outcome::Failed(error) => {
                let _ = writeln!(io::stderr(), "{}: {who} fails: {error}", self.instance);
                return false;
            }
        };
        let says = reply.outcome() == solve_reply::Outcome::Satisfiable;
        if *self.satisfiable.get_or_insert(says) != says {
            let verdict = reply.outcome().as_str_name();
            self.wrong.push(format!("{}: {who} says {verdict}, which is wrong", self.instance));
        }
        true
    }
}

fn seconds(time: Time) -> String {
    time.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}"))
}

fn show(names: &[String], rows: &[Row], limit: f64) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "\nSeconds to the answer; - is none after {limit} s")?;
    let mut each = Table::new();
    each.set_header(header("FORMULA", names, &["AT ONCE", "WINNER"]));
    for row in rows {
        let mut cells = vec![row.instance.to_string()];
        cells.extend(row.alone.iter().chain([&row.portfolio]).map(|time| seconds(*time)));
        cells.push(row.winner.clone().unwrap_or_default());
        each.add_row(cells);
    }
    print(&mut out, each, names.len() + 1)?;

    writeln!(out, "\nPAR-2 in seconds (what was not solved counts as {} s)", 2.0 * limit)?;
    let mut scores = Table::new();
    scores.set_header(header("FAMILY", names, &["VIRTUAL BEST", "AT ONCE", "WINS"]));
    for family in Family::ALL {
        let of_family: Vec<&Row> = rows.iter().filter(|row| row.instance.family == family).collect();
        scores.add_row(score(&family.to_string(), names, &of_family, limit));
    }
    let all: Vec<&Row> = rows.iter().collect();
    scores.add_row(score("all", names, &all, limit));
    print(&mut out, scores, names.len() + 2)?;
    last_words(&mut out, names, &all, limit)
}

fn header(first: &str, names: &[String], rest: &[&str]) -> Vec<String> {
    let names = names.iter().map(|name| name.to_uppercase());
    [first.to_owned()].into_iter().chain(names).chain(rest.iter().map(|&name| name.to_owned())).collect()
}

fn print(out: &mut impl io::Write, mut table: Table, numbers: usize) -> io::Result<()> {
    table.load_style(presets::NOTHING);
    for column in table.column_iter_mut().skip(1).take(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out, "{}", table.trim_fmt())
}

/// The times of each solver, alone.
fn alone(names: &[String], rows: &[&Row]) -> Vec<Vec<Time>> {
    (0..names.len()).map(|at| rows.iter().map(|row| row.alone[at]).collect()).collect()
}

fn score(first: &str, names: &[String], rows: &[&Row], limit: f64) -> Vec<String> {
    let mut columns = alone(names, rows);
    columns.push(virtual_best(&columns));
    columns.push(rows.iter().map(|row| row.portfolio).collect());
    let mut wins: BTreeMap<&str, usize> = BTreeMap::new();
    for winner in rows.iter().filter_map(|row| row.winner.as_deref()) {
        *wins.entry(winner).or_default() += 1;
    }
    let mut wins: Vec<_> = wins.into_iter().collect();
    wins.sort_by_key(|(_, won)| std::cmp::Reverse(*won));
    let wins: Vec<String> = wins.into_iter().map(|(name, won)| format!("{name} {won}")).collect();
    let mut cells = vec![first.to_owned()];
    cells.extend(columns.iter().map(|times| format!("{:.2}", par2(times, limit))));
    cells.push(wins.join(", "));
    cells
}

fn last_words(out: &mut impl io::Write, names: &[String], rows: &[&Row], limit: f64) -> io::Result<()> {
    let alone = alone(names, rows);
    let portfolio: Vec<Time> = rows.iter().map(|row| row.portfolio).collect();
    if let Some(best) = best(&alone, limit) {
        let virtual_best = virtual_best(&alone);
        writeln!(out)?;
        for (who, times) in [
            ("all at once".to_owned(), &portfolio),
            (format!("the best alone, {}", names[best]), &alone[best]),
            ("the virtual best".to_owned(), &virtual_best),
        ] {
            let (solved, score) = (times.iter().flatten().count(), par2(times, limit));
            writeln!(out, "{solved} of {} solved, PAR-2 {score:.2}: {who}", rows.len())?;
        }
    }
    let mut gone: Vec<Duration> = rows.iter().flat_map(|row| &row.gone).copied().collect();
    gone.sort_unstable();
    if let (Some(median), Some(last)) = (gone.get(gone.len() / 2), gone.last()) {
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        writeln!(
            out,
            "{} processes of races were gone {:.1} ms after the answer (median), the last after {:.1} ms.",
            gone.len(),
            ms(median),
            ms(last),
        )?;
    }
    Ok(())
}
