//! The tunnel device: kernel ipip where there is ipip, the carrier elsewhere.

use brindle_kernel::{
    api::Kernel,
    fake::{Call, Fault},
};

use super::*;

fn cross(s: &mut Sim, tunnel: Option<&str>) {
    s.store([
        pool(EncapMode::CrossSubnet),
        node("n1", "10.0.1.1/24", tunnel),
        node("n2", "10.0.1.2/24", None),
        node("n3", "10.0.2.3/24", None),
        SyncEvent::InSync,
    ]);
    s.fib(&[("192.168.2.0/26", &["10.0.1.2"]), ("192.168.3.0/26", &["10.0.2.3"])], true);
    s.settle();
}

const ROUTES: [&str; 3] = [
    "0.0.0.0/0 via 10.0.1.254 dev eth0 proto 3 metric 0",
    "192.168.2.0/26 via 10.0.1.2 dev eth0 proto 80 metric 1024",
    "192.168.3.0/26 via 10.0.2.3 dev tunl0 proto 80 metric 1024",
];

#[test]
fn the_kernels_ipip_is_used_when_there_is_one() {
    let w = world();
    w.support("ipip");
    let mut s = Sim::new(&w);
    cross(&mut s, Some("192.168.1.1"));
    assert_eq!(s.table(), ROUTES);
    let t = w.link("tunl0").unwrap();
    assert_eq!((t.mtu, t.up, t.kind.as_deref()), (1480, true, Some("ipip")));
    assert_eq!(w.addrs(t.index), ["192.168.1.1/32".parse().unwrap()]);
    let r = s.report();
    assert_eq!((r.encap.device.as_str(), r.encap.mtu, r.pod_mtu), ("kernel", 1480, 1480));
    assert!(s.carrier.0.lock().unwrap().is_empty());
}

#[test]
fn a_device_the_module_brought_along_is_adopted_down_as_it_is() {
    let w = world();
    w.support("ipip");
    w.other().add_link("tunl0", "ipip", None).unwrap();
    let mut s = Sim::new(&w);
    cross(&mut s, None);
    assert_eq!(s.table(), ROUTES);
    assert!(w.link("tunl0").unwrap().up);
}

#[test]
fn without_ipip_the_carrier_is_told_everything() {
    let w = world();
    let mut s = Sim::with(&w, CarrierPolicy::Auto, Told(Arc::default(), Some(w.clone()), Stopped::default()));
    cross(&mut s, Some("192.168.1.1"));
    assert_eq!(s.table(), ROUTES);
    let told = s.carrier.0.lock().unwrap().last().unwrap().clone();
    assert_eq!(told.local.to_string(), "10.0.1.1");
    assert_eq!(
        told.routes.iter().map(|(p, n)| format!("{p} {n:?}")).collect::<Vec<_>>(),
        ["192.168.3.0/26 [10.0.2.3]"]
    );
    assert_eq!(told.sources.len(), 2);
    let r = s.report();
    assert_eq!(
        (r.encap.device.as_str(), r.encap.why.as_str(), r.encap.refused),
        ("carrier", "the kernel has no ipip", 7)
    );
    // A new node behind the tunnel: the carrier hears of it.
    s.store([node("n4", "10.0.2.4/24", None)]);
    s.fib(&[("192.168.4.0/26", &["10.0.2.4"])], true);
    s.settle();
    let told = s.carrier.0.lock().unwrap().last().unwrap().clone();
    assert_eq!((told.routes.len(), told.sources.len()), (2, 3));
}

#[test]
fn a_carrier_that_died_is_started_again() {
    let w = world();
    let mut s = Sim::with(&w, CarrierPolicy::Auto, Told(Arc::default(), Some(w.clone()), Stopped::default()));
    cross(&mut s, Some("192.168.1.1"));
    let before = s.carrier.0.lock().unwrap().len();
    w.other().del_link(w.link("tunl0").unwrap().index).unwrap();
    s.pass(Duration::from_secs(1));
    assert!(s.carrier.0.lock().unwrap().len() > before);
    assert_eq!(s.table(), ROUTES);
}

#[test]
fn policy_kernel_without_ipip_is_a_problem_with_a_way_out() {
    let w = world();
    let mut s = Sim::with(&w, CarrierPolicy::Kernel, Told::default());
    cross(&mut s, None);
    let p = s.report().problems.join("\n");
    assert!(p.contains("--ipip-carrier user"), "{p}");
    let encap = s.report().encap;
    assert_eq!(encap.device, "none");
    assert!(
        encap.why.starts_with("it cannot be set up: ") && encap.why.contains("--ipip-carrier user"),
        "{encap:?}"
    );
    assert_eq!(s.table().len(), 2, "direct routes are written all the same: {:?}", s.table());
}

