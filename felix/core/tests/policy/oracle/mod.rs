//! The oracle: the sentences of the API documents, one after the other, over JSON. Slow and plain on purpose.

pub(crate) mod generate;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Value, json};

/// One end of a flow.
#[derive(Clone, Debug)]
pub(crate) enum Spot {
    /// Namespace and name of the endpoint.
    Pod(String, String),
    /// The node; whether through the interface with the host endpoint.
    Host(bool),
    Outside(bool),
}

#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) icmp: Option<(u8, u8)>,
    pub(crate) from: Spot,
    pub(crate) to: Spot,
}

pub(crate) type Labels = BTreeMap<String, String>;

/// A selector, and whether labels satisfy it.
pub(crate) type Meaning = (&'static str, fn(&Labels) -> bool);

/// The selectors the generator uses, each with its meaning written by hand.
pub(crate) const SELECTORS: [Meaning; 9] = [
    ("", |_| true),
    ("all()", |_| true),
    ("app == 'a'", |l| l.get("app").is_some_and(|v| v == "a")),
    ("app in {'a', 'b'}", |l| l.get("app").is_some_and(|v| v == "a" || v == "b")),
    ("app != 'a'", |l| l.get("app").is_none_or(|v| v != "a")),
    ("!has(app)", |l| !l.contains_key("app")),
    ("has(tier) && app == 'b'", |l| l.contains_key("tier") && l.get("app").is_some_and(|v| v == "b")),
    ("tier == 'x' || app == 'c'", |l| {
        l.get("tier").is_some_and(|v| v == "x") || l.get("app").is_some_and(|v| v == "c")
    }),
    ("app not in {'b', 'c'}", |l| l.get("app").is_none_or(|v| v != "b" && v != "c")),
];

/// The same for namespaces and service accounts (their own labels).
pub(crate) const GROUPS: [Meaning; 5] = [
    ("all()", |_| true),
    ("team == 'red'", |l| l.get("team").is_some_and(|v| v == "red")),
    ("team != 'red'", |l| l.get("team").is_none_or(|v| v != "red")),
    ("has(team)", |l| l.contains_key("team")),
    ("projectcalico.org/name == 'ns1'", |l| l.get("projectcalico.org/name").is_some_and(|v| v == "ns1")),
];

/// Selectors of cases written by hand, which the generator does not use.
const MORE: [Meaning; 9] = [
    ("app == 'b'", |l| l.get("app").is_some_and(|v| v == "b")),
    ("app == 'c'", |l| l.get("app").is_some_and(|v| v == "c")),
    ("tier == 'x'", |l| l.get("tier").is_some_and(|v| v == "x")),
    ("has(app)", |l| l.contains_key("app")),
    ("role == 'external'", |l| l.get("role").is_some_and(|v| v == "external")),
    ("role == 'host'", |l| l.get("role").is_some_and(|v| v == "host")),
    ("app starts with 'a' || app ends with 'c'", |l| {
        l.get("app").is_some_and(|v| v.starts_with('a') || v.ends_with('c'))
    }),
    ("team == 'blue'", |l| l.get("team").is_some_and(|v| v == "blue")),
    ("!(app == 'a' && tier == 'x')", |l| {
        !(l.get("app").is_some_and(|v| v == "a") && l.get("tier").is_some_and(|v| v == "x"))
    }),
];

fn meaning(table: &[Meaning], text: &str, labels: &Labels) -> bool {
    let (_, holds) = table
        .iter()
        .chain(&MORE)
        .find(|(t, _)| *t == text)
        .unwrap_or_else(|| panic!("{text} is no selector"));
    holds(labels)
}

fn text<'a>(v: &'a Value, at: &str) -> &'a str {
    v.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(v: &'a Value, at: &str) -> Vec<&'a Value> {
    v.pointer(at).and_then(Value::as_array).map(|a| a.iter().collect()).unwrap_or_default()
}

fn labels(v: &Value) -> Labels {
    let map = v.pointer("/metadata/labels").and_then(Value::as_object);
    map.into_iter().flatten().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().into())).collect()
}

