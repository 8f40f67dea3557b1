//! What the tools refuse of one policy holds back no other: it denies, is named, and is whole again when it is mended.

use brindle_felix_core::policy::active::Protocol;

use super::*;

/// The tools of iptables take one of the two. Validation and compilation leave it; who hands over rules may not.
fn refused_by_iptables() -> Rule {
    let mut rule = Rule::any(Action::Allow, Why::default());
    (rule.protocol, rule.not_protocol) = (Some(Protocol::TCP), Some(Protocol::UDP));
    rule
}

fn allow() -> Rule {
    Rule::any(Action::Allow, Why::default())
}

/// Rules of a policy's chain.
fn chain_of(state: &BTreeSet<String>, name: &str) -> Vec<String> {
    let chain = brindle_felix_core::rules::endpoint::policy_chain(&id(name), true);
    let (iptables, nft) = (format!("-A {chain} "), format!("\"filter-{chain}\""));
    let own = |l: &&String| l.starts_with(&iptables) || l.contains(&nft) && l.contains("bri:");
    state.iter().filter(own).cloned().collect()
}

/// A policy that is refused, and one beside it.
fn both() -> Vec<PolicyDelta> {
    vec![
        policy("bad", refused_by_iptables()),
        policy("two", allow()),
        endpoint(2, &["two"]),
        endpoint(3, &["bad"]),
    ]
}

#[track_caller]
fn is_named(r: &PolicyReport, words: &[&str]) {
    let [line] = r.resources.as_slice() else { panic!("{:?}", r.resources) };
    assert!(words.iter().all(|w| line.contains(w)), "{words:?}: {line}");
}

#[test]
fn a_refused_rule_closes_its_policy_alone_until_it_is_mended() {
    for world in [World::Model(FilterWorld::new()), World::linux()] {
        for back_end in BACK_ENDS {
            let refuse = |text: Option<&str>| match &world {
                World::Model(w) => w.refuse(text),
                World::Linux(_) => {}
            };
            // Of what Linux' nft would refuse nothing is known that is rendered.
            if matches!(world, World::Linux(_)) && back_end == "nftables" {
                continue;
            }
            refuse(Some(if back_end == "nftables" { "l4proto != 17" } else { "-p tcp ! -p udp" }));
            let agent = Agent::start(&world, back_end);
            agent.tell(PolicyInput::Deltas(first()));
            agent.settled();
            agent.tell(PolicyInput::Deltas(both()));
            let r = agent.tidy();
            is_named(&r, &["NetworkPolicy(red/bad): its ingress rules deny everything: ", "refused"]);
            assert_eq!(r.ready.len(), 4, "{r:?}");
            let state = world.state(back_end);
            let says = |state: &BTreeSet<String>, name: &str, words: &str| {
                // Both families.
                let all = chain_of(state, name);
                let right = !all.is_empty() && all.len() <= 2 && all.iter().all(|l| l.contains(words));
                assert!(right, "{back_end} {name}: {state:#?}");
            };
            says(&state, "bad", "refused as it was written");
            says(&state, "two", "NetworkPolicy red/two");

            // What comes later comes into force, and says nothing new of the other.
            agent.tell(PolicyInput::Deltas(vec![policy("three", allow()), endpoint(4, &["three"])]));
            is_named(&agent.tidy(), &["NetworkPolicy(red/bad)"]);
            says(&world.state(back_end), "three", "NetworkPolicy red/three");

            agent.tell(PolicyInput::Deltas(vec![policy("bad", allow())]));
            let r = agent.tidy();
            assert_eq!(r.resources, Vec::<String>::new());
            says(&world.state(back_end), "bad", "NetworkPolicy red/bad");
            agent.stop();
            refuse(None);
        }
    }
}

