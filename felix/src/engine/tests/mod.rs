//! The engine on the modelled kernel, step by step, with a clock of the test's own.

mod beside;
mod birds;
mod converge;
mod fate;
mod faults;
mod spin;
mod tunnel;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use brindle_config_core::{
    Key, ObjectMeta, Resource, Spec,
    ipam::IpamBlockSpec,
    node::{NodeAddress, NodeBgpSpec, NodeSpec},
    pool::{EncapMode, IpPoolSpec},
    store::{Entry, Revision, SyncEvent},
    workload::WorkloadEndpointSpec,
};
use brindle_felix_core::desire::Tunnel;
use brindle_kernel::{
    api::{Events, Kernel},
    fake::{FakeEvents, World},
    netlink::{Addr, Route as KernelRoute, RouteChange},
};
use tokio::sync::watch;

use super::*;
use crate::handle::FibUpdate;

pub(super) const POD_DEV: &str = "cali00000000001";

pub(super) fn upsert<S: Spec>(name: &str, spec: S) -> SyncEvent {
    let r = Resource::new(ObjectMeta::named(name), spec);
    let value = serde_json::to_value(&r).unwrap().into();
    SyncEvent::Upsert(Entry { key: r.key(), revision: Revision(1), value })
}

pub(super) fn node(name: &str, address: &str, tunnel: Option<&str>) -> SyncEvent {
    let bgp = NodeBgpSpec {
        ipv4_address: Some(NodeAddress(address.parse().unwrap())),
        ipv4_ipip_tunnel_addr: tunnel.map(|t| t.parse().unwrap()),
        ..Default::default()
    };
    upsert(name, NodeSpec { bgp: Some(bgp), ..Default::default() })
}

pub(super) fn block(cidr: &str) -> SyncEvent {
    let spec = serde_json::json!({"cidr": cidr, "affinity": "host:n1", "allocations": [], "unallocated": [],
        "attributes": []});
    let spec: IpamBlockSpec = serde_json::from_value(spec).unwrap();
    upsert(&cidr.replace(['.', '/'], "-"), spec)
}

pub(super) fn pool(mode: EncapMode) -> SyncEvent {
    let mut p = IpPoolSpec::new("192.168.0.0/16".parse().unwrap());
    p.ipip_mode = mode;
    upsert("pool", p)
}

pub(super) fn pod(name: &str, dev: &str, address: &str) -> SyncEvent {
    let spec = WorkloadEndpointSpec {
        node: "n1".into(),
        interface_name: dev.into(),
        ip_networks: vec![address.parse().unwrap()],
        mac: "02:00:00:00:00:01".into(),
        ..Default::default()
    };
    upsert(name, spec)
}

pub(super) fn key_of(e: &SyncEvent) -> Key {
    match e {
        SyncEvent::Upsert(e) => e.key.clone(),
        SyncEvent::Delete(k) => k.clone(),
        SyncEvent::InSync => panic!("no key"),
    }
}

/// What a carrier was told.
#[derive(Clone, Default)]
pub(super) struct Told(pub(super) Arc<Mutex<Vec<Tunnel>>>, pub(super) Option<World>, pub(super) Stopped);

/// The routes that were there when a carrier was stopped.
pub(super) type Stopped = Arc<Mutex<Vec<KernelRoute>>>;

