//! The files `wardkeep serve` reads. What is wrong with one is said in one line: file, line, and
//! the nearest key that exists.

mod entries;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use humantime::format_duration;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use wardkeep_node::{Backoff, Configuration, GroupSpec, Program, Restart, Strategy, Ward, wire};
use wardkeep_steward::{AutoShutdown, Config, Escalate, MAX_DEPTH};

pub use entries::Given;

use crate::daemon::{self, COMMAND_TIMEOUT, HISTORY_AGE, HISTORY_BYTES, How, Launch, SOCKET};

/// `wardkeep serve supervisor --config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SupervisorFile {
    /// `host:port`.
    pub listen: Option<String>,
    /// Where it keeps what must survive it.
    pub data_dir: Option<PathBuf>,
    /// Accepts plaintext on an address other machines can reach.
    pub insecure: bool,
    /// How often nodes report.
    #[serde(deserialize_with = "duration")]
    pub pulse_interval: Option<Duration>,
    /// Silence that is always a verdict.
    #[serde(deserialize_with = "duration")]
    pub silence_ceiling: Option<Duration>,
    /// Silence after which an unreachable node is launched anew.
    #[serde(deserialize_with = "duration")]
    pub relaunch_after: Option<Duration>,
    /// What was launched and does not attend within this is launched anew.
    #[serde(deserialize_with = "duration")]
    pub attend_timeout: Option<Duration>,
    /// Nodes take over their own wards after so long without a session.
    #[serde(deserialize_with = "duration")]
    pub mandate_grace: Option<Duration>,
    /// What of the history is kept.
    pub history: HistoryEntry,
    /// Groups.
    pub group: Vec<GroupEntry>,
    /// Nodes to launch.
    pub node: Vec<LaunchEntry>,
}

/// `[history]` of a supervisor.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryEntry {
    /// What happened longer ago is dropped.
    #[serde(deserialize_with = "duration")]
    max_age: Option<Duration>,
    /// Beyond so many bytes the oldest is dropped.
    #[serde(deserialize_with = "bytes")]
    max_bytes: Option<u64>,
}

/// `wardkeep serve node --config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeFile {
    /// Its name.
    pub name: Option<String>,
    /// `host:port`.
    pub listen: Option<String>,
    /// `http://host:port`.
    pub supervisor: Option<String>,
    /// Where clients reach it, if not where it listens.
    pub advertise: Option<String>,
    /// Accepts plaintext on an address other machines can reach.
    pub insecure: bool,
    /// The machine it counts as.
    pub machine: Option<String>,
    /// The zone it counts as.
    pub zone: Option<String>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// Groups.
    pub group: Vec<GroupEntry>,
    /// Process wards.
    pub ward: Vec<WardEntry>,
}

/// `[[group]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    name: String,
    #[serde(default)]
    strategy: StrategyWord,
    intensity: Option<u32>,
    #[serde(default, deserialize_with = "duration")]
    period: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    backoff_first: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    backoff_max: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    backoff_reset: Option<Duration>,
    /// The group it is a member of.
    parent: Option<String>,
    /// What follows its end, if it has a parent.
    #[serde(default)]
    restart: RestartWord,
    #[serde(default)]
    significant: bool,
    #[serde(default)]
    auto_shutdown: AutoShutdownWord,
    /// What follows when it gives up, if it has no parent.
    #[serde(default)]
    escalate: EscalateWord,
}

