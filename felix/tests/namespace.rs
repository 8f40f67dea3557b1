//! The engine against a real kernel, in a network namespace of the test's own: writes what is wanted, spares what is
//! not ours, repairs what others remove, and writes nothing when started again.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use brindle_config_core::{
    ObjectMeta, Resource, Spec,
    node::{NodeAddress, NodeBgpSpec, NodeSpec},
    pool::IpPoolSpec,
    store::{Entry, Revision, SyncEvent},
    workload::WorkloadEndpointSpec,
};
use brindle_felix::{CarrierPolicy, FelixInput, FibUpdate, Handle, Settings};
use brindle_kernel::{
    netlink::{Addr, Route, RouteFilter, Rtnl, Veth, VethPeer},
    netns::NetNs,
};

struct Namespace(String);

impl Namespace {
    fn new(tag: &str) -> Self {
        let name = format!("bt-{}-{tag}", std::process::id());
        NetNs::create(&name).expect("root is needed to make a network namespace");
        Self(name)
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        NetNs::named(&self.0).unwrap().run(f).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}

fn upsert<S: Spec>(name: &str, spec: S) -> SyncEvent {
    let r = Resource::new(ObjectMeta::named(name), spec);
    SyncEvent::Upsert(Entry {
        key: r.key(),
        revision: Revision(1),
        value: serde_json::to_value(&r).unwrap().into(),
    })
}

fn snapshot() -> Vec<SyncEvent> {
    let bgp =
        NodeBgpSpec { ipv4_address: Some(NodeAddress("10.0.1.1/24".parse().unwrap())), ..Default::default() };
    vec![
        upsert("pool", IpPoolSpec::new("192.168.0.0/16".parse().unwrap())),
        upsert("n1", NodeSpec { bgp: Some(bgp), ..Default::default() }),
        upsert(
            "n1-k8s-a-eth0",
            WorkloadEndpointSpec {
                node: "n1".into(),
                interface_name: "cali00000000001".into(),
                ip_networks: vec!["192.168.1.5/32".parse().unwrap()],
                ..Default::default()
            },
        ),
        SyncEvent::InSync,
    ]
}

fn fib() -> FibUpdate {
    FibUpdate {
        reset: false,
        changes: vec![("192.168.2.0/26".parse().unwrap(), vec!["10.0.1.2".parse().unwrap()])],
        in_sync: true,
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "waited 10 s for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start() -> Handle {
    let settings = Settings {
        node: "n1".into(),
        state_dir: PathBuf::from("/nonexistent"),
        carrier: CarrierPolicy::Auto,
        carrier_args: Vec::new(),
    };
    brindle_felix::spawn(&settings).unwrap()
}

fn send(h: &Handle, input: FelixInput) {
    let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(rt.block_on(h.send(input)));
}

#[test]
fn routes_are_written_repaired_kept_and_not_written_again() {
    let ns = Namespace::new("felix");
    ns.run(|| {
        let mut k = Rtnl::open().unwrap();
        for (name, peer) in [("eth0", "eth0p"), ("cali00000000001", "podp")] {
            let peer = VethPeer { name: peer, ..Default::default() };
            k.add_veth(&Veth { name, mac: None, mtu: None, up: false, peer }).unwrap();
            k.set_up(name).unwrap();
            k.set_up(peer.name).unwrap();
        }
        let eth0 = k.link_by_name("eth0").unwrap().unwrap().index;
        k.add_addr(&Addr::new(eth0, "10.0.1.1/24".parse().unwrap())).unwrap();
        let foreign =
            Route::new("172.20.0.0/16".parse().unwrap()).via("10.0.1.9".parse().unwrap(), None, false);
        k.add_route(&foreign).unwrap();
        let leftover = Route::new("192.168.9.0/26".parse().unwrap())
            .via("10.0.1.9".parse().unwrap(), Some(eth0), true)
            .with_protocol(80)
            .with_metric(1024);
        k.add_route(&leftover).unwrap();

        let dsts = |k: &mut Rtnl| -> Vec<String> {
            let mut all: Vec<_> = k.routes(&RouteFilter::main()).unwrap();
            all.retain(|r| r.dst.addr().is_ipv4() && r.protocol != 2);
            let mut all: Vec<String> = all.iter().map(|r| r.dst.to_string()).collect();
            all.sort();
            all
        };

        let h = start();
        assert!(dsts(&mut k).contains(&leftover.dst.to_string()), "nothing is touched before in-sync");
        send(&h, FelixInput::Store(snapshot()));
        wait("the pod's route", || dsts(&mut k).contains(&"192.168.1.5/32".to_owned()));
        assert!(
            dsts(&mut k).contains(&leftover.dst.to_string()),
            "learned routes stay until bgpd is in sync"
        );
        send(&h, FelixInput::Fib(fib()));
        let want = ["172.20.0.0/16", "192.168.1.5/32", "192.168.2.0/26"];
        wait("the learned route, and the sweep", || dsts(&mut k) == want);
        wait("ready", || h.report().ready.len() == 1);

        // Somebody removes ours.
        let ours = k.routes(&RouteFilter::main()).unwrap();
        let ours = ours.iter().find(|r| r.dst.to_string() == "192.168.2.0/26").unwrap();
        k.del_route(ours).unwrap();
        wait("the repair", || dsts(&mut k) == want);

        // The agent dies and comes back: forwarding state stayed, nothing is written.
        drop(h);
        assert_eq!(dsts(&mut k), want);
        let h = start();
        send(&h, FelixInput::Store(snapshot()));
        send(&h, FelixInput::Fib(fib()));
        wait("in sync", || h.report().routes.in_sync && h.report().ready.len() == 1);
        assert_eq!(h.report().routes.writes, 0, "{:?}", h.report());
        assert_eq!(dsts(&mut k), want);
    });
}
