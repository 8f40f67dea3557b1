//! Routes of the kernel that are announced as our own: which ones ([`ImportRule`]), and what becomes of them.
//!
//! Only reads: routes are written by felix. Never taken: what felix wrote (protocol 80), devices of pods, link-local,
//! multicast and loopback prefixes; a default route only where a rule says so.
//!
//! | source | routes |
//! |---|---|
//! | `connected` | subnets of the addresses of devices (protocol kernel) |
//! | `static` | protocol static |
//! | `kernel` | other routes of the system: protocols boot (`ip route add`), ra, dhcp |
//! | a name or number | that protocol, e.g. `ospf` or 188 |

mod listen;

use std::{collections::BTreeMap, fmt};

use brindle_bgpd_core::{
    af::Family,
    policy::{Decision, Facts, Policy, glob},
    speaker::LocalRoute,
    wire::{AttrSet, Origin},
};
use brindle_kernel::netlink::{Route, RouteKind, TABLE_MAIN, proto};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub(crate) use self::listen::Importer;

/// What felix writes.
const PROTO_CLUSTER: u8 = 80;
const RA: u8 = 9;
const DHCP: u8 = 16;
/// The names iproute2 has for protocols (rt_protos).
const NAMES: [(&str, u8); 12] = [
    ("boot", proto::BOOT),
    ("ra", RA),
    ("zebra", 11),
    ("bird", proto::BIRD),
    ("dhcp", DHCP),
    ("keepalived", 18),
    ("babel", 42),
    ("bgp", 186),
    ("isis", 187),
    ("ospf", 188),
    ("rip", 189),
    ("eigrp", 192),
];

/// Where a route of the kernel comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    Connected,
    Static,
    Kernel,
    Protocol(u8),
}

impl Source {
    /// As written in a configuration; the error says what is expected.
    ///
    /// # Errors
    /// Neither a source nor a protocol that may be taken.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = NAMES.iter().find(|(name, _)| *name == text).map(|(_, n)| *n).or(text.parse().ok());
        match (text, number) {
            ("connected", _) => Ok(Self::Connected),
            ("static", _) => Ok(Self::Static),
            ("kernel", _) => Ok(Self::Kernel),
            (_, Some(PROTO_CLUSTER)) => {
                Err("protocol 80 is what Brindle itself writes; it is never taken".into())
            }
            (_, Some(n @ 3..)) => Ok(Self::Protocol(n)),
            _ => Err(format!(
                "expected connected, static, kernel, or the number (3 to 255) or name of a protocol, found {text:?}"
            )),
        }
    }

    /// The protocols to look for.
    fn protocols(self) -> Vec<u8> {
        match self {
            Self::Connected => vec![proto::KERNEL],
            Self::Static => vec![proto::STATIC],
            Self::Kernel => vec![proto::BOOT, RA, DHCP],
            Self::Protocol(n) => vec![n],
        }
    }
}

/// One kind of routes to take. The first rule that fits a route decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportRule {
    pub source: Source,
    pub table: u32,
    /// The route leaves by such a device; `*` stands for any characters.
    pub interface: Option<String>,
    /// 0.0.0.0/0 and ::/0, too.
    pub default_route: bool,
    /// MED of the announcement.
    pub med: Option<u32>,
    /// Import rules of filters: what they reject is not taken, what they change is changed.
    pub policy: Policy,
}

impl ImportRule {
    /// Every route of a source in the main table.
    pub fn of(source: Source) -> Self {
        Self {
            source,
            table: TABLE_MAIN,
            interface: None,
            default_route: false,
            med: None,
            policy: Policy::default(),
        }
    }