/// `[[node]]` of a supervisor.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchEntry {
    name: String,
    /// Program and arguments: the node, as a child of the supervisor.
    launch: Option<Vec<String>>,
    /// Program and arguments: starts the node somewhere else.
    command: Option<Vec<String>>,
    /// The container that the node is in: its name, its ID, or a label that it alone has.
    container: Option<String>,
    /// Where the container engine listens.
    socket: Option<PathBuf>,
    /// For the command to end, or the engine to be done.
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// `[[ward]]` of a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WardEntry {
    name: String,
    /// Program and arguments.
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    dir: Option<PathBuf>,
    /// Speaks sd_notify: ready when it says so.
    #[serde(default)]
    notify: bool,
    probe: Option<ProbeEntry>,
    /// By name, as `SIGINT`.
    stop_signal: Option<String>,
    #[serde(default)]
    stop_to: StopTo,
    output: Option<OutputEntry>,
    group: Option<String>,
    #[serde(default)]
    restart: RestartWord,
    #[serde(default, deserialize_with = "duration")]
    pulse_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    start_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    grace: Option<Duration>,
    #[serde(default)]
    manual_start: bool,
    /// Its end counts for its group's auto_shutdown.
    #[serde(default)]
    significant: bool,
}

/// `probe` of a ward.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeEntry {
    /// `http://host:port`.
    address: String,
    #[serde(default)]
    service: String,
    #[serde(default, deserialize_with = "duration")]
    interval: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

/// `output` of a ward.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OutputEntry {
    lines: usize,
    bytes: usize,
}

impl Default for OutputEntry {
    fn default() -> Self {
        Self { lines: 1_000, bytes: 256 * 1_024 }
    }
}

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Output is kept in memory.
const MOST_OUTPUT: OutputEntry = OutputEntry { lines: 1_000_000, bytes: 256 * 1_024 * 1_024 };

