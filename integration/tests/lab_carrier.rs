//! The life of the IPIP carrier under the real agent: it outlives the agent, is adopted by the next one, is started
//! again when it dies, and goes with the lab. Only where the kernel has no ipip; elsewhere there is no carrier.

use std::{fs, time::Duration};

use brindle_integration::{lab::Lab, process, wait};
use brindle_kernel::exec;

const LIMIT: Duration = Duration::from_secs(60);

fn carrier(lab: &Lab, node: &str) -> Option<u32> {
    let pid = fs::read_to_string(lab.dir().join("nodes").join(node).join("carrier.pid")).ok()?;
    pid.trim().parse().ok()
}

#[test]
fn the_carrier_outlives_the_agent_and_the_agent_replaces_the_carrier() {
    let (lab, _) = Lab::up("carr", &["--nodes", "2", "--pods-per-node", "1"]);
    if lab.node_status("node1")["encap"]["device"] != "carrier" {
        eprintln!("this kernel has ipip: the lab has no carriers; nothing to test here");
        return;
    }
    let first = carrier(&lab, "node1").expect("a carrier on node1");

    // The agent dies: packets go on, and the next agent keeps the carrier.
    lab.ctl(&["break", "kill", "node1"]).expect(0);
    lab.ping_ok();
    lab.ctl(&["heal"]).expect(0);
    assert_eq!(carrier(&lab, "node1"), Some(first), "adopted");
    lab.ping_ok();

    // The carrier dies: the agent starts another at once, without waiting for its slow resync.
    exec::run("kill", ["-KILL", &first.to_string()], None, LIMIT).unwrap().success().unwrap();
    wait::until_true("another carrier", LIMIT, || carrier(&lab, "node1").is_some_and(|pid| pid != first));
    lab.wait_healthy(LIMIT);
    lab.ping_ok();

    // Both die: the carrier's keeper starts another one, with nobody there to tell it anything.
    let pid = carrier(&lab, "node1").expect("a carrier on node1");
    lab.ctl(&["break", "kill", "node1"]).expect(0);
    exec::run("kill", ["-KILL", &pid.to_string()], None, LIMIT).unwrap().success().unwrap();
    wait::until_true("the keeper's carrier", LIMIT, || carrier(&lab, "node1").is_some_and(|p| p != pid));
    wait::until("forwarding without the agent", LIMIT, || {
        let ping = lab.ctl(&["ping"]);
        if ping.code == 0 { Ok(()) } else { Err(format!("{ping:#?}")) }
    });
    let kept = carrier(&lab, "node1");
    lab.ctl(&["heal"]).expect(0);
    assert_eq!(carrier(&lab, "node1"), kept, "adopted");
    lab.ping_ok();

    let dir = lab.dir().display().to_string();
    assert!(process::naming(&dir).iter().any(|(_, line)| line.contains("brindle-ipip")));
    lab.down();
    assert_eq!(process::naming(&dir), [], "processes are left");
}
