//! What a supervised ward weighs: a pulse, its memory, its part of a report, and a fleet of a million.

mod growth;
mod memory;
mod pulse;
mod reports;

use crate::report::{Goal, Report, Table};

pub use growth::job as growth;
pub use memory::job as memory;

pub fn measure(rounds: usize) -> Result<Report, Box<dyn std::error::Error>> {
    let pulse = pulse::table(rounds);
    let reports = reports::table(rounds);
    let memory = memory::table(rounds.div_ceil(2));
    let growth = growth::table(rounds.div_ceil(3));
    let goals = goals(&pulse, &reports, &memory, &growth);
    let notes = vec![memory::note(&memory), growth::note(&growth)];
    Ok(Report {
        group: "weight".into(),
        title: "Weight".into(),
        command: "cargo measure weight".into(),
        rounds,
        tables: vec![memory, pulse, reports, growth],
        goals,
        notes,
        ..Default::default()
    })
}

fn goals(pulse: &Table, reports: &Table, memory: &Table, growth: &Table) -> Vec<Goal> {
    let (ns, allocations) = (pulse.median(pulse::WARDKEEP, 0), pulse.median(pulse::WARDKEEP, 1));
    let most = |n: usize| reports.median(reports::ALL, n).max(reports.median(reports::SCATTERED, n));
    let (cpu, bytes) = (most(0), most(1));
    let live = memory.median(memory::WARDKEEP, 0);
    let share = growth.median(growth::LARGEST, 0);
    vec![
        Goal { what: format!("a pulse takes at most 2 ns: {ns:.2} ns"), met: ns <= 2.0 },
        Goal { what: format!("it allocates nothing: {allocations} allocations"), met: allocations == 0.0 },
        Goal {
            what: format!(
                "a report of pulses takes at most 40 ns of CPU per ward, both ends and the steward: {cpu:.1} ns"
            ),
            met: cpu <= 40.0,
        },
        Goal { what: format!("and at most 4 bytes per ward: {bytes:.2} bytes"), met: bytes <= 4.0 },
        Goal {
            what: format!(
                "a supervised task ward takes at most 800 bytes, its task and the steward's record included: \
                {live:.0} bytes"
            ),
            met: live <= 800.0,
        },
        Goal {
            what: format!(
                "a million wards on 1,000 nodes, a pulse a second each, take less than one core: {share:.1} %"
            ),
            met: share < 100.0,
        },
    ]
}
