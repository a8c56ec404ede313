//! What can be typed.

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where `wardkeep` looks for a supervisor unless told otherwise.
pub const DEFAULT_SUPERVISOR: &str = "http://127.0.0.1:7400";

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 failed, 2 usage or refused, 3 not running (status), 4 not found,
5 unreachable, 6 partly done, 7 denied, 124 timeout, 130 interrupted.";

/// Supervises gRPC services and background work: heals what fails, races what is slow, tells what happened.
#[derive(Debug, Parser)]
#[command(name = "wardkeep", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The supervisor's address [default: http://127.0.0.1:7400; for `serve node`: none]
    #[arg(long, global = true, value_name = "URL", env = "WARDKEEP_SUPERVISOR", hide_env_values = true)]
    pub supervisor: Option<String>,
    /// How to show the result
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// How long to wait for an answer or an effect (for example 500ms, 30s, 2m)
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if d.is_zero() => Err("must be longer than 0".into()),
        // Far beyond any use, and still safe to add to a clock.
        Ok(d) => Ok(d.min(Duration::from_secs(365 * 86_400))),
        Err(e) => Err(e.to_string()),
    }
}

/// How results look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For eyes, fits the terminal.
    #[default]
    Table,
    /// For eyes, with more columns.
    Wide,
    /// One valid document.
    Json,
    /// One document per line.
    Jsonl,
    /// Names only, one per line.
    Name,
}

impl Format {
    /// Programs read the output, errors included.
    pub fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// How to log (to stderr).
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// How log lines look
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        env = "WARDKEEP_LOG_FORMAT",
        hide_env_values = true
    )]
    pub log_format: LogFormat,
    /// Log more; twice: everything
    #[arg(short = 'v', long = "verbose", global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Readable lines.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a daemon: a supervisor or a node
    #[command(subcommand)]
    Serve(Serve),
    /// The whole picture on one screen
    #[command(after_help = "Exits 0 if all is well, 1 if something is not, 3 if no supervisor answers.\n\n\
        Examples:\n  wardkeep status\n  wardkeep status -o json | jq .problems")]
    Status,
    /// Look at nodes; restart, drain, undrain them
    #[command(subcommand)]
    Node(NodeCommand),
    /// Look at wards; start, stop, restart them
    #[command(subcommand)]
    Ward(WardCommand),
    /// Look at groups of wards
    #[command(subcommand)]
    Group(GroupCommand),
    /// Configuration files: have the supervisor and nodes apply what is in theirs now
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look errors up: which there are, and one of them whole
    #[command(subcommand)]
    Error(ErrorCommand),
    /// Why a ward or a node is where it is: the story, with what it rests on
    #[command(
        after_help = "Examples:\n  wardkeep explain trigram/search\n  wardkeep explain trigram --since 1h"
    )]
    Explain(ExplainArgs),
    /// What happened, oldest first
    #[command(after_help = "Examples:\n  wardkeep events -n 20\n  wardkeep events --since 10m\n  \
        wardkeep events -f -o jsonl")]
    Events(EventsArgs),
    /// Call any method of any service, known through server reflection
    #[command(after_help = "Examples:\n  \
        wardkeep call my.Search/Find '{\"query\": \"fn main\"}' -n 3\n  \
        wardkeep call grpc.health.v1.Health/Check '{}' --address http://127.0.0.1:7500")]
    Call(CallArgs),
    /// Probe a server's health (for containers): exit 0 serving, 1 not serving, 5 unreachable
    #[command(after_help = "Examples:\n  wardkeep health\n  \
        wardkeep health --address http://127.0.0.1:7500 --timeout 2s")]
    Health(HealthArgs),
    /// Write a shell's completion script to stdout
    #[command(after_help = "Example:\n  source <(wardkeep completions bash)")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The daemons.
#[derive(Debug, Subcommand)]
pub enum Serve {
    /// The supervisor: nodes attend it, it heals their wards and answers this command
    #[command(after_help = "Example:\n  wardkeep serve supervisor --listen 127.0.0.1:7400")]
    Supervisor(ServeSupervisor),
    /// A node from a configuration file (process wards)
    #[command(
        after_help = "Example:\n  wardkeep serve node --config node.toml --supervisor http://127.0.0.1:7400"
    )]
    Node(ServeNode),
}

/// `serve supervisor`.
#[derive(Args, Clone, Debug)]
pub struct ServeSupervisor {
    /// A TOML file
    #[arg(long, value_name = "FILE", env = "WARDKEEP_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR", env = "WARDKEEP_LISTEN", hide_env_values = true)]
    pub listen: Option<String>,
    /// Address of the metrics (HTTP), or "off" [default: 127.0.0.1:7480, if it is free]
    #[arg(long, value_name = "ADDR", env = "WARDKEEP_HTTP_LISTEN", hide_env_values = true)]
    pub http_listen: Option<String>,
    /// Where history is kept
    #[arg(long, value_name = "DIR", env = "WARDKEEP_DATA_DIR", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
    /// Allow plaintext on an address other machines can reach
    #[arg(long)]
    pub insecure: bool,
}

