//! What the documentation shows is true.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use wardkeep::config::{NodeFile, SupervisorFile};

#[tokio::test]
async fn the_example_of_process_wards_makes_a_node() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wards.md")).unwrap();
    let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let file: NodeFile = toml::from_str(example).unwrap();
    assert_eq!(file.ward.len(), 2);
    let mut node = wardkeep_node::Node::builder("n");
    for ward in &file.ward {
        node = node.ward(ward.ward().unwrap());
    }
    drop(node.bind("127.0.0.1:0").await.unwrap());
}

#[test]
fn the_example_of_nodes_to_launch_is_read() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let text = std::fs::read_to_string(file).unwrap();
    let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let file: SupervisorFile = toml::from_str(example).unwrap();
    let words: Vec<_> = file.launches().unwrap().iter().map(|launch| launch.how.word()).collect();
    assert_eq!(words, ["process", "command", "docker"]);
}