/// A policy kind's name, Kubernetes' own NetworkPolicy told apart.
fn kind(v: &Value) -> &str {
    if text(v, "/apiVersion") == "networking.k8s.io/v1" {
        "KubernetesNetworkPolicy"
    } else {
        text(v, "/kind")
    }
}

/// Something that can own an address: a pod, a host endpoint, a network set.
struct Owner<'a> {
    resource: &'a Value,
    labels: Labels,
    /// Empty = none.
    namespace: &'a str,
}

struct World<'a>(&'a [Value]);

impl<'a> World<'a> {
    fn owners(&self, address: IpAddr) -> Vec<Owner<'a>> {
        let mut out = Vec::new();
        for r in self.0 {
            let field = match kind(r) {
                "WorkloadEndpoint" => "/spec/ipNetworks",
                "HostEndpoint" => "/spec/expectedIPs",
                "NetworkSet" | "GlobalNetworkSet" => "/spec/nets",
                _ => continue,
            };
            if list(r, field).iter().any(|n| within(n.as_str().unwrap_or_default(), address)) {
                out.push(self.owner(r));
            }
        }
        out
    }

    fn owner(&self, r: &'a Value) -> Owner<'a> {
        let mut l = labels(r);
        let namespace = text(r, "/metadata/namespace");
        if !namespace.is_empty() {
            l.insert("projectcalico.org/namespace".into(), namespace.into());
        }
        Owner { resource: r, labels: l, namespace }
    }

    fn named(&self, kind: &str, namespace: &str, name: &str) -> Option<&'a Value> {
        self.0.iter().find(|r| {
            self::kind(r) == kind
                && text(r, "/metadata/name") == name
                && text(r, "/metadata/namespace") == namespace
        })
    }

    /// Labels of a namespace; every namespace has its name as a label.
    fn namespace_labels(&self, name: &str) -> Labels {
        let mut l = self.named("Namespace", "", name).map(labels).unwrap_or_default();
        l.insert("projectcalico.org/name".into(), name.into());
        l.insert("kubernetes.io/metadata.name".into(), name.into());
        l
    }

    fn account_labels(&self, namespace: &str, name: &str) -> Labels {
        let mut l = self.named("ServiceAccount", namespace, name).map(labels).unwrap_or_default();
        l.insert("projectcalico.org/name".into(), name.into());
        l
    }
}

fn within(net: &str, address: IpAddr) -> bool {
    match net.parse::<IpNet>() {
        Ok(n) => n.contains(&address),
        Err(_) => net.parse::<IpAddr>() == Ok(address),
    }
}

