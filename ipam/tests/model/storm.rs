//! Fifty writers on one store, with conflicts, crashes and lost answers: no address twice, none lost, and a history
//! that is linearizable: for every address the calls that gave and took it can be put in one order in which each takes
//! effect between its call and its answer. 20,000 operations here; BRINDLE_IPAM_OPS says otherwise
//! (`cargo xtask bench ipam` runs a million in release).

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, NoPause, Now, Owner, View, Wanted,
    audit::{Finding, audit},
};

use crate::sim::{Dice, Life, SimStore, Spawn, interleave, run};

const NOW: Now = Now(1_795_400_607_000_000_000);
const WRITERS: usize = 50;
const HANDLES: usize = 6;

/// When a call began and was answered, on the one clock of the run.
#[derive(Clone, Copy, Debug)]
struct Span {
    call: u64,
    answer: u64,
}

/// One holder's time with one address.
#[derive(Debug)]
struct Hold {
    handle: String,
    given: Span,
    /// The answer of a call that crashed never came.
    taken: Option<Span>,
}

#[derive(Default)]
struct History {
    clock: u64,
    ops: u64,
    crashes: u64,
    errors: u64,
    refused: u64,
    holds: BTreeMap<IpAddr, Vec<Hold>>,
    held: BTreeMap<String, Vec<IpAddr>>,
}

type Shared = Arc<Mutex<History>>;

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn gave(&mut self, handle: &str, ips: &[IpAddr], call: u64) {
        let answer = self.tick();
        for ip in ips {
            self.holds.entry(*ip).or_default().push(Hold {
                handle: handle.to_owned(),
                given: Span { call, answer },
                taken: None,
            });
        }
        self.held.entry(handle.to_owned()).or_default().extend(ips);
    }

    /// The handle is being released: from this call on its addresses may go to others.
    fn releasing(&mut self, handle: &str) -> (u64, Vec<IpAddr>) {
        let call = self.tick();
        let ips = self.held.remove(handle).unwrap_or_default();
        for ip in &ips {
            let mine = self.holds.entry(*ip).or_default().iter_mut().rev().find(|h| h.handle == handle);
            if let Some(hold) = mine {
                hold.taken = Some(Span { call, answer: u64::MAX });
            }
        }
        (call, ips)
    }

    fn released(&mut self, handle: &str, (call, ips): (u64, Vec<IpAddr>)) {
        let answer = self.tick();
        for ip in ips {
            let mut holds = self.holds.entry(ip).or_default().iter_mut().rev();
            let taken = holds.find_map(|h| h.taken.as_mut().filter(|t| h.handle == handle && t.call == call));
            if let Some(taken) = taken {
                taken.answer = answer;
            }
        }
    }

    /// Puts the calls on each address in an order: give, take, give, take …, each between its call and its answer.
    fn linearize(&mut self) -> Result<(), String> {
        for (ip, holds) in &mut self.holds {
            holds.sort_by_key(|h| h.given.answer);
            let mut at = 0;
            for (i, h) in holds.iter().enumerate() {
                let given = at.max(h.given.call);
                if given > h.given.answer {
                    return Err(format!(
                        "{ip}: {} got it while another had it: {:?}",
                        h.handle,
                        &holds[..=i]
                    ));
                }
                at = match h.taken {
                    Some(taken) if taken.answer >= given.max(taken.call) => given.max(taken.call),
                    Some(_) => return Err(format!("{ip}: {h:?} was taken before it was given")),
                    None => u64::MAX,
                };
            }
        }
        Ok(())
    }
}

async fn release(a: &mut BlockAllocator, store: &SimStore, name: &str, handle: &str, history: &Shared) {
    let under_way = history.lock().unwrap().releasing(handle);
    loop {
        if let Ok(view) = View::load(store, name).await
            && a.release_handle(handle, &view, NOW).await.is_ok()
        {
            break;
        }
        history.lock().unwrap().errors += 1;
    }
    history.lock().unwrap().released(handle, under_way);
}

async fn writer(
    name: String,
    life: u32,
    store: SimStore,
    history: Shared,
    mut dice: Dice,
    quota: Arc<Mutex<i64>>,
) {
    let mut a = BlockAllocator::new(Arc::new(store.clone()), name.clone(), Arc::new(NoPause));
    let handle = |n: usize| format!("net.{name}-{n}");
    if life > 0 {
        history.lock().unwrap().crashes += 1;
        for n in 0..HANDLES {
            release(&mut a, &store, &name, &handle(n), &history).await;
        }
    }
    loop {
        {
            let mut left = quota.lock().unwrap();
            if *left <= 0 {
                return;
            }
            *left -= 1;
        }
        history.lock().unwrap().ops += 1;
        let h = handle(dice.below(HANDLES));
        if dice.percent(55) {
            let wanted = Wanted::any(1 + dice.below(2));
            let owner =
                Owner { handle: h.clone(), attributes: BTreeMap::from([("node".into(), name.clone())]) };
            let request = AssignRequest::for_workload(owner, wanted, Wanted::default());
            let call = history.lock().unwrap().tick();
            let Ok(view) = View::load(&store, &name).await else { continue };
            match a.assign(&request, &view, NOW).await {
                Ok(given) => {
                    let ips: Vec<IpAddr> = given.addresses.iter().map(|g| g.ip).collect();
                    let mut history = history.lock().unwrap();
                    history.refused += u64::from(given.refusal().is_some());
                    history.gave(&h, &ips, call);
                }
                Err(_) => {
                    history.lock().unwrap().errors += 1;
                    release(&mut a, &store, &name, &h, &history).await;
                }
            }
        } else {
            release(&mut a, &store, &name, &h, &history).await;
        }
    }
}

