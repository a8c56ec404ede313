//! From nothing to a node that answers, and what such a node takes when nothing goes on.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use procfs::process::Process;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    beside::{Contestant, side_by_side},
    child,
    report::{self, Report, Table},
};

const BARE: &str = "tonic: a server that answers health";
const COLUMNS: [&str; 5] = [
    "time to ready in ms",
    "resident memory in MiB",
    "of it, its own (not of files) in MiB",
    "threads",
    "CPU at idle in ms a second",
];
/// Until what is left over from the start is done.
const SETTLES: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub fn measure(rounds: usize) -> Result<Report> {
    let wardkeep = build()?;
    let folder = tempfile::tempdir()?;
    let with_a_ward = folder.path().join("node.toml");
    fs::write(
        &with_a_ward,
        "name = \"start\"\n\n[[ward]]\nname = \"sleeper\"\ncommand = [\"sleep\", \"3600\"]\n",
    )?;
    let started = started(rounds, &wardkeep, &with_a_ward);
    let size = size(&wardkeep, folder.path())?;
    let notes = vec![format!(
        "No goal was set. What an idle node does all the time: its keeper's thread looks after the wards and has the runtime give a \
        sign of life, {:.1} ms of CPU a second.",
        started.median(NODE, 4)
    )];
    Ok(Report {
        group: "start".into(),
        title: "Start".into(),
        command: "cargo measure start".into(),
        rounds,
        tables: vec![started, size],
        notes,
        ..Default::default()
    })
}

const NODE: &str = "wardkeep serve node, no wards";

/// The real program, from the workspace this belongs to.
fn build() -> Result<PathBuf> {
    eprintln!("building wardkeep, release");
    let manifest = report::path("Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = report::path("target");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--release", "--locked", "--bin", "wardkeep", "--manifest-path"]);
    let built = command.arg(manifest).arg("--target-dir").arg(&target).status()?;
    if !built.success() {
        return Err("the program wardkeep cannot be built".into());
    }
    Ok(target.join("release/wardkeep"))
}

fn started(rounds: usize, wardkeep: &Path, with_a_ward: &Path) -> Table {
    let about = "A process is started; the time until a connection is accepted and gRPC health says SERVING, asked each \
        0.1 ms. Then, after a second, its memory, its threads, and its CPU over 2 s. *Cold*: its file was put out of the page cache \
        first (libraries of the system stay).";
    let node = |config: Option<&Path>| {
        let mut command = Command::new(wardkeep);
        command.args(["serve", "node", "--name", "start"]);
        command.args(config.iter().flat_map(|file| [Path::new("--config"), file]));
        command
    };
    let bare = || child::command("health");
    let this = std::env::current_exe().expect("this program");
    let contestants = vec![
        warm(BARE, bare),
        cold("tonic: the same, cold", this, bare),
        warm(NODE, move || node(None)),
        cold("wardkeep serve node, no wards, cold", wardkeep.to_owned(), move || node(None)),
        warm("wardkeep serve node, a program as its ward", move || node(Some(with_a_ward))),
    ];
    side_by_side(("From nothing to ready", about), &COLUMNS, BARE, rounds, contestants)
}

/// Started as it is.
fn warm<'a>(name: &str, command: impl Fn() -> Command + 'a) -> Contestant<'a> {
    Contestant::new(name, move || start(command()))
}

/// Started after its file was forgotten.
fn cold<'a>(name: &str, file: PathBuf, command: impl Fn() -> Command + 'a) -> Contestant<'a> {
    Contestant::new(name, move || {
        forget(&file);
        start(command())
    })
}

/// Takes a file out of the page cache, as far as the system agrees.
fn forget(file: &Path) {
    let file = File::open(file).expect("the program");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("a file");
}

fn start(mut command: Command) -> Vec<f64> {
    let address = free_port();
    command.env("WARDKEEP_LISTEN", address.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut child = Stopped(command.spawn().expect("the program starts"));
    while TcpStream::connect(address).is_err() {
        assert!(begin.elapsed() < PATIENCE, "{command:?} does not listen");
        std::thread::sleep(Duration::from_micros(100));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serving(address));
    let ready = begin.elapsed();
    std::thread::sleep(SETTLES);
    let process = i32::try_from(child.0.id()).map(Process::new).expect("a process ID").expect("it runs");
    let memory = process.statm().expect("its memory");
    let mib = |pages: u64| pages as f64 * procfs::page_size() as f64 / f64::from(1 << 20);
    let threads = process.stat().expect("its state").num_threads;
    let before = cpu_nanos(&process);
    std::thread::sleep(IDLE);
    let cpu = (cpu_nanos(&process) - before) / IDLE.as_secs_f64() / 1e6;
    child.stop();
    vec![
        ready.as_secs_f64() * 1_000.0,
        mib(memory.resident),
        mib(memory.resident - memory.shared),
        threads as f64,
        cpu,
    ]
}

/// Until health says so.
async fn serving(address: SocketAddr) {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("a URI");
    let mut health = HealthClient::new(endpoint.connect().await.expect("it listens"));
    let begin = Instant::now();
    loop {
        let answer = health.check(HealthCheckRequest::default()).await;
        if answer.is_ok_and(|answer| answer.into_inner().status == 1) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "it never serves");
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
}

/// Of all its threads, by the scheduler: what `stat` says has steps of 10 ms.
fn cpu_nanos(process: &Process) -> f64 {
    let tasks = process.tasks().expect("its threads").flatten();
    tasks.filter_map(|task| Some(task.schedstat().ok()?.sum_exec_runtime as f64)).sum()
}

/// One that nobody uses just now. Another program may take it before the child does: the round fails then.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// A process that ends with the round.
struct Stopped(Child);

impl Stopped {
    /// As an operator would: its wards end with it.
    fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("a process ID"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// tonic alone, with its health service.
pub fn job() {
    let address = std::env::var("WARDKEEP_LISTEN").expect("an address").parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (_reporter, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder().add_service(health);
        server.serve(address).await.expect("it serves");
    });
}

/// As it is built here, and without its symbols.
fn size(wardkeep: &Path, folder: &Path) -> Result<Table> {
    let mib = |file: &Path| Ok::<_, std::io::Error>(fs::metadata(file)?.len() as f64 / f64::from(1 << 20));
    let stripped = folder.join("stripped");
    let strip = Command::new("strip").arg("-o").arg(&stripped).arg(wardkeep).status();
    let without = match strip.is_ok_and(|status| status.success()) {
        true => mib(&stripped)?,
        false => f64::NAN,
    };
    let with = mib(wardkeep)?;
    let contestants = vec![
        Contestant::new("wardkeep, stripped", move || vec![without]),
        Contestant::new("wardkeep, with lines for stacks", move || vec![with]),
    ];
    let about = "The one binary: supervisor, node and command. A file has one size, hence no spread.";
    Ok(side_by_side(("Size of the binary", about), &["size in MiB"], "wardkeep, stripped", 1, contestants))
}
