//! The sessions: full mesh, then what BGPPeer resources ask for, put together without contradictions.
//!
//! | source | kind | passive |
//! |---|---|---|
//! | mesh: every node with a shared family, unless one side has a routeReflectorClusterID | `mesh` | the greater address (as a string) connects |
//! | BGPPeer without node and nodeSelector | `global` | as mesh if peerIP is a node of ours |
//! | BGPPeer for this node | `node` | never |
//! | BGPPeer with localWorkloadSelector | `workload` | always: pods of this node connect |
//! | BGPPeer of others whose remote side is this node (reversePeering) | `node` | never |
//!
//! One session per remote address: global before node before reverse before mesh, then by resource name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use brindle_bgpd_core::{
    af::Family,
    speaker::{AddPath, AddPathSend, ExportPolicy, NextHopPolicy, PeerConfig, SpeakerConfig},
};
use brindle_config_core::{
    bgp::{BgpConfigurationSpec, BgpPassword, DEFAULT_AS, NextHopMode},
    duration,
    key::{Key, Kind},
};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{
    Plan, Problem, bgp_peers,
    filters::Policies,
    routes,
    state::{ClusterState, NodeFacts},
};

/// BIRD's hold time, seconds; the one Calico's nodes propose.
const HOLD_TIME: u16 = 240;
/// Calico's `connect retry`, seconds.
const CONNECT_RETRY: u16 = 5;
/// BIRD's graceful restart time, seconds.
pub(super) const RESTART_TIME: u16 = 120;
/// The field has 12 bits (RFC 4724 section 3).
pub(super) const MAX_RESTART_TIME: u16 = 4095;
const BGP_PORT: u16 = 179;

/// The node's plan as of this state.
pub fn translate(state: &ClusterState) -> Plan {
    let mut problems: Vec<Problem> =
        state.invalid.iter().map(|(key, what)| Problem { about: key.clone(), what: what.clone() }).collect();
    let mut plan = Plan::default();
    match state.nodes.get(&state.me) {
        None => problems.push(Problem {
            about: Key::new(Kind::Node, None, &state.me),
            what: "does not exist; register the node before it can peer".into(),
        }),
        Some(own) => build(state, own, &mut plan, &mut problems),
    }
    problems.sort();
    problems.dedup();
    plan.problems = problems;
    plan
}

fn build(state: &ClusterState, own: &NodeFacts, plan: &mut Plan, problems: &mut Vec<Problem>) {
    if own.spec.ips().next().is_none() {
        problems.push(Problem {
            about: Key::new(Kind::Node, None, &state.me),
            what: "spec.bgp has neither ipv4Address nor ipv6Address; set one".into(),
        });
        return;
    }
    // Without it the AS would be a guess, the mesh perhaps one that was given up, and secrets and ports unknown.
    if let Some(unread) = state.unread_configuration() {
        problems.push(Problem {
            about: unread.clone(),
            what: "could not be read since the start; there are no peers until it is corrected, rather than peers \
                   with other settings"
                .into(),
        });
        return;
    }
    let cx = Cx::new(state, own, problems);
    let router_id = state.router_id.or_else(|| own.spec.ipv4());
    plan.speaker = Some(SpeakerConfig {
        cluster_id: cx.cluster_id,
        local_pref: routes::local_pref(cx.global.ipv4_normal_route_priority),
        ..SpeakerConfig::new(cx.asn, router_id.unwrap_or_else(|| hashed_router_id(&state.me)))
    });
    let mut sessions = Sessions::default();
    bgp_peers::collect(&cx, &mut sessions, problems);
    plan.mesh = cx.global.node_to_node_mesh_enabled.unwrap_or(true) && cx.cluster_id.is_none();
    mesh(&cx, &mut sessions, problems);
    plan.statics = sessions.statics.iter().map(|(peer, gateway)| (*peer, *gateway)).collect();
    let peering = cx.peering(problems);
    plan.listen = listen(&cx, own, if sessions.pods.is_empty() { &[] } else { &peering });
    if !peering.is_empty() {
        plan.peering = sessions.pods.into_iter().map(|device| (device, peering.clone())).collect();
    }
    plan.peers = sessions.by_end.into_values().map(|(peer, _)| peer).collect();
    plan.imports = routes::imports(state, problems);
    let services = routes::services(state, own, problems);
    plan.routes = routes::local_routes(state, own, &services, problems);
    plan.services = services.into();
}

