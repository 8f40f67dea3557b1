//! How a remote prefix is reached: directly, or through the IPIP tunnel; and why.
//!
//! The pool decides first (`ipipMode`; what it wants in VXLAN has no way), the local node's subnet second (CrossSubnet: the
//! next hop inside the CIDR of this node's own address, as Calico and BIRD's configuration do it), the host's own routes
//! last: a direct next hop that is not on a connected subnet is resolved through them (BIRD's `gateway recursive`).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use brindle_config_core::{pool::EncapMode, unserved};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    host::{HostView, Reach},
    inputs::Inputs,
    route::Hop,
};

/// Where packets for a prefix go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// One hop, or those by which the host reaches the next hop.
    Direct(Vec<Hop>),
    Ipip(Ipv4Addr),
}

/// What the pool has to say about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Always,
    /// Across subnets; the local one, if the node has an address.
    Across(Ipv4Addr, Option<Ipv4Net>),
    Within,
    Never,
    /// IPIP carries no IPv6.
    Six,
    NoPool,
    /// The next hop is a pod of this node.
    Pod,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("the pool's ipipMode is Always"),
            Self::Across(nh, Some(net)) => write!(f, "CrossSubnet, and {nh} is outside {}", net.trunc()),
            Self::Across(nh, None) => {
                write!(f, "CrossSubnet, and {nh} is outside this node's subnet, which is unknown")
            }
            Self::Within => f.write_str("CrossSubnet, same segment"),
            Self::Never => f.write_str("the pool's ipipMode is Never"),
            Self::Six => f.write_str("IPIP carries no IPv6"),
            Self::NoPool => f.write_str("outside all pools"),
            Self::Pod => f.write_str("announced by a pod of this node"),
        }
    }
}

/// Where the next hop of a direct path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    Connected,
    /// Behind this gateway of the host's routes, and so many others.
    Gateway(IpAddr, usize),
}

/// The reason of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    pub rule: Rule,
    /// For a direct path between nodes.
    pub behind: Option<Behind>,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.behind {
            None => write!(f, "{}", self.rule),
            Some(Behind::Connected) => write!(f, "{}; next hop connected", self.rule),
            Some(Behind::Gateway(gw, 0)) => write!(f, "{}; next hop behind {gw}", self.rule),
            Some(Behind::Gateway(gw, more)) => {
                write!(f, "{}; next hop behind {gw} and {more} more gateway(s)", self.rule)
            }
        }
    }
}

/// Why there is no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// The next hop is this node: nothing to do.
    Self_,
    /// The prefix lies in this range for services.
    Service(IpNet),
    /// The pool, by this name, wants it in VXLAN: what that means. The network between the nodes knows no pods, so that a
    /// direct path would lose the packets without a word.
    Vxlan { pool: String, why: String },
    /// The host has no route to the next hop.
    Unreachable(Rule),
}

impl fmt::Display for NoWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Self_ => f.write_str("the next hop is this node"),
            Self::Service(range) => {
                write!(
                    f,
                    "inside {range}, a range for services: packets for them are kube-proxy's on this node"
                )
            }
            Self::Vxlan { pool, why } => write!(f, "IPPool({pool}): vxlanMode {why}"),
            Self::Unreachable(rule) => {
                write!(f, "no route to the next hop ({rule}); is its segment reachable?")
            }
        }
    }
}

/// How a next hop is reached: through a pod's device, or as the host says.
pub fn reach(inputs: &Inputs, host: &HostView, ip: IpAddr) -> Reach {
    match inputs.pod_device(ip) {
        Some(dev) => Reach::Connected { dev: dev.into() },
        None => host.reach(ip),
    }
}

/// The decision for many prefixes of one state.
pub struct Paths<'a> {
    inputs: &'a Inputs,
    host: &'a HostView,
    my_net: Option<Ipv4Net>,
    my_net6: Option<Ipv6Net>,
    ipip: bool,
    /// Next hops are few, prefixes many.
    reached: RefCell<BTreeMap<IpAddr, Reach>>,
}

