//! Which node a packet is sent to, and from which nodes packets are taken. A TUN device does not
//! show the next hop the kernel chose, so the carrier is given the same routes the kernel has
//! (`PREFIX via NODE dev tunl0 onlink`) and finds the longest match itself.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;

/// Why a set of routes and sources is not taken. The whole set is refused, the old one stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A prefix has bits set beyond its length.
    #[error("route {0}: the address has bits beyond the prefix length (write {trunc})", trunc = .0.trunc())]
    HostBits(Ipv4Net),
    /// Two routes to one prefix.
    #[error("route {prefix} is given twice, via {first} and via {second}")]
    Twice {
        /// The prefix.
        prefix: Ipv4Net,
        /// The next hop first given.
        first: Ipv4Addr,
        /// The other one.
        second: Ipv4Addr,
    },
    /// A next hop or source that cannot be a node.
    #[error("{0} cannot be the address of a node")]
    NotANode(Ipv4Addr),
    /// A route that would send packets to this node itself.
    #[error("route {0} points at this node itself")]
    ToSelf(Ipv4Net),
}

/// Routes and accepted sources, replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct Table {
    routes: PrefixMap<Ipv4Net, Ipv4Addr>,
    /// Sorted: looked up by bisection.
    sources: Vec<Ipv4Addr>,
}

impl Table {
    /// Checks and builds. `local` is this node's own tunnel end.
    pub fn new(
        local: Ipv4Addr,
        routes: impl IntoIterator<Item = (Ipv4Net, Ipv4Addr)>,
        sources: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Result<Table, TableError> {
        let mut map = PrefixMap::new();
        for (prefix, via) in routes {
            if prefix.trunc() != prefix {
                return Err(TableError::HostBits(prefix));
            }
            if via == local {
                return Err(TableError::ToSelf(prefix));
            }
            check_node(via)?;
            if let Some(first) = map.insert(prefix, via)
                && first != via
            {
                return Err(TableError::Twice { prefix, first, second: via });
            }
        }
        let mut sources: Vec<Ipv4Addr> = sources.into_iter().collect();
        sources.sort_unstable();
        sources.dedup();
        sources.iter().try_for_each(|&source| check_node(source))?;
        Ok(Table { routes: map, sources })
    }

    /// The node that carries packets to `dst`: the longest matching route's.
    pub fn via(&self, dst: Ipv4Addr) -> Option<Ipv4Addr> {
        let host = Ipv4Net::from(dst);
        self.routes.get_lpm(&host).map(|(_, via)| *via)
    }

    /// Whether packets with this outer source are taken.
    pub fn accepts(&self, source: Ipv4Addr) -> bool {
        self.sources.binary_search(&source).is_ok()
    }

    /// Number of routes.
    pub fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Number of accepted sources.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }
}

fn check_node(address: Ipv4Addr) -> Result<(), TableError> {
    if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
        return Err(TableError::NotANode(address));
    }
    Ok(())
}
