//! A node with a service that misbehaves on request: for tests, demos and fault suites.

use std::{io::Write as _, process::ExitCode, sync::Arc};

use clap::{Parser, ValueEnum};
use wardkeep_examples::{
    pb::{self, trouble_server::TroubleServer},
    trouble::{Counters, Relay, Trouble},
};
use wardkeep_node::{
    Audience, Node, Ward, shutdown_signal,
    telemetry::{self, LogFormat},
};
use wardkeep_proto::Error;

/// A node whose service misbehaves on request
#[derive(Debug, Parser)]
#[command(name = "trouble", version)]
struct Args {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7500")]
    listen: String,
    /// Attend this supervisor
    #[arg(long, value_name = "URL", env = "WARDKEEP_SUPERVISOR")]
    supervisor: Option<String>,
    /// The node's name
    #[arg(long, value_name = "NAME", default_value = "trouble")]
    name: String,
    /// Make no trouble here: pass every call on to the trouble of the node at this address
    #[arg(long, value_name = "URL")]
    next: Option<String>,
    /// Who calls: what they are told of errors
    #[arg(long, value_name = "WHO", value_enum, default_value_t = Callers::Trusted)]
    audience: Callers,
    /// How to log: text or json
    #[arg(long, value_name = "FORMAT", env = "WARDKEEP_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Accept plaintext on an address other machines can reach
    #[arg(long)]
    insecure: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Callers {
    /// Our own people and programs: they get errors whole
    Trusted,
    /// Anyone: they get code, user's line, ID and retry hint
    Untrusted,
}

impl From<Callers> for Audience {
    fn from(callers: Callers) -> Self {
        match callers {
            Callers::Trusted => Self::Trusted,
            Callers::Untrusted => Self::Untrusted,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let _telemetry = match telemetry::init("trouble", args.log_format, 0) {
        Ok(telemetry) => telemetry,
        Err(line) => {
            eprintln!("trouble: {line}");
            return ExitCode::from(2);
        }
    };
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trouble: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Error> {
    let mut builder = Node::builder(args.name)
        .descriptors(pb::FILE_DESCRIPTOR_SET)
        .audience(args.audience.into())
        .restartable()
        .ward(ward(args.next.as_deref())?);
    if let Some(supervisor) = args.supervisor {
        builder = builder.supervisor(supervisor);
    }
    if args.insecure {
        builder = builder.insecure();
    }
    let node = builder.bind(&args.listen).await?;
    // For whoever started it with port 0. A reader who has gone is no reason to stop.
    let _ = writeln!(std::io::stdout(), "listening on {}", node.local_addr());
    node.run_until(shutdown_signal()).await
}

/// The ward that answers: it makes trouble, or passes calls on to one that does.
fn ward(next: Option<&str>) -> Result<Ward, Error> {
    let Some(next) = next else {
        let counters = Arc::new(Counters::default());
        return Ok(Ward::service("trouble", move |_| TroubleServer::new(Trouble::new(counters.clone()))));
    };
    let relay = Relay::to(next, next)?;
    Ok(Ward::service("relay", move |_| TroubleServer::new(relay.clone())))
}
