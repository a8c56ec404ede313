//! One formula, all solvers.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use comfy_table::{CellAlignment, Table, presets};
use tokio::time::{Instant, sleep};
use wardkeep_client::ResponseExt as _;
use wardkeep_examples::{
    pb::{SolveReply, solve_reply},
    sat_node::MOST_DIMACS_BYTES,
};

use crate::{
    Failure,
    cluster::{Cluster, Outcome, solve},
};

/// How often is looked which programs run.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A race, seen from outside.
pub(crate) struct Run {
    pub outcome: Outcome,
    pub took: Duration,
    /// For each program that was seen: its node's place in the list, its process group, and how long after the
    /// outcome it was gone.
    pub gone: Vec<(usize, i32, Duration)>,
}

/// Has all nodes solve this, and watches the processes of those on this machine until all are gone.
pub(crate) async fn run(cluster: &Cluster, dimacs: Vec<u8>, limit: Duration) -> Result<Run, Failure> {
    let mut client = cluster.all()?;
    let mut seen = BTreeMap::new();
    let began = Instant::now();
    let outcome = {
        let watch = async {
            loop {
                sleep(LOOK_EVERY).await;
                seen.extend(cluster.groups().into_iter().map(|(node, group)| (group, node)));
            }
        };
        tokio::select! {
            outcome = solve(&mut client, dimacs, limit) => outcome,
            () = watch => Outcome::OutOfTime,
        }
    };
    let took = began.elapsed();
    seen.extend(cluster.groups().into_iter().map(|(node, group)| (group, node)));
    let groups: Vec<_> = seen.iter().map(|(group, node)| (*node, *group)).collect();
    let gone = cluster.all_gone(&groups).await?.into_iter();
    let gone = gone.filter_map(|(group, at)| Some((*seen.get(&group)?, group, at))).collect();
    Ok(Run { outcome, took, gone })
}

pub(crate) async fn race(
    file: &Path,
    limit: Duration,
    model: bool,
    supervisor: Option<&str>,
) -> Result<u8, Failure> {
    let cannot = |what: String| Failure::usage(format!("{}: {what}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| cannot(error.to_string()))?.len();
    if size > MOST_DIMACS_BYTES as u64 {
        return Err(cannot(format!("it has {size} bytes; the limit is {MOST_DIMACS_BYTES}")));
    }
    let dimacs = std::fs::read(file).map_err(|error| cannot(error.to_string()))?;
    let cluster = Cluster::join(supervisor).await?;
    let run = run(&cluster, dimacs, limit).await;
    let told = match run {
        Ok(run) => tell(&cluster, &run, limit, model),
        Err(failure) => Err(failure),
    };
    cluster.stop().await;
    told
}

fn tell(cluster: &Cluster, run: &Run, limit: Duration, model: bool) -> Result<u8, Failure> {
    let reply = match &run.outcome {
        Outcome::Answered(reply) => reply,
        Outcome::OutOfTime => {
            return Err(Failure::failed(format!("no solver had an answer after {limit:?}")));
        }
        Outcome::Failed(error) => return Err(Failure::failed(error)),
    };
    let winner = reply.winner().map_or("", |winner| winner.node.as_str());
    show(cluster, run, reply.get_ref(), winner, model).map_err(Failure::failed)?;
    Ok(if reply.get_ref().outcome() == solve_reply::Outcome::Satisfiable { 10 } else { 20 })
}

fn show(cluster: &Cluster, run: &Run, reply: &SolveReply, winner: &str, model: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
    writeln!(out, "s {}", reply.outcome().as_str_name())?;
    if model {
        for literals in reply.model.chunks(16) {
            let words: Vec<String> = literals.iter().map(i32::to_string).collect();
            writeln!(out, "v {}", words.join(" "))?;
        }
        if reply.outcome() == solve_reply::Outcome::Satisfiable {
            writeln!(out, "v 0")?;
        }
    }
    writeln!(
        out,
        "c {winner} ({} {}) was first, after {:.3} s: it ran for {:.3} s and used {:.2} s of a processor",
        reply.solver,
        if reply.version.is_empty() { "of unknown version" } else { &reply.version },
        run.took.as_secs_f64(),
        seconds(reply.wall_micros),
        seconds(reply.cpu_micros),
    )?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NODE", "PROCESS GROUP", "RAN S", "GONE MS AFTER THE ANSWER", ""]);
    for (at, node) in cluster.nodes.iter().enumerate() {
        let won = node.name == winner;
        let seen = run.gone.iter().find(|(of, ..)| *of == at);
        let ran = if won { seconds(reply.wall_micros) } else { run.took.as_secs_f64() };
        table.add_row([
            node.name.clone(),
            seen.map_or_else(|| "not seen".to_owned(), |(_, group, _)| group.to_string()),
            format!("{ran:.3}"),
            seen.map_or_else(|| "-".to_owned(), |(.., gone)| format!("{:.1}", gone.as_secs_f64() * 1e3)),
            if won { "won" } else { "lost" }.to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt().lines().try_for_each(|line| writeln!(out, "c{line}"))
}
