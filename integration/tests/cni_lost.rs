//! What the datastore has lost: backups put in its place, addresses released by force, another name of the node, and the one
//! file that a backup is. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use brindle_config_core::{
    Kind,
    store::{Expect, Store as _},
};
use brindle_integration::{
    bins::bin,
    cni::{CniNode, Container, Said},
    wait::{until, until_true},
};
use serde_json::json;

const LONG: Duration = Duration::from_secs(60);

/// What is in the datastore now, as a file of its own.
fn backup(node: &CniNode, name: &str) -> PathBuf {
    let path = node.dir.join(name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let from = brindle_config::SqliteStore::open_existing(&node.dir.join("brindle.db")).unwrap();
        let to = brindle_config::SqliteStore::open(&path).unwrap();
        for entry in from.list(&Kind::ALL).await.unwrap().entries {
            to.put(&entry.key, (*entry.value).clone(), Expect::Any).await.unwrap();
        }
    });
    // Closed by its threads, which take the log in.
    let log = node.dir.join(format!("{name}-wal"));
    until("the backup is one file", LONG, || {
        if log.exists() { Err("its log is there".to_owned()) } else { Ok(()) }
    });
    path
}

fn restore(node: &CniNode, backup: &Path) {
    fs::rename(backup, node.dir.join("brindle.db")).unwrap();
}

fn ctl(node: &CniNode, line: &str) -> String {
    let out = Command::new(bin("brindlectl"))
        .args(line.split_whitespace())
        .env("BRINDLE_DATASTORE", format!("sqlite:{}", node.dir.join("brindle.db").display()))
        .env("BRINDLE_STATE_DIR", &node.dir)
        .output()
        .unwrap();
    assert!(out.status.success(), "{line}: {out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn until_pings(node: &CniNode, said: &Said) {
    let ip = said.address();
    until("the pod answers", LONG, || if node.pings(&ip) { Ok(()) } else { Err(node.log()) });
}

#[test]
fn a_live_pod_keeps_its_address_whatever_the_datastore_has_lost() {
    let mut node = CniNode::new("lost", "10.136.0.0/24");
    let all: Vec<Container> = (0..4).map(|_| Container::new()).collect();
    let [a, b, c, d] = all.as_slice() else { panic!("four") };
    let (first, second, third) = (backup(&node, "b1.db"), backup(&node, "b2.db"), backup(&node, "b3.db"));
    let said_a = node.add(a);
    until_pings(&node, &said_a);

    // Under the running agent: the next pod is another address's, and the one of before comes back.
    restore(&node, &first);
    let said_b = node.add(b);
    assert_ne!(said_b.address(), said_a.address());
    node.settled(&[a, b]);
    until_pings(&node, &said_a);
    until_pings(&node, &said_b);

    // Without another pod that would notice.
    restore(&node, &second);
    let both = || node.endpoints().len() == 2 && node.handles().0.len() == 2;
    until_true("both are recorded again", LONG, both);
    node.settled(&[a, b]);
    until_pings(&node, &said_a);

    // While no agent runs.
    node.stop_agent();
    restore(&node, &third);
    node.start_agent();
    until_true("both are recorded again", LONG, || {
        node.endpoints().len() == 2 && node.handles().0.len() == 2
    });
    node.settled(&[a, b]);
    let said_c = node.add(c);
    until_pings(&node, &said_c);

    // By force, under a pod that runs on.
    ctl(&node, &format!("ipam release --ip {} --force", said_a.address()));
    let mut conf = node.conf();
    conf["runtimeConfig"] = json!({ "ips": [said_a.address()] });
    let refused = node.call("ADD", d, &conf);
    assert!(refused.code() == 101 && refused.out.contains(&a.id), "{refused:?}");
    node.settled(&[a, b, c]);
    let said_d = node.add(d);
    assert_ne!(said_d.address(), said_a.address());
    node.settled(&[a, b, c, d]);
    for said in [&said_a, &said_b, &said_c, &said_d] {
        until_pings(&node, said);
    }
    for container in [a, b, c, d] {
        assert!(node.del(container).ok);
    }
    node.settled(&[]);
}

#[test]
fn an_agent_that_ends_leaves_one_file_that_is_a_backup() {
    let mut node = CniNode::new("onefile", "10.137.0.0/24");
    let a = Container::new();
    assert!(node.add(&a).ok);
    let (file, one) = (node.dir.join("brindle.db"), node.dir.join("one.db"));
    let endpoints = || {
        // What is in the file alone.
        fs::copy(&file, &one).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = brindle_config::SqliteStore::open_existing(&one).unwrap();
        runtime.block_on(store.list(&[Kind::WorkloadEndpoint])).unwrap().entries.len()
    };
    node.stop_agent();
    // The test has it open, so that the log stays.
    assert_eq!(fs::metadata(node.dir.join("brindle.db-wal")).map_or(0, |m| m.len()), 0);
    assert_eq!(endpoints(), 1);
}

#[test]
fn an_agent_of_another_name_does_not_start_beside_pods_of_the_one_before() {
    let mut node = CniNode::new("renamed", "10.138.0.0/24");
    let a = Container::new();
    assert!(node.add(&a).ok);
    node.stop_agent();
    let refused = node.ns.ns().run(|| {
        Command::new(bin("brindle-node"))
            .args(["run", "--node-name", "n9", "--ip", "192.0.2.1/24", "--networking", "none"])
            .args(["--state-dir".as_ref(), node.dir.as_os_str()])
            .arg("--datastore")
            .arg(format!("sqlite:{}", node.dir.join("brindle.db").display()))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    });
    let refused = refused.unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("--node-name n1") && said.contains("1 of its pods"), "{said}");
    // A machine that was made anew, or whose pods are gone, may have another name; what is left goes with its DEL.
    let device = node.devices().remove(0);
    let index = node.ns.rtnl().link_by_name(&device).unwrap().unwrap().index;
    node.ns.rtnl().del_link(index).unwrap();
    ctl(&node, "delete node n1");
    node.name = "n9".into();
    node.start_agent();
    assert!(node.del(&a).ok);
    node.settled(&[]);
}
