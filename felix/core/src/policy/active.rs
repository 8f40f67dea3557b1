//! The hand-over between the calculation graph and the dataplane: everything that is *active* on this node, with all
//! selectors replaced by ids of IP sets. Nothing here refers to a resource that was not resolved.
//!
//! A stream of [`PolicyDelta`]s carries it. Within one batch they come in the order in which they can be applied:
//! settings, new IP sets, changes of IP sets, policies, profiles, endpoints; then removals the other way round:
//! endpoints, profiles, policies, IP sets. At every point of the stream each reference points to something that was
//! sent before and not yet removed. [`PolicyDelta::InSync`] ends the first batch that follows the datastore's in-sync;
//! before it the dataplane writes nothing.
//!
//! Each key occurs at most once in a batch as an update and once as a removal; nothing is sent that is equal to what
//! was sent before.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What happens to a packet that a rule matches (Calico `action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Accepted by this endpoint in this direction; no further rule is looked at.
    Allow,
    /// Dropped.
    Deny,
    /// Logged; evaluation goes on with the next rule.
    Log,
    /// Leaves this tier; evaluation goes on with the next tier, after the last one with the profiles.
    Pass,
}

/// What happens to a packet at the end of a tier when a policy of the tier applies to the endpoint in this direction
/// and none of its rules decided (Calico `Tier.spec.defaultAction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TierAction {
    #[default]
    Deny,
    Pass,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a prefix.
    pub const fn of_net(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// IP protocol number (IANA).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const ICMP: Self = Self(1);
    pub const IPIP: Self = Self(4);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const ICMPV6: Self = Self(58);
    pub const SCTP: Self = Self(132);
    pub const UDPLITE: Self = Self(136);

    /// The names Calico knows, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        const NAMES: [(&str, Protocol); 6] = [
            ("tcp", Protocol::TCP),
            ("udp", Protocol::UDP),
            ("icmp", Protocol::ICMP),
            ("icmpv6", Protocol::ICMPV6),
            ("sctp", Protocol::SCTP),
            ("udplite", Protocol::UDPLITE),
        ];
        NAMES.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, p)| *p)
    }

    /// Whether packets of it carry port numbers a rule can look at.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMP => f.write_str("icmp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self::SCTP => f.write_str("sctp"),
            Self::UDPLITE => f.write_str("udplite"),
            Self(n) => write!(f, "{n}"),
        }
    }
}

/// Ports `first..=last`; `first <= last` always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// One port.
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    /// `80`, `8080:8090`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// ICMP type and, when given, code. Counts for ICMP or ICMPv6, whichever the rule's protocol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Icmp {
    pub kind: u8,
    /// `None` = any code.
    pub code: Option<u8>,
}

/// Identity of an IP set: `s:` selector, `n:` named port, `svc:` service with its ports, `svcnoport:` service without,
/// each followed by a base64url hash (Calico `unique_id.go`). At most 48 characters, none of them blank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IpSetId(pub Arc<str>);

impl IpSetId {
    /// What its members are: the id says it, so that a set never changes its form while it keeps its name. `None`: no
    /// id of the calculation.
    pub fn kind(&self) -> Option<IpSetKind> {
        match self.0.split_once(':')?.0 {
            "s" | "svcnoport" => Some(IpSetKind::Net),
            "n" | "svc" => Some(IpSetKind::IpPort),
            _ => None,
        }
    }
}

impl fmt::Display for IpSetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the members of an IP set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpSetKind {
    /// Prefixes of both families, `hash:net`. No member covers another one; /0 occurs as its two halves only.
    Net,
    /// Single addresses of both families, `hash:ip`.
    Ip,
    /// Address, protocol and port, `hash:ip,port`.
    IpPort,
}

/// One member of an IP set. A set holds members of both families; the dataplane splits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpSetMember {
    /// In [`IpSetKind::Net`]; host bits are zero.
    Net(IpNet),
    /// In [`IpSetKind::Ip`].
    Ip(IpAddr),
    /// In [`IpSetKind::IpPort`].
    IpPort { address: IpAddr, protocol: Protocol, port: u16 },
}

