//! One address looked up twice: in the kernel's table now, and among the routes that should be there. For whoever asks
//! where packets go (`brindlectl route`); nothing is changed.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_config_core::status::path::{KernelHop, KernelRoute};
use brindle_felix_core::{
    differ::difference,
    owner::Ownership,
    route::{Route, RouteKey},
};
use brindle_kernel::netlink::{Link, NetlinkError, Route as RawRoute, RouteFilter, RouteKind, Rtnl};
use ipnet::IpNet;

use crate::convert::{self, Names};

/// What should be there for an address.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The longest prefix around the address, if there is one.
    pub wanted: Option<Route>,
    pub(crate) owner: Ownership,
}

/// One fact about what became of a prefix in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// As it should be.
    pub good: bool,
    pub what: String,
}

/// The route with the longest prefix around `to`, of several the one the kernel prefers.
pub(crate) fn longest(routes: &BTreeMap<RouteKey, Route>, to: IpAddr) -> Option<&Route> {
    (0..=IpNet::from(to).max_prefix_len()).rev().find_map(|len| {
        let net = IpNet::new(to, len).ok()?.trunc();
        routes.range((net, 0)..=(net, u32::MAX)).next().map(|(_, r)| r)
    })
}

/// What the kernel does with packets for an address.
#[derive(Clone, Debug)]
pub struct Looked {
    /// The entry it takes; none: it has none.
    pub route: Option<KernelRoute>,
    of_main: Option<Route>,
    /// The address is one of this node.
    pub local: bool,
}

/// Asks the kernel of this thread's network namespace. Blocking.
///
/// # Errors
/// The kernel's.
pub fn look(to: IpAddr) -> Result<Looked, NetlinkError> {
    let mut kernel = Rtnl::open()?;
    let links: BTreeMap<u32, Link> = kernel.links()?.into_iter().map(|l| (l.index, l)).collect();
    let mut names = Names::default();
    for l in links.values() {
        names.set(l.index, &l.name);
    }
    let raw = match kernel.route_to(to)? {
        Some(r) => Some(r),
        // Asked for an address behind a blackhole, the kernel says that there is no route.
        None => {
            let fits = |r: &RawRoute| r.dst.contains(&to) && r.tos == 0;
            let all = kernel.routes(&RouteFilter::main())?.into_iter().filter(fits);
            all.min_by_key(|r| (u8::MAX - r.dst.prefix_len(), r.metric))
        }
    };
    let Some(raw) = raw else { return Ok(Looked { route: None, of_main: None, local: false }) };
    let of_main = convert::from_kernel(&raw, &names);
    let hop = |h: &brindle_kernel::netlink::NextHop| {
        let link = h.dev.and_then(|i| links.get(&i));
        KernelHop {
            via: h.gateway,
            dev: link.map(|l| l.name.clone()).unwrap_or_default(),
            mtu: raw.mtu.or(link.map(|l| l.mtu)).unwrap_or(0),
            up: link.is_some_and(|l| l.up && (l.carrier || l.kind.as_deref() == Some("tun"))),
        }
    };
    let hops: Vec<KernelHop> = raw.hops.iter().map(hop).collect();
    let kind = format!("{:?}", raw.kind).to_lowercase();
    let text = match &of_main {
        Some(r) => r.to_string(),
        None => {
            let dev = hops.first().map(|h| format!(" dev {}", h.dev)).unwrap_or_default();
            format!("{kind} {}{dev}", raw.dst)
        }
    };
    let local = raw.kind == RouteKind::Local;
    let route = KernelRoute { destination: raw.dst, text, kind, protocol: raw.protocol, hops };
    Ok(Looked { route: Some(route), of_main, local })
}

/// What the two differ in; none: they agree.
pub fn compare(intent: &Intent, looked: &Looked) -> Option<String> {
    // An address of the node itself is the kernel's business, whatever lies around it.
    if looked.local {
        None
    } else {
        difference(intent.wanted.as_ref(), looked.of_main.as_ref(), &intent.owner)
    }
}

#[cfg(test)]
mod tests {
    use brindle_felix_core::route::Target;

    use super::*;

    #[test]
    fn the_longest_prefix_wins_then_the_lower_metric() {
        let route = |dst: &str, metric| {
            let r = Route { dst: dst.parse().unwrap(), metric, protocol: 80, target: Target::Blackhole };
            (r.key(), r)
        };
        let all: BTreeMap<_, _> = [
            route("10.0.0.0/8", 1),
            route("10.1.0.0/26", 1024),
            route("10.1.0.0/26", 7),
            route("10.1.0.5/32", 1024),
            route("fd00::/64", 1024),
        ]
        .into();
        let of = |to: &str| longest(&all, to.parse().unwrap()).map(|r| (r.dst.to_string(), r.metric));
        assert_eq!(of("10.1.0.5"), Some(("10.1.0.5/32".into(), 1024)));
        assert_eq!(of("10.1.0.6"), Some(("10.1.0.0/26".into(), 7)));
        assert_eq!(of("10.2.0.6"), Some(("10.0.0.0/8".into(), 1)));
        assert_eq!(of("fd00::9"), Some(("fd00::/64".into(), 1024)));
        assert_eq!(of("192.0.2.1"), None);
    }
}
