//! Events as a story: sentences for a person at 3 a.m., oldest first. Events that belong together
//! make one sentence; what led to what stands beside each other.

use std::collections::BTreeSet;

use prost_types::Timestamp;
use wardkeep_proto::v1::{Event, EventKind, Verdict};

use super::{
    exit::one_line,
    human::length,
    view::{millis, moment},
};

/// A reason that was told so few events before is not told again.
const NEARBY: usize = 5;

/// One sentence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sentence {
    pub(crate) at: Option<Timestamp>,
    pub(crate) text: String,
    /// The error it rests on, where it has not been named before.
    pub(crate) error_id: Option<String>,
    pub(crate) actor: Option<String>,
    /// Sequences of the events it was made of.
    pub(crate) sequences: Vec<u64>,
}

/// Tells events, of one ward or one node, in order.
pub(crate) fn story(events: &[Event], of_ward: bool) -> Vec<Sentence> {
    let mut told = Vec::new();
    let mut named = BTreeSet::new();
    let mut rest = events;
    while let Some((event, after)) = rest.split_first() {
        let joined = after.first().filter(|next| belongs(event, next));
        rest = if joined.is_some() { &after[1..] } else { after };
        let before = &events[..events.len() - after.len() - 1];
        let text = match joined {
            Some(verdict) => ended_badly(event, verdict),
            None => sentence(event, before),
        };
        let place =
            if of_ward || event.ward.is_empty() { String::new() } else { format!("{}: ", event.ward) };
        let id = event.error.as_ref().map(|error| error.id.clone()).filter(|id| !id.is_empty());
        told.push(Sentence {
            at: event.at,
            text: one_line(&format!("{place}{text}")),
            error_id: id.filter(|id| named.insert(id.clone())),
            actor: (!event.actor.is_empty()).then(|| event.actor.clone()),
            sequences: std::iter::once(event).chain(joined).map(|event| event.sequence).collect(),
        });
    }
    told
}

/// An end, and the verdict on it.
fn belongs(event: &Event, next: &Event) -> bool {
    let same = (&event.node, &event.ward, event.incarnation) == (&next.node, &next.ward, next.incarnation);
    event.kind() == EventKind::WardStopped && next.kind() == EventKind::WardVerdict && same
}

fn ended_badly(end: &Event, verdict: &Event) -> String {
    format!("{}, which is a crash{}", end.text, evidence(verdict))
}

fn sentence(event: &Event, before: &[Event]) -> String {
    let text = &event.text;
    match event.kind() {
        EventKind::NodeAttended | EventKind::NodeLeft | EventKind::NodeRestart | EventKind::NodeDraining => {
            format!("node {}: {text}", event.node)
        }
        EventKind::NodeVerdict => format!("node {}: {text}{}", event.node, silence(event)),
        EventKind::WardVerdict | EventKind::WardStopped => format!("{text}{}", evidence(event)),
        EventKind::WardRestart | EventKind::GroupRestart => decision(event, before),
        EventKind::GroupShutDown => group_ends(event).unwrap_or_else(|| text.clone()),
        EventKind::WardStarted => format!("{text}{}", since_it_failed(event, before)),
        EventKind::GroupGaveUp => gave_up(event),
        EventKind::Operator => asked(event).unwrap_or_else(|| text.clone()),
        EventKind::Steward if !event.node.is_empty() => format!("the steward {text}"),
        EventKind::Steward | EventKind::Unspecified => text.clone(),
    }
}

/// What was last known of a ward that is judged.
fn evidence(event: &Event) -> String {
    let Some(evidence) = &event.evidence else { return String::new() };
    let mut known = Vec::new();
    if let Some(ms) = millis(evidence.last_pulse) {
        known.push(format!("last sign of life {} before", length(Some(ms))));
    }
    if let Some(ms) = millis(evidence.oldest_work) {
        known.push(format!("its oldest work was {} old", length(Some(ms))));
    }
    if known.is_empty() { String::new() } else { format!("; {}", known.join(", ")) }
}

fn silence(event: &Event) -> String {
    let last = event.evidence.as_ref().and_then(|evidence| millis(evidence.last_report));
    last.map(|ms| format!("; its last report came {} before", length(Some(ms)))).unwrap_or_default()
}

