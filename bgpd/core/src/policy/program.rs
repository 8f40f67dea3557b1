//! Compiled rules and their evaluation.
//!
//! A program is one flat list of tests for one family. Prefix conditions become a masked comparison of 128 bits and a
//! range of lengths; what stands behind a rule that matches everything is not kept; an impossible rule neither.

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::rules::{Action, Community, Compare, Direction, Filter, Operation, PeerType, PrefixMatch, Rule};
use crate::{
    af::{Family, PerFamily},
    wire::{AsPath, AttrSet, SegmentKind},
};

/// Filters of one direction in order, compiled. Cheap to clone; equality is that of the rules.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Filter>", into = "Vec<Filter>")]
pub struct Policy(Option<Arc<Compiled>>);

#[derive(Debug)]
struct Compiled {
    filters: Vec<Filter>,
    programs: PerFamily<Program>,
    reads_attributes: bool,
    reads_interface: bool,
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.filters == b.filters,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

impl Eq for Policy {}

impl From<Vec<Filter>> for Policy {
    fn from(filters: Vec<Filter>) -> Self {
        if filters.is_empty() {
            return Self(None);
        }
        let programs = PerFamily::from_fn(|family| Program::compile(&filters, family));
        let reads_attributes = programs
            .iter()
            .flat_map(|(_, p)| &p.0)
            .filter_map(|t| t.more.as_ref())
            .any(|m| m.community.is_some() || !m.as_path.is_empty());
        let tests = programs.iter().flat_map(|(_, p)| &p.0);
        let reads_interface = tests.filter_map(|t| t.more.as_ref()).any(|m| m.interface.is_some());
        Self(Some(Arc::new(Compiled { filters, programs, reads_attributes, reads_interface })))
    }
}

impl From<Policy> for Vec<Filter> {
    fn from(policy: Policy) -> Self {
        policy.0.map(|c| c.filters.clone()).unwrap_or_default()
    }
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub prefix: IpNet,
    pub attributes: &'a AttrSet,
    /// The route's priority: 2147483647 - LOCAL_PREF, with the classic scale brought to Calico's.
    pub priority: u32,
    /// The session the route comes over or goes to.
    pub ibgp: bool,
    /// From a peer, not our own.
    pub learnt: bool,
    /// Device towards the next hop, where known.
    pub interface: Option<&'a str>,
}

/// What the rules say. The number names a rule to [`Policy::apply`] and [`Policy::rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// No rule matched: the usual treatment.
    Default,
    Accept(u16),
    Reject(u16),
}

/// A rule by name: `deny-pods importV4[2]`, the field it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleName<'a> {
    pub filter: &'a str,
    /// `importV4`, `exportV6`, …
    pub list: &'static str,
    pub index: usize,
}

impl fmt::Display for RuleName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[{}]", self.filter, self.list, self.index)
    }
}

impl Policy {
    /// Whether there is no rule at all.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The filters by name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|c| &c.filters).map(|f| f.name.as_str())
    }

    /// Whether any rule looks at attributes; otherwise [`Facts::attributes`] may be empty.
    pub fn reads_attributes(&self) -> bool {
        self.0.as_ref().is_some_and(|c| c.reads_attributes)
    }

    /// Whether any rule looks at the device; otherwise [`Facts::interface`] may be empty.
    pub fn reads_interface(&self) -> bool {
        self.0.as_ref().is_some_and(|c| c.reads_interface)
    }

    /// Evaluates the rules for a route.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let Some(compiled) = &self.0 else { return Decision::Default };
        compiled.programs[Family::of(&facts.prefix)].decide(facts)
    }

    /// Applies the operations of an accepting rule; whether it has any.
    pub fn apply(&self, family: Family, rule: u16, set: &mut AttrSet) -> bool {
        let operations = self.operations(family, rule);
        operations.iter().for_each(|o| o.apply(set));
        !operations.is_empty()
    }

    /// The operations of a rule.
    pub fn operations(&self, family: Family, rule: u16) -> &[Operation] {
        let test = self.0.as_ref().and_then(|c| c.programs[family].0.get(usize::from(rule)));
        test.map_or(&[], |t| &t.operations)
    }

    /// The name of a rule.
    pub fn rule(&self, family: Family, rule: u16) -> Option<RuleName<'_>> {
        let compiled = self.0.as_ref()?;
        let test = compiled.programs[family].0.get(usize::from(rule))?;
        let filter = compiled.filters.get(usize::from(test.filter))?;
        let list = match (filter.direction, family) {
            (Direction::Import, Family::Ipv4Unicast) => "importV4",
            (Direction::Import, Family::Ipv6Unicast) => "importV6",
            (Direction::Export, Family::Ipv4Unicast) => "exportV4",
            (Direction::Export, Family::Ipv6Unicast) => "exportV6",
        };
        Some(RuleName { filter: &filter.name, list, index: usize::from(test.index) })
    }
}

/// The rules of one family, in order.
#[derive(Debug)]
struct Program(Vec<Test>);

/// One rule, compiled.
#[derive(Debug)]
struct Test {
    prefix: Option<PrefixTest>,
    peer: Option<PeerType>,
    learnt: bool,
    /// Conditions most rules do not have.
    more: Option<Box<More>>,
    action: Action,
    operations: Box<[Operation]>,
    /// Which filter of the policy, and which rule of its list.
    filter: u16,
    index: u16,
}