fn number_of(protocol: &Value) -> u8 {
    match protocol.as_str() {
        Some("TCP") => 6,
        Some("UDP") => 17,
        Some("SCTP") => 132,
        Some("ICMP") => 1,
        Some("ICMPv6") => 58,
        Some(other) => panic!("{other}"),
        None => u8::try_from(protocol.as_u64().expect("a number")).expect("small"),
    }
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// Whether the packet is allowed on its whole way over the node.
pub(crate) fn allowed(resources: &[Value], flow: &Flow) -> bool {
    let w = World(resources);
    let pod = |ns: &str, name: &str| w.named("WorkloadEndpoint", ns, name).expect("the pod is there");
    // `h` is the one of the interface the flow tells of; where that has none, the one for all interfaces.
    let any = w.0.iter().find(|r| kind(r) == "HostEndpoint" && text(r, "/spec/interfaceName") == "*");
    let hep = w.named("HostEndpoint", "", "h");
    let hep_in = |by: bool| hep.filter(|_| by).or(any);
    // Traffic from the pods' own host is never policed.
    if let (Spot::Host(_), Spot::Pod(..) | Spot::Host(_)) = (&flow.from, &flow.to) {
        return true;
    }
    let first = match &flow.from {
        Spot::Pod(ns, name) => {
            // The host is the router and neighbour of its pods; none of them is its router (134).
            let router = flow.icmp.is_some_and(|(kind, _)| [130, 131, 132, 133, 135, 136].contains(&kind));
            if flow.protocol == 58 && router && matches!(flow.to, Spot::Host(_)) {
                return true;
            }
            let vxlan = flow.protocol == 17 && u64::from(flow.dst_port) == vxlan_port(&w);
            !vxlan && flow.protocol != 4 && endpoint(&w, pod(ns, name), flow, "egress")
        }
        Spot::Host(_) => true,
        Spot::Outside(by) => match (hep_in(*by), &flow.to) {
            (None, _) | (_, Spot::Host(_)) => true,
            (Some(h), _) => {
                let open = failsafe(flow, "ingress");
                // A failsafe port is the host's own: what goes on meets the policy for forwarded traffic.
                let early = if open { None } else { early(&w, h, flow, "ingress", false) };
                early.unwrap_or_else(|| forward(&w, h, flow, "ingress"))
            }
        },
    };
    first
        && match (&flow.from, &flow.to) {
            (_, Spot::Pod(ns, name)) => endpoint(&w, pod(ns, name), flow, "ingress"),
            (Spot::Pod(..), Spot::Host(_)) => match to_host(&w) {
                "Drop" => false,
                // Goes on to the host's own policy; a pod's packets come in at no interface with a name.
                "Return" => any.is_none_or(|h| own(&w, h, flow, "ingress", failsafe(flow, "ingress"))),
                _ => true,
            },
            (Spot::Outside(by), Spot::Host(_)) => hep_in(*by).is_none_or(|h| host(&w, h, flow, "ingress")),
            (Spot::Host(_), Spot::Outside(by)) => hep_in(*by).is_none_or(|h| host(&w, h, flow, "egress")),
            (_, Spot::Outside(by)) => hep_in(*by).is_none_or(|h| forward(&w, h, flow, "egress")),
            (Spot::Host(_), Spot::Host(_)) => true,
        }
}

/// defaultEndpointToHostAction of the FelixConfiguration `default`; Accept when it does not say.
fn to_host<'a>(w: &World<'a>) -> &'a str {
    let felix = w.named("FelixConfiguration", "", "default");
    felix.map(|f| text(f, "/spec/defaultEndpointToHostAction")).unwrap_or_default()
}

/// Whether another host endpoint stands for the same interface: then everything but failsafe ports is closed.
fn contested(w: &World<'_>, h: &Value) -> bool {
    // Without a name they are known by addresses, and all there are in these worlds are those of one interface.
    let place = |r: &Value| text(r, "/spec/interfaceName").to_owned();
    w.0.iter().filter(|r| kind(r) == "HostEndpoint" && place(r) == place(h)).count() > 1
}

/// The policy of a host endpoint for the node's own traffic. `open`: to a failsafe port.
fn own(w: &World<'_>, h: &Value, flow: &Flow, direction: &str, open: bool) -> bool {
    open || !contested(w, h) && endpoint(w, h, flow, direction)
}

/// The port of VXLAN, which pods do not send.
fn vxlan_port(w: &World<'_>) -> u64 {
    let felix = w.named("FelixConfiguration", "", "default");
    felix.and_then(|f| f["spec"]["vxlanPort"].as_u64()).unwrap_or(4789)
}

fn host(w: &World<'_>, h: &Value, flow: &Flow, direction: &str) -> bool {
    // Failsafe ports are reached over IPv6 by those who find the host's MAC address.
    let discovery = flow.protocol == 58 && flow.icmp.is_some_and(|(kind, _)| (133..=136).contains(&kind));
    let open = failsafe(flow, direction) || discovery;
    early(w, h, flow, direction, open).unwrap_or_else(|| own(w, h, flow, direction, open))
}

fn failsafe(flow: &Flow, direction: &str) -> bool {
    failsafe_port(flow, direction, flow.dst_port)
}

