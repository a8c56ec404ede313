//! What the node's descriptors say of methods: do they stream, may they be repeated.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};
use wardkeep_proto::Error;

use crate::error::NodeError;

/// A method as its descriptor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) streams: bool,
    pub(crate) no_side_effects: bool,
}

/// By path: `/package.Service/Method`.
#[derive(Debug, Default)]
pub(crate) struct Methods(BTreeMap<String, Shape>);

impl Methods {
    /// Of encoded `FileDescriptorSet`s.
    ///
    /// # Errors
    /// One is none.
    pub(crate) fn read(descriptors: &[&[u8]]) -> Result<Self, Error> {
        let mut methods = BTreeMap::new();
        for encoded in descriptors {
            let set = FileDescriptorSet::decode(*encoded).map_err(|e| {
                NodeError::Misconfigured(format!("a descriptor set given to the node cannot be read: {e}"))
            })?;
            for (file, service) in
                set.file.iter().flat_map(|file| file.service.iter().map(move |s| (file, s)))
            {
                let dot = if file.package().is_empty() { "" } else { "." };
                for method in &service.method {
                    let level = method.options.as_ref().map(|o| o.idempotency_level()).unwrap_or_default();
                    let shape = Shape {
                        streams: method.client_streaming() || method.server_streaming(),
                        no_side_effects: level == IdempotencyLevel::NoSideEffects,
                    };
                    let path = format!("/{}{dot}{}/{}", file.package(), service.name(), method.name());
                    methods.insert(path, shape);
                }
            }
        }
        Ok(Self(methods))
    }

    /// The methods of a service, by path.
    pub(crate) fn of(&self, service: &str) -> impl Iterator<Item = (&str, Shape)> {
        let prefix = format!("/{service}/");
        let all = self.0.range(prefix.clone()..).map(|(path, shape)| (path.as_str(), *shape));
        all.take_while(move |(path, _)| path.starts_with(&prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_by_their_service() {
        let methods = Methods::read(&[wardkeep_proto::FILE_DESCRIPTOR_SET]).unwrap();
        let directory: Vec<_> = methods.of("wardkeep.v1.Directory").collect();
        let wanted = Shape { streams: true, no_side_effects: true };
        assert_eq!(directory, [("/wardkeep.v1.Directory/Watch", wanted)]);
        let start =
            methods.of("wardkeep.v1.Operator").find(|(path, _)| path.ends_with("/StartWard")).unwrap();
        assert!(!start.1.streams);
        assert_eq!(methods.of("wardkeep.v1.Direct").count(), 0);
        assert!(Methods::read(&[&[0xff, 0xff]]).is_err());
    }
}
