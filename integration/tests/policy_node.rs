//! Policy by the real agent: a NetworkPolicy in the store is in force on pods made by the real plugin, and a pod's policy
//! is in force when its ADD answers. Needs root.

use std::time::Duration;

use brindle_config_core::{Key, Kind, ObjectMeta, policy::NetworkPolicySpec};
use brindle_integration::{
    cni::{CniNode, Container, ping},
    wait::until_true,
};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_policy_denies_what_it_does_not_allow_and_a_new_pod_is_never_open() {
    let mut node = CniNode::new("policy", "10.87.0.0/24");
    let (a, b) = (Container::new(), Container::new());
    let (first, second) = (node.add(&a), node.add(&b));
    let (ip_a, ip_b) = (first.address(), second.address());
    until_true("without policy pods talk", LONG, || ping(a.ns.ns(), &ip_b));

    let meta = || ObjectMeta { namespace: Some("default".into()), ..ObjectMeta::named("deny") };
    let deny: NetworkPolicySpec = serde_json::from_value(serde_json::json!({
        "selector": "all()", "types": ["Ingress"],
    }))
    .expect("a policy");
    node.put(meta(), deny);
    until_true("the policy is in force", LONG, || !ping(a.ns.ns(), &ip_b));
    assert!(ping(a.ns.ns(), "192.0.2.1"), "egress to the host stays open");
    assert!(node.pings(&ip_a), "the host reaches its pods: probes work");

    // A pod that comes later is never open, not even for its first packet.
    let c = Container::new();
    let third = node.add(&c);
    assert!(third.ok, "{third:?}");
    assert!(!ping(a.ns.ns(), &third.address()), "denied from the first packet");

    // The agent dies: denied stays denied, allowed stays allowed; the next one rewrites nothing.
    node.kill_agent();
    assert!(!ping(a.ns.ns(), &ip_b) && node.pings(&ip_a));
    node.start_agent();
    assert!(!ping(a.ns.ns(), &ip_b) && node.pings(&ip_a));

    let open: NetworkPolicySpec = serde_json::from_value(serde_json::json!({
        "selector": "all()", "types": ["Ingress"],
        "ingress": [{"action": "Allow", "protocol": "ICMP", "source": {"nets": [format!("{ip_a}/32")]}}],
    }))
    .expect("a policy");
    node.put(meta(), open);
    until_true("what the new policy allows passes", LONG, || ping(a.ns.ns(), &ip_b));
    assert!(!ping(c.ns.ns(), &ip_b), "and nobody else");
}

/// More policies of a tier than stand side by side: each has its word in its turn, and the first one that decides is obeyed.
#[test]
fn among_many_policies_of_a_tier_the_first_that_decides_is_obeyed() {
    let node = CniNode::new("many", "10.88.0.0/24");
    let (a, b) = (Container::new(), Container::new());
    let (_, ip_b) = (node.add(&a), node.add(&b).address());
    let key = |order: usize| Key::new(Kind::NetworkPolicy, Some("default"), &format!("p{order:02}"));
    let put = |order: usize, rule: serde_json::Value| {
        let value = serde_json::json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": {"name": key(order).name, "namespace": "default"},
            "spec": {"order": order, "selector": "all()", "types": ["Ingress"], "ingress": [rule]}});
        node.put_value(&key(order), &value);
    };
    let other = |order: usize| serde_json::json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": [order + 1]}});
    let icmp = |action: &str| serde_json::json!({"action": action, "protocol": "ICMP"});
    (0..20).for_each(|order| put(order, other(order)));
    let expect = |what: &str, wanted: bool| until_true(what, LONG, || ping(a.ns.ns(), &ip_b) == wanted);
    expect("no policy allows it", false);
    for order in [0, 7, 8, 15, 19] {
        put(order, icmp("Allow"));
        expect(&format!("policy {order} allows it"), true);
        if order > 0 {
            put(order - 1, icmp("Deny"));
            expect(&format!("the policy before {order} denies it"), false);
            put(order - 1, icmp("Pass"));
            expect(&format!("the policy before {order} passes it to the profile"), true);
            put(order - 1, other(order - 1));
        }
        put(order, other(order));
        expect(&format!("policy {order} is about something else again"), false);
    }
}

/// What feeds policy meets a defect: an agent that went on would enforce what was said before, and say that it is ready.
#[test]
fn an_agent_whose_policy_is_fed_no_more_ends_and_the_next_one_goes_on() {
    let mut node = CniNode::without_agent("feed", "10.89.0.0/24");
    node.vars = vec![("BRINDLE_FAILPOINT".into(), "agent.policy.feed".into())];
    node.start_agent();
    let (a, b) = (Container::new(), Container::new());
    let (_, ip_b) = (node.add(&a), node.add(&b).address());
    until_true("without policy pods talk", LONG, || ping(a.ns.ns(), &ip_b));
    let deny: NetworkPolicySpec =
        serde_json::from_value(serde_json::json!({"selector": "all()", "types": ["Ingress"]}))
            .expect("a policy");
    let meta = ObjectMeta { namespace: Some("default".into()), ..ObjectMeta::named("deny") };
    node.put(meta, deny);
    until_true("the agent ends and says of what", LONG, || {
        node.log().contains("the follower of the datastore for policy ended unexpectedly")
            && !node.status().ok
    });
    node.kill_agent();
    node.vars.clear();
    node.start_agent();
    until_true("the policy is in force", LONG, || !ping(a.ns.ns(), &ip_b));
    assert!(node.pings(&ip_b), "the host reaches its pods");
}
