//! Queries: in peace, each asked of every node alone and of all at once; under fire, in a steady
//! stream whose answers are all checked.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use wardkeep_client::ResponseExt as _;
use wardkeep_examples::{pb::SearchReply, search::Drawn};
use wardkeep_proto::Error;

use crate::{
    Failure,
    cluster::{Cluster, NodeFacts, ask, essence},
    say::Say,
    stats::Latencies,
};

/// Queries under way at a time while things break.
const STREAMS: usize = 2;

/// Each query with the answer everyone must give.
pub(crate) type Expected = Arc<Vec<(String, Arc<SearchReply>)>>;

/// What the quiet phase showed.
pub(crate) struct Quiet {
    pub nodes: Vec<NodeFacts>,
    pub alone: BTreeMap<String, Latencies>,
    pub racing: Latencies,
    pub wins: BTreeMap<String, u64>,
    pub failed: u64,
    pub mismatched: u64,
    pub expected: Expected,
}

pub(crate) async fn quiet_phase(cluster: &Cluster, queries: &[Drawn], say: &Say) -> Result<Quiet, Failure> {
    let nodes = cluster.nodes().await?;
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push((node.name.clone(), cluster.alone(node)?));
    }
    let mut quiet = Quiet {
        wins: nodes.iter().map(|node| (node.name.clone(), 0)).collect(),
        alone: nodes.iter().map(|node| (node.name.clone(), Latencies::default())).collect(),
        nodes,
        racing: Latencies::default(),
        failed: 0,
        mismatched: 0,
        expected: Arc::default(),
    };
    say.line(&format!("\n{} queries: rare words, common words, phrases, no hits;", queries.len()));
    say.line("each goes to every node alone and to all at once ...");
    let mut racing = cluster.racing.clone();
    let mut expected = Vec::with_capacity(queries.len());
    for (turn, drawn) in queries.iter().enumerate() {
        let query = drawn.query.as_str();
        let mut answers = Vec::new();
        // Whoever asks first finds cold caches: everyone takes turns at it.
        for step in 0..=clients.len() {
            let at = (turn + step) % (clients.len() + 1);
            let begun = Instant::now();
            if let Some((name, client)) = clients.get_mut(at) {
                let reply = ask(client, query).await;
                let took = begun.elapsed();
                let reply = reply.map_err(|s| {
                    Failure::failed(format!("{name} did not answer {query:?}: {}", Error::from_status(&s)))
                })?;
                quiet.alone.entry(name.clone()).or_default().add(took);
                answers.push(essence(reply.into_inner()));
            } else {
                match ask(&mut racing, query).await {
                    Ok(reply) => {
                        quiet.racing.add(begun.elapsed());
                        if let Some(winner) = reply.winner() {
                            *quiet.wins.entry(winner.node.clone()).or_default() += 1;
                        }
                        answers.push(essence(reply.into_inner()));
                    }
                    Err(_) => quiet.failed += 1,
                }
            }
        }
        let first = answers.first().cloned().unwrap_or_default();
        quiet.mismatched += u64::from(answers.iter().any(|answer| *answer != first));
        expected.push((query.to_owned(), first));
    }
    quiet.expected = Arc::new(expected);
    Ok(quiet)
}

/// A stream of replicated queries that goes on until it is stopped.
pub(crate) struct Fire {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    failed: AtomicU64,
    mismatched: AtomicU64,
}

/// How many queries there were, and how many went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub calls: u64,
    pub failed: u64,
    pub mismatched: u64,
}

impl Fire {
    pub(crate) fn open(cluster: &Cluster, expected: &Expected) -> Self {
        let (stop, counts) = (CancellationToken::new(), Arc::<Counts>::default());
        let mut tasks = JoinSet::new();
        for stream in 0..STREAMS {
            let (mut client, expected) = (cluster.racing.clone(), expected.clone());
            let (stop, counts) = (stop.clone(), counts.clone());
            tasks.spawn(async move {
                for (query, answer) in expected.iter().cycle().skip(stream * expected.len() / STREAMS) {
                    if stop.is_cancelled() {
                        return;
                    }
                    let reply = ask(&mut client, query).await;
                    counts.calls.fetch_add(1, Relaxed);
                    match reply {
                        Ok(reply) if essence(reply.get_ref().clone()) == *answer => {}
                        Ok(_) => drop(counts.mismatched.fetch_add(1, Relaxed)),
                        Err(status) => {
                            // The reason belongs to the story: a failed query is what must not be.
                            eprintln!("  FAILED: {}", Error::from_status(&status));
                            counts.failed.fetch_add(1, Relaxed);
                        }
                    }
                }
            });
        }
        Self { tasks, stop, counts }
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            calls: self.counts.calls.load(Relaxed),
            failed: self.counts.failed.load(Relaxed),
            mismatched: self.counts.mismatched.load(Relaxed),
        }
    }

    pub(crate) async fn cease(mut self) -> Tally {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.tally()
    }
}
