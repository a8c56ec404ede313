//! What a pulse costs the ward that gives it.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::sync::{mpsc, watch};
use wardkeep_node::testing::TestContext;

use crate::{
    beside::{Contestant, side_by_side},
    counted,
    machine::thread_nanos,
    report::Table,
};

pub const WARDKEEP: &str = "wardkeep: WardContext::pulse";
const STORE: &str = "a relaxed store";
const TIMES: u64 = 1_000_000;

pub fn table(rounds: usize) -> Table {
    let about = "One heartbeat, on the ward's side: a million in a row on one thread, beside what heartbeats are made of \
        elsewhere; nanoseconds of CPU time. The channel is emptied outside of the time.";
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let _entered = runtime.enter();
    let test = TestContext::new("worker");
    let context = test.context();
    let cell = Arc::new(AtomicU64::new(0));
    let (stored, added) = (cell.clone(), cell.clone());
    let (sender, mut receiver) = mpsc::channel::<u64>(10_000);
    let watched = watch::Sender::new(0_u64);
    let _watches = watched.subscribe();
    counted::begin();
    let contestants = vec![
        each(STORE, move |n| stored.store(n, Relaxed)),
        each("an atomic add", move |_| _ = added.fetch_add(1, Relaxed)),
        each(WARDKEEP, move |_| context.pulse()),
        each("Instant::now", |_| _ = black_box(Instant::now())),
        Contestant::new("try_send into tokio's mpsc", move || {
            let (mut nanos, before) = (0.0, counted::allocated());
            for _ in 0..TIMES / 10_000 {
                let begin = thread_nanos();
                (0..10_000).for_each(|n| _ = sender.try_send(n));
                nanos += thread_nanos() - begin;
                while receiver.try_recv().is_ok() {}
            }
            figures(nanos, before)
        }),
        each("send into tokio's watch", move |n| _ = watched.send_replace(n)),
    ];
    side_by_side(("A pulse", about), &["ns a pulse", "allocations"], STORE, rounds, contestants)
}

fn each<'a>(name: &str, mut pulse: impl FnMut(u64) + 'a) -> Contestant<'a> {
    Contestant::new(name, move || {
        let before = counted::allocated();
        let begin = thread_nanos();
        // Each one for itself: two stores in a row must not become one.
        (0..TIMES).for_each(|n| pulse(black_box(n)));
        figures(thread_nanos() - begin, before)
    })
}

fn figures(nanos: f64, allocated_before: u64) -> Vec<f64> {
    // What it is returned in is allocated, too.
    let allocated = counted::allocated() - allocated_before;
    vec![nanos / TIMES as f64, allocated as f64]
}
