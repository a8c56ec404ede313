//! Why a ward or a node is where it is: how it stands now, what is left of the restart budget, and
//! the story that led there, with the errors to look up.

use chrono::{DateTime, Utc};
use serde::Serialize;
use wardkeep_proto::v1::{Event, Fleet, Group, Node, Ward, WatchEventsRequest};
use wardkeep_steward::MAX_DEPTH;

use super::{
    args::{ExplainArgs, Format},
    connect::{Session, name_of},
    events::{self, since},
    exit::{Exit, Failure},
    human::{age, length, node_state, ward_state},
    resolve,
    status::now,
    table::Table,
    tell::{self, Sentence},
    view::{Document, HistoryView, NodeView, WardView, millis, moment, rfc3339},
};

/// So many events are told, unless asked for more.
const EVENTS: u32 = 100;

/// What is explained.
enum Subject {
    Node(String),
    Ward(String, String),
}

#[derive(Serialize)]
struct Explanation {
    subject: String,
    kind: &'static str,
    /// As it is now; null: not known to this supervisor, which tells of what was.
    ward: Option<WardView>,
    node: Option<NodeView>,
    budget: Option<Budget>,
    /// Of the groups that one is in, innermost first.
    outer_budgets: Vec<Budget>,
    story: Vec<Line>,
    history: HistoryView,
}

/// What is left of the restarts allowed.
#[derive(Serialize)]
struct Budget {
    group: String,
    recent: u32,
    intensity: u32,
    left: u32,
    period_ms: Option<u64>,
    gave_up: bool,
}

#[derive(Serialize)]
struct Line {
    at: Option<String>,
    text: String,
    error_id: Option<String>,
    actor: Option<String>,
    sequences: Vec<u64>,
}

/// `explain`.
///
/// # Errors
/// The supervisor cannot be asked; neither it nor its history knows the name.
pub(crate) async fn run(session: &Session, args: &ExplainArgs) -> Result<Exit, Failure> {
    let mut operator = session.operator().await?;
    let fleet = session.fleet(&mut operator).await?;
    let (subject, unknown) = match subject(&fleet, &args.name) {
        Ok(subject) => (subject, None),
        // It may have been there once.
        Err(failure) if failure.exit == Exit::NotFound => (named(&args.name), Some(failure)),
        Err(failure) => return Err(failure),
    };
    let (node, ward) = match &subject {
        Subject::Node(node) => (node.clone(), String::new()),
        Subject::Ward(node, ward) => (node.clone(), ward.clone()),
    };
    let limit = args.limit.unwrap_or(EVENTS);
    let since = since(args.since.as_ref(), now(&fleet));
    let request =
        WatchEventsRequest { limit, since, node: node.clone(), ward: ward.clone(), ..Default::default() };
    let found = events::read(session, &mut operator, request).await?;
    let about = |event: &Event| event.node == node && (ward.is_empty() || event.ward == ward);
    if let Some(failure) = unknown
        && !found.iter().any(about)
    {
        return Err(failure);
    }
    show(session, &explanation(&fleet, &subject, &found), &fleet, &found)?;
    Ok(Exit::Ok)
}

fn named(name: &str) -> Subject {
    match name.split_once('/') {
        Some((node, ward)) => Subject::Ward(node.to_owned(), ward.to_owned()),
        None => Subject::Node(name.to_owned()),
    }
}

/// A node or a ward: a whole name beats a prefix, and what fits both is refused.
fn subject(fleet: &Fleet, name: &str) -> Result<Subject, Failure> {
    let of_ward = |ward: &Ward| Subject::Ward(ward.node.clone(), resolve::short_name(ward).to_owned());
    let of_node = |node: &Node| Subject::Node(name_of(node).to_owned());
    if name.contains('/') {
        return resolve::ward(fleet, name).map(of_ward);
    }
    if let Some(node) = fleet.nodes.iter().find(|node| name_of(node) == name) {
        return Ok(of_node(node));
    }
    match (resolve::node(fleet, name), resolve::ward(fleet, name)) {
        (Ok(node), Err(_)) => Ok(of_node(node)),
        (Ok(_), Ok(ward)) | (Err(_), Ok(ward)) if resolve::short_name(ward) == name => Ok(of_ward(ward)),
        (Err(_), Ok(ward)) => Ok(of_ward(ward)),
        (Ok(node), Ok(ward)) => Err(Failure::usage(format!(
            "{name:?} fits node {} and ward {}; give more of it",
            name_of(node),
            resolve::path(ward)
        ))),
        (Err(node), Err(ward)) => Err(if ward.exit == Exit::Usage { ward } else { node }),
    }
}

