//! The failures a node knows, as kinds of the well-formed error.

use std::{path::PathBuf, time::Duration};

use wardkeep_proto::{Kind, error::Code};

/// What goes wrong in and around a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// No ward of this node answers the service.
    #[error("node {node} hosts no service {service}")]
    NoSuchService {
        /// The node asked.
        node: String,
        /// Full name of the service.
        service: String,
    },
    /// The service's ward is between two incarnations.
    #[error("ward {ward} is {state}")]
    WardNotRunning {
        /// The ward.
        ward: String,
        /// Where it is.
        state: &'static str,
    },
    /// The node takes no new calls.
    #[error("node {0} is draining")]
    Draining(String),
    /// A message is longer than the listener lets pass.
    #[error("a {what} of {bytes} bytes: at most {most} may pass here")]
    MessageTooLarge {
        /// Which way it goes.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// The ward was stopped with the call in progress.
    #[error("ward {0} was stopped while it worked on this call")]
    Stopped(String),
    /// The caller's time is up.
    #[error("{method} had not answered when its deadline passed")]
    DeadlineExceeded {
        /// The method called.
        method: String,
    },
    /// As many calls as may wait for the ward do so.
    #[error("{waiting} calls wait for ward {ward}, as many as may")]
    QueueFull {
        /// The ward.
        ward: String,
        /// How many wait.
        waiting: usize,
        /// About when there will be room.
        pushback: Duration,
    },
    /// A request that no caller should send.
    #[error("{0}")]
    BadRequest(String),
    /// The caller wants no answer any more: another node gave it.
    #[error("{method} was withdrawn by its caller")]
    Withdrawn {
        /// The method called.
        method: String,
    },
    /// A call came again after it had ended well, and its reply is not kept any more.
    #[error("this call of {method} was carried out before, and its reply is not kept any more")]
    AlreadyDone {
        /// The method called.
        method: String,
    },
    /// A call came again with another request.
    #[error("this call of {method} has the ID of another one, with another request")]
    RequestIdReused {
        /// The method called.
        method: String,
    },
    /// A request that must be remembered is too long for that.
    #[error("a request of {method} is longer than {limit} bytes, of which no more can be remembered")]
    RequestTooLong {
        /// The method called.
        method: String,
        /// What the ward may remember.
        limit: usize,
    },
    /// As many calls are carried out as can be remembered.
    #[error("ward {0} carries out as many calls as it can remember")]
    TooManyToRemember(String),
    /// The handler's metadata does not fit into the reply to a tied request.
    #[error("the head of the reply of {method} is longer than a tied request can be told")]
    HeadTooLong {
        /// The method called.
        method: String,
    },
    /// The work was cancelled: the caller has gone, or its ward is stopping.
    #[error("the work was cancelled")]
    Cancelled,
    /// A unit of work was begun, and given up without being done.
    #[error("a unit of work of ward {ward} was dropped without being done")]
    WorkDropped {
        /// The ward.
        ward: String,
    },
    /// A program ended by itself.
    #[error("{program} ended with {status}")]
    ProgramEnded {
        /// The program.
        program: String,
        /// Its exit status, in words.
        status: String,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    CannotStart {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    CannotListen {
        /// The address asked for.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Listening to strangers without protection needs to be asked for.
    #[error(
        "{address} is reachable from other machines and the traffic is not encrypted; pass --insecure to accept that, or listen on 127.0.0.1"
    )]
    NotLoopback {
        /// The address asked for.
        address: String,
    },
    /// The node was put together wrongly.
    #[error("{0}")]
    Misconfigured(String),
    /// A configuration file that cannot be applied; nothing was changed.
    #[error("{0}")]
    Unfit(String),
    /// The node does not host the ward.
    #[error("node {node} hosts no ward named {ward}")]
    NoSuchWard {
        /// The node.
        node: String,
        /// The ward.
        ward: String,
    },
    /// No supervisor takes on a node with more wards.
    #[error("node {node} has a supervisor, which takes on no more than {most} wards of one node")]
    TooManyWards {
        /// The node.
        node: String,
        /// The limit.
        most: usize,
    },
    /// There is nobody to ask any more.
    #[error("the node has ended")]
    Ended,
    /// The node could not restart itself in place.
    #[error("cannot execute {program} anew")]
    CannotReexecute {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A command of a steward that has been replaced.
    #[error("epoch {got} is not obeyed any more: this node has seen epoch {highest}")]
    OldEpoch {
        /// The command's epoch.
        got: u64,
        /// The highest seen.
        highest: u64,
    },
    /// A command from someone whom this node has not accepted as its steward.
    #[error("no steward has been welcomed in this session, or the node is leaving")]
    NoMandate,
    /// A command about an incarnation that is not the present one.
    #[error("ward {ward} is at incarnation {present}, not {asked}")]
    OtherIncarnation {
        /// The ward.
        ward: String,
        /// The incarnation meant.
        asked: u64,
        /// The present one.
        present: u64,
    },
}

impl Kind for NodeError {
    fn domain(&self) -> &'static str {
        "wardkeep.node"
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchService { .. } => "NO_SUCH_SERVICE",
            Self::WardNotRunning { .. } => "WARD_NOT_RUNNING",
            Self::Draining(_) => "NODE_DRAINING",
            Self::MessageTooLarge { .. } => "MESSAGE_TOO_LARGE",
            Self::Stopped(_) => "WARD_STOPPED",
            Self::DeadlineExceeded { .. } => "DEADLINE_EXCEEDED",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::BadRequest(_) => "BAD_REQUEST",
            Self::Withdrawn { .. } => "WITHDRAWN",
            Self::AlreadyDone { .. } => "ALREADY_DONE",
            Self::RequestIdReused { .. } => "REQUEST_ID_REUSED",
            Self::RequestTooLong { .. } => "REQUEST_TOO_LONG",
            Self::TooManyToRemember(_) => "TOO_MANY_TO_REMEMBER",
            Self::HeadTooLong { .. } => "HEAD_TOO_LONG",
            Self::Cancelled => "CANCELLED",
            Self::WorkDropped { .. } => "WORK_DROPPED",
            Self::ProgramEnded { .. } => "PROGRAM_ENDED",
            Self::CannotStart { .. } => "CANNOT_START",
            Self::CannotListen { .. } => "CANNOT_LISTEN",
            Self::NotLoopback { .. } => "NOT_LOOPBACK",
            Self::Misconfigured(_) => "MISCONFIGURED",
            Self::Unfit(_) => "UNFIT_CONFIG",
            Self::NoSuchWard { .. } => "NO_SUCH_WARD",
            Self::TooManyWards { .. } => "TOO_MANY_WARDS",
            Self::Ended => "NODE_ENDED",
            Self::CannotReexecute { .. } => "CANNOT_REEXECUTE",
            Self::OldEpoch { .. } => "OLD_EPOCH",
            Self::NoMandate => "NO_MANDATE",
            Self::OtherIncarnation { .. } => "OTHER_INCARNATION",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoSuchService { .. } => Code::Unimplemented,
            Self::WardNotRunning { .. } | Self::Draining(_) | Self::Stopped(_) => Code::Unavailable,
            // As tonic's own limit has it.
            Self::MessageTooLarge { .. } => Code::OutOfRange,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Cancelled | Self::Withdrawn { .. } => Code::Cancelled,
            Self::QueueFull { .. } | Self::RequestTooLong { .. } | Self::TooManyToRemember(_) => {
                Code::ResourceExhausted
            }
            Self::AlreadyDone { .. } => Code::AlreadyExists,
            Self::HeadTooLong { .. } => Code::Internal,
            Self::WorkDropped { .. } => Code::Aborted,
            Self::NotLoopback { .. }
            | Self::Misconfigured(_)
            | Self::BadRequest(_)
            | Self::RequestIdReused { .. } => Code::InvalidArgument,
            Self::NoSuchWard { .. } => Code::NotFound,
            Self::TooManyWards { .. } => Code::ResourceExhausted,
            Self::OldEpoch { .. }
            | Self::NoMandate
            | Self::OtherIncarnation { .. }
            | Self::Unfit(_)
            | Self::Ended => Code::FailedPrecondition,
            Self::ProgramEnded { .. }
            | Self::CannotStart { .. }
            | Self::CannotListen { .. }
            | Self::CannotReexecute { .. } => Code::Unavailable,
        }
    }

    fn user_message(&self) -> String {
        match self {
            Self::NoSuchService { .. } => "That is not offered here.",
            Self::WardNotRunning { .. } | Self::Draining(_) | Self::Stopped(_) => {
                "The service is restarting. Please try again in a moment."
            }
            Self::BadRequest(_) => "The request is not valid. Please check what you sent.",
            Self::MessageTooLarge { .. } => "That is too much at once. Please ask for less.",
            Self::DeadlineExceeded { .. } => "It took too long. Please try again.",
            Self::Unfit(_) => "The configuration was not applied.",
            Self::Cancelled | Self::Withdrawn { .. } => "The request was cancelled.",
            Self::AlreadyDone { .. } => "That has been done already.",
            Self::RequestIdReused { .. } | Self::RequestTooLong { .. } => {
                "The request is not valid. Please check what you sent."
            }
            Self::QueueFull { .. } | Self::TooManyToRemember(_) => {
                "The service is busy. Please try again in a moment."
            }
            Self::HeadTooLong { .. } => "Something went wrong on our side. Please report this ID.",
            Self::WorkDropped { .. } => "Some work was given up. Please try again.",
            _ => "The service could not be set up. Please tell its operators.",
        }
        .to_owned()
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::WardNotRunning { .. } | Self::Draining(_) | Self::Stopped(_) => {
                Some(Duration::from_millis(200))
            }
            Self::DeadlineExceeded { .. } => Some(Duration::ZERO),
            Self::QueueFull { pushback, .. } => Some(*pushback),
            Self::TooManyToRemember(_) => Some(Duration::from_millis(100)),
            _ => None,
        }
    }
}
