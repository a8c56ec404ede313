//! What `-o json` shows: the wire's messages in plain words. Names are snake_case, times RFC 3339 in
//! UTC, durations milliseconds, enums lower-case. A field that does not apply is null, never absent.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use wardkeep_proto::v1;

/// A document that says what it is.
#[derive(Debug, Serialize)]
pub(crate) struct Document<T> {
    /// Name and version of the layout, for example `wardkeep.status/v1`.
    pub(crate) schema: &'static str,
    /// The rest.
    #[serde(flatten)]
    pub(crate) body: T,
}

impl<T: Serialize> Document<T> {
    /// A document of this layout.
    pub(crate) fn new(schema: &'static str, body: T) -> Self {
        Self { schema, body }
    }
}

/// A node.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Node and NodeInfo.
pub(crate) struct NodeView {
    pub(crate) name: String,
    pub(crate) verdict: String,
    pub(crate) attending: bool,
    pub(crate) draining: bool,
    pub(crate) machine: String,
    pub(crate) zone: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) uri: String,
    pub(crate) pid: u32,
    pub(crate) boot_id: String,
    pub(crate) version: String,
    pub(crate) started_at: Option<String>,
    pub(crate) last_report_at: Option<String>,
    pub(crate) leaked_threads: u32,
    pub(crate) launcher: String,
}

/// A ward.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Ward and WardSpec.
pub(crate) struct WardView {
    pub(crate) node: String,
    pub(crate) ward: String,
    pub(crate) kind: String,
    pub(crate) group: String,
    pub(crate) state: String,
    pub(crate) verdict: String,
    pub(crate) incarnation: u64,
    pub(crate) started_at: Option<String>,
    pub(crate) restarts: u64,
    pub(crate) last_error_id: Option<String>,
    pub(crate) status: String,
    pub(crate) work_in_progress: u64,
    pub(crate) oldest_work_ms: Option<u64>,
    pub(crate) work_done: u64,
    pub(crate) fenced_replies: u64,
    pub(crate) restart: String,
    pub(crate) services: Vec<String>,
    pub(crate) stall_timeout_ms: Option<u64>,
    pub(crate) pulse_timeout_ms: Option<u64>,
    pub(crate) start_timeout_ms: Option<u64>,
    pub(crate) grace_ms: Option<u64>,
    pub(crate) manual_start: bool,
    pub(crate) usage: Option<UsageView>,
}

/// What a program uses.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.ProcessUsage.
pub(crate) struct UsageView {
    pub(crate) pid: u32,
    pub(crate) processes: u32,
    pub(crate) cpu_ms: Option<u64>,
    pub(crate) resident_bytes: u64,
    pub(crate) at: Option<String>,
}

/// A line that a program printed.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.OutputLine.
pub(crate) struct LineView {
    pub(crate) sequence: u64,
    pub(crate) at: Option<String>,
    pub(crate) incarnation: u64,
    pub(crate) stream: String,
    pub(crate) text: String,
    pub(crate) cut: bool,
}

/// A group.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Group and GroupSpec.
pub(crate) struct GroupView {
    pub(crate) name: String,
    pub(crate) strategy: String,
    pub(crate) intensity: u32,
    pub(crate) period_ms: Option<u64>,
    pub(crate) recent_restarts: u32,
    pub(crate) gave_up: bool,
    pub(crate) members: Vec<String>,
    pub(crate) backoff_first_ms: Option<u64>,
    pub(crate) backoff_max_ms: Option<u64>,
    pub(crate) backoff_reset_ms: Option<u64>,
    pub(crate) parent: Option<String>,
    pub(crate) restart: String,
    pub(crate) significant: bool,
    pub(crate) auto_shutdown: String,
    pub(crate) escalate: String,
}

/// The supervisor itself.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Supervisor.
pub(crate) struct SupervisorView {
    pub(crate) address: String,
    pub(crate) machine: String,
    pub(crate) version: String,
    pub(crate) epoch: u64,
    pub(crate) started_at: Option<String>,
    pub(crate) last_event_sequence: u64,
    pub(crate) history: HistoryView,
}

