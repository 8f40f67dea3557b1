//! Addresses of tunnel devices: which one a node should have, and that none is free while it is held.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::sim::{SimStore, run};
use brindle_config_core::{
    ObjectMeta, Resource,
    node::NodeSpec,
    pool::{AllowedUse, AssignmentMode, EncapMode, IpPoolSpec},
};
use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, IpamError, NoPause, Now, Owner, TunnelKind, TunnelWish, View,
    Wanted, audit::audit, pools::Pool, tunnel::wish,
};

const NOW: Now = Now(1_795_400_607_000_000_000);

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn spec(cidr: &str, change: impl FnOnce(&mut IpPoolSpec)) -> IpPoolSpec {
    let mut spec = IpPoolSpec { ipip_mode: EncapMode::Always, ..IpPoolSpec::new(cidr.parse().unwrap()) };
    change(&mut spec);
    spec
}

/// A view of a node in zone `a`.
fn view(pools: &[(&str, IpPoolSpec)]) -> View {
    let pool = |(name, spec): &(&str, IpPoolSpec)| Pool {
        name: (*name).into(),
        terminating: false,
        spec: spec.clone(),
    };
    View {
        pools: pools.iter().map(pool).collect(),
        node_labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        ..View::default()
    }
}

fn wished(view: &View, held: &[&str], current: Option<&str>) -> TunnelWish {
    let held: Vec<IpAddr> = held.iter().map(|a| ip(a)).collect();
    wish(TunnelKind::Ipip, "n0", view, &held, current.map(ip))
}

fn take(pools: &[&str], instead: Option<&str>) -> TunnelWish {
    TunnelWish::Take { pools: pools.iter().map(|p| (*p).to_owned()).collect(), instead: instead.map(ip) }
}

