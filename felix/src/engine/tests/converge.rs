//! What is written, repaired, kept and swept.

use brindle_kernel::{
    api::Kernel,
    fake::{Call, Fault},
    netlink::{Addr, NextHop, Route as KernelRoute, RouteChange},
};
use proptest::prelude::*;

use super::*;

fn pod_world() -> World {
    let w = world();
    w.add_device(POD_DEV, true);
    w
}

#[test]
fn nothing_is_written_before_the_store_is_in_sync() {
    let w = pod_world();
    let before = w.route_writes();
    let mut s = Sim::new(&w);
    let mut half = snapshot();
    half.pop();
    s.store(half);
    s.fib(&[("192.168.2.0/26", &["10.0.1.2"])], true);
    s.pass(Duration::from_secs(1000));
    assert_eq!(w.route_writes(), before);
    assert_eq!(w.sysctl("net/ipv4/ip_forward").unwrap(), "0");
    s.store([SyncEvent::InSync]);
    s.settle();
    assert!(w.route_writes() > before);
    assert_eq!(w.sysctl("net/ipv4/ip_forward").unwrap(), "1");
}

#[test]
fn a_node_comes_up_and_says_so() {
    let w = pod_world();
    let s = settled(&w);
    assert_eq!(s.table(), SETTLED);
    let r = s.report();
    assert_eq!(
        (r.routes.in_sync, r.routes.desired, r.routes.writes, r.ready.len()),
        (true, 4, 4, 1),
        "{r:?}"
    );
    assert_eq!(r.pod_mtu, 1500);
    assert_eq!(w.sysctl("net/ipv4/conf/cali00000000001/proxy_arp").unwrap(), "1");
    let neigh = w.other().neighs().unwrap();
    assert_eq!(neigh.len(), 1, "the pod's own address: {neigh:?}");
    let why: Vec<_> = r.encap.paths.iter().map(|p| p.why.as_str()).collect();
    assert!(why[1].contains("next hop behind 10.0.1.254"), "{why:?}");
}

#[test]
fn the_host_is_deaf_to_router_advertisements_of_a_pod_without_ipv6() {
    let w = pod_world();
    let keys = ["accept_ra", "accept_redirects"].map(|k| format!("net/ipv6/conf/{POD_DEV}/{k}"));
    for k in &keys {
        w.other().ensure_sysctl(k, "1").unwrap();
    }
    let s = settled(&w);
    assert_eq!(keys.map(|k| w.sysctl(&k).unwrap()), ["0", "0"]);
    assert_eq!(s.report().ready.len(), 1);

    let w = pod_world();
    w.without_ipv6();
    let s = settled(&w);
    assert_eq!(s.report().ready.len(), 1, "{:?}", s.report());
}

