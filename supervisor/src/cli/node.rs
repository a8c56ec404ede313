//! Nodes: list, show, restart in place, drain, undrain.

use serde::Serialize;
use wardkeep_proto::{
    duration,
    v1::{Fleet, Node, NodeOutcome, NodeRequest, operator_client::OperatorClient},
};

use super::{
    args::{Change, DrainLimit, Format, NodeCommand},
    change::{self, Deed, Made, Pace},
    confirm::confirm,
    connect::{Line, Session, actor, name_of},
    exit::{Exit, Failure},
    human::{age, count, node_state, short_id, state_cell},
    resolve,
    status::now,
    table::Table,
    view::{Document, NodeView, WardView, moment},
    ward,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Restart,
    Drain,
    Undrain,
}

#[derive(Serialize)]
struct Nodes {
    nodes: Vec<NodeView>,
}

#[derive(Serialize)]
struct One {
    node: NodeView,
    wards: Vec<WardView>,
}

/// `node ...`.
///
/// # Errors
/// The supervisor cannot be asked; no such node; a change was refused or failed.
pub(crate) async fn run(session: &Session, command: &NodeCommand) -> Result<Exit, Failure> {
    let none = DrainLimit::default();
    let one = std::slice::from_ref;
    match command {
        NodeCommand::Ls => ls(session).await,
        NodeCommand::Show { node } => show(session, node).await,
        NodeCommand::Restart { nodes, all: _, batch, pause, change, drain } => {
            let pace = Pace { batch: usize::from(*batch), pause: pause.unwrap_or_default() };
            alter(session, Action::Restart, nodes, change, drain, pace).await
        }
        NodeCommand::Drain { node, change, drain } => {
            alter(session, Action::Drain, one(node), change, drain, Pace::ONE_BY_ONE).await
        }
        NodeCommand::Undrain { node, change } => {
            alter(session, Action::Undrain, one(node), change, &none, Pace::ONE_BY_ONE).await
        }
    }
}

async fn ls(session: &Session) -> Result<Exit, Failure> {
    let fleet = session.fleet(&mut session.operator().await?).await?;
    let nodes: Vec<_> = fleet.nodes.iter().map(NodeView::from).collect();
    let out = &session.out;
    match out.format {
        Format::Json => out.json(&Document::new("wardkeep.nodes/v1", Nodes { nodes }))?,
        Format::Jsonl => nodes.iter().try_for_each(|n| out.json(&Document::new("wardkeep.node/v1", n)))?,
        Format::Name => nodes.iter().try_for_each(|n| out.line(&n.name))?,
        Format::Table => out.text(&table(&nodes, &fleet).render(out))?,
        Format::Wide => out.text(&wide_table(&nodes, &fleet).render(out))?,
    }
    Ok(Exit::Ok)
}

fn since(fleet: &Fleet, node: &Node) -> String {
    age(node.info.as_ref().and_then(|i| i.started_at), now(fleet))
}

fn wards_on(fleet: &Fleet, node: &str) -> usize {
    fleet.wards.iter().filter(|w| w.node == node).count()
}

fn table(nodes: &[NodeView], fleet: &Fleet) -> Table {
    let mut table = Table::new(["NAME", "STATE", "AGE", "WARDS", "PID", "MACHINE", "ADDRESS"]);
    for (node, raw) in nodes.iter().zip(&fleet.nodes) {
        table.row([
            (&node.name).into(),
            state_cell(node_state(node)),
            since(fleet, raw).into(),
            wards_on(fleet, &node.name).to_string().into(),
            node.pid.to_string().into(),
            (&node.machine).into(),
            // The usual scheme would cost the columns that 80 have not.
            node.uri.strip_prefix("http://").unwrap_or(&node.uri).into(),
        ]);
    }
    table
}

