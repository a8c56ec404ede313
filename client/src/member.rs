//! Who can be asked.

use std::{collections::BTreeMap, time::Duration};

use wardkeep_proto::v1;

/// A node as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The node's name.
    pub name: String,
    /// Where it is reached: `http://host:port`.
    pub uri: String,
    /// Its machine; empty if unknown.
    pub machine: String,
    /// Its zone; empty if unknown.
    pub zone: String,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// What its wards answer; empty if unknown.
    pub offers: Vec<Offer>,
    /// Reachable and not draining. A member that is not ready is never asked.
    pub ready: bool,
    /// One of ours. The errors of a stranger are not believed: they get an ID and a machine here, and
    /// their text goes no further than the log.
    pub trusted: bool,
}

/// A gRPC service that a ward answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offer {
    /// Full name of the service.
    pub service: String,
    /// The ward that answers it.
    pub ward: String,
    /// The ward's incarnation.
    pub incarnation: u64,
    /// The ward runs.
    pub ready: bool,
}

impl Member {
    /// A member that is ready, and about which nothing else is known.
    pub fn new(name: impl Into<String>, uri: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uri: uri.into(),
            machine: String::new(),
            zone: String::new(),
            labels: BTreeMap::new(),
            offers: Vec::new(),
            ready: true,
            trusted: true,
        }
    }

    /// Makes it a stranger: see [`Member::trusted`].
    #[must_use]
    pub fn stranger(mut self) -> Self {
        self.trusted = false;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Sets whether the member may be asked.
    #[must_use]
    pub fn with_ready(mut self, ready: bool) -> Self {
        self.ready = ready;
        self
    }

    /// Whether a ward of this member answers the service now; `None` if none is known to offer it.
    pub fn answers(&self, service: &str) -> Option<bool> {
        let mut offers = self.offers.iter().filter(|o| o.service == service).peekable();
        offers.peek()?;
        Some(offers.any(|o| o.ready))
    }

    /// From the directory; `None` if it does not say who and where the member is.
    pub(crate) fn from_proto(member: v1::Member) -> Option<Self> {
        let node = member.node.filter(|n| !n.name.is_empty() && !n.uri.is_empty())?;
        let offers = member.offers.into_iter().map(|o| Offer {
            service: o.service,
            ward: o.ward,
            incarnation: o.incarnation,
            ready: o.ready,
        });
        Some(Self {
            name: node.name,
            uri: node.uri,
            machine: node.machine,
            zone: node.zone,
            labels: node.labels.into_iter().collect(),
            offers: offers.collect(),
            ready: member.ready,
            trusted: true,
        })
    }
}

/// Who won a call, found in the extensions of its response: see [`ResponseExt`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Winner {
    /// Name of the member whose reply this is.
    pub node: String,
    /// Attempts that were started.
    pub attempts: u32,
    /// From the call to the moment its winner was known.
    pub elapsed: Duration,
}

/// What a reply that came through [`Replicated`](crate::Replicated) can say of itself.
pub trait ResponseExt {
    /// Who won. `None` if the response did not come through a replicated channel.
    fn winner(&self) -> Option<&Winner>;
}

impl<T> ResponseExt for tonic::Response<T> {
    fn winner(&self) -> Option<&Winner> {
        self.extensions().get()
    }
}

impl<T> ResponseExt for http::Response<T> {
    fn winner(&self) -> Option<&Winner> {
        self.extensions().get()
    }
}
