//! Task wards: what follows each kind of end, and how they are brought to one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use support::*;
use wardkeep_node::{Backoff, GroupSpec, Node, NodeError, Restart, Ward};
use wardkeep_proto::v1::{self, WardState};

/// Restarts come at once, so that tests need not wait.
fn eager(intensity: u32) -> GroupSpec {
    let pause = Duration::from_millis(1);
    let backoff = Backoff { first: pause, max: pause, reset: Duration::from_secs(60) };
    GroupSpec { intensity, backoff, ..GroupSpec::new("eager") }
}

/// Ends its first incarnation with `end`, and runs on in later ones.
fn ends_once(name: &str, end: fn() -> Result<(), wardkeep_proto::Error>) -> Ward {
    Ward::task(name, move |context| async move {
        if context.incarnation() == 1 {
            return end();
        }
        context.cancelled().await;
        Ok(())
    })
}

#[tokio::test]
async fn what_ends_well_is_restarted_only_if_it_is_permanent() {
    within(async {
        let node = node([
            ends_once("permanent", || Ok(())),
            ends_once("transient", || Ok(())).restart(Restart::Transient),
            ends_once("temporary", || Ok(())).restart(Restart::Temporary),
        ])
        .await;
        node.running("permanent", 2).await;
        let now = node
            .until(|now| {
                ["transient", "temporary"].iter().all(|w| find(now, w).state() == WardState::Stopped)
            })
            .await;
        assert_eq!((find(&now, "transient").incarnation, find(&now, "temporary").incarnation), (1, 1));
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_error_and_a_panic_are_failures_with_a_name() {
    within(async {
        let node = node([
            ends_once("errs", || Err(NodeError::Cancelled.into())).restart(Restart::Transient),
            ends_once("panics", || panic!("on purpose")).restart(Restart::Transient),
            ends_once("never again", || panic!("on purpose")).restart(Restart::Temporary),
        ])
        .await;
        assert!(!node.running("errs", 2).await.last_error_id.is_empty());
        assert!(!node.running("panics", 2).await.last_error_id.is_empty());
        let now = node.until(|now| find(now, "never again").state() == WardState::Stopped).await;
        assert!(find(&now, "never again").status.contains("on purpose"));
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_task_that_stops_to_pulse_is_replaced_and_an_idle_one_that_pulses_is_not() {
    within(async {
        let pulses = |context: wardkeep_node::WardContext, stop_after: usize| async move {
            for _ in 0..stop_after {
                context.pulse();
                tokio::select! {
                    () = context.cancelled() => return Ok(()),
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                }
            }
            context.cancelled().await;
            Ok(())
        };
        let timeout = Duration::from_millis(400);
        let node = node([
            Ward::task("steady", move |context| pulses(context, 1_000)).pulse_timeout(timeout),
            Ward::task("tires", move |context| pulses(context, 2)).pulse_timeout(timeout),
        ])
        .await;
        node.running("tires", 2).await;
        assert_eq!(node.running("steady", 1).await.incarnation, 1);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_task_whose_unit_of_work_hangs_is_replaced() {
    within(async {
        let node = node([Ward::task("worker", |context| async move {
            let _unit = (context.incarnation() == 1).then(|| context.work());
            context.cancelled().await;
            Ok(())
        })
        .stall_timeout(Duration::from_millis(200))])
        .await;
        node.running("worker", 2).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_task_that_ignores_its_cancellation_is_aborted_when_its_grace_is_over() {
    within(async {
        let dropped = Counter::default();
        let inside = dropped.clone();
        let mut node = node([Ward::task("deaf", move |_| {
            let dropped = OnDrop(inside.clone());
            async move {
                let _dropped = dropped;
                std::future::pending().await
            }
        })
        .grace(Duration::from_millis(50))])
        .await;
        node.running("deaf", 1).await;
        node.tell_to_stop();
        dropped.reaches(1).await;
        node.ended().await;
        assert_eq!(node.handle.snapshots().borrow().leaked_threads, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_task_that_blocks_its_thread_is_left_behind_and_its_replacement_starts() {
    within(async {
        let gate = Gate::default();
        let inside = gate.clone();
        let node = node([Ward::task("blocks", move |context| {
            let gate = inside.clone();
            async move {
                if context.incarnation() == 1 {
                    let _unit = context.work();
                    gate.pass();
                }
                context.cancelled().await;
                Ok(())
            }
        })
        .stall_timeout(Duration::from_millis(200))
        .grace(Duration::from_millis(50))])
        .await;
        node.running("blocks", 2).await;
        node.until(|now| now.leaked_threads == 1).await;
        gate.open();
        node.until(|now| now.leaked_threads == 0).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn blocking_work_of_a_task_that_ended_is_told_to_stop() {
    within(async {
        let preempted = Counter::default();
        let inside = preempted.clone();
        let node = node([Ward::task("leaves work", move |context| {
            let preempted = inside.clone();
            async move {
                if context.incarnation() == 1 {
                    drop(context.blocking(move |context| {
                        while context.preempt_point().is_ok() {
                            std::thread::yield_now();
                        }
                        preempted.add();
                    }));
                    return Ok(());
                }
                context.cancelled().await;
                Ok(())
            }
        })])
        .await;
        preempted.reaches(1).await;
        node.running("leaves work", 2).await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn wards_stop_in_the_reverse_order_of_their_start() {
    within(async {
        let order = Arc::new(Mutex::new(Vec::new()));
        let ward = |name: &'static str| {
            let order = order.clone();
            Ward::task(name, move |context| {
                let order = order.clone();
                async move {
                    order.lock().unwrap().push(format!("+{name}"));
                    context.cancelled().await;
                    // Long enough for the others to get in between, if they were stopped together.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    order.lock().unwrap().push(format!("-{name}"));
                    Ok(())
                }
            })
        };
        let node = node([ward("a"), ward("b"), ward("c")]).await;
        for name in ["a", "b", "c"] {
            node.running(name, 1).await;
        }
        // "Running" says that it was spawned, not that it has come so far.
        while order.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
        node.stop().await;
        assert_eq!(order.lock().unwrap()[3..], ["-c", "-b", "-a"]);
    })
    .await;
}

#[tokio::test]
async fn a_ward_that_fails_too_often_is_quarantined_and_stays_down() {
    within(async {
        let starts = Counter::default();
        let inside = starts.clone();
        let hopeless = Ward::task("hopeless", move |_| {
            inside.add();
            async { Err(NodeError::Cancelled.into()) }
        });
        let node = start(Node::builder("n").group(eager(3)).ward(hopeless.group("eager"))).await;
        let now = node.until(|now| find(now, "hopeless").held).await;
        assert_eq!(find(&now, "hopeless").incarnation, 4, "the first start and three restarts");
        let mut snapshots = node.handle.snapshots();
        let again = snapshots.wait_for(|now| find(now, "hopeless").incarnation > 4);
        assert!(tokio::time::timeout(Duration::from_millis(500), again).await.is_err());
        assert_eq!(starts.get(), 4);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn restarts_in_a_row_pause_longer_each_time() {
    within(async {
        let starts = Counter::default();
        let inside = starts.clone();
        let node = node([Ward::task("fails", move |_| {
            inside.add();
            async { Err(NodeError::Cancelled.into()) }
        })])
        .await;
        starts.reaches(3).await;
        // 200 ms and more before each from the third on: there is no spinning.
        assert!(starts.get() <= 4);
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_status_line_reaches_the_operators() {
    within(async {
        let node = node([Ward::task("talks", |context| async move {
            context.set_status("indexing 3 of 7");
            context.cancelled().await;
            Ok(())
        })])
        .await;
        node.until(|now| find(now, "talks").status == "indexing 3 of 7").await;
        node.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_future_is_dropped_stops_its_wards_though_its_handle_lives_on() {
    within(async {
        let dropped = Counter::default();
        let inside = dropped.clone();
        let node = Node::builder("n")
            .ward(Ward::task("t", move |context| {
                let dropped = OnDrop(inside.clone());
                async move {
                    let _dropped = dropped;
                    context.cancelled().await;
                    Ok(())
                }
            }))
            .bind("127.0.0.1:0")
            .await
            .unwrap();
        let handle = node.handle();
        let mut snapshots = handle.snapshots();
        let run = tokio::task::spawn(node.run_until(std::future::pending()));
        let is_running =
            |now: &Arc<wardkeep_node::NodeSnapshot>| find(now, "t").state() == v1::WardState::Running;
        snapshots.wait_for(is_running).await.unwrap();
        run.abort();
        dropped.reaches(1).await;
        snapshots.wait_for(|now| find(now, "t").state() == WardState::Stopped).await.unwrap();
    })
    .await;
}
