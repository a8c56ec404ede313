//! The steward's notes as events: one sentence each, for people.

use std::time::Duration;

use chrono::Utc;
use wardkeep_proto::{timestamp, v1};
use wardkeep_steward::{Asked, ExitKind, Note, Verdict, What};

use crate::wire;

/// The event a note becomes. Sequence and epoch are the caller's to fill in.
pub fn event(note: &Note) -> v1::Event {
    let (kind, verdict, text) = tell(note);
    v1::Event {
        sequence: 0,
        at: Some(timestamp(Utc::now())),
        kind: kind.into(),
        node: note.node.as_deref().or(note.ward.as_ref().map(|w| &*w.node)).unwrap_or_default().to_owned(),
        ward: note.ward.as_ref().map(|w| w.ward.to_string()).unwrap_or_default(),
        incarnation: note.incarnation,
        verdict: verdict.map_or(v1::Verdict::Unspecified, wire::verdict).into(),
        text,
        error: note.cause.error_id.as_ref().map(|id| v1::Error { id: id.to_string(), ..Default::default() }),
        traceparent: note.cause.traceparent.as_deref().unwrap_or_default().to_owned(),
        group: group(&note.what).unwrap_or_default().to_owned(),
        ..Default::default()
    }
}

/// What a restart counts for: so that another steward, which is told of it later, counts it, too. `period` of
/// groups by name.
pub fn decision(note: &Note, period: impl Fn(&str) -> Option<Duration>) -> Option<v1::Decision> {
    let (What::WardRestart { recent, intensity, delay }
    | What::GroupRestart { recent, intensity, delay, .. }) = &note.what
    else {
        return None;
    };
    let reach = note.reach.as_deref()?;
    let group = reach.counts_for.as_deref()?;
    Some(v1::Decision {
        recent: *recent,
        intensity: *intensity,
        period: period(group).map(wardkeep_proto::duration),
        delay: Some(wardkeep_proto::duration(*delay)),
        group: group.to_owned(),
        groups: reach.groups.iter().map(ToString::to_string).collect(),
        ..Default::default()
    })
}

/// The group that is decided about as a whole.
fn group(what: &What) -> Option<&str> {
    match what {
        What::GroupGaveUp { group, .. }
        | What::GroupFailed { group, .. }
        | What::GroupRestart { group, .. }
        | What::GroupShutDown { group } => Some(group),
        _ => None,
    }
}

fn tell(note: &Note) -> (v1::EventKind, Option<Verdict>, String) {
    use v1::EventKind as K;
    let because = |text: String| match note.cause.reason.as_str() {
        "" => text,
        reason => format!("{text}: {reason}"),
    };
    let n = note.incarnation;
    match &note.what {
        What::NodeAttended { again: false } => (K::NodeAttended, None, "attends".into()),
        What::NodeAttended { again: true } => {
            (K::NodeAttended, None, "attends again, its work untouched".into())
        }
        What::NodeLeft { goodbye: true } => (K::NodeLeft, None, "said goodbye".into()),
        What::NodeLeft { goodbye: false } => (K::NodeLeft, None, because("its session broke off".into())),
        What::NodeVerdict(verdict) => {
            let text = match verdict {
                Verdict::Healthy => "healthy again",
                Verdict::Unreachable => "unreachable",
                Verdict::RuntimeStalled => "its runtime is stalled, though its process beats",
                Verdict::Crashed => "crashed",
                Verdict::Stalled => "stalled",
            };
            (K::NodeVerdict, Some(*verdict), because(text.into()))
        }
        What::NodeLaunch { delay } => {
            (K::NodeRestart, None, because(format!("its process is started anew{}", after(*delay))))
        }
        What::NodeRestart { group: Some(group) } => {
            let text = format!("restarted in place, for group {group} of its wards gave up");
            (K::NodeRestart, None, because(text))
        }
        What::NodeRestart { group: None } => (K::NodeRestart, None, because("restarted in place".into())),
        What::NodeNotRestarted => (K::NodeRestart, None, because("told to restart in place".into())),
        What::WardStarting => (K::WardRestart, None, because("told to start".into())),
        What::WardRunning => (K::WardStarted, Some(Verdict::Healthy), format!("runs, incarnation {n}")),
        What::WardExited(kind) => (K::WardStopped, None, because(format!("incarnation {n} {}", exit(*kind)))),
        What::WardVerdict(verdict) => {
            let word = match verdict {
                Verdict::Crashed => "crashed",
                Verdict::Stalled => "stalled",
                Verdict::Healthy => "healthy",
                Verdict::RuntimeStalled => "held up by its node's runtime",
                Verdict::Unreachable => "unreachable",
            };
            (K::WardVerdict, Some(*verdict), because(format!("incarnation {n} {word}")))
        }
        What::WardRestart { recent, intensity, delay } => {
            let text = format!("restart {recent} of {intensity} allowed{}", after(*delay));
            (K::WardRestart, None, because(text))
        }
        What::GroupGaveUp { group, recent } => {
            let after = if *recent == 0 {
                "has given up before".to_owned()
            } else {
                format!("gave up after {recent} restarts")
            };
            let text =
                format!("group {group} {after}; its wards are quarantined until an operator starts them");
            (K::GroupGaveUp, None, because(text))
        }
        What::GroupFailed { group, recent } => {
            let then = match note.reach.as_ref().and_then(|reach| reach.escalates_to.as_ref()) {
                Some(parent) => format!("group {parent}, which it is in, decides"),
                None => "nobody restarts it".to_owned(),
            };
            let text = format!("group {group} ends after {recent} restarts; {then}");
            (K::GroupGaveUp, None, because(text))
        }
        What::GroupRestart { group, recent, intensity, delay } => {
            let after = after(*delay);
            let parent = note.reach.as_ref().and_then(|reach| reach.counts_for.as_deref());
            let parent = parent.map(|name| format!(" in group {name}")).unwrap_or_default();
            let text =
                format!("group {group} is restarted{after}: restart {recent} of {intensity} allowed{parent}");
            (K::GroupRestart, None, because(text))
        }
        What::GroupShutDown { group } => {
            let text = format!("group {group} shuts down, for its significant members have ended");
            (K::GroupShutDown, None, because(text))
        }
        What::Asked(asked) => {
            let word = match asked {
                Asked::Start => "start",
                Asked::Stop => "stop",
                Asked::Restart => "restart",
            };
            (K::Operator, None, because(format!("{word} asked for")))
        }
        What::DoubtsItself { patience } => {
            let text = format!("the steward doubts itself and grants {} more patience", human(*patience));
            (K::Steward, None, because(text))
        }
        What::BudgetSpent => (K::Steward, None, "the fleet's restart budget is spent; restarts wait".into()),
        What::StaleDropped => (K::Steward, None, because("a late message was dropped".into())),
    }
}

fn exit(kind: ExitKind) -> &'static str {
    match kind {
        ExitKind::Done => "ended by itself",
        ExitKind::Failed => "failed",
        ExitKind::Panicked => "panicked",
        ExitKind::Stopped => "stopped",
        ExitKind::Abandoned => "did not stop and was left behind",
        ExitKind::StartFailed => "could not start",
    }
}

fn after(delay: Duration) -> String {
    if delay.is_zero() { String::new() } else { format!(", in {}", human(delay)) }
}

fn human(d: Duration) -> String {
    if d < Duration::from_secs(1) {
        format!("{} ms", d.as_millis())
    } else {
        format!("{:.1} s", d.as_secs_f64())
    }
}