fn explanation(fleet: &Fleet, subject: &Subject, events: &[Event]) -> Explanation {
    let supervisor = fleet.supervisor.clone().unwrap_or_default();
    let history = HistoryView::from(&supervisor.history.unwrap_or_default());
    let story = tell::story(events, matches!(subject, Subject::Ward(..))).iter().map(Line::from).collect();
    match subject {
        Subject::Node(name) => {
            let node = fleet.nodes.iter().find(|node| name_of(node) == name).map(NodeView::from);
            Explanation {
                subject: name.clone(),
                kind: "node",
                ward: None,
                node,
                budget: None,
                outer_budgets: Vec::new(),
                story,
                history,
            }
        }
        Subject::Ward(node, name) => {
            let path = format!("{node}/{name}");
            let ward = fleet.wards.iter().find(|ward| resolve::path(ward) == path).map(WardView::from);
            let group = fleet.groups.iter().find(|group| group.members.contains(&path));
            let budget = group.map(Budget::from);
            let outer_budgets = group.map(|group| around(fleet, group)).unwrap_or_default();
            Explanation {
                subject: path,
                kind: "ward",
                ward,
                node: None,
                budget,
                outer_budgets,
                story,
                history,
            }
        }
    }
}

/// The groups a group is in.
fn around(fleet: &Fleet, group: &Group) -> Vec<Budget> {
    let named = |name: &str| fleet.groups.iter().find(|g| g.spec.as_ref().is_some_and(|s| s.name == name));
    let up = |group: &&Group| named(&group.spec.as_ref()?.parent);
    // A circle is possible in what was declared.
    std::iter::successors(Some(group), up).skip(1).take(MAX_DEPTH).map(Budget::from).collect()
}

fn show(session: &Session, told: &Explanation, fleet: &Fleet, events: &[Event]) -> Result<(), Failure> {
    let out = &session.out;
    match out.format {
        Format::Json | Format::Jsonl => out.json(&Document::new("wardkeep.explain/v1", told)),
        Format::Name => out.line(&told.subject),
        Format::Table | Format::Wide => {
            let mut head = Table::bare();
            headline(told, fleet).lines().for_each(|line| head.row([line.into()]));
            let mut text = head.render(out);
            text.push('\n');
            text.push_str(&table(told, events, now(fleet)).render(out));
            out.text(&text)
        }
    }
}

fn headline(told: &Explanation, fleet: &Fleet) -> String {
    let subject = &told.subject;
    let mut text = match (&told.ward, &told.node) {
        (Some(ward), _) => {
            let raw = fleet.wards.iter().find(|raw| resolve::path(raw) == *subject);
            let began = raw.and_then(|raw| raw.started_at);
            let word = ward_state(ward).0.replace('_', "-");
            let since = if began.is_some() {
                format!(", begun {} ago", age(began, now(fleet)))
            } else {
                String::new()
            };
            format!("{subject} is {word}: incarnation {}{since}\n", ward.incarnation)
        }
        (None, Some(node)) => {
            let word = node_state(node).0.replace('_', "-");
            format!("node {subject} is {word}: PID {} on {}, boot {}\n", node.pid, node.machine, node.boot_id)
        }
        (None, None) => format!("{subject} is not known to this supervisor now; this is what was\n"),
    };
    for budget in told.budget.iter().chain(&told.outer_budgets) {
        let used = format!(
            "{} of {} restarts used within {}",
            budget.recent,
            budget.intensity,
            length(budget.period_ms)
        );
        let left = if budget.gave_up {
            "the steward gave up; `wardkeep ward start` brings its wards back".to_owned()
        } else {
            format!("{} left", budget.left)
        };
        text.push_str(&format!("restart budget of group {}: {used}, {left}\n", budget.group));
    }
    if !told.history.durable {
        text.push_str("(history in memory only: what was before this supervisor began is not known)\n");
    }
    text
}

fn table(told: &Explanation, events: &[Event], now: DateTime<Utc>) -> Table {
    // The day is told where it is not today.
    let today =
        events.iter().filter_map(|event| moment(event.at)).all(|at| at.date_naive() == now.date_naive());
    let format = if today { "%H:%M:%S%.3fZ" } else { "%F %H:%M:%SZ" };
    let mut table = Table::bare();
    if told.story.is_empty() {
        table.row(["".into(), "nothing is known to have happened".into()]);
    }
    for line in &told.story {
        let at = line.at.as_deref().and_then(|at| at.parse::<DateTime<Utc>>().ok());
        let at = at.map(|at| at.format(format).to_string()).unwrap_or_default();
        table.row([at.into(), (&line.text).into()]);
        if let Some(id) = &line.error_id {
            table.row(["".into(), format!("-> wardkeep error show {id}").into()]);
        }
    }
    table
}

impl From<&Sentence> for Line {
    fn from(sentence: &Sentence) -> Self {
        Self {
            at: rfc3339(sentence.at),
            text: sentence.text.clone(),
            error_id: sentence.error_id.clone(),
            actor: sentence.actor.clone(),
            sequences: sentence.sequences.clone(),
        }
    }
}

impl From<&Group> for Budget {
    fn from(group: &Group) -> Self {
        let spec = group.spec.clone().unwrap_or_default();
        let left = spec.intensity.saturating_sub(group.recent_restarts);
        Self {
            group: spec.name,
            recent: group.recent_restarts,
            intensity: spec.intensity,
            left: if group.gave_up { 0 } else { left },
            period_ms: millis(spec.period),
            gave_up: group.gave_up,
        }
    }
}
