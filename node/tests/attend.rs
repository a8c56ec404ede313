//! A node and its supervisor: who decides, and what happens when one of them is not there.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use support::{supervisor::*, *};
use tokio::{io::AsyncWriteExt as _, sync::oneshot};
use wardkeep_node::{Node, NodeBuilder, Ward};
use wardkeep_proto::v1::{self, WardState, command::Kind, node_message::Kind as Up};

const GRACE: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

/// A task that ends with a panic when it is poked.
fn fragile(poke: &Counter) -> Ward {
    let poke = poke.clone();
    Ward::task("fragile", move |context| {
        let poke = poke.clone();
        async move {
            let crash_at = context.incarnation();
            tokio::select! {
                () = context.cancelled() => Ok(()),
                () = poke.reaches(crash_at) => panic!("poked"),
            }
        }
    })
    .grace(Duration::from_millis(100))
}

async fn attending(uri: &str, ward: Ward) -> Running {
    start(Node::builder("n").supervisor(uri).ward(ward)).await
}

fn start_after(after_incarnation: u64) -> Kind {
    Kind::Start(v1::StartWard { slot: 0, after_incarnation })
}

fn stop_of(incarnation: u64) -> Kind {
    Kind::Stop(v1::StopWard { slot: 0, incarnation, grace: None })
}

