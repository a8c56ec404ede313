//! A machine with too much to do, and a network that loses packets, are no reason to restart anybody.
//!
//! A fleet of nodes, each with a ward that pulses, attends a supervisor until so many pulses were given:
//! `WARDKEEP_PULSES` (5,000 unless set). docs/testing.md has the figures of a long run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs
)]

mod fleet_support;

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fleet_support::{Sup, supervisor_at};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};
use wardkeep::daemon::Supervisor;
use wardkeep_node::{Node, Ward};
use wardkeep_proto::v1::{self, EventKind, WardState};

const NODES: usize = 100;
const PULSE: Duration = Duration::from_millis(500);
/// The supervisor that a process started by one of these tests is to attend with a fleet.
const ATTEND: &str = "WARDKEEP_FLEET_ATTENDS";
/// It was started within the lossy network.
const INSIDE: &str = "WARDKEEP_INSIDE_LOSSY_NETWORK";
const LOSS: &str = "5";

fn pulses() -> u64 {
    std::env::var("WARDKEEP_PULSES").ok().and_then(|text| text.parse().ok()).unwrap_or(5_000)
}

/// What was seen.
#[derive(Debug, Default)]
struct Figures {
    pulses: u64,
    seconds: u64,
    restarts: u64,
    unreachable: usize,
    longest_gap: Duration,
    /// Why wards were restarted.
    alarms: Vec<String>,
}

/// Not a test of its own: the fleet, where another test has started it as a process. It prints how many pulses
/// its wards have given, until its input ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet() {
    let Ok(uri) = std::env::var(ATTEND) else { return };
    let given = Arc::new(AtomicU64::new(0));
    let mut nodes = JoinSet::new();
    for n in 0..NODES {
        let given = given.clone();
        let ward = Ward::task("pulses", move |context| {
            let given = given.clone();
            async move {
                while !context.is_cancelled() {
                    context.pulse();
                    given.fetch_add(1, Relaxed);
                    sleep(PULSE).await;
                }
                Ok(())
            }
        });
        let node = Node::builder(format!("n{n}")).supervisor(&uri).ward(ward.pulse_timeout(4 * PULSE));
        let node = node.bind("127.0.0.1:0").await.unwrap();
        nodes.spawn(node.run_until(std::future::pending()));
    }
    let mut out = tokio::io::stdout();
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(_)) = asked.next_line().await {
        out.write_all(format!("pulses {}\n", given.load(Relaxed)).as_bytes()).await.unwrap();
        out.flush().await.unwrap();
    }
    // No goodbyes: whoever asked has seen enough.
    std::process::exit(0);
}

