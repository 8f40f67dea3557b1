//! What whoever looks after a whole cluster does: addresses of load balancers, blocks of nodes that are gone, records of
//! handles that hold nothing, leaks judged by the store's word alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use brindle_config_core::{
    ObjectMeta, Resource,
    ipam::{AffinityState, BlockAffinitySpec, IpamBlockSpec, IpamHandleSpec},
    pool::{AllowedUse, IpPoolSpec},
    store::StoreExt,
};
use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, NoPause, Now, Owner, View, Wanted,
    audit::audit,
    leak::{Collector, Evidence},
    names::LOAD_BALANCER,
    usage::Blocks,
};

use ipnet::IpNet;

use crate::sim::{SimStore, run};

const NOW: Now = Now(1_795_400_607_000_000_000);

fn allocator(store: &SimStore, owner: &str) -> BlockAllocator {
    BlockAllocator::new(Arc::new(store.clone()), owner, Arc::new(NoPause))
}

fn view(store: &SimStore, node: &str) -> View {
    run(View::load(store, node)).unwrap()
}

fn pod(store: &SimStore, node: &str, name: &str) -> IpAddr {
    let attributes =
        [("node", node), ("namespace", "default"), ("pod", name)].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let owner = Owner { handle: format!("net.{name}"), attributes: attributes.into() };
    let request = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::default());
    run(allocator(store, node).assign(&request, &view(store, node), NOW)).unwrap().addresses[0].ip
}

fn balancer(store: &SimStore, handle: &str, pools: &[&str]) -> Vec<IpAddr> {
    let request = AssignRequest {
        owner: Owner { handle: handle.into(), attributes: BTreeMap::new() },
        v4: Wanted { count: 1, pools: pools.iter().map(|p| (*p).to_owned()).collect() },
        v6: Wanted::default(),
        intended_use: AllowedUse::LoadBalancer,
        namespace_labels: None,
        max_blocks: u32::MAX,
    };
    let given =
        run(allocator(store, LOAD_BALANCER).assign(&request, &view(store, "load-balancer"), NOW)).unwrap();
    given.addresses.iter().map(|a| a.ip).collect()
}

/// Names of the block of four addresses around one, and of its affinity.
fn names_around(ip: IpAddr) -> (String, String) {
    let block = IpNet::new(ip, 30).unwrap().trunc().to_string().replace(['.', '/'], "-");
    (block.clone(), format!("load-balancer-{block}"))
}

fn with_balancer_pool() -> SimStore {
    let store = SimStore::with_pool("10.0.0.0/24", 26);
    let spec = IpPoolSpec {
        allowed_uses: vec![AllowedUse::LoadBalancer],
        block_size_raw: Some(30),
        ..IpPoolSpec::new("198.51.100.0/29".parse().unwrap())
    };
    store.insert(Resource::new(ObjectMeta::named("balancers"), spec));
    store
}

