//! The whole picture on one screen: what is wrong first, then nodes with their wards, then what
//! happened last.

use chrono::{DateTime, Utc};
use serde::Serialize;
use wardkeep_proto::v1::Fleet;

use super::{
    args::Format,
    connect::Session,
    events,
    exit::{Exit, Failure},
    human::{age, count, length, node_state, state_cell, ward_state},
    table::{Cell, Table, Tone},
    view::{Document, EventView, GroupView, NodeView, SupervisorView, WardView, moment, rfc3339},
};

/// So many of the last events are shown.
const LAST_EVENTS: u32 = 5;
/// So many problems are listed in words.
const PROBLEMS_SHOWN: usize = 8;

#[derive(Serialize)]
struct Status {
    at: Option<String>,
    healthy: bool,
    problems: Vec<String>,
    supervisor: SupervisorView,
    nodes: Vec<NodeView>,
    wards: Vec<WardView>,
    groups: Vec<GroupView>,
    events: Vec<EventView>,
}

/// 0 all is well, 1 something is not, 3 no supervisor answers.
///
/// # Errors
/// The supervisor cannot be asked.
pub(crate) async fn run(session: &Session) -> Result<Exit, Failure> {
    let mut operator = session.operator().await.map_err(|f| not_running(f, &session.supervisor))?;
    let fleet = session.fleet(&mut operator).await.map_err(|f| not_running(f, &session.supervisor))?;
    let events = events::last(session, &mut operator, LAST_EVENTS).await?;
    let status = Status {
        at: rfc3339(fleet.at),
        problems: problems(&fleet),
        healthy: problems(&fleet).is_empty(),
        supervisor: SupervisorView::new(&session.supervisor, &fleet.supervisor.clone().unwrap_or_default()),
        nodes: fleet.nodes.iter().map(NodeView::from).collect(),
        wards: fleet.wards.iter().map(WardView::from).collect(),
        groups: fleet.groups.iter().map(GroupView::from).collect(),
        events: events.iter().map(EventView::from).collect(),
    };
    let exit = if status.healthy { Exit::Ok } else { Exit::Failed };
    match session.out.format {
        Format::Json | Format::Jsonl => session.out.json(&Document::new("wardkeep.status/v1", status))?,
        Format::Name => {
            let names = status.nodes.iter().map(|n| n.name.clone());
            let paths = status.wards.iter().map(WardView::path);
            session.out.text(&names.chain(paths).map(|n| n + "\n").collect::<String>())?;
        }
        Format::Table | Format::Wide => {
            let mut text = headline(&status, &fleet);
            text.push_str(&overview(&status, &fleet).render(&session.out));
            if !events.is_empty() {
                text.push('\n');
                text.push_str(&events::table(&events, &session.out).render(&session.out));
            }
            session.out.text(&text)?;
        }
    }
    Ok(exit)
}

fn not_running(failure: Failure, address: &str) -> Failure {
    if failure.exit != Exit::Unreachable {
        return failure;
    }
    let message = format!(
        "not running: nothing answers at {address}; start one with `wardkeep serve supervisor`, \
         or name another with --supervisor"
    );
    Failure { what: Some(failure.message), ..Failure::new(Exit::NotRunning, message) }
}

