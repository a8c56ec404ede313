//! The explicit way in for failures nobody modelled.

use std::{error::Error as StdError, panic::Location};

use super::{Code, Error};

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
    pub fn panicked_at(message: &str, file: &str, line: u32) -> Error {
        let mut error = Self::panicked(message);
        if let Some(site) = error.0.hops.last_mut().and_then(|h| h.sites.first_mut()) {
            site.file = super::logical_site(file);
            site.line = line;
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
        error.0.domain = DOMAIN.to_owned();
        error.0.kind = reason.to_owned();
        error.0.what = what;
        error.0.user_message = "Something went wrong on our side. Please report this ID.".to_owned();
        error.0.malformed = true;
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
    fn unexpected(self) -> Result<T, Error>
    where
        E: StdError + 'static;

    /// Records this place on an error's way out.
    ///
    /// # Errors
    /// The same as before.
    fn ctx(self) -> Result<T, Error>
    where
        E: Into<Error>;
}

impl<T, E> ResultExt<T, E> for Result<T, E> {
    #[track_caller]
    fn unexpected(self) -> Result<T, Error>
    where
        E: StdError + 'static,
    {
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