fn failsafe_port(flow: &Flow, direction: &str, port: u16) -> bool {
    let tcp = [179, 2379, 2380, 5473, 6443, 6666, 6667];
    match (direction, flow.protocol) {
        ("ingress", 6) => port == 22 || tcp.contains(&port),
        ("ingress", 17) => port == 68,
        ("egress", 6) => tcp.contains(&port),
        ("egress", 17) => port == 53 || port == 67,
        _ => false,
    }
}

fn flag(p: &Value, name: &str) -> bool {
    p.pointer(&format!("/spec/{name}")).and_then(Value::as_bool).unwrap_or(false)
}

/// Untracked, then pre-DNAT policy of a host endpoint. Their tiers never drop at the end. `open`: to a failsafe port.
fn early(w: &World<'_>, h: &Value, flow: &Flow, direction: &str, open: bool) -> Option<bool> {
    if contested(w, h) {
        return None;
    }
    for name in ["doNotTrack", "preDNAT"] {
        // Nothing is left untracked on all interfaces at once.
        if name == "doNotTrack" && text(h, "/spec/interfaceName") == "*" {
            continue;
        }
        if name == "preDNAT" && direction == "egress" {
            continue;
        }
        // The failsafes stand before any such policy, whichever direction it has.
        let any = ["ingress", "egress"].iter().any(|d| !applying(w, h, d, &|p| flag(p, name)).is_empty());
        if any && open {
            return Some(true);
        }
        // Without tracking, answers to the failsafe ports of the other direction are told by where they come from.
        let other = if direction == "ingress" { "egress" } else { "ingress" };
        if name == "doNotTrack" && failsafe_port(flow, other, flow.src_port) {
            continue;
        }
        if let Some(decided) = tiers(w, h, flow, direction, &|p| flag(p, name), true) {
            return Some(decided);
        }
    }
    None
}

fn plain(p: &Value) -> bool {
    !flag(p, "doNotTrack") && !flag(p, "preDNAT")
}

fn forward(w: &World<'_>, h: &Value, flow: &Flow, direction: &str) -> bool {
    if contested(w, h) {
        return false;
    }
    tiers(w, h, flow, direction, &|p| plain(p) && flag(p, "applyOnForward"), false).unwrap_or(true)
}

/// Tiers, then profiles.
fn endpoint(w: &World<'_>, e: &Value, flow: &Flow, direction: &str) -> bool {
    if let Some(decided) = tiers(w, e, flow, direction, &plain, false) {
        return decided;
    }
    for name in list(e, "/spec/profiles") {
        let name = name.as_str().expect("a text");
        // The profile of a namespace allows everything, and so does the one that is made for it.
        if name.starts_with("kns.") || name == "projectcalico-default-allow" {
            return true;
        }
        if let Some(p) = w.named("Profile", "", name) {
            for r in list(p, &format!("/spec/{direction}")) {
                if calico_rule(w, r, "", flow) {
                    match text(r, "/action") {
                        "Allow" => return true,
                        "Deny" => return false,
                        _ => {}
                    }
                }
            }
        }
    }
    false
}

/// The policies that apply to an endpoint in a direction.
fn applying<'a>(
    w: &World<'a>,
    e: &Value,
    direction: &str,
    wanted: &dyn Fn(&Value) -> bool,
) -> Vec<&'a Value> {
    let kinds = [
        "NetworkPolicy",
        "GlobalNetworkPolicy",
        "KubernetesNetworkPolicy",
        "ClusterNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
    ];
    let policies = w.0.iter().filter(|p| kinds.contains(&kind(p)) && wanted(p));
    policies.filter(|p| applies(w, p, e) && types(p).contains(&direction)).collect()
}

/// The API of network-policy-api, of all its ages.
fn of_cluster(kind: &str) -> bool {
    ["ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"].contains(&kind)
}

