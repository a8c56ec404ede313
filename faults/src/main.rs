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
    containers::{self, Image},
    node::{self, NodeArgs},
    process,
    proxy::{Faults, Proxy, Way},
    suite::{self, Fault, Home, Row},
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
    /// Only those of clusters of processes, or of containers [default: both]
    #[arg(long, value_name = "OF", value_parser = ["process", "docker"])]
    cluster: Option<String>,
    /// The image of containers, which has this suite's program statically linked [default: made, and removed]
    #[arg(long)]
    image: Option<String>,
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
    let mut cli = Cli::parse();
    let mut rows = Vec::new();
    // Before there is another thread: those would stay where they are.
    let powers = match &cli.command {
        None if cli.suite.list => Powers { docker: containers::can(), ..world::apart() },
        None => {
            match cli.suite.containers_first() {
                Ok(first) => rows = first,
                Err(stuck) => return fail(&stuck),
            }
            let containers_only = cli.suite.wanted().iter().all(|fault| fault.home == Home::Docker);
            if containers_only {
                Powers { docker: containers::can(), ..Powers::default() }
            } else {
                world::apart()
            }
        }
        Some(Command::Soak(_)) => world::apart(),
        Some(_) => Powers::default(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => return fail(&Stuck(format!("no runtime: {why}"))),
    };
    let ended = runtime.block_on(async {
        match cli.command {
            None => run_suite(cli.suite, powers, rows).await,
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

impl Suite {
    /// The faults that are wanted, in the order in which they are made.
    fn wanted(&self) -> Vec<Fault> {
        let wanted = |fault: &Fault| {
            let named = self.names.iter().any(|name| name == fault.name);
            let here = self.cluster.as_deref().is_none_or(|cluster| cluster == fault.home.word());
            here && (named || self.names.is_empty() && (fault.short || !self.short))
        };
        suite::all().into_iter().filter(wanted).collect()
    }

    /// What is to be done on the network as it is, where containers are reached, before this process moves to one of
    /// its own: a process of its own does that. Its rows.
    fn containers_first(&mut self) -> Outcome<Vec<Row>> {
        let (of_containers, others): (Vec<Fault>, Vec<Fault>) =
            self.wanted().into_iter().partition(|fault| fault.home == Home::Docker);
        if others.is_empty() || of_containers.is_empty() || !containers::can() {
            return Ok(Vec::new());
        }
        self.names = others.iter().map(|fault| fault.name.to_owned()).collect();
        self.short = false;
        let report = tempfile::NamedTempFile::new().trying("a report")?;
        let mut part = std::process::Command::new(std::env::current_exe().trying("this program")?);
        part.args(of_containers.iter().map(|fault| fault.name)).args(["--seed", &self.seed.to_string()]);
        part.args(self.image.iter().flat_map(|image| ["--image", image])).arg("--report").arg(report.path());
        part.env(process::PARENT, std::process::id().to_string());
        let ended = part.status().trying("the part with containers")?;
        let rows = std::fs::read(report.path()).trying("its report")?;
        serde_json::from_slice(&rows)
            .map_err(|_| Stuck(format!("the part with containers ended with {ended}")))
    }
}

async fn run_suite(args: Suite, powers: Powers, mut rows: Vec<Row>) -> Outcome<ExitCode> {
    let all = suite::all();
    if args.list {
        for fault in &all {
            let lacking = fault.lacking(powers).map_or(String::new(), |why| format!(" [{why}]"));
            say(&format!("{:30}{}{lacking}", fault.name, fault.promised));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.names.iter().find(|name| all.iter().all(|fault| fault.name != **name)) {
        eprintln!("cargo faults: there is no fault {unknown}; see cargo faults --list");
        return Ok(ExitCode::from(2));
    }
    let program = std::env::current_exe().trying("this program")?;
    let wanted = args.wanted();
    let made = async {
        let of_containers = |fault: &Fault| fault.home == Home::Docker && fault.lacking(powers).is_none();
        let image = match args.image {
            _ if !wanted.iter().any(of_containers) => None,
            Some(image) => Some(Image::of(image)),
            None => Some(Image::make().await?),
        };
        for fault in &wanted {
            if let Some(why) = fault.lacking(powers) {
                say(&format!("{:30}skipped: {why}", fault.name));
                continue;
            }
            let from = match (fault.home, &image) {
                (Home::Docker, Some(image)) => Path::new(image.name()),
                _ => &program,
            };
            let row = fault.row(from, powers, args.seed).await;
            tell(&row);
            rows.push(row);
        }
        Outcome::Ok(())
    };
    let interrupted = tokio::select! {
        made = made => { made?; false }
        () = shutdown_signal() => true,
        () = process::suite_ended() => true,
    };
    if interrupted {
        return Ok(ExitCode::from(130));
    }
    if std::env::var_os(process::PARENT).is_none() {
        say(&format!("\n{}", suite::table(&rows)));
    }
    write_report(&args.report, &rows)?;
    Ok(if rows.iter().all(|row| row.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(row: &Row) {
    let ms = |value: Option<u64>| value.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    say(&format!(
        "{:30}{}  detected {}, healed {}; {} calls, {} failed, {} wrong, {} lost; {} restarts, {} false",
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
