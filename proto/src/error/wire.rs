//! The error in gRPC's own terms: `google.rpc.Status` with standard details and ours.
//!
//! Trailers have limits that differ between peers; [`MAX_DETAILS_BYTES`] never failed in any.

use prost::Message as _;
use tonic::{Status, metadata::MetadataValue};
use tonic_types::pb;

use super::{Error, Inner, read::MOST};
use crate::v1;

/// Metadata key that repeats the error's ID, readable without any of our types.
pub const ERROR_ID_KEY: &str = "wardkeep-error-id";

/// The encoded `google.rpc.Status` never exceeds this.
pub const MAX_DETAILS_BYTES: usize = 4_096;

/// Longest user's line that is sent, in bytes.
const LONGEST_LINE: usize = 400;

/// Type URL of our own detail.
pub(super) const OURS: &str = "type.googleapis.com/wardkeep.v1.Error";
const STANDARD: &str = "type.googleapis.com/google.rpc.";

impl From<Error> for Status {
    fn from(mut error: Error) -> Self {
        let code = error.code();
        let id = MetadataValue::try_from(error.id());
        let as_came = error.0.as_came.take().filter(|came| came.details.len() <= MAX_DETAILS_BYTES);
        let (message, details) = match as_came {
            Some(came) => (came.message, came.details),
            None => {
                // Before it is encoded: the status within the details must have the same message.
                shorten(&mut error.0.record.user_message, LONGEST_LINE, "");
                let details = encode(&mut error.0);
                (error.0.record.user_message, details)
            }
        };
        let mut status = Status::with_details(code, message, details.into());
        if let Ok(id) = id {
            status.metadata_mut().insert(ERROR_ID_KEY, id);
        }
        status
    }
}

impl Error {
    /// What strangers are told: code, user's line, ID, and whether trying again may help.
    pub fn to_untrusted_status(&self) -> Status {
        let record = &self.0.record;
        let mut user_message = record.user_message.clone();
        shorten(&mut user_message, LONGEST_LINE, "");
        let mut details = vec![request_info("", &record.id)];
        details.extend(hints(record, &user_message));
        let inner = pb::Status { code: record.code, message: user_message.clone(), details };
        let mut status = Status::with_details(self.code(), user_message, inner.encode_to_vec().into());
        if let Ok(id) = MetadataValue::try_from(self.id()) {
            status.metadata_mut().insert(ERROR_ID_KEY, id);
        }
        status
    }
}

/// The encoded status, within [`MAX_DETAILS_BYTES`].
fn encode(error: &mut Inner) -> Vec<u8> {
    bound(&mut error.record);
    let bytes = encode_once(&error.record, &error.others);
    if bytes.len() <= MAX_DETAILS_BYTES {
        return bytes;
    }
    cut_to_fit(error.record.clone(), &error.others)
}

fn cut_to_fit(mut record: v1::Error, mut others: &[prost_types::Any]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cut in CUTS {
        if let Some(name) = cut(&mut record, &mut others) {
            mark(&mut record, name);
            bytes = encode_once(&record, others);
            if bytes.len() <= MAX_DETAILS_BYTES {
                break;
            }
        }
    }
    bytes
}

/// Longer lists are not believed by those who read them.
fn bound(e: &mut v1::Error) {
    let mut cut = vec![
        keep_first(&mut e.causes, MOST, "causes"),
        keep_first(&mut e.related_ids, MOST, "related_ids"),
        keep_first(&mut e.hops, MOST, "hops"),
    ];
    for hop in &mut e.hops {
        cut.push(keep_first(&mut hop.sites, MOST, "hops.sites"));
        cut.push(keep_first(&mut hop.frames, MOST, "hops.frames"));
        cut.push(keep_first(&mut hop.functions, MOST, "hops.functions"));
    }
    // There must be room for the names of all that may be cut.
    e.truncated.truncate(MOST / 2);
    cut.into_iter().flatten().for_each(|name| mark(e, name));
}

fn mark(e: &mut v1::Error, name: &str) {
    if !e.truncated.iter().any(|cut| cut == name) {
        e.truncated.push(name.to_owned());
    }
}

/// Gives up something; returns its name, if there was something to give up.
type Cut = fn(&mut v1::Error, &mut &[prost_types::Any]) -> Option<&'static str>;

/// What is given up, in this order, until the error fits. ID, time, hashes and the user's line are never
/// given up, nor are the names of what it is and where it arose, unless they are absurdly long.
const CUTS: [Cut; 9] = [
    |e, _| keep_first(&mut e.causes, 4, "causes"),
    |e, _| shorten(&mut e.what, 1_024, "what"),
    |_, others| (!std::mem::take(others).is_empty()).then_some("details"),
    |e, _| {
        let mut cut = false;
        for hop in &mut e.hops {
            cut |= !std::mem::take(&mut hop.frames).is_empty();
        }
        cut.then_some("hops.frames")
    },
    |e, _| keep_first(&mut e.causes, 0, "causes"),
    |e, _| keep_first(&mut e.related_ids, 4, "related_ids"),
    |e, _| {
        // The two ends of the stack tell most: who asked, and where it broke.
        let middle = e.hops.len().checked_sub(2).filter(|n| *n > 0)?;
        e.hops.drain(1..=middle);
        Some("hops")
    },
    |e, _| shorten(&mut e.what, 256, "what"),
    |e, _| {
        e.hops.clear();
        e.truncated.clear();
        e.related_ids.clear();
        for text in [
            &mut e.domain,
            &mut e.kind,
            &mut e.node,
            &mut e.ward,
            &mut e.machine,
            &mut e.help_url,
            &mut e.trace_id,
            &mut e.request_id,
        ] {
            shorten(text, 128, "");
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
        let end = crate::prefix(text, most).len();
        text.truncate(end);
        text.push('…');
        name
    })
}

