//! The netlink API against this machine's kernel, each test in namespaces of its own. Needs root.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use brindle_kernel::{
    netfilter::{IpVersion, Netfilter as _, Tools},
    netlink::{
        Addr, Event, Family, Group, Mac, Monitor, Neigh, NetlinkError, Op, Route, RouteBatcher, RouteChange,
        RouteFilter, RouteKind, Rtnl, Veth, VethPeer, proto, scope,
    },
    netns::NetNs,
};

struct Ns {
    ns: NetNs,
    name: String,
}

impl Ns {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bt-{}-r{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ns = NetNs::create(&name).expect("create namespace; are you root?");
        Self { ns, name }
    }

    fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.ns).unwrap()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.name);
    }
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// A namespace with `v0` (10.9.0.1/24, up); the peer is up too. Returns the index of v0.
fn with_veth(ns: &Ns) -> (Rtnl, u32) {
    let mut nl = ns.rtnl();
    nl.set_up("lo").unwrap();
    let peer = VethPeer { name: "v1", ..Default::default() };
    nl.add_veth(&Veth { name: "v0", up: true, peer, ..Default::default() }).unwrap();
    nl.set_up("v1").unwrap();
    let v0 = nl.link_by_name("v0").unwrap().unwrap();
    nl.add_addr(&Addr::new(v0.index, "10.9.0.1/24".parse().unwrap())).unwrap();
    (nl, v0.index)
}

#[test]
fn a_veth_is_born_whole_with_its_peer_in_another_namespace() {
    let (a, b) = (Ns::new(), Ns::new());
    let (near, far): (Mac, Mac) =
        ("ee:ee:ee:ee:ee:ee".parse().unwrap(), "02:00:00:00:00:05".parse().unwrap());
    let mut nl = a.rtnl();
    let veth = Veth {
        name: "cali1",
        mac: Some(near),
        mtu: Some(1430),
        up: true,
        peer: VethPeer { name: "eth0", mac: Some(far), netns: Some(&b.ns) },
    };
    nl.add_veth(&veth).unwrap();
    let host = nl.link_by_name("cali1").unwrap().unwrap();
    let pod = b.rtnl().link_by_name("eth0").unwrap().unwrap();
    assert_eq!((host.mtu, host.mac, host.up, host.kind.as_deref()), (1430, Some(near), true, Some("veth")));
    assert_eq!((pod.mtu, pod.mac, pod.up), (1430, Some(far), false));
    assert_eq!(host.link, Some(pod.index));
    assert!(host.peer_netns.is_some());
    let again = nl.add_veth(&veth).unwrap_err();
    assert!(again.is_exists(), "{again}");
    assert!(again.to_string().starts_with("add veth cali1 with peer eth0: "), "{again}");
    nl.del_link("cali1").unwrap();
    assert_eq!(nl.link_by_name("cali1").unwrap(), None);
    assert!(nl.del_link("cali1").unwrap_err().is_not_found());
}

#[test]
fn links_can_be_renamed_moved_bridged_and_measured() {
    let (a, b) = (Ns::new(), Ns::new());
    let (mut nl, v0) = with_veth(&a);
    nl.add_bridge("br0", Some(1400)).unwrap();
    let br = nl.link_by_name("br0").unwrap().unwrap();
    assert_eq!((br.kind.as_deref(), br.mtu, br.up), (Some("bridge"), 1400, false));
    nl.set_master(v0, Some(br.index)).unwrap();
    nl.set_mtu("v0", 1300).unwrap();
    nl.set_mac("v0", "02:00:00:00:00:09".parse().unwrap()).unwrap();
    let l = nl.link_by_index(v0).unwrap().unwrap();
    assert_eq!(
        (l.master, l.mtu, l.mac.unwrap().to_string().as_str()),
        (Some(br.index), 1300, "02:00:00:00:00:09")
    );
    nl.set_master(v0, None).unwrap();
    nl.set_down("v0").unwrap();
    nl.rename(v0, "renamed").unwrap();
    nl.set_netns("renamed", &b.ns).unwrap();
    assert_eq!(nl.link_by_name("renamed").unwrap(), None);
    let there = b.rtnl().links().unwrap();
    assert!(there.iter().any(|l| l.name == "renamed" && !l.up), "{there:?}");
    assert!(there.iter().any(|l| l.name == "lo" && l.loopback));
}

