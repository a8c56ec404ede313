//! What the history tells the steward of a supervisor that starts: restarts already counted, wards
//! that rest, restarts that were decided and not seen through.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::Utc;
use uuid::Uuid;
use wardkeep_proto::v1;
use wardkeep_steward::{Cause, GroupEnd, Memory, Rest, Resume, Time, WardId};

use super::{
    intent::{Aim, Intent},
    store::{Millis, State, millis},
};

/// Restarts older than this count for nothing, whatever the group's period.
pub(in crate::daemon) const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// From when on decisions matter.
pub(super) fn since() -> Millis {
    Utc::now().timestamp_millis().saturating_sub(i64::try_from(REMEMBERED.as_millis()).unwrap_or(0))
}

/// `now`, and what time it then is on the steward's clock.
pub(in crate::daemon) fn recall(state: &State, now: Millis, time: Time) -> Memory {
    let clock = Clock { now, time };
    let mut memory = Memory::default();
    let mut boots: BTreeMap<&str, u128> = BTreeMap::new();
    for event in &state.decisions {
        match event.kind() {
            v1::EventKind::NodeAttended => attended(&mut memory, &mut boots, event),
            _ => decided(&mut memory, event, clock),
        }
    }
    for (id, ward) in &mut memory.wards {
        ward.boot = boots.get(&*id.node).copied().unwrap_or_default();
    }
    for ((node, ward), quarantined) in &state.holds {
        let rests = if *quarantined { Rest::Quarantined } else { Rest::Down };
        memory.wards.entry(WardId::new(node.as_str(), ward.as_str())).or_default().rests = Some(rests);
    }
    for intent in state.intents.iter().filter(|intent| intent.aim.is_restart()) {
        resume(&mut memory, intent, clock);
    }
    memory
}

#[derive(Clone, Copy)]
struct Clock {
    now: Millis,
    time: Time,
}

impl Clock {
    fn at(self, at: Millis) -> Time {
        let apart = Duration::from_millis(self.now.abs_diff(at));
        if at > self.now { self.time.saturating_add(apart) } else { self.time.saturating_sub(apart) }
    }

    /// In the past, even if the clock was set back since.
    fn past(self, at: Millis) -> Time {
        self.at(at.min(self.now))
    }
}

/// Another boot: what was counted of its wards is of a process that is gone.
fn attended<'a>(memory: &mut Memory, boots: &mut BTreeMap<&'a str, u128>, event: &'a v1::Event) {
    let boot = boot(&event.boot_id);
    if boots.insert(&event.node, boot) != Some(boot) {
        for (_, ward) in memory.wards.iter_mut().filter(|(id, _)| *id.node == *event.node) {
            ward.restarts = 0;
        }
    }
}

fn decided(memory: &mut Memory, event: &v1::Event, clock: Clock) {
    use v1::EventKind as K;
    let Some(decision) = &event.decision else { return };
    if decision.restarts_node {
        memory.escalated.insert(event.node.as_str().into(), clock.past(millis(event)));
        return begin_anew(memory, &decision.groups);
    }
    if event.group.is_empty() {
        return;
    }
    let about: Arc<str> = event.group.as_str().into();
    // Those that were written before groups could be in groups do not say whose restarts they are.
    let counts_for = if decision.group.is_empty() { about.clone() } else { decision.group.as_str().into() };
    let at = clock.past(millis(event));
    let ward = || WardId::new(event.node.as_str(), event.ward.as_str());
    match event.kind() {
        K::WardRestart => {
            begin_anew(memory, &decision.groups);
            memory.groups.entry(counts_for).or_default().push(at);
            let ward = memory.wards.entry(ward()).or_default();
            ward.decided.push(at);
            ward.restarts += 1;
        }
        K::GroupRestart => {
            begin_anew(memory, &decision.groups);
            memory.groups.entry(counts_for).or_default().push(at);
            memory.restarted.entry(about).or_default().push(at);
            memory.wards.entry(ward()).or_default().restarts += 1;
        }
        K::GroupGaveUp | K::GroupShutDown => {
            let gave_up = event.kind() == K::GroupGaveUp;
            decision.groups.iter().for_each(|group| drop(memory.ending.remove(group.as_str())));
            let ends = !decision.escalates_to.is_empty();
            // A group within another that nobody restarts is told of twice.
            if gave_up && (ends || memory.gave_up.insert(about.clone())) {
                memory.groups.entry(counts_for).or_default().push(at);
            }
            if ends {
                let recent = gave_up.then_some(decision.recent);
                memory.ending.insert(about, GroupEnd { recent, ward: ward(), cause: of_end(event) });
            } else if gave_up {
                memory.gave_up.extend(decision.groups.iter().map(|group| group.as_str().into()));
            }
        }
        // An operator who brings a ward back from quarantine forgives its group, and those that is in.
        K::Operator if decision.recent == 0 => {
            for group in decision.groups.iter().map(String::as_str).chain([&*about]) {
                memory.groups.remove(group);
                memory.gave_up.remove(group);
            }
        }
        _ => {}
    }
}

