//! Reading `nft -j list table` back, and the transaction that leads from there to what is wanted. Everything in our
//! table is ours, so that whatever is not wanted there goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use serde_json::Value;

use super::{
    iptables::Text,
    ir::Family,
    nft::{self, VerdictMap},
    sets::{Member, SetKind, WantedSets, disjoint},
    table_plan::Leftovers,
};

/// What nft said that is not its form.
#[derive(Debug, thiserror::Error)]
#[error("the answer of nft -j is not understood: {0}")]
pub struct ListError(#[from] serde_json::Error);

/// Our table as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    pub exists: bool,
    /// Chain → tags of its rules (empty text: a rule without one).
    pub chains: BTreeMap<String, Vec<String>>,
    /// Set → members; `None`: members that we would never write.
    pub sets: BTreeMap<String, Option<(SetKind, BTreeSet<Member>)>>,
    /// Map → device → chain.
    pub maps: BTreeMap<String, BTreeMap<String, String>>,
}

/// Our table as wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub chains: BTreeMap<String, Arc<Text>>,
    /// Chains at hooks: what stands in front of their rules.
    pub bases: BTreeMap<String, String>,
    pub maps: BTreeMap<String, VerdictMap>,
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Reads the answer; `None` means that there is no table.
pub fn parse(json: Option<&str>) -> Result<Actual, ListError> {
    let Some(json) = json else { return Ok(Actual::default()) };
    let all: Value = serde_json::from_str(json)?;
    let mut out = Actual { exists: true, ..Actual::default() };
    for object in all.get("nftables").and_then(Value::as_array).into_iter().flatten() {
        if let Some(c) = object.get("chain") {
            out.chains.entry(text(c, "name").to_owned()).or_default();
        } else if let Some(r) = object.get("rule") {
            let comment = text(r, "comment");
            let tag = comment.strip_prefix(super::names::COMMENT).unwrap_or_default();
            let tag = tag.split(';').next().unwrap_or_default();
            out.chains.entry(text(r, "chain").to_owned()).or_default().push(tag.to_owned());
        } else if let Some(s) = object.get("set") {
            out.sets.insert(text(s, "name").to_owned(), members(s));
        } else if let Some(m) = object.get("map") {
            let pairs = m.get("elem").and_then(Value::as_array).into_iter().flatten();
            let elements = pairs.filter_map(|p| {
                let (key, verdict) = (p.get(0)?.as_str()?, p.get(1)?);
                let target = verdict.get("goto").and_then(|g| g.get("target")).and_then(Value::as_str);
                Some((key.to_owned(), target.unwrap_or_default().to_owned()))
            });
            out.maps.insert(text(m, "name").to_owned(), elements.collect());
        }
    }
    Ok(out)
}

fn members(set: &Value) -> Option<(SetKind, BTreeSet<Member>)> {
    let kind = match set.get("type")? {
        Value::String(_) => SetKind::Net,
        Value::Array(_) => SetKind::IpPort,
        _ => return None,
    };
    let mut out = BTreeSet::new();
    for e in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
        let member = if let Some(s) = e.as_str() {
            Member::parse(s)?
        } else if let Some(p) = e.get("prefix") {
            let len = p.get("len")?.as_u64()?;
            Member::parse(&format!("{}/{len}", text(p, "addr")))?
        } else if let Some(c) = e.get("concat").and_then(Value::as_array) {
            let protocol = match c.get(1)? {
                Value::String(s) => s.clone(),
                n => n.to_string(),
            };
            Member::parse(&format!("{},{protocol}:{}", c.first()?.as_str()?, c.get(2)?))?
        } else {
            return None;
        };
        out.insert(member);
    }
    Some((kind, out))
}

/// A transaction, and what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftPlan {
    pub input: String,
    pub written: usize,
    pub removed: usize,
    pub added: usize,
    pub deleted: usize,
    /// Something in force goes or is replaced: the kernel waits until no packet meets it any more.
    pub removes: bool,
    /// Something nobody needs stays until a plan that removes it.
    pub left: bool,
    after: Actual,
}

fn element(m: &Member) -> String {
    match m {
        Member::Net(_) => m.to_string(),
        Member::Port { ip, protocol, port } => format!("{ip} . {protocol} . {port}"),
    }
}

/// Elements per line: lines stay of a length people can read.
const CHUNK: usize = 256;

/// Lines that add or delete members.
pub fn elements(input: &mut String, verb: &str, fam: &str, set: &str, members: &[&Member]) {
    for chunk in members.chunks(CHUNK) {
        let list: Vec<String> = chunk.iter().map(|m| element(m)).collect();
        let _ = writeln!(input, "{verb} element {fam} {} {set} {{ {} }}", nft::TABLE, list.join(", "));
    }
}

