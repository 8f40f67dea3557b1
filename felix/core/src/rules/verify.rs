//! What the kernel lacks of the rules and sets that one workload's packets meet, as lines for people: hooks, the way to
//! the workload's chains, these chains, the policies and profiles they call, the sets those ask. Chains of other
//! workloads do not count, and neither do rules that are left over from workloads that have gone: they harm nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    endpoint::prefix,
    iptables::Text,
    ir::{Family, Place, Table},
    names, nft, nft_plan,
    sets::{ActualSet, Member, WantedSets, disjoint},
    table_plan::{self, Seen},
};

/// Members of a set that are named; the others are counted.
const NAMED: usize = 3;

/// With iptables and ipset.
pub fn iptables(
    device: &str,
    wanted: &BTreeMap<Table, table_plan::Wanted>,
    tables: &BTreeMap<Table, table_plan::Actual>,
    seen: &BTreeMap<Table, Seen>,
    sets: &WantedSets,
    have_sets: &BTreeMap<String, ActualSet>,
) -> Vec<String> {
    let mut out = Vec::new();
    let mut asked = BTreeSet::new();
    let none = (table_plan::Actual::default(), Seen::new());
    for (table, want) in wanted {
        let have = tables.get(table).unwrap_or(&none.0);
        let seen = seen.get(table).unwrap_or(&none.1);
        let place = |chain: &str| format!("chain {chain} of table {table}");
        for hook in &want.hooks {
            let rules = have.others.get(hook.chain.as_str()).map_or(&[][..], Vec::as_slice);
            judge_hook(&place(&hook.chain), hook, rules, &mut out);
        }
        let way = Way { device, chains: &want.chains, maps: &BTreeMap::new(), sets };
        let roots = want.hooks.iter().flat_map(|h| h.text.lines.iter());
        let met = way.walk(roots);
        for name in &met.chains {
            let Some(text) = want.chains.get(name) else { continue };
            let rules = have.chains.get(name).map(|lines| {
                let tags =
                    lines.lines().iter().map(|l| table_plan::tag(l).unwrap_or_default().to_owned()).collect();
                Rules { tags, edited: table_plan::edited(name, lines, seen) }
            });
            judge_chain(&place(name), text, rules.as_ref(), &mut out);
        }
        asked.extend(met.sets);
    }
    for name in asked {
        let Some(want) = sets.get(&name) else { continue };
        let have = have_sets.get(&name).filter(|h| h.kind == Some(want.kind)).map(|h| &h.members);
        judge_set(&name, &want.members, have, &mut out);
    }
    out
}

/// With nftables.
pub fn nftables(
    device: &str,
    family: Family,
    wanted: &nft_plan::Wanted,
    sets: &WantedSets,
    actual: &nft_plan::Actual,
) -> Vec<String> {
    let table = format!("{} {}", nft::family(family), nft::TABLE);
    if !actual.exists {
        return vec![format!("table {table} is missing")];
    }
    let mut out = Vec::new();
    let place = |chain: &str| format!("chain {chain} of table {table}");
    let maps = wanted.maps.iter().map(|(name, map)| (name.clone(), map.elements.get(device).cloned()));
    let maps: BTreeMap<String, Option<String>> = maps.collect();
    let way = Way { device, chains: &wanted.chains, maps: &maps, sets };
    let bases = wanted.bases.keys().filter_map(|name| wanted.chains.get(name));
    let mut met = way.walk(bases.flat_map(|text| text.lines.iter()));
    met.chains.extend(wanted.bases.keys().cloned());
    for name in &met.chains {
        let Some(text) = wanted.chains.get(name) else { continue };
        let rules = actual.chains.get(name).map(|tags| Rules { tags: tags.all().to_vec(), edited: false });
        judge_chain(&place(name), text, rules.as_ref(), &mut out);
    }
    for name in &met.maps {
        let Some(Some(chain)) = maps.get(name) else { continue };
        if actual.maps.get(name).and_then(|m| m.get(device)) != Some(chain) {
            out.push(format!("map {name} of table {table} does not lead {device} to {chain}"));
        }
    }
    for name in met.sets {
        let Some(want) = sets.get(&name) else { continue };
        let have = actual.sets.get(&name).and_then(Option::as_ref).filter(|(kind, _)| *kind == want.kind);
        judge_set(&name, &disjoint(&want.members), have.map(|(_, members)| members), &mut out);
    }
    out
}

/// The rules of a chain as read back.
struct Rules {
    /// Empty: somebody else's.
    tags: Vec<String>,
    /// Printed otherwise than before, with our comment on it.
    edited: bool,
}

/// What packets of a workload can meet.
struct Way<'a> {
    device: &'a str,
    chains: &'a BTreeMap<String, std::sync::Arc<Text>>,
    /// Map → the chain it leads the workload's device to.
    maps: &'a BTreeMap<String, Option<String>>,
    sets: &'a WantedSets,
}