fn decision(event: &Event, before: &[Event]) -> String {
    let Some(decision) = &event.decision else {
        // "told to start: why"; the why is told where it was decided.
        let reason = event.text.split_once(": ").map_or("", |(_, reason)| reason);
        let mut latest = before.iter().rev().filter(|e| same_ward(e, event)).take(NEARBY);
        let known = reason.is_empty() || latest.any(|before| before.text.contains(reason));
        let why = if known { String::new() } else { format!(": {reason}") };
        return format!("it was told to start{why}");
    };
    let pause = match millis(decision.delay) {
        None | Some(0) => "at once".to_owned(),
        pause => format!("after a pause of {}", length(pause)),
    };
    let period = length(millis(decision.period));
    let (recent, intensity) = (decision.recent, decision.intensity);
    let (what, of) = match event.kind() {
        EventKind::GroupRestart => {
            (format!("group {} as a whole", event.group), format!(" of group {}", decision.group))
        }
        _ => ("it".to_owned(), String::new()),
    };
    let others = match &decision.groups[..] {
        [] => String::new(),
        [one] if *one == event.group => String::new(),
        groups => format!("; anew begin the groups {}", groups.join(", ")),
    };
    format!(
        "the steward decided to restart {what} {pause}: restart {recent} of {intensity} allowed{of} within {period}{others}"
    )
}

/// A group ends, and what follows is another's to decide.
fn group_ends(event: &Event) -> Option<String> {
    let decision = event.decision.as_ref().filter(|decision| !decision.escalates_to.is_empty())?;
    let parent = &decision.escalates_to;
    let what = if event.kind() == EventKind::GroupShutDown {
        format!("group {} shuts down, for its significant members have ended", event.group)
    } else {
        let period = length(millis(decision.period));
        format!(
            "group {} ends: {} restarts within {period}, {} are allowed (the last for {}/{})",
            event.group, decision.recent, decision.intensity, event.node, event.ward
        )
    };
    Some(format!("{what}; group {parent}, which it is in, restarts it or gives up"))
}

fn gave_up(event: &Event) -> String {
    let Some(decision) = &event.decision else { return event.text.clone() };
    if let Some(text) = group_ends(event) {
        return text;
    }
    let period = length(millis(decision.period));
    format!(
        "the steward gave up: {} restarts of group {} within {period}, {} are allowed (the last for {}/{}); \
         the group is quarantined until an operator starts its wards",
        decision.recent, event.group, decision.intensity, event.node, event.ward
    )
}

/// "ana@ops asked for a restart: deploy".
fn asked(event: &Event) -> Option<String> {
    let (verb, _) = event.text.split_once(": ")?;
    let verb = verb.trim_end_matches(" asked for");
    let who = if event.actor.is_empty() { "an operator" } else { &event.actor };
    let why = event.text.split_once(" asked for it: ").map(|(_, why)| format!(": {why}"));
    Some(format!("{who} asked for: {verb}{}", why.unwrap_or_else(|| ", and gave no reason".to_owned())))
}

/// How long after its failure a ward runs again.
fn since_it_failed(event: &Event, before: &[Event]) -> String {
    let of_it = before.iter().rev().filter(|e| same_ward(e, event));
    let failed = |e: &&Event| matches!(e.verdict(), Verdict::Crashed | Verdict::Stalled);
    let begun = |e: &&Event| e.kind() != EventKind::WardStarted;
    let failure = of_it.take_while(begun).find(failed);
    let apart = failure.and_then(|failure| Some(moment(event.at)? - moment(failure.at)?));
    match apart.and_then(|apart| u64::try_from(apart.num_milliseconds()).ok()) {
        Some(ms) => format!(", {} after that failure", length(Some(ms))),
        None => String::new(),
    }
}

fn same_ward(a: &Event, b: &Event) -> bool {
    (&a.node, &a.ward) == (&b.node, &b.ward)
}

#[cfg(test)]
mod tests {
    use wardkeep_proto::v1;

    use super::*;

    fn length_of(ms: i64) -> Option<prost_types::Duration> {
        let nanos = i32::try_from(ms % 1_000 * 1_000_000).unwrap();
        Some(prost_types::Duration { seconds: ms / 1_000, nanos })
    }

    fn event(n: u64, kind: EventKind, text: &str) -> Event {
        Event {
            sequence: n,
            at: Some(Timestamp { seconds: 1_000 + i64::try_from(n).unwrap(), nanos: 0 }),
            kind: kind.into(),
            node: "n".into(),
            ward: "w".into(),
            group: "g".into(),
            incarnation: 3,
            text: text.into(),
            ..Default::default()
        }
    }

