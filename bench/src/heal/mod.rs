//! From a crash to running again, and from a freeze to its being noticed.

mod freeze;
mod local;
mod remote;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::report::{Goal, Report, Table};

pub use freeze::job as frozen;

pub fn measure(rounds: usize) -> Result<Report, Box<dyn std::error::Error>> {
    // Nobody reads what a panic prints: it would be most of the time.
    std::panic::set_hook(Box::new(|_| {}));
    crate::errors::log_into_nothing();
    let local = local::table(rounds);
    let remote = remote::table(rounds);
    let freeze = freeze::table(rounds.div_ceil(3));
    let goals = goals(&local, &remote, &freeze);
    let notes = vec![local::NOTE.to_owned(), remote::note(&remote), freeze::NOTE.to_owned()];
    Ok(Report {
        group: "heal".into(),
        title: "Heal".into(),
        command: "cargo measure heal".into(),
        rounds,
        tables: vec![local, remote, freeze],
        goals,
        notes,
        ..Default::default()
    })
}

fn goals(local: &Table, remote: &Table, freeze: &Table) -> Vec<Goal> {
    let here = local.median(local::WARDKEEP, 0);
    let (there, trip) = (remote.median(remote::IN_MEMORY, 0), remote.median(remote::TRIP, 0));
    let frozen = freeze.median(freeze::DEFAULT, 0);
    vec![
        Goal {
            what: format!(
                "a ward of a node that is alone runs again within 100 µs of its crash, p50: {here:.0} µs"
            ),
            met: here <= 100.0,
        },
        Goal {
            what: format!(
                "one that a supervisor watches over, within three round trips: {:.1} round trips ({there:.0} µs)",
                there / trip
            ),
            met: there <= 3.0 * trip,
        },
        Goal {
            what: format!(
                "a node that pulses each 500 ms and is frozen is noticed within 3 s: {frozen:.2} s"
            ),
            met: frozen <= 3.0,
        },
    ]
}

/// Nanoseconds since this program first asked.
fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// What crashes, and says when it runs again.
#[derive(Clone)]
pub struct Patient {
    crashed: Arc<AtomicU64>,
    runs: mpsc::UnboundedSender<u64>,
}

impl Patient {
    fn new() -> (Self, mpsc::UnboundedReceiver<u64>) {
        let (runs, began) = mpsc::unbounded_channel();
        (Self { crashed: Arc::default(), runs }, began)
    }

    /// To be called as the first thing of each incarnation.
    pub fn runs(&self) {
        let since = now().saturating_sub(self.crashed.load(SeqCst));
        let _ = self.runs.send(since);
    }

    pub fn crashes(&self) {
        self.crashed.store(now(), SeqCst);
    }

    pub fn crash(&self) -> ! {
        self.crashes();
        panic!("crash");
    }
}

/// Has it crash so often, a pause before each, and says how many microseconds each time took.
async fn crashes(times: usize, began: &mut mpsc::UnboundedReceiver<u64>, crash: impl Fn()) -> Vec<f64> {
    let mut took = Vec::new();
    began.recv().await.expect("it begins");
    for _ in 0..times {
        tokio::time::sleep(Duration::from_millis(2)).await;
        crash();
        let again = tokio::time::timeout(Duration::from_secs(20), began.recv()).await;
        took.push(again.expect("it runs again").expect("it is there") as f64 / 1_000.0);
    }
    took
}

fn percentiles(mut took: Vec<f64>) -> Vec<f64> {
    took.sort_by(f64::total_cmp);
    vec![took[took.len() / 2], took[took.len() * 99 / 100]]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}
