//! Places where a test lets plugin or agent die, as kill -9 would: nothing is closed, undone or said; or a step fail. Only
//! debug builds have them; in a release build a point is nothing at all.

/// Ends the process when BRINDLE_FAILPOINT names this point.
#[inline]
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("BRINDLE_FAILPOINT").is_some_and(|wanted| wanted == name) {
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// Whether BRINDLE_FAILPOINT names this step as one that fails, for those that the kernel never refuses when asked by a test.
#[inline]
pub fn refuses(name: &str) -> bool {
    #[cfg(debug_assertions)]
    return std::env::var_os("BRINDLE_FAILPOINT").is_some_and(|wanted| wanted == name);
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        false
    }
}

/// The points of an ADD and a DEL in the plugin, in the order in which they are passed.
pub const PLUGIN_ADD: [&str; 5] =
    ["add.begin", "add.given", "add.created", "add.configured", "add.registered"];
pub const PLUGIN_DEL: [&str; 4] = ["del.begin", "del.found", "del.told", "del.gone"];
/// The same in the agent; those of `ipam` are its [`brindle_ipam::STEPS`]. The first two are passed where the node claims a
/// block, so with none of its own.
pub const AGENT_ADD: [&str; 8] = [
    "ipam.claim.pending",
    "ipam.claim.created",
    "agent.add.settled",
    "ipam.assign.counted",
    "ipam.assign.written",
    "agent.add.assigned",
    "agent.register.written",
    "agent.register.ready",
];
pub const AGENT_DEL: [&str; 5] = [
    "agent.del.device",
    "agent.del.endpoint",
    "ipam.release.written",
    "ipam.release.forgotten",
    "agent.del.released",
];
/// Of a GC: nothing has gone; an attachment has; of addresses without one the block is written, the handle too, and what the
/// agent remembers of them is still to be forgotten.
pub const AGENT_GC: [&str; 8] = [
    "agent.gc.listed",
    "agent.del.endpoint",
    "ipam.release.written",
    "ipam.release.forgotten",
    "agent.del.released",
    "agent.gc.endpoint",
    "agent.gc.released",
    "agent.gc.done",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_allocator_is_died_at() {
        for step in brindle_ipam::STEPS {
            assert!(AGENT_ADD.contains(&step) || AGENT_DEL.contains(&step), "{step}");
        }
    }
}
