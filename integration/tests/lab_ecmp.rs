//! Equal-cost next hops and next-hop tracking with real agents, real kernels and two BIRDs that announce the same
//! prefixes.

use std::time::Duration;

use brindle_integration::{
    lab::{Lab, ctl},
    wait,
};

const LIMIT: Duration = Duration::from_secs(60);

const TOPOLOGY: &str = "\
segments:
  - name: seg1
nodes:
  - {name: node1, segment: seg1, pods: 1}
  - {name: bird1, segment: seg1, agent: bird, pods: 1}
  - {name: bird2, segment: seg1, agent: bird, pods: 1}
";

/// Packets of tunnels go to whoever has the prefix announced, whether it can take them apart or not.
const POOL: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: tunnelled}
spec: {cidr: 172.31.0.0/16, ipipMode: Always, disabled: true}
";

/// A counter of `/proc/net/snmp` on a node.
fn counter(lab: &Lab, node: &str, protocol: &str, name: &str) -> u64 {
    let text = lab.exec(node, &["cat", "/proc/net/snmp"]);
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(protocol)?.strip_prefix(": "));
    let (names, values) = (lines.next().expect("a line of names"), lines.next().expect("a line of values"));
    let at = names.split(' ').position(|n| n == name).unwrap_or_else(|| panic!("no {name} in {names}"));
    values.split(' ').nth(at).expect("a value for each name").parse().expect("a number")
}

fn route(lab: &Lab, prefix: &str) -> String {
    lab.exec("node1", &["ip", "route", "show", prefix])
}

fn wait_route(lab: &Lab, prefix: &str, has: &[&str], lacks: &[&str]) {
    wait::until(&format!("the route to {prefix} has {has:?}"), LIMIT, || {
        let now = route(lab, prefix);
        let good = has.iter().all(|h| now.contains(h)) && !lacks.iter().any(|l| now.contains(l));
        if good { Ok(()) } else { Err(now) }
    });
}

/// One datagram to each of 200 addresses of a /24, from as many ports.
fn shoot(lab: &Lab, net: &str) {
    let script = format!("for i in $(seq 200); do echo x >/dev/udp/{net}.$i/$((2000 + i)) || true; done");
    lab.exec("node1", &["bash", "-c", &script]);
}

