//! Calls, many at a time or one by one, and what they cost on this side.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet};
use tonic::{
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes, StdError},
    transport::Channel,
};
use wardkeep_client::Replicated;

use crate::{
    echo::{EchoClient, Layout, Words},
    machine,
};

/// What stands between a generated client and the network.
pub trait Way:
    GrpcService<Body, Future: Send, ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl Way for Channel {}
impl Way for Replicated {}

/// A client: its own runtime, and ways that are used in turn.
pub struct Caller<W> {
    layout: Layout,
    runtime: Runtime,
    clients: Vec<EchoClient<W>>,
}

/// What a stretch of calls took.
#[derive(Clone, Copy)]
pub struct Load {
    pub calls: f64,
    pub seconds: f64,
    /// CPU of this process.
    pub cpu: f64,
}

impl<W: Way> Caller<W> {
    /// `open` is called where its connections are to live.
    pub fn new(layout: Layout, open: impl FnOnce() -> Vec<W>) -> Self {
        let runtime = layout.runtime();
        let clients = {
            let _entered = runtime.enter();
            open().into_iter().map(EchoClient::new).collect()
        };
        Self { layout, runtime, clients }
    }

    /// Does something where its connections live.
    pub fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        let runtime = &self.runtime;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                self.layout.bind();
                runtime.block_on(work)
            });
            thread.join().expect("no panic")
        })
    }

    /// Has every way answer once: while others had their turn nobody looked after the connections, and their
    /// servers may have given them up.
    pub fn wake(&self) {
        self.run(async {
            for client in &self.clients {
                let mut client = client.clone();
                while client.say(words(0)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }

    /// So many calls at a time, each followed by the next.
    pub fn closed(&self, at_a_time: usize, lasts: Duration) -> Load {
        self.wake();
        let before = machine::cpu_seconds();
        let (calls, seconds) = self.run(async {
            let begin = Instant::now();
            let mut callers = JoinSet::new();
            for n in 0..at_a_time {
                let mut client = self.clients[n % self.clients.len()].clone();
                callers.spawn(async move {
                    let mut calls = 0.0;
                    while begin.elapsed() < lasts {
                        say(&mut client, 0).await;
                        calls += 1.0;
                    }
                    calls
                });
            }
            let calls: f64 = callers.join_all().await.into_iter().sum();
            (calls, begin.elapsed().as_secs_f64())
        });
        Load { calls, seconds, cpu: machine::cpu_seconds() - before }
    }

    /// One call after another, each `pause` after the one before was answered; sorted microseconds.
    pub fn one_by_one(&self, lasts: Duration, pause: Duration) -> (Vec<f64>, Load) {
        self.wake();
        let before = machine::cpu_seconds();
        let begin = Instant::now();
        let mut took = self.run(async {
            let mut client = self.clients[0].clone();
            let mut took = Vec::new();
            while begin.elapsed() < lasts {
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                took.push(timed(&mut client, 0).await);
            }
            took
        });
        let load = Load {
            calls: took.len() as f64,
            seconds: begin.elapsed().as_secs_f64(),
            cpu: machine::cpu_seconds() - before,
        };
        took.sort_by(f64::total_cmp);
        (took, load)
    }

    /// These calls, one after another; microseconds of each.
    pub fn each(&self, calls: std::ops::Range<u64>) -> Vec<f64> {
        self.run(async {
            let mut client = self.clients[0].clone();
            let mut took = Vec::new();
            for call in calls {
                took.push(timed(&mut client, call).await);
            }
            took
        })
    }

    /// So many calls, one after another.
    pub fn times(&self, calls: u64) {
        self.each(0..calls);
    }
}

async fn timed<W: Way>(client: &mut EchoClient<W>, call: u64) -> f64 {
    let begin = Instant::now();
    say(client, call).await;
    begin.elapsed().as_nanos() as f64 / 1_000.0
}

async fn say<W: Way>(client: &mut EchoClient<W>, call: u64) {
    client.say(words(call)).await.expect("an answer");
}

fn words(call: u64) -> Words {
    Words { text: vec![7; 100], call }
}

/// Of sorted figures.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