/// How it stands with the record of what happened.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.History.
pub(crate) struct HistoryView {
    pub(crate) durable: bool,
    pub(crate) path: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) max_bytes: u64,
    pub(crate) not_written_since: Option<String>,
    pub(crate) not_written_why: Option<String>,
    pub(crate) dropped: u64,
}

/// What a verdict rests on.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Evidence.
pub(crate) struct EvidenceView {
    pub(crate) last_pulse_ms: Option<u64>,
    pub(crate) oldest_work_ms: Option<u64>,
    pub(crate) last_report_ms: Option<u64>,
}

/// What was decided.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Decision.
pub(crate) struct DecisionView {
    pub(crate) recent: u32,
    pub(crate) intensity: u32,
    pub(crate) period_ms: Option<u64>,
    pub(crate) delay_ms: Option<u64>,
    pub(crate) gave_up: bool,
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Event.
pub(crate) struct EventView {
    pub(crate) sequence: u64,
    pub(crate) at: Option<String>,
    pub(crate) kind: String,
    pub(crate) node: Option<String>,
    pub(crate) ward: Option<String>,
    pub(crate) incarnation: Option<u64>,
    pub(crate) verdict: Option<String>,
    pub(crate) text: String,
    pub(crate) actor: Option<String>,
    pub(crate) epoch: u64,
    pub(crate) traceparent: Option<String>,
    pub(crate) error: Option<ErrorView>,
    pub(crate) group: Option<String>,
    pub(crate) evidence: Option<EvidenceView>,
    pub(crate) decision: Option<DecisionView>,
    pub(crate) boot_id: Option<String>,
}

/// The error of an event, as far as its reader needs it here.
#[derive(Clone, Debug, Serialize)]
/// The fields are those of wardkeep.v1.Error.
pub(crate) struct ErrorView {
    pub(crate) id: String,
    pub(crate) occurred_at: Option<String>,
    pub(crate) machine: String,
    pub(crate) domain: String,
    pub(crate) kind: String,
    pub(crate) what: String,
    pub(crate) user_message: String,
    pub(crate) group_hash: String,
    pub(crate) malformed: bool,
}

impl From<&v1::Node> for NodeView {
    fn from(node: &v1::Node) -> Self {
        let info = node.info.clone().unwrap_or_default();
        Self {
            name: info.name,
            verdict: verdict(node.verdict).to_owned(),
            attending: node.attending,
            draining: node.draining,
            machine: info.machine,
            zone: info.zone,
            labels: info.labels.into_iter().collect(),
            uri: info.uri,
            pid: info.pid,
            boot_id: info.boot_id,
            version: info.version,
            started_at: rfc3339(info.started_at),
            last_report_at: rfc3339(node.last_report_at),
            leaked_threads: node.leaked_threads,
            launcher: node.launcher.clone(),
        }
    }
}

impl From<&v1::Ward> for WardView {
    fn from(ward: &v1::Ward) -> Self {
        let spec = ward.spec.clone().unwrap_or_default();
        Self {
            node: ward.node.clone(),
            kind: kind(spec.kind()).to_owned(),
            restart: lower(spec.restart().as_str_name(), "RESTART_"),
            ward: spec.name,
            group: spec.group,
            state: state(ward.state).to_owned(),
            verdict: verdict(ward.verdict).to_owned(),
            incarnation: ward.incarnation,
            started_at: rfc3339(ward.started_at),
            restarts: ward.restarts,
            last_error_id: some(&ward.last_error_id),
            status: ward.status.clone(),
            work_in_progress: ward.work_in_progress,
            oldest_work_ms: millis(ward.oldest_work),
            work_done: ward.work_done,
            fenced_replies: ward.fenced_replies,
            services: spec.services,
            stall_timeout_ms: millis(spec.stall_timeout),
            pulse_timeout_ms: millis(spec.pulse_timeout),
            start_timeout_ms: millis(spec.start_timeout),
            grace_ms: millis(spec.grace),
            manual_start: spec.manual_start,
            usage: ward.usage.as_ref().map(UsageView::from),
        }
    }
}

impl From<&v1::ProcessUsage> for UsageView {
    fn from(usage: &v1::ProcessUsage) -> Self {
        Self {
            pid: usage.pid,
            processes: usage.processes,
            cpu_ms: millis(usage.cpu),
            resident_bytes: usage.resident_bytes,
            at: rfc3339(usage.at),
        }
    }
}

impl From<&v1::OutputLine> for LineView {
    fn from(line: &v1::OutputLine) -> Self {
        Self {
            sequence: line.sequence,
            at: rfc3339(line.at),
            incarnation: line.incarnation,
            stream: lower(line.stream().as_str_name(), "OUTPUT_STREAM_"),
            text: line.text.clone(),
            cut: line.cut,
        }
    }
}

impl WardView {
    /// `node/ward`.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.node, self.ward)
    }
}

