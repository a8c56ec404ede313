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

mod foreign;
mod hash;
mod wire;

use std::{error::Error as StdError, fmt, panic::Location, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    context::{self, RequestContext},
    machine_name, timestamp, v1,
};

pub use foreign::{Bug, ResultExt};
pub use hash::{GROUP_HASH_VERSION, group_hash, logical_site};
pub use tonic::Code;
pub use wire::{ERROR_ID_KEY, MAX_DETAILS_BYTES, remove_bad_details};

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
}

/// A well-formed error: see the [module](self).
#[derive(Clone)]
pub struct Error(Box<v1::Error>);

impl Error {
    /// Makes an error of this kind, here and now.
    #[track_caller]
    pub fn new(kind: impl Kind) -> Self {
        Self::from_kind(&kind, Location::caller())
    }

    fn from_kind(kind: &dyn Kind, site: &'static Location<'static>) -> Self {
        let retry = kind.retry_after();
        let mut error = Self::blank(kind.code(), site);
        error.0.domain = kind.domain().to_owned();
        error.0.kind = kind.reason().to_owned();
        error.0.what = kind.to_string();
        error.0.user_message = kind.user_message();
        error.0.transitory = retry.is_some();
        error.0.retry_delay = retry.map(crate::duration);
        error.tell_causes(kind.source());
        error.rehash();
        error
    }

    /// ID, time, machine, request and site; the caller fills in the rest.
    fn blank(code: Code, site: &Location<'_>) -> Self {
        let current = context::current();
        Self(Box::new(v1::Error {
            version: LAYOUT_VERSION,
            id: Uuid::now_v7().to_string(),
            occurred_at: Some(timestamp(Utc::now())),
            machine: machine_name().to_owned(),
            code: code as i32,
            request_id: current.as_ref().map(|c| c.request_id.to_string()).unwrap_or_default(),
            trace_id: crate::trace::current_trace_id()
                .or_else(|| current.as_ref().and_then(|c| c.trace_id().map(str::to_owned)))
                .unwrap_or_default(),
            hops: here(current.as_ref(), site),
            ..Default::default()
        }))
    }

    /// Takes over a chain of causes; of a longer (or cyclic) one, as much as helps a person.
    fn tell_causes(&mut self, first: Option<&(dyn StdError + 'static)>) {
        const MOST: usize = 16;
        let mut chain = std::iter::successors(first, |&e| e.source());
        self.0.causes = chain.by_ref().take(MOST).map(|e| v1::Cause { what: e.to_string() }).collect();
        if chain.next().is_some() {
            self.0.truncated.push("causes".to_owned());
        }
    }

    fn rehash(&mut self) {
        self.0.group_hash = group_hash(&self.0);
    }

    /// UUIDv7 text: the one name of this failure everywhere.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// When it arose (UTC, by the origin's clock).
    pub fn occurred_at(&self) -> DateTime<Utc> {
        let t = self.0.occurred_at.unwrap_or_default();
        DateTime::from_timestamp(t.seconds, u32::try_from(t.nanos).unwrap_or(0)).unwrap_or_default()
    }

    /// The machine where it arose.
    pub fn machine(&self) -> &str {
        &self.0.machine
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        Code::from_i32(self.0.code)
    }

    /// Who defines [`Error::kind`].
    pub fn domain(&self) -> &str {
        &self.0.domain
    }

    /// The stable reason.
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    /// What went wrong, for engineers.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// What went wrong, for users: one line.
    pub fn user_message(&self) -> &str {
        &self.0.user_message
    }

    /// The pause to keep before trying again; `None` if trying again is no use.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.transitory.then(|| {
            let pause = self.0.retry_delay.unwrap_or_default();
            Duration::try_from(pause).unwrap_or_default()
        })
    }

    /// Same failure, same hash: in any build and on any machine.
    pub fn group_hash(&self) -> &str {
        &self.0.group_hash
    }

    /// Nobody modelled this failure: it is a bug.
    pub fn is_malformed(&self) -> bool {
        self.0.malformed
    }

    /// Says where it arose, unless it says so already.
    #[must_use]
    pub fn at(mut self, node: &str, ward: &str, incarnation: u64) -> Self {
        if self.0.node.is_empty() {
            node.clone_into(&mut self.0.node);
            ward.clone_into(&mut self.0.ward);
            self.0.incarnation = incarnation;
            if let Some(hop) = self.0.hops.last_mut().filter(|hop| hop.node.is_empty()) {
                node.clone_into(&mut hop.node);
                ward.clone_into(&mut hop.ward);
                hop.incarnation = incarnation;
            }
        }
        self
    }

    /// Names errors that belong to the same story (the other attempts of a call).
    #[must_use]
    pub fn related(mut self, ids: impl IntoIterator<Item = String>) -> Self {
        self.0.related_ids.extend(ids);
        self
    }

    /// Records that the error passed the caller's place on its way out.
    #[track_caller]
    #[must_use]
    pub fn ctx(mut self) -> Self {
        let site = Location::caller();
        if let Some(hop) = self.0.hops.last_mut() {
            hop.sites.push(v1::Site { file: logical_site(site.file()), line: site.line() });
        }
        self
    }

    /// Writes the whole record to the log, once, where it arose. `malformed` ones are bugs: ERROR.
    pub fn log(&self) {
        let e = &self.0;
        let site = e.hops.last().and_then(|h| h.sites.first());
        let site = site.map(|s| format!("{}:{}", s.file, s.line)).unwrap_or_default();
        macro_rules! record {
            ($level:ident) => {
                tracing::$level!(error.id = %e.id, error.kind = %format_args!("{}/{}", e.domain, e.kind),
                    code = ?self.code(), machine = %e.machine, node = %e.node, ward = %e.ward,
                    incarnation = e.incarnation, group = %e.group_hash, request = %e.request_id,
                    malformed = e.malformed, site, causes = ?e.causes.iter().map(|c| &c.what).collect::<Vec<_>>(),
                    "{}", e.what)
            };
        }
        if e.malformed { record!(error) } else { record!(warn) }
    }

    /// The record as it goes over the wire.
    pub fn as_proto(&self) -> &v1::Error {
        &self.0
    }

    /// The record as it goes over the wire.
    pub fn into_proto(self) -> v1::Error {
        *self.0
    }
}

/// The way of the request being served, the place where the error arose at its end.
fn here(current: Option<&RequestContext>, site: &Location<'_>) -> Vec<v1::Hop> {
    let mut hops = current.map(|context| context.hops.to_vec()).unwrap_or_default();
    if hops.is_empty() {
        let method = current.map(|context| context.method.to_string()).unwrap_or_default();
        hops.push(v1::Hop { machine: machine_name().to_owned(), method, ..Default::default() });
    }
    if let Some(last) = hops.last_mut() {
        last.sites = vec![v1::Site { file: logical_site(site.file()), line: site.line() }];
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
        write!(f, "{}", self.0.what)?;
        for cause in &self.0.causes {
            write!(f, ": {}", cause.what)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({}/{}, error {})", self.0.domain, self.0.kind, self.0.id)
    }
}

impl StdError for Error {}