/// What every rule looks at.
pub(super) struct Cx<'a> {
    pub(super) state: &'a ClusterState,
    pub(super) own: &'a NodeFacts,
    /// The cluster-wide BGPConfiguration.
    pub(super) global: &'a BgpConfigurationSpec,
    /// Own AS.
    pub(super) asn: u32,
    pub(super) cluster_id: Option<Ipv4Addr>,
    /// Which node has an address; the first by name if two claim it.
    pub(super) by_address: BTreeMap<IpAddr, &'a str>,
    export: ExportPolicy,
}

static NO_CONFIGURATION: std::sync::LazyLock<BgpConfigurationSpec> =
    std::sync::LazyLock::new(BgpConfigurationSpec::default);

impl<'a> Cx<'a> {
    fn new(state: &'a ClusterState, own: &'a NodeFacts, problems: &mut Vec<Problem>) -> Self {
        let global = state.configs.get("default").unwrap_or(&NO_CONFIGURATION);
        // Pools are listed whether or not they still hand out addresses: pods that live in a disabled pool must
        // stay reachable through a reflector.
        let mut allow: Vec<IpNet> = state.pools.values().map(|p| p.cidr).collect();
        if cluster_id(own).is_some() {
            // A reflector passes on what the nodes announce for services.
            let outside = global.service_external_ips.iter().chain(&global.service_load_balancer_ips);
            allow.extend(global.service_cluster_ips.iter().chain(outside).map(|b| b.cidr.trunc()));
        }
        let export = ExportPolicy {
            deny: state.pools.values().filter(|p| p.disable_bgp_export).map(|p| p.cidr).collect(),
            allow: Some(allow),
            tags: routes::tags(state, problems),
            ..ExportPolicy::default()
        };
        let mut cx = Self {
            state,
            own,
            global,
            asn: 0,
            cluster_id: cluster_id(own),
            by_address: addresses(state, problems),
            export,
        };
        cx.asn = cx.asn_of(own);
        cx.name_what_is_not_done(problems);
        cx
    }

    /// Settings that have no effect here, each named where somebody wrote it.
    fn name_what_is_not_done(&self, problems: &mut Vec<Problem>) {
        let me = format!("node.{}", self.state.me);
        for name in ["default", me.as_str()] {
            let Some(c) = self.state.configs.get(name) else { continue };
            let mut problem = |what: &str| {
                problems
                    .push(Problem { about: Key::new(Kind::BgpConfiguration, None, name), what: what.into() });
            };
            if !matches!(c.log_severity_screen.as_str(), "" | "Info" | "info") {
                problem("spec.logSeverityScreen has no effect; use the agent's --log-level");
            }
            if c.program_cluster_routes.as_deref().is_some_and(|v| v != "Enabled") {
                problem(
                    "spec.programClusterRoutes has no effect; the agent programs the routes to other nodes in any case",
                );
            }
            if !c.ignored_interfaces.is_empty() {
                problem(
                    "spec.ignoredInterfaces has no effect; routes of devices are announced only where rules ask for them",
                );
            }
            if name == "default" {
                continue;
            }
            let ignored = [
                ("serviceClusterIPs", !c.service_cluster_ips.is_empty()),
                ("serviceExternalIPs", !c.service_external_ips.is_empty()),
                ("serviceLoadBalancerIPs", !c.service_load_balancer_ips.is_empty()),
                ("nodeMeshPassword", c.node_mesh_password.is_some()),
                ("nodeMeshMaxRestartTime", c.node_mesh_max_restart_time.is_some()),
                ("nodeToNodeMeshEnabled", c.node_to_node_mesh_enabled.is_some()),
                ("asNumber (set it on the Node)", c.as_number.is_some()),
                ("bindMode", c.bind_mode.is_some()),
            ];
            for (field, _) in ignored.iter().filter(|(_, set)| *set) {
                problem(&format!(
                    "spec.{field} is only read in BGPConfiguration default; it is ignored here"
                ));
            }
        }
    }