impl From<&v1::Group> for GroupView {
    fn from(group: &v1::Group) -> Self {
        let spec = group.spec.clone().unwrap_or_default();
        Self {
            strategy: lower(spec.strategy().as_str_name(), "STRATEGY_"),
            name: spec.name.clone(),
            intensity: spec.intensity,
            period_ms: millis(spec.period),
            recent_restarts: group.recent_restarts,
            gave_up: group.gave_up,
            members: group.members.clone(),
            backoff_first_ms: millis(spec.backoff_first),
            backoff_max_ms: millis(spec.backoff_max),
            backoff_reset_ms: millis(spec.backoff_reset),
            restart: lower(spec.restart().as_str_name(), "RESTART_"),
            significant: spec.significant,
            auto_shutdown: lower(spec.auto_shutdown().as_str_name(), "AUTO_SHUTDOWN_"),
            escalate: lower(spec.escalate().as_str_name(), "ESCALATE_"),
            parent: Some(spec.parent).filter(|parent| !parent.is_empty()),
        }
    }
}

impl SupervisorView {
    /// The supervisor at this address.
    pub(crate) fn new(address: &str, supervisor: &v1::Supervisor) -> Self {
        Self {
            address: address.to_owned(),
            machine: supervisor.machine.clone(),
            version: supervisor.version.clone(),
            epoch: supervisor.epoch,
            started_at: rfc3339(supervisor.started_at),
            last_event_sequence: supervisor.last_event_sequence,
            history: HistoryView::from(&supervisor.history.clone().unwrap_or_default()),
        }
    }
}

impl From<&v1::History> for HistoryView {
    fn from(history: &v1::History) -> Self {
        Self {
            durable: history.durable,
            path: some(&history.path),
            bytes: history.bytes,
            max_bytes: history.max_bytes,
            not_written_since: rfc3339(history.not_written_since),
            not_written_why: some(&history.not_written_why),
            dropped: history.dropped,
        }
    }
}

impl From<&v1::Evidence> for EvidenceView {
    fn from(evidence: &v1::Evidence) -> Self {
        Self {
            last_pulse_ms: millis(evidence.last_pulse),
            oldest_work_ms: millis(evidence.oldest_work),
            last_report_ms: millis(evidence.last_report),
        }
    }
}

impl From<&v1::Decision> for DecisionView {
    fn from(decision: &v1::Decision) -> Self {
        Self {
            recent: decision.recent,
            intensity: decision.intensity,
            period_ms: millis(decision.period),
            delay_ms: millis(decision.delay),
            gave_up: decision.gave_up,
        }
    }
}

impl From<&v1::Event> for EventView {
    fn from(event: &v1::Event) -> Self {
        Self {
            sequence: event.sequence,
            at: rfc3339(event.at),
            kind: lower(event.kind().as_str_name(), "EVENT_KIND_"),
            node: some(&event.node),
            ward: some(&event.ward),
            incarnation: Some(event.incarnation).filter(|i| *i > 0),
            verdict: Some(event.verdict).filter(|v| *v != 0).map(|v| verdict(v).to_owned()),
            text: event.text.clone(),
            actor: some(&event.actor),
            epoch: event.epoch,
            traceparent: some(&event.traceparent),
            error: event.error.as_ref().map(ErrorView::from),
            group: some(&event.group),
            evidence: event.evidence.as_ref().map(EvidenceView::from),
            decision: event.decision.as_ref().map(DecisionView::from),
            boot_id: some(&event.boot_id),
        }
    }
}

