//! `brindlectl` about a whole cluster: status, route, version and bgp over real agents, some of them dead, stopped or
//! with another token. Each lab has a router between its segments, so that both ways of a packet are there.

use std::{path::Path, process::Command, time::Duration};

use brindle_integration::{
    bins,
    lab::{Lab, ctl},
    process, wait,
};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(90);

fn row<'a>(screen: &'a Value, node: &str) -> &'a Value {
    let rows = screen["nodes"].as_array().expect("nodes");
    rows.iter().find(|r| r["node"] == node).unwrap_or_else(|| panic!("no row {node}: {screen:#}"))
}

fn problems_of<'a>(screen: &'a Value, node: &str) -> Vec<&'a Value> {
    let all = screen["problems"].as_array().expect("problems");
    all.iter().filter(|p| p["node"] == node).collect()
}

/// What a person sees.
fn text(args: &[&str]) -> String {
    let out = Command::new(bins::bin("brindlectl")).args(args).output().expect("brindlectl can be started");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Whether two nodes are of different segments: their addresses, which are their router ids, are 10.77.SEGMENT.N.
fn across(lab: &Lab, a: &str, b: &str) -> bool {
    let segment = |node: &str| {
        let status = lab.node_status(node);
        let id = status["bgp"]["router_id"].as_str().expect("a router id");
        id.split('.').nth(2).map(str::to_owned)
    };
    segment(a) != segment(b)
}

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({prepend_module_to_snapshot => false}, { insta::assert_snapshot!(name, text) });
}

#[test]
fn status_shows_the_cluster_and_names_who_does_not_answer() {
    let (lab, _) = Lab::up("cls", &["--nodes", "3", "--segments", "2", "--pods-per-node", "1"]);
    let status = |more: &[&str]| ctl(&[&["status", "--lab", lab.name()], more].concat());

    let well = status(&["--wait=90s"]).expect(0);
    let screen = well.last();
    assert_eq!(screen["health"], "ok", "{screen:#}");
    assert_eq!(screen["answered"], 3);
    assert_eq!(screen["pods"], 3);
    assert_eq!(row(screen, "node1")["peersUp"], 2);
    let pairs = screen["segments"].as_array().unwrap();
    let across = pairs.iter().find(|p| p["a"] != p["b"]).expect("a pair of two segments");
    assert!(across["ipip"].as_u64() >= Some(2), "{across:#}");
    assert!(pairs.iter().any(|p| p["a"] == p["b"] && p["direct"] == 2), "{pairs:#?}");
    assert_eq!(screen["pools"][0]["used"].as_u64().map(|n| n >= 3), Some(true), "{screen:#}");
    let seen = text(&["status", "--lab", lab.name()]);
    assert!(seen.lines().all(|l| l.chars().count() <= 80), "{seen}");
    assert!(!seen.contains('\u{1b}'), "no colours in a pipe: {seen}");

    // One that is stopped is a row with its deadline; nothing waits for it longer.
    let pid = lab.node_status("node2")["pid"].as_u64().expect("a pid").to_string();
    let signal = |s: &str| assert!(Command::new("kill").args([s, &pid]).status().unwrap().success());
    signal("-STOP");
    let ill = status(&["--timeout", "2s"]);
    signal("-CONT");
    let screen = ill.expect(1).last().clone();
    assert_eq!(row(&screen, "node2")["health"], "silent", "{screen:#}");
    assert_eq!(row(&screen, "node2")["deadlineMs"], 2_000);
    assert_eq!(row(&screen, "node1")["health"], "ok", "{screen:#}");

    // One that is dead, with what to type; the sessions with it are not told again by each of the others.
    lab.ctl(&["break", "kill", "node3"]).expect(0);
    wait::until("sessions with node3 are down", LONG, || {
        let screen = status(&[]).last().clone();
        let what = problems_of(&screen, "node3").first().map(|p| p["what"].to_string()).unwrap_or_default();
        if what.contains("2 sessions with it are down") { Ok(()) } else { Err(format!("{screen:#}")) }
    });
    let screen = status(&[]).expect(1).last().clone();
    assert!(problems_of(&screen, "node1").is_empty(), "{screen:#}");
    assert!(problems_of(&screen, "node3")[0]["next"].as_str().unwrap().starts_with("brindlectl lab status"));

    // One node alone is told in full; one that is no node gets a suggestion.
    assert_eq!(status(&["--node", "node1"]).last()["node"], "node1");
    let wrong = status(&["--node", "nod1"]).expect(2);
    assert!(wrong.error().contains("did you mean node1?"), "{wrong:#?}");

    lab.ctl(&["heal"]).expect(0);
    status(&["--wait=90s"]).expect(0);
    lab.down();
}

