//! What a Calico has left on this node goes once ours is in force, so that no denied packet passes and no allowed one is
//! lost meanwhile. While one runs nothing of it is touched: the two would undo each other's work.

use std::time::{Duration, Instant};

use brindle_felix_core::rules::calico::Count;

use super::Engine;

/// First and longest pause after something could not be removed; before that many attempts nobody is told: the kernel
/// lets go of sets a moment after the rules that ask them.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
const QUIET: u32 = 4;
/// Pause between two looks at whether it still runs.
const RUNS: Duration = Duration::from_secs(5);
/// What is back so soon after it was removed was written by somebody who writes it again.
const BACK: Duration = Duration::from_secs(300);

/// Whether there is anything, and what came of removing it.
pub(super) struct Calico {
    /// What shows that one runs here.
    running: fn() -> Option<String>,
    /// When to try again.
    at: Option<Instant>,
    pause: Duration,
    failures: u32,
    /// It ran when last looked at.
    held: bool,
    /// Removed and not yet told of.
    removed: Count,
    /// When all of it was removed.
    gone: Option<Instant>,
    problem: Option<String>,
}

impl Calico {
    pub(super) fn new(running: fn() -> Option<String>) -> Self {
        Self {
            running,
            at: None,
            pause: AGAIN.0,
            failures: 0,
            held: false,
            removed: Count::default(),
            gone: None,
            problem: None,
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }

    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    fn complain(&mut self, why: String) {
        if self.problem.as_ref() != Some(&why) {
            tracing::warn!("{why}");
        }
        self.problem = Some(why);
    }

    fn runs(&mut self, who: &str, now: Instant) {
        self.held = true;
        self.at = Some(now + RUNS);
        self.complain(format!(
            "a Calico runs on this node ({who}), and its rules are met beside ours: new pods may be cut off; keep \
             calico-node off this node, what it leaves is removed then"
        ));
    }

    fn done(&mut self, now: Instant) {
        let Count { rules, chains, sets, tables } = std::mem::take(&mut self.removed);
        if rules + chains + sets + tables > 0 {
            tracing::info!(
                rules,
                chains,
                sets,
                tables,
                "removed what a Calico had left in the packet filter"
            );
            self.gone = Some(now);
        }
        if let Some(old) = self.problem.take() {
            tracing::info!(%old, new = "nothing of a Calico is left in the packet filter", "policy");
        }
        (self.at, self.pause, self.failures, self.held) = (None, AGAIN.0, 0, false);
    }
}

impl Engine {
    /// Removes what a Calico has left, if a reading has shown anything of it and all of ours is in force.
    pub(super) fn clear_calico(&mut self, now: Instant) {
        if !self.driver.calico || !self.settled() || self.calico.at.is_some_and(|at| at > now) {
            return;
        }
        if self.calico.held
            && let Some(who) = (self.calico.running)()
        {
            return self.calico.runs(&who, now);
        }
        if self.calico.at.is_none() && self.calico.gone.is_some_and(|gone| now < gone + BACK) {
            self.calico.at = Some(now + BACK);
            return self.calico.complain(
                "Calico's rules are back in the packet filter though they were removed: something writes them; find \
                 out whether calico-node or calico-felix runs on this node and remove it, what it leaves is removed then"
                    .into(),
            );
        }
        match self.driver.clear_calico(self.calico.running, &mut self.calico.removed) {
            Ok(None) => self.calico.done(now),
            Ok(Some(who)) => self.calico.runs(&who, now),
            Err(e) => {
                self.calico.held = false;
                self.calico.failures += 1;
                self.calico.at = Some(now + self.calico.pause);
                self.calico.pause = (self.calico.pause * 2).min(AGAIN.1);
                if self.calico.failures > QUIET {
                    self.calico.complain(format!(
                        "what a Calico has left in the packet filter cannot be removed ({e}), and new pods may be cut \
                         off; trying again; find what holds it (iptables-save | grep cali, ipset list -n)"
                    ));
                }
            }
        }
    }
}
