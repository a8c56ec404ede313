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
    /// The ward was stopped with the call in progress.
    #[error("ward {0} was stopped while it worked on this call")]
    Stopped(String),
    /// The caller's time is up.
    #[error("{method} had not answered when its deadline passed")]
    DeadlineExceeded {
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
            Self::Stopped(_) => "WARD_STOPPED",
            Self::DeadlineExceeded { .. } => "DEADLINE_EXCEEDED",
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
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::WorkDropped { .. } => Code::Aborted,
            Self::NotLoopback { .. } | Self::Misconfigured(_) => Code::InvalidArgument,
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
            Self::DeadlineExceeded { .. } => "It took too long. Please try again.",
            Self::Cancelled => "The request was cancelled.",
            Self::Unfit(_) => "The configuration was not applied.",
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
            _ => None,
        }
    }
}
