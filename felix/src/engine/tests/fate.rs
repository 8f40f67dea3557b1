//! What is said of one prefix: in the kernel, refused, waiting, shadowed, left over, and how packets leave.

use brindle_kernel::fake::{Call, Fault};

use super::*;

const EPERM: i32 = 1;

fn fate(s: &Sim, prefix: &str) -> Vec<(bool, String)> {
    s.engine.fate(prefix.parse().unwrap()).into_iter().map(|f| (f.good, f.what)).collect()
}

fn node() -> World {
    let w = world();
    w.add_device(POD_DEV, true);
    w
}

#[test]
fn a_route_in_the_kernel_is_told_with_its_way() {
    let s = settled(&node());
    assert_eq!(
        fate(&s, "192.168.2.0/26"),
        [
            (true, "in the kernel: 192.168.2.0/26 via 10.0.1.2 dev eth0 onlink proto 80 metric 1024".into()),
            (true, "to 10.0.1.2 by eth0, no tunnel: the pool's ipipMode is Never; next hop connected".into()),
        ]
    );
    let far = fate(&s, "192.168.3.0/26");
    assert!(far[1].1.ends_with("next hop behind 10.0.1.254"), "{far:?}");
    assert!(fate(&s, "192.168.1.5/32")[0].1.contains("dev cali00000000001"));
    assert_eq!(fate(&s, "203.0.113.0/24"), []);
}

#[test]
fn before_the_datastore_is_read_nothing_else_is_said() {
    let mut s = Sim::new(&node());
    s.fib(&[("192.168.2.0/26", &["10.0.1.2"])], true);
    s.settle();
    let told = fate(&s, "192.168.2.0/26");
    let what = "not decided yet: the datastore has not been read; the kernel keeps the routes it has";
    assert_eq!(told, [(false, what.to_owned())]);
    s.store(snapshot());
    s.settle();
    assert!(fate(&s, "192.168.2.0/26")[0].0);
}

#[test]
fn a_tunnel_is_told_with_the_reason() {
    let w = node();
    let mut s = Sim::new(&w);
    let mut all = snapshot();
    all[0] = pool(EncapMode::Always);
    s.store(all);
    s.fib(&[("192.168.2.0/26", &["10.0.1.2"])], true);
    s.settle();
    let told = fate(&s, "192.168.2.0/26");
    let way = "by the tunnel tunl0 to 10.0.1.2: the pool's ipipMode is Always";
    assert_eq!(told.last().map(|(good, what)| (*good, what.as_str())), Some((true, way)), "{told:?}");
}

#[test]
fn a_refusal_is_told_with_its_errno_and_gone_when_it_is_over() {
    let w = node();
    for _ in 0..8 {
        w.fail_next(Call::WriteRoute, Fault::Errno(EPERM));
    }
    let mut s = settled(&w);
    let told = fate(&s, "192.168.2.0/26");
    assert!(!told[0].0 && told[0].1.starts_with("refused: ") && told[0].1.contains("EPERM"), "{told:?}");
    s.pass(Duration::from_secs(60));
    assert!(w.faults_used_up());
    assert!(fate(&s, "192.168.2.0/26")[0].0);
}

#[test]
fn somebody_elses_route_before_ours_or_in_its_place_is_told() {
    let w = node();
    let mut s = settled(&w);
    let theirs = KernelRoute::new("192.168.2.0/26".parse().unwrap()).via(ip("10.0.1.254"), None, false);
    write(&w, RouteChange::Add(theirs.clone()));
    s.settle();
    let told = fate(&s, "192.168.2.0/26");
    assert!(told[0].0, "ours is there: {told:?}");
    assert!(!told[1].0 && told[1].1.starts_with("shadowed: somebody else's 192.168.2.0/26"), "{told:?}");
    assert!(told[1].1.contains("metric 0 before 1024"), "{told:?}");

    // With our metric it has our place.
    let w = node();
    write(&w, RouteChange::Add(theirs.with_metric(1024)));
    let s = settled(&w);
    let told = fate(&s, "192.168.2.0/26");
    assert!(!told[0].0 && told[0].1.contains("somebody else's route is in its place"), "{told:?}");
}

#[test]
fn a_next_hop_out_of_reach_is_told() {
    let w = node();
    let route = w.routes().into_iter().find(|r| r.dst.prefix_len() == 0).unwrap();
    write(&w, RouteChange::Delete(route));
    let s = settled(&w);
    let told = fate(&s, "192.168.3.0/26");
    let words = "not to 10.9.9.9: no route to the next hop";
    assert!(matches!(&told[..], [(false, why)] if why.starts_with(words)), "{told:?}");
}