impl IpSetMember {
    /// The family of the member.
    pub const fn version(&self) -> IpVersion {
        match self {
            Self::Net(net) => IpVersion::of_net(net),
            Self::Ip(address) | Self::IpPort { address, .. } => IpVersion::of(*address),
        }
    }
}

impl fmt::Display for IpSetMember {
    /// As `ipset` writes it: `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1,tcp:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Net(net) => write!(f, "{net}"),
            Self::Ip(address) => write!(f, "{address}"),
            Self::IpPort { address, protocol, port } => write!(f, "{address},{protocol}:{port}"),
        }
    }
}

/// A whole IP set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSet {
    pub id: IpSetId,
    pub kind: IpSetKind,
    pub members: BTreeSet<IpSetMember>,
}

/// A change of an IP set that was sent before. The two lists are disjoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSetDelta {
    pub id: IpSetId,
    /// Not in the set before.
    pub added: Vec<IpSetMember>,
    /// In the set before.
    pub removed: Vec<IpSetMember>,
}

/// What a rule asks of one end of a packet. Every condition that is not empty must hold; within a list of nets or ports
/// one match is enough, of several IP sets all must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    /// Address in one of them. Of both families together; see [`Rule::applies_to`].
    pub nets: Vec<IpNet>,
    /// Address in none of them.
    pub not_nets: Vec<IpNet>,
    /// Address in every one of these sets ([`IpSetKind::Net`] or [`IpSetKind::Ip`]).
    pub sets: Vec<IpSetId>,
    /// Address in none of these sets.
    pub not_sets: Vec<IpSetId>,
    /// Address, protocol and port in every one of these sets ([`IpSetKind::IpPort`]): the rule's `services`.
    pub ip_port_sets: Vec<IpSetId>,
    /// Port in one of these ranges, or in one of `named_ports`; both empty = any port.
    pub ports: Vec<PortRange>,
    /// Address, protocol and port in one of these sets ([`IpSetKind::IpPort`]); an alternative to `ports`.
    pub named_ports: Vec<IpSetId>,
    /// Port in none of these ranges.
    pub not_ports: Vec<PortRange>,
    /// Address, protocol and port in none of these sets.
    pub not_named_ports: Vec<IpSetId>,
}

impl Side {
    /// Every IP set it refers to.
    pub fn ip_sets(&self) -> impl Iterator<Item = &IpSetId> {
        [&self.sets, &self.not_sets, &self.ip_port_sets, &self.named_ports, &self.not_named_ports]
            .into_iter()
            .flatten()
    }

    /// Whether it asks nothing.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }
}

/// One rule, ready to be rendered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub action: Action,
    /// `None` = both families.
    pub ip_version: Option<IpVersion>,
    pub protocol: Option<Protocol>,
    pub not_protocol: Option<Protocol>,
    pub src: Side,
    pub dst: Side,
    /// Set only when `protocol` is ICMP or ICMPv6.
    pub icmp: Option<Icmp>,
    pub not_icmp: Option<Icmp>,
    /// Which rule of the resource this came from, and what names it: for comments, logs and `policy trace`.
    pub why: Why,
}

impl Rule {
    /// A rule without conditions.
    pub fn any(action: Action, why: Why) -> Self {
        Self {
            action,
            ip_version: None,
            protocol: None,
            not_protocol: None,
            src: Side::default(),
            dst: Side::default(),
            icmp: None,
            not_icmp: None,
            why,
        }
    }

    /// Whether a packet of this family can match at all. A rule is for the families of its nets: one whose nets or
    /// notNets of an end are all of the other family, or whose protocol is the other family's ICMP, renders nothing.
    pub fn applies_to(&self, version: IpVersion) -> bool {
        let has = |nets: &[IpNet]| nets.is_empty() || nets.iter().any(|n| IpVersion::of_net(n) == version);
        let other_icmp = match version {
            IpVersion::V4 => Protocol::ICMPV6,
            IpVersion::V6 => Protocol::ICMP,
        };
        self.ip_version.is_none_or(|v| v == version)
            && self.protocol != Some(other_icmp)
            && [&self.src, &self.dst].into_iter().all(|side| has(&side.nets) && has(&side.not_nets))
    }

