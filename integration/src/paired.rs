//! Compare-and-swap writes of a store beside those of a bare client, in turns on the same objects of one server.

#![allow(clippy::print_stdout, reason = "the report is what a benchmark is for")]

use std::{sync::Arc, time::Instant};

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Pairs of rounds; the median of their ratios counts.
const PAIRS: usize = 7;
/// Writers side by side, each on a resource of its own.
const WRITERS: usize = 4;
/// Writes of each writer in a round.
pub const WRITES: usize = 150;

/// The resource of a writer after so many writes.
pub fn value(writer: usize, n: usize) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet", "metadata": {"name": name(writer)},
        "spec": {"nets": [format!("10.{}.{}.0/24", n / 256 % 256, n % 256)]}})
}

/// What a writer's resource is called.
pub fn name(writer: usize) -> String {
    format!("w{writer}")
}

/// Runs the rounds and prints what came of them. `raw`: a writer of the bare client, which reads its resource and then
/// writes it [`WRITES`] times, each time only if it is as the last answer left it.
///
/// # Panics
/// The store refuses a write, or a writer fails.
pub async fn compare<W>(store: Arc<dyn Store>, raw: impl Fn(usize) -> W)
where
    W: Future<Output = ()> + Send + 'static,
{
    for writer in 0..WRITERS {
        let key = Key::new(Kind::GlobalNetworkSet, None, &name(writer));
        store.put(&key, value(writer, 0), Expect::Absent).await.unwrap_or_else(|e| panic!("{e}"));
    }
    let ours = |writer| write(Arc::clone(&store), writer);
    let mut ratios = Vec::new();
    for pair in 0..=PAIRS {
        // Who goes first changes, so that neither profits from a warm server.
        let (by_store, by_raw) = if pair % 2 == 0 {
            let a = round(&ours).await;
            (a, round(&raw).await)
        } else {
            let b = round(&raw).await;
            (round(&ours).await, b)
        };
        // The first pair only warms up.
        if pair > 0 {
            ratios.push(by_store / by_raw);
            println!("writes/s: store {by_store:.0}, raw client {by_raw:.0}, ratio {:.2}", by_store / by_raw);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "compare-and-swap writes, store : raw client, median of {PAIRS} pairs: {:.2} (goal 0.80)",
        ratios[PAIRS / 2]
    );
}

/// Writes a second of all writers together.
async fn round<W>(writer: impl Fn(usize) -> W) -> f64
where
    W: Future<Output = ()> + Send + 'static,
{
    let since = Instant::now();
    let mut tasks = JoinSet::new();
    for w in 0..WRITERS {
        tasks.spawn(writer(w));
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a writer ends well");
    }
    (WRITERS * WRITES) as f64 / since.elapsed().as_secs_f64()
}

async fn write(store: Arc<dyn Store>, writer: usize) {
    let key = Key::new(Kind::GlobalNetworkSet, None, &name(writer));
    let mut at = store.get(&key).await.unwrap_or_else(|e| panic!("{e}")).revision;
    for n in 0..WRITES {
        let put = store.put(&key, value(writer, n), Expect::Revision(at)).await;
        at = put.unwrap_or_else(|e| panic!("{e}"));
    }
}