/// `serve node`.
#[derive(Args, Clone, Debug)]
pub struct ServeNode {
    /// A TOML file
    #[arg(long, value_name = "FILE", env = "WARDKEEP_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:7500]
    #[arg(long, value_name = "ADDR", env = "WARDKEEP_LISTEN", hide_env_values = true)]
    pub listen: Option<String>,
    /// The global `--supervisor`; `None`: the node is on its own. Filled in after parsing.
    #[arg(skip)]
    pub supervisor: Option<String>,
    /// The node's name [default: the machine's]
    #[arg(long, value_name = "NAME", env = "WARDKEEP_NAME", hide_env_values = true)]
    pub name: Option<String>,
    /// Allow plaintext on an address other machines can reach
    #[arg(long)]
    pub insecure: bool,
}

/// What every change has.
#[derive(Args, Clone, Debug, Default)]
pub struct Change {
    /// Why: kept in the history
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Do not wait for the effect
    #[arg(long)]
    pub detach: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub yes: bool,
}

/// How long a drain may take.
#[derive(Args, Clone, Debug, Default)]
pub struct DrainLimit {
    /// How long work in progress may take to finish [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub drain_timeout: Option<Duration>,
}

/// `node ...`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// All nodes
    Ls,
    /// All about one node and its wards
    Show {
        /// Its name, or a prefix only it has
        node: String,
    },
    /// Drain nodes and re-execute them in place (same PID), one after the other or batch by batch
    #[command(
        after_help = "A node that is away, or does not answer within 5s, is restarted by its launcher if it \
        has one.\nStops at the first failure.\n\nExamples:\n  wardkeep node restart trigram\n  \
        wardkeep node restart scan trigram sqlite -y --reason 'new build'\n  \
        wardkeep node restart --all --batch 2 --pause 30s"
    )]
    Restart {
        /// Their names, or prefixes only they have
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        nodes: Vec<String>,
        /// All nodes that attend
        #[arg(long)]
        all: bool,
        /// So many at a time
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
        batch: u16,
        /// How long to wait between one batch and the next
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        pause: Option<Duration>,
        /// What every change has.
        #[command(flatten)]
        change: Change,
        /// How long a drain may take.
        #[command(flatten)]
        drain: DrainLimit,
    },
    /// Take a node out of service, letting work in progress finish
    Drain {
        /// Its name, or a prefix only it has
        node: String,
        /// What every change has.
        #[command(flatten)]
        change: Change,
        /// How long a drain may take.
        #[command(flatten)]
        drain: DrainLimit,
    },
    /// Take a node back into service
    Undrain {
        /// Its name, or a prefix only it has
        node: String,
        /// What every change has.
        #[command(flatten)]
        change: Change,
    },
}

/// `ward ...`.
#[derive(Debug, Subcommand)]
pub enum WardCommand {
    /// All wards
    Ls,
    /// All about one ward
    Show {
        /// NODE/WARD, or WARD where only one node has it; prefixes will do
        ward: String,
    },
    /// Start a ward that is stopped or quarantined
    Start(WardTarget),
    /// Stop a ward; it stays stopped
    Stop(WardTarget),
    /// What a process ward's program has printed, as far as its node keeps it
    #[command(after_help = "With -o name: the printed lines and nothing else.\n\nExamples:\n  \
        wardkeep ward logs vacuum -n 20\n  wardkeep ward logs trigram/vacuum -f -o jsonl")]
    Logs(LogsArgs),
    /// Stop a ward and start it anew
    #[command(after_help = "Example:\n  wardkeep ward restart trigram/search --reason 'clear its cache'")]
    Restart(WardTarget),
}

/// `ward logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// NODE/WARD, or WARD where only one node has it; prefixes will do
    pub ward: String,
    /// Go on with what is to come, over restarts, until Ctrl-C
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// At most so many of the lines already there, the newest
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

/// The ward to change.
#[derive(Args, Debug)]
pub struct WardTarget {
    /// NODE/WARD, or WARD where only one node has it; prefixes will do
    pub ward: String,
    /// What every change has.
    #[command(flatten)]
    pub change: Change,
}

