//! Changes, one target after the other: each is shown as it is done, the first failure stops the
//! rest, and what was not tried is named.

use serde::Serialize;
use tokio::time::Instant;

use super::{
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

/// Makes a change on each target in turn. `doing` names it in the progress ("restarting").
///
/// # Errors
/// The first failure; 6 if something was done before it.
pub(crate) async fn each<V: Serialize>(
    session: &Session,
    action: &str,
    doing: &str,
    detach: bool,
    targets: &[String],
    mut make: impl AsyncFnMut(usize) -> Result<Made<V>, Failure>,
) -> Result<Exit, Failure> {
    let out = &session.out;
    let mut outcomes: Vec<Outcome<V>> = Vec::with_capacity(targets.len());
    let mut failure = None;
    for (i, target) in targets.iter().enumerate() {
        if failure.is_some() {
            outcomes.push(Outcome::unmade(target, "not_tried", None));
            continue;
        }
        let place =
            if targets.len() > 1 { format!(" ({} of {})", i + 1, targets.len()) } else { String::new() };
        out.progress(&format!("{doing} {target}{place} ..."));
        let started = Instant::now();
        match make(i).await {
            Ok(made) => {
                let took = started.elapsed();
                if out.format == super::args::Format::Name {
                    out.line(target)?;
                } else if !out.format.is_json() {
                    out.line(&format!("{}, {:.2} s", made.line, took.as_secs_f64()))?;
                }
                let result = if detach { "requested" } else { "done" };
                let elapsed_ms = Some((took.as_secs_f64() * 1e6).round() / 1e3);
                let Made { before, after, .. } = made;
                outcomes.push(Outcome {
                    target: target.clone(),
                    result,
                    elapsed_ms,
                    before,
                    after,
                    error: None,
                });
            }
            Err(failed) => {
                outcomes.push(Outcome::unmade(target, "failed", Some(&failed)));
                failure = Some(stopped(failed, i, targets));
            }
        }
    }
    if out.format.is_json() {
        let body = Outcomes { action: action.to_owned(), outcomes };
        out.json(&Document::new("wardkeep.outcomes/v1", body))?;
    }
    failure.map_or(Ok(Exit::Ok), Err)
}

impl<V> Outcome<V> {
    fn unmade(target: &str, result: &'static str, failure: Option<&Failure>) -> Self {
        let error = failure.map(|f| f.json()["error"].clone());
        Self { target: target.to_owned(), result, elapsed_ms: None, before: None, after: None, error }
    }
}

/// The failure of target `i`, in the light of the others.
fn stopped(mut failure: Failure, i: usize, targets: &[String]) -> Failure {
    let rest = targets.get(i + 1..).unwrap_or_default();
    if let Some(target) = targets.get(i) {
        failure.message = format!("{target}: {}", failure.message);
    }
    if !rest.is_empty() {
        failure.message.push_str(&format!("; not tried: {}", rest.join(", ")));
    }
    if i > 0 {
        failure.exit = Exit::Partial;
    }
    failure
}
