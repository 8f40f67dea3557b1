//! `brindlectl ipam` over the real binary and a real SQLite store: what a person sees, to the letter.

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc};

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource, Spec,
    felix::ClusterInformationSpec,
    pool::IpPoolSpec,
    store::{Expect, Store, StoreExt as _},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::{Allocator as _, AssignRequest, BlockAllocator, NoPause, Now, Owner, View, Wanted};

const NOW: Now = Now(1_795_400_607_000_000_000);

struct Cluster {
    dir: PathBuf,
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("brindlectl-ipam-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("sqlite:{}", dir.join("t.db").display());
        let store = {
            let _inside = runtime.enter();
            brindle_config::open(&url).unwrap()
        };
        let cluster = Self { dir, store, runtime };
        let pool =
            IpPoolSpec { block_size_raw: Some(30), ..IpPoolSpec::new("10.65.0.0/28".parse().unwrap()) };
        cluster.put(ObjectMeta::named("default-pool"), pool);
        cluster.put(ObjectMeta::named("six"), IpPoolSpec::new("fd00:65::/64".parse().unwrap()));
        cluster
    }

    fn put<S: Spec>(&self, meta: ObjectMeta, spec: S) {
        self.runtime.block_on(self.store.put_as(&Resource::new(meta, spec), Expect::Any)).unwrap();
    }

    fn lock(&self, ready: bool) {
        let spec = ClusterInformationSpec {
            cluster_guid: "c0ffee".into(),
            datastore_ready: Some(ready),
            ..ClusterInformationSpec::default()
        };
        self.put(ObjectMeta::named("default"), spec);
    }

    /// Gives addresses to a pod, with its endpoint or without.
    fn pod(&self, node: &str, name: &str, v6: usize, endpoint: bool) {
        let owner = Owner {
            handle: format!("k8s-pod-network.{name}"),
            attributes: BTreeMap::from([
                ("namespace".into(), "default".into()),
                ("node".into(), node.into()),
                ("pod".into(), name.into()),
                ("timestamp".into(), NOW.attribute()),
            ]),
        };
        let mut a = BlockAllocator::new(Arc::clone(&self.store), node, Arc::new(NoPause));
        let given = self.runtime.block_on(async {
            let view = View::load(&*self.store, node).await.unwrap();
            let request = AssignRequest {
                max_blocks: 1,
                ..AssignRequest::for_workload(owner, Wanted::any(1), Wanted::any(v6))
            };
            a.assign(&request, &view, NOW).await.unwrap()
        });
        assert_eq!(given.refusal(), None);
        if endpoint {
            let meta = ObjectMeta {
                namespace: Some("default".into()),
                ..ObjectMeta::named(format!("{node}-k8s-{name}-eth0"))
            };
            let spec = WorkloadEndpointSpec {
                node: node.into(),
                pod: name.into(),
                container_id: name.into(),
                endpoint: "eth0".into(),
                orchestrator: "k8s".into(),
                interface_name: format!("cali{name}"),
                ip_networks: given.addresses.iter().map(|a| a.ip.into()).collect(),
                ..WorkloadEndpointSpec::default()
            };
            self.put(meta, spec);
        }
    }

