//! Changes, batch by batch: each is shown as it is done, the first failure stops the rest, and what was
//! not tried is named.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    args::Format,
    connect::Session,
    exit::{Exit, Failure},
    view::Document,
};

/// What became of one target.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome<V> {
    target: String,
    /// `done`, `requested` (with `--detach`), `failed` or `not_tried`.
    result: &'static str,
    elapsed_ms: Option<f64>,
    before: Option<V>,
    after: Option<V>,
    error: Option<serde_json::Value>,
}

/// A change that was made.
#[derive(Debug)]
pub(crate) struct Made<V> {
    /// The line to show, without the time it took.
    pub(crate) line: String,
    /// As it was.
    pub(crate) before: Option<V>,
    /// As it is.
    pub(crate) after: Option<V>,
}

#[derive(Serialize)]
struct Outcomes<V> {
    action: String,
    outcomes: Vec<Outcome<V>>,
}

/// How fast a change goes from target to target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// So many at a time.
    pub(crate) batch: usize,
    /// Between one batch and the next.
    pub(crate) pause: Duration,
}

impl Pace {
    /// One after the other.
    pub(crate) const ONE_BY_ONE: Self = Self { batch: 1, pause: Duration::ZERO };
}

/// What is done to all targets.
pub(crate) struct Deed<'a> {
    pub(crate) action: &'a str,
    /// Names it in the progress ("restarting").
    pub(crate) doing: &'a str,
    pub(crate) detach: bool,
    pub(crate) pace: Pace,
}

/// Makes a change on the targets, batch by batch. A batch in which one fails is the last.
///
/// # Errors
/// The first failure; 6 if something was done.
pub(crate) async fn each<V: Serialize>(
    session: &Session,
    deed: Deed<'_>,
    targets: &[String],
    make: impl AsyncFn(usize) -> Result<Made<V>, Failure>,
) -> Result<Exit, Failure> {
    let mut outcomes: Vec<Outcome<V>> = Vec::with_capacity(targets.len());
    let mut failure = None;
    let batch = deed.pace.batch.max(1);
    for first in (0..targets.len()).step_by(batch) {
        let numbers = first..targets.len().min(first + batch);
        if failure.is_some() {
            outcomes.extend(numbers.map(|i| Outcome::unmade(&targets[i], "not_tried", None)));
            continue;
        }
        if first > 0 && !deed.pace.pause.is_zero() {
            session.out.progress(&format!("pausing for {} ...", humantime::format_duration(deed.pace.pause)));
            tokio::time::sleep(deed.pace.pause).await;
        }
        let mut running: FuturesUnordered<_> = numbers
            .map(|i| {
                begin(session, &deed, targets, i);
                let (started, made) = (Instant::now(), make(i));
                async move { (i, made.await, started.elapsed()) }
            })
            .collect();
        let mut ended = Vec::with_capacity(batch);
        while let Some((i, made, took)) = running.next().await {
            let made = match made {
                Ok(made) => {
                    tell(session, &targets[i], &made.line, took)?;
                    Ok((made, took))
                }
                Err(failed) => Err(failed),
            };
            ended.push((i, made));
        }
        ended.sort_by_key(|(i, _)| *i);
        for (i, made) in ended {
            outcomes.push(match made {
                Ok((made, took)) => Outcome::made(&targets[i], deed.detach, made, took),
                Err(failed) => {
                    let outcome = Outcome::unmade(&targets[i], "failed", Some(&failed));
                    failure.get_or_insert((i, failed));
                    outcome
                }
            });
        }
    }
    let failure = failure.map(|(i, failed)| stopped(failed, &targets[i], &outcomes));
    if session.out.format.is_json() {
        let body = Outcomes { action: deed.action.to_owned(), outcomes };
        session.out.json(&Document::new("wardkeep.outcomes/v1", body))?;
    }
    failure.map_or(Ok(Exit::Ok), Err)
}

fn begin(session: &Session, deed: &Deed<'_>, targets: &[String], i: usize) {
    let place = if targets.len() > 1 { format!(" ({} of {})", i + 1, targets.len()) } else { String::new() };
    session.out.progress(&format!("{} {}{place} ...", deed.doing, targets[i]));
}

fn tell(session: &Session, target: &str, line: &str, took: Duration) -> Result<(), Failure> {
    let out = &session.out;
    match out.format {
        Format::Name => out.line(target),
        Format::Json | Format::Jsonl => Ok(()),
        Format::Table | Format::Wide => out.line(&format!("{line}, {:.2} s", took.as_secs_f64())),
    }
}

impl<V> Outcome<V> {
    fn made(target: &str, detach: bool, made: Made<V>, took: Duration) -> Self {
        Self {
            target: target.to_owned(),
            result: if detach { "requested" } else { "done" },
            elapsed_ms: Some((took.as_secs_f64() * 1e6).round() / 1e3),
            before: made.before,
            after: made.after,
            error: None,
        }
    }

    fn unmade(target: &str, result: &'static str, failure: Option<&Failure>) -> Self {
        let error = failure.map(|f| f.json()["error"].clone());
        Self { target: target.to_owned(), result, elapsed_ms: None, before: None, after: None, error }
    }
}

/// The first failure, in the light of what became of the others.
fn stopped<V>(mut failure: Failure, target: &str, outcomes: &[Outcome<V>]) -> Failure {
    let named = |result: &str| -> Vec<&str> {
        let so = outcomes.iter().filter(|outcome| outcome.result == result);
        so.map(|outcome| outcome.target.as_str()).collect()
    };
    failure.message = format!("{target}: {}", failure.message);
    let also: Vec<_> = named("failed").into_iter().filter(|other| *other != target).collect();
    for (how, which) in [("failed too", also), ("not tried", named("not_tried"))] {
        if !which.is_empty() {
            failure.message.push_str(&format!("; {how}: {}", which.join(", ")));
        }
    }
    if outcomes.iter().any(|outcome| matches!(outcome.result, "done" | "requested")) {
        failure.exit = Exit::Partial;
    }
    failure
}
