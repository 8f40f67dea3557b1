//! Policy against a real kernel with real packets, in namespaces of the test's own, with each back end: who may talk to
//! whom, what a restart writes, what a stranger can undo, and that changing the back end opens nothing. Needs root.

mod addresses;
mod flows;
mod hosts;
mod sets;
mod support;
mod tools;
mod translated;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource, Spec,
    felix::FelixConfigurationSpec,
    pool::IpPoolSpec,
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix::policy::{
    Calculation, PolicyHandle, PolicyInput, PolicyReport, PolicySetup, spawn_policy,
};
use brindle_felix_core::policy::active::{
    Action, ActivePolicy, ActiveProfile, EndpointId, EndpointPolicy, EndpointTier, Icmp, Interface, IpSet,
    IpSetDelta, IpSetId, IpSetKind, IpSetMember, PolicyDelta, PolicyId, PolicyKind, PolicySettings,
    PortRange, Protocol, Rule, TierAction, ToHostAction, Why,
};
use brindle_kernel::{
    netfilter::{Tools, Variant},
    netlink::{Addr, Rtnl, Veth, VethPeer},
    netns::NetNs,
    sysctl,
};
use serde_json::json;

use self::support::{and, far, ip};

const LONG: Duration = Duration::from_secs(60);
/// A dropped packet is not answered; nobody waits longer for an answer on an idle veth.
const SHORT: Duration = Duration::from_millis(300);

static COUNT: AtomicU32 = AtomicU32::new(0);

struct Ns(String);

impl Ns {
    fn new(tag: &str) -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bt-{}-pol{n}{tag}", std::process::id());
        NetNs::create(&name).expect("root is needed to make a network namespace");
        let ns = Self(name);
        ns.run(|| Rtnl::open().unwrap().set_up("lo").unwrap());
        ns
    }

    fn ns(&self) -> NetNs {
        NetNs::named(&self.0).unwrap()
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.ns().run(f).unwrap()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}

/// The calculation is done by the test.
struct Nothing;

impl Calculation for Nothing {
    fn apply(&mut self, _: &SyncEvent) {
        // Nothing is calculated from a store here: the test hands over deltas.
    }