#[test]
fn route_follows_a_packet_there_and_back_and_finds_what_differs() {
    let (lab, _) = Lab::up("clr", &["--nodes", "3", "--segments", "2", "--pods-per-node", "1"]);
    let route = |a: &str, b: &str| ctl(&["route", a, b, "--lab", lab.name()]);

    // node1 and node2 share a segment or not: both kinds of way are among these two.
    let (mut ipip, mut direct) = (false, false);
    for to in ["p2-1", "default/p3-1"] {
        let answer = route("p1-1", to).expect(0);
        for way in ["there", "back"] {
            let way = &answer.last()[way];
            assert_eq!(way["fate"], "delivered", "{way:#}");
            assert_eq!(way["asIntended"], true, "{way:#}");
            let hops = way["hops"].as_array().unwrap();
            assert_eq!(hops.len(), 2, "{way:#}");
            let first = &hops[0]["answer"];
            assert!(first["paths"][0]["peer"].as_str().is_some_and(|p| p.starts_with("node")), "{first:#}");
            assert!(
                hops[1]["answer"]["here"].as_str().is_some_and(|h| h.starts_with("pod default/")),
                "{way:#}"
            );
            let mode = first["ways"][0]["mode"].as_str().expect("a way");
            ipip |= mode == "ipip";
            direct |= mode == "direct";
            if mode == "ipip" {
                assert_eq!(way["mtu"], 1480, "{way:#}");
            }
        }
    }
    assert!(ipip && direct);
    let seen = text(&["route", "p1-1", "p3-1", "--lab", lab.name()]);
    assert!(seen.contains("taught by node3; the only path"), "{seen}");
    assert!(seen.contains("kernel as intended"), "{seen}");
    assert!(seen.lines().all(|l| l.chars().count() <= 80), "{seen}");

    // To a node, and to the outside.
    assert_eq!(route("p1-1", "node3").expect(0).last()["there"]["fate"], "delivered");
    let out = route("p1-1", "192.0.2.77");
    assert!(["leaves", "dropped"].contains(&out.last()["there"]["fate"].as_str().unwrap()), "{out:#?}");

    // `explain` goes on to the kernel: a block behind the tunnel, one of the same segment, for one node and for all.
    let block = |node: &str| lab.node_status(node)["blocks"][0].as_str().expect("a block").to_owned();
    let explain = |who: &[&str], prefix: &str| {
        text(&[&["bgp", "--lab", lab.name()], who, &["explain", prefix]].concat()).replace(prefix, "BLOCK")
    };
    let (far, near) = if across(&lab, "node1", "node3") { ("node3", "node2") } else { ("node2", "node3") };
    for (name, node) in [("bgp_explain_kernel_tunnel", far), ("bgp_explain_kernel_direct", near)] {
        let screen = explain(&["--node", "node1"], &block(node));
        // Where a line is broken depends on the length of the prefix.
        snapshot(name, &screen.replace(node, "OTHER").replace("\n       ", " "));
    }
    let screen = explain(&["--all"], &block(far));
    assert_eq!(screen.matches("in the kernel: BLOCK").count(), 2, "{screen}");
    assert!(screen.contains("in the kernel: blackhole BLOCK"), "its own node: {screen}");
    let theirs = ["ip", "route", "add", "unreachable", &block(far), "metric", "5"];
    lab.exec("node1", &theirs);
    wait::until("somebody else's route is told", LONG, || {
        let screen = explain(&["--node", "node1"], &block(far));
        if screen.contains("shadowed: somebody else's") { Ok(()) } else { Err(screen) }
    });
    lab.exec("node1", &["ip", "route", "del", "unreachable", &block(far), "metric", "5"]);

    // Somebody's own route comes before ours: shown as such, and the exit code tells.
    let p3 = lab.node_status("node3")["pods"][0]["addresses"][0].as_str().unwrap().to_owned();
    let net = p3.trim_end_matches("/32");
    lab.exec("node1", &["ip", "route", "add", "blackhole", &p3]);
    let odd = route("p1-1", net).expect(1);
    let there = &odd.last()["there"];
    assert_eq!(there["fate"], "dropped", "{there:#}");
    let difference = there["hops"][0]["answer"]["difference"].as_str().unwrap_or_default();
    assert!(difference.contains("more specific"), "{there:#}");
    assert_eq!(odd.last()["back"]["fate"], "delivered");
    lab.exec("node1", &["ip", "route", "del", "blackhole", &p3]);
    route("p1-1", net).expect(0);

    let wrong = route("p1-1", "p3-11").expect(2);
    assert!(wrong.error().contains("did you mean"), "{wrong:#?}");
    lab.down();
}

