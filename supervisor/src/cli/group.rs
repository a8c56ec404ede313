//! Groups of wards and how often they were restarted lately.

use serde::Serialize;

use super::{
    args::{Format, GroupCommand},
    connect::Session,
    exit::{Exit, Failure},
    human::length,
    resolve,
    table::{Cell, Table, Tone},
    view::{Document, GroupView},
};

#[derive(Serialize)]
struct Groups {
    groups: Vec<GroupView>,
}

#[derive(Serialize)]
struct One {
    group: GroupView,
}

/// `group ls`, `group show`.
///
/// # Errors
/// The supervisor cannot be asked; no such group.
pub(crate) async fn run(session: &Session, command: &GroupCommand) -> Result<Exit, Failure> {
    let mut operator = session.operator().await?;
    let fleet = session.fleet(&mut operator).await?;
    let out = &session.out;
    match command {
        GroupCommand::Ls => {
            let groups: Vec<_> = fleet.groups.iter().map(GroupView::from).collect();
            match out.format {
                Format::Json => out.json(&Document::new("wardkeep.groups/v1", Groups { groups }))?,
                Format::Jsonl => {
                    groups.iter().try_for_each(|g| out.json(&Document::new("wardkeep.group/v1", g)))?
                }
                Format::Name => groups.iter().try_for_each(|g| out.line(&g.name))?,
                Format::Table | Format::Wide => out.text(&table(&groups).render(out))?,
            }
        }
        GroupCommand::Show { group } => {
            let group = GroupView::from(resolve::group(&fleet, group)?);
            match out.format {
                Format::Json | Format::Jsonl => {
                    out.json(&Document::new("wardkeep.group/v1", One { group }))?
                }
                Format::Name => out.line(&group.name)?,
                Format::Table | Format::Wide => out.text(&details(&group).render(out))?,
            }
        }
    }
    Ok(Exit::Ok)
}

fn state(group: &GroupView) -> Cell {
    if group.gave_up { Cell::toned("gave up", Tone::Bad) } else { Cell::toned("well", Tone::Good) }
}

fn recent(group: &GroupView) -> String {
    format!("{} of {} in {}", group.recent_restarts, group.intensity, length(group.period_ms))
}

fn table(groups: &[GroupView]) -> Table {
    let mut table = Table::new(["NAME", "STATE", "STRATEGY", "RESTARTS", "MEMBERS"]);
    for group in groups {
        let members = group.members.join(" ");
        table.row([
            (&group.name).into(),
            state(group),
            (&group.strategy).into(),
            recent(group).into(),
            members.into(),
        ]);
    }
    table
}

fn details(group: &GroupView) -> Table {
    let mut table = Table::bare();
    let backoff = format!("{} up to {}", length(group.backoff_first_ms), length(group.backoff_max_ms));
    table.row(["name".into(), (&group.name).into()]);
    table.row(["state".into(), state(group)]);
    table.row(["strategy".into(), (&group.strategy).into()]);
    table.row(["restarts".into(), recent(group).into()]);
    table.row(["backoff".into(), backoff.into()]);
    table.row(["quiet after".into(), length(group.backoff_reset_ms).into()]);
    if let Some(parent) = &group.parent {
        let significant = if group.significant { ", significant" } else { "" };
        table.row(["in".into(), format!("{parent} ({}{significant})", group.restart).into()]);
    }
    if group.auto_shutdown.ends_with("significant") {
        table.row([
            "shuts down".into(),
            format!("when {} members have ended", group.auto_shutdown.replace('_', " ")).into(),
        ]);
    }
    if group.parent.is_none() {
        let then =
            if group.escalate == "quarantine" { "quarantined" } else { "node restarted, then quarantined" };
        table.row(["giving up".into(), then.into()]);
    }
    for (i, member) in group.members.iter().enumerate() {
        table.row([if i == 0 { "members" } else { "" }.into(), member.into()]);
    }
    table
}
