//! The explicit ways in for failures of others: as a bug by declaration, or as a kind.

use std::{error::Error as StdError, io, panic::Location};

use super::{Code, Error, Frames, Kind};

/// The domain of failures that are bugs by declaration.
const DOMAIN: &str = "wardkeep.bug";

/// Makers of malformed errors: failures that no domain has a kind for.
pub struct Bug;

impl Bug {
    /// From a foreign error, at a boundary.
    #[track_caller]
    pub fn unexpected(source: &(dyn StdError + 'static)) -> Error {
        let mut error = Self::report("UNEXPECTED", source.to_string(), Location::caller());
        error.tell_causes(source.source());
        error
    }

    /// From what a panic carried.
    #[track_caller]
    pub fn panicked(message: &str) -> Error {
        Self::report("PANIC", format!("panicked: {message}"), Location::caller())
    }

    /// From a panic, at the place where it happened (known to a panic hook, not to the catcher).
    pub fn panicked_at(message: &str, file: &str, line: u32, frames: Frames) -> Error {
        let mut error = Self::panicked(message);
        if let Some(hop) = error.0.record.hops.last_mut() {
            hop.frames = frames.into_vec();
            if let Some(site) = hop.sites.first_mut() {
                site.file = super::logical_site(file);
                site.line = line;
            }
        }
        error.rehash();
        error
    }

    /// From anything else that should not have happened.
    #[track_caller]
    pub fn because(what: impl Into<String>) -> Error {
        Self::report("UNEXPECTED", what.into(), Location::caller())
    }

    fn report(reason: &str, what: String, site: &Location<'_>) -> Error {
        let mut error = Error::blank(Code::Internal, site);
        let record = &mut error.0.record;
        record.domain = DOMAIN.to_owned();
        record.kind = reason.to_owned();
        record.what = what;
        record.user_message = super::plain_words(Code::Internal).to_owned();
        record.malformed = true;
        error.rehash();
        error
    }
}

/// What `Result`s need at a boundary.
pub trait ResultExt<T, E> {
    /// Turns a foreign error into a malformed [`Error`], on purpose.
    ///
    /// # Errors
    /// The same as before, wrapped.
    fn unexpected(self) -> Result<T, Error>;

    /// Records this place on an error's way out.
    ///
    /// # Errors
    /// The same as before.
    fn ctx(self) -> Result<T, Error>
    where
        E: Into<Error>;
}

impl<T, E: StdError + 'static> ResultExt<T, E> for Result<T, E> {
    #[track_caller]
    fn unexpected(self) -> Result<T, Error> {
        match self {
            Ok(value) => Ok(value),
            Err(e) => Err(Bug::unexpected(&e)),
        }
    }

    #[track_caller]
    fn ctx(self) -> Result<T, Error>
    where
        E: Into<Error>,
    {
        match self {
            Ok(value) => Ok(value),
            Err(e) => Err(e.into().ctx()),
        }
    }
}

/// For results whose error type does not implement [`std::error::Error`], as those of `anyhow` and
/// `eyre` (each behind the feature of its name).
#[cfg(any(feature = "anyhow", feature = "eyre"))]
pub trait ReportExt<T> {
    /// Turns the report into a malformed [`Error`], on purpose, its chain into the causes.
    ///
    /// # Errors
    /// The same as before, wrapped.
    fn unexpected(self) -> Result<T, Error>;
}

#[cfg(feature = "anyhow")]
impl<T> ReportExt<T> for Result<T, anyhow::Error> {
    #[track_caller]
    fn unexpected(self) -> Result<T, Error> {
        match self {
            Ok(value) => Ok(value),
            Err(report) => Err(Bug::unexpected(&*report)),
        }
    }
}

#[cfg(feature = "eyre")]
impl<T> ReportExt<T> for Result<T, eyre::Report> {
    #[track_caller]
    fn unexpected(self) -> Result<T, Error> {
        match self {
            Ok(value) => Ok(value),
            Err(report) => Err(Bug::unexpected(&*report)),
        }
    }
}

