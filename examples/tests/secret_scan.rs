//! Nothing of the inside reaches strangers: every byte on the way to them is recorded and scanned.
//!
//! Header values travel Huffman-coded (HPACK), details in base64, and in Huffman code around that. So
//! three things are scanned: the bytes as they were sent, for the plain, the base64 and the Huffman form
//! of each secret; the headers and trailers as the caller's HTTP/2 library decodes them; and what is
//! base64 in those, decoded. protobuf leaves texts as they are. The Huffman codes of the characters that
//! the secrets are made of are all 5 bits long: that is why they are made of those.
//!
//! A listener for our own people, asked the same, shows that each secret was there to be found.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{
    error::Error as StdError,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::{HeaderMap, Request as HttpRequest};
use http_body_util::{BodyExt as _, Full};
use memchr::memmem;
use prost::Message as _;
use support::Hosted;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::timeout,
};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    codegen::Service as _,
    metadata::{MetadataMap, MetadataValue},
    transport::Channel,
};
use tonic_types::{ErrorDetails, StatusExt as _, pb as rpc};
use wardkeep_examples::pb::{
    TroubleReply, TroubleRequest,
    trouble_server::{Trouble as Service, TroubleServer},
};
use wardkeep_node::{Audience, Node, Ward};
use wardkeep_proto::{
    Error, Kind,
    error::{ERROR_ID_KEY, ResultExt as _},
    machine_name, v1,
};

const SECRET: &str = "societasest0secta120";
const NODE: &str = "casa2atoasis";
const WARD: &str = "coast1estate";
const FRIENDLY: &str = "That did not work. Please try again.";

/// Where in an error the secret is.
#[derive(Clone, Copy, Debug)]
enum Place {
    What,
    DomainAndKind,
    Path,
    Host,
    Causes,
    RelatedIds,
    Unexpected,
    Panic,
    Message,
    InternalMessage,
    MessageThatNeedsEscapes,
    Metadata,
    Id,
    Details,
    StandardDetails,
    /// All that an error of another node may say of itself.
    Forwarded,
}

const PLACES: [Place; 16] = [
    Place::What,
    Place::DomainAndKind,
    Place::Path,
    Place::Host,
    Place::Causes,
    Place::RelatedIds,
    Place::Unexpected,
    Place::Panic,
    Place::Message,
    Place::InternalMessage,
    Place::MessageThatNeedsEscapes,
    Place::Metadata,
    Place::Id,
    Place::Details,
    Place::StandardDetails,
    Place::Forwarded,
];

#[derive(Debug, thiserror::Error)]
enum Indiscreet {
    #[error("the password is {SECRET}")]
    What,
    #[error("plain")]
    DomainAndKind,
    #[error("the catalogue cannot be read")]
    Path(#[source] io::Error),
    #[error("http://db.{SECRET}.example.com:5432: connection refused")]
    Host,
    #[error("plain")]
    Causes(#[source] Box<dyn StdError + Send + Sync>),
}

impl Kind for Indiscreet {
    fn domain(&self) -> &'static str {
        if matches!(self, Self::DomainAndKind) { "societasest0secta120.example.com" } else { "example.com" }
    }

    fn reason(&self) -> &'static str {
        if matches!(self, Self::DomainAndKind) { SECRET } else { "INDISCREET" }
    }

    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn user_message(&self) -> String {
        FRIENDLY.to_owned()
    }