fn types(p: &Value) -> Vec<&'static str> {
    let has = |d: &str| !list(p, &format!("/spec/{d}")).is_empty();
    let field = if kind(p) == "KubernetesNetworkPolicy" { "/spec/policyTypes" } else { "/spec/types" };
    let given: Vec<&str> = list(p, field).iter().filter_map(|t| t.as_str()).collect();
    let (ingress, egress) = match (kind(p), given.is_empty()) {
        (k, _) if of_cluster(k) => (has("ingress"), has("egress")),
        (_, false) => (given.contains(&"Ingress"), given.contains(&"Egress")),
        ("KubernetesNetworkPolicy", true) => (true, has("egress")),
        (_, true) => (has("ingress") || !has("egress"), has("egress")),
    };
    let egress = egress && !flag(p, "preDNAT");
    [(ingress, "ingress"), (egress, "egress")].into_iter().filter(|(yes, _)| *yes).map(|(_, d)| d).collect()
}

fn is_kubernetes_pod(o: &Owner<'_>) -> bool {
    kind(o.resource) == "WorkloadEndpoint"
}

fn applies(w: &World<'_>, p: &Value, e: &Value) -> bool {
    let o = w.owner(e);
    let own = text(p, "/metadata/namespace");
    match kind(p) {
        "KubernetesNetworkPolicy" => {
            is_kubernetes_pod(&o) && o.namespace == own && kubernetes(&p["spec"]["podSelector"], &o.labels)
        }
        k if of_cluster(k) => cluster_peer(w, &p["spec"]["subject"], &o),
        "NetworkPolicy" => {
            o.namespace == own
                && meaning(&SELECTORS, text(p, "/spec/selector"), &o.labels)
                && account(w, text(p, "/spec/serviceAccountSelector"), &o)
        }
        _ => {
            meaning(&SELECTORS, text(p, "/spec/selector"), &o.labels)
                && group(w, text(p, "/spec/namespaceSelector"), &o)
                && account(w, text(p, "/spec/serviceAccountSelector"), &o)
        }
    }
}

/// Whether the owner is in a namespace with such labels; an empty selector asks nothing.
fn group(w: &World<'_>, selector: &str, o: &Owner<'_>) -> bool {
    match selector {
        "" => true,
        "global()" => o.namespace.is_empty(),
        s => !o.namespace.is_empty() && meaning(&GROUPS, s, &w.namespace_labels(o.namespace)),
    }
}

fn account(w: &World<'_>, selector: &str, o: &Owner<'_>) -> bool {
    let name = text(o.resource, "/spec/serviceAccountName");
    selector.is_empty()
        || !name.is_empty() && meaning(&GROUPS, selector, &w.account_labels(o.namespace, name))
}

/// `None` = no tier decided.
fn tiers(
    w: &World<'_>,
    e: &Value,
    flow: &Flow,
    direction: &str,
    wanted: &dyn Fn(&Value) -> bool,
    never_drops: bool,
) -> Option<bool> {
    let mut all = applying(w, e, direction, wanted);
    let infinity = |v: Option<f64>| v.unwrap_or(f64::INFINITY);
    let tier = |p: &Value| match kind(p) {
        "KubernetesNetworkPolicy" => "default".to_owned(),
        "ClusterNetworkPolicy" if text(p, "/spec/tier") == "Admin" => "kube-admin".into(),
        "ClusterNetworkPolicy" => "kube-baseline".into(),
        "AdminNetworkPolicy" => "adminnetworkpolicy".into(),
        "BaselineAdminNetworkPolicy" => "baselineadminnetworkpolicy".into(),
        _ if text(p, "/spec/tier").is_empty() => "default".into(),
        _ => text(p, "/spec/tier").to_owned(),
    };
    let about = |name: &str| match name {
        "default" => (1_000_000.0, false),
        "kube-admin" | "adminnetworkpolicy" => (1000.0, true),
        "kube-baseline" | "baselineadminnetworkpolicy" => (10_000_000.0, true),
        name => {
            let t = w.named("Tier", "", name).expect("the tier is there");
            (infinity(t["spec"]["order"].as_f64()), text(t, "/spec/defaultAction") == "Pass")
        }
    };
    let order = |p: &Value| match kind(p) {
        "KubernetesNetworkPolicy" => 1000.0,
        k if of_cluster(k) => infinity(p["spec"]["priority"].as_f64()),
        _ => infinity(p["spec"]["order"].as_f64()),
    };
    all.sort_by(|a, b| {
        about(&tier(a)).0.total_cmp(&about(&tier(b)).0).then_with(|| tier(a).cmp(&tier(b))).then_with(|| {
            order(a).total_cmp(&order(b)).then_with(|| {
                let names = |p: &Value| {
                    (text(p, "/metadata/name").to_owned(), text(p, "/metadata/namespace").to_owned())
                };
                names(a).cmp(&names(b))
            })
        })
    });
    let mut names: Vec<String> = all.iter().map(|p| tier(p)).collect();
    names.dedup();
    'tiers: for name in names {
        for p in all.iter().filter(|p| tier(p) == name) {
            for r in list(p, &format!("/spec/{direction}")) {
                let matches = match kind(p) {
                    "KubernetesNetworkPolicy" => {
                        kubernetes_rule(w, r, text(p, "/metadata/namespace"), flow, direction)
                    }
                    k if of_cluster(k) => cluster_rule(w, r, flow, direction),
                    _ => calico_rule(w, r, text(p, "/metadata/namespace"), flow),
                };
                if !matches {
                    continue;
                }
                match (kind(p), text(r, "/action")) {
                    ("KubernetesNetworkPolicy", _) | (_, "Allow" | "Accept") => return Some(true),
                    (_, "Deny") => return Some(false),
                    (_, "Pass") => continue 'tiers,
                    _ => {}
                }
            }
        }
        if !about(&name).1 && !never_drops {
            return Some(false);
        }
    }
    None
}