fn wide_table(nodes: &[NodeView], fleet: &Fleet) -> Table {
    let mut table = Table::new([
        "NAME", "STATE", "AGE", "WARDS", "PID", "MACHINE", "ADDRESS", "LAUNCHER", "ZONE", "VERSION", "BOOT",
        "LABELS",
    ]);
    for (node, raw) in nodes.iter().zip(&fleet.nodes) {
        table.row([
            (&node.name).into(),
            state_cell(node_state(node)),
            since(fleet, raw).into(),
            wards_on(fleet, &node.name).to_string().into(),
            node.pid.to_string().into(),
            (&node.machine).into(),
            (&node.uri).into(),
            (&node.launcher).into(),
            (&node.zone).into(),
            (&node.version).into(),
            (&node.boot_id).into(),
            labels(node).into(),
        ]);
    }
    table
}

fn labels(node: &NodeView) -> String {
    let pairs: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(" ")
}

async fn show(session: &Session, wanted: &str) -> Result<Exit, Failure> {
    let fleet = session.fleet(&mut session.operator().await?).await?;
    let raw = resolve::node(&fleet, wanted)?;
    let node = NodeView::from(raw);
    let of_node: Vec<_> = fleet.wards.iter().filter(|w| w.node == node.name).collect();
    let out = &session.out;
    match out.format {
        Format::Json | Format::Jsonl => {
            let wards = of_node.into_iter().map(WardView::from).collect();
            out.json(&Document::new("wardkeep.node/v1", One { node, wards }))?;
        }
        Format::Name => out.line(&node.name)?,
        Format::Table | Format::Wide => {
            let mut text = details(&node, raw, &fleet).render(out);
            if !of_node.is_empty() {
                text.push('\n');
                text.push_str(&ward::table(&of_node, &fleet).render(out));
            }
            out.text(&text)?;
        }
    }
    Ok(Exit::Ok)
}

fn details(node: &NodeView, raw: &Node, fleet: &Fleet) -> Table {
    let heard = raw.last_report_at.and_then(|at| moment(Some(at)));
    let heard = heard.map(|at| format!("{:.1} s ago", (now(fleet) - at).as_seconds_f64().max(0.0)));
    let mut table = Table::bare();
    table.row(["name".into(), (&node.name).into()]);
    table.row(["state".into(), state_cell(node_state(node))]);
    table.row(["address".into(), (&node.uri).into()]);
    table.row(["machine".into(), format!("{} (pid {})", node.machine, node.pid).into()]);
    table.row(["zone".into(), (&node.zone).into()]);
    table.row(["labels".into(), labels(node).into()]);
    table.row(["version".into(), (&node.version).into()]);
    table.row(["boot ID".into(), (&node.boot_id).into()]);
    table.row(["up".into(), since(fleet, raw).into()]);
    table.row(["last heard".into(), heard.unwrap_or_else(|| "never".into()).into()]);
    let launcher =
        if node.launcher.is_empty() { "none: it can be restarted in band only" } else { &node.launcher };
    table.row(["launcher".into(), launcher.into()]);
    table.row(["leaked threads".into(), node.leaked_threads.to_string().into()]);
    table
}

