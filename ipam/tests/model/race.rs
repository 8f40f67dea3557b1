//! Many hosts on one store, interleaved at every store call, with crashes and lost answers: no address is ever given
//! twice, none is lost, and what remains can always be cleaned up through the handles.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use crate::sim::{Dice, Life, SimStore, Spawn, interleave, run};
use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, NoPause, Now, Owner, Release, View, Wanted,
    audit::{Finding, audit},
};

const NOW: Now = Now(1_795_400_607_000_000_000);

/// What callers believe they hold: address → handle.
type Ledger = Arc<Mutex<BTreeMap<IpAddr, String>>>;

fn owner(host: &str, handle: &str) -> Owner {
    Owner { handle: handle.into(), attributes: BTreeMap::from([("node".into(), host.into())]) }
}

fn note(ledger: &Ledger, ip: IpAddr, handle: &str, seed: u64) {
    let before = ledger.lock().unwrap().insert(ip, handle.to_owned());
    assert_eq!(before, None, "seed {seed}: {ip} was given to {handle} too");
}

fn forget(ledger: &Ledger, handle: &str) {
    ledger.lock().unwrap().retain(|_, h| h != handle);
}

/// One host: adds and deletes pods as a runtime would, deleting again whatever a crash left unknown.
async fn host(
    name: String,
    life: u32,
    store: SimStore,
    ledger: Ledger,
    mut dice: Dice,
    steps: usize,
    seed: u64,
) {
    let mut a = BlockAllocator::new(Arc::new(store.clone()), name.clone(), Arc::new(NoPause));
    let handle = |n: usize| format!("net.{name}-{n}");
    if life > 0 {
        // The runtime deletes every sandbox whose ADD did not come back.
        for n in 0..8 {
            forget(&ledger, &handle(n));
            let Ok(view) = View::load(&store, &name).await else { continue };
            while a.release_handle(&handle(n), &view, NOW).await.is_err() {}
        }
    }
    for _ in 0..steps {
        let Ok(view) = View::load(&store, &name).await else { continue };
        let h = handle(dice.below(8));
        match dice.below(5) {
            0..=2 => {
                let request = AssignRequest::for_workload(
                    owner(&name, &h),
                    Wanted::any(1 + dice.below(2)),
                    Wanted::default(),
                );
                match a.assign(&request, &view, NOW).await {
                    Ok(given) => {
                        for g in given.addresses {
                            note(&ledger, g.ip, &h, seed);
                        }
                    }
                    Err(_) => {
                        forget(&ledger, &h);
                        while a.release_handle(&h, &view, NOW).await.is_err() {}
                    }
                }
            }
            3 => {
                forget(&ledger, &h);
                while a.release_handle(&h, &view, NOW).await.is_err() {}
            }
            _ => {
                let mine = ledger.lock().unwrap().iter().find(|(_, v)| **v == h).map(|(k, _)| *k);
                let Some(ip) = mine else { continue };
                ledger.lock().unwrap().remove(&ip);
                let release = [Release { ip, handle: Some(h.clone()), sequence: None }];
                if a.release_ips(&release, &view, NOW).await.is_err() {
                    forget(&ledger, &h);
                    while a.release_handle(&h, &view, NOW).await.is_err() {}
                }
            }
        }
    }
}

/// Somebody who deletes records of handles that hold nothing, in the middle of it all.
async fn janitor(store: SimStore, mut dice: Dice, hosts: usize) {
    let mut a = BlockAllocator::new(Arc::new(store), "janitor", Arc::new(NoPause));
    for _ in 0..12 {
        let handle = format!("net.n{}-{}", dice.below(hosts), dice.below(8));
        // A store that fails leaves the record for the next time.
        let _ = a.forget_empty_handle(&handle).await;
    }
}

