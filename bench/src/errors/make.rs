//! Making an error, where a failure is found.

use std::{collections::HashMap, hint::black_box};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use wardkeep_proto::{
    Error,
    context::{current, sync_scope},
    error::{Frames, exact_hash, group_hash},
};

use super::{shelf_full, three_hops};
use crate::{
    beside::{Contestant, LATENCY, side_by_side},
    report::Table,
};

pub const IN_A_REQUEST: &str = "wardkeep, within a request of 3 hops";
pub const STACK: &str = "the stack: Frames::capture";
pub const ID: &str = "the ID: a UUIDv7, as text";
pub const GROUP: &str = "the group hash";
pub const EXACT: &str = "the exact hash";

const BARE: &str = "tonic::Status::internal";

/// Calls that lead to the failure, of which an error keeps 32.
const DEEP: u32 = 40;

/// Runs it that deep within calls.
pub fn deep_within<T>(mut work: impl FnMut() -> T) -> T {
    #[inline(never)]
    fn down(left: u32, work: &mut dyn FnMut()) {
        match left {
            0 => work(),
            _ => down(left - 1, work),
        }
        // No call is the last thing that is done, and so each has a frame.
        black_box(left);
    }
    let mut result = None;
    down(DEEP, &mut || result = Some(work()));
    result.expect("the work was done")
}

/// Each is timed where the failure is found: deep within calls, and (where it says so) a request.
fn deep<O>(name: &str, call: impl FnMut() -> O + 'static) -> Contestant<'_> {
    let mut timed = Contestant::timed(name, call);
    Contestant::new(name, move || deep_within(|| timed.round()))
}

fn deep_in_a_request<O>(name: &str, call: impl FnMut() -> O + 'static) -> Contestant<'_> {
    let mut timed = Contestant::timed(name, call);
    Contestant::new(name, move || sync_scope(three_hops(), || deep_within(|| timed.round())))
}

pub fn beside_peers(rounds: usize) -> Table {
    let about =
        "An error is made and kept, 40 calls deep, of which wardkeep and `Backtrace` remember the addresses.";
    let contestants = vec![
        deep(BARE, || Status::internal("shelf 7 has no room for another book")),
        deep("anyhow!, no backtrace", || anyhow::anyhow!("shelf {} has no room for another book", 7)),
        deep("Backtrace::force_capture, unresolved", std::backtrace::Backtrace::force_capture),
        deep("tonic-types, Status::with_error_details", with_error_details),
        deep("wardkeep, outside of requests", || Error::from(shelf_full())),
        deep_in_a_request(IN_A_REQUEST, || Error::from(shelf_full())),
        deep_in_a_request("the same, and made a Status", || Status::from(Error::from(shelf_full()))),
    ];
    side_by_side(("Making an error", about), &LATENCY, BARE, rounds, contestants)
}

fn with_error_details() -> Status {
    let mut details = ErrorDetails::new();
    details
        .set_error_info("SHELF_FULL", "library.example.com", HashMap::new())
        .set_request_info(uuid::Uuid::now_v7().to_string(), "")
        .set_retry_info(Some(std::time::Duration::from_secs(3)))
        .set_localized_message("en", "That shelf is full. Please choose another one.");
    Status::with_error_details(Code::ResourceExhausted, "shelf 7 has no room for another book", details)
}

/// What the time of making one goes to. The last column is a part's share.
pub fn parts(rounds: usize) -> Table {
    let about = "What the time of making an error within a request goes to; the last column is each part's share. \
        The clock that times is part of every figure.";
    let error = super::typical();
    let (group, exact) = (error.clone(), error);
    let contestants = vec![
        deep_in_a_request(IN_A_REQUEST, || Error::from(shelf_full())),
        deep_in_a_request(STACK, Frames::capture),
        deep_in_a_request("the hops it came by", || current().map(|it| it.hops())),
        deep_in_a_request(ID, || uuid::Uuid::now_v7().to_string()),
        deep_in_a_request("the time", chrono::Utc::now),
        deep_in_a_request(GROUP, move || group_hash(&group)),
        deep_in_a_request(EXACT, move || exact_hash(&exact)),
        deep_in_a_request("nothing: the clock that times", || ()),
    ];
    side_by_side(("The parts of making an error", about), &LATENCY, IN_A_REQUEST, rounds, contestants)
}
