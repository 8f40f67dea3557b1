//! S4: the routes of a hundred neighbors into the kernel. The daemon is then the whole agent, with a datastore that names
//! the neighbors; the end is the kernel's word on the last route.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail};
use brindle_config_core::{
    ObjectMeta, Resource,
    bgp::{AsNumber, BgpConfigurationSpec, BgpPeerSpec},
    store::{Expect, Store, StoreExt as _},
};
use brindle_kernel::{
    netlink::{Event, Group, Monitor},
    netns::NetNs,
};
use ipnet::IpNet;

use super::scenario::{AS, Scenario};

/// How long all routes may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's datastore: one neighbor each, no mesh.
pub(crate) fn datastore(dir: &Path, peers: &[(Ipv4Addr, u32)]) -> Result<String> {
    let url = format!("sqlite:{}", dir.join("brindle.db").display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store: Arc<dyn Store> = brindle_config::open(&url)?;
        let bgp = BgpConfigurationSpec {
            as_number: Some(AsNumber(AS)),
            node_to_node_mesh_enabled: Some(false),
            ..BgpConfigurationSpec::default()
        };
        store.put_as(&Resource::new(ObjectMeta::named("default"), bgp), Expect::Any).await?;
        for (n, (address, asn)) in peers.iter().enumerate() {
            let peer = BgpPeerSpec {
                peer_ip: address.to_string(),
                as_number: Some(AsNumber(*asn)),
                ..BgpPeerSpec::default()
            };
            store.put_as(&Resource::new(ObjectMeta::named(format!("p{n}")), peer), Expect::Any).await?;
        }
        anyhow::Ok(())
    })?;
    Ok(url)
}

/// Listens to the kernel until it has every route of a scenario.
#[derive(Debug)]
pub(crate) struct Watch(JoinHandle<Result<Duration>>);

impl Watch {
    /// Begins to listen.
    pub(crate) fn start(space: &NetNs, s: &Scenario) -> Result<Self> {
        let mut monitor = Monitor::open_in(space, &[Group::RoutesV4])?;
        let (scenario, total) = (s.clone(), s.senders * s.prefixes);
        Ok(Self(thread::spawn(move || {
            let (start, mut there) = (Instant::now(), HashSet::new());
            while start.elapsed() < PATIENCE {
                for event in monitor.next(Some(Duration::from_secs(1)))? {
                    let (route, new) = match &event {
                        Event::Route(r) => (r, true),
                        Event::RouteGone(r) => (r, false),
                        _ => continue,
                    };
                    let IpNet::V4(net) = route.dst else { continue };
                    let prefix = (net.addr().to_bits(), net.prefix_len());
                    let Some((owner, k)) = scenario.owner(prefix) else { continue };
                    let via = route.hops.first().and_then(|h| h.gateway);
                    if new && via == Some(scenario.address(owner).into()) {
                        there.insert((owner, k));
                    } else {
                        there.remove(&(owner, k));
                    }
                }
                if there.len() == total {
                    return Ok(SystemTime::now().duration_since(UNIX_EPOCH)?);
                }
            }
            bail!("{} of {total} routes in the kernel after {PATIENCE:?}", there.len());
        })))
    }

    /// Seconds from then (since the epoch) until the last route was there.
    pub(crate) fn since(self, then: f64) -> Result<f64> {
        let end = self.0.join().map_err(|_| anyhow!("the watcher failed"))?;
        Ok(end.context("S4")?.as_secs_f64() - then)
    }
}
