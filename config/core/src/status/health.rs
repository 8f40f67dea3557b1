//! Health of an agent: what `/livez`, `/readyz` and `brindle-node probe` say, and the answer to a drain.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Answer to [`super::AdminRequest::Health`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub checks: Vec<Check>,
}

/// One thing that is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// Whether a failure means that the agent must be started again (it is not live), not only that it is not ready.
    pub vital: bool,
    /// Why it is or is not so.
    pub reason: String,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Only the vital checks: is the agent making progress?
    Live,
    /// All of them: does the node do what it is told?
    Ready,
}

impl Health {
    /// The checks a probe asks for.
    fn asked(&self, probe: Probe) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(move |c| probe == Probe::Ready || c.vital)
    }

    /// Whether all checks of the probe are good.
    pub fn ok(&self, probe: Probe) -> bool {
        self.asked(probe).all(|c| c.ok)
    }

    /// One line for each check and a last one with the verdict, in the manner of the API server's `/readyz?verbose`.
    pub fn text(&self, probe: Probe) -> String {
        let mut text = String::new();
        for c in self.asked(probe) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "[{}] {}: {}", if c.ok { '+' } else { '-' }, c.name, c.reason);
        }
        let word = match probe {
            Probe::Live => "live",
            Probe::Ready => "ready",
        };
        text + if self.ok(probe) { "" } else { "not " } + word + "\n"
    }
}

/// Answer to [`super::AdminRequest::Drain`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Peers that were told.
    pub peers: usize,
    /// How long they had, seconds.
    pub waited: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn liveness_looks_at_the_vital_checks_alone() {
        let check = |name: &str, ok, vital| Check { name: name.into(), ok, vital, reason: "because".into() };
        let health = Health { checks: vec![check("routes", true, true), check("bgp", false, false)] };
        assert!(health.ok(Probe::Live) && !health.ok(Probe::Ready));
        assert_eq!(health.text(Probe::Live), "[+] routes: because\nlive\n");
        assert_eq!(health.text(Probe::Ready), "[+] routes: because\n[-] bgp: because\nnot ready\n");
    }
}
