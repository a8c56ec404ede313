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

/// A source path without what differs between machines, releases and ways to fetch a crate: it begins at
/// the crate's folder, without the crate's version. Of a package at the root of its workspace the compiler
/// tells no folder: its paths begin at `src`.
///
/// ```
/// use wardkeep_proto::error::logical_site;
/// assert_eq!(logical_site("/home/a/.cargo/registry/src/index/h2-0.4.20/src/server.rs"), "h2/src/server.rs");
/// assert_eq!(logical_site("node/src/host.rs"), "node/src/host.rs");
/// ```
pub fn logical_site(file: &str) -> String {
    let mut parts: Vec<&str> = file.split(['/', '\\']).filter(|p| !p.is_empty()).collect();
    // A crate at the root of a git repository is named by the repository, not by its revision.
    if let Some(at) = parts.iter().rposition(|p| *p == "checkouts").filter(|at| parts.len() > at + 3) {
        let repository = parts[at + 1].rsplit_once('-').map_or(parts[at + 1], |(name, _)| name);
        parts.drain(..at + 2);
        parts[0] = repository;
    }
    // Generated code lies in a folder of its crate's build: `build/CRATE-HASH/out/file.rs`.
    if let Some(at) =
        parts.iter().rposition(|p| *p == "out").filter(|at| *at >= 2 && parts[at - 2] == "build")
    {
        let krate = parts[at - 1].rsplit_once('-').map_or(parts[at - 1], |(name, _)| name);
        return format!("{krate}/{}", parts[at..].join("/"));
    }
    let before =
        |roots: &[&str]| parts.iter().rposition(|p| roots.contains(p)).and_then(|i| i.checked_sub(1));
    let Some(krate) = before(&["src"]).or_else(|| before(&["tests", "examples", "benches"])) else {
        return parts.join("/");
    };
    let name = match without_version(parts[krate]) {
        // Our own folders are not called as our published crates are.
        "wardkeep" => "supervisor",
        name => name.strip_prefix("wardkeep-").unwrap_or(name),
    };
    format!("{name}/{}", parts[krate + 1..].join("/"))
}

/// `h2-0.4.20-rc.1` -> `h2`.
fn without_version(name: &str) -> &str {
    let is_version = |text: &str| {
        let mut parts = text.splitn(3, '.');
        let mut number =
            || parts.next().is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        number() && number() && parts.next().is_some_and(|p| p.starts_with(|c: char| c.is_ascii_digit()))
    };
    let cut = name.match_indices('-').find(|(at, _)| is_version(&name[at + 1..]));
    cut.map_or(name, |(at, _)| &name[..at])
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
    fn a_crate_has_one_name_however_it_was_fetched() {
        for (file, site) in [
            ("/c/registry/src/x/h2-0.4.20-rc.1/src/a.rs", "h2/src/a.rs"),
            ("/c/registry/src/x/foo-2d-1.0.0+b-1/src/a.rs", "foo-2d/src/a.rs"),
            ("/c/registry/src/x/wardkeep-node-0.1.0/src/host.rs", "node/src/host.rs"),
            ("/c/registry/src/x/wardkeep-0.1.0/src/serve.rs", "supervisor/src/serve.rs"),
            ("/c/git/checkouts/shelf-0123456789abcdef/1a2b3c4/src/lib.rs", "shelf/src/lib.rs"),
            ("/c/git/checkouts/ward-keep-0123456789abcdef/1a2b3c4/src/lib.rs", "ward-keep/src/lib.rs"),
            ("/c/git/checkouts/many-0123456789abcdef/1a2b3c4/one/src/lib.rs", "one/src/lib.rs"),
            ("node/src/tests/mod.rs", "node/src/tests/mod.rs"),
            ("/src/app/tests/it.rs", "app/tests/it.rs"),
            ("C:\\work\\node\\src\\host.rs", "node/src/host.rs"),
            ("/w/target/debug/build/my-shelf-83edf8bd74bd64f2/out/shelf.v1.rs", "my-shelf/out/shelf.v1.rs"),
            ("src/main.rs", "src/main.rs"),
            ("", ""),
        ] {
            assert_eq!(logical_site(file), site, "{file}");
        }
    }

    #[test]
    fn another_kind_or_file_has_another_hash() {
        let base = group_hash(&error("K", "node/src/a.rs", 1));
        assert_ne!(base, group_hash(&error("L", "node/src/a.rs", 1)));
        assert_ne!(base, group_hash(&error("K", "node/src/b.rs", 1)));
    }
}