/// `(bits & mask == net && min <= length <= max) != negate`.
#[derive(Clone, Copy, Debug)]
struct PrefixTest {
    net: u128,
    mask: u128,
    min: u8,
    max: u8,
    negate: bool,
}

#[derive(Debug)]
struct More {
    community: Option<Community>,
    as_path: Box<[u32]>,
    priority: Option<u32>,
    interface: Option<Box<str>>,
}

/// The bits of a prefix at the upper end, and its length.
fn bits(net: &IpNet) -> (u128, u8) {
    match net {
        IpNet::V4(n) => (u128::from(u32::from(n.network())) << 96, n.prefix_len()),
        IpNet::V6(n) => (u128::from(n.network()), n.prefix_len()),
    }
}

impl PrefixTest {
    fn new(m: &PrefixMatch) -> Self {
        let (net, length) = bits(&m.net);
        let (exact, negate) = match m.compare {
            Compare::Equal => (true, false),
            Compare::NotEqual => (true, true),
            Compare::In => (false, false),
            Compare::NotIn => (false, true),
        };
        // Inside `net` means at least as long.
        let (low, high) = (m.min.unwrap_or(length).max(length), m.max.unwrap_or(m.net.max_prefix_len()));
        Self {
            net,
            mask: u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0),
            min: low,
            max: if exact { high.min(length) } else { high },
            negate,
        }
    }

    fn holds(&self, bits: u128, length: u8) -> bool {
        (bits & self.mask == self.net && self.min <= length && length <= self.max) != self.negate
    }

    /// Matches nothing; everything; or it depends.
    fn constant(&self) -> Option<bool> {
        (self.min > self.max).then_some(self.negate)
    }
}

impl More {
    fn new(rule: &Rule) -> Option<Box<Self>> {
        let more = Self {
            community: rule.community,
            as_path: rule.as_path.as_slice().into(),
            priority: rule.priority,
            interface: rule.interface.as_deref().map(Into::into),
        };
        let any = more.community.is_some()
            || !more.as_path.is_empty()
            || more.priority.is_some()
            || more.interface.is_some();
        any.then(|| Box::new(more))
    }

    fn holds(&self, facts: &Facts<'_>) -> bool {
        self.priority.is_none_or(|p| p == facts.priority)
            && self.community.is_none_or(|c| c.is_on(facts.attributes))
            && (self.as_path.is_empty() || begins_with(&facts.attributes.as_path, &self.as_path))
            && self.interface.as_ref().is_none_or(|p| facts.interface.is_some_and(|name| glob(p, name)))
    }
}

/// Whether the path starts with exactly these numbers; a set is no number.
fn begins_with(path: &AsPath, wanted: &[u32]) -> bool {
    let mut numbers = path
        .0
        .iter()
        .filter(|s| !s.kind.is_confed())
        .flat_map(|s| s.asns.iter().map(move |a| (s.kind == SegmentKind::Sequence).then_some(*a)));
    wanted.iter().all(|w| numbers.next().flatten() == Some(*w))
}

/// Whether a name fits a pattern in which `*` stands for any characters.
pub fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at.saturating_add(part.len())..).unwrap_or_default();
    }
    rest.ends_with(last)
}

impl Program {
    fn compile(filters: &[Filter], family: Family) -> Self {
        let mut tests = Vec::new();
        for (f, filter) in (0u16..).zip(filters) {
            let rules = match family {
                Family::Ipv4Unicast => &filter.v4,
                Family::Ipv6Unicast => &filter.v6,
            };
            for (i, rule) in (0u16..).zip(rules) {
                let Some(test) = Test::new(f, i, rule, filter.direction, family) else { continue };
                let last = test.matches_all() || tests.len() >= usize::from(u16::MAX);
                tests.push(test);
                if last {
                    return Self(tests);
                }
            }
        }
        Self(tests)
    }

    fn decide(&self, facts: &Facts<'_>) -> Decision {
        let (bits, length) = bits(&facts.prefix);
        let peer = if facts.ibgp { PeerType::Ibgp } else { PeerType::Ebgp };
        for (n, test) in (0u16..).zip(&self.0) {
            if test.prefix.is_none_or(|p| p.holds(bits, length))
                && test.peer.is_none_or(|p| p == peer)
                && (!test.learnt || facts.learnt)
                && test.more.as_ref().is_none_or(|m| m.holds(facts))
            {
                return match test.action {
                    Action::Accept => Decision::Accept(n),
                    Action::Reject => Decision::Reject(n),
                };
            }
        }
        Decision::Default
    }
}

impl Test {
    /// `None`: it can never match.
    fn new(filter: u16, index: u16, rule: &Rule, direction: Direction, family: Family) -> Option<Self> {
        let mut prefix = None;
        if let Some(m) = &rule.prefix {
            let foreign = matches!(m.net, IpNet::V4(_)) != (family == Family::Ipv4Unicast);
            let test = PrefixTest::new(m);
            prefix = match if foreign { Some(test.negate) } else { test.constant() } {
                Some(true) => None,
                Some(false) => return None,
                None => Some(test),
            };
        }
        Some(Self {
            prefix,
            peer: rule.peer,
            // On import every route is learnt.
            learnt: rule.learnt && direction == Direction::Export,
            more: More::new(rule),
            action: rule.action,
            operations: match rule.action {
                Action::Accept => rule.operations.as_slice().into(),
                Action::Reject => Box::default(),
            },
            filter,
            index,
        })
    }

    const fn matches_all(&self) -> bool {
        self.prefix.is_none() && self.peer.is_none() && !self.learnt && self.more.is_none()
    }
}
