//! How a call, an attempt or a builder can fail.

use std::{error::Error as StdError, fmt, time::Duration};

use tonic::{Code, Status};
use wardkeep_proto::{Error, Kind};

use crate::policy::tells;

const DOMAIN: &str = "wardkeep.client";
const PEER_TIMED_OUT: &str = "PEER_TIMED_OUT";

/// How far an attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Phase {
    /// Nothing of the request's body was taken yet: connecting, or waiting for a stream.
    Connect,
    /// The request is being sent.
    Send,
    /// The request was sent; no headers have come.
    Headers,
    /// The reply is being read.
    Body,
}

impl Phase {
    pub(crate) fn from_u8(n: u8) -> Self {
        match n {
            0 => Self::Connect,
            1 => Self::Send,
            2 => Self::Headers,
            _ => Self::Body,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Headers => "headers",
            Self::Body => "body",
        })
    }
}

/// One line of the story a failed call tells.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) number: u32,
    pub(crate) node: String,
    pub(crate) uri: String,
    pub(crate) phase: Phase,
    pub(crate) elapsed: Duration,
    pub(crate) end: End,
}

/// How it stood with an attempt when its call failed.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Failed(Error),
    /// A good answer, though there were not enough like it: the same number for the same answer.
    Answered(u32),
    Withdrawn,
    Running,
}

impl Report {
    /// The member said that the call's time was over.
    pub(crate) fn is_timeout(&self) -> bool {
        self.error().is_some_and(|e| (e.domain(), e.kind()) == (DOMAIN, PEER_TIMED_OUT))
    }

    /// The member gave a good answer.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self.end, End::Answered(_))
    }

    fn error(&self) -> Option<&Error> {
        match &self.end {
            End::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, node, uri, phase, elapsed, end } = self;
        write!(f, "[{number}] {node} ({uri}), phase {phase}, {} ms: ", elapsed.as_millis())?;
        match end {
            End::Failed(error) => write!(f, "{:?} {error}", error.code()),
            End::Answered(answer) => write!(f, "answer {}", answer + 1),
            End::Withdrawn => f.write_str("withdrawn, another had begun"),
            End::Running => f.write_str("no answer yet"),
        }
    }
}

struct Reports<'a>(&'a [Report]);

impl fmt::Display for Reports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, report) in self.0.iter().enumerate() {
            write!(f, "{}{report}", if i == 0 { "" } else { "; " })?;
        }
        if self.0.is_empty() { f.write_str("none was begun") } else { Ok(()) }
    }
}

/// How a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{method}: no member is known")]
    NoMembers { method: String },
    #[error("{method}: all {} attempts failed: {}", attempts.len(), Reports(attempts))]
    AttemptsFailed { method: String, attempts: Vec<Report> },
    #[error("{method}: no {equal} equal answers: {}", Reports(attempts))]
    NoQuorum { method: String, equal: usize, attempts: Vec<Report> },
    #[error("{method}: not answered within {} ms; attempts: {}", allowed.as_millis(), Reports(attempts))]
    Deadline { method: String, allowed: Duration, attempts: Vec<Report> },
    #[error("{method}: request larger than {limit} bytes, the most that may be replicated")]
    RequestTooLarge { method: String, limit: usize },
    #[error("{method}: the request could not be read: {status}")]
    RequestUnreadable { method: String, status: Status },
    #[error("{method}: the reply of {node} ({uri}) broke off: {cause}")]
    ReplyBroken { method: String, node: String, uri: String, cause: String },
}

impl CallError {
    /// The failure that says most of why the call failed.
    fn most_telling(attempts: &[Report]) -> Option<&Error> {
        let errors = attempts.iter().filter_map(Report::error);
        // `max_by_key` takes the last of equals; the first failure is the better witness.
        errors.rev().max_by_key(|e| tells(e.code()))
    }

    fn attempts(&self) -> &[Report] {
        match self {
            Self::AttemptsFailed { attempts, .. }
            | Self::NoQuorum { attempts, .. }
            | Self::Deadline { attempts, .. } => attempts,
            _ => &[],
        }
    }

    pub(crate) fn status_code(&self) -> Code {
        Kind::code(self)
    }

    /// The well-formed error, which names the errors of the attempts. Those that arose here are
    /// logged with it: when a call succeeds in spite of them, they are no news.
    #[track_caller]
    pub(crate) fn into_error(self) -> Error {
        let errors = || self.attempts().iter().filter_map(Report::error);
        errors().filter(|e| arose_here(e)).for_each(Error::record);
        let related: Vec<String> = errors().map(|e| e.id().to_owned()).collect();
        let error = Error::new(self).related(related);
        error.record();
        error
    }
}

/// Whether the record of this error exists nowhere else: our own, or adopted from a bare status.
pub(crate) fn arose_here(error: &Error) -> bool {
    error.as_proto().node.is_empty()
}

