//! Waiting until something holds, with a bound. Tests never sleep for a time and hope.

use std::time::{Duration, Instant};

/// Calls `ask` until it gives a value, at most for `limit`; panics with `what` and the last refusal.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match ask() {
            Ok(value) => return value,
            Err(why) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}: {why}"),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
}

/// [`until`] for a condition without a value.
pub fn until_true(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) {
    until(what, limit, || if ask() { Ok(()) } else { Err("it does not hold".to_owned()) });
}
