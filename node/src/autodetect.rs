//! Which address is this node's: Calico's `first-found` method, and completion of a typed address with the prefix
//! length of the interface that carries it. The choice and its reason are pure; reading interfaces is the caller's.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::settings::OwnAddress;

/// Interfaces that never carry a node's address (Calico's default exclude list).
const EXCLUDED: [&str; 19] = [
    "docker",
    "cbr",
    "dummy",
    "podman",
    "virbr",
    "lxcbr",
    "veth",
    "lo",
    "br-",
    "cali",
    "tunl",
    "flannel",
    "kube-ipvs",
    "cni",
    "vxlan.calico",
    "vxlan-v6.calico",
    "wireguard.cali",
    "wg-v6.cali",
    "nodelocaldns",
];

/// One address on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) interface: String,
    pub(crate) address: IpNet,
}

/// The chosen address and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) address: IpNet,
    pub(crate) why: String,
}

/// Chooses an IPv4 (or IPv6) address among those of this network namespace, given in interface order; none if none is
/// wished for.
pub(crate) fn choose(wish: OwnAddress, v6: bool, candidates: &[Candidate]) -> Result<Option<Choice>, String> {
    match wish {
        OwnAddress::None => return Ok(None),
        OwnAddress::Given(ip, Some(len)) => {
            let address = net(ip, len)?;
            let on = candidates.iter().find(|c| c.address.addr() == ip);
            Ok(Choice {
                address,
                why: match on {
                    Some(c) => format!("given; on {}", c.interface),
                    None => "given; no interface carries it".into(),
                },
            })
        }
        OwnAddress::Given(ip, None) => match candidates.iter().find(|c| c.address.addr() == ip) {
            Some(c) => {
                Ok(Choice { address: c.address, why: format!("given; prefix length from {}", c.interface) })
            }
            None => {
                let len = if ip.is_ipv4() { 32 } else { 128 };
                Ok(Choice {
                    address: net(ip, len)?,
                    why: "given; no interface carries it, so every node is remote".into(),
                })
            }
        },
        OwnAddress::Autodetect => candidates
            .iter()
            .find(|c| !excluded(&c.interface) && usable(c.address.addr(), v6))
            .map(|c| Choice { address: c.address, why: format!("first usable address, on {}", c.interface) })
            .ok_or_else(|| {
                let seen: Vec<String> =
                    candidates.iter().map(|c| format!("{} {}", c.interface, c.address)).collect();
                format!(
                    "failed to autodetect an {} address (seen: {}); give it with {}",
                    if v6 { "IPv6" } else { "IPv4" },
                    if seen.is_empty() { "none".to_owned() } else { seen.join(", ") },
                    if v6 { "--ip6" } else { "--ip" },
                )
            }),
    }
    .map(Some)
}

fn net(ip: IpAddr, len: u8) -> Result<IpNet, String> {
    match ip {
        IpAddr::V4(a) => Ipv4Net::new(a, len).map(IpNet::V4),
        IpAddr::V6(a) => Ipv6Net::new(a, len).map(IpNet::V6),
    }
    .map_err(|e| format!("{ip}/{len}: {e}"))
}

fn excluded(interface: &str) -> bool {
    EXCLUDED.iter().any(|p| interface.starts_with(p))
}

/// Of the family and of global scope.
fn usable(ip: IpAddr, v6: bool) -> bool {
    let host = !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
    host && match ip {
        IpAddr::V4(a) => !v6 && !a.is_link_local(),
        IpAddr::V6(a) => v6 && !a.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(interface: &str, address: &str) -> Candidate {
        Candidate { interface: interface.into(), address: address.parse().unwrap() }
    }

    #[test]
    fn the_first_usable_address_wins_and_says_where_it_is() {
        let all = [
            c("lo", "127.0.0.1/8"),
            c("docker0", "172.17.0.1/16"),
            c("eth0", "fe80::1/64"),
            c("eth0", "10.0.0.5/24"),
        ];
        let choice = choose(OwnAddress::Autodetect, false, &all).unwrap().unwrap();
        assert_eq!(choice.address.to_string(), "10.0.0.5/24");
        assert!(choice.why.contains("eth0"));
        let none = choose(OwnAddress::Autodetect, true, &all).unwrap_err();
        assert!(none.contains("IPv6") && none.contains("--ip6"), "{none}");
        let six = [c("eth0", "fe80::1/64"), c("eth0", "fd00::5/64")];
        let choice = choose(OwnAddress::Autodetect, true, &six).unwrap().unwrap();
        assert_eq!(choice.address.to_string(), "fd00::5/64");
        assert_eq!(choose(OwnAddress::None, true, &six), Ok(None));
    }

    #[test]
    fn a_typed_address_takes_the_prefix_length_of_its_interface() {
        let all = [c("eth0", "10.0.0.5/20")];
        let wish = OwnAddress::Given("10.0.0.5".parse().unwrap(), None);
        assert_eq!(choose(wish, false, &all).unwrap().unwrap().address.to_string(), "10.0.0.5/20");
    }

    #[test]
    fn nothing_usable_lists_what_was_seen() {
        let e = choose(OwnAddress::Autodetect, false, &[c("lo", "127.0.0.1/8")]).unwrap_err();
        assert!(e.contains("lo 127.0.0.1/8") && e.contains("--ip"), "{e}");
    }
}
