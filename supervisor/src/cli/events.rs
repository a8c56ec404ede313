//! What happened, in the order it happened.

use chrono::{DateTime, Utc};
use serde::Serialize;
use tonic::Request;
use wardkeep_proto::v1::{Event, WatchEventsRequest, operator_client::OperatorClient};

use super::{
    args::{EventsArgs, Format, Since},
    connect::{Line, Session},
    exit::{Exit, Failure},
    human::short_id,
    out::Out,
    status::now,
    table::Table,
    view::{Document, EventView, moment},
};

/// Widths of the columns before the text: events that come one by one line up.
const WIDTHS: [u16; 2] = [9, 16];
const WIDE_WIDTHS: [u16; 5] = [6, 24, 13, 18, 12];

/// So many are shown, unless asked for more.
const MOST: u32 = 10_000;

/// When that is, by this clock.
pub(crate) fn since(since: Option<&Since>, now: DateTime<Utc>) -> Option<prost_types::Timestamp> {
    let at = match since? {
        Since::Ago(ago) => now - *ago,
        Since::At(at) => *at,
    };
    Some(wardkeep_proto::timestamp(at))
}

#[derive(Serialize)]
struct Events {
    events: Vec<EventView>,
}

/// `events`: those kept, and with `-f` those to come.
///
/// # Errors
/// The supervisor cannot be asked, or went away.
pub(crate) async fn run(session: &Session, args: &EventsArgs) -> Result<Exit, Failure> {
    let mut operator = session.operator().await?;
    let since = match args.since {
        // By the supervisor's clock.
        Some(Since::Ago(_)) => since(args.since.as_ref(), now(&session.fleet(&mut operator).await?)),
        _ => since(args.since.as_ref(), Utc::now()),
    };
    let request = WatchEventsRequest { limit: args.limit.unwrap_or(MOST), since, ..Default::default() };
    if args.follow {
        return follow(session, &mut operator, request).await;
    }
    let events = read(session, &mut operator, request).await?;
    if args.limit.is_none() && events.len() >= MOST as usize {
        session.out.progress(&format!("(only the newest {MOST}; -n asks for more)"));
    }
    let out = &session.out;
    match out.format {
        Format::Json => {
            let events = events.iter().map(EventView::from).collect();
            out.json(&Document::new("wardkeep.events/v1", Events { events }))?;
        }
        Format::Jsonl | Format::Name => events.iter().try_for_each(|e| show(e, out))?,
        Format::Table | Format::Wide => out.text(&table(&events, out).render(out))?,
    }
    Ok(Exit::Ok)
}

/// The newest `limit` events that are kept (0: all), oldest first.
///
/// # Errors
/// The supervisor cannot be asked.
pub(crate) async fn last(
    session: &Session,
    operator: &mut OperatorClient<Line>,
    limit: u32,
) -> Result<Vec<Event>, Failure> {
    read(session, operator, WatchEventsRequest { limit, ..Default::default() }).await
}

/// The events asked for, oldest first.
///
/// # Errors
/// The supervisor cannot be asked.
pub(crate) async fn read(
    session: &Session,
    operator: &mut OperatorClient<Line>,
    request: WatchEventsRequest,
) -> Result<Vec<Event>, Failure> {
    let request = session.request(request);
    let collect = async {
        let mut stream = operator.watch_events(request).await?.into_inner();
        let mut events = Vec::new();
        while let Some(event) = stream.message().await? {
            events.push(event);
        }
        Ok(tonic::Response::new(events))
    };
    session.answer(&session.supervisor, collect).await
}

async fn follow(
    session: &Session,
    operator: &mut OperatorClient<Line>,
    request: WatchEventsRequest,
) -> Result<Exit, Failure> {
    // No deadline goes with the request: it would end the stream.
    let request = Request::new(WatchEventsRequest { follow: true, ..request });
    let mut stream = session.answer(&session.supervisor, operator.watch_events(request)).await?;
    let mut previous = 0;
    loop {
        let next = stream.message().await;
        let Some(event) = next.map_err(|status| Failure::from_status(&session.supervisor, &status))? else {
            let gone = format!("the supervisor at {} ended the stream", session.supervisor);
            return Err(Failure::new(Exit::Unreachable, gone));
        };
        let expected = previous + 1;
        if previous > 0 && event.sequence > expected {
            session.out.progress(&format!("(events {expected} to {} were dropped)", event.sequence - 1));
        }
        previous = event.sequence;
        show(&event, &session.out)?;
    }
}

/// One event by itself.
fn show(event: &Event, out: &Out) -> Result<(), Failure> {
    match out.format {
        Format::Json | Format::Jsonl => {
            // Documents that follow each other are lines, whatever stdout is.
            let lines = Out { format: Format::Jsonl, ..*out };
            lines.json(&Document::new("wardkeep.event/v1", EventView::from(event)))
        }
        Format::Name => out.line(&event.sequence.to_string()),
        Format::Table | Format::Wide => {
            let mut table = Table::bare();
            add(&mut table, event, out.format);
            table.at_least(if out.format == Format::Wide { &WIDE_WIDTHS } else { &WIDTHS });
            out.text(&table.render(out))
        }
    }
}

/// Events for eyes.
pub(crate) fn table(events: &[Event], out: &Out) -> Table {
    let wide = out.format == Format::Wide;
    let mut table = if wide {
        Table::new(["SEQ", "TIME", "KIND", "WHERE", "ACTOR", "WHAT HAPPENED"])
    } else {
        Table::new(["TIME", "WHERE", "WHAT HAPPENED"])
    };
    for event in events {
        add(&mut table, event, out.format);
    }
    table
}

fn add(table: &mut Table, event: &Event, format: Format) {
    let view = EventView::from(event);
    let place = match (view.node, view.ward) {
        (Some(node), Some(ward)) => format!("{node}/{ward}"),
        (node, ward) => node.or(ward).unwrap_or_else(|| "-".to_owned()),
    };
    let mut text = view.text;
    if let Some(error) = view.error.filter(|e| !e.id.is_empty() && !text.contains(&e.id)) {
        let id = if format == Format::Wide { error.id } else { short_id(&error.id) };
        text.push_str(&format!(" [error {id}]"));
    }
    if format == Format::Wide {
        let actor = view.actor.unwrap_or_default();
        let sequence = view.sequence.to_string();
        let at = view.at.unwrap_or_default();
        table.row([sequence.into(), at.into(), view.kind.into(), place.into(), actor.into(), text.into()]);
    } else {
        let at = moment(event.at).map(|at| at.format("%H:%M:%SZ").to_string()).unwrap_or_default();
        table.row([at.into(), place.into(), text.into()]);
    }
}
