//! Waiting with a bound: ask, and ask again a little later. Agents report state, not events, to strangers; the
//! intervals are short at first, so that a fast lab is not slowed down, and then grow, so that a big one is not
//! kept busy with answering.

use std::time::{Duration, Instant};

/// First interval between two questions.
const FIRST: Duration = Duration::from_millis(10);
/// Longest interval.
const LAST: Duration = Duration::from_millis(250);

/// Calls `ask` until it answers `true` or `limit` is over; says which.
pub(crate) fn until(limit: Duration, mut ask: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST;
    loop {
        if ask() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 3 / 2).min(LAST);
    }
}

/// Runs `work` on every item with at most `width` threads; results in order.
pub(crate) fn parallel<T: Sync, R: Send>(items: &[T], width: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let done = std::sync::Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..width.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(item) = items.get(i) else { return };
                    let result = work(item);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, r)| r).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_at_once_when_true_and_at_the_limit_when_never() {
        assert!(until(Duration::from_secs(60), || true));
        assert!(!until(Duration::from_millis(30), || false));
    }

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(parallel(&items, 7, |i| i * 2), (0..200).step_by(2).collect::<Vec<_>>());
        assert_eq!(parallel(&[] as &[usize], 3, |i| *i), [0usize; 0]);
    }
}
