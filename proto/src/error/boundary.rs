//! What both sides of a call do with the headers that end it: nothing malformed gets through.

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode;
use tonic::{Code, Status};

use super::{
    ERROR_ID_KEY, Error, MAX_DETAILS_BYTES,
    read::{self, DETAILS_KEY},
    remove_bad_details,
};

const STATUS_KEY: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE_KEY: HeaderName = HeaderName::from_static("grpc-message");

/// How an error came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Well-formed: its headers may pass as they are.
    Whole,
    /// As a status without one of ours: it was made here, and its headers have to be written anew.
    Adopted,
    /// Garbled, without its ID as a key, or too large to go on: its headers have to be written anew.
    Remade,
}

/// Reads the failure that a call's headers (or trailers) tell of; `None` if they tell of none. Whatever
/// they hold, this neither panics nor believes what does not hold together, and what tonic would panic
/// on is removed from them.
pub fn read_headers(headers: &mut HeaderMap) -> Option<(Error, Came)> {
    if !headers.contains_key(STATUS_KEY) {
        return None;
    }
    if is_plain_success(headers) {
        return None;
    }
    let bad = check(headers);
    let bad_details =
        remove_bad_details(headers).then_some("details that are not base64, or are there twice");
    if let Some(why) = bad.or(bad_details) {
        let error = Error::garbled(&legible(headers), why);
        return Some((error, Came::Remade));
    }
    let status = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)?;
    let (error, came) = read::read(&status);
    let mut ids = headers.get_all(ERROR_ID_KEY).iter();
    let is_key = ids.next().is_some_and(|id| id == error.id()) && ids.next().is_none();
    let passes = is_key && status.details().len() <= MAX_DETAILS_BYTES;
    Some((error, if came == Came::Whole && !passes { Came::Remade } else { came }))
}

/// Whether they say OK once, and nothing that would have to be looked into: the end of nearly every reply.
fn is_plain_success(headers: &HeaderMap) -> bool {
    let mut codes = headers.get_all(STATUS_KEY).iter();
    let is_ok = codes.next().is_some_and(|code| code == "0") && codes.next().is_none();
    is_ok && !headers.contains_key(MESSAGE_KEY) && !headers.contains_key(DETAILS_KEY)
}

/// Replaces what headers (or trailers) tell of a failure by this error. Other metadata stays.
pub fn write_headers(headers: &mut HeaderMap, error: Error) {
    [STATUS_KEY, MESSAGE_KEY].iter().for_each(|key| _ = headers.remove(key));
    [DETAILS_KEY, ERROR_ID_KEY].iter().for_each(|key| _ = headers.remove(*key));
    let code = error.code();
    if Status::from(error).add_header(headers).is_err() {
        headers.insert(STATUS_KEY, HeaderValue::from(code as i32));
    }
}

/// What no gRPC peer sends.
fn check(headers: &HeaderMap) -> Option<&'static str> {
    let mut codes = headers.get_all(STATUS_KEY).iter();
    let code = codes.next().map(HeaderValue::as_bytes).unwrap_or_default();
    if codes.next().is_some() {
        return Some("more than one grpc-status");
    }
    // What tonic cannot read is `Unknown` to it.
    if Code::from_bytes(code) == Code::Unknown && code != b"2" {
        return Some("a grpc-status that is no code");
    }
    let mut messages = headers.get_all(MESSAGE_KEY).iter();
    let message = messages.next().map(|text| percent_decode(text.as_bytes()).decode_utf8().is_ok());
    if message == Some(false) {
        return Some("a grpc-message that is not UTF-8");
    }
    messages.next().map(|_| "more than one grpc-message")
}

