//! The block algebra: order, guards, attributes, repair, and random histories against a map.

use proptest::prelude::*;

use super::*;

const NOW: Now = Now(1_795_400_607_000_000_000);

fn block() -> Block {
    Block::new("10.0.0.0/29".parse().unwrap(), "n1", NOW).unwrap()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn owner(handle: &str) -> Owner {
    Owner { handle: handle.into(), attributes: BTreeMap::from([("node".into(), "n1".into())]) }
}

fn none() -> Reservations {
    Reservations::default()
}

#[test]
fn addresses_are_given_in_order_and_return_to_the_tail() {
    let mut b = block();
    assert_eq!(b.auto_assign(2, &owner("a"), &none()), [ip("10.0.0.0"), ip("10.0.0.1")]);
    assert_eq!(b.auto_assign(1, &owner("b"), &none()), [ip("10.0.0.2")]);
    b.release(&[Release::of(ip("10.0.0.0"))], None).unwrap();
    assert_eq!(b.auto_assign(9, &owner("c"), &none()).last(), Some(&ip("10.0.0.0")));
    assert!(b.auto_assign(1, &owner("d"), &none()).is_empty());
}

#[test]
fn reserved_addresses_are_passed_over_and_stay_in_the_queue() {
    let mut b = block();
    let reserved = Reservations::new(["10.0.0.0/31".parse().unwrap()]);
    assert_eq!(b.free_count(&reserved), 6);
    assert_eq!(b.auto_assign(1, &owner("a"), &reserved), [ip("10.0.0.2")]);
    assert_eq!(b.spec().unallocated, [0, 1, 3, 4, 5, 6, 7]);
    b.assign(ip("10.0.0.1"), &owner("a")).unwrap();
    assert_eq!(b.free_count(&Reservations::new(["10.0.0.0/8".parse().unwrap()])), 0);
}

#[test]
fn equal_owners_share_an_attribute_and_indices_are_renumbered() {
    let mut b = block();
    for (ip_, h) in [("10.0.0.0", "a"), ("10.0.0.1", "b"), ("10.0.0.2", "a")] {
        b.assign(ip(ip_), &owner(h)).unwrap();
    }
    assert_eq!(b.spec().attributes.len(), 2);
    assert_eq!(b.release_handle("a", None), [ip("10.0.0.0"), ip("10.0.0.2")]);
    assert_eq!(b.spec().attributes.len(), 1);
    assert_eq!(b.spec().allocations[1], Some(0));
    assert_eq!(b.allocation(ip("10.0.0.1")).unwrap().handle(), Some("b"));
}

#[test]
fn a_taken_address_is_refused_with_its_holder() {
    let mut b = block();
    b.assign(ip("10.0.0.3"), &owner("a")).unwrap();
    let e = b.assign(ip("10.0.0.3"), &owner("b")).unwrap_err();
    assert_eq!(e.to_string(), "10.0.0.3 is already assigned to handle a");
    let e = b.assign(ip("10.0.1.3"), &owner("b")).unwrap_err();
    assert_eq!(e.to_string(), "10.0.1.3 is not in block 10.0.0.0/29");
}

#[test]
fn a_release_is_guarded_by_handle_and_sequence_number_and_fails_whole() {
    let mut b = block();
    b.auto_assign(2, &owner("a"), &none());
    let first = b.allocation(ip("10.0.0.0")).unwrap().sequence;
    assert_eq!(first, NOW.0);
    b.written();
    b.release(&[Release::of(ip("10.0.0.0"))], None).unwrap();
    b.assign(ip("10.0.0.0"), &owner("b")).unwrap();
    let before = b.clone();
    let late =
        [Release::of(ip("10.0.0.1")), Release { ip: ip("10.0.0.0"), handle: None, sequence: Some(first) }];
    assert!(matches!(b.release(&late, None), Err(BlockError::OtherSequence { .. })));
    let wrong = [Release { ip: ip("10.0.0.0"), handle: Some("a".into()), sequence: None }];
    assert!(matches!(b.release(&wrong, None), Err(BlockError::OtherHandle { .. })));
    assert_eq!(b, before, "a refused release changes nothing");
    let right = [Release { ip: ip("10.0.0.0"), handle: Some("B".into()), sequence: Some(first + 1) }];
    assert_eq!(b.release(&right, None).unwrap().by_handle, BTreeMap::from([("b".into(), 1)]));
    assert_eq!(b.release(&right, None).unwrap().unallocated, [ip("10.0.0.0")]);
}

#[test]
fn a_released_address_cools_down_before_it_is_given_again() {
    let mut b = block();
    b.auto_assign(8, &owner("a"), &none());
    b.release(&[Release::of(ip("10.0.0.4"))], Some(NOW)).unwrap();
    assert!(b.auto_assign(1, &owner("b"), &none()).is_empty());
    assert!(b.allocation(ip("10.0.0.4")).unwrap().cooling());
    assert_eq!(b.release(&[Release::of(ip("10.0.0.4"))], None).unwrap().unallocated, [ip("10.0.0.4")]);
    b.end_cooldown(Now(NOW.0 + 29_999_999_999), 30);
    assert!(b.auto_assign(1, &owner("b"), &none()).is_empty());
    b.end_cooldown(Now(NOW.0 + 30_000_000_000), 30);
    assert_eq!(b.auto_assign(1, &owner("b"), &none()), [ip("10.0.0.4")]);
}

#[test]
fn a_handle_with_a_carriage_return_is_found_by_its_clean_id() {
    let mut b = block();
    b.assign(ip("10.0.0.1"), &owner("net.abc\r\neth0")).unwrap();
    assert_eq!(b.release_handle("net.abc", None), [ip("10.0.0.1")]);
}

#[test]
fn contradicting_records_are_refused_and_a_wrong_free_list_is_rebuilt() {
    let mut spec = block().spec().clone();
    spec.allocations.pop();
    assert!(Block::from_spec(spec).unwrap_err().to_string().contains("7 allocations for 8 addresses"));
    let mut spec = block().spec().clone();
    spec.allocations[3] = Some(0);
    assert!(Block::from_spec(spec).unwrap_err().to_string().contains("attribute 0 of 0"));
    let mut spec = block().spec().clone();
    spec.cidr = "10.0.0.0/8".parse().unwrap();
    assert!(Block::from_spec(spec).unwrap_err().to_string().contains("more than a block may have"));
    let mut b = block();
    b.assign(ip("10.0.0.5"), &owner("a")).unwrap();
    let mut spec = b.spec().clone();
    spec.unallocated = vec![7, 5, 99, 7, 1];
    assert_eq!(Block::from_spec(spec).unwrap().spec().unallocated, [7, 1, 0, 2, 3, 4, 6]);
}

#[test]
fn the_record_is_written_as_calico_writes_it() {
    let mut b = Block::new("10.244.0.0/30".parse().unwrap(), "node1", NOW).unwrap();
    let pod = Owner {
        handle: "k8s-pod-network.9f3a".into(),
        attributes: [
            ("namespace", "default"),
            ("node", "node1"),
            ("pod", "web-0"),
            ("timestamp", &NOW.attribute()),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
    };
    b.auto_assign(1, &pod, &none());
    insta::assert_snapshot!(serde_json::to_string_pretty(&b.to_write()).unwrap(), @r#"
    {
      "cidr": "10.244.0.0/30",
      "affinity": "host:node1",
      "affinityClaimTime": "2026-11-23T02:23:27Z",
      "allocations": [
        0,
        null,
        null,
        null
      ],
      "unallocated": [
        1,
        2,
        3
      ],
      "attributes": [
        {
          "handle_id": "k8s-pod-network.9f3a",
          "secondary": {
            "namespace": "default",
            "node": "node1",
            "pod": "web-0",
            "timestamp": "2026-11-23 02:23:27 +0000 UTC"
          }
        }
      ],
      "sequenceNumber": 1795400607000000001,
      "sequenceNumberForAllocation": {
        "0": 1795400607000000000
      },
      "deleted": false,
      "strictAffinity": false
    }
    "#);
}

#[derive(Clone, Debug)]
enum Step {
    Auto(usize, u8),
    Give(u8, u8),
    Take(u8),
    TakeAll(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..4, 0u8..5).prop_map(|(n, h)| Step::Auto(n, h)),
        (0u8..18, 0u8..5).prop_map(|(i, h)| Step::Give(i, h)),
        (0u8..18).prop_map(Step::Take),
        (0u8..5).prop_map(Step::TakeAll),
    ]
}

proptest! {
    #[test]
    fn any_history_agrees_with_a_plain_map(steps in prop::collection::vec(step(), 0..60)) {
        let mut b = Block::new("10.0.0.0/28".parse().unwrap(), "n", NOW).unwrap();
        let mut model: BTreeMap<IpAddr, String> = BTreeMap::new();
        for s in steps {
            match s {
                Step::Auto(n, h) => {
                    let given = b.auto_assign(n, &owner(&h.to_string()), &none());
                    prop_assert_eq!(given.len(), n.min(16 - model.len()));
                    for g in given {
                        prop_assert!(model.insert(g, h.to_string()).is_none(), "given twice");
                    }
                }
                Step::Give(i, h) => {
                    let a = IpAddr::from([10, 0, 0, i]);
                    let ok = b.assign(a, &owner(&h.to_string())).is_ok();
                    prop_assert_eq!(ok, i < 16 && !model.contains_key(&a));
                    if ok {
                        model.insert(a, h.to_string());
                    }
                }
                Step::Take(i) => {
                    let a = IpAddr::from([10, 0, 0, i]);
                    if let Ok(done) = b.release(&[Release::of(a)], None) {
                        prop_assert_eq!(done.addresses.len() == 1, model.remove(&a).is_some());
                    }
                }
                Step::TakeAll(h) => {
                    let gone = b.release_handle(&h.to_string(), None);
                    let before = model.len();
                    model.retain(|_, v| *v != h.to_string());
                    prop_assert_eq!(gone.len(), before - model.len());
                }
            }
            b.written();
            let spec = b.spec().clone();
            let held: BTreeMap<IpAddr, String> =
                b.allocations().map(|a| (a.ip, a.handle().unwrap().to_owned())).collect();
            prop_assert_eq!(&held, &model);
            let reread = Block::from_spec(spec.clone()).unwrap();
            prop_assert_eq!(reread.spec(), &spec, "nothing to repair in what we write");
        }
    }
}
