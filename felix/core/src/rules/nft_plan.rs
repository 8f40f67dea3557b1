//! Reading `nft -j list table` back, and the transaction that leads from there to what is wanted. Everything in our
//! table is ours, so that whatever is not wanted there goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use serde::Deserialize;
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

/// The tags of a chain's rules.
#[derive(Clone, Debug)]
pub enum Tags {
    /// As read; an empty text is a rule without one.
    Read(Vec<String>),
    /// Those of this text: written, or read and compared. There are many, and this way they are kept once.
    Of(Arc<Text>),
}

impl Tags {
    /// The tags.
    pub fn all(&self) -> &[String] {
        match self {
            Self::Read(tags) => tags,
            Self::Of(text) => &text.tags,
        }
    }

    fn are(&self, text: &Arc<Text>) -> bool {
        matches!(self, Self::Of(t) if Arc::ptr_eq(t, text)) || self.all() == text.tags
    }
}

impl PartialEq for Tags {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all()
    }
}

impl Eq for Tags {}

/// Our table as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    pub exists: bool,
    pub chains: BTreeMap<String, Tags>,
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

/// What is looked at of an answer; a rule's statements, by far the most of it, are passed over.
#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    chain: Option<NamedObject>,
    rule: Option<RuleObject>,
    set: Option<Value>,
    map: Option<Value>,
}

#[derive(Deserialize)]
struct NamedObject {
    name: String,
    /// Only a chain that packets begin in has one.
    hook: Option<String>,
}

