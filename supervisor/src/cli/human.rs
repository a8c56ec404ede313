//! Times and states as people like to read them.

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

use super::{
    table::{Cell, Tone},
    view::{NodeView, WardView, moment},
};

/// The age of something: `12s`, `3m`, `2h`, `5d`; `-` if it is not known.
pub(crate) fn age(since: Option<Timestamp>, now: DateTime<Utc>) -> String {
    let Some(since) = moment(since) else { return "-".to_owned() };
    let seconds = (now - since).num_seconds().max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A short length of time: `12ms`, `3.2s`, `4m`; `-` for none.
pub(crate) fn length(millis: Option<u64>) -> String {
    match millis {
        None => "-".to_owned(),
        Some(ms @ 0..=999) => format!("{ms}ms"),
        Some(ms @ 1_000..=119_999) if ms % 1_000 < 100 => format!("{}s", ms / 1_000),
        Some(ms @ 1_000..=119_999) => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        Some(ms @ 120_000..=7_199_999) => format!("{}m", ms / 60_000),
        Some(ms) => format!("{}h", ms / 3_600_000),
    }
}

/// A size: `512B`, `3.2MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes}B"),
    }
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    let ending = if noun.ends_with('s') { "es" } else { "s" };
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}{ending}") }
}

/// As much of a UUIDv7 as tells two apart that were made in different milliseconds.
pub(crate) fn short_id(id: &str) -> String {
    match id.get(..13) {
        Some(head) if id.len() > 13 => format!("{head}…"),
        _ => id.to_owned(),
    }
}

/// What to say of a node in one word.
pub(crate) fn node_state(node: &NodeView) -> (&str, Tone) {
    match node.verdict.as_str() {
        "healthy" if !node.attending => ("away", Tone::Bad),
        "healthy" if node.draining => ("draining", Tone::Warn),
        "healthy" => ("healthy", Tone::Good),
        other => (other, Tone::Bad),
    }
}

/// What to say of a ward in one word.
pub(crate) fn ward_state(ward: &WardView) -> (&str, Tone) {
    let ill = !matches!(ward.verdict.as_str(), "healthy" | "unknown");
    match ward.state.as_str() {
        "running" if ill => (ward.verdict.as_str(), Tone::Bad),
        "running" => ("running", Tone::Good),
        state @ "stopped" => (state, Tone::Plain),
        state @ ("starting" | "stopping") => (state, Tone::Warn),
        state => (state, Tone::Bad),
    }
}

/// The same as a cell.
pub(crate) fn state_cell((word, tone): (&str, Tone)) -> Cell {
    Cell::toned(word, tone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_lengths_are_short() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let ago = |s: i64| age(Some(Timestamp { seconds: 1_000_000 - s, nanos: 0 }), now);
        assert_eq!([ago(12), ago(200), ago(7_300), ago(500_000), ago(-5)], ["12s", "3m", "2h", "5d", "0s"]);
        assert_eq!(age(None, now), "-");
        assert_eq!([12, 3_250, 30_000].map(|ms| length(Some(ms))), ["12ms", "3.2s", "30s"]);
        assert_eq!(length(None), "-");
        assert_eq!(
            [12, 1_024, 5_400_000, u64::MAX].map(bytes),
            ["12B", "1.0KiB", "5.1MiB", "17179869183.9GiB"]
        );
        assert_eq!([count(1, "process"), count(2, "process")], ["1 process", "2 processes"]);
        assert_eq!(short_id("0198f3a2-1b4c-7aaa-8bbb-cccccccccccc"), "0198f3a2-1b4c…");
    }
}
