//! Errors as peers tell them. Nothing a peer sends is believed before it was checked, and nothing it can
//! send makes us panic: what does not hold together becomes one malformed error.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use chrono::{DateTime, TimeDelta, Utc};
use http::HeaderMap;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::pb;

use super::{AsCame, Came, Error, LAYOUT_VERSION, one_line, plain_words, wire};
use crate::{context, v1};

pub(super) const DETAILS_KEY: &str = "grpc-status-details-bin";

/// Exactly what tonic decodes: it panics on anything else.
const AS_TONIC_READS: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the adopted error of a bare status is filed under.
const STATUS_DOMAIN: &str = "grpc.status";
/// What the error of a stranger is filed under.
const STRANGER_DOMAIN: &str = "grpc.stranger";

/// Most that lists of a peer's error may hold; ours never come near it.
pub(super) const MOST: usize = 64;
/// Longest hash, in bytes; ours are a third of it.
const LONGEST_HASH: usize = 64;
/// How far a peer's clock may be ahead of ours.
const MOST_AHEAD: TimeDelta = TimeDelta::days(1);

impl Error {
    /// The error a status carries. A status that carries none is adopted: it gets an ID, a time and a
    /// machine here, and keeps what it has in `google.rpc`'s own details. `Internal`, `Unknown` and
    /// `DataLoss` without an error of ours are malformed, and so are details that do not hold together.
    pub fn from_status(status: &Status) -> Self {
        read(status).0
    }

    /// The error that stands for this one if whoever told it is not trusted: made here, with an ID and a
    /// machine of ours, whatever the other claims. Its text goes to the log, and no further.
    #[must_use]
    pub fn of_stranger(self, peer: &str) -> Self {
        let told = self.0.record;
        let mut error = Self::blank_at(Code::from_i32(told.code), method());
        let record = &mut error.0.record;
        record.domain = STRANGER_DOMAIN.to_owned();
        record.kind = screaming(Code::from_i32(told.code));
        record.what = format!("{peer} answered {}", record.kind);
        record.user_message = plain_words(Code::from_i32(told.code)).to_owned();
        record.malformed = told.malformed;
        record.transitory = told.transitory;
        record.retry_delay = told.retry_delay;
        error.rehash();
        // Escaped and cut: a stranger wrote it. The error itself is logged by whoever makes use of it.
        if super::log::admits(&format!("said by {peer}")) {
            tracing::warn!(target: "wardkeep::error", peer, error.id = error.id(), their.id = ?short(&told.id),
                their.kind = ?short(&told.kind), "a stranger says: {:?}", short(&told.what));
        }
        error
    }

    /// The error as it came over the wire. Fields a peer left empty stay so.
    pub fn from_proto(error: v1::Error) -> Self {
        Self::of(error)
    }

    /// A malformed error: what came with this status cannot be what a peer meant to say.
    pub(super) fn garbled(status: &Status, why: &str) -> Self {
        // A failure has no code of success.
        let code = if status.code() == Code::Ok { Code::Unknown } else { status.code() };
        let mut error = Self::blank_at(code, method());
        let record = &mut error.0.record;
        record.domain = STATUS_DOMAIN.to_owned();
        record.kind = "BAD_DETAILS".to_owned();
        record.what = format!("{} with {why}: {}", screaming(status.code()), status.message());
        record.user_message = plain_words(code).to_owned();
        record.malformed = true;
        record.transitory = may_pass(code);
        error.rehash();
        error
    }
}

/// The error of a status, and whether it is one that the status carried.
pub(super) fn read(status: &Status) -> (Error, Came) {
    match carried(status, Utc::now()) {
        Ok(Carried::Ours(error)) => (error, Came::Whole),
        Ok(Carried::Details(details)) => (adopt(status, details), Came::Adopted),
        Err(why) => (Error::garbled(status, &why), Came::Remade),
    }
}

/// As much as is worth a line.
fn short(text: &str) -> &str {
    crate::prefix(text, 1_024)
}

/// What a status brought along.
enum Carried {
    Ours(Error),
    /// Details in which there is no error of ours; often none at all.
    Details(Vec<prost_types::Any>),
}

