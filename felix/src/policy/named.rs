//! Log lines for resources that cannot be enforced as written: one when it starts, one when it is over. No decision is
//! made here.

use std::collections::BTreeSet;

/// Lines at a time: a folder of bad files must not drown the log. The status has them all.
const MOST: usize = 20;

/// Says what came and what went between two lists of `KIND(NAME): what, and what follows`.
pub(super) fn log(before: &[String], now: &[String]) {
    let (old, new): (BTreeSet<&String>, BTreeSet<&String>) = (before.iter().collect(), now.iter().collect());
    let came: Vec<_> = new.difference(&old).collect();
    for line in came.iter().take(MOST) {
        tracing::warn!("cannot be enforced as written: {line}");
    }
    if let Some(more) = came.len().checked_sub(MOST).filter(|n| *n > 0) {
        tracing::warn!("cannot be enforced as written: {more} more; the status of this node names them");
    }
    for line in old.difference(&new).take(MOST) {
        tracing::info!("no longer so: {line}");
    }
}
