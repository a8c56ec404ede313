//! Peers that do not keep to the protocol: each gets one clear error, and nobody else notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use fleet_support::*;
use tonic::Status;
use wardkeep::daemon::SupervisorBuilder;
use wardkeep_proto::v1::{
    self, EventKind, Verdict, WardState, node_message::Kind as Up, operator_client::OperatorClient,
    stewardship_client::StewardshipClient,
};

/// What a session that begins with this comes to.
async fn refused(sup: &Sup, first: Up) -> Status {
    match FakeNode::open(&sup.uri, Some(first)).await {
        Err(status) => status,
        Ok(mut node) => node.end().await.expect("an error"),
    }
}

fn assert_protocol(status: &Status, says: &str) {
    let error = error(status);
    assert_eq!(error.kind(), "PROTOCOL", "{error}");
    assert!(error.what().contains(says), "{error}");
    assert_eq!(error.what().lines().count(), 1, "{error}");
}

/// A node that keeps to the protocol, and must not notice anything.
struct Witness {
    sup: Sup,
    _session: FakeNode,
    _reporter: Reporter,
}

async fn witness() -> Witness {
    witness_of(quick()).await
}

async fn witness_of(builder: SupervisorBuilder) -> Witness {
    let sup = supervisor(builder).await;
    let (session, _) = FakeNode::attend(&sup, hello("good", &["w"])).await.unwrap();
    let reporter = session.keep_reporting();
    sup.runs("good", "w", 1).await;
    Witness { sup, _session: session, _reporter: reporter }
}

