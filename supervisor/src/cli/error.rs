//! Errors: which failures there are, and one of them whole.

use serde::Serialize;
use wardkeep_proto::{
    error::Code,
    v1::{Error, ErrorGroup, GetErrorRequest, Hop, ListErrorsRequest},
};

use super::{
    args::{ErrorCommand, Format},
    connect::Session,
    exit::{Exit, Failure},
    human::{age, length, short_id},
    out::Out,
    table::{Cell, Table, Tone},
    view::{Document, millis, moment, rfc3339},
};

#[derive(Serialize)]
struct Groups {
    groups: Vec<GroupView>,
    dropped: u64,
}

/// Failures that are the same.
#[derive(Serialize)]
struct GroupView {
    group_hash: String,
    kind: String,
    malformed: bool,
    count: u64,
    first_at: Option<String>,
    last_at: Option<String>,
    last_id: String,
    last_what: String,
    places: Vec<String>,
}

#[derive(Serialize)]
struct One {
    error: ErrorView,
}

/// One failure.
#[derive(Serialize)]
struct ErrorView {
    id: String,
    occurred_at: Option<String>,
    user_message: String,
    what: String,
    domain: String,
    kind: String,
    code: &'static str,
    malformed: bool,
    retry_after_ms: Option<u64>,
    machine: String,
    node: String,
    ward: String,
    incarnation: u64,
    group_hash: String,
    request_id: String,
    trace_id: String,
    causes: Vec<String>,
    hops: Vec<HopView>,
    related_ids: Vec<String>,
    truncated: Vec<String>,
}

/// One machine's part of the stack.
#[derive(Serialize)]
struct HopView {
    machine: String,
    node: String,
    ward: String,
    incarnation: u64,
    method: String,
    entered_at: Option<String>,
    sites: Vec<String>,
}

/// `error ls`, `error show`.
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
                Format::Table | Format::Wide => show(&error, out)?,
            }
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

fn show(error: &Error, out: &Out) -> Result<(), Failure> {
    let view = ErrorView::from(error);
    let mut table = Table::bare();
    let mut row = |key: &str, value: String| {
        if !value.is_empty() {
            table.row([key.into(), value.into()]);
        }
    };
    row("error", view.id);
    row("user sees", format!("\"{}\"", view.user_message));
    row("what", view.what);
    for cause in view.causes {
        row("because", cause);
    }
    let bug = if view.malformed { ": nobody modelled it, so it is a bug" } else { "" };
    row("kind", format!("{}/{}, {}{bug}", view.domain, view.kind, view.code));
    row(
        "when",
        moment(error.occurred_at).map(|at| at.format("%F %T%.3f UTC").to_string()).unwrap_or_default(),
    );
    row("where", place(error));
    row(
        "again",
        match view.retry_after_ms {
            Some(0) => "may help".to_owned(),
            Some(ms) => format!("may help, after {}", length(Some(ms))),
            None => "is no use".to_owned(),
        },
    );
    row("same as", format!("{}  (wardkeep error ls)", view.group_hash));
    row("request", view.request_id);
    row("trace", view.trace_id);
    row("related", view.related_ids.join(" "));
    row("cut", view.truncated.join(" "));
    out.text(&table.render(out))?;
    out.line("\nSTACK, from the start of the call to where it arose")?;
    out.text(&stack(&view.hops).render(out))
}

fn place(error: &Error) -> String {
    let mut parts = vec![format!("machine {}", error.machine)];
    if !error.node.is_empty() {
        parts.push(format!("node {}", error.node));
    }
    if !error.ward.is_empty() {
        parts.push(format!("ward {} incarnation {}", error.ward, error.incarnation));
    }
    parts.join(", ")
}

fn stack(hops: &[HopView]) -> Table {
    let mut table = Table::new(["#", "MACHINE", "NODE/WARD", "ENTERED", "METHOD AND SITES"]);
    for (n, hop) in hops.iter().enumerate() {
        let ward = match (hop.node.as_str(), hop.ward.as_str()) {
            ("", _) => "(caller)".to_owned(),
            (node, "") => node.to_owned(),
            (node, ward) => format!("{node}/{ward}"),
        };
        let entered = hop.entered_at.as_deref().and_then(|at| at.get(11..23)).unwrap_or("-");
        let mut what: Vec<&str> = vec![&hop.method];
        what.extend(hop.sites.iter().map(String::as_str));
        what.retain(|text| !text.is_empty());
        let what = if what.is_empty() { "-".to_owned() } else { what.join(" at ") };
        table.row([n.to_string().into(), (&hop.machine).into(), ward.into(), entered.into(), what.into()]);
    }
    table
}

impl From<&ErrorGroup> for GroupView {
    fn from(group: &ErrorGroup) -> Self {
        Self {
            group_hash: group.group_hash.clone(),
            kind: format!("{}/{}", group.domain, group.kind),
            malformed: group.malformed,
            count: group.count,
            first_at: rfc3339(group.first_at),
            last_at: rfc3339(group.last_at),
            last_id: group.last_id.clone(),
            last_what: group.last_what.clone(),
            places: group.places.clone(),
        }
    }
}

impl From<&Error> for ErrorView {
    fn from(error: &Error) -> Self {
        Self {
            id: error.id.clone(),
            occurred_at: rfc3339(error.occurred_at),
            user_message: error.user_message.clone(),
            what: error.what.clone(),
            domain: error.domain.clone(),
            kind: error.kind.clone(),
            code: code_name(error.code),
            malformed: error.malformed,
            retry_after_ms: error.transitory.then(|| millis(error.retry_delay).unwrap_or(0)),
            machine: error.machine.clone(),
            node: error.node.clone(),
            ward: error.ward.clone(),
            incarnation: error.incarnation,
            group_hash: error.group_hash.clone(),
            request_id: error.request_id.clone(),
            trace_id: error.trace_id.clone(),
            causes: error.causes.iter().map(|cause| cause.what.clone()).collect(),
            hops: error.hops.iter().map(HopView::from).collect(),
            related_ids: error.related_ids.clone(),
            truncated: error.truncated.clone(),
        }
    }
}

impl From<&Hop> for HopView {
    fn from(hop: &Hop) -> Self {
        Self {
            machine: hop.machine.clone(),
            node: hop.node.clone(),
            ward: hop.ward.clone(),
            incarnation: hop.incarnation,
            method: hop.method.clone(),
            entered_at: rfc3339(hop.entered_at),
            sites: hop.sites.iter().map(|site| format!("{}:{}", site.file, site.line)).collect(),
        }
    }
}

/// gRPC's own spelling.
fn code_name(code: i32) -> &'static str {
    match Code::from_i32(code) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
