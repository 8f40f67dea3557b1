//! Reading iptables-save back, and the smallest iptables-restore input that leads from there to what is wanted.
//!
//! Ours are chains whose name begins with `brindle-`, and in other chains the rules that carry our tag or jump to a
//! chain of ours. Everything else is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use super::{
    iptables::{TAG, Text},
    ir::{Place, Table},
    names::{COMMENT, is_our_chain},
};

/// What iptables-save said that does not fit its form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of iptables-save is not understood: {text:?}")]
pub struct SaveError {
    pub line: usize,
    pub text: String,
}

/// The rules of a chain of ours, without the chain's name.
#[derive(Clone, Debug)]
pub enum Rules {
    /// As the kernel prints them.
    Read(Vec<String>),
    /// What was left of some and put to others, in whoever's words.
    Believed(Vec<String>),
    /// Those of this text: written, or read and compared. There are many, and this way they are kept once.
    Of(Arc<Text>),
}

impl Rules {
    /// The rules.
    pub fn lines(&self) -> &[String] {
        match self {
            Self::Read(lines) | Self::Believed(lines) => lines,
            Self::Of(text) => &text.lines,
        }
    }
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        self.lines() == other.lines()
    }
}

impl Eq for Rules {}

/// A table as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Our chains.
    pub chains: BTreeMap<String, Rules>,
    /// The kernel's and other people's chains that hold, or may hold, rules of ours.
    pub others: BTreeMap<String, Vec<String>>,
    /// Rules that are not ours.
    pub foreign: usize,
}

/// The tag of a rule as printed.
pub fn tag(line: &str) -> Option<&str> {
    let (_, after) = line.split_once(COMMENT)?;
    let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
    after.get(..end).filter(|t| t.len() == TAG)
}

/// Whether a rule in another chain is ours.
pub fn is_ours(line: &str) -> bool {
    let leads_to = |flag: &str| {
        let (_, after) = line.split_once(flag)?;
        Some(is_our_chain(after.split(' ').next().unwrap_or_default()))
    };
    tag(line).is_some() || leads_to(" -j ").or_else(|| leads_to(" -g ")).unwrap_or(false) || {
        let bare = line.strip_prefix("-j ").or_else(|| line.strip_prefix("-g "));
        bare.is_some_and(|r| is_our_chain(r.split(' ').next().unwrap_or_default()))
    }
}

/// Reads the output of iptables-save.
pub fn parse(text: &str) -> Result<BTreeMap<Table, Actual>, SaveError> {
    let mut out: BTreeMap<Table, Actual> = BTreeMap::new();
    let mut table = None;
    for (i, raw) in text.lines().enumerate() {
        let line = raw.trim_end();
        let bad = || SaveError { line: i + 1, text: line.chars().take(120).collect() };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('*') {
            // Tables we do not use (security, broute) are not ours to judge.
            table = Table::parse(name);
            if let Some(t) = table {
                out.entry(t).or_default();
            } else {
                table = None;
            }
            continue;
        }
        if line == "COMMIT" {
            table = None;
            continue;
        }
        let Some(actual) = table.and_then(|t| out.get_mut(&t)) else { continue };
        if let Some(decl) = line.strip_prefix(':') {
            let name = decl.split(' ').next().filter(|n| !n.is_empty()).ok_or_else(bad)?;
            if is_our_chain(name) {
                actual.chains.entry(name.to_owned()).or_insert_with(|| Rules::Read(Vec::new()));
            } else {
                actual.others.entry(name.to_owned()).or_default();
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
            if is_our_chain(chain) {
                // Rules follow the declaration of their chain.
                let Some(Rules::Read(lines)) = actual.chains.get_mut(chain) else { return Err(bad()) };
                lines.push(rest.to_owned());
            } else {
                if !is_ours(rest) {
                    actual.foreign += 1;
                }
                actual.others.entry(chain.to_owned()).or_default().push(rest.to_owned());
            }
        } else {
            return Err(bad());
        }
    }
    for t in out.values_mut() {
        // Of other people's chains only those matter where we stand or may stand.
        t.others.retain(|name, rules| {
            ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"].contains(&&**name)
                || rules.iter().any(|r| is_ours(r))
        });
    }
    Ok(out)
}

/// A hook as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookText {
    pub chain: String,
    pub place: Place,
    pub text: Text,
}

