//! Configuration files: have daemons apply theirs, after showing what would change.

use serde::Serialize;
use wardkeep_node::settings::{refusal, sentence};
use wardkeep_proto::v1::{
    ConfigAction, ConfigChange, ConfigEffect, ConfigOutcome, ConfigRequest, Fleet, Node,
    operator_client::OperatorClient,
};

use super::{
    args::{Change, ConfigCommand, Format},
    change::{self, Deed, Made, Pace},
    confirm::confirm,
    connect::{Line, Session, actor, name_of},
    exit::{Exit, Failure, one_line},
    human::count,
    resolve,
    view::Document,
};

/// What the supervisor itself is called here.
const SUPERVISOR: &str = "supervisor";

#[derive(Serialize)]
struct Diffs {
    targets: Vec<Diff>,
}

/// One file against its process.
#[derive(Serialize)]
struct Diff {
    target: String,
    hosted_from_code: bool,
    changes: Vec<ChangeView>,
    /// Wards that are restarted.
    restarts: Vec<String>,
}

#[derive(Serialize)]
struct ChangeView {
    action: &'static str,
    noun: String,
    name: String,
    key: Option<String>,
    before: Option<String>,
    after: Option<String>,
    /// `live`, `restarts` or `refused`.
    effect: &'static str,
    /// All of it, for people.
    text: String,
}

impl From<&ConfigChange> for ChangeView {
    fn from(change: &ConfigChange) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            action: match change.action() {
                ConfigAction::Added => "added",
                ConfigAction::Removed => "removed",
                ConfigAction::Changed | ConfigAction::Unspecified => "changed",
            },
            noun: change.noun.clone(),
            name: change.name.clone(),
            key: some(&change.key),
            before: some(&change.before),
            after: some(&change.after),
            effect: match change.effect() {
                ConfigEffect::Restarts => "restarts",
                ConfigEffect::Refused => "refused",
                ConfigEffect::Live | ConfigEffect::Unspecified => "live",
            },
            text: one_line(&sentence(change)),
        }
    }
}

