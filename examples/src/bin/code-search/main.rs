//! The quickstart: one supervisor and three unlike nodes search the same code; then things break
//! while queries go on.
//!
//! The program starts itself again as the supervisor and (through it) as each node: real processes
//! on real ports.

mod child;
mod cluster;
mod faults;
mod load;
mod report;
mod say;
mod stats;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, ValueEnum};
use wardkeep_examples::Failure;
use wardkeep_examples::search::{Corpus, DEFAULT_MAX_BYTES, DataPath, Sqlite, draw};
use wardkeep_node::shutdown_signal;

use cluster::Cluster;
use report::Report;
use say::Say;

/// Starts a supervisor and three nodes that search the same code by different data paths, races
/// them, and breaks things while queries go on. Exits 0 only if no query failed or was answered
/// differently.
#[derive(Debug, Parser)]
#[command(name = "code-search", version)]
struct Args {
    #[command(subcommand)]
    child: Option<child::Child>,
    /// Folder to search [default: the crate sources cargo fetched for this build]
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Search at most this much text
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_MAX_BYTES >> 20, value_parser = clap::value_parser!(u64).range(1..=1024))]
    max_mib: u64,
    /// Queries of the quiet phase; each is asked of every node alone and of all at once
    #[arg(long, value_name = "N", default_value_t = 800, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    queries: u32,
    /// Seed of the queries
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Leave the cluster up at the end, and say what to try against it
    #[arg(long)]
    stay: bool,
    /// How to show the result
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A story and a table.
    #[default]
    Table,
    /// One document.
    Json,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match args.child {
        Some(child) => child::run(child).await.map(|()| true),
        None => quickstart(args).await,
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("code-search: {}", failure.line);
            ExitCode::from(failure.exit)
        }
    }
}

async fn quickstart(args: Args) -> Result<bool, Failure> {
    let say = Say::new();
    let dir = tempfile::Builder::new().prefix("wardkeep-quickstart-").tempdir().map_err(Failure::failed)?;
    // However this ends, the supervisor sees its input close, and ends with its nodes.
    let (cluster, report) = tokio::select! {
        shown = show(&args, dir.path(), &say) => shown?,
        () = shutdown_signal() => return Err(Failure { line: "interrupted".to_owned(), exit: 130 }),
    };
    if args.stay {
        cluster.stay(&say).await;
    }
    cluster.stop().await;
    Ok(report.is_good())
}

async fn show(args: &Args, dir: &Path, say: &Say) -> Result<(Cluster, Report), Failure> {
    let corpus = prepare(args, dir, say)?;
    let queries = draw(&corpus, args.seed, args.queries as usize);
    if queries.is_empty() {
        let what = "the corpus has no words to search for: pass another directory with --corpus DIR";
        return Err(Failure::usage(what));
    }
    let (files, bytes) = (corpus.files.len(), corpus.bytes);
    drop(corpus);

    say.line("Starting a supervisor; it launches three nodes with the same service:");
    let cluster = Cluster::start(dir, args.stay).await?;
    for node in cluster.nodes().await? {
        say.line(&format!(
            "  {:<8} PID {:<7} {}  data path: {}",
            node.name, node.pid, node.uri, node.data_path
        ));
    }
    let mut quiet = load::quiet_phase(&cluster, &queries, say).await?;
    say.line("\nNow things break, while queries go on, each sent to all nodes at once:");
    let faults = faults::all(&cluster, &quiet.expected, say).await?;
    let report = Report::new(files, bytes, &mut quiet, faults, args.queries);
    match args.output {
        Output::Json => report.print_json(),
        Output::Table => report.print_table(&quiet),
    }
    .map_err(Failure::failed)?;
    Ok((cluster, report))
}

/// Reads the corpus and builds what must be on disk before nodes start.
fn prepare(args: &Args, dir: &Path, say: &Say) -> Result<Arc<Corpus>, Failure> {
    let max_bytes = args.max_mib << 20;
    let progress = say.progress();
    let told = |p: wardkeep_examples::search::Progress| progress.at(p);
    let corpus = match &args.corpus {
        Some(dir) => Corpus::from_dir(dir, max_bytes, &told),
        None => Corpus::of_this_build(max_bytes, &told),
    }
    .map_err(Failure::usage)?;
    progress.done();
    let cut = if corpus.truncated { format!(" (the first {} MiB)", args.max_mib) } else { String::new() };
    let (files, mb) = (corpus.files.len(), corpus.bytes as f64 / 1e6);
    say.line(&format!("Corpus: {files} files, {mb:.1} MB of text{cut}, in"));
    say.line(&format!("  {}", corpus.root.display()));
    corpus.save_list(&dir.join(child::LIST)).map_err(Failure::failed)?;
    let progress = say.progress();
    let begun = tokio::time::Instant::now();
    Sqlite::build(&corpus, dir, &|p| progress.at(p)).map_err(Failure::failed)?;
    progress.done();
    say.line(&format!(
        "Index on disk for {}: built in {:.1} s",
        DataPath::Sqlite,
        begun.elapsed().as_secs_f64()
    ));
    Ok(Arc::new(corpus))
}