/// A table as wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub chains: BTreeMap<String, Arc<Text>>,
    pub hooks: Vec<HookText>,
}

/// Chain → digest of a tag → digest of how the kernel printed that rule when the chain was known to be as wanted: an edit
/// that keeps our comments shows against it.
pub type Seen = BTreeMap<String, BTreeMap<u64, u64>>;

/// Of a text of our own making or of the kernel's, for comparison within this process.
fn digest(text: &str) -> u64 {
    let mut h = DefaultHasher::new();
    text.hash(&mut h);
    h.finish()
}

/// Input for iptables-restore, and what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablePlan {
    /// Empty: nothing to do.
    pub input: String,
    /// Chains written, chains removed, hook chains mended.
    pub written: usize,
    pub removed: usize,
    pub mended: usize,
    /// Rules put into or taken out of chains that otherwise stay.
    pub choices: usize,
    /// Rules that are in force go or are replaced: the kernel waits until no packet meets them any more.
    pub removes: bool,
    /// Something nobody needs stays until a plan that removes it.
    pub left: bool,
    /// What changes of our chains: the rules they have afterwards, `None` for those that go.
    after: BTreeMap<String, Option<Rules>>,
}

impl TablePlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.input.is_empty()
    }
}

/// What becomes of chains and choices that are not wanted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    Remove,
    /// They harm nobody: devices they speak of are gone.
    Keep,
}

/// What takes all of ours out of the tables of one make of iptables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// For iptables-restore. Empty: nothing of ours is there.
    pub input: String,
    /// Our chains, and our rules in chains of others.
    pub chains: usize,
    pub rules: usize,
}

/// Plans a removal of what iptables-save said: in every table nothing is wanted.
pub fn removal(text: &str) -> Result<Removal, SaveError> {
    let mut out = Removal::default();
    for (table, have) in parse(text)? {
        let plan = plan(table, &Wanted::default(), &have, &Seen::new(), Leftovers::Remove);
        out.chains += plan.removed;
        out.rules += plan.input.lines().filter(|l| l.starts_with("-D ")).count();
        out.input.push_str(&plan.input);
    }
    Ok(out)
}

/// Lines of a restore in the order they must stand in.
#[derive(Default)]
struct Lines {
    declare: String,
    rules: String,
    flush: String,
    delete: String,
}

/// Plans one table.
pub fn plan(table: Table, wanted: &Wanted, actual: &Actual, seen: &Seen, leftovers: Leftovers) -> TablePlan {
    let mut out = TablePlan::default();
    let mut lines = Lines::default();
    for (name, text) in &wanted.chains {
        match actual.chains.get(name) {
            Some(have) if same(name, text, have, seen) => {}
            Some(have)
                if text.loose > 0 && choose(name, text, have, seen, leftovers, &mut out, &mut lines) => {}
            have => {
                out.removes |= have.is_some_and(|rules| !rules.lines().is_empty());
                // Declaring a chain empties it. Writing to a String cannot fail.
                let _ = writeln!(lines.declare, ":{name} - [0:0]");
                for line in &text.lines {
                    let _ = writeln!(lines.rules, "-A {name} {line}");
                }
                out.written += 1;
                out.after.insert(name.clone(), Some(Rules::Of(Arc::clone(text))));
            }
        }
    }
    mend_hooks(wanted, actual, &mut out, &mut lines.rules);
    for name in actual.chains.keys().filter(|n| !wanted.chains.contains_key(*n)) {
        if leftovers == Leftovers::Keep {
            out.left = true;
            continue;
        }
        out.removed += 1;
        out.removes = true;
        let _ = writeln!(lines.flush, "-F {name}");
        let _ = writeln!(lines.delete, "-X {name}");
        out.after.insert(name.clone(), None);
    }
    let Lines { declare, rules, flush, delete } = lines;
    if !(declare.is_empty() && rules.is_empty() && flush.is_empty()) {
        out.input = format!("*{table}\n{declare}{rules}{flush}{delete}COMMIT\n");
    }
    out
}