/// # Errors
/// What is wrong with the details, as the end of a sentence that begins "a status with".
fn carried(status: &Status, now: DateTime<Utc>) -> Result<Carried, String> {
    if status.code() == Code::Ok {
        return Err("nothing that failed".to_owned());
    }
    if status.details().is_empty() {
        return Ok(Carried::Details(Vec::new()));
    }
    let inner = pb::Status::decode(status.details())
        .map_err(|e| format!("details that are not a google.rpc.Status ({e})"))?;
    if inner.code != status.code() as i32 || inner.message != status.message() {
        return Err(format!("details that speak of another status (code {})", inner.code));
    }
    let mut ours = inner.details.iter().filter(|any| any.type_url == wire::OURS);
    let Some(one) = ours.next() else { return Ok(Carried::Details(inner.details)) };
    if ours.next().is_some() {
        return Err("more than one wardkeep.v1.Error".to_owned());
    }
    let record = v1::Error::decode(one.value.as_slice())
        .map_err(|e| format!("details that are not a wardkeep.v1.Error ({e})"))?;
    check(&record, status, now).map_err(|what| format!("a wardkeep.v1.Error that has {what}"))?;
    let as_came = (record.version > LAYOUT_VERSION)
        .then(|| AsCame { message: inner.message, details: status.details().to_vec() });
    let mut error = Error::of(record);
    error.0.as_came = as_came;
    error.0.others = foreign(inner.details);
    Ok(Carried::Ours(error))
}

/// What an error must have to be believed.
fn check(e: &v1::Error, status: &Status, now: DateTime<Utc>) -> Result<(), &'static str> {
    let at = e.occurred_at.unwrap_or_default();
    let at = u32::try_from(at.nanos).ok().and_then(|nanos| DateTime::from_timestamp(at.seconds, nanos));
    let long = [e.causes.len(), e.hops.len(), e.related_ids.len(), e.truncated.len()].into_iter().max();
    let wide = e.hops.iter().map(|hop| hop.sites.len().max(hop.frames.len()).max(hop.functions.len())).max();
    match at {
        _ if e.version == 0 => Err("no version"),
        _ if !is_id(&e.id) => Err("no ID"),
        None => Err("no time"),
        Some(_) if e.occurred_at.is_none() => Err("no time"),
        Some(at) if at > now + MOST_AHEAD => Err("a time in the future"),
        _ if e.machine.is_empty() => Err("no machine"),
        _ if e.domain.is_empty() || e.kind.is_empty() => Err("no kind"),
        _ if e.group_hash.is_empty() => Err("no group hash"),
        _ if e.group_hash.len().max(e.exact_hash.len()) > LONGEST_HASH => Err("a hash that is none"),
        _ if !is_one_line(&e.user_message) => Err("no line for users, or several"),
        _ if e.code != status.code() as i32 => Err("another code than its status"),
        _ if long.max(wide) > Some(MOST) => Err("lists longer than anyone writes"),
        _ => Ok(()),
    }
}

fn is_one_line(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains(char::is_control)
}

fn is_id(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// The details of others, which go on with an error.
fn foreign(details: Vec<prost_types::Any>) -> Vec<prost_types::Any> {
    details.into_iter().filter(|any| !wire::is_written_by_us(&any.type_url)).collect()
}

/// A status with no error of ours becomes one.
fn adopt(status: &Status, details: Vec<prost_types::Any>) -> Error {
    let mut error = Error::blank_at(status.code(), method());
    let record = &mut error.0.record;
    // Of an error that was covered for strangers, the ID is all there is: it leads to the record.
    let id = status.metadata().get(wire::ERROR_ID_KEY).and_then(|id| id.to_str().ok());
    if let Some(id) = id.filter(|id| is_id(id)) {
        id.clone_into(&mut record.id);
    }
    let told = detail::<pb::RequestInfo>(&details, "RequestInfo").unwrap_or_default().serving_data;
    let covered = told == record.id;
    let info = detail::<pb::ErrorInfo>(&details, "ErrorInfo").filter(|info| !info.reason.is_empty());
    (record.domain, record.kind) = match info {
        Some(info) if !info.domain.is_empty() => (info.domain, info.reason),
        Some(info) => (STATUS_DOMAIN.to_owned(), info.reason),
        None => (STATUS_DOMAIN.to_owned(), screaming(status.code())),
    };
    record.what = status.message().to_owned();
    let line = detail::<pb::LocalizedMessage>(&details, "LocalizedMessage").unwrap_or_default().message;
    record.user_message = one_line(line, status.code());
    let retry = detail::<pb::RetryInfo>(&details, "RetryInfo");
    record.transitory = retry.is_some() || may_pass(status.code());
    record.retry_delay = retry.and_then(|retry| retry.retry_delay);
    let links = detail::<pb::Help>(&details, "Help").unwrap_or_default().links;
    record.help_url = links.into_iter().next().unwrap_or_default().url;
    // A covered bug was counted where it arose.
    record.malformed = is_bug(status.code()) && !covered;
    error.0.others = foreign(details);
    error.tell_causes(std::error::Error::source(status));
    error.rehash();
    error
}

fn detail<M: prost::Message + Default>(details: &[prost_types::Any], name: &str) -> Option<M> {
    let any = details.iter().find(|any| {
        any.type_url.strip_prefix("type.googleapis.com/google.rpc.").is_some_and(|found| found == name)
    })?;
    M::decode(any.value.as_slice()).ok()
}

/// Of an error that was not made here, the method called stands for the place.
fn method() -> v1::Site {
    let method = context::current().map(|context| context.method.to_string());
    v1::Site { file: method.unwrap_or_default(), line: 0 }
}

fn is_bug(code: Code) -> bool {
    matches!(code, Code::Internal | Code::Unknown | Code::DataLoss)
}

fn may_pass(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::ResourceExhausted)
}

