//! The tables of `get`: for each kind calicoctl's headings, narrow and wide, and what stands under them. Over JSON
//! values, so that a resource of a newer version is shown all the same.

use serde_json::Value;

/// What every row may need beside its resource.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The AS number of the cluster, for nodes without one of their own.
    pub(crate) asn: String,
}

/// One column.
pub(crate) struct Col {
    pub(crate) heading: &'static str,
    pub(crate) cell: fn(&Value, &Facts) -> String,
    /// Only in the wide table.
    pub(crate) wide: bool,
    /// Only in the narrow table.
    pub(crate) narrow: bool,
}

const fn both(heading: &'static str, cell: fn(&Value, &Facts) -> String) -> Col {
    Col { heading, cell, wide: false, narrow: false }
}

const fn wide(heading: &'static str, cell: fn(&Value, &Facts) -> String) -> Col {
    Col { heading, cell, wide: true, narrow: false }
}

/// What a dotted path leads to.
pub(crate) fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |v, member| v.get(member))
}

/// The same as text; empty when there is nothing.
fn text(value: &Value, path: &str) -> String {
    match at(value, path) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(items)) => {
            let all: Vec<String> =
                items.iter().map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned)).collect();
            all.join(",")
        }
        Some(other) => other.to_string(),
    }
}

fn or(value: String, default: &str) -> String {
    if value.is_empty() { default.to_owned() } else { value }
}

fn count(value: &Value, path: &str) -> String {
    at(value, path).and_then(Value::as_array).map_or(0, Vec::len).to_string()
}

/// Long lists are cut, as calicoctl does.
fn cut(text: String) -> String {
    const LONGEST: usize = 80;
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST - 3).chain("...".chars()).collect()
}

fn name(v: &Value, _: &Facts) -> String {
    text(v, "metadata.name")
}

fn spec_order(v: &Value, _: &Facts) -> String {
    text(v, "spec.order")
}

fn spec_selector(v: &Value, _: &Facts) -> String {
    text(v, "spec.selector")
}

fn tier(v: &Value, _: &Facts) -> String {
    or(text(v, "spec.tier"), "default")
}

fn labels(v: &Value, _: &Facts) -> String {
    let of = at(v, "spec.labelsToApply").or_else(|| at(v, "metadata.labels")).and_then(Value::as_object);
    let all: Vec<String> =
        of.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    cut(all.join(","))
}

/// Where a BGPPeer applies.
fn peer_node(v: &Value, _: &Facts) -> String {
    let node = or(text(v, "spec.node"), &text(v, "spec.nodeSelector"));
    or(node, "(global)")
}

/// A node's AS number; in parentheses when it is the cluster's.
fn node_asn(v: &Value, facts: &Facts) -> String {
    let own = text(v, "spec.bgp.asNumber");
    if own.is_empty() { format!("({})", facts.asn) } else { own }
}

/// The prefix length of a pool's blocks: 26 (IPv4) or 122 (IPv6) unless it says otherwise.
fn block_size(v: &Value, _: &Facts) -> String {
    let default = if text(v, "spec.cidr").contains(':') { "122" } else { "26" };
    or(text(v, "spec.blockSize"), default)
}

static NAME_ONLY: [Col; 1] = [both("NAME", name)];
static LABELLED: [Col; 2] = [both("NAME", name), wide("LABELS", labels)];
static SETS: [Col; 2] = [both("NAME", name), wide("NETS", |v, _| cut(text(v, "spec.nets")))];
static POLICY: [Col; 4] =
    [both("NAME", name), both("TIER", tier), wide("ORDER", spec_order), wide("SELECTOR", spec_selector)];
static STAGED_KUBERNETES: [Col; 2] =
    [both("NAME", name), wide("PODSELECTOR", |v, _| text(v, "spec.podSelector"))];
static TIERS: [Col; 2] = [both("NAME", name), both("ORDER", |v, _| or(text(v, "spec.order"), "<nil>"))];
static POOLS: [Col; 10] = [
    both("NAME", name),
    both("CIDR", |v, _| text(v, "spec.cidr")),
    wide("NAT", |v, _| or(text(v, "spec.natOutgoing"), "false")),
    wide("IPIPMODE", |v, _| or(text(v, "spec.ipipMode"), "Never")),
    wide("VXLANMODE", |v, _| or(text(v, "spec.vxlanMode"), "Never")),
    wide("DISABLED", |v, _| or(text(v, "spec.disabled"), "false")),
    wide("DISABLEBGPEXPORT", |v, _| or(text(v, "spec.disableBGPExport"), "false")),
    both("SELECTOR", |v, _| or(text(v, "spec.nodeSelector"), "all()")),
    wide("ASSIGNMENTMODE", |v, _| or(text(v, "spec.assignmentMode"), "Automatic")),
    wide("BLOCKSIZE", block_size),
];
static RESERVATIONS: [Col; 2] =
    [both("NAME", name), wide("CIDRS", |v, _| cut(text(v, "spec.reservedCIDRs")))];
