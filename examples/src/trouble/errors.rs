//! The well-formed errors that trouble makes.

use std::{error::Error as StdError, fmt, time::Duration};

use tonic::Status;
use wardkeep_proto::{Error, Kind, error::Code};

/// What was asked for, with a chain of causes as deep as asked for.
#[derive(Debug, thiserror::Error)]
#[error("trouble was asked for a well-formed error")]
struct AskedFor {
    #[source]
    cause: Option<Cause>,
}

#[derive(Debug)]
struct Cause {
    level: u32,
    deeper: Option<Box<Cause>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cause {}", self.level)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.deeper.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

impl Drop for Cause {
    // Iteratively: a chain may be deeper than the stack.
    fn drop(&mut self) {
        let mut next = self.deeper.take();
        while let Some(mut cause) = next {
            next = cause.deeper.take();
        }
    }
}

impl Kind for AskedFor {
    fn domain(&self) -> &'static str {
        "trouble.examples.wardkeep"
    }

    fn reason(&self) -> &'static str {
        "ASKED_FOR"
    }

    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn user_message(&self) -> String {
        "You asked for trouble, and here it is. It will pass: ask for something else.".to_owned()
    }

    fn retry_after(&self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }
}

/// A well-formed error with a chain of this many causes.
pub(super) fn well_formed(depth: u32) -> Status {
    let chain = |deeper, level| Some(Box::new(Cause { level, deeper }));
    let cause = (1..=depth).rev().fold(None, chain).map(|cause| *cause);
    Error::new(AskedFor { cause }).into()
}
