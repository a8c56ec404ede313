//! Wards: list, show, start, stop, restart.

use serde::Serialize;
use wardkeep_proto::v1::{Fleet, Ward, WardRequest};

use super::{
    args::{Format, WardCommand, WardTarget},
    change::{self, Deed, Made, Pace},
    confirm::confirm,
    connect::{Session, actor},
    exit::{Exit, Failure},
    human::{age, bytes, length, state_cell, ward_state},
    logs, resolve,
    status::now,
    table::Table,
    view::{Document, WardView},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Start,
    Stop,
    Restart,
}

#[derive(Serialize)]
struct Wards {
    wards: Vec<WardView>,
}

#[derive(Serialize)]
struct One {
    ward: WardView,
}

/// `ward ...`.
///
/// # Errors
/// The supervisor cannot be asked; no such ward; a change was refused or failed.
pub(crate) async fn run(session: &Session, command: &WardCommand) -> Result<Exit, Failure> {
    match command {
        WardCommand::Ls => ls(session).await,
        WardCommand::Logs(args) => logs::run(session, args).await,
        WardCommand::Show { ward } => show(session, ward).await,
        WardCommand::Start(target) => alter(session, Action::Start, target).await,
        WardCommand::Stop(target) => alter(session, Action::Stop, target).await,
        WardCommand::Restart(target) => alter(session, Action::Restart, target).await,
    }
}

async fn ls(session: &Session) -> Result<Exit, Failure> {
    let fleet = session.fleet(&mut session.operator().await?).await?;
    let out = &session.out;
    let all: Vec<_> = fleet.wards.iter().collect();
    let wards: Vec<_> = fleet.wards.iter().map(WardView::from).collect();
    match out.format {
        Format::Json => out.json(&Document::new("wardkeep.wards/v1", Wards { wards }))?,
        Format::Jsonl => wards.iter().try_for_each(|w| out.json(&Document::new("wardkeep.ward/v1", w)))?,
        Format::Name => wards.iter().try_for_each(|w| out.line(&w.path()))?,
        Format::Table => out.text(&table(&all, &fleet).render(out))?,
        Format::Wide => out.text(&wide_table(&all, &fleet).render(out))?,
    }
    Ok(Exit::Ok)
}

/// These wards for eyes.
pub(crate) fn table(wards: &[&Ward], fleet: &Fleet) -> Table {
    let mut table = Table::new(["WARD", "KIND", "STATE", "AGE", "RESTARTS", "WORK", "OLDEST", "NOTE"]);
    for raw in wards {
        let ward = WardView::from(*raw);
        table.row([
            ward.path().into(),
            (&ward.kind).into(),
            state_cell(ward_state(&ward)),
            age(raw.started_at, now(fleet)).into(),
            ward.restarts.to_string().into(),
            ward.work_in_progress.to_string().into(),
            length(ward.oldest_work_ms).into(),
            (&ward.status).into(),
        ]);
    }
    table
}

fn wide_table(wards: &[&Ward], fleet: &Fleet) -> Table {
    let heading = [
        "WARD",
        "KIND",
        "STATE",
        "INC",
        "AGE",
        "RESTARTS",
        "WORK",
        "OLDEST",
        "DONE",
        "GROUP",
        "RESTART",
        "LAST ERROR",
        "NOTE",
    ];
    let mut table = Table::new(heading);
    for raw in wards {
        let ward = WardView::from(*raw);
        table.row([
            ward.path().into(),
            (&ward.kind).into(),
            state_cell(ward_state(&ward)),
            ward.incarnation.to_string().into(),
            age(raw.started_at, now(fleet)).into(),
            ward.restarts.to_string().into(),
            ward.work_in_progress.to_string().into(),
            length(ward.oldest_work_ms).into(),
            ward.work_done.to_string().into(),
            (&ward.group).into(),
            (&ward.restart).into(),
            ward.last_error_id.as_deref().unwrap_or("-").into(),
            (&ward.status).into(),
        ]);
    }
    table
}

async fn show(session: &Session, wanted: &str) -> Result<Exit, Failure> {
    let fleet = session.fleet(&mut session.operator().await?).await?;
    let raw = resolve::ward(&fleet, wanted)?;
    let ward = WardView::from(raw);
    let out = &session.out;
    match out.format {
        Format::Json | Format::Jsonl => out.json(&Document::new("wardkeep.ward/v1", One { ward }))?,
        Format::Name => out.line(&ward.path())?,
        Format::Table | Format::Wide => out.text(&details(&ward, raw, &fleet).render(out))?,
    }
    Ok(Exit::Ok)
}

