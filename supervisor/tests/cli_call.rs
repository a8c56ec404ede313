//! `call` through reflection, and the `health` probe.

mod cli_support;

use cli_support::*;
use wardkeep_proto::v1::{DirectoryView, Member, Offer};

const CHECK: &str = "grpc.health.v1.Health/Check";

#[tokio::test]
async fn any_method_can_be_called_straight_at_an_address() {
    for v1 in [true, false] {
        let server = Reflecting::start(v1).await;
        let ran = run(&["call", CHECK, r#"{"service": ""}"#, "--address", &server.address]).await;
        assert_eq!(ran.ends_with(0).stdout, "{\"status\":\"SERVING\"}\n");
        assert!(ran.complaint().starts_with("answered by "), "{ran:?}");
        assert!(ran.complaint().ends_with("(1 attempt)"), "{ran:?}");
    }
}

#[tokio::test]
async fn streams_print_one_document_per_line() {
    let server = Reflecting::start(true).await;
    let ran =
        run(&["call", "wardkeep.v1.Operator/WatchEvents", r#"{"limit": 2}"#, "--address", &server.address])
            .await;
    let sequences: Vec<_> = ran
        .ends_with(0)
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].clone())
        .collect();
    assert_eq!(sequences, ["2", "3"]);
}

#[tokio::test]
async fn json_that_does_not_fit_is_one_line_with_the_field_and_the_place() {
    let server = Reflecting::start(true).await;
    for (json, told) in [
        (r#"{"servce": ""}"#, "unrecognized field name 'servce' at line 1 column 9"),
        (r#"{"service": 5}"#, "at line 1 column 13"),
        (r#"{"service": "#, "EOF while parsing"),
        (r#"{} x"#, "trailing characters"),
    ] {
        let ran = run(&["call", CHECK, json, "--address", &server.address]).await;
        ran.ends_with(2);
        assert!(ran.complaint().contains(told), "{ran:?}");
        assert!(ran.complaint().ends_with("its fields are: service (string)"), "{ran:?}");
    }
}

#[tokio::test]
async fn what_is_not_offered_lists_what_is() {
    let server = Reflecting::start(true).await;
    let call = async |method: &'static str| run(&["call", method, "--address", &server.address]).await;
    let ran = call("grpc.health.v1.Helth/Check").await;
    assert!(ran.ends_with(4).complaint().contains(r#"did you mean "grpc.health.v1.Health"?"#), "{ran:?}");
    let ran = call("grpc.health.v1.Health/Frob").await;
    assert!(
        ran.ends_with(4).complaint().ends_with("there are: Check, List, Watch")
            || ran.complaint().ends_with("there are: Check, Watch"),
        "{ran:?}"
    );
    let ran = call("nonsense").await;
    assert!(ran.ends_with(2).complaint().contains("want SERVICE/METHOD"), "{ran:?}");
    let ran = run(&["call", CHECK, "--address", &nowhere().await]).await;
    assert!(ran.ends_with(5).complaint().contains("onnection refused"), "{ran:?}");
}

#[tokio::test]
async fn what_may_not_be_repeated_is_not_replicated_unless_told_so() {
    let server = Reflecting::start(true).await;
    let ran = run(&["call", CHECK, "-n", "3", "--address", &server.address]).await;
    assert!(ran.ends_with(2).complaint().contains("pass --idempotent"), "{ran:?}");
    run(&["call", CHECK, "-n", "3", "--idempotent", "--address", &server.address]).await.ends_with(0);
    let ran = run(&["call", CHECK, "-n", "3", "--policy", "single", "--address", &server.address]).await;
    ran.ends_with(2);
    for (flags, complaint) in [
        (&["--policy", "hedged"][..], "pass --idempotent"),
        (&["--policy", "all", "--delay", "1s"], "--delay goes with"),
        (&["--policy", "tied", "--equal", "2"], "--equal goes with"),
        (&["--policy", "quorum", "-n", "2", "--equal", "3"], "raise -n"),
    ] {
        let ran = run(&[&["call", CHECK, "--address", &server.address], flags].concat()).await;
        assert!(ran.ends_with(2).complaint().contains(complaint), "{ran:?}");
    }
    // This one says so itself.
    let ran = run(&["call", "wardkeep.v1.Operator/GetFleet", "-n", "2", "--address", &server.address]).await;
    assert_eq!(ran.ends_with(0).json()["nodes"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn the_answer_of_a_service_is_told_with_its_code() {
    let server = Reflecting::start(true).await;
    let ran = run(&["call", CHECK, r#"{"service": "nope"}"#, "--address", &server.address]).await;
    ran.ends_with(4);
    assert_eq!(ran.stdout, "");
}

fn member(name: &str, uri: &str, ready: bool) -> Member {
    let offer = |service: &str| Offer {
        service: service.into(),
        ward: "w".into(),
        incarnation: 1,
        ready,
        suspected: false,
    };
    Member {
        suspected: false,
        node: node(name, 1, uri).info,
        ready,
        offers: vec![offer("wardkeep.v1.Operator"), offer("grpc.health.v1.Health")],
    }
}

#[tokio::test]
async fn members_come_from_the_directory_and_race() {
    let (a, b) = (Reflecting::start(true).await, Reflecting::start(true).await);
    let gone = nowhere().await;
    let directory = DirectoryView {
        version: 1,
        members: vec![
            member("gone", &gone, true),
            member("a", &a.address, true),
            member("b", &b.address, true),
        ],
    };
    let cluster = Cluster::start(Script { directory, ..Default::default() }).await;
    let ran = cluster.run(&["call", "wardkeep.v1.Operator/GetFleet", "{}", "-n", "3"]).await;
    ran.ends_with(0);
    let told = ran.complaint();
    assert!(told.starts_with("answered by a in ") || told.starts_with("answered by b in "), "{told}");
    assert!(told.ends_with("(3 attempts)"), "{told}");

    let ran = cluster.run(&["call", "some.Search/Find"]).await;
    assert!(ran.ends_with(4).complaint().contains("grpc.health.v1.Health, wardkeep.v1.Operator"), "{ran:?}");
}

#[tokio::test]
async fn a_node_whose_address_is_not_known_here_is_told_of_with_what_to_do() {
    let members = vec![member("a", "http://a.invalid:7500", true)];
    let directory = DirectoryView { version: 1, members };
    let cluster = Cluster::start(Script { directory, ..Default::default() }).await;
    let ran = cluster.run(&["call", "wardkeep.v1.Operator/GetFleet"]).await;
    let told = ran.ends_with(5).complaint();
    assert!(told.contains("http://a.invalid:7500"), "{told}");
    assert!(told.ends_with("call from where that address is known"), "{told}");
}

#[tokio::test]
async fn a_service_whose_nodes_are_not_ready_is_unreachable() {
    let directory = DirectoryView { version: 1, members: vec![member("a", "http://127.0.0.1:1", false)] };
    let cluster = Cluster::start(Script { directory, ..Default::default() }).await;
    let ran = cluster.run(&["call", CHECK]).await;
    assert!(ran.ends_with(5).complaint().ends_with("is ready: a"), "{ran:?}");
}

#[tokio::test]
async fn health_is_a_word_and_a_code() {
    let cluster = Cluster::well().await;
    let ran = cluster.run(&["health"]).await;
    assert_eq!((ran.ends_with(0).stdout.as_str(), ran.stderr.as_str()), ("serving\n", ""));
    let ran = run(&["health", "--address", &cluster.address, "--service", "asleep"]).await;
    assert_eq!(ran.ends_with(1).stdout, "not serving\n");
    let ran = run(&["health", "--address", &cluster.address, "-o", "json"]).await;
    assert_eq!(ran.ends_with(0).json()["status"], "serving");
    let ran = run(&["health", "--address", &cluster.address, "--service", "nope"]).await;
    assert_eq!(ran.ends_with(4).complaint().lines().count(), 1);
    let ran = run(&["health", "--address", &nowhere().await]).await;
    assert_eq!(ran.ends_with(5).complaint().lines().count(), 1);
    assert_eq!(ran.stdout, "");
}