    fn crash() -> Vec<Event> {
        let error = Some(v1::Error { id: "e-1".into(), ..Default::default() });
        let evidence = Some(v1::Evidence {
            last_pulse: length_of(200),
            oldest_work: length_of(1_300),
            ..Default::default()
        });
        let decision = v1::Decision {
            recent: 2,
            intensity: 5,
            period: length_of(30_000),
            delay: length_of(400),
            ..Default::default()
        };
        let verdict = Verdict::Crashed.into();
        vec![
            Event {
                error: error.clone(),
                ..event(1, EventKind::WardStopped, "incarnation 3 panicked: boom")
            },
            Event {
                error: error.clone(),
                evidence,
                verdict,
                ..event(2, EventKind::WardVerdict, "incarnation 3 crashed: boom")
            },
            Event {
                error: error.clone(),
                decision: Some(decision),
                ..event(3, EventKind::WardRestart, "restart 2 of 5 allowed, in 400 ms: boom")
            },
            Event { error, ..event(4, EventKind::WardRestart, "told to start: boom") },
            event(5, EventKind::WardStarted, "runs, incarnation 4"),
        ]
    }

    fn told(events: &[Event]) -> Vec<String> {
        story(events, true).into_iter().map(|sentence| sentence.text).collect()
    }

    #[test]
    fn a_crash_and_what_came_of_it() {
        let told = story(&crash(), true);
        let texts: Vec<_> = told.iter().map(|sentence| sentence.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "incarnation 3 panicked: boom, which is a crash; last sign of life 200ms before, its oldest work was 1.3s old",
                "the steward decided to restart it after a pause of 400ms: restart 2 of 5 allowed within 30s",
                "it was told to start",
                "runs, incarnation 4, 3s after that failure",
            ]
        );
        let ids: Vec<_> = told.iter().filter_map(|sentence| sentence.error_id.as_deref()).collect();
        assert_eq!(ids, ["e-1"], "named once");
        assert_eq!(told[0].sequences, [1, 2]);
    }

    #[test]
    fn operators_are_named_with_their_reasons() {
        let asked = |text: &str, actor: &str| {
            told(&[Event { actor: actor.into(), ..event(1, EventKind::Operator, text) }]).remove(0)
        };
        assert_eq!(
            asked("restart asked for: ana@ops asked for it: deploy: now", "ana@ops"),
            "ana@ops asked for: restart: deploy: now"
        );
        assert_eq!(
            asked("drain: an operator asked for it", ""),
            "an operator asked for: drain, and gave no reason"
        );
        assert_eq!(asked("nothing known", ""), "nothing known");
    }

    #[test]
    fn giving_up_says_how_many_of_how_many_and_who_was_the_last() {
        let decision = v1::Decision {
            recent: 4,
            intensity: 3,
            period: length_of(5_000),
            gave_up: true,
            ..Default::default()
        };
        let text =
            told(&[Event { decision: Some(decision), ..event(1, EventKind::GroupGaveUp, "x") }]).remove(0);
        assert!(
            text.starts_with(
                "the steward gave up: 4 restarts of group g within 5s, 3 are allowed (the last for n/w)"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_start_that_nothing_before_explains_says_why() {
        let start = event(1, EventKind::WardRestart, "told to start: its node attends");
        assert_eq!(told(&[start]), ["it was told to start: its node attends"]);
    }

    #[test]
    fn in_a_nodes_story_wards_are_named_and_silence_is_measured() {
        let evidence = Some(v1::Evidence { last_report: length_of(2_500), ..Default::default() });
        let lost = Event {
            ward: String::new(),
            evidence,
            ..event(1, EventKind::NodeVerdict, "unreachable: nothing heard for 2.5 s")
        };
        let told = story(&[lost, event(2, EventKind::WardStarted, "runs, incarnation 4")], false);
        assert_eq!(
            told[0].text,
            "node n: unreachable: nothing heard for 2.5 s; its last report came 2.5s before"
        );
        assert_eq!(told[1].text, "w: runs, incarnation 4");
    }

    #[test]
    fn what_a_peer_wrote_stays_one_line() {
        assert!(told(&[event(1, EventKind::WardStopped, "a\nb\u{1b}[2J")])[0].lines().count() == 1);
        assert!(!told(&[event(1, EventKind::WardStopped, "a\u{1b}[2J")])[0].contains('\u{1b}'));
    }
}
