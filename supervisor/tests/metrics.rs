//! What a supervisor tells a monitoring system, as it is scraped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use std::{net::SocketAddr, process::Stdio, time::Duration};

use fleet_support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::sleep,
};

/// One request, as it is, and all that comes back until the connection is closed.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")).await
}

/// Scrapes until all these lines are there.
async fn until(address: SocketAddr, lines: &[&str]) -> String {
    loop {
        let text = get(address, "/metrics", "").await;
        if lines.iter().all(|line| text.lines().any(|it| it == *line)) {
            return text;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_ward_that_fails_and_heals_is_seen_in_the_metrics() {
    within(async {
        let sup = supervisor(quick().http("127.0.0.1:0")).await;
        let address = sup.http.unwrap();
        let poke = watch::Sender::new(0);
        let _node = real_node(attending(&sup, "n").ward(fragile("flaky", &poke))).await;
        sup.runs("n", "flaky", 1).await;
        poke.send_replace(1);
        sup.runs("n", "flaky", 2).await;
        let mut watcher = sup.directory("").await;
        watcher.message().await.unwrap();
        let text = until(
            address,
            &[
                "wardkeep_nodes{state=\"healthy\"} 1.0",
                "wardkeep_sessions 1.0",
                "wardkeep_directory_watchers 1.0",
                "wardkeep_wards{kind=\"task\",state=\"running\"} 1.0",
                "wardkeep_ward_up{node=\"n\",ward=\"flaky\"} 1.0",
                "wardkeep_ward_incarnation{node=\"n\",ward=\"flaky\"} 2.0",
                "wardkeep_restarts_total{of=\"ward\",reason=\"crashed\"} 1.0",
                "wardkeep_verdicts_total{of=\"ward\",verdict=\"crashed\"} 1.0",
                "wardkeep_heal_seconds_count{of=\"ward\"} 1",
                "wardkeep_errors_total{malformed=\"true\"} 1.0",
            ],
        )
        .await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
        drop(watcher);
        until(address, &["wardkeep_directory_watchers 0.0"]).await;
        sup.running.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_port_says_what_it_has_and_refuses_what_it_has_not() {
    within(async {
        let sup = supervisor(quick().http("127.0.0.1:0")).await;
        let address = sup.http.unwrap();
        assert!(get(address, "/", "").await.contains("see /metrics"));
        assert!(get(address, "/secrets", "").await.starts_with("HTTP/1.1 404 "));
        let post = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
        assert!(exchange(address, post).await.starts_with("HTTP/1.1 405 "));
        let long = format!("x: {}\r\n", "y".repeat(64 * 1_024));
        assert!(get(address, "/metrics", &long).await.starts_with("HTTP/1.1 431 "));
        let open = get(address, "/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n").await;
        assert!(
            open.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
        );
        assert!(open.contains("# EOF\n"));
        let silent = TcpStream::connect(address).await.unwrap();
        sup.running.stop().await;
        drop(silent);
    })
    .await;
}

#[tokio::test]
async fn a_scraper_that_says_nothing_is_closed_in_time() {
    within(async {
        let limits = wardkeep_node::server::Limits {
            handshake_timeout: Duration::from_millis(200),
            ..Default::default()
        };
        let sup = supervisor(quick().limits(limits).http("127.0.0.1:0")).await;
        let mut silent = TcpStream::connect(sup.http.unwrap()).await.unwrap();
        silent.write_all(b"GET /metrics HT").await.unwrap();
        let mut said = Vec::new();
        let _ = silent.read_to_end(&mut said).await;
        assert!(!String::from_utf8_lossy(&said).contains("wardkeep_"));
    })
    .await;
}

#[tokio::test]
async fn an_address_that_others_reach_is_refused_and_one_that_is_taken_is_told_of() {
    within(async {
        let refused = quick().http("0.0.0.0:0").bind("127.0.0.1:0").await.err().unwrap();
        assert!(refused.to_string().contains("insecure"), "{refused}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_at = taken.local_addr().unwrap().to_string();
        let refused = quick().http(&taken_at).bind("127.0.0.1:0").await.err().unwrap();
        assert!(refused.to_string().contains("cannot listen"), "{refused}");
        let goes_on = quick().http_if_free(&taken_at).bind("127.0.0.1:0").await.unwrap();
        assert_eq!(goes_on.http_addr(), None);
    })
    .await;
}

#[tokio::test]
async fn promtool_has_nothing_to_say_of_it() {
    within(async {
        let sup = supervisor(quick().http("127.0.0.1:0")).await;
        let answer = get(sup.http.unwrap(), "/metrics", "").await;
        let (_, text) = answer.split_once("\r\n\r\n").unwrap();
        let promtool = tokio::process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut promtool = match promtool {
            Ok(promtool) => promtool,
            Err(why) => {
                let insists = std::env::var_os("WARDKEEP_CI").is_some_and(|value| value == "1");
                assert!(!insists, "promtool is needed: {why}");
                eprintln!("skipped: no promtool ({why})");
                return;
            }
        };
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
        let said = promtool.wait_with_output().await.unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    })
    .await;
}
