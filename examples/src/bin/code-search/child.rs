//! What the program is when it starts itself again: the supervisor, or one node.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use tokio::io::AsyncReadExt as _;
use wardkeep::daemon::{How, Launch, Supervisor};
use wardkeep_examples::{search::DataPath, search_node};
use wardkeep_node::{
    shutdown_signal,
    telemetry::{self, LogFormat},
};

use wardkeep_examples::Failure;

/// The files of the corpus, one per line after its root.
pub(crate) const LIST: &str = "corpus.list";

#[derive(Debug, Subcommand)]
pub(crate) enum Child {
    /// The supervisor of the quickstart.
    #[command(hide = true)]
    Supervisor {
        #[arg(long)]
        listen: String,
        /// Where the corpus' list and the index are.
        #[arg(long)]
        dir: PathBuf,
    },
    /// One node: serves the code search by one data path.
    #[command(hide = true)]
    Node {
        /// scan, trigram or sqlite
        #[arg(long)]
        path: DataPath,
        /// Name of the node [default: its data path]
        #[arg(long)]
        name: Option<String>,
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        #[arg(long, env = "WARDKEEP_SUPERVISOR")]
        supervisor: Option<String>,
        /// Where the corpus' list and the index are. Made if absent, with --corpus.
        #[arg(long)]
        dir: PathBuf,
        /// Folder to search, if `dir` has no list yet.
        #[arg(long)]
        corpus: Option<PathBuf>,
        #[arg(long, default_value = "")]
        zone: String,
        #[arg(long)]
        machine: Option<String>,
        /// Where clients reach it, if not at the address it listens on.
        #[arg(long, value_name = "URL")]
        advertise: Option<String>,
        /// Offer the service that breaks the search.
        #[arg(long)]
        chaos: bool,
        /// Accept plaintext on an address other machines can reach.
        #[arg(long)]
        insecure: bool,
    },
}

pub(crate) async fn run(child: Child) -> Result<(), Failure> {
    let name = match &child {
        Child::Supervisor { .. } => "code-search-supervisor",
        Child::Node { .. } => "code-search-node",
    };
    let _telemetry = telemetry::init(name, LogFormat::Text, 0).map_err(Failure::usage)?;
    match child {
        Child::Supervisor { listen, dir } => supervisor(&listen, dir).await,
        Child::Node { .. } => node(child).await,
    }
}

async fn supervisor(listen: &str, dir: PathBuf) -> Result<(), Failure> {
    let supervisor = Supervisor::builder().data_dir(&dir).bind(listen).await.map_err(Failure::failed)?;
    let address = supervisor.local_addr();
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let supervisor = DataPath::ALL.into_iter().fold(supervisor, |supervisor, path| {
        supervisor.launch(launch(&program, path, &format!("http://{address}"), &dir))
    });
    let _ = writeln!(std::io::stdout(), "listening on {address}");
    // Whoever started it holds its standard input open; when that closes, however the starter
    // ended, the cluster ends too.
    let starter_gone = async {
        let mut stdin = tokio::io::stdin();
        while matches!(stdin.read(&mut [0; 64]).await, Ok(n) if n > 0) {}
    };
    let end = async {
        tokio::select! {
            () = shutdown_signal() => {}
            () = starter_gone => {}
        }
    };
    supervisor.run_until(end).await.map_err(Failure::failed)
}

fn launch(program: &Path, path: DataPath, supervisor: &str, dir: &Path) -> Launch {
    let args = ["node", "--path", path.as_str(), "--supervisor", supervisor, "--chaos", "--zone"];
    let zone = match path {
        DataPath::Scan => "a",
        DataPath::Trigram => "b",
        DataPath::Sqlite => "c",
    };
    let mut args: Vec<std::ffi::OsString> = args.into_iter().chain([zone, "--dir"]).map(Into::into).collect();
    args.push(dir.into());
    Launch {
        node: path.to_string(),
        how: How::Process,
        program: program.to_owned(),
        args,
        env: BTreeMap::new(),
        socket: PathBuf::new(),
    }
}

async fn node(child: Child) -> Result<(), Failure> {
    let Child::Node {
        path,
        name,
        listen,
        supervisor,
        dir,
        corpus,
        zone,
        machine,
        advertise,
        chaos,
        insecure,
    } = child
    else {
        return Ok(());
    };
    let list = dir.join(LIST);
    if let Some(folder) = corpus.filter(|_| !list.exists()) {
        first_index(&folder, path, &dir, &list)?;
    }
    let (files, engine) = tokio::task::spawn_blocking(move || search_node::engine(path, &list, &dir))
        .await
        .map_err(Failure::failed)?
        .map_err(Failure::failed)?;
    let name = name.unwrap_or_else(|| path.to_string());
    let mut builder = search_node::builder(&name, engine, files, chaos).zone(zone);
    if let Some(supervisor) = supervisor {
        builder = builder.supervisor(supervisor);
    }
    if let Some(advertise) = advertise {
        builder = builder.advertise(advertise);
    }
    if let Some(machine) = machine {
        builder = builder.machine(machine);
    }
    if insecure {
        builder = builder.insecure();
    }
    let node = builder.bind(&listen).await.map_err(Failure::failed)?;
    node.run_until(shutdown_signal()).await.map_err(Failure::failed)
}

/// A node that stands alone makes its list, and SQLite's index, itself.
fn first_index(folder: &Path, path: DataPath, dir: &Path, list: &Path) -> Result<(), Failure> {
    use wardkeep_examples::search::{Corpus, DEFAULT_MAX_BYTES, Sqlite};
    std::fs::create_dir_all(dir).map_err(Failure::failed)?;
    let corpus = Corpus::from_dir(folder, DEFAULT_MAX_BYTES, &|_| {}).map_err(Failure::usage)?;
    if path == DataPath::Sqlite {
        Sqlite::build(&corpus, dir, &|_| {}).map_err(Failure::failed)?;
    }
    corpus.save_list(list).map_err(Failure::failed)
}