    fn retry_after(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

fn missing_file() -> io::Error {
    io::Error::other(format!("open /srv/{SECRET}/catalogue: no such file"))
}

/// Fails with the secret at this place.
fn fail(place: Place) -> Status {
    match place {
        Place::What => Error::new(Indiscreet::What).into(),
        Place::DomainAndKind => Error::new(Indiscreet::DomainAndKind).into(),
        Place::Path => Error::new(Indiscreet::Path(missing_file())).into(),
        Place::Host => Error::new(Indiscreet::Host).into(),
        Place::Causes => {
            let chain = io::Error::other(Indiscreet::Path(io::Error::other(missing_file())));
            Error::new(Indiscreet::Causes(chain.into())).into()
        }
        Place::RelatedIds => {
            Error::new(Indiscreet::Path(io::Error::other("plain"))).related([SECRET.to_owned()]).into()
        }
        Place::Unexpected => Err::<(), _>(missing_file()).unexpected().unwrap_err().into(),
        Place::Panic => panic!("no entry for {SECRET}"),
        Place::Message => Status::not_found(format!("no book {SECRET}")),
        Place::InternalMessage => Status::internal(format!("lost {SECRET}")),
        Place::MessageThatNeedsEscapes => Status::data_loss(format!("é%\n{SECRET}\u{7f}")),
        Place::Metadata => {
            let mut metadata = MetadataMap::new();
            metadata.insert("x-debug", SECRET.parse().unwrap());
            metadata.insert(SECRET, "plain".parse().unwrap());
            metadata.insert_bin("x-debug-bin", MetadataValue::from_bytes(SECRET.as_bytes()));
            Status::with_metadata(Code::Aborted, "plain", metadata)
        }
        Place::Id => {
            let mut status = Status::from(Error::new(Indiscreet::What));
            status.metadata_mut().insert(ERROR_ID_KEY, SECRET.parse().unwrap());
            status
        }
        Place::Details => Status::with_details(Code::Aborted, "plain", Bytes::from_static(SECRET.as_bytes())),
        Place::StandardDetails => {
            let mut details = ErrorDetails::with_debug_info(vec![format!("{SECRET}.rs:7")], SECRET);
            details.set_help(vec![]).add_help_link(SECRET, format!("http://{SECRET}"));
            details.set_error_info(SECRET, SECRET, [(SECRET.to_owned(), SECRET.to_owned())]);
            details.set_resource_info(SECRET, SECRET, SECRET, SECRET).set_request_info(SECRET, SECRET);
            // Meant for users by its definition: what it says is told to everyone.
            details.set_localized_message("en", "Plain.").add_bad_request_violation(SECRET, SECRET);
            Status::with_error_details(Code::InvalidArgument, "plain", details)
        }
        Place::Forwarded => forwarded(),
    }
}

fn forwarded() -> Status {
    let text = || SECRET.to_owned();
    let hop = v1::Hop {
        method: text(),
        machine: text(),
        node: text(),
        ward: text(),
        build_id: text(),
        sites: vec![v1::Site { file: text(), line: 7 }],
        ..Default::default()
    };
    let record = Error::new(Indiscreet::What).into_proto();
    Status::from(Error::from_proto(v1::Error {
        machine: text(),
        node: text(),
        ward: text(),
        what: text(),
        group_hash: text(),
        exact_hash: text(),
        trace_id: text(),
        request_id: text(),
        hops: vec![hop],
        causes: vec![v1::Cause { what: text() }],
        truncated: vec![text()],
        ..record
    }))
}

/// Fails as the request's `bytes` (a place) and `depth` (how many messages come before) say.
#[derive(Clone)]
struct Talker;

#[tonic::async_trait]
impl Service for Talker {
    async fn make(&self, request: Request<TroubleRequest>) -> Result<Response<TroubleReply>, Status> {
        Err(fail(PLACES[request.get_ref().bytes as usize]))
    }

    type MakeStreamStream = BoxStream<'static, Result<TroubleReply, Status>>;

    async fn make_stream(
        &self,
        request: Request<TroubleRequest>,
    ) -> Result<Response<Self::MakeStreamStream>, Status> {
        let TroubleRequest { bytes, depth, .. } = request.into_inner();
        let place = PLACES[bytes as usize];
        if depth == 0 {
            return Err(fail(place));
        }
        let messages = stream::iter(1..=depth + 1).map(move |number| {
            if number <= depth { Ok(TroubleReply { number, ..Default::default() }) } else { Err(fail(place)) }
        });
        Ok(Response::new(messages.boxed()))
    }
}

/// Stands between caller and node, and keeps what goes through.
struct Tap {
    tasks: JoinSet<()>,
    to_caller: Arc<Mutex<Vec<u8>>>,
    to_node: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    /// Lets one connection through to the node. Returns where the caller has to connect.
    async fn start(node: String) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (to_caller, to_node) = <(Arc<Mutex<Vec<u8>>>, Arc<Mutex<Vec<u8>>>)>::default();
        let mut tasks = JoinSet::new();
        let (down, up) = (to_caller.clone(), to_node.clone());
        tasks.spawn(async move {
            let (from_caller, caller) = listener.accept().await.unwrap().0.into_split();
            let (from_node, node) = TcpStream::connect(node).await.unwrap().into_split();
            tokio::join!(pass(from_caller, node, up), pass(from_node, caller, down));
        });
        (Self { tasks, to_caller, to_node }, uri)
    }

    /// All bytes of the connection, in either direction, when it is over.
    async fn recorded(mut self) -> [Vec<u8>; 2] {
        self.tasks.join_next().await.unwrap().unwrap();
        [self.to_caller, self.to_node].map(|bytes| bytes.lock().unwrap().clone())
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, record: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        record.lock().unwrap().extend_from_slice(&buffer[..read]);
        // The end is passed on as well; after that nobody minds that writing fails.
        let written = if read == 0 { to.shutdown().await } else { to.write_all(&buffer[..read]).await };
        if read == 0 || written.is_err() {
            return;
        }
    }
}

/// What a caller sees of a call that failed.
struct Told {
    head: HeaderMap,
    trailers: HeaderMap,
    messages: Bytes,
}

impl Told {
    /// The status and all that came with it, wherever it stands.
    fn failure(&self) -> &HeaderMap {
        if self.head.contains_key("grpc-status") { &self.head } else { &self.trailers }
    }