#[test]
fn addresses_come_and_go() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let six = Addr {
        flags: brindle_kernel::netlink::addr_flag::NODAD,
        ..Addr::new(v0, "2001:db8::1/64".parse().unwrap())
    };
    nl.add_addr(&six).unwrap();
    let e = nl.add_addr(&six).unwrap_err();
    assert!(e.is_exists(), "{e}");
    let got = nl.addrs(Some(v0)).unwrap();
    assert!(got.iter().any(|x| x.net == six.net));
    assert!(got.iter().any(|x| x.net.to_string() == "10.9.0.1/24"));
    assert!(nl.addrs(None).unwrap().len() >= 3);
    nl.del_addr(v0, six.net).unwrap();
    let gone = nl.del_addr(v0, six.net).unwrap_err();
    assert!(gone.is_not_found(), "{gone}");
}

#[test]
fn routes_read_back_as_they_were_written() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let mut multi = Route::new("10.1.4.0/26".parse().unwrap()).with_protocol(80);
    for last in [7, 8] {
        multi = multi.via(ip(&format!("10.9.0.{last}")), Some(v0), true);
    }
    let wanted = [
        Route::new("10.1.0.5/32".parse().unwrap()).dev(v0).with_metric(1024),
        Route::new("10.1.1.0/26".parse().unwrap()).via(ip("10.9.0.7"), Some(v0), false).with_protocol(80),
        Route::new("10.1.2.0/26".parse().unwrap())
            .via(ip("192.0.2.1"), Some(v0), true)
            .with_protocol(80)
            .with_mtu(1280),
        Route::blackhole("10.1.3.0/26".parse().unwrap()).with_protocol(80),
        multi,
        Route::new("2001:db8:1::/64".parse().unwrap()).dev(v0).with_metric(77).with_protocol(80),
        Route::blackhole("2001:db8:2::/64".parse().unwrap()).with_metric(1024).with_protocol(80),
    ];
    for r in &wanted {
        nl.add_route(r).unwrap();
    }
    let got = nl.routes(&RouteFilter::main()).unwrap();
    for r in &wanted {
        assert!(
            got.contains(r),
            "{r} is not among\n{}",
            got.iter().map(|r| format!("{r}\n")).collect::<String>()
        );
    }
    let only80 = nl
        .routes(&RouteFilter { protocol: Some(80), family: Some(Family::V4), ..RouteFilter::main() })
        .unwrap();
    assert_eq!(only80.len(), 4);
    for r in &wanted {
        nl.del_route(r).unwrap();
    }
    assert!(nl.routes(&RouteFilter { protocol: Some(80), ..RouteFilter::main() }).unwrap().is_empty());
}

#[test]
fn a_deletion_never_hits_a_route_of_another_protocol() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let theirs = Route::new("10.1.0.0/26".parse().unwrap()).dev(v0).with_protocol(proto::STATIC);
    nl.add_route(&theirs).unwrap();
    let e = nl.del_route(&theirs.clone().with_protocol(80)).unwrap_err();
    assert!(e.is_not_found(), "{e}");
    nl.del_route(&theirs).unwrap();
}

#[test]
fn a_refused_route_carries_the_kernels_words() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let e = nl
        .add_route(&Route::new("10.1.0.0/26".parse().unwrap()).via(ip("192.0.2.1"), Some(v0), false))
        .unwrap_err();
    assert_eq!(e.to_string(), "add route 10.1.0.0/26 via 192.0.2.1 dev 2 proto 3: Network is unreachable (ENETUNREACH): Nexthop has invalid gateway".replace("dev 2", &format!("dev {v0}")));
}

#[test]
fn a_look_up_gives_the_entry_that_would_be_used() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let r = nl.route_to(ip("10.9.0.77")).unwrap().unwrap();
    assert_eq!(
        (r.dst.to_string().as_str(), r.only_dev(), r.protocol, r.scope),
        ("10.9.0.0/24", Some(v0), proto::KERNEL, scope::LINK)
    );
    assert_eq!(nl.route_to(ip("203.0.113.1")).unwrap(), None);
}

#[test]
fn neighbours_are_set_listed_and_removed() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let n = Neigh::permanent(v0, ip("10.9.0.7"), "02:00:00:00:00:07".parse().unwrap());
    nl.set_neigh(&n).unwrap();
    nl.set_neigh(&n).unwrap();
    assert!(nl.neighs(Some(v0)).unwrap().contains(&n));
    nl.del_neigh(v0, n.addr).unwrap();
    assert!(nl.del_neigh(v0, n.addr).unwrap_err().is_not_found());
}

#[test]
fn many_changes_travel_together_and_fail_alone() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let ops: Vec<Op> = (0..300)
        .map(|i| match i % 3 {
            0 => Op::add_route(
                &Route::new(format!("10.2.{}.0/24", i % 256).parse().unwrap()).dev(v0).with_metric(i + 1),
            ),
            1 => Op::set_mtu(v0, 1000 + i),
            _ => Op::del_link("no-such-dev"),
        })
        .collect();
    let got = nl.run(&ops);
    assert_eq!(got.len(), 300);
    for (i, r) in got.iter().enumerate() {
        assert_eq!(r.is_ok(), i % 3 != 2, "{i}: {r:?}");
    }
}

