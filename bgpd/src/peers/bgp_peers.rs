//! BGPPeer resources: which of them concern this node, and with whom they make it peer.
//! Rules: Calico's `updatePeersV1`; what this version cannot honour is a problem that names the field.

use std::net::{IpAddr, SocketAddr};

use brindle_config_core::{
    bgp::{BgpPeerSpec, NextHopMode},
    key::{Key, Kind},
    selector::Selector,
};

use super::{
    Problem,
    filters::policies,
    sessions::{Cx, MAX_RESTART_TIME, RESTART_TIME, Remote, Sessions, Settings, remotes, seconds},
    state::NodeFacts,
};

/// One side of a BGPPeer, parsed.
enum Side<'a> {
    All,
    Node(&'a str),
    Labels(Selector),
    Address(IpAddr, Option<u16>),
    /// Pods on this node.
    Pods(Selector),
}

impl Side<'_> {
    fn matches(&self, name: &str, node: &NodeFacts) -> bool {
        match self {
            Self::All => true,
            Self::Node(n) => *n == name,
            Self::Labels(s) => s.matches(&node.labels),
            Self::Address(ip, _) => node.spec.ips().any(|i| i == *ip),
            Self::Pods(_) => false,
        }
    }
}

/// A BGPPeer whose text makes sense.
struct Peering<'a> {
    name: &'a str,
    spec: &'a BgpPeerSpec,
    local: Side<'a>,
    remote: Side<'a>,
    settings: Settings,
}

/// Adds the sessions of all BGPPeers: global ones, this node's, then those of others that point here.
pub(super) fn collect(cx: &Cx<'_>, sessions: &mut Sessions, problems: &mut Vec<Problem>) {
    let peerings: Vec<Peering<'_>> = cx
        .state
        .peers
        .iter()
        .filter_map(|(name, spec)| match parse(cx, name, spec, problems) {
            Ok(p) => Some(p),
            Err(what) => {
                problems.push(Problem { about: Key::new(Kind::BgpPeer, None, name), what });
                None
            }
        })
        .collect();
    let (global, specific): (Vec<_>, Vec<_>) = peerings.iter().partition(|p| matches!(p.local, Side::All));
    for p in global.into_iter().chain(specific) {
        if p.local.matches(&cx.state.me, cx.own) {
            forward(cx, p, sessions, problems);
        }
    }
    for p in peerings.iter().filter(|p| p.spec.reverse_peering.as_deref() != Some("Manual")) {
        reverse(cx, p, sessions, problems);
    }
}

/// Sessions from this node to the remote side.
fn forward(cx: &Cx<'_>, p: &Peering<'_>, sessions: &mut Sessions, problems: &mut Vec<Problem>) {
    match &p.remote {
        Side::Address(address, port) => {
            // At another port it is not the node's agent but a speaker beside it, a reflector for example.
            let node = cx
                .by_address
                .get(address)
                .filter(|n| port.is_none_or(|p| p == cx.port_of(n)))
                .and_then(|n| cx.state.nodes.get_key_value(*n));
            let asn = p.spec.as_number.expect("parse requires it with peerIP").0;
            let remote = Remote {
                name: node.map_or(p.name, |(n, _)| n),
                address: *address,
                port: port.unwrap_or_else(|| node.map_or(179, |(n, _)| cx.port_of(n))),
                asn,
                passive: node.is_some() && p.settings.kind == "global" && cx.remote_connects(*address),
                node: node.map(|(_, n)| n),
            };
            sessions.add(cx, &p.settings, &remote, problems);
        }
        // Whatever a pod speaks from, it connects to us: there is nobody to dial before it runs a speaker.
        Side::Pods(pods) => {
            let asn = p.spec.as_number.expect("parse requires it with localWorkloadSelector").0;
            for pod in cx.state.workloads.values().filter(|w| pods.matches(&w.labels)) {
                sessions.pods.insert(pod.device.clone());
                for address in pod.addresses.iter().filter(|n| n.prefix_len() == n.max_prefix_len()) {
                    let (name, address) = (pod.name.as_str(), address.addr());
                    let remote = Remote { name, address, port: 179, asn, passive: true, node: None };
                    sessions.add(cx, &p.settings, &remote, problems);
                }
            }
        }
        side => {
            for (name, node) in cx.state.nodes.iter().filter(|(n, _)| **n != cx.state.me) {
                if side.matches(name, node) {
                    for remote in remotes(cx, name, node, false) {
                        sessions.add(cx, &p.settings, &remote, problems);
                    }
                }
            }
        }
    }
}

