//! A portfolio of SAT solvers: unlike programs race on the same formula, the first answer wins, and the others are
//! killed.
//!
//! The program starts itself again as each node: real processes on real ports.

mod cluster;
mod race;
mod score;
mod table;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use tokio::io::AsyncReadExt as _;
use wardkeep_examples::Failure;
use wardkeep_examples::{sat::Solver, sat_node};
use wardkeep_node::{
    shutdown_signal,
    telemetry::{self, LogFormat},
};
use wardkeep_proto::v1::{Ward, WardState};

/// Different SAT solvers on different nodes race on the same formula. Uses those that are installed of minisat,
/// picosat, cadical, cryptominisat and clasp
#[derive(Debug, Parser)]
#[command(name = "sat-portfolio", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Solves one DIMACS file with all solvers at once. Exits 10 if it is satisfiable, 20 if not, as solvers do
    Race {
        file: PathBuf,
        /// Give up after so long
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
        seconds: u32,
        /// Print the model, if there is one
        #[arg(long)]
        model: bool,
        /// Use the nodes that attend this supervisor, and start none
        #[arg(long, value_name = "URL")]
        supervisor: Option<String>,
    },
    /// Solves formulas of four families with each solver alone and with all at once, and compares
    Table {
        /// What a formula may take
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
        seconds: u32,
        /// Seed of the formulas
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// Formulas per family, from small to large
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=5))]
        sizes: u32,
        /// Use the nodes that attend this supervisor, and start none
        #[arg(long, value_name = "URL")]
        supervisor: Option<String>,
    },
    /// Serves one solver
    Node(NodeArgs),
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// minisat, picosat, cadical, cryptominisat or clasp
    #[arg(long)]
    solver: Solver,
    /// The program, if it is not on PATH
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Name of the node [default: that of its solver]
    #[arg(long)]
    name: Option<String>,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: String,
    #[arg(long, value_name = "URL", env = "WARDKEEP_SUPERVISOR")]
    supervisor: Option<String>,
    /// Accept plaintext on an address other machines can reach
    #[arg(long)]
    insecure: bool,
    /// End when standard input ends: whoever started it has gone then
    #[arg(long, hide = true)]
    until_eof: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let work = async {
        match Args::parse().command {
            Command::Node(args) => node(args).await.map(|()| 0),
            Command::Race { file, seconds, model, supervisor } => {
                race::race(&file, limit(seconds), model, supervisor.as_deref()).await
            }
            Command::Table { seconds, seed, sizes, supervisor } => {
                table::table(limit(seconds), seed, sizes as usize, supervisor.as_deref()).await
            }
        }
    };
    match work.await {
        Ok(exit) => ExitCode::from(exit),
        Err(failure) => {
            eprintln!("sat-portfolio: {}", failure.line);
            ExitCode::from(failure.exit)
        }
    }
}

fn limit(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// Reads standard input to its end.
async fn end_of_input() {
    let mut stdin = tokio::io::stdin();
    while matches!(stdin.read(&mut [0; 64]).await, Ok(n) if n > 0) {}
}

async fn node(args: NodeArgs) -> Result<(), Failure> {
    let _telemetry = telemetry::init("sat-node", LogFormat::Text, 0).map_err(Failure::usage)?;
    let program = match args.program {
        Some(program) => Some(program).filter(|program| Path::is_file(program)),
        None => args.solver.find(),
    };
    let solver = args.solver;
    let program = program
        .ok_or_else(|| Failure::usage(format!("{solver} is not installed: apt-get install {solver}")))?;
    let name = args.name.unwrap_or_else(|| solver.to_string());
    let mut builder = sat_node::builder(&name, solver, program).await;
    if let Some(supervisor) = args.supervisor {
        builder = builder.supervisor(supervisor);
    }
    if args.insecure {
        builder = builder.insecure();
    }
    let node = builder.bind(&args.listen).await.map_err(Failure::failed)?;
    let (address, mut snapshots) = (node.local_addr(), node.handle().snapshots());
    // Said when it can be called, to whoever started it. A reader who has gone is no reason to stop.
    let ready = async {
        let runs = |ward: &Ward| ward.state() == WardState::Running;
        if snapshots.wait_for(|now| !now.wards.is_empty() && now.wards.iter().all(runs)).await.is_ok() {
            let _ = writeln!(std::io::stdout(), "listening on {address}");
        }
    };
    let end = async {
        tokio::select! {
            () = shutdown_signal() => {}
            () = end_of_input(), if args.until_eof => {}
        }
    };
    let (ended, ()) = tokio::join!(node.run_until(end), ready);
    ended.map_err(Failure::failed)
}
