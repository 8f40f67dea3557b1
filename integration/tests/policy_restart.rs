//! Policy while packets flow: the agent dies and comes back, and the back end changes; no packet of an allowed flow is
//! lost, none of a denied one arrives, and an agent that finds everything as it should be writes nothing. The same when it
//! takes a node over from a Calico, whose rules go. Needs root.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use brindle_integration::{
    cni::sh,
    policy::{
        lab::{BackEnd, PolicyLab},
        world::{gnp, host, k8s, with},
    },
    wait::until,
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

const PORT: u16 = 7000;
const LIMIT: Duration = Duration::from_secs(60);

/// What happened to a stream of datagrams. They are never answered, so that each of them is judged by policy as the
/// first of its flow; and of connections, one after the other.
#[derive(Debug, Default)]
struct Stream {
    sent: AtomicU32,
    arrived: AtomicU32,
    connected: AtomicU32,
    refused: AtomicU32,
}

impl Stream {
    /// Everything sent has arrived.
    #[track_caller]
    fn complete(&self) {
        until("the last datagrams arrive", LIMIT, || {
            let (sent, arrived) = (self.sent.load(Ordering::SeqCst), self.arrived.load(Ordering::SeqCst));
            if sent == arrived && sent > 0 { Ok(()) } else { Err(format!("{arrived} of {sent}")) }
        });
        assert_eq!(self.refused.load(Ordering::SeqCst), 0, "{self:?}");
        assert!(self.connected.load(Ordering::SeqCst) > 0, "{self:?}");
    }

    #[track_caller]
    fn nothing(&self) {
        let (arrived, connected) =
            (self.arrived.load(Ordering::SeqCst), self.connected.load(Ordering::SeqCst));
        assert_eq!((arrived, connected), (0, 0), "{self:?}");
        assert!(self.sent.load(Ordering::SeqCst) > 0, "{self:?}");
    }
}

fn servers(ns: &NetNs, address: IpAddr) -> (UdpSocket, TcpListener) {
    ns.run(|| {
        let udp = UdpSocket::bind((address, PORT)).expect("the port is free");
        udp.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        // Room for all that is sent, so that nothing is lost to a reader the machine lets wait.
        nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))
            .expect("we are root");
        let tcp = TcpListener::bind((address, PORT)).expect("the port is free");
        tcp.set_nonblocking(true).expect("it can be");
        (udp, tcp)
    })
    .expect("the namespace is alive")
}

