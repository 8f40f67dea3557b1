//! Kernel settings per pod device and for the host (calico-felix: per workload device; global).

use ipnet::IpNet;

/// One setting: path below /proc/sys and value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub path: String,
    pub value: &'static str,
}

fn set(path: String, value: &'static str) -> Setting {
    Setting { path, value }
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
pub fn device(dev: &str, addresses: &[IpNet]) -> Vec<Setting> {
    let mut all = Vec::new();
    if addresses.iter().any(|a| a.addr().is_ipv4()) {
        all.extend([
            set(format!("net/ipv4/conf/{dev}/route_localnet"), "1"),
            set(format!("net/ipv4/neigh/{dev}/proxy_delay"), "0"),
            set(format!("net/ipv4/conf/{dev}/proxy_arp"), "1"),
            set(format!("net/ipv4/conf/{dev}/forwarding"), "1"),
            set(format!("net/ipv4/conf/{dev}/rp_filter"), "1"),
        ]);
    }
    if addresses.iter().any(|a| a.addr().is_ipv6()) {
        all.extend([
            set(format!("net/ipv6/conf/{dev}/accept_ra"), "0"),
            set(format!("net/ipv6/conf/{dev}/proxy_ndp"), "1"),
            set(format!("net/ipv6/conf/{dev}/forwarding"), "1"),
        ]);
    }
    all
}
