//! The collector against a cluster with a thousand leaks: it finds every one and touches nothing that lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use brindle_config_core::{
    ObjectMeta, Resource,
    node::NodeSpec,
    pool::IpPoolSpec,
    store::{Expect, StoreExt},
};
use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, NoPause, Now, Owner, TunnelKind, View, Wanted,
    audit::{Finding, audit},
    leak::{Collector, Evidence, FOREIGN},
    usage::Blocks,
};

use crate::sim::{Dice, SimStore, run};

const NOW: Now = Now(1_795_400_607_000_000_000);
const GRACE: u64 = 900;

struct World {
    store: SimStore,
    dice: Dice,
    evidence: BTreeMap<String, Evidence>,
    live: BTreeMap<String, Vec<IpAddr>>,
    leaked: BTreeSet<String>,
    n: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let store = SimStore::with_pool("10.0.0.0/20", 26);
        let v6 = IpPoolSpec { block_size_raw: Some(122), ..IpPoolSpec::new("fd00:1::/112".parse().unwrap()) };
        run(store.put_as(&Resource::new(ObjectMeta::named("six"), v6), Expect::Any)).unwrap();
        let nodes: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
        for n in nodes.iter().chain([&"gone".to_owned()]) {
            run(store.put_as(&Resource::new(ObjectMeta::named(n), NodeSpec::default()), Expect::Any))
                .unwrap();
        }
        let evidence = nodes
            .iter()
            .map(|n| {
                let heard = Evidence {
                    cluster: false,
                    node: n.clone(),
                    nodes: Some(nodes.clone()),
                    endpoints: Some(BTreeMap::new()),
                    pods: BTreeSet::new(),
                    attachments: Some(BTreeSet::new()),
                    kernel: Some(BTreeSet::new()),
                };
                (n.clone(), heard)
            })
            .collect();
        Self { store, dice: Dice::new(seed), evidence, live: BTreeMap::new(), leaked: BTreeSet::new(), n: 0 }
    }

    fn allocator(&self, node: &str) -> BlockAllocator {
        BlockAllocator::new(Arc::new(self.store.clone()), node, Arc::new(NoPause))
    }

    /// A pod with one address per family, known to nobody yet.
    fn pod(&mut self, a: &mut BlockAllocator, node: &str) -> (String, Vec<IpAddr>) {
        self.n += 1;
        let handle = format!("net.{node}-{}", self.n);
        let mut attributes = BTreeMap::from([("node".to_owned(), node.to_owned())]);
        if self.dice.percent(80) {
            attributes.insert("namespace".into(), "default".into());
            attributes.insert("pod".into(), format!("p{}", self.n));
        }
        let owner = Owner { handle: handle.clone(), attributes };
        let request = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::any(self.n % 2));
        let view = run(View::load(&self.store, node)).unwrap();
        let given = run(a.assign(&request, &view, NOW)).unwrap();
        assert_eq!(given.refusal(), None);
        (handle, given.addresses.into_iter().map(|a| a.ip).collect())
    }

    /// Makes one to three witnesses know the pod; of a vanished node's only the store is left to speak.
    fn witness(&mut self, node: &str, handle: &str, ips: &[IpAddr]) {
        let which = 1 + self.dice.below(7);
        let gone = !self.evidence.contains_key(node);
        for e in self.evidence.values_mut() {
            if gone || which & 1 != 0 {
                let endpoints = e.endpoints.as_mut().unwrap();
                let ip = ips[self.dice.below(ips.len())];
                endpoints.insert(ip, [handle.to_owned()].into());
            }
            if e.node == node && which & 2 != 0 {
                e.attachments.as_mut().unwrap().insert(handle.to_owned());
            }
            if e.node == node && which & 4 != 0 {
                e.kernel.as_mut().unwrap().insert(ips[self.dice.below(ips.len())]);
            }
        }
    }

    /// All nodes look and collect; returns the handles collected.
    fn collect(&self, collectors: &mut BTreeMap<String, Collector>, now: Now) -> BTreeSet<String> {
        let mut collected = BTreeSet::new();
        for (node, evidence) in &self.evidence {
            let blocks = Blocks::read(&self.store.everything());
            let found = collectors.entry(node.clone()).or_default().look(&blocks, evidence, GRACE, now);
            let mut a = self.allocator(node);
            let view = run(View::load(&self.store, node)).unwrap();
            for leak in found.leaks {
                if leak.twice {
                    run(a.release_handle(&leak.handle, &view, now)).unwrap();
                } else {
                    run(a.release_ips(&leak.releases, &view, now)).unwrap();
                }
                collected.insert(leak.handle);
            }
        }
        collected
    }

    fn lives(&self) {
        let a = self.allocator("a");
        for (handle, ips) in &self.live {
            let held: BTreeSet<IpAddr> = run(a.by_handle(handle)).unwrap().into_iter().collect();
            assert_eq!(held, ips.iter().copied().collect(), "{handle} was touched");
        }
    }
}

