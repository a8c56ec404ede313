//! What a configuration file says, as entries of keys and values, and how two of them differ. Pure: used for
//! nodes' files and for supervisors'.

use std::collections::{BTreeMap, BTreeSet};

use wardkeep_proto::v1::{ConfigAction, ConfigChange, ConfigEffect};

/// What follows when a key has another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It holds at once; nothing is restarted.
    Live,
    /// The ward is restarted.
    Restarts,
    /// It cannot be changed while the process runs: nothing of the file is applied.
    Refused,
}

/// A value as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    shown: String,
    secret: bool,
    effect: Effect,
}

/// One thing a file describes: a ward, a group, a node to launch; or what belongs to the file itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    noun: &'static str,
    name: String,
    keys: BTreeMap<String, Value>,
    /// What follows when it is added, changed, removed.
    notes: [&'static str; 3],
}

impl Entry {
    /// `noun`: "ward", "group", "node"; empty for what belongs to the file itself.
    pub fn new(noun: &'static str, name: impl Into<String>) -> Self {
        Self { noun, name: name.into(), ..Self::default() }
    }

    /// Says what follows when it is added, changed, removed.
    #[must_use]
    pub fn notes(mut self, added: &'static str, changed: &'static str, removed: &'static str) -> Self {
        self.notes = [added, changed, removed];
        self
    }

    /// Adds a key. A value is to be shown in one way only, the default included: what is written in another way and
    /// means the same is no change.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>, effect: Effect, shown: impl Into<String>) -> Self {
        self.keys.insert(key.into(), Value { shown: shown.into(), secret: false, effect });
        self
    }

    /// Adds keys whose values may be secrets: that they change is told, and not what they are.
    #[must_use]
    pub fn secrets<'a>(
        mut self,
        prefix: &str,
        effect: Effect,
        values: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Self {
        for (key, value) in values {
            self.keys.insert(format!("{prefix}.{key}"), Value { shown: value.clone(), secret: true, effect });
        }
        self
    }

    /// Leaves keys out: something else decides them.
    #[must_use]
    pub fn without(mut self, keys: &[&str]) -> Self {
        self.keys.retain(|key, _| !keys.contains(&key.as_str()));
        self
    }

    fn id(&self) -> (&'static str, &str) {
        (self.noun, &self.name)
    }

    fn change(&self, action: ConfigAction, note: &str) -> ConfigChange {
        ConfigChange {
            action: action.into(),
            noun: self.noun.to_owned(),
            name: self.name.clone(),
            effect: ConfigEffect::Live.into(),
            note: note.to_owned(),
            ..Default::default()
        }
    }

    fn changes_to(&self, after: &Self) -> Vec<ConfigChange> {
        let keys: BTreeSet<_> = self.keys.keys().chain(after.keys.keys()).collect();
        let shown = |entry: &Self, key: &String| entry.keys.get(key).map(|value| value.shown.clone());
        let differs = |key: &&String| shown(self, key) != shown(after, key);
        keys.into_iter()
            .filter(differs)
            .map(|key| {
                let (old, new) = (self.keys.get(key), after.keys.get(key));
                let action = match (old, new) {
                    (None, _) => ConfigAction::Added,
                    (_, None) => ConfigAction::Removed,
                    _ => ConfigAction::Changed,
                };
                let told = |value: Option<&Value>| {
                    value.filter(|value| !value.secret).map(|value| value.shown.clone()).unwrap_or_default()
                };
                let effect = match new.or(old).map_or(Effect::Live, |value| value.effect) {
                    Effect::Live => ConfigEffect::Live,
                    Effect::Restarts => ConfigEffect::Restarts,
                    Effect::Refused => ConfigEffect::Refused,
                };
                ConfigChange {
                    key: key.clone(),
                    before: told(old),
                    after: told(new),
                    effect: effect.into(),
                    ..after.change(action, self.notes[1])
                }
            })
            .collect()
    }
}

/// How a file differs from the one before it: what has changed or is new, in its order, then what is
/// gone, the last first.
pub fn diff(before: &[Entry], after: &[Entry]) -> Vec<ConfigChange> {
    let old = |entry: &Entry| before.iter().find(|old| old.id() == entry.id());
    let changed = after.iter().flat_map(|entry| match old(entry) {
        Some(old) => old.changes_to(entry),
        None => vec![entry.change(ConfigAction::Added, entry.notes[0])],
    });
    let gone = before.iter().rev().filter(|old| !after.iter().any(|entry| entry.id() == old.id()));
    changed.chain(gone.map(|old| old.change(ConfigAction::Removed, old.notes[2]))).collect()
}

/// A change in one line: `ward solver: grace 5s -> 10s`, `+ ward indexer`, `- ward old`.
pub fn sentence(change: &ConfigChange) -> String {
    let ConfigChange { noun, name, key, before, after, note, .. } = change;
    let what = if key.is_empty() {
        let sign = if change.action() == ConfigAction::Removed { '-' } else { '+' };
        format!("{sign} {noun} {name}")
    } else {
        let of = if noun.is_empty() { String::new() } else { format!("{noun} {name}: ") };
        let how = match change.action() {
            _ if !(before.is_empty() && after.is_empty()) => format!("{before} -> {after}"),
            ConfigAction::Added => "is new".to_owned(),
            ConfigAction::Removed => "is gone".to_owned(),
            ConfigAction::Changed | ConfigAction::Unspecified => "has changed".to_owned(),
        };
        format!("{of}{key} {how}")
    };
    let follows = match change.effect() {
        ConfigEffect::Restarts => "restarts",
        ConfigEffect::Refused if note.is_empty() => "refused: it cannot be changed while the process runs",
        _ => note,
    };
    if follows.is_empty() { what } else { format!("{what} ({follows})") }
}