#[test]
fn fifty_writers_crash_and_conflict_and_the_history_is_linearizable() {
    #[expect(clippy::disallowed_methods, reason = "the size of a run is the caller's, and so is its length")]
    let ops: i64 = std::env::var("BRINDLE_IPAM_OPS").map_or(20_000, |n| n.parse().expect("a number"));
    let store = SimStore::with_pool("10.0.0.0/22", 28);
    let reads = store.reads();
    store.faulty(2, Dice::new(77));
    let history = Shared::default();
    let quota = Arc::new(Mutex::new(ops));
    let mut spawns: Vec<Spawn> = (0..WRITERS)
        .map(|i| -> Spawn {
            let (store, history, quota) = (store.clone(), Arc::clone(&history), Arc::clone(&quota));
            Box::new(move |life: u32| -> Life {
                let dice = Dice::new(1 + i as u64 + u64::from(life) * 7919);
                let name = format!("n{i}");
                Box::pin(writer(name, life, store.clone(), Arc::clone(&history), dice, Arc::clone(&quota)))
            })
        })
        .collect();
    interleave(&mut Dice::new(4242), 1, &mut spawns);
    drop(spawns);
    store.sound();

    let mut history = history.lock().unwrap();
    let serious: Vec<Finding> = audit(&store.everything()).into_iter().filter(Finding::serious).collect();
    assert!(serious.is_empty(), "{serious:?}");
    let linear = history.linearize();
    assert_eq!(linear, Ok(()));
    let given: usize = history.holds.values().map(Vec::len).sum();
    let (writes, conflicts) = (store.writes(), store.conflicts());
    println!("operations             {}", history.ops);
    println!("writers                {WRITERS}");
    println!("addresses given        {given} of a pool of 1024, {} of them used", history.holds.len());
    println!("assignments refused    {} (pool full)", history.refused);
    println!("store reads, writes    {}, {writes}", store.reads() - reads);
    println!("writes that lost       {conflicts}");
    println!("calls answered falsely {}", history.errors);
    println!("writers crashed        {}", history.crashes);
    println!("given twice            0");
    println!("history linearizable   yes ({given} holds)");
    assert!(conflicts > 0 && history.crashes > 0 && history.errors > 0, "nothing was injected");

    // Deleting all that is left leaves an empty pool: nothing was lost.
    for i in 0..WRITERS {
        let name = format!("n{i}");
        let mut a = BlockAllocator::new(Arc::new(store.clone()), name.clone(), Arc::new(NoPause));
        let view = run(View::load(&store, &name)).unwrap();
        for n in 0..HANDLES {
            run(a.release_handle(&format!("net.{name}-{n}"), &view, NOW)).unwrap();
        }
        run(a.reload(&view)).unwrap();
    }
    assert_eq!(audit(&store.everything()), []);
    let mut last = BlockAllocator::new(Arc::new(store.clone()), "last", Arc::new(NoPause));
    let view = run(View::load(&store, "last")).unwrap();
    let owner = Owner { handle: "all".into(), attributes: BTreeMap::new() };
    let all = AssignRequest {
        max_blocks: 64,
        ..AssignRequest::for_workload(owner, Wanted::any(1024), Wanted::default())
    };
    let later = Now(NOW.0 + u64::try_from(Duration::from_secs(61).as_nanos()).unwrap());
    let whole = run(last.assign(&all, &view, later)).unwrap().addresses.len();
    println!("addresses lost         {}", 1024 - whole);
    assert_eq!(whole, 1024, "addresses leaked");
}

/// The check itself must notice what it is there for.
#[test]
fn a_history_with_an_address_given_twice_is_refused() {
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    let mut h = History::default();
    let call = h.tick();
    h.gave("x", &[ip], call);
    let call = h.tick();
    h.gave("y", &[ip], call);
    assert!(h.linearize().unwrap_err().contains("while another had it"));

    let mut h = History::default();
    let call = h.tick();
    h.gave("x", &[ip], call);
    let releasing = h.releasing("x");
    // Given while the release is under way: there is an order.
    let call = h.tick();
    h.gave("y", &[ip], call);
    h.released("x", releasing);
    assert_eq!(h.linearize(), Ok(()));
}
