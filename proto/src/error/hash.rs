//! Which failures are the same.

use sha2::{Digest as _, Sha256};

use crate::v1;

/// Prefix of group hashes made by this version of the rule.
pub const GROUP_HASH_VERSION: &str = "g1";

/// Prefix of exact hashes made by this version of the rule.
pub const EXACT_HASH_VERSION: &str = "e1";

/// The hash that the same failure has in any build and on any machine: `g1-` and the first 16 hex
/// digits of SHA-256 over domain, kind and the logical site where it arose, each followed by a zero
/// byte. Line numbers, IDs, times and texts do not take part.
pub fn group_hash(error: &v1::Error) -> String {
    let origin = error.hops.last().and_then(|hop| hop.sites.first()).map(|site| site.file.as_str());
    let mut hasher = Sha256::new();
    for part in [error.domain.as_str(), error.kind.as_str()].into_iter().chain(origin) {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    short(GROUP_HASH_VERSION, hasher)
}

/// The hash that the same failure at the same place of the same build has: `e1-` and the first 16 hex
/// digits of SHA-256 over the build ID and a zero byte, followed by the frame addresses where it arose,
/// innermost first, eight bytes each, little-endian. Empty if no addresses are known.
pub fn exact_hash(error: &v1::Error) -> String {
    let Some(hop) = error.hops.last().filter(|hop| !hop.frames.is_empty()) else { return String::new() };
    let mut hasher = Sha256::new();
    hasher.update(hop.build_id.as_bytes());
    hasher.update([0]);
    for frame in &hop.frames {
        hasher.update(frame.to_le_bytes());
    }
    short(EXACT_HASH_VERSION, hasher)
}

fn short(version: &str, hasher: Sha256) -> String {
    format!("{version}-{}", hex(&hasher.finalize()[..8]))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// A source path without what differs between machines and releases: it begins at the crate's
/// folder, without the crate's version.
///
/// ```
/// use wardkeep_proto::error::logical_site;
/// assert_eq!(logical_site("/home/a/.cargo/registry/src/index/h2-0.4.20/src/server.rs"), "h2/src/server.rs");
/// assert_eq!(logical_site("node/src/host.rs"), "node/src/host.rs");
/// ```
pub fn logical_site(file: &str) -> String {
    let parts: Vec<&str> = file.split(['/', '\\']).filter(|p| !p.is_empty()).collect();
    let root = parts.iter().rposition(|p| matches!(*p, "src" | "tests" | "examples" | "benches"));
    let Some(krate) = root.and_then(|i| i.checked_sub(1)) else {
        return parts.join("/");
    };
    let name = match parts[krate].rsplit_once('-') {
        Some((name, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => name,
        _ => parts[krate],
    };
    format!("{name}/{}", parts[krate + 1..].join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: &str, file: &str, line: u32) -> v1::Error {
        let sites = vec![v1::Site { file: logical_site(file), line }];
        v1::Error {
            domain: "d".into(),
            kind: kind.into(),
            hops: vec![v1::Hop { sites, ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn the_same_failure_has_the_same_hash_on_another_machine_and_line() {
        let here = group_hash(&error("K", "/home/a/.cargo/registry/src/x/h2-0.4.20/src/a.rs", 10));
        let there = group_hash(&error("K", "/opt/b/registry/src/y/h2-0.4.21/src/a.rs", 12));
        assert_eq!(here, there);
        assert!(here.starts_with("g1-"));
        assert_eq!(here.len(), 19);
    }

    #[test]
    fn another_kind_or_file_has_another_hash() {
        let base = group_hash(&error("K", "node/src/a.rs", 1));
        assert_ne!(base, group_hash(&error("L", "node/src/a.rs", 1)));
        assert_ne!(base, group_hash(&error("K", "node/src/b.rs", 1)));
    }
}
