//! What is known of each method: may it be repeated, does it stream.

use std::{collections::HashMap, time::Duration};

use prost::Message as _;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};

use crate::{
    error::ConfigError,
    policy::{Codes, Policy},
    service_config::{MethodConfig, Scope},
};

/// How far a reply is read before it counts as a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Not at all: what the member sends goes to the caller as it comes.
    Pass,
    /// To its trailers: unary.
    Whole,
    /// To the end of its first message: server-streaming.
    FirstMessage,
    /// To its trailers, or to where a second message begins: not known to be either.
    Unknown,
}

/// Why a call was sent once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SentOnce {
    /// Its method does not say that it may be repeated, nor did the caller.
    NotIdempotent,
    /// Its requests are a stream, which cannot be sent twice.
    ClientStreaming,
    /// Its policy wants no copies.
    Policy,
    /// The members are too busy for copies.
    Saturated,
}

/// How a call is carried out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Why it is sent to one member only; `None` if it may go to several. Its request is then read whole
    /// before it is sent.
    pub(crate) once: Option<SentOnce>,
    pub(crate) policy: Policy,
    /// Codes that end a race, if the method has its own.
    pub(crate) fatal: Option<Codes>,
    /// The longest a call may take.
    pub(crate) timeout: Option<Duration>,
    pub(crate) reading: Reading,
    /// Known to answer with one message.
    pub(crate) unary: bool,
}

impl Plan {
    pub(crate) fn repeatable(&self) -> bool {
        self.once.is_none()
    }

    /// A request sent once, body passed through.
    fn once(why: SentOnce) -> Self {
        Self {
            once: Some(why),
            policy: Policy::Single,
            fatal: None,
            timeout: None,
            reading: Reading::Pass,
            unary: false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    idempotent: bool,
    client_streaming: bool,
    server_streaming: bool,
}

/// Known methods and what the caller said of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Methods {
    shapes: HashMap<String, Shape>,
    policies: HashMap<String, Policy>,
    config: HashMap<Scope, MethodConfig>,
    pub(crate) default: Policy,
    pub(crate) assume_idempotent: bool,
}

impl Methods {
    /// Adds the methods of an encoded `FileDescriptorSet`.
    pub(crate) fn read(&mut self, descriptors: &[u8]) -> Result<(), ConfigError> {
        let set = FileDescriptorSet::decode(descriptors).map_err(ConfigError::Descriptors)?;
        for file in &set.file {
            for service in &file.service {
                let prefix = match file.package() {
                    "" => service.name().to_owned(),
                    package => format!("{package}.{}", service.name()),
                };
                for method in &service.method {
                    let level = method.options.as_ref().map(|o| o.idempotency_level()).unwrap_or_default();
                    let shape = Shape {
                        idempotent: level != IdempotencyLevel::IdempotencyUnknown,
                        client_streaming: method.client_streaming(),
                        server_streaming: method.server_streaming(),
                    };
                    self.shapes.insert(format!("/{prefix}/{}", method.name()), shape);
                }
            }
        }
        Ok(())
    }

    /// Declares a method idempotent, with this policy.
    pub(crate) fn declare(&mut self, path: &str, policy: Policy) {
        self.policies.insert(path.to_owned(), policy);
    }

    /// Adds what a service config says. A method that it gives a policy by name is declared idempotent; a
    /// policy for a whole service, or for all, is one for those of its methods that may be repeated.
    pub(crate) fn configure(&mut self, config: Vec<(Scope, MethodConfig)>) {
        self.config.extend(config);
    }

    /// All policies that were set.
    pub(crate) fn policies(&self) -> impl Iterator<Item = Policy> + '_ {
        self.policies.values().copied().chain([self.default])
    }

    /// Methods that were given a policy by name, though their requests are streams.
    pub(crate) fn in_vain(&self) -> impl Iterator<Item = &str> {
        let named = self.config.iter().filter_map(|(scope, method)| match scope {
            Scope::Method(path) if method.policy.is_some() => Some(path),
            _ => None,
        });
        let streams = |path: &&String| self.shapes.get(*path).is_some_and(|shape| shape.client_streaming);
        self.policies.keys().chain(named).filter(streams).map(String::as_str)
    }

