//! From any bytes to something that is nearly an error, so that more than the first check is met.

use arbitrary::{Result, Unstructured};
use base64::{Engine as _, engine::general_purpose};
use prost::Message as _;
use prost_types::{Any, Duration, Timestamp};
use tonic_types::pb;
use wardkeep_proto::v1;

/// What a status can say.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub message: String,
    pub details: Vec<u8>,
    pub id: Option<String>,
}

pub type Headers = Vec<(&'static str, Vec<u8>)>;

const OURS: &str = "type.googleapis.com/wardkeep.v1.Error";
const ID: &str = "0199d6a0-5ec4-7000-8000-000000000000";
const KEYS: [&str; 10] = [
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "wardkeep-error-id",
    "wardkeep-hops-bin",
    "wardkeep-request-id",
    "wardkeep-attempt",
    "grpc-timeout",
    "traceparent",
    "x",
];

pub fn said(u: &mut Unstructured<'_>) -> Result<Said> {
    let code = if rarely(u)? { u.arbitrary()? } else { u.int_in_range(0..=16)? };
    let message = text(u, "no such book")?;
    let id = if u.arbitrary()? { Some(text(u, ID)?) } else { None };
    let details = match u.int_in_range(0..=7)? {
        0 => Vec::new(),
        1 => u.arbitrary()?,
        _ => details(u, code, &message)?,
    };
    Ok(Said { code, message, details, id })
}

pub fn headers(u: &mut Unstructured<'_>) -> Result<Headers> {
    let mut headers = Headers::new();
    if !rarely(u)? {
        let said = said(u)?;
        headers.push(("grpc-status", said.code.to_string().into_bytes()));
        headers.push(("grpc-message", escaped(u, &said.message)?));
        headers.push(("grpc-status-details-bin", encoded(u, &said.details)?));
        headers.extend(said.id.map(|id| ("wardkeep-error-id", id.into_bytes())));
    }
    if u.arbitrary()? {
        let hops = (0..u.int_in_range(0..=12)?).map(|_| hop(u)).collect::<Result<_>>()?;
        headers.push(("wardkeep-hops-bin", encoded(u, &v1::Path { hops }.encode_to_vec())?));
    }
    for _ in 0..u.int_in_range(0..=3)? {
        headers.push((u.choose(&KEYS)?, u.arbitrary()?));
    }
    Ok(headers)
}

/// One time in sixteen.
fn rarely(u: &mut Unstructured<'_>) -> Result<bool> {
    u.ratio(1, 16)
}

fn text(u: &mut Unstructured<'_>, usual: &str) -> Result<String> {
    Ok(match u.int_in_range(0..=63)? {
        0 => String::new(),
        1 => u.arbitrary()?,
        2 => "two\nlines\u{7}".to_owned(),
        3 => u.choose(&["x", "é", "🦀", "\0"])?.repeat(u.int_in_range(0..=1_100)?),
        _ => usual.to_owned(),
    })
}

fn details(u: &mut Unstructured<'_>, code: i32, message: &str) -> Result<Vec<u8>> {
    let mut details = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        details.push(standard(u)?);
    }
    for _ in 0..if rarely(u)? { u.int_in_range(0..=3)? } else { 1 } {
        let mut value = record(u, code)?.encode_to_vec();
        spoil(u, &mut value)?;
        details.push(Any { type_url: OURS.to_owned(), value });
    }
    let code = if rarely(u)? { u.arbitrary()? } else { code };
    let message = if rarely(u)? { u.arbitrary()? } else { message.to_owned() };
    let mut bytes = pb::Status { code, message, details }.encode_to_vec();
    spoil(u, &mut bytes)?;
    Ok(bytes)
}

/// Details that have a meaning, or none.
fn standard(u: &mut Unstructured<'_>) -> Result<Any> {
    let (name, value) = match u.int_in_range(0..=6)? {
        0 => {
            let info = pb::ErrorInfo { reason: text(u, "R")?, domain: text(u, "d")?, ..Default::default() };
            ("ErrorInfo", info.encode_to_vec())
        }
        1 => ("RetryInfo", pb::RetryInfo { retry_delay: delay(u)? }.encode_to_vec()),
        2 => {
            let line = pb::LocalizedMessage { locale: "en".to_owned(), message: text(u, "line")? };
            ("LocalizedMessage", line.encode_to_vec())
        }
        3 => {
            let info = pb::RequestInfo { request_id: text(u, "r")?, serving_data: text(u, ID)? };
            ("RequestInfo", info.encode_to_vec())
        }
        4 => {
            let link = pb::help::Link { description: String::new(), url: text(u, "https://x.example")? };
            ("Help", pb::Help { links: vec![link] }.encode_to_vec())
        }
        5 => ("DebugInfo", u.arbitrary()?),
        _ => return Ok(Any { type_url: text(u, "other")?, value: u.arbitrary()? }),
    };
    Ok(Any { type_url: format!("type.googleapis.com/google.rpc.{name}"), value })
}