#[test]
fn load_balancer_addresses_have_an_owner_that_is_no_node() {
    let store = with_balancer_pool();
    pod(&store, "load-balancer", "a-node-of-that-name");
    let ips = balancer(&store, "lb-a", &[]);
    let (block_name, affinity_name) = names_around(ips[0]);
    let block = run(store.get_as::<IpamBlockSpec>(None, &block_name)).unwrap().resource.spec;
    assert_eq!(block.affinity.as_deref(), Some("virtual:load-balancer"));
    let affinity = run(store.get_as::<BlockAffinitySpec>(None, &affinity_name)).unwrap().resource;
    assert_eq!(
        (affinity.spec.affinity_type.as_str(), affinity.spec.node.as_str()),
        ("virtual", "load-balancer")
    );
    assert_eq!(affinity.metadata.labels["projectcalico.org/affinity-type"], "virtual");
    assert_eq!(audit(&store.everything()), []);

    // The node of the same name has its own block and keeps its hands off this one, empty or not.
    let freed =
        run(allocator(&store, LOAD_BALANCER).release_handle("lb-a", &view(&store, "x"), NOW)).unwrap();
    assert_eq!(freed, ips);
    run(allocator(&store, "load-balancer").reload(&view(&store, "load-balancer"))).unwrap();
    let block = run(store.get_as::<IpamBlockSpec>(None, &block_name)).unwrap().resource.spec;
    assert_eq!(block.affinity.as_deref(), Some("virtual:load-balancer"), "empty, and still the balancer's");

    // Every address of the pool, and then no more; pools by name.
    let all: BTreeSet<IpAddr> =
        (0..8).flat_map(|n| balancer(&store, &format!("lb-{n}"), &["balancers"])).collect();
    assert_eq!(all.len(), 8);
    assert_eq!(balancer(&store, "lb-9", &[]), Vec::<IpAddr>::new());
    assert_eq!(balancer(&store, "lb-9", &["pool-10-0-0-0-24"]), Vec::<IpAddr>::new(), "a pool for pods");
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn blocks_of_a_node_that_is_gone_are_given_up() {
    let store = SimStore::with_pool("10.0.0.0/24", 26);
    let kept = pod(&store, "gone", "a");
    pod(&store, "stays", "b");
    let given = run(allocator(&store, "gone").give_up()).unwrap();
    assert_eq!(given.len(), 1);
    let entries = store.everything();
    let blocks = Blocks::read(&entries);
    let block = blocks.of(kept).expect("the address is still in use");
    assert_eq!((block.owner(), block.is_empty()), (None, false));
    assert!(blocks.iter().any(|b| b.owner() == Some("stays")));
    assert_eq!(audit(&entries), []);
    // The last address goes, and with it the block.
    run(allocator(&store, "stays").release_handle("net.a", &view(&store, "stays"), NOW)).unwrap();
    assert!(Blocks::read(&store.everything()).of(kept).is_none());
    assert_eq!(run(allocator(&store, "gone").give_up()).unwrap(), [], "nothing is left to give up");
}

#[test]
fn only_handles_that_hold_nothing_are_forgotten() {
    let store = SimStore::with_pool("10.0.0.0/24", 26);
    pod(&store, "n", "live");
    let orphan = IpamHandleSpec {
        handle_id: "net.orphan".into(),
        block: BTreeMap::from([("10.0.0.0/26".to_owned(), 1), ("10.9.0.0/26".to_owned(), 2)]),
        ..IpamHandleSpec::default()
    };
    store.insert(Resource::new(ObjectMeta::named("net.orphan"), orphan));
    let mut a = allocator(&store, "controllers");
    assert!(!run(a.forget_empty_handle("net.live")).unwrap());
    assert!(run(a.forget_empty_handle("net.orphan")).unwrap());
    assert!(run(a.forget_empty_handle("net.never")).unwrap(), "gone already");
    assert!(run(store.get_as::<IpamHandleSpec>(None, "net.orphan")).is_err());
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn for_a_cluster_the_stores_word_counts() {
    let store = with_balancer_pool();
    let (live, dead, lost) =
        (pod(&store, "a", "live"), pod(&store, "a", "dead"), pod(&store, "gone", "lost"));
    balancer(&store, "lb-a", &[]);
    let by_hand =
        Owner { handle: "by-hand".into(), attributes: BTreeMap::from([("node".to_owned(), "a".to_owned())]) };
    let request = AssignRequest::for_workload(by_hand, Wanted::any(1), Wanted::default());
    run(allocator(&store, "a").assign(&request, &view(&store, "a"), NOW)).unwrap();
    let evidence = Evidence {
        cluster: true,
        nodes: Some(["a".to_owned()].into()),
        endpoints: Some(BTreeMap::from([(live, BTreeSet::from(["other.handle".to_owned()]))])),
        ..Evidence::default()
    };
    let mut collector = Collector::default();
    let blocks = Blocks::read(&store.everything());
    let first = collector.look(&blocks, &evidence, 60, NOW);
    assert_eq!((first.leaks.len(), first.waiting.len(), first.unknown.len()), (0, 2, 0));
    let then = collector.look(&blocks, &evidence, 60, Now(NOW.0 + 60_000_000_000));
    let found: Vec<(IpAddr, &str)> = then.leaks.iter().map(|l| (l.releases[0].ip, l.why)).collect();
    assert_eq!(found, [(dead, "no endpoint has it"), (lost, "its node is gone")]);
    let blind = Evidence { endpoints: None, ..evidence };
    assert!(Collector::default().look(&blocks, &blind, 0, NOW).leaks.is_empty(), "unheard is not silent");
}

#[test]
fn a_half_made_claim_of_the_balancer_heals() {
    let store = with_balancer_pool();
    let (_, name) = names_around(balancer(&store, "lb-a", &[])[0]);
    let mut affinity = run(store.get_as::<BlockAffinitySpec>(None, &name)).unwrap().resource;
    affinity.spec.state = AffinityState::Pending;
    store.insert(affinity);
    run(allocator(&store, LOAD_BALANCER).reload(&view(&store, "load-balancer"))).unwrap();
    let healed = run(store.get_as::<BlockAffinitySpec>(None, &name)).unwrap().resource.spec;
    assert_eq!(healed.state, AffinityState::Confirmed);
}
