//! Between the kernel's routes (device indexes) and felix-core's (device names).

use std::collections::BTreeMap;

use brindle_felix_core::route::{Dev, Hop, Route, Target};
use brindle_kernel::netlink::{NextHop, Route as KernelRoute, RouteKind, TABLE_MAIN};

/// Device names by index and back.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_index: BTreeMap<u32, Dev>,
    by_name: BTreeMap<Dev, u32>,
}

impl Names {
    /// Learns a name; the name the index had before, if it was another.
    pub(crate) fn set(&mut self, index: u32, name: &str) -> Option<Dev> {
        if self.by_index.get(&index).is_some_and(|n| **n == *name) {
            return None;
        }
        let dev: Dev = name.into();
        let old = self.by_index.insert(index, Dev::clone(&dev));
        if let Some(old) = &old {
            self.by_name.remove(old);
        }
        self.by_name.insert(dev, index);
        old
    }

    pub(crate) fn remove(&mut self, index: u32) {
        if let Some(name) = self.by_index.remove(&index)
            && self.by_name.get(&name) == Some(&index)
        {
            self.by_name.remove(&name);
        }
    }

    pub(crate) fn index(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn name(&self, index: u32) -> Option<&Dev> {
        self.by_index.get(&index)
    }

    fn of(&self, index: Option<u32>) -> Dev {
        match index {
            Some(i) => self.by_index.get(&i).cloned().unwrap_or_else(|| format!("if{i}").into()),
            None => "".into(),
        }
    }
}

/// A route of the main table as felix-core sees it; none for other tables and types of service.
pub(crate) fn from_kernel(r: &KernelRoute, names: &Names) -> Option<Route> {
    if r.table != TABLE_MAIN || r.tos != 0 {
        return None;
    }
    let target = match r.kind {
        RouteKind::Blackhole => Target::Blackhole,
        RouteKind::Unicast => match r.hops.as_slice() {
            [one] if one.gateway.is_none() => Target::Device(names.of(one.dev)),
            hops if hops.iter().all(|h| h.gateway.is_some()) => {
                let hop = |h: &NextHop| {
                    let weight = h.weight;
                    Some(Hop { via: h.gateway?, dev: names.of(h.dev), onlink: h.onlink, weight })
                };
                let mut hops: Vec<Hop> = hops.iter().filter_map(hop).collect();
                hops.sort();
                Target::Via(hops)
            }
            _ => Target::Other("multipath".into()),
        },
        other => Target::Other(format!("{other:?}").to_lowercase()),
    };
    Some(Route { dst: r.dst, metric: r.metric, protocol: r.protocol, target })
}

/// The same with those hops only by which packets leave: all that counts in routes that are not ours. (Ours keep theirs:
/// the kernel asks for every hop of a route that is to be deleted.)
pub(crate) fn live(r: &KernelRoute, names: &Names) -> Option<Route> {
    let mut r = r.clone();
    if r.hops.len() > 1 {
        r.hops.retain(|h| !h.dead);
        if r.hops.is_empty() {
            r.kind = RouteKind::Unreachable;
        }
    }
    from_kernel(&r, names)
}

/// The kernel's form; the error names the device that is not there.
pub(crate) fn to_kernel(r: &Route, names: &Names) -> Result<KernelRoute, String> {
    let index = |dev: &str| names.index(dev).ok_or_else(|| format!("{r}: no device {dev}"));
    let base = match &r.target {
        Target::Blackhole => KernelRoute::blackhole(r.dst),
        Target::Device(dev) => KernelRoute::new(r.dst).dev(index(dev)?),
        Target::Via(hops) => {
            let mut route = KernelRoute::new(r.dst);
            for h in hops {
                route.hops.push(NextHop {
                    gateway: Some(h.via),
                    dev: Some(index(&h.dev)?),
                    onlink: h.onlink,
                    weight: h.weight,
                    dead: false,
                });
            }
            route
        }
        Target::Other(kind) => return Err(format!("{r}: {kind} routes are never made here")),
    };
    Ok(base.with_protocol(r.protocol).with_metric(r.metric))
}
