//! Each controller by cases, and all of them together against a cluster that lives: whatever happens, nothing live is
//! taken, and when nothing more happens there is nothing left to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use brindle_config::MemoryStore;
use brindle_config_core::{
    ObjectMeta, Resource,
    ipam::{BlockAffinitySpec, IpamHandleSpec},
    node::NodeSpec,
    pool::{AllowedUse, IpPoolSpec},
    service::ServiceStatus,
    store::{Expect, Store, StoreExt as _},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::{
    Allocator as _, AssignRequest, BlockAllocator, NoPause, Owner, View, Wanted as Count, audit::audit,
    leak::FOREIGN, usage::Blocks,
};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    act::{Actor, Outcome},
    facts::{KINDS, POLICY_KINDS},
};

const GRACE: u64 = 900;

struct Cluster {
    store: Arc<dyn Store>,
    actor: Actor,
    planner: Planner,
    now: Now,
    /// Nodes of a Kubernetes beside the datastore.
    kubernetes: Option<BTreeSet<String>>,
}

impl Cluster {
    async fn new() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let s = Duration::from_secs;
        let rules = Rules {
            controllers: Controller::ALL.into(),
            graces: Graces { leak: s(GRACE), node: s(60), repair: s(60) },
            assign_ips: AssignIps::All,
            drop_endpoints: true,
            host_endpoints: None,
            careful_with_names: true,
        };
        let cluster = Self {
            actor: Actor::new(Arc::clone(&store)),
            store,
            planner: Planner::new(rules),
            now: Now::from_secs(1_795_400_607),
            kubernetes: None,
        };
        cluster.pool("pods", "10.0.0.0/24", &[]).await;
        cluster.pool("balancers", "198.51.100.0/28", &[AllowedUse::LoadBalancer]).await;
        cluster
    }

    async fn pool(&self, name: &str, cidr: &str, uses: &[AllowedUse]) {
        let size = if uses.is_empty() { 28 } else { 30 };
        let spec = IpPoolSpec {
            allowed_uses: uses.to_vec(),
            block_size_raw: Some(size),
            ..IpPoolSpec::new(cidr.parse().unwrap())
        };
        self.store.put_as(&Resource::new(ObjectMeta::named(name), spec), Expect::Any).await.unwrap();
    }

    async fn node(&self, name: &str) {
        let node = Resource::new(ObjectMeta::named(name), NodeSpec::default());
        self.store.put_as(&node, Expect::Any).await.unwrap();
    }

    async fn delete(&self, kind: Kind, name: &str) {
        let namespace = kind.namespaced().then_some("shop");
        // It may be gone already.
        let _ = self.store.delete(&Key::new(kind, namespace, name), Expect::Any).await;
    }

    async fn put(&self, kind: Kind, name: &str, mut value: Value) {
        let (api, written) = kind.written();
        value["apiVersion"] = api.into();
        value["kind"] = written.into();
        let namespace = kind.namespaced().then_some("shop");
        self.store.put(&Key::new(kind, namespace, name), value, Expect::Any).await.unwrap();
    }

    /// A pod with an address; `known`: also an endpoint.
    async fn pod(&self, node: &str, name: &str, known: bool) -> Option<IpAddr> {
        let ip = self.address(node, name, &format!("net.{name}"), &[]).await?;
        if known {
            self.endpoint(node, name, ip).await;
        }
        Some(ip)
    }

    async fn address(&self, node: &str, pod: &str, handle: &str, more: &[(&str, &str)]) -> Option<IpAddr> {
        let view = View::load(&*self.store, node).await.unwrap();
        let mut a = BlockAllocator::new(Arc::clone(&self.store), node, Arc::new(NoPause));
        let attributes =
            [("node", node), ("namespace", "shop"), ("pod", pod)].into_iter().chain(more.iter().copied());
        let attributes = attributes.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let owner = Owner { handle: handle.to_owned(), attributes };
        let request = AssignRequest::for_workload(owner, Count::any(1), Count::default());
        Some(a.assign(&request, &view, self.now).await.unwrap().addresses.first()?.ip)
    }

    async fn endpoint(&self, node: &str, name: &str, ip: IpAddr) {
        let spec = WorkloadEndpointSpec {
            orchestrator: "k8s".into(),
            node: node.into(),
            pod: name.into(),
            endpoint: "eth0".into(),
            interface_name: "cali0".into(),
            ip_networks: vec![ip.into()],
            ..WorkloadEndpointSpec::default()
        };
        let meta = ObjectMeta { namespace: Some("shop".into()), ..ObjectMeta::named(name) };
        self.store.put_as(&Resource::new(meta, spec), Expect::Any).await.unwrap();
    }

    async fn service(&self, name: &str, annotations: Value, spec: Value) {
        let mut value = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "annotations": annotations},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1"}});
        value["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        // Whoever writes a service leaves its status alone.
        if let Ok(old) = self.store.get(&Key::new(Kind::Service, Some("shop"), name)).await
            && let Some(status) = old.value.get("status")
        {
            value["status"] = status.clone();
        }
        self.put(Kind::Service, name, value).await;
    }

    async fn addresses(&self, service: &str) -> Vec<String> {
        let found = self.store.get(&Key::new(Kind::Service, Some("shop"), service)).await.unwrap();
        let of = found.value.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).cloned();
        of.into_iter().flatten().filter_map(|i| Some(i["ip"].as_str()?.to_owned())).collect()
    }

    async fn facts(&self) -> Facts {
        let kinds: Vec<Kind> = KINDS.into_iter().chain(POLICY_KINDS).collect();
        let facts = Facts::read(self.store.list(&kinds).await.unwrap().entries);
        Facts { kubernetes: self.kubernetes.clone(), ..facts }
    }

    async fn plan(&mut self) -> Plan {
        let facts = self.facts().await;
        self.planner.plan(&facts, self.now)
    }

    /// Plans and acts until nothing is left to do now. The lines of what was done.
    async fn work(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        for _ in 0..10 {
            let plan = self.plan().await;
            let mut idle = true;
            for Planned { action, .. } in &plan.actions {
                match self.actor.perform(action).await {
                    Ok(Outcome::Done) => {
                        idle = false;
                        done.push(action.to_string());
                    }
                    Ok(Outcome::Outdated) => idle = false,
                    Err(_) => {}
                }
            }
            if idle {
                return done;
            }
        }
        panic!("it does not come to rest: {done:#?}");
    }

    /// Time passes, with looks on the way so that what is wrong is seen to be so.
    async fn pass(&mut self, seconds: u64) -> Vec<String> {
        let mut done = self.work().await;
        self.now = Now(self.now.0 + seconds * 1_000_000_000);
        done.extend(self.work().await);
        done
    }
}

