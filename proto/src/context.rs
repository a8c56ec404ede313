//! What a request carries from hop to hop: its ID, which attempt this is, the time that is left,
//! and where it came from in the trace. Data that decorates; nothing here steers behaviour.

use std::{
    io::{Cursor, Write as _},
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{machine_name, timestamp, v1};

/// The request's UUIDv7, the same for all attempts.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("wardkeep-request-id");
/// The UUIDv7 of one call, the same for all its attempts. Only calls made while serving a request have
/// one: they share its request ID.
pub const CALL_ID: HeaderName = HeaderName::from_static("wardkeep-call-id");
/// The attempt's number, from 1.
pub const ATTEMPT: HeaderName = HeaderName::from_static("wardkeep-attempt");
/// Which node answered.
pub const NODE: HeaderName = HeaderName::from_static("wardkeep-node");
/// Which ward answered.
pub const WARD: HeaderName = HeaderName::from_static("wardkeep-ward");
/// Which incarnation of it.
pub const INCARNATION: HeaderName = HeaderName::from_static("wardkeep-incarnation");
/// `1` in a request: the head of the reply is wanted when its work begins. See [`BEGAN`].
pub const TIED: HeaderName = HeaderName::from_static("wardkeep-tied");
/// `1` in the head of a reply to a tied request: the work has begun. What else the head would have said
/// comes in the body, before all messages, in a frame with the flag [`HEAD_FLAG`].
pub const BEGAN: HeaderName = HeaderName::from_static("wardkeep-began");
/// In trailers, of calls that came with a request ID: how busy the ward is, from `0.00` to `1.00`.
pub const LOAD: HeaderName = HeaderName::from_static("wardkeep-load");
/// In the trailers of an attempt that was withdrawn: how far it had come, and what it cost in microseconds,
/// as in `running;wall=1234;busy=56`, or `queued`.
pub const FATE: HeaderName = HeaderName::from_static("wardkeep-fate");
/// In the head of a reply that comes from a call's twin: `joined` if it was running, `replayed` if it had ended.
pub const TWIN: HeaderName = HeaderName::from_static("wardkeep-twin");
/// How long to wait before the next attempt, in milliseconds: gRFC A6.
pub const RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// In the head of a failed reply: no work was begun, so that even what may not be repeated may be sent to another
/// node. Only nodes say so, never a ward.
pub const REFUSED: HeaderName = HeaderName::from_static("wardkeep-refused");
/// The flag of a frame of a tied reply's body that holds what its head did not say. A length (four bytes,
/// big-endian, at most [`MOST_HEAD_BYTES`]) and lines (`name: value` CR LF) follow, as in trailers of gRPC-Web.
pub const HEAD_FLAG: u8 = 0x80;
/// Longest text of such a frame.
pub const MOST_HEAD_BYTES: usize = 16 * 1024;
/// The way the request has come: an encoded [`v1::Path`].
pub const HOPS: HeaderName = HeaderName::from_static("wardkeep-hops-bin");
/// Time left, in gRPC's own form.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Every call has a deadline; this is the one of calls that set none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// The context of the request being served.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Same for all attempts and all hops.
    pub request_id: Uuid,
    /// From 1.
    pub attempt: u32,
    /// `/package.Service/Method`.
    pub method: Arc<str>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// W3C traceparent as it came.
    pub traceparent: Option<Arc<str>>,
    /// Where errors that arise on its way are written down; nowhere but in the log if `None`.
    pub recorder: Option<Recorder>,
    way: Arc<Way>,
}

/// The way a request has come. It is wanted when something goes wrong and when a call is made, which is rare: until
/// then it is kept as it came.
#[derive(Clone, Debug, Default)]
struct Way {
    came: Option<HeaderValue>,
    here: Option<Here>,
    /// As it is written into the headers of calls.
    onward: OnceLock<Option<HeaderValue>>,
}

/// Where it is served. With its method: that of a call made from here is another.
#[derive(Clone, Debug)]
struct Here {
    method: Arc<str>,
    node: Arc<str>,
    ward: Arc<str>,
    incarnation: u64,
    entered_at: DateTime<Utc>,
}

