//! Routes that a Calico's BIRD has left, and others' that keep ours from being used.

use brindle_kernel::fake::{Call, Fault};

use super::*;

/// One as BIRD makes them, without a metric.
fn bird(prefix: &str, gateway: &str) -> KernelRoute {
    KernelRoute::new(prefix.parse().unwrap()).via(ip(gateway), None, false).with_protocol(12)
}

/// The same node with what a BIRD left there before it starts.
fn left(runs: Option<fn() -> Option<String>>) -> (World, Sim) {
    let w = world();
    w.add_device(POD_DEV, true);
    let all =
        [("192.168.2.0/26", "10.0.1.77"), ("192.168.9.0/26", "10.0.1.77"), ("172.16.0.0/16", "10.0.1.77")];
    all.iter().for_each(|(prefix, gateway)| write(&w, RouteChange::Add(bird(prefix, gateway))));
    let mut s = Sim::new(&w);
    s.engine.bird = runs;
    s.store(snapshot());
    (w, s)
}

fn birds(s: &Sim) -> Vec<String> {
    let all = s.table().into_iter().filter(|r| r.contains("proto 12"));
    all.filter_map(|r| r.split(' ').next().map(str::to_owned)).collect()
}

fn learn(s: &mut Sim, in_sync: bool) {
    s.fib(&[("192.168.2.0/26", &["10.0.1.2"]), ("192.168.3.0/26", &["10.9.9.9"])], in_sync);
    s.settle();
}

const ALL: [&str; 3] = ["172.16.0.0/16", "192.168.2.0/26", "192.168.9.0/26"];

#[test]
fn those_within_pools_go_when_all_is_known_and_no_bird_runs() {
    let (_, mut s) = left(Some(|| None));
    learn(&mut s, false);
    assert_eq!(birds(&s), ALL, "the paths are not complete");
    learn(&mut s, true);
    assert_eq!(birds(&s), ["172.16.0.0/16"]);
    assert!(SETTLED.iter().all(|r| s.table().contains(&(*r).to_owned())), "{:?}", s.table());
    assert_eq!(s.report().warnings, Vec::<String>::new());
}

#[test]
fn those_of_a_bird_that_runs_stay_and_the_ones_in_our_way_are_named_until_they_go() {
    for runs in [Some((|| Some("it runs".to_owned())) as fn() -> Option<String>), None] {
        let (w, mut s) = left(runs);
        learn(&mut s, true);
        assert_eq!(birds(&s), ALL);
        let warnings = s.report().warnings;
        let [said] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(said.contains("leads elsewhere (192.168.2.0/26 via 10.0.1.77 dev eth0 proto 12)"), "{said}");
        assert!(s.report().routes.in_sync, "ours is in the kernel");
        write(&w, RouteChange::Delete(bird("192.168.2.0/26", "10.0.1.77")));
        s.settle();
        assert_eq!(s.report().warnings, Vec::<String>::new());
    }
}

#[test]
fn ours_is_there_before_theirs_goes() {
    let (w, mut s) = left(Some(|| None));
    // All of ours are refused at first.
    const EPERM: i32 = 1;
    (0..4).for_each(|_| w.fail_next(Call::WriteRoute, Fault::Errno(EPERM)));
    learn(&mut s, true);
    assert!(w.faults_used_up());
    assert_eq!(birds(&s), ["172.16.0.0/16", "192.168.2.0/26"], "{:?}", s.table());
    s.pass(Duration::from_secs(30));
    assert_eq!(birds(&s), ["172.16.0.0/16"]);
}
