//! Sets nobody needs any more and which cannot go, for somebody else's rule asks them. They harm nobody: everything else is
//! written, they are told of, and it is tried again with each look at the kernel.

use std::collections::{BTreeMap, BTreeSet};

use brindle_kernel::netfilter::{Netfilter, NfError};

/// So often it is tried again soon and nobody is told: the kernel lets go of sets a moment after the rules that ask them.
const QUIET: u32 = 4;

/// Set → what was said of it.
#[derive(Default)]
pub(super) struct Held {
    sets: BTreeMap<String, String>,
    tries: u32,
}

fn set(line: &str) -> Option<&str> {
    line.strip_prefix("destroy ")
}

impl Held {
    /// Takes what came of an attempt to carry out `input`.
    pub(super) fn note(&mut self, input: &str, held: BTreeMap<String, String>) {
        let tried: BTreeSet<&str> = input.lines().filter_map(set).collect();
        let before = if self.told() { self.sets.clone() } else { BTreeMap::default() };
        self.tries = self.tries.saturating_add(u32::from(!held.is_empty()));
        self.sets.retain(|name, _| !tried.contains(name.as_str()));
        self.sets.extend(held);
        if self.sets.is_empty() {
            self.tries = 0;
        }
        if self.told() {
            for (name, why) in self.sets.iter().filter(|(name, _)| !before.contains_key(*name)) {
                tracing::warn!("{}", line(name, why));
            }
        }
        for name in before.keys().filter(|name| !self.sets.contains_key(*name)) {
            tracing::info!(set = %name, old = "asked by somebody else's rule", new = "gone", "policy");
        }
    }

    /// A look at the kernel has shown that these lines are what is to be done: all others are gone, or needed again.
    pub(super) fn look(&mut self, input: &str) {
        let left: BTreeSet<&str> = input.lines().filter_map(set).collect();
        self.sets.retain(|name, _| left.contains(name.as_str()));
        if self.sets.is_empty() {
            self.tries = 0;
        }
    }

    fn told(&self) -> bool {
        self.tries >= QUIET
    }

    /// Of lines that destroy sets, those whose time it is while nobody has looked at the kernel again.
    pub(super) fn due(&self, input: &str) -> String {
        let due = |l: &&str| self.soon() || set(l).is_none_or(|name| !self.has(name));
        input.lines().filter(due).fold(String::new(), |all, line| all + line + "\n")
    }

    pub(super) fn has(&self, set: &str) -> bool {
        self.sets.contains_key(set)
    }

    pub(super) fn any(&self) -> bool {
        !self.sets.is_empty()
    }

    /// Whether it is worth another attempt in a moment.
    pub(super) fn soon(&self) -> bool {
        self.any() && !self.told()
    }

    /// What is told of them.
    pub(super) fn lines(&self) -> Vec<String> {
        if !self.told() {
            return Vec::new();
        }
        self.sets.iter().map(|(name, why)| line(name, why)).collect()
    }
}

fn line(name: &str, why: &str) -> String {
    format!(
        "set {name} is not needed any more and cannot be removed: {why}; a rule that is not brindle's asks it: find it \
         (iptables-save | grep {name}, both makes) and remove it, the set goes then"
    )
}

/// Removes sets, a line of `input` each; gives those that could not be removed and why. Those that are gone are.
pub(super) fn destroy(nf: &mut dyn Netfilter, input: &str) -> Result<BTreeMap<String, String>, NfError> {
    let mut lines: Vec<&str> = input.lines().collect();
    let mut held = BTreeMap::new();
    while !lines.is_empty() {
        let text = lines.iter().fold(String::new(), |all, line| all + line + "\n");
        match nf.restore_sets(&text) {
            Ok(()) => break,
            Err(NfError::Refused { tool, why, culprit }) => {
                // The lines before it have taken effect.
                let at = culprit.as_ref().and_then(|c| lines.iter().position(|l| l == c));
                let Some((at, name)) = at.and_then(|at| Some((at, set(lines.get(at)?)?))) else {
                    return Err(NfError::Refused { tool, why, culprit });
                };
                if !why.contains("does not exist") {
                    held.insert(name.to_owned(), why);
                }
                lines.drain(..=at);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> BTreeMap<String, String> {
        BTreeMap::from([("brindle4-a".to_owned(), "in use".to_owned())])
    }

    #[test]
    fn a_set_in_use_is_tried_soon_and_then_with_each_look() {
        let mut held = Held::default();
        let input = "destroy brindle4-a\ndestroy brindle4-b\n";
        for _ in 1..QUIET {
            held.note(input, one());
            assert_eq!((held.due(input).as_str(), held.lines().len(), held.soon()), (input, 0, true));
        }
        held.note(input, one());
        assert_eq!(held.due(input), "destroy brindle4-b\n");
        assert!(!held.soon() && held.has("brindle4-a"));
        assert!(matches!(held.lines().as_slice(), [l] if l.starts_with("set brindle4-a is not needed")));
        // Another one that goes says nothing of it.
        held.note("destroy brindle4-b\n", BTreeMap::new());
        assert!(held.has("brindle4-a") && held.lines().len() == 1);
        held.look("destroy brindle4-a\n");
        assert_eq!(held.lines().len(), 1);
        held.look("destroy brindle4-b\n");
        assert!(!held.any() && held.lines().is_empty());
        held.note(input, one());
        assert!(held.soon());
        held.note(input, BTreeMap::new());
        assert!(!held.any() && held.lines().is_empty());
    }
}
