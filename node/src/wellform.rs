//! Nothing malformed gets out: a status without our details is adopted, in heads and in trailers.

use http::HeaderMap;
use tonic::Status;
use wardkeep_proto::{
    Error,
    error::{Code, ERROR_ID_KEY, remove_bad_details},
};

use crate::ledger::Ledger;

/// Whose reply it is: node, ward (empty for the node's own services) and incarnation.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) node: &'a str,
    pub(crate) ward: &'a str,
    pub(crate) incarnation: u64,
    /// Where its errors are written down.
    pub(crate) ledger: &'a Ledger,
}

/// Makes sure that what these headers (or trailers) say of a failure is well-formed. A bare status
/// is replaced by the error made of it; an error that arose here is told where that is. Both are
/// logged, in full, this once; an error that has its place came from elsewhere and passes unchanged.
pub(crate) fn headers(headers: &mut HeaderMap, origin: Origin<'_>) {
    if !headers.contains_key("grpc-status") {
        return;
    }
    // Details that are not base64 would make every parser of tonic's panic, here and at the caller.
    remove_bad_details(headers);
    let Some(status) = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok) else {
        return;
    };
    let error = Error::from_status(&status);
    let carried = headers.get(ERROR_ID_KEY).is_some_and(|id| id == error.id());
    if carried && !error.as_proto().node.is_empty() {
        return;
    }
    let error = error.at(origin.node, origin.ward, origin.incarnation);
    origin.ledger.write(&error);
    for key in ["grpc-status", "grpc-message", "grpc-status-details-bin", ERROR_ID_KEY] {
        headers.remove(key);
    }
    // What the handler put into its status' metadata stays.
    if Status::from(error).add_header(headers).is_err() {
        headers.insert("grpc-status", http::HeaderValue::from(Code::Internal as i32));
    }
}
