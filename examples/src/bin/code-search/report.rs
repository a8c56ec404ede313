//! The result: one JSON document, or a table.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    faults::{Faults, Mended},
    load::Quiet,
    stats::Summary,
};

/// The four faults there are.
const FAULTS: usize = 4;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    corpus: CorpusFacts,
    nodes: Vec<NodeEntry>,
    queries: u64,
    failed: u64,
    mismatched: u64,
    /// The node with the lowest p99 of the three, alone.
    single: Summary,
    replicated: Summary,
    wins: BTreeMap<String, u64>,
    faults: Vec<Mended>,
    error_sample: Option<ErrorSample>,
}

#[derive(Debug, Serialize)]
struct CorpusFacts {
    files: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct NodeEntry {
    name: String,
    data_path: String,
    single: Summary,
}

#[derive(Debug, Serialize)]
struct ErrorSample {
    id: String,
    occurred_at: String,
    machine: String,
    group_hash: String,
    user_message: String,
}

impl Report {
    pub(crate) fn new(files: usize, bytes: u64, quiet: &mut Quiet, faults: Faults, queries: u32) -> Self {
        let nodes: Vec<_> = quiet
            .nodes
            .iter()
            .map(|node| NodeEntry {
                name: node.name.clone(),
                data_path: node.data_path.clone(),
                single: quiet.alone.entry(node.name.clone()).or_default().summary(),
            })
            .collect();
        let best = nodes.iter().map(|node| node.single).min_by(|a, b| a.p99_ms.total_cmp(&b.p99_ms));
        let sample = faults.error.map(|error| ErrorSample {
            id: error.id().to_owned(),
            occurred_at: error.occurred_at().to_rfc3339(),
            machine: error.machine().to_owned(),
            group_hash: error.group_hash().to_owned(),
            user_message: error.user_message().to_owned(),
        });
        Self {
            schema: "wardkeep.quickstart/v1",
            corpus: CorpusFacts { files, bytes },
            nodes,
            queries: u64::from(queries) + faults.tally.calls,
            failed: quiet.failed + faults.tally.failed,
            mismatched: quiet.mismatched + faults.tally.mismatched,
            single: best.unwrap_or_default(),
            replicated: quiet.racing.summary(),
            wins: quiet.wins.clone(),
            faults: faults.mended,
            error_sample: sample,
        }
    }

    /// Every answer the same, no replicated query failed, everything mended, and the one who was hit
    /// by a panic told in a well-formed way.
    pub(crate) fn is_good(&self) -> bool {
        let mended = |fault: &Mended| fault.detected_ms.is_some() && fault.healed_ms.is_some();
        self.failed == 0
            && self.mismatched == 0
            && self.faults.len() == FAULTS
            && self.faults.iter().all(mended)
            && self.error_sample.is_some()
    }

    pub(crate) fn print_json(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        writeln!(out)
    }

    pub(crate) fn print_table(&self, quiet: &Quiet) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let number = |n: f64| format!("{n:.2}");
        let mut latencies = Table::new();
        latencies.load_style(presets::NOTHING);
        latencies.set_header(["MS, IN PEACE", "P50", "P99", "MAX", "FIRST"]);
        let mut row = |name: &str, s: Summary, wins: String| {
            latencies.add_row([name.to_owned(), number(s.p50_ms), number(s.p99_ms), number(s.max_ms), wins]);
        };
        for node in &self.nodes {
            let wins = quiet.wins.get(&node.name).copied().unwrap_or_default();
            row(&format!("{} alone", node.name), node.single, wins.to_string());
        }
        row("all at once", self.replicated, String::new());
        let mut faults = Table::new();
        faults.load_style(presets::NOTHING);
        faults.set_header(["FAULT", "TARGET", "DETECTED MS", "HEALED MS", "FAILED"]);
        for fault in &self.faults {
            let ms = |ms: Option<u64>| ms.map_or_else(|| "never".to_owned(), |ms| ms.to_string());
            let failed = fault.failed_calls.to_string();
            faults.add_row([
                fault.kind,
                &fault.target,
                &ms(fault.detected_ms),
                &ms(fault.healed_ms),
                &failed,
            ]);
        }
        for (table, from) in [(&mut latencies, 1), (&mut faults, 2)] {
            for column in table.column_iter_mut().skip(from) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            writeln!(out, "\n{}", table.trim_fmt())?;
        }
        writeln!(
            out,
            "\n{} queries in all to all nodes at once: {} failed, {} answered differently",
            self.queries, self.failed, self.mismatched
        )
    }
}