use brindle_config_core::Kind;

#[tokio::test]
async fn leaked_addresses_go_after_their_grace_period_and_live_ones_never() {
    let mut c = Cluster::new().await;
    c.node("a").await;
    let live = c.pod("a", "live", true).await.unwrap();
    let leaked = c.pod("a", "leaked", false).await.unwrap();
    assert_eq!(c.pass(GRACE - 1).await, [] as [String; 0]);
    let waiting = c.plan().await.waiting;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(c.pass(1).await, [format!("release {leaked} of shop/leaked (handle net.leaked)")]);
    assert!(Blocks::read(&c.facts().await.entries).allocations().any(|(_, a)| a.ip == live));

    // An endpoint that comes late saves its address, and time begins anew when it goes.
    let late = c.pod("a", "late", false).await.unwrap();
    c.pass(GRACE - 1).await;
    c.endpoint("a", "late", late).await;
    assert_eq!(c.pass(GRACE).await, [] as [String; 0]);
    c.delete(Kind::WorkloadEndpoint, "late").await;
    assert_eq!(c.pass(GRACE - 1).await, [] as [String; 0]);
    assert_eq!(c.pass(1).await.len(), 1);
    assert_eq!(audit(&c.facts().await.entries), []);
}

#[tokio::test]
async fn addresses_of_another_plugins_interface_stay_until_pod_and_node_are_gone() {
    let mut c = Cluster::new().await;
    for node in ["a", "b"] {
        c.node(node).await;
    }
    let foreign = [(FOREIGN, "true")];
    // The second interface of a pod with an endpoint, and a pod whose only interface is macvlan.
    c.pod("b", "two", true).await.unwrap();
    let second = c.address("b", "two", "macvlan.two.net1", &foreign).await.unwrap();
    let only = c.address("b", "one", "macvlan.one", &foreign).await.unwrap();
    assert_eq!(c.pass(100 * GRACE).await, [] as [String; 0], "no endpoint ever has them");
    c.delete(Kind::Node, "b").await;
    c.pass(GRACE).await;
    let held = |facts: &Facts, ip| facts.blocks.allocations().any(|(_, a)| a.ip == ip);
    assert!(held(&c.facts().await, second), "its node is not to be seen, but the pod lives");
    c.delete(Kind::WorkloadEndpoint, "two").await;
    c.pass(GRACE).await;
    let facts = c.facts().await;
    assert!(!held(&facts, second) && !held(&facts, only), "pod and node are gone");
}

