//! Which address is this node's: Calico's methods (`IP_AUTODETECTION_METHOD`), and completion of a typed address with
//! the prefix length of the interface that carries it. The choice and its reason are pure; reading interfaces and asking
//! the kernel for a route are the caller's (`addresses`).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use regex_lite::Regex;

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

/// How an address is looked for.
#[derive(Clone, Debug)]
pub(crate) enum Method {
    /// The first usable address of the last interface that is not excluded.
    FirstFound,
    /// The InternalIP of this node's Node resource.
    KubernetesInternalIp,
    /// The source the kernel takes towards this address or name.
    CanReach(String),
    /// Only interfaces whose name matches one of these.
    Interface(Vec<Regex>),
    /// No interface whose name matches one of these, beside the excluded ones.
    SkipInterface(Vec<Regex>),
    /// An address inside one of these, on any interface.
    Cidr(Vec<IpNet>),
}

impl Method {
    /// Reads Calico's spelling; the error says what was expected.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let items = || value.split(',').map(str::trim).filter(|v| !v.is_empty());
        let some = |what: &str| {
            if items().next().is_none() { Err(format!("{text:?}: {name}= needs {what}")) } else { Ok(()) }
        };
        let patterns = || {
            items()
                .map(|p| Regex::new(p).map_err(|e| format!("{text:?}: {p:?} is no regular expression: {e}")))
                .collect::<Result<Vec<_>, _>>()
        };
        match name {
            "" | "first-found" if value.is_empty() => Ok(Self::FirstFound),
            "kubernetes-internal-ip" if value.is_empty() => Ok(Self::KubernetesInternalIp),
            "can-reach" => some("an address or a name").map(|()| Self::CanReach(value.trim().to_owned())),
            "interface" => some("interface names or patterns").and_then(|()| patterns().map(Self::Interface)),
            "skip-interface" => {
                some("interface names or patterns").and_then(|()| patterns().map(Self::SkipInterface))
            }
            "cidr" => some("networks").and_then(|()| {
                let nets = items().map(|c| {
                    c.parse().map_err(|_| format!("{text:?}: {c:?} is no network such as 10.0.0.0/24"))
                });
                nets.collect::<Result<Vec<_>, _>>().map(Self::Cidr)
            }),
            _ => Err(format!(
                "{text:?}: expected first-found, kubernetes-internal-ip, can-reach=DESTINATION, interface=REGEX[,REGEX], \
                 skip-interface=REGEX[,REGEX] or cidr=CIDR[,CIDR]"
            )),
        }
    }
}

/// What is known of this machine and this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Interfaces from the last to the first, as Calico looks through them (`GetInterfaces`); addresses of one as they are.
    pub(crate) candidates: Vec<Candidate>,
    /// Addresses of type InternalIP on the Node resource.
    pub(crate) internal: Vec<IpAddr>,
    /// For [`Method::CanReach`]: the source towards the destination, or why there is none.
    pub(crate) reach: Option<Result<IpAddr, String>>,
    /// What the Node resource has of this family.
    pub(crate) stored: Option<IpNet>,
}

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

/// Whether [`choose`] looks for an address: what only a look needs is asked for only then.
pub(crate) fn looks(wish: OwnAddress, v6: bool, stored: Option<IpNet>) -> bool {
    wish == OwnAddress::Autodetect || wish == OwnAddress::Stored && !v6 && stored.is_none()
}

