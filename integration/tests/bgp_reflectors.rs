//! Reflectors: from the datastore, several of them, with cluster ids of their own; and the one the manifests bring.

use std::{fs, path::Path, process::Command, time::Duration};

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store},
};
use brindle_integration::{
    bins::bin,
    peer::{Brindle, Segment},
    wait,
};
use serde_json::{Value, json};

/// A loaded machine is no failure.
const LIMIT: Duration = Duration::from_secs(60);

/// Writes a resource, whatever was there before.
async fn put(store: &dyn Store, kind: Kind, name: &str, labels: Value, spec: Value) {
    let value = json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
        "metadata": {"name": name, "labels": labels}, "spec": spec,
    });
    store.put(&Key::new(kind, None, name), value, Expect::Any).await.unwrap();
}

fn node(address: &str, cluster: &str) -> Value {
    json!({"bgp": {"ipv4Address": address, "routeReflectorClusterID": cluster}})
}

/// calico issue 2735: reflectors that are nodes themselves, meshed with each other, each with clients of its own. With
/// one cluster id for all, a route that passed two reflectors would be dropped; with one each, everybody has all.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflectors_with_cluster_ids_of_their_own_pass_on_each_others_clients() {
    let segment = Segment::new(5);
    let url = format!("sqlite:{}", segment.dir(1).join("brindle.db").display());
    let store = brindle_config::open(&url).unwrap();
    let rack = |host: u8| if host.is_multiple_of(2) { "even" } else { "odd" };
    for host in 1..=5u8 {
        let mut bgp = json!({"ipv4Address": format!("10.99.0.{host}/24")});
        let role = if host <= 2 { "reflector" } else { "client" };
        if host <= 2 {
            bgp["routeReflectorClusterID"] = format!("244.0.0.{host}").into();
        }
        let labels = json!({"role": role, "rack": rack(host)});
        put(&*store, Kind::Node, &format!("host{host}"), labels, json!({"bgp": bgp})).await;
        let claim = json!({"state": "confirmed", "node": format!("host{host}"), "type": "host",
            "cidr": format!("192.168.{host}.0/26"), "deleted": "false"});
        put(&*store, Kind::BlockAffinity, &format!("host{host}-192-168-{host}-0-26"), json!({}), claim).await;
    }
    put(&*store, Kind::IpPool, "pool", json!({}), json!({"cidr": "192.168.0.0/16"})).await;
    put(&*store, Kind::BgpConfiguration, "default", json!({}), json!({"nodeToNodeMeshEnabled": false})).await;
    let role = |r: &str| format!("role == '{r}'");
    let mesh = json!({"nodeSelector": role("reflector"), "peerSelector": role("reflector")});
    put(&*store, Kind::BgpPeer, "reflectors", json!({}), mesh).await;
    for r in ["odd", "even"] {
        let clients = json!({"nodeSelector": format!("role == 'client' && rack == '{r}'"),
            "peerSelector": format!("role == 'reflector' && rack == '{r}'")});
        put(&*store, Kind::BgpPeer, r, json!({}), clients).await;
    }
    let all: Vec<Brindle<'_>> =
        (1..=5).map(|h| Brindle::of_store(&segment, h, &url, &format!("host{h}"))).collect();
    for (host, daemon) in (1..=5u8).zip(&all) {
        for other in (1..=5u8).filter(|o| *o != host) {
            let paths = daemon.route(&format!("192.168.{other}.0/26"), true);
            assert_eq!(paths[0]["nextHop"], format!("10.99.0.{other}"), "host{host}: {paths}");
        }
    }
    // A client more than a session with its reflector does not need.
    assert_eq!(all[4].status().unwrap().bgp.peers.len(), 1);

    // One cluster id for both: the trap. Clients of the other reflector are lost, and the reason is told.
    let bgp = |host: u8| node(&format!("10.99.0.{host}/24"), "244.0.0.1");
    put(&*store, Kind::Node, "host2", json!({"role": "reflector", "rack": "even"}), bgp(2)).await;
    all[4].route("192.168.4.0/26", false);
    wait::until("the loop is named", LIMIT, || {
        let rib = all[0].rib(None)?.to_string();
        let named = rib.contains("our cluster is in the CLUSTER_LIST");
        if named { Ok(()) } else { Err(rib) }
    });
}

