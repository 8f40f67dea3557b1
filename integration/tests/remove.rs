//! A node from which Brindle goes (`brindle-node remove`), with each back end: nothing of it is left, and pods go on, those it
//! attached and those that Calico attaches afterwards. Needs root.

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use brindle_config_core::{
    ObjectMeta,
    pool::{EncapMode, IpPoolSpec},
};
use brindle_integration::{
    bins::bin,
    cni::{CniNode, ping, sh},
    netns::TestNs,
    policy::{
        lab::{BackEnd, PolicyLab},
        world::{host, k8s, with},
    },
    process::naming,
    wait::until_true,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// A pod as Calico makes it.
const CALICOS: &str = "10.0.9.9";

/// A line of shell in the node's namespace; what it says.
fn told(lab: &PolicyLab, line: &str) -> String {
    let out = lab.node.ns.ns().run(|| Command::new("sh").args(["-c", line]).output());
    let out = out.expect("the namespace is alive").expect("there is a shell");
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// `brindle-node COMMAND ..` on the node, with the places of this test.
fn run(node: &CniNode, args: &[&str]) -> Output {
    let dir = &node.dir;
    let mut command = Command::new(bin("brindle-node"));
    command.args(args);
    command.arg("--bin-dir").arg(dir.join("bin")).arg("--net-dir").arg(dir.join("net.d"));
    match args[0] {
        "remove" => command.arg("--state-dir").arg(dir),
        _ => command.arg("--cni-socket").arg(dir.join("cni.sock")),
    };
    node.ns.ns().run(|| command.output()).expect("the namespace is alive").expect("it can be started")
}

/// Its exit code and all it said.
fn said(out: &Output) -> (Option<i32>, String) {
    let text = [&out.stdout, &out.stderr].map(|s| String::from_utf8_lossy(s).into_owned());
    (out.status.code(), text.concat())
}

/// All rules and sets there are, of every make.
fn rules(lab: &PolicyLab) -> String {
    told(
        lab,
        "iptables-legacy-save; ip6tables-legacy-save; iptables-nft-save; ip6tables-nft-save; nft list ruleset; ipset save",
    )
}

/// Devices, addresses and routes of pods, as the host has them.
fn of_pods(lab: &PolicyLab) -> String {
    told(lab, "ip -o -br link; ip -o addr; ip route; ip -6 route; ip neigh show nud permanent")
        .lines()
        .filter(|l| l.contains("cali"))
        .map(|l| format!("{}\n", l.trim()))
        .collect()
}

fn calicos_pod(lab: &PolicyLab) -> TestNs {
    let pod = TestNs::new(&format!("calico-{}", lab.back_end.name()));
    let wire = format!(
        "ip link add cali0badcafe01 type veth peer name eth0 netns {} && \
         ip link set cali0badcafe01 addrgenmode none address ee:ee:ee:ee:ee:ee up && ip route add {CALICOS}/32 dev cali0badcafe01 scope link",
        pod.name()
    );
    sh(lab.node.ns.ns(), &wire);
    sh(
        pod.ns(),
        &format!(
            "ip link set eth0 up && ip addr add {CALICOS}/32 dev eth0 && ip route add 169.254.1.1 dev eth0 scope link && \
             ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent && \
             ip route add default via 169.254.1.1 dev eth0"
        ),
    );
    pod
}

#[test]
fn nothing_of_it_is_left_and_pods_go_on() {
    for back_end in BackEnd::ALL {
        let mut lab = PolicyLab::new(back_end);
        let from = |app: &str| json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]});
        lab.set(&with([
            k8s("ns2", "closed", from("nobody")),
            host(json!({"profiles": ["projectcalico-default-allow"]})),
        ]));
        // Somebody else's, in the make of iptables that is in use here, beside ours.
        let iptables = if back_end == BackEnd::Legacy { "iptables-legacy" } else { "iptables-nft" };
        sh(
            lab.node.ns.ns(),
            &format!(
                "{iptables} -N theirs; {iptables} -A theirs -s 203.0.113.9 -j DROP; {iptables} -A FORWARD -j theirs; \
                 ipset create theirs hash:net; ipset add theirs 203.0.113.0/24; \
                 nft add table ip theirs; nft add chain ip theirs c"
            ),
        );
        let theirs = |lab: &PolicyLab| {
            told(lab, &format!("{iptables} -S | grep theirs; ipset save theirs; nft list table ip theirs"))
        };
        let before = theirs(&lab);
        let at = |lab: &PolicyLab, name: &str| lab.sites[lab.site(name)].addresses[0].to_string();
        let ns = |lab: &PolicyLab, name: &str| lab.pod(lab.site(name)).ns.name().to_owned();
        let pings = |lab: &PolicyLab, from: &str, to: &str| {
            let from = brindle_kernel::netns::NetNs::named(&ns(lab, from)).expect("it was made");
            ping(&from, to)
        };
        let (open, closed) = (at(&lab, "ns1/p1"), at(&lab, "ns2/p1"));
        assert!(pings(&lab, "ns1/p2", &open) && !pings(&lab, "ns1/p2", &closed), "{back_end:?}");

        let installed = said(&run(&lab.node, &["install-cni"]));
        assert_eq!(installed.0, Some(0), "{installed:?}");
        let conflist = lab.node.dir.join("net.d/10-brindle.conflist");
        let plugin = lab.node.dir.join("bin/brindle");
        assert!(conflist.exists() && plugin.exists());

        // While an agent runs it only says what it would do.
        let all = rules(&lab);
        let refused = said(&run(&lab.node, &["remove"]));
        assert!(refused.0 == Some(2) && refused.1.contains("already runs"), "{back_end:?}: {refused:?}");
        let would = said(&run(&lab.node, &["remove", "--dry-run", "--routes"]));
        assert!(would.0 == Some(0) && would.1.contains(": would be removed"), "{back_end:?}: {would:?}");
        assert!(!would.1.contains(": removed"), "{back_end:?}: {would:?}");
        assert!(conflist.exists() && plugin.exists() && rules(&lab).contains("brindle"), "{all}");

        lab.node.kill_agent();
        let pod = calicos_pod(&lab);
        assert!(!ping(pod.ns(), &open), "{back_end:?}: a device no rule knows");
        let pods = of_pods(&lab);
        let removed = said(&run(&lab.node, &["remove"]));
        assert_eq!(removed.0, Some(0), "{back_end:?}: {removed:?}\n{}", lab.dump());
        let left = rules(&lab);
        assert!(!left.contains("brindle"), "{back_end:?}: {removed:?}\n{left}");
        assert!(!conflist.exists() && !plugin.exists(), "{removed:?}");
        assert_eq!(theirs(&lab), before, "{back_end:?}");
        assert_eq!(of_pods(&lab), pods, "{back_end:?}");
        assert!(pods.contains("cali") && removed.1.contains(back_end.name()), "{removed:?}");

        // Calico's pod in both directions, and those of before.
        assert!(ping(pod.ns(), &open) && pings(&lab, "ns1/p1", CALICOS), "{back_end:?}\n{}", lab.dump());
        assert!(pings(&lab, "ns1/p2", &open) && pings(&lab, "ns1/p2", &closed), "{back_end:?}");
        assert!(ping(lab.outside(0), &open), "{back_end:?}");

        let again = said(&run(&lab.node, &["remove", "--routes"]));
        assert_eq!(again.0, Some(0), "{back_end:?}: {again:?}");
        assert_eq!(
            told(&lab, "ip route show proto 80; ip -6 route show proto 80").trim(),
            "",
            "{back_end:?}"
        );
        assert_eq!(of_pods(&lab), pods, "{back_end:?}");
        let last = said(&run(&lab.node, &["remove"]));
        assert_eq!(last, (Some(0), "nothing of Brindle is left here\n".into()), "{back_end:?}");

        // And back again.
        lab.node.start_agent();
        lab.settle();
        until_true("policy holds again", LIMIT, || !pings(&lab, "ns1/p2", &closed));
        assert!(pings(&lab, "ns1/p2", &open), "{back_end:?}");
        fs::remove_dir_all(lab.node.dir.join("net.d")).expect("it was made");
    }
}

