//! What a peer can send that no peer should: each becomes one well-formed error for the caller, one
//! malformed record in the log, and nothing else happens.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::{
    framed,
    raw::{Raw, Step},
    records::{Records, panics},
    within,
};
use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};
use prost::Message as _;
use prost_types::{
    Any, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, MethodOptions,
    ServiceDescriptorProto, Timestamp, method_options::IdempotencyLevel,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::pb;
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_proto::{
    Error,
    error::{ERROR_ID_KEY, MAX_DETAILS_BYTES},
    v1::{self, Event},
};

const OURS: &str = "type.googleapis.com/wardkeep.v1.Error";
const DETAILS: &str = "grpc-status-details-bin";
/// In everything the peer says: nothing of it may reach users, or callers of strangers.
const MARK: &str = "SECRET";
const FORGED: &str = "0199d6a0-5ec4-7000-8000-000000000000";

// ------------------------------------------------------------------------------------- ways to be called

/// Kinds of calls, which differ in how far their replies are read before callers get them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Unary, known to be idempotent: read to its end.
    Unary,
    /// Unary, known not to be: passes through.
    Once,
    /// Server-streaming, known to be idempotent: passes through from its first message on.
    Stream,
    /// Unary, of which nothing is known: passes through.
    Unknown,
    /// Server-streaming, of which nothing is known.
    UnknownStream,
}

use Way::*;

const WAYS: [Way; 5] = [Unary, Once, Stream, Unknown, UnknownStream];

impl Way {
    fn streams(self) -> bool {
        matches!(self, Stream | UnknownStream)
    }

    /// Few cases have a method in common: floods of one failure are kept out of the log.
    fn path(self, set: &str, case: usize) -> String {
        format!("/{set}.Peer/{self:?}{}", case / 15)
    }
}

