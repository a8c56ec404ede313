//! Whom a call goes to, and what is made of what it says. Nothing malformed passes.

use std::error::Error as StdError;

use http::{HeaderMap, HeaderName, StatusCode, header, response};
use wardkeep_proto::{
    Error,
    context::{self, INCARNATION, NODE, WARD},
    error::{Came, ERROR_ID_KEY, read_headers, write_headers},
};

use crate::error::{AttemptError, chain};

/// Keys that only the end of a reply may have. In a head they would be taken for those of its end.
const OF_THE_END: [HeaderName; 3] = [
    HeaderName::from_static(ERROR_ID_KEY),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// Whether the call is made on behalf of somebody else's.
fn serving() -> bool {
    context::current().is_some_and(|context| context.has_come())
}

/// A server as its callers see it.
#[derive(Debug)]
pub(crate) struct Peer {
    /// For messages; may be the address.
    pub(crate) name: String,
    /// For messages.
    pub(crate) uri: String,
    /// One of ours: see [`crate::Member::trusted`].
    pub(crate) trusted: bool,
}

impl Peer {
    /// The failure that these headers (or trailers) tell of. What is not well-formed in them is replaced.
    pub(crate) fn failure(&self, headers: &mut HeaderMap) -> Option<Error> {
        let (error, came) = read_headers(headers)?;
        let error = match came {
            _ if !self.trusted => {
                self.cover(headers);
                error.of_stranger(&self.uri)
            }
            Came::Whole => return Some(error),
            // What a server that is not one of our nodes says on purpose is meant for its callers. Not so for
            // the callers of a ward that called it: who knows who they are.
            Came::Adopted if !serving() && !error.is_malformed() && !error.what().is_empty() => {
                let line = error.what().to_owned();
                error.with_user_message(line)
            }
            Came::Adopted | Came::Remade => error,
        };
        write_headers(headers, error.clone());
        Some(error)
    }

    /// Takes all from the headers of a failed reply that a stranger may have written.
    pub(crate) fn cover(&self, headers: &mut HeaderMap) {
        if !self.trusted {
            let kind = headers.remove(header::CONTENT_TYPE);
            headers.clear();
            headers.extend(kind.map(|kind| (header::CONTENT_TYPE, kind)));
        }
    }

    /// Whether a reply that goes on after its head is one of gRPC, and in an encoding that was asked for.
    /// Takes from the head what it may not say.
    pub(crate) fn check_head(
        &self,
        head: &mut response::Parts,
        accepted: Option<&str>,
    ) -> Result<(), AttemptError> {
        let uri = || self.uri.clone();
        let kind = head.headers.get(header::CONTENT_TYPE);
        let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if head.status != StatusCode::OK || !grpc {
            return Err(AttemptError::NotGrpc { uri: uri(), status: head.status });
        }
        let encoding = encoding(&head.headers).map(|text| text.to_str().unwrap_or_default());
        let wanted = |encoding| accepted.unwrap_or_default().split(',').any(|a| a.trim() == encoding);
        if encoding.is_some_and(|encoding| !wanted(encoding)) {
            return Err(self.malformed("an encoding that was not asked for"));
        }
        OF_THE_END.iter().for_each(|key| _ = head.headers.remove(key));
        if !self.trusted {
            [NODE, WARD, INCARNATION].iter().for_each(|key| _ = head.headers.remove(key));
        }
        Ok(())
    }

    pub(crate) fn malformed(&self, what: &'static str) -> AttemptError {
        AttemptError::Malformed { uri: self.uri.clone(), what }
    }

    /// Why a connection failed. A stranger's part in that goes to the log, and no further.
    pub(crate) fn cause(&self, error: &(dyn StdError + 'static)) -> String {
        if self.trusted {
            return chain(error);
        }
        tracing::warn!(target: "wardkeep::error", peer = self.uri,
            "the connection to a stranger failed: {}", chain(error));
        "see the log of whoever called".to_owned()
    }
}

/// How the messages of a reply are compressed, if they may be.
pub(crate) fn encoding(headers: &HeaderMap) -> Option<&http::HeaderValue> {
    headers.get("grpc-encoding").filter(|encoding| *encoding != "identity")
}