impl Kind for CallError {
    fn domain(&self) -> &'static str {
        DOMAIN
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoMembers { .. } => "NO_MEMBERS",
            Self::AttemptsFailed { .. } => "ATTEMPTS_FAILED",
            Self::NoQuorum { .. } => "NO_QUORUM",
            Self::Deadline { .. } => "DEADLINE_EXCEEDED",
            Self::RequestTooLarge { .. } => "REQUEST_TOO_LARGE",
            Self::RequestUnreadable { .. } => "REQUEST_UNREADABLE",
            Self::ReplyBroken { .. } => "REPLY_BROKEN",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoMembers { .. } | Self::ReplyBroken { .. } => Code::Unavailable,
            Self::AttemptsFailed { attempts, .. } => {
                Self::most_telling(attempts).map_or(Code::Unavailable, Error::code)
            }
            // Those that answered may agree again in a moment.
            Self::NoQuorum { .. } => Code::Aborted,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::RequestTooLarge { .. } => Code::ResourceExhausted,
            Self::RequestUnreadable { status, .. } => status.code(),
        }
    }

    fn user_message(&self) -> String {
        const SOON: &str = "The service is busy or restarting. Please try again in a moment.";
        match self {
            Self::NoMembers { .. } => SOON.to_owned(),
            Self::AttemptsFailed { attempts, .. } => Self::most_telling(attempts)
                .map(|e| e.user_message().to_owned())
                .filter(|line| !line.is_empty())
                .unwrap_or_else(|| SOON.to_owned()),
            Self::NoQuorum { .. } => "The answers did not agree. Please try again in a moment.".to_owned(),
            Self::Deadline { .. } => "It took too long. Please try again.".to_owned(),
            Self::RequestTooLarge { .. } => "The request is too large. Please send less at once.".to_owned(),
            Self::RequestUnreadable { .. } => "The request could not be sent whole.".to_owned(),
            Self::ReplyBroken { .. } => "The answer broke off. Please try again.".to_owned(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        const SOON: Duration = Duration::from_millis(500);
        match self {
            Self::RequestTooLarge { .. } | Self::RequestUnreadable { .. } => None,
            Self::AttemptsFailed { attempts, .. } => {
                // Another member may answer the next time: the shortest pause that one asked for.
                let pauses = attempts.iter().filter_map(|a| a.error()?.retry_after());
                pauses.min().map(|pause| pause.max(SOON))
            }
            _ => Some(SOON),
        }
    }
}

/// How an attempt fails without an answer of the member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("{uri}: could not connect: {cause}")]
    Connect { uri: String, cause: String },
    #[error("{uri}: not connected, or all its streams taken, for {} ms", patience.as_millis())]
    NotSent { uri: String, patience: Duration },
    #[error("{uri}: the connection failed: {cause}")]
    Transport { uri: String, cause: String },
    #[error("{uri}: malformed reply: {what}")]
    Malformed { uri: String, what: &'static str },
    #[error("{uri}: reply larger than {limit} bytes")]
    ReplyTooLarge { uri: String, limit: usize },
    #[error("{uri}: HTTP status {status} instead of a gRPC reply")]
    NotGrpc { uri: String, status: http::StatusCode },
    #[error("{uri}: no answer within {} ms, the most an attempt may take", limit.as_millis())]
    TookTooLong { uri: String, limit: Duration },
    #[error("{uri}: the member's own timer for this call ran out")]
    TimedOut { uri: String },
}

impl Kind for AttemptError {
    fn domain(&self) -> &'static str {
        DOMAIN
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "CONNECT_FAILED",
            Self::NotSent { .. } => "NOT_SENT",
            Self::Transport { .. } => "CONNECTION_LOST",
            Self::Malformed { .. } => "REPLY_MALFORMED",
            Self::ReplyTooLarge { .. } => "REPLY_TOO_LARGE",
            Self::NotGrpc { .. } => "NOT_GRPC",
            Self::TookTooLong { .. } => "ATTEMPT_TIMED_OUT",
            Self::TimedOut { .. } => PEER_TIMED_OUT,
        }
    }

    fn code(&self) -> Code {
        match self {
            // Also for resets that h2 calls "enhance your calm": they are no pushback of the member.
            Self::Connect { .. } | Self::NotSent { .. } | Self::Transport { .. } => Code::Unavailable,
            Self::Malformed { .. } => Code::Internal,
            Self::ReplyTooLarge { .. } => Code::ResourceExhausted,
            Self::TimedOut { .. } | Self::TookTooLong { .. } => Code::DeadlineExceeded,
            Self::NotGrpc { status, .. } => match status.as_u16() {
                401 => Code::Unauthenticated,
                403 => Code::PermissionDenied,
                404 => Code::Unimplemented,
                429 | 502..=504 => Code::Unavailable,
                _ => Code::Unknown,
            },
        }
    }

    fn user_message(&self) -> String {
        match self.retry_after() {
            Some(_) => "The service is busy or restarting. Please try again in a moment.".to_owned(),
            None => "Something went wrong on our side. Please report this ID.".to_owned(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self.code(), Code::Unavailable | Code::DeadlineExceeded)
            .then_some(Duration::from_millis(500))
    }

    /// What no gRPC peer answers is somebody's bug, be it that of a proxy on the way.
    fn is_malformed(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::NotGrpc { .. })
    }
}