    /// As annotations have it: `static table=100 interface=eth* filter=NAME med=10 default`. `filter` finds filters.
    ///
    /// # Errors
    /// What was expected where.
    pub fn parse(text: &str, filter: impl Fn(&str) -> Result<Policy, String>) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut rule = Self::of(Source::parse(words.next().unwrap_or_default())?);
        for word in words {
            let number = |v: &str| v.parse().map_err(|_| format!("{word}: expected a number"));
            match word.split_once('=') {
                None if word == "default" => rule.default_route = true,
                Some(("table", v)) => rule.table = number(v)?,
                Some(("med", v)) => rule.med = Some(number(v)?),
                Some(("interface", v)) => rule.interface = Some(v.to_owned()),
                Some(("filter", v)) => rule.policy = filter(v)?,
                _ => {
                    return Err(format!(
                        "expected default, table=, interface=, filter= or med=, found {word:?}"
                    ));
                }
            }
        }
        Ok(rule)
    }

    /// Whether a route of this table and protocol may fit.
    fn may_fit(&self, table: u32, protocol: u8) -> bool {
        self.table == table && self.source.protocols().contains(&protocol)
    }

    /// What is announced for a route, `Some(None)`: nothing; `None`: it does not fit. `devices`: where it leads.
    fn take(&self, route: &Route, devices: &[&str]) -> Option<Option<LocalRoute>> {
        let net = route.dst;
        if !self.may_fit(route.table, route.protocol)
            || route.tos != 0
            || (net.prefix_len() == 0 && !self.default_route)
            || is_special(&net)
        {
            return None;
        }
        match route.kind {
            RouteKind::Unicast if self.source == Source::Connected => {
                route.hops.iter().all(|h| h.gateway.is_none()).then_some(())?;
            }
            RouteKind::Unicast => {}
            // "To nowhere" is how an aggregate is written.
            RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit
                if self.source != Source::Connected => {}
            _ => return None,
        }
        if let Some(pattern) = &self.interface
            && !devices.iter().any(|d| glob(pattern, d))
        {
            return None;
        }
        let mut attributes = AttrSet { origin: Origin::Incomplete, med: self.med, ..AttrSet::default() };
        let facts = Facts {
            prefix: net,
            attributes: &attributes,
            priority: route.metric,
            ibgp: false,
            learnt: false,
            interface: devices.first().copied(),
        };
        match self.policy.decide(&facts) {
            Decision::Reject(_) => return Some(None),
            Decision::Accept(n) => {
                self.policy.apply(Family::of(&net), n, &mut attributes);
            }
            Decision::Default => {}
        }
        Some(Some(LocalRoute { prefix: net, next_hop: None, attributes }))
    }
}

/// Prefixes that mean something on one link or host only.
fn is_special(net: &IpNet) -> bool {
    match net {
        IpNet::V4(n) => {
            let a = n.addr();
            a.is_link_local() || a.is_multicast() || a.is_loopback()
        }
        IpNet::V6(n) => {
            let a = n.addr();
            a.is_unicast_link_local() || a.is_multicast() || (a.is_loopback() && n.prefix_len() > 0)
        }
    }
}

/// Which routes to take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Imports {
    pub rules: Vec<ImportRule>,
    /// Beginnings of the names of devices whose routes are never taken: those of pods.
    pub exclude: Vec<String>,
}

impl Imports {
    /// The tables and protocols to read, each once.
    fn wanted(&self) -> Vec<(u32, u8)> {
        let all = self.rules.iter().flat_map(|r| r.source.protocols().into_iter().map(|p| (r.table, p)));
        let mut all: Vec<(u32, u8)> = all.collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What is announced for these routes, in prefix order; of several to a prefix the one with the lowest metric
    /// counts. `name`: of a device.
    fn announce<'r, 'n>(
        &self,
        routes: impl Iterator<Item = &'r Route>,
        name: impl Fn(u32) -> Option<&'n str>,
    ) -> Vec<LocalRoute> {
        let mut taken: BTreeMap<IpNet, (u32, LocalRoute)> = BTreeMap::new();
        for route in routes {
            let devices: Vec<&str> = route.hops.iter().filter_map(|h| name(h.dev?)).collect();
            if devices.iter().any(|d| self.exclude.iter().any(|p| d.starts_with(p.as_str()))) {
                continue;
            }
            let decided = self.rules.iter().find_map(|r| r.take(route, &devices));
            let Some(Some(new)) = decided else { continue };
            if taken.get(&new.prefix).is_none_or(|(metric, _)| route.metric < *metric) {
                taken.insert(new.prefix, (route.metric, new));
            }
        }
        taken.into_values().map(|(_, r)| r).collect()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Static => f.write_str("static"),
            Self::Kernel => f.write_str("kernel"),
            Self::Protocol(n) => match NAMES.iter().find(|(_, number)| number == n) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "protocol {n}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use brindle_bgpd_core::policy::{
        Action, Community, Compare, Direction, Filter, Operation, PrefixMatch, Rule,
    };
    use brindle_kernel::netlink::NextHop;

    use super::*;

    fn route(dst: &str, protocol: u8, dev: u32) -> Route {
        Route::new(dst.parse().unwrap()).dev(dev).with_protocol(protocol)
    }

    fn names(index: u32) -> Option<&'static str> {
        [(1, "lo"), (2, "eth0"), (3, "cali12"), (4, "eth1.7")]
            .iter()
            .find(|(i, _)| *i == index)
            .map(|(_, n)| *n)
    }

    fn taken(rules: Vec<ImportRule>, routes: &[Route]) -> Vec<String> {
        let imports = Imports { rules, exclude: vec!["cali".into()] };
        imports.announce(routes.iter(), names).iter().map(|r| r.prefix.to_string()).collect()
    }