/// Whom the stop signal goes to.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StopTo {
    #[default]
    Group,
    Program,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StrategyWord {
    #[default]
    OneForOne,
    OneForAll,
    RestForOne,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AutoShutdownWord {
    #[default]
    Never,
    AnySignificant,
    AllSignificant,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EscalateWord {
    #[default]
    Node,
    Quarantine,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum RestartWord {
    #[default]
    Permanent,
    Transient,
    Temporary,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map(Some).map_err(|e| {
        serde::de::Error::custom(format!("{text:?} is not a duration such as \"500ms\" or \"2s\" ({e})"))
    })
}

/// The least worth keeping.
const LEAST_BYTES: u64 = 1 << 20;

/// A number of bytes, or text with a unit.
fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bytes {
        Number(u64),
        Text(String),
    }
    let text = match Bytes::deserialize(deserializer)? {
        Bytes::Number(bytes) => return Ok(Some(bytes)),
        Bytes::Text(text) => text,
    };
    text.parse::<bytesize::ByteSize>().map(|size| Some(size.as_u64())).map_err(|_| {
        serde::de::Error::custom(format!("{text:?} is not a number of bytes such as \"256MiB\" or 1000000"))
    })
}

impl HistoryEntry {
    /// How long, and how many bytes of it, what happened is kept.
    ///
    /// # Errors
    /// One line if that is nothing.
    pub fn retention(&self) -> Result<(Duration, u64), String> {
        let age = self.max_age.unwrap_or(HISTORY_AGE);
        let bytes = self.max_bytes.unwrap_or(HISTORY_BYTES);
        if age.is_zero() {
            return Err("history.max_age must be longer than nothing".to_owned());
        }
        if bytes < LEAST_BYTES {
            return Err(format!("history.max_bytes is {bytes}: it must be at least 1 MiB"));
        }
        Ok((age, bytes))
    }
}

impl GroupEntry {
    /// The group's spec; what the file leaves open gets the default.
    pub fn spec(&self) -> GroupSpec {
        let default = GroupSpec::new(self.name.as_str());
        GroupSpec {
            strategy: match self.strategy {
                StrategyWord::OneForOne => Strategy::OneForOne,
                StrategyWord::OneForAll => Strategy::OneForAll,
                StrategyWord::RestForOne => Strategy::RestForOne,
            },
            intensity: self.intensity.unwrap_or(default.intensity),
            period: self.period.unwrap_or(default.period),
            backoff: Backoff {
                first: self.backoff_first.unwrap_or(default.backoff.first),
                max: self.backoff_max.unwrap_or(default.backoff.max),
                reset: self.backoff_reset.unwrap_or(default.backoff.reset),
            },
            parent: self.parent.as_deref().map(Into::into),
            restart: self.restart.restart(),
            significant: self.significant,
            auto_shutdown: match self.auto_shutdown {
                AutoShutdownWord::Never => AutoShutdown::Never,
                AutoShutdownWord::AnySignificant => AutoShutdown::AnySignificant,
                AutoShutdownWord::AllSignificant => AutoShutdown::AllSignificant,
            },
            escalate: match self.escalate {
                EscalateWord::Node => Escalate::Node,
                EscalateWord::Quarantine => Escalate::Quarantine,
            },
            ..default
        }
    }
}

impl RestartWord {
    fn restart(self) -> Restart {
        match self {
            Self::Permanent => Restart::Permanent,
            Self::Transient => Restart::Transient,
            Self::Temporary => Restart::Temporary,
        }
    }
}

/// What follows if a permanent member is called significant: nothing, since it never ends for good.
const NOT_SIGNIFICANT: &str =
    "is permanent, so it cannot be significant: give it restart = \"transient\" or \"temporary\"";

/// The groups of a file.
///
/// # Errors
/// One line if they do not make trees, or one of them cannot be significant.
pub fn groups(entries: &[GroupEntry]) -> Result<Vec<GroupSpec>, String> {
    let parent = |name: &str| entries.iter().find(|entry| entry.name == name)?.parent.as_deref();
    let mut names = BTreeSet::new();
    for GroupEntry { name, restart, significant, .. } in entries {
        if !names.insert(name) {
            return Err(format!("two groups are named {name}"));
        }
        if *significant && *restart == RestartWord::Permanent {
            return Err(format!("group {name} {NOT_SIGNIFICANT}"));
        }
        let above = std::iter::successors(parent(name), |&above| parent(above));
        for (depth, above) in above.enumerate() {
            if above == name {
                return Err(format!("group {name} is in itself: its parents lead back to it"));
            }
            if depth + 1 >= MAX_DEPTH {
                return Err(format!("group {name} lies more than {MAX_DEPTH} groups deep"));
            }
        }
    }
    Ok(entries.iter().map(GroupEntry::spec).collect())
}

impl SupervisorFile {
    /// What it describes.
    ///
    /// # Errors
    /// One line that says what does not go together.
    pub fn configuration(&self, given: Given<'_>) -> Result<daemon::Configuration, String> {
        Ok(daemon::Configuration {
            steward: self.steward()?,
            mandate_grace: self.mandate_grace.unwrap_or(daemon::MANDATE_GRACE),
            history: self.history.retention()?,
            groups: groups(&self.group)?,
            launches: self.launches()?,
            entries: self.entries(given),
        })
    }

    /// How the steward judges and heals.
    ///
    /// # Errors
    /// One line if the durations do not go together.
    pub fn steward(&self) -> Result<Config, String> {
        let default = Config::default();
        let pulse_interval = self.pulse_interval.unwrap_or(default.pulse_interval);
        let silence_ceiling = self.silence_ceiling.unwrap_or(default.silence_ceiling);
        if pulse_interval.is_zero() {
            return Err("pulse_interval must be longer than nothing".to_owned());
        }
        let attend_timeout = self.attend_timeout.unwrap_or(default.attend_timeout);
        if attend_timeout.is_zero() {
            return Err("attend_timeout must be longer than nothing".to_owned());
        }
        if silence_ceiling < pulse_interval * 2 {
            let (ceiling, pulse) = (format_duration(silence_ceiling), format_duration(pulse_interval));
            return Err(format!(
                "silence_ceiling ({ceiling}) must be at least twice pulse_interval ({pulse}): one late report is no failure"
            ));
        }
        Ok(Config {
            pulse_interval,
            silence_ceiling,
            silence_floor: default.silence_floor.min(silence_ceiling),
            relaunch_after: self.relaunch_after.unwrap_or(default.relaunch_after),
            attend_timeout,
            ..default
        })
    }

    /// The nodes to launch.
    ///
    /// # Errors
    /// One line if one has no program, or two have one name.
    pub fn launches(&self) -> Result<Vec<Launch>, String> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.node.iter().find(|entry| !names.insert(&entry.name)) {
            return Err(format!("two nodes to launch are named {}", twice.name));
        }
        self.node.iter().map(LaunchEntry::launch).collect()
    }
}

impl LaunchEntry {
    /// What the launcher is told.
    ///
    /// # Errors
    /// One line if there is no program, or more than one.
    pub fn launch(&self) -> Result<Launch, String> {
        let node = &self.name;
        let refuse = |what: &str| Err(format!("node {node}: {what}"));
        let timeout = self.timeout.unwrap_or(COMMAND_TIMEOUT);
        if timeout.is_zero() {
            return refuse("timeout must be longer than nothing");
        }
        if self.container.is_none() && self.socket.is_some() {
            return refuse("socket is the container engine's, and there is no container");
        }
        let (how, program, args) = match (&self.launch, &self.command, &self.container) {
            (Some(_), None, None) if self.timeout.is_some() => {
                return refuse("timeout is for a command or a container; launch has none");
            }
            (Some(line), None, None) => (How::Process, self.program("launch", line)?, &line[1..]),
            (None, Some(line), None) => {
                (How::Command { timeout }, self.program("command", line)?, &line[1..])
            }
            (None, None, Some(container)) => {
                self.check_container(container)?;
                (How::Docker { timeout }, container.into(), &[][..])
            }
            (None, None, None) => {
                return refuse(
                    "give it launch (a child of the supervisor), command (starts it somewhere else) or container",
                );
            }
            _ => return refuse("launch, command and container exclude each other"),
        };
        if node.contains('*') && self.container.is_none() {
            return refuse("a name with a * is for nodes in containers");
        }
        // It names files, too.
        wire::check_name("[[node]]", node)?;
        Ok(Launch {
            node: node.clone(),
            how,
            program,
            args: args.iter().map(Into::into).collect(),
            env: self.env.clone(),
            socket: self.socket.clone().unwrap_or_else(|| SOCKET.into()),
        })
    }

    fn program(&self, key: &str, line: &[String]) -> Result<PathBuf, String> {
        let program = line.first().ok_or_else(|| format!("node {}: {key} names no program", self.name))?;
        Ok(program.into())
    }

    fn check_container(&self, container: &str) -> Result<(), String> {
        let node = &self.name;
        let odd = |c: char| c.is_control() || c == '/' || c == '?' || c == '#' || c == '%';
        // A label may have anything in it: it is no part of an address.
        if container.is_empty() || (!container.contains('=') && container.contains(odd)) {
            return Err(format!(
                "node {node}: {container:?} is neither a container's name or ID nor a label"
            ));
        }
        if node.matches('*').count() > 1 || container.contains('*') != node.contains('*') {
            return Err(format!(
                "node {node}: a * stands for a part of the node's name, once, and for the same in its container"
            ));
        }
        if !self.env.is_empty() {
            return Err(format!(
                "node {node}: a container has its environment from the engine, not from env"
            ));
        }
        Ok(())
    }
}

impl WardEntry {
    /// The ward.
    ///
    /// # Errors
    /// One line if there is no program, or what is said of it cannot be.
    pub fn ward(&self) -> Result<Ward, String> {
        let Some((path, args)) = self.command.split_first() else {
            return Err(format!("ward {}: command names no program", self.name));
        };
        let mut program = Program::new(path).args(args);
        for (key, value) in &self.env {
            program = program.env(key, value);
        }
        if let Some(dir) = &self.dir {
            program = program.dir(dir);
        }
        if self.notify {
            program = program.notifies();
        }
        let program = self.told(program).map_err(|what| format!("ward {}: {what}", self.name))?;
        let mut ward = Ward::process(self.name.as_str(), program).restart(self.restart.restart());
        if self.significant {
            if self.restart == RestartWord::Permanent {
                return Err(format!("ward {} {NOT_SIGNIFICANT}", self.name));
            }
            ward = ward.significant();
        }
        if let Some(group) = &self.group {
            ward = ward.group(group.as_str());
        }
        if let Some(timeout) = self.pulse_timeout {
            ward = ward.pulse_timeout(timeout);
        }
        if let Some(timeout) = self.start_timeout {
            ward = ward.start_timeout(timeout);
        }
        if let Some(grace) = self.grace {
            ward = ward.grace(grace);
        }
        Ok(if self.manual_start { ward.manual_start() } else { ward })
    }
}

impl WardEntry {
    /// How it is stopped, probed, and kept the output of.
    fn told(&self, mut program: Program) -> Result<Program, String> {
        let wrong = |error: wardkeep_proto::Error| error.what().to_owned();
        if let Some(signal) = &self.stop_signal {
            program = program.stop_signal(signal).map_err(wrong)?;
        }
        if matches!(self.stop_to, StopTo::Program) {
            program = program.stops_its_children();
        }
        if let Some(OutputEntry { lines, bytes }) = self.output {
            let OutputEntry { lines: most_lines, bytes: most_bytes } = MOST_OUTPUT;
            if lines > most_lines || bytes > most_bytes {
                return Err(format!(
                    "output is kept in memory: {most_lines} lines, {most_bytes} bytes at most"
                ));
            }
            program = program.keeps_output(lines, bytes);
        }
        if let Some(probe) = &self.probe {
            program = program.probe(&probe.address, probe.service.as_str()).map_err(wrong)?;
            let interval = probe.interval.unwrap_or(PROBE_INTERVAL);
            let timeout = probe.timeout.unwrap_or(PROBE_TIMEOUT);
            program = program.probes_every(interval, timeout).map_err(wrong)?;
        }
        Ok(program)
    }
}

/// Reads a file.
///
/// # Errors
/// One line: the file, the line, what is wrong, and the nearest key that exists.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    parse(path, &text)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|e| format!("{}:{}", path.display(), explain(text, &e)))
}