    /// The addresses that pods on this node peer with: `node.<name>`, else `default`.
    fn peering(&self, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
        let own = format!("node.{}", self.state.me);
        let mut all = Vec::new();
        for v4 in [true, false] {
            let of = |name: &str| {
                let c = self.state.configs.get(name)?;
                let text = if v4 { &c.local_workload_peering_ipv4 } else { &c.local_workload_peering_ipv6 };
                text.as_deref().filter(|t| !t.is_empty())
            };
            let Some((name, text)) = [own.as_str(), "default"].iter().find_map(|n| Some((*n, of(n)?))) else {
                continue;
            };
            match text.parse::<IpAddr>() {
                Ok(ip) if ip.is_ipv4() == v4 => all.push(ip),
                Ok(_) | Err(_) => {
                    let n = if v4 { 4 } else { 6 };
                    let what =
                        format!("spec.localWorkloadPeeringIPV{n}: expected an IPv{n} address; it is ignored");
                    problems.push(Problem { about: Key::new(Kind::BgpConfiguration, None, name), what });
                }
            }
        }
        all
    }

    /// A node's AS: its own, else the cluster's, else 64512.
    pub(super) fn asn_of(&self, node: &NodeFacts) -> u32 {
        node.spec.bgp.as_ref().and_then(|b| b.as_number).or(self.global.as_number).unwrap_or(DEFAULT_AS).0
    }

    /// The port a node listens on: `node.<name>`, else `default`, else 179.
    pub(super) fn port_of(&self, node: &str) -> u16 {
        let specific = self.state.configs.get(&format!("node.{node}")).and_then(|c| c.listen_port);
        specific.or(self.global.listen_port).unwrap_or(BGP_PORT)
    }

    /// Our own address of the same family as `other`.
    pub(super) fn own_ip_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.own.spec.ips().find(|ip| ip.is_ipv4() == other.is_ipv4())
    }

    /// Whether the remote connects and we wait: the greater address, compared as text, connects.
    pub(super) fn remote_connects(&self, remote: IpAddr) -> bool {
        self.own_ip_like(remote).is_some_and(|own| remote.to_string() > own.to_string())
    }

    /// A password from a secret; the error is the text of the problem.
    pub(super) fn password(
        &self,
        field: &str,
        wanted: Option<&BgpPassword>,
    ) -> Result<Option<String>, String> {
        let Some(BgpPassword { secret_key_ref: r, .. }) = wanted else { return Ok(None) };
        match self.state.secret(&r.name, &r.key) {
            Some(p) => Ok(Some(p.to_owned())),
            None => Err(format!(
                "{field}: secret {:?} key {:?} is not available to this node, so the sessions that need it are \
                 left out",
                r.name, r.key
            )),
        }
    }
}

/// How the sessions of one BGPPeer, or of the mesh, are run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The resource to name in problems.
    pub(super) from: Key,
    pub(super) kind: &'static str,
    pub(super) password: Option<String>,
    pub(super) restart_time: u16,
    pub(super) keepalive: Option<u16>,
    pub(super) allow_own_as: u8,
    pub(super) ttl: Option<u8>,
    pub(super) next_hop: NextHopMode,
    pub(super) keep_original_next_hop: bool,
    pub(super) use_node_ip: bool,
    pub(super) local_asn: Option<u32>,
    pub(super) policies: Policies,
    /// The gateway the peer is reached through.
    pub(super) reachable_by: Option<IpAddr>,
}

/// The remote end of a session.
pub(super) struct Remote<'a> {
    pub(super) name: &'a str,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) asn: u32,
    pub(super) passive: bool,
    /// If it is a node of ours.
    pub(super) node: Option<&'a NodeFacts>,
}

/// The sessions found so far, one per remote address and port.
#[derive(Default)]
pub(super) struct Sessions {
    by_end: BTreeMap<(IpAddr, u16), (PeerConfig, Key)>,
    /// Devices of the pods here that peer with this node.
    pub(super) pods: BTreeSet<String>,
    /// Peer and gateway.
    statics: BTreeMap<IpAddr, IpAddr>,
}