    /// Every IP set it refers to.
    pub fn ip_sets(&self) -> impl Iterator<Item = &IpSetId> {
        self.src.ip_sets().chain(self.dst.ip_sets())
    }
}

/// Where a rule came from. One written rule may become several (one per protocol and peer of a Kubernetes rule).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Why {
    /// Index in the resource's own list of rules of this direction, from 0.
    pub index: u32,
    /// `metadata.annotations` of the rule, or the name of the rule; at most 256 characters are worth showing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<(String, String)>,
}

/// Kinds of policy that can be active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyKind {
    GlobalNetworkPolicy,
    NetworkPolicy,
    KubernetesNetworkPolicy,
    /// `policy.networking.k8s.io` ClusterNetworkPolicy.
    KubernetesClusterNetworkPolicy,
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    StagedKubernetesNetworkPolicy,
}

impl PolicyKind {
    /// Calico's short form, used in chain names and logs.
    pub const fn short(self) -> &'static str {
        match self {
            Self::GlobalNetworkPolicy => "gnp",
            Self::NetworkPolicy => "np",
            Self::KubernetesNetworkPolicy => "knp",
            Self::KubernetesClusterNetworkPolicy => "kcnp",
            Self::AdminNetworkPolicy => "kanp",
            Self::BaselineAdminNetworkPolicy => "kbanp",
            Self::StagedGlobalNetworkPolicy => "sgnp",
            Self::StagedNetworkPolicy => "snp",
            Self::StagedKubernetesNetworkPolicy => "sknp",
        }
    }

    /// As written in `kind:`, except that Kubernetes' own kinds carry a `Kubernetes` in front.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
            Self::KubernetesClusterNetworkPolicy => "KubernetesClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
        }
    }

    /// Staged policies are never enforced: they are not sent to the dataplane, `verdict` reports what they would do.
    pub const fn is_staged(self) -> bool {
        matches!(
            self,
            Self::StagedGlobalNetworkPolicy | Self::StagedNetworkPolicy | Self::StagedKubernetesNetworkPolicy
        )
    }
}

/// Identity of a policy. The tier is part of it: a policy that moves to another tier is another policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyId {
    pub tier: String,
    pub kind: PolicyKind,
    /// Empty for cluster-wide kinds.
    pub namespace: String,
    pub name: String,
}

impl PolicyId {
    /// `knp/default/allow-frontend`, `gnp/deny-all`: what chain names are made of (Calico v3.32).
    pub fn chain_suffix(&self) -> String {
        if self.namespace.is_empty() {
            format!("{}/{}", self.kind.short(), self.name)
        } else {
            format!("{}/{}/{}", self.kind.short(), self.namespace, self.name)
        }
    }
}

impl fmt::Display for PolicyId {
    /// `NetworkPolicy shop/allow-web (tier default)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.as_str())?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{} (tier {})", self.name, self.tier)
    }
}

/// A policy that applies to at least one endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivePolicy {
    pub id: PolicyId,
    /// Rules for packets towards the endpoint (`ingress`); empty when its types leave ingress out.
    pub inbound: Vec<Rule>,
    /// Rules for packets from the endpoint (`egress`).
    pub outbound: Vec<Rule>,
}

/// A profile some endpoint of this node names. One that does not exist is sent with a rule that denies everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveProfile {
    pub name: String,
    pub inbound: Vec<Rule>,
    pub outbound: Vec<Rule>,
}

/// Identity of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EndpointId {
    /// WorkloadEndpoint.
    Workload { namespace: String, name: String },
    /// HostEndpoint.
    Host { name: String },
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { namespace, name } => write!(f, "WorkloadEndpoint {namespace}/{name}"),
            Self::Host { name } => write!(f, "HostEndpoint {name}"),
        }
    }
}

