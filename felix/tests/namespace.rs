//! The engine against a real kernel, in a network namespace of the test's own: writes what is wanted, spares what is
//! not ours, repairs what others remove, writes nothing when started again, and makes up for events that were lost.

use std::{
    path::PathBuf,
    sync::{Arc, Condvar, Mutex},
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
    api::{Events, Linux},
    netlink::{
        Addr, Event, Monitor, NetlinkError, NextHop, Route, RouteBatcher, RouteChange, RouteFilter, Rtnl,
        Veth, VethPeer, Waker,
    },
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
        changes: vec![("192.168.2.0/26".parse().unwrap(), vec!["10.0.1.2".parse().unwrap()])],
        in_sync: true,
        ..FibUpdate::default()
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "waited 10 s for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn settings() -> Settings {
    Settings {
        node: "n1".into(),
        state_dir: PathBuf::from("/nonexistent"),
        carrier: CarrierPolicy::Auto,
        carrier_args: Vec::new(),
        bird: None,
    }
}

/// Both ends up; the device's index.
fn veth(k: &mut Rtnl, name: &str, peer: &str) -> u32 {
    let peer = VethPeer { name: peer, ..Default::default() };
    k.add_veth(&Veth { name, mac: None, mtu: None, up: false, peer }).unwrap();
    k.set_up(name).unwrap();
    k.set_up(peer.name).unwrap();
    k.link_by_name(name).unwrap().unwrap().index
}

/// The device other nodes are behind.
fn eth0(k: &mut Rtnl) -> u32 {
    let eth0 = veth(k, "eth0", "eth0p");
    k.add_addr(&Addr::new(eth0, "10.0.1.1/24".parse().unwrap())).unwrap();
    eth0
}

/// The IPv4 destinations in the table, but routes of these protocols.
fn dsts(k: &mut Rtnl, without: &[u8]) -> Vec<String> {
    let mut all = k.routes(&RouteFilter::main()).unwrap();
    all.retain(|r| r.dst.addr().is_ipv4() && !without.contains(&r.protocol));
    let mut all: Vec<String> = all.iter().map(|r| r.dst.to_string()).collect();
    all.sort();
    all
}

