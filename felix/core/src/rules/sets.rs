//! Sets of addresses: their members, what `ipset save` says of them, and the `ipset restore` input that leads from
//! there to what is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    ir::Family,
    names::{is_our_set, temporary},
};

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// Networks (`hash:net`).
    Net,
    /// Address, protocol, port (`hash:ip,port`).
    IpPort,
}

/// A member of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    Net(IpNet),
    Port { ip: IpAddr, protocol: u8, port: u16 },
}

impl Member {
    /// Whether it belongs to a family.
    pub fn is(&self, family: Family) -> bool {
        match self {
            Self::Net(n) => family.has(n),
            Self::Port { ip, .. } => family.has(&IpNet::from(*ip)),
        }
    }

    /// Reads it as ipset prints it.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some((ip, port)) = text.split_once(',') {
            let (protocol, port) = port.split_once(':')?;
            let protocol = match protocol {
                "tcp" => 6,
                "udp" => 17,
                "sctp" => 132,
                "udplite" => 136,
                n => n.parse().ok()?,
            };
            return Some(Self::Port { ip: ip.parse().ok()?, protocol, port: port.parse().ok()? });
        }
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
        Some(Self::Net(net.trunc()))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(n) if n.prefix_len() == n.max_prefix_len() => write!(f, "{}", n.addr()),
            Self::Net(n) => write!(f, "{n}"),
            Self::Port { ip, protocol, port } => match protocol {
                6 => write!(f, "{ip},tcp:{port}"),
                17 => write!(f, "{ip},udp:{port}"),
                132 => write!(f, "{ip},sctp:{port}"),
                136 => write!(f, "{ip},udplite:{port}"),
                n => write!(f, "{ip},{n}:{port}"),
            },
        }
    }
}

/// Members a set can hold: a network of length 0 becomes its halves, which hash:net can hold.
pub fn holdable(members: impl IntoIterator<Item = Member>, family: Family) -> BTreeSet<Member> {
    let mut out = BTreeSet::new();
    for m in members.into_iter().filter(|m| m.is(family)) {
        match m {
            Member::Net(net) if net.prefix_len() == 0 => {
                out.extend(net.subnets(1).into_iter().flatten().map(Member::Net));
            }
            Member::Net(net) => {
                out.insert(Member::Net(net.trunc()));
            }
            Member::Port { .. } => {
                out.insert(m);
            }
        }
    }
    out
}

/// The members no other member covers: what an interval set of nftables can hold.
pub fn disjoint(members: &BTreeSet<Member>) -> BTreeSet<Member> {
    let mut out = BTreeSet::new();
    let mut last: Option<IpNet> = None;
    // Sorted by address, then length: what covers comes first.
    for m in members {
        match m {
            Member::Net(net) => {
                if last.is_none_or(|l| !l.contains(net)) {
                    last = Some(*net);
                    out.insert(*m);
                }
            }
            Member::Port { .. } => {
                out.insert(*m);
            }
        }
    }
    out
}

/// Sets as wanted, by name.
pub type WantedSets = BTreeMap<String, Arc<WantedSet>>;

/// A set as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSet {
    pub kind: SetKind,
    pub members: BTreeSet<Member>,
}

/// A set as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActualSet {
    /// None: a type of set we never make.
    pub kind: Option<SetKind>,
    pub max: usize,
    pub members: BTreeSet<Member>,
}

/// Reads `ipset save`; sets of other people are left out.
pub fn parse(family: Family, text: &str) -> BTreeMap<String, ActualSet> {
    let mut out: BTreeMap<String, ActualSet> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (verb, Some(name)) = (words.next(), words.next()) else { continue };
        if !is_our_set(family, name) {
            continue;
        }
        match verb {
            Some("create") => {
                let words: Vec<&str> = words.collect();
                let inet = if family == Family::V4 { "inet" } else { "inet6" };
                let after =
                    |key: &str| words.iter().position(|w| *w == key).and_then(|i| words.get(i + 1)).copied();
                let kind = match words.first() {
                    Some(&"hash:net") => Some(SetKind::Net),
                    Some(&"hash:ip,port") => Some(SetKind::IpPort),
                    _ => None,
                };
                let set = ActualSet {
                    kind: kind.filter(|_| after("family") == Some(inet)),
                    max: after("maxelem").and_then(|m| m.parse().ok()).unwrap_or(0),
                    members: BTreeSet::new(),
                };
                out.insert(name.to_owned(), set);
            }
            Some("add") => {
                if let (Some(set), Some(member)) = (out.get_mut(name), words.next().and_then(Member::parse)) {
                    set.members.insert(member);
                }
            }
            _ => {}
        }
    }
    out
}

