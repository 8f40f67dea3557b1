//! Which node a packet is sent to, and from which nodes packets are taken. A TUN device does not
//! show the next hop the kernel chose, so the carrier is given the same routes the kernel has
//! (`PREFIX via NODE dev tunl0 onlink`) and finds the longest match itself.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;
use smallvec::SmallVec;

/// The nodes that carry packets to one destination. One that is given twice gets twice the flows.
pub type Ends = SmallVec<[Ipv4Addr; 4]>;

/// Why a set of routes and sources is not taken. The whole set is refused, the old one stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A prefix has bits set beyond its length.
    #[error("route {0}: the address has bits beyond the prefix length (write {trunc})", trunc = .0.trunc())]
    HostBits(Ipv4Net),
    /// Two routes to one prefix.
    #[error("route {prefix} is given twice, via {first:?} and via {second:?}")]
    Twice {
        /// The prefix.
        prefix: Ipv4Net,
        /// The next hops first given.
        first: Ends,
        /// The other ones.
        second: Ends,
    },
    /// A next hop or source that cannot be a node.
    #[error("{0} cannot be the address of a node")]
    NotANode(Ipv4Addr),
    /// A route without a next hop.
    #[error("route {0} has no next hop")]
    NoEnd(Ipv4Net),
    /// A route that would send packets to this node itself.
    #[error("route {0} points at this node itself")]
    ToSelf(Ipv4Net),
}

/// Routes and accepted sources, replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct Table {
    routes: PrefixMap<Ipv4Net, Ends>,
    /// Sorted: looked up by bisection.
    sources: Vec<Ipv4Addr>,
    /// Ranges of sources; mostly none.
    ranges: PrefixMap<Ipv4Net, ()>,
}

/// Where packets to a destination go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'t> {
    /// All of them to one node.
    One(Ipv4Addr),
    /// Each flow to one of these.
    Many(&'t [Ipv4Addr]),
}

impl Choice<'_> {
    /// The node of one flow. Hash-threshold (RFC 2992): where nodes come or go, few flows change their way.
    pub fn of(self, flow: u32) -> Ipv4Addr {
        match self {
            Self::One(node) => node,
            Self::Many(nodes) => {
                let n = u64::try_from(nodes.len()).unwrap_or(u64::MAX);
                let i = usize::try_from(u64::from(flow).saturating_mul(n) >> 32).unwrap_or(0);
                // Never empty, and flow < 2^32: the index is below the length.
                nodes.get(i).or_else(|| nodes.first()).copied().unwrap_or(Ipv4Addr::UNSPECIFIED)
            }
        }
    }
}

impl Table {
    /// Checks and builds. `local` is this node's own tunnel end.
    pub fn new<'r>(
        local: Ipv4Addr,
        routes: impl IntoIterator<Item = (Ipv4Net, &'r [Ipv4Addr])>,
        sources: impl IntoIterator<Item = Ipv4Net>,
    ) -> Result<Table, TableError> {
        let mut map: PrefixMap<Ipv4Net, Ends> = PrefixMap::new();
        for (prefix, ends) in routes {
            if prefix.trunc() != prefix {
                return Err(TableError::HostBits(prefix));
            }
            if ends.is_empty() {
                return Err(TableError::NoEnd(prefix));
            }
            if ends.contains(&local) {
                return Err(TableError::ToSelf(prefix));
            }
            ends.iter().try_for_each(|&end| check_node(end))?;
            let ends = Ends::from_slice(ends);
            if let Some(first) = map.insert(prefix, ends.clone())
                && first != ends
            {
                return Err(TableError::Twice { prefix, first, second: ends });
            }
        }
        let (mut single, mut ranges) = (Vec::new(), PrefixMap::new());
        for source in sources {
            if source.prefix_len() == 32 {
                check_node(source.addr())?;
                single.push(source.addr());
            } else {
                ranges.insert(source.trunc(), ());
            }
        }
        single.sort_unstable();
        single.dedup();
        Ok(Table { routes: map, sources: single, ranges })
    }

    /// The nodes that carry packets to `dst`: the longest matching route's.
    pub fn via(&self, dst: Ipv4Addr) -> Option<Choice<'_>> {
        let host = Ipv4Net::from(dst);
        self.routes.get_lpm(&host).map(|(_, ends)| match ends.as_slice() {
            [one] => Choice::One(*one),
            many => Choice::Many(many),
        })
    }

    /// Whether packets with this outer source are taken.
    pub fn accepts(&self, source: Ipv4Addr) -> bool {
        self.sources.binary_search(&source).is_ok()
            || (!self.ranges.is_empty() && self.ranges.get_lpm(&Ipv4Net::from(source)).is_some())
    }

    /// Number of routes.
    pub fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Number of accepted sources, a range counted once.
    pub fn sources(&self) -> usize {
        self.sources.len().saturating_add(self.ranges.len())
    }
}

fn check_node(address: Ipv4Addr) -> Result<(), TableError> {
    if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
        return Err(TableError::NotANode(address));
    }
    Ok(())
}