/// Plans one family's table.
pub fn plan(
    family: Family,
    wanted: &Wanted,
    sets: &WantedSets,
    actual: &Actual,
    leftovers: Leftovers,
) -> NftPlan {
    let (fam, table) = (nft::family(family), nft::TABLE);
    let mut out = NftPlan { after: complete(wanted, sets), ..NftPlan::default() };
    let mut input = String::new();
    // Writing to a String cannot fail.
    if !(actual.exists || wanted.chains.is_empty() && sets.is_empty()) {
        let _ = writeln!(input, "add table {fam} {table}");
    }
    let address = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
    let mut again = BTreeSet::new();
    for (name, want) in sets {
        let members = disjoint(&want.members);
        let have = match actual.sets.get(name) {
            Some(Some((kind, have))) if *kind == want.kind => have.clone(),
            other => {
                if other.is_some() {
                    // A set of another form: every chain may refer to it, so all are written again around it.
                    again.insert(name.clone());
                }
                let form = match want.kind {
                    SetKind::Net => format!("type {address}; flags interval;"),
                    SetKind::IpPort => format!("type {address} . inet_proto . inet_service;"),
                };
                let _ = writeln!(input, "add set {fam} {table} {name} {{ {form} }}");
                BTreeSet::new()
            }
        };
        // Away first: a network may make room for one that covers it.
        let gone: Vec<&Member> = have.difference(&members).collect();
        let new: Vec<&Member> = members.difference(&have).collect();
        elements(&mut input, "delete", fam, name, &gone);
        elements(&mut input, "add", fam, name, &new);
        out.deleted += gone.len();
        out.added += new.len();
    }
    let changed: Vec<&String> = wanted
        .chains
        .iter()
        .filter(|(name, text)| actual.chains.get(*name).is_none_or(|have| *have != text.tags))
        .map(|(n, _)| n)
        .collect();
    for name in &changed {
        match (actual.chains.contains_key(*name), wanted.bases.get(*name)) {
            (true, _) => {
                out.removes = true;
                let _ = writeln!(input, "flush chain {fam} {table} {name}");
            }
            (false, Some(base)) => {
                let _ = writeln!(input, "add chain {fam} {table} {name} {{ {base} }}");
            }
            (false, None) => {
                let _ = writeln!(input, "add chain {fam} {table} {name}");
            }
        }
    }
    for (name, map) in &wanted.maps {
        let none = BTreeMap::new();
        let have = actual.maps.get(name).unwrap_or(&none);
        if !actual.maps.contains_key(name) {
            let _ = writeln!(input, "add map {fam} {table} {name} {{ type ifname : verdict; }}");
        }
        for (dev, chain) in have.iter().filter(|(d, c)| map.elements.get(*d) != Some(c)) {
            if leftovers == Leftovers::Keep && !map.elements.contains_key(dev) {
                out.left = true;
                out.after.maps.entry(name.clone()).or_default().insert(dev.clone(), chain.clone());
                continue;
            }
            let _ = writeln!(input, "delete element {fam} {table} {name} {{ \"{dev}\" }}");
            out.deleted += 1;
            out.removes = true;
        }
        for (dev, chain) in map.elements.iter().filter(|(d, c)| have.get(*d) != Some(c)) {
            let _ = writeln!(input, "add element {fam} {table} {name} {{ \"{dev}\" : goto {chain} }}");
            out.added += 1;
        }
    }
    for name in &changed {
        for line in wanted.chains.get(*name).map(|t| &t.lines).into_iter().flatten() {
            let _ = writeln!(input, "add rule {fam} {table} {name} {line}");
        }
    }
    out.written = changed.len();
    // What nobody refers to any more: rules, then maps and chains, then sets.
    let gone: Vec<&String> = actual.chains.keys().filter(|n| !wanted.chains.contains_key(*n)).collect();
    let maps: Vec<&String> = actual.maps.keys().filter(|n| !wanted.maps.contains_key(*n)).collect();
    let old_sets: Vec<&String> = actual.sets.keys().filter(|n| !sets.contains_key(*n)).collect();
    let any = !(gone.is_empty() && maps.is_empty() && old_sets.is_empty());
    if any && leftovers == Leftovers::Keep {
        out.left = true;
        out.after.keep(actual);
    } else {
        out.removes |= any;
        for name in &gone {
            let _ = writeln!(input, "flush chain {fam} {table} {name}");
        }
        for name in maps {
            let _ = writeln!(input, "delete map {fam} {table} {name}");
        }
        for name in &gone {
            let _ = writeln!(input, "delete chain {fam} {table} {name}");
        }
        for name in &old_sets {
            let _ = writeln!(input, "delete set {fam} {table} {name}");
        }
        out.removed = gone.len() + old_sets.len();
    }
    if !again.is_empty() {
        // Atomic all the same: the table goes and comes back in one transaction.
        let fresh = plan(family, wanted, sets, &Actual::default(), Leftovers::Remove);
        let input = format!("delete table {fam} {table}\n{}", fresh.input);
        return NftPlan { input, removes: true, ..fresh };
    }
    out.input = input;
    out
}

impl Actual {
    /// What else there is stays.
    fn keep(&mut self, before: &Self) {
        for (name, tags) in &before.chains {
            self.chains.entry(name.clone()).or_insert_with(|| tags.clone());
        }
        for (name, set) in &before.sets {
            self.sets.entry(name.clone()).or_insert_with(|| set.clone());
        }
        for (name, map) in &before.maps {
            self.maps.entry(name.clone()).or_insert_with(|| map.clone());
        }
    }
}