/// Chooses an IPv4 (or IPv6) address; none if none is wished for.
pub(crate) fn choose(
    wish: OwnAddress,
    method: &Method,
    v6: bool,
    facts: &Facts,
) -> Result<Option<Choice>, String> {
    let candidates = &facts.candidates;
    let kept = |address: IpNet, why: &str| {
        let on = candidates.iter().find(|c| c.address.addr() == address.addr());
        let place = on.map_or_else(
            || "no interface carries it (autodetect finds another)".to_owned(),
            |c| format!("on {}", c.interface),
        );
        Choice { address, why: format!("{why}; {place}") }
    };
    let detected = || {
        detect(method, v6, facts).map_err(|why| {
            let seen: Vec<String> =
                candidates.iter().map(|c| format!("{} {}", c.interface, c.address)).collect();
            format!(
                "failed to autodetect an {} address: {why} (seen: {}); give it with {}, or another method with {}",
                if v6 { "IPv6" } else { "IPv4" },
                if seen.is_empty() { "none".to_owned() } else { seen.join(", ") },
                if v6 { "--ip6" } else { "--ip" },
                if v6 { "--ip6-autodetection-method" } else { "--ip-autodetection-method" },
            )
        })
    };
    match wish {
        OwnAddress::None => return Ok(None),
        OwnAddress::Stored => match facts.stored {
            Some(address) => Ok(kept(address, "kept, as the Node has it")),
            None if v6 => return Ok(None),
            None => detected(),
        },
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
        OwnAddress::Given(ip, None) => Ok(complete(ip, candidates, "given")?),
        OwnAddress::Autodetect => match (detected(), facts.stored) {
            (Err(why), Some(address)) => Ok(kept(address, &format!("kept, as the Node has it: {why}"))),
            (found, _) => found,
        },
    }
    .map(Some)
}

/// Of several that fit, the one the Node has: an interface that is added moves no node to another network.
fn detect(method: &Method, v6: bool, facts: &Facts) -> Result<Choice, String> {
    let first = |why: &str, fits: &dyn Fn(&Candidate) -> bool| {
        let fitting = || facts.candidates.iter().filter(|c| usable(c.address.addr(), v6) && fits(c));
        let stored = |c: &&Candidate| facts.stored.is_some_and(|s| s.addr() == c.address.addr());
        let found = fitting().find(stored).or_else(|| fitting().next());
        found.map(|c| Choice { address: c.address, why: format!("{why}, on {}", c.interface) })
    };
    let any = |patterns: &[Regex], name: &str| patterns.iter().any(|p| p.is_match(name));
    match method {
        Method::FirstFound => first("first usable address", &|c| !excluded(&c.interface))
            .ok_or_else(|| "no interface has a usable one".into()),
        Method::Interface(patterns) => {
            first("first usable address of the interfaces asked for", &|c| any(patterns, &c.interface))
                .ok_or_else(|| format!("no interface that matches {} has a usable one", list(patterns)))
        }
        Method::SkipInterface(patterns) => {
            let fits = |c: &Candidate| !excluded(&c.interface) && !any(patterns, &c.interface);
            first("first usable address beside the interfaces to skip", &fits)
                .ok_or_else(|| format!("every interface with a usable one is skipped by {}", list(patterns)))
        }
        Method::Cidr(nets) => {
            let fits = |c: &Candidate| nets.iter().any(|n| n.contains(&c.address.addr()));
            let shown = nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            first(&format!("inside {shown}"), &fits).ok_or_else(|| format!("none is inside {shown}"))
        }
        Method::KubernetesInternalIp => {
            let ip = facts.internal.iter().find(|ip| ip.is_ipv6() == v6);
            let ip = ip.ok_or("the Node has no InternalIP of this family")?;
            complete(*ip, &facts.candidates, "the Node's InternalIP")
        }
        Method::CanReach(to) => match &facts.reach {
            Some(Ok(ip)) => {
                complete(*ip, &facts.candidates, &format!("the kernel takes it as source towards {to}"))
            }
            Some(Err(why)) => Err(format!("{to} cannot be reached: {why}")),
            None => Err(format!("nobody asked how to reach {to}")),
        },
    }
}

fn list(patterns: &[Regex]) -> String {
    patterns.iter().map(Regex::as_str).collect::<Vec<_>>().join(",")
}