    /// Gives one address of node1's blocks to a handle with these attributes.
    fn hold(&self, handle: &str, attributes: &[(&str, &str)], v6: bool) -> std::net::IpAddr {
        let mut all = BTreeMap::from([("node".to_owned(), "node1".to_owned())]);
        all.extend(attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let owner = Owner { handle: handle.into(), attributes: all };
        let mut a = BlockAllocator::new(Arc::clone(&self.store), "node1", Arc::new(NoPause));
        let (v4, v6) = (Wanted::any(usize::from(!v6)), Wanted::any(usize::from(v6)));
        let given = self.runtime.block_on(async {
            let view = View::load(&*self.store, "node1").await.unwrap();
            a.assign(&AssignRequest::for_workload(owner, v4, v6), &view, NOW).await.unwrap()
        });
        given.addresses[0].ip
    }

    /// The address of the one endpoint.
    fn endpoint_ip(&self) -> std::net::IpAddr {
        let (all, _) = self.runtime.block_on(self.store.list_as::<WorkloadEndpointSpec>()).unwrap();
        all[0].resource.spec.ip_networks[0].addr()
    }

    /// An address for a LoadBalancer service.
    fn balancer(&self) -> std::net::IpAddr {
        let attributes =
            [("namespace", "default"), ("service", "web")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let owner = Owner { handle: "lb-web".into(), attributes };
        let host = brindle_ipam::names::LOAD_BALANCER;
        let mut a = BlockAllocator::new(Arc::clone(&self.store), host, Arc::new(NoPause));
        let given = self.runtime.block_on(async {
            let view = View::load(&*self.store, "").await.unwrap();
            let request = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::default());
            a.assign(&request, &view, NOW).await.unwrap()
        });
        given.addresses[0].ip
    }

    fn run(&self, line: &str) -> String {
        let out = Command::new(env!("CARGO_BIN_EXE_brindlectl"))
            .args(line.split_whitespace())
            .current_dir(&self.dir)
            .env("BRINDLE_DATASTORE", format!("sqlite:{}", self.dir.join("t.db").display()))
            .env("BRINDLE_STATE_DIR", &self.dir)
            .output()
            .unwrap();
        format!(
            "$ brindlectl {line}\n{}{}[{}]\n",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
            out.status.code().unwrap_or(-1)
        )
        .replace(&self.dir.display().to_string(), "DIR")
    }

    fn story(&self, lines: &[&str]) -> String {
        lines.iter().map(|l| self.run(l)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn addresses_are_shown_as_calicoctl_shows_them() {
    let c = Cluster::new("show");
    for n in 0..3 {
        c.pod("node1", &format!("web-{n}"), usize::from(n == 0), true);
    }
    c.pod("node2", "db", 0, true);
    // node2 may own one block, and needs one address more: it borrows.
    for n in 0..4 {
        c.pod("node2", &format!("db-{n}"), 0, true);
    }
    let told = c.story(&[
        "ipam show",
        "ipam reserve 10.65.0.14/31",
        "ipam show --show-blocks",
        "ipam show --show-borrowed",
        "ipam show --show-configuration",
        "ipam show --ip 10.65.0.15",
        "-o json ipam show",
        "ipam show --ip nonsense",
    ]);
    insta::assert_snapshot!(told);
}

#[test]
fn an_address_tells_its_story() {
    let c = Cluster::new("why");
    c.pod("node1", "web", 0, true);
    c.pod("node1", "ghost", 0, false);
    let borrow: Vec<String> = c
        .run("-o json ipam show --show-blocks")
        .split("\"cidr\":\"")
        .filter_map(|t| t.split('/').next().filter(|t| t.starts_with("10.65.0.")).map(str::to_owned))
        .collect();
    let first: std::net::Ipv4Addr = borrow[1].parse().unwrap();
    let at = |n: u32| std::net::Ipv4Addr::from(u32::from(first) + n);
    let history: String = ["given", "returned", "given"]
        .iter()
        .map(|e| {
            format!(
                "{{\"time\":\"2026-11-23T02:23:27Z\",\"event\":\"{e}\",\"ip\":\"{}\",\"handle\":\"k8s-pod-network.web\",\"allocatedTo\":\"default/web\",\"node\":\"node1\"}}\n",
                at(0)
            )
        })
        .collect();
    std::fs::write(c.dir.join("ipam-history.jsonl"), history + "torn{").unwrap();
    let told = c.story(&[
        &format!("ipam why {}", at(0)),
        &format!("ipam why {}", at(1)),
        &format!("ipam why {}", at(2)),
        "ipam why 192.0.2.1",
        "ipam why fd00:65::1",
        &format!("-o json ipam why {}", at(0)),
    ]);
    insta::assert_snapshot!(told);
}

#[test]
fn an_address_whose_history_is_elsewhere_says_where() {
    let c = Cluster::new("elsewhere");
    c.pod("node1", "web", 0, true);
    let ip = c.endpoint_ip();
    std::fs::write(c.dir.join("nodename"), "node2\n").unwrap();
    let said = c.run(&format!("ipam why {ip}"));
    assert!(said.contains("the agent of node node2 remembers nothing of it"), "{said}");
    assert!(said.contains("what the agent of node node1 remembers"), "{said}");
    // No agent here at all: that is no memory without events.
    let said = c.run(&format!("ipam why {ip} --state-dir nowhere"));
    assert!(said.contains("not known here, nowhere: there is no such folder"), "{said}");
    assert!(!said.contains("remembers nothing"), "{said}");
    let said = c.run(&format!("-o json ipam why {ip} --state-dir nowhere"));
    assert!(
        said.contains(r#""historyUnread":[{"folder":"nowhere","why":"there is no such folder"#),
        "{said}"
    );

    let balancer = c.balancer();
    let said = c.run(&format!("ipam why {balancer}"));
    assert!(said.contains("brindle-controllers"), "{said}");
}

#[test]
fn ranges_of_other_plugins_inside_pools_are_found() {
    let c = Cluster::new("ranges");
    let seen = "2026-11-23T02:23:27Z";
    let told = serde_json::json!({"ranges": [
        {"first": "10.65.0.8", "last": "10.65.0.255", "network": "k8s-pod-network", "seen": seen},
        {"first": "192.0.2.0", "last": "192.0.2.255", "network": "k8s-pod-network", "seen": seen},
    ]});
    std::fs::write(c.dir.join("ipam-foreign.json"), told.to_string()).unwrap();
    let said = c.run("ipam check");
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        flat.contains("Another IPAM plugin gives addresses of 10.65.0.8 to 10.65.0.255 to pods of network k8s-pod-network (seen 2026-11-23T02:23:27Z), and pool default-pool 10.65.0.0/28 gives them too"),
        "{said}"
    );
    assert!(said.contains("found 1 problems"), "{said}");
    let off = IpPoolSpec { disabled: true, ..IpPoolSpec::new("10.65.0.0/28".parse().unwrap()) };
    c.put(ObjectMeta::named("default-pool"), off);
    let said = c.run("ipam check");
    assert!(said.contains("found 0 problems"), "{said}");
}

#[test]
fn what_is_wrong_is_found_and_released_by_report() {
    let c = Cluster::new("check");
    c.pod("node1", "web", 0, true);
    c.pod("node1", "ghost", 0, false);
    c.lock(true);
    let first =
        c.story(&["ipam check --show-problem-ips --report r1.json", "ipam release --from-report r1.json"]);
    c.lock(false);
    let second = c.story(&[
        "ipam release --from-report r1.json",
        "-o json ipam check --report r2.json",
        "ipam release --from-report r1.json --from-report r2.json",
        "ipam check",
    ]);
    insta::assert_snapshot!(first + &second);
}

#[test]
fn pods_of_a_pool_that_is_being_drained_are_well() {
    let c = Cluster::new("drained");
    c.pod("node1", "web", 0, true);
    let off = IpPoolSpec { disabled: true, ..IpPoolSpec::new("10.65.0.0/28".parse().unwrap()) };
    c.put(ObjectMeta::named("default-pool"), off);
    let said = c.run("ipam check");
    assert!(said.contains("Found 0 in-use IPs that are not in active IP pools."), "{said}");
    assert!(said.contains("found 0 problems"), "{said}");
    let why = c.run("ipam why 10.65.0.9");
    assert!(why.contains("not given: its pool default-pool is disabled") && !why.contains("queue"), "{why}");
    // Without its record it is one of no active pool.
    let handle = Key::new(Kind::IpamHandle, None, "k8s-pod-network.web");
    c.runtime.block_on(c.store.delete(&handle, Expect::Any)).unwrap();
    let blocks = c.runtime.block_on(c.store.list(&[Kind::IpamBlock])).unwrap();
    c.runtime.block_on(c.store.delete(&blocks.entries[0].key, Expect::Any)).unwrap();
    let said = c.run("ipam check");
    assert!(said.contains("Found 1 in-use IPs that are not in active IP pools."), "{said}");
}

#[test]
fn every_tunnel_address_a_node_names_is_in_use() {
    let c = Cluster::new("tunnels");
    let kinds = ["ipip", "vxlan", "vxlanV6", "wireguard", "wireguardV6"];
    let ips: Vec<std::net::IpAddr> = kinds
        .iter()
        .map(|kind| {
            c.hold(
                &format!("{kind}-node1"),
                &[("type", &format!("{kind}TunnelAddress"))],
                kind.ends_with("V6"),
            )
        })
        .collect();
    let said = c.run("ipam check");
    assert!(said.contains("Found 5 IPs that are allocated in IPAM but not actually in use."), "{said}");
    let node = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "node1"}, "spec": {
            "bgp": {"ipv4IPIPTunnelAddr": ips[0]}, "ipv4VXLANTunnelAddr": ips[1], "ipv6VXLANTunnelAddr": ips[2],
            "wireguard": {"interfaceIPv4Address": ips[3], "interfaceIPv6Address": ips[4]},
        },
    });
    let key = Key::new(Kind::Node, None, "node1");
    c.runtime.block_on(c.store.put(&key, node, Expect::Any)).unwrap();
    c.lock(false);
    let said = c.run("ipam check --report r.json");
    assert!(said.contains("Found 5 node tunnel IPs."), "{said}");
    assert!(said.contains("found 0 problems"), "{said}");
    let said = c.run("ipam release --from-report r.json");
    assert!(said.contains("Released 0 IPs successfully"), "{said}");
}

fn put_raw(c: &Cluster, kind: Kind, namespace: Option<&str>, value: serde_json::Value) {
    let key = Key::new(kind, namespace, value["metadata"]["name"].as_str().unwrap());
    c.runtime.block_on(c.store.put(&key, value, Expect::Any)).unwrap();
}

/// A LoadBalancer service `shop/NAME`, and the address it holds.
fn service(c: &Cluster, name: &str) -> std::net::IpAddr {
    let handle = brindle_config_core::names::load_balancer_handle(name, "shop", "u1");
    let ip = c.hold(&handle, &[("service", name), ("namespace", "shop"), ("type", "LoadBalancer")], false);
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "uid": "u1"},
        "spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": ip}]}},
    });
    put_raw(c, Kind::Service, Some("shop"), value);
    ip
}

