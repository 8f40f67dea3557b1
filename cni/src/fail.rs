//! Places where a test lets plugin or agent die, as kill -9 would: nothing is closed, undone or said. Only debug builds
//! have them; in a release build a point is nothing at all.

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

/// The points of an ADD and a DEL in the plugin, in the order in which they are passed.
pub const PLUGIN_ADD: [&str; 5] =
    ["add.begin", "add.given", "add.created", "add.configured", "add.registered"];
pub const PLUGIN_DEL: [&str; 4] = ["del.begin", "del.found", "del.told", "del.gone"];
/// The same in the agent.
pub const AGENT_ADD: [&str; 4] =
    ["agent.add.settled", "agent.add.assigned", "agent.register.written", "agent.register.ready"];
pub const AGENT_DEL: [&str; 3] = ["agent.del.device", "agent.del.endpoint", "agent.del.released"];