    fn flush(&mut self) -> Vec<PolicyDelta> {
        Vec::new()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BackEnd {
    Legacy,
    Nft,
    Nftables,
}

const ALL: [BackEnd; 3] = [BackEnd::Legacy, BackEnd::Nft, BackEnd::Nftables];

struct Pod {
    ns: Ns,
    device: String,
    v4: IpAddr,
    v6: IpAddr,
    /// TCP 80 and 81, UDP 80, both families: open as long as the pod lives.
    _servers: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

struct Node {
    ns: Ns,
    pods: Vec<Pod>,
    runtime: tokio::runtime::Runtime,
    handle: Option<PolicyHandle>,
}

fn upsert<S: Spec>(name: &str, spec: S) -> SyncEvent {
    let r = Resource::new(ObjectMeta::named(name), spec);
    SyncEvent::Upsert(Entry {
        key: r.key(),
        revision: Revision(1),
        value: serde_json::to_value(&r).unwrap().into(),
    })
}

fn configuration(back_end: BackEnd) -> FelixConfigurationSpec {
    let mut spec = FelixConfigurationSpec::default();
    let (nft, iptables) = match back_end {
        BackEnd::Legacy => ("Disabled", "Legacy"),
        BackEnd::Nft => ("Disabled", "NFT"),
        BackEnd::Nftables => ("Enabled", "Auto"),
    };
    spec.extra.insert("nftablesMode".into(), json!(nft));
    spec.extra.insert("iptablesBackend".into(), json!(iptables));
    spec
}

impl Node {
    fn new(pods: usize) -> Self {
        let ns = Ns::new("n");
        ns.run(|| {
            sysctl::ensure("net/ipv4/ip_forward", "1").unwrap();
            sysctl::ensure("net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        let pods = (0..pods).map(|i| pod(&ns, i)).collect();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { ns, pods, runtime, handle: None }
    }

    fn start(&mut self, back_end: BackEnd) {
        let setup =
            PolicySetup { node: "n1".into(), families: Vec::new(), prefixes: Vec::new(), calico: || None };
        let tools = Box::new(Tools::default());
        let handle = self.ns.run(|| spawn_policy(&setup, tools, Box::new(Nothing)).unwrap());
        self.handle = Some(handle);
        let pool = upsert(
            "pool",
            IpPoolSpec { nat_outgoing: true, ..IpPoolSpec::new("10.77.0.0/16".parse().unwrap()) },
        );
        self.tell(PolicyInput::Store(vec![
            upsert("default", configuration(back_end)),
            pool,
            SyncEvent::InSync,
        ]));
    }

    fn tell(&self, input: PolicyInput) {
        assert!(self.runtime.block_on(self.handle.as_ref().unwrap().send(input)), "the policy thread lives");
    }

    fn report(&self) -> PolicyReport {
        self.runtime.block_on(async {
            let (tx, rx) = tokio::sync::oneshot::channel();
            assert!(self.handle.as_ref().unwrap().send(PolicyInput::Ask(tx)).await);
            tokio::time::timeout(LONG, rx).await.expect("it answers").expect("it lives")
        })
    }

    /// Sends deltas and waits until they are in the kernel.
    fn apply(&self, deltas: Vec<PolicyDelta>) -> PolicyReport {
        self.tell(PolicyInput::Deltas(deltas));
        let deadline = Instant::now() + LONG;
        loop {
            let r = self.report();
            if r.in_sync && r.problems.is_empty() {
                return r;
            }
            assert!(Instant::now() < deadline, "{r:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn everything(
        &self,
        tiers: &[(usize, EndpointTier)],
        policies: &[Arc<ActivePolicy>],
    ) -> Vec<PolicyDelta> {
        let settings = PolicySettings { to_host: ToHostAction::Accept, ..PolicySettings::default() };
        let mut out = vec![
            PolicyDelta::Settings(settings),
            PolicyDelta::IpSet(set("s:b", &[self.pods[1].v4, self.pods[1].v6])),
        ];
        out.extend(policies.iter().map(|p| PolicyDelta::Policy(Arc::clone(p))));
        let allow = || vec![Rule::any(Action::Allow, Why::default())];
        out.push(PolicyDelta::Profile(Arc::new(ActiveProfile {
            name: "kns.default".into(),
            inbound: allow(),
            outbound: allow(),
        })));
        for i in 0..self.pods.len() {
            let own = tiers.iter().filter(|(pod, _)| *pod == i).map(|(_, t)| t.clone()).collect();
            out.push(PolicyDelta::Endpoint(Arc::new(self.endpoint(i, own))));
        }
        out.push(PolicyDelta::InSync);
        out
    }

    fn endpoint(&self, i: usize, tiers: Vec<EndpointTier>) -> EndpointPolicy {
        let pod = &self.pods[i];
        EndpointPolicy {
            id: EndpointId::Workload { namespace: "default".into(), name: format!("n1-k8s-p{i}-eth0") },
            interface: Interface::Name(pod.device.clone()),
            addresses: vec![pod.v4.into(), pod.v6.into()],
            allowed_sources: Vec::new(),
            mac: None,
            closed: None,
            tiers,
            host: None,
            profiles: vec!["kns.default".into()],
        }
    }

    /// Whether TCP, and for port 80 UDP, gets through; `want` is waited for, since an answer may be late.
    #[track_caller]
    fn tcp(&self, from: usize, to: usize, port: u16, want: bool) {
        for ip in [self.pods[to].v4, self.pods[to].v6] {
            let deadline = Instant::now() + LONG;
            loop {
                let got = self.pods[from].ns.run(|| tcp(SocketAddr::new(ip, port)));
                if got == want {
                    break;
                }
                assert!(
                    want && Instant::now() < deadline,
                    "pod {from} to {ip}:{port}: {got}, wanted {want}\n{}",
                    self.dump()
                );
            }
        }
    }

    #[track_caller]
    fn udp(&self, from: usize, to: usize, want: bool) {
        for (k, ip) in [self.pods[to].v4, self.pods[to].v6].into_iter().enumerate() {
            let deadline = Instant::now() + LONG;
            let server = &self.pods[to].udp[k];
            loop {
                let got = udp(&self.pods[from].ns, SocketAddr::new(ip, 80), server);
                if got == want {
                    break;
                }
                assert!(
                    want && Instant::now() < deadline,
                    "UDP {from} to {ip}: {got}, wanted {want}\n{}",
                    self.dump()
                );
            }
        }
    }

    #[track_caller]
    fn ping(&self, from: usize, to: usize, want: bool) {
        for ip in [self.pods[to].v4, self.pods[to].v6] {
            let deadline = Instant::now() + LONG;
            loop {
                let out = self.pods[from].ns.run(|| {
                    Command::new("ping").args(["-n", "-c1", "-W1", &ip.to_string()]).output().unwrap()
                });
                if out.status.success() == want {
                    break;
                }
                assert!(
                    want && Instant::now() < deadline,
                    "ping {from} to {ip}, wanted {want}\n{}",
                    self.dump()
                );
            }
        }
    }

    fn dump(&self) -> String {
        self.ns.run(|| {
            let mut all = String::new();
            for (program, args) in [
                ("iptables-legacy-save", &["-c"][..]),
                ("iptables-nft-save", &["-c"]),
                ("ipset", &["save"]),
                ("nft", &["list", "table", "ip", "brindle"]),
            ] {
                let out = Command::new(program).args(args).output().unwrap();
                all.push_str(&format!("== {program}\n{}", String::from_utf8_lossy(&out.stdout)));
            }
            all
        })
    }

    /// Ends the thread, as a crash does: the kernel keeps what it has.
    fn stop(&mut self) {
        let handle = self.handle.take().unwrap();
        let inputs = handle.watch();
        drop(handle);
        // Its sender goes when it has ended.
        self.runtime.block_on(async {
            let mut inputs = inputs;
            let ended = async { while inputs.changed().await.is_ok() {} };
            tokio::time::timeout(LONG, ended).await.expect("it ends");
        });
    }
}

fn pod(node: &Ns, i: usize) -> Pod {
    let ns = Ns::new("p");
    let device = format!("cali{i:011x}");
    let v4: IpAddr = format!("10.77.0.{}", i + 10).parse().unwrap();
    let v6: IpAddr = format!("fd77::{:x}", i + 0x10).parse().unwrap();
    let target = ns.ns();
    node.run(|| {
        let mut rtnl = Rtnl::open().unwrap();
        let veth = Veth {
            name: &device,
            mac: Some("ee:ee:ee:ee:ee:ee".parse().unwrap()),
            mtu: None,
            up: false,
            peer: VethPeer { name: "eth0", mac: None, netns: Some(&target) },
        };
        rtnl.add_veth(&veth).unwrap();
        for key in ["proxy_arp", "forwarding"] {
            sysctl::ensure(&format!("net/ipv4/conf/{device}/{key}"), "1").unwrap();
        }
        sysctl::ensure(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0").unwrap();
        rtnl.set_up(&device).unwrap();
        let index = rtnl.link_by_name(&device).unwrap().unwrap().index;
        rtnl.add_addr(&Addr::new(index, "fe80::1/64".parse().unwrap())).unwrap();
    });
    let sh = |ns: &Ns, line: &str| {
        let ok = ns.run(|| Command::new("sh").args(["-ec", line]).status().unwrap().success());
        assert!(ok, "{line}");
    };
    sh(
        &ns,
        &format!(
            "ip link set eth0 up; ip addr add {v4}/32 dev eth0; ip route add 169.254.1.1 dev eth0 scope link; \
             ip route add default via 169.254.1.1; \
             ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0; ip addr add {v6}/128 dev eth0 nodad; \
             ip route add default via fe80::1 dev eth0"
        ),
    );
    sh(node, &format!("ip route add {v4}/32 dev {device}; ip -6 route add {v6}/128 dev {device}"));
    let (servers, udp) = ns.run(|| {
        let any = [IpAddr::from([0, 0, 0, 0]), IpAddr::from([0u16; 8])];
        // The v6 socket takes both families.
        let tcp = [80, 81].map(|port| TcpListener::bind((any[1], port)).unwrap());
        let udp = [v4, v6].map(|ip| UdpSocket::bind((ip, 80)).unwrap());
        (Vec::from(tcp), Vec::from(udp))
    });
    Pod { ns, device, v4, v6, _servers: servers, udp }
}

fn tcp(to: SocketAddr) -> bool {
    TcpStream::connect_timeout(&to, SHORT).is_ok()
}

fn udp(from: &Ns, to: SocketAddr, server: &UdpSocket) -> bool {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = from.run(|| UdpSocket::bind((any, 0)).unwrap());
    arrives(&socket, to, server)
}

fn arrives(socket: &UdpSocket, to: SocketAddr, server: &UdpSocket) -> bool {
    let token = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // One that is refused here does not arrive.
    drop(socket.send_to(&token, to));
    server.set_read_timeout(Some(SHORT)).unwrap();
    let mut buf = [0; 16];
    loop {
        match server.recv_from(&mut buf) {
            Ok((4, _)) if buf[..4] == token => return true,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

fn set(id: &str, addresses: &[IpAddr]) -> IpSet {
    IpSet {
        id: IpSetId(id.into()),
        kind: IpSetKind::Net,
        members: addresses.iter().map(|a| IpSetMember::Net((*a).into())).collect(),
    }
}

fn id(name: &str) -> PolicyId {
    PolicyId {
        tier: "default".into(),
        kind: PolicyKind::KubernetesNetworkPolicy,
        namespace: "default".into(),
        name: name.into(),
    }
}

fn policy(name: &str, inbound: Vec<Rule>, outbound: Vec<Rule>) -> Arc<ActivePolicy> {
    Arc::new(ActivePolicy { id: id(name), inbound, outbound })
}

fn tier(ingress: &[&str], egress: &[&str]) -> EndpointTier {
    let ids = |names: &[&str]| names.iter().map(|n| id(n)).collect();
    EndpointTier {
        name: "default".into(),
        default_action: TierAction::Deny,
        ingress: ids(ingress),
        egress: ids(egress),
    }
}

fn rule(action: Action) -> Rule {
    Rule::any(action, Why::default())
}

fn tcp_ports(action: Action, ports: &[(u16, u16)]) -> Rule {
    let mut r = rule(action);
    r.protocol = Some(Protocol::TCP);
    r.dst.ports = ports.iter().map(|&(first, last)| PortRange { first, last }).collect();
    r
}

#[test]
fn who_may_talk_to_whom_is_the_same_with_every_back_end() {
    for back_end in ALL {
        let mut node = Node::new(3);
        node.start(back_end);
        // No policy: the profile allows.
        node.apply(node.everything(&[], &[]));
        for (from, to) in [(0, 1), (1, 0), (2, 0)] {
            node.tcp(from, to, 80, true);
        }
        node.udp(1, 0, true);
        node.ping(2, 0, true);

        // Deny all to pod 0.
        let deny = policy("deny", vec![], vec![]);
        let r = node.apply(node.everything(&[(0, tier(&["deny"], &[]))], &[deny]));
        assert!(r.ready.len() == 3, "{r:?}");
        node.tcp(1, 0, 80, false);
        node.udp(1, 0, false);
        node.ping(1, 0, false);
        node.tcp(0, 1, 80, true);
        node.tcp(1, 2, 81, true);

        // Pod 1, by set, TCP 80 only.
        let mut from_b = tcp_ports(Action::Allow, &[(80, 80)]);
        from_b.src.sets = vec![IpSetId("s:b".into())];
        let allow = policy("allow", vec![from_b], vec![]);
        node.apply(vec![
            PolicyDelta::Policy(allow),
            PolicyDelta::Endpoint(Arc::new(node.endpoint(0, vec![tier(&["deny", "allow"], &[])]))),
        ]);
        node.tcp(1, 0, 80, true);
        node.tcp(1, 0, 81, false);
        node.tcp(2, 0, 80, false);
        node.udp(1, 0, false);

        // A member of the set more, and one less: one batch, no rule touched.
        let before = node.report().counters;
        let member = |p: usize| {
            vec![IpSetMember::Net(node.pods[p].v4.into()), IpSetMember::Net(node.pods[p].v6.into())]
        };
        let change = IpSetDelta { id: IpSetId("s:b".into()), added: member(2), removed: member(1) };
        let after = node.apply(vec![PolicyDelta::IpSetDelta(change)]).counters;
        assert_eq!(after.table_writes, before.table_writes, "no iptables call");
        assert_eq!(after.chains, before.chains, "no rule");
        assert_eq!(
            after.set_writes + after.nft_writes,
            before.set_writes + before.nft_writes + 1,
            "one batch"
        );
        node.tcp(2, 0, 80, true);
        node.tcp(1, 0, 80, false);

        // More ports than one match takes; networks with an exception; ICMP; egress; pass.
        let many: Vec<(u16, u16)> = (0..20).map(|i| (1000 + i, 1000 + i)).chain([(79, 81)]).collect();
        let mut except = rule(Action::Allow);
        except.protocol = Some(Protocol::UDP);
        except.src.nets = vec!["10.77.0.0/24".parse().unwrap(), "fd77::/64".parse().unwrap()];
        except.src.not_nets = vec![node.pods[2].v4.into(), node.pods[2].v6.into()];
        let echo = |protocol, kind| {
            let mut r = rule(Action::Allow);
            r.protocol = Some(protocol);
            r.icmp = Some(Icmp { kind, code: Some(0) });
            r
        };
        let wide = policy(
            "wide",
            vec![
                tcp_ports(Action::Allow, &many),
                except,
                echo(Protocol::ICMP, 8),
                echo(Protocol::ICMPV6, 128),
            ],
            vec![],
        );
        node.apply(vec![
            PolicyDelta::Policy(wide),
            PolicyDelta::Endpoint(Arc::new(node.endpoint(0, vec![tier(&["wide"], &[])]))),
        ]);
        node.tcp(1, 0, 81, true);
        node.tcp(2, 0, 80, true);
        node.udp(1, 0, true);
        node.udp(2, 0, false);
        node.ping(1, 0, true);

        let out = policy("out", vec![], vec![tcp_ports(Action::Deny, &[(81, 81)]), rule(Action::Pass)]);
        node.apply(vec![
            PolicyDelta::Policy(out),
            PolicyDelta::Endpoint(Arc::new(node.endpoint(1, vec![tier(&[], &["out"])]))),
            PolicyDelta::Endpoint(Arc::new(node.endpoint(0, vec![]))),
        ]);
        node.tcp(1, 2, 81, false);
        node.tcp(1, 2, 80, true);
        node.ping(1, 0, true);

        // A device nobody described, and a source that is not the pod's.
        node.apply(vec![PolicyDelta::EndpointRemove(node.endpoint(2, vec![]).id)]);
        node.tcp(2, 0, 80, false);
        node.tcp(0, 2, 80, false);
        let spoofed = node.pods[0].ns.run(|| {
            let ok = Command::new("ip").args(["addr", "add", "10.77.0.99/32", "dev", "lo"]).status().unwrap();
            assert!(ok.success());
            let s = UdpSocket::bind("10.77.0.99:0").unwrap();
            s.send_to(b"spoof", (node.pods[1].v4, 80)).unwrap();
            s.local_addr().unwrap()
        });
        node.udp(0, 1, true);
        let mut seen = BTreeSet::new();
        let mut buf = [0; 16];
        node.pods[1].udp[0].set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        while let Ok((_, from)) = node.pods[1].udp[0].recv_from(&mut buf) {
            seen.insert(from);
        }
        assert!(!seen.contains(&spoofed), "{back_end:?}: a spoofed packet arrived");
    }
}

#[test]
fn a_restart_writes_nothing_and_a_stranger_undoes_nothing() {
    for back_end in ALL {
        let mut node = Node::new(2);
        node.start(back_end);
        let deny = || policy("deny", vec![], vec![]);
        let all = |node: &Node| node.everything(&[(0, tier(&["deny"], &[]))], &[deny()]);
        node.apply(all(&node));
        node.tcp(1, 0, 80, false);

        node.stop();
        // Nobody runs: what is denied stays denied, what is allowed stays allowed.
        node.tcp(1, 0, 80, false);
        node.tcp(0, 1, 80, true);
        node.start(back_end);
        let c = node.apply(all(&node)).counters;
        assert_eq!(
            (c.table_writes, c.set_writes, c.nft_writes),
            (0, 0, 0),
            "{back_end:?}: {c:?}\n{}",
            node.dump()
        );

        // Flushed, one rule deleted, a rule edited behind our comment.
        let strangers: &[&str] = match back_end {
            BackEnd::Legacy => &["iptables-legacy -F; ip6tables-legacy -F", "iptables-legacy -D FORWARD 1"],
            BackEnd::Nft => &["iptables-nft -F; ip6tables-nft -F", "iptables-nft -D FORWARD 1"],
            BackEnd::Nftables => &["nft flush ruleset", "nft flush chain ip brindle filter-FORWARD"],
        };
        for stranger in strangers {
            let repairs = node.report().counters.repairs;
            let done = node.ns.run(|| Command::new("sh").args(["-ec", stranger]).status().unwrap());
            assert!(done.success(), "{stranger}");
            node.tell(PolicyInput::Check);
            let r = node.report();
            assert_eq!(r.counters.repairs, repairs + 1, "{back_end:?} after {stranger}: {r:?}");
            node.tcp(1, 0, 80, false);
            node.tcp(0, 1, 80, true);
        }
    }
}

#[test]
fn asked_for_a_pods_policy_the_kernel_itself_is_read_and_what_it_lacks_is_named() {
    for back_end in ALL {
        let mut node = Node::new(2);
        node.start(back_end);
        // What somebody undoes must be found by the question, not by a check that was due.
        let allow = policy("allow", vec![rule(Action::Allow)], vec![rule(Action::Allow)]);
        node.apply(node.everything(&[(0, tier(&["allow"], &["allow"]))], &[allow]));
        let device = node.pods[0].device.clone();
        let key = Key::new(Kind::WorkloadEndpoint, Some("default"), "n1-k8s-p0-eth0");
        let ask = || {
            let answer = node.runtime.block_on(node.handle.as_ref().unwrap().verify(&key, LONG));
            answer.unwrap().join("\n")
        };
        assert_eq!(ask(), "", "{back_end:?}");
        let (own, other) = (format!("brindle-tw-{device}"), format!("brindle-tw-{}", node.pods[1].device));
        let table = |chain: &str| match back_end {
            BackEnd::Legacy => format!("iptables-legacy -F {chain}"),
            BackEnd::Nft => format!("iptables-nft -F {chain}"),
            BackEnd::Nftables => format!("nft flush chain ip brindle filter-{chain}"),
        };
        for chain in [own.as_str(), "brindle-to-wl", "brindle-from-wl"] {
            // The agent's own check may come between; then it is mended already, and undone once more.
            let said = (0..50).find_map(|_| {
                let done = node.ns.run(|| Command::new("sh").args(["-ec", &table(chain)]).status().unwrap());
                assert!(done.success(), "{chain}");
                Some(ask()).filter(|said| !said.is_empty())
            });
            let said = said.unwrap_or_default();
            assert!(said.contains(chain) && said.contains("lacks"), "{back_end:?} {chain}: {said:?}");
            // It is mended by then.
            assert_eq!(ask(), "", "{back_end:?} after {chain}");
        }
        let done = node.ns.run(|| Command::new("sh").args(["-ec", &table(&other)]).status().unwrap());
        assert!(done.success());
        assert_eq!(ask(), "", "{back_end:?}: another pod's chain");
        node.tcp(1, 0, 80, true);
    }
}

#[test]
fn what_a_pod_leaves_goes_after_the_next_one_is_served() {
    for back_end in ALL {
        let mut node = Node::new(3);
        node.start(back_end);
        let mut all = node.everything(&[], &[]);
        let newcomer = node.endpoint(2, vec![]);
        all.retain(|d| !matches!(d, PolicyDelta::Endpoint(e) if e.id == newcomer.id));
        node.apply(all);
        node.tcp(0, 1, 80, true);
        node.tcp(2, 1, 80, false);
        let gone = node.pods[0].device.clone();
        node.ns.run(|| {
            let mut rtnl = Rtnl::open().unwrap();
            let link = rtnl.link_by_name(&gone).unwrap().unwrap();
            rtnl.del_link(link.index).unwrap();
        });
        // Of two addresses it has one: rules of the other family are not made.
        let v4_only = EndpointPolicy { addresses: vec![node.pods[2].v4.into()], ..newcomer };
        let r = node.apply(vec![
            PolicyDelta::EndpointRemove(node.endpoint(0, vec![]).id),
            PolicyDelta::Endpoint(Arc::new(v4_only)),
        ]);
        assert_eq!(r.ready.len(), 2, "{r:?}");
        let to = SocketAddr::new(node.pods[1].v4, 80);
        assert!(node.pods[2].ns.run(|| TcpStream::connect_timeout(&to, LONG).is_ok()), "{back_end:?}");
        let to = SocketAddr::new(node.pods[1].v6, 80);
        assert!(!node.pods[2].ns.run(|| tcp(to)), "{back_end:?}: a family it has no address of");
        let deadline = Instant::now() + LONG;
        while node.dump().contains(&gone) {
            assert!(Instant::now() < deadline, "{back_end:?}: its rules stay\n{}", node.dump());
            std::thread::sleep(Duration::from_millis(20));
        }
        node.apply(vec![PolicyDelta::Endpoint(Arc::new(node.endpoint(2, vec![])))]);
        node.tcp(1, 2, 80, true);
        assert_eq!(node.report().counters.repairs, 0, "nobody else changed anything");
    }
}

#[test]
fn changing_the_back_end_lets_nothing_through() {
    let mut node = Node::new(2);
    node.start(BackEnd::Nft);
    let deny = policy("deny", vec![], vec![]);
    node.apply(node.everything(&[(0, tier(&["deny"], &[]))], &[deny]));
    node.udp(1, 0, false);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let target = SocketAddr::new(node.pods[0].v4, 80);
    std::thread::scope(|s| {
        let sender = s.spawn(|| {
            node.pods[1].ns.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let mut sent = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.send_to(b"leak", target);
                    sent += 1;
                    std::thread::sleep(Duration::from_micros(200));
                }
                sent
            })
        });
        for next in [BackEnd::Nftables, BackEnd::Legacy, BackEnd::Nft, BackEnd::Nftables] {
            node.tell(PolicyInput::Store(vec![upsert("default", configuration(next))]));
            let r = node.report();
            let name = match next {
                BackEnd::Legacy => "iptables-legacy",
                BackEnd::Nft => "iptables-nft",
                BackEnd::Nftables => "nftables",
            };
            assert_eq!((r.back_end, &r.problems), (name, &vec![]), "{r:?}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(sender.join().unwrap() > 0);
    });
    node.pods[0].udp[0].set_read_timeout(Some(SHORT)).unwrap();
    let mut buf = [0; 16];
    let got = node.pods[0].udp[0].recv_from(&mut buf);
    assert!(got.is_err(), "a denied packet came through: {got:?}");
    node.tcp(0, 1, 80, true);
    let left = node.dump();
    let (iptables, _) = left.split_once("== nft").unwrap();
    assert!(!iptables.contains("brindle"), "the former back end is gone:\n{iptables}");
}

#[test]
fn a_node_without_rules_denies_new_flows_of_workloads_until_the_resources_are_known() {
    let mut node = Node::new(2);
    // Connection tracking works as on a node with a kube-proxy.
    let track = "iptables-nft -A INPUT -m conntrack --ctstate INVALID -j RETURN";
    assert!(node.ns.run(|| Command::new("sh").args(["-ec", track]).status().unwrap()).success());
    node.tcp(0, 1, 80, true);
    let to = SocketAddr::new(node.pods[1].v4, 81);
    let mut open = node.pods[0].ns.run(|| TcpStream::connect_timeout(&to, LONG).unwrap());
    let (mut other, _) = node.pods[1]._servers[1].accept().unwrap();
    other.set_read_timeout(Some(LONG)).unwrap();

    let setup =
        PolicySetup { node: "n1".into(), families: Vec::new(), prefixes: Vec::new(), calico: || None };
    let tools = Box::new(Tools::default());
    node.handle = Some(node.ns.run(|| spawn_policy(&setup, tools, Box::new(Nothing)).unwrap()));
    let r = node.report();
    assert!(!r.in_sync && r.ready.is_empty(), "{r:?}");
    node.tcp(0, 1, 80, false);
    node.udp(1, 0, false);
    assert!(!node.pods[0].ns.run(|| tcp("169.254.1.1:22".parse().unwrap())));
    open.write_all(b"still here").unwrap();
    let mut buf = [0; 10];
    other.read_exact(&mut buf).expect("an open flow goes on");

    node.tell(PolicyInput::Store(vec![SyncEvent::InSync]));
    node.apply(node.everything(&[], &[]));
    node.tcp(0, 1, 80, true);
    node.udp(1, 0, true);

    // The next start finds rules and leaves them alone.
    node.stop();
    node.handle =
        Some(node.ns.run(|| spawn_policy(&setup, Box::new(Tools::default()), Box::new(Nothing)).unwrap()));
    assert_eq!(node.report().counters.table_writes, 0);
    node.tcp(0, 1, 80, true);
}

#[test]
fn a_mixture_of_both_iptables_is_refused_and_a_choice_helps() {
    let mut node = Node::new(1);
    for make in ["legacy", "nft"] {
        let line = format!("iptables-{make} -A INPUT -s 192.0.2.66 -j ACCEPT");
        assert!(node.ns.run(|| Command::new("sh").args(["-ec", &line]).status().unwrap()).success());
    }
    let setup =
        PolicySetup { node: "n1".into(), families: Vec::new(), prefixes: Vec::new(), calico: || None };
    let tools = Box::new(Tools::new(Variant::Legacy));
    node.handle = Some(node.ns.run(|| spawn_policy(&setup, tools, Box::new(Nothing)).unwrap()));
    let mut deltas = node_settings();
    deltas.push(PolicyDelta::InSync);
    node.tell(PolicyInput::Deltas(deltas));
    let r = node.report();
    assert!(!r.in_sync && r.problems.iter().any(|p| p.contains("set iptablesBackend")), "{r:?}");
    node.tell(PolicyInput::Store(vec![upsert("default", configuration(BackEnd::Legacy))]));
    let r = node.apply(vec![]);
    assert_eq!(r.back_end, "iptables-legacy");
}

fn node_settings() -> Vec<PolicyDelta> {
    vec![PolicyDelta::Settings(PolicySettings::default())]
}
