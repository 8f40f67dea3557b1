//! Kernel settings per pod device and for the host (calico-felix: per workload device; global).

use ipnet::IpNet;

/// One setting: path below /proc/sys and value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub path: String,
    pub value: &'static str,
    /// A kernel without this parameter lacks nothing.
    pub optional: bool,
}

fn set(path: String, value: &'static str) -> Setting {
    Setting { path, value, optional: false }
}

/// The host's settings.
pub fn host(ipv6: bool) -> Vec<Setting> {
    let mut all = vec![set("net/ipv4/ip_forward".into(), "1")];
    if ipv6 {
        all.push(set("net/ipv6/conf/all/forwarding".into(), "1"));
    }
    all
}

/// Settings of a pod device. `proxy_delay` 0: else the first packet to 169.254.1.1 may wait 0.8 s for the answer.
/// `spoofs`: the pod may send from foreign addresses, which the kernel must not drop before the rules see them; those
/// rules still know its sources.
pub fn device(dev: &str, addresses: &[IpNet], spoofs: bool) -> Vec<Setting> {
    let mut all = Vec::new();
    if addresses.iter().any(|a| a.addr().is_ipv4()) {
        all.extend([
            set(format!("net/ipv4/conf/{dev}/route_localnet"), "1"),
            set(format!("net/ipv4/neigh/{dev}/proxy_delay"), "0"),
            set(format!("net/ipv4/conf/{dev}/proxy_arp"), "1"),
            set(format!("net/ipv4/conf/{dev}/forwarding"), "1"),
            set(format!("net/ipv4/conf/{dev}/rp_filter"), if spoofs { "0" } else { "1" }),
        ]);
    }
    // A pod without IPv6 can send it all the same: no advertisement or redirect of its moves the host's routes.
    let six = addresses.iter().any(|a| a.addr().is_ipv6());
    if six {
        // First: hosts that switch IPv6 off for new devices have no room for its other settings and routes.
        all.push(set(format!("net/ipv6/conf/{dev}/disable_ipv6"), "0"));
    }
    for deaf in ["accept_ra", "accept_redirects"] {
        all.push(Setting { optional: !six, ..set(format!("net/ipv6/conf/{dev}/{deaf}"), "0") });
    }
    if six {
        all.extend([
            set(format!("net/ipv6/conf/{dev}/proxy_ndp"), "1"),
            set(format!("net/ipv6/conf/{dev}/forwarding"), "1"),
        ]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_drops_foreign_sources_unless_the_pod_may_use_some() {
        for (spoofs, value) in [(false, "1"), (true, "0")] {
            let all = device("cali1", &["10.0.0.1/32".parse().expect("a prefix")], spoofs);
            let found = all.iter().find(|s| s.path == "net/ipv4/conf/cali1/rp_filter").map(|s| s.value);
            assert_eq!(found, Some(value));
        }
    }

    #[test]
    fn ipv6_is_switched_on_before_anything_else_of_it_where_the_pod_has_it() {
        let paths = |address: &str| {
            let all = device("cali1", &[address.parse().expect("a prefix")], false);
            all.into_iter().map(|s| s.path).filter(|p| p.starts_with("net/ipv6/")).collect::<Vec<_>>()
        };
        assert_eq!(
            paths("2001:db8::1/128").first().map(String::as_str),
            Some("net/ipv6/conf/cali1/disable_ipv6")
        );
        assert!(!paths("10.0.0.1/32").iter().any(|p| p.ends_with("disable_ipv6")));
    }

    #[test]
    fn whatever_a_pod_has_the_host_is_deaf_to_its_advertisements_and_redirects() {
        for (address, optional) in [("10.0.0.1/32", true), ("2001:db8::1/128", false)] {
            let all = device("cali1", &[address.parse().expect("a prefix")], false);
            for deaf in ["accept_ra", "accept_redirects"] {
                let path = format!("net/ipv6/conf/cali1/{deaf}");
                let found = all.iter().find(|s| s.path == path).map(|s| (s.value, s.optional));
                assert_eq!(found, Some(("0", optional)), "{address} {deaf}");
            }
        }
    }
}
