//! What failed and then needs no write any more: it is forgotten, and the engine comes to rest.

use brindle_kernel::{
    api::Kernel,
    fake::{Call, Fault},
};

use super::*;

const EACCES: i32 = 13;

fn pod_world() -> World {
    let w = world();
    w.add_device(POD_DEV, true);
    w
}

/// A node one of whose pods' routes is refused, with more refusals to come. And that pod's device.
fn refused() -> (World, Sim, u32) {
    let w = pod_world();
    let mut s = settled(&w);
    let device = w.add_device("cali00000000002", true);
    s.store([pod("b", "cali00000000002", "192.168.1.6/32")]);
    for _ in 0..50 {
        w.fail_next(Call::WriteRoute, Fault::Errno(EACCES));
    }
    s.pass(Duration::from_secs(5));
    assert!(s.report().routes.failed[0].contains("EACCES"), "{:?}", s.report().routes);
    (w, s, device)
}

/// As an administrator does it: past the refusals meant for the engine.
fn write_in_spite(w: &World, route: KernelRoute) {
    while !w.faults_used_up() {
        w.other().write_routes(&[RouteChange::Add(route.clone())]);
    }
    write(w, RouteChange::Add(route));
}

/// A node that got no answer when it wrote the route of this prefix.
fn unanswered(prefix: &str) -> (World, Sim) {
    let w = pod_world();
    let mut s = settled(&w);
    w.fail_next(Call::WriteBulk, Fault::Timeout);
    s.fib(&[(prefix, &["10.0.1.2"])], true);
    s.settle();
    (w, s)
}

/// A minute later: nothing fails any more and nothing was done but what is done anyway.
fn at_rest(s: &mut Sim) {
    s.settle();
    let before = s.world.route_dumps();
    s.pass(Duration::from_secs(60));
    assert!(s.world.route_dumps() - before <= 2, "{} readings", s.world.route_dumps() - before);
    let r = s.report().routes;
    assert!(r.failed.is_empty() && r.in_sync, "{r:?}");
}

#[test]
fn a_refused_route_whose_device_goes_down_waits_without_trying() {
    let (w, mut s, dev) = refused();
    w.other().set_link_up(dev, false).unwrap();
    at_rest(&mut s);
    assert!(s.report().waiting.values().any(|why| why.contains("is down")), "{:?}", s.report().waiting);
}

#[test]
fn a_refused_route_that_somebody_writes_for_us_is_right() {
    let (w, mut s, dev) = refused();
    let ours =
        KernelRoute::new("192.168.1.6/32".parse().unwrap()).dev(dev).with_protocol(3).with_metric(1024);
    write_in_spite(&w, ours);
    at_rest(&mut s);
    assert_eq!(s.report().ready.len(), 2);
}

#[test]
fn a_refused_route_in_whose_place_another_comes_is_said_to_be_held() {
    let (w, mut s, _) = refused();
    let eth0 = w.link("eth0").unwrap().index;
    let theirs = KernelRoute::new("192.168.1.6/32".parse().unwrap())
        .via(ip("10.0.1.254"), Some(eth0), false)
        .with_metric(1024);
    write_in_spite(&w, theirs);
    s.settle();
    let before = w.route_dumps();
    s.pass(Duration::from_secs(60));
    assert!(w.route_dumps() - before <= 2);
    let failed = s.report().routes.failed;
    assert!(failed.len() == 1 && failed[0].contains("in its place"), "a pod lacks its route: {failed:?}");
}

#[test]
fn a_bulk_that_took_effect_without_an_answer_is_settled_by_reading() {
    let (w, mut s) = unanswered("192.168.4.0/26");
    assert_eq!(s.report().routes.failed.len(), 1);
    let eth0 = w.link("eth0").unwrap().index;
    let late = KernelRoute::new("192.168.4.0/26".parse().unwrap())
        .via(ip("10.0.1.2"), Some(eth0), true)
        .with_protocol(80)
        .with_metric(1024);
    write(&w, RouteChange::Add(late));
    s.pass(Duration::from_secs(1));
    at_rest(&mut s);
}

#[test]
fn a_bulk_without_an_answer_is_read_back_though_another_write_succeeds_meanwhile() {
    let (_w, mut s) = unanswered("192.168.4.0/26");
    s.fib(&[("192.168.5.0/26", &["10.0.1.2"])], true);
    s.settle();
    s.pass(Duration::from_secs(1));
    let there = |p: &str| s.table().iter().any(|r| r.starts_with(p));
    assert!(there("192.168.4.0/26") && there("192.168.5.0/26"), "{:?}", s.table());
}

#[test]
fn settings_of_a_device_that_went_down_or_lost_its_pod_are_not_tried_again() {
    let w = pod_world();
    let mut s = settled(&w);
    let index = w.add_device("cali00000000002", true);
    let second = pod("b", "cali00000000002", "192.168.1.6/32");
    s.store([second.clone()]);
    for _ in 0..20 {
        w.fail_next(Call::Sysctl, Fault::Errno(EACCES));
    }
    s.settle();
    assert_eq!(s.report().routes.failed.len(), 1, "{:?}", s.report().routes);
    w.other().set_link_up(index, false).unwrap();
    at_rest(&mut s);
    w.other().set_link_up(index, true).unwrap();
    s.settle();
    assert_eq!(s.report().routes.failed.len(), 1, "{:?}", s.report().routes);
    s.store([SyncEvent::Delete(key_of(&second))]);
    at_rest(&mut s);
}

#[test]
fn an_address_to_peer_with_is_not_tried_on_a_device_that_is_down() {
    let w = pod_world();
    let mut s = settled(&w);
    for _ in 0..20 {
        w.fail_next(Call::AddAddr, Fault::Errno(EACCES));
    }
    s.give(FelixInput::Peering([(POD_DEV.to_owned(), vec![ip("169.254.1.1")])].into()));
    s.settle();
    assert_eq!(s.report().routes.failed.len(), 1, "{:?}", s.report().routes);
    w.other().set_link_up(w.link(POD_DEV).unwrap().index, false).unwrap();
    at_rest(&mut s);
}

#[test]
fn while_the_kernel_cannot_be_read_nothing_else_that_is_due_keeps_the_engine_busy() {
    let (w, mut s, _) = refused();
    for _ in 0..200 {
        w.fail_next(Call::Routes, Fault::Garbled);
    }
    let before = w.route_dumps();
    s.pass(Duration::from_secs(60));
    assert!(w.route_dumps() - before < 20, "{} readings", w.route_dumps() - before);
}
