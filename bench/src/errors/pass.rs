//! Passing an error on: wrapping, hashing, and the way over the wire.

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};
use wardkeep_proto::{
    Error,
    error::{ResultExt as _, exact_hash, group_hash},
    v1,
};

use super::{shelf_full, small, too_long, typical};
use crate::{
    beside::{Contestant, LATENCY, side_by_side},
    report::Table,
};

/// What is measured of each size.
fn sizes() -> [(&'static str, v1::Error); 3] {
    [("small", small()), ("typical", typical()), ("too long", too_long())]
}

pub fn tables(rounds: usize) -> [Table; 3] {
    [wrap(rounds), encode(rounds), decode(rounds)]
}

fn wrap(rounds: usize) -> Table {
    const PEER: &str = "anyhow::Context::context";
    let about = "What happens to an error on its way out of a process. *Typical* has 3 hops, 32 addresses and 2 causes; \
        *too long* 100 KB of text and 50 causes.";
    let io = || Err::<(), _>(std::io::Error::other("disk gone"));
    let mut contestants = vec![
        Contestant::timed_with(
            PEER,
            move || anyhow::Error::from(io().unwrap_err()),
            |e| anyhow::Context::context(Err::<(), _>(e), "putting a book on the shelf"),
        ),
        Contestant::timed_with("anyhow::Error::from an io::Error", io, |r| r.map_err(anyhow::Error::from)),
        Contestant::timed_with(".unexpected() of an io::Error", io, |r| r.unexpected()),
        Contestant::timed_with(".log() in a flood", || Error::from(shelf_full()), |e| e.log()),
    ];
    for (size, record) in sizes() {
        let error = Error::from_proto(record.clone());
        let make = move || Err::<(), _>(error.clone());
        let (group, exact) = (record.clone(), record);
        contestants.push(Contestant::timed_with(format!(".ctx(), {size}"), make, |r| r.map_err(Error::ctx)));
        contestants.push(Contestant::timed(format!("group_hash, {size}"), move || group_hash(&group)));
        contestants.push(Contestant::timed(format!("exact_hash, {size}"), move || exact_hash(&exact)));
    }
    side_by_side(("Wrapping and hashing", about), &LATENCY, PEER, rounds, contestants)
}

const PEER: &str = "tonic-types, five details";

fn details() -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details
        .set_error_info("SHELF_FULL", "library.example.com", [("machine".to_owned(), "m".to_owned())])
        .set_request_info("01a20ac6-df8c-7597-84ee-5de567057d81", "")
        .set_retry_info(Some(std::time::Duration::from_secs(3)))
        .set_localized_message("en", "That shelf is full. Please choose another one.")
        .set_debug_info(
            (0..32).map(|n| format!("0x{n:016x}")).collect::<Vec<_>>(),
            "shelf 7 has no room for another book",
        );
    details
}

fn status() -> Status {
    Status::with_error_details(tonic::Code::ResourceExhausted, "That shelf is full.", details())
}

fn encode(rounds: usize) -> Table {
    let about = "`Status::from(error)`, beside tonic-types with as much to tell. What is *too long* is cut to fit 4,096 bytes.";
    let mut contestants = vec![Contestant::timed_with(PEER, details, |details| {
        Status::with_error_details(tonic::Code::ResourceExhausted, "That shelf is full.", details)
    })];
    for (size, record) in sizes() {
        let error = Error::from_proto(record);
        contestants.push(Contestant::timed_with(size, move || error.clone(), Status::from));
    }
    side_by_side(("An error becomes a status", about), &LATENCY, PEER, rounds, contestants)
}

fn decode(rounds: usize) -> Table {
    let about = "`Error::from_status(&status)`, all checks included, beside tonic-types.";
    let peer = status();
    let mut contestants = vec![Contestant::timed(PEER, move || peer.check_error_details())];
    for (size, record) in sizes() {
        let status = Status::from(Error::from_proto(record));
        contestants.push(Contestant::timed(size, move || {
            let error = Error::from_status(&status);
            debug_assert!(!error.is_malformed());
            error
        }));
    }
    side_by_side(("A status becomes an error", about), &LATENCY, PEER, rounds, contestants)
}