static IPAM_CONFIGURATION: [Col; 4] = [
    both("NAME", name),
    both("STRICTAFFINITY", |v, _| or(text(v, "spec.strictAffinity"), "false")),
    both("AUTOALLOCATEBLOCKS", |v, _| or(text(v, "spec.autoAllocateBlocks"), "true")),
    wide("MAXBLOCKSPERHOST", |v, _| or(text(v, "spec.maxBlocksPerHost"), "0")),
];
static BLOCKS: [Col; 4] = [
    both("NAME", name),
    both("CIDR", |v, _| text(v, "spec.cidr")),
    both("AFFINITY", |v, _| or(text(v, "spec.affinity"), "<none>")),
    both("FREE", |v, _| count(v, "spec.unallocated")),
];
static AFFINITIES: [Col; 4] = [
    both("NAME", name),
    both("NODE", |v, _| text(v, "spec.node")),
    both("CIDR", |v, _| text(v, "spec.cidr")),
    both("STATE", |v, _| text(v, "spec.state")),
];
static NODES: [Col; 4] = [
    both("NAME", name),
    wide("ASN", node_asn),
    wide("IPV4", |v, _| text(v, "spec.bgp.ipv4Address")),
    wide("IPV6", |v, _| text(v, "spec.bgp.ipv6Address")),
];
static BGP_CONFIGURATION: [Col; 4] = [
    both("NAME", name),
    both("LOGSEVERITY", |v, _| or(text(v, "spec.logSeverityScreen"), "Info")),
    both("MESHENABLED", |v, _| or(text(v, "spec.nodeToNodeMeshEnabled"), "-")),
    both("ASNUMBER", |v, _| or(text(v, "spec.asNumber"), "-")),
];
static PEERS: [Col; 4] = [
    both("NAME", name),
    both("PEERIP", |v, _| text(v, "spec.peerIP")),
    both("NODE", peer_node),
    both("ASN", |v, _| or(text(v, "spec.asNumber"), "0")),
];
static FILTERS: [Col; 5] = [
    both("NAME", name),
    both("NUMEXPORTV4", |v, _| count(v, "spec.exportV4")),
    both("NUMIMPORTV4", |v, _| count(v, "spec.importV4")),
    both("NUMEXPORTV6", |v, _| count(v, "spec.exportV6")),
    both("NUMIMPORTV6", |v, _| count(v, "spec.importV6")),
];
static CLUSTER: [Col; 5] = [
    both("NAME", name),
    both("CLUSTERGUID", |v, _| text(v, "spec.clusterGUID")),
    both("CLUSTERTYPE", |v, _| text(v, "spec.clusterType")),
    both("CALICOVERSION", |v, _| text(v, "spec.calicoVersion")),
    both("DATASTOREREADY", |v, _| text(v, "spec.datastoreReady")),
];
static HOST_ENDPOINTS: [Col; 5] = [
    both("NAME", name),
    both("NODE", |v, _| text(v, "spec.node")),
    wide("INTERFACE", |v, _| text(v, "spec.interfaceName")),
    wide("IPS", |v, _| text(v, "spec.expectedIPs")),
    wide("PROFILES", |v, _| text(v, "spec.profiles")),
];
static NODE_STATUS: [Col; 3] = [
    both("NAME", name),
    both("NODE", |v, _| text(v, "spec.node")),
    wide("CLASSES", |v, _| text(v, "spec.classes")),
];
/// External addresses and those a load balancer gave, in one cell as kubectl has it.
fn outside_addresses(v: &Value, _: &Facts) -> String {
    let given = at(v, "status.loadBalancer.ingress").and_then(Value::as_array);
    let given = given.into_iter().flatten().map(|i| or(text(i, "ip"), &text(i, "hostname")));
    let all: Vec<String> = given.chain([text(v, "spec.externalIPs")]).filter(|t| !t.is_empty()).collect();
    or(all.join(","), "<none>")
}

