//! Defects that tests put in: `BRINDLE_FAILPOINT=NAME` makes the program panic wherever [`point`] says this name. Debug builds
//! only; in others there is nothing of it.

#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    use std::sync::LazyLock;
    static WANTED: LazyLock<String> =
        LazyLock::new(|| std::env::var("BRINDLE_FAILPOINT").unwrap_or_default());
    assert!(*WANTED != name, "a defect that a test put in");
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

#[cfg(not(debug_assertions))]
pub(crate) const fn once(_: &str) {}

#[cfg(not(debug_assertions))]
pub(crate) const fn point(_: &str) {}
