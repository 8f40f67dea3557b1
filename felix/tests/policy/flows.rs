//! Which tracked flows are cut, and when: those of workloads that went and those policy denies now, no others. Needs root.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_felix_core::policy::active::{EndpointId, PolicyDelta};

use super::{BackEnd, LONG, Node, policy, tier};

#[test]
fn flows_of_a_pod_that_goes_are_cut_and_no_others() {
    let mut node = Node::new(3);
    node.start(BackEnd::Nft);
    node.apply(node.everything(&[], &[]));
    node.udp(0, 1, true);
    node.udp(0, 2, true);
    let flows = || {
        node.ns.run(|| {
            let mut c = brindle_kernel::netfilter::Conntrack::open().unwrap();
            let all = c.list(brindle_kernel::netfilter::IpVersion::V4).unwrap();
            all.iter().map(|f| f.original.dst).collect::<BTreeSet<_>>()
        })
    };
    assert!(flows().is_superset(&[node.pods[1].v4, node.pods[2].v4].into()), "{:?}", flows());
    // Denied now: this flow is cut, the other one is not.
    let deny = policy("deny", vec![], vec![]);
    let closed = PolicyDelta::Endpoint(Arc::new(node.endpoint(1, vec![tier(&["deny"], &[])])));
    let r = node.apply(vec![PolicyDelta::Policy(deny), closed]);
    assert!(r.counters.flows_cut >= 1, "{r:?}");
    let left = flows();
    assert!(left.contains(&node.pods[2].v4) && !left.contains(&node.pods[1].v4), "{left:?}");
    node.apply(vec![PolicyDelta::Endpoint(Arc::new(node.endpoint(1, vec![])))]);
    node.udp(0, 1, true);
    let cut = node.apply(vec![]).counters.flows_cut;
    node.apply(vec![PolicyDelta::EndpointRemove(node.endpoint(2, vec![]).id)]);
    // One look at all flows is for many that go.
    let deadline = Instant::now() + LONG;
    while node.report().counters.flows_cut == cut {
        assert!(Instant::now() < deadline, "{:?}", flows());
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = flows();
    assert!(left.contains(&node.pods[1].v4) && !left.contains(&node.pods[2].v4), "{left:?}");
    // Its address has a new owner, whose policy denies what the former one's allowed: that cannot wait.
    let mut next = node.endpoint(1, vec![tier(&["deny"], &[])]);
    next.id = EndpointId::Workload { namespace: "default".into(), name: "n1-k8s-next-eth0".into() };
    let gone = PolicyDelta::EndpointRemove(node.endpoint(1, vec![]).id);
    let cut = node.report().counters.flows_cut;
    let r = node.apply(vec![gone, PolicyDelta::Endpoint(Arc::new(next))]);
    assert!(r.counters.flows_cut > cut, "{r:?}");
    assert!(!flows().contains(&node.pods[1].v4), "{:?}", flows());
}