async fn alter(
    session: &Session,
    action: Action,
    wanted: &[String],
    change: &Change,
    drain: &DrainLimit,
    pace: Pace,
) -> Result<Exit, Failure> {
    if !change.detach && drain.drain_timeout.is_some_and(|d| d >= session.timeout) {
        return Err(Failure::usage("--drain-timeout must be shorter than --timeout (or pass --detach)"));
    }
    let mut operator = session.operator().await?;
    let fleet = session.fleet(&mut operator).await?;
    // Without names: all that attend.
    let all: Vec<String> = match wanted {
        [] => fleet.nodes.iter().filter(|node| node.attending).map(|node| name_of(node).to_owned()).collect(),
        named => named.to_vec(),
    };
    if all.is_empty() {
        return Err(Failure::new(Exit::NotFound, "no node attends the supervisor"));
    }
    let mut targets: Vec<String> = Vec::new();
    let mut shown = Vec::new();
    for name in &all {
        let node = resolve::node(&fleet, name)?;
        if !targets.iter().any(|t| t == name_of(node)) {
            targets.push(name_of(node).to_owned());
            shown.push(describe(node, &fleet));
        }
    }
    let (name, verb, doing) = match action {
        Action::Restart => ("restart_node", "restart node", "restarting"),
        Action::Drain => ("drain_node", "drain node", "draining"),
        Action::Undrain => ("undrain_node", "undrain node", "undraining"),
    };
    confirm(change, verb, &shown).await?;
    let deed = Deed { action: name, doing, detach: change.detach, pace };
    change::each(session, deed, &targets, async |i| {
        let mut operator = operator.clone();
        let node = targets.get(i).cloned().unwrap_or_default();
        let request = NodeRequest {
            node: node.clone(),
            reason: change.reason.clone(),
            detach: change.detach,
            actor: actor(),
            drain_timeout: drain.drain_timeout.map(duration),
        };
        let outcome = send(session, &mut operator, action, request).await?;
        let before = outcome.before.as_ref().map(NodeView::from);
        let after = outcome.after.as_ref().map(NodeView::from);
        let line = told(action, &node, before.as_ref(), after.as_ref(), change.detach)?;
        Ok(Made { line, before, after })
    })
    .await
}

fn describe(node: &Node, fleet: &Fleet) -> String {
    let name = name_of(node);
    let busy: u64 = fleet.wards.iter().filter(|w| w.node == name).map(|w| w.work_in_progress).sum();
    let pid = node.info.as_ref().map(|i| i.pid).unwrap_or_default();
    if !node.attending && !node.launcher.is_empty() {
        return format!("{name} (away: by its launcher, {})", node.launcher);
    }
    format!("{name} (pid {pid}, {}, {busy} in progress)", count(wards_on(fleet, name), "ward"))
}

async fn send(
    session: &Session,
    operator: &mut OperatorClient<Line>,
    action: Action,
    request: NodeRequest,
) -> Result<NodeOutcome, Failure> {
    let request = session.request(request);
    let address = &session.supervisor;
    match action {
        Action::Restart => session.answer(address, operator.restart_node(request)).await,
        Action::Drain => session.answer(address, operator.drain_node(request)).await,
        Action::Undrain => session.answer(address, operator.undrain_node(request)).await,
    }
}

/// The effect in one line; an effect that cannot be seen is a failure.
fn told(
    action: Action,
    name: &str,
    before: Option<&NodeView>,
    after: Option<&NodeView>,
    detach: bool,
) -> Result<String, Failure> {
    let failed = |why: &str| Err(Failure::new(Exit::Failed, why));
    match (action, before, after) {
        (Action::Restart, _, _) if detach => Ok(format!("{name}: restart requested")),
        (Action::Drain, _, _) if detach => Ok(format!("{name}: drain requested")),
        (Action::Undrain, _, _) if detach => Ok(format!("{name}: undrain requested")),
        (Action::Restart, Some(before), Some(after)) if before.boot_id == after.boot_id => {
            failed("it still has the boot ID it had: it was not restarted")
        }
        (Action::Restart, Some(before), Some(after)) if before.boot_id.is_empty() => {
            Ok(format!("{name}: started, pid {}, boot {}", after.pid, short_id(&after.boot_id)))
        }
        (Action::Restart, Some(before), Some(after)) => {
            let pid = if before.pid == after.pid {
                format!("pid {} kept", after.pid)
            } else {
                format!("pid {} -> {}", before.pid, after.pid)
            };
            let boot = format!("boot {} -> {}", short_id(&before.boot_id), short_id(&after.boot_id));
            Ok(format!("{name}: restarted, {pid}, {boot}"))
        }
        (Action::Drain, _, Some(after)) if after.draining => Ok(format!("{name}: drained")),
        (Action::Undrain, _, Some(after)) if !after.draining => Ok(format!("{name}: back in service")),
        _ => failed("the supervisor did not show the effect"),
    }
}