impl Sessions {
    pub(super) fn add(&mut self, cx: &Cx<'_>, s: &Settings, r: &Remote<'_>, problems: &mut Vec<Problem>) {
        let mut problem = |what: String| problems.push(Problem { about: s.from.clone(), what });
        let own_ip = cx.own_ip_like(r.address);
        // What listens at another port of ours is somebody else.
        if own_ip == Some(r.address) && r.port == cx.port_of(&cx.state.me) {
            return;
        }
        if own_ip.is_none() && s.use_node_ip {
            let family = if r.address.is_ipv4() { "IPv4" } else { "IPv6" };
            problem(format!(
                "peer {}: node {} has no {family} address to peer from; give it one, or set sourceAddress: None",
                r.address, cx.state.me
            ));
            return;
        }
        if r.asn == 0 {
            problem(format!("peer {}: AS number 0 is reserved (RFC 7607); set asNumber", r.address));
            return;
        }
        let peer = session(cx, s, r, own_ip);
        let end = (r.address, r.port);
        match self.by_end.get(&end) {
            None => {
                self.by_end.insert(end, (peer, s.from.clone()));
                self.statics.extend(s.reachable_by.map(|gateway| (r.address, gateway)));
            }
            // A BGPPeer to a mesh node replaces the mesh session: it says more.
            Some(_) if s.kind == "mesh" => {}
            Some((first, from)) if from != &s.from && !same_settings(first, &peer) => problem(format!(
                "peer {}: {from} already asks for this session with other settings and is used; remove one",
                r.address
            )),
            Some(_) => {}
        }
    }
}

/// Two resources may ask for the same session, as long as they agree on everything but the label.
fn same_settings(a: &PeerConfig, b: &PeerConfig) -> bool {
    let plain =
        |p: &PeerConfig| PeerConfig { name: String::new(), kind: String::new(), passive: false, ..p.clone() };
    plain(a) == plain(b)
}

fn session(cx: &Cx<'_>, s: &Settings, r: &Remote<'_>, own_ip: Option<IpAddr>) -> PeerConfig {
    let own_asn = s.local_asn.unwrap_or(cx.asn);
    let external = r.asn != own_asn;
    let remote_cluster = r.node.and_then(cluster_id);
    PeerConfig {
        kind: s.kind.to_owned(),
        port: r.port,
        local_address: own_ip.filter(|_| s.use_node_ip),
        local_asn: s.local_asn,
        // As Calico offers it. In a mesh everybody has its own routes to tell, one path each.
        add_path: AddPath {
            receive: !external,
            send: (!external).then_some(if s.kind == "mesh" {
                AddPathSend::Single
            } else {
                AddPathSend::All
            }),
        },
        passive: r.passive,
        // Calico runs one daemon per family, so a session carries the family of its addresses.
        families: vec![if r.address.is_ipv4() { Family::Ipv4Unicast } else { Family::Ipv6Unicast }],
        hold_time: HOLD_TIME,
        keepalive: s.keepalive,
        connect_retry: CONNECT_RETRY,
        restart_time: s.restart_time,
        reflector_client: cx.cluster_id.is_some() && !external && remote_cluster != cx.cluster_id,
        allow_own_as: s.allow_own_as,
        next_hop: match s.next_hop {
            NextHopMode::SelfAddress => NextHopPolicy::SelfAddress,
            NextHopMode::Keep => NextHopPolicy::Keep,
            NextHopMode::Auto if s.keep_original_next_hop && external => NextHopPolicy::Keep,
            NextHopMode::Auto => NextHopPolicy::Auto,
        },
        ttl: s.ttl,
        password: s.password.clone(),
        export: ExportPolicy { filters: s.policies.export.clone(), ..cx.export.clone() },
        import: s.policies.import.clone(),
        ..PeerConfig::new(r.name, r.address, r.asn)
    }
}

fn mesh(cx: &Cx<'_>, sessions: &mut Sessions, problems: &mut Vec<Problem>) {
    if !cx.global.node_to_node_mesh_enabled.unwrap_or(true) || cx.cluster_id.is_some() {
        return;
    }
    let from = Key::new(Kind::BgpConfiguration, None, "default");
    let password = match cx.password("spec.nodeMeshPassword", cx.global.node_mesh_password.as_ref()) {
        Ok(p) => p,
        Err(what) => return problems.push(Problem { about: from, what }),
    };
    let restart_time = seconds(
        "spec.nodeMeshMaxRestartTime",
        cx.global.node_mesh_max_restart_time.as_deref(),
        RESTART_TIME,
        MAX_RESTART_TIME,
        &from,
        problems,
    );
    let settings = Settings {
        from,
        kind: "mesh",
        password,
        restart_time,
        keepalive: None,
        allow_own_as: 0,
        ttl: None,
        next_hop: NextHopMode::Auto,
        keep_original_next_hop: false,
        use_node_ip: true,
        local_asn: None,
        policies: Policies::default(),
        reachable_by: None,
    };
    for (name, node) in &cx.state.nodes {
        if *name == cx.state.me || cluster_id(node).is_some() {
            continue;
        }
        for remote in remotes(cx, name, node, true) {
            sessions.add(cx, &settings, &remote, problems);
        }
    }
}

