//! A store and an executor in one hand: every store call stops twice, before it happens and after it happened but
//! before the caller knows, and a seeded scheduler decides who goes on. Dropping a task in between is a crash at that
//! very point; a call can also be answered "unavailable" although it happened.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    ipam::IpamHandleSpec,
    pool::IpPoolSpec,
    store::{Entry, Expect, Listing, Revision, Store, StoreError, StoreExt, StoreFuture, Watch},
};
use brindle_ipam::{Now, Owner, block::Block};
use serde_json::Value;

/// xorshift64*: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    pub(crate) fn percent(&mut self, p: usize) -> bool {
        self.below(100) < p
    }
}

#[derive(Default)]
struct State {
    revision: u64,
    values: BTreeMap<Key, (u64, Arc<Value>)>,
    writes: u64,
    reads: u64,
    /// Writes refused by their expectation.
    conflicts: u64,
    /// Calls by what they are and of which kind.
    calls: BTreeMap<(&'static str, Kind), u64>,
    /// Fails the write with this number (from 1) and all later ones, if set.
    fail_from: Option<u64>,
}

/// The store.
#[derive(Clone, Default)]
pub(crate) struct SimStore {
    state: Arc<Mutex<State>>,
    /// Per cent of writes answered "unavailable": half of them happened.
    faults: Arc<Mutex<Option<(usize, Dice)>>>,
}

/// Pending exactly once.
struct Yield(bool);

impl Future for Yield {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

pub(crate) async fn yield_once() {
    Yield(false).await;
}

impl SimStore {
    pub(crate) fn with_pool(cidr: &str, block_size: u8) -> Self {
        let store = Self::default();
        let spec = IpPoolSpec { block_size_raw: Some(block_size), ..IpPoolSpec::new(cidr.parse().unwrap()) };
        store.insert(Resource::new(
            ObjectMeta::named(format!("pool-{}", cidr.replace(['.', ':', '/'], "-"))),
            spec,
        ));
        store
    }

    pub(crate) fn insert<S: brindle_config_core::Spec>(&self, resource: Resource<S>) {
        run(self.put_as(&resource, Expect::Any)).unwrap();
    }

    pub(crate) fn faulty(&self, percent: usize, dice: Dice) {
        *self.faults.lock().unwrap() = Some((percent, dice));
    }

    pub(crate) fn fail_from(&self, write: Option<u64>) {
        self.state.lock().unwrap().fail_from = write;
    }

    pub(crate) fn sound(&self) {
        *self.faults.lock().unwrap() = None;
    }

    pub(crate) fn writes(&self) -> u64 {
        self.state.lock().unwrap().writes
    }

    pub(crate) fn reads(&self) -> u64 {
        self.state.lock().unwrap().reads
    }

    pub(crate) fn conflicts(&self) -> u64 {
        self.state.lock().unwrap().conflicts
    }

