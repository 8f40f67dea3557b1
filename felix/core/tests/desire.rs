//! Resources and best paths in, routes with reasons out: one case per rule of calico-felix's route programming.

use std::collections::BTreeMap;

use brindle_config_core::{
    ObjectMeta, Resource, Spec,
    ipam::IpamBlockSpec,
    node::{NodeAddress, NodeBgpSpec, NodeSpec},
    pool::{EncapMode, IpPoolSpec},
    store::{Entry, Revision, SyncEvent},
    workload::WorkloadEndpointSpec,
};
use brindle_felix_core::{
    desire::{Desired, desire, ownership, paths},
    host::{HostView, Link},
    inputs::{Impact, Inputs},
    owner::Ownership,
    plan::{Plan, PlanCx, Step},
    route::{Hop, Route, RouteKey, Target},
};
use proptest::prelude::*;

/// One table with one entry of a key, no device of a pod in the making, nobody's remains.
fn seeing(owner: &Ownership, fib_in_sync: bool) -> PlanCx<'_> {
    static BESIDE: BTreeMap<RouteKey, Vec<Route>> = BTreeMap::new();
    PlanCx { owner, beside: &BESIDE, fib_in_sync, grace: &|_| false, left: &|_| false }
}

fn upsert<S: Spec>(name: &str, spec: S) -> SyncEvent {
    let r = Resource::new(ObjectMeta::named(name), spec);
    SyncEvent::Upsert(Entry {
        key: r.key(),
        revision: Revision(1),
        value: serde_json::to_value(&r).unwrap().into(),
    })
}

fn node(name: &str, address: &str) -> SyncEvent {
    let bgp = NodeBgpSpec { ipv4_address: Some(NodeAddress(address.parse().unwrap())), ..Default::default() };
    upsert(name, NodeSpec { bgp: Some(bgp), ..Default::default() })
}

fn block(cidr: &str, host: &str) -> SyncEvent {
    let size = 64;
    let name = cidr.replace(['.', '/'], "-");
    upsert(
        &name,
        IpamBlockSpec {
            cidr: cidr.parse().unwrap(),
            affinity: Some(format!("host:{host}")),
            affinity_claim_time: None,
            allocations: vec![None; size],
            unallocated: (0..size).collect(),
            attributes: vec![],
            sequence_number: 0,
            sequence_number_for_allocation: BTreeMap::new(),
            deleted: false,
            strict_affinity: false,
            extra: BTreeMap::new(),
        },
    )
}

fn inputs(mode: EncapMode) -> Inputs {
    let mut i = Inputs::new("n1");
    let mut pool = IpPoolSpec::new("192.168.0.0/16".parse().unwrap());
    pool.ipip_mode = mode;
    for e in [
        upsert("pool", pool),
        node("n1", "10.0.1.1/24"),
        node("n2", "10.0.1.2/24"),
        node("n3", "10.0.2.3/24"),
        block("192.168.1.0/26", "n1"),
        block("192.168.2.0/26", "n2"),
        upsert(
            "n1-k8s-a-eth0",
            WorkloadEndpointSpec {
                node: "n1".into(),
                interface_name: "cali0123456789a".into(),
                ip_networks: vec!["192.168.1.5/32".parse().unwrap()],
                ..Default::default()
            },
        ),
    ] {
        assert_ne!(i.apply(&e), Impact::Nothing);
        assert_eq!(i.apply(&e), Impact::Nothing, "an equal upsert changes nothing");
    }
    i.set_fib("192.168.2.0/26".parse().unwrap(), vec!["10.0.1.2".parse().unwrap()]);
    i.set_fib("192.168.3.0/26".parse().unwrap(), vec!["10.0.2.3".parse().unwrap()]);
    i
}