#[derive(Deserialize)]
struct RuleObject {
    chain: String,
    #[serde(default)]
    comment: String,
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Reads the answer; `None` means that there is no table.
pub fn parse(json: Option<&str>) -> Result<Actual, ListError> {
    let Some(json) = json else { return Ok(Actual::default()) };
    let all: Listing = serde_json::from_str(json)?;
    let mut out = Actual { exists: true, ..Actual::default() };
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for object in all.nftables {
        if let Some(c) = object.chain {
            chains.entry(c.name).or_default();
        } else if let Some(r) = object.rule {
            let tag = r.comment.strip_prefix(super::names::COMMENT).unwrap_or_default();
            let tag = tag.split(';').next().unwrap_or_default();
            chains.entry(r.chain).or_default().push(tag.to_owned());
        } else if let Some(s) = object.set {
            out.sets.insert(text(&s, "name").to_owned(), members(&s));
        } else if let Some(m) = object.map {
            let pairs = m.get("elem").and_then(Value::as_array).into_iter().flatten();
            let elements = pairs.filter_map(|p| {
                let (key, verdict) = (p.get(0)?.as_str()?, p.get(1)?);
                let target = verdict.get("goto").and_then(|g| g.get("target")).and_then(Value::as_str);
                Some((key.to_owned(), target.unwrap_or_default().to_owned()))
            });
            out.maps.insert(text(&m, "name").to_owned(), elements.collect());
        }
    }
    out.chains = chains.into_iter().map(|(name, tags)| (name, Tags::Read(tags))).collect();
    Ok(out)
}

/// Two transactions that remove the table of this name of which this was read. Chains at hooks go first: a packet that is under way
/// in the rest of the table would no longer find the elements of its maps in the moment in which these go.
pub fn removal(family: Family, table: &str, json: &str) -> Result<[String; 2], ListError> {
    let all: Listing = serde_json::from_str(json)?;
    let fam = nft::family(family);
    let mut first = String::new();
    for c in all.nftables.into_iter().filter_map(|o| o.chain).filter(|c| c.hook.is_some()) {
        // Writing to a String cannot fail.
        let _ = writeln!(first, "flush chain {fam} {table} {0}\ndelete chain {fam} {table} {0}", c.name);
    }
    Ok([first, format!("delete table {fam} {table}\n")])
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
    /// What comes after it in a transaction of its own: what the first one brought is met by no packet before. Members
    /// alone need no `nft` tool, which reads the members of all sets before it changes one. And the kernel gives the
    /// rules of a transaction to packets a moment before it has filled the transaction's sets of networks: a packet
    /// that met both would find them empty.
    pub late: String,
    pub written: usize,
    pub removed: usize,
    pub added: usize,
    pub deleted: usize,
    /// Something in force goes or is replaced: the kernel waits until no packet meets it any more.
    pub removes: bool,
    /// Something nobody needs stays until a plan that removes it.
    pub left: bool,
    /// What changes: what is there afterwards, `None` for what goes.
    after: After,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct After {
    chains: BTreeMap<String, Option<Tags>>,
    sets: BTreeMap<String, Option<(SetKind, BTreeSet<Member>)>>,
    maps: BTreeMap<String, Option<BTreeMap<String, String>>>,
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

/// Removing members with rules beside them costs nft a walk through the whole set for each; beyond so many steps the set is
/// emptied and filled in the same transaction instead, which packets see as little of.
const WALKED: usize = 20_000;

/// Lines that change members of a set in a transaction that nft carries out.
fn anew(
    input: &mut String,
    fam: &str,
    set: &str,
    (have, want): (usize, &BTreeSet<Member>),
    change: [&[&Member]; 2],
) {
    let [gone, new] = change;
    if gone.len().saturating_mul(have) > WALKED {
        let _ = writeln!(input, "flush set {fam} {} {set}", nft::TABLE);
        elements(input, "add", fam, set, &want.iter().collect::<Vec<_>>());
    } else {
        elements(input, "delete", fam, set, gone);
        elements(input, "add", fam, set, new);
    }
}

/// Whether an input changes members of sets and maps and nothing else: no tool is needed for that.
pub fn only_members(input: &str) -> bool {
    input.lines().all(|l| l.starts_with("add element ") || l.starts_with("delete element "))
}

/// Plans one family's table. `only`: just these sets are compared.
pub fn plan(
    family: Family,
    wanted: &Wanted,
    sets: &WantedSets,
    actual: &Actual,
    leftovers: Leftovers,
    only: Option<&BTreeSet<String>>,
) -> NftPlan {
    let (fam, table) = (nft::family(family), nft::TABLE);
    let mut out = NftPlan::default();
    // What nothing in force refers to yet, and what packets meet.
    let (mut input, mut met) = (String::new(), String::new());
    let (mut new_members, mut members_of) = (String::new(), String::new());
    // The same members beside rules.
    let mut members_beside = String::new();
    // Writing to a String cannot fail.
    if !(actual.exists || wanted.chains.is_empty() && sets.is_empty()) {
        let _ = writeln!(input, "add table {fam} {table}");
    }
    let address = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
    let mut again = BTreeSet::new();
    let none = BTreeSet::new();
    for (name, want) in sets.iter().filter(|(name, _)| only.is_none_or(|o| o.contains(*name))) {
        let members = disjoint(&want.members);
        let (have, new_set) = match actual.sets.get(name) {
            Some(Some((kind, have))) if *kind == want.kind => (have, false),
            other => {
                if other.is_some() {
                    // Not ours, whatever its name: the name says the form.
                    again.insert(name.clone());
                }
                let form = match want.kind {
                    SetKind::Net => format!("type {address}; flags interval;"),
                    SetKind::IpPort => format!("type {address} . inet_proto . inet_service;"),
                };
                let _ = writeln!(input, "add set {fam} {table} {name} {{ {form} }}");
                out.after.sets.insert(name.clone(), Some((want.kind, BTreeSet::new())));
                (&none, true)
            }
        };
        // Away first: a network may make room for one that covers it.
        let gone: Vec<&Member> = have.difference(&members).collect();
        let new: Vec<&Member> = members.difference(have).collect();
        if new_set {
            elements(&mut new_members, "add", fam, name, &new);
        } else {
            elements(&mut members_of, "delete", fam, name, &gone);
            elements(&mut members_of, "add", fam, name, &new);
            anew(&mut members_beside, fam, name, (have.len(), &members), [&gone, &new]);
        }
        out.deleted += gone.len();
        out.added += new.len();
        if !(gone.is_empty() && new.is_empty()) {
            out.after.sets.insert(name.clone(), Some((want.kind, members)));
        }
    }
    let changed: Vec<(&String, &Arc<Text>)> = wanted
        .chains
        .iter()
        .filter(|(name, text)| actual.chains.get(*name).is_none_or(|have| !have.are(text)))
        .collect();
    for (name, text) in &changed {
        out.after.chains.insert((*name).clone(), Some(Tags::Of(Arc::clone(text))));
        match (actual.chains.contains_key(*name), wanted.bases.get(*name)) {
            (true, _) => {
                out.removes = true;
                let _ = writeln!(met, "flush chain {fam} {table} {name}");
            }
            (false, Some(base)) => {
                let _ = writeln!(met, "add chain {fam} {table} {name} {{ {base} }}");
            }
            (false, None) => {
                let _ = writeln!(input, "add chain {fam} {table} {name}");
            }
        }
    }
    for (name, map) in &wanted.maps {
        let none = BTreeMap::new();
        let have = actual.maps.get(name).unwrap_or(&none);
        let mut after = map.elements.clone();
        let mut lines = String::new();
        for (dev, chain) in have.iter().filter(|(d, c)| map.elements.get(*d) != Some(c)) {
            if leftovers == Leftovers::Keep && !map.elements.contains_key(dev) {
                out.left = true;
                after.insert(dev.clone(), chain.clone());
                continue;
            }
            let _ = writeln!(lines, "delete element {fam} {table} {name} {{ \"{dev}\" }}");
            out.deleted += 1;
            out.removes = true;
        }
        for (dev, chain) in map.elements.iter().filter(|(d, c)| have.get(*d) != Some(c)) {
            let _ = writeln!(lines, "add element {fam} {table} {name} {{ \"{dev}\" : goto {chain} }}");
            out.added += 1;
        }
        if actual.maps.contains_key(name) {
            members_of.push_str(&lines);
            members_beside.push_str(&lines);
        } else {
            let _ = writeln!(input, "add map {fam} {table} {name} {{ type ifname : verdict; }}");
            new_members.push_str(&lines);
        }
        out.after.maps.insert(name.clone(), Some(after));
    }
    // What nobody refers to any more.
    let gone: Vec<&String> = actual.chains.keys().filter(|n| !wanted.chains.contains_key(*n)).collect();
    let maps: Vec<&String> = actual.maps.keys().filter(|n| !wanted.maps.contains_key(*n)).collect();
    let old_sets: Vec<&String> = actual.sets.keys().filter(|n| !sets.contains_key(*n)).collect();
    let any = !(gone.is_empty() && maps.is_empty() && old_sets.is_empty());
    let leftovers = if again.is_empty() { leftovers } else { Leftovers::Remove };
    let removes = out.removes || any && leftovers == Leftovers::Remove;
    let (mut new_rules, mut rules) = (String::new(), String::new());
    for (name, text) in &changed {
        let known = actual.chains.contains_key(*name) || wanted.bases.contains_key(*name);
        let lines = if known { &mut rules } else { &mut new_rules };
        for line in &text.lines {
            let _ = writeln!(lines, "add rule {fam} {table} {name} {line}");
        }
    }
    // New chains are met only through a map's new elements, unless one is at a hook or another is written again.
    let nothing_beside = [&input, &met, &new_rules, &rules].iter().all(|part| part.is_empty())
        && !(any && leftovers == Leftovers::Remove);
    if met.is_empty() && actual.exists && !removes && !input.is_empty() {
        input.push_str(&new_rules);
        out.late = new_members + &members_of;
    } else if nothing_beside {
        input = members_of;
    } else if met.is_empty() || new_members.is_empty() {
        input = input + &met + &new_members + &members_beside + &new_rules + &rules;
    } else {
        input = input + &new_members + &new_rules;
        out.late = met + &members_beside + &rules;
    }
    out.written = changed.len();
    // Rules, then maps and chains, then sets.
    if any && leftovers == Leftovers::Keep {
        out.left = true;
    } else {
        out.removes |= any;
        out.after.chains.extend(gone.iter().map(|n| ((*n).clone(), None)));
        out.after.maps.extend(maps.iter().map(|n| ((*n).clone(), None)));
        out.after.sets.extend(old_sets.iter().map(|n| ((*n).clone(), None)));
        let last = if out.late.is_empty() { &mut input } else { &mut out.late };
        for name in &gone {
            let _ = writeln!(last, "flush chain {fam} {table} {name}");
        }
        for name in maps {
            let _ = writeln!(last, "delete map {fam} {table} {name}");
        }
        for name in &gone {
            let _ = writeln!(last, "delete chain {fam} {table} {name}");
        }
        for name in &old_sets {
            let _ = writeln!(last, "delete set {fam} {table} {name}");
        }
        out.removed = gone.len() + old_sets.len();
    }
    if !again.is_empty() {
        // A chain that is as wanted does not refer to it: the kernel lets no rule ask a set of another form. All others
        // let go of it first. One transaction: what is flushed here is written again before packets see it.
        let mut first = String::new();
        for name in changed.iter().map(|(n, _)| *n).chain(gone).filter(|n| actual.chains.contains_key(*n)) {
            let _ = writeln!(first, "flush chain {fam} {table} {name}");
        }
        for name in &again {
            let _ = writeln!(first, "delete set {fam} {table} {name}");
        }
        input = first + &input + &out.late;
        out.late.clear();
        out.removes = true;
    }
    out.input = input;
    out
}

fn change<T>(map: &mut BTreeMap<String, T>, name: String, to: Option<T>) {
    match to {
        Some(to) => drop(map.insert(name, to)),
        None => drop(map.remove(&name)),
    }
}

impl NftPlan {
    /// What the table holds when the plan has been carried out: believed until it is read back.
    pub fn assume(self, actual: &mut Actual) {
        // An input begins with the table, or there was one.
        actual.exists |= !self.input.is_empty();
        self.after.chains.into_iter().for_each(|(name, c)| change(&mut actual.chains, name, c));
        self.after.maps.into_iter().for_each(|(name, m)| change(&mut actual.maps, name, m));
        for (name, set) in self.after.sets {
            change(&mut actual.sets, name, set.map(Some));
        }
    }
}

/// Keeps of what was read and is as wanted no more than that.
pub fn recognise(wanted: &Wanted, actual: &mut Actual) {
    for (name, tags) in &mut actual.chains {
        if let Some(text) = wanted.chains.get(name).filter(|text| tags.are(text)) {
            *tags = Tags::Of(Arc::clone(text));
        }
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

    /// The table when everything has been written.
    fn carried_out(wanted: &Wanted, sets: &WantedSets) -> Actual {
        let mut out = Actual::default();
        plan(Family::V4, wanted, sets, &out, Leftovers::Remove, None).assume(&mut out);
        out
    }

    #[test]
    fn from_nothing_in_an_order_without_forward_references_and_then_nothing() {
        let (wanted, sets) = example();
        let p = plan(Family::V4, &wanted, &sets, &Actual::default(), Leftovers::Remove, None);
        insta::assert_snapshot!(format!("{}# then\n{}", p.input, p.late));
        let mut have = Actual::default();
        p.assume(&mut have);
        let again = plan(Family::V4, &wanted, &sets, &have, Leftovers::Remove, None);
        assert_eq!((&*again.input, again.left), ("", false));
    }

    /// The kernel shows rules to packets before it has filled the sets of networks of the same transaction.
    #[test]
    fn no_packet_meets_a_set_before_its_members() {
        let (wanted, sets) = example();
        let p = plan(Family::V4, &wanted, &sets, &Actual::default(), Leftovers::Remove, None);
        assert!(p.input.contains("add element ip brindle brindle4-a") && !p.input.contains("hook"), "{p:?}");
        assert!(p.late.contains("hook forward") && !p.late.contains("add element"), "{p:?}");
        // A chain in force that is to ask a new set, and a set nobody asks any more.
        let have = carried_out(&wanted, &sets);
        let (mut more, mut more_sets) = (wanted, sets);
        let name = "filter-brindle-fw-cali1";
        let lines = vec!["ip saddr @brindle4-b accept".into()];
        let text = Text { name: name.into(), lines, tags: vec!["t".into()], loose: 0 };
        more.chains.insert(name.into(), Arc::new(text));
        let set = more_sets.remove("brindle4-a").unwrap();
        more_sets.insert("brindle4-b".into(), set);
        let p = plan(Family::V4, &more, &more_sets, &have, Leftovers::Remove, None);
        assert_eq!(
            p.input,
            "add set ip brindle brindle4-b { type ipv4_addr; flags interval; }\n\
             add element ip brindle brindle4-b { 10.0.0.1, 10.1.0.0/16 }\n"
        );
        assert_eq!(
            p.late,
            format!(
                "flush chain ip brindle {name}\nadd rule ip brindle {name} ip saddr @brindle4-b accept\n\
                 delete set ip brindle brindle4-a\n"
            )
        );
    }

    #[test]
    fn a_table_is_unhooked_before_it_goes() {
        let json = r#"{"nftables": [{"table": {"name": "brindle"}}, {"chain": {"name": "filter-FORWARD",
            "hook": "forward", "prio": 0}}, {"chain": {"name": "filter-brindle-from-wl"}}]}"#;
        let [first, then] = removal(Family::V6, nft::TABLE, json).unwrap();
        assert_eq!(
            first,
            "flush chain ip6 brindle filter-FORWARD\ndelete chain ip6 brindle filter-FORWARD\n"
        );
        assert_eq!(then, "delete table ip6 brindle\n");
        assert!(removal(Family::V4, nft::TABLE, "{").is_err());
    }