/// Mends a chain whose choices differ by adding and removing choices. `false`: it must be written anew.
fn choose(
    name: &str,
    text: &Arc<Text>,
    have: &Rules,
    seen: &Seen,
    leftovers: Leftovers,
    out: &mut TablePlan,
    lines: &mut Lines,
) -> bool {
    if edited(name, have, seen) {
        return false;
    }
    let have = have.lines();
    let end = text.tags.get(text.loose..).unwrap_or_default();
    let Some(choices) = have.len().checked_sub(end.len()) else { return false };
    let (have_choices, have_end) = have.split_at(choices);
    let tags: Option<BTreeSet<&str>> = have_choices.iter().map(|l| tag(l)).collect();
    let Some(tags) = tags.filter(|t| t.len() == choices) else { return false };
    if !have_end.iter().zip(end).all(|(line, want)| tag(line) == Some(want)) {
        return false;
    }
    let wanted: BTreeSet<&str> = text.tags.iter().take(text.loose).map(String::as_str).collect();
    let mut left = false;
    let mut after = Vec::with_capacity(have.len() + 1);
    for (line, t) in text.lines.iter().zip(&text.tags).take(text.loose) {
        if !tags.contains(t.as_str()) {
            out.choices += 1;
            let _ = writeln!(lines.rules, "-I {name} 1 {line}");
            after.push(line.clone());
        }
    }
    for line in have_choices {
        let unwanted = tag(line).is_none_or(|t| !wanted.contains(t));
        if unwanted && leftovers == Leftovers::Remove {
            out.choices += 1;
            out.removes = true;
            let _ = writeln!(lines.rules, "-D {name} {line}");
        } else {
            left |= unwanted;
            after.push(line.clone());
        }
    }
    after.extend_from_slice(have_end);
    out.left |= left;
    // Their order means nothing.
    let after = if left { Rules::Believed(after) } else { Rules::Of(Arc::clone(text)) };
    out.after.insert(name.to_owned(), Some(after));
    true
}

fn same(name: &str, text: &Arc<Text>, have: &Rules, seen: &Seen) -> bool {
    if let Rules::Of(t) = have {
        return Arc::ptr_eq(t, text) || t.tags == text.tags && t.loose == text.loose;
    }
    if edited(name, have, seen) {
        return false;
    }
    let have = have.lines();
    if have.len() != text.tags.len() {
        return false;
    }
    let at = text.loose.min(have.len());
    let ((choices, end), (want_choices, want_end)) = (have.split_at(at), text.tags.split_at(at));
    let in_order = |lines: &[String], tags: &[String]| lines.iter().zip(tags).all(|(l, t)| tag(l) == Some(t));
    // Most often they stand in order.
    let choices_fit = in_order(choices, want_choices) || {
        let have: BTreeSet<&str> = choices.iter().filter_map(|l| tag(l)).collect();
        have.len() == at && want_choices.iter().all(|t| have.contains(t.as_str()))
    };
    choices_fit && in_order(end, want_end)
}

/// Printed otherwise than before under the same tag: somebody edited the rule and kept the comment.
pub(super) fn edited(name: &str, have: &Rules, seen: &Seen) -> bool {
    let (Rules::Read(have), Some(known)) = (have, seen.get(name)) else { return false };
    have.iter().any(|line| {
        let before = tag(line).and_then(|t| known.get(&digest(t)));
        before.is_some_and(|before| *before != digest(line))
    })
}

fn mend_hooks(wanted: &Wanted, actual: &Actual, out: &mut TablePlan, rules: &mut String) {
    let mut chains: BTreeSet<&str> = wanted.hooks.iter().map(|h| &*h.chain).collect();
    chains.extend(actual.others.iter().filter(|(_, r)| r.iter().any(|l| is_ours(l))).map(|(n, _)| &**n));
    for chain in chains {
        let have = actual.others.get(chain).map_or(&[][..], Vec::as_slice);
        let of = |place| {
            let hooks = wanted.hooks.iter().filter(move |h| h.chain == chain && h.place == place);
            hooks.flat_map(|h| h.text.lines.iter().zip(&h.text.tags)).collect::<Vec<_>>()
        };
        let (first, last) = (of(Place::First), of(Place::Last));
        let ours: Vec<&String> = have.iter().filter(|l| is_ours(l)).collect();
        let tags = first.iter().chain(&last).map(|(_, t)| t.as_str());
        let right = ours.len() == first.len() + last.len()
            && ours.iter().zip(tags).all(|(line, want)| tag(line) == Some(want))
            && have.iter().take(first.len()).all(|l| is_ours(l));
        if right {
            continue;
        }
        out.mended += 1;
        for line in ours {
            let _ = writeln!(rules, "-D {chain} {line}");
        }
        for (i, (line, _)) in first.iter().enumerate() {
            let _ = writeln!(rules, "-I {chain} {} {line}", i + 1);
        }
        for (line, _) in &last {
            let _ = writeln!(rules, "-A {chain} {line}");
        }
    }
}