/// The file of the ConfigMap, with its paths in this host's folder.
fn shipped(segment: &Segment, host: u8) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = fs::read_to_string(root.join("deploy/reflectors/config.yaml")).unwrap();
    let map: Value = brindle_config::yaml::read_one("config.yaml", &manifest).unwrap();
    let file = map["data"]["brindle-bgpd.yaml"].as_str().unwrap();
    let secret = segment.dir(host).join("reflectors").display().to_string();
    assert!(file.contains("/etc/brindle-secret/reflectors"), "{file}");
    let lines = file.lines().filter(|l| !l.starts_with("adminSocket:"));
    lines.map(|l| l.replace("/etc/brindle-secret/reflectors", &secret) + "\n").collect()
}

#[test]
fn the_shipped_reflector_wants_the_password_and_is_ready_when_its_clients_are_back() {
    let segment = Segment::new(4);
    for host in 1..=3 {
        fs::write(segment.dir(host).join("reflectors"), "a password of the cluster").unwrap();
    }
    fs::write(segment.dir(4).join("reflectors"), "a guess").unwrap();
    let client = |host: u8, password: &str| {
        format!(
            "asNumber: 64512\nrouterID: 10.99.0.{host}\npeers:\n  - {{address: 10.99.0.1, port: 1790, asNumber: 64512, \
             holdTime: 9, connectRetry: 1{password}}}\nannounce: [{{prefix: 10.{host}.0.0/26}}]\n"
        )
    };
    let known = ", passwordFile: reflectors";
    let reflector = Brindle::start(&segment, 1, &shipped(&segment, 1));
    let probe = |what: &str| -> (bool, String) {
        let mut c = Command::new(bin("brindle-bgpd"));
        let out = c.args(["probe", what, "--admin-socket"]).arg(segment.dir(1).join("bgpd.sock")).output();
        let out = out.expect("brindle-bgpd can be run");
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let (live, said) = probe("--live");
    assert!(live, "{said}");
    let (ready, said) = probe("--ready");
    assert!(!ready && said.contains("no client has come yet"), "{said}");

    let mut two = Brindle::start(&segment, 2, &client(2, known));
    let mut three = Brindle::start(&segment, 3, &client(3, known));
    // The right AS and address, without the password and with another one.
    let without = Brindle::start(&segment, 4, &client(4, ""));
    two.route("10.3.0.0/26", true);
    three.route("10.2.0.0/26", true);
    without.reload(&client(4, known));
    wait::until("it is ready when nobody else comes", LIMIT, || {
        let (ready, said) = probe("--ready");
        if ready { Ok(()) } else { Err(said) }
    });
    // Which took it long enough for a guess or two.
    wait::until("it has tried, and in vain", LIMIT, || {
        let p = without.peer("10.99.0.1")?;
        if p.last_error.is_some() { Ok(()) } else { Err(format!("{p:?}")) }
    });
    assert_ne!(without.peer("10.99.0.1").unwrap().state, "Established");
    let peers = reflector.status().unwrap().bgp.peers;
    assert!(peers.iter().all(|p| p.address != Segment::v4(4)), "{peers:?}");
    assert!(
        probe("--ready").1.contains("[+] sessions: 2 of 2 sessions established"),
        "{}",
        probe("--ready").1
    );
    two.daemon.kill();
    three.daemon.kill();
    wait::until("without any client it is not", LIMIT, || {
        let (ready, said) = probe("--ready");
        if !ready && said.contains("all that there were have ended") { Ok(()) } else { Err(said) }
    });
    assert!(probe("--live").0);
}