fn calico_rule(w: &World<'_>, r: &Value, namespace: &str, flow: &Flow) -> bool {
    let version = if flow.src.is_ipv4() { 4 } else { 6 };
    let icmp = |f: &Value| {
        flow.icmp.is_some_and(|(kind, code)| {
            f["type"].as_u64() == Some(u64::from(kind))
                && f["code"].as_u64().is_none_or(|c| c == u64::from(code))
        })
    };
    let given = |name: &str| r.get(name).filter(|v| !v.is_null());
    // All networks of a rule are of one family, and so are the packets it is about.
    let lists = ["/source/nets", "/source/notNets", "/destination/nets", "/destination/notNets"];
    let other = |n: &&Value| n.as_str().is_some_and(|n| n.contains(':')) != (version == 6);
    if lists.iter().flat_map(|at| list(r, at)).any(|n| other(&n)) {
        return false;
    }
    given("ipVersion").is_none_or(|v| v.as_u64() == Some(version))
        && given("protocol").is_none_or(|p| number_of(p) == flow.protocol)
        && given("notProtocol").is_none_or(|p| number_of(p) != flow.protocol)
        && given("icmp").is_none_or(icmp)
        && given("notICMP").is_none_or(|f| !icmp(f))
        && given("source")
            .is_none_or(|s| entity(w, s, namespace, flow.src, flow.src_port, flow.protocol, false))
        && given("destination")
            .is_none_or(|d| entity(w, d, namespace, flow.dst, flow.dst_port, flow.protocol, true))
}