/// What the operating system refused, as kinds of the well-formed error: the domain `wardkeep.io`, the
/// reason named after [`io::ErrorKind`].
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Io {
    doing: String,
    #[source]
    source: io::Error,
}

/// Says what was being done when the operating system refused.
///
/// ```
/// use wardkeep_proto::error::{Code, IoExt as _};
/// let path = "/no/such/file";
/// let error = std::fs::read(path).while_doing(|| format!("reading {path}")).unwrap_err();
/// assert_eq!((error.kind(), error.code()), ("NOT_FOUND", Code::NotFound));
/// assert_eq!(error.what(), "reading /no/such/file");
/// ```
pub trait IoExt<T> {
    /// Turns what the operating system said into an error of kind [`Io`].
    ///
    /// # Errors
    /// The same as before, wrapped.
    fn while_doing(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> IoExt<T> for io::Result<T> {
    #[track_caller]
    fn while_doing(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        match self {
            Ok(value) => Ok(value),
            Err(source) => Err(Error::new(Io { doing: doing(), source })),
        }
    }
}

impl Kind for Io {
    fn domain(&self) -> &'static str {
        "wardkeep.io"
    }

    fn reason(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::NotFound => "NOT_FOUND",
            io::ErrorKind::PermissionDenied => "PERMISSION_DENIED",
            io::ErrorKind::AlreadyExists => "ALREADY_EXISTS",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "STORAGE_FULL",
            io::ErrorKind::TimedOut => "TIMED_OUT",
            io::ErrorKind::ConnectionRefused => "CONNECTION_REFUSED",
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => "CONNECTION_LOST",
            io::ErrorKind::AddrInUse => "ADDRESS_IN_USE",
            io::ErrorKind::InvalidData => "INVALID_DATA",
            _ => "FAILED",
        }
    }

    fn code(&self) -> Code {
        match self.reason() {
            "NOT_FOUND" => Code::NotFound,
            "PERMISSION_DENIED" => Code::PermissionDenied,
            "ALREADY_EXISTS" => Code::AlreadyExists,
            "STORAGE_FULL" => Code::ResourceExhausted,
            "TIMED_OUT" => Code::DeadlineExceeded,
            "INVALID_DATA" => Code::DataLoss,
            _ => Code::Unavailable,
        }
    }

    fn user_message(&self) -> String {
        super::plain_words(self.code()).to_owned()
    }

    fn retry_after(&self) -> Option<std::time::Duration> {
        matches!(self.reason(), "TIMED_OUT" | "CONNECTION_REFUSED" | "CONNECTION_LOST")
            .then_some(std::time::Duration::from_millis(500))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that is its own cause.
    #[derive(Debug)]
    struct Snake;

    impl std::fmt::Display for Snake {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("round and round")
        }
    }

    impl StdError for Snake {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&Snake)
        }
    }

    #[test]
    fn a_cycle_of_causes_ends_and_says_that_it_was_cut() {
        let error = Err::<(), _>(Snake).unexpected().unwrap_err();
        assert!(error.is_malformed());
        assert!(error.as_proto().causes.len() <= 16);
        assert_eq!(error.as_proto().truncated, ["causes"]);
        assert_eq!(error.user_message().lines().count(), 1);
    }

    #[cfg(all(feature = "anyhow", feature = "eyre"))]
    #[test]
    fn reports_of_anyhow_and_eyre_keep_their_chain() {
        let io = || io::Error::other("disk gone");
        let error = Err::<(), _>(anyhow::Error::new(io()).context("opening the index")).unexpected();
        let error = error.unwrap_err();
        assert_eq!(
            (error.what(), error.as_proto().causes[0].what.as_str()),
            ("opening the index", "disk gone")
        );
        let error = Err::<(), _>(eyre::Report::new(io()).wrap_err("opening")).unexpected().unwrap_err();
        assert_eq!((error.what(), error.as_proto().causes.len()), ("opening", 1));
        assert!(error.as_proto().hops[0].sites[0].file.ends_with("src/error/foreign.rs"));
    }
}
