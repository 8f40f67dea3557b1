//! The lab in a kernel that has ipip and ip_vs (User-Mode Linux): the same proof with the kernel's tunnel instead of the
//! carrier, one lab where both kinds of node talk to each other, and policy for what a kube-proxy in IPVS mode sends on.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use brindle_integration::bins;
use serde_json::Value;

/// Runs a shell script in the guest, with `$CTL` as brindlectl; gives the JSON lines it printed.
fn in_guest(script: &str, files: &[&Path]) -> Vec<Value> {
    let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("uml/run");
    let mut command = Command::new(&runner);
    // User code is slow in there, and there is one CPU.
    command.args(["-t", "300", "-m", "1500M", "--", "bash", "-euc", script]);
    command.env("CTL", bins::bin("brindlectl")).env("BRINDLE_BIN_DIR", bins::dir()).stdin(Stdio::null());
    for (i, file) in files.iter().enumerate() {
        command.env(format!("FILE{i}"), file);
    }
    let out = command.output().unwrap_or_else(|e| panic!("{}: {e}", runner.display()));
    let stdout = String::from_utf8_lossy(&out.stdout);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}\n{stdout}\n{stderr}", out.status);
    stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn result(lines: &[Value]) -> &Value {
    lines.iter().find(|l| l["event"] == "result").unwrap_or_else(|| panic!("no result in {lines:#?}"))
}

