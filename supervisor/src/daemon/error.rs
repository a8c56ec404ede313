//! The failures a supervisor knows, as kinds of the well-formed error.

use std::{path::PathBuf, time::Duration};

use wardkeep_proto::{Kind, error::Code};

/// What goes wrong in and around a supervisor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    CannotListen {
        /// The address asked for.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error("cannot use {path}")]
    DataDir {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The history cannot be used.
    #[error("cannot use the history {path}: {what}")]
    History {
        /// Its file.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
    /// Another supervisor runs on the same data directory.
    #[error("another supervisor uses {path} already")]
    DataDirInUse {
        /// The directory.
        path: PathBuf,
    },
    /// More than this supervisor takes on.
    #[error("this supervisor takes on no more than {most} {what}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        most: usize,
    },
    /// No such node.
    #[error("no node is named {0}")]
    NoSuchNode(String),
    /// No such ward.
    #[error("node {node} has no ward named {ward}")]
    NoSuchWard {
        /// The node.
        node: String,
        /// The ward.
        ward: String,
    },
    /// Only programs have output of their own.
    #[error(
        "{node}/{ward} is no process ward and has no output of its own: what it logs is in the log of node {node}"
    )]
    NoOutput {
        /// The node.
        node: String,
        /// The ward.
        ward: String,
    },
    /// No error of this ID is kept.
    #[error(
        "no error with an ID that begins with {0} is kept; the latest of each kind are: see `wardkeep error ls`"
    )]
    NoSuchError(String),
    /// Several errors have an ID that begins so.
    #[error("{many} errors have an ID that begins with {id}; give more of it")]
    WhichError {
        /// What was asked for.
        id: String,
        /// How many there are.
        many: usize,
    },
    /// A configuration file that cannot be applied; nothing was changed.
    #[error("{0}")]
    Unfit(String),
    /// The node has no session.
    #[error("node {0} does not attend this supervisor now, so it cannot be told anything")]
    NotAttending(String),
    /// Another process attends under the same name.
    #[error(
        "another node named {name} (PID {pid}, boot {boot}) attends already; give this one a name of its own"
    )]
    NameTaken {
        /// The name both claim.
        name: String,
        /// PID of the one that attends.
        pid: u32,
        /// Boot ID of the one that attends.
        boot: String,
    },
    /// The node has obeyed another supervisor, which came after this one.
    #[error(
        "node {node} obeys a supervisor of epoch {highest}: this one, of epoch {ours}, has no authority over it"
    )]
    Superseded {
        /// The node.
        node: String,
        /// Of this supervisor.
        ours: u64,
        /// Of the other one.
        highest: u64,
    },
    /// A peer does not keep to the protocol.
    #[error("the node does not keep to the protocol: {0}")]
    Protocol(String),
    /// What was asked for has not happened in time.
    #[error("{what} was asked for, but has not been seen within {waited:?}")]
    NotSeen {
        /// What was asked for.
        what: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// What was asked for has failed.
    #[error("{0}")]
    Failed(String),
    /// The supervisor ends.
    #[error("the supervisor is shutting down")]
    ShuttingDown,
}

impl Kind for SupervisorError {
    fn domain(&self) -> &'static str {
        "wardkeep.supervisor"
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::CannotListen { .. } => "CANNOT_LISTEN",
            Self::DataDir { .. } => "DATA_DIR",
            Self::History { .. } => "HISTORY",
            Self::DataDirInUse { .. } => "DATA_DIR_IN_USE",
            Self::Full { .. } => "FULL",
            Self::NoSuchNode(_) => "NO_SUCH_NODE",
            Self::NoSuchWard { .. } => "NO_SUCH_WARD",
            Self::NoOutput { .. } => "NO_OUTPUT",
            Self::NoSuchError(_) => "NO_SUCH_ERROR",
            Self::WhichError { .. } => "WHICH_ERROR",
            Self::Unfit(_) => "UNFIT_CONFIG",
            Self::NotAttending(_) => "NOT_ATTENDING",
            Self::NameTaken { .. } => "NAME_TAKEN",
            Self::Superseded { .. } => "SUPERSEDED",
            Self::Protocol(_) => "PROTOCOL",
            Self::NotSeen { .. } => "NOT_SEEN",
            Self::Failed(_) => "FAILED",
            Self::ShuttingDown => "SHUTTING_DOWN",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoSuchNode(_) | Self::NoSuchWard { .. } | Self::NoSuchError(_) => Code::NotFound,
            Self::WhichError { .. } => Code::InvalidArgument,
            Self::NotAttending(_)
            | Self::Superseded { .. }
            | Self::NoOutput { .. }
            | Self::DataDirInUse { .. }
            | Self::Unfit(_) => Code::FailedPrecondition,
            Self::Full { .. } => Code::ResourceExhausted,
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::Protocol(_) => Code::InvalidArgument,
            Self::NotSeen { .. } => Code::DeadlineExceeded,
            Self::Failed(_) => Code::Aborted,
            Self::CannotListen { .. } | Self::DataDir { .. } | Self::History { .. } | Self::ShuttingDown => {
                Code::Unavailable
            }
        }
    }

    fn user_message(&self) -> String {
        match self {
            Self::NoSuchNode(_) | Self::NoSuchWard { .. } | Self::NoSuchError(_) => "That does not exist.",
            Self::NoOutput { .. } => "That has no output of its own.",
            Self::WhichError { .. } => "That is not one thing only.",
            Self::Unfit(_) => "The configuration was not applied.",
            Self::NotAttending(_) => "That node cannot be reached at the moment.",
            Self::NameTaken { .. } => "That name is taken.",
            Self::Superseded { .. } => "Another supervisor is in charge.",
            Self::Protocol(_) => "The request is not valid.",
            Self::NotSeen { .. } => "It was asked for, but has not happened yet.",
            Self::Failed(_) => "It was tried, and failed.",
            Self::ShuttingDown => "The supervisor is restarting. Please try again in a moment.",
            Self::Full { .. } => "There is no room for more at the moment.",
            Self::CannotListen { .. }
            | Self::DataDir { .. }
            | Self::DataDirInUse { .. }
            | Self::History { .. } => "The service could not be set up. Please tell its operators.",
        }
        .to_owned()
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::ShuttingDown | Self::NotAttending(_) | Self::Full { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}