/// An address with the prefix length of the interface that carries it, else alone.
fn complete(ip: IpAddr, candidates: &[Candidate], why: &str) -> Result<Choice, String> {
    match candidates.iter().find(|c| c.address.addr() == ip) {
        Some(c) => {
            Ok(Choice { address: c.address, why: format!("{why}; prefix length from {}", c.interface) })
        }
        None => Ok(Choice {
            address: net(ip, if ip.is_ipv4() { 32 } else { 128 })?,
            why: format!("{why}; no interface carries it, so every node is remote"),
        }),
    }
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

    fn facts(all: &[(&str, &str)]) -> Facts {
        let candidate =
            |(i, a): &(&str, &str)| Candidate { interface: (*i).into(), address: a.parse().unwrap() };
        Facts { candidates: all.iter().map(candidate).collect(), ..Facts::default() }
    }

    fn auto(method: &str, v6: bool, facts: &Facts) -> Result<Choice, String> {
        choose(OwnAddress::Autodetect, &Method::parse(method).unwrap(), v6, facts).map(Option::unwrap)
    }

    const MANY: [(&str, &str); 7] = [
        ("lo", "127.0.0.1/8"),
        ("docker0", "172.17.0.1/16"),
        ("eth0", "fe80::1/64"),
        ("eth0", "10.0.0.5/24"),
        ("eth0", "fd00::5/64"),
        ("bond1.100", "192.0.2.9/28"),
        ("cali123", "192.168.0.1/32"),
    ];

    #[test]
    fn the_first_usable_address_wins_and_says_where_it_is() {
        let choice = auto("first-found", false, &facts(&MANY)).unwrap();
        assert_eq!(choice.address.to_string(), "10.0.0.5/24");
        assert!(choice.why.contains("eth0"));
        let choice = auto("", true, &facts(&MANY)).unwrap();
        assert_eq!(choice.address.to_string(), "fd00::5/64");
        let none = auto("first-found", true, &facts(&MANY[..4])).unwrap_err();
        assert!(none.contains("IPv6") && none.contains("--ip6"), "{none}");
        let first = Method::FirstFound;
        assert_eq!(choose(OwnAddress::None, &first, true, &facts(&MANY)), Ok(None));
    }

    #[test]
    fn interfaces_are_asked_for_and_skipped_by_pattern() {
        let all = facts(&MANY);
        for (method, address) in [
            ("interface=bond.*", "192.0.2.9/28"),
            ("interface=nothing,docker0", "172.17.0.1/16"),
            ("skip-interface=eth.*", "192.0.2.9/28"),
            ("cidr=192.0.2.0/24", "192.0.2.9/28"),
            ("cidr=203.0.113.0/24,172.16.0.0/12", "172.17.0.1/16"),
        ] {
            assert_eq!(auto(method, false, &all).unwrap().address.to_string(), address, "{method}");
        }
        let e = auto("interface=wlan0", false, &all).unwrap_err();
        assert!(e.contains("wlan0") && e.contains("eth0 10.0.0.5/24"), "{e}");
        let e = auto("skip-interface=eth.*,bond.*", false, &all).unwrap_err();
        assert!(e.contains("eth.*,bond.*"), "{e}");
        let e = auto("cidr=203.0.113.0/24", false, &all).unwrap_err();
        assert!(e.contains("203.0.113.0/24"), "{e}");
    }

    #[test]
    fn the_internal_ip_and_the_source_towards_a_destination_take_their_prefix_length_from_the_interface() {
        let mut all = facts(&MANY);
        all.internal = vec!["fd00::99".parse().unwrap(), "192.0.2.9".parse().unwrap()];
        let choice = auto("kubernetes-internal-ip", false, &all).unwrap();
        assert_eq!(choice.address.to_string(), "192.0.2.9/28");
        assert!(choice.why.contains("InternalIP"), "{}", choice.why);
        let choice = auto("kubernetes-internal-ip", true, &all).unwrap();
        assert_eq!(choice.address.to_string(), "fd00::99/128");
        assert!(choice.why.contains("remote"), "{}", choice.why);
        all.internal.clear();
        assert!(auto("kubernetes-internal-ip", false, &all).unwrap_err().contains("InternalIP"));

        all.reach = Some(Ok("10.0.0.5".parse().unwrap()));
        let choice = auto("can-reach=198.51.100.1", false, &all).unwrap();
        assert_eq!(choice.address.to_string(), "10.0.0.5/24");
        assert!(choice.why.contains("198.51.100.1"), "{}", choice.why);
        all.reach = Some(Err("Network is unreachable".into()));
        assert!(auto("can-reach=x.example", false, &all).unwrap_err().contains("x.example"));
    }

    #[test]
    fn methods_that_cannot_be_read_say_what_was_expected() {
        for bad in
            ["first", "interface=", "interface=(", "cidr=10.0.0.0", "can-reach=", "first-found=1", "cidr="]
        {
            let e = Method::parse(bad).unwrap_err();
            assert!(e.contains(bad), "{bad}: {e}");
        }
    }

    #[test]
    fn a_typed_address_takes_the_prefix_length_of_its_interface() {
        let all = facts(&[("eth0", "10.0.0.5/20")]);
        let wish = OwnAddress::Given("10.0.0.5".parse().unwrap(), None);
        let choice = choose(wish, &Method::FirstFound, false, &all).unwrap().unwrap();
        assert_eq!(choice.address.to_string(), "10.0.0.5/20");
    }

    #[test]
    fn what_the_node_has_is_kept_unless_something_else_is_said() {
        let first = Method::FirstFound;
        let mut all = facts(&MANY);
        let chosen = |wish, v6, all: &Facts| {
            choose(wish, &first, v6, all).unwrap().map(|c| (c.address.to_string(), c.why))
        };
        assert_eq!(chosen(OwnAddress::Stored, false, &all).unwrap().0, "10.0.0.5/24", "there is none");
        assert_eq!(chosen(OwnAddress::Stored, true, &all), None);
        all.stored = Some("192.0.2.9/28".parse().unwrap());
        let (address, why) = chosen(OwnAddress::Stored, false, &all).unwrap();
        assert_eq!(address, "192.0.2.9/28");
        assert!(why.contains("as the Node has it; on bond1.100"), "{why}");
        let (address, why) = chosen(OwnAddress::Autodetect, false, &all).unwrap();
        assert_eq!(address, "192.0.2.9/28", "the method may mean it");
        assert!(why.contains("first usable address, on bond1.100"), "{why}");
        let other = Method::parse("interface=eth0").unwrap();
        let moved = choose(OwnAddress::Autodetect, &other, false, &all).unwrap().unwrap();
        assert_eq!(moved.address.to_string(), "10.0.0.5/24", "the method cannot mean it");
        assert_eq!(chosen(OwnAddress::None, false, &all), None);
        all.stored = Some("fd00::77/64".parse().unwrap());
        let (address, why) = chosen(OwnAddress::Stored, true, &all).unwrap();
        assert_eq!(address, "fd00::77/64");
        assert!(why.contains("no interface carries it"), "{why}");

        // Found nothing: better the old one than none.
        let bare = Facts { stored: Some("10.0.0.7/24".parse().unwrap()), ..facts(&[("lo", "127.0.0.1/8")]) };
        let (address, why) = chosen(OwnAddress::Autodetect, false, &bare).unwrap();
        assert_eq!(address, "10.0.0.7/24");
        assert!(why.contains("failed to autodetect"), "{why}");
    }

    #[test]
    fn nothing_usable_lists_what_was_seen() {
        let e = auto("first-found", false, &facts(&[("lo", "127.0.0.1/8")])).unwrap_err();
        assert!(e.contains("lo 127.0.0.1/8") && e.contains("--ip"), "{e}");
    }
}