    /// The calls since the last time this was asked.
    pub(crate) fn calls(&self) -> BTreeMap<(&'static str, Kind), u64> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// Writes a block as it is.
    pub(crate) fn put_block(&self, block: &Block) {
        let name = brindle_config_core::names::block_name(&block.cidr());
        self.insert(Resource::new(ObjectMeta::named(name), block.spec().clone()));
    }

    /// Takes a Node away.
    pub(crate) async fn delete_node(&self, name: &str) {
        let key = Key::new(Kind::Node, None, name);
        self.delete(&key, Expect::Any).await.unwrap();
    }

    /// Writes a second block over the address, with the address in it, and the handle that goes with it.
    pub(crate) fn double(&self, ip: std::net::IpAddr, size: u8, host: &str, owner: &Owner, now: Now) {
        let cidr = brindle_ipam::net::block_of(ip, size).unwrap();
        let mut block = Block::new(cidr, host, now).unwrap();
        block.assign(ip, owner).unwrap();
        let name = brindle_config_core::names::block_name(&cidr);
        self.insert(Resource::new(ObjectMeta::named(name), block.spec().clone()));
        let handle = IpamHandleSpec {
            handle_id: owner.handle.clone(),
            block: BTreeMap::from([(cidr.to_string(), 1)]),
            ..IpamHandleSpec::default()
        };
        let name = brindle_ipam::names::handle_name(&owner.handle);
        self.insert(Resource::new(ObjectMeta::named(name), handle));
    }

    pub(crate) fn everything(&self) -> Vec<Entry> {
        let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
        run(self.list(&kinds)).unwrap().entries
    }

    fn write(&self, key: &Key, value: Option<Value>, expect: Expect) -> Result<Revision, StoreError> {
        let mut s = self.state.lock().unwrap();
        s.writes += 1;
        let what = match (&value, expect) {
            (None, _) => "delete",
            (_, Expect::Absent) => "create",
            (_, Expect::Revision(_)) => "swap",
            (_, Expect::Any) => "put",
        };
        *s.calls.entry((what, key.kind)).or_default() += 1;
        if s.fail_from.is_some_and(|n| s.writes >= n) {
            return Err(StoreError::Unavailable("the datastore is down".into()));
        }
        let found = s.values.get(key).map(|(r, _)| *r);
        let refused = match (expect, found) {
            (Expect::Absent, Some(_)) => Some(StoreError::Exists(key.clone())),
            (Expect::Revision(r), Some(f)) if f != r.0 => Some(StoreError::Conflict(key.clone())),
            (Expect::Revision(_), None) => Some(StoreError::NotFound(key.clone())),
            _ => None,
        };
        if let Some(refused) = refused {
            s.conflicts += 1;
            return Err(refused);
        }
        if value.is_none() && found.is_none() {
            return Err(StoreError::NotFound(key.clone()));
        }
        s.revision += 1;
        let revision = s.revision;
        match value {
            Some(value) => s.values.insert(key.clone(), (revision, Arc::new(value))),
            None => s.values.remove(key),
        };
        Ok(Revision(revision))
    }

    async fn write_in_steps(
        &self,
        key: &Key,
        value: Option<Value>,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        yield_once().await;
        let fault =
            self.faults.lock().unwrap().as_mut().and_then(|(p, d)| d.percent(*p).then(|| d.percent(50)));
        if fault == Some(false) {
            return Err(StoreError::Unavailable("lost on the way there".into()));
        }
        let outcome = self.write(key, value, expect);
        yield_once().await;
        if fault == Some(true) {
            return Err(StoreError::Unavailable("lost on the way back".into()));
        }
        outcome
    }
}

impl Store for SimStore {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        Box::pin(async move {
            yield_once().await;
            let entry = {
                let mut s = self.state.lock().unwrap();
                s.reads += 1;
                *s.calls.entry(("get", key.kind)).or_default() += 1;
                let found = s.values.get(key);
                found.map(|(r, v)| Entry { key: key.clone(), revision: Revision(*r), value: Arc::clone(v) })
            };
            yield_once().await;
            entry.ok_or_else(|| StoreError::NotFound(key.clone()))
        })
    }

    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            yield_once().await;
            let listing = {
                let mut s = self.state.lock().unwrap();
                s.reads += 1;
                for kind in kinds {
                    *s.calls.entry(("list", *kind)).or_default() += 1;
                }
                let entries = s
                    .values
                    .iter()
                    .filter(|(k, _)| kinds.contains(&k.kind))
                    .map(|(k, (r, v))| Entry { key: k.clone(), revision: Revision(*r), value: Arc::clone(v) })
                    .collect();
                Listing { entries, revision: Revision(s.revision) }
            };
            yield_once().await;
            Ok(listing)
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(self.write_in_steps(key, Some(value), expect))
    }

    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(self.write_in_steps(key, None, expect))
    }

    fn watch<'a>(&'a self, _: &'a [Kind], _: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        Box::pin(async { Err(StoreError::Unavailable("this store has no watch".into())) })
    }
}

/// Runs one future to its end, undisturbed.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let mut future = Box::pin(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(out) = future.as_mut().poll(&mut cx) {
            return out;
        }
    }
}

/// A task that can be made again after a crash.
pub(crate) type Spawn = Box<dyn FnMut(u32) -> Life>;
/// One life of a task.
pub(crate) type Life = Pin<Box<dyn Future<Output = ()>>>;

/// Runs all tasks interleaved. Each poll of a task has `crash` in 10,000 chances to be its last; a crashed task is
/// spawned anew with its life number.
pub(crate) fn interleave(dice: &mut Dice, crash: usize, spawns: &mut [Spawn]) {
    let mut lives: Vec<(u32, Option<Life>)> = spawns.iter_mut().map(|s| (0, Some(s(0)))).collect();
    let mut cx = Context::from_waker(Waker::noop());
    while lives.iter().any(|(_, f)| f.is_some()) {
        let i = dice.below(lives.len());
        let Some((life, slot)) = lives.get_mut(i) else { continue };
        let Some(future) = slot else { continue };
        if dice.below(10_000) < crash {
            *life += 1;
            *slot = None;
            *slot = Some(spawns[i](*life));
            continue;
        }
        if future.as_mut().poll(&mut cx).is_ready() {
            *slot = None;
        }
    }
}
