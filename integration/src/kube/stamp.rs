//! Times as RFC 3339 and random UIDs (RFC 9562, version 4) without another library.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

use brindle_config_core::time::Now;

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0))
}

/// `2026-01-02T03:04:05Z`.
pub(crate) fn rfc3339(seconds: i64) -> String {
    Now::from_secs(u64::try_from(seconds).unwrap_or(0)).rfc3339()
}

fn random() -> u64 {
    // Each RandomState has keys of its own.
    RandomState::new().build_hasher().finish()
}

pub(crate) fn uid() -> String {
    let (a, b) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 50) & 0x3fff,
        b & 0xffff_ffff_ffff
    )
}

/// Five characters as `generateName` appends them.
pub(crate) fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut n = random();
    let mut out = String::with_capacity(5);
    for _ in 0..5 {
        out.push(char::from(LETTERS[usize::try_from(n % LETTERS.len() as u64).unwrap_or(0)]));
        n /= LETTERS.len() as u64;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_uids_have_their_forms() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_767_322_999), "2026-01-02T03:03:19Z");
        let u = uid();
        assert_eq!(u.len(), 36);
        assert_eq!(u.as_bytes()[14], b'4');
        assert_ne!(u, uid());
        assert_eq!(suffix().len(), 5);
    }
}