#[test]
fn a_thousand_leaks_are_found_and_nothing_live_is_freed() {
    for seed in [1] {
        let mut w = World::new(seed);
        let nodes = ["a", "b", "c", "gone"];
        let mut allocators: Vec<BlockAllocator> = nodes.iter().map(|n| w.allocator(n)).collect();
        for i in 0..1600 {
            // In the middle the pool is cut anew: later blocks have another size.
            if i == 800 {
                let spec = IpPoolSpec {
                    block_size_raw: Some(28),
                    ..IpPoolSpec::new("10.0.0.0/20".parse().unwrap())
                };
                run(w.store.put_as(&Resource::new(ObjectMeta::named("pool"), spec), Expect::Any)).unwrap();
            }
            let at = w.dice.below(nodes.len());
            let (handle, ips) = w.pod(&mut allocators[at], nodes[at]);
            if w.leaked.len() < 1000 && w.dice.percent(64) {
                w.leaked.insert(handle);
            } else {
                w.witness(nodes[at], &handle, &ips);
                w.live.insert(handle, ips);
            }
        }
        while w.leaked.len() < 1000 {
            let at = w.dice.below(nodes.len());
            let (handle, _) = w.pod(&mut allocators[at], nodes[at]);
            w.leaked.insert(handle);
        }
        let tunnel = {
            let view = run(View::load(&w.store, "b")).unwrap();
            run(allocators[1].take_tunnel_address(TunnelKind::Ipip, &[], &view, NOW)).unwrap()
        };
        run(w.store.delete_node("gone"));

        let mut collectors = BTreeMap::new();
        assert_eq!(w.collect(&mut collectors, NOW), BTreeSet::new(), "grace");
        let soon = Now(NOW.0 + 899 * 1_000_000_000);
        assert_eq!(w.collect(&mut collectors, soon), BTreeSet::new(), "grace");
        let late = Now(NOW.0 + 901 * 1_000_000_000);
        assert_eq!(w.collect(&mut collectors, late), w.leaked, "seed {seed}");
        w.lives();
        let a = w.allocator("a");
        for handle in &w.leaked {
            assert!(run(a.by_handle(handle)).unwrap().is_empty(), "{handle} is still there");
        }
        assert_eq!(run(a.by_handle(&TunnelKind::Ipip.handle("b"))).unwrap(), [tunnel]);
        let serious: Vec<Finding> =
            audit(&w.store.everything()).into_iter().filter(Finding::serious).collect();
        assert!(serious.is_empty(), "{serious:?}");
    }
}

#[test]
fn an_address_recorded_twice_loses_the_record_nobody_stands_behind() {
    let mut w = World::new(9);
    let mut a = w.allocator("a");
    let (live, ips) = w.pod(&mut a, "a");
    w.live.insert(live.clone(), ips.clone());
    // A block of another size over the first, as a tool that went wrong leaves it, with the same address in it.
    let spec = IpPoolSpec { block_size_raw: Some(28), ..IpPoolSpec::new("10.0.0.0/20".parse().unwrap()) };
    run(w.store.put_as(&Resource::new(ObjectMeta::named("pool"), spec), Expect::Any)).unwrap();
    let ghost = Owner {
        handle: "net.ghost".into(),
        attributes: BTreeMap::from([("node".to_owned(), "a".to_owned())]),
    };
    w.store.double(ips[0], 28, "a", &ghost, NOW);
    for e in w.evidence.values_mut() {
        e.attachments.as_mut().unwrap().extend((e.node == "a").then(|| live.clone()));
        e.kernel.as_mut().unwrap().insert(ips[0]);
    }
    let mut collectors = BTreeMap::new();
    w.collect(&mut collectors, NOW);
    let late = Now(NOW.0 + 901 * 1_000_000_000);
    assert_eq!(w.collect(&mut collectors, late), ["net.ghost".to_owned()].into());
    w.lives();
    assert!(run(w.allocator("a").by_handle("net.ghost")).unwrap().is_empty());
}

#[test]
fn a_witness_that_cannot_be_heard_spares_everything() {
    for mute in 0..4 {
        let mut w = World::new(3);
        let mut a = w.allocator("a");
        let (handle, _) = w.pod(&mut a, "a");
        let e = w.evidence.get_mut("a").unwrap();
        match mute {
            0 => e.nodes = None,
            1 => e.endpoints = None,
            2 => e.attachments = None,
            _ => e.kernel = None,
        }
        let evidence = e.clone();
        let mut collector = Collector::default();
        for hours in 0..3 {
            let blocks = Blocks::read(&w.store.everything());
            let found = collector.look(&blocks, &evidence, GRACE, Now(NOW.0 + hours * 3_600_000_000_000));
            assert!(found.leaks.is_empty() && found.waiting.is_empty());
            assert!(found.unknown.contains_key(&handle), "{mute}");
        }
    }
}