/// Sends until told to stop; then takes what is still under way.
fn flow(from: &NetNs, to: &NetNs, address: IpAddr, stop: &AtomicBool, stream: &Stream) {
    let (udp, tcp) = servers(to, address);
    let target = SocketAddr::new(address, PORT);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut buf = [0; 8];
            loop {
                let ended = done.load(Ordering::SeqCst);
                while tcp.accept().is_ok() {}
                match udp.recv_from(&mut buf) {
                    Ok(_) => drop(stream.arrived.fetch_add(1, Ordering::SeqCst)),
                    Err(_) if ended => return,
                    Err(_) => {}
                }
            }
        });
        s.spawn(|| {
            from.enter().expect("the namespace is alive");
            while !stop.load(Ordering::SeqCst) {
                match TcpStream::connect_timeout(&target, Duration::from_millis(900)) {
                    Ok(_) => stream.connected.fetch_add(1, Ordering::SeqCst),
                    Err(_) => stream.refused.fetch_add(1, Ordering::SeqCst),
                };
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let sender = s.spawn(|| {
            from.enter().expect("the namespace is alive");
            let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a port is free");
            while !stop.load(Ordering::SeqCst) {
                if socket.send_to(b"datagram", target).is_ok() {
                    stream.sent.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        sender.join().expect("it sends");
        done.store(true, Ordering::SeqCst);
    });
}

/// What `under_traffic` needs: ns1 takes what comes from `app: a`, ns2 what comes from `app: b`.
fn policies() -> [serde_json::Value; 2] {
    let from = |app: &str| json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]});
    [k8s("ns2", "closed", from("b")), k8s("ns1", "open", from("a"))]
}

/// Runs `change` while ns1/p1 sends to ns1/p2, which takes it, and to ns2/p1, which does not.
fn under_traffic(lab: &mut PolicyLab, change: impl FnOnce(&mut PolicyLab)) {
    lab.set(&with(policies()));
    let ns = |lab: &PolicyLab, name: &str| {
        NetNs::named(lab.pod(lab.site(name)).ns.name()).expect("the pod is there")
    };
    let (from, good, bad) = (ns(lab, "ns1/p1"), ns(lab, "ns1/p2"), ns(lab, "ns2/p1"));
    let address = |name: &str| lab.sites[lab.site(name)].addresses[0];
    let (to_good, to_bad) = (address("ns1/p2"), address("ns2/p1"));
    let (stop, allowed, denied) = (AtomicBool::new(false), Stream::default(), Stream::default());
    std::thread::scope(|s| {
        s.spawn(|| flow(&from, &good, to_good, &stop, &allowed));
        s.spawn(|| flow(&from, &bad, to_bad, &stop, &denied));
        until("traffic flows", LIMIT, || {
            let enough =
                allowed.arrived.load(Ordering::SeqCst) > 50 && denied.sent.load(Ordering::SeqCst) > 50;
            if enough { Ok(()) } else { Err(format!("{allowed:?}")) }
        });
        // A panic in the change must not leave the threads running.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(lab)));
        stop.store(true, Ordering::SeqCst);
        if let Err(e) = result {
            std::panic::resume_unwind(e);
        }
    });
    allowed.complete();
    denied.nothing();
}

#[test]
fn a_restart_loses_nothing_passes_nothing_and_writes_nothing() {
    for back_end in BackEnd::ALL {
        let mut lab = PolicyLab::new(back_end);
        under_traffic(&mut lab, |lab| {
            for _ in 0..2 {
                lab.node.kill_agent();
                lab.node.start_agent();
                lab.settle();
                let p = lab.policy();
                let writes = (p.table_writes, p.set_writes, p.nft_writes, p.repairs);
                assert_eq!((p.in_sync, writes), (true, (0, 0, 0, 0)), "{back_end:?}: {p:?}");
            }
        });
    }
}

#[test]
fn changing_the_back_end_loses_nothing_and_passes_nothing() {
    let mut lab = PolicyLab::new(BackEnd::Nft);
    under_traffic(&mut lab, |lab| {
        for back_end in [BackEnd::Nftables, BackEnd::Legacy, BackEnd::Nft, BackEnd::Legacy, BackEnd::Nftables]
        {
            lab.change_back_end(back_end);
            let p = lab.policy();
            assert_eq!((&*p.back_end, &p.problems), (back_end.name(), &vec![]), "{p:?}");
        }
    });
}

/// Puts a program in front of one the agent calls. While `arm` is there, its next call that writes ends in the middle: of
/// several tables the first is written, of sets the first half of the lines, of nftables' one transaction nothing.
fn stumbling(dir: &Path, tool: &str) {
    let real = ["/usr/sbin", "/sbin", "/usr/bin"].map(|d| Path::new(d).join(tool));
    let real = real.iter().find(|p| p.is_file()).unwrap_or_else(|| panic!("{tool} is not installed"));
    let (writes, part) = match tool {
        "ipset" => (r#"[ "$1" = restore ]"#, r#"head -n $((lines / 2)) "$all""#),
        "nft" => (r#"[ "$1" = -f ]"#, "true"),
        _ => (":", r#"sed '/^COMMIT/q' "$all""#),
    };
    let text = format!(
        r#"#!/bin/sh
arm={dir}/arm-{tool}
if {writes} && rm "$arm" 2>/dev/null; then
    all={dir}/all-{tool}
    cat >"$all"
    lines=$(wc -l <"$all")
    {part} >"$all.part"
    [ ! -s "$all.part" ] || {real} "$@" <"$all.part" || exit
    echo "$(wc -l <"$all.part") of $lines" >{dir}/cut-{tool}
    echo "{tool}: ended in the middle" >&2
    exit 1
fi
exec {real} "$@"
"#,
        dir = dir.display(),
        real = real.display(),
    );
    let path = dir.join(tool);
    fs::write(&path, text).expect("the folder is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it was written");
}

/// The lines a program let pass, and those it was given.
fn cut(dir: &Path, tool: &str) -> (usize, usize) {
    let text = fs::read_to_string(dir.join(format!("cut-{tool}"))).unwrap_or_default();
    let (part, all) =
        text.trim().split_once(" of ").unwrap_or_else(|| panic!("{tool} was not asked to write"));
    (part.parse().expect("a number"), all.parse().expect("a number"))
}

#[test]
fn a_write_that_ends_in_its_middle_is_finished_and_passes_nothing() {
    for (back_end, tools) in [
        (BackEnd::Legacy, ["iptables-legacy-restore", "ip6tables-legacy-restore", "ipset"].as_slice()),
        (BackEnd::Nft, &["iptables-nft-restore", "ip6tables-nft-restore", "ipset"]),
        (BackEnd::Nftables, &["nft"]),
    ] {
        let mut lab = PolicyLab::new(back_end);
        let dir: PathBuf = lab.node.dir.join("stumbling");
        fs::create_dir(&dir).expect("the node's folder is writable");
        for tool in tools {
            stumbling(&dir, tool);
        }
        lab.node.kill_agent();
        lab.node.vars.push(("PATH".into(), format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display())));
        lab.node.start_agent();
        under_traffic(&mut lab, |lab| {
            for (i, tool) in tools.iter().enumerate() {
                // Every table and both families: a host endpoint, before DNAT, untracked, and networks that need sets.
                let deny = |nets: Value| json!({"action": "Deny", "source": {"nets": nets}});
                let rule = |n: usize| {
                    json!([deny(json!([format!("10.{n}.0.0/16"), "10.200.0.0/16"])),
                        deny(json!([format!("fd00:{n}::/64"), "fd00:200::/64"])), {"action": "Allow"}])
                };
                let on = |name: &str, more: &str, n: usize| {
                    let mut spec = json!({"selector": "role == 'host'", "order": 10, "types": ["Ingress"],
                        "applyOnForward": true, "ingress": rule(n)});
                    if !more.is_empty() {
                        spec[more] = true.into();
                    }
                    gnp(&format!("{name}-{i}"), spec)
                };
                let more = [
                    host(json!({"profiles": ["projectcalico-default-allow"]})),
                    on("host", "", 100 + 10 * i),
                    on("before", "preDNAT", 101 + 10 * i),
                    on("untracked", "doNotTrack", 102 + 10 * i),
                ];
                // All at once, and with what the last agent wrote in force.
                lab.node.kill_agent();
                lab.store(&with(policies().into_iter().chain(more)));
                fs::write(dir.join(format!("arm-{tool}")), "").expect("the folder is writable");
                lab.node.start_agent();
                lab.settle();
                let (part, all) = cut(&dir, tool);
                assert!(part < all && (*tool == "nft") == (part == 0), "{tool}: {part} of {all}");
                let p = lab.policy();
                assert_eq!((p.in_sync, &p.problems), (true, &vec![]), "{tool}: {p:?}");
            }
            // The next agent finds nothing to mend.
            lab.node.kill_agent();
            lab.node.start_agent();
            lab.settle();
            let p = lab.policy();
            let writes = (p.table_writes, p.set_writes, p.nft_writes, p.repairs);
            assert_eq!((p.in_sync, writes), (true, (0, 0, 0, 0)), "{back_end:?}: {p:?}");
        });
    }
}

/// Rules of others, which survive everything: as kube-proxy and an administrator have them.
const STRANGERS: &str = "\
*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:MY-CHAIN - [0:0]
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m comment --comment \"see cali: not its\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A INPUT -m comment --comment MY-rule -j MY-CHAIN
-A MY-CHAIN -i cali+ -j RETURN
COMMIT
";

/// What Calico has in a packet filter for these devices, and none other.
fn of_calico(digit: char, devices: &[String]) -> String {
    let mut known = String::new();
    for d in devices {
        for (way, flag) in [("from", "-i"), ("to", "-o")] {
            let chain = format!("cali-{}w-{d}", &way[..1]);
            known.push_str(&format!(
                ":{chain} - [0:0]\n\
                -A cali-{way}-wl-dispatch {flag} {d} -m comment --comment \"cali:k_{way}\" -g {chain}\n\
                -A {chain} -m comment --comment \"cali:a_{way}\" -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                -A {chain} -m comment --comment \"cali:b_{way}\" -j MARK --set-xmark 0x0/0x10000\n\
                -A {chain} -m comment --comment \"cali:c_{way}\" -j MARK --set-xmark 0x10000/0x10000\n"
            ));
        }
    }
    let mut text = String::from("*filter\n");
    // A chain is there before rules lead to it.
    let (declared, rules): (Vec<_>, Vec<_>) = known.lines().partition(|l| l.starts_with(':'));
    for chain in ["cali-FORWARD", "cali-from-wl-dispatch", "cali-to-wl-dispatch"] {
        text.push_str(&format!(":{chain} - [0:0]\n"));
    }
    declared.iter().chain(&rules).for_each(|l| text.push_str(&format!("{l}\n")));
    for (way, flag) in [("from", "-i"), ("to", "-o")] {
        text.push_str(&format!(
            "-A cali-FORWARD {flag} cali+ -m comment --comment \"cali:d_{way}\" -j cali-{way}-wl-dispatch\n\
            -A cali-{way}-wl-dispatch -m comment --comment \"cali:e_{way}\" -m comment --comment \"Unknown interface\" -j DROP\n"
        ));
    }
    text.push_str(
        "-I FORWARD 1 -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD\n\
        -A FORWARD -m comment --comment \"cali:S93hcgKJrXEqnTfs\" -m comment --comment \"Policy explicitly accepted \
        packet.\" -m mark --mark 0x10000/0x10000 -j ACCEPT\nCOMMIT\n",
    );
    text.push_str(&format!(
        "*nat\n:cali-POSTROUTING - [0:0]\n:cali-nat-outgoing - [0:0]\n\
        -I POSTROUTING 1 -m comment --comment \"cali:O3lYWMrLQYEMJtB5\" -j cali-POSTROUTING\n\
        -A cali-POSTROUTING -m comment --comment \"cali:Z-c7XtVd2Bq7s_hA\" -j cali-nat-outgoing\n\
        -A cali-nat-outgoing -m comment --comment \"cali:flqWnvo8yq4ULQLa\" -m set --match-set \
        cali{digit}0masq-ipam-pools src -m set ! --match-set cali{digit}0masq-ipam-pools dst -j MASQUERADE\nCOMMIT\n\
        *mangle\n:cali-PREROUTING - [0:0]\n\
        -I PREROUTING 1 -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING\n\
        -A cali-PREROUTING -m comment --comment \"cali:6BJqBjBC7crtA-7-\" -m mark --mark 0x10000/0x10000 -j ACCEPT\n\
        COMMIT\n*raw\n:cali-PREROUTING - [0:0]\n\
        -I PREROUTING 1 -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING\n\
        -A cali-PREROUTING -m comment --comment \"cali:XFX5xbM8B9qR10JG\" -j MARK --set-xmark 0x0/0xe0000\nCOMMIT\n"
    ));
    text
}

/// The same in nftables.
fn of_calico_in_nft(family: &str, devices: &[String]) -> String {
    let known = devices.iter().map(|d| format!("\"{d}\" : return")).collect::<Vec<_>>().join(", ");
    format!(
        "table {family} calico {{
            map known {{ type ifname : verdict; elements = {{ {known} }} }}
            chain filter-from {{ iifname vmap @known; drop comment \"cali:a; Unknown interface\"; }}
            chain filter-to {{ oifname vmap @known; drop comment \"cali:b; Unknown interface\"; }}
            chain filter-FORWARD {{ type filter hook forward priority 0; policy accept;
                iifname \"cali*\" jump filter-from; oifname \"cali*\" jump filter-to; }}
        }}\n"
    )
}

fn feed(lab: &PolicyLab, tool: &str, input: &str) {
    let file = lab.node.dir.join("input");
    fs::write(&file, input).expect("the node's folder is writable");
    sh(lab.node.ns.ns(), &format!("{tool} < {}", file.display()));
}

/// Everything a Calico leaves on a node that had these pods, with both makes of iptables and with nftables, and rules of
/// others beside it.
fn leave(lab: &PolicyLab) {
    let devices: Vec<String> = lab.node.devices();
    assert!(!devices.is_empty());
    feed(
        lab,
        "ipset restore",
        "create cali40masq-ipam-pools hash:net family inet\nadd cali40masq-ipam-pools 10.0.0.0/16\n\
        create cali60masq-ipam-pools hash:net family inet6\ncreate cali4t7 hash:ip family inet\n\
        create MY-set hash:ip family inet\n",
    );
    for make in ["legacy", "nft"] {
        for (tool, digit) in [("iptables", '4'), ("ip6tables", '6')] {
            feed(lab, &format!("{tool}-{make}-restore --noflush"), &of_calico(digit, &devices));
            feed(lab, &format!("{tool}-{make}-restore --noflush"), STRANGERS);
        }
    }
    let nft: String = ["ip", "ip6"].iter().map(|f| of_calico_in_nft(f, &devices)).collect();
    feed(lab, "nft -f -", &(nft + "table ip MY-table { chain MY-own { counter;}; }\n"));
}

/// What is in the kernel of Calico's, and of others'.
fn found(lab: &PolicyLab) -> (Vec<String>, Vec<String>) {
    let dump = lab.dump();
    let lines = |words: &[&str]| {
        let has = |l: &&str| words.iter().any(|w| l.contains(w));
        // Without counters.
        let bare = |l: &str| {
            l.split_once("] ").map_or(l, |(_, l)| l).split(" packets").next().unwrap_or_default().to_owned()
        };
        dump.lines().map(str::trim).filter(has).map(bare).collect::<Vec<_>>()
    };
    (
        lines(&["cali-", "\"cali:a", "\"cali:w", "\"cali:S", "cali40", "cali60", "cali4t", " calico"]),
        lines(&["KUBE-POSTROUTING", "KUBE-FORWARD", "MY-"]),
    )
}

/// Whether a TCP connection comes about.
fn connects(from: &NetNs, to: &NetNs, address: &str) -> bool {
    let at: SocketAddr = format!("{address}:{}", PORT + 1).parse().expect("an address");
    let listener = to.run(|| TcpListener::bind(at)).expect("alive").expect("the port is free");
    let done = from.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(2)).is_ok()).expect("alive");
    drop(listener);
    done
}

#[test]
fn what_a_calico_has_left_goes_and_its_neighbours_stay() {
    for back_end in BackEnd::ALL {
        let mut lab = PolicyLab::new(back_end);
        under_traffic(&mut lab, |lab| {
            lab.node.kill_agent();
            leave(lab);
            let (calicos, others) = found(lab);
            assert!(calicos.len() > 20 && others.len() > 10, "{calicos:#?} {others:#?}");
            lab.node.start_agent();
            lab.settle();
            // The kernel lets go of sets a moment after the rules that ask them.
            until("all of it is gone", LIMIT, || match found(lab) {
                (left, now) if left.is_empty() && now == others => Ok(()),
                other => Err(format!("{back_end:?}: {other:#?} instead of {others:#?}\n{}", lab.node.log())),
            });
            let p = lab.policy();
            assert_eq!((p.in_sync, &p.problems), (true, &vec![]), "{p:?}");
            let log = lab.node.log();
            let said: Vec<&str> = log.lines().filter(|l| l.contains("a Calico had left")).collect();
            assert!(said.len() == 1 && said[0].contains("tables=2"), "{said:?}");
            // A pod that Calico's rules would not have known, both ways.
            let new = lab.newcomer("ns3", "p9", &["10.0.2.9".into(), "fd00::2:9".into()]);
            let old = lab.pod(lab.site("ns3/p1")).ns.ns();
            assert!(connects(old, new.ns.ns(), "10.0.2.9"), "{}", lab.dump());
            assert!(connects(new.ns.ns(), old, "10.0.2.1"), "{}", lab.dump());
        });
    }
}

#[test]
fn while_a_calico_runs_its_rules_stay_and_are_named() {
    let mut lab = PolicyLab::new(BackEnd::Nft);
    let dir = lab.node.dir.join("calico");
    fs::create_dir(&dir).expect("the node's folder is writable");
    let path = dir.join("bird.ctl");
    let bird = lab.node.ns.ns().run(|| UnixListener::bind(&path)).expect("alive").expect("it can listen");
    leave(&lab);
    let before = found(&lab);
    // A check follows what is written.
    lab.set(&with(policies()));
    until("it is named", LIMIT, || {
        let p = lab.policy();
        let named =
            p.problems.iter().any(|l| l.contains("a Calico runs on this node") && l.contains("bird.ctl"));
        if named { Ok(()) } else { Err(format!("{p:?}")) }
    });
    assert_eq!(found(&lab), before);
    drop(bird);
    until("its rules go when it has gone", LIMIT, || {
        let (p, (left, others)) = (lab.policy(), found(&lab));
        assert_eq!(others, before.1);
        if p.problems.is_empty() && left.is_empty() { Ok(()) } else { Err(format!("{p:?} {left:#?}")) }
    });
}