#[test]
fn an_address_of_a_service_that_is_gone_is_a_problem() {
    let c = Cluster::new("services");
    let (web, gone) = (service(&c, "web"), service(&c, "gone"));
    // Another load balancer's service.
    let other = serde_json::json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "other", "namespace": "shop"}, "spec": {"type": "LoadBalancer"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}});
    put_raw(&c, Kind::Service, Some("shop"), other);
    let said = c.run("ipam check --show-problem-ips");
    let section =
        "Loading all service load balancer IPs.\nFound 2 service load balancer IPs.\n\nLoading all workload";
    assert!(said.contains(section) && said.contains("found 0 problems"), "{said}");
    let key = Key::new(Kind::Service, Some("shop"), "gone");
    c.runtime.block_on(c.store.delete(&key, Expect::Any)).unwrap();
    let said = c.run("ipam check --show-problem-ips");
    assert!(said.contains(&format!("  {gone} leaked; owner ")), "{said}");
    assert!(
        said.contains("Found 1 service load balancer IPs.") && said.contains("found 1 problems"),
        "{said}"
    );
    assert!(!said.contains(&format!("{web} leaked")), "{said}");
}

#[test]
fn what_record_and_use_say_against_each_other_is_told() {
    let c = Cluster::new("conflict");
    c.pod("node1", "web", 0, true);
    let ip = "10.65.0.0";
    std::fs::write(
        c.dir.join("ipam-history.jsonl"),
        format!(
            "{{\"time\":\"2026-11-23T02:23:27Z\",\"event\":\"given\",\"ip\":\"{ip}\",\"handle\":\"h\"}}\n"
        ),
    )
    .unwrap();
    assert!(!c.run(&format!("ipam why {ip}")).contains("by hand"));
    c.run(&format!("ipam release --ip {ip} --force"));
    let said = c.run(&format!("ipam why {ip}"));
    let plain = said.replace('\n', " ");
    assert!(
        plain.contains(&format!("{ip} is free, yet default/web uses it: record and use contradict")),
        "{said}"
    );
    assert!(said.contains("  released  by hand or by another agent"), "{said}");
    assert!(c.run(&format!("-o json ipam why {ip}")).contains("\"state\":\"conflict\""));

    let ip = service(&c, "shop");
    assert!(
        c.run(&format!("ipam why {ip}"))
            .starts_with(&format!("$ brindlectl ipam why {ip}\n{ip} belongs to service shop/shop\n"))
    );
    let block = "10.65.0.12/30";
    let value = serde_json::json!({"apiVersion": "projectcalico.org/v3", "kind": "IPAMBlock",
        "metadata": {"name": "10-65-0-12-30"}, "spec": {"cidr": block, "affinity": "virtual:load-balancer",
        "allocations": [null, null, null, null], "unallocated": [0, 1, 2, 3], "attributes": []}});
    put_raw(&c, Kind::IpamBlock, None, value);
    let said = c.run("ipam why 10.65.0.13");
    assert!(said.contains(&format!("block     {block} of LoadBalancer services, no node's")), "{said}");
}

