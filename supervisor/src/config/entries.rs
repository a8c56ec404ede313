//! What the files say, key by key, as `wardkeep config apply` compares and shows it. Every key of a file is
//! here: a new one does not compile until it is.

use std::fmt::Debug;

use humantime::format_duration;
use wardkeep_node::settings::{
    Effect::{self, Live, Refused, Restarts},
    Entry,
};

use super::*;
use crate::daemon::How;

/// What keys of flags and of the environment decide, whatever the file says.
pub type Given<'a> = &'a [&'static str];

fn opt(value: Option<impl ToString>, none: &str) -> String {
    value.map_or_else(|| none.to_owned(), |value| value.to_string())
}

fn time(value: Duration) -> String {
    if value.is_zero() { "0s".to_owned() } else { format_duration(value).to_string() }
}

fn limit(value: Option<Duration>) -> String {
    value.map_or_else(|| "none".to_owned(), time)
}

fn line(program: &[String]) -> String {
    format!("{program:?}")
}

/// `OneForAll` as `one_for_all`.
fn word(value: impl Debug) -> String {
    let mut word = String::new();
    for c in format!("{value:?}").chars() {
        if c.is_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.extend(c.to_lowercase());
    }
    word
}

fn group(entry: &GroupEntry) -> Entry {
    // What the file leaves open is filled in: to write a default down is no change.
    let GroupSpec {
        name,
        strategy,
        intensity,
        period,
        backoff,
        parent,
        restart,
        significant,
        auto_shutdown,
        escalate,
    } = entry.spec();
    Entry::new("group", &*name)
        .notes("", "", "its wards go on, with the default strategy and limits")
        .key("strategy", Live, word(strategy))
        .key("intensity", Live, intensity.to_string())
        .key("period", Live, time(period))
        .key("backoff_first", Live, time(backoff.first))
        .key("backoff_max", Live, time(backoff.max))
        .key("backoff_reset", Live, time(backoff.reset))
        .key("parent", Live, opt(parent, "none"))
        .key("restart", Live, word(restart))
        .key("significant", Live, significant.to_string())
        .key("auto_shutdown", Live, word(auto_shutdown))
        .key("escalate", Live, word(escalate))
}

fn ward(entry: &WardEntry) -> Entry {
    let WardEntry {
        name,
        command,
        env,
        dir,
        notify,
        probe,
        stop_signal,
        stop_to,
        output,
        group,
        restart,
        pulse_timeout,
        start_timeout,
        grace,
        manual_start,
        significant,
    } = entry;
    let OutputEntry { lines, bytes } =
        output.as_ref().unwrap_or(&OutputEntry { lines: 1_000, bytes: 256 * 1_024 });
    let shown_probe = probe.as_ref().map(|probe| {
        let ProbeEntry { address, service, interval, timeout } = probe;
        let (interval, timeout) = (interval.unwrap_or(PROBE_INTERVAL), timeout.unwrap_or(PROBE_TIMEOUT));
        format!("{address} {service:?} every {} within {}", time(interval), time(timeout))
    });
    // A program that notifies is told how often it must.
    let pulse: Effect = if *notify { Restarts } else { Live };
    let default_pulse = if probe.is_some() { "as the probe has it" } else { "none" };
    let signal = stop_signal.as_deref().unwrap_or("SIGTERM");
    let signal = if signal.starts_with("SIG") { signal.to_owned() } else { format!("SIG{signal}") };
    Entry::new("ward", name)
        .notes("is started", "", "is stopped")
        .key("command", Restarts, line(command))
        .secrets("env", Restarts, env)
        .key("dir", Restarts, opt(dir.as_ref().map(|dir| dir.display()), "the node's"))
        .key("notify", Restarts, notify.to_string())
        .key("probe", Restarts, opt(shown_probe, "none"))
        .key("stop_signal", Restarts, signal)
        .key("stop_to", Restarts, word(stop_to))
        .key("output", Live, format!("{lines} lines, {bytes} bytes"))
        .key("group", Live, opt(group.as_ref(), "the node's own"))
        .key("restart", Live, word(restart))
        .key("pulse_timeout", pulse, pulse_timeout.map_or_else(|| default_pulse.to_owned(), time))
        .key("start_timeout", Live, limit(*start_timeout))
        .key("grace", Live, time(grace.unwrap_or(Duration::from_secs(5))))
        .key("manual_start", Live, manual_start.to_string())
        .key("significant", Live, significant.to_string())
}

fn launch(entry: &LaunchEntry) -> Entry {
    let LaunchEntry { name, launch, command, container, socket, timeout, env } = entry;
    let usual = COMMAND_TIMEOUT;
    let how = match (command, container) {
        (Some(_), _) => How::Command { timeout: usual },
        (None, Some(_)) => How::Docker { timeout: usual },
        (None, None) => How::Process,
    };
    let added = if how == How::Process { "is launched" } else { "is launched if it is away" };
    let program = launch.as_ref().or(command.as_ref()).map(|program| line(program));
    Entry::new("node", name)
        .notes(added, "when it is next launched", "goes on if it runs; nobody launches it any more")
        .key("launcher", Live, how.word())
        .key("program", Live, program.unwrap_or_default())
        .key("container", Live, opt(container.as_ref(), "none"))
        .key("socket", Live, opt(socket.as_ref().map(|socket| socket.display()), SOCKET))
        .key("timeout", Live, time(timeout.unwrap_or(usual)))
        .secrets("env", Live, env)
}

impl NodeFile {
    /// All it says.
    pub(super) fn entries(&self, given: Given<'_>) -> Vec<Entry> {
        let Self {
            name,
            listen,
            supervisor,
            advertise,
            insecure,
            machine,
            zone,
            labels,
            group: groups,
            ward: wards,
        } = self;
        let mut own = Entry::new("", "")
            .notes("", "restart the node: wardkeep node restart", "")
            .key("name", Refused, opt(name.as_ref(), "the machine's"))
            .key("listen", Refused, opt(listen.as_ref(), crate::serve::NODE_ADDRESS))
            .key("supervisor", Refused, opt(supervisor.as_ref(), "none"))
            .key("advertise", Refused, opt(advertise.as_ref(), "where it listens"))
            .key("insecure", Refused, insecure.to_string())
            .key("machine", Refused, opt(machine.as_ref(), "this one"))
            .key("zone", Refused, opt(zone.as_ref(), "none"));
        for (label, value) in labels {
            own = own.key(format!("labels.{label}"), Refused, value);
        }
        let entries = groups.iter().map(group).chain(wards.iter().map(ward));
        std::iter::once(own.without(given)).chain(entries).collect()
    }
}

impl SupervisorFile {
    /// All it says.
    pub(super) fn entries(&self, given: Given<'_>) -> Vec<Entry> {
        let Self {
            listen,
            data_dir,
            insecure,
            pulse_interval,
            silence_ceiling,
            relaunch_after,
            attend_timeout,
            mandate_grace,
            history: HistoryEntry { max_age, max_bytes },
            group: groups,
            node: nodes,
        } = self;
        let default = Config::default();
        let fixed = Entry::new("", "")
            .notes("", "restart the supervisor", "")
            .key("listen", Refused, opt(listen.as_ref(), crate::serve::SUPERVISOR_ADDRESS))
            .key("data_dir", Refused, opt(data_dir.as_ref().map(|dir| dir.display()), "none"))
            .key("insecure", Refused, insecure.to_string())
            .key("pulse_interval", Refused, time(pulse_interval.unwrap_or(default.pulse_interval)));
        let live = Entry::new("", "timings")
            .key("silence_ceiling", Live, time(silence_ceiling.unwrap_or(default.silence_ceiling)))
            .key("relaunch_after", Live, time(relaunch_after.unwrap_or(default.relaunch_after)))
            .key("attend_timeout", Live, time(attend_timeout.unwrap_or(default.attend_timeout)))
            .key("history.max_age", Live, time(max_age.unwrap_or(HISTORY_AGE)))
            .key("history.max_bytes", Live, max_bytes.unwrap_or(HISTORY_BYTES).to_string());
        let grace = time(mandate_grace.unwrap_or(crate::daemon::MANDATE_GRACE));
        let sessions = Entry::new("", "sessions").notes("", "for sessions that begin from now on", "").key(
            "mandate_grace",
            Live,
            grace,
        );
        let entries = groups.iter().map(group).chain(nodes.iter().map(launch));
        [fixed.without(given), live, sessions].into_iter().chain(entries).collect()
    }
}

#[cfg(test)]
mod tests {
    use wardkeep_node::settings::{diff, sentence};

    use super::*;

    fn node(text: &str) -> Vec<Entry> {
        toml::from_str::<NodeFile>(text).unwrap().entries(&[])
    }

    fn changes(before: &str, after: &str) -> Vec<String> {
        diff(&node(before), &node(after)).iter().map(sentence).collect()
    }

    const WARD: &str = "[[ward]]\nname = \"w\"\ncommand = [\"x\"]\n";

    #[test]
    fn a_default_that_is_written_down_and_another_way_to_write_a_value_are_no_change() {
        let defaults = "grace = \"5000ms\"\nstop_signal = \"TERM\"\nrestart = \"permanent\"\n\
            output = { lines = 1000, bytes = 262144 }\n[ward.env]\n";
        assert_eq!(changes(WARD, &format!("{WARD}{defaults}")), [""; 0]);
        let group = "[[group]]\nname = \"g\"\n";
        let defaults =
            "strategy = \"one_for_one\"\nintensity = 5\nperiod = \"30s\"\nauto_shutdown = \"never\"\n";
        assert_eq!(changes(group, &format!("{group}{defaults}")), [""; 0]);
    }

    #[test]
    fn what_a_program_is_restarts_it_and_how_it_is_treated_does_not() {
        for (key, told) in [
            ("grace = \"10s\"", "ward w: grace 5s -> 10s"),
            ("restart = \"transient\"", "ward w: restart permanent -> transient"),
            ("group = \"g\"", "ward w: group the node's own -> g"),
            ("start_timeout = \"3s\"", "ward w: start_timeout none -> 3s"),
            ("pulse_timeout = \"3s\"", "ward w: pulse_timeout none -> 3s"),
            ("output = { lines = 7 }", "ward w: output 1000 lines, 262144 bytes -> 7 lines, 262144 bytes"),
            ("dir = \"/tmp\"", "ward w: dir the node's -> /tmp (restarts)"),
            ("notify = true", "ward w: notify false -> true (restarts)"),
            ("env = { A = \"hush\" }", "ward w: env.A is new (restarts)"),
            ("stop_signal = \"INT\"", "ward w: stop_signal SIGTERM -> SIGINT (restarts)"),
            ("stop_to = \"program\"", "ward w: stop_to group -> program (restarts)"),
        ] {
            assert_eq!(changes(WARD, &format!("{WARD}{key}\n")), [told], "{key}");
        }
        let notifies = format!("{WARD}notify = true\n");
        let told = changes(&notifies, &format!("{notifies}pulse_timeout = \"3s\"\n"));
        assert_eq!(told, ["ward w: pulse_timeout none -> 3s (restarts)"], "it finds that in its environment");
    }

    #[test]
    fn what_a_node_is_is_refused_unless_a_flag_decides_it() {
        let told = changes("", "name = \"n\"\nlabels = { a = \"b\" }\n");
        assert_eq!(
            told,
            [
                "labels.a  -> b (restart the node: wardkeep node restart)",
                "name the machine's -> n (restart the node: wardkeep node restart)"
            ]
        );
        let given = |text: &str| toml::from_str::<NodeFile>(text).unwrap().entries(&["name"]);
        assert!(diff(&given(""), &given("name = \"n\"")).is_empty());
    }

    #[test]
    fn a_supervisors_file_says_what_follows() {
        let file = |text: &str| toml::from_str::<SupervisorFile>(text).unwrap().entries(&[]);
        let before = "[[node]]\nname = \"a\"\nlaunch = [\"x\"]\n[[node]]\nname = \"b\"\nlaunch = [\"x\"]\n";
        let after = "pulse_interval = \"1s\"\nrelaunch_after = \"1m\"\nmandate_grace = \"5s\"\n\
            [history]\nmax_bytes = \"1GiB\"\n[[group]]\nname = \"g\"\n\
            [[node]]\nname = \"a\"\ncommand = [\"y\"]\n[[node]]\nname = \"c\"\ncommand = [\"y\"]\n";
        let told: Vec<_> = diff(&file(before), &file(after)).iter().map(sentence).collect();
        assert_eq!(
            told,
            [
                "pulse_interval 500ms -> 1s (restart the supervisor)",
                "history.max_bytes 268435456 -> 1073741824",
                "relaunch_after 15s -> 1m",
                "mandate_grace 2s -> 5s (for sessions that begin from now on)",
                "+ group g",
                "node a: launcher process -> command (when it is next launched)",
                "node a: program [\"x\"] -> [\"y\"] (when it is next launched)",
                "+ node c (is launched if it is away)",
                "- node b (goes on if it runs; nobody launches it any more)",
            ]
        );
    }
}