/// What denies meanwhile denies flows that were there before, too.
#[test]
fn flows_of_a_policy_that_is_set_aside_are_closed_until_it_is_mended() {
    let model = FilterWorld::new();
    let agent = Agent::start(&World::Model(model.clone()), "nftables");
    agent.tell(PolicyInput::Deltas(first()));
    agent.settled();
    model.track(flows::flow(1000));
    let mut refused = refused_by_iptables();
    // As it is written it allows the flow.
    refused.protocol = None;
    refused.not_protocol = Some(Protocol::TCP);
    model.refuse(Some("l4proto != 6"));
    agent.tell(PolicyInput::Deltas(vec![policy("bad", refused), endpoint(0, &["bad"])]));
    let r = agent.settled();
    is_named(&r, &["NetworkPolicy(red/bad): its ingress rules deny everything: "]);
    let closed = |model: &FilterWorld| model.tracked().iter().all(|f| f.mark != 0);
    assert!(closed(&model) && r.counters.flows_cut == 1, "{r:?} {:?}", model.tracked());
    agent.tell(PolicyInput::Deltas(vec![policy("bad", allow())]));
    agent.settled();
    assert!(!closed(&model), "{:?}", model.tracked());
    agent.stop();
}

#[test]
fn a_node_that_begins_with_a_refused_rule_keeps_its_make_of_iptables() {
    let world = World::linux();
    let agent = Agent::early(&world, &[], |nf| nf, || None);
    let both_and_first = first().into_iter().rev().skip(1).rev().chain(both()).chain([PolicyDelta::InSync]);
    agent.tell(PolicyInput::Deltas(both_and_first.collect()));
    let r = agent.settled();
    is_named(&r, &["NetworkPolicy(red/bad)", "-p tcp ! -p udp"]);
    let make = world.inside(|mut nf| nf.default_variant().unwrap());
    assert_eq!(r.back_end, if make == Variant::Nft { "iptables-nft" } else { "iptables-legacy" });
    assert!(!chain_of(&world.state(r.back_end), "two").is_empty());
    agent.stop();
}

#[test]
fn a_refused_member_is_left_out_of_its_set_alone() {
    let port = |protocol, port| IpSetMember::IpPort { address: "10.0.0.9".parse().unwrap(), protocol, port };
    let echo = IpSetId("n:echo".into());
    let named = || {
        let mut rule = allow();
        rule.dst.named_ports = vec![echo.clone()];
        policy("named", rule)
    };
    for back_end in ["iptables-nft", "iptables-legacy"] {
        for world in [World::Model(FilterWorld::new()), World::linux()] {
            if let World::Model(w) = &world {
                w.refuse(Some("10.0.0.9,1:8"));
            }
            let agent = Agent::start(&world, back_end);
            agent.tell(PolicyInput::Deltas(first()));
            agent.settled();
            let members = [port(Protocol::ICMP, 8), port(Protocol::TCP, 80)].into();
            let set = PolicyDelta::IpSet(IpSet { id: echo.clone(), kind: IpSetKind::IpPort, members });
            agent.tell(PolicyInput::Deltas(vec![set, named(), endpoint(2, &["named"])]));
            let r = agent.tidy();
            is_named(&r, &["NetworkPolicy(red/named): 10.0.0.9,1:8 is left out", "ipset"]);
            let has = |text: &str| world.state(back_end).iter().any(|l| l.contains(text));
            assert!(has("10.0.0.9,tcp:80") && !has("10.0.0.9,1:8") && !has("icmp:"), "{back_end}");

            // Among the members of a set that is there already.
            let change =
                |added, removed| PolicyDelta::IpSetDelta(IpSetDelta { id: echo.clone(), added, removed });
            agent.tell(PolicyInput::Deltas(vec![change(vec![], vec![port(Protocol::ICMP, 8)])]));
            assert_eq!(agent.tidy().resources, Vec::<String>::new());
            let more = vec![port(Protocol::ICMP, 8), port(Protocol::TCP, 81)];
            agent.tell(PolicyInput::Deltas(vec![change(more, vec![])]));
            is_named(&agent.tidy(), &["10.0.0.9,1:8 is left out"]);
            assert!(has("10.0.0.9,tcp:81"), "{back_end}");
            agent.stop();
        }
    }
}
