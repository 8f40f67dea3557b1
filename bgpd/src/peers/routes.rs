//! Own announcements: confirmed blocks as they are, single addresses only where no own block covers them.
//!
//! | route | announced |
//! |---|---|
//! | own confirmed block | exactly, unless its pool has disableBGPExport |
//! | own block of one address (/32, /128) | while a pod here uses it |
//! | floating address of a pod here (FelixConfiguration floatingIPs), as the next row | |
//! | address of a pod here, or our IPIP address, outside own blocks (borrowed) | as /32 (/128), if in a pool without disableBGPExport |
//! | anything else | no |

use std::collections::BTreeMap;

use brindle_bgpd_core::{
    speaker::{LocalRoute, PrefixTags, Tags},
    wire::AttrSet,
};
use brindle_config_core::{
    Selector,
    bgp::{BgpConfigurationSpec, Community, PrefixAdvertisement},
    key::{Key, Kind},
};
use ipnet::IpNet;

use super::{
    Problem,
    filters::{community, compile},
    services::{self, Rules, Verdict},
    state::{ClusterState, IMPORT_ANNOTATION, NodeFacts},
};
use crate::import::{ImportRule, Imports};

/// Devices of pods (Calico's default).
const POD_PREFIX: &str = "cali";

/// Calico's normal route priority; iBGP carries it as LOCAL_PREF = 2147483647 − priority.
const NORMAL_PRIORITY: u32 = 1024;
const MAX_PRIORITY: u32 = 2_147_483_647;

pub(super) fn local_routes(
    state: &ClusterState,
    own: &NodeFacts,
    services: &[Verdict],
    problems: &mut Vec<Problem>,
) -> Vec<LocalRoute> {
    let blocks = own_blocks(state, problems);
    let hidden = |net: &IpNet| state.pools.values().any(|p| p.disable_bgp_export && p.cidr.contains(net));
    let mut prefixes: Vec<IpNet> = blocks.iter().copied().filter(|b| !is_single(b) && !hidden(b)).collect();

    for (key, address) in local_addresses(state, own) {
        if blocks.iter().any(|b| !is_single(b) && b.contains(&address)) || hidden(&address) {
            continue;
        }
        if blocks.contains(&address) || state.pools.values().any(|p| p.cidr.contains(&address)) {
            prefixes.push(address);
        } else {
            problems.push(Problem {
                about: key,
                what: format!("{address} is in no IPPool, so it is not announced"),
            });
        }
    }
    prefixes.extend(services.iter().filter(|v| v.why.announces()).map(|v| v.prefix));
    prefixes.sort();
    prefixes.dedup();

    let ipv6_local_pref = ipv6_local_pref(state);
    let attributes = |prefix: &IpNet| AttrSet {
        local_pref: ipv6_local_pref.filter(|_| matches!(prefix, IpNet::V6(_))),
        ..AttrSet::default()
    };
    prefixes
        .into_iter()
        .map(|prefix| LocalRoute { prefix, next_hop: None, attributes: attributes(&prefix) })
        .collect()
}

/// Which routes of the kernel are announced. Never those of pods' devices, and none of what is outside of a rule that
/// could not be read, nor of those after it: the first rule that fits decides, and it would have been one of them.
pub(super) fn imports(state: &ClusterState, problems: &mut Vec<Problem>) -> Imports {
    let specific = format!("node.{}", state.me);
    let found = [specific.as_str(), "default"].into_iter().find_map(|n| Some((n, state.imports.get(n)?)));
    let Some((config, text)) = found else { return Imports::default() };
    let filter = |name: &str| {
        let spec = state.filters.get(name).ok_or_else(|| format!("BGPFilter {name} does not exist"))?;
        compile([(name, spec)]).map(|p| p.import)
    };
    let mut rules = Vec::new();
    for part in text.split(';').map(str::trim).filter(|p| !p.is_empty()) {
        match ImportRule::parse(part, filter) {
            Ok(rule) => rules.push(rule),
            Err(e) => {
                problems.push(Problem {
                    about: Key::new(Kind::BgpConfiguration, None, config),
                    what: format!(
                        "annotation {IMPORT_ANNOTATION}: {part:?}: {e}; this rule and those after it are left out"
                    ),
                });
                break;
            }
        }
    }
    Imports { rules, exclude: [POD_PREFIX, "tunl", "kube-ipvs"].map(Into::into).to_vec() }
}

