//! What an ADD costs the store, counted call by call.

use std::{collections::BTreeMap, sync::Arc};

use brindle_config_core::Kind;
use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, NoPause, Now, Owner, View, Wanted, block::Block, net::BlockWalk,
};

use crate::sim::{SimStore, run};

const NOW: Now = Now(1_795_400_607_000_000_000);

fn add(a: &mut BlockAllocator, store: &SimStore, n: usize) {
    let owner =
        Owner { handle: format!("net.c{n}"), attributes: BTreeMap::from([("node".into(), "n0".into())]) };
    let view = run(View::load(store, "n0")).unwrap();
    let request = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::default());
    let given = run(a.assign(&request, &view, NOW)).unwrap();
    assert_eq!(given.addresses.len(), 1, "{:?}", given.refusal());
}

fn of_ipam(calls: &BTreeMap<(&'static str, Kind), u64>) -> Vec<(&'static str, Kind, u64)> {
    let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
    calls.iter().filter(|((_, k), _)| kinds.contains(k)).map(|((w, k), n)| (*w, *k, *n)).collect()
}

#[test]
fn a_warm_add_is_one_compare_and_swap_beside_the_creation_of_its_handle() {
    let store = SimStore::with_pool("10.0.0.0/16", 26);
    let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
    add(&mut a, &store, 0);
    store.calls();
    add(&mut a, &store, 1);
    assert_eq!(
        of_ipam(&store.calls()),
        [("create", Kind::IpamHandle, 1), ("swap", Kind::IpamBlock, 1)],
        "no read, no listing"
    );
}

#[test]
fn what_is_foreseen_is_what_is_given_and_costs_the_store_nothing() {
    let store = SimStore::with_pool("10.0.0.0/25", 26);
    let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
    let view = run(View::load(&store, "n0")).unwrap();
    let request = |n: usize, count: usize| {
        let owner = Owner { handle: format!("net.c{n}"), attributes: BTreeMap::new() };
        AssignRequest::for_workload(owner, Wanted::any(count), Wanted::default())
    };
    assert!(a.foresee(&request(0, 1), &view, NOW).is_empty(), "no block yet");
    let mut unforeseen = Vec::new();
    for n in 0..64 {
        let wish = request(n, 1 + n % 3);
        store.calls();
        let foreseen = a.foresee(&wish, &view, NOW);
        assert!(of_ipam(&store.calls()).is_empty());
        let given = run(a.assign(&wish, &view, NOW)).unwrap();
        let ips: Vec<_> = given.addresses.iter().map(|g| g.ip).collect();
        assert_eq!(ips.len(), 1 + n % 3, "{:?}", given.refusal());
        if foreseen.is_empty() {
            unforeseen.push(n);
        } else {
            assert_eq!(foreseen, ips);
        }
        // So that the free ones are not in order.
        if n % 5 == 4 {
            run(a.release_handle(&format!("net.c{}", n - 2), &view, NOW)).unwrap();
        }
    }
    assert_eq!(unforeseen.len(), 2, "once for each block that had to be claimed: {unforeseen:?}");
    let none = AssignRequest { v4: Wanted { count: 1, pools: vec!["nowhere".into()] }, ..request(99, 1) };
    assert!(a.foresee(&none, &view, NOW).is_empty());
}

/// Blocks of other nodes, all in the pool.
fn crowd(blocks: usize) -> SimStore {
    let store = SimStore::with_pool("10.0.0.0/11", 26);
    for cidr in BlockWalk::new("10.0.0.0/11".parse().unwrap(), 26, 0).take(blocks) {
        let block = Block::new(cidr, "other", NOW).unwrap();
        store.put_block(&block);
    }
    store
}

#[test]
fn a_hundred_and_ten_adds_never_list_the_clusters_blocks() {
    let mut costs = Vec::new();
    for blocks in [30, 30_000] {
        let store = crowd(blocks);
        let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
        let view = run(View::load(&store, "n0")).unwrap();
        // What the agent does at its start.
        run(a.reload(&view)).unwrap();
        store.calls();
        for n in 0..110 {
            add(&mut a, &store, n);
        }
        let calls = store.calls();
        assert!(!calls.contains_key(&("list", Kind::IpamBlock)), "{calls:?}");
        assert_eq!(a.own_blocks().count(), 2);
        costs.push(of_ipam(&calls));
    }
    assert_eq!(costs[0], costs[1], "30,000 blocks cost what 30 do");
}

#[test]
fn a_memory_of_the_blocks_that_is_old_costs_a_lost_claim_and_no_address() {
    let store = SimStore::with_pool("10.0.0.0/24", 26);
    let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
    let view = run(View::load(&store, "n0")).unwrap();
    run(a.reload(&view)).unwrap();
    // Three of the four blocks go to another host behind its back.
    let mut other = BlockAllocator::new(Arc::new(store.clone()), "n1", Arc::new(NoPause));
    let owner = Owner { handle: "net.o".into(), attributes: BTreeMap::new() };
    let many = AssignRequest::for_workload(owner, Wanted::any(192), Wanted::default());
    run(other.assign(&many, &view, NOW)).unwrap();
    for n in 0..64 {
        add(&mut a, &store, n);
    }
    assert_eq!(a.own_blocks().count(), 1);
}
