//! One suite, two implementations: the model with which reconcilers are tested, and Linux in a namespace. What a test
//! relies on in the model is shown here to hold on Linux too. Needs root for the second.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use brindle_kernel::{
    api::{Events, Kernel, Linux},
    fake::World,
    netlink::{
        Addr, BatchReport, Event, Neigh, NextHop, Route, RouteChange, RouteFilter, RouteKind, Rtnl, Veth,
        VethPeer, proto, scope,
    },
    netns::NetNs,
};

/// A namespace with `v0` and `v1`, both down, of either make.
trait Bench {
    /// A program's access.
    fn open(&self) -> (Box<dyn Kernel>, Box<dyn Events>);
}

struct FakeBench(World);

impl Bench for FakeBench {
    fn open(&self) -> (Box<dyn Kernel>, Box<dyn Events>) {
        let (k, e) = self.0.open();
        (Box::new(k), Box::new(e))
    }
}

struct LinuxBench {
    ns: NetNs,
    name: String,
}

impl Drop for LinuxBench {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.name);
    }
}

impl Bench for LinuxBench {
    fn open(&self) -> (Box<dyn Kernel>, Box<dyn Events>) {
        let (k, e) = self.ns.run(|| Linux::open().unwrap()).unwrap();
        (Box::new(Inside { ns: NetNs::open(self.ns.path()).unwrap(), k }), Box::new(e))
    }
}

/// Parameters are resolved by thread; the test's thread is not in the namespace.
struct Inside {
    ns: NetNs,
    k: Linux,
}

impl Kernel for Inside {
    fn links(&mut self) -> Result<Vec<brindle_kernel::netlink::Link>, brindle_kernel::netlink::NetlinkError> {
        self.k.links()
    }
    fn addrs(&mut self) -> Result<Vec<Addr>, brindle_kernel::netlink::NetlinkError> {
        self.k.addrs()
    }
    fn routes(&mut self, f: &RouteFilter) -> Result<Vec<Route>, brindle_kernel::netlink::NetlinkError> {
        self.k.routes(f)
    }
    fn neighs(&mut self) -> Result<Vec<Neigh>, brindle_kernel::netlink::NetlinkError> {
        self.k.neighs()
    }
    fn write_routes(&mut self, c: &[RouteChange]) -> BatchReport {
        self.k.write_routes(c)
    }
    fn add_link(
        &mut self,
        n: &str,
        k: &str,
        m: Option<u32>,
    ) -> Result<(), brindle_kernel::netlink::NetlinkError> {
        self.k.add_link(n, k, m)
    }
    fn del_link(&mut self, i: u32) -> Result<(), brindle_kernel::netlink::NetlinkError> {
        self.k.del_link(i)
    }
    fn set_link_up(&mut self, i: u32, up: bool) -> Result<(), brindle_kernel::netlink::NetlinkError> {
        self.k.set_link_up(i, up)
    }
    fn set_link_mtu(&mut self, i: u32, m: u32) -> Result<(), brindle_kernel::netlink::NetlinkError> {
        self.k.set_link_mtu(i, m)
    }
    fn add_addr(&mut self, a: &Addr) -> Result<(), brindle_kernel::netlink::NetlinkError> {
        self.k.add_addr(a)
    }
    fn del_addr(&mut self, l: u32, n: ipnet::IpNet) -> Result<(), brindle_kernel::netlink::NetlinkError> {
        self.k.del_addr(l, n)
    }
    fn set_neigh(&mut self, n: &Neigh) -> Result<(), brindle_kernel::netlink::NetlinkError> {
        self.k.set_neigh(n)
    }
    fn sysctl(&mut self, key: &str) -> Result<String, brindle_kernel::sysctl::SysctlError> {
        let k = &mut self.k;
        self.ns.run(|| k.sysctl(key)).unwrap()
    }
    fn ensure_sysctl(&mut self, key: &str, v: &str) -> Result<bool, brindle_kernel::sysctl::SysctlError> {
        let k = &mut self.k;
        self.ns.run(|| k.ensure_sysctl(key, v)).unwrap()
    }
}

fn fake() -> FakeBench {
    let w = World::new();
    w.add_device("v0", false);
    w.add_device("v1", false);
    FakeBench(w)
}

