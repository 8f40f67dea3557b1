//! BGPFilter rules: any JSON is a filter or an error, what compiles survives being written down, and evaluation of the
//! compiled rules agrees with itself after that, for prefixes made of the same bytes.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use brindle_bgpd_core::{
    af::Family,
    policy::{Decision, Facts, Filter, Policy},
    wire::{AsPath, AttrSet},
};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((head, text)) = data.split_at_checked(24) else { return };
    let Ok(filters) = serde_json::from_slice::<Vec<Filter>>(text) else { return };
    let policy = Policy::from(filters);
    let written = serde_json::to_vec(&policy).expect("a policy is data");
    let again: Policy = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, policy);
    let number = |at: usize| head[at..at + 4].iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
    let attributes = AttrSet {
        as_path: AsPath::sequence(head[20..23].iter().map(|b| u32::from(*b) + 1)),
        communities: [number(16)].into_iter().collect(),
        ..AttrSet::default()
    };
    let v6 = head[..16].iter().fold(0u128, |n, b| n << 8 | u128::from(*b));
    for (address, most) in
        [(IpAddr::V4(Ipv4Addr::from(number(0))), 32), (IpAddr::V6(Ipv6Addr::from(v6)), 128)]
    {
        let Ok(prefix) = IpNet::new(address, head[23] % (most + 1)) else { continue };
        for (ibgp, learnt) in [(false, true), (true, true), (true, false)] {
            let facts = Facts {
                prefix: prefix.trunc(),
                attributes: &attributes,
                priority: number(4),
                ibgp,
                learnt,
                interface: std::str::from_utf8(&head[..8]).ok(),
            };
            let decision = policy.decide(&facts);
            assert_eq!(again.decide(&facts), decision);
            if let Decision::Accept(n) | Decision::Reject(n) = decision {
                let family = Family::of(&prefix);
                assert!(policy.rule(family, n).is_some());
                policy.apply(family, n, &mut attributes.clone());
            }
        }
    }
});
