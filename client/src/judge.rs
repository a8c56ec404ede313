//! What is made of a reply: read as far as its kind demands, and believed only as far as it holds together.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Response};
use http_body_util::BodyExt as _;
use tonic::{Code, Status, body::Body};
use wardkeep_proto::{Error, context::REFUSED};

use crate::{
    attempt::{Call, Verdict, verdict},
    began::{self, BEGAN, Late},
    channel::{InFlight, Link},
    decide::Pushback,
    error::{AttemptError, Loss, loss},
    member::Cost,
    methods::Reading,
    peer::Peer,
    reply::{Collected, Framing, Passing},
    request::Progress,
    service_config,
};

pub(crate) const BAD_FLAG: &str = "a message with a flag that means nothing";
pub(crate) const NOT_ONE: &str = "a unary reply of not one message";

/// gRFC A6: what a server says of further copies.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// How busy a node is, from 0 to 1.
const LOAD: HeaderName = HeaderName::from_static("wardkeep-load");
/// What a node says of how an attempt ended there.
const FATE: HeaderName = HeaderName::from_static("wardkeep-fate");

/// Reads a reply as far as its kind demands.
pub(crate) async fn judge(
    call: &Call,
    in_flight: InFlight,
    progress: &Progress,
    reply: Response<Body>,
) -> Verdict {
    let (mut head, mut body) = reply.into_parts();
    let link = in_flight.link().clone();
    let peer = &link.peer;
    // Trailers-only: all is said, and what may follow is no answer.
    if head.headers.contains_key("grpc-status") {
        listen(&link, progress, &head.headers);
        let pushback = pushback(&head.headers);
        let failure = peer.failure(&mut head.headers);
        let reply = Response::from_parts(head, Body::empty());
        return settle(call, failure, pushback, reply, peer, None);
    }
    let accepted = call.template.parts.headers.get("grpc-accept-encoding");
    let accepted = accepted.and_then(|text| text.to_str().ok()).filter(|_| call.rules.equal == 1);
    if let Err(error) = peer.check_head(&mut head, accepted) {
        return error.into();
    }
    let mut read = VecDeque::new();
    if call.rules.tied.is_some() && peer.trusted && head.headers.remove(BEGAN).is_some() {
        progress.begin();
        call.began.notify_one();
        match Box::pin(late_metadata(peer, &mut head.headers, &mut body)).await {
            Ok(Begun::Goes(rest)) => read.extend(rest),
            Ok(Begun::Ends(trailers)) => {
                let framing = Framing::of(&head.headers);
                return finish(call, head, read, framing, trailers, &link, progress);
            }
            Err(verdict) => return verdict,
        }
        if let Err(error) = peer.check_head(&mut head, accepted) {
            return error.into();
        }
    }
    let mut framing = Framing::of(&head.headers);
    let mut size = 0;
    for chunk in &read {
        size += Bytes::len(chunk);
        framing.feed(chunk);
    }
    while !commits(call.plan.reading, &framing) {
        if framing.bad_flag {
            return peer.malformed(BAD_FLAG).into();
        }
        if size > call.max_reply_bytes {
            let uri = peer.uri.clone();
            return AttemptError::ReplyTooLarge { uri, limit: call.max_reply_bytes }.into();
        }
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return lost_within(peer, &status),
            None => return unended(peer, &body).into(),
        };
        match frame.into_data() {
            Ok(chunk) => {
                size += chunk.len();
                framing.feed(&chunk);
                read.push_back(chunk);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return finish(call, head, read, framing, trailers, &link, progress);
            }
        }
    }
    if framing.bad_flag {
        return peer.malformed(BAD_FLAG).into();
    }
    let passing = Passing::new(read, body, framing, peer.clone(), call.context.clone(), call.allowed);
    let body = passing.in_flight(in_flight).expecting_one(call.plan.unary);
    Verdict::Good(Response::from_parts(head, Body::new(body)), Bytes::new())
}

/// A connection that failed inside a reply.
fn lost_within(peer: &Peer, status: &Status) -> Verdict {
    let error = AttemptError::Transport { uri: peer.uri.clone(), cause: peer.cause(status) };
    match loss(status) {
        // It had begun to answer.
        Loss::Unprocessed => verdict(error, Loss::Limits),
        loss => verdict(error, loss),
    }
}

/// What follows a head that said only that the work has begun.
enum Begun {
    /// The reply goes on with these bytes.
    Goes(Option<Bytes>),
    /// It ended at once.
    Ends(HeaderMap),
}

async fn late_metadata(peer: &Peer, head: &mut HeaderMap, body: &mut Body) -> Result<Begun, Verdict> {
    let mut late = Late::default();
    loop {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return Err(lost_within(peer, &status)),
            None => return Err(unended(peer, body).into()),
        };
        match frame.into_data() {
            Ok(chunk) => match late.feed(chunk) {
                Ok(None) => {}
                Ok(Some((metadata, rest))) => {
                    began::merge(head, metadata);
                    return Ok(Begun::Goes((!rest.is_empty()).then_some(rest)));
                }
                Err(what) => return Err(peer.malformed(what).into()),
            },
            Err(frame) if late.is_untouched() => {
                return Ok(Begun::Ends(frame.into_trailers().unwrap_or_default()));
            }
            Err(_) => return Err(peer.malformed("it ended inside its late metadata").into()),
        }
    }
}