    /// All texts of it, decoded as far as they can be. Percent escapes leave letters and digits as they are.
    fn forms(&self) -> Vec<Vec<u8>> {
        let mut forms = vec![self.messages.to_vec()];
        for (name, value) in self.head.iter().chain(&self.trailers) {
            forms.push(name.as_str().into());
            forms.push(value.as_bytes().to_vec());
            forms.extend(BASE64.decode(value.as_bytes().trim_ascii_end()));
        }
        forms
    }

    fn tells(&self, secret: &str) -> bool {
        self.forms().iter().any(|form| memmem::find(form, secret.as_bytes()).is_some())
    }
}

/// Calls as plainly as can be: nothing between the caller and the headers.
async fn call(channel: &mut Channel, path: &str, request: impl prost::Message) -> Told {
    let message = request.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = Full::from([&[0], &length[..], &message].concat());
    let request = HttpRequest::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "20S")
        .body(Body::new(body))
        .unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let (head, body) = channel.call(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    Told { head: head.headers, trailers, messages: body.to_bytes() }
}

/// Every way for every place, and what the node itself refuses. Returns what was told, and all bytes.
async fn ask_everything(audience: Audience) -> (Vec<(String, Told)>, [Vec<u8>; 2]) {
    let ward = Ward::service(WARD, |_| TroubleServer::new(Talker));
    let node = Hosted::start(Node::builder(NODE).audience(audience).ward(ward)).await;
    let (tap, uri) = Tap::start(node.address.clone()).await;

    let mut channel = Channel::from_shared(uri).unwrap().connect().await.unwrap();
    let mut told = Vec::new();
    for (bytes, place) in (0..).zip(PLACES) {
        for (method, depth) in [("Make", 0), ("MakeStream", 0), ("MakeStream", 1)] {
            let request = TroubleRequest { bytes, depth, ..Default::default() };
            let path = format!("/wardkeep.examples.v1.Trouble/{method}");
            let what = format!("{place:?}, {method} after {depth} messages");
            told.push((what, call(&mut channel, &path, request).await));
        }
    }
    let nobody = TroubleRequest::default();
    for path in ["/no.such.Service/Make", "/wardkeep.examples.v1.Trouble/NoSuchMethod", "/nothing"] {
        told.push((path.to_owned(), call(&mut channel, path, nobody).await));
    }
    let unknown = health_request("no.such.Service");
    told.push(("health".to_owned(), call(&mut channel, "/grpc.health.v1.Health/Check", unknown).await));
    drop(channel);
    node.stop().await;
    (told, tap.recorded().await)
}

/// A `HealthCheckRequest`: its one field, the first, is a text like the first of `Cause`.
fn health_request(service: &str) -> v1::Cause {
    v1::Cause { what: service.to_owned() }
}

/// Whether a text is in these bytes: plain, in base64 (at any of three alignments), or in HPACK's Huffman
/// code (at any of eight).
fn holds(bytes: &[u8], secret: &str) -> [bool; 3] {
    let base64 = (0..3).any(|before| {
        let coded = BASE64.encode([&vec![0; before], secret.as_bytes()].concat());
        // Characters that depend on what stands before or behind are left out.
        let own = (before * 8).div_ceil(6)..(before + secret.len()) * 8 / 6;
        memmem::find(bytes, &coded.as_bytes()[own]).is_some()
    });
    let huffman: String = secret.bytes().map(five_bits).collect();
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let huffman = memmem::find(bits.as_bytes(), huffman.as_bytes()).is_some();
    [memmem::find(bytes, secret.as_bytes()).is_some(), base64, huffman]
}

/// RFC 7541, appendix B: the codes of 5 bits.
fn five_bits(character: u8) -> String {
    let code = b"012aceiost".iter().position(|c| *c == character).expect("a character with a short code");
    format!("{code:05b}")
}

/// A failure says what strangers may know, word for word, and nothing besides.
fn assert_bare(what: &str, told: &Told) {
    let failure = told.failure();
    let allowed =
        ["content-type", "date", "grpc-status", "grpc-message", "grpc-status-details-bin", ERROR_ID_KEY];
    for name in told.head.keys().chain(told.trailers.keys()) {
        assert!(allowed.contains(&name.as_str()), "{what}: {name} in {failure:?}");
    }
    let id = failure[ERROR_ID_KEY].to_str().unwrap();
    assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 7, "{what}: {id}");
    let told = Status::from_header_map(failure).unwrap();
    let status = rpc::Status::decode(told.details()).unwrap();
    assert_eq!((status.code, status.message.as_str()), (told.code() as i32, told.message()), "{what}");
    for detail in &status.details {
        match detail.type_url.strip_prefix("type.googleapis.com/google.rpc.") {
            Some("RequestInfo") => {
                let info = rpc::RequestInfo::decode(detail.value.as_slice()).unwrap();
                assert_eq!((info.request_id.as_str(), info.serving_data.as_str()), ("", id), "{what}");
            }
            Some("LocalizedMessage") => {
                let line = rpc::LocalizedMessage::decode(detail.value.as_slice()).unwrap();
                assert_eq!((line.locale.as_str(), line.message.as_str()), ("en", told.message()), "{what}");
            }
            Some("RetryInfo") => {}
            other => panic!("{what}: detail {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_that_a_stranger_gets_holds_anything_of_the_inside() {
    timeout(Duration::from_secs(60), async {
        let (told, recorded) = ask_everything(Audience::Untrusted).await;
        for (what, told) in &told {
            assert_bare(what, told);
            for secret in [SECRET, NODE, WARD] {
                assert!(!told.tells(secret), "{what}: {secret} in {:?}", told.failure());
            }
            // A shorter name is found in anything; that nothing but the ID and fixed lines is sent was seen above.
            assert!(machine_name().len() < 6 || !told.tells(machine_name()), "{what}: {:?}", told.failure());
        }
        for (bytes, direction) in recorded.iter().zip(["caller", "node"]) {
            assert!(bytes.len() > 1_000, "{} bytes to the {direction}", bytes.len());
            for secret in [SECRET, NODE, WARD] {
                assert_eq!(holds(bytes, secret), [false; 3], "{secret}, plain, base64, Huffman");
            }
        }
    })
    .await
    .expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scan_finds_each_secret_in_what_our_own_people_get() {
    timeout(Duration::from_secs(60), async {
        let (told, [to_caller, _]) = ask_everything(Audience::Trusted).await;
        for (what, told) in &told {
            // Details that are not ours may be dropped for everyone.
            let dropped = ["Details", "/", "health"];
            let dropped = dropped.iter().any(|place| what.starts_with(place));
            assert!(told.tells(SECRET) || dropped, "{what}: {:?}", told.failure());
            assert!(told.tells(NODE), "{what}: {:?}", told.failure());
        }
        for secret in [SECRET, NODE, WARD] {
            assert_eq!(holds(&to_caller, secret), [false, false, true], "{secret}, plain, base64, Huffman");
        }
    })
    .await
    .expect("the test hangs");
}
