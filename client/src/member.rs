//! Who can be asked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tonic::Code;
use wardkeep_proto::v1::{self, Fate};

use crate::{error::Phase, methods::SentOnce, request::Progress};

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
    /// It seems ill, though it has not been found so: asked after all others, and calls that wait for it ask
    /// another one early, within the budget for hedges.
    pub suspected: bool,
    /// It is known to be one of our nodes: the directory says so.
    pub(crate) is_node: bool,
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
    /// It seems ill, as of members.
    pub suspected: bool,
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
            suspected: false,
            is_node: false,
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
            suspected: o.suspected,
        });
        let offers: Vec<Offer> = offers.collect();
        let mut up = offers.iter().filter(|offer| offer.ready).peekable();
        // As a whole it is, if all that it offers is.
        let wards = up.peek().is_some() && up.all(|offer| offer.suspected);
        Some(Self {
            name: node.name,
            uri: node.uri,
            machine: node.machine,
            zone: node.zone,
            labels: node.labels.into_iter().collect(),
            suspected: member.suspected || wards,
            offers,
            ready: member.ready,
            is_node: true,
            trusted: true,
        })
    }

    /// What a rule about members looks at.
    pub(crate) fn value_of(&self, label: &str) -> Option<&str> {
        let value = match label {
            "machine" => Some(&self.machine),
            "zone" => Some(&self.zone),
            _ => None,
        };
        value.filter(|v| !v.is_empty()).or_else(|| self.labels.get(label)).map(String::as_str)
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
    /// Why there was no more than one member to choose from; `None` if there could have been.
    pub sent_once: Option<SentOnce>,
}

/// One copy of a request, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// From 1, in the order they were started.
    pub number: u32,
    /// Name of the member it was sent to.
    pub node: String,
    /// From the call to its start.
    pub started_after: Duration,
    /// How long it took, or until it was cancelled: what it cost its member, as far as can be seen from
    /// here.
    pub took: Duration,
    /// How far it got.
    pub phase: Phase,
    /// What became of it.
    pub ending: Ending,
    pub(crate) told: Told,
}

impl Attempt {
    /// What its member said that it cost there, if nobody waited for its end. Members that are nodes of ours say
    /// it a moment after the call has its answer; `None` until then, and for all others.
    pub fn cost(&self) -> Option<Cost> {
        self.told.0.told()
    }
}

/// Where to hear of an attempt's end after that of its call.
#[derive(Clone)]
pub(crate) struct Told(pub(crate) Arc<Progress>);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.told().fmt(f)
    }
}

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        self.0.told() == other.0.told()
    }
}

impl Eq for Told {}

/// How an attempt ended that nobody waited for, and what it cost its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cost {
    /// How far it had come: never begun, running, finished.
    pub fate: Fate,
    /// Since its work began, if it did.
    pub wall: Option<Duration>,
    /// Of that, what it was worked on.
    pub busy: Option<Duration>,
}

impl Cost {
    /// From the trailer of an attempt that was withdrawn.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let fate = match parts.next()? {
            "queued" => Fate::Queued,
            "running" => Fate::Running,
            "finished" => Fate::Finished,
            _ => return None,
        };
        let mut cost = Self { fate, wall: None, busy: None };
        for part in parts {
            let (key, micros) = part.split_once('=')?;
            let time = Some(Duration::from_micros(micros.parse().ok()?));
            match key {
                "wall" => cost.wall = time,
                "busy" => cost.busy = time,
                _ => {}
            }
        }
        Some(cost)
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// Its reply is the one the caller got.
    Won,
    /// It answered well, and another's reply was given to the caller (a quorum).
    Answered,
    /// It failed, with this code.
    Failed(Code),
    /// It was withdrawn, because another member had begun the work.
    Withdrawn,
    /// It was cancelled, because another one won.
    Cancelled,
}

/// All attempts of a call, in the extensions of its response.
#[derive(Clone, Debug)]
pub(crate) struct Attempts(pub(crate) Arc<[Attempt]>);

/// What a reply that came through [`Replicated`](crate::Replicated) can say of itself.
pub trait ResponseExt {
    /// Who won. `None` if the response did not come through a replicated channel.
    fn winner(&self) -> Option<&Winner>;

    /// Every attempt of the call, the winning one included. Empty if the response did not come through a
    /// replicated channel.
    fn attempts(&self) -> &[Attempt];
}

impl<T> ResponseExt for tonic::Response<T> {
    fn winner(&self) -> Option<&Winner> {
        self.extensions().get()
    }

    fn attempts(&self) -> &[Attempt] {
        self.extensions().get::<Attempts>().map_or(&[], |attempts| &attempts.0)
    }
}

impl<T> ResponseExt for http::Response<T> {
    fn winner(&self) -> Option<&Winner> {
        self.extensions().get()
    }

    fn attempts(&self) -> &[Attempt] {
        self.extensions().get::<Attempts>().map_or(&[], |attempts| &attempts.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_read_as_nodes_write_it_and_nothing_else_is_one() {
        let read = Cost::read("running;wall=1234;busy=56").unwrap();
        let micros = |n| Some(Duration::from_micros(n));
        assert_eq!((read.fate, read.wall, read.busy), (Fate::Running, micros(1_234), micros(56)));
        assert_eq!(Cost::read("queued"), Some(Cost { fate: Fate::Queued, wall: None, busy: None }));
        assert_eq!(Cost::read("finished;wall=1;later=2").map(|cost| cost.wall), Some(micros(1)));
        for bad in ["", "gone", "running;wall", "running;wall=-1", "running;wall=1e3"] {
            assert_eq!(Cost::read(bad), None, "{bad}");
        }
    }
}
