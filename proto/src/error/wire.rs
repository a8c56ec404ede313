//! The error in gRPC's own terms: `google.rpc.Status` with standard details and ours.
//!
//! Trailers have limits that differ between peers; [`MAX_DETAILS_BYTES`] never failed in any.

use base64::{Engine as _, engine::general_purpose};
use http::HeaderMap;
use prost::Message as _;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::pb;

use super::{Error, LAYOUT_VERSION};
use crate::v1;

/// Metadata key that repeats the error's ID, readable without any of our types.
pub const ERROR_ID_KEY: &str = "wardkeep-error-id";

/// The encoded `google.rpc.Status` never exceeds this.
pub const MAX_DETAILS_BYTES: usize = 4_096;

const DETAILS_KEY: &str = "grpc-status-details-bin";
const OURS: &str = "type.googleapis.com/wardkeep.v1.Error";
/// What a foreign status' adopted error is filed under.
const STATUS_DOMAIN: &str = "grpc.status";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let id = MetadataValue::try_from(error.id());
        let code = error.code();
        let message = error.user_message().to_owned();
        let details = encode(error.0.as_ref());
        let mut status = Status::with_details(code, message, details.into());
        if let Ok(id) = id {
            status.metadata_mut().insert(ERROR_ID_KEY, id);
        }
        status
    }
}

impl Error {
    /// The error a status carries; a status that carries none is adopted: it gets an ID, a time and
    /// a machine here. `Internal`, `Unknown` and `DataLoss` without details are malformed.
    #[track_caller]
    pub fn from_status(status: &Status) -> Self {
        if let Some(error) = decode(status) {
            return error;
        }
        let site = std::panic::Location::caller();
        let mut error = Error::blank(status.code(), site);
        let code = format!("{:?}", status.code());
        error.0.domain = STATUS_DOMAIN.to_owned();
        error.0.kind = screaming(&code);
        error.0.what = status.message().to_owned();
        error.tell_causes(std::error::Error::source(status));
        error.0.malformed = matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss);
        error.0.transitory = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
        error.0.user_message = plain_words(status.code()).to_owned();
        error.rehash();
        error
    }

    /// What strangers are told: code, user's line, ID, and whether trying again may help.
    pub fn to_untrusted_status(&self) -> Status {
        let request = pb::RequestInfo { request_id: String::new(), serving_data: self.0.id.clone() };
        let mut details = vec![any("RequestInfo", request.encode_to_vec())];
        details.extend(hints(&self.0));
        let user_message = self.0.user_message.clone();
        let inner = pb::Status { code: self.0.code, message: user_message.clone(), details };
        let mut status = Status::with_details(self.code(), user_message, inner.encode_to_vec().into());
        if let Ok(id) = MetadataValue::try_from(self.id()) {
            status.metadata_mut().insert(ERROR_ID_KEY, id);
        }
        status
    }

    /// The error as it came over the wire. Fields a peer left empty stay so.
    pub fn from_proto(error: v1::Error) -> Self {
        Self(Box::new(error))
    }
}

/// `InvalidArgument` -> `INVALID_ARGUMENT`.
fn screaming(camel: &str) -> String {
    let mut out = String::with_capacity(camel.len() + 4);
    for (i, c) in camel.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

fn plain_words(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument | Code::OutOfRange => "The request is not valid. Please check what you sent.",
        Code::NotFound => "That does not exist.",
        Code::AlreadyExists => "That exists already.",
        Code::PermissionDenied | Code::Unauthenticated => "You are not allowed to do that.",
        Code::FailedPrecondition => "That is not possible in the present state.",
        Code::DeadlineExceeded => "It took too long. Please try again.",
        Code::Cancelled => "The request was cancelled.",
        Code::Unimplemented => "That is not offered here.",
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted => {
            "The service is busy or restarting. Please try again in a moment."
        }
        _ => "Something went wrong on our side. Please report this ID.",
    }
}

fn encode(error: &v1::Error) -> Vec<u8> {
    let mut record = error.clone();
    let mut bytes = encode_once(&record);
    for cut in CUTS {
        if bytes.len() <= MAX_DETAILS_BYTES {
            break;
        }
        if let Some(name) = cut(&mut record) {
            if !record.truncated.iter().any(|cut| cut == name) {
                record.truncated.push(name.to_owned());
            }
            bytes = encode_once(&record);
        }
    }
    bytes
}

/// What is given up, in this order, until the error fits. ID, time, machine, hashes and the user's
/// line are never given up (the last cut bounds the only one of them a caller can make long).
const CUTS: [fn(&mut v1::Error) -> Option<&'static str>; 8] = [
    |e| keep_first(&mut e.causes, 4, "causes"),
    |e| shorten(&mut e.what, 1_024, "what"),
    |e| e.hops.iter_mut().any(|h| !std::mem::take(&mut h.frames).is_empty()).then_some("hops.frames"),
    |e| keep_first(&mut e.causes, 0, "causes"),
    |e| keep_first(&mut e.related_ids, 4, "related_ids"),
    |e| {
        // The two ends of the stack tell most: who asked, and where it broke.
        let middle = e.hops.len().checked_sub(2).filter(|n| *n > 0)?;
        e.hops.drain(1..=middle);
        Some("hops")
    },
    |e| shorten(&mut e.what, 256, "what"),
    |e| {
        e.hops.clear();
        for text in
            [&mut e.domain, &mut e.kind, &mut e.node, &mut e.ward, &mut e.machine, &mut e.user_message]
        {
            shorten(text, 200, "");
        }
        Some("hops")
    },
];