/// Why nothing of a file is applied, in one line: keys in it have changed that cannot be.
pub fn refusal(changes: &[ConfigChange]) -> Option<String> {
    let refused = changes.iter().filter(|change| change.effect() == ConfigEffect::Refused);
    let keys: Vec<_> = refused.clone().map(|change| change.key.as_str()).collect();
    let first = refused.clone().next()?;
    let note = if first.note.is_empty() { "restart the process" } else { &first.note };
    Some(format!("nothing was changed: {} cannot be changed while it runs: {note}", keys.join(", ")))
}

/// The names of the entries of a kind that have changed, and of these the ones with a change of this effect.
pub(crate) fn named<'a>(changes: &'a [ConfigChange], noun: &str, action: ConfigAction) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for change in changes.iter().filter(|change| change.noun == noun) {
        // A change of a key is one of its entry, whatever happened to the key.
        let of_entry = if change.key.is_empty() { change.action() } else { ConfigAction::Changed };
        if of_entry == action && !names.contains(&change.name.as_str()) {
            names.push(&change.name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ward(name: &str, grace: &str) -> Entry {
        Entry::new("ward", name).key("command", Effect::Restarts, "[\"x\"]").key("grace", Effect::Live, grace)
    }

    fn lines(before: &[Entry], after: &[Entry]) -> Vec<String> {
        diff(before, after).iter().map(sentence).collect()
    }

    #[test]
    fn what_is_the_same_is_no_change() {
        let file = [Entry::new("", "").key("name", Effect::Refused, "n"), ward("a", "5s")];
        assert!(diff(&file, &file).is_empty());
        let moved = [file[1].clone(), file[0].clone()];
        assert!(diff(&file, &moved).is_empty(), "the order of entries is no change");
    }

    #[test]
    fn changes_are_told_per_entry_and_key_and_what_is_gone_last_in_reverse() {
        let before = [ward("old", "5s"), ward("a", "5s"), ward("older", "5s"), Entry::new("group", "g")];
        let after = [
            ward("a", "10s").key("command", Effect::Restarts, "[\"y\"]"),
            ward("new", "5s"),
            Entry::new("group", "g").key("intensity", Effect::Live, "3"),
        ];
        assert_eq!(
            lines(&before, &after),
            [
                "ward a: command [\"x\"] -> [\"y\"] (restarts)",
                "ward a: grace 5s -> 10s",
                "+ ward new",
                "group g: intensity  -> 3",
                "- ward older",
                "- ward old",
            ]
        );
    }

    #[test]
    fn secrets_are_not_told() {
        let with = |values: &[(&str, &str)]| {
            let values: BTreeMap<_, _> =
                values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            [ward("a", "5s").secrets("env", Effect::Restarts, &values)]
        };
        let (before, after) =
            (with(&[("A", "hush"), ("B", "hush")]), with(&[("B", "quiet"), ("C", "quiet")]));
        let told = lines(&before, &after);
        assert_eq!(
            told,
            [
                "ward a: env.A is gone (restarts)",
                "ward a: env.B has changed (restarts)",
                "ward a: env.C is new (restarts)"
            ]
        );
        assert!(!format!("{:?}", diff(&before, &after)).contains("quiet"));
    }

    #[test]
    fn keys_that_cannot_be_changed_are_refused_by_name_with_what_to_do() {
        let file = |listen: &str| {
            let entry = Entry::new("", "").notes("", "restart the node", "");
            [entry.key("listen", Effect::Refused, listen).key("name", Effect::Refused, "n")]
        };
        let changes = diff(&file("a:1"), &file("a:2"));
        assert_eq!(sentence(&changes[0]), "listen a:1 -> a:2 (restart the node)");
        assert_eq!(
            refusal(&changes).unwrap(),
            "nothing was changed: listen cannot be changed while it runs: restart the node"
        );
        assert_eq!(refusal(&diff(&file("a:1"), &file("a:1"))), None);
        let given = |listen: &str| file(listen).map(|entry| entry.without(&["listen"]));
        assert!(diff(&given("a:1"), &given("a:2")).is_empty(), "a flag decides it");
    }

    #[test]
    fn entries_are_found_by_what_became_of_them() {
        let changes = diff(&[ward("a", "5s"), ward("b", "5s")], &[ward("b", "6s"), ward("c", "5s")]);
        assert_eq!(named(&changes, "ward", ConfigAction::Added), ["c"]);
        assert_eq!(named(&changes, "ward", ConfigAction::Changed), ["b"]);
        assert_eq!(named(&changes, "ward", ConfigAction::Removed), ["a"]);
        assert!(named(&changes, "group", ConfigAction::Added).is_empty());
    }
}