/// The address that is held in spite of these words.
fn held_for(wish: &TunnelWish) -> (IpAddr, String) {
    match wish {
        TunnelWish::Hold(ip, why) => (*ip, why.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_address_is_kept_while_its_pool_gives_such_addresses() {
    let v = view(&[("one", spec("10.1.0.0/24", |_| {})), ("two", spec("10.2.0.0/24", |_| {}))]);
    assert_eq!(wished(&v, &[], None), take(&["one", "two"], None));
    assert_eq!(wished(&v, &["10.1.0.1"], None), TunnelWish::Keep(ip("10.1.0.1")), "the Node lost it");
    let both = ["10.1.0.1", "10.2.0.1"];
    assert_eq!(wished(&v, &both, Some("10.2.0.1")), TunnelWish::Keep(ip("10.2.0.1")), "as the Node says");
    assert_eq!(wished(&v, &both, Some("10.2.0.9")), TunnelWish::Keep(ip("10.1.0.1")), "that is not ours");
    assert_eq!(wished(&v, &[], Some("10.2.0.9")), take(&["one", "two"], None));
}

#[test]
fn a_pool_that_is_for_others_is_left_for_one_that_is_not() {
    for change in [
        (|p: &mut IpPoolSpec| p.allowed_uses = vec![AllowedUse::Workload]) as fn(&mut IpPoolSpec),
        |p| p.node_selector = "zone == 'b'".into(),
        |p| p.node_selector = "zone == 'b".into(),
        |p| p.disabled = true,
        |p| p.ipip_mode = EncapMode::Never,
        |p| p.block_size_raw = Some(16),
    ] {
        let two = spec("10.2.0.0/24", |p| {
            p.node_selector = "zone == 'a'".into();
            p.allowed_uses = vec![AllowedUse::Tunnel];
            p.assignment_mode = AssignmentMode::Manual;
        });
        let v = view(&[("one", spec("10.1.0.0/24", change)), ("two", two)]);
        assert_eq!(wished(&v, &["10.1.0.1"], Some("10.1.0.1")), take(&["two"], Some("10.1.0.1")));
        assert_eq!(wished(&v, &[], None), take(&["two"], None));
        // Once taken it is the new one, whatever the Node still says.
        let both = ["10.1.0.1", "10.2.0.1"];
        assert_eq!(wished(&v, &both, Some("10.1.0.1")), TunnelWish::Keep(ip("10.2.0.1")));
    }
}

#[test]
fn what_no_pool_replaces_is_held_with_the_reason() {
    let workload = |p: &mut IpPoolSpec| p.allowed_uses = vec![AllowedUse::Workload];
    let v = view(&[("one", spec("10.1.0.0/24", workload))]);
    let (held, why) = held_for(&wished(&v, &["10.1.0.1"], Some("10.1.0.1")));
    assert_eq!((held, why.as_str()), (ip("10.1.0.1"), "pool one is not for Tunnel addresses"));
    assert!(matches!(wished(&v, &[], None), TunnelWish::Lack(_)));

    let v = view(&[("one", spec("10.1.0.0/24", |p| p.node_selector = "zone == 'b'".into()))]);
    let (_, why) = held_for(&wished(&v, &["10.1.0.1"], Some("10.1.0.1")));
    assert_eq!(why, r#"pool one does not select node n0 (nodeSelector "zone == 'b'")"#);
}

#[test]
fn without_such_a_pool_there_is_no_address() {
    let plain = |p: &mut IpPoolSpec| p.ipip_mode = EncapMode::Never;
    let six = spec("fd00::/64", |_| {});
    let mut v = view(&[("plain", spec("10.1.0.0/24", plain)), ("six", six)]);
    assert_eq!(wished(&v, &["10.1.0.1"], Some("10.1.0.1")), TunnelWish::Nothing);
    v.pools.push(Pool { name: "going".into(), terminating: true, spec: spec("10.2.0.0/24", |_| {}) });
    assert_eq!(wished(&v, &["10.2.0.1"], Some("10.2.0.1")), TunnelWish::Nothing);
}

#[test]
fn a_pool_that_does_not_read_may_be_the_one() {
    let mut v = view(&[("two", spec("10.2.0.0/24", |_| {}))]);
    v.unreadable.push("IPPool(one): no".into());
    let (held, why) = held_for(&wished(&v, &["10.1.0.1"], Some("10.1.0.1")));
    assert_eq!((held, why.as_str()), (ip("10.1.0.1"), "not readable: IPPool(one): no"));
    assert_eq!(wished(&v, &[], None), take(&["two"], None));
    v.pools.clear();
    held_for(&wished(&v, &["10.1.0.1"], Some("10.1.0.1")));
}

#[test]
fn vxlan_has_pools_of_its_own() {
    let v = view(&[("one", spec("10.1.0.0/24", |p| p.vxlan_mode = EncapMode::Never))]);
    assert_eq!(wish(TunnelKind::Vxlan, "n0", &v, &[], None), TunnelWish::Nothing);
    let six = IpPoolSpec { vxlan_mode: EncapMode::Always, ..IpPoolSpec::new("fd00::/64".parse().unwrap()) };
    let v = view(&[("six", six)]);
    assert_eq!(wish(TunnelKind::VxlanV6, "n0", &v, &[], None), take(&["six"], None));
    assert_eq!(wish(TunnelKind::Vxlan, "n0", &v, &[], None), TunnelWish::Nothing);
}

#[test]
fn no_pod_is_given_a_tunnel_address_until_it_is_given_back() {
    let store = SimStore::default();
    let put = |name: &str, spec: IpPoolSpec| store.insert(Resource::new(ObjectMeta::named(name), spec));
    let small = |p: &mut IpPoolSpec| p.block_size_raw = Some(30);
    put("one", spec("10.0.0.0/30", small));
    store.insert(Resource::new(ObjectMeta::named("n0"), NodeSpec::default()));
    let mut host = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
    let look = || run(View::load(&store, "n0")).unwrap();
    let owner = |handle: &str| Owner {
        handle: handle.into(),
        attributes: BTreeMap::from([("node".to_owned(), "n0".to_owned())]),
    };
    let view = look();
    let first = run(host.take_tunnel_address(TunnelKind::Ipip, &["one".into()], &view, NOW)).unwrap();
    assert_eq!(run(host.tunnel_addresses(TunnelKind::Ipip)).unwrap(), [first]);
    assert_eq!(run(host.by_handle("ipip-tunnel-addr-n0")).unwrap(), [first]);
    let pods = AssignRequest::for_workload(owner("a"), Wanted::any(4), Wanted::default());
    let given = run(host.assign(&pods, &view, NOW)).unwrap();
    assert!(given.addresses.len() == 3 && given.addresses.iter().all(|a| a.ip != first), "{given:?}");
    let e = run(host.assign_ip(first, &owner("pod"), AllowedUse::Workload, &view, NOW)).unwrap_err();
    assert_eq!(e.to_string(), format!("{first} is already assigned to handle ipip-tunnel-addr-n0"));

    // The pool is full and no longer for tunnels; there is another.
    put(
        "one",
        spec("10.0.0.0/30", |p| {
            small(p);
            p.allowed_uses = vec![AllowedUse::Workload];
        }),
    );
    put("two", spec("10.9.0.0/30", small));
    let view = look();
    let wished = wish(TunnelKind::Ipip, "n0", &view, &[first], Some(first));
    assert_eq!(wished, take(&["two"], Some(&first.to_string())));
    let second = run(host.take_tunnel_address(TunnelKind::Ipip, &["two".into()], &view, NOW)).unwrap();
    assert_eq!(run(host.tunnel_addresses(TunnelKind::Ipip)).unwrap(), [first, second], "both are held");
    let e = run(host.take_tunnel_address(TunnelKind::Ipip, &["one".into()], &view, NOW)).unwrap_err();
    assert!(matches!(e, IpamError::Refused(_)), "{e}");

    let freed = run(host.release_tunnel_addresses(TunnelKind::Ipip, &[first], &view, NOW)).unwrap();
    assert_eq!(freed, [first]);
    assert_eq!(run(host.tunnel_addresses(TunnelKind::Ipip)).unwrap(), [second]);
    run(host.release_tunnel_handle(TunnelKind::Ipip, &view, NOW)).unwrap();
    assert_eq!(audit(&store.everything()), []);
}