#[test]
fn a_restart_with_unchanged_state_writes_nothing() {
    let w = pod_world();
    drop(settled(&w));
    let before = w.route_writes();
    let s = settled(&w);
    assert_eq!(w.route_writes(), before);
    assert_eq!((s.report().routes.writes, s.report().ready.len()), (0, 1));
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn learned_routes_found_at_the_start_stay_until_the_speaker_is_in_sync() {
    let w = pod_world();
    drop(settled(&w));
    let mut s = Sim::new(&w);
    s.store(snapshot());
    s.pass(Duration::from_secs(200));
    assert_eq!(s.table(), SETTLED, "the speaker has said nothing yet");
    s.fib(&[("192.168.2.0/26", &["10.0.1.2"])], true);
    s.settle();
    assert_eq!(s.table().len(), SETTLED.len() - 1, "{:?}", s.table());
    assert_eq!(s.report().routes.writes, 1);
}

#[test]
fn a_speaker_made_anew_does_not_empty_the_table() {
    let w = pod_world();
    let mut s = settled(&w);
    s.give(FelixInput::Fib(FibUpdate { reset: true, ..FibUpdate::default() }));
    s.pass(Duration::from_secs(30));
    assert_eq!(s.table(), SETTLED);
    s.fib(&[("192.168.3.0/26", &["10.9.9.9"])], true);
    s.settle();
    assert!(!s.table().iter().any(|r| r.starts_with("192.168.2.0/26")));
}

#[test]
fn what_somebody_removes_or_changes_comes_back_at_once() {
    let w = pod_world();
    let mut s = settled(&w);
    for dst in ["192.168.1.5/32", "192.168.2.0/26", "192.168.1.0/26"] {
        let r = w.routes().into_iter().find(|r| r.dst.to_string() == dst).unwrap();
        write(&w, RouteChange::Delete(r));
        s.settle();
        assert_eq!(s.table(), SETTLED, "{dst}");
    }
    let r = w.routes().into_iter().find(|r| r.dst.to_string() == "192.168.2.0/26").unwrap();
    let other = KernelRoute { hops: vec![], ..r.clone() }.via(ip("10.0.1.77"), r.only_dev(), true);
    write(&w, RouteChange::Replace(other));
    s.settle();
    assert_eq!(s.table(), SETTLED);
    assert_eq!(s.report().routes.repairs, 4);
}

#[test]
fn a_fight_is_slowed_down_and_named() {
    let w = pod_world();
    let mut s = settled(&w);
    let mut removed = 0;
    for _ in 0..200 {
        if let Some(r) = w.routes().into_iter().find(|r| r.dst.to_string() == "192.168.2.0/26") {
            write(&w, RouteChange::Delete(r));
            removed += 1;
        }
        s.pass(Duration::from_millis(10));
    }
    assert!((6..12).contains(&removed), "repaired {removed} times within two seconds");
    assert!(s.report().routes.failed[0].contains("somebody keeps changing it"), "{:?}", s.report());
    s.pass(Duration::from_secs(5));
    assert_eq!(s.table(), SETTLED);
    assert!(s.report().routes.in_sync);
}

#[test]
fn a_pod_is_ready_when_its_device_has_come_up() {
    let w = world();
    let mut s = settled(&w);
    let a = key_of(&pod("a", POD_DEV, "192.168.1.5/32"));
    assert!(s.report().waiting[&a].contains("is not there"));
    let dev = w.add_device(POD_DEV, false);
    s.settle();
    assert!(s.report().waiting[&a].contains("is down"));
    w.other().set_link_up(dev, true).unwrap();
    s.settle();
    assert!(s.report().ready.contains(&a));
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn a_device_made_again_under_the_same_name_is_programmed_again() {
    let w = pod_world();
    let mut s = settled(&w);
    let old = w.link(POD_DEV).unwrap().index;
    w.other().del_link(old).unwrap();
    s.settle();
    assert_eq!(s.report().ready.len(), 0);
    let new = w.add_device(POD_DEV, true);
    assert_ne!(old, new);
    s.settle();
    assert_eq!(s.table(), SETTLED);
    assert_eq!(s.report().ready.len(), 1);
    assert_eq!(w.sysctl("net/ipv4/conf/cali00000000001/proxy_arp").unwrap(), "1");
    // All within what may have been one burst of events.
    w.other().del_link(new).unwrap();
    w.add_device(POD_DEV, true);
    s.settle();
    assert_eq!((s.table().as_slice(), s.report().ready.len()), (&SETTLED.map(String::from)[..], 1));
    assert_eq!(s.report().routes.repairs, 0, "nobody has undone anything");
}

#[test]
fn a_deleted_pod_leaves_no_route() {
    let w = pod_world();
    let mut s = settled(&w);
    s.store([SyncEvent::Delete(key_of(&pod("a", POD_DEV, "192.168.1.5/32")))]);
    s.pass(Duration::from_secs(11));
    assert!(!s.table().iter().any(|r| r.contains(POD_DEV)), "{:?}", s.table());
    assert!(s.report().ready.is_empty());
}

#[test]
fn an_unknown_route_on_a_new_pod_device_has_ten_seconds() {
    let w = pod_world();
    let mut s = settled(&w);
    s.pass(Duration::from_secs(60));
    let dev = w.add_device("cali00000000002", true);
    let early = KernelRoute::new("192.168.1.6/32".parse().unwrap()).dev(dev);
    write(&w, RouteChange::Add(early));
    s.pass(Duration::from_secs(9));
    assert_eq!(s.table().len(), SETTLED.len() + 1, "cni may be writing it");
    s.pass(Duration::from_secs(12));
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn a_foreign_route_in_the_way_is_named_and_spared() {
    let w = pod_world();
    let theirs = KernelRoute::new("192.168.2.0/26".parse().unwrap())
        .via(ip("10.0.1.99"), None, false)
        .with_protocol(4)
        .with_metric(1024);
    write(&w, RouteChange::Add(theirs.clone()));
    let mut s = settled(&w);
    let r = s.report();
    assert!(r.warnings[0].contains("somebody else's route is in its place"), "{r:?}");
    assert!(r.routes.in_sync && r.routes.failed.is_empty() && r.problems.is_empty(), "{r:?}");
    write(&w, RouteChange::Delete(w.routes().into_iter().find(|r| r.protocol == 4).unwrap()));
    s.settle();
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn a_foreign_route_in_the_place_of_a_pods_is_a_failure() {
    let w = pod_world();
    let theirs = KernelRoute::new("192.168.1.5/32".parse().unwrap())
        .via(ip("10.0.1.99"), None, false)
        .with_protocol(4)
        .with_metric(1024);
    write(&w, RouteChange::Add(theirs));
    let s = settled(&w);
    let r = s.report();
    assert!(r.routes.failed[0].contains("somebody else's route is in its place"), "{r:?}");
    assert!(!r.routes.in_sync && r.ready.is_empty() && r.warnings.is_empty(), "{r:?}");
}

#[test]
fn a_learned_route_that_waits_for_a_device_is_named() {
    let w = pod_world();
    let mut s = settled(&w);
    s.store([pod("b", "cali00000000002", "192.168.1.6/32")]);
    s.fib(&[("192.168.4.0/26", &["192.168.1.6"])], true);
    s.settle();
    let r = s.report();
    assert!(
        r.warnings[0].contains("192.168.4.0/26") && r.warnings[0].contains("waiting for device"),
        "{r:?}"
    );
    assert!(!r.routes.in_sync && r.routes.failed.is_empty() && r.problems.is_empty(), "{r:?}");
    w.add_device("cali00000000002", true);
    s.settle();
    assert!(s.report().routes.in_sync && s.report().warnings.is_empty(), "{:?}", s.report());
}

#[test]
fn a_next_hop_follows_the_hosts_own_route() {
    let w = pod_world();
    let mut s = settled(&w);
    let nearer = KernelRoute::new("10.9.0.0/16".parse().unwrap()).via(ip("10.0.1.253"), None, false);
    write(&w, RouteChange::Add(nearer));
    s.settle();
    assert!(s.table().iter().any(|r| r.starts_with("192.168.3.0/26 via 10.0.1.253")), "{:?}", s.table());
}

#[test]
fn a_next_hop_behind_a_gateway_on_no_subnet_is_reached_as_the_host_does() {
    let w = world();
    let eth0 = w.link("eth0").unwrap().index;
    let default = w.routes().into_iter().find(|r| r.dst.prefix_len() == 0).unwrap();
    write(&w, RouteChange::Delete(default));
    w.other().del_addr(eth0, "10.0.1.1/24".parse().unwrap()).unwrap();
    w.other().add_addr(&Addr::new(eth0, "10.0.1.1/32".parse().unwrap())).unwrap();
    let onlink = KernelRoute::new("0.0.0.0/0".parse().unwrap()).via(ip("10.77.9.9"), Some(eth0), true);
    write(&w, RouteChange::Add(onlink));
    let s = settled(&w);
    let route = w.routes().into_iter().find(|r| r.dst.to_string() == "192.168.3.0/26").unwrap();
    assert_eq!((route.hops[0].gateway, route.hops[0].onlink), (Some(ip("10.77.9.9")), true));
    assert!(s.report().routes.failed.is_empty(), "{:?}", s.report().routes);
}

#[test]
fn a_next_hop_behind_several_gateways_is_reached_by_those_that_live() {
    let w = pod_world();
    let eth0 = w.link("eth0").unwrap().index;
    let eth1 = w.add_device("eth1", true);
    w.other().add_addr(&Addr::new(eth1, "10.1.1.1/24".parse().unwrap())).unwrap();
    let hop = |gw: &str, dev, weight| NextHop {
        gateway: Some(ip(gw)),
        dev: Some(dev),
        onlink: false,
        weight,
        dead: false,
    };
    let mut both = KernelRoute::new("10.9.0.0/16".parse().unwrap());
    both.hops = vec![hop("10.0.1.253", eth0, 1), hop("10.1.1.254", eth1, 3)];
    write(&w, RouteChange::Add(both.clone()));
    let mut s = settled(&w);
    let ways = |s: &Sim, dst: &str| -> Vec<(String, u16)> {
        let r = s.world.routes().into_iter().find(|r| r.dst.to_string() == dst).unwrap();
        r.hops.iter().map(|h| (h.gateway.unwrap().to_string(), h.weight)).collect()
    };
    let way = |gw: &str, weight| (gw.to_owned(), weight);
    assert_eq!(ways(&s, "192.168.3.0/26"), [way("10.0.1.253", 1), way("10.1.1.254", 3)]);
    assert!(s.report().encap.paths[1].why.contains("behind 10.0.1.253 and 1 more"), "{:?}", s.report().encap);

    // A next hop of its own beside it has as much as both.
    s.fib(&[("192.168.4.0/26", &["10.0.1.2", "10.9.9.9"])], true);
    s.settle();
    let shares = ways(&s, "192.168.4.0/26");
    assert_eq!(shares, [way("10.0.1.2", 4), way("10.0.1.253", 1), way("10.1.1.254", 3)]);

    both.hops[0].dead = true;
    write(&w, RouteChange::Replace(both.clone()));
    s.settle();
    assert_eq!(ways(&s, "192.168.3.0/26"), [way("10.1.1.254", 1)]);
    both.hops[1].dead = true;
    write(&w, RouteChange::Replace(both));
    s.settle();
    assert!(!s.table().iter().any(|r| r.starts_with("192.168.3.0/26")), "{:?}", s.table());
}

#[test]
fn new_pods_have_the_mtu_of_the_network_card_where_the_nodes_address_is_on_lo() {
    let w = pod_world();
    let (lo, eth0) = (w.link("lo").unwrap().index, w.link("eth0").unwrap().index);
    w.other().set_link_up(lo, true).unwrap();
    w.other().del_addr(eth0, "10.0.1.1/24".parse().unwrap()).unwrap();
    w.other().add_addr(&Addr::new(lo, "10.0.1.1/32".parse().unwrap())).unwrap();
    let mut s = settled(&w);
    assert_eq!(s.report().pod_mtu, 1500);
    w.other().set_link_mtu(eth0, 1400).unwrap();
    s.settle();
    assert_eq!(s.report().pod_mtu, 1400, "a device without addresses");
}

#[test]
fn a_parent_that_bounces_gets_its_routes_back() {
    let w = pod_world();
    let mut s = settled(&w);
    let eth0 = w.link("eth0").unwrap().index;
    w.other().set_link_up(eth0, false).unwrap();
    s.settle();
    w.other().set_link_up(eth0, true).unwrap();
    s.settle();
    assert!(s.table().iter().any(|r| r.starts_with("192.168.2.0/26")), "{:?}", s.table());
    let default = KernelRoute::new("0.0.0.0/0".parse().unwrap()).via(ip("10.0.1.254"), None, false);
    write(&w, RouteChange::Add(default));
    s.settle();
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn addresses_of_services_on_kube_ipvs0_are_none_of_this_host() {
    let w = pod_world();
    let mut s = settled(&w);
    let ipvs = w.add_device("kube-ipvs0", true);
    s.settle();
    // The node's own address as a service's external address, as kube-proxy would put it there.
    for net in ["10.96.0.1/32", "10.0.1.1/32"] {
        w.other().add_addr(&Addr::new(ipvs, net.parse().unwrap())).unwrap();
    }
    s.settle();
    let carrier = |s: &Sim| s.engine.view.host.carrier_of(ip("10.0.1.1")).map(|(n, _)| n.to_owned());
    assert_eq!(carrier(&s).as_deref(), Some("eth0"));
    s.give(FelixInput::Resync("as if events were lost".into()));
    s.settle();
    assert_eq!(carrier(&s).as_deref(), Some("eth0"), "nor when all is read");
    w.fail_next(Call::Routes, Fault::Timeout);
    w.other().del_addr(ipvs, "10.96.0.1/32".parse().unwrap()).unwrap();
    s.settle();
    assert!(!w.faults_used_up(), "a service that goes is no reason to read everything again");
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn an_interval_of_zero_switches_the_slow_resync_off() {
    let w = pod_world();
    let mut s = settled(&w);
    assert!(s.engine.deadline().is_some());
    let spec = brindle_config_core::felix::FelixConfigurationSpec {
        route_refresh_interval: Some("0".into()),
        ..Default::default()
    };
    s.store([upsert("default", spec)]);
    s.pass(Duration::from_secs(120));
    assert_eq!(s.engine.deadline(), None, "an idle engine does nothing at all");
}

#[test]
fn an_interval_longer_than_a_clock_goes_is_no_interval() {
    let w = pod_world();
    let mut s = settled(&w);
    for text in ["9999999999999999999s", "9223372036s"] {
        let spec = brindle_config_core::felix::FelixConfigurationSpec {
            route_refresh_interval: Some(text.into()),
            ..Default::default()
        };
        s.store([upsert("default", spec)]);
        s.pass(Duration::from_secs(120));
        assert!(s.engine.deadline().is_some(), "{text}");
    }
}

/// Any route of the main table, ours or not.
fn any_route(devs: Vec<u32>) -> impl Strategy<Value = KernelRoute> {
    let protocol = prop::sample::select(vec![3u8, 4, 12, 80, 80, 186]);
    let metric = prop::sample::select(vec![0u32, 512, 1024]);
    let dst = (0u8..6, prop::sample::select(vec![24u8, 26, 32]));
    (dst, 0u8..4, prop::sample::select(devs), protocol, metric).prop_map(
        |((b, len), form, dev, proto, metric)| {
            let dst = format!("192.168.{b}.0/{len}").parse().unwrap();
            let r = match form {
                0 => KernelRoute::blackhole(dst),
                1 => KernelRoute::new(dst).dev(dev),
                _ => KernelRoute::new(dst).via(ip(&format!("10.0.1.{}", 2 + form)), Some(dev), true),
            };
            r.with_protocol(proto).with_metric(metric)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// From any table and any wish: what is wanted is there, what is foreign survives, what is ours and unwanted goes,
    /// and the next reading writes nothing.
    #[test]
    fn any_start_converges(
        found in prop::collection::vec(any_route(vec![2, 3]), 0..20),
        learned in prop::collection::btree_map((0u8..6, prop::sample::select(vec![24u8, 26])), 2u8..5, 0..8),
        pods in prop::collection::btree_set(0u8..6, 0..4),
    ) {
        let w = world();
        w.add_device(POD_DEV, true);
        for r in &found {
            w.other().write_routes(&[RouteChange::Add(r.clone())]);
        }
        let owner = brindle_felix_core::desire::ownership(&Inputs::new("n1"));
        let pod_dev = w.link(POD_DEV).unwrap().index;
        let ours = |r: &KernelRoute| {
            r.protocol == 80 || (r.protocol != 2 && r.only_dev() == Some(pod_dev) && owner.remove_external)
        };
        let foreign: Vec<_> = w.routes().into_iter().filter(|r| !ours(r)).collect();
        let mut s = Sim::new(&w);
        s.store([pool(EncapMode::Never), node("n1", "10.0.1.1/24", None), SyncEvent::InSync]);
        s.store(pods.iter().map(|b| pod(&format!("p{b}"), POD_DEV, &format!("192.168.{b}.0/32"))));
        let changes: Vec<_> = learned.iter().map(|((b, len), hop)| (format!("192.168.{b}.0/{len}"), format!("10.0.1.{hop}"))).collect();
        for (p, h) in &changes {
            s.fib(&[(p.as_str(), &[h.as_str()])], false);
        }
        s.fib(&[], true);
        s.pass(Duration::from_secs(30));

        let table = w.routes();
        for r in &foreign {
            prop_assert!(table.contains(r), "{r} was foreign");
        }
        let held: Vec<_> = s.engine.held.keys().collect();
        for (k, want) in &s.engine.wanted.routes {
            prop_assert!(held.contains(&k) || s.engine.view.actual.get(k) == Some(want), "{want}");
        }
        let wanted_keys = &s.engine.wanted.routes;
        for r in table.iter().filter(|r| ours(r)) {
            prop_assert!(wanted_keys.contains_key(&(r.dst, r.metric)), "{r} is ours and not wanted");
        }
        let writes = w.route_writes();
        let believed = s.engine.view.actual.clone();
        s.give(FelixInput::Resync("test".into()));
        s.settle();
        prop_assert_eq!(w.route_writes(), writes, "the second plan is empty");
        prop_assert_eq!(&s.engine.view.actual, &believed, "the view was true");
    }

    /// Interference at any time: when it ends, the table is as before.
    #[test]
    fn interference_is_undone(acts in prop::collection::vec((0u8..7, 0usize..8), 1..30)) {
        let w = world();
        w.add_device(POD_DEV, true);
        let mut s = settled(&w);
        for (act, which) in acts {
            let pod_dev = w.link(POD_DEV).map(|l| l.index);
            let routes: Vec<_> = w.routes().into_iter().filter(|r| r.protocol == 80 || r.only_dev() == pod_dev).collect();
            match (act, pod_dev) {
                (0 | 1, _) => {
                    if let Some(r) = routes.get(which % routes.len().max(1)) {
                        w.other().write_routes(&[RouteChange::Delete(r.clone())]);
                    }
                }
                (2, _) => {
                    if let Some(r) = routes.get(which % routes.len().max(1)) {
                        let black = KernelRoute { hops: vec![], kind: brindle_kernel::netlink::RouteKind::Blackhole, ..r.clone() };
                        w.other().write_routes(&[RouteChange::Replace(black.with_protocol(80))]);
                    }
                }
                (3, Some(d)) => w.other().set_link_up(d, which % 2 == 0).unwrap(),
                (4, Some(d)) => w.other().del_link(d).unwrap(),
                (4, None) => drop(w.add_device(POD_DEV, true)),
                (5, _) => s.pass(Duration::from_millis(which as u64 * 100)),
                _ => s.settle(),
            }
        }
        let dev = w.add_device(POD_DEV, true);
        w.other().set_link_up(dev, true).unwrap();
        s.pass(Duration::from_secs(20));
        prop_assert_eq!(s.table(), SETTLED);
        prop_assert!(s.report().routes.in_sync, "{:?}", s.report());
        prop_assert_eq!(s.report().ready.len(), 1);
    }
}

#[test]
fn addresses_pods_peer_with_are_on_their_devices_and_on_no_others() {
    let w = pod_world();
    let peering = |all: &[&str]| {
        let addresses = all.iter().map(|a| ip(a)).collect::<Vec<_>>();
        let all = (!addresses.is_empty()).then(|| (POD_DEV.to_owned(), addresses));
        FelixInput::Peering(all.into_iter().collect())
    };
    let on = |w: &World| {
        let all = w.addrs(w.link(POD_DEV).unwrap().index);
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut s = settled(&w);
    s.give(peering(&["169.254.1.2", "fd00:1::2"]));
    s.settle();
    assert_eq!(on(&w), ["169.254.1.2/32", "fd00:1::2/128"]);
    assert_eq!(s.table(), SETTLED);
    // Somebody removes one.
    let index = w.link(POD_DEV).unwrap().index;
    w.other().del_addr(index, "169.254.1.2/32".parse().unwrap()).unwrap();
    s.settle();
    assert_eq!(on(&w).len(), 2);
    // A restarted agent leaves them until it is told, and knows them as its own.
    let mut s = settled(&w);
    assert_eq!(on(&w).len(), 2);
    s.give(peering(&["169.254.1.3"]));
    s.settle();
    assert_eq!(on(&w), ["169.254.1.3/32"]);
    // What has another form is somebody else's.
    w.other().add_addr(&Addr::new(index, "10.7.0.1/24".parse().unwrap())).unwrap();
    s.give(peering(&[]));
    s.settle();
    assert_eq!(on(&w), ["10.7.0.1/24"]);
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn a_next_hop_somebody_asks_about_is_reported_though_no_route_has_it() {
    let w = pod_world();
    let mut s = settled(&w);
    let asked = [ip("10.0.1.77"), ip("10.20.0.1"), ip("fd00::1")];
    assert!(!s.report().devices.contains_key(&asked[0]));
    s.give(FelixInput::Fib(FibUpdate { locate: asked.to_vec(), ..FibUpdate::default() }));
    s.settle();
    let r = s.report();
    let devices = asked.map(|a| r.devices.get(&a).map(String::as_str));
    assert_eq!(devices, [Some("eth0"), Some("eth0"), None]);
    assert_eq!(r.next_hops.get(&asked[2]), Some(&None), "out of reach is an answer, too");
    // It is followed: a device comes up that is nearer.
    let other = w.add_device("eth1", true);
    w.other().add_addr(&Addr::new(other, "10.20.0.2/24".parse().unwrap())).unwrap();
    s.settle();
    assert_eq!(s.report().devices.get(&asked[1]).map(String::as_str), Some("eth1"));
}

#[test]
fn what_a_pod_of_this_node_announces_is_behind_its_device() {
    let w = pod_world();
    let mut s = settled(&w);
    // Inside a pool and outside; the pool's encapsulation is for what is between nodes.
    s.store([pool(EncapMode::Always)]);
    s.fib(&[("192.168.77.0/26", &["192.168.1.5"]), ("10.123.0.0/26", &["192.168.1.5"])], true);
    s.settle();
    for prefix in ["192.168.77.0/26", "10.123.0.0/26"] {
        let route = format!("{prefix} via 192.168.1.5 dev {POD_DEV} proto 80 metric 1024");
        assert!(s.table().contains(&route), "{:?}", s.table());
    }
    assert_eq!(s.report().devices.get(&ip("192.168.1.5")).map(String::as_str), Some(POD_DEV));
}