#[test]
fn a_new_tunnel_address_takes_the_place_of_the_old_one() {
    let w = world();
    w.support("ipip");
    let mut s = Sim::new(&w);
    cross(&mut s, Some("192.168.1.1"));
    s.store([node("n1", "10.0.1.1/24", Some("192.168.1.9"))]);
    s.settle();
    assert_eq!(w.addrs(w.link("tunl0").unwrap().index), ["192.168.1.9/32".parse().unwrap()]);
    assert_eq!(s.table(), ROUTES);
}

#[test]
fn a_failed_device_is_retried() {
    let w = world();
    w.support("ipip");
    w.fail_next(Call::AddLink, Fault::Errno(12));
    w.fail_next(Call::SetLink, Fault::Errno(12));
    w.fail_next(Call::AddAddr, Fault::Errno(12));
    let mut s = Sim::new(&w);
    cross(&mut s, Some("192.168.1.1"));
    assert!(s.report().problems[0].starts_with("tunnel: "), "{:?}", s.report().problems);
    s.pass(Duration::from_secs(3));
    assert_eq!(s.table(), ROUTES);
    assert_eq!(w.addrs(w.link("tunl0").unwrap().index).len(), 1);
}

#[test]
fn a_mode_that_changes_moves_the_route_in_place() {
    let w = world();
    w.support("ipip");
    let mut s = Sim::new(&w);
    cross(&mut s, None);
    let before = w.route_writes();
    s.store([pool(EncapMode::Always)]);
    s.settle();
    assert!(
        s.table().iter().any(|r| r.starts_with("192.168.2.0/26 via 10.0.1.2 dev tunl0")),
        "{:?}",
        s.table()
    );
    assert_eq!(w.route_writes(), before + 1);
}

#[test]
fn the_carrier_has_a_device_of_its_own_beside_the_kernels() {
    let w = world();
    w.support("ipip");
    w.other().add_link("tunl0", "ipip", None).unwrap();
    let mut s = Sim::with(&w, CarrierPolicy::User, Told(Arc::default(), Some(w.clone()), Stopped::default()));
    cross(&mut s, None);
    assert!(s.table()[2].contains("dev brtun0"), "{:?}", s.table());
    assert!(!w.link("tunl0").unwrap().up, "the kernel's is left alone");
}

#[test]
fn what_a_restarted_agent_has_not_learnt_again_is_still_carried() {
    let w = world();
    let carrier = Told(Arc::default(), Some(w.clone()), Stopped::default());
    let mut s = Sim::with(&w, CarrierPolicy::Auto, carrier.clone());
    cross(&mut s, None);
    drop(s);
    let mut s = Sim::with(&w, CarrierPolicy::Auto, carrier.clone());
    s.store([pool(EncapMode::CrossSubnet), node("n1", "10.0.1.1/24", None), SyncEvent::InSync]);
    s.settle();
    assert_eq!(carrier.0.lock().unwrap().last().unwrap().routes.len(), 1);
    assert_eq!(s.table(), ROUTES);
    s.fib(&[], true);
    s.settle();
    assert_eq!(carrier.0.lock().unwrap().last().unwrap().routes.len(), 0);
}

#[test]
fn a_device_of_another_kind_is_named_as_the_cause() {
    let w = world();
    w.support("dummy");
    w.other().add_link("tunl0", "dummy", None).unwrap();
    let mut s = Sim::new(&w);
    assert_eq!(s.report().encap.device, "");
    cross(&mut s, None);
    let why = s.report().encap.why;
    assert!(why.contains("there is a device tunl0 of kind dummy, not ours"), "{why}");
    w.other().del_link(w.link("tunl0").unwrap().index).unwrap();
    w.support("ipip");
    s.pass(Duration::from_secs(3));
    assert_eq!(
        (s.report().encap.device.as_str(), s.report().encap.why.as_str()),
        ("kernel", "the kernel has ipip")
    );
}

