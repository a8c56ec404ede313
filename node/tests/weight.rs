//! What a ward's heartbeats cost it, where that can be counted; `bench/` has the times.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use wardkeep_node::testing::TestContext;

#[tokio::test]
async fn pulses_allocate_nothing_and_work_does_so_once() {
    let test = TestContext::new("worker");
    let context = test.context();
    let allocated = |heartbeat: &dyn Fn()| {
        allocation_counter::measure(|| (0..10_000).for_each(|_| heartbeat())).count_total
    };
    assert_eq!(allocated(&|| context.pulse()), 0);
    context.work().done();
    assert_eq!(allocated(&|| context.work().done()), 0);
    assert_eq!((test.pulses(), test.work_ended()), (10_000, 10_001));
}