#[test]
fn a_reservation_is_checked_before_it_is_written() {
    let c = Cluster::new("reserve");
    for (line, want) in [
        ("ipam reserve 10.65.0.1 --name ../x", "--name \"../x\": a name has lower case letters"),
        ("ipam reserve 10.65.0.1 --name Bad", "--name \"Bad\": a name has lower case letters"),
        ("ipam reserve --remove 10.65.0.1", "there is no IPReservation reserved"),
    ] {
        let said = c.run(line);
        assert!(said.contains(want) && said.ends_with("[2]\n"), "{said}");
    }
    let said = c.run("ipam reserve 10.65.0.1 10.65.0.1/32 10.65.0.4/30");
    assert!(said.contains("IPReservation reserved: 10.65.0.1/32, 10.65.0.4/30\n"), "{said}");
    let said = c.run("ipam reserve --remove 10.65.0.1 10.65.0.9");
    assert!(said.contains("10.65.0.9/32 is not in IPReservation reserved"), "{said}");
    let said = c.run("ipam reserve --remove 10.65.0.5");
    assert!(said.contains("not reserved by itself: IPReservation reserved has 10.65.0.4/30"), "{said}");
    let said = c.run("ipam reserve --remove 10.65.0.1 10.65.0.4/30");
    assert!(said.contains("IPReservation reserved: deleted, it is empty"), "{said}");
    let gone = c.runtime.block_on(c.store.get(&Key::new(Kind::IpReservation, None, "reserved")));
    assert!(gone.is_err());
}