/// `error ...`.
#[derive(Debug, Subcommand)]
pub enum ErrorCommand {
    /// The failures there are, latest first: how often, where, and the ID of the last
    Ls,
    /// One error, whole: what the user saw, what happened, the stack over all machines
    #[command(after_help = "Example:\n  wardkeep error show 01a20a42-abf3-7511-926f-dcb7e6f24e9e")]
    Show {
        /// Its ID, or the beginning of it
        id: String,
    },
    /// Name the frames of an error that a stripped binary made, from the unstripped one
    #[command(after_help = "Example:\n  \
        wardkeep error symbolize 01a20a42 --exe target/release/my-service")]
    Symbolize {
        /// Its ID, or the beginning of it
        id: String,
        /// The unstripped file of the same build, or what `objcopy --only-keep-debug` made of it
        #[arg(long, value_name = "FILE")]
        exe: std::path::PathBuf,
    },
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Have daemons read their configuration files anew, show what has changed, and make it so
    #[command(
        after_help = "Only what has changed restarts: wards whose program is another, one after the other in \
        start order.\nA file that cannot be applied as a whole changes nothing.\n\nExamples:\n  \
        wardkeep config apply --dry-run\n  wardkeep config apply trigram -y --reason 'more threads'\n  \
        wardkeep config apply supervisor"
    )]
    Apply {
        /// `supervisor`, or names of nodes (prefixes will do) [default: all that have a file]
        #[arg(value_name = "supervisor|NODE")]
        targets: Vec<String>,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        /// What every change has.
        #[command(flatten)]
        change: Change,
    },
}

/// `group ...`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// All groups
    Ls,
    /// All about one group
    Show {
        /// Its name, or a prefix only it has
        group: String,
    },
}

/// `events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Go on with those to come, until Ctrl-C
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// At most so many of those already there, the newest
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Only those no older: a length of time (10m, 2h) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
}

/// `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// NODE/WARD, WARD or NODE; prefixes will do
    #[arg(value_name = "WARD|NODE")]
    pub name: String,
    /// At most so many events, the newest [default: 100]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Only what is no older: a length of time (10m, 2h) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
}

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long before now, by the supervisor's clock.
    Ago(Duration),
    /// This moment.
    At(DateTime<Utc>),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    match DateTime::parse_from_rfc3339(text) {
        Ok(at) => Ok(Since::At(at.with_timezone(&Utc))),
        Err(_) => Err("want a length of time such as 10m, or a time such as 2026-01-31T12:00:00Z".into()),
    }
}

/// `call`.
#[derive(Args, Debug)]
pub struct CallArgs {
    /// What to call, for example `my.package.Search/Find`
    #[arg(value_name = "SERVICE/METHOD")]
    pub method: String,
    /// The request
    #[arg(default_value = "{}")]
    pub json: String,
    /// Send to so many nodes, all told; the first good answer wins [default: 2; with quorum: 3]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub copies: Option<u32>,
    /// How to ask nodes [default: single; with -n: all]
    #[arg(long, value_enum)]
    pub policy: Option<PolicyArg>,
    /// With hedged and tied: how long one node has before the next is asked [default: 50ms; tied: 2ms]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub delay: Option<Duration>,
    /// With quorum: so many answers must be the same [default: more than half]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub equal: Option<u32>,
    /// Call this server itself, without a supervisor
    #[arg(long, value_name = "URL")]
    pub address: Option<String>,
    /// I know that the method may be repeated, though it does not say so
    #[arg(long)]
    pub idempotent: bool,
}

/// How `call` asks nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// One node; another only if that one cannot be reached.
    Single,
    /// Several at once; the first good answer wins.
    All,
    /// One, and the next when that one is late or fails.
    Hedged,
    /// As hedged; the node that begins says so, and the others that have not begun are spared.
    Tied,
    /// Several at once; the answer is the one that enough of them give.
    Quorum,
}

/// `health`.
#[derive(Args, Debug)]
pub struct HealthArgs {
    /// The server to probe [default: the supervisor]
    #[arg(long, value_name = "URL")]
    pub address: Option<String>,
    /// One of its services [default: the server as a whole]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub service: String,
}

impl Cli {
    /// Carries global options to where a command expects them.
    #[must_use]
    pub fn settled(mut self) -> Self {
        if let Command::Serve(Serve::Node(node)) = &mut self.command {
            node.supervisor = self.global.supervisor.clone();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_node_has_no_supervisor_unless_one_is_named() {
        let parse = |line: &str| match Cli::parse_from(line.split(' ')).settled().command {
            Command::Serve(Serve::Node(node)) => node.supervisor,
            _ => None,
        };
        assert_eq!(parse("wardkeep serve node --name n"), std::env::var("WARDKEEP_SUPERVISOR").ok());
        assert_eq!(parse("wardkeep serve node --supervisor http://h:1"), Some("http://h:1".into()));
    }
}
