//! A model of the packet filter, sets and flows of one namespace: as much as programs that reconcile them rely on. It
//! does not judge packets. tests/netfilter.rs shows the same behaviour on Linux.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Value, json};

use crate::netfilter::{Flow, IpVersion, Netfilter, NfError, Variant};

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NfCall {
    Save,
    /// Nothing of the input takes effect.
    Restore,
    /// The first table takes effect, then it fails.
    RestoreMidway,
    /// Another process holds the lock.
    Lock,
    SaveSets,
    /// So many lines take effect, then it fails.
    RestoreSets(usize),
    Nft,
    /// One that changes members of sets and maps alone.
    NftMembers,
    NftList,
    /// The kernel refuses connection marks.
    Mark,
}

type Rules = BTreeMap<String, Vec<String>>;

#[derive(Clone, Debug, Default)]
struct NftTable {
    chains: BTreeMap<String, Vec<String>>,
    /// Name → (declaration, elements).
    sets: BTreeMap<String, (String, Vec<String>)>,
    maps: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Default)]
struct State {
    /// (make, version) → table → chain → rules.
    tables: BTreeMap<(Variant, IpVersion), BTreeMap<String, Rules>>,
    /// Set → (type words, members).
    sets: BTreeMap<String, (String, Vec<String>)>,
    nft: BTreeMap<(IpVersion, String), NftTable>,
    flows: Vec<Flow>,
    fail: VecDeque<NfCall>,
    /// Lines that contain this are refused.
    refused: Option<String>,
    /// Calls that wrote something.
    writes: u64,
}

/// The namespace seen from outside.
#[derive(Clone, Debug, Default)]
pub struct FilterWorld(Arc<Mutex<State>>);

const BUILTIN: [(&str, &[&str]); 4] = [
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
];

impl FilterWorld {
    pub fn new() -> Self {
        Self::default()
    }

    /// What a program under test holds.
    pub fn open(&self) -> FakeFilter {
        FakeFilter { world: self.clone(), variant: Variant::Nft }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        // Poisoned only after a panic of a test, which has failed already.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next such call fails.
    pub fn fail_next(&self, call: NfCall) {
        self.with(|s| s.fail.push_back(call));
    }

    /// From now on lines that contain this are refused.
    pub fn refuse(&self, text: Option<&str>) {
        self.with(|s| s.refused = text.map(str::to_owned));
    }

    /// What was to fail and has not yet does not fail.
    pub fn mend(&self) {
        self.with(|s| s.fail.clear());
    }

    /// Calls that wrote something.
    pub fn writes(&self) -> u64 {
        self.with(|s| s.writes)
    }

    /// Another process changes rules.
    pub fn interfere(&self, variant: Variant, version: IpVersion, input: &str) -> Result<(), NfError> {
        self.with(|s| s.restore(variant, version, input))
    }

    /// Adds a tracked flow.
    pub fn track(&self, flow: Flow) {
        self.with(|s| s.flows.push(flow));
    }

    /// The flows left.
    pub fn tracked(&self) -> Vec<Flow> {
        self.with(|s| s.flows.clone())
    }
}

fn refused(tool: &str, why: impl Into<String>, culprit: &str) -> NfError {
    NfError::Refused { tool: tool.into(), why: why.into(), culprit: Some(culprit.into()) }
}

impl State {
    fn fails(&mut self, call: NfCall) -> bool {
        let at = self.fail.iter().position(|c| *c == call);
        at.and_then(|i| self.fail.remove(i)).is_some()
    }

    /// Of the tool's input the first line that is refused.
    fn judge(&self, tool: &str, mut lines: std::str::Lines<'_>) -> Result<(), NfError> {
        let Some(text) = &self.refused else { return Ok(()) };
        let found = lines.find(|l| l.contains(text.as_str()));
        found.map_or(Ok(()), |line| Err(refused(tool, "is not to be", line)))
    }

    fn of(&mut self, variant: Variant, version: IpVersion) -> &mut BTreeMap<String, Rules> {
        self.tables.entry((variant, version)).or_insert_with(|| {
            let rules = |chains: &[&str]| chains.iter().map(|c| ((*c).to_owned(), Vec::new())).collect();
            BUILTIN.iter().map(|(t, chains)| ((*t).to_owned(), rules(chains))).collect()
        })
    }