/// Sessions back from this node, if it is the remote side, to the nodes of the local side.
fn reverse(cx: &Cx<'_>, p: &Peering<'_>, sessions: &mut Sessions, problems: &mut Vec<Problem>) {
    let pointed_at = match &p.remote {
        Side::Address(_, port) => {
            p.remote.matches(&cx.state.me, cx.own)
                && p.spec.as_number.is_some_and(|a| a.0 == cx.asn)
                && port.is_none_or(|port| port == cx.port_of(&cx.state.me))
        }
        side => side.matches(&cx.state.me, cx.own),
    };
    if !pointed_at {
        return;
    }
    // The other end may present another AS than its node's; its own AS setting is not ours.
    let presented = p.settings.local_asn;
    let settings = Settings { kind: "node", local_asn: None, reachable_by: None, ..p.settings.clone() };
    for (name, node) in cx.state.nodes.iter().filter(|(n, _)| **n != cx.state.me) {
        if !p.local.matches(name, node) {
            continue;
        }
        for mut remote in remotes(cx, name, node, false) {
            if let Side::Address(ip, _) = p.remote
                && ip.is_ipv4() != remote.address.is_ipv4()
            {
                continue;
            }
            remote.asn = presented.unwrap_or(remote.asn);
            sessions.add(cx, &settings, &remote, problems);
        }
    }
}

/// Reads a BGPPeer; the error says why it is left out.
fn parse<'a>(
    cx: &Cx<'_>,
    name: &'a str,
    spec: &'a BgpPeerSpec,
    problems: &mut Vec<Problem>,
) -> Result<Peering<'a>, String> {
    let from = Key::new(Kind::BgpPeer, None, name);
    let local = match (spec.node.as_str(), spec.node_selector.as_str()) {
        ("", "") => Side::All,
        (node, "") => Side::Node(node),
        ("", selector) => Side::Labels(labels("spec.nodeSelector", selector)?),
        _ => return Err("spec.node and spec.nodeSelector exclude each other; remove one".into()),
    };
    let remote = match (spec.peer_ip.as_str(), spec.peer_selector.as_str()) {
        ("", "") if !spec.local_workload_selector.is_empty() => {
            if spec.as_number.is_none() {
                return Err("spec.asNumber is required with spec.localWorkloadSelector".into());
            }
            Side::Pods(labels("spec.localWorkloadSelector", &spec.local_workload_selector)?)
        }
        _ if !spec.local_workload_selector.is_empty() => {
            return Err(
                "spec.localWorkloadSelector excludes spec.peerIP and spec.peerSelector; remove one".into()
            );
        }
        ("", "") => return Err("needs spec.peerIP, spec.peerSelector or spec.localWorkloadSelector".into()),
        (ip, "") => {
            let (ip, port) = address(ip)?;
            if spec.as_number.is_none() {
                return Err("spec.asNumber is required with spec.peerIP".into());
            }
            Side::Address(ip, port)
        }
        ("", selector) => Side::Labels(labels("spec.peerSelector", selector)?),
        _ => return Err("spec.peerIP and spec.peerSelector exclude each other; remove one".into()),
    };
    let settings = settings(cx, &from, spec, &local, &remote, problems)?;
    Ok(Peering { name, spec, local, remote, settings })
}

