//! The lab with IPv6: nodes and pods of both families, and of IPv6 alone. IPIP carries no IPv6, so that it goes by the
//! underlay.

use std::time::Duration;

use brindle_integration::lab::{Lab, ctl};

const LIMIT: Duration = Duration::from_secs(60);

/// Up, proof, an agent killed and healed: forwarding goes on, and the next agent writes no route.
fn lives_through_a_kill(tag: &str, families: &str, peers: usize, addresses: usize) {
    let (lab, up) = Lab::up(tag, &["--nodes", "3", "--pods-per-node", "1", "--ip-families", families]);
    assert_eq!(up.last()["proof"]["full"], 6, "{:#?}", up.last());
    let status = lab.node_status("node1");
    let list = |of: &str| status["bgp"][of].as_array().cloned().unwrap_or_default();
    assert_eq!(list("peers").len(), peers, "{status:#}");
    assert!(
        list("peers").iter().any(|p| p["address"] == "fd77:0:0:1::2" && p["state"] == "Established"),
        "{status:#}"
    );
    assert_eq!(status["pods"][0]["addresses"].as_array().map(Vec::len), Some(addresses), "{status:#}");
    assert_eq!((&status["ready"], &status["reasons"]), (&true.into(), &serde_json::json!([])), "{status:#}");
    let wanted = status["routes"]["desired"].clone();

    lab.ctl(&["break", "kill", "node1"]).expect(0);
    lab.ping_ok();
    lab.ctl(&["heal"]).expect(0);
    lab.wait_healthy(LIMIT);
    lab.ping_ok();
    let status = lab.node_status("node1");
    assert_eq!(
        (&status["routes"]["writes"], &status["routes"]["desired"]),
        (&0.into(), &wanted),
        "{status:#}"
    );

    // Somebody deletes a route to another node's IPv6 block: it comes back.
    let block = lab.node_status("node2")["blocks"]
        .as_array()
        .and_then(|all| all.iter().find_map(|b| b.as_str().filter(|b| b.contains(':')).map(str::to_owned)))
        .expect("node2 has an IPv6 block");
    lab.exec("node1", &["ip", "-6", "route", "del", &block]);
    brindle_integration::wait::until_true("the route is back", LIMIT, || {
        lab.exec("node1", &["ip", "-6", "route", "show", &block]).contains("fd77:0:0:1::2")
    });
    lab.ping_ok();
    lab.down();
}

#[test]
fn nodes_and_pods_of_both_families() {
    lives_through_a_kill("dual", "dual", 4, 2);
}

#[test]
fn nodes_and_pods_of_ipv6_alone() {
    lives_through_a_kill("six", "ipv6", 2, 1);
}

#[test]
fn what_ipv6_cannot_do_in_the_lab_is_refused_before_anything_is_made() {
    let lab = Lab::named("six-two");
    let up = ctl(&["lab", "up", "--name", lab.name(), "--segments", "2", "--ip-families", "dual"]);
    assert_eq!(up.code, 2);
    assert!(up.stderr.contains("ipFamilies") || up.error().contains("ipFamilies"), "{up:#?}");
    lab.assert_gone();
}