#[tokio::test]
async fn under_a_supervisor_a_node_reports_and_obeys_and_does_not_heal_by_itself() {
    within(async {
        let mut supervisor = FakeSupervisor::start().await;
        let poke = Counter::default();
        let node = attending(&supervisor.uri, fragile(&poke)).await;
        node.running("fragile", 1).await;
        let (mut session, hello) = supervisor.session().await;
        assert_eq!((hello.protocol, hello.wards.len()), (1, 1));
        let info = hello.node.unwrap();
        assert_eq!(info.name, "n");
        assert!(uuid::Uuid::parse_str(&info.boot_id).is_ok());

        // Whoever has not been welcomed has nothing to say.
        let refused = session.command(7, stop_of(1)).await.unwrap_err();
        assert_eq!(refused.kind(), "NO_MANDATE");

        session.welcome(7, LONG).await;
        node.until(|now| now.attending).await;
        poke.add();
        let change = session.exit().await;
        assert_eq!(change.incarnation, 1);
        let exit = change.exit.unwrap();
        assert_eq!(exit.kind(), v1::ExitKind::Panicked);
        assert!(exit.error.unwrap().what.contains("poked"));
        // Long enough for its own steward to have healed it.
        for _ in 0..10 {
            session.report().await;
        }
        assert_eq!(find(&node.handle.snapshots().borrow(), "fragile").state(), WardState::Stopped);

        assert_eq!(session.command(6, start_after(1)).await.unwrap_err().kind(), "OLD_EPOCH");
        assert_eq!(session.command(7, start_after(0)).await.unwrap_err().kind(), "OTHER_INCARNATION");
        session.command(7, start_after(1)).await.unwrap();
        assert_eq!(session.change(WardState::Running).await.incarnation, 2);
        assert_eq!(session.command(7, start_after(1)).await.unwrap_err().kind(), "OTHER_INCARNATION");
        assert_eq!(session.command(7, stop_of(1)).await.unwrap_err().kind(), "OTHER_INCARNATION");

        session
            .command(
                7,
                Kind::Hold(v1::HoldWard { slot: 0, incarnation: 2, quarantined: false, released: false }),
            )
            .await
            .unwrap();
        node.until(|now| find(now, "fragile").held).await;
        session.command(7, stop_of(2)).await.unwrap();
        assert_eq!(session.exit().await.exit.unwrap().kind(), v1::ExitKind::Stopped);

        session.command(7, Kind::Drain(v1::Drain { on: true })).await.unwrap();
        node.until(|now| now.draining).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_node_that_lost_its_supervisor_heals_alone_and_hands_back_with_its_history() {
    within(async {
        let mut supervisor = FakeSupervisor::start().await;
        let poke = Counter::default();
        let node = attending(&supervisor.uri, fragile(&poke)).await;
        let (session, hello) = supervisor.session().await;
        let boot = hello.node.unwrap().boot_id;
        session.welcome(7, GRACE).await;
        node.until(|now| now.attending).await;
        drop(session);
        node.until(|now| !now.attending).await;
        // A session without a welcome is no mandate.
        let (unwelcoming, _) = supervisor.session().await;
        // What crashes while nobody decides is healed by whoever decides next ...
        poke.add();
        node.running("fragile", 2).await;
        // ... who by now is the node itself.
        poke.add();
        node.running("fragile", 3).await;
        drop(unwelcoming);

        let (mut session, hello) = supervisor.session().await;
        assert_eq!((hello.node.unwrap().boot_id, hello.highest_epoch), (boot, 7));
        assert_eq!((hello.wards[0].incarnation, hello.wards[0].state()), (3, WardState::Running));
        let told: Vec<_> = hello.history.iter().map(|event| event.text.as_str()).collect();
        assert!(told.iter().any(|text| text.contains("crashed")), "{told:?}");
        session.welcome(8, GRACE).await;
        node.until(|now| now.attending).await;
        poke.add();
        assert_eq!(session.exit().await.incarnation, 3);
        session.command(8, start_after(3)).await.unwrap();
        node.running("fragile", 4).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_held_ward_stays_down_when_the_node_is_alone() {
    within(async {
        let mut supervisor = FakeSupervisor::start().await;
        let node = attending(&supervisor.uri, fragile(&Counter::default())).await;
        node.running("fragile", 1).await;
        let (mut session, _) = supervisor.session().await;
        session.welcome(7, GRACE).await;
        session
            .command(
                7,
                Kind::Hold(v1::HoldWard { slot: 0, incarnation: 1, quarantined: false, released: false }),
            )
            .await
            .unwrap();
        session.command(7, stop_of(1)).await.unwrap();
        session.exit().await;
        drop((session, supervisor));
        node.until(|now| !now.attending).await;
        let mut snapshots = node.handle.snapshots();
        let started = snapshots.wait_for(|now| find(now, "fragile").state() != WardState::Stopped);
        assert!(tokio::time::timeout(4 * GRACE, started).await.is_err());
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_supervisor_of_a_lower_epoch_is_not_obeyed_and_the_node_heals_itself() {
    within(async {
        let mut supervisor = FakeSupervisor::start().await;
        let poke = Counter::default();
        let node = attending(&supervisor.uri, fragile(&poke)).await;
        let (session, _) = supervisor.session().await;
        session.welcome(7, GRACE).await;
        node.until(|now| now.attending).await;
        drop(session);
        let (mut old, hello) = supervisor.session().await;
        assert_eq!(hello.highest_epoch, 7);
        old.welcome(6, GRACE).await;
        old.order(6, Some(stop_of(1))).await;
        // The node gives this session up, though the old supervisor holds on to it.
        old.closed().await;
        node.running("fragile", 1).await;
        poke.add();
        node.running("fragile", 2).await;
        let (session, _) = supervisor.session().await;
        session.welcome(7, GRACE).await;
        node.until(|now| now.attending).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_supervisor_that_accepts_and_never_answers_is_given_up_and_dialled_again() {
    within(async {
        let mut supervisor = FakeSupervisor::start().await;
        let poke = Counter::default();
        let node = attending(&supervisor.uri, fragile(&poke)).await;
        let (mut mute, _) = supervisor.session().await;
        poke.add();
        node.running("fragile", 2).await;
        mute.closed().await;
        let (session, _) = supervisor.session().await;
        session.welcome(1, GRACE).await;
        node.until(|now| now.attending).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn nonsense_from_a_supervisor_harms_nobody() {
    within(async {
        // Not even HTTP/2.
        let garbage = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", garbage.local_addr().unwrap());
        let poke = Counter::default();
        let node = attending(&uri, fragile(&poke)).await;
        for _ in 0..2 {
            let (mut connection, _) = garbage.accept().await.unwrap();
            let _ = connection.write_all(&[0x17; 4096]).await;
        }
        poke.add();
        node.running("fragile", 2).await;
        node.stop().await;

        // Messages that say nothing, and commands about wards that do not exist.
        let mut supervisor = FakeSupervisor::start().await;
        let node = attending(&supervisor.uri, fragile(&Counter::default())).await;
        node.running("fragile", 1).await;
        let (mut session, _) = supervisor.session().await;
        session.send(None).await;
        session.welcome(1, LONG).await;
        session.order(1, None).await;
        let no_such = Kind::Start(v1::StartWard { slot: u32::MAX, after_incarnation: 0 });
        session.command(1, no_such).await.unwrap_err();
        let no_such = Kind::Stop(v1::StopWard { slot: 9, incarnation: 1, grace: None });
        session.command(1, no_such).await.unwrap_err();
        let nonsense = prost_types::Duration { seconds: i64::MIN, nanos: -7 };
        let stop = Kind::Stop(v1::StopWard { slot: 0, incarnation: 1, grace: Some(nonsense) });
        session.command(1, stop).await.unwrap();
        session.exit().await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_leaving_node_says_goodbye_and_starts_nothing_more() {
    within(async {
        let mut supervisor = FakeSupervisor::start().await;
        let gate = Gate::default();
        let inside = gate.clone();
        // Takes its time to stop, so that there is time to ask.
        let slow = Ward::task("slow", move |context| {
            let gate = inside.clone();
            async move {
                context.cancelled().await;
                tokio::task::spawn_blocking(move || gate.pass()).await.unwrap();
                Ok(())
            }
        });
        let node = start(
            Node::builder("n").supervisor(&supervisor.uri).ward(fragile(&Counter::default())).ward(slow),
        );
        let mut node = node.await;
        node.running("slow", 1).await;
        let (mut session, _) = supervisor.session().await;
        session.welcome(1, LONG).await;
        node.until(|now| now.attending).await;
        node.tell_to_stop();
        session.find(|up| matches!(up, Up::Goodbye(v1::Goodbye { restarting: false })).then_some(())).await;
        assert_eq!(session.command(1, start_after(1)).await.unwrap_err().kind(), "NO_MANDATE");
        // It still beats.
        session.report().await;
        gate.open();
        session.closed().await;
        node.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_runtime_is_stuck_still_reports_obeys_and_ends() {
    let mut supervisor = FakeSupervisor::start().await;
    let uri = supervisor.uri.clone();
    let gate = Gate::default();
    let inside = gate.clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let (ended, has_ended) = oneshot::channel();
    let wards = move |builder: NodeBuilder| {
        (0..2).fold(builder, |builder, i| {
            let gate = inside.clone();
            let blocks = move |_| {
                let gate = gate.clone();
                async move {
                    gate.pass();
                    Ok(())
                }
            };
            builder.ward(Ward::task(format!("blocks {i}"), blocks).grace(Duration::from_millis(50)))
        })
    };
    let thread = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let run = async {
            let node = wards(Node::builder("stuck").supervisor(uri)).bind("127.0.0.1:0").await.unwrap();
            node.run_until(async { drop(stopped.await) }).await
        };
        ended.send(runtime.block_on(run)).unwrap();
        runtime.shutdown_background();
    });
    within(async {
        let (mut session, _) = supervisor.session().await;
        session.welcome(1, LONG).await;
        let mut lag = 0;
        for _ in 0..3 {
            lag = session
                .find(|up| match up {
                    Up::Report(report) if report.runtime_lag_ms > lag => Some(report.runtime_lag_ms),
                    _ => None,
                })
                .await;
        }
        assert!(lag >= 400, "{lag}");
        session.command(1, Kind::Drain(v1::Drain { on: true })).await.unwrap();
        session.command(1, stop_of(1)).await.unwrap();
        assert_eq!(session.exit().await.exit.unwrap().kind(), v1::ExitKind::Abandoned);
        // It ends too, though nothing on its runtime does.
        stop.send(()).unwrap();
        session.closed().await;
        has_ended.await.unwrap().unwrap();
    })
    .await;
    gate.open();
    thread.join().unwrap();
}