/// The two halves of a change of sets: what must be there before rules refer to it, and what may go when none does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetPlan {
    /// `ipset restore` input; empty: nothing to do.
    pub before: String,
    pub after: String,
    /// Sets made, built anew and swapped, destroyed; members added and removed.
    pub made: usize,
    pub swapped: usize,
    pub destroyed: usize,
    pub added: usize,
    pub deleted: usize,
}

/// Removing so many members, and more than half of a set, is done by building it anew and swapping.
const REBUILD: usize = 1000;

/// Whether so many members go that a set is built anew without them.
pub fn shrinks(members: usize, gone: usize) -> bool {
    gone >= REBUILD && gone * 2 > members
}

/// What a set made for these members holds at most. `max`: FelixConfiguration.maxIpsetSize.
fn room(want: &WantedSet, max: usize) -> usize {
    max.max(want.members.len().next_power_of_two())
}

/// Whether a set gets what is wanted by being built anew and swapped: many go, or what is new has no room beside what goes.
/// Members that go are removed last, so that no packet misses one that stays under another prefix.
fn rebuilt(have: &ActualSet, want: &WantedSet) -> bool {
    let added = want.members.difference(&have.members).count();
    let gone = have.members.len() + added - want.members.len();
    added > have.max.saturating_sub(have.members.len()) || shrinks(have.members.len(), gone)
}

/// What a set holds at most once [`plan`] has been carried out.
pub fn max_after(have: Option<&ActualSet>, want: &WantedSet, max: usize) -> usize {
    match have.filter(|h| h.kind == Some(want.kind) && !rebuilt(h, want)) {
        Some(kept) => kept.max,
        None => room(want, max),
    }
}

/// Plans sets of one family. `max`: FelixConfiguration.maxIpsetSize, exceeded only when a set is larger.
/// `only`: just these sets are compared.
pub fn plan(
    family: Family,
    wanted: &WantedSets,
    actual: &BTreeMap<String, ActualSet>,
    max: usize,
    only: Option<&BTreeSet<String>>,
) -> SetPlan {
    let mut out = SetPlan::default();
    let mut temporaries = BTreeSet::new();
    let compare = |out: &mut SetPlan, temporaries: &mut BTreeSet<String>, name: &str, want: &WantedSet| {
        let room = room(want, max);
        let Some(have) = actual.get(name) else {
            create(out, family, name, want, room);
            out.made += 1;
            return;
        };
        if have.kind != Some(want.kind) {
            // Not ours, whatever its name: the name says the form. The kernel swaps no sets of different forms, and lets
            // go of this one when no rule refers to it.
            let _ = writeln!(out.before, "destroy {name}");
            create(out, family, name, want, room);
            out.destroyed += 1;
            out.made += 1;
            return;
        }
        if rebuilt(have, want) {
            let temp = temporary(name);
            if actual.contains_key(&temp) {
                let _ = writeln!(out.before, "destroy {temp}");
            }
            create(out, family, &temp, want, room);
            let _ = writeln!(out.before, "swap {temp} {name}\ndestroy {temp}");
            temporaries.insert(temp);
            out.swapped += 1;
            return;
        }
        for m in want.members.difference(&have.members) {
            let _ = writeln!(out.before, "add {name} {m}");
            out.added += 1;
        }
        for m in have.members.difference(&want.members) {
            let _ = writeln!(out.before, "del {name} {m}");
            out.deleted += 1;
        }
    };
    match only {
        Some(names) => {
            for name in names {
                if let Some(want) = wanted.get(name) {
                    compare(&mut out, &mut temporaries, name, want);
                }
            }
        }
        None => {
            for (name, want) in wanted {
                compare(&mut out, &mut temporaries, name, want);
            }
        }
    }
    for name in actual.keys().filter(|n| !wanted.contains_key(*n) && !temporaries.contains(*n)) {
        if only.is_none_or(|o| o.contains(name)) {
            let _ = writeln!(out.after, "destroy {name}");
            out.destroyed += 1;
        }
    }
    out
}

