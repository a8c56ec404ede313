//! What is known of each method: may it be repeated, does it stream.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};

use crate::{error::ConfigError, policy::Policy};

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

/// How a call is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// May be sent to several members. Its request is then read whole before it is sent.
    pub(crate) repeatable: bool,
    /// Members asked at once.
    pub(crate) width: usize,
    pub(crate) reading: Reading,
    /// Known to answer with one message.
    pub(crate) unary: bool,
}

/// A request sent once, body passed through.
const ONCE: Plan = Plan { repeatable: false, width: 1, reading: Reading::Pass, unary: false };

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

    /// How a call of this method is carried out.
    pub(crate) fn plan(&self, path: &str) -> Plan {
        let shape = self.shapes.get(path);
        let declared = self.policies.get(path);
        let once = Plan { unary: shape.is_some_and(|shape| !shape.server_streaming), ..ONCE };
        let reading = match shape {
            Some(shape) if shape.client_streaming => return once,
            Some(shape) if shape.server_streaming => Reading::FirstMessage,
            Some(_) => Reading::Whole,
            None => Reading::Unknown,
        };
        let idempotent = match (declared, shape) {
            (Some(_), _) => true,
            (None, Some(shape)) => shape.idempotent,
            (None, None) => self.assume_idempotent,
        };
        if !idempotent {
            return once;
        }
        let width = declared.copied().unwrap_or(self.default).width();
        Plan { repeatable: true, width, reading, unary: once.unary }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Methods {
        let mut methods = Methods::default();
        methods.read(wardkeep_proto::FILE_DESCRIPTOR_SET).unwrap();
        methods
    }

    #[test]
    fn descriptors_say_what_may_be_repeated() {
        let methods = known();
        let unary = methods.plan("/wardkeep.v1.Operator/GetFleet");
        assert_eq!(unary, Plan { repeatable: true, width: 2, reading: Reading::Whole, unary: true });
        let stream = methods.plan("/wardkeep.v1.Directory/Watch");
        assert_eq!(stream.reading, Reading::FirstMessage);
        assert_eq!(methods.plan("/wardkeep.v1.Operator/RestartWard"), Plan { unary: true, ..ONCE });
    }

    #[test]
    fn client_streams_are_sent_once_whatever_is_declared() {
        let mut methods = known();
        methods.assume_idempotent = true;
        methods.declare("/wardkeep.v1.Stewardship/Attend", Policy::All(3));
        assert_eq!(methods.plan("/wardkeep.v1.Stewardship/Attend"), ONCE);
    }

    #[test]
    fn unknown_methods_are_sent_once_unless_the_caller_says_otherwise() {
        let mut methods = Methods::default();
        assert_eq!(methods.plan("/a.B/C"), ONCE);
        methods.declare("/a.B/C", Policy::All(3));
        assert_eq!(
            methods.plan("/a.B/C"),
            Plan { repeatable: true, width: 3, reading: Reading::Unknown, unary: false }
        );
        assert_eq!(methods.plan("/a.B/D"), ONCE);
        methods.assume_idempotent = true;
        assert!(methods.plan("/a.B/D").repeatable);
    }

    #[test]
    fn known_unsafe_methods_stay_so_when_unknown_ones_are_assumed_idempotent() {
        let mut methods = known();
        methods.assume_idempotent = true;
        assert_eq!(methods.plan("/wardkeep.v1.Operator/RestartWard"), Plan { unary: true, ..ONCE });
    }
}
