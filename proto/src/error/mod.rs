//! The well-formed error.
//!
//! An [`Error`] is one pointer wide and says everything a person at either end needs: an ID that
//! leads from the user's one line to the full record, when and on which machine it arose, a stable
//! reason, whether it will pass. It is made from a [`Kind`] (a domain's own enum) by `?` or
//! [`Error::new`]. There is deliberately no conversion from any other error: a failure nobody
//! modelled does not compile at a boundary; [`ResultExt::unexpected`] is the explicit way in, and
//! marks the error as malformed.
//!
//! ```
//! use wardkeep_proto::{Error, Kind, error::Code};
//!
//! #[derive(Debug, thiserror::Error)]
//! enum Shelf {
//!     #[error("shelf {0} has no room for another book")]
//!     Full(u32),
//! }
//!
//! impl Kind for Shelf {
//!     fn domain(&self) -> &'static str { "library.example.com" }
//!     fn reason(&self) -> &'static str { "SHELF_FULL" }
//!     fn code(&self) -> Code { Code::ResourceExhausted }
//!     fn user_message(&self) -> String { "That shelf is full. Please choose another one.".into() }
//! }
//!
//! fn put(shelf: u32) -> Result<(), Error> {
//!     Err(Shelf::Full(shelf))?
//! }
//!
//! let error = put(7).unwrap_err();
//! assert_eq!(error.kind(), "SHELF_FULL");
//! let status = tonic::Status::from(error.clone());
//! assert_eq!(Error::from_status(&status).id(), error.id());
//! ```

mod boundary;
mod foreign;
mod frames;
mod hash;
mod log;
mod read;
#[cfg(feature = "symbols")]
pub mod symbols;
mod wire;

use std::{error::Error as StdError, fmt, panic::Location, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    context::{self, RequestContext},
    machine_name, timestamp, v1,
};

pub use boundary::{Came, read_headers, write_headers};
#[cfg(any(feature = "anyhow", feature = "eyre"))]
pub use foreign::ReportExt;
pub use foreign::{Bug, Io, IoExt, ResultExt};
pub use frames::{Frames, build_id};
pub use hash::{EXACT_HASH_VERSION, GROUP_HASH_VERSION, exact_hash, group_hash, logical_site};
pub use log::tell_kept_back;
pub use read::remove_bad_details;
pub use tonic::Code;
pub use wire::{ERROR_ID_KEY, MAX_DETAILS_BYTES};

/// Version of the layout of `wardkeep.v1.Error` that this crate writes.
pub const LAYOUT_VERSION: u32 = 1;

/// One domain's failures. Usually an enum that derives `thiserror::Error`; its `Display` becomes
/// the error's `what`, its `source()` chain the causes.
pub trait Kind: StdError + Send + Sync + 'static {
    /// Who defines the reasons, as in `google.rpc.ErrorInfo.domain`.
    fn domain(&self) -> &'static str;
    /// Stable, UPPER_SNAKE_CASE, unique in the domain.
    fn reason(&self) -> &'static str;
    /// The gRPC code.
    fn code(&self) -> Code;
    /// One friendly line without internals; says whether the trouble will pass.
    fn user_message(&self) -> String;
    /// `Some` if trying again may help, with the pause to keep before it.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
    /// Where a person can read more about it: becomes a `google.rpc.Help`.
    fn help_url(&self) -> Option<String> {
        None
    }
    /// Whether it is a bug of somebody (garbage from a peer, say) rather than a failure one reckons with.
    fn is_malformed(&self) -> bool {
        false
    }
}

/// A well-formed error: see the [module](self).
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone, Default)]
struct Inner {
    record: v1::Error,
    /// Details of others that came with an adopted status: they go on with it as far as there is room.
    others: Vec<prost_types::Any>,
    /// Set if its layout is one that this crate does not know: it goes on as it came.
    as_came: Option<AsCame>,
}

/// What a status said. Message and details go together: the details repeat the message.
#[derive(Clone)]
struct AsCame {
    message: String,
    details: Vec<u8>,
}

