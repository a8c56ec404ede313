//! How a command ends: an exit code that scripts can rely on, and one clear line that says why.

use std::{error::Error as StdError, process::ExitCode};

use serde_json::json;
use tonic::{Code, Status};
use wardkeep_proto::Error;

/// The exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It was tried and failed, or something is wrong with what was looked at.
    Failed = 1,
    /// The command line is wrong, or what it asks was refused.
    Usage = 2,
    /// No supervisor runs at the address (`status`).
    NotRunning = 3,
    /// No such node, ward, group, service or method.
    NotFound = 4,
    /// Nothing answers at the address.
    Unreachable = 5,
    /// Some of it was done.
    Partial = 6,
    /// Not allowed.
    Denied = 7,
    /// Not done within `--timeout`.
    Timeout = 124,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// The code as a number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// A stable name, for JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Failed => "FAILED",
            Self::Usage => "USAGE",
            Self::NotRunning => "NOT_RUNNING",
            Self::NotFound => "NOT_FOUND",
            Self::Unreachable => "UNREACHABLE",
            Self::Partial => "PARTIAL",
            Self::Denied => "DENIED",
            Self::Timeout => "TIMEOUT",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

/// Why a command did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process ends with this.
    pub exit: Exit,
    /// A stable reason: a server's error kind, or the exit code's name.
    pub code: String,
    /// One line for a person. Empty: nothing is to be said.
    pub message: String,
    /// More, for engineers.
    pub what: Option<String>,
    /// ID of the well-formed error, when a server sent one.
    pub id: Option<String>,
}

impl Failure {
    /// A failure this program found by itself.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: exit.name().to_owned(), message: message.into(), what: None, id: None }
    }

    /// The command line is wrong, or was refused.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Ends the program without a word: the reader of our output has gone.
    pub fn quiet() -> Self {
        Self::new(Exit::Ok, "")
    }

    /// Nothing answers at `address`; `error`'s innermost cause says why.
    pub fn unreachable(address: &str, error: &(dyn StdError + 'static)) -> Self {
        let cause = root_cause(error);
        Self::new(Exit::Unreachable, format!("cannot reach {address}: {cause}"))
    }

    /// What a call to `address` ended with.
    pub fn from_status(address: &str, status: &Status) -> Self {
        if is_expiry(status) {
            return Self::no_answer(address);
        }
        // Only failures of this side have a source: a server's status has none.
        if let Some(source) = status.source() {
            return match status.code() {
                Code::Unavailable => Self::unreachable(address, source),
                _ => Self::new(
                    Exit::Unreachable,
                    format!("lost the connection to {address}: {}", root_cause(source)),
                ),
            };
        }
        let error = Error::from_status(status);
        // A bare status has no ID anyone could look up: the one it is adopted under is ours alone.
        let known = status.metadata().contains_key(wardkeep_proto::error::ERROR_ID_KEY);
        Self {
            exit: exit_for(&error),
            code: error.kind().to_owned(),
            message: one_line(error.user_message()),
            what: Some(one_line(error.what())).filter(|w| !w.is_empty()),
            id: known.then(|| error.id().to_owned()),
        }
    }

    fn no_answer(address: &str) -> Self {
        Self::new(Exit::Timeout, format!("no answer from {address} in time"))
    }

    /// The line for stderr, without its line end.
    pub fn line(&self) -> String {
        let mut line = format!("wardkeep: {}", self.message);
        if let Some(what) = self.what.as_ref().filter(|what| **what != self.message) {
            line.push_str(&format!(" ({what})"));
        }
        if let Some(id) = &self.id {
            line.push_str(&format!(" [error {id}]"));
        }
        line
    }

    /// The same as one JSON document.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "schema": "wardkeep.error/v1",
            "error": {
                "code": self.code,
                "exit": self.exit.number(),
                "message": self.message,
                "id": self.id,
                "what": self.what,
            }
        })
    }
}

/// tonic reports a deadline that passed on this side as a cancellation.
fn is_expiry(status: &Status) -> bool {
    status.code() == Code::Cancelled && status.message() == "Timeout expired"
}

fn exit_for(error: &Error) -> Exit {
    match error.code() {
        // A replicated call found nobody to answer it.
        Code::Unavailable if error.domain() == "wardkeep.client" => Exit::Unreachable,
        Code::NotFound => Exit::NotFound,
        Code::DeadlineExceeded => Exit::Timeout,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
        Code::InvalidArgument | Code::FailedPrecondition => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// The innermost cause: "Connection refused (os error 111)", not "transport error".
fn root_cause(error: &(dyn StdError + 'static)) -> String {
    /// Ends a cyclic chain.
    const MOST: usize = 32;
    let chain = std::iter::successors(Some(error), |&e| e.source()).take(MOST);
    chain.last().map(|e| one_line(&e.to_string())).unwrap_or_default()
}

/// Control characters (line ends, terminal escapes) become spaces: text from elsewhere must neither
/// break lines nor drive the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_servers_map_to_exit_codes() {
        let exit = |status: Status| Failure::from_status("http://a:1", &status).exit;
        assert_eq!(exit(Status::not_found("x")), Exit::NotFound);
        assert_eq!(exit(Status::unavailable("busy")), Exit::Failed);
        assert_eq!(exit(Status::deadline_exceeded("x")), Exit::Timeout);
        assert_eq!(exit(Status::cancelled("Timeout expired")), Exit::Timeout);
        assert_eq!(exit(Status::permission_denied("x")), Exit::Denied);
        assert_eq!(exit(Status::failed_precondition("x")), Exit::Usage);
        assert_eq!(exit(Status::internal("x")), Exit::Failed);
    }

    #[test]
    fn a_failure_is_one_line_and_names_the_error_only_if_someone_can_look_it_up() {
        let bare = Failure::from_status("http://a:1", &Status::not_found("no\nsuch \u{1b}[31mward"));
        assert_eq!(bare.line(), "wardkeep: That does not exist. (no such  [31mward)");
        let well_formed = Status::from(wardkeep_proto::error::Bug::because("lost it"));
        let failure = Failure::from_status("http://a:1", &well_formed);
        assert!(
            failure.line().ends_with(']') && failure.line().contains("(lost it) [error 0"),
            "{failure:?}"
        );
    }

    #[test]
    fn a_transport_failure_names_the_address_and_the_root_cause() {
        let mut status = Status::unavailable("transport error");
        status.set_source(std::sync::Arc::new(std::io::Error::other("Connection refused")));
        let failure = Failure::from_status("http://a:1", &status);
        assert_eq!(failure.exit, Exit::Unreachable);
        assert_eq!(failure.line(), "wardkeep: cannot reach http://a:1: Connection refused");
    }
}