fn details(ward: &WardView, raw: &Ward, fleet: &Fleet) -> Table {
    let up = age(raw.started_at, now(fleet));
    let limit = |ms: Option<u64>| ms.map_or("none".to_owned(), |ms| length(Some(ms)));
    let limits = format!(
        "work {}, pulse {}, start {}, grace {}",
        limit(ward.stall_timeout_ms),
        limit(ward.pulse_timeout_ms),
        limit(ward.start_timeout_ms),
        limit(ward.grace_ms)
    );
    let work = format!(
        "{} in progress, oldest {}, {} done",
        ward.work_in_progress,
        length(ward.oldest_work_ms),
        ward.work_done
    );
    let mut table = Table::bare();
    table.row(["ward".into(), ward.path().into()]);
    table.row(["kind".into(), (&ward.kind).into()]);
    table.row(["state".into(), state_cell(ward_state(ward))]);
    table.row(["verdict".into(), (&ward.verdict).into()]);
    table.row(["incarnation".into(), format!("{}, up {up}", ward.incarnation).into()]);
    table.row(["restarts".into(), format!("{} ({})", ward.restarts, ward.restart).into()]);
    table.row(["group".into(), (&ward.group).into()]);
    table.row(["work".into(), work.into()]);
    if ward.fenced_replies > 0 {
        let late = format!("{} (late replies of incarnations left behind)", ward.fenced_replies);
        table.row(["fenced".into(), late.into()]);
    }
    if let Some(usage) = &ward.usage {
        let cpu = length(usage.cpu_ms);
        let size = bytes(usage.resident_bytes);
        let count = super::human::count(usage.processes as usize, "process");
        table.row(["uses".into(), format!("PID {}, {count}, CPU {cpu}, {size} resident", usage.pid).into()]);
    }
    table.row(["limits".into(), limits.into()]);
    table.row(["services".into(), ward.services.join(" ").into()]);
    table.row(["last error".into(), ward.last_error_id.as_deref().unwrap_or("-").into()]);
    table.row(["says".into(), (&ward.status).into()]);
    table
}

async fn alter(session: &Session, action: Action, target: &WardTarget) -> Result<Exit, Failure> {
    let mut operator = session.operator().await?;
    let fleet = session.fleet(&mut operator).await?;
    let ward = resolve::ward(&fleet, &target.ward)?;
    let path = resolve::path(ward);
    let (name, verb, doing) = match action {
        Action::Start => ("start_ward", "start ward", "starting"),
        Action::Stop => ("stop_ward", "stop ward", "stopping"),
        Action::Restart => ("restart_ward", "restart ward", "restarting"),
    };
    let view = WardView::from(ward);
    let shown = format!("{path} ({}, {} in progress)", ward_state(&view).0, view.work_in_progress);
    let change = &target.change;
    confirm(change, verb, &[shown]).await?;
    let deed = Deed { action: name, doing, detach: change.detach, pace: Pace::ONE_BY_ONE };
    change::each(session, deed, std::slice::from_ref(&path), async |_| {
        let mut operator = operator.clone();
        let request = session.request(WardRequest {
            node: ward.node.clone(),
            ward: resolve::short_name(ward).to_owned(),
            reason: change.reason.clone(),
            detach: change.detach,
            actor: actor(),
        });
        let address = &session.supervisor;
        let outcome = match action {
            Action::Start => session.answer(address, operator.start_ward(request)).await?,
            Action::Stop => session.answer(address, operator.stop_ward(request)).await?,
            Action::Restart => session.answer(address, operator.restart_ward(request)).await?,
        };
        let before = outcome.before.as_ref().map(WardView::from);
        let after = outcome.after.as_ref().map(WardView::from);
        let line = told(action, &path, before.as_ref(), after.as_ref(), change.detach)?;
        Ok(Made { line, before, after })
    })
    .await
}

/// The effect in one line; a ward that did not get there is a failure.
fn told(
    action: Action,
    path: &str,
    before: Option<&WardView>,
    after: Option<&WardView>,
    detach: bool,
) -> Result<String, Failure> {
    if detach {
        let verb = match action {
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Restart => "restart",
        };
        return Ok(format!("{path}: {verb} requested"));
    }
    let Some(after) = after else {
        return Err(Failure::new(Exit::Failed, "the supervisor did not show the effect"));
    };
    let fallen = matches!(after.state.as_str(), "backoff" | "quarantined" | "unknown");
    if fallen || (action == Action::Stop && after.state != "stopped") {
        let says = if after.status.is_empty() { String::new() } else { format!(" ({})", after.status) };
        return Err(Failure::new(Exit::Failed, format!("it is {} now{says}", after.state)));
    }
    let from = before.map(|b| b.incarnation).unwrap_or_default();
    Ok(match action {
        Action::Start => format!("{path}: started, incarnation {}", after.incarnation),
        Action::Stop => format!("{path}: stopped"),
        Action::Restart => format!("{path}: restarted, incarnation {from} -> {}", after.incarnation),
    })
}