impl Error {
    /// Makes an error of this kind, here and now.
    #[track_caller]
    pub fn new(kind: impl Kind) -> Self {
        Self::from_kind(&kind, Location::caller())
    }

    fn from_kind(kind: &dyn Kind, site: &'static Location<'static>) -> Self {
        let retry = kind.retry_after();
        let mut error = Self::blank(kind.code(), site);
        let record = &mut error.0.record;
        record.domain = kind.domain().to_owned();
        record.kind = kind.reason().to_owned();
        record.what = kind.to_string();
        record.user_message = one_line(kind.user_message(), kind.code());
        record.transitory = retry.is_some();
        record.retry_delay = retry.map(crate::duration);
        record.help_url = kind.help_url().unwrap_or_default();
        record.malformed = kind.is_malformed();
        error.tell_causes(kind.source());
        error.rehash();
        error
    }

    /// ID, time, machine, request, site and stack of what arises here; the caller fills in the rest.
    fn blank(code: Code, site: &Location<'_>) -> Self {
        let mut error = Self::blank_at(code, v1::Site { file: logical_site(site.file()), line: site.line() });
        if let Some(hop) = error.0.record.hops.last_mut() {
            hop.frames = Frames::capture().into_vec();
            build_id().clone_into(&mut hop.build_id);
        }
        error
    }

    /// The same for what arose at a place of which no more is known.
    fn blank_at(code: Code, site: v1::Site) -> Self {
        let current = context::current();
        let record = v1::Error {
            version: LAYOUT_VERSION,
            id: Uuid::now_v7().to_string(),
            occurred_at: Some(timestamp(Utc::now())),
            machine: machine_name().to_owned(),
            code: code as i32,
            request_id: current.as_ref().map(|c| c.request_id.to_string()).unwrap_or_default(),
            trace_id: crate::trace::current_trace_id()
                .or_else(|| current.as_ref().and_then(|c| c.trace_id().map(str::to_owned)))
                .unwrap_or_default(),
            hops: here(current.as_deref(), site),
            ..Default::default()
        };
        Self::of(record)
    }

    fn of(record: v1::Error) -> Self {
        Self(Box::new(Inner { record, ..Default::default() }))
    }