    fn restore(&mut self, variant: Variant, version: IpVersion, input: &str) -> Result<(), NfError> {
        let midway = self.fails(NfCall::RestoreMidway);
        self.judge("iptables-restore", input.lines())?;
        let sets: Vec<String> = self.sets.keys().cloned().collect();
        let mut current: Option<(String, Rules)> = None;
        for line in input.lines() {
            if let Some(table) = line.strip_prefix('*') {
                let Some(rules) = self.of(variant, version).get(table).cloned() else {
                    return Err(refused("iptables-restore", "no such table", line));
                };
                current = Some((table.to_owned(), rules));
                continue;
            }
            let Some((table, rules)) = &mut current else { continue };
            if line == "COMMIT" {
                check(rules, &sets)?;
                let (table, rules) = (table.clone(), rules.clone());
                self.of(variant, version).insert(table, rules);
                self.writes += 1;
                current = None;
                if midway {
                    return Err(refused("iptables-restore", "injected", "COMMIT"));
                }
                continue;
            }
            change(table, rules, line)?;
        }
        Ok(())
    }

    fn restore_sets(&mut self, input: &str) -> Result<(), NfError> {
        let limit = self.fail.iter().position(|c| matches!(c, NfCall::RestoreSets(_)));
        let limit = limit.and_then(|i| self.fail.remove(i));
        for (n, line) in input.lines().enumerate() {
            if limit == Some(NfCall::RestoreSets(n)) {
                return Err(refused("ipset", "injected", line));
            }
            self.judge("ipset", line.lines())?;
            self.set_line(line)?;
            self.writes += 1;
        }
        Ok(())
    }

    fn set_line(&mut self, line: &str) -> Result<(), NfError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let no = |why: &str| Err(refused("ipset", why, line));
        let exist = words.last() == Some(&"-exist");
        match words.as_slice() {
            ["create", name, rest @ ..] => {
                if self.sets.contains_key(*name) {
                    return no("set with the same name already exists");
                }
                self.sets.insert((*name).to_owned(), (rest.join(" "), Vec::new()));
            }
            ["add", name, member, ..] => {
                let Some((decl, members)) = self.sets.get_mut(*name) else {
                    return no("The set does not exist");
                };
                let max = decl.split(' ').skip_while(|w| *w != "maxelem").nth(1).and_then(|m| m.parse().ok());
                if members.iter().any(|m| m == member) {
                    return if exist { Ok(()) } else { no("Element cannot be added: it's already added") };
                }
                if max.is_some_and(|m: usize| members.len() >= m) {
                    return no("Hash is full, cannot add more elements");
                }
                members.push((*member).to_owned());
            }
            ["del", name, member, ..] => {
                let Some((_, members)) = self.sets.get_mut(*name) else {
                    return no("The set does not exist");
                };
                let before = members.len();
                members.retain(|m| m != member);
                if members.len() == before && !exist {
                    return no("Element cannot be deleted: it's not added");
                }
            }
            ["swap", a, b] => {
                let (Some(x), Some(y)) = (self.sets.remove(*a), self.sets.remove(*b)) else {
                    return no("The set does not exist");
                };
                self.sets.insert((*a).to_owned(), y);
                self.sets.insert((*b).to_owned(), x);
            }
            ["destroy", name] => {
                let used = self.tables.values().flat_map(|t| t.values()).flat_map(|c| c.values()).flatten();
                if used.into_iter().any(|r| r.contains(&format!("--match-set {name} "))) {
                    return no("Set cannot be destroyed: it is in use by a kernel component");
                }
                if self.sets.remove(*name).is_none() {
                    return no("The set does not exist");
                }
            }
            _ => return no("unknown command"),
        }
        Ok(())
    }
}

