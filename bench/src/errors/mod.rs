//! What well-formed errors cost: making one, passing it on, and a flood of the same one.

mod flood;
mod make;
mod pass;

use std::time::Duration;

use wardkeep_proto::{Kind, context::RequestContext, error::Code, v1};

use crate::report::{Goal, Report, Table};

pub fn measure(rounds: usize) -> Result<Report, Box<dyn std::error::Error>> {
    // As a node logs, into a writer that counts and forgets.
    let written = flood::log_into_nothing();
    let mut tables = vec![make::beside_peers(rounds), make::parts(rounds)];
    tables.extend(pass::tables(rounds));
    let flood = flood::table(rounds.div_ceil(3), written);
    let made = tables[0].median(make::IN_A_REQUEST, 0);
    let mut goals = vec![Goal {
        what: format!("an error made within a request of 3 hops, p50 at most 10 µs: {made:.1} µs"),
        met: made <= 10.0,
    }];
    goals.extend(flood::goals(&flood));
    tables.push(flood);
    let notes = vec![bound(&tables[1])];
    Ok(Report {
        group: "errors".into(),
        title: "Errors".into(),
        command: "cargo measure errors".into(),
        rounds,
        tables,
        goals,
        notes,
        ..Default::default()
    })
}

/// What bounds the making of an error.
fn bound(parts: &Table) -> String {
    let whole = parts.median(make::IN_A_REQUEST, 0);
    let share = |row| format!("{:.0} %", parts.median(row, 0) / whole * 100.0);
    format!(
        "What bounds it: the unwinder. {} of making an error is the walk over its stack, which grows with the calls that \
        led to it, up to the 32 that are kept; the ID, whose random bits come from the system, is {}, the two hashes \
        {} and {}. A walk along frame pointers may be cheaper, in programs that are built with them: not measured.\n\n\
        Reading debug information, to put names to the first stack that goes to a supervisor, takes memory of its own \
        (95 MiB for this program, once; a node lets it go after a minute without errors). The flood's memory is measured \
        from there.",
        share(make::STACK),
        share(make::ID),
        share(make::GROUP),
        share(make::EXACT),
    )
}

/// A failure as services have it.
#[derive(Debug)]
struct ShelfFull {
    reason: &'static str,
    shelf: u32,
}

impl std::fmt::Display for ShelfFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shelf {} has no room for another book", self.shelf)
    }
}

impl std::error::Error for ShelfFull {}

impl Kind for ShelfFull {
    fn domain(&self) -> &'static str {
        "library.example.com"
    }

    fn reason(&self) -> &'static str {
        self.reason
    }

    fn code(&self) -> Code {
        Code::ResourceExhausted
    }

    fn user_message(&self) -> String {
        "That shelf is full. Please choose another one.".into()
    }

    fn retry_after(&self) -> Option<Duration> {
        Some(Duration::from_secs(3))
    }
}

pub use flood::log_into_nothing;

/// A failure to fail with.
pub fn failure() -> impl Kind {
    shelf_full()
}

fn shelf_full() -> ShelfFull {
    ShelfFull { reason: "SHELF_FULL", shelf: 7 }
}

/// A request that came over three nodes.
fn three_hops() -> RequestContext {
    let headers = tonic::codegen::http::HeaderMap::new();
    let now = tokio::time::Instant::now();
    let mut context = RequestContext::from_headers("/library.v1.Shelves/Put", &headers, now);
    for (n, node) in ["gateway-1", "library-3", "shelves-2"].into_iter().enumerate() {
        context.enter(node, "shelves", n as u64);
    }
    context
}

/// What is passed on: an error without a way, one as services have it, and one that is too long for a
/// reply.
fn small() -> v1::Error {
    let mut error = wardkeep_proto::Error::from(shelf_full()).into_proto();
    let hop = error.hops.last_mut().expect("an error has a hop");
    hop.frames.clear();
    error
}

fn typical() -> v1::Error {
    let make = || make::deep_within(|| wardkeep_proto::Error::from(shelf_full()));
    let mut error = wardkeep_proto::context::sync_scope(three_hops(), make).into_proto();
    error.causes = ["the index refuses the entry", "no space left on device"]
        .map(|what| v1::Cause { what: what.into() })
        .to_vec();
    assert_eq!((error.hops.len(), error.hops[2].frames.len()), (3, 32));
    error
}

fn too_long() -> v1::Error {
    let cause = v1::Cause { what: "the disk is full, said the disk".repeat(8) };
    v1::Error { what: "x".repeat(100_000), causes: vec![cause; 50], ..typical() }
}
