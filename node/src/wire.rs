//! Between the wire's messages and the steward's vocabulary. Used by both homes of the steward:
//! the node itself and the supervisor.

use std::{ops::Range, time::Duration};

use wardkeep_proto::{duration, v1};
use wardkeep_steward as steward;

/// An absent or negative duration is `None`, and so is nonsense.
pub fn to_duration(d: Option<prost_types::Duration>) -> Option<Duration> {
    // Not prost's own conversion: it normalises first, which overflows on the most negative values.
    let d = d?;
    let nanos = u32::try_from(d.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(d.seconds).ok()?, nanos))
}

/// A spec as the steward knows it.
pub fn ward_spec(spec: &v1::WardSpec) -> steward::WardSpec {
    steward::WardSpec {
        name: spec.name.as_str().into(),
        group: (!spec.group.is_empty()).then(|| spec.group.as_str().into()),
        restart: restart(spec.restart()),
        stall_timeout: to_duration(spec.stall_timeout),
        pulse_timeout: to_duration(spec.pulse_timeout),
        start_timeout: to_duration(spec.start_timeout),
        grace: to_duration(spec.grace).unwrap_or(Duration::from_secs(5)),
        manual_start: spec.manual_start,
        significant: spec.significant,
        in_process: matches!(spec.kind(), v1::WardKind::Service | v1::WardKind::Task),
    }
}

fn restart(restart: v1::Restart) -> steward::Restart {
    match restart {
        v1::Restart::Transient => steward::Restart::Transient,
        v1::Restart::Temporary => steward::Restart::Temporary,
        v1::Restart::Permanent | v1::Restart::Unspecified => steward::Restart::Permanent,
    }
}

fn restart_message(restart: steward::Restart) -> v1::Restart {
    match restart {
        steward::Restart::Permanent => v1::Restart::Permanent,
        steward::Restart::Transient => v1::Restart::Transient,
        steward::Restart::Temporary => v1::Restart::Temporary,
    }
}

/// A spec as the wire knows it.
pub fn ward_spec_message(spec: &steward::WardSpec, kind: v1::WardKind, services: &[String]) -> v1::WardSpec {
    v1::WardSpec {
        name: spec.name.to_string(),
        kind: kind.into(),
        group: spec.group.as_deref().unwrap_or_default().to_owned(),
        restart: restart_message(spec.restart).into(),
        stall_timeout: spec.stall_timeout.map(duration),
        pulse_timeout: spec.pulse_timeout.map(duration),
        start_timeout: spec.start_timeout.map(duration),
        grace: Some(duration(spec.grace)),
        services: services.to_vec(),
        manual_start: spec.manual_start,
        significant: spec.significant,
    }
}

/// A group as the steward knows it; what the message leaves open gets the default.
pub fn group_spec(spec: &v1::GroupSpec) -> steward::GroupSpec {
    let default = steward::GroupSpec::new(spec.name.as_str());
    steward::GroupSpec {
        strategy: match spec.strategy() {
            v1::Strategy::OneForAll => steward::Strategy::OneForAll,
            v1::Strategy::RestForOne => steward::Strategy::RestForOne,
            v1::Strategy::OneForOne | v1::Strategy::Unspecified => steward::Strategy::OneForOne,
        },
        intensity: spec.intensity,
        period: to_duration(spec.period).unwrap_or(default.period),
        backoff: steward::Backoff {
            first: to_duration(spec.backoff_first).unwrap_or(default.backoff.first),
            max: to_duration(spec.backoff_max).unwrap_or(default.backoff.max),
            reset: to_duration(spec.backoff_reset).unwrap_or(default.backoff.reset),
        },
        parent: (!spec.parent.is_empty()).then(|| spec.parent.as_str().into()),
        restart: restart(spec.restart()),
        significant: spec.significant,
        auto_shutdown: match spec.auto_shutdown() {
            v1::AutoShutdown::AnySignificant => steward::AutoShutdown::AnySignificant,
            v1::AutoShutdown::AllSignificant => steward::AutoShutdown::AllSignificant,
            v1::AutoShutdown::Never | v1::AutoShutdown::Unspecified => steward::AutoShutdown::Never,
        },
        escalate: match spec.escalate() {
            v1::Escalate::Quarantine => steward::Escalate::Quarantine,
            v1::Escalate::Node | v1::Escalate::Unspecified => steward::Escalate::Node,
        },
        ..default
    }
}

