//! `wardkeep error`: which failures there are, and one of them whole.

mod cli_support;

use cli_support::*;
use wardkeep_proto::v1::{Cause, Error, ErrorGroup, ErrorList, Hop, Site};

fn failure() -> Error {
    let hop = |node: &str, file: &str| Hop {
        machine: "box1".into(),
        node: node.into(),
        ward: if node.is_empty() { String::new() } else { "search".into() },
        method: "/my.Search/Find".into(),
        sites: vec![Site { file: file.into(), line: 7 }],
        ..Default::default()
    };
    Error {
        version: 1,
        id: "01a20a42-abf3-7511-926f-dcb7e6f24e9e".into(),
        machine: "box1".into(),
        node: "sqlite".into(),
        ward: "search".into(),
        incarnation: 3,
        code: 14,
        domain: "search.example.com".into(),
        kind: "INDEX_LOST".into(),
        what: "the index is gone".into(),
        user_message: "The search is down. Please try again later.".into(),
        transitory: true,
        hops: vec![hop("", ""), hop("sqlite", "search/src/index.rs")],
        causes: vec![Cause { what: "No such file or directory".into() }],
        group_hash: "g1-0123456789abcdef".into(),
        ..Default::default()
    }
}

async fn cluster() -> Cluster {
    let group = ErrorGroup {
        group_hash: "g1-0123456789abcdef".into(),
        domain: "search.example.com".into(),
        kind: "INDEX_LOST".into(),
        count: 12,
        last_id: failure().id,
        last_what: "the index is gone".into(),
        places: vec!["scan/search".into(), "sqlite/search".into()],
        ..Default::default()
    };
    let errors = ErrorList { groups: vec![group], dropped: 0 };
    Cluster::start(Script { fleet: fleet(), errors, error: Some(failure()), ..Default::default() }).await
}

#[tokio::test]
async fn failures_are_listed_by_what_is_the_same() {
    let cluster = cluster().await;
    let ran = cluster.run(&["error", "ls"]).await;
    ran.ends_with(0);
    assert!(ran.stdout.contains("INDEX_LOST") && ran.stdout.contains("scan/search +1"), "{}", ran.stdout);
    let document = cluster.run(&["error", "ls", "-o", "json"]).await.json();
    assert_eq!(document["schema"], "wardkeep.errors/v1");
    assert_eq!(document["groups"][0]["count"], 12);
}

#[tokio::test]
async fn one_error_is_shown_whole_for_a_person_and_for_a_program() {
    let cluster = cluster().await;
    let ran = cluster.run(&["error", "show", "01a20a42"]).await;
    ran.ends_with(0);
    for text in [
        "\"The search is down. Please try again later.\"",
        "No such file or directory",
        "search.example.com/INDEX_LOST, UNAVAILABLE",
        "machine box1, node sqlite, ward search incarnation 3",
        "(caller)",
        "sqlite/search",
        "search/src/index.rs:7",
    ] {
        assert!(ran.stdout.contains(text), "{text} is not in\n{}", ran.stdout);
    }
    let document = cluster.run(&["error", "show", "01a20a42", "-o", "json"]).await.json();
    assert_eq!(document["schema"], "wardkeep.error-record/v1");
    assert_eq!(document["error"]["hops"][1]["node"], "sqlite");
    assert_eq!(document["error"]["retry_after_ms"], 0);
}

#[tokio::test]
async fn an_unknown_id_is_4() {
    cluster().await.run(&["error", "show", "0000"]).await.ends_with(4);
}

/// The record of an error that this very process made.
fn made_here() -> Error {
    Error { version: 1, ..wardkeep_proto::error::Bug::because("a bug of this test").into_proto() }
}

async fn cluster_with(error: Error) -> Cluster {
    Cluster::start(Script { fleet: fleet(), error: Some(error), ..Default::default() }).await
}

#[tokio::test]
async fn the_functions_where_it_arose_are_shown_without_those_of_the_runtime() {
    let mut error = made_here();
    let hop = error.hops.last_mut().unwrap();
    hop.functions = vec![String::new(); hop.frames.len()];
    hop.functions[0] = "search::index::open (search/src/index.rs:7)".into();
    hop.functions[1] = "tokio::runtime::poll (tokio/src/runtime/mod.rs:9)".into();
    let hidden = hop.frames.len() - 1;
    let ran = cluster_with(error).await.run(&["error", "show", "01"]).await;
    ran.ends_with(0);
    assert!(ran.stdout.contains("search::index::open (search/src/index.rs:7)"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("tokio::runtime::poll"), "{}", ran.stdout);
    assert!(ran.stdout.contains(&format!("({hidden} frames of the runtime")), "{}", ran.stdout);
}

#[tokio::test]
async fn a_stack_without_names_is_named_by_the_unstripped_file() {
    let cluster = cluster_with(made_here()).await;
    let shown = cluster.run(&["error", "show", "01"]).await;
    shown.ends_with(0);
    assert!(shown.stdout.contains("names: wardkeep error symbolize"), "{}", shown.stdout);

    let this = std::env::current_exe().unwrap();
    let ran = cluster.run(&["error", "symbolize", "01", "--exe", this.to_str().unwrap()]).await;
    ran.ends_with(0);
    assert!(ran.stdout.contains("cli_error::made_here"), "{}", ran.stdout);
    assert!(ran.stdout.contains("supervisor/tests/cli_error.rs:"), "{}", ran.stdout);
    let named =
        cluster.run(&["error", "symbolize", "01", "--exe", this.to_str().unwrap(), "-o", "json"]).await;
    assert_eq!(named.json()["schema"], "wardkeep.frames/v1");
}

#[tokio::test]
async fn a_file_of_another_build_or_none_at_all_is_refused_with_one_line() {
    let cluster = cluster_with(made_here()).await;
    let other = env!("CARGO_BIN_EXE_wardkeep");
    let ran = cluster.run(&["error", "symbolize", "01", "--exe", other]).await;
    ran.ends_with(2);
    assert!(ran.stderr.contains("give the unstripped file of that build"), "{}", ran.stderr);
    for no_program in ["/no/such/file", "/proc/self/maps"] {
        let ran = cluster.run(&["error", "symbolize", "01", "--exe", no_program]).await;
        ran.ends_with(2);
        assert!(ran.stderr.contains(&format!("{no_program} cannot be read")), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1);
    }
}