/// Whether enough was seen to give the reply to the caller, though it has not ended.
fn commits(reading: Reading, seen: &Framing) -> bool {
    match reading {
        Reading::Pass => true,
        Reading::Whole => false,
        Reading::FirstMessage => seen.complete > 0,
        Reading::Unknown => seen.begun > 1,
    }
}

/// A reply that was read to its trailers.
fn finish(
    call: &Call,
    mut head: http::response::Parts,
    read: VecDeque<Bytes>,
    framing: Framing,
    mut trailers: HeaderMap,
    link: &Link,
    progress: &Progress,
) -> Verdict {
    let peer = &link.peer;
    listen(link, progress, &trailers);
    let pushback = pushback(&trailers);
    let failure = match end(peer, &mut trailers, &framing) {
        Ok(failure) => failure,
        Err(malformed) => return malformed.into(),
    };
    if failure.is_some() {
        peer.cover(&mut head.headers);
    }
    let answer = (call.rules.equal > 1).then(|| joined(&read));
    let reply = Response::from_parts(head, Body::new(Collected::new(read, trailers)));
    settle(call, failure, pushback, reply, peer, Some((framing.complete, answer.unwrap_or_default())))
}

fn joined(chunks: &VecDeque<Bytes>) -> Bytes {
    match chunks.len() {
        1 => chunks[0].clone(),
        _ => chunks
            .iter()
            .fold(BytesMut::new(), |mut all, chunk| {
                all.extend_from_slice(chunk);
                all
            })
            .freeze(),
    }
}

/// Whether this refusal is one of a node that has not begun the work.
pub(crate) fn is_unbegun(reply: &Response<Body>) -> bool {
    // What a stranger says there was removed.
    reply.headers().contains_key(REFUSED) && reply.headers().contains_key("grpc-status")
}

/// What a node says of itself at the end of a reply.
pub(crate) fn listen(link: &Link, progress: &Progress, trailers: &HeaderMap) {
    if !link.peer.trusted {
        return;
    }
    link.hear_load(trailers);
    let text = trailers.get(FATE).and_then(|value| value.to_str().ok());
    if let Some(cost) = text.and_then(Cost::read) {
        progress.cost(cost);
    }
}

/// How busy these trailers say that a node is.
pub(crate) fn load(trailers: &HeaderMap) -> Option<f64> {
    let load: f64 = trailers.get(LOAD)?.to_str().ok()?.parse().ok()?;
    (0.0..=1.0).contains(&load).then_some(load)
}

fn pushback(headers: &HeaderMap) -> Option<Pushback> {
    let value = headers.get(PUSHBACK)?;
    let pause = value.to_str().ok().and_then(service_config::pushback);
    Some(pause.map_or(Pushback::Stop, Pushback::After))
}

/// What the trailers of a reply tell of.
pub(crate) fn end(
    peer: &Peer,
    trailers: &mut HeaderMap,
    seen: &Framing,
) -> Result<Option<Error>, AttemptError> {
    if !trailers.contains_key("grpc-status") {
        return Err(peer.malformed("its trailers have no grpc-status"));
    }
    match peer.failure(trailers) {
        None if !seen.is_whole() => Err(peer.malformed("it ended inside a message")),
        failure => Ok(failure),
    }
}

/// How tonic's servers say that the time a call was given is over.
pub(crate) fn is_timeout(error: &Error) -> bool {
    error.code() == Code::Cancelled && error.what() == "Timeout expired"
}

/// Why a reply stopped without trailers: it ended so, or its stream was reset without an error.
pub(crate) fn unended(peer: &Peer, body: &Body) -> AttemptError {
    if http_body::Body::is_end_stream(body) {
        return peer.malformed("it ended without trailers");
    }
    AttemptError::Transport { uri: peer.uri.clone(), cause: "the stream was reset: NO_ERROR".to_owned() }
}

/// `said`: how many messages, and for a quorum what.
fn settle(
    call: &Call,
    failure: Option<Error>,
    pushback: Option<Pushback>,
    reply: Response<Body>,
    peer: &Peer,
    said: Option<(usize, Bytes)>,
) -> Verdict {
    let (messages, answer) = said.unwrap_or_default();
    match failure {
        None if call.plan.unary && messages != 1 => peer.malformed(NOT_ONE).into(),
        None => Verdict::Good(reply, answer),
        Some(error) if is_timeout(&error) => AttemptError::TimedOut { uri: peer.uri.clone() }.into(),
        Some(error) => Verdict::Refused(error, reply, pushback),
    }
}