impl<'a> Paths<'a> {
    pub fn new(inputs: &'a Inputs, host: &'a HostView) -> Self {
        let bgp = inputs.nodes.get(&inputs.node).and_then(|n| n.bgp.as_ref());
        let my_net = bgp.and_then(|b| b.ipv4_address).map(|a| a.0);
        let my_net6 = bgp.and_then(|b| b.ipv6_address).map(|a| a.0);
        Self { inputs, host, my_net, my_net6, ipip: inputs.ipip_wanted(), reached: RefCell::default() }
    }

    /// How a prefix behind a next hop is reached, and why.
    pub fn path(&self, prefix: &IpNet, next_hop: IpAddr) -> Result<(Way, Why), NoWay> {
        let mine =
            self.my_net.map(|n| n.addr().into()).into_iter().chain(self.my_net6.map(|n| n.addr().into()));
        if mine.into_iter().any(|own: IpAddr| own == next_hop) {
            return Err(NoWay::Self_);
        }
        if let Some(range) = self.service_range(prefix) {
            return Err(NoWay::Service(range));
        }
        // What a pod of this node announces is behind its device, whatever its pool wants between nodes.
        if let Some(dev) = self.inputs.pod_device(next_hop) {
            let way = Way::Direct(vec![Hop::new(next_hop, dev.into(), true)]);
            return Ok((way, Why { rule: Rule::Pod, behind: None }));
        }
        let pool = self.inputs.pool_of(prefix);
        let within = match next_hop {
            IpAddr::V4(nh) => self.my_net.is_some_and(|n| n.contains(&nh)),
            IpAddr::V6(nh) => self.my_net6.is_some_and(|n| n.contains(&nh)),
        };
        let vxlan = pool.map_or(EncapMode::Never, |(_, p)| p.vxlan_mode);
        if let Some((name, pool)) = pool
            && (vxlan == EncapMode::Always || vxlan == EncapMode::CrossSubnet && !within)
        {
            return Err(NoWay::Vxlan { pool: name.into(), why: unserved::vxlan(pool).unwrap_or_default() });
        }
        let mode = match vxlan {
            EncapMode::Never => pool.map(|(_, p)| p.ipip_mode),
            // As with IPIP across subnets, within this one.
            EncapMode::Always | EncapMode::CrossSubnet => Some(vxlan),
        };
        let rule = match (mode, next_hop) {
            (Some(EncapMode::Always), IpAddr::V4(nh)) if self.ipip => {
                return Ok((Way::Ipip(nh), Why { rule: Rule::Always, behind: None }));
            }
            (Some(EncapMode::CrossSubnet), IpAddr::V4(nh)) if self.ipip && !within => {
                return Ok((Way::Ipip(nh), Why { rule: Rule::Across(nh, self.my_net), behind: None }));
            }
            (Some(EncapMode::CrossSubnet), _) if within => Rule::Within,
            (Some(EncapMode::Always | EncapMode::CrossSubnet), IpAddr::V6(_)) => Rule::Six,
            (Some(_), _) => Rule::Never,
            (None, _) => Rule::NoPool,
        };
        let (hops, behind) = match self.reach(next_hop) {
            Reach::Connected { dev } => (vec![Hop::new(next_hop, dev, true)], Some(Behind::Connected)),
            // As the host has them: a gateway it reaches as a neighbour on no subnet, we do as well.
            Reach::Through { hops, .. } => {
                let behind = hops.first().map(|h| Behind::Gateway(h.via, hops.len().saturating_sub(1)));
                (hops, behind)
            }
            Reach::Nowhere => return Err(NoWay::Unreachable(rule)),
        };
        Ok((Way::Direct(hops), Why { rule, behind }))
    }

    /// The range for services that a prefix lies in. Packets for services are this node's own business (kube-proxy
    /// picks a backend here), whatever other nodes announce of them; Calico's BIRD keeps such routes out of the kernel
    /// as well.
    fn service_range(&self, prefix: &IpNet) -> Option<IpNet> {
        self.inputs.services.iter().find(|net| net.contains(prefix)).copied()
    }

    fn reach(&self, ip: IpAddr) -> Reach {
        let mut known = self.reached.borrow_mut();
        known.entry(ip).or_insert_with(|| self.host.reach(ip)).clone()
    }
}