#[tokio::test]
async fn what_a_node_left_is_cleaned_up_but_not_while_it_has_endpoints() {
    let mut c = Cluster::new().await;
    c.node("stays").await;
    c.node("goes").await;
    c.pod("stays", "p", true).await.unwrap();
    c.pod("goes", "q", true).await.unwrap();
    for kind in [Kind::BgpConfiguration, Kind::FelixConfiguration] {
        for node in ["goes", "stays"] {
            let name = format!("node.{node}");
            c.put(kind, &name, json!({"metadata": {"name": name}, "spec": {}})).await;
        }
    }
    let peer = json!({"metadata": {"name": "tor"}, "spec": {"node": "goes", "peerIP": "192.0.2.1", "asNumber": 64512}});
    c.put(Kind::BgpPeer, "tor", peer).await;
    c.delete(Kind::Node, "goes").await;
    assert_eq!(c.pass(120).await, [] as [String; 0], "an endpoint is left");
    assert!(c.plan().await.problems.iter().any(|p| p.contains("no Node resource, but 1 endpoints")));
    c.delete(Kind::WorkloadEndpoint, "q").await;
    let done = c.pass(0).await;
    assert_eq!(
        done,
        [
            "delete BGPConfiguration(node.goes)",
            "delete FelixConfiguration(node.goes)",
            "give up the blocks of node goes"
        ]
    );
    let problems = c.plan().await.problems;
    assert!(problems.iter().any(|p| p.starts_with("BGPPeer(tor): names node goes")), "{problems:?}");
    assert_eq!(c.pass(GRACE).await.len(), 1, "its address");
    let facts = c.facts().await;
    assert_eq!(audit(&facts.entries), []);
    assert!(facts.blocks.iter().all(|b| b.host() == Some("stays")));
    assert_eq!(c.plan().await.problems, [] as [String; 0], "nothing says any more that it ever was");

    // Endpoints that outlive even the long grace period go, and then the rest.
    c.node("again").await;
    c.pod("again", "r", true).await.unwrap();
    c.delete(Kind::Node, "again").await;
    c.pass(60).await;
    let done = c.pass(GRACE).await;
    assert!(done[0].starts_with("delete WorkloadEndpoint(shop/r)"), "{done:?}");
}

#[tokio::test]
async fn without_nodes_or_with_a_locked_datastore_nothing_is_judged() {
    let mut c = Cluster::new().await;
    c.pod("a", "leaked", false).await.unwrap();
    assert_eq!(c.pass(2 * GRACE).await, [] as [String; 0]);
    assert!(c.plan().await.problems.iter().any(|p| p.contains("no Node at all")));
    c.node("a").await;
    let locked = json!({"metadata": {"name": "default"}, "spec": {"datastoreReady": false}});
    c.put(Kind::ClusterInformation, "default", locked).await;
    c.service("web", json!({}), json!({})).await;
    assert_eq!(c.pass(2 * GRACE).await, [] as [String; 0]);
    assert_eq!(
        c.plan().await.problems,
        ["ClusterInformation(default): datastoreReady is false; nothing is changed"]
    );
    c.delete(Kind::ClusterInformation, "default").await;
    assert!(!c.pass(GRACE).await.is_empty());
}