/// What was counted of these groups is forgotten.
fn begin_anew(memory: &mut Memory, groups: &[String]) {
    for group in groups.iter().map(String::as_str) {
        memory.groups.remove(group);
        memory.gave_up.remove(group);
        memory.ending.remove(group);
    }
}

fn of_end(event: &v1::Event) -> Cause {
    let error_id = event.error.as_ref().map(|error| error.id.as_str().into());
    let traceparent = Some(event.traceparent.as_str()).filter(|text| !text.is_empty()).map(Into::into);
    let reason = "its end was decided before this supervisor began".to_owned();
    Cause { reason, error_id, traceparent }
}

fn resume(memory: &mut Memory, intent: &Intent, clock: Clock) {
    let ward = memory.wards.entry(WardId::new(intent.node.as_str(), intent.ward.as_str())).or_default();
    let of = boot(&intent.boot);
    if ward.boot == 0 {
        ward.boot = of;
    }
    if ward.boot != of {
        return;
    }
    if intent.counted {
        // It counts when it is started.
        ward.restarts = ward.restarts.saturating_sub(1);
    }
    ward.resume = Some(Resume {
        incarnation: intent.incarnation,
        due: clock.at(intent.due_at).max(clock.time),
        // That of its group was counted for the ward that failed.
        free: intent.asked || intent.aim == Aim::RestartWithGroup,
        cause: cause(intent),
    });
}

/// Why it was decided, for whoever goes on with it.
pub(in crate::daemon) fn cause(intent: &Intent) -> Cause {
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    Cause {
        reason: format!("{}; decided before this supervisor began", intent.reason),
        error_id: some(&intent.error_id),
        traceparent: some(&intent.traceparent),
    }
}

