//! Rules as they were written, checked by whoever read them.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::wire::AttrSet;

/// Which way routes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Direction {
    Import,
    Export,
}

/// What a rule does with a route that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    Accept,
    Reject,
}

/// Calico: `peerType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PeerType {
    Ebgp,
    Ibgp,
}

/// How a prefix is compared (Calico: `matchOperator`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Compare {
    Equal,
    NotEqual,
    In,
    NotIn,
}

/// A condition on the prefix. `min` and `max` bound the length, inclusive; the negated comparisons negate all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PrefixMatch {
    pub net: IpNet,
    pub compare: Compare,
    /// `None`: the length of `net`.
    pub min: Option<u8>,
    /// `None`: the longest of the family.
    pub max: Option<u8>,
}

/// A standard (RFC 1997) or large (RFC 8092) community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Community {
    Standard(u32),
    Large((u32, u32, u32)),
}

impl Community {
    /// Whether a route carries it.
    pub fn is_on(self, set: &AttrSet) -> bool {
        match self {
            Self::Standard(c) => set.communities.contains(&c),
            Self::Large(c) => set.large_communities.contains(&c),
        }
    }

    /// Puts it on a route; the lists stay sorted and without repeats.
    pub fn attach(self, set: &mut AttrSet) {
        match self {
            Self::Standard(c) => {
                if let Err(at) = set.communities.binary_search(&c) {
                    set.communities.insert(at, c);
                }
            }
            Self::Large(c) => {
                if let Err(at) = set.large_communities.binary_search(&c) {
                    set.large_communities.insert(at, c);
                }
            }
        }
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(c) => write!(f, "{}:{}", c >> 16, c & 0xffff),
            Self::Large((a, b, c)) => write!(f, "{a}:{b}:{c}"),
        }
    }
}

/// A change of attributes, in the order written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operation {
    AddCommunity(Community),
    /// The path starts with these, in this order.
    PrependAsPath(Vec<u32>),
    /// A route metric (Calico's ...RoutePriority); travels as LOCAL_PREF 2147483647 - priority.
    SetPriority(u32),
}

/// LOCAL_PREF that stands for a route priority, and back (Calico from 3.32 on).
pub const fn priority_to_local_pref(priority: u32) -> u32 {
    2_147_483_647_u32.saturating_sub(priority)
}

impl Operation {
    pub(super) fn apply(&self, set: &mut AttrSet) {
        match self {
            Self::AddCommunity(c) => c.attach(set),
            Self::PrependAsPath(asns) => asns.iter().rev().for_each(|a| set.as_path.prepend(*a, 1)),
            Self::SetPriority(p) => set.local_pref = Some(priority_to_local_pref(*p)),
        }
    }
}

/// One rule: everything given must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    #[serde(default)]
    pub prefix: Option<PrefixMatch>,
    /// Only routes learnt from peers (Calico: `source: RemotePeers`); always so on import.
    #[serde(default)]
    pub learnt: bool,
    /// Device towards the next hop, `*` stands for any characters. A route whose device is not known has none.
    #[serde(default)]
    pub interface: Option<String>,
    #[serde(default)]
    pub peer: Option<PeerType>,
    #[serde(default)]
    pub community: Option<Community>,
    /// The path begins with these.
    #[serde(default)]
    pub as_path: Vec<u32>,
    #[serde(default)]
    pub priority: Option<u32>,
    pub action: Action,
    #[serde(default)]
    pub operations: Vec<Operation>,
}

impl Rule {
    /// A rule that matches every route.
    pub const fn new(action: Action) -> Self {
        Self {
            prefix: None,
            learnt: false,
            interface: None,
            peer: None,
            community: None,
            as_path: Vec::new(),
            priority: None,
            action,
            operations: Vec::new(),
        }
    }
}

/// One direction of a named filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Filter {
    pub name: String,
    pub direction: Direction,
    #[serde(default)]
    pub v4: Vec<Rule>,
    #[serde(default)]
    pub v6: Vec<Rule>,
}
