//! From the first reply to the end of the loser's handler.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{FutureExt as _, select_all};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
};
use wardkeep_client::{Member, Policy, Replicated, Restraint, endpoint};
use wardkeep_node::{Node, Ward};

use super::runtime;
use crate::{
    ask::{Ask, ask},
    beside::{Contestant, side_by_side},
    report::Table,
};

pub const OURS: &str = "wardkeep all(2), withdrawn in band";
pub const RESET: &str = "wardkeep all(2), streams reset";
const NAIVE: &str = "tonic: two calls, the slower one dropped";
const CALLS: usize = 1_000;

pub const NOTE: &str = "The loser's handler waits for ever; its server hears of the first reply with the cancel alone, which has half of \
    a round trip to go. A round trip is that of the first reply's server, measured in the same round, one call at a time; the pause \
    between calls lets everything come to rest. Dropped calls of tonic reset their streams; in band a message withdraws the attempt.";

pub fn table(rounds: usize) -> Table {
    let about = format!(
        "Two nodes: one answers as soon as the other's handler has begun, which never ends by itself. {CALLS} calls a round, one at a time; \
        client and nodes share a process and two cores, and talk over loopback."
    );
    let columns =
        ["p50 in round trips", "p99 in round trips", "a round trip in µs", "its own p99 in round trips"];
    let runtime = runtime();
    let (stage, mut gone) = runtime.block_on(Stage::start());
    let [ours, reset] = [true, false].map(|in_band| {
        let _entered = runtime.enter();
        let ours = Replicated::builder().members(stage.members()).assume_idempotent().policy(Policy::All(2));
        // Both copies, however busy the machine is: the first answer waits for the second to begin.
        let restraint = Restraint::default().step_down(false).withdraw_in_band(in_band);
        ours.restraint(restraint).build().expect("a channel")
    });
    [&ours, &reset].into_iter().for_each(|channel| runtime.block_on(acquaint(channel)));
    let gone = std::cell::RefCell::new(&mut gone);
    let contestants = vec![
        Contestant::new(NAIVE, || {
            runtime.block_on(stage.round(&mut gone.borrow_mut(), async || {
                let calls = stage.channels().map(|channel| ask(channel, Vec::new()).boxed());
                select_all(calls).await.0.expect("an answer");
            }))
        }),
        Contestant::new(OURS, || runtime.block_on(stage.raced(&mut gone.borrow_mut(), &ours))),
        Contestant::new(RESET, || runtime.block_on(stage.raced(&mut gone.borrow_mut(), &reset))),
    ];
    let name = "From the first reply to the end of the loser's handler";
    let table = side_by_side((name, &about), &columns, NAIVE, rounds, contestants);
    drop((ours, reset));
    runtime.block_on(stage.stop());
    table
}

/// Has both members answer once. One that never did may be a stranger, who takes many cancels for an attack.
async fn acquaint(channel: &Replicated) {
    while channel.stats().wins.values().filter(|wins| **wins > 0).count() < 2 {
        ask(channel.clone(), vec![1]).await.expect("an answer");
    }
}

type Gone = mpsc::UnboundedReceiver<Instant>;

struct Stage {
    uris: Vec<String>,
    channels: Vec<tonic::transport::Channel>,
    stop: Vec<oneshot::Sender<()>>,
    running: JoinSet<()>,
}

/// Says when it is dropped.
struct Loser(mpsc::UnboundedSender<Instant>);

impl Drop for Loser {
    fn drop(&mut self) {
        let _ = self.0.send(Instant::now());
    }
}

impl Stage {
    async fn start() -> (Self, Gone) {
        let (gone, seen) = mpsc::unbounded_channel();
        let begun = Arc::new(Notify::new());
        let wait = begun.clone();
        let fast = Ask::new(move |question| {
            let wait = wait.clone();
            async move {
                // A question is for a round trip.
                if question.is_empty() {
                    wait.notified().await;
                }
                Ok(vec![7; 100])
            }
        });
        let slow = Ask::new(move |question| {
            let (gone, begun) = (gone.clone(), begun.clone());
            async move {
                // As the other.
                if !question.is_empty() {
                    return Ok(vec![7; 100]);
                }
                let _loser = Loser(gone);
                begun.notify_one();
                std::future::pending().await
            }
        });
        let (mut uris, mut stop, mut running) = (Vec::new(), Vec::new(), JoinSet::new());
        for (name, ask) in [("fast", fast), ("slow", slow)] {
            let ward = Ward::service("ask", move |_| ask.clone());
            let node = Node::builder(name).ward(ward).bind("127.0.0.1:0").await.expect("a node");
            uris.push(format!("http://{}", node.local_addr()));
            let (sender, stopped) = oneshot::channel::<()>();
            stop.push(sender);
            running.spawn(async move {
                node.run_until(async { drop(stopped.await) }).await.expect("it ends well")
            });
        }
        let channels = uris.iter().map(|uri| endpoint(uri).expect("an address").connect_lazy()).collect();
        (Self { uris, channels, stop, running }, seen)
    }

    fn members(&self) -> Vec<Member> {
        ["fast", "slow"].into_iter().zip(&self.uris).map(|(name, uri)| Member::new(name, uri)).collect()
    }

    fn channels(&self) -> impl Iterator<Item = tonic::transport::Channel> + '_ {
        self.channels.iter().cloned()
    }

    /// Calls over a replicated channel.
    async fn raced(&self, gone: &mut Gone, channel: &Replicated) -> Vec<f64> {
        self.round(gone, async || {
            ask(channel.clone(), Vec::new()).await.expect("an answer");
        })
        .await
    }

    async fn round(&self, gone: &mut Gone, call: impl AsyncFn()) -> Vec<f64> {
        let (mut trips, mut took) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let begin = Instant::now();
            ask(self.channels[0].clone(), vec![1]).await.expect("an answer");
            trips.push(begin.elapsed().as_secs_f64() * 1e6);
            call().await;
            let replied = Instant::now();
            let gone = tokio::time::timeout(Duration::from_secs(10), gone.recv()).await;
            let gone = gone.expect("the loser's handler ends").expect("it says so");
            took.push(gone.saturating_duration_since(replied).as_secs_f64() * 1e6);
        }
        trips.sort_by(f64::total_cmp);
        took.sort_by(f64::total_cmp);
        let trip = trips[CALLS / 2];
        let p99 = CALLS * 99 / 100;
        vec![took[CALLS / 2] / trip, took[p99] / trip, trip, trips[p99] / trip]
    }

    async fn stop(mut self) {
        drop((self.stop, self.channels));
        while let Some(ended) = self.running.join_next().await {
            ended.expect("no panic");
        }
    }
}