#[tokio::test]
async fn an_endpoint_that_does_not_read_speaks_for_every_address() {
    let mut c = Cluster::new().await;
    c.node("a").await;
    c.pod("a", "leaked", false).await.unwrap();
    c.put(Kind::WorkloadEndpoint, "bad", json!({"metadata": {"name": "bad"}, "spec": {"ipNetworks": 5}}))
        .await;
    assert_eq!(c.pass(2 * GRACE).await, [] as [String; 0]);
    assert!(c.plan().await.problems.iter().any(|p| p.contains("WorkloadEndpoint(shop/bad)")));
}

#[tokio::test]
async fn claims_that_stopped_halfway_are_finished_or_undone() {
    let mut c = Cluster::new().await;
    c.node("a").await;
    c.pod("a", "p", true).await.unwrap();
    let name = c.facts().await.of(Kind::BlockAffinity).next().unwrap().key.name.clone();
    let found = c.store.get_as::<BlockAffinitySpec>(None, &name).await.unwrap().resource;
    for state in ["pending", "pendingDeletion"] {
        let mut half = serde_json::to_value(&found).unwrap();
        half["spec"]["state"] = state.into();
        c.put(Kind::BlockAffinity, &name, half).await;
        assert_eq!(c.pass(59).await, [] as [String; 0], "{state}");
        assert_eq!(c.pass(1).await, ["repair the claims of a"], "{state}");
        assert_eq!(audit(&c.facts().await.entries), [], "{state}");
    }
    c.delete(Kind::BlockAffinity, &name).await;
    assert_eq!(c.pass(60).await, ["repair the claims of a"]);
    let lonely = json!({"metadata": {"name": "a-10-0-0-240-28"}, "spec": {"node": "a", "cidr": "10.0.0.240/28",
        "state": "confirmed", "type": "host"}});
    c.put(Kind::BlockAffinity, "a-10-0-0-240-28", lonely).await;
    assert_eq!(c.pass(60).await, ["repair the claims of a"]);
    assert_eq!(audit(&c.facts().await.entries), []);
    assert_eq!(c.facts().await.of(Kind::BlockAffinity).count(), 1);
}

#[tokio::test]
async fn records_of_handles_that_hold_nothing_go() {
    let mut c = Cluster::new().await;
    c.node("a").await;
    c.pod("a", "p", true).await.unwrap();
    let orphan = IpamHandleSpec {
        handle_id: "net.orphan".into(),
        block: BTreeMap::from([("10.0.0.0/28".to_owned(), 1)]),
        ..IpamHandleSpec::default()
    };
    c.store.put_as(&Resource::new(ObjectMeta::named("net.orphan"), orphan), Expect::Any).await.unwrap();
    assert_eq!(c.pass(GRACE - 1).await, [] as [String; 0]);
    assert_eq!(c.pass(1).await, ["delete the record of handle net.orphan"]);
    assert_eq!(c.facts().await.of(Kind::IpamHandle).count(), 1);
}