#[test]
fn agents_answer_other_machines_that_know_the_token() {
    let (lab, _) = Lab::up("clt", &["--nodes", "2", "--segments", "1", "--pods-per-node", "1"]);
    let bin = bins::bin("brindlectl");
    let bin = bin.to_str().expect("the path is text");
    // Inside a node's namespace there is no socket to the other: what answers is its port.
    let inside = |args: &[&str]| {
        let answer = lab.ctl(&[&["exec", "node1", "--", bin], args, &["-o", "json"]].concat());
        let out = answer.last().clone();
        let lines: Vec<Value> = out["stdout"]
            .as_str()
            .unwrap_or_default()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {out:#}")))
            .collect();
        (out["code"].as_i64(), lines)
    };
    let (code, answer) = inside(&["version", "--all"]);
    assert_eq!(code, Some(0), "{answer:#?}");
    let versions = answer[0]["nodes"].as_array().unwrap();
    assert_eq!(versions.len(), 2);
    assert!(versions.iter().all(|n| n["version"] == env!("CARGO_PKG_VERSION")), "{answer:#?}");
    let (code, answer) = inside(&["bgp", "--all", "summary"]);
    assert_eq!((code, answer.len()), (Some(0), 2), "{answer:#?}");
    assert!(answer.iter().all(|n| n["neighbors"][0]["state"] == "Established"), "{answer:#?}");
    let (_, answer) = inside(&["bgp", "--node", "node2", "rib"]);
    assert!(!answer.is_empty() && answer.iter().all(|p| p["prefix"].is_string()), "{answer:#?}");

    // From an agent alone, without the datastore.
    let there = lab.node_status("node2");
    assert_eq!(there["ready"], true);
    let address = "10.77.1.2:9180";
    let (code, answer) =
        inside(&["version", "--all", "--agent", address, "--datastore", "sqlite:/nonexistent/x"]);
    assert_eq!(code, Some(0), "{answer:#?}");

    // A cluster that is named is asked; `--client` is this program's word alone.
    for (more, nodes) in [("--node=node2", Some(1)), ("--client", None)] {
        let (code, answer) = inside(&["version", "--agent", address, more]);
        assert_eq!((code, answer[0]["nodes"].as_array().map(Vec::len)), (Some(0), nodes), "{answer:#?}");
    }

    // Another token, and none.
    let other = lab.dir().join("other-token");
    std::fs::write(&other, "another token, as long as the real one is").unwrap();
    let (code, answer) = inside(&["version", "--all", "--admin-token-file", other.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{answer:#?}");
    let error = answer[0]["nodes"][0]["error"].as_str().unwrap_or_default();
    assert!(error.contains("does not accept our token"), "{answer:#?}");
    let (code, answer) = inside(&["version", "--all", "--admin-token-file", "/nonexistent/token"]);
    assert_eq!(code, Some(1), "{answer:#?}");
    assert!(answer[0]["nodes"][0]["error"].to_string().contains("there is no token for it"), "{answer:#?}");

    // The address is published, and the secret is not in it.
    let get = |form: &str| text(&["get", "node", "node2", "--lab", lab.name(), "-o", form]);
    assert_eq!(get(r"jsonpath={.metadata.annotations.admin\.brindle\.dev/address}").trim(), address);
    let token = std::fs::read_to_string(lab.dir().join("admin-token")).unwrap();
    assert!(!get("yaml").contains(token.trim()));
    lab.down();
}

#[test]
fn node_commands_answer_on_the_node() {
    let (lab, _) = Lab::up("cln", &["--nodes", "2", "--segments", "1", "--pods-per-node", "1"]);
    let bin = bins::bin("brindlectl");
    let bin = bin.to_str().expect("the path is text");
    let status = lab.exec("node1", &[bin, "node", "status"]);
    assert!(status.contains("brindle-node process is running"), "{status}");
    assert!(status.contains("| 10.77.1.2") && status.contains("node-to-node mesh | up"), "{status}");

    let into = lab.dir().join("diags");
    std::fs::create_dir(&into).unwrap();
    let diags =
        lab.exec("node1", &[bin, "node", "diags", "--output-dir", into.to_str().unwrap(), "-o", "json"]);
    let answer: Value = serde_json::from_str(&diags).unwrap();
    let file = answer["file"].as_str().expect("a file");
    assert!(Path::new(file).is_file());
    let out =
        Command::new("tar").args(["-xzOf", file, "--wildcards", "*/agent_status.json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    assert_eq!(told["node"], "node1");
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), 1, "only the archive is left");
    assert!(process::naming(&format!("{}/diags", lab.name())).is_empty());

    let gone = ctl(&["node", "status", "--admin-socket", "/nonexistent/admin.sock"]).expect(1);
    assert_eq!(gone.last()["running"], false);
    lab.down();
}

#[test]
fn the_only_lab_of_a_machine_is_meant_where_nothing_else_is_named() {
    let (lab, _) = Lab::up("clo", &["--nodes", "2", "--segments", "1", "--pods-per-node", "1"]);
    // A machine of its own: no datastore, no agent, and of all labs that may be up beside this test only this one.
    let machine = std::env::temp_dir().join(lab.name());
    std::fs::create_dir_all(machine.join("labs").join(lab.name())).unwrap();
    std::fs::create_dir(machine.join("empty")).unwrap();
    let alone = format!(
        "mount --bind /run/brindle-lab/{name} {machine}/labs/{name} && mount --rbind {machine}/labs /run/brindle-lab && \
         {{ ! test -d /var/lib/brindle || mount --bind {machine}/empty /var/lib/brindle; }} && exec \"$@\"",
        name = lab.name(),
        machine = machine.display(),
    );
    let run = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &alone, "sh"]);
        command.arg(bins::bin("brindlectl")).args(args);
        let told =
            ["BRINDLE_DATASTORE", "DATASTORE_TYPE", "ETCD_ENDPOINTS", "K8S_API_ENDPOINT", "KUBECONFIG"];
        for variable in told {
            command.env_remove(variable).env_remove(format!("CALICO_{variable}"));
        }
        let out = command.output().expect("unshare can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    let note =
        format!("brindlectl: no datastore is named; this is about lab {:?}, the only one here\n", lab.name());
    let set = machine.join("set.yaml");
    std::fs::write(
        &set,
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: seen}\n",
    )
    .unwrap();
    let set = set.to_str().expect("the path is text");

    let (code, nodes, told) = run(&["get", "nodes"]);
    assert_eq!((code, nodes.as_str(), told.as_str()), (Some(0), "NAME\nnode1\nnode2\n", ""));
    assert_eq!(run(&["diff", "-f", set]).0, Some(1), "it is not there yet");
    let (code, said, told) = run(&["apply", "-f", set]);
    assert_eq!((code, told), (Some(0), note.clone()), "{said}");
    assert_eq!(ctl(&["get", "globalnetworkset", "seen", "--lab", lab.name()]).code, 0);
    let (code, _, told) = run(&["delete", "globalnetworkset", "seen"]);
    assert_eq!((code, told), (Some(0), note));
    for asking in [
        &["ipam", "check"] as &[&str],
        &["ipam", "show"],
        &["policy", "trace", "default/p1-1", "default/p2-1:80"],
        &["route", "p1-1", "p2-1"],
        &["status"],
        &["version", "--all"],
        &["bgp", "summary", "--all"],
    ] {
        let (code, said, told) = run(asking);
        assert_eq!((code, told.as_str()), (Some(0), ""), "{asking:?}: {said}");
    }
    let pod = run(&["get", "wep", "-o", "jsonpath={.items[0].spec.ipNetworks[0]}"]).1;
    let address = pod.trim().trim_end_matches("/32");
    assert!(run(&["ipam", "why", address]).1.contains("Z given "), "what the agents of the lab remember");
    let (code, _, told) = run(&["get", "nodes", "--context", "prod"]);
    assert_eq!(code, Some(2));
    assert!(told.contains("--context prod") && told.contains(lab.name()), "{told}");
    std::fs::remove_dir_all(&machine).unwrap();
    lab.down();
}