#[test]
fn two_birds_share_the_flows_of_a_prefix_directly_and_through_the_tunnel() {
    let dir = std::env::temp_dir();
    let file = dir.join(format!("bt-{}-ecmp.yaml", std::process::id()));
    let pool = dir.join(format!("bt-{}-ecmp-pool.yaml", std::process::id()));
    std::fs::write(&file, TOPOLOGY).expect("the temporary folder is writable");
    std::fs::write(&pool, POOL).expect("the temporary folder is writable");
    let (lab, _) = Lab::up("ecmp", &["--topology", file.to_str().expect("text")]);
    ctl(&["apply", "--lab", lab.name(), "-f", pool.to_str().expect("text")]).expect(0);
    for bird in ["bird1", "bird2"] {
        let place = lab.dir().join("nodes").join(bird);
        let conf = place.join("bird.conf");
        let text = std::fs::read_to_string(&conf).expect("the lab wrote it");
        // 10 and 1 Gbit/s in octets per second, as a link bandwidth tells them (draft-ietf-idr-link-bandwidth).
        let rate = if bird == "bird1" { 1.25e9_f32 } else { 1.25e8 }.to_bits();
        let told = format!("{{ bgp_ext_community.add((generic, 0x4004fde9, {rate:#x})); }}");
        let more = format!(
            "blackhole;\n  route 172.29.0.0/24 blackhole {told};\n  route 172.30.0.0/24 blackhole;\n  \
             route 172.31.0.0/24 blackhole;"
        );
        std::fs::write(&conf, text.replacen("blackhole;", &more, 1)).expect("the lab is ours");
        let socket = place.join("bird.ctl");
        lab.exec(bird, &["birdc", "-s", socket.to_str().expect("text"), "configure"]);
        lab.exec(bird, &["ip", "route", "add", "local", "172.30.0.0/24", "dev", "lo"]);
    }
    let both = ["nexthop via 10.77.1.2", "nexthop via 10.77.1.3"];
    wait_route(&lab, "172.30.0.0/24", &both, &["tunl0"]);
    wait_route(&lab, "172.31.0.0/24", &both, &["eth0"]);
    let weighed = ["nexthop via 10.77.1.2 dev eth0 weight 10", "nexthop via 10.77.1.3 dev eth0 weight 1 "];
    wait_route(&lab, "172.29.0.0/24", &weighed, &["tunl0"]);

    // Both get their share.
    let count = |protocol: &str, name: &str| ["bird1", "bird2"].map(|b| counter(&lab, b, protocol, name));
    for (net, protocol, name) in [("172.30.0", "Udp", "NoPorts"), ("172.31.0", "Ip", "InUnknownProtos")] {
        let before = count(protocol, name);
        shoot(&lab, net);
        wait::until(&format!("both birds see flows to {net}"), LIMIT, || {
            let now = count(protocol, name);
            let share = [now[0] - before[0], now[1] - before[1]];
            if share[0] >= 40 && share[1] >= 40 { Ok(()) } else { Err(format!("{share:?}")) }
        });
    }

    // The next agent finds what is wanted in place.
    lab.ctl(&["break", "kill", "node1"]).expect(0);
    lab.ctl(&["heal"]).expect(0);
    lab.wait_healthy(LIMIT);
    wait::until("node1 is in sync", LIMIT, || {
        let status = lab.node_status("node1");
        if status["routes"]["in_sync"] == true { Ok(()) } else { Err(format!("{status:#}")) }
    });
    let status = lab.node_status("node1");
    assert_eq!(&status["routes"]["writes"], &0, "{status:#}");

    // One withdraws: the route stays with the other, in place. Somebody deletes it: it comes back.
    let socket = lab.dir().join("nodes/bird2/bird.ctl");
    lab.exec("bird2", &["birdc", "-s", socket.to_str().expect("text"), "disable", "own_blocks"]);
    wait_route(&lab, "172.30.0.0/24", &["via 10.77.1.2"], &["10.77.1.3"]);
    wait_route(&lab, "172.31.0.0/24", &["via 10.77.1.2 dev tunl0"], &["10.77.1.3"]);
    lab.exec("bird2", &["birdc", "-s", socket.to_str().expect("text"), "enable", "own_blocks"]);
    wait_route(&lab, "172.31.0.0/24", &both, &[]);
    lab.exec("node1", &["ip", "route", "del", "172.31.0.0/24"]);
    wait_route(&lab, "172.31.0.0/24", &both, &["eth0"]);
    lab.down();
    for f in [file, pool] {
        std::fs::remove_file(f).expect("it was written above");
    }
}

#[test]
fn a_next_hop_out_of_reach_takes_its_routes_along_and_brings_them_back() {
    let (lab, _) = Lab::up("nht", &["--nodes", "2", "--segments", "2", "--pods-per-node", "1"]);
    let block = lab.node_status("node2")["blocks"][0].as_str().expect("node2 has a block").to_owned();
    wait_route(&lab, &block, &["via 10.77.2.2 dev tunl0"], &[]);
    // node2 is behind the router: without the default route nothing leads there, and the speaker must know.
    lab.exec("node1", &["ip", "route", "del", "default"]);
    wait_route(&lab, &block, &[], &["via"]);
    let status = lab.node_status("node1");
    let peer = &status["bgp"]["peers"][0];
    assert_eq!(peer["state"], "Established", "the session waits for its hold timer: {status:#}");
    lab.exec("node1", &["ip", "route", "add", "default", "via", "10.77.1.254"]);
    wait_route(&lab, &block, &["via 10.77.2.2 dev tunl0"], &[]);
    lab.ping_ok();
    lab.down();
}
