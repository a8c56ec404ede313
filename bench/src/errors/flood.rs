//! A flood of one failure, through a real node that attends a real supervisor.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use wardkeep::daemon::Supervisor;
use wardkeep_node::{Node, Restart, Ward, WardContext};
use wardkeep_proto::{
    Error,
    v1::{self, operator_client::OperatorClient},
};

use super::ShelfFull;
use crate::{
    beside::{Contestant, side_by_side},
    machine::{cpu_seconds, resident_mib},
    report::{Goal, Table},
};

const RATE: f64 = 100_000.0;
const LASTS: Duration = Duration::from_secs(5);
/// Longest time until the supervisor has been told of all.
const SETTLES: Duration = Duration::from_secs(30);

const COLUMNS: [&str; 10] = [
    "µs of CPU an error",
    "seconds of CPU a second",
    "errors a second",
    "log lines",
    "log KiB",
    "groups",
    "made",
    "counted by the supervisor",
    "dropped and counted",
    "memory grown by in MiB",
];
/// The reason of an error that is there before the flood.
const FIRST: &str = "FIRST";
const REPORTED: &str = "wardkeep: made and reported";
const LOGGED: &str = "made, and each logged";

pub fn table(rounds: usize, written: &'static Written) -> Table {
    let about = "A task ward has the same failure 100,000 times a second, for 5 s, on a node that attends a supervisor; \
        node, supervisor and log writer share a process. *Counted* is what `wardkeep error ls` says.";
    let round = |what: What| move || run(what, written);
    let contestants = vec![
        Contestant::new(LOGGED, round(What::LogEach)),
        Contestant::new("made, and dropped", round(What::Drop)),
        Contestant::new(REPORTED, round(What::Report)),
        Contestant::new("nothing: node and supervisor idle", round(What::Idle)),
    ];
    side_by_side(("A flood of one failure", about), &COLUMNS, LOGGED, rounds, contestants)
}

pub fn goals(flood: &Table) -> Vec<Goal> {
    let column = |column| flood.median(REPORTED, column);
    let (rate, groups, made, counted, dropped) = (column(2), column(5), column(6), column(7), column(8));
    vec![
        Goal {
            what: format!("a flood of 100,000 a second is taken: {rate:.0} a second"),
            met: rate >= 0.99 * RATE,
        },
        Goal { what: format!("it is one group: {groups}"), met: groups == 1.0 },
        Goal {
            what: format!(
                "each error is counted: {made} made, {counted} counted, {dropped} dropped and counted"
            ),
            met: made == counted + dropped,
        },
    ]
}

/// What becomes of each failure.
#[derive(Clone, Copy, PartialEq)]
enum What {
    Idle,
    Drop,
    LogEach,
    Report,
}

fn run(what: What, written: &'static Written) -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let figures = runtime.block_on(flood(what, written));
    // What a flood wrote into the log is told of when its ten seconds are over: not in another's time.
    wardkeep_proto::error::tell_kept_back(tokio::time::Instant::now() + Duration::from_secs(60));
    figures
}