/// One tier as it applies to one endpoint. At least one of the two lists is not empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointTier {
    pub name: String,
    /// In force per direction only where that direction's list is not empty. Always [`TierAction::Pass`] in
    /// [`HostPolicy::untracked`] and [`HostPolicy::pre_dnat`].
    pub default_action: TierAction,
    /// Policies to apply to packets towards the endpoint, in this order.
    pub ingress: Vec<PolicyId>,
    /// Policies to apply to packets from the endpoint, in this order.
    pub egress: Vec<PolicyId>,
}

/// The interface an endpoint stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Interface {
    /// By name.
    Name(String),
    /// The one that has one of [`EndpointPolicy::addresses`] (a host endpoint with `expectedIPs` only).
    WithAddress,
    /// All host interfaces that no other host endpoint names (`interfaceName: "*"`); never local workload traffic.
    Any,
}

/// What a host endpoint has beside the tiers for its own traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostPolicy {
    /// `doNotTrack`: raw table, stateless, allow = NOTRACK.
    pub untracked: Vec<EndpointTier>,
    /// `preDNAT`: mangle PREROUTING, ingress only.
    pub pre_dnat: Vec<EndpointTier>,
    /// `applyOnForward`: forwarded traffic; empty = forwarded traffic is accepted.
    pub forward: Vec<EndpointTier>,
}

/// Everything the dataplane needs to know to police one endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPolicy {
    pub id: EndpointId,
    pub interface: Interface,
    /// Addresses of the endpoint: sources that are legitimate from a workload, `expectedIPs` of a host endpoint.
    pub addresses: Vec<IpNet>,
    /// Prefixes a workload may use as source beside its addresses
    /// (`cni.projectcalico.org/allowedSourcePrefixes`); none unless [`PolicySettings::source_spoofing`].
    pub allowed_sources: Vec<IpNet>,
    /// MAC inside the pod, `ee:ee:ee:ee:ee:ee`, when known.
    pub mac: Option<String>,
    /// `Some` = drop everything both ways, with the reason: administratively down, or contradictory resources
    /// (fails closed). Failsafe ports of a host endpoint stay open.
    pub closed: Option<String>,
    /// In order of evaluation. For a host endpoint: its own traffic.
    pub tiers: Vec<EndpointTier>,
    /// `Some` for host endpoints, `None` for workloads.
    pub host: Option<HostPolicy>,
    /// After the last tier, in this order.
    pub profiles: Vec<String>,
}

/// What happens to a packet from a workload to its own host after the workload's egress policy accepted it
/// (`FelixConfiguration.defaultEndpointToHostAction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHostAction {
    #[default]
    Drop,
    /// Goes on to the host's own rules and host endpoint policy.
    Return,
    Accept,
}

/// A port of the host that policy never closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Failsafe {
    pub protocol: Protocol,
    pub port: u16,
    /// Only for peers in it.
    pub net: Option<IpNet>,
}

/// Types of ICMPv6: router and neighbour solicitations and advertisements.
pub const NEIGHBOUR_DISCOVERY: [u8; 4] = [133, 134, 135, 136];

/// Types of ICMPv6 that the host takes from its workloads whatever policy says: it is their router and their neighbour, and
/// listens to what they listen to. Not router advertisements: no workload is a router of its host.
pub const FROM_WORKLOADS: [u8; 6] = [130, 131, 132, 133, 135, 136];

/// The part of FelixConfiguration that decides about packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySettings {
    pub to_host: ToHostAction,
    /// Open towards the host on every host endpoint.
    pub failsafe_inbound: Vec<Failsafe>,
    /// Open from the host.
    pub failsafe_outbound: Vec<Failsafe>,
    /// Drop VXLAN (UDP to [`Self::vxlan_port`]) that workloads send, unless allowed.
    pub allow_vxlan_from_workloads: bool,
    /// `vxlanPort`.
    pub vxlan_port: u16,
    /// Drop IPIP (protocol 4) that workloads send, unless allowed.
    pub allow_ipip_from_workloads: bool,
    /// Whether workloads may ask for sources that are not theirs (`workloadSourceSpoofing` is Any). Whoever makes a pod
    /// writes its annotations; this is for whoever runs the cluster to decide.
    pub source_spoofing: bool,
}