impl From<&v1::Error> for ErrorView {
    fn from(error: &v1::Error) -> Self {
        Self {
            id: error.id.clone(),
            occurred_at: rfc3339(error.occurred_at),
            machine: error.machine.clone(),
            domain: error.domain.clone(),
            kind: error.kind.clone(),
            what: error.what.clone(),
            user_message: error.user_message.clone(),
            group_hash: error.group_hash.clone(),
            malformed: error.malformed,
        }
    }
}

/// `running`, `backoff`, …
pub(crate) fn state(state: i32) -> &'static str {
    match v1::WardState::try_from(state) {
        Ok(v1::WardState::Stopped) => "stopped",
        Ok(v1::WardState::Starting) => "starting",
        Ok(v1::WardState::Running) => "running",
        Ok(v1::WardState::Stopping) => "stopping",
        Ok(v1::WardState::Backoff) => "backoff",
        Ok(v1::WardState::Quarantined) => "quarantined",
        _ => "unknown",
    }
}

/// `healthy`, `crashed`, …
pub(crate) fn verdict(verdict: i32) -> &'static str {
    match v1::Verdict::try_from(verdict) {
        Ok(v1::Verdict::Healthy) => "healthy",
        Ok(v1::Verdict::Crashed) => "crashed",
        Ok(v1::Verdict::Stalled) => "stalled",
        Ok(v1::Verdict::RuntimeStalled) => "runtime_stalled",
        Ok(v1::Verdict::Unreachable) => "unreachable",
        _ => "unknown",
    }
}

fn kind(kind: v1::WardKind) -> &'static str {
    match kind {
        v1::WardKind::Service => "service",
        v1::WardKind::Task => "task",
        v1::WardKind::Process => "process",
        v1::WardKind::Unspecified => "unknown",
    }
}

/// `STRATEGY_ONE_FOR_ONE` -> `one_for_one`; a value nobody set is `unknown`.
fn lower(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => "unknown".to_owned(),
        value => value.to_ascii_lowercase(),
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The moment, if the wire's is one.
pub(crate) fn moment(at: Option<prost_types::Timestamp>) -> Option<DateTime<Utc>> {
    let at = at?;
    DateTime::from_timestamp(at.seconds, u32::try_from(at.nanos).ok()?)
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339(at: Option<prost_types::Timestamp>) -> Option<String> {
    moment(at).map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Milliseconds; a negative length is 0.
pub(crate) fn millis(length: Option<prost_types::Duration>) -> Option<u64> {
    length.map(|d| {
        u64::try_from(i128::from(d.seconds) * 1_000 + i128::from(d.nanos) / 1_000_000)
            .unwrap_or(if d.seconds < 0 { 0 } else { u64::MAX })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_times_and_durations_speak_plainly() {
        let spec = v1::GroupSpec {
            strategy: v1::Strategy::OneForOne.into(),
            period: Some(wardkeep_proto::duration(std::time::Duration::from_millis(5_250))),
            ..Default::default()
        };
        let group = GroupView::from(&v1::Group { spec: Some(spec), ..Default::default() });
        assert_eq!((group.strategy.as_str(), group.period_ms), ("one_for_one", Some(5_250)));
        let at = prost_types::Timestamp { seconds: 0, nanos: 1_000_000 };
        assert_eq!(rfc3339(Some(at)).as_deref(), Some("1970-01-01T00:00:00.001Z"));
        assert_eq!(millis(Some(prost_types::Duration { seconds: -3, nanos: 0 })), Some(0));
        assert_eq!(verdict(4), "runtime_stalled");
        assert_eq!(state(99), "unknown");
    }

    #[test]
    fn events_keep_null_for_what_does_not_apply() {
        let json = serde_json::to_value(EventView::from(&v1::Event::default())).unwrap();
        assert!(json["ward"].is_null() && json["incarnation"].is_null() && json["error"].is_null());
        assert_eq!(json["kind"], "unknown");
    }
}
