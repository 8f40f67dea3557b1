//! Policy while packets flow: the agent dies and comes back, and the back end changes; no packet of an allowed flow is
//! lost, none of a denied one arrives, and an agent that finds everything as it should be writes nothing. Needs root.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use brindle_integration::{
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