fn create(out: &mut SetPlan, family: Family, name: &str, want: &WantedSet, max: usize) {
    let kind = match want.kind {
        SetKind::Net => "hash:net",
        SetKind::IpPort => "hash:ip,port",
    };
    let inet = if family == Family::V4 { "inet" } else { "inet6" };
    let _ = writeln!(out.before, "create {name} {kind} family {inet} maxelem {max}");
    for m in &want.members {
        let _ = writeln!(out.before, "add {name} {m}");
    }
    out.added += want.members.len();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(kind: SetKind, members: &[&str]) -> Arc<WantedSet> {
        Arc::new(WantedSet { kind, members: members.iter().map(|m| Member::parse(m).unwrap()).collect() })
    }

    #[test]
    fn members_are_read_as_they_are_written() {
        for text in
            ["10.0.0.1", "10.0.0.0/8", "fd00::1", "10.0.0.1,tcp:80", "fd00::1,sctp:9", "1.2.3.4,136:1"]
        {
            let m = Member::parse(text).unwrap();
            assert_eq!(Member::parse(&m.to_string()), Some(m), "{text}");
        }
        assert_eq!(Member::parse("10.0.0.1,tcp"), None);
        assert_eq!(holdable([Member::parse("0.0.0.0/0").unwrap()], Family::V4).len(), 2);
    }

    #[test]
    fn differences_swaps_growth_and_leftovers() {
        let saved = "create brindle4-a hash:net family inet hashsize 1024 maxelem 4 bucketsize 12 initval 0x1\n\
            add brindle4-a 10.0.0.1\nadd brindle4-a 10.0.0.2\n\
            create brindle4-b hash:ip family inet hashsize 1024 maxelem 65536\n\
            create brindle4-b-t hash:net family inet hashsize 1024 maxelem 65536\n\
            create brindle4-old hash:net family inet hashsize 1024 maxelem 65536\n\
            create cali40s:x hash:net family inet hashsize 1024 maxelem 65536\n\
            create brindle6-a hash:net family inet6 hashsize 1024 maxelem 65536\n";
        let actual = parse(Family::V4, saved);
        assert_eq!(actual.len(), 4);
        let mut wanted = BTreeMap::from([
            ("brindle4-a".to_owned(), set(SetKind::Net, &["10.0.0.2", "10.1.0.0/16"])),
            ("brindle4-b".to_owned(), set(SetKind::Net, &["10.0.0.9"])),
            ("brindle4-c".to_owned(), set(SetKind::IpPort, &["10.0.0.9,udp:53"])),
        ]);
        let p = plan(Family::V4, &wanted, &actual, 4, None);
        insta::assert_snapshot!(format!("{}--\n{}", p.before, p.after));
        wanted.insert(
            "brindle4-a".into(),
            set(SetKind::Net, &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]),
        );
        let grown = plan(Family::V4, &wanted, &actual, 4, Some(&BTreeSet::from(["brindle4-a".into()])));
        assert!(grown.swapped == 1 && grown.before.contains("maxelem 8"), "{grown:?}");
        assert!(grown.after.is_empty());
    }

    #[test]
    fn a_full_set_of_which_one_member_is_replaced_is_swapped() {
        let members = |last: &str| set(SetKind::Net, &["10.0.0.1", "10.0.0.2", "10.0.0.3", last]);
        let have =
            ActualSet { kind: Some(SetKind::Net), max: 4, members: members("10.0.0.4").members.clone() };
        let actual = BTreeMap::from([("brindle4-a".to_owned(), have)]);
        let wanted = BTreeMap::from([("brindle4-a".to_owned(), members("10.0.0.5"))]);
        let p = plan(Family::V4, &wanted, &actual, 4, None);
        assert!(p.swapped == 1 && p.before.contains("swap brindle4-a-t brindle4-a\n"), "{p:?}");
    }

    /// The sets of the kernel, as `ipset restore` changes them line by line.
    #[derive(Default)]
    struct Kernel(BTreeMap<String, (usize, BTreeSet<String>)>);

    impl Kernel {
        fn line(&mut self, line: &str) -> Result<(), String> {
            let no = || format!("refused: {line}");
            match *line.split(' ').collect::<Vec<_>>() {
                ["create", name, _, "family", _, "maxelem", max] => {
                    let new = (max.parse().map_err(|_| no())?, BTreeSet::new());
                    if self.0.insert(name.into(), new).is_some() { Err(no()) } else { Ok(()) }
                }
                ["add", name, member] => {
                    let (max, members) = self.0.get_mut(name).ok_or_else(no)?;
                    let fits = members.len() < *max;
                    if fits && members.insert(member.into()) { Ok(()) } else { Err(no()) }
                }
                ["del", name, member] => {
                    let removed = self.0.get_mut(name).is_some_and(|(_, m)| m.remove(member));
                    if removed { Ok(()) } else { Err(no()) }
                }
                ["swap", a, b] => {
                    let (first, second) =
                        (self.0.remove(a).ok_or_else(no)?, self.0.remove(b).ok_or_else(no)?);
                    self.0.extend([(a.to_owned(), second), (b.to_owned(), first)]);
                    Ok(())
                }
                ["destroy", name] => self.0.remove(name).map(drop).ok_or_else(no),
                _ => Err(no()),
            }
        }
    }

    #[test]
    fn covered_networks_do_not_enter_an_interval_set() {
        let s =
            set(SetKind::Net, &["10.0.0.0/8", "10.1.0.0/16", "10.255.255.255", "11.0.0.0/16", "9.0.0.0/8"]);
        let left: Vec<String> = disjoint(&s.members).iter().map(ToString::to_string).collect();
        assert_eq!(left, ["9.0.0.0/8", "10.0.0.0/8", "11.0.0.0/16"]);
    }

    proptest! {
        /// Whatever a set holds, may hold and is to hold: no line is refused, and what is believed of it then is true.
        #[test]
        fn no_line_of_a_plan_exceeds_what_a_set_may_hold(
            have in proptest::collection::btree_set(0u8..12, 0..12),
            want in proptest::collection::btree_set(0u8..12, 0..12),
            spare in 0usize..6,
            max in 0usize..16,
        ) {
            let members = |of: &BTreeSet<u8>| -> BTreeSet<Member> {
                of.iter().map(|n| Member::Net(IpAddr::from([10, 0, 0, *n]).into())).collect()
            };
            let text = |of: &BTreeSet<Member>| of.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
            let have = ActualSet { kind: Some(SetKind::Net), max: have.len() + spare, members: members(&have) };
            let want = WantedSet { kind: SetKind::Net, members: members(&want) };
            let mut kernel = Kernel::default();
            kernel.0.insert("brindle4-a".into(), (have.max, text(&have.members)));
            let after = max_after(Some(&have), &want, max);
            let left = text(&want.members);
            let wanted = BTreeMap::from([("brindle4-a".to_owned(), Arc::new(want))]);
            let actual = BTreeMap::from([("brindle4-a".to_owned(), have)]);
            let p = plan(Family::V4, &wanted, &actual, max, None);
            for line in p.before.lines().chain(p.after.lines()) {
                let done = kernel.line(line);
                prop_assert!(done.is_ok(), "{done:?}\n{}", p.before);
            }
            prop_assert_eq!(kernel.0, BTreeMap::from([("brindle4-a".to_owned(), (after, left))]));
        }

        #[test]
        fn covering_is_found_whatever_the_order(nets in proptest::collection::vec((any::<u32>(), 1u8..=32), 1..60)) {
            let members: BTreeSet<Member> = nets
                .iter()
                .map(|(a, l)| Member::Net(ipnet::Ipv4Net::new_assert((*a).into(), *l).trunc().into()))
                .collect();
            let left = disjoint(&members);
            for (i, a) in left.iter().enumerate() {
                for b in left.iter().skip(i + 1) {
                    let (Member::Net(a), Member::Net(b)) = (a, b) else { unreachable!("only networks") };
                    prop_assert!(!a.contains(b) && !b.contains(a));
                }
            }
            for m in &members {
                let Member::Net(m) = m else { unreachable!("only networks") };
                let covered = left.iter().any(|l| matches!(l, Member::Net(l) if l.contains(m)));
                prop_assert!(covered);
            }
        }
    }
}
