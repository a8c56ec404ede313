//! All the chance and all the time there is in a simulated world.
//!
//! On a thread that [`rule`] was called on, the C library's randomness and clocks are ours: what a seed leads to
//! is the same each time, in all code that is linked in (order of hash maps, branches of `select!`, UUIDs, pauses
//! with jitter, the dates of events). Other threads have the system's.
#![allow(unsafe_code, reason = "these two functions take the place of the C library's")]

use std::{cell::Cell, ffi::c_void, time::Duration};

use libc::{c_int, c_long, c_uint, clockid_t, size_t, ssize_t, timespec};

/// When worlds begin: 2030-01-01.
const BEGINNING: u64 = 1_893_456_000;

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
    static DICE: Cell<u64> = const { Cell::new(0) };
}

/// From now on, chance and time on this thread are those of this seed.
pub fn rule(seed: u64) {
    NOW.set(Some(Duration::ZERO));
    DICE.set(seed);
    fastrand::seed(seed);
}

/// Since the beginning of the world.
pub fn now() -> Duration {
    NOW.get().unwrap_or_default()
}

pub fn pass(time: Duration) {
    NOW.set(Some(now() + time));
}

/// SplitMix64.
fn roll() -> u64 {
    let state = DICE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    DICE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if NOW.get().is_none() {
        // SAFETY: the caller's promise.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as ssize_t;
    }
    for at in 0..length {
        // SAFETY: the caller promises so many bytes.
        unsafe { buffer.cast::<u8>().add(at).write(roll() as u8) };
    }
    length as ssize_t
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let Some(now) = NOW.get() else {
        // SAFETY: the caller's promise.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    };
    let seconds = (BEGINNING + now.as_secs()) as c_long;
    // SAFETY: the caller promises a place for it.
    unsafe { time.write(timespec { tv_sec: seconds, tv_nsec: c_long::from(now.subsec_nanos()) }) };
    0
}