#[test]
fn a_container_that_comes_back_begins_a_new_grace_period() {
    let mut w = World::new(4);
    let mut a = w.allocator("a");
    let (handle, ips) = w.pod(&mut a, "a");
    let mut collectors = BTreeMap::new();
    w.collect(&mut collectors, NOW);
    // Known for a moment, then forgotten again.
    w.evidence.get_mut("a").unwrap().kernel = Some(ips.into_iter().collect());
    w.collect(&mut collectors, Now(NOW.0 + 600_000_000_000));
    w.evidence.get_mut("a").unwrap().kernel = Some(BTreeSet::new());
    assert_eq!(w.collect(&mut collectors, Now(NOW.0 + 901_000_000_000)), BTreeSet::new());
    assert_eq!(w.collect(&mut collectors, Now(NOW.0 + 1_802_000_000_000)), [handle].into());
}

#[test]
fn an_address_of_another_plugins_interface_goes_only_with_proof() {
    let mut w = World::new(5);
    let mut a = w.allocator("a");
    let mut give = |handle: &str| {
        let attributes = BTreeMap::from([
            ("node".to_owned(), "a".to_owned()),
            ("pod".to_owned(), handle.to_owned()),
            (FOREIGN.to_owned(), "true".to_owned()),
        ]);
        let owner = Owner { handle: handle.to_owned(), attributes };
        let request = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::any(0));
        let view = run(View::load(&w.store, "a")).unwrap();
        assert_eq!(run(a.assign(&request, &view, NOW)).unwrap().refusal(), None);
    };
    give("net.remembered");
    give("net.never-seen");
    let attached = |w: &mut World, all: &[&str]| {
        w.evidence.get_mut("a").unwrap().attachments = Some(all.iter().map(|h| (*h).to_owned()).collect());
    };
    let mut collectors = BTreeMap::new();
    attached(&mut w, &["net.remembered"]);
    assert_eq!(w.collect(&mut collectors, NOW), BTreeSet::new());
    attached(&mut w, &[]);
    let hour = |n: u64| Now(NOW.0 + n * 3_600_000_000_000);
    assert_eq!(w.collect(&mut collectors, hour(1)), BTreeSet::new(), "its grace period begins");
    let evidence = w.evidence["a"].clone();
    let blocks = Blocks::read(&w.store.everything());
    let again = collectors["a"].again().look(&blocks, &evidence, 0, hour(2));
    assert_eq!(again.leaks.len(), 1, "a second look at once agrees: {again:?}");
    assert_eq!(w.collect(&mut collectors, hour(2)), ["net.remembered".to_owned()].into());
    // A runtime that remembers nothing, or an agent that was started since: reported, for ever.
    for days in 1..100 {
        assert_eq!(w.collect(&mut collectors, hour(24 * days)), BTreeSet::new());
    }
    let found = collectors.get_mut("a").unwrap().look(
        &Blocks::read(&w.store.everything()),
        &evidence,
        GRACE,
        hour(3000),
    );
    assert!(found.unknown.contains_key("net.never-seen"), "{found:?}");
    // Nothing is left to ask when its whole node has gone.
    for e in w.evidence.values_mut() {
        assert!(e.nodes.as_mut().unwrap().remove("a"));
    }
    w.evidence.remove("a");
    w.collect(&mut collectors, hour(3001));
    assert_eq!(w.collect(&mut collectors, hour(3002)), ["net.never-seen".to_owned()].into());
}

#[test]
fn what_a_vanished_node_left_is_collected_also_when_the_first_nodes_agent_is_dead() {
    let mut w = World::new(6);
    let mut gone = w.allocator("gone");
    let (handle, _) = w.pod(&mut gone, "gone");
    run(w.store.delete_node("gone"));
    // Its Node is there, its agent is not.
    w.evidence.remove("a");
    let mut collectors = BTreeMap::new();
    let at = |graces: u64| Now(NOW.0 + graces * GRACE * 1_000_000_000);
    for graces in [0, 1] {
        assert_eq!(w.collect(&mut collectors, at(graces)), BTreeSet::new(), "{graces}: it is a's to collect");
    }
    assert_eq!(w.collect(&mut collectors, at(2)), [handle].into(), "b is next");
    assert_eq!(w.collect(&mut collectors, at(3)), BTreeSet::new());
}
