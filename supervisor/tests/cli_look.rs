//! Looking: status, node, ward, group, events.

mod cli_support;

use cli_support::*;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::test]
async fn status_shows_a_healthy_fleet_on_one_screen() {
    let cluster = Cluster::well().await;
    let ran = cluster.run(&["status"]).await;
    ran.ends_with(0);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "3 nodes, 5 wards: all well");
    assert_eq!(lines[1], format!("supervisor {} on box1, up 2h, epoch 7", cluster.address));
    assert_eq!(lines[3], "NAME       KIND     STATE    AGE  RESTARTS  WORK  OLDEST  NOTE");
    assert_eq!(lines[4], "scan       node     healthy  3m                           data_path=scan");
    assert_eq!(lines[5], "└ search   service  running  12s  2         1     40ms");
    assert!(lines.iter().all(|l| l.chars().count() <= 120) && lines.len() <= 24, "{}", ran.stdout);
    assert!(ran.stdout.contains("restarted after a crash"), "{}", ran.stdout);
    assert_eq!(ran.stderr, "");
}

#[tokio::test]
async fn status_says_first_what_is_wrong_and_exits_1() {
    let cluster = Cluster::start(Script { fleet: ill_fleet(), ..Default::default() }).await;
    let ran = cluster.run(&["status"]).await;
    ran.ends_with(1);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "3 nodes, 5 wards: 2 things are wrong");
    assert_eq!(lines[1], "  node scan is unreachable");
    assert!(lines[2].starts_with("  sqlite/search is quarantined (gave up after 5 restarts"), "{}", lines[2]);
    assert!(!ran.stdout.contains('\u{1b}'), "text from a ward drives the terminal");

    let ran = cluster.run(&["status", "-o", "json"]).await;
    ran.ends_with(1);
    let document = ran.json();
    assert_eq!(document["schema"], "wardkeep.status/v1");
    assert_eq!(document["healthy"], false);
    assert_eq!(document["problems"].as_array().unwrap().len(), 2);
    assert_eq!(document["at"], "2026-01-01T00:00:00.000Z");
    assert_eq!(document["wards"][1]["state"], "quarantined");
    assert_eq!(document["wards"][0]["oldest_work_ms"], 40);
    assert_eq!(document["wards"][0]["fenced_replies"], 2);
    assert_eq!(document["wards"][0]["restart"], "permanent");
    assert_eq!(document["groups"][0]["strategy"], "one_for_one");
    assert_eq!(document["nodes"][0]["labels"], json!({"data_path": "scan"}));
    assert_eq!(document["events"][0]["verdict"], "crashed");
}

#[tokio::test]
async fn status_of_nothing_is_3_and_other_commands_5() {
    let address = nowhere().await;
    let ran = run(&["status", "--supervisor", &address]).await;
    ran.ends_with(3);
    let expected = format!("wardkeep: not running: nothing answers at {address}; start one with");
    assert!(ran.complaint().starts_with(&expected), "{ran:?}");

    let ran = run(&["node", "ls", "--supervisor", &address]).await;
    ran.ends_with(5);
    assert!(ran.complaint().contains(&address) && ran.complaint().contains("onnection refused"), "{ran:?}");

    let ran = run(&["ward", "ls", "-o", "json", "--supervisor", &address]).await;
    ran.ends_with(5);
    let error = &ran.complaint_json()["error"];
    assert_eq!((&error["code"], &error["exit"]), (&json!("UNREACHABLE"), &json!(5)));
    assert_eq!(ran.stdout, "");
}

#[tokio::test]
async fn every_view_fits_the_columns_it_is_given() {
    let cluster = Cluster::start(Script { fleet: ill_fleet(), ..Default::default() }).await;
    for args in [
        &["status"][..],
        &["node", "ls"],
        &["node", "show", "scan"],
        &["ward", "ls"],
        &["ward", "show", "sqlite/search"],
        &["group", "ls"],
        &["group", "show", "search"],
        &["events"],
        &["explain", "trigram/search"],
        &["explain", "trigram"],
    ] {
        for columns in [80, 60] {
            let mut command = command(args);
            command.args(["--supervisor", &cluster.address]).env("COLUMNS", columns.to_string());
            let ran = finish(command).await;
            // The headline is a sentence; the terminal may break it.
            let table = ran.stdout.lines().filter(|l| !l.starts_with("supervisor ") && !l.starts_with("  "));
            let widest = table.map(|l| l.chars().count()).max().unwrap();
            assert!(widest <= columns, "{args:?} takes {widest} columns:\n{}", ran.stdout);
        }
    }
}

