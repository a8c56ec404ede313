//! The operator's command line. Results go to stdout and nothing else does; what went wrong is one
//! line on stderr and an [`Exit`] code. Every wait ends: by its effect, by `--timeout`, or by Ctrl-C.
//! (`events -f` and `ward logs -f` alone wait for as long as they are let.)

pub mod args;
mod call;
mod change;
mod config;
mod confirm;
mod connect;
mod dynamic;
mod error;
mod events;
mod exit;
mod explain;
mod group;
mod health;
mod human;
mod logs;
mod node;
mod out;
mod reflect;
mod resolve;
mod status;
mod table;
mod tell;
mod view;
mod ward;

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};

pub use self::{
    args::Cli,
    exit::{Exit, Failure},
};
use self::{args::Command, connect::Session, out::Out};

/// Reads the command line. What is wrong with it is said here, in the form asked for.
///
/// # Errors
/// The program is to end with this: 0 after help or version, else 2.
pub fn read() -> Result<Cli, Exit> {
    match Cli::try_parse() {
        Ok(cli) => Ok(cli.settled()),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Help that nobody reads to the end is no failure.
            let _ = e.print();
            Err(Exit::Ok)
        }
        Err(e) => {
            if json_was_asked_for(std::env::args()) {
                let text = e.to_string();
                let first = text.lines().next().unwrap_or_default();
                out::report(&Failure::usage(first.trim_start_matches("error: ")), true);
            } else {
                let _ = e.print();
            }
            Err(Exit::Usage)
        }
    }
}

/// A guess, made only where the command line could not be understood.
fn json_was_asked_for(args: impl Iterator<Item = String>) -> bool {
    let words: Vec<String> = args.collect();
    let is_json = |value: &str| matches!(value, "json" | "jsonl");
    let apart = words.windows(2).any(|w| matches!(w[0].as_str(), "-o" | "--output") && is_json(&w[1]));
    apart
        || words.iter().any(|w| {
            w.strip_prefix("-o").is_some_and(is_json) || w.strip_prefix("--output=").is_some_and(is_json)
        })
}

/// Carries a command out and says what went wrong. Not for `serve`: it is refused.
pub async fn run(cli: Cli) -> Exit {
    let json = cli.global.output.is_json();
    let interrupted = match &cli.command {
        Command::Ward(args::WardCommand::Logs(_)) => "interrupted",
        Command::Node(_) | Command::Ward(_) | Command::Config(_) => {
            "interrupted; a change already asked for may still happen"
        }
        _ => "interrupted",
    };
    let ended = tokio::select! {
        ended = dispatch(cli) => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, interrupted)),
    };
    match ended {
        Ok(exit) => exit,
        Err(failure) => fail(failure, json),
    }
}

/// Says what went wrong and with which code to end.
pub fn fail(failure: Failure, json: bool) -> Exit {
    out::report(&failure, json);
    failure.exit
}

async fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let session = Session::new(&cli.global)?;
    match &cli.command {
        Command::Serve(_) => Err(Failure::usage("`serve` is not a client command")),
        Command::Status => status::run(&session).await,
        Command::Node(command) => node::run(&session, command).await,
        Command::Ward(command) => ward::run(&session, command).await,
        Command::Group(command) => group::run(&session, command).await,
        Command::Config(command) => config::run(&session, command).await,
        Command::Error(command) => error::run(&session, command).await,
        Command::Explain(args) => explain::run(&session, args).await,
        Command::Events(args) => events::run(&session, args).await,
        Command::Call(args) => call::run(&session, args).await,
        Command::Health(args) => health::run(&session, args).await,
        Command::Completions { shell } => completions(&session.out, *shell),
    }
}

fn completions(out: &Out, shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wardkeep", &mut script);
    out.text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
