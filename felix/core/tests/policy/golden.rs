//! Whole rule sets as they are written into an empty kernel, kept in `golden/`: whoever changes what is rendered sees each
//! line of it. `BRINDLE_GENERATE=1` writes the files anew; read the difference before it is committed.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, sync::Arc};

use brindle_config_core::{
    Key, Kind,
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix_core::{
    calc::{Graph, Scope},
    inputs::Inputs,
    rules::{
        around,
        ir::{Family, Table},
        layout::Layout,
        model::{Model, TextCache},
        nft_plan,
        policy::Style,
        sets,
        table_plan::{self, Leftovers},
    },
};
use serde_json::{Value, json};

fn calico(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    let mut meta = json!({ "name": name });
    if !namespace.is_empty() {
        meta["namespace"] = namespace.into();
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": meta, "spec": spec})
}

fn pod(name: &str, device: &str, app: &str, third: u8) -> Value {
    let mut r = calico(
        "WorkloadEndpoint",
        "shop",
        name,
        json!({"orchestrator": "k8s", "node": "n1", "endpoint": "eth0", "interfaceName": device,
            "profiles": ["kns.shop"], "ipNetworks": [format!("10.0.0.{third}/32"), format!("fd00::{third}/128")],
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]}),
    );
    r["metadata"]["labels"] = json!({"app": app, "projectcalico.org/orchestrator": "k8s"});
    r
}

/// Two pods, one of another plugin's, a host endpoint, three tiers, pools, a service; every action, ports by number,
/// range and name, ICMP, networks, sets, untracked policy and policy before DNAT.
fn resources() -> Vec<Value> {
    let mut host = calico(
        "HostEndpoint",
        "",
        "uplink",
        json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.1"]}),
    );
    host["metadata"]["labels"] = json!({"role": "host"});
    let k8s = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}},
                    {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"]}}],
                "ports": [{"port": "http"}, {"port": 9000, "endPort": 9100}]}],
            "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]}]}});
    vec![
        calico(
            "FelixConfiguration",
            "",
            "default",
            json!({"defaultEndpointToHostAction": "Return", "natOutgoingExclusions": "IPPoolsAndHostIPs"}),
        ),
        calico("IPPool", "", "v4", json!({"cidr": "10.0.0.0/16", "natOutgoing": true, "ipipMode": "Always"})),
        calico("IPPool", "", "v6", json!({"cidr": "fd00::/64", "natOutgoing": true})),
        calico("Node", "", "n1", json!({"bgp": {"ipv4Address": "192.0.2.1/24"}})),
        calico("Node", "", "n2", json!({"bgp": {"ipv4Address": "192.0.2.2/24"}})),
        json!({"apiVersion": "v1", "kind": "Namespace", "spec": {},
            "metadata": {"name": "shop", "labels": {"team": "red"}}}),
        pod("web", "cali0a1", "web", 2),
        pod("db", "cali0b2", "db", 3),
        pod("guest", "veth7", "guest", 4),
        host,
        calico("GlobalNetworkSet", "", "bad", json!({"nets": ["198.51.100.0/24", "fd01::/64"]})),
        calico("Tier", "", "security", json!({"order": 10, "defaultAction": "Deny"})),
        calico("Tier", "", "late", json!({"order": 2_000_000, "defaultAction": "Pass"})),
        calico(
            "GlobalNetworkPolicy",
            "",
            "security.watch",
            json!({"tier": "security", "order": 1, "selector": "app == 'web'", "types": ["Ingress", "Egress"],
                "ingress": [{"action": "Log", "protocol": "TCP", "destination": {"ports": [22]}},
                    {"action": "Deny", "source": {"nets": ["198.51.100.0/24"]}},
                    {"action": "Deny", "source": {"nets": ["fd01::/64"]}},
                    {"action": "Pass"}],
                "egress": [{"action": "Deny", "protocol": "ICMP", "icmp": {"type": 8, "code": 0}},
                    {"action": "Allow", "destination": {"services": {"name": "db", "namespace": "shop"}}},
                    {"action": "Pass"}]}),
        ),
        calico(
            "NetworkPolicy",
            "shop",
            "late.db",
            json!({"tier": "late", "order": 5, "selector": "app != 'web'", "types": ["Ingress"],
                "ingress": [{"action": "Allow", "protocol": "SCTP", "notProtocol": "UDPLite",
                    "source": {"selector": "has(app)", "notNets": ["10.0.0.9/32"]},
                    "destination": {"ports": [80, "443:444", 8000, 8001, 8002, 8003, 8004, 8005, 8006, 8007, 8008,
                        8009, 8010, 8011, 8012], "notPorts": [1]}}]}),
        ),
        // Three for those that are not `web`: a list that has a chain of its own.
        calico(
            "GlobalNetworkPolicy",
            "",
            "late.dns",
            json!({"tier": "late", "order": 6, "selector": "has(app)", "types": ["Ingress", "Egress"],
                "ingress": [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [53]}}],
                "egress": [{"action": "Pass"}]}),
        ),
        calico(
            "GlobalNetworkPolicy",
            "",
            "late.ntp",
            json!({"tier": "late", "order": 7, "selector": "has(app)", "types": ["Ingress"],
                "ingress": [{"action": "Deny", "protocol": "UDP", "destination": {"ports": [123]}}]}),
        ),
        calico(
            "GlobalNetworkPolicy",
            "",
            "default.host",
            json!({"order": 1, "selector": "role == 'host'", "types": ["Ingress", "Egress"], "applyOnForward": true,
                "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [443]}}],
                "egress": [{"action": "Allow"}]}),
        ),
        calico(
            "GlobalNetworkPolicy",
            "",
            "default.early",
            json!({"order": 2, "selector": "role == 'host'", "types": ["Ingress"], "applyOnForward": true, "preDNAT": true,
                "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": ["30000:32767"]}}]}),
        ),
        calico(
            "GlobalNetworkPolicy",
            "",
            "default.raw",
            json!({"order": 3, "selector": "role == 'host'", "applyOnForward": true, "doNotTrack": true,
                "ingress": [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [123]}}],
                "egress": [{"action": "Allow", "protocol": "UDP", "source": {"ports": [123]}}]}),
        ),
        k8s,
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "spec": {}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.3"]}],
            "ports": [{"name": "", "protocol": "TCP", "port": 5432}]}),
    ]
}

