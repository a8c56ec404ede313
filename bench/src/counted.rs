//! An allocator that counts what lives, while it is asked to.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
};

#[global_allocator]
static COUNTED: Counted = Counted;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

struct Counted;

fn count(taken: usize, given: usize) {
    if COUNTS.load(Relaxed) {
        LIVE.fetch_add(taken as i64 - given as i64, Relaxed);
        ALLOCATED.fetch_add(u64::from(taken > 0), Relaxed);
    }
}

// SAFETY: it is the system's allocator; what is counted touches no memory it hands out.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Counts from now on.
pub fn begin() {
    COUNTS.store(true, Relaxed);
}

/// Counts no longer, which costs nothing.
pub fn end() {
    COUNTS.store(false, Relaxed);
}

/// Bytes that live of those allocated since, as they were asked for: what the allocator adds is not in it.
pub fn live() -> i64 {
    LIVE.load(Relaxed)
}

/// Allocations since.
pub fn allocated() -> u64 {
    ALLOCATED.load(Relaxed)
}
