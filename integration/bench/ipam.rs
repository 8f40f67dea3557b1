//! What an address costs, in processor time (other programs do not disturb it): the algebra of one block, and an ADD's
//! assignment and release by an allocator with its store in memory, beside pools with 30 and with 30,000 blocks.
//!
//! `cargo run --release -p brindle-integration --bin bench-ipam`
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use anyhow::{Context, Result, ensure};
use brindle_config::MemoryStore;
use brindle_config_core::{
    Kind, ObjectMeta, Resource, names,
    pool::{AllowedUse, IpPoolSpec},
    store::{Expect, Store, StoreExt},
};
use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, NoPause, Now, Owner, View, Wanted, block::Block,
    net::Reservations,
};
use ipnet::IpNet;

const NOW: Now = Now(1_795_400_607_000_000_000);
const PAIRS: u32 = 30_000;
/// In so many batches, of which the cheapest counts: whoever else uses the processor's cache can only add.
const BATCHES: u32 = 20;
const ADDS: u32 = 300;
/// A pool of 30,000 blocks may cost an ADD this much of what one of 30 costs, measuring errors included.
const SAME: f64 = 1.5;

fn main() -> Result<()> {
    println!("assign + release in one block of 64 (goal: 1,000,000 a second)");
    for in_use in [0, 32, 63] {
        let micros = algebra(in_use)?;
        println!("{in_use:>6} in use   {micros:>8.2} us   {:>10.0} a second", 1e6 / micros);
    }
    println!("\nan ADD's assignment and release, us of processor time (store in memory)");
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let few = runtime.block_on(adds("10.64.0.0/21", 30))?;
    let many = runtime.block_on(adds("10.64.0.0/11", 30_000))?;
    println!("{:>6} blocks   own block {:>8.1}   new block {:>10.1}", 30, few.0, few.1);
    println!("{:>6} blocks   own block {:>8.1}   new block {:>10.1}", 30_000, many.0, many.1);
    let verdict = if many.0 <= few.0 * SAME { "met" } else { "MISSED" };
    println!("goal, no more beside 30,000 blocks than beside 30 (to {SAME} of it): {verdict}");
    Ok(())
}

/// Processor time of this thread, nanoseconds.
fn cpu() -> Result<f64> {
    // The kernel brings the figure up to date when a thread gives way.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    text.split(' ').next().context("schedstat is empty")?.parse().context("schedstat")
}

fn owner(n: u32) -> Owner {
    let attribute = |k: &str, v: String| (k.to_owned(), v);
    Owner {
        handle: format!("k8s-pod-network.{n:064x}"),
        attributes: BTreeMap::from([
            attribute("namespace", "default".into()),
            attribute("node", "node-1".into()),
            attribute("pod", format!("web-{n}")),
            attribute("timestamp", NOW.attribute()),
        ]),
    }
}

/// Microseconds a pair.
fn algebra(in_use: u32) -> Result<f64> {
    let mut block = Block::new("10.0.0.0/26".parse()?, "node-1", NOW)?;
    for n in 0..in_use {
        block.auto_assign(1, &owner(n), &Reservations::default());
    }
    let (mine, reserved) = (owner(999), Reservations::default());
    let mut least = f64::INFINITY;
    for _ in 0..BATCHES {
        let start = cpu()?;
        for _ in 0..PAIRS {
            black_box(block.auto_assign(1, &mine, &reserved));
            black_box(block.release_handle(&mine.handle, None));
        }
        least = least.min((cpu()? - start) / 1e3 / f64::from(PAIRS));
    }
    Ok(least)
}

/// Microseconds of an ADD and its DEL from a block the node has, and of one that claims a new block.
async fn adds(pool: &str, blocks: u32) -> Result<(f64, f64)> {
    let cidr: IpNet = pool.parse()?;
    let store = Arc::new(MemoryStore::with_history(16));
    let spec = IpPoolSpec::new(cidr);
    store.put_as(&Resource::new(ObjectMeta::named("pool"), spec), Expect::Absent).await?;
    let IpNet::V4(v4) = cidr else { anyhow::bail!("{cidr} is no IPv4 pool") };
    for net in v4.subnets(26)?.take(usize::try_from(blocks)?) {
        let mut block = Block::new(net.into(), "elsewhere", NOW)?;
        block.auto_assign(1, &owner(0), &Reservations::default());
        let resource = Resource::new(ObjectMeta::named(names::block_name(&net.into())), block.to_write());
        store.put_as(&resource, Expect::Absent).await?;
    }
    let mut allocator = BlockAllocator::new(store.clone(), "node-1", Arc::new(NoPause));
    let view = View::load(&*store, "node-1").await?;
    allocator.reload(&view).await?;
    give(&mut allocator, &*store, 1).await?;
    let mut own = f64::INFINITY;
    for batch in 0..BATCHES {
        let start = cpu()?;
        for n in 0..ADDS {
            let n = 2 + batch * ADDS + n;
            give(&mut allocator, &*store, n).await?;
            let view = View::load(&*store, "node-1").await?;
            allocator.release_handle(&owner(n).handle, &view, NOW).await?;
        }
        own = own.min((cpu()? - start) / 1e3 / f64::from(ADDS));
    }
    // The own block is filled; the next one needs another.
    for n in 0..63 {
        give(&mut allocator, &*store, 100_000 + n).await?;
    }
    let start = cpu()?;
    give(&mut allocator, &*store, 200_000).await?;
    let new = (cpu()? - start) / 1e3;
    let own_blocks = allocator.own_blocks().count();
    ensure!(own_blocks == 2, "{own_blocks} blocks instead of 2");
    let stored = store.list(&[Kind::IpamBlock]).await?.entries.len();
    ensure!(stored == usize::try_from(blocks)? + 2, "{stored} blocks are stored");
    Ok((own, new))
}

async fn give(allocator: &mut BlockAllocator, store: &dyn Store, n: u32) -> Result<()> {
    let view = View::load(store, "node-1").await?;
    let request = AssignRequest {
        owner: owner(n),
        v4: Wanted::any(1),
        v6: Wanted::any(0),
        intended_use: AllowedUse::Workload,
        namespace_labels: None,
        max_blocks: 0,
    };
    let given = allocator.assign(&request, &view, NOW).await?;
    ensure!(given.refusal().is_none(), "{:?}", given.refusal());
    Ok(())
}
