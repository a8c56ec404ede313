//! What `wardkeep serve supervisor` and `wardkeep serve node` do: flags win over the environment,
//! both over the file, the file over the defaults.

use std::{
    future::poll_fn,
    path::{Path, PathBuf},
    task::Poll,
};

use wardkeep_node::{
    Node, shutdown_signal,
    telemetry::{self, LogFormat},
};
use wardkeep_proto::{Error, machine_name};

use crate::{
    cli::{
        Exit, Failure,
        args::{self, LogArgs, ServeNode, ServeSupervisor},
    },
    config::{self, SupervisorFile},
    daemon::Supervisor,
};

/// Where a supervisor listens unless told otherwise.
pub const SUPERVISOR_ADDRESS: &str = "127.0.0.1:7400";
/// Where a supervisor's metrics are unless told otherwise.
pub const HTTP_ADDRESS: &str = "127.0.0.1:7480";
/// Where a node listens unless told otherwise.
pub const NODE_ADDRESS: &str = "127.0.0.1:7500";

/// Why a daemon did not start or did not end well.
#[derive(Debug)]
pub enum ServeError {
    /// What it was told is wrong: one line.
    Usage(String),
    /// It could not be set up, or failed.
    Failed(Error),
}

impl From<Error> for ServeError {
    fn from(error: Error) -> Self {
        // Told wrongly, or not to be had: the code knows.
        match error.code() {
            wardkeep_proto::error::Code::InvalidArgument => Self::Usage(error.to_string()),
            _ => Self::Failed(error),
        }
    }
}

/// How `serve` ends after that: one line, without an ID nobody could look up yet.
pub fn failure(error: ServeError) -> Failure {
    match error {
        ServeError::Usage(line) => Failure::usage(line),
        ServeError::Failed(error) => Failure::new(Exit::Failed, error.to_string()),
    }
}

fn log(service: &str, args: &LogArgs) -> Result<telemetry::Telemetry, ServeError> {
    let format = match args.log_format {
        args::LogFormat::Text => LogFormat::Text,
        args::LogFormat::Json => LogFormat::Json,
    };
    telemetry::init(service, format, args.verbose).map_err(ServeError::Usage)
}

/// Catches SIGTERM and Ctrl-C from now on, not only from when the daemon first looks: one that is told
/// to end while it begins ends well, too.
async fn shutdown() -> impl Future<Output = ()> {
    let mut signal = Box::pin(shutdown_signal());
    let caught = poll_fn(|context| Poll::Ready(signal.as_mut().poll(context).is_ready())).await;
    async move {
        if !caught {
            signal.await;
        }
    }
}

/// Runs a supervisor until SIGTERM or Ctrl-C.
///
/// # Errors
/// See [`ServeError`].
pub async fn supervisor(args: ServeSupervisor, log_args: &LogArgs) -> Result<(), ServeError> {
    let given = given(&[
        ("listen", args.listen.is_some()),
        ("http_listen", args.http_listen.is_some()),
        ("data_dir", args.data_dir.is_some()),
        ("insecure", args.insecure),
    ]);
    let (file, configuration) = match &args.config {
        Some(path) => config::supervisor(path, &given).map_err(ServeError::Usage)?,
        None => {
            let file = SupervisorFile::default();
            let configuration = file.configuration(&given).map_err(ServeError::Usage)?;
            (file, configuration)
        }
    };
    let telemetry = log("wardkeep-supervisor", log_args)?;
    let shutdown = shutdown().await;
    let mut builder = Supervisor::builder().seed(u64::from(std::process::id()));
    builder = match args.config {
        Some(path) => {
            let read = whole(&path);
            let name = read.display().to_string();
            builder.configured(name, configuration, move || Ok(config::supervisor(&read, &given)?.1))
        }
        None => builder.as_configured(configuration),
    };
    if let Some(dir) = args.data_dir.or(file.data_dir) {
        builder = builder.data_dir(dir);
    }
    if args.insecure || file.insecure {
        builder = builder.insecure();
    }
    builder = match args.http_listen.or(file.http_listen) {
        None => builder.http_if_free(HTTP_ADDRESS),
        Some(off) if off == "off" => builder,
        Some(address) => builder.http(address),
    };
    let listen = args.listen.or(file.listen).unwrap_or_else(|| SUPERVISOR_ADDRESS.to_owned());
    let result = builder.bind(&listen).await?.run_until(shutdown).await;
    drop(telemetry);
    Ok(result?)
}

/// The keys that flags or the environment decide.
fn given(keys: &[(&'static str, bool)]) -> Vec<&'static str> {
    keys.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect()
}

/// The same file, wherever the process may be later.
fn whole(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Runs a node until SIGTERM or Ctrl-C.
///
/// # Errors
/// See [`ServeError`].
pub async fn node(args: ServeNode, log_args: &LogArgs) -> Result<(), ServeError> {
    let given = given(&[
        ("name", args.name.is_some()),
        ("listen", args.listen.is_some()),
        ("supervisor", args.supervisor.is_some()),
        ("insecure", args.insecure),
    ]);
    let (file, configuration) = match &args.config {
        Some(path) => config::node(path, &given).map_err(ServeError::Usage)?,
        None => Default::default(),
    };
    let telemetry = log("wardkeep-node", log_args)?;
    let shutdown = shutdown().await;
    let name = args.name.or(file.name).unwrap_or_else(|| machine_name().to_owned());
    let mut builder = Node::builder(name).restartable();
    if let Some(supervisor) = args.supervisor.or(file.supervisor) {
        builder = builder.supervisor(supervisor);
    }
    if let Some(advertise) = file.advertise {
        builder = builder.advertise(advertise);
    }
    if let Some(machine) = file.machine {
        builder = builder.machine(machine);
    }
    if let Some(zone) = file.zone {
        builder = builder.zone(zone);
    }
    for (key, value) in file.labels {
        builder = builder.label(key, value);
    }
    if let Some(path) = args.config {
        let read = whole(&path);
        let name = read.display().to_string();
        builder = builder.configured(name, configuration, move || Ok(config::node(&read, &given)?.1));
    }
    if args.insecure || file.insecure {
        builder = builder.insecure();
    }
    let listen = args.listen.or(file.listen).unwrap_or_else(|| NODE_ADDRESS.to_owned());
    let result = builder.bind(&listen).await?.run_until(shutdown).await;
    drop(telemetry);
    Ok(result?)
}
