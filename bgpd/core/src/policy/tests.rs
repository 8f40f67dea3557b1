//! Examples of each condition, and any policy against a literal oracle.

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use super::*;
use crate::{
    af::Family,
    wire::{AsPath, AttrSet},
};

fn on(filters: Vec<Filter>, prefix: &str, set: &AttrSet, ibgp: bool, learnt: bool) -> Decision {
    Policy::from(filters).decide(&Facts {
        prefix: prefix.parse().unwrap(),
        attributes: set,
        priority: 1024,
        ibgp,
        learnt,
        interface: Some("eth0"),
    })
}

fn filter(v4: Vec<Rule>) -> Vec<Filter> {
    vec![Filter { name: "f".into(), direction: Direction::Export, v4, v6: vec![] }]
}

fn matches(rule: Rule, prefix: &str) -> bool {
    on(filter(vec![rule]), prefix, &AttrSet::default(), true, true) != Decision::Default
}

fn net(net: &str, compare: Compare, min: Option<u8>, max: Option<u8>) -> Rule {
    let prefix = Some(PrefixMatch { net: net.parse().unwrap(), compare, min, max });
    Rule { prefix, ..Rule::new(Action::Accept) }
}

#[test]
fn the_four_comparisons_and_the_range_of_lengths() {
    use Compare::{Equal, In, NotEqual, NotIn};
    for (compare, min, max, prefix, hit) in [
        (Equal, None, None, "10.0.0.0/16", true),
        (Equal, None, None, "10.0.0.0/17", false),
        (Equal, Some(17), None, "10.0.0.0/16", false),
        (NotEqual, None, None, "10.0.0.0/16", false),
        (NotEqual, None, None, "10.0.0.0/24", true),
        (In, None, None, "10.0.0.0/16", true),
        (In, None, None, "10.0.9.1/32", true),
        (In, None, None, "10.1.0.0/24", false),
        (In, None, None, "10.0.0.0/8", false),
        (In, Some(24), Some(26), "10.0.0.0/16", false),
        (In, Some(24), Some(26), "10.0.1.0/24", true),
        (In, Some(24), Some(26), "10.0.1.0/27", false),
        (In, Some(0), Some(8), "0.0.0.0/0", false),
        (NotIn, None, None, "10.0.1.0/24", false),
        (NotIn, None, None, "192.168.0.0/24", true),
        (NotIn, Some(24), Some(26), "10.0.0.0/16", true),
    ] {
        assert_eq!(
            matches(net("10.0.0.0/16", compare, min, max), prefix),
            hit,
            "{compare:?} {min:?} {max:?} {prefix}"
        );
    }
    assert!(matches(net("0.0.0.0/0", In, None, None), "0.0.0.0/0"));
    assert!(matches(net("10.0.0.1/32", Equal, None, None), "10.0.0.1/32"));
}

#[test]
fn every_given_condition_must_hold() {
    let set = AttrSet {
        as_path: AsPath::sequence([65001, 65002]),
        communities: smallvec::smallvec![1 << 16 | 1],
        large_communities: smallvec::smallvec![(1, 2, 3)],
        ..AttrSet::default()
    };
    let base = || Rule::new(Action::Reject);
    for (rule, hit) in [
        (base(), true),
        (Rule { community: Some(Community::Standard(1 << 16 | 1)), ..base() }, true),
        (Rule { community: Some(Community::Standard(2)), ..base() }, false),
        (Rule { community: Some(Community::Large((1, 2, 3))), ..base() }, true),
        (Rule { as_path: vec![65001], ..base() }, true),
        (Rule { as_path: vec![65001, 65002], ..base() }, true),
        (Rule { as_path: vec![65001, 65002, 65003], ..base() }, false),
        (Rule { as_path: vec![65002], ..base() }, false),
        (Rule { priority: Some(1024), ..base() }, true),
        (Rule { priority: Some(512), ..base() }, false),
        (Rule { peer: Some(PeerType::Ebgp), ..base() }, true),
        (Rule { peer: Some(PeerType::Ibgp), ..base() }, false),
        (Rule { learnt: true, ..base() }, false),
        (Rule { interface: Some("eth*".into()), ..base() }, true),
        (Rule { interface: Some("*.cali*".into()), ..base() }, false),
        (Rule { as_path: vec![65001], priority: Some(512), ..base() }, false),
    ] {
        let got = on(filter(vec![rule.clone()]), "10.0.0.0/24", &set, false, false);
        assert_eq!(got == Decision::Reject(0), hit, "{rule:?}");
    }
}