/// Of the methods of a set of cases, those of which something is known.
fn descriptors(set: &str, cases: usize) -> Vec<u8> {
    let method = |way: Way, n| MethodDescriptorProto {
        name: Some(format!("{way:?}{n}")),
        server_streaming: Some(way.streams()),
        options: (way != Once).then(|| MethodOptions {
            idempotency_level: Some(IdempotencyLevel::NoSideEffects.into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let methods = (0..=cases / 15).flat_map(|n| [Unary, Once, Stream].map(|way| method(way, n)));
    let service = ServiceDescriptorProto {
        name: Some("Peer".to_owned()),
        method: methods.collect(),
        ..Default::default()
    };
    let file =
        FileDescriptorProto { package: Some(set.to_owned()), service: vec![service], ..Default::default() };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

/// A peer that answers in as many ways, and well if asked for one more.
struct Trial {
    set: &'static str,
    cases: usize,
    raw: Raw,
    channel: Replicated,
    records: Records,
    panics: usize,
}

impl Trial {
    async fn of(set: &'static str, cases: Vec<Vec<Step>>, dress: fn(Member) -> Member) -> Self {
        let (number, panics) = (cases.len(), panics());
        let raw = Raw::start(move |asked| {
            let case: usize = asked["case"].to_str().unwrap().parse().unwrap();
            cases.get(case).cloned().unwrap_or_else(good)
        })
        .await;
        let builder = Replicated::builder().members([dress(raw.member())]).policy(Policy::All(1));
        let channel = builder.methods(&descriptors(set, number)).build().unwrap();
        Self { set, cases: number, raw, channel, records: Records::listen(), panics }
    }

    /// The same connection serves the next call.
    async fn goes_on(&self, after: &str) {
        let (_, ended) = ask(self, Unary, self.cases).await;
        ended.expect(after);
    }

    fn end(self, connections: usize) {
        assert_eq!((self.raw.connections(), panics() - self.panics), (connections, 0));
    }
}

/// Calls, and reads the reply to its end. Returns the messages that came, and how it ended.
async fn ask(trial: &Trial, way: Way, case: usize) -> (usize, Result<(), Status>) {
    let mut client = tonic::client::Grpc::new(trial.channel.clone());
    let path = PathAndQuery::try_from(way.path(trial.set, case)).unwrap();
    let codec = ProstCodec::<Event, Event>::default();
    let mut request = Request::new(Event::default());
    request.metadata_mut().insert("case", case.to_string().parse().unwrap());
    if !way.streams() {
        let told = within(client.unary(request, path, codec)).await;
        return (usize::from(told.is_ok()), told.map(|_| ()));
    }
    let mut stream = match within(client.server_streaming(request, path, codec)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (0, Err(status)),
    };
    let mut messages = 0;
    loop {
        match within(stream.message()).await {
            Ok(Some(_)) => messages += 1,
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
        trial.raw.seen.add_permits(1);
    }
}

// --------------------------------------------------------------------------------- what may be said wrong

type Pairs = Vec<(&'static str, Vec<u8>)>;

fn map(pairs: &Pairs) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (key, value) in pairs {
        map.append(HeaderName::from_static(key), HeaderValue::from_bytes(value).unwrap());
    }
    map
}

/// A well-formed error of a node.
fn theirs() -> v1::Error {
    let error = Error::from_status(&Status::not_found(MARK)).at("bank", "vault", 1);
    v1::Error { id: FORGED.to_owned(), machine: "SECRET-bank".to_owned(), ..error.into_proto() }
}

fn said(code: i32, message: &str, details: Vec<Any>, outer: &str) -> Pairs {
    let inner = pb::Status { code, message: message.to_owned(), details };
    let details = STANDARD.encode(inner.encode_to_vec()).into_bytes();
    let outer = outer.as_bytes().to_vec();
    vec![
        ("grpc-status", b"5".to_vec()),
        ("grpc-message", outer),
        (DETAILS, details),
        (ERROR_ID_KEY, FORGED.into()),
    ]
}

fn with_details(details: Vec<Any>) -> Pairs {
    said(5, "no such SECRET", details, "no such SECRET")
}

fn any(record: &v1::Error) -> Any {
    Any { type_url: OURS.to_owned(), value: record.encode_to_vec() }
}

fn forged(change: impl FnOnce(&mut v1::Error)) -> Pairs {
    let mut record = theirs();
    change(&mut record);
    with_details(vec![any(&record)])
}

fn bare(status: &[u8], message: &[u8]) -> Pairs {
    vec![("grpc-status", status.to_vec()), ("grpc-message", message.to_vec())]
}

fn plus(mut pairs: Pairs, key: &'static str, value: &[u8]) -> Pairs {
    pairs.push((key, value.to_vec()));
    pairs
}

/// 120 groups in one another, in a field nobody knows.
fn nested_groups() -> Vec<u8> {
    let open = [0xfb, 0x07].repeat(120);
    [open, [0xfc, 0x07].repeat(120)].concat()
}

fn nested_any() -> Any {
    let shell = |inner: Any| Any {
        type_url: "type.googleapis.com/google.protobuf.Any".into(),
        value: inner.encode_to_vec(),
    };
    (0..120).fold(any(&theirs()), |inner, _| shell(inner))
}

/// Endings that are garbled. Nothing of the peer's may be shown to users.
fn garbled() -> Vec<(&'static str, Pairs)> {
    let future = |days: i64| Timestamp { seconds: chrono_now() + days * 86_400, nanos: 0 };
    let message = b"SECRET";
    let groups_within = {
        let value = [theirs().encode_to_vec(), nested_groups()].concat();
        with_details(vec![Any { type_url: OURS.to_owned(), value }])
    };
    let groups_around = {
        let inner = pb::Status { code: 5, message: "SECRET".into(), details: vec![any(&theirs())] };
        let bytes = [inner.encode_to_vec(), nested_groups()].concat();
        plus(bare(b"5", message), DETAILS, STANDARD.encode(bytes).as_bytes())
    };
    vec![
        (
            "details that are no protobuf",
            plus(bare(b"5", message), DETAILS, STANDARD.encode([0xff; 40]).as_bytes()),
        ),
        ("details that are not base64", plus(bare(b"5", message), DETAILS, b"*SECRET*")),
        ("details padded in vain", plus(bare(b"5", message), DETAILS, b"AAAA=")),
        ("details joined by a comma", plus(bare(b"5", message), DETAILS, b"AAAA,AAAA")),
        ("details twice", plus(with_details(vec![any(&theirs())]), DETAILS, b"AAAA")),
        ("a message that is not UTF-8", bare(b"5", b"SECRET caf\xe9")),
        ("a message that is not UTF-8 once decoded", bare(b"5", b"SECRET%ff%fe")),
        ("two messages", plus(bare(b"5", message), "grpc-message", message)),
        ("code 99", bare(b"99", message)),
        ("code -1", bare(b"-1", message)),
        ("code five", bare(b"five", message)),
        ("an empty code", bare(b"", message)),
        ("two codes", plus(bare(b"5", message), "grpc-status", b"0")),
        ("success, then failure", plus(bare(b"0", message), "grpc-status", b"5")),
        ("success with garbled details", plus(bare(b"0", b""), DETAILS, b"*SECRET*")),
        ("another code within", said(7, "SECRET", vec![any(&theirs())], "SECRET")),
        ("another message within", said(5, "SECRET", vec![any(&theirs())], "SECRETS")),
        ("success within", said(0, "SECRET", vec![any(&theirs())], "SECRET")),
        ("version 0", forged(|e| e.version = 0)),
        ("no ID", forged(|e| e.id.clear())),
        ("an ID that is none", forged(|e| e.id = "SECRET".repeat(6))),
        ("a time to come", forged(|e| e.occurred_at = Some(future(2)))),
        ("a time far off", forged(|e| e.occurred_at = Some(Timestamp { seconds: i64::MAX, nanos: -1 }))),
        ("no time", forged(|e| e.occurred_at = None)),
        ("no machine", forged(|e| e.machine.clear())),
        ("no kind", forged(|e| e.kind.clear())),
        ("no group", forged(|e| e.group_hash.clear())),
        ("a group without end", forged(|e| e.group_hash = "SECRET".repeat(100))),
        ("120 causes", forged(|e| e.causes = vec![v1::Cause { what: MARK.into() }; 120])),
        ("120 hops", forged(|e| e.hops = vec![v1::Hop::default(); 120])),
        ("another code in the error", forged(|e| e.code = 7)),
        ("two lines for users", forged(|e| e.user_message = "SECRET\nSECRET".into())),
        ("no line for users", forged(|e| e.user_message.clear())),
        ("120 nested groups in the error", groups_within),
        ("120 nested groups around it", groups_around),
        (
            "120 nested Any for an error",
            with_details(vec![Any { type_url: OURS.into(), value: nested_any().encode_to_vec() }]),
        ),
        ("two errors", with_details(vec![any(&theirs()), any(&theirs())])),
        (
            "an error that is no protobuf",
            with_details(vec![Any { type_url: OURS.into(), value: vec![0xff; 40] }]),
        ),
        ("a bug without an error", bare(b"13", message)),
    ]
}

/// Endings that are fine, or can be made so.
fn adoptable() -> Vec<(&'static str, Pairs)> {
    let whole = forged(|e| e.user_message = "no such SECRET".into());
    let mut nameless = whole.clone();
    nameless.retain(|(key, _)| *key != ERROR_ID_KEY);
    let beside = with_details(vec![
        any(&v1::Error { user_message: "no such SECRET".into(), ..theirs() }),
        nested_any(),
    ]);
    vec![
        ("an error", whole.clone()),
        ("an error without its key", nameless),
        ("an error under another key", plus(whole, ERROR_ID_KEY, b"0199d6a0-5ec4-7000-8000-00000000000f")),
        ("an error beside 120 nested Any", beside),
        ("a bare status", bare(b"5", b"no such SECRET")),
        ("a bare status of two lines", bare(b"5", b"no such%0aSECRET")),
        ("a bare status and an ID", plus(bare(b"5", b"no such SECRET"), ERROR_ID_KEY, FORGED.as_bytes())),
        (
            "a bare status and an ID that is none",
            plus(bare(b"5", b"no such SECRET"), ERROR_ID_KEY, b"SECRET"),
        ),
        (
            "a bare status with details of others",
            with_details(vec![Any { type_url: "SECRET".into(), value: vec![1] }]),
        ),
        ("a very long message", bare(b"5", "SECRET ".repeat(700).as_bytes())),
    ]
}

fn chrono_now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

// ----------------------------------------------------------------------------------------------- replies

fn message() -> Step {
    Step::Data(framed(&Event { sequence: 7, ..Default::default() }))
}

fn good() -> Vec<Step> {
    vec![Step::Head(200, HeaderMap::new()), message(), Step::Trailers(map(&bare(b"0", b"")))]
}

/// A head that names what only our nodes may, and an error that has not happened yet.
fn head() -> Step {
    let claims =
        vec![("wardkeep-node", b"SECRET".to_vec()), (ERROR_ID_KEY, FORGED.into()), (DETAILS, b"*".to_vec())];
    Step::Head(200, map(&claims))
}

/// The ending in each place where it may be.
fn places(ending: &Pairs) -> Vec<Vec<Step>> {
    vec![
        vec![Step::Only(map(ending))],
        vec![head(), Step::Trailers(map(ending))],
        vec![head(), message(), Step::Trailers(map(ending))],
        vec![head(), message(), Step::Data(Bytes::from_static(&[0, 0, 0])), Step::Trailers(map(ending))],
    ]
}

// ----------------------------------------------------------------------------------------------- verdicts

/// What every caller may rely on.
fn well_formed(status: &Status, what: &str) -> Error {
    let inner = pb::Status::decode(status.details()).unwrap();
    assert_eq!((inner.code, inner.message.as_str()), (status.code() as i32, status.message()), "{what}");
    assert_eq!(inner.details.iter().filter(|any| any.type_url == OURS).count(), 1, "{what}: {status:?}");
    assert!(status.details().len() <= MAX_DETAILS_BYTES, "{what}");
    let ids: Vec<_> = status.metadata().get_all(ERROR_ID_KEY).iter().map(|id| id.to_str().unwrap()).collect();
    let error = Error::from_status(status);
    assert_eq!(ids, [error.id()], "{what}");
    assert_ne!(error.kind(), "", "{what}");
    let line = error.user_message();
    assert!(
        !line.trim().is_empty() && line.len() < 450 && !line.contains(char::is_control),
        "{what}: {line:?}"
    );
    assert_eq!(line, status.message(), "{what}");
    error
}

/// As many malformed records as there should be, and of this error or one it tells of.
fn recorded(records: &Records, error: &Error, malformed: bool, what: &str) {
    let found = records.take_malformed();
    assert_eq!(found.len(), usize::from(malformed), "{what}: {error:?} {found:?}");
    if let Some(one) = found.first() {
        let related = &error.as_proto().related_ids;
        assert!(one.id == error.id() || related.contains(&one.id), "{what}: {one:?} is not {error:?}");
    }
}

/// All bytes of a status that callers can see, as text.
fn all_of(status: &Status) -> String {
    format!("{status:?} {:?} {}", status.metadata(), String::from_utf8_lossy(status.details()))
}

async fn try_all(set: &'static str, endings: Vec<(&'static str, Pairs)>, malformed: bool, trusted: bool) {
    let (names, cases): (Vec<_>, Vec<_>) = endings
        .iter()
        .flat_map(|(name, ending)| places(ending).into_iter().map(|steps| (*name, steps)))
        .unzip();
    let dress = if trusted { |member| member } else { Member::stranger };
    let trial = Trial::of(set, cases.clone(), dress).await;
    for (number, (name, steps)) in names.into_iter().zip(cases).enumerate() {
        for way in WAYS {
            let what = format!("{name}, place {}, {way:?}", number % 4);
            let (messages, ended) = ask(&trial, way, number).await;
            let status = ended.expect_err(&what);
            let error = well_formed(&status, &what);
            recorded(&trial.records, &error, malformed, &what);
            if malformed {
                assert!(!status.message().contains(MARK), "{what}: {status:?}");
            }
            if !trusted {
                let all = all_of(&status);
                assert!(!all.contains(MARK) && !all.contains(FORGED), "{what}: {all}");
                assert_eq!(error.machine(), wardkeep_proto::machine_name());
            }
            let whole = steps.iter().filter(|step| matches!(step, Step::Data(bytes) if bytes.len() > 3));
            assert_eq!(messages, if way.streams() { whole.count() } else { 0 }, "{what}");
        }
        trial.goes_on(name).await;
    }
    trial.end(1);
}

#[tokio::test]
async fn a_garbled_ending_is_one_malformed_error_wherever_it_stands() {
    try_all("garbled", garbled(), true, true).await;
}

#[tokio::test]
async fn a_garbled_ending_of_a_stranger_tells_nothing_of_his() {
    try_all("stranger", garbled(), true, false).await;
}

#[tokio::test]
async fn what_is_said_on_purpose_is_no_bug() {
    try_all("meant", adoptable(), false, true).await;
}

#[tokio::test]
async fn what_a_stranger_says_on_purpose_stays_with_us() {
    try_all("kept", adoptable(), false, false).await;
}

/// Replies that are wrong otherwise than in what they say of a failure, and how they look to a call.
fn broken() -> Vec<(&'static str, Vec<Step>, [bool; 5])> {
    let half = || Step::Data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]));
    let flagged =
        |flag| Step::Data(Bytes::copy_from_slice(&[&[flag], &framed(&Event::default())[1..]].concat()));
    let html = |status| {
        let kind = map(&vec![("content-type", b"text/html".to_vec())]);
        vec![Step::Head(status, kind), Step::Data(Bytes::from_static(b"<html>SECRET</html>")), Step::End]
    };
    let ok = || Step::Trailers(map(&bare(b"0", b"")));
    let head = || Step::Head(200, HeaderMap::new());
    let encoded = |name: &str| Step::Head(200, map(&vec![("grpc-encoding", name.as_bytes().to_vec())]));
    let no_status = || Step::Trailers(map(&vec![("x", b"SECRET".to_vec())]));
    let always = [true; 5];
    // Without descriptors a call does not know how many messages there should be.
    let if_unary = [true, true, false, false, false];
    vec![
        ("HTML 503", html(503), always),
        ("HTML 500", html(500), always),
        ("HTML 200", html(200), always),
        ("no trailers", vec![head(), message(), Step::End], always),
        ("nothing", vec![head(), Step::End], always),
        ("trailers without a status", vec![head(), message(), no_status()], always),
        ("a head without a status", vec![Step::Only(HeaderMap::new())], always),
        ("two messages", vec![head(), message(), message(), ok()], if_unary),
        ("no message", vec![head(), ok()], if_unary),
        ("half a message", vec![head(), half(), ok()], always),
        ("one and a half messages", vec![head(), message(), half(), ok()], always),
        ("half a message and no trailers", vec![head(), message(), half(), Step::End], always),
        ("a message with a flag", vec![head(), flagged(9), ok()], always),
        ("a compressed message", vec![head(), flagged(1), ok()], always),
        ("an encoding nobody asked for", vec![encoded("SECRET"), message(), ok()], always),
    ]
}

/// The log keeps back what is too much of one failure in ten seconds.
async fn after_the_flood() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_broken_reply_is_one_malformed_error() {
    for (set, dress) in [("ours", (|member| member) as fn(Member) -> Member), ("theirs", Member::stranger)] {
        let cases = broken();
        let trial = Trial::of(set, cases.iter().map(|(_, steps, _)| steps.clone()).collect(), dress).await;
        for (number, (name, _, wrong)) in cases.iter().enumerate() {
            for (way, wrong) in WAYS.into_iter().zip(wrong) {
                let what = format!("{name}, {way:?}, {set}");
                after_the_flood().await;
                let ended = ask(&trial, way, number).await.1;
                if !wrong {
                    assert!(trial.records.take_malformed().is_empty(), "{what}");
                    continue;
                }
                let status = ended.expect_err(&what);
                let error = well_formed(&status, &what);
                recorded(&trial.records, &error, true, &what);
                assert!(!all_of(&status).contains(MARK), "{what}");
            }
            trial.goes_on(name).await;
        }
        trial.end(1);
    }
}

/// Resets and farewells are failures one reckons with, whatever their code.
#[tokio::test]
async fn a_reset_is_a_transport_failure_and_no_bug() {
    // All of RFC 9113, and one of nobody's.
    let codes = (0..=13).chain([0x77]);
    let head = || Step::Head(200, HeaderMap::new());
    let cases: Vec<_> = codes
        .flat_map(|code| {
            let places = [vec![], vec![head()], vec![head(), message(), Step::Seen]];
            places.map(|before| (code, [before, vec![Step::Reset(code)]].concat()))
        })
        .collect();
    let trial = Trial::of("reset", cases.iter().map(|(_, steps)| steps.clone()).collect(), |m| m).await;
    for (number, (code, steps)) in cases.iter().enumerate() {
        let waits = steps.iter().any(|step| matches!(step, Step::Seen));
        for way in WAYS.into_iter().filter(|way| !waits || way.streams()) {
            let what = format!("reset {code}, place {}, {way:?}", number % 3);
            let (messages, ended) = ask(&trial, way, number).await;
            let status = ended.expect_err(&what);
            let error = well_formed(&status, &what);
            recorded(&trial.records, &error, false, &what);
            assert_eq!(
                (status.code(), messages),
                (Code::Unavailable, usize::from(waits)),
                "{what}: {error:?}"
            );
            assert!(
                error.retry_after().is_some() && error.what().contains(&trial.raw.uri),
                "{what}: {error:?}"
            );
        }
        trial.goes_on("reset").await;
    }
    trial.end(1);
}

#[tokio::test]
async fn a_farewell_is_a_transport_failure_and_the_next_connection_serves() {
    let head = || Step::Head(200, HeaderMap::new());
    let cases: Vec<_> = [0, 1, 2, 11]
        .into_iter()
        .flat_map(|code| {
            let places = [vec![], vec![head()], vec![head(), message(), Step::Seen]];
            places.map(|before| [before, vec![Step::GoAway(code)]].concat())
        })
        .collect();
    let trial = Trial::of("farewell", cases.clone(), |m| m).await;
    let mut connections = 1;
    for (number, steps) in cases.iter().enumerate() {
        let waits = steps.iter().any(|step| matches!(step, Step::Seen));
        for way in WAYS.into_iter().filter(|way| !waits || way.streams()) {
            let what = format!("{steps:?}, {way:?}");
            let status = ask(&trial, way, number).await.1.expect_err(&what);
            let error = well_formed(&status, &what);
            recorded(&trial.records, &error, false, &what);
            assert_eq!(status.code(), Code::Unavailable, "{what}");
            connections += 1;
        }
        trial.goes_on("farewell").await;
    }
    // What may be repeated has been tried on further connections.
    assert!(trial.raw.connections() >= connections);
    let connections = trial.raw.connections();
    trial.end(connections);
}

#[tokio::test]
async fn the_last_words_of_a_strangers_connection_go_no_further_than_the_log() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        // Of what it is told it looks at nothing: settings, and at the first request GOAWAY with a text.
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let farewell = [&[0, 0, 14, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11], MARK.as_bytes()].concat();
        while let Ok((mut io, _)) = listener.accept().await {
            io.write_all(&settings).await.unwrap();
            let mut told = Vec::new();
            while !told.windows(4).any(|bytes| bytes == b"Peer".as_slice()) && told.len() < 200 {
                if io.read_buf(&mut told).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = io.write_all(&farewell).await;
            let _ = io.shutdown().await;
            while io.read_buf(&mut told).await.unwrap_or(0) > 0 {}
        }
    });
    for (trusted, told) in [(true, true), (false, false)] {
        let member = Member::new("raw", &uri);
        let member = if trusted { member } else { member.stranger() };
        let channel = Replicated::from_static_members([member]);
        let mut client = tonic::client::Grpc::new(channel);
        let path = PathAndQuery::from_static("/farewell.Peer/Once");
        let codec = ProstCodec::<Event, Event>::default();
        let status = within(client.unary(Request::new(Event::default()), path, codec)).await.unwrap_err();
        let error = well_formed(&status, "last words");
        assert_eq!((status.code(), error.is_malformed()), (Code::Unavailable, false));
        assert_eq!(all_of(&status).contains(MARK), told, "{error:?}");
    }
}