/// A group as the wire knows it.
pub fn group_spec_message(spec: &steward::GroupSpec) -> v1::GroupSpec {
    v1::GroupSpec {
        name: spec.name.to_string(),
        strategy: match spec.strategy {
            steward::Strategy::OneForOne => v1::Strategy::OneForOne,
            steward::Strategy::OneForAll => v1::Strategy::OneForAll,
            steward::Strategy::RestForOne => v1::Strategy::RestForOne,
        }
        .into(),
        intensity: spec.intensity,
        period: Some(duration(spec.period)),
        backoff_first: Some(duration(spec.backoff.first)),
        backoff_max: Some(duration(spec.backoff.max)),
        backoff_reset: Some(duration(spec.backoff.reset)),
        parent: spec.parent.as_deref().unwrap_or_default().to_owned(),
        restart: restart_message(spec.restart).into(),
        significant: spec.significant,
        auto_shutdown: match spec.auto_shutdown {
            steward::AutoShutdown::Never => v1::AutoShutdown::Never,
            steward::AutoShutdown::AnySignificant => v1::AutoShutdown::AnySignificant,
            steward::AutoShutdown::AllSignificant => v1::AutoShutdown::AllSignificant,
        }
        .into(),
        escalate: match spec.escalate {
            steward::Escalate::Node => v1::Escalate::Node,
            steward::Escalate::Quarantine => v1::Escalate::Quarantine,
        }
        .into(),
    }
}

/// Restarts of one group that are told of.
const MOST_RESTARTS: usize = 4_096;

/// Groups and counts that another steward leaves, on a clock that shows `now`. What was before its zero
/// is left out.
pub fn legacy(
    legacy: &v1::Legacy,
    now: Duration,
    boot: u128,
    ward: impl Fn(usize) -> Option<steward::WardId>,
) -> (Vec<steward::GroupSpec>, steward::Memory) {
    let at = |age: u32| now.checked_sub(Duration::from_millis(age.into()));
    let mut memory = steward::Memory::default();
    let mut specs = Vec::new();
    for group in &legacy.groups {
        let Some(spec) = group.spec.as_ref().filter(|spec| !spec.name.is_empty()).map(group_spec) else {
            continue;
        };
        let times = group.restart_ages_ms.iter().take(MOST_RESTARTS).filter_map(|age| at(*age));
        memory.groups.insert(spec.name.clone(), times.collect());
        specs.push(spec);
    }
    for told in &legacy.wards {
        let Some(id) = ward(told.slot as usize) else { continue };
        let failures = usize::try_from(told.failures).unwrap_or_default().min(steward::MOST_DECIDED);
        let decided = at(told.age_ms).map(|at| vec![at; failures]).unwrap_or_default();
        let known = steward::WardMemory { boot, restarts: told.restarts, decided, ..Default::default() };
        memory.wards.insert(id, known);
    }
    (specs, memory)
}

/// What the above reads, of a clock that shows `now`.
pub fn legacy_message(
    (specs, memory): &(Vec<steward::GroupSpec>, steward::Memory),
    now: Duration,
    slot: impl Fn(&steward::WardId) -> Option<u32>,
) -> v1::Legacy {
    let age = |at: Duration| u32::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u32::MAX);
    let groups = specs.iter().map(|spec| {
        let times = memory.groups.get(&spec.name).into_iter().flatten();
        v1::GroupLegacy {
            spec: Some(group_spec_message(spec)),
            restart_ages_ms: times.map(|at| age(*at)).collect(),
        }
    });
    let wards = memory.wards.iter().filter_map(|(id, known)| {
        Some(v1::WardLegacy {
            slot: slot(id)?,
            restarts: known.restarts,
            failures: u32::try_from(known.decided.len()).unwrap_or(u32::MAX),
            age_ms: known.decided.last().map(|at| age(*at)).unwrap_or_default(),
        })
    });
    v1::Legacy { groups: groups.collect(), wards: wards.collect() }
}

/// A phase as the wire knows it.
pub fn state(phase: steward::Phase) -> v1::WardState {
    match phase {
        steward::Phase::Stopped => v1::WardState::Stopped,
        steward::Phase::Starting => v1::WardState::Starting,
        steward::Phase::Running => v1::WardState::Running,
        steward::Phase::Stopping => v1::WardState::Stopping,
        steward::Phase::Backoff => v1::WardState::Backoff,
        steward::Phase::Quarantined => v1::WardState::Quarantined,
    }
}

/// A state as the steward knows it.
pub fn phase(state: v1::WardState) -> steward::Phase {
    match state {
        v1::WardState::Starting => steward::Phase::Starting,
        v1::WardState::Running => steward::Phase::Running,
        v1::WardState::Stopping => steward::Phase::Stopping,
        v1::WardState::Backoff => steward::Phase::Backoff,
        v1::WardState::Quarantined => steward::Phase::Quarantined,
        v1::WardState::Stopped | v1::WardState::Unknown | v1::WardState::Unspecified => {
            steward::Phase::Stopped
        }
    }
}