/// Reads a node's file, and says what it describes.
///
/// # Errors
/// One line: the file, the line where there is one, and what is wrong.
pub fn node(path: &Path, given: Given<'_>) -> Result<(NodeFile, Configuration), String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let file: NodeFile = parse(path, &text)?;
    match file.configuration(given) {
        Ok(configuration) => Ok((file, configuration)),
        Err(what) => {
            let groups = file.group.iter().map(|entry| ("group", entry.name.as_str()));
            let wards = file.ward.iter().map(|entry| ("ward", entry.name.as_str()));
            Err(located(path, &text, groups.chain(wards), &what))
        }
    }
}

/// Reads a supervisor's file, and says what it describes.
///
/// # Errors
/// As [`node`].
pub fn supervisor(path: &Path, given: Given<'_>) -> Result<(SupervisorFile, daemon::Configuration), String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let file: SupervisorFile = parse(path, &text)?;
    match file.configuration(given) {
        Ok(configuration) => Ok((file, configuration)),
        Err(what) => {
            let groups = file.group.iter().map(|entry| ("group", entry.name.as_str()));
            let nodes = file.node.iter().map(|entry| ("node", entry.name.as_str()));
            Err(located(path, &text, groups.chain(nodes), &what))
        }
    }
}

/// Puts the file before what is wrong, and the line on which the entry begins that it is about.
fn located<'a>(
    path: &Path,
    text: &str,
    entries: impl Iterator<Item = (&'static str, &'a str)>,
    what: &str,
) -> String {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut found = None;
    for (noun, name) in entries {
        let place = places.entry(noun).or_default();
        // What is there twice is wrong the second time.
        let here =
            what.starts_with(&format!("{noun} {name}")) || what.ends_with(&format!("are named {name}"));
        if here {
            found = Some((noun, *place));
        }
        *place += 1;
    }
    let line = found.and_then(|(noun, place)| {
        let header = format!("[[{noun}]]");
        let mut lines = text.lines().enumerate().filter(|(_, line)| line.trim().starts_with(&header));
        lines.nth(place).map(|(line, _)| line + 1)
    });
    match line {
        Some(line) => format!("{}:{line}: {what}", path.display()),
        None => format!("{}: {what}", path.display()),
    }
}

