//! Services under policy: what a pod sends to a service's address is judged by the pod behind it, not by the address asked
//! for, and a pod that reaches itself through its own service is judged like any other. Needs root.

use brindle_integration::{
    cni::sh,
    policy::{
        lab::{BackEnd, OUTSIDE, PolicyLab},
        probe::{Attempt, Probe},
        world::{k8s, with},
    },
};
use serde_json::{Value, json};

/// Addresses of services, and what a kube-proxy makes of them: ns1/p2, ns1/p1, a host outside.
const OF_P2: &str = "10.255.0.10";
const OF_P1: &str = "10.255.0.11";
const OUT: &str = "10.255.0.12";

struct Services(PolicyLab);

impl Services {
    fn new(back_end: BackEnd) -> Self {
        let lab = PolicyLab::new(back_end);
        // In a table no back end of ours knows. Who reaches himself gets the node's address, or he would answer himself.
        let rules = format!(
            "nft add table ip others; \
             nft 'add chain ip others pre {{ type nat hook prerouting priority -100; }}'; \
             nft 'add chain ip others post {{ type nat hook postrouting priority 90; }}'; \
             nft add rule ip others pre ip daddr {OF_P2} tcp dport 80 dnat to 10.0.0.2:80; \
             nft add rule ip others pre ip daddr {OF_P1} tcp dport 80 dnat to 10.0.0.1:80; \
             nft add rule ip others pre ip daddr {OUT} tcp dport 80 dnat to {}:80; \
             nft add rule ip others post ip saddr 10.0.0.1 ip daddr 10.0.0.1 masquerade",
            OUTSIDE[0][0]
        );
        sh(lab.node.ns.ns(), &rules);
        Self(lab)
    }

    #[track_caller]
    fn expect(&mut self, policies: &[Value], wanted: &[(&str, &str, bool)]) {
        let lab = &mut self.0;
        lab.set(&with(policies.iter().cloned()));
        for (from, service, wanted) in wanted {
            let from = lab.site(from);
            let dst = service.parse().expect("an address");
            let a = Attempt { from, to: from, src: lab.sites[from].addresses[0], dst, probe: Probe::Tcp(80) };
            let rounds = if *wanted { 3 } else { 1 };
            let got = (0..rounds)
                .any(|_| lab.prober.round(&[a], &[*wanted]).expect("packets can be sent") == [true]);
            assert_eq!(got, *wanted, "{:?}: {a:?} {policies:#?}\n{}", lab.back_end, lab.dump());
        }
    }
}

fn egress(to: &Value) -> Value {
    k8s(
        "ns1",
        "out",
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"], "egress": [{"to": [to]}]}),
    )
}

fn ingress(pod: &str, from: &Value) -> Value {
    k8s(
        "ns1",
        "in",
        json!({"podSelector": {"matchLabels": {"app": pod}}, "policyTypes": ["Ingress"], "ingress": from}),
    )
}

fn run(back_end: BackEnd) {
    let mut s = Services::new(back_end);
    let (p1, p3) = ("ns1/p1", "ns1/p3");
    s.expect(&[], &[(p1, OF_P2, true), (p3, OF_P2, true), (p1, OUT, true), (p1, OF_P1, true)]);

    // Leaving: the pod behind the service counts, and its address does not.
    let pods = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
    let block = |cidr: &str| json!({"ipBlock": {"cidr": cidr}});
    s.expect(
        &[egress(&pods("b"))],
        &[(p1, OF_P2, true), (p1, OUT, false), (p1, OF_P1, false), (p3, OUT, true)],
    );
    s.expect(&[egress(&block("10.255.0.0/16"))], &[(p1, OF_P2, false), (p1, OUT, false)]);
    s.expect(&[egress(&block("10.9.1.7/32"))], &[(p1, OF_P2, false), (p1, OUT, true)]);

    // Arriving: who asked counts, whatever it asked for.
    let from_a = json!([{"from": [pods("a")]}]);
    s.expect(&[ingress("b", &from_a)], &[(p1, OF_P2, true), (p3, OF_P2, false)]);

    // To oneself.
    s.expect(&[ingress("a", &json!([]))], &[(p1, OF_P1, false), (p3, OF_P1, false)]);
    s.expect(&[ingress("a", &from_a)], &[(p1, OF_P1, true), (p3, OF_P1, false)]);
    assert_eq!(s.0.policy().problems, Vec::<String>::new());
}

#[test]
fn services_are_judged_by_who_stands_behind_them_with_iptables_legacy() {
    run(BackEnd::Legacy);
}

#[test]
fn services_are_judged_by_who_stands_behind_them_with_iptables_nft() {
    run(BackEnd::Nft);
}

#[test]
fn services_are_judged_by_who_stands_behind_them_with_nftables() {
    run(BackEnd::Nftables);
}
