//! A steady load of calls whose answers are checked.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use wardkeep_client::{Policy, Replicated, ResponseExt as _};
use wardkeep_proto::Error;

use crate::{
    Outcome, Trying as _,
    answer::{LARGEST, expected},
    pb::{self, Question, answer_client::AnswerClient},
};

/// The service that is asked.
pub const SERVICE: &str = "wardkeep.faults.v1.Answer";
/// A call that has neither an answer nor an error so long after its deadline is lost.
const AFTER_DEADLINE: Duration = Duration::from_secs(2);
/// Failures that are told of.
const TOLD: usize = 5;

/// How much, and how.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many nodes each question goes to.
    pub policy: Policy,
    /// Calls per second.
    pub rate: u32,
    /// Calls at a time; beyond, the next one waits.
    pub in_flight: usize,
    /// Of each call.
    pub deadline: Duration,
    /// How long a node takes to answer.
    pub wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            policy: Policy::All(2),
            rate: 200,
            in_flight: 128,
            deadline: Duration::from_secs(10),
            wait: Duration::ZERO,
        }
    }
}

/// What has come of the calls.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Calls begun.
    pub calls: u64,
    /// Calls that ended with an error.
    pub failed: u64,
    /// Calls that ended with a wrong answer.
    pub wrong: u64,
    /// Calls of which nothing was heard again.
    pub lost: u64,
    /// The longest that a good answer took.
    pub slowest: Duration,
    /// The first failures.
    pub told: Vec<String>,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.calls += other.calls;
        self.failed += other.failed;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.slowest = self.slowest.max(other.slowest);
        self.told.extend(other.told);
        self.told.truncate(TOLD);
        self
    }
}

/// A load that goes on until it is told to cease.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
    firing: JoinSet<()>,
    channel: Replicated,
}

impl Load {
    /// Asks the members of this supervisor's directory, from now on.
    ///
    /// # Errors
    /// The address is none.
    pub fn begin(directory: &str, pace: Pace, seed: u64) -> Outcome<Self> {
        let channel = Replicated::builder()
            .directory(directory, SERVICE)
            .methods(pb::FILE_DESCRIPTOR_SET)
            .policy(pace.policy)
            .default_deadline(pace.deadline)
            .build()
            .trying("the load's client")?;
        let tally = Arc::new(Mutex::new(Tally::default()));
        let stop = CancellationToken::new();
        let mut firing = JoinSet::new();
        firing.spawn(fire(channel.clone(), pace, seed, tally.clone(), stop.clone()));
        Ok(Self { tally, stop, firing, channel })
    }

    /// What has come of it so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more calls were made.
    pub async fn goes_on(&self, calls: u64) {
        let until = self.tally().calls + calls;
        let mut look = interval(Duration::from_millis(10));
        while self.tally().calls < until && !self.firing.is_empty() {
            look.tick().await;
        }
    }

    /// Asks nothing more, and waits for the answers that are due.
    pub async fn cease(mut self) -> Tally {
        self.stop.cancel();
        while self.firing.join_next().await.is_some() {}
        self.channel.close().await;
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn fire(channel: Replicated, pace: Pace, seed: u64, tally: Arc<Mutex<Tally>>, stop: CancellationToken) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut calls = JoinSet::new();
    let room = Arc::new(Semaphore::new(pace.in_flight));
    let mut tick = interval(Duration::from_secs(1) / pace.rate.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = calls.join_next() => continue,
            permit = async { tick.tick().await; room.clone().acquire_owned().await } => permit,
        };
        let question = Question {
            number: dice.u64(0..=LARGEST),
            wait_ms: u32::try_from(pace.wait.as_millis()).unwrap_or(u32::MAX),
            trouble: None,
        };
        let (client, tally) = (AnswerClient::new(channel.clone()), tally.clone());
        calls.spawn(async move {
            let _permit = permit;
            let came = call(client, question, pace.deadline).await;
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.calls += 1;
            match came {
                Came::Good(took) => tally.slowest = tally.slowest.max(took),
                Came::Wrong(what) => {
                    tally.wrong += 1;
                    tally.told.push(what);
                }
                Came::Failed(what) => {
                    tally.failed += 1;
                    tally.told.push(what);
                }
                Came::Nothing => tally.lost += 1,
            }
            tally.told.truncate(TOLD);
        });
    }
    while calls.join_next().await.is_some() {}
}

enum Came {
    Good(Duration),
    Wrong(String),
    Failed(String),
    Nothing,
}

async fn call(mut client: AnswerClient<Replicated>, question: Question, deadline: Duration) -> Came {
    let begun = Instant::now();
    let asked = client.ask(Request::new(question));
    match timeout(deadline + AFTER_DEADLINE, asked).await {
        Err(_) => Came::Nothing,
        Ok(Err(status)) => {
            let error = Error::from_status(&status);
            Came::Failed(format!(
                "{:?} {} after {} ms",
                error.code(),
                error.what(),
                begun.elapsed().as_millis()
            ))
        }
        Ok(Ok(reply)) => {
            let winner = reply.winner().map(|winner| winner.node.clone());
            let reply = reply.into_inner();
            if (reply.number, reply.sum) == (question.number, expected(question.number)) {
                Came::Good(begun.elapsed())
            } else {
                Came::Wrong(format!("{winner:?} answered {reply:?} to {question:?}"))
            }
        }
    }
}