/// How a channel cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{uri:?} is not an address: {why}; it must look like http://host:port")]
    Uri { uri: String, why: String },
    #[error("the file descriptor set cannot be read")]
    Descriptors(#[source] prost::DecodeError),
    #[error("a directory can only be followed inside a tokio runtime")]
    NoRuntime,
    #[error("the member {0:?} is listed twice")]
    Twice(String),
    #[error("service config: {0}")]
    ServiceConfig(String),
    #[error("{0}")]
    Policy(String),
}

impl Kind for ConfigError {
    fn domain(&self) -> &'static str {
        DOMAIN
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Uri { .. } => "BAD_ADDRESS",
            Self::Descriptors(_) => "BAD_DESCRIPTORS",
            Self::NoRuntime => "NO_RUNTIME",
            Self::Twice(_) => "MEMBER_LISTED_TWICE",
            Self::ServiceConfig(_) => "BAD_SERVICE_CONFIG",
            Self::Policy(_) => "BAD_POLICY",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoRuntime => Code::FailedPrecondition,
            _ => Code::InvalidArgument,
        }
    }

    fn user_message(&self) -> String {
        format!("The client is not set up correctly: {self}.")
    }
}

/// An error and all that caused it, on one line; what a link repeats of the one before is left out.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    for cause in std::iter::successors(error.source(), |&e| e.source()).take(16) {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line
}

/// What the end of a connection says of a call on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It ended before the request was looked at.
    Unprocessed,
    /// It ended by its own limits, which say nothing of the member, and are never its pushback.
    Limits,
    /// It was lost, who knows why.
    Cut,
    /// This stream alone failed.
    Stream,
}

/// What lies behind a transport error.
pub(crate) fn loss(error: &(dyn StdError + 'static)) -> Loss {
    if let Some(h2) = find::<h2::Error>(error) {
        return match h2.reason() {
            Some(h2::Reason::REFUSED_STREAM) if h2.is_remote() => Loss::Unprocessed,
            // Either side took resets or small frames for an attack; or the server sends its clients away.
            // Which streams that spared is not told.
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Loss::Limits,
            Some(h2::Reason::NO_ERROR) if h2.is_go_away() => Loss::Limits,
            None => Loss::Cut,
            Some(_) if h2.is_go_away() => Loss::Cut,
            Some(_) => Loss::Stream,
        };
    }
    match find::<hyper::Error>(error) {
        // The connection was closed before the request's turn came.
        Some(hyper) if hyper.is_canceled() => Loss::Unprocessed,
        Some(_) => Loss::Cut,
        None => Loss::Stream,
    }
}

/// The first error of this type in the chain.
pub(crate) fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&e| e.source()).take(16).find_map(|e| e.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(number: u32, status: Status) -> Report {
        Report {
            number,
            node: format!("n{number}"),
            uri: format!("http://h{number}:1"),
            phase: Phase::Body,
            elapsed: Duration::from_millis(7),
            end: End::Failed(Error::from_status(&status)),
        }
    }

    #[test]
    fn the_most_telling_code_wins_not_the_first() {
        let attempts =
            vec![report(1, Status::unavailable("down")), report(2, Status::internal("index is corrupt"))];
        let ids: Vec<_> = attempts.iter().map(|a| a.error().unwrap().id().to_owned()).collect();
        let error = CallError::AttemptsFailed { method: "/a.B/C".into(), attempts }.into_error();
        assert_eq!(error.code(), Code::Internal);
        assert_eq!(error.as_proto().related_ids, ids);
        for part in
            ["/a.B/C", "[1] n1 (http://h1:1), phase body, 7 ms: Unavailable down", "[2] n2", "corrupt"]
        {
            assert!(error.what().contains(part), "{part:?} is not in {:?}", error.what());
        }
        assert!(error.retry_after().is_some());
    }

    #[test]
    fn a_chain_names_the_root_cause_once() {
        let root = std::io::Error::other("connection refused");
        let error = CallError::ReplyBroken {
            method: "/a.B/C".into(),
            node: "n".into(),
            uri: "http://h:1".into(),
            cause: chain(&root),
        };
        assert_eq!(chain(&error).matches("connection refused").count(), 1);
    }
}