fn settings(
    cx: &Cx<'_>,
    from: &Key,
    spec: &BgpPeerSpec,
    local: &Side<'_>,
    remote: &Side<'_>,
    problems: &mut Vec<Problem>,
) -> Result<Settings, String> {
    let by_selector = matches!(remote, Side::Labels(_));
    let password = cx.password("spec.password", spec.password.as_ref())?;
    let policies = policies(cx.state, &spec.filters)?;
    let mut problem = |what: &str| problems.push(Problem { about: from.clone(), what: what.into() });
    if by_selector && spec.as_number.is_some() {
        problem("spec.asNumber is ignored with spec.peerSelector (the nodes' own is used); remove it");
    }
    if by_selector && spec.local_as_number.is_some() {
        problem("spec.localASNumber is ignored with spec.peerSelector; remove it");
    }
    if spec.keep_original_next_hop && spec.next_hop_mode.is_some() {
        problem("spec.keepOriginalNextHop is ignored beside spec.nextHopMode; remove it");
    }
    let reachable_by = match (spec.reachable_by.parse::<IpAddr>(), remote) {
        _ if spec.reachable_by.is_empty() => None,
        (Ok(gateway), Side::Address(peer, _)) if gateway.is_ipv4() == peer.is_ipv4() => Some(gateway),
        (Ok(_), Side::Address(..)) => {
            problem("spec.reachableBy is of another address family than spec.peerIP; it is ignored");
            None
        }
        (Ok(_), _) => {
            problem("spec.reachableBy needs spec.peerIP; it is ignored");
            None
        }
        (Err(_), _) => {
            problem("spec.reachableBy: expected the address of a gateway; it is ignored");
            None
        }
    };
    let use_node_ip = match spec.source_address.as_deref() {
        // The pod chooses which address of this node it connects to.
        _ if matches!(remote, Side::Pods(_)) => false,
        None | Some("" | "UseNodeIP") => true,
        Some("None") => false,
        Some(_) => {
            problem("spec.sourceAddress: expected UseNodeIP or None; UseNodeIP is used");
            true
        }
    };
    let allow_own_as = match spec.num_allowed_local_as_numbers.unwrap_or(0) {
        _ if by_selector => 0,
        n => u8::try_from(n).unwrap_or_else(|_| {
            problem("spec.numAllowedLocalASNumbers: expected 0..255; 0 is used");
            0
        }),
    };
    let restart_time = seconds(
        "spec.maxRestartTime",
        spec.max_restart_time.as_deref(),
        RESTART_TIME,
        MAX_RESTART_TIME,
        from,
        problems,
    );
    // 0 stands for a third of the hold time.
    let keepalive =
        seconds("spec.keepaliveTime", spec.keepalive_time.as_deref(), 0, u16::MAX, from, problems);
    Ok(Settings {
        from: from.clone(),
        kind: match (local, remote) {
            (_, Side::Pods(_)) => "workload",
            (Side::All, _) => "global",
            _ => "node",
        },
        password,
        restart_time,
        keepalive: (keepalive != 0).then_some(keepalive),
        allow_own_as,
        ttl: spec.ttl_security.filter(|hops| *hops != 0),
        next_hop: spec.next_hop_mode.unwrap_or(NextHopMode::Auto),
        keep_original_next_hop: spec.keep_original_next_hop && spec.next_hop_mode.is_none(),
        use_node_ip,
        policies,
        reachable_by,
        local_asn: spec.local_as_number.filter(|_| !by_selector).map(|a| a.0),
    })
}

fn labels(field: &str, text: &str) -> Result<Selector, String> {
    Selector::parse(text).map_err(|e| format!("{field}: {e}"))
}

/// `ip`, `ip:port`, `[v6]:port`, `[v6]`.
fn address(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip, None));
    }
    if let Ok(socket) = text.parse::<SocketAddr>()
        && socket.port() != 0
    {
        return Ok((socket.ip(), Some(socket.port())));
    }
    if let Some(ip) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'))
        && let Ok(ip) = ip.parse::<std::net::Ipv6Addr>()
    {
        return Ok((ip.into(), None));
    }
    Err(format!("spec.peerIP: expected an address, ip:port or [ipv6]:port, found {text:?}"))
}