#[test]
fn equal_nodes_share_a_prefix_through_the_tunnel_and_beside_it() {
    let w = world();
    let mut s = Sim::with(&w, CarrierPolicy::Auto, Told(Arc::default(), Some(w.clone()), Stopped::default()));
    cross(&mut s, None);
    s.fib(
        &[
            ("192.168.3.0/26", &["10.0.2.3", "10.0.2.4"]),
            ("192.168.4.0/26", &["10.0.2.3", "10.0.1.2"]),
            ("172.16.0.0/24", &["10.9.0.1", "10.9.0.2", "10.0.1.2"]),
        ],
        true,
    );
    s.settle();
    let all = s.world.routes();
    let of = |p: &str| {
        let dst: IpNet = p.parse().unwrap();
        let r = all.iter().find(|r| r.dst == dst).unwrap();
        r.hops.iter().map(|h| format!("{} {}", h.gateway.unwrap(), h.weight)).collect::<Vec<_>>()
    };
    assert_eq!(of("192.168.3.0/26"), ["10.0.2.3 1", "10.0.2.4 1"]);
    assert_eq!(of("192.168.4.0/26"), ["10.0.1.2 1", "10.0.2.3 1"]);
    assert_eq!(
        of("172.16.0.0/24"),
        ["10.0.1.2 1", "10.0.1.254 2"],
        "two of the three lie behind the gateway"
    );
    let told = s.carrier.0.lock().unwrap().last().unwrap().clone();
    let told: Vec<_> = told.routes.iter().map(|(p, e)| format!("{p} {e:?}")).collect();
    assert_eq!(told, ["192.168.3.0/26 [10.0.2.3, 10.0.2.4]", "192.168.4.0/26 [10.0.2.3]"]);
    // Read back as it was written: nothing to do.
    let writes = s.world.route_writes();
    s.give(FelixInput::Resync("test".into()));
    s.settle();
    assert_eq!(s.world.route_writes(), writes);
    // Somebody takes a hop out: it comes back.
    let broken = all.iter().find(|r| r.dst == "192.168.3.0/26".parse().unwrap()).unwrap();
    let mut one = broken.clone();
    one.hops.truncate(1);
    write(&w, RouteChange::Replace(one));
    s.settle();
    let repaired = s.world.routes();
    assert!(repaired.contains(broken), "{repaired:#?}");
    s.fib(&[("192.168.3.0/26", &["10.0.2.4"])], true);
    s.settle();
    let one = s.world.routes().into_iter().find(|r| r.dst == broken.dst).unwrap();
    assert_eq!((one.hops.len(), one.hops[0].weight), (1, 1));
}

#[test]
fn kernel_ipip_has_a_filter_that_follows_the_nodes_and_goes_with_the_pool() {
    let w = world();
    w.support("ipip");
    let mut s = Sim::new(&w);
    cross(&mut s, None);
    let sources = |s: &Sim| s.filter.0.lock().unwrap().sources.as_ref().map(BTreeSet::len);
    assert_eq!(sources(&s), Some(2));
    assert_eq!(s.report().encap.refused, 3);
    s.store([node("n4", "10.0.2.4/24", None)]);
    s.settle();
    assert_eq!(sources(&s), Some(3));
    assert_eq!(s.filter.0.lock().unwrap().looks, 1, "read back at the start only");
    s.pass(Duration::from_secs(120));
    assert_eq!(s.filter.0.lock().unwrap().looks, 2, "and with the slow resync");
    s.store([pool(EncapMode::Never)]);
    s.settle();
    assert_eq!(sources(&s), None);
}

#[test]
fn no_iptables_is_one_line_and_stops_nothing() {
    let w = world();
    w.support("ipip");
    let mut s = Sim::new(&w);
    s.filter.0.lock().unwrap().broken =
        Some("cannot start iptables-save: not found; is it installed?".into());
    cross(&mut s, None);
    assert_eq!(s.table(), ROUTES);
    let r = s.report();
    assert_eq!((r.problems.len(), r.warnings.len()), (0, 1), "{r:?}");
    assert!(r.warnings[0].contains("install iptables and ipset"), "{:?}", r.warnings);
    s.filter.0.lock().unwrap().broken = None;
    s.pass(Duration::from_secs(120));
    assert!(s.report().warnings.is_empty());
}

#[test]
fn a_carrier_nobody_needs_any_more_is_ended() {
    let w = world();
    let mut s = Sim::with(&w, CarrierPolicy::Auto, Told(Arc::default(), Some(w.clone()), Stopped::default()));
    cross(&mut s, None);
    s.store([pool(EncapMode::Never)]);
    s.settle();
    assert!(w.link("tunl0").is_none());
    assert_eq!(s.report().encap.device, "none");
    let left = s.carrier.2.lock().unwrap();
    let direct = |r: &KernelRoute| {
        r.dst.to_string() == "192.168.3.0/26" && r.hops[0].gateway == Some(ip("10.0.1.254"))
    };
    assert!(left.iter().any(direct), "its end came before the direct route: {left:?}");
    drop(left);
    assert!(
        s.table().iter().any(|r| r.starts_with("192.168.3.0/26 via 10.0.1.254 dev eth0")),
        "{:?}",
        s.table()
    );
}

#[test]
fn who_asks_gets_the_counters_of_the_moment() {
    let w = world();
    let mut s = Sim::with(&w, CarrierPolicy::Auto, Told(Arc::default(), Some(w.clone()), Stopped::default()));
    let ask = |s: &mut Sim| {
        let (tx, mut rx) = oneshot::channel();
        s.give(FelixInput::Ask(tx));
        s.settle();
        rx.try_recv().unwrap()
    };
    assert_eq!(ask(&mut s).encap.device, "none", "before anything is known");
    cross(&mut s, None);
    assert_eq!(ask(&mut s).encap.refused, 7);
}
