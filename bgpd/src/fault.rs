//! Defects that tests put in: `BRINDLE_FAILPOINT=NAME` makes the program panic wherever [`point`] says this name; a unit test
//! says [`arm`]. Debug builds only; in others there is nothing of it.

#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    use std::sync::LazyLock;
    static WANTED: LazyLock<String> =
        LazyLock::new(|| std::env::var("BRINDLE_FAILPOINT").unwrap_or_default());
    assert!(*WANTED != name, "a defect that a test put in");
    #[cfg(test)]
    assert!(!armed(name), "a defect that a test put in");
}

#[cfg(test)]
thread_local! {
    static ARMED: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// The next [`point`] of this name on this thread panics, once.
#[cfg(test)]
pub(crate) fn arm(name: &'static str) {
    ARMED.set(Some(name));
}

#[cfg(test)]
fn armed(name: &str) -> bool {
    let here = ARMED.get() == Some(name);
    if here {
        ARMED.set(None);
    }
    here
}

/// The same the first time only.
#[cfg(debug_assertions)]
pub(crate) fn once(name: &str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static MET: AtomicBool = AtomicBool::new(false);
    if !MET.load(Ordering::Relaxed) && std::env::var("BRINDLE_FAILPOINT").is_ok_and(|wanted| wanted == name) {
        MET.store(true, Ordering::Relaxed);
        point(name);
    }
}

// Empty on purpose: a release build has no places where it can be made to fail.
#[cfg(not(debug_assertions))]
pub(crate) const fn once(_: &str) {}

#[cfg(not(debug_assertions))]
pub(crate) const fn point(_: &str) {}