/// Remembers how the kernel prints the rules of chains that are as wanted, and no longer the rules themselves.
pub fn remember(wanted: &Wanted, actual: &mut Actual, seen: &mut Seen) {
    seen.retain(|name, _| wanted.chains.contains_key(name));
    for (name, text) in &wanted.chains {
        forget(text, seen);
        let Some(have) = actual.chains.get_mut(name).filter(|have| same(name, text, have, seen)) else {
            continue;
        };
        let Rules::Read(lines) = have else { continue };
        let known = seen.entry(name.clone()).or_default();
        for line in lines {
            if let Some(t) = tag(line) {
                known.entry(digest(t)).or_insert_with(|| digest(line));
            }
        }
        *have = Rules::Of(Arc::clone(text));
    }
}

/// Forgets how rules of a chain were printed that are not wanted any more.
fn forget(text: &Text, seen: &mut Seen) {
    let Some(known) = seen.get_mut(&text.name) else { return };
    let tags: BTreeSet<u64> = text.tags.iter().map(|t| digest(t)).collect();
    known.retain(|t, _| tags.contains(t));
}

/// What the table looks like when the plan has been carried out: believed until it is read back.
/// How the kernel prints what was just written is not known yet.
pub fn assume(plan: TablePlan, wanted: &Wanted, actual: &mut Actual, seen: &mut Seen) {
    for (name, rules) in plan.after {
        match wanted.chains.get(&name) {
            Some(text) => forget(text, seen),
            None => drop(seen.remove(&name)),
        }
        match rules {
            Some(rules) => actual.chains.insert(name, rules),
            None => actual.chains.remove(&name),
        };
    }
    if plan.mended == 0 {
        return;
    }
    // A table that did not exist showed none of the kernel's chains.
    for hook in &wanted.hooks {
        actual.others.entry(hook.chain.clone()).or_default();
    }
    for (name, rules) in &mut actual.others {
        let foreign = rules.iter().filter(|l| !is_ours(l)).cloned();
        let of = |place| {
            let hooks = wanted.hooks.iter().filter(move |h| h.chain == *name && h.place == place);
            hooks.flat_map(|h| h.text.lines.iter().cloned()).collect::<Vec<_>>()
        };
        *rules = of(Place::First).into_iter().chain(foreign).chain(of(Place::Last)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{
        iptables,
        ir::{Action, Chain, Family, Hook, Match, Rule},
    };

    fn wanted(chains: &[Chain]) -> Wanted {
        let hook = Hook {
            chain: "FORWARD",
            place: Place::First,
            rules: vec![Rule::new(vec![], Action::Jump("brindle-FORWARD".into()))],
        };
        let last = Hook {
            chain: "FORWARD",
            place: Place::Last,
            rules: vec![Rule::new(vec![Match::Mark { value: 1, mask: 1 }], Action::Accept)],
        };
        let text = |h: &Hook| HookText {
            chain: h.chain.into(),
            place: h.place,
            text: iptables::hook(Family::V4, h),
        };
        Wanted {
            chains: chains
                .iter()
                .map(|c| (c.name.clone(), Arc::new(iptables::chain(Family::V4, c))))
                .collect(),
            hooks: vec![text(&hook), text(&last)],
        }
    }

    fn carry_out(want: &Wanted, have: &mut Actual) {
        let p = plan(Table::Filter, want, have, &Seen::new(), Leftovers::Remove);
        assume(p, want, have, &mut Seen::new());
    }

    /// As if it had been read: the kernel prints what was written.
    fn as_read(have: &mut Actual) {
        for rules in have.chains.values_mut() {
            *rules = Rules::Read(rules.lines().to_vec());
        }
    }

    fn read<'a>(have: &'a mut Actual, chain: &str) -> &'a mut Vec<String> {
        match have.chains.get_mut(chain).unwrap() {
            Rules::Read(lines) => lines,
            other => unreachable!("{other:?} was not read"),
        }
    }

    fn choosing(devices: &[&str]) -> Wanted {
        let goto = |d: &&str| Rule::new(vec![], Action::Goto(format!("brindle-{d}")));
        let drop = Rule::new(vec![], Action::Drop);
        let mut chains: Vec<Chain> =
            devices.iter().map(|d| Chain::new(format!("brindle-{d}"), vec![drop.clone()])).collect();
        let choices = devices.iter().map(goto).collect();
        chains.push(Chain::choosing("brindle-FORWARD", choices, std::slice::from_ref(&drop)));
        wanted(&chains)
    }

    #[test]
    fn a_newcomer_is_added_without_touching_others_and_one_that_left_may_wait() {
        let mut have = parse(FOREIGN).unwrap().remove(&Table::Filter).unwrap();
        carry_out(&choosing(&["a", "c"]), &mut have);
        let want = choosing(&["b", "c"]);
        let p = plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Keep);
        assert!(!p.removes && p.left, "{p:?}");
        insta::assert_snapshot!(p.input);
        assume(p, &want, &mut have, &mut Seen::new());
        let idle = plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Keep);
        assert!(idle.is_empty() && idle.left, "{idle:?}");
        let p = plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove);
        assert!(p.removes && !p.left, "{p:?}");
        insta::assert_snapshot!(p.input);
        assume(p, &want, &mut have, &mut Seen::new());
        assert!(plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove).is_empty());
    }

    #[test]
    fn an_edited_choice_or_a_changed_end_makes_the_chain_anew() {
        let mut have = parse(FOREIGN).unwrap().remove(&Table::Filter).unwrap();
        carry_out(&choosing(&["a", "c"]), &mut have);
        let mut seen = Seen::new();
        as_read(&mut have);
        remember(&choosing(&["a", "c"]), &mut have, &mut seen);
        as_read(&mut have);
        let want = choosing(&["a", "b", "c"]);
        let good = have.clone();
        let line = &mut read(&mut have, "brindle-FORWARD")[0];
        *line = line.replace("-g brindle-a", "-j ACCEPT");
        let p = plan(Table::Filter, &want, &have, &seen, Leftovers::Keep);
        assert!(p.removes && p.input.contains(":brindle-FORWARD"), "{p:?}");
        let mut have = good;
        read(&mut have, "brindle-FORWARD").pop();
        let p = plan(Table::Filter, &want, &have, &seen, Leftovers::Keep);
        assert!(p.removes && p.input.contains(":brindle-FORWARD"), "{p:?}");
    }

    fn example() -> Wanted {
        let known = Rule::new(vec![Match::Known], Action::Accept);
        let drop = Rule::new(vec![], Action::Drop);
        wanted(&[
            Chain::new("brindle-FORWARD", vec![known, Rule::new(vec![], Action::Jump("brindle-x".into()))]),
            Chain::new("brindle-x", vec![drop]),
        ])
    }

    const FOREIGN: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [5:6]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n\
        -A FORWARD -o docker0 -j DOCKER\nCOMMIT\n";

    #[test]
    fn an_empty_table_gets_everything_and_then_nothing() {
        let want = example();
        let mut have = parse(FOREIGN).unwrap().remove(&Table::Filter).unwrap();
        let p = plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove);
        assert_eq!((p.written, p.removed, p.mended), (2, 0, 1));
        insta::assert_snapshot!(p.input);
        assume(p, &want, &mut have, &mut Seen::new());
        assert!(plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove).is_empty());
        assert_eq!(have.others["FORWARD"].len(), 3, "the foreign rule stays between ours: {have:?}");
    }

    #[test]
    fn hooks_in_chains_of_a_table_that_was_not_there_are_known_afterwards() {
        let want = example();
        let mut have = Actual::default();
        let p = plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove);
        assert_eq!(p.mended, 1);
        assume(p, &want, &mut have, &mut Seen::new());
        assert!(plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove).is_empty());
    }

    #[test]
    fn strangers_and_leftovers_are_told_apart() {
        let want = example();
        let mut have = parse(FOREIGN).unwrap().remove(&Table::Filter).unwrap();
        carry_out(&want, &mut have);
        have.chains.insert("brindle-old".into(), Rules::Read(vec!["-j DROP".into()]));
        have.others.insert(
            "INPUT".into(),
            vec!["-p 4 -j brindle-ipip".into(), "-p 5 -j brindle-old".into(), "-j ACCEPT".into()],
        );
        let p = plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove);
        assert_eq!(
            p.input,
            "*filter\n-D INPUT -p 5 -j brindle-old\n-F brindle-old\n-X brindle-old\nCOMMIT\n"
        );
    }

    #[test]
    fn a_flush_a_deleted_rule_and_an_edit_behind_our_comment_are_repaired() {
        let want = example();
        let mut have = parse(FOREIGN).unwrap().remove(&Table::Filter).unwrap();
        carry_out(&want, &mut have);
        let mut seen = Seen::new();
        as_read(&mut have);
        remember(&want, &mut have, &mut seen);
        as_read(&mut have);
        let good = have.clone();
        read(&mut have, "brindle-x").clear();
        assert_eq!(plan(Table::Filter, &want, &have, &seen, Leftovers::Remove).written, 1);
        let mut have = good.clone();
        let line = &mut read(&mut have, "brindle-x")[0];
        *line = line.replace("DROP", "ACCEPT");
        let p = plan(Table::Filter, &want, &have, &seen, Leftovers::Remove);
        assert!(p.written == 1 && p.input.contains("-j DROP"), "{p:?}");
        let mut have = good;
        have.others.get_mut("FORWARD").unwrap().remove(0);
        let p = plan(Table::Filter, &want, &have, &seen, Leftovers::Remove);
        assert_eq!((p.written, p.mended), (0, 1));
    }

    #[test]
    fn a_rule_pushed_in_front_of_ours_is_overtaken() {
        let want = example();
        let mut have = parse(FOREIGN).unwrap().remove(&Table::Filter).unwrap();
        carry_out(&want, &mut have);
        have.others.get_mut("FORWARD").unwrap().insert(0, "-j ACCEPT".into());
        assert_eq!(plan(Table::Filter, &want, &have, &Seen::new(), Leftovers::Remove).mended, 1);
    }

    #[test]
    fn unknown_lines_are_named_and_other_tables_skipped() {
        let e = parse("*filter\nwhat is this\n").unwrap_err();
        assert_eq!(e.to_string(), "line 2 of iptables-save is not understood: \"what is this\"");
        assert!(parse("*security\n:INPUT ACCEPT [0:0]\nx\nCOMMIT\n").unwrap().is_empty());
    }

    #[test]
    fn a_removal_takes_ours_out_of_every_table_and_nothing_else() {
        let saved = "*nat\n:POSTROUTING ACCEPT [0:0]\n:KUBE-POSTROUTING - [0:0]\n:brindle-POSTROUTING - [0:0]\n\
            -A POSTROUTING -m comment --comment \"bri:0123456789abcdef\" -j brindle-POSTROUTING\n\
            -A POSTROUTING -j KUBE-POSTROUTING\n-A brindle-POSTROUTING -j MASQUERADE\nCOMMIT\n\
            *filter\n:FORWARD ACCEPT [0:0]\n:theirs - [0:0]\n:brindle-FORWARD - [0:0]\n:brindle-ipip - [0:0]\n\
            -A FORWARD -j brindle-FORWARD\n-A FORWARD -j theirs\n-A theirs -g brindle-FORWARD\n\
            -A theirs -s 10.0.0.1/32 -j DROP\n-A brindle-ipip -j DROP\nCOMMIT\n*mangle\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        let out = removal(saved).unwrap();
        assert_eq!((out.chains, out.rules), (2, 3));
        let nat = "*nat\n-D POSTROUTING -m comment --comment \"bri:0123456789abcdef\" -j brindle-POSTROUTING\n\
            -F brindle-POSTROUTING\n-X brindle-POSTROUTING\nCOMMIT\n";
        let filter = "*filter\n-D FORWARD -j brindle-FORWARD\n-D theirs -g brindle-FORWARD\n\
            -F brindle-FORWARD\n-X brindle-FORWARD\nCOMMIT\n";
        assert!(out.input.contains(nat) && out.input.contains(filter), "{}", out.input);
        assert_eq!(out.input.len(), nat.len() + filter.len(), "{}", out.input);
        assert_eq!(
            removal("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j theirs\nCOMMIT\n").unwrap(),
            Removal::default()
        );
    }
}
