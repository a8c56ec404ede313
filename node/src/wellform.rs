//! Nothing malformed gets out: a status without our details is adopted, in heads and in trailers.

use http::HeaderMap;
use wardkeep_proto::error::{Came, read_headers, write_headers};

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

/// Makes sure that what these headers (or trailers) say of a failure is well-formed. A bare status, or
/// one that is garbled, is replaced by the error made of it; an error that arose here is told where that
/// is. Both are logged, in full, this once; an error that has its place came from elsewhere, passes
/// unchanged, and is one line in the log.
pub(crate) fn headers(headers: &mut HeaderMap, origin: Origin<'_>) {
    let Some((error, came)) = read_headers(headers) else { return };
    if came == Came::Whole && !error.as_proto().node.is_empty() {
        return error.log_passing();
    }
    let error = error.at(origin.node, origin.ward, origin.incarnation);
    origin.ledger.write(&error);
    // What the handler put into its status' metadata stays.
    write_headers(headers, error);
}