struct Fleet {
    process: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Fleet {
    fn start(uri: &str) -> Self {
        let this = std::env::current_exe().unwrap();
        let mut command = match std::env::var("FAR_SIDE") {
            Ok(far) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{far}/ns/net")).arg("--").arg(this);
                command
            }
            Err(_) => Command::new(this),
        };
        command.args(["--exact", "a_fleet", "--nocapture"]).env(ATTEND, uri).kill_on_drop(true);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    async fn pulses(&mut self) -> u64 {
        self.process.stdin.as_mut().unwrap().write_all(b"?\n").await.unwrap();
        loop {
            let line = self.lines.next_line().await.unwrap().expect("the fleet lives");
            if let Some(pulses) = line.strip_prefix("pulses ") {
                return pulses.parse().unwrap();
            }
        }
    }
}

/// Watches over a fleet until it has pulsed so often.
async fn watch(address: &str) -> Figures {
    let sup = supervisor_at(Supervisor::builder().insecure(), address).await;
    let mut fleet = Fleet::start(&sup.uri);
    let running = |fleet: &v1::Fleet| {
        let up = fleet.wards.iter().filter(|ward| ward.state() == WardState::Running).count();
        (up == NODES).then_some(())
    };
    sup.until(running).await;
    let (first, begun) = (fleet.pulses().await, tokio::time::Instant::now());
    let mut figures = Figures::default();
    while figures.pulses < pulses() {
        sleep(Duration::from_millis(100)).await;
        figures.longest_gap = figures.longest_gap.max(longest_gap(&sup.fleet().await));
        figures.pulses = fleet.pulses().await - first;
    }
    figures.seconds = begun.elapsed().as_secs();
    figures.restarts = sup.fleet().await.wards.iter().map(|ward| ward.incarnation - 1).sum();
    figures.unreachable = verdicts(&sup, &mut figures.alarms).await;
    figures
}

/// Between the last report of a node and now, where that is longest.
fn longest_gap(fleet: &v1::Fleet) -> Duration {
    let nanos = |at: prost_types::Timestamp| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let now = nanos(fleet.at.unwrap());
    let gaps = fleet.nodes.iter().filter_map(|node| node.last_report_at).map(|at| now - nanos(at));
    Duration::from_nanos(gaps.max().unwrap_or_default().try_into().unwrap_or_default())
}

/// How often a node was held to be unreachable: no harm, if nothing is restarted for it.
async fn verdicts(sup: &Sup, alarms: &mut Vec<String>) -> usize {
    let events = sup.operator.clone().watch_events(v1::WatchEventsRequest::default()).await.unwrap();
    let mut events = events.into_inner();
    let mut verdicts = 0;
    while let Some(event) = events.message().await.unwrap() {
        let bad = event.kind() == EventKind::NodeVerdict && event.verdict() == v1::Verdict::Unreachable;
        verdicts += usize::from(bad);
        if event.kind() == EventKind::WardVerdict {
            alarms.push(format!("{}: {}", event.node, event.text));
        }
    }
    verdicts
}

/// A hang is a failure.
fn patience() -> Duration {
    let pulses = u32::try_from(pulses()).unwrap();
    Duration::from_secs(60) + 4 * PULSE * pulses / u32::try_from(NODES).unwrap()
}

/// Computes until it is dropped, on twice as many threads as there are cores.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn twofold() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..2 * std::thread::available_parallelism().unwrap().get() {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_restarted_while_the_cores_are_oversubscribed_twofold() {
    let _busy = Busy::twofold();
    let figures = timeout(patience(), watch("127.0.0.1:0")).await.expect("the test hangs");
    println!("cores oversubscribed twofold: {figures:?}");
    assert_eq!(figures.restarts, 0, "{figures:?}");
}

/// Runs itself again within the network that loses packets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_restarted_where_packets_are_lost() {
    if std::env::var_os(INSIDE).is_some() {
        let figures = timeout(patience(), watch("10.99.0.1:0")).await.expect("the test hangs");
        println!("{LOSS} % loss each way: {figures:?}");
        assert_eq!(figures.restarts, 0, "{figures:?}");
        return;
    }
    if let Err(missing) = can_lose_packets().await {
        let tools = missing.starts_with("no ");
        assert!(!tools || std::env::var_os("WARDKEEP_CI").is_none(), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lossy_network.sh"));
    script.arg(LOSS).arg(std::env::current_exe().unwrap());
    script.args(["--exact", "nobody_is_restarted_where_packets_are_lost", "--nocapture"]);
    let output = timeout(patience(), script.env(INSIDE, "1").kill_on_drop(true).output()).await;
    let output = output.expect("the test hangs").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.contains("loss each way")).for_each(|line| println!("{line}"));
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

async fn can_lose_packets() -> Result<(), &'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root");
    }
    for (tool, missing) in
        [("ip", "no ip"), ("nft", "no nft"), ("unshare", "no unshare"), ("nsenter", "no nsenter")]
    {
        let found =
            Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        if found.is_err() {
            return Err(missing);
        }
    }
    // Where this process may not have namespaces, or the kernel has no such rule.
    let try_it = Command::new("unshare")
        .args([
            "--net",
            "--",
            "nft",
            "add table inet t; add chain inet t c { type filter hook input priority 0; }; ",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    match try_it {
        Ok(status) if status.success() => Ok(()),
        _ => Err("nft is not allowed here"),
    }
}
