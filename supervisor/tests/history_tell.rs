//! `wardkeep explain` and `wardkeep events` over what happened before this supervisor began.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod history_support;

use history_support::{Site, VICTIM, within};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// One phrase after the other, in this order.
fn tells(story: &str, phrases: &[&str]) {
    let mut rest = story;
    for phrase in phrases {
        let at = rest.find(phrase).unwrap_or_else(|| panic!("{phrase:?} is not told after that:\n{story}"));
        rest = &rest[at + phrase.len()..];
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_ward_was_restarted_is_told_by_the_next_supervisor_too() {
    within(async {
        let site = Site::new("intensity = 3\nperiod = \"10m\"");
        let first = site.supervisor(&[]).await;
        let node = site.node().await;
        site.runs(VICTIM, 1).await;
        site.crash(VICTIM);
        site.runs(VICTIM, 2).await;
        let path = format!("n/{VICTIM}");
        let restart = ["ward", "restart", &path, "-y", "--reason", "clear its cache"];
        assert_eq!(site.command(&restart).await.0, 0);
        site.runs(VICTIM, 3).await;
        site.rests().await;
        let error: String = site.ask("SELECT error_id FROM event WHERE error_id != '' LIMIT 1");
        first.killed().await;

        let second = site.supervisor(&[]).await;
        site.runs(VICTIM, 3).await;
        let (code, out, err) = site.command(&["explain", VICTIM]).await;
        assert_eq!((code, err.as_str()), (0, ""));
        tells(
            &out,
            &[
                "n/victim is running: incarnation 3, begun",
                "restart budget of group g: 1 of 3 restarts used within 10m, 2 left",
                "the supervisor begins",
                "node n: attends",
                "incarnation 1 failed",
                "which is a crash",
                &format!("-> wardkeep error show {error}"),
                "the steward decided to restart it at once: restart 1 of 3 allowed within 10m",
                "it was told to start",
                "runs, incarnation 2",
                "after that failure",
                "asked for: restart: clear its cache",
                "incarnation 2 stopped",
                "it was told to start\n",
                "runs, incarnation 3",
                // The one that tells.
                "the supervisor begins",
                "node n: attends",
            ],
        );
        assert!(!out.contains("bystander"), "{out}");

        let (_, out, _) = site.command(&["explain", &path, "-o", "json"]).await;
        let told = json(&out);
        assert_eq!(
            (&told["schema"], &told["subject"]),
            (&"wardkeep.explain/v1".into(), &path.as_str().into())
        );
        assert_eq!((&told["budget"]["recent"], &told["budget"]["left"]), (&1.into(), &2.into()));
        assert_eq!(told["ward"]["incarnation"], 3);
        assert!(told["story"].as_array().unwrap().iter().any(|line| line["error_id"] == error.as_str()));
        let (_, out, _) = site.command(&["explain", "n"]).await;
        tells(&out, &["node n is healthy: PID", "node n: attends", "victim: incarnation 1 failed"]);

        // A supervisor that has not seen the node at all.
        second.killed().await;
        node.killed().await;
        let _third = site.supervisor(&[]).await;
        let (code, out, _) = site.command(&["explain", &path]).await;
        assert_eq!(code, 0);
        tells(&out, &["is not known to this supervisor now", "incarnation 1 failed", "runs, incarnation 3"]);
        let (code, _, err) = site.command(&["explain", "n/nobody"]).await;
        assert_eq!(code, 4, "{err}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_long_ago_are_read_page_by_page_and_a_follower_misses_none() {
    within(async {
        let site = Site::new("intensity = 1000\nbackoff_first = \"1ms\"\nbackoff_max = \"1ms\"");
        let first = site.supervisor(&[]).await;
        let _node = site.node().await;
        for incarnation in 1..=60 {
            site.runs(VICTIM, incarnation).await;
            site.crash(VICTIM);
        }
        site.runs(VICTIM, 61).await;
        site.rests().await;
        first.killed().await;
        let _second = site.supervisor(&[]).await;
        let events = site.events().await;
        assert!(events.len() > 256, "more than a page: {}", events.len());
        assert!(events.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
        let (_, out, _) = site.command(&["events", "-n", "3", "-o", "name"]).await;
        assert_eq!(out.lines().count(), 3);
        let (_, out, _) = site.command(&["events", "--since", "1h", "-o", "json"]).await;
        assert!(json(&out)["events"].as_array().unwrap().len() >= events.len());
        let last = &events[events.len() - 1];
        let after =
            chrono::DateTime::from_timestamp(last.at.unwrap().seconds + 3_600, 0).unwrap().to_rfc3339();
        let (code, out, _) = site.command(&["events", "--since", &after, "-o", "name"]).await;
        assert_eq!((code, out.as_str()), (0, ""));
        let (code, _, err) = site.command(&["events", "--since", "yesterday"]).await;
        assert!(code == 2 && err.contains("such as 10m"), "{err}");

        let request = wardkeep_proto::v1::WatchEventsRequest { follow: true, ..Default::default() };
        let mut story = site.operator().await.watch_events(request).await.unwrap().into_inner();
        site.crash(VICTIM);
        let mut sequence = 0;
        loop {
            let event = story.message().await.unwrap().unwrap();
            assert_eq!(event.sequence, sequence + 1);
            sequence = event.sequence;
            if event.text == "runs, incarnation 62" {
                break;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_whose_effect_is_not_seen_ends_after_its_deadline_and_that_is_told() {
    within(async {
        let site = Site::new("");
        site.supervisor(&[]).await.killed().await;
        let minute = 60_000;
        let now = chrono::Utc::now().timestamp_millis();
        let db = rusqlite::Connection::open(site.file()).unwrap();
        for (id, aim, node, drain_ms, ago) in [
            (1, "drain", "late", None, 16 * minute),
            (2, "restart_node", "slow", Some(10 * minute), 16 * minute),
            (3, "undrain", "young", None, minute),
        ] {
            let sql = "INSERT INTO intent VALUES (?1, ?2, ?3, '', 0, 'b', 0, 1, ?4, ?5, ?5, 'deploy', 'ana@ops', '', '', 1, NULL, NULL)";
            db.execute(sql, rusqlite::params![id, aim, node, drain_ms, now - ago]).unwrap();
        }
        drop(db);
        // None of the nodes has ever attended.
        let _next = site.supervisor(&[]).await;
        site.written(
            "event WHERE node = 'late' AND actor = 'ana@ops' AND text LIKE 'gives up on drain: its effect was not seen within 15m%'",
        )
        .await;
        assert_eq!(site.count("intent WHERE closed_at IS NULL"), 2, "they have time");
    })
    .await;
}
