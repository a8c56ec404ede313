//! Carries out a call: starts attempts, follows the decisions, and gives the caller one reply.
//!
//! All attempts are polled by the caller's own future: dropping the call, or returning the winner's reply,
//! ends those that still run, or hands them to [`crate::losers`].

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderValue, Request, Response};
use tokio::{sync::Notify, time::Instant};
use tonic::{Status, body::Body};
use uuid::Uuid;
use wardkeep_proto::context::{self, CALL_ID, GRPC_TIMEOUT, REQUEST_ID, RequestContext};

use crate::{
    Shared,
    attempt::Call,
    decide::{Race, Rules},
    error::{CallError, Report},
    field::Field,
    observe::CallSummary,
    request::{Payload, Template},
    rules,
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
    let request_id = request_id.or(outer.as_ref().map(|c| c.request_id)).unwrap_or_else(Uuid::now_v7);
    RequestContext::of_call(outer.as_deref(), request_id, request.uri().path(), deadline)
}

/// The ID by which members know this call from all others; if it has no other, in its headers. `None` if the
/// caller has named it, who may have named others so.
pub(crate) fn name(request: &mut Request<Body>, context: &RequestContext) -> Option<Uuid> {
    let serving = context::current().is_some();
    let headers = request.headers_mut();
    let named = headers.contains_key(CALL_ID) || (headers.contains_key(REQUEST_ID) && !serving);
    if named || !serving {
        return (!named).then_some(context.request_id);
    }
    let id = Uuid::now_v7();
    headers.insert(CALL_ID, HeaderValue::from_str(&id.to_string()).ok()?);
    Some(id)
}

/// One call, from the request to the reply the caller gets.
pub(crate) async fn call(
    shared: Arc<Shared>,
    request: Request<Body>,
    context: RequestContext,
    id: Option<Uuid>,
    started: Instant,
) -> Result<Response<Body>, Status> {
    shared.stats.calls.fetch_add(1, Relaxed);
    let plain = context.clone();
    let ran = run(&shared, request, context, id, started).await;
    ran.map_err(|error| {
        shared.stats.failed_calls.fetch_add(1, Relaxed);
        context::sync_scope(plain, || Status::from(error.into_error()))
    })
}

async fn run(
    shared: &Arc<Shared>,
    request: Request<Body>,
    mut context: RequestContext,
    id: Option<Uuid>,
    started: Instant,
) -> Result<Response<Body>, CallError> {
    let method = context.method.clone();
    let plan = shared.methods.plan(&method);
    if let Some(timeout) = plan.timeout {
        context.deadline = context.deadline.min(started + timeout.min(FAR));
    }
    let deadline = context.deadline;
    let allowed = context.remaining(started);
    let overdue = |attempts| CallError::Deadline { method: method.to_string(), allowed, attempts };
    let (parts, body) = request.into_parts();
    // Pinned in a block of its own: what is put around it is not made larger by it, and its room is free after.
    let prepared = {
        let prepare = pin!(async {
            let payload = match plan.repeatable() {
                true => Payload::read(body, shared.max_request_bytes, &method).await?,
                false => Payload::once(body),
            };
            Ok((payload, shared.candidates(&method, plan.repeatable()).await?))
        });
        tokio::time::timeout_at(deadline, prepare).await
    };
    let (payload, order) = prepared.map_err(|_| overdue(Vec::new()))??;
    let level = shared.brakes.call(order.utilisation, plan.policy.width().0);
    let timings = shared.windows.of(&method);
    let percentile = |percent| timings.percentile(started, percent);
    let (rules, equals) = rules::of(&plan, level, shared.fatal, percentile);
    let (spread, until) = (spread(context.request_id), allowed);
    let rules = Rules { rounds: shared.rounds, spread, until, ..rules };
    let once = plan.once.or_else(|| rules::sent_once(plan.policy, level));
    let race = Race::new(rules, order.links.len(), order.equals.min(equals));
    let call = Call {
        template: Template { parts, payload },
        plan,
        rules,
        context: Arc::new(context),
        id,
        started,
        observer: shared.observer.clone(),
        allowed,
        attempt_timeout: shared.attempt_timeout,
        max_reply_bytes: shared.max_reply_bytes,
        timings,
        began: Notify::new(),
        won_in: OnceLock::new(),
        expired: AtomicBool::new(false),
    };
    let mut field = Field::new(shared.clone(), Arc::new(call), order.links, level, once, started);
    let result = match tokio::time::timeout_at(deadline, field.run(race)).await {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => {
            let attempts = field.reports();
            let nearly_over = deadline.saturating_duration_since(Instant::now()) < SKEW;
            let answered = attempts.iter().any(Report::is_answer);
            if nearly_over && attempts.iter().any(Report::is_timeout) {
                Err(overdue(attempts))
            } else if let Some(reply) = field.one_voice() {
                Ok(reply)
            } else if rules.equal > 1 && answered {
                Err(CallError::NoQuorum { method: method.to_string(), equal: rules.equal, attempts })
            } else {
                Err(CallError::AttemptsFailed { method: method.to_string(), attempts })
            }
        }
        Err(_) => {
            field.expire();
            Err(overdue(field.reports()))
        }
    };
    if let Some(observer) = &shared.observer {
        let code = match &result {
            Ok(_) => field.delivered,
            Err(error) => error.status_code(),
        };
        let attempts = field.story();
        observer.called(&CallSummary {
            method: &method,
            code,
            elapsed: started.elapsed(),
            attempts: &attempts,
        });
    }
    result
}

/// A number from 0 to 1 that is another one for each call.
fn spread(id: Uuid) -> f64 {
    let [.., low, high] = *id.as_bytes();
    f64::from(u16::from_be_bytes([low, high])) / f64::from(u16::MAX)
}