fn boot(id: &str) -> u128 {
    Uuid::parse_str(id).map_or(0, |id| id.as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::history::intent::tests::intent;

    const BOOT: &str = "0198f3a2-1b4c-7aaa-8bbb-cccccccccccc";
    const NOW: Millis = 1_000_000_000;
    const TIME: Time = Duration::from_secs(90_000);

    fn event(kind: v1::EventKind, ago: i64, recent: u32) -> v1::Event {
        v1::Event {
            kind: kind.into(),
            at: Some(prost_types::Timestamp { seconds: NOW / 1_000 - ago, nanos: 0 }),
            node: "n".into(),
            ward: "w".into(),
            group: "g".into(),
            decision: Some(v1::Decision { recent, intensity: 3, ..Default::default() }),
            ..Default::default()
        }
    }

    fn attended(boot: &str) -> v1::Event {
        let kind = v1::EventKind::NodeAttended.into();
        v1::Event { kind, node: "n".into(), boot_id: boot.into(), ..Default::default() }
    }

    fn told(decisions: Vec<v1::Event>) -> Memory {
        recall(&State { decisions, ..State::default() }, NOW, TIME)
    }

    #[test]
    fn restarts_count_for_their_group_at_the_time_they_were_decided() {
        use v1::EventKind::{Operator, WardRestart};
        let memory = told(vec![
            attended(BOOT),
            event(WardRestart, 20, 1),
            event(WardRestart, 5, 2),
            event(Operator, 1, 2),
        ]);
        let at = |ago| TIME - Duration::from_secs(ago);
        assert_eq!(memory.groups["g"], [at(20), at(5)]);
        let ward = &memory.wards[&WardId::new("n", "w")];
        assert_eq!((ward.restarts, &ward.decided[..]), (2, &[at(20), at(5)][..]));
        // Of another boot, a ward's own count begins anew, its group's does not.
        let memory = told(vec![
            attended(BOOT),
            event(WardRestart, 20, 1),
            attended("0198f3a2-1b4c-7aaa-8bbb-dddddddddddd"),
        ]);
        assert_eq!((memory.wards[&WardId::new("n", "w")].restarts, memory.groups["g"].len()), (0, 1));
    }

    #[test]
    fn a_node_that_was_restarted_for_its_wards_is_known_and_their_group_begins_anew() {
        use v1::EventKind::{NodeRestart, WardRestart};
        let mut restarted = event(NodeRestart, 5, 1);
        let decision = restarted.decision.as_mut().unwrap();
        (decision.restarts_node, decision.groups) = (true, vec!["g".to_owned()]);
        let memory = told(vec![event(WardRestart, 20, 1), restarted, event(NodeRestart, 1, 1)]);
        assert_eq!(memory.escalated["n"], TIME - Duration::from_secs(5));
        assert!(!memory.groups.contains_key("g"));
    }

    #[test]
    fn what_an_operator_forgave_counts_no_more() {
        use v1::EventKind::{GroupGaveUp, Operator, WardRestart};
        let mut story = vec![event(WardRestart, 9, 1), event(GroupGaveUp, 8, 2), event(Operator, 7, 0)];
        assert!(!told(story.clone()).groups.contains_key("g"));
        story.push(event(WardRestart, 2, 1));
        assert_eq!(told(story).groups["g"].len(), 1);
    }

    #[test]
    fn groups_in_groups_count_where_they_are_in_and_begin_anew_when_they_are_restarted() {
        use v1::EventKind::{GroupGaveUp, GroupRestart, Operator, WardRestart};
        let of = |kind, ago, of: &str, groups: &[&str], escalates_to: &str| {
            let event = event(kind, ago, 1);
            let groups = groups.iter().map(ToString::to_string).collect();
            let (group, escalates_to) = (of.into(), escalates_to.into());
            let gave_up = kind == GroupGaveUp;
            let decision =
                v1::Decision { recent: 1, group, groups, escalates_to, gave_up, ..Default::default() };
            v1::Event { decision: Some(decision), ..event }
        };
        let at = |ago| TIME - Duration::from_secs(ago);
        let mut story = vec![event(WardRestart, 9, 1), of(GroupGaveUp, 8, "g", &["g", "i"], "p")];
        let memory = told(story.clone());
        assert_eq!((memory.groups["g"].len(), memory.ending["g"].recent), (2, Some(1)));
        assert!(memory.gave_up.is_empty());
        story.push(of(GroupRestart, 7, "p", &["g", "i"], ""));
        let memory = told(story.clone());
        assert_eq!((memory.groups.get("g"), &memory.groups["p"][..]), (None, &[at(7)][..]));
        assert_eq!((&memory.restarted["g"][..], memory.ending.len()), (&[at(7)][..], 0));
        // The one it is in gives up.
        story.push(of(GroupGaveUp, 6, "g", &["g", "i"], "p"));
        story.push(v1::Event { group: "p".into(), ..of(GroupGaveUp, 6, "p", &["p", "g", "i"], "") });
        let memory = told(story.clone());
        assert_eq!((memory.gave_up.len(), memory.ending.len(), memory.groups["p"].len()), (3, 0, 2));
        let mut forgiven = of(Operator, 5, "g", &["g", "p"], "");
        forgiven.decision.as_mut().unwrap().recent = 0;
        story.push(forgiven);
        let memory = told(story);
        assert_eq!((memory.gave_up.len(), memory.groups.len()), (1, 0), "what was not brought back");
    }

    #[test]
    fn what_was_decided_is_due_when_it_was_due_and_its_reason_goes_with_it() {
        let half = Intent { boot: BOOT.into(), due_at: NOW + 5_000, ..intent(Aim::Restart, "w", 3) };
        let overdue =
            Intent { boot: BOOT.into(), due_at: NOW - 5_000, asked: true, ..intent(Aim::Restart, "x", 4) };
        let gone =
            Intent { boot: "0198f3a2-1b4c-7aaa-8bbb-dddddddddddd".into(), ..intent(Aim::Restart, "y", 4) };
        let stop = intent(Aim::Stop, "z", 4);
        let decisions =
            vec![attended(BOOT), v1::Event { ward: "y".into(), ..event(v1::EventKind::WardRestart, 9, 1) }];
        let holds = vec![(("n".to_owned(), "z".to_owned()), true)];
        let state = State { intents: vec![half, overdue, gone, stop], holds, decisions, ..State::default() };
        let memory = recall(&state, NOW, TIME);
        let of = |ward| &memory.wards[&WardId::new("n", ward)];
        let resume = of("w").resume.clone().unwrap();
        assert_eq!((resume.incarnation, resume.due, resume.free), (3, TIME + Duration::from_secs(5), false));
        assert!(resume.cause.reason.starts_with("it panicked; decided before"), "{resume:?}");
        let resume = of("x").resume.clone().unwrap();
        assert_eq!((resume.due, resume.free), (TIME, true));
        assert_eq!(of("y").resume, None, "its process is gone");
        assert_eq!((of("z").resume.clone(), of("z").rests), (None, Some(Rest::Quarantined)));
    }
}