fn start() -> Handle {
    brindle_felix::spawn(&settings()).unwrap()
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
        let eth0 = eth0(&mut k);
        veth(&mut k, "cali00000000001", "podp");
        let foreign =
            Route::new("172.20.0.0/16".parse().unwrap()).via("10.0.1.9".parse().unwrap(), None, false);
        k.add_route(&foreign).unwrap();
        let leftover = Route::new("192.168.9.0/26".parse().unwrap())
            .via("10.0.1.9".parse().unwrap(), Some(eth0), true)
            .with_protocol(80)
            .with_metric(1024);
        k.add_route(&leftover).unwrap();

        // All but the kernel's own.
        let dsts = |k: &mut Rtnl| dsts(k, &[2]);

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

/// What a listener heard, and whether it may go on.
#[derive(Default)]
struct Heard {
    held: bool,
    waits: bool,
    events: Vec<Event>,
    overruns: usize,
}

/// A listener that can be held up.
struct Slow {
    monitor: Monitor,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

impl Events for Slow {
    fn next(&mut self, limit: Option<Duration>) -> Result<Vec<Event>, NetlinkError> {
        let (heard, changed) = &*self.heard;
        let mut h = heard.lock().unwrap();
        h.waits = true;
        changed.notify_all();
        h = changed.wait_while(h, |h| h.held).unwrap();
        h.waits = false;
        drop(h);
        let got = self.monitor.next(limit);
        let mut h = heard.lock().unwrap();
        match &got {
            Ok(events) => h.events.extend(events.iter().cloned()),
            Err(e) => h.overruns += usize::from(matches!(e, NetlinkError::Overrun { .. })),
        }
        got
    }

    fn waker(&self) -> Waker {
        self.monitor.waker()
    }
}

#[test]
fn what_happens_while_the_listener_is_overrun_is_found_by_reading_everything() {
    let ns = Namespace::new("overrun");
    ns.run(|| {
        let mut k = Rtnl::open().unwrap();
        let eth0 = eth0(&mut k);
        // Neither the kernel's own nor the flood.
        let ours = |k: &mut Rtnl| dsts(k, &[2, 4]);

        let (kernel, mut monitor) = Linux::open().unwrap();
        monitor.set_buffer(1).unwrap();
        let heard: Arc<(Mutex<Heard>, Condvar)> = Arc::default();
        let slow = Slow { monitor, heard: Arc::clone(&heard) };
        let h = brindle_felix::spawn_on(&settings(), Box::new(kernel), Box::new(slow)).unwrap();
        send(&h, FelixInput::Store(snapshot()));
        send(&h, FelixInput::Fib(fib()));
        wait("the learned route", || ours(&mut k) == ["192.168.2.0/26"]);

        // The listener is held up as soon as it has something to say; then more comes than waits for it, and last of all
        // what matters: our route goes and the pod's device comes.
        let (state, changed) = &*heard;
        state.lock().unwrap().held = true;
        k.set_mtu(eth0, 1400).unwrap();
        drop(
            changed.wait_timeout_while(state.lock().unwrap(), Duration::from_secs(10), |s| !s.waits).unwrap(),
        );
        let before = {
            let s = state.lock().unwrap();
            assert!(s.waits, "the listener has not heard of the device");
            (s.overruns, s.events.len())
        };
        let flood: Vec<RouteChange> = (0..1000)
            .map(|i| {
                let dst = format!("172.{}.{}.0/24", 16 + i / 256, i % 256).parse().unwrap();
                RouteChange::Add(Route::new(dst).dev(eth0).with_protocol(4))
            })
            .collect();
        assert_eq!(RouteBatcher::open().unwrap().apply(&flood).done, 1000);
        let all = k.routes(&RouteFilter::main()).unwrap();
        k.del_route(all.iter().find(|r| r.dst.to_string() == "192.168.2.0/26").unwrap()).unwrap();
        veth(&mut k, "cali00000000001", "podp");
        assert_eq!(ours(&mut k), [""; 0], "nobody knows yet");

        state.lock().unwrap().held = false;
        changed.notify_all();
        wait("both routes", || ours(&mut k) == ["192.168.1.5/32", "192.168.2.0/26"]);
        wait("the pod is ready", || h.report().ready.len() == 1 && h.report().routes.in_sync);
        let s = state.lock().unwrap();
        assert!(s.overruns > before.0, "{} overruns", s.overruns);
        let lost = |e: &Event| matches!(e, Event::RouteGone(r) if r.dst.to_string() == "192.168.2.0/26");
        assert!(!s.events[before.1..].iter().any(lost), "the news of the route was not lost");
    });
}

/// Runs `ip` in this thread's namespace.
fn ip(args: &str) {
    let done = std::process::Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The routes of a prefix, each with gateways and protocol.
fn of(k: &mut Rtnl, prefix: &str) -> Vec<String> {
    let all = k.routes(&RouteFilter::main()).unwrap().into_iter().filter(|r| r.dst.to_string() == prefix);
    let gateway = |h: &NextHop| h.gateway.map_or_else(|| "none".to_owned(), |g| g.to_string());
    all.map(|r| format!("{} {}", r.hops.iter().map(gateway).collect::<Vec<_>>().join(" "), r.protocol))
        .collect()
}

fn learn(h: &Handle, prefix: &str, next_hops: &[&str]) {
    let change = (prefix.parse().unwrap(), next_hops.iter().map(|n| n.parse().unwrap()).collect());
    send(h, FelixInput::Fib(FibUpdate { changes: vec![change], in_sync: true, ..FibUpdate::default() }));
}

#[test]
fn ours_beside_somebody_elses_of_the_same_ipv6_prefix_and_metric_is_withdrawn() {
    let ns = Namespace::new("beside");
    ns.run(|| {
        let mut k = Rtnl::open().unwrap();
        eth0(&mut k);
        ip("addr add fd00:f::1/64 dev eth0 nodad");
        let h = start();
        send(&h, FelixInput::Store(snapshot()));
        let prefix = "2001:db8:2::/64";
        learn(&h, prefix, &["fd00:f::2"]);
        wait("the learned route", || of(&mut k, prefix) == ["fd00:f::2 80"]);
        ip("-6 route append 2001:db8:2::/64 dev eth0 proto static metric 1024");
        assert_eq!(of(&mut k, prefix).len(), 2, "both are there");
        learn(&h, prefix, &[]);
        wait("theirs is left", || of(&mut k, prefix) == ["none 4"]);
        learn(&h, prefix, &["fd00:f::2"]);
        wait("it is named", || h.report().warnings.iter().any(|w| w.contains("in its place")));
        assert_eq!(of(&mut k, prefix), ["none 4"]);
        assert!(h.report().routes.failed.is_empty(), "{:?}", h.report().routes);
        ip("-6 route del 2001:db8:2::/64 dev eth0 proto static metric 1024");
        wait("ours follows", || of(&mut k, prefix) == ["fd00:f::2 80"]);
    });
}

#[test]
fn a_next_hop_is_reached_by_the_live_gateways_of_the_host_even_on_no_subnet() {
    let ns = Namespace::new("onlink");
    ns.run(|| {
        let mut k = Rtnl::open().unwrap();
        veth(&mut k, "eth0", "eth0p");
        veth(&mut k, "eth1", "eth1p");
        ip("addr add 10.77.1.1/32 dev eth0");
        ip("route add default via 10.77.9.9 dev eth0 onlink");
        let h = start();
        send(&h, FelixInput::Store(snapshot()));
        let prefix = "192.168.2.0/26";
        learn(&h, prefix, &["10.9.9.9"]);
        wait("through the gateway on no subnet", || of(&mut k, prefix) == ["10.77.9.9 80"]);
        ip("route replace default nexthop via 10.77.9.9 dev eth0 onlink nexthop via 10.78.9.9 dev eth1 onlink");
        wait("both gateways", || of(&mut k, prefix) == ["10.77.9.9 10.78.9.9 80"]);
        ip("link set eth1 down");
        wait("the one that lives", || of(&mut k, prefix) == ["10.77.9.9 80"]);
        ip("link set eth1 up");
        wait("both again", || of(&mut k, prefix) == ["10.77.9.9 10.78.9.9 80"]);
        assert!(h.report().routes.failed.is_empty(), "{:?}", h.report().routes);
    });
}
