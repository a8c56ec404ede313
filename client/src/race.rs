//! Carries out a call: starts attempts, follows the decisions, and gives the caller one reply.
//!
//! All attempts are polled by the caller's own future: dropping the call drops them, and returning
//! the winner's reply drops the losers.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Status, body::Body};
use uuid::Uuid;
use wardkeep_proto::context::{self, GRPC_TIMEOUT, REQUEST_ID, RequestContext};

use crate::{
    Shared,
    attempt::{self, Call, Verdict},
    channel::Link,
    decide::{Decision, Race},
    error::{CallError, Phase, Report, arose_here},
    member::Winner,
    request::{Payload, Progress, Template},
};

/// A longer deadline is as good as none, and might overflow the clock.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// A member counts a call's time by its own timer, which may run out a little before ours.
const SKEW: Duration = Duration::from_millis(50);

/// The request's ID and deadline: what the caller set in headers, else what the request being
/// served has, else new ones; the deadline never later than that of the request being served.
pub(crate) fn context_of(request: &Request<Body>, default: Duration, now: Instant) -> RequestContext {
    let outer = context::current();
    let text = |name| request.headers().get(name)?.to_str().ok();
    let set = text(GRPC_TIMEOUT).and_then(context::parse_timeout);
    let outer_deadline = outer.as_ref().map(|c| c.deadline);
    let deadline = match (set, outer_deadline) {
        (Some(set), Some(outer)) => (now + set.min(FAR)).min(outer),
        (Some(set), None) => now + set.min(FAR),
        (None, Some(outer)) => outer,
        (None, None) => now + default.min(FAR),
    };
    let request_id = text(REQUEST_ID).and_then(|t| Uuid::parse_str(t).ok());
    RequestContext {
        request_id: request_id.or(outer.as_ref().map(|c| c.request_id)).unwrap_or_else(Uuid::now_v7),
        attempt: 1,
        method: request.uri().path().into(),
        deadline,
        hops: outer.as_ref().map(|c| c.hops.clone()).unwrap_or_default(),
        recorder: outer.as_ref().and_then(|c| c.recorder.clone()),
        traceparent: outer.and_then(|c| c.traceparent),
    }
}

/// One call, from the request to the reply the caller gets.
pub(crate) async fn call(
    shared: Arc<Shared>,
    request: Request<Body>,
    context: RequestContext,
    started: Instant,
) -> Result<Response<Body>, Status> {
    shared.stats.calls.fetch_add(1, Relaxed);
    let plain = context.clone();
    let ran = run(&shared, request, context, started).await;
    ran.map_err(|error| {
        shared.stats.failed_calls.fetch_add(1, Relaxed);
        context::sync_scope(plain, || Status::from(error.into_error()))
    })
}

async fn run(
    shared: &Shared,
    request: Request<Body>,
    context: RequestContext,
    started: Instant,
) -> Result<Response<Body>, CallError> {
    let deadline = context.deadline;
    let allowed = context.remaining(started);
    let method = context.method.clone();
    let overdue = |attempts| CallError::Deadline { method: method.to_string(), allowed, attempts };
    let (parts, body) = request.into_parts();
    let plan = shared.methods.plan(&method);
    let prepare = async {
        let payload = match plan.repeatable {
            true => Payload::read(body, shared.max_request_bytes, &method).await?,
            false => Payload::once(body),
        };
        Ok((payload, shared.candidates(&method).await?))
    };
    let prepared = tokio::time::timeout_at(deadline, prepare).await;
    let (payload, links) = prepared.map_err(|_| overdue(Vec::new()))??;
    let call = Call {
        template: Template { parts, payload },
        plan,
        context,
        allowed,
        max_reply_bytes: shared.max_reply_bytes,
    };
    let race = Race::new(plan.width, links.len(), plan.repeatable, shared.fatal);
    let mut field = Field { call: Arc::new(call), links, begun: Vec::new(), started };
    match tokio::time::timeout_at(deadline, field.run(race, shared)).await {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => {
            let attempts = field.reports();
            let nearly_over = deadline.saturating_duration_since(Instant::now()) < SKEW;
            if nearly_over && attempts.iter().any(Report::is_timeout) {
                return Err(overdue(attempts));
            }
            Err(CallError::AttemptsFailed { method: method.to_string(), attempts })
        }
        Err(_) => Err(overdue(field.reports())),
    }
}

