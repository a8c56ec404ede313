//! The hot paths, each as so many repetitions of one thing.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    hint::black_box,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use prost::Message as _;
use tokio::{runtime::Builder, sync::oneshot};
use tonic::{Status, body::Body};
use tower::Service;
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_node::{Node, Ward, wire};
use wardkeep_proto::{Kind, error::Code, v1};
use wardkeep_steward::{
    Action, Beats, Cause, Config, Event, ExitKind, GroupSpec, Phase, Steward, WardId, WardReport, WardSpec,
};

type Done = Result<(), Box<dyn Error>>;

/// A piece of work, and the function within which instructions count, as callgrind names it.
pub(crate) struct Piece {
    pub(crate) name: &'static str,
    pub(crate) within: &'static str,
    pub(crate) run: fn() -> Done,
}

const MEASURED: &str = "counts::work::measured*";
const TIMES: usize = 1_000;
const WARDS: u32 = 1_000;

pub(crate) const PIECES: &[Piece] = &[
    Piece { name: "pulse", within: MEASURED, run: pulse },
    Piece { name: "pick", within: "*view::Members*::order", run: calls },
    Piece { name: "call of three", within: MEASURED, run: calls },
    Piece { name: "encode an error", within: MEASURED, run: encode_error },
    Piece { name: "encode a report", within: MEASURED, run: encode_report },
    Piece { name: "decode a report", within: MEASURED, run: decode_report },
    Piece { name: "steward takes a report", within: MEASURED, run: steward_report },
    Piece { name: "steward heals a ward", within: MEASURED, run: steward_heals },
];

/// What happens in here is counted.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

/// Does it once uncounted (what is made at the first use is made then), then so many times.
fn repeat(mut work: impl FnMut()) -> Done {
    work();
    measured(&mut || (0..TIMES).for_each(|_| work()));
    Ok(())
}

/// By a task ward of a real node.
fn pulse() -> Done {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (done, is_done) = oneshot::channel::<()>();
        let done = std::sync::Arc::new(std::sync::Mutex::new(Some(done)));
        let ward = Ward::task("pulses", move |context| {
            let done = done.clone();
            async move {
                let _ = repeat(|| context.pulse());
                drop(done.lock().map(|mut done| done.take()));
                context.cancelled().await;
                Ok(())
            }
        });
        let node = Node::builder("counts").ward(ward).bind("127.0.0.1:0").await?;
        node.run_until(async { drop(is_done.await) }).await?;
        Ok(())
    })
}

/// A member that answers at once, without a network.
#[derive(Clone)]
struct AtOnce;

impl Service<Request<Body>> for AtOnce {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let frames = [http_body::Frame::data(bytes::Bytes::from_static(b"\0\0\0\0\x02\x08\x07"))];
        let frames = frames.into_iter().chain([http_body::Frame::trailers(trailers)]);
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Status>)));
        let mut response = Response::new(Body::new(body));
        let content = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, content);
        std::future::ready(Ok(response))
    }
}

/// Calls to three members at once.
fn calls() -> Done {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut builder = Replicated::builder().assume_idempotent().policy(Policy::All(3));
    for n in 0..3 {
        builder = builder.member_over(Member::new(format!("n{n}"), format!("http://127.0.0.1:{n}")), AtOnce);
    }
    let mut channel = builder.build()?;
    repeat(|| {
        let body = Body::new(http_body_util::Full::new(bytes::Bytes::from_static(b"\0\0\0\0\x02\x08\x07")));
        let mut request = Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("http://counts/wardkeep.counts.v1.Counts/Count");
        let answered = runtime.block_on(channel.call(request));
        assert!(black_box(answered).is_ok(), "a good reply is good");
    })
}

#[derive(Debug)]
struct ShelfFull;

impl fmt::Display for ShelfFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("shelf 7 has no room for another book")
    }
}

impl Error for ShelfFull {}

