//! The table, for people, and the rows of `report.json`, for programs.

use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::{Deserialize, Serialize};

use super::{Fault, Finding};
use crate::{cluster::Picture, load::Tally};

/// What came of one fault.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// Its name.
    pub fault: String,
    /// What the cluster was made of: `process` or `docker`.
    pub cluster: String,
    /// What was promised.
    pub promised: String,
    /// Noticed so long after it began.
    pub detected_ms: Option<u64>,
    /// Well so long after it began.
    pub healed_ms: Option<u64>,
    /// Calls meanwhile.
    pub calls: u64,
    /// Of those, how many failed.
    pub failed: u64,
    /// Of those, how many got a wrong answer.
    pub wrong: u64,
    /// Starts of processes and of wards, false ones included.
    pub restarts: u64,
    /// Restarts of what was well.
    pub false_restarts: u64,
    /// Calls that never ended, and events that were told and not kept.
    pub lost: u64,
    /// All that was promised held.
    pub ok: bool,
    /// What did not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "why")]
    pub broken: Vec<String>,
    /// What the supervisor told meanwhile, if something did not hold.
    #[serde(skip)]
    pub story: Vec<String>,
    /// The first calls that failed, in words.
    #[serde(skip)]
    pub told: Vec<String>,
}

impl Row {
    pub(super) fn of(fault: &Fault) -> Self {
        Self {
            fault: fault.name.to_owned(),
            cluster: fault.home.word().to_owned(),
            promised: fault.promised.to_owned(),
            detected_ms: None,
            healed_ms: None,
            calls: 0,
            failed: 0,
            wrong: 0,
            restarts: 0,
            false_restarts: 0,
            lost: 0,
            ok: false,
            broken: Vec::new(),
            story: Vec::new(),
            told: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, tally: &Tally) {
        self.calls += tally.calls;
        self.failed += tally.failed;
        self.wrong += tally.wrong;
        self.lost += tally.lost;
        self.told.extend(tally.told.iter().cloned());
        self.told.truncate(3);
    }

    /// Compares what ran before with what runs now. A node whose process was started anew counts once, and so
    /// does each new incarnation of a ward whose node was not.
    pub(super) fn count_restarts(&mut self, before: &Picture, after: &Picture, found: &Finding) {
        for (name, was) in before {
            let Some(is) = after.get(name) else { continue };
            if was.boot != is.boot {
                self.restarts += 1;
                self.false_restarts += u64::from(!found.nodes.iter().any(|path| path.name() == name));
                continue;
            }
            for (ward, incarnation) in &is.wards {
                let more = incarnation.saturating_sub(was.wards.get(ward).copied().unwrap_or(0));
                self.restarts += more;
                let meant = |(path, of): &(crate::answer::Path, &str)| path.name() == name && of == ward;
                if !found.wards.iter().any(meant) {
                    self.false_restarts += more;
                }
            }
        }
    }
}

/// The rows, for a terminal.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    let heads = [
        "fault", "detected", "healed", "calls", "failed", "wrong", "restarts", "false", "lost", "",
        "promised",
    ];
    table.set_header(heads);
    for row in rows {
        let ms = |value: Option<u64>| value.map_or("-".to_owned(), |ms| format!("{ms} ms"));
        table.add_row([
            row.fault.clone(),
            ms(row.detected_ms),
            ms(row.healed_ms),
            row.calls.to_string(),
            row.failed.to_string(),
            row.wrong.to_string(),
            row.restarts.to_string(),
            row.false_restarts.to_string(),
            row.lost.to_string(),
            if row.ok { "ok" } else { "BROKEN" }.to_owned(),
            row.promised.clone(),
        ]);
    }
    for column in 1..=8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{answer::Path, cluster::Facts};

    fn picture(boot: &str, answer: u64) -> Picture {
        let wards = BTreeMap::from([("answer".to_owned(), answer), ("tick".to_owned(), 1)]);
        let facts = Facts { pid: 1, boot: boot.to_owned(), well: true, wards, program: 0 };
        BTreeMap::from([("loop".to_owned(), facts)])
    }

    fn counted(after: Picture, found: Finding) -> (u64, u64) {
        let mut row = Row::of(&super::super::TEMPLATE);
        row.count_restarts(&picture("a", 1), &after, &found);
        (row.restarts, row.false_restarts)
    }

    #[test]
    fn a_restart_is_false_unless_it_is_of_what_was_broken() {
        let ward = Finding { wards: vec![(Path::Loop, "answer")], ..Finding::default() };
        let node = Finding { nodes: vec![Path::Loop], ..Finding::default() };
        assert_eq!(counted(picture("a", 1), Finding::default()), (0, 0));
        assert_eq!(counted(picture("a", 3), Finding::default()), (2, 2));
        assert_eq!(counted(picture("a", 3), ward), (2, 0));
        assert_eq!(counted(picture("b", 1), Finding::default()), (1, 1));
        assert_eq!(counted(picture("b", 1), node), (1, 0));
    }
}
