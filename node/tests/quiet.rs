//! Panics of wards are told once, by the error made of them. Alone in its binary, because a process
//! has one panic hook.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use support::*;
use wardkeep_node::{Restart, Ward};
use wardkeep_proto::v1::{self, WardState};

#[tokio::test]
async fn the_panic_hook_that_was_there_hears_nothing_of_wards_and_all_of_everything_else() {
    static PRINTED: AtomicU64 = AtomicU64::new(0);
    std::panic::set_hook(Box::new(|_| {
        PRINTED.fetch_add(1, SeqCst);
    }));
    within(async {
        let task = Ward::task("task", |_| async { panic!("in a task") }).restart(Restart::Temporary);
        let node = node([trouble(&Insides::default()), task]).await;
        node.running("trouble", 1).await;
        node.until(|now| find(now, "task").status.contains("in a task")).await;
        let mut client = node.client().await;
        client.start_ward(make("panic")).await.unwrap_err();
        let ask = v1::WatchEventsRequest { limit: 1, ..Default::default() };
        let mut events = client.watch_events(ask).await.unwrap().into_inner();
        while let Ok(Some(_)) = events.message().await {}
        assert_eq!(PRINTED.load(SeqCst), 0);
        std::thread::spawn(|| panic!("elsewhere")).join().unwrap_err();
        assert_eq!(PRINTED.load(SeqCst), 1);
        assert_eq!(find(&node.handle.snapshots().borrow(), "task").state(), WardState::Stopped);
        node.stop().await;
    })
    .await;
}