fn entity(
    w: &World<'_>,
    e: &Value,
    namespace: &str,
    address: IpAddr,
    port: u16,
    protocol: u8,
    dst: bool,
) -> bool {
    let nets = |name: &str| list(e, &format!("/{name}"));
    let inside = |n: &&Value| within(n.as_str().expect("a text"), address);
    if !nets("nets").is_empty() && !nets("nets").iter().any(inside) || nets("notNets").iter().any(inside) {
        return false;
    }
    if let Some(s) = e.get("services") {
        let ns = if text(s, "/namespace").is_empty() { namespace } else { text(s, "/namespace") };
        return service(w, ns, text(s, "/name"), address, port, protocol, dst);
    }
    let owners = w.owners(address);
    let (selector, not_selector) = (text(e, "/selector"), text(e, "/notSelector"));
    let names: Vec<&str> = list(e, "/serviceAccounts/names").iter().filter_map(|n| n.as_str()).collect();
    let accounts = text(e, "/serviceAccounts/selector");
    let groups = text(e, "/namespaceSelector");
    let asks = !selector.is_empty() || !not_selector.is_empty() || !names.is_empty() || !accounts.is_empty();
    // In a namespaced policy, selectors without a namespaceSelector are about its own namespace.
    let own = !namespace.is_empty() && groups.is_empty() && asks;
    let positive =
        !selector.is_empty() || !names.is_empty() || !accounts.is_empty() || !groups.is_empty() || own;
    let holds = |o: &Owner<'_>| {
        meaning(&SELECTORS, selector, &o.labels)
            && (names.is_empty() || names.contains(&text(o.resource, "/spec/serviceAccountName")))
            && account(w, accounts, o)
            && group(w, groups, o)
            && (!own || o.namespace == namespace)
            && (not_selector.is_empty() || !positive || !meaning(&SELECTORS, not_selector, &o.labels))
    };
    if positive && !owners.iter().any(holds) {
        return false;
    }
    if !positive
        && !not_selector.is_empty()
        && owners.iter().any(|o| meaning(&SELECTORS, not_selector, &o.labels))
    {
        return false;
    }
    let port_is = |p: &&Value| match p {
        Value::Number(n) => has_ports(protocol) && n.as_u64() == Some(u64::from(port)),
        Value::String(t) => match t.split_once(':') {
            Some((a, b)) => {
                let n = |t: &str| t.parse::<u16>().expect("a number");
                has_ports(protocol) && (n(a)..=n(b)).contains(&port)
            }
            None => owners.iter().any(|o| holds(o) && names_port(o, t, protocol, port)),
        },
        _ => panic!("{p}"),
    };
    let ports = list(e, "/ports");
    (ports.is_empty() || ports.iter().any(port_is)) && !list(e, "/notPorts").iter().any(port_is)
}

fn names_port(o: &Owner<'_>, name: &str, protocol: u8, port: u16) -> bool {
    list(o.resource, "/spec/ports").iter().any(|p| {
        text(p, "/name") == name
            && number_of(&p["protocol"]) == protocol
            && p["port"].as_u64() == Some(u64::from(port))
    })
}

fn service(w: &World<'_>, ns: &str, name: &str, address: IpAddr, port: u16, protocol: u8, dst: bool) -> bool {
    w.0.iter().filter(|r| kind(r) == "EndpointSlice" && text(r, "/metadata/namespace") == ns).any(|s| {
        labels(s).get("kubernetes.io/service-name").is_some_and(|n| n == name)
            && list(s, "/endpoints")
                .iter()
                .any(|e| list(e, "/addresses").iter().any(|a| within(a.as_str().expect("a text"), address)))
            && (!dst
                || list(s, "/ports").iter().any(|p| {
                    p["port"].as_u64() == Some(u64::from(port)) && number_of(&p["protocol"]) == protocol
                }))
    })
}

/// `metav1.LabelSelector`.
fn kubernetes(selector: &Value, labels: &Labels) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    equal.into_iter().all(|(k, v)| labels.get(k).map(String::as_str) == v.as_str())
        && list(selector, "/matchExpressions").iter().all(|e| {
            let value = labels.get(text(e, "/key"));
            let among = |v: &String| list(e, "/values").contains(&&json!(v));
            match text(e, "/operator") {
                "In" => value.is_some_and(among),
                "NotIn" => !value.is_some_and(among),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other}"),
            }
        })
}

