//! From what was measured to metrics. Pure; docs/metrics.md says what each of them means.
//!
//! There is one series per ward or node only where that is what one looks for, and of no more than [`MOST_WARDS`] wards:
//! of more, none. What is counted by kind or state is there in any case.

use std::{collections::BTreeMap, time::Duration};

use wardkeep_proto::v1::{self, Verdict, WardKind, WardState};

use super::{
    Measured,
    process::Process,
    tally::{Counts, Histogram},
};

/// Wards that have series of their own.
pub(super) const MOST_WARDS: usize = 10_000;

/// Labels of one series.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What a series says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Counter(f64),
    Gauge(f64),
    Histogram(Histogram),
}

/// One metric with all its series.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) series: Vec<(Labels, Value)>,
}

/// All metrics.
pub(super) fn families(measured: &Measured, process: Option<&Process>) -> Vec<Family> {
    let mut all = Page::default();
    all.supervisor(measured);
    all.steward(measured);
    all.nodes(&measured.fleet);
    all.wards(&measured.fleet);
    all.groups(&measured.fleet);
    all.errors(measured);
    all.history(measured);
    if let Some(process) = process {
        all.process(process);
    }
    all.0
}

#[derive(Default)]
struct Page(Vec<Family>);

#[expect(clippy::cast_precision_loss, reason = "that is what Prometheus counts in")]
fn number(count: u64) -> f64 {
    count as f64
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

impl Page {
    fn family(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, Value)>) {
        self.0.push(Family { name, help, series });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.family(name, help, vec![(Vec::new(), Value::Gauge(value))]);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, count: u64) {
        self.family(name, help, vec![(Vec::new(), Value::Counter(number(count)))]);
    }

    fn counts<const N: usize, const L: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        keys: [&'static str; L],
        counts: &Counts<N, L>,
    ) {
        let labels = |values: &[&'static str; L]| keys.into_iter().zip(values.map(str::to_owned)).collect();
        let series =
            counts.iter().map(|(values, count)| (labels(values), Value::Counter(number(count)))).collect();
        self.family(name, help, series);
    }

    fn histogram(&mut self, name: &'static str, help: &'static str, histogram: &Histogram) {
        self.family(name, help, vec![(Vec::new(), Value::Histogram(histogram.clone()))]);
    }

    fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        key: &'static str,
        histograms: &[(&'static str, Histogram)],
    ) {
        let series = |(label, histogram): &(&str, Histogram)| {
            (vec![(key, (*label).to_owned())], Value::Histogram(histogram.clone()))
        };
        self.family(name, help, histograms.iter().map(series).collect());
    }

    fn supervisor(&mut self, measured: &Measured) {
        let supervisor = measured.fleet.supervisor.clone().unwrap_or_default();
        self.family(
            "wardkeep_build_info",
            "The supervisor's version; always 1",
            vec![(vec![("version", supervisor.version)], Value::Gauge(1.0))],
        );
        self.gauge("wardkeep_epoch", "The supervisor's authority number", number(supervisor.epoch));
        self.gauge("wardkeep_sessions", "Nodes that attend", number(measured.sessions as u64));
        self.gauge(
            "wardkeep_directory_watchers",
            "Clients that watch the directory",
            number(measured.watchers as u64),
        );
    }

    fn steward(&mut self, measured: &Measured) {
        let tally = &measured.tally;
        self.counts(
            "wardkeep_verdicts_total",
            "Verdicts, but for healthy",
            ["of", "verdict"],
            &tally.verdicts,
        );
        self.counts("wardkeep_restarts_total", "Restarts decided", ["of", "reason"], &tally.restarts);
        self.counts(
            "wardkeep_escalations_total",
            "Groups that gave up, by who decides next",
            ["to"],
            &tally.escalations,
        );
        self.histograms(
            "wardkeep_detection_seconds",
            "From the last sign of life, or the beginning of the work, to the verdict",
            "verdict",
            &tally.detection,
        );
        self.histograms(
            "wardkeep_heal_seconds",
            "From the first sign of a failure until it runs again",
            "of",
            &tally.healing,
        );
        self.counter("wardkeep_steward_doubts_total", "Times the steward doubted itself", tally.doubts);
        self.counter(
            "wardkeep_restart_budget_spent_total",
            "Times restarts had to wait for the fleet's budget",
            tally.budget_spent,
        );
        self.counter("wardkeep_stale_messages_total", "Messages that came too late to count", tally.stale);
        self.histogram(
            "wardkeep_steward_lateness_seconds",
            "How late the steward's loop did what was due",
            &measured.lateness,
        );
    }

    fn nodes(&mut self, fleet: &v1::Fleet) {
        let mut states = BTreeMap::from(NODE_STATES.map(|state| (state, 0)));
        for node in &fleet.nodes {
            *states.entry(state_of_node(node)).or_default() += 1;
        }
        let series = states
            .into_iter()
            .map(|(state, count)| (vec![("state", state.to_owned())], Value::Gauge(number(count))));
        self.family("wardkeep_nodes", "Nodes by state", series.collect());
        let of = |value: &dyn Fn(&v1::Node) -> f64| {
            let named = fleet.nodes.iter().filter_map(|node| Some((node, node.info.as_ref()?)));
            named.map(|(node, info)| (vec![("node", info.name.clone())], Value::Gauge(value(node)))).collect()
        };
        let up = of(&|node| flag(matches!(state_of_node(node), "healthy" | "draining")));
        self.family("wardkeep_node_up", "It attends and is healthy", up);
        let leaked = of(&|node| f64::from(node.leaked_threads));
        self.family("wardkeep_node_leaked_threads", "Threads that wards left behind have blocked", leaked);
        let known = fleet.nodes.iter().filter_map(|node| node.info.as_ref());
        let info = |info: &v1::NodeInfo| {
            let labels = vec![
                ("node", info.name.clone()),
                ("machine", info.machine.clone()),
                ("zone", info.zone.clone()),
                ("version", info.version.clone()),
            ];
            (labels, Value::Gauge(1.0))
        };
        self.family("wardkeep_node_info", "What a node is; always 1", known.clone().map(info).collect());
        let begun = known.filter_map(|info| {
            let at = info.started_at.as_ref()?;
            Some((vec![("node", info.name.clone())], Value::Gauge(seconds_since_1970(at))))
        });
        self.family("wardkeep_node_start_time_seconds", "When its process began", begun.collect());
    }

    fn wards(&mut self, fleet: &v1::Fleet) {
        let mut states: BTreeMap<_, u64> =
            KINDS.into_iter().flat_map(|kind| STATES.map(|state| ((kind.1, state.1), 0))).collect();
        for ward in &fleet.wards {
            let kind = ward.spec.as_ref().map_or(WardKind::Unspecified, v1::WardSpec::kind);
            let kind = KINDS.iter().find(|(it, _)| *it == kind).map_or("service", |(_, word)| word);
            *states.entry((kind, word(ward.state()))).or_default() += 1;
        }
        let series = states.into_iter().map(|((kind, state), count)| {
            (vec![("kind", kind.to_owned()), ("state", state.to_owned())], Value::Gauge(number(count)))
        });
        self.family("wardkeep_wards", "Wards by kind and state", series.collect());
        let few = fleet.wards.len() <= MOST_WARDS;
        let each: &[v1::Ward] = if few { &fleet.wards } else { &[] };
        let of = |value: &dyn Fn(&v1::Ward) -> Option<Value>| -> Vec<(Labels, Value)> {
            let named = each.iter().filter_map(|ward| Some((ward, ward.spec.as_ref()?)));
            let labels = |ward: &v1::Ward, spec: &v1::WardSpec| {
                vec![("node", ward.node.clone()), ("ward", spec.name.clone())]
            };
            named.filter_map(|(ward, spec)| Some((labels(ward, spec), value(ward)?))).collect()
        };
        let gauge = |of: f64| Some(Value::Gauge(of));
        let count = |of: u64| Some(Value::Counter(number(of)));
        let up = |ward: &v1::Ward| {
            gauge(flag(ward.state() == WardState::Running && ward.verdict() == Verdict::Healthy))
        };
        let oldest = |ward: &v1::Ward| gauge(seconds(ward.oldest_work.as_ref()));
        self.family("wardkeep_ward_up", "It runs and is healthy", of(&up));
        let incarnation = of(&|ward| gauge(number(ward.incarnation)));
        self.family("wardkeep_ward_incarnation", "Its incarnation", incarnation);
        let restarts = of(&|ward| count(ward.restarts));
        self.family(
            "wardkeep_ward_restarts_total",
            "Its restarts by a steward, operators' not counted",
            restarts,
        );
        let held = of(&|ward| gauge(number(ward.work_in_progress)));
        self.family("wardkeep_ward_work_in_progress", "Units of work that have begun and not ended", held);
        self.family(
            "wardkeep_ward_oldest_work_seconds",
            "Age of the oldest of them; 0: there is none",
            of(&oldest),
        );
        let done = of(&|ward| count(ward.work_done));
        self.family("wardkeep_ward_work_done_total", "Units of work that its incarnation has ended", done);
        let fenced = of(&|ward| count(ward.fenced_replies));
        let help = "Late replies of incarnations left behind, which were dropped";
        self.family("wardkeep_ward_fenced_replies_total", help, fenced);
        let memory = of(&|ward| gauge(number(ward.usage.as_ref()?.resident_bytes)));
        self.family("wardkeep_ward_resident_memory_bytes", "Memory of a program and what it started", memory);
        let cpu = of(&|ward| Some(Value::Counter(seconds(ward.usage.as_ref()?.cpu.as_ref()))));
        self.family("wardkeep_ward_cpu_seconds_total", "CPU time of a program and what it started", cpu);
    }

    fn groups(&mut self, fleet: &v1::Fleet) {
        let few = fleet.groups.len() <= MOST_WARDS;
        let groups: &[v1::Group] = if few { &fleet.groups } else { &[] };
        let of = |value: &dyn Fn(&v1::Group) -> f64| {
            let named = groups.iter().filter_map(|group| Some((group, group.spec.as_ref()?)));
            named
                .map(|(group, spec)| (vec![("group", spec.name.clone())], Value::Gauge(value(group))))
                .collect()
        };
        let recent = of(&|group| f64::from(group.recent_restarts));
        self.family("wardkeep_group_recent_restarts", "Its restarts within its period", recent);
        let allowed = of(&|group| group.spec.as_ref().map_or(0.0, |spec| f64::from(spec.intensity)));
        self.family("wardkeep_group_intensity", "How many it may have within its period", allowed);
        let gave_up = of(&|group| flag(group.gave_up));
        self.family("wardkeep_group_gave_up", "It gave up, and nobody has brought it back", gave_up);
    }

    fn errors(&mut self, measured: &Measured) {
        let totals = measured.errors;
        let labels = |malformed: &str| vec![("malformed", malformed.to_owned())];
        let series = vec![
            (labels("false"), Value::Counter(number(totals.seen.saturating_sub(totals.malformed)))),
            (labels("true"), Value::Counter(number(totals.malformed))),
        ];
        self.family("wardkeep_errors_total", "Errors told of; a malformed one is a bug", series);
        self.gauge("wardkeep_error_groups", "Different failures among them", number(totals.groups as u64));
        self.counter("wardkeep_errors_dropped_total", "Errors of which no record was kept", totals.dropped);
    }

    fn history(&mut self, measured: &Measured) {
        let supervisor = measured.fleet.supervisor.clone().unwrap_or_default();
        let history = supervisor.history.unwrap_or_default();
        self.counter("wardkeep_events_total", "Events of the history, ever", supervisor.last_event_sequence);
        self.gauge("wardkeep_history_bytes", "Size of what is kept", number(history.bytes));
        self.gauge("wardkeep_history_max_bytes", "At most so much is kept", number(history.max_bytes));
        self.gauge(
            "wardkeep_history_waiting_events",
            "Events that wait to be written",
            number(measured.waiting as u64),
        );
        self.gauge(
            "wardkeep_history_failing",
            "It cannot be written; supervising goes on from memory",
            flag(history.not_written_since.is_some()),
        );
        self.counter(
            "wardkeep_history_dropped_events_total",
            "Events that could not be written",
            history.dropped,
        );
        self.histogram(
            "wardkeep_history_write_seconds",
            "From a decision to its being written, or carried out from memory",
            &measured.writes,
        );
    }

    fn process(&mut self, process: &Process) {
        let Process { cpu, resident, open_fds, max_fds, threads, started_at } = *process;
        self.family(
            "process_cpu_seconds_total",
            "User and system time of the supervisor",
            vec![(Vec::new(), Value::Counter(cpu.as_secs_f64()))],
        );
        self.gauge("process_resident_memory_bytes", "Memory of the supervisor", number(resident));
        self.gauge("process_open_fds", "Its open file descriptors", number(open_fds));
        self.gauge("process_max_fds", "How many it may have open", number(max_fds));
        self.gauge("process_threads", "Its threads", number(threads));
        self.gauge("process_start_time_seconds", "When it began", started_at);
    }
}

fn seconds(of: Option<&prost_types::Duration>) -> f64 {
    of.and_then(|it| Duration::try_from(*it).ok()).unwrap_or_default().as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "to within a microsecond")]
fn seconds_since_1970(at: &prost_types::Timestamp) -> f64 {
    at.seconds as f64 + f64::from(at.nanos) / 1e9
}

const NODE_STATES: [&str; 5] = ["away", "draining", "healthy", "runtime_stalled", "unreachable"];

fn state_of_node(node: &v1::Node) -> &'static str {
    match node.verdict() {
        Verdict::Unreachable => "unreachable",
        _ if !node.attending => "away",
        Verdict::RuntimeStalled => "runtime_stalled",
        _ if node.draining => "draining",
        _ => "healthy",
    }
}

