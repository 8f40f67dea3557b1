//! The clock and the waits that the pure allocator takes as arguments.

use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use brindle_ipam::{Now, Pause};

/// Longest wait before one retry, milliseconds.
const MAX_MILLIS: u64 = 64;

/// Waits between attempts: up to 1, 2, 4 … 64 ms, spread evenly, so that writers who collided do not meet again.
pub(crate) struct Jitter;

impl Pause for Jitter {
    fn pause(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let most = 1_u64.checked_shl(attempt).unwrap_or(MAX_MILLIS).min(MAX_MILLIS);
        let micros = random() % (most * 1000);
        Box::pin(tokio::time::sleep(Duration::from_micros(micros)))
    }

    fn passed(&self, step: &'static str) {
        brindle_cni::fail::point(step);
    }
}

/// splitmix64 over a counter that starts at a different place in every process.
fn random() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    let step = 0x9e37_79b9_7f4a_7c15_u64;
    let mut seed = STATE.fetch_add(step, Ordering::Relaxed);
    if seed == 0 {
        let start = u64::from(std::process::id()) ^ now().0;
        STATE.fetch_add(start, Ordering::Relaxed);
        seed = start;
    }
    let mut z = seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The wall clock, as the allocator wants it.
pub(crate) fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