fn keep_first<T>(list: &mut Vec<T>, most: usize, name: &'static str) -> Option<&'static str> {
    (list.len() > most).then(|| {
        list.truncate(most);
        name
    })
}

fn shorten(text: &mut String, most: usize, name: &'static str) -> Option<&'static str> {
    (text.len() > most).then(|| {
        let end = (0..=most).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
        name
    })
}

fn any(name: &str, value: Vec<u8>) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/google.rpc.{name}"), value }
}

/// What helps whoever is told: whether to try again, and the user's line.
fn hints(error: &v1::Error) -> impl Iterator<Item = prost_types::Any> {
    let retry = pb::RetryInfo { retry_delay: error.retry_delay };
    let line = pb::LocalizedMessage { locale: "en".into(), message: error.user_message.clone() };
    let retry = error.transitory.then(|| any("RetryInfo", retry.encode_to_vec()));
    retry.into_iter().chain([any("LocalizedMessage", line.encode_to_vec())])
}

fn encode_once(error: &v1::Error) -> Vec<u8> {
    let info = pb::ErrorInfo {
        reason: error.kind.clone(),
        domain: error.domain.clone(),
        metadata: [("id", &error.id), ("group_hash", &error.group_hash), ("machine", &error.machine)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect(),
    };
    let mut details = vec![any("ErrorInfo", info.encode_to_vec())];
    let request = pb::RequestInfo { request_id: error.request_id.clone(), serving_data: error.id.clone() };
    details.push(any("RequestInfo", request.encode_to_vec()));
    details.extend(hints(error));
    details.push(prost_types::Any { type_url: OURS.into(), value: error.encode_to_vec() });
    pb::Status { code: error.code, message: error.user_message.clone(), details }.encode_to_vec()
}

fn decode(status: &Status) -> Option<Error> {
    let outer = pb::Status::decode(status.details()).ok()?;
    let ours = outer.details.iter().find(|any| any.type_url == OURS)?;
    let error = v1::Error::decode(ours.value.as_slice()).ok()?;
    let whole = (1..=LAYOUT_VERSION).contains(&error.version)
        && uuid::Uuid::parse_str(&error.id).is_ok()
        && error.code == status.code() as i32;
    whole.then(|| Error(Box::new(error)))
}

/// Removes status details that are not base64, which tonic would panic on. Returns whether there
/// were some: the error of that reply is then malformed.
pub fn remove_bad_details(headers: &mut HeaderMap) -> bool {
    let mut values = headers.get_all(DETAILS_KEY).iter();
    let fine = match (values.next(), values.next()) {
        (None, _) => true,
        (Some(one), None) => {
            let text = one.as_bytes();
            let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
            general_purpose::STANDARD_NO_PAD.decode(text).is_ok()
        }
        (Some(_), Some(_)) => false,
    };
    if !fine {
        headers.remove(DETAILS_KEY);
    }
    !fine
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Bug;

    #[test]
    fn a_bare_deliberate_status_is_adopted_and_a_bare_internal_one_is_a_bug() {
        let adopted = Error::from_status(&Status::not_found("no such book"));
        assert_eq!((adopted.kind(), adopted.is_malformed()), ("NOT_FOUND", false));
        assert!(!adopted.id().is_empty() && !adopted.machine().is_empty());
        assert!(Error::from_status(&Status::internal("oops")).is_malformed());
    }

    #[test]
    fn the_inner_and_outer_status_agree_in_code_and_message() {
        let status = Status::from(Bug::because("x"));
        let inner = pb::Status::decode(status.details()).unwrap();
        assert_eq!((inner.code, inner.message.as_str()), (status.code() as i32, status.message()));
    }

    #[test]
    fn an_error_of_any_size_fits_the_budget_and_keeps_what_must_never_be_cut() {
        let mut error = Bug::because("w".repeat(100_000));
        error.0.causes = (0..50).map(|i| v1::Cause { what: format!("{i}").repeat(400) }).collect();
        error.0.hops = (0..100).map(|_| error.0.hops[0].clone()).collect();
        error.0.related_ids = (0..100).map(|_| uuid::Uuid::now_v7().to_string()).collect();
        error.0.user_message = "u".repeat(5_000);
        let status = Status::from(error.clone());
        assert!(status.details().len() <= MAX_DETAILS_BYTES, "{}", status.details().len());
        let read = Error::from_status(&status);
        assert_eq!(read.id(), error.id());
        assert_eq!(read.occurred_at(), error.occurred_at());
        assert_eq!(read.group_hash(), error.group_hash());
        assert!(read.user_message().starts_with("uuu"));
        assert!(read.as_proto().truncated.contains(&"what".to_owned()));
    }

    #[test]
    fn bad_base64_and_duplicates_are_removed_and_good_details_stay() {
        let mut headers = HeaderMap::new();
        headers.insert(DETAILS_KEY, "AAAA".parse().unwrap());
        assert!(!remove_bad_details(&mut headers));
        headers.append(DETAILS_KEY, "AAAA".parse().unwrap());
        assert!(remove_bad_details(&mut headers));
        headers.insert(DETAILS_KEY, "not base64!".parse().unwrap());
        assert!(remove_bad_details(&mut headers));
        assert!(!headers.contains_key(DETAILS_KEY));
    }

    #[test]
    fn garbage_details_do_not_decode_and_are_adopted() {
        let status = Status::with_details(Code::NotFound, "m", vec![0xff; 40].into());
        assert_eq!(Error::from_status(&status).kind(), "NOT_FOUND");
    }
}