/// Takes down errors for whoever wants to look them up: a node gives its own to the calls it serves.
#[derive(Clone)]
pub struct Recorder(Arc<dyn Fn(&crate::Error) + Send + Sync>);

impl Recorder {
    /// Calls this with each error.
    pub fn new(write: impl Fn(&crate::Error) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    pub(crate) fn write(&self, error: &crate::Error) {
        (self.0)(error);
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

/// Longest way that is remembered: of a longer one, the beginning and the end.
const MOST_HOPS: usize = 8;
/// Longest header that is read or written, in bytes of its encoded form.
const MOST_HOPS_BYTES: usize = 2_048;

impl RequestContext {
    /// Reads the context of an incoming request. What is absent or unreadable gets its default: a
    /// new ID, attempt 1, [`DEFAULT_DEADLINE`].
    pub fn from_headers(method: &str, headers: &HeaderMap, now: Instant) -> Self {
        let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        Self {
            request_id: id(headers, &REQUEST_ID).unwrap_or_else(Uuid::now_v7),
            attempt: text(&ATTEMPT).and_then(|t| t.parse().ok()).unwrap_or(1),
            method: method.into(),
            deadline: now + text(&GRPC_TIMEOUT).and_then(parse_timeout).unwrap_or(DEFAULT_DEADLINE),
            traceparent: text(&TRACEPARENT).filter(|t| is_traceparent(t)).map(Into::into),
            recorder: None,
            way: Arc::new(Way { came: headers.get(&HOPS).cloned(), ..Default::default() }),
        }
    }

    /// That of a call made while `outer` is served: it has come the same way, is part of the same trace, and its errors
    /// are written down where the others are.
    pub fn of_call(outer: Option<&Self>, request_id: Uuid, method: &str, deadline: Instant) -> Self {
        Self {
            request_id,
            attempt: 1,
            method: method.into(),
            deadline,
            traceparent: outer.and_then(|outer| outer.traceparent.clone()),
            recorder: outer.and_then(|outer| outer.recorder.clone()),
            way: outer.map(|outer| outer.way.clone()).unwrap_or_default(),
        }
    }

    /// The request has reached a ward: errors that arise from here on say so.
    pub fn enter(&mut self, node: impl Into<Arc<str>>, ward: impl Into<Arc<str>>, incarnation: u64) {
        let before = self.way.here.is_some().then(|| write_hops(self.hops()));
        let (method, node, ward) = (self.method.clone(), node.into(), ward.into());
        let here = Here { method, node, ward, incarnation, entered_at: Utc::now() };
        let way = Arc::make_mut(&mut self.way);
        way.came = before.unwrap_or_else(|| way.came.take());
        way.here = Some(here);
        way.onward = OnceLock::new();
    }

    /// The way it has come, outermost first; within a ward, the ward's own hop is the last. What cannot be read is no
    /// way at all.
    pub fn hops(&self) -> Vec<v1::Hop> {
        let mut hops = self.way.came.as_ref().map(read_hops).unwrap_or_default();
        let Some(here) = &self.way.here else { return hops };
        if hops.len() >= MOST_HOPS {
            hops.remove(MOST_HOPS / 2);
        }
        hops.push(v1::Hop {
            method: here.method.to_string(),
            machine: machine_name().to_owned(),
            node: here.node.to_string(),
            ward: here.ward.to_string(),
            incarnation: here.incarnation,
            entered_at: Some(timestamp(here.entered_at)),
            ..Default::default()
        });
        hops
    }

    /// What is being served here: the method, the ward, and which incarnation of it. Within a call that is made
    /// meanwhile, it is what that is made for.
    pub fn served(&self) -> Option<(&str, &str, u64)> {
        self.way.here.as_ref().map(|here| (&*here.method, &*here.ward, here.incarnation))
    }

    /// Whether it has come from somewhere, or is being served.
    pub fn has_come(&self) -> bool {
        self.way.here.is_some() || !self.hops().is_empty()
    }

    /// Time left; zero once the deadline has passed.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }

    /// The trace's ID (32 hex digits), if the request is part of one.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent.as_deref().and_then(|t| t.get(3..35))
    }

    /// Writes ID, attempt and time left into the headers of an attempt.
    pub fn write(&self, headers: &mut HeaderMap, now: Instant) {
        let mut text = Uuid::encode_buffer();
        let id = HeaderValue::from_str(self.request_id.hyphenated().encode_lower(&mut text));
        if let Ok(id) = id {
            headers.insert(REQUEST_ID, id);
        }
        headers.insert(ATTEMPT, HeaderValue::from(self.attempt));
        headers.insert(GRPC_TIMEOUT, format_timeout(self.remaining(now)));
        if let Some(hops) = self.way.onward.get_or_init(|| write_hops(self.hops())) {
            headers.insert(HOPS, hops.clone());
        }
    }
}

fn id(headers: &HeaderMap, name: &HeaderName) -> Option<Uuid> {
    headers.get(name).and_then(|v| Uuid::try_parse_ascii(v.as_bytes()).ok())
}

/// What tells an incoming call from all others, whatever its attempt. `None` if it has no request ID, or one that
/// it may share: calls made while serving a request have the request's, and need one of their own ([`CALL_ID`]).
pub fn call_id(headers: &HeaderMap, context: &RequestContext) -> Option<Uuid> {
    let request = id(headers, &REQUEST_ID)?;
    id(headers, &CALL_ID).or_else(|| (context.hops().len() <= 1).then_some(request))
}

/// Whoever calls without being called itself is the first hop.
fn write_hops(hops: Vec<v1::Hop>) -> Option<HeaderValue> {
    let mut path = v1::Path { hops };
    if path.hops.is_empty() {
        let machine = machine_name().to_owned();
        path.hops.push(v1::Hop { machine, entered_at: Some(timestamp(Utc::now())), ..Default::default() });
    }
    while path.encoded_len() > MOST_HOPS_BYTES * 3 / 4 && path.hops.len() > 1 {
        path.hops.remove(path.hops.len() / 2);
    }
    let text = STANDARD_NO_PAD.encode(path.encode_to_vec());
    (text.len() <= MOST_HOPS_BYTES).then(|| HeaderValue::try_from(text).ok()).flatten()
}

/// Only what a hop has is taken over, within bounds: the header comes from a peer.
fn read_hops(header: &HeaderValue) -> Vec<v1::Hop> {
    let text = Some(header.as_bytes()).filter(|text| text.len() <= MOST_HOPS_BYTES);
    let bytes = text.and_then(|text| STANDARD_NO_PAD.decode(text).ok()).unwrap_or_default();
    let Ok(path) = v1::Path::decode(bytes.as_slice()) else { return Vec::new() };
    path.hops.into_iter().take(MOST_HOPS).collect()
}

fn is_traceparent(text: &str) -> bool {
    text.len() >= 55 && text.is_ascii() && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

tokio::task_local! {
    static CURRENT: Arc<RequestContext>;
}

/// The request being served by this task, if it serves one.
pub fn current() -> Option<Arc<RequestContext>> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Runs a future as part of serving this request: what it calls inherits ID and deadline.
pub fn scope<F: Future>(
    context: impl Into<Arc<RequestContext>>,
    future: F,
) -> impl Future<Output = F::Output> {
    CURRENT.scope(context.into(), future)
}

/// Runs a closure as part of serving this request.
pub fn sync_scope<T>(context: impl Into<Arc<RequestContext>>, work: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(context.into(), work)
}

/// Reads gRPC's timeout header: at most eight digits and a unit (`H M S m u n`).
pub fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3_600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes gRPC's timeout header in the finest unit that fits eight digits.
pub fn format_timeout(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units = [
        (timeout.as_nanos(), 'n'),
        (timeout.as_micros(), 'u'),
        (timeout.as_millis(), 'm'),
        (u128::from(timeout.as_secs()), 'S'),
        (u128::from(timeout.as_secs() / 60), 'M'),
    ];
    let (n, unit) = units.into_iter().find(|(n, _)| *n <= MOST).unwrap_or((MOST, 'M'));
    // Eight digits and the unit.
    let mut text = Cursor::new([0; 9]);
    let _ = write!(text, "{n}{unit}");
    let length = usize::try_from(text.position()).unwrap_or_default();
    HeaderValue::from_bytes(&text.get_ref()[..length]).unwrap_or(HeaderValue::from_static("30S"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_timeout_survives_the_header_to_within_its_unit(nanos in 0u64..10_000_000_000_000) {
            let timeout = Duration::from_nanos(nanos);
            let header = format_timeout(timeout);
            let read = parse_timeout(header.to_str().unwrap()).unwrap();
            prop_assert!(read <= timeout);
            prop_assert!(timeout - read <= timeout / 99_999 + Duration::from_nanos(1));
        }

        #[test]
        fn no_text_makes_the_timeout_parser_panic(text in "\\PC{0,12}") {
            let _ = parse_timeout(&text);
        }
    }

    #[test]
    fn unreadable_headers_get_their_defaults() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, "nonsense".parse().unwrap());
        headers.insert(GRPC_TIMEOUT, "soon".parse().unwrap());
        headers.insert(TRACEPARENT, "x".parse().unwrap());
        let now = Instant::now();
        let context = RequestContext::from_headers("/a.B/C", &headers, now);
        assert_eq!(context.attempt, 1);
        assert_eq!(context.remaining(now), DEFAULT_DEADLINE);
        assert_eq!(context.trace_id(), None);
    }

    #[test]
    fn a_call_is_told_by_its_request_unless_it_was_made_while_serving_one() {
        let now = Instant::now();
        let outer = RequestContext::from_headers("/a.B/C", &HeaderMap::new(), now);
        let mut headers = HeaderMap::new();
        let id = |headers: &HeaderMap| {
            let context = RequestContext::from_headers("/a.B/C", headers, now);
            call_id(headers, &context)
        };
        assert_eq!(id(&headers), None);
        outer.write(&mut headers, now);
        assert_eq!(id(&headers), Some(outer.request_id));
        let mut serving = RequestContext::from_headers("/a.B/C", &headers, now);
        serving.enter("n", "w", 1);
        serving.write(&mut headers, now);
        assert_eq!(id(&headers), None);
        let own = Uuid::now_v7();
        headers.insert(CALL_ID, own.to_string().parse().unwrap());
        assert_eq!(id(&headers), Some(own));
    }

    #[test]
    fn the_way_of_a_request_grows_with_each_hop_and_stays_bounded() {
        let now = Instant::now();
        let mut headers = HeaderMap::new();
        for n in 0..20 {
            let mut context = RequestContext::from_headers("/a.B/C", &headers, now);
            context.enter(format!("node-{n}"), "ward", n);
            headers = HeaderMap::new();
            context.write(&mut headers, now);
        }
        let hops = RequestContext::from_headers("/a.B/C", &headers, now).hops();
        assert!(hops.len() <= MOST_HOPS, "{}", hops.len());
        assert_eq!(hops.first().unwrap().node, "node-0");
        assert_eq!(hops.last().unwrap().node, "node-19");
    }

    #[test]
    fn a_call_made_on_the_way_says_what_was_served_not_what_it_calls() {
        let now = Instant::now();
        let mut outer = RequestContext::from_headers("/a.B/Served", &HeaderMap::new(), now);
        outer.enter("node", "ward", 1);
        let call = RequestContext::of_call(Some(&outer), outer.request_id, "/a.B/Called", now);
        assert_eq!(call.hops()[0].method, "/a.B/Served");
        let mut headers = HeaderMap::new();
        call.write(&mut headers, now);
        let mut inner = RequestContext::from_headers("/a.B/Called", &headers, now);
        inner.enter("other", "ward", 1);
        let methods: Vec<_> = inner.hops().into_iter().map(|hop| hop.method).collect();
        assert_eq!(methods, ["/a.B/Served", "/a.B/Called"]);
    }

    #[test]
    fn a_hostile_way_is_no_way() {
        for text in ["%%%", "AAAA", &"A".repeat(5_000)] {
            let mut headers = HeaderMap::new();
            headers.insert(HOPS, text.parse().unwrap());
            assert!(RequestContext::from_headers("/a.B/C", &headers, Instant::now()).hops().is_empty());
        }
    }
}