#[test]
fn the_first_match_ends_the_whole_list_and_is_named() {
    let filters = vec![
        Filter {
            name: "first".into(),
            direction: Direction::Import,
            v4: vec![net("10.0.0.0/8", Compare::In, None, None), net("10.1.0.0/16", Compare::In, None, None)],
            v6: vec![],
        },
        Filter {
            name: "rest".into(),
            direction: Direction::Import,
            v4: vec![Rule::new(Action::Reject)],
            v6: vec![],
        },
    ];
    let policy = Policy::from(filters.clone());
    assert_eq!(on(filters.clone(), "10.1.0.0/24", &AttrSet::default(), true, true), Decision::Accept(0));
    let Decision::Reject(n) = on(filters, "192.168.0.0/24", &AttrSet::default(), true, true) else {
        panic!()
    };
    assert_eq!(policy.rule(Family::Ipv4Unicast, n).unwrap().to_string(), "rest importV4[0]");
    assert_eq!(policy.rule(Family::Ipv6Unicast, n), None);
}

#[test]
fn attached_communities_stay_sorted_and_unique() {
    let mut set = AttrSet::default();
    let standard = [3, 1, 3].map(Community::Standard);
    let large = [(9, 9, 9), (1, 2, 3), (9, 9, 9)].map(Community::Large);
    standard.into_iter().chain(large).for_each(|c| c.attach(&mut set));
    assert_eq!(set.communities[..], [1, 3]);
    assert_eq!(set.large_communities[..], [(1, 2, 3), (9, 9, 9)]);
}

#[test]
fn operations_are_applied_in_order() {
    let rule = Rule {
        operations: vec![
            Operation::AddCommunity(Community::Standard(7)),
            Operation::AddCommunity(Community::Standard(3)),
            Operation::AddCommunity(Community::Large((1, 1, 1))),
            Operation::PrependAsPath(vec![65000, 65001]),
            Operation::SetPriority(512),
        ],
        ..Rule::new(Action::Accept)
    };
    let policy = Policy::from(filter(vec![rule]));
    let mut set = AttrSet { as_path: AsPath::sequence([1]), ..AttrSet::default() };
    assert!(policy.apply(Family::Ipv4Unicast, 0, &mut set));
    assert_eq!(set.communities[..], [3, 7]);
    assert_eq!(set.large_communities[..], [(1, 1, 1)]);
    assert_eq!(set.as_path, AsPath::sequence([65000, 65001, 1]));
    assert_eq!(set.local_pref, Some(2_147_483_647 - 512));
}

#[test]
fn a_policy_survives_being_written_down() {
    let policy = Policy::from(filter(vec![net("10.0.0.0/8", Compare::In, None, Some(24))]));
    let text = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    assert_ne!(policy, Policy::default());
}

