//! The test vectors that implementations in other languages can use hold for ours.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use wardkeep_proto::{error::group_hash, v1};

#[test]
fn group_hashes_are_those_of_the_vectors() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("group_hash.json")).unwrap();
    assert!(vectors.len() >= 5);
    for vector in vectors {
        let text = |key: &str| vector[key].as_str().unwrap_or_default().to_owned();
        let site = vector["site"].as_str().map(|file| v1::Site { file: file.to_owned(), line: 1 });
        let error = v1::Error {
            domain: text("domain"),
            kind: text("kind"),
            hops: vec![v1::Hop { sites: site.into_iter().collect(), ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(group_hash(&error), text("group_hash"), "{vector}");
    }
}
