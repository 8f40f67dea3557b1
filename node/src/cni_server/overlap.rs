//! Ranges of other IPAM plugins that lie inside IP pools. Each of the two gives addresses without asking the other, so one
//! may come to be given twice; an ADD that meets it is refused, and here it is told before: in the log once per agent, and
//! in a file below the state folder that `brindlectl ipam check` holds against the pools.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use brindle_cni::proto::Attachment;
use brindle_ipam::View;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{now, service::Service};

/// Name below the state folder.
const FILE: &str = "ipam-foreign.json";
/// Ranges remembered; whoever has more knows by then.
const MANY: usize = 100;

/// What another IPAM plugin has to do with an ADD.
pub(super) struct Foreign {
    /// The addresses it gave.
    pub(super) given: Vec<IpNet>,
    /// What it gives them of; empty where it does not say.
    pub(super) ranges: Vec<(IpAddr, IpAddr)>,
}

/// First and last address, and the network that is configured so.
type Range = (IpAddr, IpAddr, String);

/// What was told.
pub(super) struct Overlaps {
    file: PathBuf,
    told: Mutex<BTreeSet<(String, Range)>>,
}

impl Overlaps {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join(FILE), told: Mutex::default() }
    }

    /// The ranges of all that was told so far, if this is new.
    fn news(&self, pool: &str, range: &Range) -> Option<BTreeSet<Range>> {
        // Poisoned only if inserting panicked, which leaves the set usable.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = told.len() < MANY && told.insert((pool.to_owned(), range.clone()));
        new.then(|| told.iter().map(|(_, range)| range.clone()).collect())
    }
}

impl Service {
    /// Tells of ranges inside pools. Nothing fails by it.
    pub(super) async fn tell_overlaps(&self, a: &Attachment, other: &Foreign) {
        let single = || other.given.iter().map(|n| (n.addr(), n.addr())).collect();
        let ranges: Vec<(IpAddr, IpAddr)> =
            if other.ranges.is_empty() { single() } else { other.ranges.clone() };
        let Ok(view) = View::load(&*self.store, &self.node).await else { return };
        let mut all = None;
        for (first, last) in ranges {
            for pool in view.giving_of(first, last) {
                let range = (first, last, a.network.clone());
                let Some(told) = self.overlaps.news(&pool.name, &range) else { continue };
                let of = if first == last { format!("{first}") } else { format!("{first} to {last}") };
                tracing::warn!(
                    pool = %pool.name, cidr = %pool.spec.cidr, network = %a.network,
                    "another IPAM plugin gives addresses of {of}, which are of IP pool {} ({}) too: one may be given twice; \
                     reserve them (brindlectl ipam reserve), disable the pool, or take them out of the plugin's configuration",
                    pool.name, pool.spec.cidr
                );
                all = Some(told);
            }
        }
        let Some(all) = all else { return };
        let text = report(&all).to_string();
        let file = self.overlaps.file.clone();
        let write = move || {
            let temporary = file.with_extension("tmp");
            fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &file))
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!("{FILE}: {e}"),
            Err(e) => tracing::debug!("{FILE}: {e}"),
        }
    }
}

fn report(all: &BTreeSet<Range>) -> Value {
    let ranges =
        all.iter().map(|(first, last, network)| json!({"first": first, "last": last, "network": network}));
    json!({"time": now().rfc3339(), "ranges": ranges.collect::<Vec<_>>()})
}
