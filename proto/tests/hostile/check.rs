//! What holds of everything a peer can say.

use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::pb;
use wardkeep_proto::{
    Error,
    context::{RequestContext, sync_scope},
    error::{Bug, Came, ERROR_ID_KEY, MAX_DETAILS_BYTES, read_headers, write_headers},
};

use super::generate::{Headers, Said};

/// A status becomes an error that survives the next hop.
pub fn status(said: &Said) {
    let mut status =
        Status::with_details(Code::from_i32(said.code), said.message.as_str(), said.details.clone().into());
    if let Some(id) = said.id.as_ref().and_then(|id| id.parse().ok()) {
        status.metadata_mut().insert(ERROR_ID_KEY, id);
    }
    let error = Error::from_status(&status);
    assert!(!error.machine().is_empty() && !error.kind().is_empty() && !error.domain().is_empty());
    let _ = (error.occurred_at(), error.retry_after(), format!("{error} {error:?}"));
    let told = passes(&error);
    assert_eq!(Error::from_status(&told).is_malformed(), error.is_malformed());

    let covered = error.to_untrusted_status();
    assert!(covered.details().len() <= MAX_DETAILS_BYTES && covered.message().len() < 500);
    assert_eq!(Error::from_status(&covered).id(), error.id());

    let stranger = error.clone().of_stranger("http://a:1");
    assert_ne!(stranger.id(), error.id());
    assert_eq!((stranger.machine(), stranger.code()), (wardkeep_proto::machine_name(), error.code()));
    passes(&stranger);
}

/// Headers can be read and written, and what was written is read as it was meant.
pub fn headers(pairs: &Headers) {
    let mut map = HeaderMap::new();
    for (key, value) in pairs {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            map.append(HeaderName::from_static(key), value);
        }
    }
    let now = Instant::now();
    let mut context = RequestContext::from_headers("/a.B/C", &map, now);
    context.enter("node", "ward", 1);
    let mut written = HeaderMap::new();
    context.write(&mut written, now);
    let next = RequestContext::from_headers("/a.B/C", &written, now);
    assert_eq!((next.request_id, next.attempt), (context.request_id, context.attempt));
    assert!(next.deadline <= context.deadline && next.hops().len() <= 8);

    // What arises on the way that a caller claims to have come.
    passes(&sync_scope(context.clone(), || Bug::because("x")));
    // And what it is told.
    let read = sync_scope(context, || read_headers(&mut map));
    // tonic reads the same headers after us.
    let seen = Status::from_header_map(&map);
    let Some((error, came)) = read else {
        return assert!(seen.is_none_or(|status| status.code() == Code::Ok));
    };
    if came == Came::Whole {
        return assert_eq!(Error::from_status(&seen.expect("it is there")).id(), error.id());
    }
    write_headers(&mut map, error.clone());
    let (again, came) = read_headers(&mut map).expect("it is there");
    assert_eq!((again.id(), came), (error.id(), Came::Whole));
}

/// The status of an error keeps the rules, and is read as the same error.
fn passes(error: &Error) -> Status {
    let told = Status::from(error.clone());
    assert!(told.details().len() <= MAX_DETAILS_BYTES, "{} bytes", told.details().len());
    let inner = pb::Status::decode(told.details()).expect("it was just written");
    assert_eq!((inner.code, inner.message.as_str()), (told.code() as i32, told.message()));
    assert_ne!(told.code(), Code::Ok);
    let line = error.user_message();
    assert!(!line.trim().is_empty() && !line.contains(char::is_control), "{line:?}");
    let again = Error::from_status(&told);
    assert_eq!(
        (again.id(), again.code(), again.group_hash()),
        (error.id(), error.code(), error.group_hash())
    );
    assert_eq!(told.metadata().get(ERROR_ID_KEY).map(|id| id.as_bytes()), Some(error.id().as_bytes()));
    told
}
