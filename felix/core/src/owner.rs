//! Which routes are ours. Decided before there was code that deletes: a foreign route survives everything.

use crate::route::{PROTO_CLUSTER, Route};

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
        const KERNEL: u8 = 2;
        let mut devices = route.devices().peekable();
        route.protocol != KERNEL
            && devices.peek().is_some()
            && devices.all(|d| self.is_pod(d))
            && (self.remove_external || route.protocol == self.device_protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Hop, Target};

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
}
