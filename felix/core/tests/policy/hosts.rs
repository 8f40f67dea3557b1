//! Host endpoints: what `verdict` says of a packet and what the rules as rendered do with it.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_config_core::{Key, Kind};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::{
        active::{EndpointId, Protocol},
        state::PolicyState,
        verdict::{Packet, Place, verdict},
    },
    rules::{
        ir::{Action, Dispatch, Family, Table},
        layout::Surroundings,
        model::Model,
        policy::Style,
    },
};
use serde_json::{Value, json};

use super::walk::Kernel;

/// A node with a pod, an uplink with an address and another one without a name of its own.
struct Node {
    state: PolicyState,
    kernel: Kernel,
    addresses: BTreeMap<IpAddr, String>,
    problems: Vec<String>,
    model: Model,
}

/// Where a packet comes from or goes to.
#[derive(Clone, Copy, Debug)]
enum Spot {
    Pod,
    Host,
    /// Beyond this device.
    Beyond(&'static str),
}

use Spot::{Beyond, Host, Pod};

const TCP: u8 = 6;

fn resource(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A host endpoint with `role: host`.
fn hep(name: &str, spec: Value) -> Value {
    let mut r = resource("HostEndpoint", name, spec);
    r["spec"]["node"] = "n1".into();
    r["metadata"]["labels"] = json!({"role": "host"});
    r
}

/// A policy for host endpoints.
fn gnp(name: &str, spec: Value) -> Value {
    let mut r = resource("GlobalNetworkPolicy", name, spec);
    r["spec"]["selector"] = "role == 'host'".into();
    r
}

/// Policies that allow everything before all others.
fn early() -> [Value; 2] {
    let allow = json!([{"action": "Allow"}]);
    [
        gnp("before", json!({"applyOnForward": true, "preDNAT": true, "ingress": allow})),
        gnp("raw", json!({"applyOnForward": true, "doNotTrack": true, "ingress": allow, "egress": allow})),
    ]
}

impl Node {
    fn new(resources: &[Value]) -> Self {
        let pod = json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"orchestrator": "k8s", "node": "n1", "endpoint": "eth0", "interfaceName": "cali1",
                "profiles": ["kns.ns"], "ipNetworks": ["10.0.0.1/32", "fd00::1/128"]}});
        let mut graph = Graph::new(Scope::Node("n1".into()));
        for r in resources.iter().chain([&pod]) {
            let text = |at: &str| r.pointer(at).and_then(Value::as_str);
            let kind = Kind::parse_written(text("/apiVersion"), text("/kind").expect("a kind"));
            let name = text("/metadata/name").expect("a name");
            graph.put(&Key::new(kind.expect("known"), text("/metadata/namespace"), name), r);
        }
        graph.set_in_sync();
        let deltas = graph.flush();
        let mut state = PolicyState::default();
        deltas.iter().for_each(|d| state.apply(d).expect("deltas keep their contract"));
        let addresses: BTreeMap<IpAddr, String> =
            [("192.0.2.1", "eth0"), ("fd00:1::1", "eth0"), ("198.51.100.1", "eth1"), ("127.0.0.1", "lo")]
                .map(|(a, dev)| (a.parse().expect("an address"), dev.to_owned()))
                .into();
        state.look(&addresses);
        let kernel = Kernel::new(&deltas, &Surroundings::default(), &addresses);
        let of = |(key, lines): (Key, Vec<String>)| lines.into_iter().map(move |l| format!("{key}: {l}"));
        let problems = graph.problems().into_iter().flat_map(of).collect();
        let mut model = Model::default();
        deltas.into_iter().for_each(|d| model.apply(d));
        Self { state, kernel, addresses, problems, model }
    }

    fn address(spot: Spot, v4: bool) -> IpAddr {
        let (four, six) = match spot {
            Pod => ("10.0.0.1", "fd00::1"),
            Host => ("192.0.2.1", "fd00:1::1"),
            Beyond(_) => ("203.0.113.1", "fd00:2::1"),
        };
        if v4 { four } else { six }.parse().expect("an address")
    }

    /// Whether it gets through: both must say the same.
    #[track_caller]
    fn lets(&self, from: Spot, to: Spot, packet: Packet) -> bool {
        let pod = || EndpointId::Workload { namespace: "ns".into(), name: "p".into() };
        let by = |device: &str| self.state.host_endpoint_at(device, &self.addresses).cloned();
        let place = |own: Spot, other: Spot| match (own, other) {
            (Pod, _) => Place::Workload(pod()),
            (Beyond(dev), _) => Place::Outside(by(dev)),
            (Host, Beyond(dev)) => Place::Host(by(dev)),
            (Host, _) => Place::Host(by("cali1")),
        };
        let said = verdict(&self.state, &packet, &place(from, to), &place(to, from));
        let device = |spot| match spot {
            Pod => Some("cali1".to_owned()),
            Beyond(dev) => Some(dev.to_owned()),
            Host => None,
        };
        let done = self.kernel.lets(&packet, device(from), device(to));
        assert_eq!(
            said.allowed(),
            done,
            "{from:?} to {to:?} {packet:?}: the kernel {done}, verdict {said:#?}"
        );
        done
    }

    #[track_caller]
    fn tcp(&self, from: Spot, to: Spot, port: u16) -> bool {
        self.port(from, to, TCP, port, true)
    }

    #[track_caller]
    fn port(&self, from: Spot, to: Spot, protocol: u8, dst_port: u16, v4: bool) -> bool {
        let (src, dst) = (Self::address(from, v4), Self::address(to, v4));
        let protocol = Protocol(protocol);
        self.lets(from, to, Packet { src, dst, protocol, src_port: 40_000, dst_port, icmp: None })
    }
}