#[test]
fn parts_of_a_pool_have_its_labels_and_annotations() {
    let c = Cluster::new("split");
    let meta = ObjectMeta {
        labels: BTreeMap::from([("tier".into(), "gold".into())]),
        annotations: BTreeMap::from([("owner".into(), "net".into())]),
        ..ObjectMeta::named("default-pool")
    };
    let spec = IpPoolSpec { block_size_raw: Some(30), ..IpPoolSpec::new("10.65.0.0/28".parse().unwrap()) };
    c.put(meta, spec);
    let said = c.run("ipam split 2 --name default-pool --force");
    assert!(said.ends_with("[0]\n"), "{said}");
    for part in ["split-default-pool-0", "split-default-pool-1"] {
        let found = c.runtime.block_on(c.store.get_as::<IpPoolSpec>(None, part)).unwrap().resource.metadata;
        assert_eq!(found.labels.get("tier").map(String::as_str), Some("gold"));
        assert_eq!(found.annotations.get("owner").map(String::as_str), Some("net"));
    }
}

#[test]
fn with_a_node_goes_what_it_had_and_with_a_pool_its_empty_blocks() {
    let c = Cluster::new("gone");
    for node in ["node1", "node2"] {
        c.put(ObjectMeta::named(node), brindle_config_core::node::NodeSpec::default());
    }
    c.pod("node1", "a", 1, true);
    c.hold("ipip-tunnel-addr-node1", &[("type", "ipipTunnelAddress")], false);
    c.pod("node2", "b", 0, true);
    // Its Node is taken away by something else: it is told.
    let node2 = Key::new(Kind::Node, None, "node2");
    c.runtime.block_on(c.store.delete(&node2, Expect::Any)).unwrap();
    let said = c.run("ipam check");
    assert!(said.contains("1 endpoints of nodes that do not exist"), "{said}");
    let said = c.run("delete node node1");
    assert!(said.contains("endpoints (1), addresses (3) and blocks (2)"), "{said}");
    let (left, _) = c.runtime.block_on(c.store.list_as::<WorkloadEndpointSpec>()).unwrap();
    assert_eq!(left.iter().map(|e| &*e.resource.spec.node).collect::<Vec<_>>(), ["node2"]);
    let all = || {
        let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
        let entries = c.runtime.block_on(c.store.list(&kinds)).unwrap().entries;
        assert_eq!(brindle_ipam::audit::audit(&entries), []);
        entries.len()
    };
    assert_eq!(all(), 3, "block, affinity and handle of the other node");
    let mut a = BlockAllocator::new(Arc::clone(&c.store), "node2", Arc::new(NoPause));
    c.runtime.block_on(async {
        let view = View::load(&*c.store, "node2").await.unwrap();
        a.release_handle("k8s-pod-network.b", &view, NOW).await.unwrap();
    });
    assert_eq!(all(), 2);
    c.run("delete ippool default-pool");
    assert_eq!(all(), 0);
}