impl Witness {
    async fn noticed_nothing(&self) {
        let good = self.sup.node("good", |n| n.attending).await;
        assert_eq!(good.verdict(), Verdict::Healthy);
        let request = v1::WatchEventsRequest::default();
        let mut events = self.sup.operator.clone().watch_events(request).await.unwrap().into_inner();
        while let Some(event) = events.message().await.unwrap() {
            let bad =
                matches!(event.kind(), EventKind::NodeLeft | EventKind::NodeVerdict | EventKind::WardVerdict);
            assert!(!(event.node == "good" && bad), "{event:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_does_not_begin_with_a_hello_in_order_is_refused_in_one_line() {
    within(async {
        let good = witness().await;
        let sup = &good.sup;
        assert_protocol(&refused(sup, Up::Report(v1::Report::default())).await, "first message is not Hello");
        assert_protocol(
            &refused(sup, Up::Goodbye(v1::Goodbye::default())).await,
            "first message is not Hello",
        );
        type Spoil = fn(&mut v1::Hello);
        let spoilt: [(&str, Spoil); 14] = [
            ("it speaks version 9, this supervisor speaks 1", |h| h.protocol = 9),
            ("does not say which node", |h| h.node = None),
            ("boot ID is not a UUIDv7", |h| h.node.as_mut().unwrap().boot_id = "zero".into()),
            ("boot ID is not a UUIDv7", |h| h.node.as_mut().unwrap().boot_id = uuid::Uuid::nil().to_string()),
            ("a node has an empty name", |h| h.node.as_mut().unwrap().name.clear()),
            ("slash or control", |h| h.node.as_mut().unwrap().name = "a\u{1b}[2Jb\n".into()),
            ("slash or control", |h| h.node.as_mut().unwrap().name = "good/w".into()),
            ("1000000 bytes", |h| h.node.as_mut().unwrap().name = "x".repeat(1_000_000)),
            ("two of its wards are named w", |h| h.wards.push(h.wards[0].clone())),
            ("a ward has an empty name", |h| h.wards[0].spec.as_mut().unwrap().name.clear()),
            ("has no spec", |h| h.wards[0].spec = None),
            ("1000000 bytes", |h| h.wards[0].spec.as_mut().unwrap().group = "g".repeat(1_000_000)),
            ("allowed", |h| h.wards = vec![h.wards[0].clone(); 5_000]),
            ("its zone", |h| h.node.as_mut().unwrap().zone = "z\u{7}".into()),
        ];
        for (says, spoil) in spoilt {
            let mut hello = hello("bad", &["w"]);
            spoil(&mut hello);
            assert_protocol(&refused(sup, Up::Hello(hello)).await, says);
        }
        let mut huge = hello("bad", &[]);
        huge.node.as_mut().unwrap().labels.insert("k".into(), "v".repeat(10 * 1024 * 1024));
        assert_protocol(&refused(sup, Up::Hello(huge)).await, "too large");

        assert_eq!(sup.fleet().await.nodes.len(), 1);
        good.noticed_nothing().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_supervisor_itself_can_be_looked_up() {
    within(async {
        let sup = supervisor(quick()).await;
        let told = error(&refused(&sup, Up::Report(v1::Report::default())).await);
        let mut operator = sup.operator.clone();
        let found = operator.get_error(v1::GetErrorRequest { id: told.id().to_owned() }).await.unwrap();
        let found = found.into_inner();
        assert_eq!((found.kind.as_str(), found.node.as_str()), ("PROTOCOL", "supervisor"));
        assert!(!found.hops.last().unwrap().frames.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_never_says_anything_is_refused_after_a_while() {
    within(async {
        let good = witness().await;
        let stream = tokio_stream::pending::<v1::NodeMessage>();
        let silent = StewardshipClient::new(channel(&good.sup.uri).await).attend(stream).await;
        assert_protocol(&silent.err().unwrap(), "no Hello within 5s");
        good.noticed_nothing().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_do_not_fit_end_the_session_with_one_clear_error() {
    within(Box::pin(async {
        let good = witness().await;
        let pulsed = |slots: &[u32]| Up::Report(v1::Report { pulsed: slots.into(), ..Default::default() });
        let worked = |slots: &[u32], others: usize| {
            let column = vec![0; others];
            Up::Report(v1::Report {
                worked: slots.into(),
                work_begun: column.clone(),
                work_ended: column.clone(),
                oldest_work_ms: column,
                ..Default::default()
            })
        };
        let long = v1::WardChange { status: "x".repeat(10 * 1024 * 1024), ..Default::default() };
        let spoilt = [
            ("columns do not have the same length", worked(&[0], 2)),
            ("columns do not have the same length", worked(&[0, 0], 1)),
            ("slot 7, which no ward has", worked(&[7], 1)),
            ("slot 7, which no ward has", pulsed(&[7, 1])),
            ("slot", pulsed(&[u32::MAX, u32::MAX])),
            ("names a slot twice", worked(&[0, 0], 2)),
            ("a run of no slots", pulsed(&[0, 0])),
            ("a run of no slots", pulsed(&[7])),
            ("more than 1024 wards", worked(&vec![0; 100_000], 100_000)),
            ("more than 1024 wards", pulsed(&vec![0; 100_000])),
            ("slot 3, which no ward has", Up::WardChange(v1::WardChange { slot: 3, ..Default::default() })),
            ("slot 4294967295", Up::WardChange(v1::WardChange { slot: u32::MAX, ..Default::default() })),
            ("a second Hello", Up::Hello(hello("bad", &[]))),
            ("too large", Up::WardChange(long)),
        ];
        for (says, message) in spoilt {
            let (mut node, _) = FakeNode::attend(&good.sup, hello("bad", &["w"])).await.unwrap();
            node.send(message).await;
            assert_protocol(&node.end().await.expect("an error"), says);
            good.sup.node("bad", |n| !n.attending).await;
        }
        good.noticed_nothing().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_with_durations_and_numbers_beyond_all_reason_does_no_harm() {
    within(async {
        let good = witness().await;
        for seconds in [i64::MAX, i64::MIN, -1, 0] {
            let wild = Some(prost_types::Duration { seconds, nanos: i32::MAX });
            let longest = Some(prost_types::Duration { seconds, nanos: 999_999_999 });
            let mut hello = hello("wild", &["a", "b"]);
            for (ward, duration) in hello.wards.iter_mut().zip([wild, longest]) {
                let spec = ward.spec.as_mut().unwrap();
                (spec.stall_timeout, spec.pulse_timeout, spec.start_timeout) = (duration, duration, duration);
                (spec.grace, spec.restart) = (duration, i32::MAX);
                (ward.incarnation, ward.state, ward.restarts) = (u64::MAX, 3, u64::MAX);
            }
            hello.groups.push(v1::GroupSpec {
                name: "wild/".into(),
                intensity: u32::MAX,
                period: longest,
                backoff_first: longest,
                backoff_max: longest,
                backoff_reset: longest,
                ..Default::default()
            });
            let (node, _) = FakeNode::attend(&good.sup, hello).await.unwrap();
            for incarnation in [u64::MAX, 0, 1] {
                node.change(0, incarnation, WardState::Running).await;
                let exit = v1::Exit { kind: i32::MAX, traceparent: "garbage".into(), ..Default::default() };
                node.ended(1, incarnation, exit).await;
            }
            let lag = v1::Report { runtime_lag_ms: u32::MAX, sequence: u64::MAX, ..Default::default() };
            node.send(Up::Report(lag)).await;
            good.sup.node("wild", |n| n.verdict() == Verdict::RuntimeStalled).await;
        }
        good.noticed_nothing().await;
    })
    .await;
}

fn resident_mb() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4 / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_changes_delays_nobody_and_is_not_kept() {
    within(async {
        let good = witness().await;
        let (node, _) = FakeNode::attend(&good.sup, hello("flood", &["w"])).await.unwrap();
        let before = resident_mb();
        let mut slowest = std::time::Duration::ZERO;
        let text = "x".repeat(10_000);
        for i in 0..100_000_u64 {
            let status = if i % 100 == 0 { text.clone() } else { String::new() };
            let change = v1::WardChange { incarnation: i % 3, state: 3, status, ..Default::default() };
            node.send(Up::WardChange(change)).await;
            if i % 10_000 == 0 {
                let begun = tokio::time::Instant::now();
                good.sup.fleet().await;
                slowest = slowest.max(begun.elapsed());
            }
        }
        node.report().await;
        good.sup.node("flood", |n| n.last_report_at.is_some()).await;
        assert!(slowest.as_secs() < 5, "{slowest:?}");
        let grown = resident_mb().saturating_sub(before);
        assert!(grown < 200, "{grown} MB more");
        let w = good.sup.ward("flood", "w", |_| true).await;
        assert!(w.status.len() < 4_096);
        good.noticed_nothing().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_read_its_commands_loses_its_session() {
    within(async {
        let good = witness().await;
        let (deaf, _) = FakeNode::attend(&good.sup, hello("deaf", &[])).await.unwrap();
        let mut operator = OperatorClient::new(channel(&good.sup.uri).await);
        let drain = v1::NodeRequest { detach: true, reason: "x".repeat(2_000), ..of_node("deaf") };
        let refused = loop {
            if let Err(status) = operator.drain_node(drain.clone()).await {
                break status;
            }
        };
        assert_eq!(error(&refused).kind(), "NOT_ATTENDING");
        good.sup.node("deaf", |n| !n.attending).await;
        good.noticed_nothing().await;
        drop(deaf);
        // And it may come back.
        let _back = FakeNode::attend(&good.sup, hello("deaf", &[])).await.unwrap();
        good.sup.node("deaf", |n| n.attending).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_places_are_taken_more_nodes_are_refused_and_those_there_are_served() {
    const PLACES: usize = 100;
    within(async {
        let good = witness_of(quick().sessions(PLACES)).await;
        let way = channel(&good.sup.uri).await;
        let mut sessions = Vec::new();
        let refused = loop {
            let mut client = StewardshipClient::new(way.clone());
            let hello = hello(&format!("n{}", sessions.len()), &[]);
            let (up, queue) = tokio::sync::mpsc::channel(1);
            up.send(v1::NodeMessage { kind: Some(Up::Hello(hello)) }).await.unwrap();
            match client.attend(tokio_stream::wrappers::ReceiverStream::new(queue)).await {
                Ok(down) => sessions.push((up, down)),
                Err(status) => break error(&status),
            }
        };
        assert_eq!((refused.kind(), sessions.len()), ("FULL", PLACES - 1));
        assert!(refused.what().contains("no more than 100 sessions"), "{refused}");
        // Nothing is stuck: operators are answered, and who leaves makes room.
        assert!(good.sup.fleet().await.nodes.iter().filter(|n| n.attending).count() >= 1);
        drop(sessions);
        good.sup.until(|fleet| (fleet.nodes.iter().filter(|n| n.attending).count() == 1).then_some(())).await;
        let _late = FakeNode::attend(&good.sup, hello("late", &[])).await.unwrap();
        good.sup.node("late", |n| n.attending).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_comes_late_takes_no_session_and_restarts_nobody() {
    within(async {
        let sup = supervisor(quick()).await;
        let before = hello("n", &["w"]);
        let early = hello("n", &["w"]);
        let mut now = early.clone();
        now.wards[0].incarnation = 2;
        let (node, _) = FakeNode::attend(&sup, now.clone()).await.unwrap();
        let reporter = node.keep_reporting();
        sup.runs("n", "w", 2).await;
        assert_protocol(&refused(&sup, Up::Hello(early)).await, "older than what it has said before");
        let seen = sup.node("n", |node| node.attending).await;
        assert_eq!(seen.verdict(), Verdict::Healthy);
        sup.runs("n", "w", 2).await;
        // An incarnation that is being stopped does not run again.
        let status = "on its way".to_owned();
        let stopping = v1::WardChange {
            incarnation: 2,
            state: WardState::Stopping.into(),
            status,
            ..Default::default()
        };
        node.send(Up::WardChange(stopping)).await;
        sup.ward("n", "w", |ward| ward.status == "on its way").await;
        assert_protocol(&refused(&sup, Up::Hello(now)).await, "older than what it has said before");
        // Of a boot before: neither while the node is here nor just after it was lost.
        let taken = refused(&sup, Up::Hello(before.clone())).await;
        assert_eq!(taken.code(), tonic::Code::AlreadyExists);
        drop((reporter, node));
        sup.node("n", |node| !node.attending).await;
        assert_protocol(&refused(&sup, Up::Hello(before)).await, "taken for late");
    })
    .await;
}