fn linux() -> LinuxBench {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("bt-{}-c{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let b = LinuxBench { ns: NetNs::create(&name).expect("create namespace; are you root?"), name };
    let peer = VethPeer { name: "v1", ..Default::default() };
    Rtnl::open_in(&b.ns).unwrap().add_veth(&Veth { name: "v0", peer, ..Default::default() }).unwrap();
    b
}

macro_rules! both {
    ($($name:ident;)*) => {
        mod model { $( #[test] fn $name() { super::$name(&super::fake()); } )* }
        mod kernel { $( #[test] fn $name() { super::$name(&super::linux()); } )* }
    };
}

both! {
    a_route_can_be_added_once_replaced_often_and_deleted_once;
    a_deletion_spares_what_has_another_protocol;
    a_route_needs_its_device_to_exist_and_be_up;
    a_gateway_must_be_on_a_subnet_or_onlink;
    an_address_brings_its_subnet_and_takes_it_away;
    routes_vanish_with_their_device_silently_in_ipv4;
    an_ipv6_route_without_metric_gets_one;
    metrics_keep_routes_apart;
    blackholes_and_multipath_read_back_as_written;
    a_bulk_reports_each_refusal_and_carries_on;
    others_route_changes_are_reported_and_own_ones_are_not;
    device_changes_are_reported;
    devices_have_unique_names_and_known_kinds;
    parameters_of_a_device_exist_with_it;
    a_neighbour_is_overwritten;
    a_wait_for_events_ends_in_time_and_when_woken;
}

const WAIT: Duration = Duration::from_secs(10);

fn net(s: &str) -> ipnet::IpNet {
    s.parse().unwrap()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn index(k: &mut dyn Kernel, name: &str) -> u32 {
    k.links().unwrap().into_iter().find(|l| l.name == name).unwrap().index
}

/// v0 up with 10.9.0.1/24, v1 up.
fn ready(b: &dyn Bench) -> (Box<dyn Kernel>, Box<dyn Events>, u32) {
    let (mut k, e) = b.open();
    let (v0, v1) = (index(&mut *k, "v0"), index(&mut *k, "v1"));
    k.set_link_up(v0, true).unwrap();
    k.set_link_up(v1, true).unwrap();
    k.add_addr(&Addr::new(v0, net("10.9.0.1/24"))).unwrap();
    (k, e, v0)
}

fn write(k: &mut dyn Kernel, c: RouteChange) -> Result<(), i32> {
    let report = k.write_routes(&[c]);
    assert_eq!(report.broken, None);
    match report.refused.first() {
        None => {
            assert_eq!(report.done, 1);
            Ok(())
        }
        Some(r) => Err(r.error.errno().unwrap()),
    }
}

fn ours(k: &mut dyn Kernel) -> Vec<Route> {
    let mut all = k.routes(&RouteFilter { protocol: Some(80), ..RouteFilter::main() }).unwrap();
    all.sort();
    all
}

fn a_route_can_be_added_once_replaced_often_and_deleted_once(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let r = Route::new(net("10.1.0.0/26")).dev(v0).with_protocol(80);
    assert_eq!(write(&mut *k, RouteChange::Add(r.clone())), Ok(()));
    assert_eq!(write(&mut *k, RouteChange::Add(r.clone())), Err(libc::EEXIST));
    let via = Route::new(net("10.1.0.0/26")).via(ip("10.9.0.7"), Some(v0), false).with_protocol(80);
    assert_eq!(write(&mut *k, RouteChange::Replace(via.clone())), Ok(()));
    assert_eq!(write(&mut *k, RouteChange::Replace(via.clone())), Ok(()));
    assert_eq!(ours(&mut *k), std::slice::from_ref(&via));
    assert_eq!(write(&mut *k, RouteChange::Delete(r)), Ok(()), "only device and destination are named");
    assert_eq!(write(&mut *k, RouteChange::Delete(via)), Err(libc::ESRCH));
}

fn a_deletion_spares_what_has_another_protocol(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let theirs = Route::new(net("10.1.0.0/26")).dev(v0).with_protocol(proto::STATIC);
    write(&mut *k, RouteChange::Add(theirs.clone())).unwrap();
    assert_eq!(write(&mut *k, RouteChange::Delete(theirs.clone().with_protocol(80))), Err(libc::ESRCH));
    assert!(k.routes(&RouteFilter::main()).unwrap().contains(&theirs));
}

fn a_route_needs_its_device_to_exist_and_be_up(b: &dyn Bench) {
    let (mut k, _e) = b.open();
    let v0 = index(&mut *k, "v0");
    let r = Route::new(net("10.1.0.5/32")).dev(v0).with_protocol(80);
    assert_eq!(write(&mut *k, RouteChange::Add(r)), Err(libc::ENETDOWN));
    let r = Route::new(net("10.1.0.5/32")).dev(4242).with_protocol(80);
    assert_eq!(write(&mut *k, RouteChange::Add(r)), Err(libc::ENODEV));
}

fn a_gateway_must_be_on_a_subnet_or_onlink(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let far =
        |onlink| Route::new(net("10.1.0.0/26")).via(ip("192.0.2.1"), Some(v0), onlink).with_protocol(80);
    assert_eq!(write(&mut *k, RouteChange::Add(far(false))), Err(libc::ENETUNREACH));
    assert_eq!(write(&mut *k, RouteChange::Add(far(true))), Ok(()));
    let near = Route::new(net("10.1.1.0/26")).via(ip("10.9.0.9"), None, false).with_protocol(80);
    assert_eq!(write(&mut *k, RouteChange::Add(near)), Ok(()));
    assert_eq!(ours(&mut *k)[1].only_dev(), Some(v0), "the kernel found the device");
}

fn an_address_brings_its_subnet_and_takes_it_away(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let subnet = Route::new(net("10.9.0.0/24"))
        .dev(v0)
        .with_protocol(proto::KERNEL)
        .with_scope(scope::LINK)
        .with_src(ip("10.9.0.1"));
    assert!(k.routes(&RouteFilter::main()).unwrap().contains(&subnet));
    assert!(k.add_addr(&Addr::new(v0, net("10.9.0.1/24"))).unwrap_err().is_exists());
    k.del_addr(v0, net("10.9.0.1/24")).unwrap();
    assert!(!k.routes(&RouteFilter::main()).unwrap().contains(&subnet));
    assert!(k.del_addr(v0, net("10.9.0.1/24")).unwrap_err().is_not_found());
    k.add_addr(&Addr::new(v0, net("10.9.0.1/32"))).unwrap();
    assert!(
        k.routes(&RouteFilter {
            dev: Some(v0),
            family: Some(brindle_kernel::netlink::Family::V4),
            ..RouteFilter::main()
        })
        .unwrap()
        .is_empty()
    );
}

fn routes_vanish_with_their_device_silently_in_ipv4(b: &dyn Bench) {
    let (mut k, mut e, v0) = ready(b);
    for r in ["10.1.0.5/32", "10.1.0.6/32"] {
        write(&mut *k, RouteChange::Add(Route::new(net(r)).dev(v0).with_protocol(80))).unwrap();
    }
    while !e.next(Some(Duration::ZERO)).unwrap().is_empty() {}
    k.set_link_up(v0, false).unwrap();
    assert!(ours(&mut *k).is_empty());
    let mut seen = Vec::new();
    while !seen.iter().any(|x| matches!(x, Event::Link(l) if l.index == v0 && !l.up)) {
        let some = e.next(Some(WAIT)).unwrap();
        assert!(!some.is_empty());
        seen.extend(some);
    }
    assert!(!seen.iter().any(|x| matches!(x, Event::RouteGone(r) if r.protocol == 80)), "{seen:?}");
    k.set_link_up(v0, true).unwrap();
    assert!(ours(&mut *k).is_empty(), "they do not come back by themselves");
    k.del_link(v0).unwrap();
    assert!(k.del_link(v0).unwrap_err().is_not_found());
}

fn an_ipv6_route_without_metric_gets_one(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let r = Route::new(net("2001:db8::5/128")).dev(v0).with_protocol(80);
    write(&mut *k, RouteChange::Add(r.clone())).unwrap();
    assert_eq!(ours(&mut *k), [r.clone().with_metric(1024)]);
    write(&mut *k, RouteChange::Delete(r.with_metric(1024))).unwrap();
}

fn metrics_keep_routes_apart(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let plain = Route::new(net("10.1.0.0/26")).dev(v0).with_protocol(80);
    let heavy = plain.clone().with_metric(1024);
    write(&mut *k, RouteChange::Add(plain.clone())).unwrap();
    write(&mut *k, RouteChange::Add(heavy.clone())).unwrap();
    assert_eq!(ours(&mut *k), [plain.clone(), heavy.clone()]);
    write(&mut *k, RouteChange::Delete(heavy)).unwrap();
    assert_eq!(ours(&mut *k), [plain]);
}

fn blackholes_and_multipath_read_back_as_written(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let hop = |last: u8| NextHop {
        dev: Some(v0),
        gateway: Some(ip(&format!("10.9.0.{last}"))),
        onlink: true,
        weight: 1,
        dead: false,
    };
    let mut multi = Route::new(net("10.1.1.0/26")).with_protocol(80);
    multi.hops = vec![hop(7), hop(8)];
    let black = Route::blackhole(net("10.1.0.0/26")).with_protocol(80);
    let black6 = Route::blackhole(net("2001:db8::/64")).with_protocol(80).with_metric(1024);
    for r in [&black, &multi, &black6] {
        write(&mut *k, RouteChange::Add(r.clone())).unwrap();
    }
    assert_eq!(ours(&mut *k), [black.clone(), multi.clone(), black6.clone()]);
    for r in [black, multi, black6] {
        write(&mut *k, RouteChange::Delete(r)).unwrap();
    }
    assert_eq!(RouteKind::from(6), RouteKind::Blackhole);
}

fn a_bulk_reports_each_refusal_and_carries_on(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let r = |i: u32| Route::new(net(&format!("10.1.{}.{}/32", i / 256, i % 256))).dev(v0).with_protocol(80);
    let changes: Vec<_> = (0..500).map(|i| RouteChange::Add(r(i % 400))).collect();
    let report = k.write_routes(&changes);
    assert_eq!((report.done, report.sent_to, report.broken), (400, 500, None));
    assert_eq!(report.refused.iter().map(|x| x.index).collect::<Vec<_>>(), (400..500).collect::<Vec<_>>());
    assert_eq!(ours(&mut *k).len(), 400);
}

fn others_route_changes_are_reported_and_own_ones_are_not(b: &dyn Bench) {
    let (mut k, mut e, v0) = ready(b);
    let (mut other, _) = b.open();
    let mine = Route::new(net("10.1.0.5/32")).dev(v0).with_protocol(80);
    let theirs = Route::new(net("10.1.0.6/32")).dev(v0).with_protocol(80);
    write(&mut *k, RouteChange::Add(mine.clone())).unwrap();
    write(&mut *other, RouteChange::Add(theirs.clone())).unwrap();
    write(&mut *k, RouteChange::Delete(theirs.clone())).unwrap();
    write(&mut *other, RouteChange::Delete(mine.clone())).unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&Event::RouteGone(mine.clone())) {
        let some = e.next(Some(WAIT)).unwrap();
        assert!(!some.is_empty(), "{seen:?}");
        seen.extend(some);
    }
    assert!(seen.contains(&Event::Route(theirs.clone())));
    assert!(!seen.contains(&Event::Route(mine)));
    assert!(!seen.contains(&Event::RouteGone(theirs)));
}

fn device_changes_are_reported(b: &dyn Bench) {
    let (mut k, mut e, v0) = ready(b);
    k.set_link_mtu(v0, 1300).unwrap();
    k.add_link("br0", "bridge", Some(1400)).unwrap();
    let br = index(&mut *k, "br0");
    k.del_link(br).unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(|x| matches!(x, Event::LinkGone(l) if l.name == "br0")) {
        let some = e.next(Some(WAIT)).unwrap();
        assert!(!some.is_empty(), "{seen:?}");
        seen.extend(some);
    }
    assert!(seen.iter().any(|x| matches!(x, Event::Link(l) if l.index == v0 && l.mtu == 1300)));
    assert!(seen.iter().any(|x| matches!(x, Event::Link(l) if l.name == "br0")));
    assert!(seen.iter().any(|x| matches!(x, Event::Addr(a) if a.net == net("10.9.0.1/24"))));
}

fn devices_have_unique_names_and_known_kinds(b: &dyn Bench) {
    let (mut k, _e) = b.open();
    k.add_link("br0", "bridge", None).unwrap();
    assert!(k.add_link("br0", "bridge", None).unwrap_err().is_exists());
    assert!(k.add_link("x0", "nosuchkind", None).unwrap_err().is_unsupported());
    let br = k.links().unwrap().into_iter().find(|l| l.name == "br0").unwrap();
    assert_eq!((br.kind.as_deref(), br.up), (Some("bridge"), false));
}

fn parameters_of_a_device_exist_with_it(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    let key = "net/ipv4/conf/v0/proxy_arp";
    assert_eq!(k.sysctl(key).unwrap(), "0");
    assert!(k.ensure_sysctl(key, "1").unwrap());
    assert!(!k.ensure_sysctl(key, "1").unwrap());
    assert_eq!(k.sysctl(key).unwrap(), "1");
    k.del_link(v0).unwrap();
    assert!(k.ensure_sysctl(key, "1").unwrap_err().is_not_found());
}

fn a_neighbour_is_overwritten(b: &dyn Bench) {
    let (mut k, _e, v0) = ready(b);
    for last in [7, 8] {
        let mac = brindle_kernel::netlink::Mac([2, 0, 0, 0, 0, last]);
        k.set_neigh(&Neigh::permanent(v0, ip("10.9.0.7"), mac)).unwrap();
        assert_eq!(k.neighs().unwrap().iter().find(|n| n.addr == ip("10.9.0.7")).unwrap().mac, Some(mac));
    }
    let gone = Neigh::permanent(4242, ip("10.9.0.7"), brindle_kernel::netlink::Mac([0; 6]));
    assert_eq!(k.set_neigh(&gone).unwrap_err().errno(), Some(libc::ENODEV));
}

fn a_wait_for_events_ends_in_time_and_when_woken(b: &dyn Bench) {
    let (_k, mut e) = b.open();
    while !e.next(Some(Duration::from_millis(20))).unwrap().is_empty() {}
    e.waker().wake();
    assert_eq!(e.next(None).unwrap(), []);
}
