//! Strangers in the mesh: a node that runs BIRD 2 with its kernel protocol instead of the agent, and FRR as the
//! router. The proof must pass with them, and go on passing when they die.

use std::{path::PathBuf, time::Duration};

use brindle_integration::{lab::Lab, wait};

/// Writes a topology into the test's own temporary file.
fn topology(tag: &str, text: &str) -> PathBuf {
    let file = std::env::temp_dir().join(format!("bt-{}-{tag}.yaml", std::process::id()));
    std::fs::write(&file, text).expect("the temporary folder is writable");
    file
}

const MIXED: &str = "\
router:
  kind: frr
segments:
  - name: seg1
  - name: seg2
nodes:
  - name: node1
    segment: seg1
  - name: bird1
    segment: seg1
    agent: bird
  - name: node3
    segment: seg2
  - name: bird2
    segment: seg2
    agent: bird
";

#[test]
fn bird_nodes_and_an_frr_router_are_in_the_mesh() {
    let file = topology("mixed", MIXED);
    let (lab, up) = Lab::up("mixed", &["--topology", file.to_str().expect("text")]);
    assert_eq!(up.last()["proof"]["pairs"], 56);
    let status = lab.ctl(&["status"]).expect(0);
    for node in status.last()["nodes"].as_array().expect("nodes") {
        assert_eq!((&node["peers_up"], &node["peers"]), (&4.into(), &4.into()), "{node:#}");
    }
    // BIRD has our block from us, and the router has it from BGP.
    let block = lab.node_status("node3")["blocks"][0].as_str().expect("node3 has a block").to_owned();
    assert!(lab.exec("bird1", &["ip", "route"]).contains(&format!("{block} via")));
    assert!(lab.exec("router", &["ip", "route"]).contains(&format!("{block} nhid")));

    // A BIRD that dies keeps its kernel routes (persist), ours are kept for the restart time.
    lab.ctl(&["break", "kill", "bird1"]).expect(0);
    lab.ping_ok();
    // The agent dies: BIRD and FRR keep its routes.
    lab.ctl(&["break", "kill", "node3"]).expect(0);
    lab.ping_ok();
    lab.ctl(&["heal"]).expect(0);
    lab.wait_healthy(Duration::from_secs(60));

    // A node more: BIRD is reconfigured, FRR listens to the whole segment.
    lab.ctl(&["add", "node", "--segment", "seg2", "--pods", "1"]).expect(0);
    lab.down();
    std::fs::remove_file(file).expect("it was written above");
}

#[test]
fn a_block_withdrawn_by_bird_leaves_our_kernels() {
    let file = topology("withdraw", MIXED);
    let (lab, _) = Lab::up("wd", &["--topology", file.to_str().expect("text")]);
    let routes = |node: &str| lab.exec(node, &["ip", "route"]);
    assert!(routes("node1").contains("10.78.4.0/26 via"), "{}", routes("node1"));
    let socket = lab.dir().join("nodes/bird2/bird.ctl");
    let socket = socket.to_str().expect("text");
    lab.exec("bird2", &["birdc", "-s", socket, "disable", "own_blocks"]);
    for node in ["node1", "node3"] {
        wait::until("the withdrawn block is gone", Duration::from_secs(30), || {
            let now = routes(node);
            if now.contains("10.78.4.0/26") { Err(now) } else { Ok(()) }
        });
    }
    lab.exec("bird2", &["birdc", "-s", socket, "enable", "own_blocks"]);
    wait::until_true("the block is back", Duration::from_secs(30), || {
        routes("node1").contains("10.78.4.0/26 via")
    });
    lab.ping_ok();
    lab.down();
    std::fs::remove_file(file).expect("it was written above");
}

#[test]
fn frr_alone_between_segments_carries_pods_without_any_tunnel() {
    let file = topology(
        "tor",
        "pool: {ipipMode: Never}\n\
         router: {kind: frr, asNumber: 65001}\n\
         segments: [{name: seg1}, {name: seg2}]\n\
         nodes:\n\
         - {name: node1, segment: seg1}\n\
         - {name: node2, segment: seg2}\n",
    );
    let (lab, up) = Lab::up("tor", &["--topology", file.to_str().expect("text")]);
    assert_eq!(up.last()["proof"]["full"], 12);
    assert_eq!(lab.node_status("node1")["encap"]["device"], "none");
    lab.down();
    std::fs::remove_file(file).expect("it was written above");
}