/// What is not as it should be, one phrase each. A node that is not well speaks for its wards.
fn problems(fleet: &Fleet) -> Vec<String> {
    let mut found = Vec::new();
    let history = fleet.supervisor.as_ref().and_then(|s| s.history.as_ref());
    if let Some(history) = history.filter(|history| history.not_written_since.is_some()) {
        let since = rfc3339(history.not_written_since).unwrap_or_default();
        found.push(format!("history: not written since {since} ({})", history.not_written_why));
    }
    let mut silent = Vec::new();
    for node in fleet.nodes.iter().map(NodeView::from) {
        if let (word, Tone::Bad) = node_state(&node) {
            found.push(format!("node {} is {}", node.name, word.replace('_', "-")));
            silent.push(node.name.clone());
        } else if node.leaked_threads > 0 {
            let threads = count(node.leaked_threads as usize, "thread");
            found.push(format!("node {} has leaked {threads}; restart it", node.name));
        }
    }
    for ward in fleet.wards.iter().map(WardView::from) {
        if let (word, Tone::Bad) = ward_state(&ward)
            && !silent.contains(&ward.node)
        {
            let why =
                if ward.status.is_empty() || ward.status == word { &ward.verdict } else { &ward.status };
            let why = if why == word { String::new() } else { format!(" ({why})") };
            let word = if word == "backoff" { "waiting for its restart" } else { word };
            found.push(format!("{} is {}{why}", ward.path(), word.replace('_', "-")));
        }
    }
    for group in fleet.groups.iter().filter(|g| g.gave_up).map(GroupView::from) {
        found.push(format!(
            "group {} gave up after {}",
            group.name,
            count(group.intensity as usize, "restart")
        ));
    }
    found.iter().map(|text| super::exit::one_line(text)).collect()
}

fn headline(status: &Status, fleet: &Fleet) -> String {
    let size = format!("{}, {}", count(status.nodes.len(), "node"), count(status.wards.len(), "ward"));
    let draining = status.nodes.iter().filter(|n| n.draining).count();
    let aside = if draining > 0 { format!(" ({draining} draining)") } else { String::new() };
    let mut text = match status.problems.as_slice() {
        [] if status.nodes.is_empty() => format!(
            "no node attends yet; start one with `wardkeep serve node --supervisor {}`\n",
            status.supervisor.address
        ),
        [] => format!("{size}: all well{aside}\n"),
        [only] => format!("{size}: {only}{aside}\n"),
        several => {
            let shown = several.iter().take(PROBLEMS_SHOWN).map(|p| format!("  {p}\n"));
            let more = several.len().saturating_sub(PROBLEMS_SHOWN);
            let rest = if more > 0 { format!("  and {more} more\n") } else { String::new() };
            format!("{size}: {} things are wrong{aside}\n{}{rest}", several.len(), shown.collect::<String>())
        }
    };
    let s = &status.supervisor;
    let up = age(fleet.supervisor.as_ref().and_then(|s| s.started_at), now(fleet));
    text.push_str(&format!("supervisor {} on {}, up {up}, epoch {}\n", s.address, s.machine, s.epoch));
    if !s.history.durable {
        text.push_str("history in memory only; --data-dir would keep it\n");
    }
    text.push('\n');
    text
}

/// The supervisor's clock: ages must not depend on ours.
pub(crate) fn now(fleet: &Fleet) -> DateTime<Utc> {
    moment(fleet.at).unwrap_or_else(Utc::now)
}

fn overview(status: &Status, fleet: &Fleet) -> Table {
    let now = now(fleet);
    let mut table = Table::new(["NAME", "KIND", "STATE", "AGE", "RESTARTS", "WORK", "OLDEST", "NOTE"]);
    for (node, raw) in status.nodes.iter().zip(&fleet.nodes) {
        let since = age(raw.info.as_ref().and_then(|i| i.started_at), now);
        let dash = || Cell::from("");
        let note: Vec<String> = node.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let kind = Cell::from("node");
        let note = note.join(" ");
        let state = state_cell(node_state(node));
        table.row([(&node.name).into(), kind, state, since.into(), dash(), dash(), dash(), note.into()]);
        for (ward, raw) in status.wards.iter().zip(&fleet.wards).filter(|(w, _)| w.node == node.name) {
            table.row([
                format!("└ {}", ward.ward).into(),
                (&ward.kind).into(),
                state_cell(ward_state(ward)),
                age(raw.started_at, now).into(),
                ward.restarts.to_string().into(),
                ward.work_in_progress.to_string().into(),
                length(ward.oldest_work_ms).into(),
                (&ward.status).into(),
            ]);
        }
    }
    table
}