impl NodeFile {
    /// What it describes.
    ///
    /// # Errors
    /// One line that says what does not go together.
    pub fn configuration(&self, given: Given<'_>) -> Result<Configuration, String> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.ward.iter().find(|entry| !names.insert(&entry.name)) {
            return Err(format!("two wards are named {}", twice.name));
        }
        for entry in &self.group {
            wire::check_name("group", &entry.name)?;
        }
        Ok(Configuration {
            entries: self.entries(given),
            groups: groups(&self.group)?,
            wards: self.ward.iter().map(WardEntry::ward).collect::<Result<_, _>>()?,
        })
    }
}

fn explain(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    let message = error.message().trim().replace('\n', " ");
    let nearest = nearest_key(&message).map(|key| format!("; did you mean `{key}`?")).unwrap_or_default();
    let message = if nearest.is_empty() {
        message
    } else {
        message.split(", expected").next().unwrap_or(&message).to_owned()
    };
    format!("{line}: {message}{nearest}")
}

/// serde says "unknown field `a`, expected one of `b`, `c`".
fn nearest_key(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    quoted
        .map(|key| (strsim::damerau_levenshtein(wrong, key), key))
        .min()
        .filter(|(distance, key)| *distance <= 1 + key.len() / 3)
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let error = read::<NodeFile>(file.path()).unwrap_err();
        error.replace(&file.path().display().to_string(), "f.toml")
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_key() {
        assert_eq!(
            error("name = \"a\"\nlisten_on = \"x\"\n"),
            "f.toml:2: unknown field `listen_on`; did you mean `listen`?"
        );
        let error = error("[[ward]]\nname = \"a\"\ncommand = [\"x\"]\nrestrat = \"permanent\"\n");
        assert_eq!(error, "f.toml:4: unknown field `restrat`; did you mean `restart`?");
    }

    #[test]
    fn a_bad_duration_and_a_bad_word_say_what_would_be_right() {
        let bad = error("[[ward]]\nname = \"a\"\ncommand = [\"x\"]\ngrace = \"soon\"\n");
        assert!(bad.starts_with("f.toml:4: \"soon\" is not a duration such as"), "{bad}");
        let word = error("[[group]]\nname = \"g\"\nstrategy = \"one_for_al\"\n");
        assert_eq!(word, "f.toml:3: unknown variant `one_for_al`; did you mean `one_for_all`?");
    }

    #[test]
    fn durations_that_do_not_go_together_are_refused() {
        let file = |text| toml::from_str::<SupervisorFile>(text).unwrap();
        let refused = file("pulse_interval = \"5s\"").steward().unwrap_err();
        assert!(refused.starts_with("silence_ceiling (2s 500ms) must be at least twice"), "{refused}");
        let refused = file("attend_timeout = \"0s\"").steward().unwrap_err();
        assert_eq!(refused, "attend_timeout must be longer than nothing");
        let config = file("attend_timeout = \"2m\"").steward().unwrap();
        assert_eq!(config.attend_timeout, Duration::from_secs(120));
        assert!(file("pulse_interval = \"0s\"").steward().is_err());
        assert!(file("pulse_interval = \"5s\"\nsilence_ceiling = \"20s\"").steward().is_ok());
    }

    #[test]
    fn what_is_kept_of_the_history_is_some_of_it() {
        let kept = |text| toml::from_str::<SupervisorFile>(text).map(|file| file.history.retention());
        assert_eq!(kept("").unwrap().unwrap(), (HISTORY_AGE, HISTORY_BYTES));
        let week = Duration::from_secs(7 * 86_400);
        assert_eq!(
            kept("[history]\nmax_age = \"7d\"\nmax_bytes = \"2GiB\"").unwrap().unwrap(),
            (week, 2 << 30)
        );
        assert_eq!(kept("[history]\nmax_bytes = 5000000").unwrap().unwrap().1, 5_000_000);
        assert!(kept("[history]\nmax_age = \"0s\"").unwrap().unwrap_err().contains("history.max_age"));
        assert!(kept("[history]\nmax_bytes = \"4KiB\"").unwrap().unwrap_err().contains("at least 1 MiB"));
        let bad = kept("[history]\nmax_bytes = \"plenty\"").unwrap_err().to_string();
        assert!(bad.contains("\"plenty\" is not a number of bytes such as"), "{bad}");
    }

    #[test]
    fn nodes_to_launch_have_names_of_their_own_that_can_be_files() {
        let file = |text: &str| toml::from_str::<SupervisorFile>(text).unwrap().launches();
        let one = "[[node]]\nname = \"a\"\nlaunch = [\"x\"]\n";
        assert_eq!(file(one).unwrap().len(), 1);
        assert_eq!(file(&one.repeat(2)).unwrap_err(), "two nodes to launch are named a");
        assert!(file(&one.replace("\"a\"", "\"../a\"")).unwrap_err().contains("slash"));
        let how = |keys: &str| file(&format!("[[node]]\nname = \"a\"\n{keys}")).map(|all| all[0].how);
        assert_eq!(how("launch = [\"x\"]"), Ok(How::Process));
        assert_eq!(how("command = [\"x\"]"), Ok(How::Command { timeout: Duration::from_secs(30) }));
        let timeout = Duration::from_secs(5);
        assert_eq!(how("command = [\"x\"]\ntimeout = \"5s\""), Ok(How::Command { timeout }));
        assert_eq!(how("container = \"x\"\ntimeout = \"5s\""), Ok(How::Docker { timeout }));
        assert_eq!(how("container = \"my.label=a/b\""), Ok(How::Docker { timeout: COMMAND_TIMEOUT }));
        let stars = "[[node]]\nname = \"scan-*\"\ncontainer = \"*\"\nsocket = \"/s\"\n";
        assert_eq!(file(stars).unwrap()[0].socket, std::path::Path::new("/s"));
        for (from, to) in [("\"*\"", "\"x\""), ("scan-*", "scan"), ("scan-*", "*-*")] {
            let error = file(&stars.replace(from, to)).unwrap_err();
            assert!(error.contains("a * stands for"), "{error}");
        }
        for (keys, says) in [
            ("", "node a: give it launch"),
            ("launch = [\"x\"]\ncommand = [\"x\"]", "exclude each other"),
            ("launch = [\"x\"]\ntimeout = \"5s\"", "timeout is for a command"),
            ("launch = [\"x\"]\ncontainer = \"x\"", "exclude each other"),
            ("launch = [\"x\"]\nsocket = \"/s\"", "there is no container"),
            ("container = \"a/b\"", "node a: \"a/b\" is neither"),
            ("container = \"\"", "node a: \"\" is neither"),
            ("container = \"x\"\nenv = { A = \"b\" }", "has its environment from the engine"),
            ("container = \"x\"\ntimeout = \"0s\"", "longer than nothing"),
            ("command = [\"x\"]\ntimeout = \"0s\"", "longer than nothing"),
            ("command = []", "node a: command names no program"),
        ] {
            let error = how(keys).unwrap_err();
            assert!(error.contains(says), "{keys}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_said_of_a_program_is_refused_in_one_line() {
        let ward = |keys: &str| {
            let text = format!("[[ward]]\nname = \"w\"\ncommand = [\"x\"]\n{keys}\n");
            toml::from_str::<NodeFile>(&text).unwrap().ward[0].ward().map(drop)
        };
        for (keys, says) in [
            ("stop_signal = \"SIGFOO\"", "ward w: \"SIGFOO\" is not a signal that ends a program, such as"),
            ("stop_signal = \"SIGSTOP\"", "ward w: \"SIGSTOP\" is not a signal that ends"),
            ("probe = { address = \"nowhere\" }", "nowhere"),
            (
                "probe = { address = \"http://h:1\", interval = \"0s\" }",
                "ward w: interval and timeout of a probe",
            ),
            ("output = { lines = 9999999 }", "ward w: output is kept in memory: 1000000 lines"),
        ] {
            let error = ward(keys).unwrap_err();
            assert!(error.contains(says) && error.lines().count() == 1, "{keys}: {error}");
        }
        for keys in [
            "stop_signal = \"INT\"",
            "stop_signal = \"SIGRTMIN\"",
            "stop_to = \"program\"",
            "output = { lines = 0 }",
        ] {
            assert_eq!(ward(keys).is_ok(), !keys.contains("RTMIN"), "{keys}");
        }
        let unknown = error("[[ward]]\nname = \"a\"\ncommand = [\"x\"]\nstop_to = \"progam\"\n");
        assert_eq!(unknown, "f.toml:4: unknown variant `progam`; did you mean `program`?");
    }

    #[test]
    fn groups_make_trees_or_are_refused_in_one_line() {
        let read = |text: &str| groups(&toml::from_str::<NodeFile>(text).unwrap().group);
        let group = |name: &str, keys: &str| format!("[[group]]\nname = \"{name}\"\n{keys}\n");
        let inner = "parent = \"a\"\nrestart = \"transient\"\nsignificant = true";
        let tree = group("a", "auto_shutdown = \"any_significant\"") + &group("b", inner);
        let specs = read(&tree).unwrap();
        assert_eq!((specs[1].parent.as_deref(), specs[1].significant), (Some("a"), true));
        assert_eq!(specs[0].auto_shutdown, AutoShutdown::AnySignificant);

        let circle = group("a", "parent = \"b\"") + &group("b", "parent = \"a\"");
        assert_eq!(read(&circle).unwrap_err(), "group a is in itself: its parents lead back to it");
        let deep: String =
            (0..20).map(|n| group(&format!("g{n}"), &format!("parent = \"g{}\"", n + 1))).collect();
        assert_eq!(read(&deep).unwrap_err(), "group g0 lies more than 16 groups deep");
        assert!(read(&group("a", "significant = true")).unwrap_err().starts_with("group a is permanent"));
        assert_eq!(read(&(group("a", "") + &group("a", ""))).unwrap_err(), "two groups are named a");
    }

    #[test]
    fn what_does_not_go_together_is_told_with_its_file_and_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let wrong = |text: &str| {
            fs::write(file.path(), text).unwrap();
            let error = node(file.path(), &[]).unwrap_err();
            error.replace(&file.path().display().to_string(), "f.toml")
        };
        let ward =
            |name: &str, command: &str| format!("[[ward]]\nname = \"{name}\"\ncommand = [{command}]\n");
        let first = ward("a", "\"x\"");
        assert_eq!(wrong(&(first.clone() + &ward("b", ""))), "f.toml:4: ward b: command names no program");
        assert_eq!(wrong(&first.repeat(2)), "f.toml:4: two wards are named a");
        let circle = "[[group]]\nname = \"g\"\nparent = \"g\"\n";
        assert_eq!(wrong(&(first + circle)), "f.toml:4: group g is in itself: its parents lead back to it");
    }

    #[test]
    fn a_whole_file_is_read() {
        let text = "name = \"n\"\n[labels]\npath = \"x\"\n[[group]]\nname = \"g\"\nintensity = 3\nperiod = \"10s\"\n\
            [[ward]]\nname = \"w\"\ncommand = [\"sleep\", \"1\"]\ngroup = \"g\"\nrestart = \"transient\"\n";
        let file: NodeFile = toml::from_str(text).unwrap();
        assert_eq!(file.group[0].spec().intensity, 3);
        assert_eq!(file.ward[0].ward().unwrap().name(), "w");
    }
}