impl NftPlan {
    /// What the table holds when the plan has been carried out.
    pub fn assume(self) -> Actual {
        self.after
    }
}

fn complete(wanted: &Wanted, sets: &WantedSets) -> Actual {
    Actual {
        exists: !(wanted.chains.is_empty() && sets.is_empty()),
        chains: wanted.chains.iter().map(|(n, t)| (n.clone(), t.tags.clone())).collect(),
        sets: sets.iter().map(|(n, s)| (n.clone(), Some((s.kind, disjoint(&s.members))))).collect(),
        maps: wanted.maps.iter().map(|(n, m)| (n.clone(), m.elements.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::ir::{Action, Chain, Dispatch, Hook, Match, Place, Rule, Table, Way};
    use crate::rules::sets::WantedSet;

    fn example() -> (Wanted, WantedSets) {
        let d = Dispatch {
            name: "brindle-from-wl".into(),
            way: Way::In,
            stems: vec![],
            entries: vec![("cali1".into(), "brindle-fw-cali1".into())],
            otherwise: vec![Rule::new(vec![], Action::Drop).because("unknown device")],
        };
        let (map, text) = nft::dispatch(Family::V4, Table::Filter, &d);
        let pod = Chain::new(
            "brindle-fw-cali1",
            vec![Rule::new(vec![Match::DstSet { set: "brindle4-a".into(), not: true }], Action::Drop)],
        );
        let pod = nft::chain(Family::V4, Table::Filter, &pod);
        let hook = Hook {
            chain: "FORWARD",
            place: Place::First,
            rules: vec![Rule::new(vec![], Action::Jump("brindle-from-wl".into()))],
        };
        let base = nft::hooks(Family::V4, Table::Filter, "FORWARD", &[&hook]);
        let bases = BTreeMap::from([(base.name.clone(), nft::base(Table::Filter, "FORWARD"))]);
        let chains = [text, pod, base].into_iter().map(|t| (t.name.clone(), Arc::new(t))).collect();
        let sets = BTreeMap::from([(
            "brindle4-a".to_owned(),
            Arc::new(WantedSet {
                kind: SetKind::Net,
                members: ["10.0.0.1", "10.1.0.0/16", "10.1.2.3"]
                    .iter()
                    .filter_map(|m| Member::parse(m))
                    .collect(),
            }),
        )]);
        (Wanted { chains, bases, maps: BTreeMap::from([(map.name.clone(), map)]) }, sets)
    }

    #[test]
    fn from_nothing_in_an_order_without_forward_references_and_then_nothing() {
        let (wanted, sets) = example();
        let p = plan(Family::V4, &wanted, &sets, &Actual::default(), Leftovers::Remove);
        insta::assert_snapshot!(p.input);
        let again = plan(Family::V4, &wanted, &sets, &p.assume(), Leftovers::Remove);
        assert_eq!((&*again.input, again.left), ("", false));
    }

    #[test]
    fn one_member_is_one_line() {
        let (wanted, mut sets) = example();
        let actual = complete(&wanted, &sets);
        Arc::make_mut(sets.get_mut("brindle4-a").unwrap()).members.insert(Member::parse("10.0.0.9").unwrap());
        let p = plan(Family::V4, &wanted, &sets, &actual, Leftovers::Remove);
        assert_eq!(p.input, "add element ip brindle brindle4-a { 10.0.0.9 }\n");
    }

    #[test]
    fn a_set_of_another_form_is_replaced_with_its_table() {
        let (wanted, mut sets) = example();
        let actual = complete(&wanted, &sets);
        Arc::make_mut(sets.get_mut("brindle4-a").unwrap()).kind = SetKind::IpPort;
        let p = plan(Family::V4, &wanted, &sets, &actual, Leftovers::Remove);
        assert!(p.input.starts_with("delete table ip brindle\nadd table ip brindle\n"), "{}", p.input);
    }

    #[test]
    fn what_is_not_needed_may_wait_while_something_is_added() {
        let (wanted, sets) = example();
        let mut more = wanted.clone();
        let name = "filter-brindle-fw-cali2".to_owned();
        let text = Text { name: name.clone(), lines: vec!["drop".into()], tags: vec!["t".into()], loose: 0 };
        more.chains.insert(name.clone(), Arc::new(text));
        let map = more.maps.values_mut().next().unwrap();
        map.elements.insert("cali2".into(), name);
        let both = complete(&more, &sets);
        let p = plan(Family::V4, &wanted, &sets, &both, Leftovers::Keep);
        assert!(p.input.is_empty() && p.left, "{p:?}");
        assert_eq!(p.assume(), both);
        let p = plan(Family::V4, &more, &sets, &complete(&wanted, &sets), Leftovers::Keep);
        assert!(!p.removes && !p.left, "{p:?}");
        let p = plan(Family::V4, &wanted, &sets, &both, Leftovers::Remove);
        assert!(p.removes && p.removed == 1 && p.deleted == 1, "{p:?}");
    }
}