impl Carrier for Told {
    fn ensure(&mut self, device: &str, want: &Tunnel) -> Result<(), String> {
        self.0.lock().unwrap().push(want.clone());
        if let Some(w) = self.1.as_ref().filter(|w| w.link(device).is_none()) {
            w.support("tun");
            w.other().add_link(device, "tun", None).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn alive(&mut self) -> bool {
        true
    }

    fn refused(&mut self) -> Option<u64> {
        Some(7)
    }

    fn stop(&mut self) {
        if let Some((w, link)) = self.1.as_ref().and_then(|w| Some((w, w.link("tunl0")?))) {
            *self.2.lock().unwrap() = w.routes();
            let _ = w.other().del_link(link.index);
        }
    }
}

/// What a filter was told; it works unless told otherwise.
#[derive(Clone, Default)]
pub(super) struct Tables(pub(super) Arc<Mutex<Filtered>>);

#[derive(Default)]
pub(super) struct Filtered {
    pub(super) sources: Option<BTreeSet<ipnet::Ipv4Net>>,
    pub(super) looks: usize,
    pub(super) broken: Option<String>,
}

impl Filter for Tables {
    fn ensure(&mut self, sources: &BTreeSet<ipnet::Ipv4Net>, look: bool) -> Result<(), String> {
        let mut f = self.0.lock().unwrap();
        f.looks += usize::from(look);
        if let Some(why) = &f.broken {
            return Err(why.clone());
        }
        f.sources = Some(sources.clone());
        Ok(())
    }

    fn dropped(&mut self, read: bool) -> u64 {
        if read { 4 } else { 3 }
    }

    fn remove(&mut self) -> Result<(), String> {
        self.0.lock().unwrap().sources = None;
        Ok(())
    }
}

/// A node: `eth0` up with 10.0.1.1/24 and a default route through 10.0.1.254, and the engine.
pub(super) struct Sim {
    pub(super) world: World,
    pub(super) engine: Engine,
    events: FakeEvents,
    report: watch::Receiver<Report>,
    pub(super) now: Instant,
    pub(super) carrier: Told,
    pub(super) filter: Tables,
}

pub(super) fn world() -> World {
    let w = World::new();
    let eth0 = w.add_device("eth0", true);
    w.other().add_addr(&Addr::new(eth0, "10.0.1.1/24".parse().unwrap())).unwrap();
    write(
        &w,
        RouteChange::Add(KernelRoute::new("0.0.0.0/0".parse().unwrap()).via(ip("10.0.1.254"), None, false)),
    );
    w
}

pub(super) fn write(w: &World, c: RouteChange) {
    assert_eq!(w.other().write_routes(std::slice::from_ref(&c)).done, 1, "{c:?}");
}

pub(super) fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

impl Sim {
    pub(super) fn new(world: &World) -> Self {
        Self::with(world, CarrierPolicy::Auto, Told::default())
    }

    pub(super) fn with(world: &World, policy: CarrierPolicy, carrier: Told) -> Self {
        let (kernel, events) = world.open();
        let (tx, report) = watch::channel(Report::default());
        let settings = Settings {
            node: "n1".into(),
            state_dir: PathBuf::from("/nonexistent"),
            carrier: policy,
            carrier_args: Vec::new(),
            bird: None,
        };
        let filter = Tables::default();
        let outside = Outside { carrier: Box::new(carrier.clone()), filter: Box::new(filter.clone()) };
        let engine = Engine::new(&settings, Box::new(kernel), outside, tx);
        Self { world: world.clone(), engine, events, report, now: Instant::now(), carrier, filter }
    }

    pub(super) fn give(&mut self, input: FelixInput) {
        self.engine.take(input, self.now);
    }

    pub(super) fn store(&mut self, events: impl IntoIterator<Item = SyncEvent>) {
        self.give(FelixInput::Store(events.into_iter().collect()));
    }

    pub(super) fn fib(&mut self, changes: &[(&str, &[&str])], in_sync: bool) {
        let change = |(p, hops): &(&str, &[&str])| (p.parse().unwrap(), hops.iter().map(|h| ip(h)).collect());
        let changes = changes.iter().map(change).collect();
        self.give(FelixInput::Fib(FibUpdate { changes, in_sync, ..FibUpdate::default() }));
    }

    /// Delivers the kernel's events and lets the engine work, until nothing happens any more at this time.
    pub(super) fn settle(&mut self) {
        for _ in 0..20 {
            let input = match self.events.next(Some(Duration::ZERO)) {
                Ok(e) if e.is_empty() => None,
                Ok(e) => Some(FelixInput::Kernel(e)),
                Err(e) => Some(FelixInput::Resync(e.to_string())),
            };
            let quiet = input.is_none() && (!self.engine.dirty.any() || !self.engine.store_in_sync);
            input.into_iter().for_each(|i| self.engine.take(i, self.now));
            self.engine.step(self.now);
            if quiet {
                return;
            }
            if self.engine.parts_failed.waits(&Part::Read, self.now) {
                return;
            }
        }
        panic!("the engine does not come to rest: {:?}", self.engine.dirty);
    }

    /// Lets time pass, working whenever the engine asked to.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        let mut at_once = 0;
        while let Some(t) = self.engine.deadline().filter(|t| *t <= end) {
            at_once = if t > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 20, "the engine goes on without pause: {:?}", self.report().routes);
            self.now = self.now.max(t);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    pub(super) fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// Routes of others and of ours, without the kernel's own, as text.
    pub(super) fn table(&self) -> Vec<String> {
        let names: BTreeMap<u32, String> =
            self.world.other().links().unwrap().into_iter().map(|l| (l.index, l.name)).collect();
        let mut all: Vec<String> = (self.world.routes().iter())
            .filter(|r| r.protocol != 2)
            .map(|r| {
                let hops: Vec<String> = (r.hops.iter())
                    .map(|h| {
                        let via = h.gateway.map(|g| format!("via {g} ")).unwrap_or_default();
                        format!("{via}dev {}", h.dev.and_then(|d| names.get(&d)).map_or("?", String::as_str))
                    })
                    .collect();
                let kind = if hops.is_empty() { "blackhole".to_owned() } else { hops.join(" ") };
                format!("{} {kind} proto {} metric {}", r.dst, r.protocol, r.metric)
            })
            .collect();
        all.sort();
        all
    }
}

/// The whole of a node's state.
pub(super) fn snapshot() -> Vec<SyncEvent> {
    vec![
        pool(EncapMode::Never),
        node("n1", "10.0.1.1/24", None),
        node("n2", "10.0.1.2/24", None),
        block("192.168.1.0/26"),
        pod("a", POD_DEV, "192.168.1.5/32"),
        SyncEvent::InSync,
    ]
}

pub(super) const SETTLED: [&str; 5] = [
    "0.0.0.0/0 via 10.0.1.254 dev eth0 proto 3 metric 0",
    "192.168.1.0/26 blackhole proto 80 metric 1024",
    "192.168.1.5/32 dev cali00000000001 proto 3 metric 1024",
    "192.168.2.0/26 via 10.0.1.2 dev eth0 proto 80 metric 1024",
    "192.168.3.0/26 via 10.0.1.254 dev eth0 proto 80 metric 1024",
];

/// A node with one pod and two learned routes, at rest.
pub(super) fn settled(w: &World) -> Sim {
    let mut s = Sim::new(w);
    s.store(snapshot());
    s.fib(&[("192.168.2.0/26", &["10.0.1.2"]), ("192.168.3.0/26", &["10.9.9.9"])], true);
    s.settle();
    s
}