/// What each node says carries its tunnel, in order of the nodes.
fn devices(lines: &[Value]) -> Vec<String> {
    let status = lines.iter().find(|l| l["nodes"].is_array()).expect("lab status was printed");
    let nodes = status["nodes"].as_array().expect("checked").iter();
    nodes.map(|n| n["encap"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_lab_is_proved_with_the_kernels_own_tunnel() {
    let lines = in_guest(
        "\"$CTL\" -o json lab up --nodes 3 --pods-per-node 1\n\
         \"$CTL\" -o json lab status\n\
         \"$CTL\" -o json lab down\n",
        &[],
    );
    assert_eq!(result(&lines)["ok"], true, "{lines:#?}");
    assert_eq!(result(&lines)["proof"]["full"], 6);
    assert_eq!(devices(&lines), ["kernel", "kernel", "kernel"]);
}

#[test]
fn a_kernel_tunnel_and_the_carrier_talk_to_each_other() {
    let file: PathBuf = std::env::temp_dir().join(format!("bt-{}-both.yaml", std::process::id()));
    std::fs::write(
        &file,
        "pool: {ipipMode: Always}\n\
         segments: [{name: seg1}]\n\
         nodes:\n\
         - {name: node1, segment: seg1, pods: 1, ipipCarrier: kernel}\n\
         - {name: node2, segment: seg1, pods: 1, ipipCarrier: user}\n",
    )
    .expect("the temporary folder is writable");
    let lines =
        in_guest("\"$CTL\" -o json lab up --topology \"$FILE0\"\n\"$CTL\" -o json lab status\n", &[&file]);
    std::fs::remove_file(&file).expect("it was written above");
    assert_eq!(result(&lines)["ok"], true, "{lines:#?}");
    assert_eq!(devices(&lines), ["kernel", "carrier"]);
}

#[test]
fn packets_from_an_unknown_outer_source_are_dropped_and_counted() {
    // The router is no node: it wraps a ping in IPIP and sends it to node1's pod, first as a stranger, then as one of
    // externalNodesList.
    let lines = in_guest(
        r#"
        lab() { "$CTL" -o json lab --name kf "$@"; }
        # A machine inside a busy machine: an agent may have routes and sessions long before its first rules.
        ready() {
            for i in $(seq 120); do lab exec node1 -- "$CTL" status >/dev/null && break; sleep 0.5; done
        }
        status() { ready; lab exec node1 -- "$CTL" -o json status; }
        lab up --nodes 2 --segments 1 --pods-per-node 1 --ipip always
        pod=$(ip -n kf-p1-1 -4 -o addr show eth0 | awk '{sub("/.*", "", $4); print $4}')
        gateway=$(ip -n kf-router -4 -o addr show eth1 | awk '{sub("/.*", "", $4); print $4}')
        ip -n kf-router link add stranger type ipip local "$gateway" remote 10.77.1.1
        ip -n kf-router link set stranger up
        ip -n kf-router route add "$pod" dev stranger
        try() { ip netns exec kf-router ping -c 3 -i 0.2 -W 2 "$pod" >/dev/null && got=true || got=false
                echo "{\"try\":\"$1\",\"answered\":$got}"; }
        ready
        try stranger
        status
        printf 'kind: FelixConfiguration\napiVersion: projectcalico.org/v3\nmetadata: {name: default}\nspec: {externalNodesList: ["%s/32", 10.99.0.0/16]}\n' "$gateway" >/tmp/felix.yaml
        "$CTL" apply --lab kf -f /tmp/felix.yaml >&2
        for i in $(seq 60); do
            ip netns exec kf-node1 ipset save brindle-ipip-nodes | grep -q 10.99.0.0/16 && break; sleep 0.5
        done
        try friend
        lab break kill node1
        lab heal
        status
        lab down
        "#,
        &[],
    );
    let answered = |who: &str| lines.iter().find(|l| l["try"] == who).map(|l| l["answered"].clone());
    assert_eq!(
        (answered("stranger"), answered("friend")),
        (Some(false.into()), Some(true.into())),
        "{lines:#?}"
    );
    let statuses: Vec<Value> = (lines.iter().filter_map(|l| l["stdout"].as_str()))
        .filter_map(|text| serde_json::from_str(text).ok())
        .filter(|s: &Value| s["encap"].is_object())
        .collect();
    let refused: Vec<_> = statuses.iter().map(|s| s["encap"]["refused"].as_u64()).collect();
    assert_eq!(refused, [Some(3), Some(3)], "the next agent adopts chain and counter: {statuses:#?}");
    assert!(
        statuses.iter().all(|s| s["ready"] == true && s["reasons"] == serde_json::json!([])),
        "{statuses:#?}"
    );
}

#[test]
fn without_iptables_the_kernels_tunnel_works_and_the_status_says_what_is_missing() {
    let lines = in_guest(
        r#"
        PATH=/nonexistent "$CTL" -o json lab --name kn up --nodes 2 --segments 1 --pods-per-node 1 --ipip always
        "$CTL" -o json lab --name kn exec node1 -- "$CTL" -o json status || true
        "$CTL" -o json lab --name kn down
        "#,
        &[],
    );
    assert_eq!(result(&lines)["ok"], true, "{lines:#?}");
    let status: Value = (lines.iter().filter_map(|l| l["stdout"].as_str()))
        .find_map(|text| serde_json::from_str(text).ok())
        .expect("a status was printed");
    assert_eq!(
        (&status["ready"], &status["encap"]["device"]),
        (&true.into(), &"kernel".into()),
        "{status:#}"
    );
    let reasons = status["reasons"].as_array().expect("an array");
    assert!(
        reasons.len() == 1 && reasons[0].as_str().is_some_and(|r| r.contains("install iptables and ipset")),
        "{status:#}"
    );
}

#[test]
fn the_scenario_script_passes() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("uml/lab-scenario");
    let out = Command::new(&script).arg(bins::dir()).stdin(Stdio::null()).output();
    let out = out.unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(
        out.status.success() && stdout.contains("lab scenario passed"),
        "{}\n{stdout}\n{stderr}",
        out.status
    );
}

/// What a kube-proxy in IPVS mode leaves in the kernel of node1: service 10.96.0.10:80 leads to node1's second pod,
/// 10.96.0.11:80 to node2's, and node port 30080 to node1's second pod, masqueraded. (User-Mode Linux has no nftables for
/// IPv4; felix tries that renderer with packets marked by hand.)
const IPVS: &str = r#"
    lab() { "$CTL" -o json lab --name kv "$@"; }
    own() { ip -n "kv-$1" -4 -o addr show eth0 | awk '{sub("/.*", "", $4); print $4}'; }
    on() { ip netns exec "kv-$@"; }
    # "refused": the packet reached the pod, whose kernel answers for a port nobody listens on, and the answer came back.
    try() {
        out=$(on "$1" timeout 3 bash -c "</dev/tcp/$2/$3" 2>&1) && { echo open; return; }
        case $?:$out in 124:*) echo nothing ;; *refused*) echo refused ;; *) echo "$out" ;; esac
    }
    # NAME FROM ADDRESS PORT WANTED: tries until it is as wanted.
    expect() {
        for i in $(seq 60); do got=$(try "$2" "$3" "$4"); [ "$got" = "$5" ] && break; done
        printf '{"try":"%s","got":"%s"}\n' "$1" "$got"
    }
    policy() { printf 'apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: only}\nspec: {selector: "has(projectcalico.org/orchestrator)", %s}\n' "$1" |
        "$CTL" apply --lab kv -f - >&2; }
    lab up --nodes 2 --segments 1 --pods-per-node 2 --ipip never
    b=$(own p1-2) far=$(own p2-1)
    on node1 ip link add kube-ipvs0 type dummy
    on node1 ip addr add 10.96.0.10/32 dev kube-ipvs0
    on node1 ip addr add 10.96.0.11/32 dev kube-ipvs0
    service() { on node1 ipvsadm -A -t "$1" -s rr; on node1 ipvsadm -a -t "$1" -r "$2:8080" -m; }
    service 10.96.0.10:80 "$b"
    service 10.96.0.11:80 "$far"
    service 10.77.1.1:30080 "$b"
    # What runs on the host's own network.
    service 10.96.0.10:443 10.77.1.1
    on node1 sysctl -qw net.ipv4.vs.conntrack=1
    on node1 iptables-legacy -t nat -A PREROUTING -p tcp -d 10.77.1.1 --dport 30080 -j MARK --or-mark 0x4000
    on node1 iptables-legacy -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
    expect "without policy" p1-1 10.96.0.10 80 refused
    expect "the host by a service" p1-1 10.96.0.10 443 refused
    policy 'types: [Ingress], ingress: [{action: Allow, source: {nets: [192.0.2.0/24]}}]'
    expect "ingress of a pod here" p1-1 10.96.0.10 80 nothing
    expect "ingress of a pod elsewhere" p1-1 10.96.0.11 80 nothing
    expect "ingress by node port" router 10.77.1.1 30080 nothing
    expect "the host's own" node1 10.96.0.10 80 refused
    policy "types: [Egress], egress: [{action: Allow, protocol: TCP, destination: {nets: [$b/32], ports: [8080]}}]"
    expect "egress by the true destination" p1-1 10.96.0.10 80 refused
    expect "by node port" router 10.77.1.1 30080 refused
    expect "egress to another" p1-1 10.96.0.11 80 nothing
    expect "egress to the host by a service" p1-1 10.96.0.10 443 nothing
    expect "egress to the host by a service's address" p1-1 10.96.0.10 22 nothing
    "$CTL" delete --lab kv globalnetworkpolicy only >&2
    expect "without policy again" p1-1 10.96.0.11 80 refused
    lab exec node1 -- "$CTL" -o json status
    lab down
"#;

#[test]
fn policy_holds_for_what_ipvs_sends_on_and_by_the_true_destination() {
    let lines = in_guest(IPVS, &[]);
    let got: Vec<(&str, &str)> =
        (lines.iter()).filter_map(|l| Some((l["try"].as_str()?, l["got"].as_str()?))).collect();
    let wanted = [
        ("without policy", "refused"),
        ("the host by a service", "refused"),
        ("ingress of a pod here", "nothing"),
        ("ingress of a pod elsewhere", "nothing"),
        ("ingress by node port", "nothing"),
        ("the host's own", "refused"),
        ("egress by the true destination", "refused"),
        ("by node port", "refused"),
        ("egress to another", "nothing"),
        ("egress to the host by a service", "nothing"),
        ("egress to the host by a service's address", "nothing"),
        ("without policy again", "refused"),
    ];
    assert_eq!(got, wanted, "{lines:#?}");
    let status: Value = (lines.iter().filter_map(|l| l["stdout"].as_str()))
        .find_map(|text| serde_json::from_str(text).ok())
        .expect("a status was printed");
    assert_eq!(status["policy"]["resources"], serde_json::json!([]), "{status:#}");
}