    /// Takes over a chain of causes; of a longer (or cyclic) one, as much as helps a person.
    fn tell_causes(&mut self, first: Option<&(dyn StdError + 'static)>) {
        const MOST: usize = 16;
        let mut chain = std::iter::successors(first, |&e| e.source());
        self.0.record.causes = chain.by_ref().take(MOST).map(|e| v1::Cause { what: e.to_string() }).collect();
        if chain.next().is_some() {
            self.0.record.truncated.push("causes".to_owned());
        }
    }

    fn rehash(&mut self) {
        self.0.record.group_hash = group_hash(&self.0.record);
        self.0.record.exact_hash = exact_hash(&self.0.record);
    }

    /// UUIDv7 text: the one name of this failure everywhere.
    pub fn id(&self) -> &str {
        &self.0.record.id
    }

    /// When it arose (UTC, by the origin's clock).
    pub fn occurred_at(&self) -> DateTime<Utc> {
        let t = self.0.record.occurred_at.unwrap_or_default();
        DateTime::from_timestamp(t.seconds, u32::try_from(t.nanos).unwrap_or(0)).unwrap_or_default()
    }

    /// The machine where it arose.
    pub fn machine(&self) -> &str {
        &self.0.record.machine
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        Code::from_i32(self.0.record.code)
    }

    /// Who defines [`Error::kind`].
    pub fn domain(&self) -> &str {
        &self.0.record.domain
    }

    /// The stable reason.
    pub fn kind(&self) -> &str {
        &self.0.record.kind
    }

    /// What went wrong, for engineers.
    pub fn what(&self) -> &str {
        &self.0.record.what
    }

    /// What went wrong, for users: one line.
    pub fn user_message(&self) -> &str {
        &self.0.record.user_message
    }

    /// The pause to keep before trying again; `None` if trying again is no use.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.record.transitory.then(|| {
            let pause = self.0.record.retry_delay.unwrap_or_default();
            Duration::try_from(pause).unwrap_or_default()
        })
    }

    /// Same failure, same hash: in any build and on any machine.
    pub fn group_hash(&self) -> &str {
        &self.0.record.group_hash
    }

    /// Same failure at the same place of the same build, same hash; empty if the place is not known.
    pub fn exact_hash(&self) -> &str {
        &self.0.record.exact_hash
    }

    /// Nobody modelled this failure: it is a bug.
    pub fn is_malformed(&self) -> bool {
        self.0.record.malformed
    }

    /// Says where it arose, unless it says so already.
    #[must_use]
    pub fn at(mut self, node: &str, ward: &str, incarnation: u64) -> Self {
        if self.0.record.node.is_empty() {
            node.clone_into(&mut self.0.record.node);
            ward.clone_into(&mut self.0.record.ward);
            self.0.record.incarnation = incarnation;
            if let Some(hop) = self.0.record.hops.last_mut().filter(|hop| hop.node.is_empty()) {
                node.clone_into(&mut hop.node);
                ward.clone_into(&mut hop.ward);
                hop.incarnation = incarnation;
            }
        }
        self
    }

    /// Replaces what users are told: one line without internals.
    #[must_use]
    pub fn with_user_message(mut self, line: impl Into<String>) -> Self {
        self.0.record.user_message = one_line(line.into(), self.code());
        self
    }

    /// Names errors that belong to the same story (the other attempts of a call).
    #[must_use]
    pub fn related(mut self, ids: impl IntoIterator<Item = String>) -> Self {
        self.0.record.related_ids.extend(ids);
        self
    }

    /// Records that the error passed the caller's place on its way out.
    #[track_caller]
    #[must_use]
    pub fn ctx(mut self) -> Self {
        let site = Location::caller();
        if let Some(hop) = self.0.record.hops.last_mut() {
            hop.sites.push(v1::Site { file: logical_site(site.file()), line: site.line() });
        }
        self
    }

    /// The record as it goes over the wire.
    pub fn as_proto(&self) -> &v1::Error {
        &self.0.record
    }

    /// The record as it goes over the wire.
    pub fn into_proto(self) -> v1::Error {
        self.0.record
    }
}

/// A line that fits where users read: without line breaks and control characters, never empty.
fn one_line(text: String, code: Code) -> String {
    let line = if text.contains(char::is_control) { text.replace(char::is_control, " ") } else { text };
    if line.trim().is_empty() { plain_words(code).to_owned() } else { line }
}

/// What users are told of a failure of which only the code is known.
fn plain_words(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument | Code::OutOfRange => "The request is not valid. Please check what you sent.",
        Code::NotFound => "That does not exist.",
        Code::AlreadyExists => "That exists already.",
        Code::PermissionDenied | Code::Unauthenticated => "You are not allowed to do that.",
        Code::FailedPrecondition => "That is not possible in the present state.",
        Code::DeadlineExceeded => "It took too long. Please try again.",
        Code::Cancelled => "The request was cancelled.",
        Code::Unimplemented => "That is not offered here.",
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted => {
            "The service is busy or restarting. Please try again in a moment."
        }
        _ => "Something went wrong on our side. Please report this ID.",
    }
}

/// The way of the request being served, the place where the error arose at its end.
fn here(current: Option<&RequestContext>, site: v1::Site) -> Vec<v1::Hop> {
    let mut hops = current.map(RequestContext::hops).unwrap_or_default();
    if hops.is_empty() {
        let method = current.map(|context| context.method.to_string()).unwrap_or_default();
        hops.push(v1::Hop { machine: machine_name().to_owned(), method, ..Default::default() });
    }
    if let Some(last) = hops.last_mut() {
        last.sites = vec![site];
    }
    hops
}

impl<K: Kind> From<K> for Error {
    #[track_caller]
    fn from(kind: K) -> Self {
        Self::from_kind(&kind, Location::caller())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.record.what)?;
        for cause in &self.0.record.causes {
            write!(f, ": {}", cause.what)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({}/{}, error {})", self.0.record.domain, self.0.record.kind, self.0.record.id)
    }
}

impl StdError for Error {}