fn service_ports(v: &Value, _: &Facts) -> String {
    let port = |p: &Value| format!("{}/{}", text(p, "port"), or(text(p, "protocol"), "TCP"));
    let all = at(v, "spec.ports").and_then(Value::as_array);
    all.into_iter().flatten().map(port).collect::<Vec<_>>().join(",")
}

static SERVICES: [Col; 7] = [
    both("NAME", name),
    both("TYPE", |v, _| or(text(v, "spec.type"), "ClusterIP")),
    both("CLUSTER-IP", |v, _| or(or(text(v, "spec.clusterIPs"), &text(v, "spec.clusterIP")), "<none>")),
    both("EXTERNAL-IP", outside_addresses),
    both("PORT(S)", service_ports),
    wide("EXTERNALPOLICY", |v, _| or(text(v, "spec.externalTrafficPolicy"), "Cluster")),
    wide("INTERNALPOLICY", |v, _| or(text(v, "spec.internalTrafficPolicy"), "Cluster")),
];
static SLICES: [Col; 4] = [
    both("NAME", name),
    both("SERVICE", |v, _| service_of_slice(v)),
    both("ADDRESSTYPE", |v, _| text(v, "addressType")),
    both("ENDPOINTS", |v, _| count(v, "endpoints")),
];

/// The label has dots in its name, which [`at`] would take for steps.
fn service_of_slice(v: &Value) -> String {
    let label = at(v, "metadata.labels").and_then(|l| l.get("kubernetes.io/service-name"));
    or(label.and_then(Value::as_str).unwrap_or_default().to_owned(), "<none>")
}

static ENDPOINTS: [Col; 7] = [
    wide("NAME", name),
    both("WORKLOAD", |v, _| or(text(v, "spec.pod"), &text(v, "spec.workload"))),
    both("NODE", |v, _| text(v, "spec.node")),
    both("NETWORKS", |v, _| text(v, "spec.ipNetworks")),
    both("INTERFACE", |v, _| text(v, "spec.interfaceName")),
    wide("PROFILES", |v, _| text(v, "spec.profiles")),
    wide("NATS", |v, _| text(v, "spec.ipNATs")),
];

/// The columns of a kind, by the name in `kind:`.
pub(crate) fn of(kind: &str) -> &'static [Col] {
    match kind {
        "IPPool" => &POOLS,
        "IPReservation" => &RESERVATIONS,
        "IPAMConfiguration" => &IPAM_CONFIGURATION,
        "IPAMBlock" => &BLOCKS,
        "BlockAffinity" => &AFFINITIES,
        "Node" => &NODES,
        "BGPConfiguration" => &BGP_CONFIGURATION,
        "BGPPeer" => &PEERS,
        "BGPFilter" => &FILTERS,
        "ClusterInformation" => &CLUSTER,
        "WorkloadEndpoint" => &ENDPOINTS,
        "HostEndpoint" => &HOST_ENDPOINTS,
        "CalicoNodeStatus" => &NODE_STATUS,
        "Service" => &SERVICES,
        "EndpointSlice" => &SLICES,
        "GlobalNetworkPolicy" | "NetworkPolicy" | "StagedGlobalNetworkPolicy" | "StagedNetworkPolicy" => {
            &POLICY
        }
        "StagedKubernetesNetworkPolicy" => &STAGED_KUBERNETES,
        "GlobalNetworkSet" | "NetworkSet" => &SETS,
        "Tier" => &TIERS,
        "Profile" => &LABELLED,
        _ => &NAME_ONLY,
    }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::Kind;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_has_a_table_that_fits_its_emptiest_resource() {
        let facts = Facts { asn: "64512".into() };
        for kind in Kind::ALL {
            let empty = json!({"metadata": {"name": "x"}});
            let cells: Vec<String> = of(kind.as_str()).iter().map(|c| (c.cell)(&empty, &facts)).collect();
            assert!(cells.contains(&"x".to_owned()), "{kind}: {cells:?}");
        }
    }

    #[test]
    fn an_inherited_as_number_stands_in_parentheses() {
        let facts = Facts { asn: "64512".into() };
        assert_eq!(node_asn(&json!({"spec": {}}), &facts), "(64512)");
        assert_eq!(node_asn(&json!({"spec": {"bgp": {"asNumber": 65001}}}), &facts), "65001");
    }
}