/// As much of the status as can be read.
fn legible(headers: &HeaderMap) -> Status {
    let code = headers.get(STATUS_KEY).map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()));
    let code = if code == Code::Ok { Code::Unknown } else { code };
    let message = headers.get(MESSAGE_KEY).map(|text| percent_decode(text.as_bytes()).decode_utf8_lossy());
    Status::new(code, message.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tonic_types::pb;

    use super::*;
    use crate::error::Bug;

    const STATUS_KEY: &str = "grpc-status";
    const MESSAGE_KEY: &str = "grpc-message";

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (key, value) in pairs {
            headers.append(*key, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_success_is_none_however_it_is_said() {
        for more in [&[][..], &[("grpc-message", &b""[..])], &[("grpc-status-details-bin", b"AA")]] {
            let mut map = headers(&[&[("grpc-status", &b"0"[..])], more].concat());
            assert!(read_headers(&mut map).is_none(), "{more:?}");
        }
        let mut twice = headers(&[("grpc-status", b"0"), ("grpc-status", b"0")]);
        assert!(read_headers(&mut twice).is_some());
        let mut panics = headers(&[("grpc-status", b"0"), ("grpc-status-details-bin", b"%")]);
        assert!(read_headers(&mut panics).is_some() && !panics.contains_key(DETAILS_KEY));
    }

    #[test]
    fn an_error_of_ours_passes_as_it_is() {
        let error = Bug::because("x");
        let mut map = HeaderMap::new();
        write_headers(&mut map, error.clone());
        let (read, came) = read_headers(&mut map).unwrap();
        assert_eq!((read.id(), came), (error.id(), Came::Whole));
    }

    #[test]
    fn an_error_that_was_covered_is_adopted_under_its_id() {
        let error = Bug::because("secret");
        let mut map = HeaderMap::new();
        error.to_untrusted_status().add_header(&mut map).unwrap();
        let (read, came) = read_headers(&mut map).unwrap();
        assert_eq!((read.id(), came), (error.id(), Came::Adopted));
        write_headers(&mut map, read);
        let (again, came) = read_headers(&mut map).unwrap();
        assert_eq!((again.id(), came), (error.id(), Came::Whole));
    }

    #[test]
    fn an_error_whose_id_is_not_its_key_is_written_anew() {
        let error = Bug::because("x");
        let other = HeaderValue::from_static("0199d6a0-0000-7000-8000-000000000000");
        let spoilers: [fn(&mut HeaderMap, HeaderValue); 3] = [
            |map, _| _ = map.remove(ERROR_ID_KEY),
            |map, other| _ = map.insert(ERROR_ID_KEY, other),
            |map, other| _ = map.append(ERROR_ID_KEY, other),
        ];
        for spoil in spoilers {
            let mut map = HeaderMap::new();
            write_headers(&mut map, error.clone());
            spoil(&mut map, other.clone());
            let (read, came) = read_headers(&mut map).unwrap();
            assert_eq!((read.id(), came), (error.id(), Came::Remade));
        }
    }

    #[test]
    fn an_error_over_the_budget_is_written_anew_within_it() {
        let mut status = Status::from(Error::from_status(&Status::not_found("x")));
        let mut inner = pb::Status::decode(status.details()).unwrap();
        inner.details.push(prost_types::Any { type_url: "other".into(), value: vec![0; MAX_DETAILS_BYTES] });
        let id = status.metadata().clone();
        status = Status::with_details(status.code(), status.message(), inner.encode_to_vec().into());
        *status.metadata_mut() = id;
        let mut map = HeaderMap::new();
        status.add_header(&mut map).unwrap();
        let (read, came) = read_headers(&mut map).unwrap();
        assert_eq!(came, Came::Remade);
        write_headers(&mut map, read.clone());
        let (again, came) = read_headers(&mut map).unwrap();
        assert_eq!((again.id(), came), (read.id(), Came::Whole));
    }

    #[test]
    fn no_status_and_success_are_no_failure() {
        assert!(read_headers(&mut headers(&[("x", b"y")])).is_none());
        assert!(read_headers(&mut headers(&[(STATUS_KEY, b"0")])).is_none());
    }

    #[test]
    fn what_no_peer_sends_becomes_one_malformed_error_with_one_friendly_line() {
        let not_utf8: &[u8] = b"caf\xe9";
        let cases: [&[(&'static str, &[u8])]; 12] = [
            &[(STATUS_KEY, b"99")],
            &[(STATUS_KEY, b"-1")],
            &[(STATUS_KEY, b"five")],
            &[(STATUS_KEY, b"+5")],
            &[(STATUS_KEY, b"05")],
            &[(STATUS_KEY, b"")],
            &[(STATUS_KEY, b"5"), (STATUS_KEY, b"5")],
            &[(STATUS_KEY, b"5,5")],
            &[(STATUS_KEY, b"5"), (MESSAGE_KEY, not_utf8)],
            &[(STATUS_KEY, b"5"), (DETAILS_KEY, b"not base64!")],
            &[(STATUS_KEY, b"5"), (DETAILS_KEY, b"AAAA,AAAA")],
            &[(STATUS_KEY, b"5"), (DETAILS_KEY, b"AAAA"), (DETAILS_KEY, b"AAAA")],
        ];
        for case in cases {
            let mut map = headers(case);
            let (error, came) = read_headers(&mut map).unwrap();
            assert_eq!((error.is_malformed(), came), (true, Came::Remade), "{case:?}");
            assert_eq!(error.kind(), "BAD_DETAILS", "{case:?}");
            assert_ne!(error.code(), Code::Ok);
            assert_eq!(error.user_message().lines().count(), 1);
            write_headers(&mut map, error.clone());
            assert_eq!(read_headers(&mut map).unwrap().0.id(), error.id());
        }
    }
}
