//! Nothing malformed gets out: a status without our details is adopted, in heads and in trailers.

use http::HeaderMap;
use tonic::Status;
use wardkeep_proto::{
    Error,
    error::{Code, ERROR_ID_KEY, remove_bad_details},
};

use crate::context::Incarnation;

/// Replaces a bare status in these headers (or trailers) by the well-formed error made of it, logs
/// it where it arose, and returns it.
pub(crate) fn headers(headers: &mut HeaderMap, incarnation: &Incarnation) -> Option<Error> {
    if headers.get("grpc-status").is_none_or(|code| code == "0") {
        return None;
    }
    // Details that are not base64 would make the parser below panic.
    let garbage = remove_bad_details(headers);
    let status = Status::from_header_map(headers)?;
    if status.code() == Code::Ok || (headers.contains_key(ERROR_ID_KEY) && !garbage) {
        return None;
    }
    let error = Error::from_status(&status).at(&incarnation.node, &incarnation.ward, incarnation.number);
    error.log();
    for key in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        headers.remove(key);
    }
    // What the handler put into its status' metadata stays.
    if Status::from(error.clone()).add_header(headers).is_err() {
        headers.insert("grpc-status", http::HeaderValue::from(Code::Internal as i32));
    }
    Some(error)
}