impl Default for PolicySettings {
    /// Felix's defaults, but for workload to host: its code says Drop, its manifests, which is what people run, set
    /// Accept.
    fn default() -> Self {
        let list = |protocol: Protocol, ports: &[u16]| -> Vec<Failsafe> {
            ports.iter().map(|port| Failsafe { protocol, port: *port, net: None }).collect()
        };
        let common = [179, 2379, 2380, 5473, 6443, 6666, 6667];
        let (tcp, udp) = (Protocol::TCP, Protocol::UDP);
        Self {
            to_host: ToHostAction::Accept,
            failsafe_inbound: [list(tcp, &[22]), list(udp, &[68]), list(tcp, &common)].concat(),
            failsafe_outbound: [list(udp, &[53, 67]), list(tcp, &common)].concat(),
            allow_vxlan_from_workloads: false,
            vxlan_port: 4789,
            allow_ipip_from_workloads: false,
            source_spoofing: false,
        }
    }
}

impl PolicySettings {
    /// Whether a failsafe port may be reached over IPv6, which nobody does without neighbour discovery: then host endpoints
    /// leave that open, too.
    pub fn failsafe_v6(&self) -> bool {
        let v6 = |f: &Failsafe| f.net.is_none_or(|n| matches!(n, IpNet::V6(_)));
        self.failsafe_inbound.iter().chain(&self.failsafe_outbound).any(v6)
    }
}

/// One step from what the dataplane was told to what is true now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyDelta {
    Settings(PolicySettings),
    /// A set that was not there.
    IpSet(IpSet),
    IpSetDelta(IpSetDelta),
    /// New, or replaces the one with this id.
    Policy(Arc<ActivePolicy>),
    Profile(Arc<ActiveProfile>),
    Endpoint(Arc<EndpointPolicy>),
    EndpointRemove(EndpointId),
    ProfileRemove(String),
    PolicyRemove(PolicyId),
    IpSetRemove(IpSetId),
    /// The state so far is the whole desired state; what is not part of it may be removed from the kernel.
    InSync,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_with_nets_of_one_family_is_for_that_family() {
        let mut rule = Rule::any(Action::Allow, Why::default());
        assert!(rule.applies_to(IpVersion::V4) && rule.applies_to(IpVersion::V6));
        rule.dst.nets = vec!["fd00::/8".parse().expect("a prefix")];
        assert!(!rule.applies_to(IpVersion::V4) && rule.applies_to(IpVersion::V6));
        let mut not = Rule::any(Action::Allow, Why::default());
        not.src.not_nets = vec!["10.0.0.0/8".parse().expect("a prefix")];
        assert!(not.applies_to(IpVersion::V4) && !not.applies_to(IpVersion::V6));
        not.dst.nets = rule.dst.nets;
        assert!(!not.applies_to(IpVersion::V4) && !not.applies_to(IpVersion::V6), "no packet has both");
        let mut icmp = Rule::any(Action::Allow, Why::default());
        icmp.protocol = Some(Protocol::ICMP);
        assert!(icmp.applies_to(IpVersion::V4) && !icmp.applies_to(IpVersion::V6));
    }

    #[test]
    fn members_are_written_as_ipset_reads_them() {
        let show = |m: IpSetMember| m.to_string();
        let ip: IpAddr = "10.0.0.1".parse().expect("an address");
        assert_eq!(show(IpSetMember::Net(ip.into())), "10.0.0.1");
        assert_eq!(show(IpSetMember::Net("10.0.0.0/8".parse().expect("a prefix"))), "10.0.0.0/8");
        let port = IpSetMember::IpPort { address: ip, protocol: Protocol::TCP, port: 80 };
        assert_eq!(show(port), "10.0.0.1,tcp:80");
    }

    #[test]
    fn deltas_survive_json() {
        let delta = PolicyDelta::Settings(PolicySettings::default());
        let text = serde_json::to_string(&delta).expect("plain data");
        assert_eq!(serde_json::from_str::<PolicyDelta>(&text).expect("our own"), delta);
    }
}