/// `InvalidArgument` -> `INVALID_ARGUMENT`.
fn screaming(code: Code) -> String {
    let camel = format!("{code:?}");
    let mut out = String::with_capacity(camel.len() + 4);
    for (i, c) in camel.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// Removes status details that are not base64, which tonic would panic on. Returns whether there
/// were some: the error of that reply is then malformed.
pub fn remove_bad_details(headers: &mut HeaderMap) -> bool {
    let mut values = headers.get_all(DETAILS_KEY).iter();
    let fine = match (values.next(), values.next()) {
        (None, _) => true,
        (Some(one), None) => AS_TONIC_READS.decode(one.as_bytes()).is_ok(),
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
    fn what_a_handler_put_into_standard_details_stays() {
        use tonic_types::{ErrorDetails, StatusExt as _};
        let mut details = ErrorDetails::new();
        details
            .set_error_info("SHELF_FULL", "library.example.com", [("shelf".to_owned(), "7".to_owned())])
            .set_retry_info(Some(std::time::Duration::from_secs(3)))
            .set_localized_message("en", "That shelf is full.")
            .add_bad_request_violation("shelf", "is full");
        let status = Status::with_error_details(Code::ResourceExhausted, "shelf 7", details);
        let error = Error::from_status(&status);
        assert_eq!((error.domain(), error.kind()), ("library.example.com", "SHELF_FULL"));
        assert_eq!(error.user_message(), "That shelf is full.");
        assert_eq!(error.retry_after(), Some(std::time::Duration::from_secs(3)));
        let out = Status::from(error.clone());
        let violations = out.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "shelf");
        assert_eq!(Error::from_status(&out).id(), error.id());
    }

    #[test]
    fn an_error_of_a_later_layout_goes_on_as_it_came() {
        let mut error = Bug::because("x");
        error.0.record.version = LAYOUT_VERSION + 1;
        let mut bytes = error.0.record.encode_to_vec();
        // A field that this layout does not have.
        prost::encoding::string::encode(999, &"from the future".to_owned(), &mut bytes);
        let ours = prost_types::Any { type_url: wire::OURS.into(), value: bytes };
        let code = Code::Internal;
        let inner = pb::Status { code: code as i32, message: "m".into(), details: vec![ours] };
        let status = Status::with_details(code, "m", inner.encode_to_vec().into());
        let read = Error::from_status(&status);
        assert_eq!(read.id(), error.id());
        assert_eq!(Status::from(read).details(), status.details());
    }

    #[test]
    fn an_error_of_a_later_layout_can_be_read_by_the_next_hop_too() {
        let mut error = Bug::because("x");
        error.0.record.version = LAYOUT_VERSION + 1;
        let ours = prost_types::Any { type_url: wire::OURS.into(), value: error.0.record.encode_to_vec() };
        let inner = pb::Status { code: error.0.record.code, message: "m".into(), details: vec![ours] };
        let status = Status::with_details(error.code(), "m", inner.encode_to_vec().into());
        let on = Status::from(Error::from_status(&status));
        assert_eq!((on.message(), on.details()), ("m", status.details()));
        assert_eq!(Error::from_status(&on).id(), error.id());
    }

    #[test]
    fn the_users_line_of_a_peer_is_one_line_or_none_is_believed() {
        for line in ["", " ", "two\nlines", "bell\u{7}"] {
            let mut forged = Bug::because("x");
            line.clone_into(&mut forged.0.record.user_message);
            let read = Error::from_status(&forged.into());
            assert_eq!((read.kind(), read.is_malformed()), ("BAD_DETAILS", true), "{line:?}");
            assert!(!read.user_message().trim().is_empty());
            assert!(!read.user_message().contains(char::is_control));
        }
    }

    #[test]
    fn a_line_of_nothing_but_control_characters_is_no_line() {
        use tonic_types::{ErrorDetails, StatusExt as _};
        let mut details = ErrorDetails::new();
        details.set_localized_message("en", "\0\n\u{7}");
        let read = Error::from_status(&Status::with_error_details(Code::NotFound, "x", details));
        assert_eq!(read.user_message(), "That does not exist.");
    }

    #[test]
    fn a_hash_of_a_peer_cannot_break_the_budget() {
        let long = || "h".repeat(3_000);
        let forgeries: [fn(&mut v1::Error, String); 2] =
            [|e, hash| e.group_hash = hash, |e, hash| e.exact_hash = hash];
        for forge in forgeries {
            let mut forged = Bug::because("x");
            forge(&mut forged.0.record, long());
            let read = Error::from_status(&forged.into());
            assert_eq!(read.kind(), "BAD_DETAILS");
            assert!(Status::from(read).details().len() <= wire::MAX_DETAILS_BYTES);
        }
    }

    #[test]
    fn an_error_with_longer_lists_than_are_read_is_written_so_that_it_can_be() {
        let mut error = Bug::because("x");
        let record = &mut error.0.record;
        record.related_ids = vec![String::from("r"); 100];
        record.causes = vec![v1::Cause { what: "c".into() }; 100];
        record.truncated = vec![String::from("t"); 100];
        record.hops[0].sites = vec![v1::Site { file: "f".into(), line: 1 }; 100];
        let read = Error::from_status(&error.clone().into());
        assert_eq!(read.id(), error.id());
        for name in ["related_ids", "causes", "hops.sites"] {
            assert!(read.as_proto().truncated.iter().any(|cut| cut == name), "{name}");
        }
        assert_eq!(Error::from_status(&read.clone().into()).id(), error.id());
    }

    #[test]
    fn the_way_that_a_caller_claims_cannot_spoil_the_errors_that_arise_on_it() {
        let mut hop = v1::Hop { method: "/a.B/C".into(), ..Default::default() };
        hop.sites = vec![v1::Site::default(); 300];
        let path = v1::Path { hops: vec![hop; 2] };
        let mut headers = HeaderMap::new();
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(path.encode_to_vec());
        headers.insert(context::HOPS, text.parse().unwrap());
        let now = tokio::time::Instant::now();
        let context = context::RequestContext::from_headers("/a.B/C", &headers, now);
        assert_eq!(context.hops().len(), 2);
        let error = context::sync_scope(context, || Bug::because("x"));
        assert_eq!(Error::from_status(&error.clone().into()).id(), error.id());
    }

    #[test]
    fn success_that_comes_as_a_failure_is_no_success() {
        let mut error = Bug::because("x");
        error.0.record.code = 0;
        for status in [Status::ok("fine"), Status::from(error)] {
            let read = Error::from_status(&status);
            assert_eq!((read.code(), read.is_malformed()), (Code::Unknown, true));
        }
    }

    #[test]
    fn a_covered_bug_is_no_bug_of_whoever_is_told_of_it() {
        let told = Bug::because("secret").to_untrusted_status();
        assert!(!Error::from_status(&told).is_malformed());
        // An ID alone covers nothing.
        let mut bare = Status::internal("oops");
        *bare.metadata_mut() = told.metadata().clone();
        assert!(Error::from_status(&bare).is_malformed());
    }

    #[test]
    fn what_strangers_are_told_keeps_the_budget() {
        let error = Bug::because("x").with_user_message("u".repeat(100_000));
        let told = error.to_untrusted_status();
        assert!(told.details().len() <= wire::MAX_DETAILS_BYTES && told.message().len() < 500);
    }

    #[test]
    fn an_error_that_was_covered_keeps_its_id() {
        let error = Bug::because("secret");
        let read = Error::from_status(&error.to_untrusted_status());
        assert_eq!((read.id(), read.user_message()), (error.id(), error.user_message()));
        assert!(!format!("{:?}", read.as_proto()).contains("secret"));
    }

    #[test]
    fn a_stranger_cannot_choose_id_machine_or_text() {
        let mut forged = Bug::because("the password is 1234");
        forged.0.record.machine = "the-bank".to_owned();
        let error = Error::from_status(&forged.clone().into()).of_stranger("http://shady:1");
        assert_ne!(error.id(), forged.id());
        assert_eq!(error.machine(), crate::machine_name());
        assert_eq!(error.what(), "http://shady:1 answered INTERNAL");
        assert!(!format!("{:?}", error.as_proto()).contains("1234"));
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
        // Padding that is not due is bad too: tonic would panic on it.
        for text in ["AAAA=", "AAAA==", "AAA==", "=", "AAA=A"] {
            headers.insert(DETAILS_KEY, text.parse().unwrap());
            headers.insert("grpc-status", "5".parse().unwrap());
            assert!(remove_bad_details(&mut headers), "{text}");
            assert!(Status::from_header_map(&headers).is_some());
        }
        for text in ["AAA", "AAA=", "AA==", "AA=", "AA", ""] {
            headers.insert(DETAILS_KEY, text.parse().unwrap());
            assert!(!remove_bad_details(&mut headers), "{text}");
            assert!(Status::from_header_map(&headers).is_some());
        }
    }
}
