//! `cargo measure`: wardkeep beside its peers, in one run that anyone can repeat.
//!
//! A group of measurements writes `bench/results/GROUP.json` and its plot; `docs/benchmarks.md` is made
//! anew from all of them. Whatever is compared is run in turns, several rounds, and every figure is the
//! median of its rounds with the lowest and the highest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod ask;
mod beside;
mod cancel;
mod child;
mod client;
mod counted;
mod curves;
mod echo;
mod erlang;
mod errors;
mod heal;
mod load;
mod machine;
mod node;
mod peers;
mod plot;
mod start;
mod tail;
mod weight;

use clap::{Parser, ValueEnum};
use wardkeep_measure::{page, report};

#[derive(Parser)]
#[command(name = "cargo measure", about = "Measures wardkeep beside its peers")]
struct Args {
    /// What to measure; everything if nothing is named.
    groups: Vec<Group>,
    /// How often each thing is measured, in turns with the others.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// How many losers are cancelled in the floods of the group cancel, together.
    #[arg(long, default_value_t = 10_000_000)]
    cancels: u64,
    /// Only makes docs/benchmarks.md anew from the results that are there.
    #[arg(long)]
    render: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Group {
    /// What a node adds to a call.
    Node,
    /// What the replicated channel adds to a call.
    Client,
    /// How soon losers are gone, and what millions of cancels do to connections.
    Cancel,
    /// Making well-formed errors, passing them on, and a flood of them.
    Errors,
    /// From a crash to running again, here and through a supervisor; a freeze.
    Heal,
    /// Ways to ask three unlike servers, from idle to overload; and "The Tail at Scale".
    Tail,
    /// A pulse, a report, the memory of a ward, and fleets of up to a million.
    Weight,
    /// From nothing to a node that answers; what it takes when nothing goes on.
    Start,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    without_backtraces()?;
    if let Some((job, args)) = child::job() {
        match job.as_str() {
            "echo" => echo::job(&args),
            "flood" => child::print(&cancel::flood(&args)),
            "growth" => child::print(&weight::growth(&args)),
            "health" => start::job(),
            "memory" => child::print(&weight::memory(&args)),
            "node" => heal::frozen(&args),
            other => panic!("no such job: {other}"),
        }
        return Ok(());
    }
    let args = Args::parse();
    let groups = if args.groups.is_empty() { Group::value_variants() } else { &args.groups };
    for group in groups.iter().filter(|_| !args.render) {
        let machine = machine::describe()?;
        let measured = match group {
            Group::Node => node::measure(args.rounds)?,
            Group::Client => client::measure(args.rounds)?,
            Group::Start => start::measure(args.rounds)?,
            Group::Cancel => cancel::measure(args.rounds, args.cancels)?,
            Group::Errors => errors::measure(args.rounds)?,
            Group::Heal => heal::measure(args.rounds)?,
            Group::Tail => tail::measure(args.rounds)?,
            Group::Weight => weight::measure(args.rounds)?,
        };
        report::save(&report::Report { machine, ..measured })?;
    }
    let reports = report::load()?;
    plot::write(&reports)?;
    Ok(page::write(&reports)?)
}

/// Peers capture a backtrace where the environment asks for it, which is asked once in a process: it is
/// the default of an installed program that is measured.
fn without_backtraces() -> std::io::Result<()> {
    use std::{env, os::unix::process::CommandExt as _, process::Command};
    const ASKED: &str = "RUST_LIB_BACKTRACE";
    if env::var_os(ASKED).is_some_and(|value| value == "0") {
        return Ok(());
    }
    Err(Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(ASKED, "0").exec())
}