impl Diff {
    fn new(target: &str, outcome: &ConfigOutcome) -> Self {
        Self {
            target: target.to_owned(),
            hosted_from_code: outcome.hosted_from_code,
            changes: outcome.changes.iter().map(ChangeView::from).collect(),
            restarts: outcome.restarts.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.restarts.is_empty()
    }

    /// For people.
    fn lines(&self) -> Vec<String> {
        let target = &self.target;
        if self.hosted_from_code {
            return vec![format!("{target}: hosted from code: nothing to apply")];
        }
        if self.is_empty() {
            return vec![format!("{target}: nothing has changed")];
        }
        let mut lines: Vec<_> = self.changes.iter().map(|c| format!("{target}: {}", c.text)).collect();
        let told = |ward: &String| {
            self.changes.iter().any(|c| c.noun == "ward" && c.name == *ward && c.effect == "restarts")
        };
        let older = self.restarts.iter().filter(|ward| !told(ward));
        lines.extend(older.map(|ward| format!("{target}: ward {ward}: runs as it was before (restarts)")));
        lines
    }
}

/// `config ...`.
///
/// # Errors
/// The supervisor cannot be asked; a file cannot be applied; the change was refused.
pub(crate) async fn run(session: &Session, command: &ConfigCommand) -> Result<Exit, Failure> {
    let ConfigCommand::Apply { targets, dry_run, change } = command;
    let mut operator = session.operator().await?;
    let fleet = session.fleet(&mut operator).await?;
    let targets = choose(&fleet, targets)?;
    let mut outcomes = Vec::with_capacity(targets.len());
    for target in &targets {
        // Before anything is changed anywhere.
        let outcome = ask(session, &mut operator, target, change, true).await;
        outcomes.push(outcome.map_err(|failure| of(target, failure))?);
    }
    let diffs: Vec<_> =
        targets.iter().zip(&outcomes).map(|(name, outcome)| Diff::new(name, outcome)).collect();
    if *dry_run {
        return show(session, diffs);
    }
    let refused = targets.iter().zip(&outcomes).find_map(|(target, outcome)| {
        refusal(&outcome.changes).map(|why| Failure::usage(format!("{target}: {}", one_line(&why))))
    });
    if let Some(refused) = refused {
        return Err(refused);
    }
    let changing = diffs.iter().filter(|diff| !diff.is_empty());
    let changing: Vec<_> = changing.map(|diff| diff.target.clone()).collect();
    if changing.is_empty() {
        return show(session, diffs);
    }
    for line in diffs.iter().flat_map(Diff::lines) {
        session.out.progress(&line);
    }
    confirm(change, "apply the configuration of", &changing).await?;
    let deed =
        Deed { action: "apply_config", doing: "configuring", detach: change.detach, pace: Pace::ONE_BY_ONE };
    change::each(session, deed, &changing, async |i| {
        let target = changing.get(i).cloned().unwrap_or_default();
        let mut operator = operator.clone();
        let outcome = ask(session, &mut operator, &target, change, false).await?;
        let restarted = match (outcome.restarts.len(), change.detach) {
            (0, _) => "nothing restarted".to_owned(),
            (n, true) => format!("{} to restart", count(n, "ward")),
            (n, false) => format!("{} restarted", count(n, "ward")),
        };
        let line = format!("{target}: {} applied, {restarted}", count(outcome.changes.len(), "change"));
        Ok(Made { line, before: None, after: Some(Diff::new(&target, &outcome)) })
    })
    .await
}

/// The targets named; without any, all that have a file.
fn choose(fleet: &Fleet, wanted: &[String]) -> Result<Vec<String>, Failure> {
    let mut targets = Vec::new();
    for name in wanted {
        let is_node = || Ok::<_, Failure>(name_of(resolve::node(fleet, name)?).to_owned());
        let target = if name == SUPERVISOR { name.clone() } else { is_node()? };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    if wanted.is_empty() {
        let own = fleet.supervisor.as_ref().is_some_and(|supervisor| !supervisor.config_file.is_empty());
        targets.extend(own.then(|| SUPERVISOR.to_owned()));
        let file = |node: &&Node| node.info.as_ref().is_some_and(|info| !info.config_file.is_empty());
        let nodes = fleet.nodes.iter().filter(|node| node.attending).filter(file);
        targets.extend(nodes.map(|node| name_of(node).to_owned()));
        if targets.is_empty() {
            let none = "neither the supervisor nor a node that attends has a configuration file";
            return Err(Failure::new(Exit::NotFound, none));
        }
    }
    Ok(targets)
}

async fn ask(
    session: &Session,
    operator: &mut OperatorClient<Line>,
    target: &str,
    change: &Change,
    dry_run: bool,
) -> Result<ConfigOutcome, Failure> {
    let request = session.request(ConfigRequest {
        node: if target == SUPERVISOR { String::new() } else { target.to_owned() },
        dry_run,
        reason: change.reason.clone(),
        detach: change.detach,
        actor: actor(),
    });
    session.answer(&session.supervisor, operator.apply_config(request)).await
}

fn of(target: &str, mut failure: Failure) -> Failure {
    failure.message = format!("{target}: {}", failure.message);
    failure
}

fn show(session: &Session, diffs: Vec<Diff>) -> Result<Exit, Failure> {
    let out = &session.out;
    match out.format {
        Format::Json => out.json(&Document::new("wardkeep.config_diffs/v1", Diffs { targets: diffs }))?,
        Format::Jsonl => {
            diffs.iter().try_for_each(|diff| out.json(&Document::new("wardkeep.config_diff/v1", diff)))?;
        }
        Format::Name => {
            diffs.iter().filter(|diff| !diff.is_empty()).try_for_each(|diff| out.line(&diff.target))?;
        }
        Format::Table | Format::Wide => {
            diffs.iter().flat_map(Diff::lines).try_for_each(|line| out.line(&line))?;
        }
    }
    Ok(Exit::Ok)
}