    /// How a call of this method is carried out.
    pub(crate) fn plan(&self, path: &str) -> Plan {
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let of = |scope| self.config.get(&scope);
        let exact = of(Scope::Method(path.to_owned()));
        let wider = exact.or_else(|| of(Scope::Service(service.to_owned()))).or_else(|| of(Scope::All));
        let wider = wider.copied().unwrap_or_default();
        let declared = self.policies.get(path).copied();
        let named = declared.is_some() || exact.is_some_and(|method| method.policy.is_some());
        let shape = self.shapes.get(path);
        let unary = shape.is_some_and(|shape| !shape.server_streaming);
        let once = |why| Plan { unary, timeout: wider.timeout, ..Plan::once(why) };
        let reading = match shape {
            Some(shape) if shape.client_streaming => return once(SentOnce::ClientStreaming),
            Some(shape) if shape.server_streaming => Reading::FirstMessage,
            Some(_) => Reading::Whole,
            None => Reading::Unknown,
        };
        let idempotent = named || shape.map_or(self.assume_idempotent, |shape| shape.idempotent);
        if !idempotent {
            return once(SentOnce::NotIdempotent);
        }
        let (policy, fatal) = match (declared, wider.policy) {
            (Some(policy), _) => (policy, None),
            (None, Some((policy, fatal))) => (policy, Some(fatal)),
            (None, None) => (self.default, None),
        };
        let reading = if matches!(policy, Policy::Quorum { .. }) { Reading::Whole } else { reading };
        Plan { once: None, policy, fatal, timeout: wider.timeout, reading, unary }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{FATAL, HedgeDelay};

    const CLIENT_STREAM: &str = "/wardkeep.v1.Stewardship/Attend";
    const UNSAFE: &str = "/wardkeep.v1.Operator/RestartWard";
    const SAFE: &str = "/wardkeep.v1.Operator/GetFleet";

    fn known() -> Methods {
        let mut methods = Methods::default();
        methods.read(wardkeep_proto::FILE_DESCRIPTOR_SET).unwrap();
        methods
    }

    fn unsafe_unary() -> Plan {
        Plan { unary: true, ..Plan::once(SentOnce::NotIdempotent) }
    }

    fn hedging() -> MethodConfig {
        let policy = Policy::Hedged { delay: HedgeDelay::Fixed(Duration::ZERO), max_attempts: 2 };
        MethodConfig { policy: Some((policy, FATAL)), timeout: Some(Duration::from_secs(1)) }
    }

    #[test]
    fn descriptors_say_what_may_be_repeated() {
        let methods = known();
        let unary = methods.plan(SAFE);
        assert!(unary.repeatable() && unary.unary);
        assert_eq!((unary.policy, unary.reading), (Policy::All(2), Reading::Whole));
        let stream = methods.plan("/wardkeep.v1.Directory/Watch");
        assert_eq!(stream.reading, Reading::FirstMessage);
        assert_eq!(methods.plan(UNSAFE), unsafe_unary());
    }

    #[test]
    fn client_streams_are_sent_once_whatever_is_declared() {
        let mut methods = known();
        methods.assume_idempotent = true;
        methods.declare(CLIENT_STREAM, Policy::All(3));
        methods.configure(vec![(Scope::All, hedging())]);
        assert_eq!(methods.plan(CLIENT_STREAM).once, Some(SentOnce::ClientStreaming));
        assert_eq!(methods.in_vain().collect::<Vec<_>>(), [CLIENT_STREAM]);
    }

    #[test]
    fn unknown_methods_are_sent_once_unless_the_caller_says_otherwise() {
        let mut methods = Methods::default();
        assert_eq!(methods.plan("/a.B/C"), Plan::once(SentOnce::NotIdempotent));
        methods.declare("/a.B/C", Policy::All(3));
        let declared = methods.plan("/a.B/C");
        assert!(declared.repeatable() && !declared.unary);
        assert_eq!((declared.policy, declared.reading), (Policy::All(3), Reading::Unknown));
        assert!(!methods.plan("/a.B/D").repeatable());
        methods.assume_idempotent = true;
        assert!(methods.plan("/a.B/D").repeatable());
    }

    #[test]
    fn known_unsafe_methods_stay_so_when_unknown_ones_are_assumed_idempotent() {
        let mut methods = known();
        methods.assume_idempotent = true;
        assert_eq!(methods.plan(UNSAFE), unsafe_unary());
    }

    #[test]
    fn a_config_for_all_is_for_what_may_be_repeated_and_one_by_name_says_that_it_may() {
        let mut methods = known();
        methods.configure(vec![(Scope::All, hedging())]);
        assert_eq!(methods.plan(UNSAFE).once, Some(SentOnce::NotIdempotent));
        assert_eq!(methods.plan(UNSAFE).timeout, hedging().timeout);
        assert_eq!(methods.plan(SAFE).policy, hedging().policy.unwrap().0);
        methods.configure(vec![(Scope::Method(UNSAFE.to_owned()), hedging())]);
        assert!(methods.plan(UNSAFE).repeatable());
        // What the code says comes before what the config says.
        methods.declare(SAFE, Policy::Single);
        assert_eq!((methods.plan(SAFE).policy, methods.plan(SAFE).fatal), (Policy::Single, None));
    }

    #[test]
    fn replies_of_a_quorum_are_read_to_their_end() {
        let mut methods = known();
        methods.declare("/wardkeep.v1.Directory/Watch", Policy::Quorum { equal: 2, of: 3 });
        assert_eq!(methods.plan("/wardkeep.v1.Directory/Watch").reading, Reading::Whole);
    }
}