#[tokio::test]
async fn services_get_what_they_ask_for_and_give_it_back() {
    let mut c = Cluster::new().await;
    c.service("web", json!({}), json!({})).await;
    c.service("theirs", json!({}), json!({"loadBalancerClass": "example.org/metal"})).await;
    c.service("plain", json!({}), json!({"type": "ClusterIP"})).await;
    c.work().await;
    let first = c.addresses("web").await;
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(c.addresses("theirs").await.is_empty() && c.addresses("plain").await.is_empty());
    assert_eq!(c.work().await, [] as [String; 0], "it keeps it");

    // Another address, asked for; then that of another pool; then whichever.
    c.service("web", json!({"projectcalico.org/loadBalancerIPs": "[\"198.51.100.9\"]"}), json!({})).await;
    c.work().await;
    assert_eq!(c.addresses("web").await, ["198.51.100.9"]);
    c.pool("more", "203.0.113.0/28", &[AllowedUse::LoadBalancer]).await;
    c.service("web", json!({"projectcalico.org/ipv4pools": "[\"more\"]"}), json!({})).await;
    c.work().await;
    assert!(c.addresses("web").await[0].starts_with("203.0.113."));
    c.service("web", json!({}), json!({"loadBalancerIP": "198.51.100.3"})).await;
    c.work().await;
    assert_eq!(c.addresses("web").await, ["198.51.100.3"]);

    // Two that want the same one: the second is told.
    c.service("twin", json!({}), json!({"loadBalancerIP": "198.51.100.3"})).await;
    let plan = c.plan().await;
    let bind = plan.actions.iter().find(|p| matches!(p.action, Action::Bind { .. })).unwrap();
    let error = c.actor.perform(&bind.action).await.unwrap_err().to_string();
    assert!(error.starts_with("198.51.100.3 is already assigned to handle lb-"), "{error}");

    // Nonsense is named and changes nothing.
    c.service("web", json!({"projectcalico.org/ipv4pools": "more"}), json!({})).await;
    assert_eq!(c.work().await, [] as [String; 0]);
    let problems = c.plan().await.problems;
    assert!(problems.iter().any(|p| p.starts_with("Service(shop/web): annotation")), "{problems:?}");
    assert_eq!(c.addresses("web").await, ["198.51.100.3"]);

    // No load balancer any more; then gone altogether: everything comes back.
    c.service("web", json!({}), json!({"type": "ClusterIP"})).await;
    c.work().await;
    assert_eq!(c.addresses("twin").await, ["198.51.100.3"], "free for the one that waits");
    c.delete(Kind::Service, "twin").await;
    assert_eq!(c.work().await.len(), 1);
    let facts = c.facts().await;
    assert_eq!(facts.blocks.allocations().count(), 0);
    assert_eq!(facts.of(Kind::IpamHandle).count(), 0);
}

#[tokio::test]
async fn a_service_made_anew_does_not_inherit_and_families_are_served_apart() {
    let mut c = Cluster::new().await;
    let six = IpPoolSpec {
        allowed_uses: vec![AllowedUse::LoadBalancer],
        block_size_raw: Some(126),
        ..IpPoolSpec::new("2001:db8::/124".parse().unwrap())
    };
    c.store.put_as(&Resource::new(ObjectMeta::named("six"), six), Expect::Any).await.unwrap();
    let dual = json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"});
    c.service("web", json!({}), dual).await;
    c.work().await;
    let got = c.addresses("web").await;
    assert!(got[0].starts_with("2001:db8:") && got[1].starts_with("198.51.100."), "{got:?}");
    c.service("web", json!({}), json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"})).await;
    c.work().await;
    assert_eq!(c.addresses("web").await, got[..1]);

    let key = Key::new(Kind::Service, Some("shop"), "web");
    let mut other = (*c.store.get(&key).await.unwrap().value).clone();
    other["metadata"]["uid"] = "another".into();
    c.put(Kind::Service, "web", other).await;
    c.work().await;
    let handles: Vec<String> = c.facts().await.of(Kind::IpamHandle).map(|e| e.key.name.clone()).collect();
    assert_eq!(handles.len(), 1, "{handles:?}");
    assert_eq!(c.addresses("web").await.len(), 1);
}

#[tokio::test]
async fn members_of_the_status_that_others_wrote_stay() {
    let mut c = Cluster::new().await;
    c.service("web", json!({}), json!({})).await;
    c.work().await;
    let key = Key::new(Kind::Service, Some("shop"), "web");
    let mut value = (*c.store.get(&key).await.unwrap().value).clone();
    value["status"]["loadBalancer"]["ingress"][0]["ipMode"] = "VIP".into();
    value["status"]["conditions"] = json!([]);
    c.put(Kind::Service, "web", value.clone()).await;
    assert_eq!(c.work().await, [] as [String; 0]);
    assert_eq!(c.store.get(&key).await.unwrap().value["status"], value["status"]);
}

#[tokio::test]
async fn policies_get_their_new_names_once() {
    let mut c = Cluster::new().await;
    let policy = |order: u64, tier: Option<&str>| {
        let mut value = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
            "metadata": {"name": "", "uid": "u", "labels": {"a": "b"}}, "spec": {"order": order}});
        if let Some(tier) = tier {
            value["spec"]["tier"] = tier.into();
        }
        value
    };
    for (name, order, tier) in [
        ("default.moves", 1, Some("default")),
        ("default.copied", 2, None),
        ("copied", 2, Some("default")),
        ("default.differs", 3, None),
        ("differs", 4, None),
        ("security.stays", 5, Some("security")),
        ("default.other", 6, Some("other")),
    ] {
        let mut value = policy(order, tier);
        value["metadata"]["name"] = name.into();
        c.put(Kind::GlobalNetworkPolicy, name, value).await;
    }
    let done = c.work().await;
    assert_eq!(
        done,
        ["delete GlobalNetworkPolicy(default.copied)", "store GlobalNetworkPolicy(default.moves) as moves"]
    );
    let names: Vec<String> =
        c.facts().await.of(Kind::GlobalNetworkPolicy).map(|e| e.key.name.clone()).collect();
    assert_eq!(names, ["copied", "default.differs", "default.other", "differs", "moves", "security.stays"]);
    let moved = c.store.get(&Key::new(Kind::GlobalNetworkPolicy, None, "moves")).await.unwrap().value;
    assert_eq!(moved["metadata"], json!({"name": "moves", "labels": {"a": "b"}}));
    let problems = c.plan().await.problems;
    assert!(problems.iter().any(|p| p.contains("default.differs") && p.contains("differ")), "{problems:?}");
}