fn host() -> HostView {
    let link = |addresses: &[&str]| Link {
        up: true,
        mtu: 1500,
        inner: false,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    };
    let links = BTreeMap::from([
        ("lo".into(), link(&["127.0.0.1/8"])),
        ("eth0".into(), link(&["10.0.1.1/24"])),
        ("tunl0".into(), link(&[])),
        ("cali0123456789a".into(), link(&[])),
    ]);
    let default = Route {
        dst: "0.0.0.0/0".parse().unwrap(),
        metric: 0,
        protocol: 4,
        target: Target::Via(vec![Hop::new("10.0.1.254".parse().unwrap(), "eth0".into(), false)]),
    };
    HostView::new(links, [default])
}

fn desired(i: &Inputs) -> Desired {
    desire(i, &host(), &"tunl0".into())
}

fn text(d: &Desired) -> Vec<String> {
    d.routes.values().map(ToString::to_string).collect()
}

#[test]
fn routes_to_services_stay_out_of_the_kernel() {
    let mut i = inputs(EncapMode::Never);
    let routes = ["10.96.0.7/32", "198.51.100.0/24", "203.0.113.0/24"];
    for prefix in routes {
        i.set_fib(prefix.parse().unwrap(), vec!["10.0.1.2".parse().unwrap()]);
    }
    let there = |i: &Inputs| -> Vec<bool> {
        let all = text(&desired(i));
        routes.map(|r| all.iter().any(|t| t.contains(r.trim_end_matches("/32")))).into()
    };
    assert_eq!(there(&i), [true; 3]);
    let ranges = serde_json::json!({"serviceClusterIPs": [{"cidr": "10.96.0.0/16"}],
        "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}]});
    let config = |name: &str| {
        upsert::<brindle_config_core::bgp::BgpConfigurationSpec>(
            name,
            serde_json::from_value(ranges.clone()).unwrap(),
        )
    };
    assert_eq!(i.apply(&config("node.n1")), Impact::Nothing, "ranges count in `default` only");
    assert_eq!(i.apply(&config("default")), Impact::Everything);
    assert_eq!(i.apply(&config("default")), Impact::Nothing);
    assert_eq!(there(&i), [false, false, true]);
    assert!(desired(&i).problems().next().is_none(), "it is no problem");
    let SyncEvent::Upsert(e) = config("default") else { unreachable!() };
    assert_eq!(i.apply(&SyncEvent::Delete(e.key)), Impact::Everything);
    assert_eq!(there(&i), [true; 3]);
}

#[test]
fn of_a_block_only_its_range_and_its_node_count() {
    let with = |affinity: Option<&str>, allocations: Vec<Option<usize>>, deleted: bool| {
        let spec = serde_json::json!({"cidr": "10.128.0.64/26", "affinity": affinity, "allocations": allocations, "unallocated": [],
            "attributes": [{"handle_id": "a", "secondary": {}}], "deleted": deleted});
        upsert("10-128-0-64-26", serde_json::from_value::<IpamBlockSpec>(spec).unwrap())
    };
    let own = |i: &Inputs| i.own_blocks().map(|b| b.cidr.to_string()).collect::<Vec<_>>();
    let mut i = Inputs::new("n1");
    assert_eq!(i.apply(&with(Some("host:n1"), vec![None; 64], false)), Impact::Base);
    assert_eq!(own(&i), ["10.128.0.64/26"]);
    let mut one_taken = vec![None; 64];
    one_taken[3] = Some(0);
    assert_eq!(i.apply(&with(Some("host:n1"), one_taken.clone(), false)), Impact::Nothing, "a pod came");
    assert_eq!(i.apply(&with(Some("host:n2"), one_taken.clone(), false)), Impact::Base, "another node's now");
    assert_eq!(own(&i), [""; 0]);
    assert_eq!(i.apply(&with(Some("host:n1"), one_taken.clone(), false)), Impact::Base);
    assert_eq!(i.apply(&with(Some("host:n1"), one_taken.clone(), true)), Impact::Base, "marked as deleted");
    assert_eq!(own(&i), [""; 0]);
    assert_eq!(i.apply(&with(None, one_taken, true)), Impact::Nothing);
}

#[test]
fn cross_subnet_goes_direct_inside_the_segment_and_through_the_tunnel_across() {
    let d = desired(&inputs(EncapMode::CrossSubnet));
    assert_eq!(
        text(&d),
        [
            "blackhole 192.168.1.0/26 proto 80 metric 1024",
            "192.168.1.5/32 dev cali0123456789a scope link proto 3 metric 1024",
            "192.168.2.0/26 via 10.0.1.2 dev eth0 onlink proto 80 metric 1024",
            "192.168.3.0/26 via 10.0.2.3 dev tunl0 onlink proto 80 metric 1024",
        ]
    );
    let why: Vec<_> =
        paths(&inputs(EncapMode::CrossSubnet), &host()).into_iter().map(|p| (p.mode, p.why)).collect();
    assert_eq!(
        why,
        [
            ("direct".to_owned(), "CrossSubnet, same segment; next hop connected".to_owned()),
            ("ipip".to_owned(), "CrossSubnet, and 10.0.2.3 is outside 10.0.1.0/24".to_owned()),
        ]
    );
    let t = d.tunnel.as_ref().unwrap();
    assert_eq!((t.mtu, d.pod_mtu), (1480, 1480));
    assert_eq!(t.routes.len(), 1);
    assert!(t.sources.contains(&"10.0.2.3/32".parse().unwrap()));
    assert!(!t.sources.contains(&"10.0.1.1/32".parse().unwrap()), "we are not our own peer");
}

#[test]
fn always_tunnels_even_to_a_neighbour() {
    let p = paths(&inputs(EncapMode::Always), &host());
    assert!(p.len() == 2 && p.iter().all(|p| p.mode == "ipip"), "{p:?}");
}

/// A direct path would lose the packets without a word: there is no route, and the pool is named once.
#[test]
fn what_a_pool_wants_in_vxlan_has_no_way_but_within_the_segment() {
    let with = |cidr: &str, mode: EncapMode| {
        let mut i = inputs(EncapMode::Never);
        let pool = IpPoolSpec { vxlan_mode: mode, ..IpPoolSpec::new(cidr.parse().unwrap()) };
        i.apply(&upsert("pool", pool));
        i.set_fib("192.168.4.0/26".parse().unwrap(), vec!["10.0.2.3".parse().unwrap()]);
        let learned = |t: &String| t.contains(" via ");
        let d = desired(&i);
        let routes: Vec<String> = text(&d).into_iter().filter(learned).collect();
        let problems: Vec<String> = d.problems().map(str::to_owned).collect();
        let why: Vec<String> = paths(&i, &host()).into_iter().map(|p| p.why).collect();
        (routes, problems, why)
    };
    let (routes, problems, why) = with("192.168.0.0/16", EncapMode::CrossSubnet);
    assert_eq!(routes, ["192.168.2.0/26 via 10.0.1.2 dev eth0 onlink proto 80 metric 1024"]);
    assert_eq!(why, ["CrossSubnet, same segment; next hop connected"]);
    assert_eq!(
        problems,
        [
            "IPPool(pool): vxlanMode is CrossSubnet, and there is no VXLAN in this version: its pods and nodes of other \
          subnets do not reach each other; set ipipMode: CrossSubnet and vxlanMode: Never"
        ]
    );
    let (routes, problems, _) = with("192.168.0.0/16", EncapMode::Always);
    assert_eq!(routes, [""; 0]);
    assert!(problems.len() == 1 && problems[0].contains("set ipipMode: Always"), "{problems:?}");
    // Not this pool's prefixes.
    let (routes, problems, _) = with("10.128.0.0/16", EncapMode::Always);
    assert_eq!((routes.len(), problems.len()), (3, 0));
}

#[test]
fn what_felix_is_told_to_do_and_does_not_is_a_problem() {
    let said = |spec: serde_json::Value, own: serde_json::Value| -> Vec<String> {
        let mut i = inputs(EncapMode::Never);
        i.apply(&felix(serde_json::from_value(spec).unwrap()));
        i.apply(&upsert::<brindle_config_core::felix::FelixConfigurationSpec>(
            "node.n1",
            serde_json::from_value(own).unwrap(),
        ));
        desired(&i).problems().map(str::to_owned).collect()
    };
    let (yes, no) = (serde_json::json!({"wireguardEnabled": true}), serde_json::json!({}));
    assert_eq!(
        said(yes.clone(), no.clone()),
        [
            "FelixConfiguration: wireguardEnabled is true, and there is no WireGuard in this version, and packets between \
          nodes are not encrypted; set it to false where that will do, in `default`, for this node alone in `node.n1`, or \
          as FELIX_WIREGUARDENABLED if the agent's environment says it"
        ]
    );
    assert_eq!(said(yes, serde_json::json!({"wireguardEnabled": false})), [""; 0]);
    let all =
        said(no, serde_json::json!({"bpfEnabled": true, "vxlanEnabled": true, "wireguardEnabledV6": true}));
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn never_uses_the_hosts_own_route_to_the_next_hop() {
    let d = desired(&inputs(EncapMode::Never));
    assert!(d.tunnel.is_none());
    assert_eq!(d.pod_mtu, 1500);
    assert!(text(&d).contains(&"192.168.3.0/26 via 10.0.1.254 dev eth0 proto 80 metric 1024".to_owned()));
}

#[test]
fn an_unreachable_next_hop_is_a_problem_not_a_route() {
    let mut i = inputs(EncapMode::Never);
    i.set_fib("203.0.113.0/24".parse().unwrap(), vec!["172.30.0.1".parse().unwrap()]);
    let bare = HostView::new(host().links().map(|(n, l)| (n.into(), l.clone())).collect(), []);
    let d = desire(&i, &bare, &"tunl0".into());
    assert!(
        d.problems().any(|p| p.contains("203.0.113.0/24 via 172.30.0.1")),
        "{:?}",
        d.problems().collect::<Vec<_>>()
    );
}

#[test]
fn what_does_not_decode_is_named_and_keeps_its_last_good_value() {
    let mut i = inputs(EncapMode::CrossSubnet);
    let SyncEvent::Upsert(mut e) = node("n2", "10.0.1.2/24") else { unreachable!() };
    e.value = serde_json::json!({"apiVersion": "x", "kind": "Node", "metadata": {"name": "n2"},
        "spec": {"bgp": {"ipv4Address": "nonsense"}}})
    .into();
    assert_eq!(i.apply(&SyncEvent::Upsert(e)), Impact::Everything);
    let d = desired(&i);
    assert!(
        d.problems().any(|p| p.contains("Node(n2)") && p.contains("ipv4Address")),
        "{:?}",
        d.problems().collect::<Vec<_>>()
    );
    assert!(d.tunnel.unwrap().sources.contains(&"10.0.1.2/32".parse().unwrap()));
}

fn table(routes: Vec<Route>) -> BTreeMap<RouteKey, Route> {
    routes.into_iter().map(|r| (r.key(), r)).collect()
}

fn apply(actual: &mut BTreeMap<RouteKey, Route>, plan: &Plan) {
    for s in &plan.steps {
        match s {
            Step::Add(r) => assert!(actual.insert(r.key(), r.clone()).is_none(), "add over an entry"),
            Step::Replace { new, .. } => assert!(actual.insert(new.key(), new.clone()).is_some()),
            Step::Delete(r) => assert!(actual.remove(&r.key()).is_some()),
        }
    }
}

fn any_route() -> impl Strategy<Value = Route> {
    let dst = (0u8..4, 0u8..3)
        .prop_map(|(a, l)| format!("192.168.{a}.0/{}", [24, 26, 32][l as usize]).parse().unwrap());
    let dev = prop_oneof![Just("eth0"), Just("cali0123456789a"), Just("tunl0"), Just("gone0")];
    let target = prop_oneof![
        Just(Target::Blackhole),
        dev.clone().prop_map(|d| Target::Device(d.into())),
        (dev, 1u8..4).prop_map(|(d, n)| Target::Via(vec![Hop::new(
            format!("10.0.1.{n}").parse().unwrap(),
            d.into(),
            true
        )])),
    ];
    let protocol = prop_oneof![Just(80u8), Just(3), Just(4), Just(12), Just(2)];
    let metric = prop_oneof![Just(0u32), Just(1024)];
    (dst, metric, protocol, target).prop_map(|(dst, metric, protocol, target)| Route {
        dst,
        metric,
        protocol,
        target,
    })
}

fn felix(f: brindle_config_core::felix::FelixConfigurationSpec) -> SyncEvent {
    upsert("default", f)
}

#[test]
fn equal_next_hops_make_one_multipath_route_direct_tunnelled_and_mixed() {
    let hops = |i: &mut Inputs, prefix: &str, all: &[&str]| {
        i.set_fib(prefix.parse().unwrap(), all.iter().map(|h| h.parse().unwrap()).collect())
    };
    let mut i = inputs(EncapMode::CrossSubnet);
    hops(&mut i, "192.168.2.0/26", &["10.0.1.3", "10.0.1.2"]);
    hops(&mut i, "192.168.3.0/26", &["10.0.2.4", "10.0.2.3"]);
    hops(&mut i, "192.168.4.0/26", &["10.0.2.3", "10.0.1.2"]);
    // Outside the pools: two of the three next hops lie behind the default gateway.
    hops(&mut i, "172.16.0.0/24", &["10.0.1.2", "10.9.0.1", "10.9.0.2"]);
    hops(&mut i, "172.17.0.0/24", &["10.9.0.1", "10.9.0.2"]);
    let d = desired(&i);
    insta::assert_snapshot!(text(&d).join("\n"));
    let t = d.tunnel.unwrap();
    let carried: Vec<String> = t.routes.iter().map(|(p, e)| format!("{p} {e:?}")).collect();
    assert_eq!(carried, ["192.168.3.0/26 [10.0.2.3, 10.0.2.4]", "192.168.4.0/26 [10.0.2.3]"]);
}

#[test]
fn a_multipath_route_that_gains_or_loses_a_hop_is_replaced_in_place() {
    let mut i = inputs(EncapMode::CrossSubnet);
    let prefix = "192.168.3.0/26".parse().unwrap();
    i.set_fib(prefix, vec!["10.0.2.3".parse().unwrap(), "10.0.2.4".parse().unwrap()]);
    let before = desired(&i);
    i.set_fib(prefix, vec!["10.0.2.4".parse().unwrap()]);
    let after = desired(&i);
    let owner = ownership(&i);
    let cx = seeing(&owner, true);
    let there = Plan::new(&before.routes, &after.routes, &host(), &cx);
    let back = Plan::new(&after.routes, &before.routes, &host(), &cx);
    insta::assert_snapshot!(format!("{there}{back}"));
}

#[test]
fn the_underlays_mtu_is_that_of_the_matching_interfaces() {
    let mut i = inputs(EncapMode::CrossSubnet);
    let with = |i: &mut Inputs, pattern: &str| {
        i.apply(&felix(brindle_config_core::felix::FelixConfigurationSpec {
            mtu_iface_pattern: Some(pattern.into()),
            ..Default::default()
        }));
        let mut links: BTreeMap<_, _> = host().links().map(|(n, l)| (n.into(), l.clone())).collect();
        links.insert("eth1".into(), Link { up: true, mtu: 1400, ..Link::default() });
        desire(i, &host().with_links(links), &"tunl0".into())
    };
    assert_eq!(with(&mut i, "^eth.*").tunnel.unwrap().mtu, 1380);
    let none = with(&mut i, "^wlan");
    assert_eq!(none.tunnel.unwrap().mtu, 1480);
    assert!(none.warnings[0].contains("matches no interface"), "{:?}", none.warnings);
    let bad = with(&mut i, "eth(");
    assert_eq!(bad.tunnel.unwrap().mtu, 1480);
    assert!(bad.warnings[0].contains("no regular expression"), "{:?}", bad.warnings);
}

#[test]
fn where_the_nodes_address_is_on_lo_the_underlays_mtu_is_that_of_the_network_cards() {
    let i = inputs(EncapMode::Never);
    let link = |mtu, up, inner, address: Option<&str>| Link {
        up,
        mtu,
        inner,
        addresses: address.into_iter().map(|a| a.parse().unwrap()).collect(),
    };
    let mtu = |links: &[(&str, Link)]| {
        let links = links.iter().map(|(n, l)| ((*n).into(), l.clone())).collect();
        desire(&i, &HostView::new(links, []), &"tunl0".into()).pod_mtu
    };
    let lo = || ("lo", link(65536, true, true, Some("10.0.1.1/32")));
    let cards = [("eth0", link(9000, true, false, None)), ("ens3", link(1500, true, false, None))];
    let all = |more: &[(&'static str, Link)]| {
        let all = std::iter::once(lo()).chain(cards.clone()).chain(more.iter().cloned());
        mtu(&all.collect::<Vec<_>>())
    };
    assert_eq!(all(&[]), 1500);
    assert_eq!(all(&[("enp9s0", link(1280, false, false, None))]), 1500, "one that is down does not count");
    assert_eq!(all(&[("docker0", link(1300, true, false, None))]), 1500, "nor one with another name");
    assert_eq!(all(&[("eth9", link(1300, true, true, None))]), 1500, "nor a dummy");
    assert_eq!(all(&[("vlan7", link(1400, true, false, Some("10.0.1.1/32")))]), 1400, "on a device, too");
    assert_eq!(mtu(&[lo()]), 1460);
}

#[test]
fn external_nodes_are_addresses_and_ranges() {
    let mut i = inputs(EncapMode::CrossSubnet);
    i.apply(&felix(brindle_config_core::felix::FelixConfigurationSpec {
        external_nodes_list: vec!["10.50.0.0/16".into(), "10.60.0.1".into(), "10.70.0.9/24".into()],
        ..Default::default()
    }));
    let sources = desired(&i).tunnel.unwrap().sources;
    let all: Vec<String> = sources.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["10.0.1.2/32", "10.0.2.3/32", "10.50.0.0/16", "10.60.0.1/32", "10.70.0.0/24"]);
}

#[test]
fn without_a_tunnel_the_reason_is_the_real_one() {
    assert_eq!(inputs(EncapMode::Never).why_no_ipip(), "no pool asks for IPIP");
    let mut i = inputs(EncapMode::Always);
    i.apply(&upsert("n1", NodeSpec::default()));
    assert_eq!(i.why_no_ipip(), "Node(n1) has no IPv4 address");
    i.apply(&felix(brindle_config_core::felix::FelixConfigurationSpec {
        ipip_enabled: Some(false),
        ..Default::default()
    }));
    assert_eq!(i.why_no_ipip(), "ipipEnabled is false in the FelixConfiguration");
}

proptest! {
    #[test]
    fn a_plan_reaches_what_is_wanted_spares_foreign_routes_and_is_then_empty(
        actual in prop::collection::vec(any_route(), 0..24),
        wanted in prop::collection::vec(any_route(), 0..16),
        fib_in_sync: bool,
    ) {
        let owner = ownership(&Inputs::new("n1"));
        let mut actual = table(actual);
        let wanted = table(wanted.into_iter().filter(|r| owner.owns(r)).collect());
        let foreign: Vec<_> = actual.values().filter(|r| !owner.owns(r)).cloned().collect();
        let cx = seeing(&owner, fib_in_sync);
        let host = host();
        let plan = Plan::new(&actual, &wanted, &host, &cx);
        apply(&mut actual, &plan);
        for r in foreign {
            prop_assert_eq!(actual.get(&r.key()), Some(&r));
        }
        let held: Vec<_> = plan.held.iter().map(|h| h.route.key()).collect();
        for (k, r) in &wanted {
            prop_assert!(held.contains(k) || actual.get(k) == Some(r));
        }
        prop_assert!(Plan::new(&actual, &wanted, &host, &cx).is_empty());
        if fib_in_sync {
            prop_assert!(actual.iter().all(|(k, r)| !owner.owns(r) || wanted.contains_key(k)));
        }
    }
}

#[test]
fn the_same_state_plans_nothing() {
    let d = desired(&inputs(EncapMode::CrossSubnet));
    let owner = ownership(&inputs(EncapMode::CrossSubnet));
    let cx = seeing(&owner, true);
    assert_eq!(Plan::new(&d.routes, &d.routes, &host(), &cx), Plan::default());
}

/// A change of state: a pod or a block comes or goes, a prefix is learned or withdrawn.
#[derive(Clone, Debug)]
enum Act {
    Pod(u8, Option<u8>),
    Block(u8, bool),
    Fib(u8, u8, Vec<u8>),
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u8..4, prop::option::of(0u8..4)).prop_map(|(p, a)| Act::Pod(p, a)),
        (0u8..4, any::<bool>()).prop_map(|(b, there)| Act::Block(b, there)),
        (0u8..4, prop::sample::select(vec![26u8, 32]), prop::collection::vec(1u8..5, 0..3))
            .prop_map(|(b, len, hops)| Act::Fib(b, len, hops)),
    ]
}

proptest! {
    /// Bringing one part up to date gives what computing everything anew gives, and names every entry it changed.
    #[test]
    fn a_refreshed_answer_equals_a_new_one(acts in prop::collection::vec(any_act(), 1..24), mode in 0u8..3) {
        let mode = [EncapMode::Never, EncapMode::Always, EncapMode::CrossSubnet][mode as usize];
        let (mut i, host, tunnel) = (inputs(mode), host(), "tunl0".into());
        let mut d = desire(&i, &host, &tunnel);
        for act in acts {
            let before = d.routes.clone();
            let touched = match act {
                Act::Pod(p, address) => {
                    let spec = WorkloadEndpointSpec {
                        node: if address.is_some() { "n1".into() } else { "elsewhere".into() },
                        interface_name: format!("cali{p}"),
                        ip_networks: address.map(|a| format!("192.168.{a}.0/32").parse().unwrap()).into_iter().collect(),
                        ..Default::default()
                    };
                    i.apply(&upsert(&format!("p{p}"), spec));
                    d.refresh_base(&i, &host, &tunnel)
                }
                Act::Block(b, there) => {
                    i.apply(&block(&format!("192.168.{b}.0/26"), if there { "n1" } else { "n2" }));
                    d.refresh_base(&i, &host, &tunnel)
                }
                Act::Fib(b, len, hops) => {
                    let prefix = format!("192.168.{b}.0/{len}").parse().unwrap();
                    let hops = hops.iter().map(|h| format!("10.0.{}.{h}", h % 2 + 1).parse().unwrap()).collect();
                    i.set_fib(prefix, hops);
                    d.refresh_fib(&i, &host, &tunnel, [prefix])
                }
            };
            prop_assert_eq!(&d, &desire(&i, &host, &tunnel));
            for key in before.keys().chain(d.routes.keys()) {
                prop_assert!(touched.contains(key) || before.get(key) == d.routes.get(key), "{:?}", key);
            }
        }
    }
}

#[test]
fn a_plan_reads_like_a_list_of_what_will_happen() {
    let route =
        |dst: &str, protocol, target| Route { dst: dst.parse().unwrap(), metric: 1024, protocol, target };
    let via = |gw: &str, onlink| Target::Via(vec![Hop::new(gw.parse().unwrap(), "eth0".into(), onlink)]);
    let actual = table(vec![
        route("192.168.1.0/26", 80, Target::Blackhole),
        route("192.168.1.5/32", 3, Target::Device("cali0old".into())),
        route("192.168.2.0/26", 4, via("10.0.1.9", false)),
        route("192.168.9.0/26", 80, via("10.0.1.2", true)),
        route("172.20.0.0/16", 4, via("10.0.1.9", false)),
    ]);
    let i = inputs(EncapMode::CrossSubnet);
    let owner = ownership(&i);
    let mut cx = seeing(&owner, true);
    let plan = Plan::new(&actual, &desired(&i).routes, &host(), &cx);
    assert_eq!(
        plan.to_string(),
        "\
~ 192.168.1.5/32 dev cali0123456789a scope link proto 3 metric 1024   (was 192.168.1.5/32 dev cali0old scope link proto 3 metric 1024)
+ 192.168.3.0/26 via 10.0.2.3 dev tunl0 onlink proto 80 metric 1024
- 192.168.9.0/26 via 10.0.1.2 dev eth0 onlink proto 80 metric 1024
? 192.168.2.0/26 via 10.0.1.2 dev eth0 onlink proto 80 metric 1024   (somebody else's route is in its place (192.168.2.0/26 via 10.0.1.9 dev eth0 proto 4 metric 1024); remove it or change its metric)
"
    );
    cx.fib_in_sync = false;
    let plan = Plan::new(&actual, &desired(&i).routes, &host(), &cx);
    assert!(plan.to_string().ends_with("= 1 kept for now\n"), "{plan}");
}

#[test]
fn of_several_entries_of_one_place_ours_go_and_others_stay() {
    let i = inputs(EncapMode::Never);
    let owner = ownership(&i);
    let six = |protocol, gw: &str| Route {
        dst: "2001:db8:2::/64".parse().unwrap(),
        metric: 1024,
        protocol,
        target: Target::Via(vec![Hop::new(gw.parse().unwrap(), "eth0".into(), true)]),
    };
    let (ours, old, theirs) = (six(80, "fe80::2"), six(80, "fe80::3"), six(9, "fe80::9"));
    let plan = |have: &[&Route], want: &[&Route]| {
        let of = |all: &[&Route]| table(all.iter().map(|r| (*r).clone()).collect());
        let beside: BTreeMap<_, _> = match have {
            [first, more @ ..] if !more.is_empty() => {
                BTreeMap::from([(first.key(), more.iter().map(|r| (*r).clone()).collect())])
            }
            _ => BTreeMap::new(),
        };
        let cx =
            PlanCx { owner: &owner, beside: &beside, fib_in_sync: true, grace: &|_| false, left: &|_| false };
        Plan::new(&of(&have[..have.len().min(1)]), &of(want), &host(), &cx)
    };
    assert_eq!(plan(&[&ours, &theirs], &[]).steps, [Step::Delete(ours.clone())]);
    assert_eq!(plan(&[&ours, &old, &theirs], &[]).steps.len(), 2);
    assert_eq!(plan(&[&ours, &theirs], &[&ours]), Plan::default(), "it is there");
    assert_eq!(plan(&[&old, &ours], &[&ours]).steps, [Step::Delete(old.clone())]);
    let there = plan(&[&old, &theirs], &[&ours]);
    assert_eq!(there.steps, [Step::Delete(old.clone())], "a replacement might hit theirs");
    assert!(there.held.len() == 1 && there.held[0].why.contains("fe80::9"), "{there}");
    let alone = plan(&[&theirs], &[&ours]);
    assert!(alone.is_empty() && alone.held.len() == 1, "no attempt that the kernel would refuse");
}