fn delay(u: &mut Unstructured<'_>) -> Result<Option<Duration>> {
    Ok(match u.int_in_range(0..=3)? {
        0 => None,
        1 => Some(Duration { seconds: u.arbitrary()?, nanos: u.arbitrary()? }),
        _ => Some(Duration { seconds: 1, nanos: 5 }),
    })
}

fn time(u: &mut Unstructured<'_>) -> Result<Option<Timestamp>> {
    Ok(match u.int_in_range(0..=15)? {
        0 => None,
        1 => Some(Timestamp { seconds: u.arbitrary()?, nanos: u.arbitrary()? }),
        _ => Some(Timestamp { seconds: 1_700_000_000, nanos: 7 }),
    })
}

fn hop(u: &mut Unstructured<'_>) -> Result<v1::Hop> {
    let site = v1::Site { file: text(u, "a/src/b.rs")?, line: u.arbitrary()? };
    Ok(v1::Hop {
        method: text(u, "/a.B/C")?,
        machine: text(u, "m")?,
        node: text(u, "n")?,
        ward: text(u, "w")?,
        incarnation: u.arbitrary()?,
        sites: vec![site; count(u)?],
        frames: vec![u.arbitrary()?; count(u)?],
        build_id: text(u, "b")?,
        entered_at: time(u)?,
        functions: vec![text(u, "f")?; count(u)?],
    })
}

fn count(u: &mut Unstructured<'_>) -> Result<usize> {
    if rarely(u)? { u.int_in_range(0..=80) } else { u.int_in_range(0..=2) }
}

fn record(u: &mut Unstructured<'_>, code: i32) -> Result<v1::Error> {
    Ok(v1::Error {
        version: if rarely(u)? { u.arbitrary()? } else { u.int_in_range(1..=2)? },
        id: text(u, ID)?,
        occurred_at: time(u)?,
        machine: text(u, "m")?,
        node: text(u, "n")?,
        ward: text(u, "w")?,
        incarnation: u.arbitrary()?,
        code: if rarely(u)? { u.arbitrary()? } else { code },
        domain: text(u, "d")?,
        kind: text(u, "K")?,
        what: text(u, "what")?,
        user_message: text(u, "no such book")?,
        transitory: u.arbitrary()?,
        retry_delay: delay(u)?,
        hops: (0..count(u)?).map(|_| hop(u)).collect::<Result<_>>()?,
        group_hash: text(u, "g1-0123456789abcdef")?,
        exact_hash: text(u, "e1-0123456789abcdef")?,
        trace_id: text(u, "t")?,
        request_id: text(u, "r")?,
        related_ids: vec![text(u, ID)?; count(u)?],
        causes: vec![v1::Cause { what: text(u, "cause")? }; count(u)?],
        malformed: u.arbitrary()?,
        truncated: vec![text(u, "hops")?; count(u)?],
        help_url: text(u, "")?,
    })
}

fn spoil(u: &mut Unstructured<'_>, bytes: &mut Vec<u8>) -> Result<()> {
    if bytes.is_empty() || !rarely(u)? {
        return Ok(());
    }
    let at = u.choose_index(bytes.len())?;
    match u.int_in_range(0..=2)? {
        0 => bytes.truncate(at),
        1 => bytes[at] = u.arbitrary()?,
        _ => _ = bytes.splice(at..at, u.arbitrary::<Vec<u8>>()?),
    }
    Ok(())
}

fn encoded(u: &mut Unstructured<'_>, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut text = match u.int_in_range(0..=15)? {
        0 => general_purpose::STANDARD.encode(bytes),
        1 => general_purpose::URL_SAFE.encode(bytes),
        2 => format!("{}=", general_purpose::STANDARD.encode(bytes)),
        3 => format!("{0},{0}", general_purpose::STANDARD_NO_PAD.encode(bytes)),
        _ => general_purpose::STANDARD_NO_PAD.encode(bytes),
    }
    .into_bytes();
    spoil(u, &mut text)?;
    Ok(text)
}

fn escaped(u: &mut Unstructured<'_>, text: &str) -> Result<Vec<u8>> {
    let plain = |b: &u8| b.is_ascii_graphic() && *b != b'%' || *b == b' ';
    let mut out = Vec::new();
    for b in text.as_bytes() {
        if plain(b) { out.push(*b) } else { out.extend(format!("%{b:02x}").into_bytes()) }
    }
    spoil(u, &mut out)?;
    Ok(out)
}