/// The rules as the words say, without any preparation.
fn oracle(filters: &[Filter], facts: &Facts<'_>) -> Option<(String, usize, Action)> {
    for f in filters {
        let rules = if facts.prefix.addr().is_ipv4() { &f.v4 } else { &f.v6 };
        for (i, r) in rules.iter().enumerate() {
            let prefix = r.prefix.is_none_or(|m| {
                let length = facts.prefix.prefix_len();
                let bounded = m.min.is_none_or(|n| length >= n) && m.max.is_none_or(|n| length <= n);
                match m.compare {
                    Compare::Equal => m.net == facts.prefix && bounded,
                    Compare::NotEqual => !(m.net == facts.prefix && bounded),
                    Compare::In => m.net.contains(&facts.prefix) && bounded,
                    Compare::NotIn => !(m.net.contains(&facts.prefix) && bounded),
                }
            });
            let learnt = !r.learnt || f.direction == Direction::Import || facts.learnt;
            let peer = r.peer.is_none_or(|p| (p == PeerType::Ibgp) == facts.ibgp);
            let community = r.community.is_none_or(|c| c.is_on(facts.attributes));
            let path: Vec<u32> = facts.attributes.as_path.0.iter().flat_map(|s| s.asns.to_vec()).collect();
            let priority = r.priority.is_none_or(|p| p == facts.priority);
            if prefix && learnt && peer && community && path.starts_with(&r.as_path) && priority {
                return Some((f.name.clone(), i, r.action));
            }
        }
    }
    None
}

fn prefixes() -> impl Strategy<Value = IpNet> {
    // A small world, so that prefixes cover each other often.
    (0u8..4, 0u8..4, prop_oneof![Just(0u8), Just(8), 14u8..20, Just(32)]).prop_map(|(a, b, len)| {
        IpNet::V4(Ipv4Net::new([10 + (a >> 1), a, b << 6, 0].into(), len).unwrap().trunc())
    })
}

fn rules() -> impl Strategy<Value = Rule> {
    let compare =
        prop_oneof![Just(Compare::Equal), Just(Compare::NotEqual), Just(Compare::In), Just(Compare::NotIn)];
    let length = || proptest::option::of(0u8..=32);
    let prefix = (prefixes(), compare, length(), length()).prop_map(|(net, compare, min, max)| PrefixMatch {
        net,
        compare,
        min,
        max,
    });
    (
        proptest::option::of(prefix),
        any::<bool>(),
        proptest::option::of(prop_oneof![Just(PeerType::Ebgp), Just(PeerType::Ibgp)]),
        proptest::option::weighted(0.3, (0u32..3).prop_map(Community::Standard)),
        proptest::collection::vec(1u32..3, 0..2),
        proptest::option::weighted(0.2, 1u32..3),
        any::<bool>(),
    )
        .prop_map(|(prefix, learnt, peer, community, as_path, priority, accept)| Rule {
            prefix,
            learnt,
            interface: None,
            peer,
            community,
            as_path,
            priority,
            action: if accept { Action::Accept } else { Action::Reject },
            operations: vec![],
        })
}

proptest! {
    #[test]
    fn compiled_rules_mean_what_the_words_say(
        lists in proptest::collection::vec((proptest::collection::vec(rules(), 0..5), any::<bool>()), 0..4),
        prefix in prefixes(),
        path in proptest::collection::vec(1u32..3, 0..3),
        communities in proptest::collection::btree_set(0u32..3, 0..3),
        priority in 1u32..3,
        ibgp in any::<bool>(),
        learnt in any::<bool>(),
    ) {
        let filters: Vec<Filter> = lists
            .into_iter()
            .enumerate()
            .map(|(i, (v4, import))| Filter {
                name: format!("f{i}"),
                direction: if import { Direction::Import } else { Direction::Export },
                v4,
                v6: vec![],
            })
            .collect();
        let attributes = AttrSet {
            as_path: AsPath::sequence(path),
            communities: communities.into_iter().collect(),
            ..AttrSet::default()
        };
        let facts = Facts { prefix, attributes: &attributes, priority, ibgp, learnt, interface: None };
        let policy = Policy::from(filters.clone());
        let got = match policy.decide(&facts) {
            Decision::Default => None,
            Decision::Accept(n) => Some((n, Action::Accept)),
            Decision::Reject(n) => Some((n, Action::Reject)),
        };
        let got = got.map(|(n, action)| {
            let name = policy.rule(Family::Ipv4Unicast, n).unwrap();
            (name.filter.to_owned(), name.index, action)
        });
        prop_assert_eq!(got, oracle(&filters, &facts));
    }
}
