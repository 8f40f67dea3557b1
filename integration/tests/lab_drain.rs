//! `brindle-node drain` in a living cluster: a BIRD beside sees every route again with GRACEFUL_SHUTDOWN (RFC 8326) and
//! LOCAL_PREF 0, moves what another node offers too while the session still stands, and loses the rest only at the end.
//! A plain SIGTERM in contrast withdraws nothing (`lab.rs`).

use std::{path::PathBuf, time::Duration};

use brindle_config_core::{Key, Kind, store::Expect};
use brindle_integration::{bins, lab::Lab, wait};
use serde_json::json;

const TOPOLOGY: &str = "\
segments:
  - name: seg1
nodes:
  - {name: node1, segment: seg1}
  - {name: node2, segment: seg1}
  - {name: bird1, segment: seg1, agent: bird}
";

/// What both nodes offer.
const SERVICES: &str = "10.96.0.0/16";

/// A path as BIRD tells it.
#[derive(Clone, Debug, PartialEq)]
struct Path {
    via: String,
    best: bool,
    local_pref: String,
    leaving: bool,
}

/// The word after `key`.
fn after(text: &str, key: &str) -> String {
    let rest = text.split_once(key).map_or("", |(_, rest)| rest);
    rest.split_whitespace().next().unwrap_or_default().to_owned()
}

fn paths(lab: &Lab, socket: &str) -> Vec<Path> {
    // birdc ends with 1 when there is no such route.
    let answer = lab.ctl(&["exec", "bird1", "--", "birdc", "-s", socket, "show", "route", SERVICES, "all"]);
    let text = answer.last()["stdout"].as_str().unwrap_or_default();
    let each = text.split("unicast [").skip(1);
    each.map(|p| Path {
        via: after(p, "via "),
        best: p.lines().next().is_some_and(|l| l.contains("] *")),
        local_pref: after(p, "BGP.local_pref:"),
        leaving: p.contains("(65535,0)"),
    })
    .collect()
}

#[tokio::test]
async fn a_drained_node_is_left_before_it_leaves() {
    let file: PathBuf = std::env::temp_dir().join(format!("bt-{}-drain.yaml", std::process::id()));
    std::fs::write(&file, TOPOLOGY).expect("the temporary folder is writable");
    let (lab, _) = Lab::up("drain", &["--topology", file.to_str().expect("text")]);
    let store = brindle_config::open(&lab.store_url()).expect("the lab's store");
    let value = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration", "metadata": {"name": "default"},
        "spec": {"serviceClusterIPs": [{"cidr": SERVICES}]},
    });
    store.put(&Key::new(Kind::BgpConfiguration, None, "default"), value, Expect::Any).await.expect("written");

    let bird = lab.dir().join("nodes/bird1/bird.ctl").display().to_string();
    let both = wait::until("BIRD has the services from both nodes", Duration::from_secs(60), || {
        let now = paths(&lab, &bird);
        if now.len() == 2 { Ok(now) } else { Err(format!("{now:?}")) }
    });
    let best = both.iter().find(|p| p.best).expect("one is the best").clone();
    assert!(both.iter().all(|p| !p.leaving && p.local_pref != "0"), "{both:?}");
    // The node that traffic goes to is the one that leaves.
    let node = ["node1", "node2"]
        .into_iter()
        .find(|n| lab.exec(n, &["ip", "-4", "addr"]).contains(&format!(" {}/", best.via)))
        .expect("the next hop is one of the two");
    let socket = lab.dir().join("nodes").join(node).join("admin.sock").display().to_string();
    let program = bins::bin("brindle-node").display().to_string();
    let ask = |words: &[&str]| {
        let mut all = vec!["exec", node, "--", &program];
        all.extend(words);
        all.extend(["--admin-socket", &socket]);
        lab.ctl(&all)
    };
    wait::until("the node is ready", Duration::from_secs(40), || {
        let answer = ask(&["probe", "--ready"]);
        if answer.code == 0 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let block = lab.node_status(node)["blocks"][0].as_str().expect("it has a block").to_owned();
    let in_kernel = || lab.exec("bird1", &["ip", "route"]).contains(&format!("{block} via"));
    assert!(in_kernel());

    std::thread::scope(|s| {
        let drain = s.spawn(|| ask(&["drain", "--wait", "15"]));
        let moved = wait::until("traffic has moved to the other node", Duration::from_secs(15), || {
            let now = paths(&lab, &bird);
            let old = now.iter().find(|p| p.via == best.via);
            let new = now.iter().find(|p| p.best && p.via != best.via);
            match (old, new) {
                (Some(old), Some(_)) if old.leaving && old.local_pref == "0" => Ok(now),
                _ => Err(format!("{now:?}")),
            }
        });
        assert_eq!(moved.len(), 2, "the session stands while peers move: {moved:?}");
        assert!(in_kernel(), "what only this node offers stays until the end");
        let done = drain.join().expect("the thread").expect(0);
        assert!(done.last()["stdout"].as_str().is_some_and(|t| t.contains("peers were told")), "{done:?}");
    });

    wait::until_true("its routes are gone", Duration::from_secs(30), || {
        paths(&lab, &bird).iter().all(|p| p.via != best.via) && !in_kernel()
    });
    let ready = ask(&["probe", "--ready"]);
    assert_eq!(ready.code, 1, "{ready:?}");
    assert!(ready.last()["stdout"].as_str().is_some_and(|t| t.contains("drained")), "{ready:?}");
    assert_eq!(ask(&["probe", "--live"]).code, 0, "a drained agent is not to be killed");
    assert_eq!(ask(&["drain"]).code, 1, "once is enough");

    // The next agent is there again.
    lab.ctl(&["break", "kill", node]).expect(0);
    lab.ctl(&["heal"]).expect(0);
    lab.wait_healthy(Duration::from_secs(60));
    wait::until_true("its routes are back", Duration::from_secs(60), in_kernel);
    lab.ping_ok();
    lab.down();
    std::fs::remove_file(file).expect("it was written above");
}