#[test]
fn closed_means_closed_for_policies_that_come_early_too() {
    let contested = [hep("a", json!({"interfaceName": "eth0"})), hep("b", json!({"interfaceName": "eth0"}))];
    let broken = [hep("a", json!({"interfaceName": "eth0", "expectedIPs": ["nonsense"]}))];
    for closed in [&contested[..], &broken] {
        for others in [&[][..], &[hep("other", json!({"interfaceName": "*"}))]] {
            let node = Node::new(&[closed, &early(), others].concat());
            for (from, to) in [(Beyond("eth0"), Host), (Host, Beyond("eth0")), (Beyond("eth0"), Pod)] {
                assert!(!node.tcp(from, to, 80), "{from:?} to {to:?}");
            }
            // What policy never closes stays open.
            assert!(node.tcp(Beyond("eth0"), Host, 22) && node.tcp(Host, Beyond("eth0"), 6443));
            assert!(!node.tcp(Beyond("eth0"), Pod, 22), "failsafe ports are the host's own");
        }
    }
    let open = Node::new(&[&contested[..1], &early()].concat());
    assert!(open.tcp(Beyond("eth0"), Host, 80) && open.tcp(Host, Beyond("eth0"), 80));
}

#[test]
fn policy_before_dnat_of_all_interfaces_is_not_that_of_one_with_a_host_endpoint_of_its_own() {
    let mut own = hep("own", json!({"interfaceName": "eth0"}));
    own["metadata"]["labels"] = json!({});
    let all = hep("all", json!({"interfaceName": "*"}));
    let node = Node::new(&[own, all, early()[0].clone()]);
    assert!(node.tcp(Beyond("eth1"), Host, 80));
    assert!(!node.tcp(Beyond("eth0"), Host, 80));
}

/// What the FelixConfiguration says about pods that speak to their own host.
fn to_host(action: &str) -> Value {
    resource("FelixConfiguration", "default", json!({ "defaultEndpointToHostAction": action }))
}

