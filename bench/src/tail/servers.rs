//! Three unlike servers: wardkeep nodes with a place for a few calls at a time, which take their time by a timer, so
//! that it is they who are busy and not the machine.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task::JoinSet};
use wardkeep_client::{Member, testing::Dice};
use wardkeep_node::{Node, Ward};

use crate::ask::Ask;

/// Medians of the lognormal times of the three.
pub const MEDIANS: [Duration; 3] =
    [Duration::from_millis(4), Duration::from_millis(5), Duration::from_millis(6)];
/// Standard deviation of the logarithm.
pub const SIGMA: f64 = 0.3;
/// So many take so much longer.
pub const UNLUCKY: (f64, Duration) = (0.02, Duration::from_millis(100));
/// Calls that a server works on at a time, where they are to have time to spare, and where they get busy.
pub const MANY_PLACES: usize = 16;
pub const PLACES: usize = 4;
/// So many times that may wait.
pub const WAIT: usize = 4;

/// What the servers have done.
#[derive(Default)]
pub struct Worked {
    begun: AtomicU64,
    micros: AtomicU64,
}

/// Counts from the beginning of a handler to its end, whatever ends it.
struct Working(Arc<Worked>, Instant);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.micros.fetch_add(self.1.elapsed().as_micros() as u64, Relaxed);
    }
}

pub struct Servers {
    pub uris: Vec<String>,
    worked: Arc<Worked>,
    stop: Vec<oneshot::Sender<()>>,
    running: JoinSet<()>,
}

impl Servers {
    /// Starts them, for so many calls at a time; how long each call takes follows from the seed.
    pub async fn start(places: usize, seed: u64) -> Self {
        let worked = Arc::new(Worked::default());
        let (mut uris, mut stop, mut running) = (Vec::new(), Vec::new(), JoinSet::new());
        for (n, median) in MEDIANS.into_iter().enumerate() {
            let dice = Arc::new(Mutex::new(Dice::new(seed + n as u64)));
            let counted = worked.clone();
            let ask = Ask::new(move |_| {
                let takes = takes(&mut dice.lock().expect("nobody panics"), median);
                let working = Working(counted.clone(), Instant::now());
                counted.begun.fetch_add(1, Relaxed);
                async move {
                    tokio::time::sleep(takes).await;
                    drop(working);
                    Ok(vec![7; 100])
                }
            });
            let ward = Ward::service("ask", move |_| ask.clone()).concurrency(places).queue(places * WAIT);
            let node =
                Node::builder(format!("unlike-{n}")).ward(ward).bind("127.0.0.1:0").await.expect("a node");
            uris.push(format!("http://{}", node.local_addr()));
            let (sender, stopped) = oneshot::channel::<()>();
            stop.push(sender);
            running.spawn(async move {
                node.run_until(async { drop(stopped.await) }).await.expect("it ends well")
            });
        }
        Self { uris, worked, stop, running }
    }

    pub fn members(&self) -> Vec<Member> {
        self.uris.iter().enumerate().map(|(n, uri)| Member::new(format!("unlike-{n}"), uri)).collect()
    }

    /// Handlers begun, and the seconds they lived, so far.
    pub fn worked(&self) -> (f64, f64) {
        (self.worked.begun.load(Relaxed) as f64, self.worked.micros.load(Relaxed) as f64 / 1e6)
    }

    pub async fn stop(mut self) {
        drop(self.stop);
        while let Some(ended) = self.running.join_next().await {
            ended.expect("no panic");
        }
    }
}

/// How long a call takes.
pub fn takes(dice: &mut Dice, median: Duration) -> Duration {
    let usual = dice.lognormal(median, SIGMA);
    if dice.chance(UNLUCKY.0) { usual + UNLUCKY.1 } else { usual }
}