fn any(name: &str, value: Vec<u8>) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/google.rpc.{name}"), value }
}

/// What helps whoever is told: whether to try again, and the user's line.
fn hints(error: &v1::Error, user_message: &str) -> impl Iterator<Item = prost_types::Any> {
    let retry = pb::RetryInfo { retry_delay: error.retry_delay };
    let line = pb::LocalizedMessage { locale: "en".into(), message: user_message.to_owned() };
    let retry = error.transitory.then(|| any("RetryInfo", retry.encode_to_vec()));
    retry.into_iter().chain([any("LocalizedMessage", line.encode_to_vec())])
}

fn request_info(request_id: &str, error_id: &str) -> prost_types::Any {
    let info = pb::RequestInfo { request_id: request_id.to_owned(), serving_data: error_id.to_owned() };
    any("RequestInfo", info.encode_to_vec())
}

fn help(url: &str) -> Option<prost_types::Any> {
    let link = pb::help::Link { description: "About this error".to_owned(), url: url.to_owned() };
    (!url.is_empty()).then(|| any("Help", pb::Help { links: vec![link] }.encode_to_vec()))
}

fn encode_once(error: &v1::Error, others: &[prost_types::Any]) -> Vec<u8> {
    let info = pb::ErrorInfo {
        reason: error.kind.clone(),
        domain: error.domain.clone(),
        metadata: [("id", &error.id), ("group_hash", &error.group_hash), ("machine", &error.machine)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect(),
    };
    let mut details =
        vec![any("ErrorInfo", info.encode_to_vec()), request_info(&error.request_id, &error.id)];
    details.extend(hints(error, &error.user_message));
    details.extend(help(&error.help_url));
    details.push(prost_types::Any { type_url: OURS.into(), value: error.encode_to_vec() });
    details.extend(others.iter().cloned());
    pb::Status { code: error.code, message: error.user_message.clone(), details }.encode_to_vec()
}

/// Whether we write a detail of this type ourselves.
pub(super) fn is_written_by_us(type_url: &str) -> bool {
    let standard = type_url.strip_prefix(STANDARD);
    type_url == OURS
        || standard.is_some_and(|name| {
            matches!(
                name,
                "ErrorInfo" | "RequestInfo" | "RetryInfo" | "LocalizedMessage" | "Help" | "DebugInfo"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Bug;

    #[test]
    fn the_inner_and_outer_status_agree_in_code_and_message() {
        let status = Status::from(Bug::because("x"));
        let inner = pb::Status::decode(status.details()).unwrap();
        assert_eq!((inner.code, inner.message.as_str()), (status.code() as i32, status.message()));
    }

    #[test]
    fn an_error_of_any_size_fits_the_budget_and_keeps_what_must_never_be_cut() {
        let mut error = Bug::because("w".repeat(100_000));
        let record = &mut error.0.record;
        record.causes = (0..50).map(|i| v1::Cause { what: format!("{i}").repeat(400) }).collect();
        record.hops = (0..60).map(|_| record.hops[0].clone()).collect();
        record.related_ids = (0..100).map(|_| uuid::Uuid::now_v7().to_string()).collect();
        record.user_message = "u".repeat(5_000);
        let status = Status::from(error.clone());
        assert!(status.details().len() <= MAX_DETAILS_BYTES, "{}", status.details().len());
        let read = Error::from_status(&status);
        assert_eq!(read.id(), error.id());
        assert_eq!(read.occurred_at(), error.occurred_at());
        assert_eq!((read.group_hash(), read.exact_hash()), (error.group_hash(), error.exact_hash()));
        assert!(!read.exact_hash().is_empty());
        assert!(read.user_message().starts_with("uuu"));
        assert!(!read.is_malformed() || read.kind() == error.kind());
    }

    #[test]
    fn frames_are_cut_from_all_hops_before_causes_and_hops_are() {
        let mut error = Bug::because("x");
        let record = &mut error.0.record;
        record.hops[0].frames = vec![u64::MAX; 60];
        record.hops = vec![record.hops[0].clone(); 6];
        record.causes = vec![v1::Cause { what: "c".into() }];
        let read = Error::from_status(&Status::from(error));
        assert_eq!(read.as_proto().truncated, ["hops.frames"]);
        assert!(read.as_proto().hops.iter().all(|hop| hop.frames.is_empty()));
        assert_eq!((read.as_proto().hops.len(), read.as_proto().causes.len()), (6, 1));
    }

    #[test]
    fn what_is_cut_is_named() {
        let read = Error::from_status(&Bug::because("w".repeat(5_000)).into());
        assert!(read.as_proto().truncated.contains(&"what".to_owned()), "{:?}", read.as_proto().truncated);
    }
}