/// What may happen to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Node(u8, bool),
    Pod(u8),
    /// A pod ends as it should, or its endpoint just vanishes.
    End(u8, bool),
    Service(u8, u8),
    ServiceGone(u8),
    Orphan(u8),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        2 => (0u8..3, any::<bool>()).prop_map(|(n, there)| Event::Node(n, there)),
        5 => (0u8..3).prop_map(Event::Pod),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(p, tidy)| Event::End(p, tidy)),
        3 => (0u8..5, 0u8..4).prop_map(|(s, how)| Event::Service(s, how)),
        1 => (0u8..5).prop_map(Event::ServiceGone),
        1 => (0u8..3).prop_map(Event::Orphan),
        3 => (0u64..1200).prop_map(Event::Pass),
    ];
    prop::collection::vec(one, 1..40)
}

/// The pods there are: name to address.
type Pods = BTreeMap<String, IpAddr>;

/// `nth`: its own number, for no container is ever made twice.
async fn happen(c: &mut Cluster, pods: &mut Pods, nth: usize, event: Event) {
    match event {
        Event::Node(n, true) => c.node(&format!("n{n}")).await,
        Event::Node(n, false) => c.delete(Kind::Node, &format!("n{n}")).await,
        Event::Pod(n) => {
            let name = format!("p{nth}");
            if let Some(ip) = c.pod(&format!("n{n}"), &name, true).await {
                pods.insert(name, ip);
            }
        }
        Event::End(which, tidy) => {
            let at = usize::from(which).checked_rem(pods.len()).unwrap_or(0);
            let Some(name) = pods.keys().nth(at).cloned() else { return };
            pods.remove(&name);
            c.delete(Kind::WorkloadEndpoint, &name).await;
            if tidy {
                let view = View::load(&*c.store, "").await.unwrap();
                let mut a = BlockAllocator::new(Arc::clone(&c.store), "", Arc::new(NoPause));
                a.release_handle(&format!("net.{name}"), &view, c.now).await.unwrap();
            }
        }
        Event::Service(s, how) => {
            let asks = json!({"projectcalico.org/loadBalancerIPs": format!("[\"198.51.100.{s}\"]")});
            let (annotations, spec) = match how {
                0 => (json!({}), json!({})),
                1 => (asks, json!({})),
                2 => (json!({}), json!({"type": "NodePort"})),
                _ => (json!({}), json!({"loadBalancerClass": "example.org/other"})),
            };
            c.service(&format!("s{s}"), annotations, spec).await;
        }
        Event::ServiceGone(s) => c.delete(Kind::Service, &format!("s{s}")).await,
        Event::Orphan(n) => {
            let spec = IpamHandleSpec {
                handle_id: format!("net.o{n}"),
                block: BTreeMap::from([("10.0.0.0/28".to_owned(), 1)]),
                ..IpamHandleSpec::default()
            };
            let record = Resource::new(ObjectMeta::named(format!("net.o{n}")), spec);
            c.store.put_as(&record, Expect::Any).await.unwrap();
        }
        Event::Pass(seconds) => drop(c.pass(seconds).await),
    }
}