/// A verdict as the wire knows it.
pub fn verdict(verdict: steward::Verdict) -> v1::Verdict {
    match verdict {
        steward::Verdict::Healthy => v1::Verdict::Healthy,
        steward::Verdict::Crashed => v1::Verdict::Crashed,
        steward::Verdict::Stalled => v1::Verdict::Stalled,
        steward::Verdict::RuntimeStalled => v1::Verdict::RuntimeStalled,
        steward::Verdict::Unreachable => v1::Verdict::Unreachable,
    }
}

/// What a node says of a ward when its session begins.
pub fn ward_report(ward: &v1::Ward) -> steward::WardReport {
    steward::WardReport {
        spec: ward_spec(ward.spec.as_ref().unwrap_or(&v1::WardSpec::default())),
        phase: phase(ward.state()),
        incarnation: ward.incarnation,
        held: ward.held,
        failed: ward.failed,
    }
}

/// What a change of a ward tells the steward; `None` for news that is only for show.
pub fn ward_event(ward: steward::WardId, change: &v1::WardChange) -> Option<steward::Event> {
    let incarnation = change.incarnation;
    if let Some(exit) = &change.exit {
        let kind = match exit.kind() {
            v1::ExitKind::Done => steward::ExitKind::Done,
            v1::ExitKind::Failed | v1::ExitKind::Unspecified => steward::ExitKind::Failed,
            v1::ExitKind::Panicked => steward::ExitKind::Panicked,
            v1::ExitKind::Stopped => steward::ExitKind::Stopped,
            v1::ExitKind::Abandoned => steward::ExitKind::Abandoned,
            v1::ExitKind::StartFailed => steward::ExitKind::StartFailed,
        };
        let cause = exit_cause(exit);
        return Some(steward::Event::WardExited { ward, incarnation, kind, cause });
    }
    match change.state() {
        v1::WardState::Running => Some(steward::Event::WardRunning { ward, incarnation }),
        v1::WardState::Starting => Some(steward::Event::WardStarting { ward, incarnation }),
        _ => None,
    }
}

fn exit_cause(exit: &v1::Exit) -> steward::Cause {
    let error = exit.error.as_ref();
    steward::Cause {
        // How it ended is said by the kind of its exit; the error adds why.
        reason: error.map(|e| e.what.clone()).unwrap_or_default(),
        error_id: error.map(|e| e.id.as_str().into()),
        traceparent: (!exit.traceparent.is_empty()).then(|| exit.traceparent.as_str().into()),
    }
}

/// Wards of one node that a supervisor takes on.
pub const MOST_WARDS: usize = 1_024;

/// Bytes of a name of a node, ward or group.
const NAME: usize = 128;

/// The rule for names of nodes, wards and groups: they stand in paths, tables and logs.
///
/// # Errors
/// One line that says what is wrong with the name of what.
pub fn check_name(of: &str, name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("a {of} has an empty name"));
    }
    if name.len() > NAME {
        return Err(format!("the name of a {of} has {} bytes, {NAME} are allowed", name.len()));
    }
    if name.chars().any(|c| c.is_control() || c == '/') {
        return Err(format!("the name {name:?} of a {of} has a slash or control characters in it"));
    }
    Ok(())
}

/// A report as the wire knows it, without its head.
pub fn report(beats: &steward::Beats) -> v1::Report {
    let millis = |age: Duration| u32::try_from(age.as_millis()).unwrap_or(u32::MAX).saturating_add(1);
    let worked = &beats.worked;
    v1::Report {
        pulsed: runs(&beats.pulsed),
        worked: steps(worked.iter().map(|beat| beat.slot)),
        work_begun: worked.iter().map(|beat| beat.begun).collect(),
        work_ended: worked.iter().map(|beat| beat.ended).collect(),
        oldest_work_ms: worked.iter().map(|beat| beat.oldest.map_or(0, millis)).collect(),
        ..Default::default()
    }
}

/// Ascending slots: how many are passed over, how many are meant, and again.
fn runs(slots: &steward::Slots) -> Vec<u32> {
    let mut next = 0;
    let run = |run: &Range<u32>| {
        let gap = run.start.wrapping_sub(std::mem::replace(&mut next, run.end));
        [gap, run.end - run.start]
    };
    slots.runs().iter().flat_map(run).collect()
}

/// Ascending slots as differences.
fn steps(slots: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut before = 0;
    slots.map(|slot| slot.wrapping_sub(std::mem::replace(&mut before, slot))).collect()
}

