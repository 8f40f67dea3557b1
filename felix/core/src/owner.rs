//! Which routes are ours. Decided before there was code that deletes: a foreign route survives everything.

use crate::{
    inputs::Inputs,
    route::{PROTO_BIRD, PROTO_CLUSTER, PROTO_KERNEL, Route, Target},
};

/// What the rule depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Prefixes of pod devices (FelixConfiguration.interfacePrefix, a list with commas).
    pub interface_prefixes: Vec<String>,
    /// FelixConfiguration.removeExternalRoutes: whatever is routed to a pod device is ours.
    pub remove_external: bool,
    /// FelixConfiguration.deviceRouteProtocol.
    pub device_protocol: u8,
}

impl Ownership {
    /// Whether this is the name of a pod's device.
    pub fn is_pod(&self, dev: &str) -> bool {
        self.interface_prefixes.iter().any(|p| dev.starts_with(p.as_str()))
    }

    /// Whether a route of the main table is ours: protocol 80 anywhere, or a route to a pod device. The kernel's own
    /// routes (protocol 2: connected subnets, link-local) never are.
    pub fn owns(&self, route: &Route) -> bool {
        if route.protocol == PROTO_CLUSTER {
            return true;
        }
        let mut devices = route.devices().peekable();
        route.protocol != PROTO_KERNEL
            && devices.peek().is_some()
            && devices.all(|d| self.is_pod(d))
            && (self.remove_external || route.protocol == self.device_protocol)
    }
}

/// Whether a route is one as the BIRD of a Calico makes them: to a part of a pool, through a gateway or `tunl0`, or
/// nowhere. They outlive it, have a better metric than ours and lead where a node was; with no BIRD on the node nobody
/// takes them back. The gateway does not tell: it may be what a node's address was, or a router that was told the blocks.
pub fn is_birds(inputs: &Inputs, route: &Route) -> bool {
    let so = match &route.target {
        Target::Blackhole | Target::Via(_) => true,
        Target::Device(dev) => &**dev == "tunl0",
        Target::Other(_) => false,
    };
    so && route.protocol == PROTO_BIRD && inputs.pool_of(&route.dst).is_some()
}

#[cfg(test)]
mod tests {
    use brindle_config_core::{
        ObjectMeta, Resource,
        pool::IpPoolSpec,
        store::{Entry, Revision, SyncEvent},
    };

    use super::*;
    use crate::route::Hop;

    fn rule() -> Ownership {
        Ownership { interface_prefixes: vec!["cali".into()], remove_external: true, device_protocol: 3 }
    }

    fn route(protocol: u8, target: Target) -> Route {
        Route { dst: "10.0.0.0/26".parse().unwrap(), metric: 0, protocol, target }
    }

    #[test]
    fn protocol_80_is_ours_wherever_it_points() {
        assert!(rule().owns(&route(80, Target::Blackhole)));
        let hop = Hop::new("10.9.9.9".parse().unwrap(), "eth0".into(), false);
        assert!(rule().owns(&route(80, Target::Via(vec![hop]))));
    }

    #[test]
    fn whatever_points_to_a_pod_is_ours_but_the_kernels_own() {
        assert!(rule().owns(&route(4, Target::Device("cali123".into()))));
        assert!(!rule().owns(&route(2, Target::Device("cali123".into()))));
        let mild = Ownership { remove_external: false, ..rule() };
        assert!(!mild.owns(&route(4, Target::Device("cali123".into()))));
        assert!(mild.owns(&route(3, Target::Device("cali123".into()))));
    }

    #[test]
    fn what_others_made_is_theirs() {
        for p in [2, 3, 4, 12, 186] {
            assert!(!rule().owns(&route(p, Target::Device("eth0".into()))), "proto {p}");
            assert!(!rule().owns(&route(p, Target::Blackhole)), "proto {p} blackhole");
        }
    }

    #[test]
    fn routes_of_a_bird_are_known_by_protocol_and_pool() {
        let mut inputs = Inputs::new("a");
        let pool = Resource::new(ObjectMeta::named("p"), IpPoolSpec::new("10.0.0.0/16".parse().unwrap()));
        let value = serde_json::to_value(&pool).unwrap().into();
        inputs.apply(&SyncEvent::Upsert(Entry { key: pool.key(), revision: Revision(1), value }));
        let via = |dev: &str| Target::Via(vec![Hop::new("10.9.9.9".parse().unwrap(), dev.into(), false)]);
        for target in [Target::Blackhole, via("eth0"), via("tunl0"), Target::Device("tunl0".into())] {
            assert!(is_birds(&inputs, &route(12, target.clone())), "{target:?}");
            for other in [2, 3, 4, 80, 186] {
                assert!(!is_birds(&inputs, &route(other, target.clone())), "proto {other} {target:?}");
            }
            let outside = Route { dst: "10.1.0.0/26".parse().unwrap(), ..route(12, target) };
            assert!(!is_birds(&inputs, &outside), "{outside}");
            let around = Route { dst: "10.0.0.0/8".parse().unwrap(), ..outside };
            assert!(!is_birds(&inputs, &around), "{around}");
        }
        assert!(!is_birds(&inputs, &route(12, Target::Device("eth0".into()))));
        assert!(!is_birds(&inputs, &route(12, Target::Other("prohibit".into()))));
    }
}
