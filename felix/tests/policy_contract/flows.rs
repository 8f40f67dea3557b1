//! Flows that policy denies, on the model of the kernel: closed where that can be, else deleted.

use std::net::IpAddr;

use brindle_felix_core::rules::marks::Marks;
use brindle_kernel::netfilter::Tuple;

use super::*;

/// From the second pod to the first, by UDP.
pub(crate) fn flow(sport: u16) -> Flow {
    let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
    let original = Tuple { src: ip(2), dst: ip(1), sport, dport: 80, icmp: None };
    let reply = Tuple { src: ip(1), dst: ip(2), sport: 80, dport: sport, icmp: None };
    Flow::invented(IpVersion::V4, 17, original, reply)
}

fn marked(mark: u32) -> Flow {
    let mut flow = flow(1000);
    flow.mark = mark;
    flow
}

fn mask(mask: u32) -> PolicyInput {
    let mut spec = FelixConfigurationSpec::default();
    spec.extra.insert("nftablesMode".into(), json!("Enabled"));
    spec.extra.insert("nftablesMarkMask".into(), json!(mask));
    let r = Resource::new(ObjectMeta::named("default"), spec);
    let value = serde_json::to_value(&r).unwrap().into();
    PolicyInput::Store(vec![SyncEvent::Upsert(Entry { key: r.key(), revision: Revision(2), value })])
}

/// The first pod allows nobody, then everybody.
fn deny() -> Vec<PolicyDelta> {
    let never = Rule::any(Action::Deny, Why::default());
    vec![policy("none", never), endpoint(0, &["none"])]
}

#[test]
fn what_policy_denies_is_closed_and_opened_again_and_other_bits_of_its_mark_stay() {
    let model = FilterWorld::new();
    let agent = Agent::start(&World::Model(model.clone()), "nftables");
    agent.tell(PolicyInput::Deltas(first()));
    agent.settled();
    let bit = Marks::default().closed.unwrap();
    model.track(marked(3));
    agent.tell(PolicyInput::Deltas(deny()));
    assert_eq!(agent.settled().counters.flows_cut, 1);
    assert_eq!(model.tracked(), [marked(3 | bit)]);
    // It is closed once.
    agent.tell(PolicyInput::Deltas(deny()));
    assert_eq!(agent.settled().counters.flows_cut, 1);
    agent.tell(PolicyInput::Deltas(vec![endpoint(0, &[])]));
    assert_eq!(agent.settled().counters.flows_cut, 1);
    assert_eq!(model.tracked(), [marked(3)]);
    agent.stop();
}

#[test]
fn where_flows_cannot_be_marked_what_policy_denies_is_deleted() {
    let model = FilterWorld::new();
    let agent = Agent::start(&World::Model(model.clone()), "nftables");
    agent.tell(PolicyInput::Deltas(first()));
    agent.settled();
    model.track(flow(1000));
    model.fail_next(NfCall::Mark);
    agent.tell(PolicyInput::Deltas(deny()));
    assert_eq!(agent.settled().counters.flows_cut, 1);
    assert_eq!(model.tracked(), []);
    // A mask with two bits has none for it.
    agent.tell(PolicyInput::Deltas(vec![endpoint(0, &[])]));
    agent.tell(mask(0x3_0000));
    agent.settled();
    model.track(flow(1001));
    agent.tell(PolicyInput::Deltas(deny()));
    assert_eq!(agent.settled().counters.flows_cut, 2);
    assert_eq!(model.tracked(), []);
    agent.stop();
}

#[test]
fn first_writes_that_were_refused_for_another_reason_do_not_keep_flows_from_being_closed() {
    let model = FilterWorld::new();
    let world = World::Model(model.clone());
    let agent = Agent::start(&world, "nftables");
    model.fail_next(NfCall::Nft);
    model.fail_next(NfCall::Nft);
    agent.tell(PolicyInput::Deltas(first()));
    assert_eq!(agent.settled().counters.errors, 2);
    let deadline = Instant::now() + LONG;
    while !world.state("nftables").iter().any(|l| l.contains("policy denies this flow now")) {
        assert!(Instant::now() < deadline, "{:?}", world.state("nftables"));
        std::thread::sleep(Duration::from_millis(20));
    }
    model.track(flow(1000));
    agent.tell(PolicyInput::Deltas(deny()));
    assert_eq!(agent.settled().counters.flows_cut, 1);
    assert_eq!(model.tracked(), [marked(Marks::default().closed.unwrap())]);
    agent.stop();
}
