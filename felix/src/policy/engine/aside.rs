//! One refused line must not hold back a whole node: what it belongs to is set aside, all else is enforced, and it is tried
//! again when it changes, or after a while.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_felix_core::rules::{aside, model::HeldBack};
use brindle_kernel::netfilter::{NfError, Variant};

use super::{BackEnd, Engine};
use crate::policy::{
    driver::{DriveError, Mode},
    named,
};

/// So many writes at once, two for each that is set aside; then others have their turn.
pub(super) const TRIES: usize = 32;
/// After so long everything is tried again in full.
const AGAIN: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Aside {
    /// A line that was refused, and with what. Refused once more, right after the kernel was read again, it is the line that
    /// is wrong and not what it met.
    suspect: Option<(String, Option<Mode>)>,
    /// What is set aside, a line for each, and when it is tried again.
    pub(super) lines: Vec<String>,
    again: Option<Instant>,
    /// What holds of policies and profiles meanwhile, as the state has it that flows are judged by.
    held: HeldBack,
}

impl Aside {
    pub(super) fn due(&self) -> Option<Instant> {
        self.again
    }
}

impl Engine {
    /// Sets aside what a refused line belongs to. `true`: write again now.
    pub(super) fn set_aside(&mut self, why: &DriveError) -> bool {
        let DriveError::Netfilter(e @ NfError::Refused { culprit: Some(line), .. }) = why else {
            return false;
        };
        let Some(fault) = aside::fault(line).filter(|f| self.model.is_of_policy(f)) else { return false };
        let mode = self.driver.mode();
        // A kernel may know one make of iptables only by name: before anything is in force the other one says the same, or it
        // is not the line.
        let makes = !self.applied
            && self.settings.back_end == BackEnd::Auto
            && matches!(mode, Some(Mode::Iptables(Variant::Legacy | Variant::Nft)));
        match self.aside.suspect.take() {
            Some((text, before)) if text == *line && (!makes || before != mode) => {
                if let Some(first) = before.filter(|_| makes) {
                    self.driver.set_mode(first);
                }
                self.failed = None;
                self.model.set_aside(fault, e.to_string())
            }
            _ => {
                self.aside.suspect = Some((line.clone(), mode));
                !makes
            }
        }
    }

    /// Everything is tried in full when its time has come.
    pub(super) fn try_in_full(&mut self, now: Instant) {
        if self.aside.again.is_some_and(|at| at <= now) {
            self.aside.again = None;
            self.model.try_in_full();
            self.pending.rules = true;
        }
    }

    /// Flows are judged by what is in the kernel: what denies meanwhile denies them, too.
    fn judge_by(&mut self, held: HeldBack) {
        let before = std::mem::replace(&mut self.aside.held, held);
        let held = &self.aside.held;
        for (id, p) in before.policies.iter().filter(|(id, _)| !held.policies.contains_key(*id)) {
            // One that changed was told of already, and one that went is gone.
            if self.state.policies.get(id) == Some(p)
                && let Some(p) = self.model.policies.get(id)
            {
                self.state.policies.insert(id.clone(), Arc::clone(p));
            }
        }
        for (name, p) in before.profiles.iter().filter(|(name, _)| !held.profiles.contains_key(*name)) {
            if self.state.profiles.get(name) == Some(p)
                && let Some(p) = self.model.profiles.get(name)
            {
                self.state.profiles.insert(name.clone(), Arc::clone(p));
            }
        }
        self.state.policies.extend(held.policies.iter().map(|(id, p)| (id.clone(), Arc::clone(p))));
        self.state.profiles.extend(held.profiles.iter().map(|(name, p)| (name.clone(), Arc::clone(p))));
        self.pending.judge |= before != *held;
    }

    /// Tells of what is set aside after a write.
    pub(super) fn tell_of_aside(&mut self, written: bool, now: Instant) {
        if written {
            self.aside.suspect = None;
        }
        self.judge_by(self.model.held_back());
        let lines = self.model.aside();
        named::log(&self.aside.lines, &lines);
        self.aside.again = self.aside.again.or(Some(now + AGAIN)).filter(|_| !lines.is_empty());
        self.aside.lines = lines;
    }
}