/// Where the kernel has no ipip, a process that outlives the agent carries packets.
#[test]
fn the_carrier_goes_with_its_device() {
    let mut node = CniNode::without_agent("carrier", "10.159.0.0/24");
    let mut pool = IpPoolSpec::new("10.160.0.0/24".parse().expect("a CIDR"));
    pool.ipip_mode = EncapMode::Always;
    node.put(ObjectMeta::named("tunnelled"), pool);
    node.start_agent_with(&["--ipip-carrier", "user"]);
    let device = |node: &CniNode| {
        let links = node.ns.rtnl().links().expect("links can be listed");
        links.iter().any(|l| l.kind.as_deref() == Some("tun"))
    };
    until_true("the carrier has a device", LIMIT, || device(&node));
    let state = node.dir.display().to_string();
    let carriers = || naming(&state).into_iter().filter(|(_, line)| line.contains("carrier.sock")).count();
    assert_eq!(carriers(), 2, "{:?}", naming(&state));
    node.kill_agent();
    assert!(device(&node), "it stays");
    let removed = said(&run(&node, &["remove"]));
    assert!(removed.0 == Some(0) && removed.1.contains("of brindle-ipip: removed"), "{removed:?}");
    assert!(!device(&node), "{removed:?}");
    assert_eq!(carriers(), 0, "{:?}", naming(&state));
}