/// An attempt that was begun, seen from the race.
struct Begun {
    link: Arc<Link>,
    at: Instant,
    progress: Arc<Progress>,
    ended: Option<(Duration, Phase, Verdict)>,
}

struct Field {
    call: Arc<Call>,
    links: Vec<Arc<Link>>,
    /// Attempt `n` is at `n - 1`, and goes to the link there.
    begun: Vec<Begun>,
    started: Instant,
}

impl Field {
    /// The reply to deliver; `None` when all failed.
    async fn run(&mut self, mut race: Race, shared: &Shared) -> Option<Response<Body>> {
        let mut running = FuturesUnordered::new();
        let mut decision = race.begin();
        loop {
            match decision {
                Decision::Start(n) => {
                    for _ in 0..n {
                        running.extend(self.begin(shared));
                    }
                }
                Decision::Wait => {}
                Decision::Deliver(number) => {
                    shared.stats.cancelled.fetch_add(race.running() as u64, Relaxed);
                    return self.deliver(number);
                }
                Decision::GiveUp => return None,
            }
            let (number, verdict): (u32, Verdict) = running.next().await?;
            decision = race.ended(number, verdict.outcome());
            self.ended(number, verdict);
        }
    }

    fn begin(&mut self, shared: &Shared) -> Option<impl Future<Output = (u32, Verdict)> + use<>> {
        let link = self.links.get(self.begun.len())?.clone();
        shared.stats.attempts.fetch_add(1, Relaxed);
        let progress = Arc::new(Progress::default());
        self.begun.push(Begun {
            link: link.clone(),
            at: Instant::now(),
            progress: progress.clone(),
            ended: None,
        });
        Some(attempt::run(self.call.clone(), link, self.count(), progress))
    }

    fn count(&self) -> u32 {
        u32::try_from(self.begun.len()).unwrap_or(u32::MAX)
    }

    fn attempt(&mut self, number: u32) -> Option<&mut Begun> {
        self.begun.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    fn ended(&mut self, number: u32, verdict: Verdict) {
        if let Some(begun) = self.attempt(number) {
            begun.ended = Some((begun.at.elapsed(), begun.progress.phase(), verdict));
        }
    }

    fn deliver(&mut self, number: u32) -> Option<Response<Body>> {
        let (attempts, elapsed) = (self.count(), self.started.elapsed());
        let begun = self.attempt(number)?;
        let mut reply = match begun.ended.take()?.2 {
            Verdict::Good(reply) => reply,
            Verdict::Refused(error, reply) => {
                if arose_here(&error) {
                    error.record();
                }
                reply
            }
            Verdict::Lost { .. } => return None,
        };
        begun.link.wins.fetch_add(1, Relaxed);
        reply.extensions_mut().insert(Winner { node: begun.link.peer.name.clone(), attempts, elapsed });
        Some(reply)
    }

    /// What became of each attempt.
    fn reports(self) -> Vec<Report> {
        let report = |(number, begun): (u32, Begun)| {
            let Begun { link, at, progress, ended } = begun;
            let (elapsed, phase, error) = match ended {
                Some((elapsed, phase, Verdict::Refused(error, _) | Verdict::Lost { error, .. })) => {
                    (elapsed, phase, Some(error))
                }
                Some((elapsed, phase, Verdict::Good(_))) => (elapsed, phase, None),
                None => (at.elapsed(), progress.phase(), None),
            };
            Report { number, node: link.peer.name.clone(), uri: link.peer.uri.clone(), phase, elapsed, error }
        };
        (1..).zip(self.begun).map(report).collect()
    }
}
