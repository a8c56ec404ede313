//! What breaks, and how long it takes to be noticed and mended.

use std::{pin::pin, time::Duration};

use futures_util::{Stream, StreamExt as _};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep, timeout};
use wardkeep_examples::pb::chaos_request::Fault;
use wardkeep_proto::{
    Error,
    v1::{self, EventKind, Verdict},
};

use crate::{
    Failure,
    cluster::{Cluster, NodeFacts, ask},
    load::{Expected, Fire, Tally},
    say::Say,
};

/// For a fault to be noticed and mended. What takes longer counts as never.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the frozen node stays frozen after it was noticed.
const FROZEN: Duration = Duration::from_millis(1_500);
/// Queries go on for a while after each fault.
const BREATH: Duration = Duration::from_millis(300);

#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Mended {
    pub kind: &'static str,
    pub target: String,
    pub detected_ms: Option<u64>,
    pub healed_ms: Option<u64>,
    pub failed_calls: u64,
}

pub(crate) struct Faults {
    pub mended: Vec<Mended>,
    pub tally: Tally,
    /// What a caller of one node alone was told when its ward panicked.
    pub error: Option<Error>,
}

struct Scene<'a> {
    cluster: &'a Cluster,
    fire: Fire,
    query: String,
    say: &'a Say,
    mended: Vec<Mended>,
    error: Option<Error>,
}

pub(crate) async fn all(cluster: &Cluster, expected: &Expected, say: &Say) -> Result<Faults, Failure> {
    let fire = Fire::open(cluster, expected);
    let query = expected.first().map(|(query, _)| query.clone()).unwrap_or_default();
    let mut scene = Scene { cluster, fire, query, say, mended: Vec::new(), error: None };
    scene.kill_node("scan").await?;
    scene.stall_ward("trigram").await?;
    scene.panic_ward("sqlite").await?;
    scene.freeze_node("trigram").await?;
    let tally = scene.fire.cease().await;
    Ok(Faults { mended: scene.mended, tally, error: scene.error })
}

