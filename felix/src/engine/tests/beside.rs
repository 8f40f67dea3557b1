//! IPv6 keeps several routes of one prefix and metric: a router advertisement's stands beside ours.

use std::collections::BTreeMap;

use brindle_kernel::api::Kernel;

use super::*;

const PREFIX: &str = "2001:db8:2::/64";

/// A node with an IPv6 subnet and one learned IPv6 prefix.
fn six() -> (World, Sim) {
    let w = world();
    w.add_device(POD_DEV, true);
    let eth0 = w.link("eth0").unwrap().index;
    w.other().add_addr(&Addr::new(eth0, "2001:db8:f::1/64".parse().unwrap())).unwrap();
    let mut s = settled(&w);
    s.fib(&[(PREFIX, &["2001:db8:f::2"])], true);
    s.settle();
    assert_eq!(of(&s), ["2001:db8:f::2 80"]);
    (w, s)
}

/// Gateway and protocol of each entry of the prefix.
fn of(s: &Sim) -> Vec<String> {
    let all = s.world.routes().into_iter().filter(|r| r.dst.to_string() == PREFIX);
    all.map(|r| format!("{} {}", r.hops[0].gateway.unwrap(), r.protocol)).collect()
}

fn advertised(w: &World) -> KernelRoute {
    let eth0 = w.link("eth0").unwrap().index;
    KernelRoute::new(PREFIX.parse().unwrap())
        .via(ip("fe80::9"), Some(eth0), false)
        .with_protocol(9)
        .with_metric(1024)
}

#[test]
fn ours_beside_an_advertised_one_is_withdrawn() {
    for read in [false, true] {
        let (w, mut s) = six();
        w.advertise(&advertised(&w));
        s.settle();
        assert!(s.report().routes.in_sync && s.report().routes.failed.is_empty(), "{:?}", s.report().routes);
        if read {
            s.give(FelixInput::Resync("test".into()));
            s.settle();
        }
        s.fib(&[(PREFIX, &[])], true);
        s.settle();
        assert_eq!(of(&s), ["fe80::9 9"], "read: {read}");
    }
}

#[test]
fn a_change_beside_an_advertised_one_does_not_touch_it_and_is_held() {
    let (w, mut s) = six();
    w.advertise(&advertised(&w));
    s.settle();
    s.fib(&[(PREFIX, &["2001:db8:f::3"])], true);
    s.settle();
    assert_eq!(of(&s), ["fe80::9 9"]);
    let before = w.route_dumps();
    s.pass(Duration::from_secs(60));
    assert!(w.route_dumps() - before <= 2);
    write(&w, RouteChange::Delete(advertised(&w)));
    s.settle();
    assert_eq!(of(&s), ["2001:db8:f::3 80"]);
}

#[test]
fn of_two_of_ours_the_wanted_one_is_left() {
    let (w, mut s) = six();
    w.advertise(&KernelRoute { protocol: 80, ..advertised(&w) });
    s.settle();
    assert_eq!(of(&s), ["2001:db8:f::2 80"]);
    w.advertise(&KernelRoute { protocol: 80, ..advertised(&w) });
    s.fib(&[(PREFIX, &["2001:db8:f::3"])], true);
    s.settle();
    assert_eq!(of(&s), ["2001:db8:f::3 80"]);
}

#[test]
fn one_that_came_first_holds_ours_without_a_loop() {
    let w = world();
    let eth0 = w.link("eth0").unwrap().index;
    w.other().add_addr(&Addr::new(eth0, "2001:db8:f::1/64".parse().unwrap())).unwrap();
    let mut s = Sim::new(&w);
    s.store(snapshot());
    s.fib(&[], true);
    s.settle();
    // The engine has not heard of it yet when it writes.
    s.fib(&[(PREFIX, &["2001:db8:f::2"])], true);
    w.advertise(&advertised(&w));
    s.engine.step(s.now);
    s.settle();
    let before = w.route_dumps();
    s.pass(Duration::from_secs(60));
    assert!(w.route_dumps() - before <= 3, "{}", w.route_dumps() - before);
    assert_eq!(of(&s), ["fe80::9 9"]);
    let told: BTreeMap<_, _> = s.engine.held.iter().collect();
    assert_eq!(told.len(), 2, "with the pod that has no device: {told:?}");
}