#[test]
fn what_is_returned_to_the_host_meets_the_policy_of_all_interfaces() {
    let all = hep("all", json!({"interfaceName": "*"}));
    let policy = gnp(
        "host",
        json!({"ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]}),
    );
    let node = Node::new(&[all.clone(), policy.clone(), to_host("Return")]);
    assert!(node.tcp(Pod, Host, 80) && !node.tcp(Pod, Host, 81));
    assert!(node.tcp(Pod, Host, 22), "a failsafe port");
    assert!(node.tcp(Host, Pod, 81) && node.tcp(Pod, Beyond("eth0"), 81), "of no other traffic of workloads");
    // Policy before DNAT is not for them.
    let node = Node::new(&[all.clone(), early()[0].clone(), to_host("Return")]);
    assert!(!node.tcp(Pod, Host, 80) && node.tcp(Beyond("eth0"), Host, 80));
    for (action, allowed) in [("Accept", true), ("Drop", false)] {
        let node = Node::new(&[all.clone(), policy.clone(), to_host(action)]);
        assert_eq!((node.tcp(Pod, Host, 80), node.tcp(Pod, Host, 81)), (allowed, allowed), "{action}");
    }
    // One with a name is not where a pod's packets come in.
    let node = Node::new(&[hep("named", json!({"interfaceName": "eth0"})), policy, to_host("Return")]);
    assert!(node.tcp(Pod, Host, 81));
}

#[test]
fn no_untracked_policy_is_enforced_on_all_interfaces_at_once_and_that_is_said() {
    let all = || hep("all", json!({"interfaceName": "*"}));
    let deny = gnp(
        "raw",
        json!({"applyOnForward": true, "doNotTrack": true, "ingress": [{"action": "Deny"}],
            "egress": [{"action": "Deny"}]}),
    );
    let allow = gnp("host", json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}));
    let node = Node::new(&[all(), deny.clone(), allow.clone()]);
    assert!(node.tcp(Beyond("eth1"), Host, 80) && node.tcp(Host, Beyond("eth1"), 80));
    assert!(
        matches!(&*node.problems, [one] if one.starts_with("GlobalNetworkPolicy(raw): spec.doNotTrack: not enforced")),
        "{:?}",
        node.problems
    );
    let node = Node::new(&[hep("named", json!({"interfaceName": "eth0"})), deny, allow]);
    assert!(!node.tcp(Beyond("eth0"), Host, 80) && node.problems.is_empty());
}

#[test]
fn the_port_of_vxlan_is_what_the_configuration_says() {
    const UDP: u8 = 17;
    let felix = |spec| resource("FelixConfiguration", "default", spec);
    for (port, other, spec) in [(4789, 4790, json!({})), (4790, 4789, json!({"vxlanPort": 4790}))] {
        let node = Node::new(&[felix(spec)]);
        assert!(!node.port(Pod, Beyond("eth0"), UDP, port, true), "{port}");
        assert!(node.port(Pod, Beyond("eth0"), UDP, other, true), "{other}");
    }
    let node = Node::new(&[felix(json!({"vxlanPort": 4790, "allowVXLANPacketsFromWorkloads": true}))]);
    assert!(node.port(Pod, Beyond("eth0"), UDP, 4790, true));
}

#[test]
fn a_host_takes_from_its_pods_what_a_router_has_to_and_no_advertisements_of_routers() {
    let drop = Node::new(&[to_host("Drop")]);
    let icmp = |kind| Packet {
        src: Node::address(Pod, false),
        dst: Node::address(Host, false),
        protocol: Protocol::ICMPV6,
        src_port: 0,
        dst_port: 0,
        icmp: Some((kind, 0)),
    };
    for kind in 128..=140 {
        assert_eq!(drop.lets(Pod, Host, icmp(kind)), matches!(kind, 130..=133 | 135 | 136), "{kind}");
    }
}

#[test]
fn two_known_by_addresses_of_one_device_are_closed_there_and_the_failsafe_ports_stay_open() {
    let allow = || gnp("g", json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}));
    let (a, b) =
        (hep("a", json!({"expectedIPs": ["192.0.2.1"]})), hep("b", json!({"expectedIPs": ["fd00:1::1"]})));
    let all = hep("all", json!({"interfaceName": "*"}));
    for (more, closed) in [
        (vec![], true),
        (vec![all], true),
        // One that names the device is meant, whatever others there are.
        (vec![hep("z", json!({"interfaceName": "eth0"}))], false),
    ] {
        let node = Node::new(&[&[a.clone(), b.clone(), allow()][..], &more].concat());
        for (from, to) in [(Beyond("eth0"), Host), (Host, Beyond("eth0")), (Beyond("eth0"), Pod)] {
            assert_eq!(node.tcp(from, to, 80), !closed, "{from:?} to {to:?} {more:?}");
        }
        assert!(node.tcp(Beyond("eth0"), Host, 22) && node.tcp(Beyond("eth1"), Host, 80));
        let said = node.model.rivals(&node.addresses);
        let line = "HostEndpoint(a): drops everything: HostEndpoint b has an address of eth0, too; delete one of them";
        assert_eq!(said.iter().any(|l| l == line), closed, "{said:?}");
    }
    let node = Node::new(&[a, allow()]);
    assert!(node.tcp(Beyond("eth0"), Host, 80), "one alone");
}