async fn flood(what: What, written: &'static Written) -> Vec<f64> {
    let supervisor = Supervisor::builder().bind("127.0.0.1:0").await.expect("a supervisor");
    let uri = format!("http://{}", supervisor.local_addr());
    let (stop_supervisor, stopped) = oneshot::channel::<()>();
    let supervising = tokio::task::spawn(supervisor.run_until(async { drop(stopped.await) }));

    let (begin, begun) = tokio::sync::watch::channel(false);
    let made = Arc::new(AtomicU64::new(u64::MAX));
    // Each round has a group of its own: the log's allowance for a group is for ten seconds.
    let reason: &'static str = format!("FLOOD_{}", uuid::Uuid::now_v7().simple()).leak();
    let ward = Ward::task("flood", {
        let made = made.clone();
        move |context| {
            let (mut begun, made) = (begun.clone(), made.clone());
            async move {
                // The first error of a process is named by its debug information, which is then in memory.
                context.report(Error::from(ShelfFull { reason: FIRST, shelf: 7 }));
                drop(begun.wait_for(|begun| *begun).await);
                made.store(pour(what, reason, &context).await, Relaxed);
                context.cancelled().await;
                Ok(())
            }
        }
    });
    let node = Node::builder("flooded").supervisor(&uri).ward(ward.restart(Restart::Temporary));
    let node = node.bind("127.0.0.1:0").await.expect("a node");
    let (stop_node, stopped) = oneshot::channel::<()>();
    let hosting = tokio::task::spawn(node.run_until(async { drop(stopped.await) }));
    let mut operator = connect(uri).await;
    while errors(&mut operator, FIRST).await.groups.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let before = (cpu_seconds(), resident_mib(), written.get(), Instant::now());
    begin.send_replace(true);
    while made.load(Relaxed) == u64::MAX {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seconds = before.3.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - before.0;
    let lines = written.get();
    let made = made.load(Relaxed) as f64;
    let told = what == What::Report;
    let list = if told { settled(&mut operator, reason, made).await } else { v1::ErrorList::default() };
    let grown = resident_mib() - before.1;
    drop((stop_node, operator));
    hosting.await.expect("no panic").expect("the node ends well");
    drop(stop_supervisor);
    supervising.await.expect("no panic").expect("the supervisor ends well");

    let counted = list.groups.iter().map(|group| group.count).sum::<u64>() as f64;
    let of_reports = |n: f64| if told { n } else { f64::NAN };
    vec![
        if made > 0.0 { cpu / made * 1e6 } else { f64::NAN },
        cpu / seconds,
        made / seconds,
        (lines.0 - before.2.0) as f64,
        (lines.1 - before.2.1) as f64 / 1_024.0,
        of_reports(list.groups.len() as f64),
        made,
        of_reports(counted),
        of_reports(list.dropped as f64),
        grown,
    ]
}

/// Makes errors at the rate, as far as it can be kept; says how many.
async fn pour(what: What, reason: &'static str, context: &WardContext) -> u64 {
    let begin = Instant::now();
    let mut made = 0;
    while begin.elapsed() < LASTS {
        let due = (begin.elapsed().as_secs_f64() * RATE) as u64;
        // In pieces, between which others get their turn.
        let piece = if what == What::Idle { 0 } else { due.saturating_sub(made).min(1_000) };
        for _ in 0..piece {
            let error = Error::from(ShelfFull { reason, shelf: 7 });
            match what {
                What::Idle | What::Drop => drop(error),
                What::LogEach => tracing::warn!("{error:?}"),
                What::Report => context.report(error),
            }
        }
        made += piece;
        if made < due && what != What::Idle {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    made
}

async fn connect(uri: String) -> OperatorClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(uri).expect("a URI");
    OperatorClient::new(endpoint.connect().await.expect("the supervisor answers"))
}

/// What the supervisor says of errors with this reason.
async fn errors(operator: &mut OperatorClient<tonic::transport::Channel>, reason: &str) -> v1::ErrorList {
    let mut list = operator.list_errors(v1::ListErrorsRequest {}).await.expect("a list").into_inner();
    list.groups.retain(|group| group.kind == reason);
    list
}

/// What the supervisor says once it was told of as many as were made, or nothing more is told.
async fn settled(
    operator: &mut OperatorClient<tonic::transport::Channel>,
    reason: &str,
    made: f64,
) -> v1::ErrorList {
    let begin = Instant::now();
    loop {
        let list = errors(operator, reason).await;
        let counted = list.groups.iter().map(|group| group.count).sum::<u64>() + list.dropped;
        if counted as f64 >= made || begin.elapsed() > SETTLES {
            return list;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Counts what is written to the log.
#[derive(Debug, Default)]
pub struct Written {
    lines: AtomicU64,
    bytes: AtomicU64,
}

impl Written {
    fn get(&self) -> (u64, u64) {
        (self.lines.load(Relaxed), self.bytes.load(Relaxed))
    }
}

impl io::Write for &Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets up this process' log.
pub fn log_into_nothing() -> &'static Written {
    let written: &'static Written = Box::leak(Box::default());
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written);
    let _ = log.with_max_level(tracing::Level::INFO).try_init();
    written
}
