//! Millions of calls with a cancelled loser each. Each flood has a process of its own, so that its memory is its own.

use std::{
    io::{Error, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::{FutureExt as _, select_all};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::oneshot, task::JoinSet};
use tonic::transport::{Channel, Endpoint};
use wardkeep_client::{Member, Policy, Replicated, Restraint};
use wardkeep_node::{Node, Ward};

use super::runtime;
use crate::{
    ask::{Ask, ask},
    child, machine,
    report::{Row, Spread, Table},
};

pub const NAIVE: &str = "tonic's defaults, the slower call dropped, 64 at a time";
/// Beyond that it is known how it goes.
const NAIVE_CANCELS: u64 = 50_000;

pub const CANCELS: usize = 0;
pub const FAILED: usize = 2;
pub const LOST: usize = 3;
pub const MIB: usize = 4;
pub const TASKS: usize = 6;
const COLUMNS: [&str; 8] = [
    "cancels",
    "cancels per second",
    "failed calls",
    "connections lost",
    "MiB early",
    "MiB late",
    "tasks early",
    "tasks late",
];

pub const NOTE: &str = "With tonic's defaults on the client's side (the servers are the same wardkeep nodes, whose limits are raised) \
    the client itself ends the connection after 1,024 late frames in its life, and all calls on it fail. wardkeep's client lifts that limit, \
    has a window that small late frames do not use up, and takes a new connection, between calls, after two million cancels: that is no loss.";

/// Ways that share the cancels.
const WAYS: u64 = 4;

pub fn table(all: u64) -> Table {
    let cancels = all / WAYS;
    let about = format!(
        "Two nodes that answer at once with 100 B; each call goes to both, the loser is cancelled. {cancels} cancels each way, once, in a process of \
        its own with client and nodes; with tonic's defaults {NAIVE_CANCELS}. Tasks are those of the runtime, one for each stream at a server; \
        they and memory are means from 5 to 15 % of the cancels and over the last 10 %."
    );
    let flood = |name: String, way: &str, at_a_time: usize, cancels: u64| {
        eprintln!("{cancels} cancels, {name}");
        let figures = child::figures(&format!("flood {way} {at_a_time} {cancels}"));
        let row = Row {
            name,
            cells: figures.into_iter().map(|it| Spread::of([it])).collect(),
            ratio: None,
            also: Vec::new(),
        };
        let cells = row.cells.iter().flatten().map(|it| format!("{:.1}", it.median));
        eprintln!("  {}", cells.collect::<Vec<_>>().join("  "));
        row
    };
    let mut rows = vec![flood(NAIVE.to_owned(), "naive", 64, cancels.min(NAIVE_CANCELS))];
    for (how, way) in [("withdrawn in band", "in-band"), ("streams reset", "reset")] {
        for at_a_time in [64, 512] {
            rows.push(flood(
                format!("wardkeep all(2), {how}, {at_a_time} at a time"),
                way,
                at_a_time,
                cancels,
            ));
        }
    }
    Table {
        name: "Cancels, and what becomes of the connections".to_owned(),
        about,
        columns: COLUMNS.map(str::to_owned).to_vec(),
        baseline: NAIVE.to_owned(),
        also: Vec::new(),
        rows,
    }
}

/// One flood: the way, calls at a time, cancels.
pub fn job(args: &[String]) -> Vec<f64> {
    let [way, at_a_time, cancels] = args else { panic!("flood WAY CALLS CANCELS") };
    let (at_a_time, cancels) = (at_a_time.parse().expect("a number"), cancels.parse().expect("a number"));
    runtime().block_on(flood(way, at_a_time, cancels))
}

enum Way {
    Ours(Replicated),
    /// And the losers that were dropped before they had ended.
    Naive([Channel; 2], AtomicU64),
}

impl Way {
    /// Whether a good answer came.
    async fn ask(&self) -> bool {
        match self {
            Self::Ours(channel) => ask(channel.clone(), vec![1; 100]).await.is_ok(),
            Self::Naive(channels, cancelled) => {
                let calls = channels.iter().map(|channel| ask(channel.clone(), vec![1; 100]).boxed());
                let (first, _, _losers) = select_all(calls).await;
                cancelled.fetch_add(1, Relaxed);
                first.is_ok()
            }
        }
    }

    fn cancelled(&self) -> u64 {
        match self {
            Self::Ours(channel) => channel.stats().cancelled,
            Self::Naive(_, cancelled) => cancelled.load(Relaxed),
        }
    }
}

async fn flood(way: &str, at_a_time: usize, cancels: u64) -> Vec<f64> {
    let (mut uris, mut stop, mut nodes) = (Vec::new(), Vec::new(), JoinSet::new());
    for name in ["one", "two"] {
        let ward = Ward::service("ask", move |_| Ask::new(|_| async { Ok(vec![7; 100]) }));
        let node = Node::builder(name).ward(ward).bind("127.0.0.1:0").await.expect("a node");
        uris.push(node.local_addr().to_string());
        let (sender, stopped) = oneshot::channel::<()>();
        stop.push(sender);
        nodes
            .spawn(async move { node.run_until(async { drop(stopped.await) }).await.expect("it ends well") });
    }
    let opened = Arc::new(AtomicU64::new(0));
    let way = Arc::new(match way {
        "naive" => Way::Naive([0, 1].map(|n| counted(&uris[n], &opened)), AtomicU64::new(0)),
        _ => {
            let members = uris.iter().map(|uri| Member::new(uri, format!("http://{uri}")));
            let ours = Replicated::builder().members(members).assume_idempotent();
            // All of them, however busy the machine is.
            let ours =
                ours.restraint(Restraint::default().step_down(false).withdraw_in_band(way == "in-band"));
            Way::Ours(ours.policy(Policy::All(2)).build().expect("a channel"))
        }
    });
    let (done, failed, begin) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..at_a_time {
        let (way, done, failed) = (way.clone(), done.clone(), failed.clone());
        callers.spawn(async move {
            while !done.load(Relaxed) {
                if !way.ask().await {
                    failed.fetch_add(1, Relaxed);
                }
            }
        });
    }
    let (mut early, mut late) = (Means::default(), Means::default());
    let mut cancelled = 0;
    while cancelled < cancels {
        tokio::time::sleep(Duration::from_millis(10)).await;
        cancelled = way.cancelled();
        if (cancels / 20..cancels / 20 * 3).contains(&cancelled) {
            early.look();
        } else if cancelled >= cancels / 10 * 9 {
            late.look();
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    done.store(true, Relaxed);
    callers.join_all().await;
    let lost = match &*way {
        Way::Ours(channel) => {
            let stats = channel.stats();
            stats.connections as f64 - uris.len() as f64 - stats.renewed as f64
        }
        Way::Naive(..) => opened.load(Relaxed) as f64 - uris.len() as f64,
    };
    drop((way, stop));
    nodes.join_all().await;
    let ([mib, tasks], [mib_late, tasks_late]) = (early.means(), late.means());
    let (failed, cancelled) = (failed.load(Relaxed) as f64, cancelled as f64);
    vec![cancelled, cancelled / seconds, failed, lost, mib, mib_late, tasks, tasks_late]
}

/// Memory and tasks, looked at many times: at one moment there may be many of them or few.
#[derive(Default)]
struct Means {
    sums: [f64; 2],
    looks: u32,
}

impl Means {
    fn look(&mut self) {
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks() as f64;
        self.sums[0] += machine::resident_mib();
        self.sums[1] += tasks;
        self.looks += 1;
    }

    fn means(&self) -> [f64; 2] {
        self.sums.map(|sum| sum / f64::from(self.looks))
    }
}

/// As tonic has it, but that its connections are counted.
fn counted(address: &str, opened: &Arc<AtomicU64>) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let opened = opened.clone();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
        let opened = opened.clone();
        async move {
            let address = uri.authority().ok_or(ErrorKind::InvalidInput)?.as_str().to_owned();
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            opened.fetch_add(1, Relaxed);
            Ok::<_, Error>(TokioIo::new(stream))
        }
    }))
}