    #[test]
    fn one_member_is_one_line() {
        let (wanted, mut sets) = example();
        let actual = carried_out(&wanted, &sets);
        Arc::make_mut(sets.get_mut("brindle4-a").unwrap()).members.insert(Member::parse("10.0.0.9").unwrap());
        let p = plan(Family::V4, &wanted, &sets, &actual, Leftovers::Remove, None);
        assert_eq!(p.input, "add element ip brindle brindle4-a { 10.0.0.9 }\n");
    }

    #[test]
    fn with_rules_beside_them_many_members_go_by_filling_the_set_again() {
        let (wanted, mut sets) = example();
        let all: BTreeSet<Member> = (0..20_001u32)
            .map(|i| Member::Net(std::net::IpAddr::from((i * 2).to_be_bytes()).into()))
            .collect();
        let set = |members: BTreeSet<Member>| Arc::new(WantedSet { kind: SetKind::Net, members });
        sets.insert("brindle4-a".into(), set(all.clone()));
        let actual = carried_out(&wanted, &sets);
        let mut few = all.clone();
        few.pop_last();
        sets.insert("brindle4-a".into(), set(few.clone()));
        let alone = plan(Family::V4, &wanted, &sets, &actual, Leftovers::Remove, None);
        assert_eq!(alone.input, "delete element ip brindle brindle4-a { 0.0.156.64 }\n");
        assert!(only_members(&alone.input) && alone.late.is_empty());
        let mut more = wanted.clone();
        let name = "filter-brindle-fw-cali1";
        let text = Text { name: name.into(), lines: vec!["drop".into()], tags: vec!["t".into()], loose: 0 };
        more.chains.insert(name.into(), Arc::new(text));
        let beside = plan(Family::V4, &more, &sets, &actual, Leftovers::Remove, None);
        let filled = beside.input.lines().filter(|l| l.starts_with("add element ip brindle brindle4-a"));
        assert_eq!(filled.map(|l| l.matches(", ").count() + 1).sum::<usize>(), few.len());
        assert!(beside.input.contains("flush set ip brindle brindle4-a\n") && beside.late.is_empty());
        assert!(!beside.input.contains("delete element") && !only_members(&beside.input));
        let mut after = actual.clone();
        beside.assume(&mut after);
        assert_eq!(after, carried_out(&more, &sets));
    }