#[tokio::test]
async fn every_view_is_one_versioned_document_and_a_list_of_names() {
    let cluster = Cluster::well().await;
    for (args, schema, names) in [
        (&["node", "ls"][..], "wardkeep.nodes/v1", "scan\nsqlite\ntrigram\n"),
        (&["node", "show", "t"], "wardkeep.node/v1", "trigram\n"),
        (
            &["ward", "ls"],
            "wardkeep.wards/v1",
            "scan/search\nsqlite/search\ntrigram/search\ntrigram/indexer\ntrigram/vacuum\n",
        ),
        (&["ward", "show", "ind"], "wardkeep.ward/v1", "trigram/indexer\n"),
        (&["group", "ls"], "wardkeep.groups/v1", "search\n"),
        (&["group", "show", "search"], "wardkeep.group/v1", "search\n"),
        (&["events", "-n", "2"], "wardkeep.events/v1", "2\n3\n"),
        (&["explain", "trigram/se"], "wardkeep.explain/v1", "trigram/search\n"),
        (&["explain", "trigram"], "wardkeep.explain/v1", "trigram\n"),
    ] {
        let ran = cluster.run(&[args, &["-o", "json"]].concat()).await;
        assert_eq!(ran.ends_with(0).json()["schema"], schema);
        let ran = cluster.run(&[args, &["-o", "name"]].concat()).await;
        assert_eq!(ran.ends_with(0).stdout, names);
        cluster.run(&[args, &["-o", "wide"]].concat()).await.ends_with(0);
        let ran = cluster.run(&[args, &["-o", "jsonl"]].concat()).await;
        for line in ran.ends_with(0).stdout.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}

#[tokio::test]
async fn names_may_be_prefixes_and_what_fits_several_or_none_is_told() {
    let cluster = Cluster::well().await;
    let ran = cluster.run(&["ward", "show", "tri/se"]).await;
    assert!(ran.ends_with(0).stdout.starts_with("ward         trigram/search\n"), "{}", ran.stdout);

    let ran = cluster.run(&["ward", "show", "search"]).await;
    let told = r#"wardkeep: "search" fits more than one ward: scan/search, sqlite/search, trigram/search"#;
    assert_eq!(ran.ends_with(2).complaint(), told);

    let ran = cluster.run(&["node", "show", "s"]).await;
    assert_eq!(ran.ends_with(2).complaint(), r#"wardkeep: "s" fits more than one node: scan, sqlite"#);

    let ran = cluster.run(&["node", "show", "trigarm"]).await;
    assert_eq!(ran.ends_with(4).complaint(), r#"wardkeep: no node "trigarm"; did you mean "trigram"?"#);

    let ran = cluster.run(&["node", "show", "trigarm", "-o", "json"]).await;
    assert_eq!(ran.ends_with(4).complaint_json()["error"]["code"], "NOT_FOUND");
}

#[tokio::test]
async fn followed_events_come_one_by_one_until_ctrl_c() {
    let cluster = Cluster::well().await;
    let mut command = command(&["events", "-f", "-n", "1", "-o", "json", "--supervisor", &cluster.address]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let story = async {
        for sequence in [3, 6] {
            let line = lines.next_line().await.unwrap().unwrap();
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (&event["schema"], &event["sequence"]),
                (&json!("wardkeep.event/v1"), &json!(sequence))
            );
        }
        let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        child.wait_with_output().await.unwrap()
    };
    let ran = Ran::from(tokio::time::timeout(PATIENCE, story).await.expect("it hangs"));
    ran.ends_with(130);
    assert_eq!(ran.complaint_json()["error"]["code"], "INTERRUPTED");
}

#[tokio::test]
async fn a_reader_who_leaves_ends_it_quietly() {
    let cluster = Cluster::well().await;
    let line = format!(
        "{} events -f -o jsonl --supervisor {} | head -n 1",
        env!("CARGO_BIN_EXE_wardkeep"),
        cluster.address
    );
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &line]).kill_on_drop(true);
    let ran = finish(shell).await;
    assert_eq!((ran.stdout.lines().count(), ran.stderr.as_str()), (1, ""));
}