/// Node addresses on `lo`, as routed fabrics have them; and a device whose name means something else to the tools.
#[test]
fn an_address_on_lo_or_on_a_device_no_rule_can_name_leads_to_no_rules() {
    let node = Node::new(&[
        hep("a", json!({"expectedIPs": ["127.0.0.1", "198.51.100.7", "198.51.100.8"]})),
        gnp("g", json!({"ingress": [{"action": "Deny"}], "egress": [{"action": "Deny"}]})),
    ]);
    assert!(node.tcp(Beyond("lo"), Host, 80) && node.tcp(Host, Beyond("lo"), 80));
    let mut addresses = node.addresses.clone();
    for (address, device) in [("198.51.100.7", "e+"), ("198.51.100.8", "x\"y")] {
        addresses.insert(address.parse().expect("an address"), device.into());
    }
    let mut model = node.model.clone();
    let around = Surroundings::default();
    let layout = model.layout(Family::V4, &around, &Style::iptables(), &addresses);
    let named = |d: &Dispatch| d.name.contains("hep") && !d.entries.is_empty();
    assert!(!layout.dispatches.iter().any(|(_, d)| named(d)), "{:?}", layout.dispatches);
    assert_eq!(
        node.model.rivals(&addresses),
        [
            "HostEndpoint(a): not used for 127.0.0.1: its address is on lo, which no packet from outside comes by; set \
             interfaceName to the interface that packets come by",
            "HostEndpoint(a): not used for 198.51.100.7: the name of its device, \"e+\", cannot stand in a rule; set \
             interfaceName to the interface that packets come by",
            "HostEndpoint(a): not used for 198.51.100.8: the name of its device, \"x\\\"y\", cannot stand in a rule; set \
             interfaceName to the interface that packets come by",
        ]
    );
    // By its name lo is a device like others.
    let node = Node::new(&[
        hep("a", json!({"interfaceName": "lo"})),
        gnp("g", json!({"ingress": [{"action": "Deny"}]})),
    ]);
    assert!(!node.tcp(Beyond("lo"), Host, 80));
}

/// A device of that name beside the host endpoint for all others.
#[test]
fn a_device_named_any_is_not_the_one_for_all_others() {
    let node = Node::new(&[
        hep("a", json!({"interfaceName": "any"})),
        hep("z", json!({"interfaceName": "*"})),
        {
            let mut open = resource("GlobalNetworkPolicy", "open", json!({"ingress": [{"action": "Allow"}]}));
            open["spec"]["selector"] = "which == 'any'".into();
            open
        },
        gnp("g", json!({"order": 2_000, "ingress": [{"action": "Deny"}]})),
    ]);
    let mut model = node.model.clone();
    let layout = model.layout(Family::V4, &Surroundings::default(), &Style::iptables(), &BTreeMap::new());
    let dispatch =
        layout.dispatches.iter().find(|(t, d)| *t == Table::Filter && d.name == "brindle-from-hep");
    let (_, dispatch) = dispatch.expect("one for host endpoints");
    let [(device, chain)] = dispatch.entries.as_slice() else { panic!("{dispatch:?}") };
    let last = dispatch.otherwise.last().map(|r| &r.action);
    assert_eq!((device.as_str(), chain.as_str()), ("any", "brindle-fh-any"));
    assert_eq!(last, Some(&Action::Goto("brindle-fh-any-other-device".into())));
}

#[test]
fn who_goes_without_a_device_is_named() {
    let node = Node::new(&[
        hep("a", json!({"expectedIPs": ["192.0.2.1", "fd00:1::1"]})),
        hep("b", json!({"interfaceName": "eth0"})),
        hep("c", json!({"expectedIPs": ["198.51.100.1"]})),
        hep("d", json!({"expectedIPs": ["198.51.100.2"]})),
        gnp("g", json!({"ingress": [{"action": "Allow", "protocol": "TCP"}]})),
    ]);
    let mut addresses = node.addresses.clone();
    addresses.insert("198.51.100.2".parse().expect("an address"), "eth1".into());
    let said = node.model.rivals(&addresses);
    assert_eq!(
        said,
        [
            "HostEndpoint(c): drops everything: HostEndpoint d has an address of eth1, too; delete one of them",
            "HostEndpoint(a): not used on eth0: HostEndpoint(b) names it; delete one of them",
            "HostEndpoint(d): not used on eth1: HostEndpoint(c) has an address of it and a lower name; delete one of them",
        ]
    );
    assert!(node.tcp(Beyond("eth0"), Host, 80) && node.model.rivals(&BTreeMap::new()).is_empty());
}