const KINDS: [(WardKind, &str); 3] =
    [(WardKind::Service, "service"), (WardKind::Task, "task"), (WardKind::Process, "process")];

const STATES: [(WardState, &str); 7] = [
    (WardState::Stopped, "stopped"),
    (WardState::Starting, "starting"),
    (WardState::Running, "running"),
    (WardState::Stopping, "stopping"),
    (WardState::Backoff, "backoff"),
    (WardState::Quarantined, "quarantined"),
    (WardState::Unknown, "unknown"),
];

fn word(state: WardState) -> &'static str {
    STATES.iter().find(|(it, _)| *it == state).map_or("unknown", |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use wardkeep_proto::duration;

    use super::{
        super::{
            super::error_store::Totals,
            tally::{LATENESS, Tally, WRITES},
            text::{Format, text},
        },
        *,
    };

    fn ward(node: &str, name: &str, kind: WardKind, state: WardState) -> v1::Ward {
        let spec = v1::WardSpec { name: name.into(), kind: kind.into(), ..Default::default() };
        v1::Ward {
            node: node.into(),
            spec: Some(spec),
            state: state.into(),
            verdict: Verdict::Healthy.into(),
            incarnation: 3,
            restarts: 2,
            work_in_progress: 1,
            oldest_work: Some(duration(Duration::from_millis(1_500))),
            work_done: 17,
            ..Default::default()
        }
    }

    fn node(name: &str, verdict: Verdict, attending: bool) -> v1::Node {
        let info = v1::NodeInfo { name: name.into(), zone: "a \"zone\"\n".into(), ..Default::default() };
        v1::Node { info: Some(info), verdict: verdict.into(), attending, ..Default::default() }
    }

    fn measured() -> Measured {
        let usage = v1::ProcessUsage {
            cpu: Some(duration(Duration::from_millis(2_500))),
            resident_bytes: 4_096,
            ..Default::default()
        };
        let program = ward("b", "solver", WardKind::Process, WardState::Backoff);
        let history = v1::History {
            bytes: 10,
            max_bytes: 100,
            not_written_since: Some(prost_types::Timestamp::default()),
            dropped: 4,
            ..Default::default()
        };
        let supervisor = v1::Supervisor {
            version: "0.1.0".into(),
            epoch: 7,
            last_event_sequence: 99,
            history: Some(history),
            ..Default::default()
        };
        let group = v1::Group {
            spec: Some(v1::GroupSpec { name: "g".into(), intensity: 5, ..Default::default() }),
            recent_restarts: 2,
            ..Default::default()
        };
        let fleet = v1::Fleet {
            supervisor: Some(supervisor),
            nodes: vec![node("a", Verdict::Healthy, true), node("b", Verdict::Unreachable, false)],
            wards: vec![
                ward("a", "search", WardKind::Service, WardState::Running),
                v1::Ward { usage: Some(usage), ..program },
            ],
            groups: vec![group],
            ..Default::default()
        };
        let mut lateness = Histogram::new(LATENESS);
        lateness.observe(Duration::from_millis(2));
        Measured {
            fleet: Arc::new(fleet),
            tally: Tally::default(),
            errors: Totals { groups: 2, seen: 10, malformed: 1, dropped: 3 },
            lateness,
            writes: Histogram::new(WRITES),
            waiting: 5,
            watchers: 6,
            sessions: 1,
        }
    }

    const PROCESS: Process = Process {
        cpu: Duration::from_millis(1_250),
        resident: 1 << 20,
        open_fds: 12,
        max_fds: 1_024,
        threads: 9,
        started_at: 1_700_000_000.5,
    };

    fn rendered(format: Format) -> String {
        text(families(&measured(), Some(&PROCESS)), format).unwrap()
    }

    #[test]
    fn a_picture_becomes_metrics() {
        let text = rendered(Format::Prometheus);
        for line in [
            "# TYPE wardkeep_nodes gauge",
            "wardkeep_build_info{version=\"0.1.0\"} 1.0",
            "wardkeep_epoch 7.0",
            "wardkeep_nodes{state=\"healthy\"} 1.0",
            "wardkeep_nodes{state=\"unreachable\"} 1.0",
            "wardkeep_nodes{state=\"draining\"} 0.0",
            "wardkeep_node_up{node=\"a\"} 1.0",
            "wardkeep_node_up{node=\"b\"} 0.0",
            "wardkeep_node_info{node=\"a\",machine=\"\",zone=\"a \\\"zone\\\"\\n\",version=\"\"} 1.0",
            "wardkeep_wards{kind=\"service\",state=\"running\"} 1.0",
            "wardkeep_wards{kind=\"process\",state=\"backoff\"} 1.0",
            "wardkeep_wards{kind=\"task\",state=\"quarantined\"} 0.0",
            "wardkeep_ward_up{node=\"a\",ward=\"search\"} 1.0",
            "wardkeep_ward_up{node=\"b\",ward=\"solver\"} 0.0",
            "wardkeep_ward_oldest_work_seconds{node=\"a\",ward=\"search\"} 1.5",
            "# TYPE wardkeep_ward_restarts_total counter",
            "wardkeep_ward_restarts_total{node=\"a\",ward=\"search\"} 2.0",
            "wardkeep_ward_cpu_seconds_total{node=\"b\",ward=\"solver\"} 2.5",
            "wardkeep_ward_resident_memory_bytes{node=\"b\",ward=\"solver\"} 4096.0",
            "wardkeep_group_recent_restarts{group=\"g\"} 2.0",
            "wardkeep_restarts_total{of=\"ward\",reason=\"stalled\"} 0.0",
            "wardkeep_errors_total{malformed=\"false\"} 9.0",
            "wardkeep_errors_total{malformed=\"true\"} 1.0",
            "wardkeep_history_failing 1.0",
            "wardkeep_events_total 99.0",
            "# TYPE wardkeep_steward_lateness_seconds histogram",
            "wardkeep_steward_lateness_seconds_bucket{le=\"0.001\"} 0",
            "wardkeep_steward_lateness_seconds_bucket{le=\"0.0025\"} 1",
            "wardkeep_steward_lateness_seconds_bucket{le=\"+Inf\"} 1",
            "wardkeep_steward_lateness_seconds_count 1",
            "process_start_time_seconds 1700000000.5",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("resident_memory_bytes{node=\"a\""), "that ward is no program");
    }

    #[test]
    fn the_other_format_ends_as_it_must() {
        let text = rendered(Format::OpenMetrics);
        assert!(text.contains("# TYPE wardkeep_ward_restarts counter\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        // Prometheus makes nothing of a histogram without it.
        for format in [Format::Prometheus, Format::OpenMetrics] {
            let last = "wardkeep_steward_lateness_seconds_bucket{le=\"+Inf\"} 1\n";
            assert!(rendered(format).contains(last), "{format:?}");
        }
    }

    #[test]
    fn of_very_many_wards_there_are_only_counts() {
        let mut measured = measured();
        let ward = |n| ward("a", &format!("w{n}"), WardKind::Task, WardState::Running);
        let fleet = v1::Fleet { wards: (0..=MOST_WARDS).map(ward).collect(), ..(*measured.fleet).clone() };
        measured.fleet = Arc::new(fleet);
        let all = families(&measured, None);
        let series = all.iter().filter(|family| family.name.starts_with("wardkeep_ward_"));
        assert!(series.map(|family| family.series.len()).all(|n| n == 0));
        let counted = all.iter().find(|family| family.name == "wardkeep_wards").unwrap();
        assert!(counted.series.iter().any(|(_, value)| *value == Value::Gauge(10_001.0)));
    }

    /// Names that begin as ours do, in any text.
    fn named(text: &str) -> BTreeSet<&str> {
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let ours = |name: &&str| name.starts_with("wardkeep_") || name.starts_with("process_");
        text.split(word).filter(ours).collect()
    }

    /// The metric that a series of a histogram is of.
    fn metric(name: &str) -> &str {
        ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it)).unwrap_or(name)
    }

    #[test]
    fn every_metric_is_in_the_docs_and_what_the_dashboard_and_the_alerts_ask_for_is_there() {
        let docs = include_str!("../../../../docs/metrics.md");
        let rows = docs.lines().filter(|line| line.starts_with("| `"));
        let documented: BTreeSet<_> = rows.filter_map(|row| named(row).into_iter().next()).collect();
        let all = families(&measured(), Some(&PROCESS));
        let exported: BTreeSet<_> = all.iter().map(|family| family.name).collect();
        // Those the collector makes of traces are documented, and not ours.
        let ours: BTreeSet<_> =
            documented.iter().copied().filter(|name| !name.starts_with("wardkeep_span_")).collect();
        assert_eq!(ours, exported);
        for text in [
            include_str!("../../../../deploy/obs/grafana/dashboards/wardkeep.json"),
            include_str!("../../../../deploy/obs/alerts.yaml"),
        ] {
            let wanted: BTreeSet<_> = named(text).into_iter().map(metric).collect();
            assert!(wanted.len() > 2);
            let unknown: Vec<_> = wanted.difference(&documented).collect();
            assert!(unknown.is_empty(), "nobody exports {unknown:?}");
        }
    }
}