/// The heartbeats of a report about this many wards. Columns of unequal length, slots out of range and
/// slots that are named twice come from a hostile or broken peer: an error says which.
///
/// # Errors
/// One line that says what does not fit.
pub fn beats(report: v1::Report, wards: usize) -> Result<steward::Beats, String> {
    let n = report.worked.len();
    let columns = [&report.work_begun, &report.work_ended, &report.oldest_work_ms];
    if columns.iter().any(|column| column.len() != n) {
        return Err(format!("a report whose columns do not have the same length (slots: {n})"));
    }
    let worked = slots(report.worked, wards)?;
    let worked = worked.into_iter().enumerate().map(|(i, slot)| steward::WorkBeat {
        slot,
        begun: report.work_begun[i],
        ended: report.work_ended[i],
        oldest: report.oldest_work_ms[i].checked_sub(1).map(|ms| Duration::from_millis(ms.into())),
    });
    Ok(steward::Beats { worked: worked.collect(), pulsed: slots_of(&report.pulsed, wards)? })
}

/// Slots from their runs.
fn slots_of(runs: &[u32], wards: usize) -> Result<steward::Slots, String> {
    let (pairs, half) = runs.as_chunks::<2>();
    let mut slots = steward::Slots::default();
    if !half.is_empty() || pairs.iter().any(|[_, many]| *many == 0) {
        return Err("a report with a run of no slots".to_owned());
    }
    let mut next = 0_u32;
    for [gap, many] in pairs {
        let first = next.saturating_add(*gap);
        next = first.saturating_add(*many);
        if next as usize > wards {
            return Err(format!("a report about slot {}, which no ward has", next - 1));
        }
        slots.push_run(first..next);
    }
    Ok(slots)
}

/// Slots from their differences, in place.
fn slots(mut steps: Vec<u32>, wards: usize) -> Result<Vec<u32>, String> {
    let (mut slot, mut twice) = (0u64, false);
    for (i, step) in steps.iter_mut().enumerate() {
        twice |= i > 0 && *step == 0;
        slot += u64::from(*step);
        *step = u32::try_from(slot).unwrap_or(u32::MAX);
    }
    match (usize::try_from(slot), twice) {
        (_, true) => Err("a report that names a slot twice".to_owned()),
        (Ok(slot), false) if slot < wards || steps.is_empty() => Ok(steps),
        _ => Err(format!("a report about slot {slot}, which no ward has")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats_of(pulsed: &[u32], worked: &[u32]) -> steward::Beats {
        let oldest = |slot: u32| slot.is_multiple_of(2).then(|| Duration::from_millis(slot.into()));
        let work = |slot: &u32| steward::WorkBeat { slot: *slot, begun: 3, ended: 2, oldest: oldest(*slot) };
        steward::Beats { pulsed: pulsed.iter().copied().collect(), worked: worked.iter().map(work).collect() }
    }

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        for (pulsed, worked) in [(&[][..], &[][..]), (&[0], &[0]), (&[0, 1, 2, 300, 70_000], &[5, 6, 1_000])]
        {
            let sent = beats_of(pulsed, worked);
            assert_eq!(beats(report(&sent), 70_001), Ok(sent));
        }
    }

    #[test]
    fn a_thousand_idle_wards_take_a_few_bytes_together_and_one_each_at_most() {
        let size = |pulsed: Vec<u32>| prost::Message::encoded_len(&report(&beats_of(&pulsed, &[])));
        assert!(size((0..1_000).collect()) <= 5);
        for every in 2..10 {
            assert!(size((0..1_000).step_by(every).collect()) <= 1_003);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_in_one_line() {
        let wrong = |spoil: fn(&mut v1::Report)| {
            let mut report = report(&beats_of(&[0, 1, 4], &[0, 1, 4]));
            spoil(&mut report);
            beats(report, 5).unwrap_err()
        };
        assert!(wrong(|report| report.pulsed[2] = 3).contains("slot 5, which no ward has"));
        assert!(wrong(|report| report.worked[2] = u32::MAX).contains("which no ward has"));
        assert!(wrong(|report| report.pulsed = vec![u32::MAX; 8]).contains("which no ward has"));
        assert!(wrong(|report| report.pulsed[1] = 0).contains("run of no slots"));
        assert!(wrong(|report| report.pulsed.truncate(1)).contains("run of no slots"));
        assert!(wrong(|report| report.pulsed.truncate(3)).contains("run of no slots"));
        assert!(wrong(|report| report.worked[1] = 0).contains("twice"));
        assert!(wrong(|report| report.work_ended.truncate(1)).contains("same length"));
        assert_eq!(beats(v1::Report::default(), 0), Ok(steward::Beats::default()));
    }
}
