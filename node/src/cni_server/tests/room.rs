//! STATUS: whether a new pod would be given an address.

use super::*;

fn status(given: bool, num6: u8) -> Call {
    Call::Status { given, pools4: vec![], pools6: vec![], num4: 1, num6 }
}

fn pool(cidr: &str) -> IpPoolSpec {
    IpPoolSpec { block_size_raw: Some(32), ..IpPoolSpec::new(cidr.parse().unwrap()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_do_not_matter_where_another_plugin_gives_addresses() {
    let s = Stage::new("10.1.0.0/24").await;
    s.put(ObjectMeta::named("pool"), IpPoolSpec { disabled: true, ..pool("10.1.0.0/24") }).await;
    let (code, msg) = refused(s.ask(status(false, 0)).await);
    assert_eq!((code, msg.as_str()), (code::NOT_AVAILABLE, "no IP pool is enabled"));
    assert!(matches!(s.ask(status(true, 0)).await, Reply::Pong { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_must_serve_this_node() {
    let s = Stage::new("10.1.0.0/24").await;
    assert!(matches!(s.ask(status(false, 0)).await, Reply::Pong { .. }));
    let (_, msg) = refused(s.ask(status(false, 1)).await);
    assert!(msg.starts_with("no IP pool serves this node: "), "no pool of IPv6: {msg}");
    s.put(
        ObjectMeta::named("pool"),
        IpPoolSpec { node_selector: "rack == 'b'".into(), ..pool("10.1.0.0/24") },
    )
    .await;
    for asked in [status(false, 0), Call::status()] {
        let (code, msg) = refused(s.ask(asked).await);
        assert_eq!(code, code::NOT_AVAILABLE);
        assert!(msg.contains("does not select node n1"), "{msg}");
    }
    // Asked for by name it serves every node; a selector of namespaces is the pod's affair.
    let named = Call::Status { given: false, pools4: vec!["pool".into()], pools6: vec![], num4: 1, num6: 0 };
    assert!(matches!(s.ask(named).await, Reply::Pong { .. }));
    let some = IpPoolSpec { namespace_selector: "team == 'x'".into(), ..pool("10.1.0.0/24") };
    s.put(ObjectMeta::named("pool"), some).await;
    assert!(matches!(s.ask(Call::status()).await, Reply::Pong { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_reserved_says_so() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let reserved = brindle_config_core::pool::IpReservationSpec {
        reserved_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
        ..Default::default()
    };
    s.put(ObjectMeta::named("all"), reserved).await;
    s.start().await;
    let Reply::Error { code, msg, details } = s.ask(add(&attachment("c1"))).await else { panic!() };
    assert_eq!(code, code::POOL_EXHAUSTED);
    assert!(msg.contains("pool pool is reserved as a whole (IPReservation)"), "{msg}");
    assert!(details.starts_with("take addresses out of the IPReservation"), "{details}");
    let (_, msg) = refused(s.ask(Call::status()).await);
    assert_eq!(msg, "no address is left in 10.1.0.0/24 (reserved by IPReservations)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_serves_nobody_until_an_address_is_free() {
    let mut s = Stage::new("10.1.0.0/24").await;
    s.put(ObjectMeta::named("pool"), pool("10.1.0.0/31")).await;
    s.start().await;
    s.attach(&attachment("c1")).await;
    assert!(matches!(s.ask(Call::status()).await, Reply::Pong { .. }), "a block is left");
    s.attach(&attachment("c2")).await;
    let (code, msg) = refused(s.ask(Call::status()).await);
    assert_eq!((code, msg.as_str()), (code::NOT_AVAILABLE, "no address is left in 10.1.0.0/31"));
    assert_eq!(s.ask(del(&attachment("c1"))).await, Reply::Deleted);
    assert!(matches!(s.ask(Call::status()).await, Reply::Pong { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_for_some_namespaces_makes_no_family_everybodys() {
    let s = Stage::new("10.1.0.0/24").await;
    let families = async |six: &str, four: &str| {
        for (name, cidr, selector) in [("six", "fd00::/122", six), ("pool", "10.1.0.0/24", four)] {
            let spec = IpPoolSpec {
                namespace_selector: selector.into(),
                disabled: selector == "none",
                ..IpPoolSpec::new(cidr.parse().unwrap())
            };
            s.put(ObjectMeta::named(name), spec).await;
        }
        match s.ask(Call::Families).await {
            Reply::Families { v4, v6 } => (v4, v6),
            other => panic!("{other:?}"),
        }
    };
    let team = "projectcalico.org/name == 'team'";
    assert_eq!(families("", "").await, (true, true));
    assert_eq!(families("all()", "").await, (true, true));
    assert_eq!(families("kind == 'six'", "").await, (true, false));
    // A pod of another namespace is served by what the conflist then asks for.
    assert!(matches!(s.ask(add(&attachment("c1"))).await, Reply::Added { .. }));
    assert_eq!(families("", "kind == 'four'").await, (false, true));
    // Only pools for some: those are to have addresses all the same.
    assert_eq!(families("none", team).await, (true, false));
    assert_eq!(families(team, "none").await, (false, true));
    assert_eq!(families(team, team).await, (true, true));
    assert_eq!(families("kind == 'six'", team).await, (true, false), "IPv4, where one of both would fail");
    assert_eq!(families("none", "none").await, (false, false));
}