fn key(r: &Value) -> Key {
    let text = |at: &str| r.pointer(at).and_then(Value::as_str);
    let kind =
        Kind::parse_written(text("/apiVersion"), text("/kind").expect("a kind")).expect("a known kind");
    Key::new(kind, text("/metadata/namespace"), text("/metadata/name").expect("a name"))
}

fn layout(family: Family, nft: bool) -> Layout {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    let mut inputs = Inputs::new("n1");
    for r in resources() {
        let (key, value) = (key(&r), Arc::new(r));
        graph.put(&key, &value);
        inputs.apply(&SyncEvent::Upsert(Entry { key, revision: Revision(1), value }));
    }
    graph.set_in_sync();
    assert!(graph.problems().is_empty(), "{:?}", graph.problems());
    let mut model = Model::default();
    graph.flush().into_iter().for_each(|d| model.apply(d));
    let settings = around::settings(&inputs);
    let mut style = Style { deny: settings.around.deny.clone(), ..Style::iptables() };
    style.log_prefix.clone_from(&settings.around.log_prefix);
    if nft {
        style.places = usize::MAX;
    }
    model.layout(family, &settings.around, &style, &BTreeMap::new())
}

fn iptables(family: Family) -> String {
    let layout = layout(family, false);
    let mut out = sets::plan(family, &layout.sets, &BTreeMap::new(), 1 << 20, None).before;
    for (table, wanted) in layout.iptables(family, &mut TextCache::default()) {
        let (have, seen) = Default::default();
        let plan = table_plan::plan(table, &wanted, &have, &seen, Leftovers::Remove);
        out.push_str(&plan.input);
    }
    out
}

fn nftables(family: Family) -> String {
    let layout = layout(family, true);
    let wanted = layout.nft(family, &mut TextCache::default());
    let none = nft_plan::Actual::default();
    let plan = nft_plan::plan(family, &wanted, &layout.sets, &none, Leftovers::Remove, None);
    format!("{}# Met by packets from here on.\n{}", plan.input, plan.late)
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the files are this test's own")]
fn whole_rule_sets_are_written_as_they_were_read_by_a_person() {
    let generate = std::env::var_os("BRINDLE_GENERATE").is_some();
    let mut differences = String::new();
    for (name, text) in [
        ("iptables-ipv4.txt", iptables(Family::V4)),
        ("iptables-ipv6.txt", iptables(Family::V6)),
        ("nftables-ipv4.txt", nftables(Family::V4)),
        ("nftables-ipv6.txt", nftables(Family::V6)),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy/golden").join(name);
        if generate {
            fs::write(&file, &text).expect("the folder is there");
        }
        let kept = fs::read_to_string(&file).unwrap_or_default();
        let different = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
        if let Some(at) = different.or((kept != text).then(|| kept.lines().count().min(text.lines().count())))
        {
            let line = |all: &str| all.lines().nth(at).unwrap_or("(its end)").to_owned();
            // Writing to a String cannot fail.
            let _ =
                writeln!(differences, "{name}:{}: kept {}\n  written {}", at + 1, line(&kept), line(&text));
        }
    }
    assert!(differences.is_empty(), "BRINDLE_GENERATE=1 writes them anew:\n{differences}");
}

#[test]
fn no_rule_jumps_to_a_chain_that_is_not_there_or_asks_a_set_that_is_not() {
    for family in Family::ALL {
        let layout = layout(family, false);
        let tables = layout.iptables(family, &mut TextCache::default());
        let filter = tables.get(&Table::Filter).map_or(0, |t| t.chains.len());
        assert!(filter > 20, "{filter} chains");
        for (table, wanted) in tables {
            let lines = wanted
                .chains
                .values()
                .flat_map(|t| &t.lines)
                .chain(wanted.hooks.iter().flat_map(|h| &h.text.lines));
            for line in lines {
                let words: Vec<&str> = line.split(' ').collect();
                for pair in words.windows(2) {
                    match pair {
                        ["-j" | "-g", chain] if chain.starts_with("brindle-") => {
                            assert!(wanted.chains.contains_key(*chain), "{table}: {line}");
                        }
                        ["--match-set", set] => assert!(layout.sets.contains_key(*set), "{table}: {line}"),
                        _ => {}
                    }
                }
            }
        }
    }
}
