//! Errors: which failures there are, and one of them whole.

mod show;
mod symbolize;
mod view;

use wardkeep_proto::v1::{ErrorGroup, GetErrorRequest, ListErrorsRequest};

use self::view::{ErrorView, GroupView, Groups, One};
use super::{
    args::{ErrorCommand, Format},
    connect::Session,
    exit::{Exit, Failure},
    human::{age, short_id},
    out::Out,
    table::{Cell, Table, Tone},
    view::{Document, rfc3339},
};

/// `error ls`, `error show`, `error symbolize`.
///
/// # Errors
/// The supervisor cannot be asked; no such error.
pub(crate) async fn run(session: &Session, command: &ErrorCommand) -> Result<Exit, Failure> {
    let mut operator = session.operator().await?;
    let out = &session.out;
    match command {
        ErrorCommand::Ls => {
            let request = session.request(ListErrorsRequest {});
            let list = session.answer(&session.supervisor, operator.list_errors(request)).await?;
            if list.dropped > 0 {
                out.progress(&format!("({} more errors were dropped by their nodes)", list.dropped));
            }
            match out.format {
                Format::Json => {
                    let groups = list.groups.iter().map(GroupView::from).collect();
                    let body = Groups { groups, dropped: list.dropped };
                    out.json(&Document::new("wardkeep.errors/v1", body))?;
                }
                Format::Jsonl => list.groups.iter().try_for_each(|group| {
                    out.json(&Document::new("wardkeep.error-group/v1", GroupView::from(group)))
                })?,
                Format::Name => list.groups.iter().try_for_each(|group| out.line(&group.last_id))?,
                Format::Table | Format::Wide => out.text(&table(&list.groups, out).render(out))?,
            }
        }
        ErrorCommand::Show { id } => {
            let request = session.request(GetErrorRequest { id: id.clone() });
            let error = session.answer(&session.supervisor, operator.get_error(request)).await?;
            match out.format {
                Format::Json | Format::Jsonl => {
                    let error = ErrorView::from(&error);
                    out.json(&Document::new("wardkeep.error-record/v1", One { error }))?;
                }
                Format::Name => out.line(&error.id)?,
                Format::Table | Format::Wide => show::show(&error, out)?,
            }
        }
        ErrorCommand::Symbolize { id, exe } => {
            let request = session.request(GetErrorRequest { id: id.clone() });
            let error = session.answer(&session.supervisor, operator.get_error(request)).await?;
            symbolize::run(&error, exe, out)?;
        }
    }
    Ok(Exit::Ok)
}

fn table(groups: &[ErrorGroup], out: &Out) -> Table {
    let wide = out.format == Format::Wide;
    let mut table = Table::new(["COUNT", "LAST", "KIND", "WHERE", "LAST ID", "WHAT"]);
    let now = chrono::Utc::now();
    for group in groups {
        let last = if wide { rfc3339(group.last_at).unwrap_or_default() } else { age(group.last_at, now) };
        let kind = if wide { format!("{}/{}", group.domain, group.kind) } else { group.kind.clone() };
        let kind = if group.malformed { Cell::toned(&kind, Tone::Bad) } else { Cell::from(kind) };
        let place = match group.places.as_slice() {
            [] => "-".to_owned(),
            [one] => one.clone(),
            [first, rest @ ..] if !wide => format!("{first} +{}", rest.len()),
            all => all.join(" "),
        };
        let id = if wide { group.last_id.clone() } else { short_id(&group.last_id) };
        let count = group.count.to_string();
        table.row([count.into(), last.into(), kind, place.into(), id.into(), (&group.last_what).into()]);
    }
    table
}