/// The ends of sessions with a node of ours: one per family both have. `mesh`: decide by address who connects.
pub(super) fn remotes<'a>(
    cx: &Cx<'a>,
    name: &'a str,
    node: &'a NodeFacts,
    mesh: bool,
) -> impl Iterator<Item = Remote<'a>> {
    let (port, asn) = (cx.port_of(name), cx.asn_of(node));
    node.spec
        .ips()
        .filter(|ip| cx.own_ip_like(*ip).is_some() && cx.by_address.get(ip) == Some(&name))
        .map(|address| Remote {
            name,
            address,
            port,
            asn,
            passive: mesh && cx.remote_connects(address),
            node: Some(node),
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// A duration field in whole seconds; a bad or too long one is a problem and replaced.
pub(super) fn seconds(
    field: &str,
    text: Option<&str>,
    default: u16,
    max: u16,
    from: &Key,
    problems: &mut Vec<Problem>,
) -> u16 {
    let Some(text) = text else { return default };
    let mut problem = |what: String| problems.push(Problem { about: from.clone(), what });
    match duration::parse(text).map(whole_seconds) {
        Ok(s) => u16::try_from(s).ok().filter(|s| *s <= max).unwrap_or_else(|| {
            problem(format!("{field}: {s} s is more than the largest value, {max} s, which is used"));
            max
        }),
        Err(e) => {
            problem(format!("{field}: {e}; {default}s is used"));
            default
        }
    }
}

/// Rounded as Calico rounds, half up.
const fn whole_seconds(d: Duration) -> u64 {
    d.as_secs() + (d.subsec_millis() >= 500) as u64
}

pub(super) fn cluster_id(node: &NodeFacts) -> Option<Ipv4Addr> {
    node.spec.bgp.as_ref()?.route_reflector_cluster_id
}

/// Address → node. An address of two nodes is a problem that names both; our own claim on it wins, else the first
/// by name.
fn addresses<'a>(state: &'a ClusterState, problems: &mut Vec<Problem>) -> BTreeMap<IpAddr, &'a str> {
    let mut by_address: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let own = state.nodes.get_key_value(&state.me);
    let others = state.nodes.iter().filter(|(name, _)| **name != state.me);
    for (name, node) in own.into_iter().chain(others) {
        for ip in node.spec.ips() {
            let owner = *by_address.entry(ip).or_insert(name);
            if owner != name {
                problems.push(Problem {
                    about: Key::new(Kind::Node, None, name),
                    what: format!(
                        "has the address {ip} of node {owner}; there is no session with it until one of them \
                         gets another address"
                    ),
                });
            }
        }
    }
    by_address
}

/// `peering`: what pods connect to; a link-local address of IPv6 is one of each device, so it cannot be listened on alone.
fn listen(cx: &Cx<'_>, own: &NodeFacts, peering: &[IpAddr]) -> Vec<SocketAddr> {
    let port = cx.port_of(&cx.state.me);
    if cx.global.bind_mode.as_deref() == Some("NodeIP") {
        let alone = |ip: &IpAddr| !matches!(ip, IpAddr::V6(a) if a.is_unicast_link_local());
        let peering = peering.iter().copied().filter(alone);
        own.spec.ips().chain(peering).map(|ip| SocketAddr::new(ip, port)).collect()
    } else {
        [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
            .map(|ip| SocketAddr::new(ip, port))
            .to_vec()
    }
}

/// Calico's `CALICO_ROUTER_ID=hash`, for nodes without IPv4: four bytes of SHA-256, kept below the class E range.
pub fn hashed_router_id(name: &str) -> Ipv4Addr {
    let digest = Sha256::digest(name.as_bytes());
    let [mut a, b, c, d] = [digest[0], digest[1], digest[2], digest[3]];
    if a > 223 {
        a -= 32;
    }
    Ipv4Addr::new(a, b, c, d)
}
