//! Changing: node restart, drain, undrain; ward start, stop, restart. And what is not asked for.

mod cli_support;

use cli_support::*;
use serde_json::json;
use wardkeep_proto::v1;

#[tokio::test]
async fn a_node_is_restarted_in_place_and_shown_so() {
    let cluster = Cluster::well().await;
    let ran = cluster.run(&["node", "restart", "tri", "-y", "--reason", "new build"]).await;
    ran.ends_with(0);
    let (line, time) = ran.stdout.trim_end().rsplit_once(", ").unwrap();
    assert_eq!(line, "trigram: restarted, pid 4711 kept, boot 0198f3a2-1b4c… -> 0198f3a3-2222…");
    assert!(time.ends_with(" s"), "{time}");
    let [Asked::Node("restart", request)] = &cluster.asked()[..] else { panic!("{:?}", cluster.asked()) };
    assert_eq!(
        (request.node.as_str(), request.reason.as_str(), request.detach),
        ("trigram", "new build", false)
    );
    assert!(request.actor.contains('@'));
}

#[tokio::test]
async fn several_nodes_are_restarted_one_by_one_and_the_first_failure_stops_it() {
    let cluster =
        Cluster::start(Script { fleet: fleet(), broken_node: Some("sqlite"), ..Default::default() }).await;
    let ran = cluster.run(&["node", "restart", "scan", "sqlite", "trigram", "-y"]).await;
    ran.ends_with(6);
    assert_eq!(ran.stdout.lines().count(), 1);
    assert!(ran.stdout.starts_with("scan: restarted"), "{}", ran.stdout);
    let told: Vec<_> = ran.stderr.lines().collect();
    assert_eq!(told[..2], ["restarting scan (1 of 3) ...", "restarting sqlite (2 of 3) ..."]);
    assert!(told[2].starts_with("wardkeep: sqlite: Something went wrong"), "{}", told[2]);
    assert!(told[2].contains("not tried: trigram (the node did not come back) [error 0"), "{}", told[2]);
    assert_eq!(cluster.asked().len(), 2);

    let ran = cluster.run(&["node", "restart", "scan", "sqlite", "trigram", "-y", "-o", "json"]).await;
    let document = ran.ends_with(6).json();
    assert_eq!(document["schema"], "wardkeep.outcomes/v1");
    let results: Vec<_> = document["outcomes"].as_array().unwrap().iter().map(|o| &o["result"]).collect();
    assert_eq!(results, ["done", "failed", "not_tried"]);
    assert_eq!(ran.complaint_json()["error"]["exit"], 6);
    assert!(ran.complaint_json()["error"]["id"].is_string());

    let ran = cluster.run(&["node", "restart", "sqlite", "scan", "-y"]).await;
    ran.ends_with(1);
}

#[tokio::test]
async fn nodes_are_restarted_batch_by_batch_with_a_pause_between() {
    let cluster = Cluster::well().await;
    let args = ["node", "restart", "--all", "-y", "--batch", "2", "--pause", "1ms", "-o", "json"];
    let document = cluster.run(&args).await.ends_with(0).json();
    assert_eq!(cluster.asked().len(), document["outcomes"].as_array().unwrap().len());
    let ran = cluster.run(&["node", "restart", "--all", "-y", "--batch", "2", "--pause", "1ms"]).await;
    let told: Vec<_> = ran.ends_with(0).stderr.lines().collect();
    assert!(told[0].ends_with("(1 of 3) ...") && told[1].ends_with("(2 of 3) ..."), "{told:?}");
    assert_eq!((told[2], told.len()), ("pausing for 1ms ...", 4));
}

#[tokio::test]
async fn a_batch_in_which_a_node_fails_is_the_last() {
    let cluster =
        Cluster::start(Script { fleet: fleet(), broken_node: Some("sqlite"), ..Default::default() }).await;
    let ran = cluster.run(&["node", "restart", "sqlite", "scan", "trigram", "-y", "--batch", "2"]).await;
    ran.ends_with(6);
    assert!(ran.stderr.contains("not tried: trigram"), "{ran:?}");
    assert_eq!(cluster.asked().len(), 2);
    for wrong in [&["node", "restart", "-y"][..], &["node", "restart", "scan", "--all", "-y"]] {
        cluster.run(wrong).await.ends_with(2);
    }
}

#[tokio::test]
async fn without_a_terminal_and_without_y_nothing_is_changed() {
    let cluster = Cluster::well().await;
    for args in
        [&["node", "restart", "trigram"][..], &["node", "drain", "scan"], &["ward", "stop", "indexer"]]
    {
        let ran = cluster.run(args).await;
        ran.ends_with(2);
        assert!(ran.complaint().ends_with("no terminal is here: pass -y"), "{ran:?}");
    }
    assert_eq!(cluster.asked(), []);
}

#[tokio::test]
async fn wards_are_started_stopped_and_restarted() {
    let cluster = Cluster::well().await;
    let ran = cluster.run(&["ward", "restart", "indexer", "-y"]).await;
    assert!(
        ran.ends_with(0).stdout.starts_with("trigram/indexer: restarted, incarnation 3 -> 4, "),
        "{ran:?}"
    );
    let ran = cluster.run(&["ward", "stop", "scan/search", "-y"]).await;
    assert!(ran.ends_with(0).stdout.starts_with("scan/search: stopped, "), "{ran:?}");
    let ran = cluster.run(&["ward", "start", "scan/search", "-y", "--detach"]).await;
    assert!(ran.ends_with(0).stdout.starts_with("scan/search: start requested, "), "{ran:?}");
    let ran = cluster.run(&["ward", "restart", "vacuum", "-y"]).await;
    let told = "wardkeep: trigram/vacuum: it is backoff now (exited with 1)";
    assert_eq!(ran.ends_with(1).stderr.lines().last(), Some(told));
}

