//! What the kernel's entry for an address and the one that should be there differ in, in words.

use crate::{
    owner::Ownership,
    route::{PROTO_CLUSTER, Route},
};

/// The difference; none: as intended. `actual` is the entry the kernel takes for the address, `wanted` the one with
/// the longest prefix among those that should be there.
pub fn difference(wanted: Option<&Route>, actual: Option<&Route>, owner: &Ownership) -> Option<String> {
    let check = "look: ip route, ip monitor route";
    match (wanted, actual) {
        (None, None) => None,
        (None, Some(a)) if owner.owns(a) => Some(format!(
            "the kernel has {a}, which should not be there; it is removed when routes are in sync"
        )),
        (None, Some(_)) => None,
        (Some(w), None) => Some(format!("the kernel has no route; {w} should be there; {check}")),
        (Some(w), Some(a)) if a == w => None,
        (Some(w), Some(a)) if a.dst == w.dst && owner.owns(a) => {
            Some(format!("the kernel has {a}, it should be {w}; {check}"))
        }
        (Some(w), Some(a)) if a.dst == w.dst => Some(format!(
            "somebody's own route {a} comes before {w} (metric {} before {}); remove it: ip route del {}",
            a.metric, w.metric, a.dst
        )),
        (Some(w), Some(a)) if a.dst.prefix_len() > w.dst.prefix_len() => Some(format!(
            "the more specific {a} takes these packets before {w}; {}",
            if a.protocol == PROTO_CLUSTER { check.to_owned() } else { format!("whose is it? {check}") }
        )),
        (Some(w), Some(a)) => Some(format!(
            "the kernel has no route for {}, packets follow {a}; {w} should be there; {check}",
            w.dst
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Hop, Target};

    fn owner() -> Ownership {
        Ownership { interface_prefixes: vec!["cali".into()], remove_external: true, device_protocol: 3 }
    }

    fn route(dst: &str, protocol: u8, metric: u32, via: &str) -> Route {
        let hop = Hop::new(via.parse().unwrap(), "eth0".into(), true);
        Route { dst: dst.parse().unwrap(), metric, protocol, target: Target::Via(vec![hop]) }
    }

    #[test]
    fn each_difference_is_named() {
        let ours = route("10.1.0.0/26", 80, 1024, "10.9.0.1");
        let tell = |w: Option<&Route>, a: Option<Route>| difference(w, a.as_ref(), &owner());
        assert_eq!(tell(Some(&ours), Some(ours.clone())), None);
        assert_eq!(tell(None, None), None);
        assert_eq!(tell(None, Some(route("0.0.0.0/0", 3, 0, "10.9.0.9"))), None);
        for (actual, part) in [
            (None, "the kernel has no route; 10.1.0.0/26"),
            (Some(route("10.1.0.0/26", 80, 1024, "10.9.0.2")), "it should be 10.1.0.0/26 via 10.9.0.1"),
            (Some(route("10.1.0.0/26", 3, 0, "10.9.0.2")), "metric 0 before 1024"),
            (Some(route("10.1.0.7/32", 4, 0, "10.9.0.2")), "more specific 10.1.0.7/32"),
            (Some(route("0.0.0.0/0", 3, 0, "10.9.0.9")), "packets follow 0.0.0.0/0"),
        ] {
            let text = tell(Some(&ours), actual).unwrap_or_default();
            assert!(text.contains(part), "{part}: {text}");
        }
        let stray = tell(None, Some(ours)).unwrap_or_default();
        assert!(stray.contains("should not be there"), "{stray}");
    }
}