#[derive(Default)]
struct Met {
    chains: BTreeSet<String>,
    maps: BTreeSet<String>,
    sets: BTreeSet<String>,
}

impl Way<'_> {
    fn walk<'t>(&self, roots: impl Iterator<Item = &'t String>) -> Met {
        let mut met = Met::default();
        let mut ahead: Vec<&str> = Vec::new();
        for line in roots {
            self.read(line, &mut met, &mut ahead);
        }
        while let Some(name) = ahead.pop() {
            for line in self.chains.get(name).iter().flat_map(|text| &text.lines) {
                self.read(line, &mut met, &mut ahead);
            }
        }
        met
    }

    /// Takes in the chains, maps and sets a rule speaks of.
    fn read<'s>(&'s self, line: &str, met: &mut Met, ahead: &mut Vec<&'s str>) {
        for word in line.split_whitespace() {
            let word = word.strip_prefix('@').unwrap_or(word);
            if self.sets.contains_key(word) {
                met.sets.insert(word.to_owned());
            }
            let target = match self.maps.get(word) {
                Some(to) => {
                    met.maps.insert(word.to_owned());
                    to.as_deref()
                }
                None => Some(word),
            };
            let Some((name, _)) = target.and_then(|t| self.chains.get_key_value(t)) else { continue };
            if !self.is_of_another(name) && met.chains.insert(name.clone()) {
                ahead.push(name);
            }
        }
    }

    fn is_of_another(&self, chain: &str) -> bool {
        [prefix::TO_POD, prefix::FROM_POD]
            .into_iter()
            .any(|pre| chain.contains(pre) && !chain.ends_with(&names::chain(pre, self.device)))
    }
}

fn judge_hook(place: &str, hook: &table_plan::HookText, have: &[String], out: &mut Vec<String>) {
    let tags: BTreeSet<&str> = have.iter().filter_map(|l| table_plan::tag(l)).collect();
    let lost = hook.text.tags.iter().zip(&hook.text.lines).filter(|(tag, _)| !tags.contains(tag.as_str()));
    let before = out.len();
    out.extend(lost.map(|(_, line)| format!("{place} lacks the rule `{line}`")));
    if out.len() == before
        && hook.place == Place::First
        && !have.iter().take(hook.text.lines.len()).all(|l| table_plan::is_ours(l))
    {
        out.push(format!("in {place} somebody else's rules stand before ours"));
    }
}

fn judge_chain(place: &str, text: &Text, have: Option<&Rules>, out: &mut Vec<String>) {
    let Some(have) = have else {
        out.push(format!("{place} is missing"));
        return;
    };
    let tags: BTreeSet<&str> = have.tags.iter().map(String::as_str).collect();
    let lost: Vec<&String> = text
        .tags
        .iter()
        .zip(&text.lines)
        .filter(|(tag, _)| !tags.contains(tag.as_str()))
        .map(|(_, line)| line)
        .collect();
    let end = text.tags.get(text.loose..).unwrap_or_default();
    let begin = have.tags.len().saturating_sub(end.len());
    if let Some(first) = lost.first() {
        let count = lost.len();
        let all = text.lines.len();
        out.push(format!("{place} lacks {count} of its {all} rules, first `{first}`"));
    } else if tags.contains("") {
        out.push(format!("{place} has a rule that somebody else put there"));
    } else if have.tags.get(begin..) != Some(end) || (text.loose == 0 && begin > 0) {
        out.push(format!("the rules of {place} are not in their order"));
    } else if have.edited {
        out.push(format!("a rule of {place} was changed by somebody else"));
    }
}