/// What becomes of service ranges and addresses.
pub(super) fn services(state: &ClusterState, own: &NodeFacts, problems: &mut Vec<Problem>) -> Vec<Verdict> {
    let single = state.single_services.as_deref().and_then(|text| {
        let parsed = Selector::parse(text);
        if let Err(e) = &parsed {
            problems.push(Problem {
                about: Key::new(Kind::BgpConfiguration, None, "default"),
                what: format!("annotation {}: {e}; no service is selected", services::SELECTOR_ANNOTATION),
            });
        }
        parsed.ok()
    });
    let rules = Rules {
        config: state.configs.get("default"),
        excluded: own.labels.get(services::EXCLUDE_LABEL).is_some_and(|v| v == "true"),
        single,
    };
    services::verdicts(&rules, &state.services)
}

/// Confirmed claims that the block itself does not contradict.
fn own_blocks(state: &ClusterState, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let by_cidr: BTreeMap<IpNet, _> = state.blocks.values().map(|b| (b.cidr, b)).collect();
    let mut own = Vec::new();
    for (name, claim) in state.claims.iter().filter(|(_, c)| c.confirmed) {
        match by_cidr.get(&claim.cidr) {
            Some(block) if block.deleted => {}
            Some(block) => match block.affinity.as_deref() {
                Some(a) if a.strip_prefix("host:") == Some(&state.me) => own.push(claim.cidr),
                other => problems.push(Problem {
                    about: Key::new(Kind::BlockAffinity, None, name),
                    what: format!(
                        "claims {} for this node, but the block belongs to {}; it is not announced",
                        claim.cidr,
                        other.unwrap_or("nobody")
                    ),
                }),
            },
            // The kinds arrive one after the other; a confirmed claim is only written after its block.
            None => own.push(claim.cidr),
        }
    }
    own
}

fn local_addresses(state: &ClusterState, own: &NodeFacts) -> Vec<(Key, IpNet)> {
    let tunnel = own.spec.bgp.as_ref().and_then(|b| b.ipv4_ipip_tunnel_addr);
    let tunnel =
        tunnel.map(|a| (Key::new(Kind::Node, None, &state.me), IpNet::from(std::net::IpAddr::V4(a))));
    let pods =
        state.workloads.iter().flat_map(|(k, pod)| pod.addresses.iter().map(|n| (k.clone(), n.trunc())));
    let own = format!("node.{}", state.me);
    let set = || [own.as_str(), "default"].into_iter().find_map(|n| state.floating.get(n)).copied();
    let floats = state.floating_here.or_else(set).unwrap_or(false);
    let floating = state.workloads.iter().filter(|_| floats);
    let floating = floating.flat_map(|(k, pod)| pod.floating.iter().map(|n| (k.clone(), *n)));
    tunnel.into_iter().chain(pods).chain(floating).collect()
}

fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// LOCAL_PREF that says this route priority on iBGP sessions.
pub(super) fn local_pref(priority: Option<u32>) -> u32 {
    MAX_PRIORITY - priority.unwrap_or(NORMAL_PRIORITY).min(MAX_PRIORITY)
}

/// The LOCAL_PREF of IPv6 routes where it is not the speaker's own, which is that of IPv4.
fn ipv6_local_pref(state: &ClusterState) -> Option<u32> {
    let global = state.configs.get("default")?;
    let v6 = local_pref(global.ipv6_normal_route_priority);
    (v6 != local_pref(global.ipv4_normal_route_priority)).then_some(v6)
}

/// Communities from prefixAdvertisements, for everything that goes out and that no BGPFilter let out: as in Calico, whose
/// filter ends where a rule accepts.
pub(super) fn tags(state: &ClusterState, problems: &mut Vec<Problem>) -> Tags {
    let empty = BgpConfigurationSpec::default();
    let global = state.configs.get("default").unwrap_or(&empty);
    let node_name = format!("node.{}", state.me);
    let node = state.configs.get(&node_name).unwrap_or(&empty);
    // The node's list replaces the global one.
    let (source, adverts): (&str, &[PrefixAdvertisement]) = if node.prefix_advertisements.is_empty() {
        ("default", &global.prefix_advertisements)
    } else {
        (&node_name, &node.prefix_advertisements)
    };
    let value_of = |text: &str| {
        let found = node.communities.iter().chain(&global.communities).find(|c| c.name == text);
        community(found.map_or(text, |Community { value, .. }| value))
    };
    let mut tags = Vec::with_capacity(adverts.len());
    for a in adverts {
        let mut set = AttrSet::default();
        for text in &a.communities {
            match value_of(text) {
                Ok(c) => c.attach(&mut set),
                Err(_) => problems.push(Problem {
                    about: Key::new(Kind::BgpConfiguration, None, source),
                    what: format!(
                        "prefixAdvertisements {}: {text:?} is neither a named community nor aa:nn or aa:nn:mm; it \
                         is not attached",
                        a.cidr
                    ),
                }),
            }
        }
        let (communities, large_communities) = (set.communities.to_vec(), set.large_communities.to_vec());
        tags.push(PrefixTags { prefix: a.cidr, communities, large_communities });
    }
    tags.into()
}