fn kubernetes_rule(w: &World<'_>, r: &Value, namespace: &str, flow: &Flow, direction: &str) -> bool {
    let (peers, address) = match direction {
        "ingress" => (list(r, "/from"), flow.src),
        _ => (list(r, "/to"), flow.dst),
    };
    let peer = |p: &&Value| {
        if let Some(block) = p.get("ipBlock") {
            return within(text(block, "/cidr"), address)
                && !list(block, "/except").iter().any(|e| within(e.as_str().expect("a text"), address));
        }
        w.owners(address).iter().filter(|o| is_kubernetes_pod(o)).any(|o| {
            let there = match p.get("namespaceSelector") {
                Some(s) => kubernetes(s, &w.namespace_labels(o.namespace)),
                None => o.namespace == namespace,
            };
            there && p.get("podSelector").is_none_or(|s| kubernetes(s, &o.labels))
        })
    };
    let destination = w.owners(flow.dst);
    let port = |p: &&Value| {
        let protocol = p.get("protocol").map_or(6, number_of);
        protocol == flow.protocol
            && match (p.get("port"), p.get("endPort").and_then(Value::as_u64)) {
                (None, _) => true,
                (Some(Value::String(name)), _) => {
                    // A named port is one of the destination pod; with peers of egress, of such a peer.
                    destination.iter().any(|o| names_port(o, name, protocol, flow.dst_port))
                }
                (Some(n), end) => {
                    let first = n.as_u64().expect("a number");
                    (first..=end.unwrap_or(first)).contains(&u64::from(flow.dst_port))
                }
            }
    };
    let ports = list(r, "/ports");
    (peers.is_empty() || peers.iter().any(peer)) && (ports.is_empty() || ports.iter().any(port))
}

fn cluster_peer(w: &World<'_>, p: &Value, o: &Owner<'_>) -> bool {
    if !is_kubernetes_pod(o) {
        return false;
    }
    match (p.get("namespaces"), p.get("pods")) {
        (Some(ns), _) => kubernetes(ns, &w.namespace_labels(o.namespace)),
        (_, Some(pods)) => {
            kubernetes(&pods["namespaceSelector"], &w.namespace_labels(o.namespace))
                && kubernetes(&pods["podSelector"], &o.labels)
        }
        _ => false,
    }
}

fn cluster_rule(w: &World<'_>, r: &Value, flow: &Flow, direction: &str) -> bool {
    let (peers, address) = match direction {
        "ingress" => (list(r, "/from"), flow.src),
        _ => (list(r, "/to"), flow.dst),
    };
    let peer = |p: &&Value| {
        list(p, "/networks").iter().any(|n| within(n.as_str().expect("a text"), address))
            || w.owners(address).iter().any(|o| cluster_peer(w, p, o))
    };
    let protocol = |p: &&Value| {
        if let Some(name) = p.get("destinationNamedPort").and_then(Value::as_str) {
            return w.owners(flow.dst).iter().any(|o| names_port(o, name, flow.protocol, flow.dst_port));
        }
        [("tcp", 6), ("udp", 17), ("sctp", 132)].iter().any(|(name, number)| {
            p.get(*name).is_some_and(|ports| {
                let port = &ports["destinationPort"];
                let n = u64::from(flow.dst_port);
                *number == flow.protocol
                    && (port.is_null()
                        || port["number"].as_u64() == Some(n)
                        || port.get("range").is_some_and(|r| {
                            r["start"].as_u64().is_some_and(|s| s <= n)
                                && r["end"].as_u64().is_some_and(|e| n <= e)
                        }))
            })
        })
    };
    // AdminNetworkPolicy says the same in other words.
    let port = |p: &&Value| {
        let n = u64::from(flow.dst_port);
        if let Some(name) = p.get("namedPort").and_then(Value::as_str) {
            return w.owners(flow.dst).iter().any(|o| names_port(o, name, flow.protocol, flow.dst_port));
        }
        let (one, range) = (&p["portNumber"], &p["portRange"]);
        let of = |v: &Value| v.get("protocol").map_or(6, number_of) == flow.protocol;
        one.is_object() && of(one) && one["port"].as_u64() == Some(n)
            || range.is_object()
                && of(range)
                && range["start"].as_u64().is_some_and(|s| s <= n)
                && range["end"].as_u64().is_some_and(|e| n <= e)
    };
    let (protocols, ports) = (list(r, "/protocols"), list(r, "/ports"));
    peers.iter().any(peer)
        && (protocols.is_empty() || protocols.iter().any(protocol))
        && (ports.is_empty() || ports.iter().any(port))
}
