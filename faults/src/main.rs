//! `cargo faults`: reads the command line, wires, and ends with 0 if all that was promised held.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use wardkeep_faults::{
    Outcome, Stuck, Trying as _,
    node::{self, NodeArgs},
    process,
    proxy::{Faults, Proxy, Way},
    suite::{self, Row},
    world::{self, Powers},
};
use wardkeep_node::{
    shutdown_signal,
    telemetry::{self, LogFormat},
};

/// Breaks a real wardkeep cluster under load, in every way that is known, and says what held
#[derive(Debug, Parser)]
#[command(name = "cargo faults", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    suite: Suite,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args, Debug)]
struct Suite {
    /// The faults to make [default: all]
    names: Vec<String>,
    /// Say which faults there are
    #[arg(long)]
    list: bool,
    /// The short selection that CI makes
    #[arg(long, conflicts_with = "names")]
    short: bool,
    /// For whatever is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the rows are written
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/report.json"))]
    report: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A TCP proxy that does to connections what networks do, until Ctrl-C
    Proxy(Box<ProxyArgs>),
    /// Random faults for a long time on one cluster under load: nothing may grow
    Soak(SoakArgs),
    /// One node of the suite's cluster
    #[command(hide = true)]
    Node(NodeArgs),
    /// The command `wardkeep`
    #[command(hide = true, disable_help_flag = true)]
    Wardkeep {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

#[derive(Args, Debug)]
struct SoakArgs {
    /// How long
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// For whatever is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args, Debug)]
struct ProxyArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR")]
    listen: String,
    /// Where to lead
    #[arg(long, value_name = "ADDR")]
    to: SocketAddr,
    /// For whatever is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Each piece arrives so much later, in each direction
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    latency: Duration,
    /// ... more or less by up to so much
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    jitter: Duration,
    /// Bytes per second, per connection and direction (for example 64KiB)
    #[arg(long)]
    bandwidth: Option<bytesize::ByteSize>,
    /// Bytes leave in pieces of at most so many
    #[arg(long)]
    slice: Option<usize>,
    /// Nothing passes: to the server (up), from it (down), or both
    #[arg(long, value_name = "WAY", value_parser = ["up", "down", "both"])]
    blackhole: Option<String>,
    /// This share of new connections is reset at once (0 to 1)
    #[arg(long, default_value_t = 0.0)]
    refuse: f64,
    /// This share of open connections is reset in each second (0 to 1)
    #[arg(long, default_value_t = 0.0)]
    kill: f64,
    /// When one side closes, the other is told so much later
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    slow_close: Duration,
    /// Whatever a client sends goes to the server twice, over two connections
    #[arg(long)]
    duplicate: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before there is another thread: those would stay where they are.
    let powers = match &cli.command {
        None | Some(Command::Soak(_)) => world::apart(),
        Some(_) => Powers::default(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => return fail(&Stuck(format!("no runtime: {why}"))),
    };
    let ended = runtime.block_on(async {
        match cli.command {
            None => run_suite(cli.suite, powers).await,
            Some(Command::Soak(args)) => soak(args).await,
            Some(Command::Proxy(args)) => proxy(*args).await,
            Some(Command::Node(args)) => run_node(args).await,
            Some(Command::Wardkeep { args }) => wardkeep(args).await,
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.unwrap_or_else(|stuck| fail(&stuck))
}

fn fail(stuck: &Stuck) -> ExitCode {
    eprintln!("cargo faults: {stuck}");
    ExitCode::FAILURE
}

fn say(line: &str) {
    // Whoever does not read on needs no table.
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn run_suite(args: Suite, powers: Powers) -> Outcome<ExitCode> {
    let all = suite::all();
    if args.list {
        for fault in &all {
            let lacking = fault.lacking(powers).map_or(String::new(), |why| format!(" [{why}]"));
            say(&format!("{:28}{}{lacking}", fault.name, fault.promised));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.names.iter().find(|name| all.iter().all(|fault| fault.name != **name)) {
        eprintln!("cargo faults: there is no fault {unknown}; see cargo faults --list");
        return Ok(ExitCode::from(2));
    }
    let wanted = |fault: &&suite::Fault| match args.short {
        true => fault.short,
        false => args.names.is_empty() || args.names.iter().any(|name| name == fault.name),
    };
    let program = std::env::current_exe().trying("this program")?;
    let mut rows = Vec::new();
    let made = async {
        for fault in all.iter().filter(wanted) {
            if let Some(why) = fault.lacking(powers) {
                say(&format!("{:28}skipped: {why}", fault.name));
                continue;
            }
            let row = fault.row(&program, powers, args.seed).await;
            tell(&row);
            rows.push(row);
        }
    };
    let interrupted = tokio::select! {
        () = made => false,
        () = shutdown_signal() => true,
    };
    if interrupted {
        return Ok(ExitCode::from(130));
    }
    say(&format!("\n{}", suite::table(&rows)));
    write_report(&args.report, &rows)?;
    Ok(if rows.iter().all(|row| row.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(row: &Row) {
    let ms = |value: Option<u64>| value.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    say(&format!(
        "{:28}{}  detected {}, healed {}; {} calls, {} failed, {} wrong, {} lost; {} restarts, {} false",
        row.fault,
        if row.ok { "ok    " } else { "BROKEN" },
        ms(row.detected_ms),
        ms(row.healed_ms),
        row.calls,
        row.failed,
        row.wrong,
        row.lost,
        row.restarts,
        row.false_restarts
    ));
    for line in row.broken.iter().chain(&row.story) {
        say(&format!("    {line}"));
    }
}

fn write_report(path: &Path, rows: &[Row]) -> Outcome<()> {
    let text = serde_json::to_string_pretty(rows).trying("the report")?;
    std::fs::write(path, text + "\n").trying(path.display())
}

async fn soak(args: SoakArgs) -> Outcome<ExitCode> {
    let program = std::env::current_exe().trying("this program")?;
    let time = Duration::from_secs(args.minutes * 60);
    let soaked = tokio::select! {
        soaked = suite::soak::run(&program, time, args.seed, say) => soaked?,
        () = shutdown_signal() => return Ok(ExitCode::from(130)),
    };
    say("");
    for line in soaked.lines.iter().chain(&soaked.broken) {
        say(line);
    }
    let flat = soaked.broken.is_empty();
    say(if flat { "flat at the end: ok" } else { "BROKEN" });
    Ok(if flat { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn proxy(args: ProxyArgs) -> Outcome<ExitCode> {
    let way = |is: &str| Way {
        latency: args.latency,
        jitter: args.jitter,
        bandwidth: args.bandwidth.map(|rate| rate.as_u64()),
        slice: args.slice,
        blackhole: args.blackhole.as_deref().is_some_and(|hole| hole == is || hole == "both"),
    };
    let faults = Faults {
        up: way("up"),
        down: way("down"),
        refuse: args.refuse,
        kill_per_second: args.kill,
        slow_close: args.slow_close,
        duplicate: args.duplicate,
    };
    let proxy = Proxy::start(&args.listen, args.to, args.seed).await.trying(&args.listen)?;
    proxy.set(faults);
    say(&format!("{} leads to {}, until Ctrl-C", proxy.address(), args.to));
    shutdown_signal().await;
    let counts = proxy.counts();
    proxy.stop().await;
    say(&format!("{} connections, {} refused, {} reset", counts.accepted, counts.refused, counts.reset));
    Ok(ExitCode::SUCCESS)
}

async fn run_node(args: NodeArgs) -> Outcome<ExitCode> {
    process::end_with_the_suite();
    let _telemetry = telemetry::init("wardkeep-faults-node", LogFormat::Text, 0).trying("the node's log")?;
    node::run(args).await.trying("the node")?;
    Ok(ExitCode::SUCCESS)
}

/// `serve supervisor` of the command `wardkeep`: the same code as the published program.
async fn wardkeep(args: Vec<String>) -> Outcome<ExitCode> {
    use wardkeep::cli::args::{Command, Serve};
    process::end_with_the_suite();
    let line = std::iter::once("wardkeep".to_owned()).chain(args);
    let cli = wardkeep::cli::Cli::try_parse_from(line).trying("wardkeep")?;
    let Command::Serve(Serve::Supervisor(args)) = cli.command else {
        return Err(Stuck("only `wardkeep serve supervisor` is here".to_owned()));
    };
    match wardkeep::serve::supervisor(args, &cli.log).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Ok(wardkeep::cli::fail(wardkeep::serve::failure(error), false).into()),
    }
}