    fn table() -> Vec<Route> {
        vec![
            route("0.0.0.0/0", proto::BOOT, 2),
            route("10.1.0.0/24", proto::KERNEL, 2),
            route("10.2.0.0/24", proto::KERNEL, 4),
            route("10.3.0.0/24", proto::STATIC, 2),
            route("10.4.0.0/24", proto::BOOT, 2),
            route("10.5.0.0/24", DHCP, 2),
            route("10.6.0.0/24", 188, 2),
            route("10.7.0.5/32", proto::BOOT, 3),
            route("10.8.0.0/26", PROTO_CLUSTER, 2),
            Route { table: 100, ..route("10.9.0.0/24", proto::STATIC, 2) },
            Route::blackhole("10.10.0.0/16".parse().unwrap()).with_protocol(proto::STATIC),
            route("169.254.0.0/16", proto::KERNEL, 2),
            route("fe80::/64", proto::KERNEL, 2),
            route("fd00:1::/64", proto::KERNEL, 2),
        ]
    }

    #[test]
    fn each_source_takes_its_routes_and_never_ours_or_those_of_pods() {
        let of = |text: &str| taken(vec![ImportRule::of(Source::parse(text).unwrap())], &table());
        assert_eq!(of("connected"), ["10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64"]);
        assert_eq!(of("static"), ["10.3.0.0/24", "10.10.0.0/16"]);
        assert_eq!(of("kernel"), ["10.4.0.0/24", "10.5.0.0/24"]);
        assert_eq!(of("ospf"), of("188"));
        assert_eq!(of("188"), ["10.6.0.0/24"]);
        assert!(Source::parse("80").is_err() && Source::parse("2").is_err() && Source::parse("x").is_err());
    }

    #[test]
    fn table_device_default_route_and_metric_count() {
        let rule = |text: &str| ImportRule::parse(text, |_| unreachable!()).unwrap();
        assert_eq!(taken(vec![rule("static table=100")], &table()), ["10.9.0.0/24"]);
        assert_eq!(taken(vec![rule("connected interface=eth1*")], &table()), ["10.2.0.0/24"]);
        assert_eq!(taken(vec![rule("boot default")], &table()), ["0.0.0.0/0", "10.4.0.0/24"]);
        // Of two routes to one prefix the kernel takes that of the lower metric.
        let (mut far, near) = (route("10.1.0.0/24", proto::STATIC, 2), route("10.1.0.0/24", proto::BOOT, 2));
        far.metric = 100;
        let imports = Imports { rules: vec![rule("static med=5"), rule("kernel med=6")], exclude: vec![] };
        for routes in [[far.clone(), near.clone()], [near, far]] {
            let all = imports.announce(routes.iter(), names);
            assert_eq!(all.iter().map(|r| r.attributes.med).collect::<Vec<_>>(), [Some(6)]);
        }
        for bad in ["", "static table=x", "static nonsense", "static default=1"] {
            assert!(ImportRule::parse(bad, |_| unreachable!()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_filter_leaves_out_and_marks() {
        let within = |text: &str| {
            let net = text.parse().unwrap();
            Some(PrefixMatch { net, compare: Compare::In, min: None, max: None })
        };
        let filter = Filter {
            name: "f".into(),
            direction: Direction::Import,
            v4: vec![
                Rule { prefix: within("10.1.0.0/16"), ..Rule::new(Action::Reject) },
                Rule {
                    interface: Some("eth*".into()),
                    operations: vec![Operation::AddCommunity(Community::Standard(7))],
                    ..Rule::new(Action::Accept)
                },
            ],
            v6: vec![],
        };
        let rule = ImportRule { policy: Policy::from(vec![filter]), ..ImportRule::of(Source::Connected) };
        // What the first rule rejects the second does not get.
        let rules = vec![rule, ImportRule::of(Source::Connected), ImportRule::of(Source::Static)];
        let all = Imports { rules, exclude: vec![] };
        let routes = table();
        let all = all.announce(routes.iter(), names);
        let marked: Vec<_> =
            all.iter().map(|r| (r.prefix.to_string(), r.attributes.communities.len())).collect();
        let expected = [("10.2.0.0/24", 1), ("10.3.0.0/24", 0), ("10.10.0.0/16", 0), ("fd00:1::/64", 0)];
        assert_eq!(marked, expected.map(|(p, n)| (p.to_owned(), n)));
    }

    #[test]
    fn a_gateway_is_no_connected_subnet() {
        let mut via = route("10.1.0.0/24", proto::KERNEL, 2);
        let hop = NextHop { gateway: Some("10.0.0.1".parse().unwrap()), ..via.hops[0].clone() };
        via.hops = vec![hop];
        assert!(taken(vec![ImportRule::of(Source::Connected)], &[via]).is_empty());
    }
}
