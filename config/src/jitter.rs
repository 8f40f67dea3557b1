//! Uneven waiting: keeps processes that failed together from trying again together.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// A number below `limit` (0 when that is 0), different at each call.
pub(crate) fn below(limit: u64) -> u64 {
    if limit == 0 { 0 } else { RandomState::new().hash_one(()) % limit }
}

/// The pause before attempt `n` (from 0) of something that failed: 50–100 ms, doubling up to 5–10 s.
pub(crate) fn back_off(n: u32) -> Duration {
    let ms = (100u64 << n.min(7)).min(10_000);
    Duration::from_millis(ms / 2 + below(ms / 2))
}

/// A part of a time.
#[cfg(feature = "kubernetes")]
pub(crate) fn of(time: Duration) -> Duration {
    Duration::from_millis(below(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

/// The pause before attempt `n` (from 0) of a write that met another writer: up to 2 ms, then more, up to 100 ms.
#[cfg(feature = "kubernetes")]
pub(crate) fn retry(n: u32) -> Duration {
    Duration::from_micros(below((2_000u64 << n.min(6)).min(100_000)))
}