fn play(seed: u64, hosts: usize, crash: usize, faults: usize) {
    let store = SimStore::with_pool("10.0.0.0/27", 30);
    let mut dice = Dice::new(seed);
    if faults > 0 {
        store.faulty(faults, Dice::new(seed + 1_000_000));
    }
    let ledger = Ledger::default();
    let mut spawns: Vec<Spawn> = (0..hosts)
        .map(|i| -> Spawn {
            let (store, ledger) = (store.clone(), Arc::clone(&ledger));
            Box::new(move |life: u32| -> Life {
                let dice = Dice::new(seed * 31 + i as u64 + u64::from(life) * 7919);
                let steps = if life == 0 { 12 } else { 6 };
                Box::pin(host(format!("n{i}"), life, store.clone(), Arc::clone(&ledger), dice, steps, seed))
            })
        })
        .collect();
    let janitors_store = store.clone();
    spawns.push(Box::new(move |life: u32| -> Life {
        let dice = Dice::new(seed * 37 + u64::from(life));
        Box::pin(janitor(janitors_store.clone(), dice, hosts))
    }));
    interleave(&mut dice, crash, &mut spawns);
    drop(spawns);
    store.sound();

    // Whatever happened, no address in use is unlisted and no two blocks overlap.
    let serious: Vec<Finding> = audit(&store.everything()).into_iter().filter(Finding::serious).collect();
    assert!(serious.is_empty(), "seed {seed}: {serious:?}");

    // What the callers hold is what the store says they hold.
    let entries = store.everything();
    for (ip, handle) in ledger.lock().unwrap().iter() {
        let a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
        assert!(
            run(a.by_handle(handle)).unwrap().contains(ip),
            "seed {seed}: {handle} lost {ip}: {entries:?}"
        );
    }

    // Deleting every pod and reading once leaves tidy records and a free pool.
    for i in 0..hosts {
        let name = format!("n{i}");
        let mut a = BlockAllocator::new(Arc::new(store.clone()), name.clone(), Arc::new(NoPause));
        let view = run(View::load(&store, &name)).unwrap();
        for n in 0..8 {
            run(a.release_handle(&format!("net.n{i}-{n}"), &view, NOW)).unwrap();
        }
        run(a.reload(&view)).unwrap();
    }
    assert_eq!(audit(&store.everything()), [], "seed {seed}");
    let mut a = BlockAllocator::new(Arc::new(store.clone()), "last", Arc::new(NoPause));
    let view = run(View::load(&store, "last")).unwrap();
    let all = AssignRequest::for_workload(owner("last", "all"), Wanted::any(32), Wanted::default());
    let later = Now(NOW.0 + 61_000_000_000);
    assert_eq!(
        run(a.assign(&all, &view, later)).unwrap().addresses.len(),
        32,
        "seed {seed}: addresses leaked"
    );
}

#[test]
fn hosts_that_race_for_a_small_pool_never_share_an_address() {
    for seed in 0..80 {
        play(seed, 2 + (seed % 4) as usize, 0, 0);
    }
}

#[test]
fn a_crash_at_any_point_loses_no_address_and_gives_none_twice() {
    for seed in 0..100 {
        play(seed, 2 + (seed % 3) as usize, 60, 0);
    }
}

#[test]
fn answers_that_get_lost_lose_no_address() {
    for seed in 0..80 {
        play(seed, 3, 20, 10);
    }
}

/// One ADD on a fresh store, stopped after its first n writes, for every n: the address is listed or free.
#[test]
fn every_single_write_of_an_add_may_be_the_last() {
    let whole = {
        let store = SimStore::with_pool("10.0.0.0/28", 30);
        let before = store.writes();
        add_once(&store).unwrap();
        store.writes() - before
    };
    assert!(whole >= 5, "affinity, block, affinity, handle, block: {whole}");
    for n in 1..=whole {
        let store = SimStore::with_pool("10.0.0.0/28", 30);
        let before = store.writes();
        store.fail_from(Some(before + n));
        add_once(&store).unwrap_err();
        store.fail_from(None);
        let findings: Vec<Finding> =
            audit(&store.everything()).into_iter().filter(Finding::serious).collect();
        assert!(findings.is_empty(), "after write {n}: {findings:?}");
        let view = run(View::load(&store, "n0")).unwrap();
        let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
        run(a.reload(&view)).unwrap();
        run(a.release_handle("net.c1", &view, NOW)).unwrap();
        assert_eq!(audit(&store.everything()), [], "after write {n}");
    }
}

fn add_once(store: &SimStore) -> Result<(), brindle_ipam::IpamError> {
    let view = run(View::load(store, "n0")).unwrap();
    let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
    let request = AssignRequest::for_workload(owner("n0", "net.c1"), Wanted::any(1), Wanted::default());
    run(a.assign(&request, &view, NOW)).map(drop)
}

/// A DEL that overtakes its ADD: two processes of one host work on the same handle at once.
#[test]
fn a_release_that_races_the_assignment_of_its_handle_leaves_no_unlisted_address() {
    for seed in 0..150 {
        let store = SimStore::with_pool("10.0.0.0/28", 29);
        add_once(&store).unwrap();
        let work = |release: bool| {
            let store = store.clone();
            Box::new(move |_: u32| -> Life {
                let store = store.clone();
                Box::pin(async move {
                    let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
                    let view = View::load(&store, "n0").await.unwrap();
                    for _ in 0..3 {
                        if release {
                            a.release_handle("net.c1", &view, NOW).await.unwrap();
                        } else {
                            let owner = owner("n0", "net.c1");
                            let request =
                                AssignRequest::for_workload(owner, Wanted::any(1), Wanted::default());
                            a.assign(&request, &view, NOW).await.unwrap();
                        }
                    }
                })
            }) as Spawn
        };
        let mut spawns = vec![work(true), work(false)];
        interleave(&mut Dice::new(seed), 0, &mut spawns);
        let findings: Vec<Finding> =
            audit(&store.everything()).into_iter().filter(Finding::serious).collect();
        assert!(findings.is_empty(), "seed {seed}: {findings:?}");
        let view = run(View::load(&store, "n0")).unwrap();
        let mut a = BlockAllocator::new(Arc::new(store.clone()), "n0", Arc::new(NoPause));
        run(a.release_handle("net.c1", &view, NOW)).unwrap();
        assert_eq!(audit(&store.everything()), [], "seed {seed}");
    }
}