#[tokio::test]
async fn nodes_are_drained_and_taken_back() {
    let cluster = Cluster::well().await;
    let ran = cluster.run(&["node", "drain", "scan", "-y", "--drain-timeout", "5s"]).await;
    assert!(ran.ends_with(0).stdout.starts_with("scan: drained, "), "{ran:?}");
    let ran = cluster.run(&["node", "undrain", "scan", "-y", "-o", "json"]).await;
    let document = ran.ends_with(0).json();
    assert_eq!(
        (&document["action"], &document["outcomes"][0]["result"]),
        (&json!("undrain_node"), &json!("done"))
    );
    let [Asked::Node("drain", request), _] = &cluster.asked()[..] else { panic!("{:?}", cluster.asked()) };
    assert_eq!(request.drain_timeout.map(|d| d.seconds), Some(5));
    let ran = cluster.run(&["node", "drain", "scan", "-y", "--drain-timeout", "1m"]).await;
    assert!(ran.ends_with(2).complaint().contains("--drain-timeout must be shorter than --timeout"));
}

#[tokio::test]
async fn a_configuration_is_shown_before_it_is_applied_and_nodes_from_code_are_left_out() {
    let mut fleet = fleet();
    fleet.nodes[0].info.as_mut().unwrap().config_file = "/etc/wardkeep/trigram.toml".into();
    let change = v1::ConfigChange {
        action: v1::ConfigAction::Changed.into(),
        noun: "ward".into(),
        name: "vacuum".into(),
        key: "dir".into(),
        before: "/a".into(),
        after: "/b\u{1b}[31m".into(),
        effect: v1::ConfigEffect::Restarts.into(),
        ..Default::default()
    };
    let restarts = vec!["vacuum".to_owned()];
    let outcome = v1::ConfigOutcome { changes: vec![change], restarts, ..Default::default() };
    let configs = vec![("trigram".to_owned(), outcome)];
    let cluster = Cluster::start(Script { fleet, configs, ..Default::default() }).await;
    let ran = cluster.run(&["config", "apply", "-y", "--reason", "why"]).await;
    ran.ends_with(0);
    assert!(ran.stdout.starts_with("trigram: 1 change applied, 1 ward restarted, "), "{ran:?}");
    assert_eq!(ran.stderr.lines().next(), Some("trigram: ward vacuum: dir /a -> /b [31m (restarts)"));
    let asked: Vec<_> = cluster
        .asked()
        .into_iter()
        .map(|asked| match asked {
            Asked::Config(request) => (request.node, request.dry_run, request.reason),
            other => panic!("{other:?}"),
        })
        .collect();
    let about = |dry_run| ("trigram".to_owned(), dry_run, "why".to_owned());
    assert_eq!(asked, [about(true), about(false)]);
    let ran = cluster.run(&["config", "apply", "-y", "-o", "json"]).await;
    let document = ran.ends_with(0).json();
    assert_eq!(document["outcomes"][0]["after"]["changes"][0]["effect"], "restarts");
    let ran = cluster.run(&["config", "apply", "scan"]).await;
    assert_eq!(ran.ends_with(0).stdout, "scan: hosted from code: nothing to apply\n");
    let ran = Cluster::well().await.run(&["config", "apply", "-y"]).await;
    assert!(ran.ends_with(4).complaint().contains("neither the supervisor nor a node"), "{ran:?}");
}

#[tokio::test]
async fn an_effect_that_does_not_come_is_a_timeout() {
    let cluster = Cluster::start(Script { fleet: fleet(), hangs: true, ..Default::default() }).await;
    let ran = cluster.run(&["node", "restart", "scan", "-y", "--timeout", "300ms"]).await;
    ran.ends_with(124);
    assert!(ran.stderr.contains("(--timeout is 300ms)"), "{ran:?}");
}

#[tokio::test]
async fn what_cannot_be_understood_is_2_with_a_hint() {
    let ran = run(&["nodes", "ls"]).await;
    assert!(ran.ends_with(2).stderr.contains("similar subcommand exists: 'node'"), "{ran:?}");
    let ran = run(&["status", "-o", "json", "--frobnicate"]).await;
    let error = ran.ends_with(2).complaint_json();
    assert_eq!(error["error"]["message"], "unexpected argument '--frobnicate' found");
    for (args, told) in [
        (&["status", "--timeout", "soon"][..], "soon"),
        (&["status", "--supervisor", "https://h:1"], "TLS is not supported yet"),
        (&["status", "--supervisor", "not an address"], "is not an address"),
    ] {
        let ran = run(args).await;
        assert!(ran.ends_with(2).stderr.contains(told), "{ran:?}");
    }
}

#[tokio::test]
async fn help_and_completions_need_no_supervisor() {
    for args in [&["--help"][..], &["node", "restart", "--help"], &["call", "--help"], &["--version"]] {
        assert!(!run(args).await.ends_with(0).stdout.is_empty());
    }
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]).await;
        assert!(ran.ends_with(0).stdout.contains("wardkeep"), "{shell}");
    }
}