fn judge_set(name: &str, want: &BTreeSet<Member>, have: Option<&BTreeSet<Member>>, out: &mut Vec<String>) {
    let Some(have) = have else {
        out.push(format!("set {name} is missing"));
        return;
    };
    for (what, all) in [
        ("lacks", want.difference(have).collect::<Vec<_>>()),
        ("has what does not belong there:", have.difference(want).collect()),
    ] {
        if all.is_empty() {
            continue;
        }
        let named: Vec<String> = all.iter().take(NAMED).map(ToString::to_string).collect();
        let more = all.len() - named.len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        out.push(format!("set {name} {what} {}{more}", named.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::rules::{
        iptables::{self, TAG},
        ir::{Action, Chain, Hook, Match, Rule},
        sets::{SetKind, WantedSet},
    };

    /// FORWARD → brindle-FORWARD → the chains of two workloads → a policy that asks a set.
    fn wanted() -> (BTreeMap<Table, table_plan::Wanted>, WantedSets) {
        let jump = |to: &str| Rule::new(Vec::new(), Action::Jump(to.into()));
        let hook = Hook { chain: "FORWARD", place: Place::First, rules: vec![jump("brindle-FORWARD")] };
        let drop = Rule::new(Vec::new(), Action::Drop);
        let asks = Rule::new(vec![Match::SrcSet { set: "brindle4-aa".into(), not: false }], Action::Accept);
        let chains = [
            Chain::choosing(
                "brindle-FORWARD",
                ["brindle-tw-cali1", "brindle-tw-cali2"]
                    .map(|c| Rule::new(Vec::new(), Action::Goto(c.into())))
                    .into(),
                std::slice::from_ref(&drop),
            ),
            Chain::new("brindle-tw-cali1", vec![jump("brindle-pi-a"), drop.clone()]),
            Chain::new("brindle-tw-cali2", vec![drop]),
            Chain::new("brindle-pi-a", vec![asks]),
        ];
        let text = iptables::hook(Family::V4, &hook);
        let want = table_plan::Wanted {
            chains: chains
                .iter()
                .map(|c| (c.name.clone(), Arc::new(iptables::chain(Family::V4, c))))
                .collect(),
            hooks: vec![table_plan::HookText { chain: "FORWARD".into(), place: Place::First, text }],
        };
        let members = ["10.0.0.1", "10.0.0.2"].iter().filter_map(|m| Member::parse(m)).collect();
        let set = Arc::new(WantedSet { kind: SetKind::Net, members });
        (BTreeMap::from([(Table::Filter, want)]), BTreeMap::from([("brindle4-aa".to_owned(), set)]))
    }

    struct Kernel {
        table: table_plan::Actual,
        sets: BTreeMap<String, ActualSet>,
    }

    impl Kernel {
        fn new() -> Self {
            let (wanted, sets) = wanted();
            let mut table = table_plan::Actual::default();
            for (name, text) in &wanted[&Table::Filter].chains {
                table.chains.insert(name.clone(), table_plan::Rules::Read(text.lines.clone()));
            }
            table.others.insert("FORWARD".into(), wanted[&Table::Filter].hooks[0].text.lines.clone());
            let sets = sets.into_iter().map(|(name, want)| {
                let members = want.members.clone();
                (name, ActualSet { kind: Some(want.kind), max: 100, members })
            });
            Self { table, sets: sets.collect() }
        }

        fn lacks(&self) -> String {
            let (wanted, sets) = wanted();
            let tables = BTreeMap::from([(Table::Filter, self.table.clone())]);
            iptables("cali1", &wanted, &tables, &BTreeMap::new(), &sets, &self.sets).join("\n")
        }

        fn chain(&mut self, name: &str) -> &mut Vec<String> {
            match self.table.chains.get_mut(name).unwrap() {
                table_plan::Rules::Read(lines) => lines,
                other => unreachable!("{other:?} was not read"),
            }
        }
    }

    #[test]
    fn nothing_is_said_of_a_kernel_that_has_everything_or_of_others() {
        assert_eq!(Kernel::new().lacks(), "");
        let mut k = Kernel::new();
        k.table.chains.remove("brindle-tw-cali2");
        assert_eq!(k.lacks(), "", "another workload's chain");
        let left = format!("-g brindle-tw-cali9 -m comment --comment \"bri:{}\"", "0".repeat(TAG));
        k.chain("brindle-FORWARD").insert(0, left);
        assert_eq!(k.lacks(), "", "left over from one that has gone");
    }

    #[test]
    fn what_is_gone_is_named() {
        let mut k = Kernel::new();
        k.table.chains.remove("brindle-pi-a");
        assert_eq!(k.lacks(), "chain brindle-pi-a of table filter is missing");
        let mut k = Kernel::new();
        k.chain("brindle-tw-cali1").pop();
        assert!(
            k.lacks().contains("brindle-tw-cali1 of table filter lacks 1 of its 2 rules"),
            "{}",
            k.lacks()
        );
        let mut k = Kernel::new();
        k.table.others.clear();
        assert!(k.lacks().contains("chain FORWARD of table filter lacks the rule"), "{}", k.lacks());
        let mut k = Kernel::new();
        k.sets.get_mut("brindle4-aa").unwrap().members =
            [Member::parse("10.0.0.1").unwrap(), Member::parse("9.9.9.9").unwrap()].into();
        assert_eq!(
            k.lacks(),
            "set brindle4-aa lacks 10.0.0.2\nset brindle4-aa has what does not belong there: 9.9.9.9"
        );
        k.sets.clear();
        assert_eq!(k.lacks(), "set brindle4-aa is missing");
    }

    #[test]
    fn what_somebody_put_between_is_named() {
        let mut k = Kernel::new();
        k.chain("brindle-pi-a").insert(0, "-j ACCEPT".into());
        assert!(
            k.lacks().contains("brindle-pi-a of table filter has a rule that somebody else"),
            "{}",
            k.lacks()
        );
        let mut k = Kernel::new();
        k.chain("brindle-tw-cali1").reverse();
        assert!(k.lacks().contains("not in their order"), "{}", k.lacks());
        let mut k = Kernel::new();
        k.table.others.get_mut("FORWARD").unwrap().insert(0, "-j ACCEPT".into());
        assert!(k.lacks().contains("stand before ours"), "{}", k.lacks());
    }
}