#[test]
fn what_something_uses_is_released_by_force_alone() {
    let c = Cluster::new("guards");
    let tunnel = c.hold("ipip-tunnel-addr-node1", &[("type", "ipipTunnelAddress")], false);
    let node = serde_json::json!({"apiVersion": "projectcalico.org/v3", "kind": "Node",
        "metadata": {"name": "node1"}, "spec": {"bgp": {"ipv4IPIPTunnelAddr": tunnel}}});
    put_raw(&c, Kind::Node, None, node);
    let balancer = service(&c, "web");
    let pod = [("pod", "lan"), ("namespace", "default"), ("cni.brindle.dev/foreign-interface", "true")];
    let foreign = c.hold("lan.c1", &pod, false);
    let said = c.run("ipam check --show-problem-ips");
    assert!(said.contains("found 0 problems"), "{said}");
    for (ip, want) in [
        (tunnel, "is in use by tunnel of node node1; use --force"),
        (balancer, "is in use by service shop/web; use --force"),
        (foreign, "was given to default/lan for another plugin's interface"),
    ] {
        let said = c.run(&format!("ipam release --ip {ip}"));
        assert!(said.contains(want) && said.ends_with("[2]\n"), "{said}");
        let said = c.run(&format!("ipam release --ip {ip} --force"));
        assert!(said.contains("Successfully released") && said.ends_with("[0]\n"), "{said}");
    }
}

#[test]
fn the_configuration_is_changed_only_where_it_makes_sense() {
    let c = Cluster::new("configure");
    let told = c.story(&[
        "ipam configure --max-blocks-per-host=4",
        "ipam configure --auto-allocate-blocks=false",
        "ipam configure --strictaffinity=true --max-blocks-per-host=4 --ip-cooldown-seconds=30 --kubevirt-ip-persistence=Disabled",
        "ipam show --show-configuration",
        "ipam configure --strictaffinity=false",
        "ipam split 2 --name default-pool",
        "ipam split 3 --name default-pool --force",
        "ipam split 64 --name default-pool --force",
        "ipam split 1073741824 --name six --force",
        "ipam split 2 --cidr 10.65.0.0/28 --force",
        "ipam show",
        "ipam reserve 10.65.0.1 10.65.0.8/30",
        "ipam reserve --remove 10.65.0.1",
        "ipam reserve nonsense",
        "ipam release --ip 10.65.0.3",
    ]);
    insta::assert_snapshot!(told);
    let gone = c.runtime.block_on(c.store.get(&Key::new(Kind::IpPool, None, "default-pool")));
    assert!(gone.is_err());
}