impl Scene<'_> {
    async fn kill_node(&mut self, name: &str) -> Result<(), Failure> {
        let node = self.cluster.node(name).await?;
        self.say.line(&format!("\n* kill -9 of node {name} (PID {})", node.pid));
        let events = self.cluster.events().await?;
        let begun = Instant::now();
        let before = self.fire.tally();
        signal(&node, Signal::SIGKILL)?;
        let detected = noticed(events, name, "", Verdict::Unreachable, begun).await;
        let (healed, now) = self.answers_again(&node, begun, |now| now.boot != node.boot).await;
        self.close("kill_node", name, detected, healed, before).await;
        self.say.line(&format!(
            "  noticed after {}, launched anew (PID {}), answering after {}",
            ms(detected),
            now.map_or(0, |node| node.pid),
            ms(healed)
        ));
        Ok(())
    }

    async fn stall_ward(&mut self, name: &str) -> Result<(), Failure> {
        let node = self.cluster.node(name).await?;
        self.say.line(&format!("\n* the search ward of {name} hangs in its work (a deadlock on a thread)"));
        let events = self.cluster.events().await?;
        let begun = Instant::now();
        let before = self.fire.tally();
        self.cluster.break_search(&node, Fault::Hang, Duration::from_millis(20)).await?;
        let detected = noticed(events, name, "search", Verdict::Stalled, begun).await;
        let (healed, now) = self.answers_again(&node, begun, |now| now.incarnation > node.incarnation).await;
        self.close("stall_ward", name, detected, healed, before).await;
        self.say.line(&format!(
            "  noticed after {} (work may take 1 s), incarnation {} answers after {}",
            ms(detected),
            now.map_or(0, |node| node.incarnation),
            ms(healed)
        ));
        Ok(())
    }

    async fn panic_ward(&mut self, name: &str) -> Result<(), Failure> {
        let node = self.cluster.node(name).await?;
        self.say.line(&format!("\n* the search ward of {name} panics; a caller of {name} alone is told"));
        let events = self.cluster.events().await?;
        let before = self.fire.tally();
        let begun = Instant::now();
        self.error = self.cluster.break_search(&node, Fault::Panic, PATIENCE).await?;
        if let Some(error) = &self.error {
            self.say.line(&format!("  \"{}\"", error.user_message()));
            let at = error.occurred_at().format("%H:%M:%S%.3f UTC");
            self.say.line(&format!("  error {} at {at} on {}", error.id(), error.machine()));
        }
        let detected = noticed(events, name, "search", Verdict::Crashed, begun).await;
        let (healed, now) = self.answers_again(&node, begun, |now| now.incarnation > node.incarnation).await;
        self.close("panic_ward", name, detected, healed, before).await;
        self.say.line(&format!(
            "  noticed after {}, incarnation {} answers after {}",
            ms(detected),
            now.map_or(0, |node| node.incarnation),
            ms(healed)
        ));
        Ok(())
    }

    async fn freeze_node(&mut self, name: &str) -> Result<(), Failure> {
        let node = self.cluster.node(name).await?;
        self.say.line(&format!("\n* node {name} is frozen (SIGSTOP), and continued later (SIGCONT)"));
        let events = self.cluster.events().await?;
        let begun = Instant::now();
        let before = self.fire.tally();
        signal(&node, Signal::SIGSTOP)?;
        let detected = noticed(events, name, "", Verdict::Unreachable, begun).await;
        sleep(FROZEN).await;
        signal(&node, Signal::SIGCONT)?;
        let continued = begun.elapsed();
        let (healed, now) = self.answers_again(&node, begun, |_| true).await;
        self.close("freeze_node", name, detected, healed, before).await;
        let kept = now.is_some_and(|now| now.boot == node.boot && now.incarnation == node.incarnation);
        self.say.line(&format!(
            "  noticed after {}, continued at {}, answering at {}; its wards {}",
            ms(detected),
            ms(Some(continued)),
            ms(healed),
            if kept { "left alone" } else { "RESTARTED" }
        ));
        Ok(())
    }

    /// Waits until the node is ready as wished and answers a query itself.
    async fn answers_again(
        &self,
        old: &NodeFacts,
        begun: Instant,
        wished: impl Fn(&NodeFacts) -> bool,
    ) -> (Option<Duration>, Option<NodeFacts>) {
        let healed = timeout(PATIENCE, async {
            loop {
                if let Ok(node) = self.cluster.node(&old.name).await
                    && node.ready
                    && wished(&node)
                    && let Ok(mut alone) = self.cluster.alone(&node)
                    && ask(&mut alone, &self.query).await.is_ok()
                {
                    return (begun.elapsed(), node);
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        healed.await.map_or((None, None), |(took, node)| (Some(took), Some(node)))
    }

    async fn close(
        &mut self,
        kind: &'static str,
        target: &str,
        detected: Option<Duration>,
        healed: Option<Duration>,
        before: Tally,
    ) {
        sleep(BREATH).await;
        let now = self.fire.tally();
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        self.mended.push(Mended {
            kind,
            target: target.to_owned(),
            detected_ms: detected.map(millis),
            healed_ms: healed.map(millis),
            failed_calls: now.failed - before.failed,
        });
        let (calls, failed) = (now.calls - before.calls, now.failed - before.failed);
        self.say.line(&format!("  {calls} queries meanwhile, {failed} failed"));
    }
}

/// Waits for the supervisor's verdict on the node, or on one of its wards.
async fn noticed(
    events: impl Stream<Item = v1::Event>,
    node: &str,
    ward: &str,
    verdict: Verdict,
    begun: Instant,
) -> Option<Duration> {
    let kind = if ward.is_empty() { EventKind::NodeVerdict } else { EventKind::WardVerdict };
    let ours = |event: &v1::Event| {
        event.kind() == kind && event.node == node && event.ward == ward && event.verdict() == verdict
    };
    let mut events = pin!(events);
    timeout(PATIENCE, async {
        loop {
            match events.next().await {
                Some(event) if ours(&event) => return Some(begun.elapsed()),
                Some(_) => {}
                None => return None,
            }
        }
    })
    .await
    .ok()
    .flatten()
}

fn signal(node: &NodeFacts, signal: Signal) -> Result<(), Failure> {
    let pid = i32::try_from(node.pid).map_err(Failure::failed)?;
    kill(Pid::from_raw(pid), signal).map_err(Failure::failed)
}

fn ms(d: Option<Duration>) -> String {
    d.map_or_else(|| "never".to_owned(), |d| format!("{} ms", d.as_millis()))
}
