//! Errors as documents.

use serde::Serialize;
use wardkeep_proto::{
    error::Code,
    v1::{Error, ErrorGroup, Hop, Site},
};

use crate::cli::view::{millis, rfc3339};

#[derive(Serialize)]
pub(super) struct Groups {
    pub(super) groups: Vec<GroupView>,
    pub(super) dropped: u64,
}

/// Failures that are the same.
#[derive(Serialize)]
pub(super) struct GroupView {
    pub(super) group_hash: String,
    pub(super) kind: String,
    pub(super) malformed: bool,
    pub(super) count: u64,
    pub(super) first_at: Option<String>,
    pub(super) last_at: Option<String>,
    pub(super) last_id: String,
    pub(super) last_what: String,
    pub(super) places: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct One {
    pub(super) error: ErrorView,
}

/// One failure.
#[derive(Serialize)]
pub(super) struct ErrorView {
    pub(super) id: String,
    pub(super) occurred_at: Option<String>,
    pub(super) user_message: String,
    pub(super) what: String,
    pub(super) domain: String,
    pub(super) kind: String,
    pub(super) code: &'static str,
    pub(super) malformed: bool,
    pub(super) retry_after_ms: Option<u64>,
    pub(super) machine: String,
    pub(super) node: String,
    pub(super) ward: String,
    pub(super) incarnation: u64,
    pub(super) group_hash: String,
    pub(super) exact_hash: String,
    pub(super) help_url: Option<String>,
    pub(super) request_id: String,
    pub(super) trace_id: String,
    pub(super) causes: Vec<String>,
    pub(super) hops: Vec<HopView>,
    pub(super) related_ids: Vec<String>,
    pub(super) truncated: Vec<String>,
}

/// One machine's part of the stack.
#[derive(Serialize)]
pub(super) struct HopView {
    pub(super) machine: String,
    pub(super) node: String,
    pub(super) ward: String,
    pub(super) incarnation: u64,
    pub(super) method: String,
    pub(super) entered_at: Option<String>,
    pub(super) sites: Vec<String>,
    pub(super) build_id: String,
    /// In the terms of the file with this build ID: what `addr2line` takes.
    pub(super) frames: Vec<String>,
    /// What is at each of them, as far as the node could tell.
    pub(super) functions: Vec<String>,
}

impl From<&ErrorGroup> for GroupView {
    fn from(group: &ErrorGroup) -> Self {
        Self {
            group_hash: group.group_hash.clone(),
            kind: format!("{}/{}", group.domain, group.kind),
            malformed: group.malformed,
            count: group.count,
            first_at: rfc3339(group.first_at),
            last_at: rfc3339(group.last_at),
            last_id: group.last_id.clone(),
            last_what: group.last_what.clone(),
            places: group.places.clone(),
        }
    }
}

impl From<&Error> for ErrorView {
    fn from(error: &Error) -> Self {
        Self {
            id: error.id.clone(),
            occurred_at: rfc3339(error.occurred_at),
            user_message: error.user_message.clone(),
            what: error.what.clone(),
            domain: error.domain.clone(),
            kind: error.kind.clone(),
            code: code_name(error.code),
            malformed: error.malformed,
            retry_after_ms: error.transitory.then(|| millis(error.retry_delay).unwrap_or(0)),
            machine: error.machine.clone(),
            node: error.node.clone(),
            ward: error.ward.clone(),
            incarnation: error.incarnation,
            group_hash: error.group_hash.clone(),
            exact_hash: error.exact_hash.clone(),
            help_url: Some(error.help_url.clone()).filter(|url| !url.is_empty()),
            request_id: error.request_id.clone(),
            trace_id: error.trace_id.clone(),
            causes: error.causes.iter().map(|cause| cause.what.clone()).collect(),
            hops: error.hops.iter().map(HopView::from).collect(),
            related_ids: error.related_ids.clone(),
            truncated: error.truncated.clone(),
        }
    }
}

impl From<&Hop> for HopView {
    fn from(hop: &Hop) -> Self {
        Self {
            machine: hop.machine.clone(),
            node: hop.node.clone(),
            ward: hop.ward.clone(),
            incarnation: hop.incarnation,
            method: hop.method.clone(),
            entered_at: rfc3339(hop.entered_at),
            sites: hop.sites.iter().map(site).collect(),
            build_id: hop.build_id.clone(),
            frames: hop.frames.iter().map(|frame| format!("{frame:#x}")).collect(),
            functions: hop.functions.clone(),
        }
    }
}

/// Line 0: the method called stands for the place, which is in code that is not ours.
fn site(site: &Site) -> String {
    if site.line == 0 { site.file.clone() } else { format!("{}:{}", site.file, site.line) }
}

/// gRPC's own spelling.
fn code_name(code: i32) -> &'static str {
    match Code::from_i32(code) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