#[test]
fn a_missing_device_kind_is_unsupported_or_works() {
    let a = Ns::new();
    let mut nl = a.rtnl();
    let e = nl.add_link_generic("x0", "nosuchkind", None).unwrap_err();
    assert!(e.is_unsupported(), "{e}");
}

#[test]
fn a_bulk_adds_replaces_deletes_and_maps_each_refusal() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let mut batch = RouteBatcher::open_in(&a.ns).unwrap();
    let route = |i: u32| {
        Route::new(std::net::Ipv4Addr::from(0x0a40_0000 + i).to_string().parse::<IpAddr>().unwrap().into())
            .dev(v0)
            .with_protocol(80)
    };
    let n = 1000;
    nl.add_route(&route(500)).unwrap();
    nl.add_route(&route(127)).unwrap();
    let adds: Vec<_> = (0..n).map(|i| RouteChange::Add(route(i))).collect();
    let report = batch.apply(&adds);
    assert_eq!(report.broken, None);
    assert_eq!(report.refused.iter().map(|r| r.index).collect::<Vec<_>>(), [127, 500]);
    assert!(report.refused.iter().all(|r| r.error.is_exists()));
    assert_eq!((report.done, report.sent_to), (998, 1000));

    let replaced: Vec<_> = (0..n).map(|i| RouteChange::Replace(route(i))).collect();
    assert_eq!(batch.apply(&replaced).done, 1000);
    let ours = RouteFilter { protocol: Some(80), ..RouteFilter::main() };
    assert_eq!(nl.routes(&ours).unwrap().len(), 1000);

    let gone: Vec<_> = (0..=n).map(|i| RouteChange::Delete(route(i))).collect();
    let report = batch.apply(&gone);
    assert_eq!((report.done, report.refused.len()), (1000, 1));
    assert!(report.refused[0].error.is_not_found());
    assert!(nl.routes(&ours).unwrap().is_empty());
}

#[test]
fn a_whole_batch_of_refusals_is_not_lost() {
    let a = Ns::new();
    let (_, v0) = with_veth(&a);
    let mut batch = RouteBatcher::open_in(&a.ns).unwrap();
    let bad = Route::new("10.1.0.0/26".parse().unwrap()).via(ip("192.0.2.1"), Some(v0), false);
    let report = batch.apply(&vec![RouteChange::Add(bad); 2000]);
    assert_eq!((report.done, report.refused.len(), report.broken), (0, 2000, None));
}

#[test]
fn changes_are_reported_as_they_happen() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let mut mon = Monitor::open_in(&a.ns, &[Group::Links, Group::AddrsV4, Group::RoutesV4]).unwrap();
    let r = Route::new("10.1.0.5/32".parse().unwrap()).dev(v0).with_protocol(80);
    nl.add_route(&r).unwrap();
    nl.del_route(&r).unwrap();
    nl.set_mtu(v0, 1234).unwrap();
    nl.del_addr(v0, "10.9.0.1/24".parse().unwrap()).unwrap();
    nl.del_link(v0).unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(|e| matches!(e, Event::LinkGone(l) if l.index == v0)) {
        let some = mon.next(Some(Duration::from_secs(10))).unwrap();
        assert!(!some.is_empty(), "no further event after {seen:?}");
        seen.extend(some);
    }
    assert!(seen.contains(&Event::Route(r.clone())));
    assert!(seen.contains(&Event::RouteGone(r)));
    assert!(seen.iter().any(|e| matches!(e, Event::Link(l) if l.mtu == 1234)));
    assert!(seen.iter().any(|e| matches!(e, Event::AddrGone(a) if a.net.to_string() == "10.9.0.1/24")));
}