    #[test]
    fn a_set_somebody_made_in_another_form_is_replaced_and_nothing_beside_it() {
        let (wanted, sets) = example();
        let mut actual = carried_out(&wanted, &sets);
        actual.sets.insert("brindle4-a".into(), Some((SetKind::IpPort, BTreeSet::new())));
        // Whoever did that had to take our rules away that ask it.
        let chain = "filter-brindle-fw-cali1".to_owned();
        actual.chains.insert(chain.clone(), Tags::Read(vec!["foreign".into()]));
        actual.chains.insert("foreign".into(), Tags::Read(vec![String::new()]));
        let p = plan(Family::V4, &wanted, &sets, &actual, Leftovers::Keep, None);
        insta::assert_snapshot!(p.input);
        assert!(p.late.is_empty(), "in one transaction: {p:?}");
        p.assume(&mut actual);
        assert_eq!(actual, carried_out(&wanted, &sets));
        assert!(plan(Family::V4, &wanted, &sets, &actual, Leftovers::Remove, None).input.is_empty());
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
        let both = carried_out(&more, &sets);
        let p = plan(Family::V4, &wanted, &sets, &both, Leftovers::Keep, None);
        assert!(p.input.is_empty() && p.left, "{p:?}");
        let mut after = both.clone();
        p.assume(&mut after);
        assert_eq!(after, both);
        let p = plan(Family::V4, &more, &sets, &carried_out(&wanted, &sets), Leftovers::Keep, None);
        assert!(!p.removes && !p.left, "{p:?}");
        let new = "add element ip brindle filter-brindle-from-wl-map { \"cali2\" : goto filter-brindle-fw-cali2 }\n";
        assert_eq!(p.late, new, "packets meet the chain when it is complete");
        assert!(!p.input.contains("element"), "{p:?}");
        let p = plan(Family::V4, &wanted, &sets, &both, Leftovers::Remove, None);
        assert!(p.removes && p.removed == 1 && p.deleted == 1, "{p:?}");
    }
}
