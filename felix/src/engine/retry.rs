//! What failed, and when it is tried again. Times are data: the engine waits for the earliest.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// First wait; doubles with every failure.
const FIRST: Duration = Duration::from_millis(50);
const MAX: Duration = Duration::from_secs(10);
/// Failures after which news from the kernel no longer cut the wait short.
const PATIENCE: u32 = 6;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    error: String,
    attempts: u32,
    at: Instant,
}

/// Failures by what failed.
#[derive(Debug)]
pub(crate) struct Retries<K>(BTreeMap<K, Failure>);

impl<K> Default for Retries<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

fn wait(attempts: u32) -> Duration {
    FIRST.saturating_mul(1 << attempts.min(16)).min(MAX)
}

impl<K: Ord + Clone> Retries<K> {
    /// Notes a failure. True if its words are new: it is worth a line in the log.
    pub(crate) fn failed(&mut self, key: K, error: String, now: Instant) -> bool {
        let old = self.0.get(&key);
        let attempts = old.map_or(0, |f| f.attempts + 1);
        let new = old.is_none_or(|f| f.error != error);
        self.0.insert(key, Failure { error, attempts, at: now + wait(attempts) });
        new
    }

    /// Notes that something is not to be tried before a given time. True if the words are new.
    pub(crate) fn postpone(&mut self, key: K, error: String, until: Instant) -> bool {
        let new = self.0.get(&key).is_none_or(|f| f.error != error);
        self.0.insert(key, Failure { error, attempts: PATIENCE, at: until });
        new
    }

    /// It worked, or is no longer wanted. True if it had failed before.
    pub(crate) fn done(&mut self, key: &K) -> bool {
        self.0.remove(key).is_some()
    }

    /// Forgets what is not kept.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.0.retain(|k, _| keep(k));
    }

    /// Something about it changed: no reason to wait any longer, unless it has failed many times.
    pub(crate) fn hasten(&mut self, key: &K, now: Instant) {
        if let Some(f) = self.0.get_mut(key).filter(|f| f.attempts < PATIENCE) {
            f.at = now;
        }
    }

    /// What is still due although its time was used: later, so that nobody waits for a time that has passed. Its words stay.
    pub(crate) fn rearm(&mut self, now: Instant) {
        for f in self.0.values_mut().filter(|f| f.at <= now) {
            f.attempts = f.attempts.saturating_add(1);
            f.at = now + wait(f.attempts);
        }
    }

    /// Whether nothing has failed.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When this one may be tried again.
    pub(crate) fn at(&self, key: &K) -> Option<Instant> {
        self.0.get(key).map(|f| f.at)
    }

    /// Whether it may not be tried yet.
    pub(crate) fn waits(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_some_and(|f| f.at > now)
    }

    /// What may be tried now.
    pub(crate) fn due(&self, now: Instant) -> impl Iterator<Item = &K> {
        self.0.iter().filter(move |(_, f)| f.at <= now).map(|(k, _)| k)
    }

    /// When the next may be tried.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.values().map(|f| f.at).min()
    }

    /// What went wrong with one.
    pub(crate) fn error(&self, key: &K) -> Option<&str> {
        self.0.get(key).map(|f| f.error.as_str())
    }

    /// What went wrong, in order.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|f| f.error.as_str())
    }
}

/// Who repairs the same thing again and again fights with somebody: from then on once a second.
#[derive(Debug)]
pub(crate) struct Fights<K>(BTreeMap<K, (Instant, u32)>);

impl<K> Default for Fights<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Repairs made at once within [`WINDOW`].
const AT_ONCE: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

impl<K: Ord + Clone> Fights<K> {
    /// Somebody undid our work. How long to wait before doing it again; none = not at all.
    pub(crate) fn undone(&mut self, key: &K, now: Instant) -> Option<Duration> {
        self.0.retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
        let (_, count) = self.0.entry(key.clone()).or_insert((now, 0));
        *count = count.saturating_add(1);
        (*count > AT_ONCE).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_the_same_words_are_news_once() {
        let (mut r, t) = (Retries::default(), Instant::now());
        assert!(r.failed("a", "no".into(), t));
        assert!(r.waits(&"a", t) && !r.waits(&"a", t + FIRST));
        assert!(!r.failed("a", "no".into(), t));
        assert!(r.waits(&"a", t + FIRST));
        assert!(r.failed("a", "other".into(), t));
        for _ in 0..100 {
            r.failed("a", "other".into(), t);
        }
        assert_eq!(r.next(), Some(t + MAX));
        assert_eq!(r.due(t + MAX).collect::<Vec<_>>(), [&"a"]);
        assert!(r.done(&"a") && !r.done(&"a"));
    }

    #[test]
    fn what_was_not_tried_in_its_time_is_due_later_and_not_at_once() {
        let (mut r, t) = (Retries::default(), Instant::now());
        r.failed("a", "no".into(), t);
        r.rearm(t);
        assert_eq!(r.next(), Some(t + FIRST), "its time has not come");
        r.rearm(t + FIRST);
        assert_eq!(r.next(), Some(t + 3 * FIRST));
        assert_eq!(r.error(&"a"), Some("no"));
        r.hasten(&"a", t + FIRST);
        for _ in 0..100 {
            r.rearm(t + MAX);
        }
        assert_eq!(r.at(&"a"), Some(t + MAX + 4 * FIRST));
    }

    #[test]
    fn news_cut_a_short_wait_but_not_a_long_history() {
        let (mut r, t) = (Retries::default(), Instant::now());
        r.failed("a", "no".into(), t);
        r.hasten(&"a", t);
        assert!(!r.waits(&"a", t));
        for _ in 0..PATIENCE {
            r.failed("a", "no".into(), t);
        }
        r.hasten(&"a", t);
        assert!(r.waits(&"a", t));
    }

    #[test]
    fn a_fight_slows_down_and_is_forgotten() {
        let (mut f, t) = (Fights::default(), Instant::now());
        for _ in 0..AT_ONCE {
            assert_eq!(f.undone(&1, t), None);
        }
        assert_eq!(f.undone(&1, t), Some(PAUSE));
        assert_eq!(f.undone(&2, t), None, "another route is another matter");
        assert_eq!(f.undone(&1, t + WINDOW), None);
    }
}