/// One line of a table's input.
fn change(table: &str, rules: &mut Rules, line: &str) -> Result<(), NfError> {
    let builtin = |c: &str| BUILTIN.iter().any(|(t, chains)| *t == table && chains.contains(&c));
    let no = |why: &str| Err(refused("iptables-restore", why, line));
    if let Some(decl) = line.strip_prefix(':') {
        let name = decl.split(' ').next().unwrap_or_default();
        if !builtin(name) {
            rules.insert(name.to_owned(), Vec::new());
        }
        return Ok(());
    }
    let mut parts = line.splitn(3, ' ');
    let (verb, chain, rest) =
        (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Some(list) = rules.get_mut(chain) else { return no("No chain by that name") };
    match verb {
        Some("-A") => list.push(rest.to_owned()),
        Some("-I") => {
            let (at, rule) = rest.split_once(' ').unwrap_or(("1", rest));
            let at = at.parse::<usize>().unwrap_or(1).saturating_sub(1);
            if at > list.len() {
                return no("Index of insertion too big");
            }
            list.insert(at, rule.to_owned());
        }
        Some("-D") => match list.iter().position(|r| r == rest) {
            Some(i) => {
                list.remove(i);
            }
            None => return no("Bad rule (does a matching rule exist in that chain?)"),
        },
        Some("-F") => list.clear(),
        Some("-X") => {
            if builtin(chain) || !list.is_empty() {
                return no("Directory not empty");
            }
            rules.remove(chain);
        }
        _ => return no("unknown option"),
    }
    Ok(())
}

/// Jumps lead to chains and matches to sets that exist.
fn check(rules: &Rules, sets: &[String]) -> Result<(), NfError> {
    for line in rules.values().flatten() {
        let words: Vec<&str> = line.split(' ').collect();
        for pair in words.windows(2) {
            let [flag, what] = pair else { continue };
            let target = what.chars().any(|c| c.is_ascii_lowercase());
            if (*flag == "-j" || *flag == "-g") && target && !rules.contains_key(*what) {
                return Err(refused("iptables-restore", format!("Chain '{what}' does not exist"), line));
            }
            if *flag == "--match-set" && !sets.iter().any(|s| s == what) {
                return Err(refused("iptables-restore", format!("Set {what} doesn't exist."), line));
            }
        }
    }
    Ok(())
}

/// A program's access to a [`FilterWorld`].
#[derive(Debug)]
pub struct FakeFilter {
    world: FilterWorld,
    variant: Variant,
}

impl Netfilter for FakeFilter {
    fn again(&self) -> Box<dyn Netfilter> {
        Box::new(Self { world: self.world.clone(), variant: self.variant })
    }

    fn save(&mut self, version: IpVersion) -> Result<String, NfError> {
        let variant = self.variant;
        self.world.with(|s| {
            if s.fails(NfCall::Save) {
                return Err(refused("iptables-save", "injected", ""));
            }
            Ok(print(s.of(variant, version)))
        })
    }

    fn restore(&mut self, version: IpVersion, input: &str) -> Result<(), NfError> {
        let variant = self.variant;
        self.world.with(|s| {
            if s.fails(NfCall::Lock) {
                return Err(NfError::Locked { tool: "iptables-restore".into(), seconds: 10 });
            }
            if s.fails(NfCall::Restore) {
                return Err(refused("iptables-restore", "injected", ""));
            }
            s.restore(variant, version, input)
        })
    }

    fn set_variant(&mut self, variant: Variant) {
        self.variant = variant;
    }

    fn probe(&mut self, variant: Variant, version: IpVersion) -> Result<Option<String>, NfError> {
        Ok(self.world.with(|s| s.tables.get(&(variant, version)).map(print)))
    }

    fn default_variant(&mut self) -> Result<Variant, NfError> {
        Ok(Variant::Nft)
    }

    fn save_sets(&mut self) -> Result<String, NfError> {
        self.world.with(|s| {
            if s.fails(NfCall::SaveSets) {
                return Err(refused("ipset", "injected", ""));
            }
            let mut out = String::new();
            for (name, (decl, members)) in &s.sets {
                out.push_str(&format!("create {name} {decl}\n"));
                for m in members {
                    out.push_str(&format!("add {name} {m}\n"));
                }
            }
            Ok(out)
        })
    }

    fn restore_sets(&mut self, input: &str) -> Result<(), NfError> {
        self.world.with(|s| s.restore_sets(input))
    }

    fn nft_list(&mut self, version: IpVersion, table: &str) -> Result<Option<String>, NfError> {
        self.world.with(|s| {
            if s.fails(NfCall::NftList) {
                return Err(refused("nft", "injected", ""));
            }
            Ok(s.nft.get(&(version, table.to_owned())).map(|t| list(t).to_string()))
        })
    }

    fn nft(&mut self, input: &str) -> Result<(), NfError> {
        self.world.with(|s| {
            let members = || input.lines().all(|l| l.split(' ').nth(1) == Some("element"));
            if s.fails(NfCall::Nft) || members() && s.fails(NfCall::NftMembers) {
                return Err(refused("nft", "injected", ""));
            }
            s.judge("nft", input.lines())?;
            let mut next = s.nft.clone();
            for line in input.lines() {
                nft_line(&mut next, line)?;
            }
            s.nft = next;
            s.writes += 1;
            Ok(())
        })
    }

    fn flows(&mut self, version: IpVersion) -> Result<Vec<Flow>, NfError> {
        Ok(self.world.with(|s| s.flows.iter().filter(|f| f.version == version).cloned().collect()))
    }

    fn forget(&mut self, flows: &[Flow]) -> Result<usize, NfError> {
        Ok(self.world.with(|s| {
            let before = s.flows.len();
            s.flows.retain(|f| !flows.iter().any(|g| same(f, g)));
            before - s.flows.len()
        }))
    }

    fn mark(&mut self, flows: &[Flow], bits: u32, set: bool) -> Result<usize, NfError> {
        self.world.with(|s| {
            if s.fails(NfCall::Mark) {
                return Err(refused("ctnetlink", "injected", ""));
            }
            let mut done = 0;
            for f in s.flows.iter_mut().filter(|f| flows.iter().any(|g| same(f, g))) {
                f.mark = if set { f.mark | bits } else { f.mark & !bits };
                done += 1;
            }
            Ok(done)
        })
    }
}

/// Flows are known by their tuple; marks change.
fn same(a: &Flow, b: &Flow) -> bool {
    (a.version, a.protocol, a.original) == (b.version, b.protocol, b.original)
}

fn print(tables: &BTreeMap<String, Rules>) -> String {
    let mut out = String::new();
    for (table, rules) in tables {
        out.push_str(&format!("*{table}\n"));
        for chain in rules.keys() {
            let policy = if chain.bytes().all(|b| b.is_ascii_uppercase()) { "ACCEPT" } else { "-" };
            out.push_str(&format!(":{chain} {policy} [0:0]\n"));
        }
        for (chain, list) in rules {
            for rule in list {
                out.push_str(&format!("-A {chain} {rule}\n"));
            }
        }
        out.push_str("COMMIT\n");
    }
    out
}

fn nft_line(tables: &mut BTreeMap<(IpVersion, String), NftTable>, line: &str) -> Result<(), NfError> {
    let no = |why: &str| Err(refused("nft", why, line));
    let words: Vec<&str> = line.split(' ').collect();
    let [verb, what, family, table, rest @ ..] = words.as_slice() else { return no("syntax error") };
    let version = if *family == "ip6" { IpVersion::V6 } else { IpVersion::V4 };
    let key = (version, (*table).to_owned());
    if *what == "table" {
        match *verb {
            "add" => drop(tables.entry(key).or_default()),
            _ => drop(tables.remove(&key)),
        }
        return Ok(());
    }
    let Some(t) = tables.get_mut(&key) else { return no("No such file or directory") };
    let Some(name) = rest.first().map(|n| (*n).to_owned()) else { return no("syntax error") };
    let inner = || {
        let (_, after) = line.split_once("{ ")?;
        Some(after.trim_end_matches(" }").to_owned())
    };
    let items = || inner().unwrap_or_default().split(", ").map(str::to_owned).collect::<Vec<_>>();
    match (*verb, *what) {
        ("add", "chain") => drop(t.chains.entry(name).or_default()),
        ("flush", "chain") => match t.chains.get_mut(&name) {
            Some(c) => c.clear(),
            None => return no("No such file or directory"),
        },
        ("delete", "chain") => {
            let used = t.chains.values().flatten().any(|r| r.contains(&format!(" {name} ")));
            let mapped = t.maps.values().flat_map(BTreeMap::values).any(|c| *c == name);
            if used || mapped || t.chains.remove(&name).is_none_or(|c| !c.is_empty()) {
                return no("Device or resource busy");
            }
        }
        ("add", "rule") => {
            let text = rest.get(1..).unwrap_or_default().join(" ");
            let missing = text
                .split(' ')
                .zip(text.split(' ').skip(1))
                .any(|(a, b)| (a == "jump" || a == "goto") && !t.chains.contains_key(b));
            let unknown = text
                .split(' ')
                .filter_map(|w| w.strip_prefix('@'))
                .any(|s| !t.sets.contains_key(s) && !t.maps.contains_key(s));
            match t.chains.get_mut(&name) {
                Some(c) if !missing && !unknown => c.push(text),
                _ => return no("No such file or directory"),
            }
        }
        ("add", "set") => drop(t.sets.entry(name).or_insert((inner().unwrap_or_default(), Vec::new()))),
        ("flush", "set") => match t.sets.get_mut(&name) {
            Some((_, members)) => members.clear(),
            None => return no("No such file or directory"),
        },
        ("delete", "set") => {
            if t.chains.values().flatten().any(|r| r.contains(&format!("@{name} "))) {
                return no("Device or resource busy");
            }
            t.sets.remove(&name);
        }
        ("add", "map") => drop(t.maps.entry(name).or_default()),
        ("delete", "map") => drop(t.maps.remove(&name)),
        ("add", "element") if t.maps.contains_key(&name) => {
            for item in items() {
                let Some((dev, chain)) = item.split_once(" : goto ") else { return no("syntax error") };
                if !t.chains.contains_key(chain) {
                    return no("No such file or directory");
                }
                let map = t.maps.entry(name.clone()).or_default();
                map.insert(dev.trim_matches('"').to_owned(), chain.to_owned());
            }
        }
        ("delete", "element") if t.maps.contains_key(&name) => {
            for item in items() {
                let map = t.maps.entry(name.clone()).or_default();
                if map.remove(item.trim_matches('"')).is_none() {
                    return no("No such file or directory");
                }
            }
        }
        (_, "element") => {
            let Some((_, members)) = t.sets.get_mut(&name) else { return no("No such file or directory") };
            for item in items() {
                let at = members.iter().position(|m| *m == item);
                match (*verb, at) {
                    ("add", None) => members.push(item),
                    ("add", Some(_)) => {}
                    (_, Some(i)) => drop(members.remove(i)),
                    (_, None) => return no("No such file or directory"),
                }
            }
        }
        _ => return no("syntax error"),
    }
    Ok(())
}

fn list(t: &NftTable) -> Value {
    let mut out = Vec::new();
    for (name, (decl, members)) in &t.sets {
        let concat = decl.contains(" . ");
        let elem: Vec<Value> = members
            .iter()
            .map(|m| match (m.split_once('/'), concat) {
                (_, true) => {
                    let parts: Vec<Value> = m
                        .split(" . ")
                        .enumerate()
                        .map(|(i, p)| match (i, p.parse::<u64>()) {
                            (1 | 2, Ok(n)) => json!(n),
                            _ => json!(p),
                        })
                        .collect();
                    json!({ "concat": parts })
                }
                (Some((addr, len)), false) => {
                    json!({"prefix": {"addr": addr, "len": len.parse::<u64>().unwrap_or(0)}})
                }
                (None, false) => json!(m),
            })
            .collect();
        let kind =
            if concat { json!(["ipv4_addr", "inet_proto", "inet_service"]) } else { json!("ipv4_addr") };
        out.push(json!({"set": {"name": name, "type": kind, "elem": elem}}));
    }
    for (name, elements) in &t.maps {
        let elem: Vec<Value> = elements.iter().map(|(d, c)| json!([d, {"goto": {"target": c}}])).collect();
        out.push(json!({"map": {"name": name, "elem": elem}}));
    }
    for (name, rules) in &t.chains {
        out.push(json!({"chain": {"name": name}}));
        for rule in rules {
            let comment = rule.split_once(" comment \"").map(|(_, c)| c.trim_end_matches('"'));
            out.push(json!({"rule": {"chain": name, "comment": comment.unwrap_or_default()}}));
        }
    }
    json!({ "nftables": out })
}