/// Pods whose endpoint the cluster still has: a node that stays away long enough loses its endpoints.
async fn living(c: &Cluster, pods: &mut Pods) {
    let there: BTreeSet<String> =
        c.facts().await.of(Kind::WorkloadEndpoint).map(|e| e.key.name.clone()).collect();
    pods.retain(|name, _| there.contains(name));
}

fn check_living(facts: &Facts, pods: &Pods) -> Result<(), TestCaseError> {
    for (name, ip) in pods {
        let held =
            facts.blocks.of(*ip).and_then(|b| b.allocation(*ip)).and_then(|a| a.handle().map(str::to_owned));
        prop_assert_eq!(held, Some(format!("net.{name}")), "{} is live", ip);
    }
    Ok(())
}

async fn live_through(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut c = Cluster::new().await;
    c.node("n9").await;
    let mut pods = Pods::new();
    for (nth, event) in events.into_iter().enumerate() {
        happen(&mut c, &mut pods, nth, event).await;
        living(&c, &mut pods).await;
        check_living(&c.facts().await, &pods)?;
    }
    // Nothing more happens.
    for _ in 0..4 {
        c.pass(GRACE).await;
        living(&c, &mut pods).await;
        check_living(&c.facts().await, &pods)?;
    }
    prop_assert_eq!(c.pass(GRACE).await, [] as [String; 0], "at rest");
    let facts = c.facts().await;
    prop_assert_eq!(audit(&facts.entries), []);
    let mut of_services = BTreeSet::new();
    for e in facts.of(Kind::Service) {
        let service: Resource<brindle_config_core::service::ServiceSpec> =
            serde_json::from_value((*e.value).clone()).unwrap();
        let status = ServiceStatus::of(&service.extra).unwrap();
        let ours = service.spec.service_type == "LoadBalancer" && service.spec.load_balancer_class.is_none();
        let ips: Vec<IpAddr> = status.addresses().collect();
        if ours {
            // Somebody else may have the very address it asks for.
            let asks = !service.metadata.annotations.is_empty();
            prop_assert!(ips.len() == 1 || asks && ips.is_empty(), "{}: {:?}", e.key, service);
        }
        for ip in ips {
            if ours {
                prop_assert!(of_services.insert(ip), "{} twice", ip);
            }
        }
    }
    // Every address in use is a pod's or a service's.
    for (_, a) in facts.blocks.allocations() {
        prop_assert!(
            pods.values().any(|ip| *ip == a.ip) || of_services.contains(&a.ip),
            "{} is nobody's",
            a.ip
        );
    }
    for b in facts.blocks.iter().filter_map(|b| b.host()) {
        prop_assert!(facts.nodes.contains(b), "{} is gone", b);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_live_is_taken_and_in_the_end_nothing_is_left_to_do(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live_through(events))?;
    }
}

#[tokio::test]
async fn a_node_goes_with_that_of_kubernetes_it_says_it_is() {
    let mut c = Cluster::new().await;
    let refer = |name: &str| json!({"metadata": {"name": name}, "spec": {"orchRefs": [{"nodeName": name, "orchestrator": "k8s"}]}});
    for name in ["a", "b"] {
        c.put(Kind::Node, name, refer(name)).await;
    }
    // Of no Kubernetes: a machine beside it.
    c.node("router").await;
    let nodes = async |c: &Cluster| c.facts().await.nodes.into_iter().collect::<Vec<_>>();
    for not_read in [None, Some(BTreeSet::new())] {
        c.kubernetes = not_read;
        c.now = Now(c.now.0 + 61_000_000_000);
        c.work().await;
        assert_eq!(nodes(&c).await, ["a", "b", "router"]);
    }
    c.kubernetes = Some(["a".to_owned(), "c".to_owned()].into());
    assert!(c.work().await.is_empty(), "it may come back");
    c.now = Now(c.now.0 + 61_000_000_000);
    let done = c.work().await;
    assert!(done.iter().any(|d| d.contains("delete Node(b)")), "{done:?}");
    assert_eq!(nodes(&c).await, ["a", "router"]);
}
