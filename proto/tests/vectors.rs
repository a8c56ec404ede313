//! The test vectors that implementations in other languages can use hold for ours.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use wardkeep_proto::{
    error::{exact_hash, group_hash},
    v1,
};

fn vectors(of: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("hashes.json")).unwrap();
    let vectors = all[of].as_array().unwrap().clone();
    assert!(vectors.len() >= 5);
    vectors
}

fn text(vector: &Value, key: &str) -> String {
    vector[key].as_str().unwrap_or_default().to_owned()
}

#[test]
fn group_hashes_are_those_of_the_vectors() {
    for vector in vectors("group_hash") {
        let site = vector["site"].as_str().map(|file| v1::Site { file: file.to_owned(), line: 1 });
        let error = v1::Error {
            domain: text(&vector, "domain"),
            kind: text(&vector, "kind"),
            hops: vec![v1::Hop { sites: site.into_iter().collect(), ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(group_hash(&error), text(&vector, "group_hash"), "{vector}");
    }
}

#[test]
fn exact_hashes_are_those_of_the_vectors() {
    for vector in vectors("exact_hash") {
        let frames = vector["frames"].as_array().unwrap().iter().map(|frame| {
            u64::from_str_radix(frame.as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap()
        });
        let build_id = text(&vector, "build_id");
        let hop = v1::Hop { frames: frames.collect(), build_id, ..Default::default() };
        let error = v1::Error { hops: vec![hop], ..Default::default() };
        assert_eq!(exact_hash(&error), text(&vector, "exact_hash"), "{vector}");
    }
}