#[test]
fn a_monitor_that_is_overrun_says_so_and_goes_on() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let mut mon = Monitor::open_in(&a.ns, &[Group::Links, Group::RoutesV4]).unwrap();
    mon.set_buffer(1).unwrap();
    let mut batch = RouteBatcher::open_in(&a.ns).unwrap();
    let routes: Vec<Route> = (0..1000)
        .map(|i| {
            let dst = format!("10.{}.{}.0/24", 32 + i / 256, i % 256).parse().unwrap();
            Route::new(dst).dev(v0).with_protocol(80)
        })
        .collect();
    // Each time, also when nothing was read since the last one: the kernel says so only once by itself.
    for kind in [RouteChange::Add, RouteChange::Delete, RouteChange::Add] {
        assert_eq!(batch.apply(&routes.iter().cloned().map(kind).collect::<Vec<_>>()).done, 1000);
        let told = mon.next(Some(Duration::ZERO)).unwrap_err();
        assert!(matches!(told, NetlinkError::Overrun { .. }), "{told}");
    }
    assert_eq!(mon.next(Some(Duration::ZERO)).unwrap(), [], "what waited is thrown away with what was lost");

    // What was lost can be read, and what comes now is heard.
    let ours = RouteFilter { protocol: Some(80), ..RouteFilter::main() };
    assert_eq!(nl.routes(&ours).unwrap().len(), 1000);
    nl.set_mtu(v0, 1300).unwrap();
    let mut news = Vec::new();
    while !news.iter().any(|e| matches!(e, Event::Link(l) if l.mtu == 1300)) {
        let some = mon.next(Some(Duration::from_secs(10))).unwrap();
        assert!(!some.is_empty(), "no further event after {news:?}");
        news.extend(some);
    }
}

#[test]
fn own_route_changes_take_no_room_from_what_others_do() {
    let a = Ns::new();
    let (mut nl, v0) = with_veth(&a);
    let mut own = a.rtnl();
    let mut batch = RouteBatcher::open_in(&a.ns).unwrap();
    let mut mon = Monitor::open_in(&a.ns, &[Group::Links, Group::RoutesV4, Group::RoutesV6]).unwrap();
    mon.ignore(&[own.port(), batch.port()]);
    // Room for a few dozen events.
    mon.set_buffer(16 << 10).unwrap();
    let route = |dst: &str| Route::new(dst.parse().unwrap()).dev(v0).with_protocol(80);
    let routes: Vec<Route> =
        (0..1000).map(|i| route(&format!("10.{}.{}.0/24", 32 + i / 256, i % 256))).collect();
    for kind in [RouteChange::Add, RouteChange::Replace, RouteChange::Delete] {
        assert_eq!(batch.apply(&routes.iter().cloned().map(kind).collect::<Vec<_>>()).done, 1000);
    }
    own.add_route(&route("2001:db8::/64")).unwrap();
    assert_eq!(mon.next(Some(Duration::ZERO)).unwrap(), []);
    // Others are heard, and so is what is no route whoever did it.
    nl.add_route(&routes[0]).unwrap();
    assert_eq!(mon.next(Some(Duration::from_secs(10))).unwrap(), [Event::Route(routes[0].clone())]);
    nl.del_route(&routes[0]).unwrap();
    assert_eq!(mon.next(Some(Duration::from_secs(10))).unwrap(), [Event::RouteGone(routes[0].clone())]);
    own.set_mtu(v0, 1234).unwrap();
    let news = mon.next(Some(Duration::from_secs(10))).unwrap();
    assert!(matches!(&news[..], [Event::Link(l), ..] if l.mtu == 1234), "{news:?}");
}

#[test]
fn a_waiting_monitor_can_be_woken() {
    let a = Ns::new();
    let mut mon = Monitor::open_in(&a.ns, &[Group::Links]).unwrap();
    let waker = mon.waker();
    let t = std::thread::spawn(move || mon.next(None).unwrap());
    waker.wake();
    assert_eq!(t.join().unwrap(), []);
}

#[test]
fn blackholes_have_no_way_out_in_either_family() {
    let a = Ns::new();
    let (mut nl, _) = with_veth(&a);
    nl.add_route(&Route::blackhole("2001:db8::/48".parse().unwrap()).with_protocol(80)).unwrap();
    let got = nl.routes(&RouteFilter { protocol: Some(80), ..RouteFilter::main() }).unwrap();
    assert_eq!((got[0].kind, got[0].hops.len(), got[0].metric), (RouteKind::Blackhole, 0, 1024));
}

#[test]
fn a_table_of_nftables_is_found_by_its_name_and_family() {
    let a = Ns::new();
    let list = a.ns.run(|| {
        let mut nf = Tools::default();
        let mut look = |input: &str| {
            if !input.is_empty() {
                nf.nft(input).unwrap();
            }
            [(IpVersion::V4, "mine"), (IpVersion::V6, "mine"), (IpVersion::V4, "other")]
                .map(|(v, name)| nf.nft_list(v, name).unwrap().is_some_and(|text| text.contains(name)))
        };
        [look(""), look("add table ip mine\n"), look("add table ip6 mine\n"), look("delete table ip mine\n")]
    });
    let list = list.expect("the namespace is alive");
    assert_eq!(list, [[false; 3], [true, false, false], [true, true, false], [false, true, false]]);
}