impl Kind for ShelfFull {
    fn domain(&self) -> &'static str {
        "library.example.com"
    }

    fn reason(&self) -> &'static str {
        "SHELF_FULL"
    }

    fn code(&self) -> Code {
        Code::ResourceExhausted
    }

    fn user_message(&self) -> String {
        "That shelf is full. Please choose another one.".into()
    }
}

/// From a well-formed error to the headers of a reply.
fn encode_error() -> Done {
    let error = wardkeep_proto::Error::from(ShelfFull);
    repeat(|| drop(black_box(Status::from(error.clone()).into_http::<Body>())))
}

fn beats() -> Beats {
    Beats { pulsed: (0..WARDS).collect(), worked: vec![] }
}

fn encoded() -> Vec<u8> {
    let report = v1::Report { sequence: 7, ..wire::report(&beats()) };
    v1::NodeMessage { kind: Some(v1::node_message::Kind::Report(report)) }.encode_to_vec()
}

fn encode_report() -> Done {
    repeat(|| drop(black_box(encoded())))
}

fn decode_report() -> Done {
    let bytes = encoded();
    repeat(|| {
        let Ok(v1::NodeMessage { kind: Some(v1::node_message::Kind::Report(report)) }) =
            v1::NodeMessage::decode(&*bytes)
        else {
            panic!("it is a report")
        };
        drop(black_box(wire::beats(report, WARDS as usize)));
    })
}

/// A steward that watches over a node of so many wards.
fn steward(config: Config, pulse_timeout: Option<Duration>) -> Steward {
    let ward = |n: u32| WardReport {
        spec: WardSpec { pulse_timeout, ..WardSpec::new(ward(n)) },
        phase: Phase::Running,
        incarnation: 1,
        held: false,
        failed: false,
    };
    let mut steward = Steward::new(config);
    let wards = (0..WARDS).map(ward).collect();
    // However often they are restarted, it never gives up.
    let groups = vec![GroupSpec { intensity: u32::MAX, ..GroupSpec::of_node("n") }];
    let attached = Event::NodeAttached { node: "n".into(), boot: 1, wards, groups };
    steward.step(Duration::from_secs(1), attached);
    steward
}

fn ward(n: u32) -> String {
    format!("ward-{n:04}")
}

fn steward_report() -> Done {
    let mut steward = steward(Config::default(), Some(Duration::from_secs(5)));
    let (mut now, beats) = (Duration::from_secs(1), beats());
    repeat(|| {
        now += Duration::from_millis(500);
        let event = Event::Report { node: "n".into(), runtime_lag: Duration::ZERO, beats: beats.clone() };
        drop(black_box(steward.step(now, event)));
    })
}

/// One ward after the other crashes and runs again.
fn steward_heals() -> Done {
    let mut steward = steward(Config { restart_burst: u32::MAX, ..Config::default() }, None);
    let (mut now, mut next, mut started) = (Duration::from_secs(1), 0, 0);
    repeat(|| {
        let id = WardId { node: "n".into(), ward: ward(next % WARDS).into() };
        let (incarnation, ended) = (u64::from(next / WARDS) + 1, ExitKind::Panicked);
        next += 1;
        let mut step = |pause, event| {
            now += Duration::from_millis(pause);
            let actions = steward.step(now, event);
            started += actions.iter().filter(|action| matches!(action, Action::Start { .. })).count();
        };
        let beats = Beats::default();
        step(500, Event::Report { node: "n".into(), runtime_lag: Duration::ZERO, beats });
        step(1, Event::WardExited { ward: id.clone(), incarnation, kind: ended, cause: Cause::default() });
        step(400, Event::Tick);
        step(1, Event::WardRunning { ward: id, incarnation: incarnation + 1 });
    })?;
    // The first one was for all that is made only once.
    if started != TIMES + 1 {
        return Err(format!("{started} wards were started, not {}", TIMES + 1).into());
    }
    Ok(())
}
