//! A network of speakers in one process: virtual clock, latency, real bytes, killed and silenced nodes, and for each
//! node a forwarding table that outlives its speaker as the kernel's does.
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use brindle_bgpd_core::{
    speaker::{
        ConnId, DownReason, Event, Input, LocalRoute, Output, PeerConfig, Recorded, Speaker, SpeakerConfig,
    },
    time::Mono,
    wire::{AttrSet, Message, WireCx, next_frame},
};
use bytes::BytesMut;
use ipnet::IpNet;

pub(crate) const AS: u32 = 64_512;

/// A node: its settings, its speaker while it lives, its kernel.
pub(crate) struct Node {
    pub(crate) cfg: SpeakerConfig,
    pub(crate) address: Ipv4Addr,
    pub(crate) peers: Vec<PeerConfig>,
    pub(crate) routes: Vec<LocalRoute>,
    pub(crate) speaker: Option<Speaker>,
    /// The kernel's routes.
    pub(crate) fib: BTreeMap<IpNet, Vec<IpAddr>>,
    /// Routes of an earlier run that were not confirmed yet.
    unconfirmed: BTreeSet<IpNet>,
    pub(crate) in_sync: Option<Mono>,
    pub(crate) events: Vec<(Mono, Event)>,
    /// Routes that were removed from the kernel, ever.
    pub(crate) removals: usize,
    /// Inputs, if they are recorded.
    pub(crate) recording: Option<Vec<Recorded>>,
    cx: BTreeMap<ConnId, (WireCx, WireCx)>,
    next_accepted: u64,
    /// Nothing arrives or leaves.
    pub(crate) silent: bool,
}

enum Packet {
    Syn { from: usize, conn: ConnId },
    Connected { conn: ConnId },
    Refused { conn: ConnId },
    Bytes { from: (usize, ConnId), conn: ConnId, bytes: BytesMut },
    Fin { conn: ConnId },
}

/// The network.
pub(crate) struct Net {
    pub(crate) now: Mono,
    pub(crate) nodes: Vec<Node>,
    pub(crate) latency: u64,
    wires: BTreeMap<(Mono, u64), (usize, Packet)>,
    serial: u64,
    last_arrival: BTreeMap<(usize, usize), Mono>,
    links: BTreeMap<(usize, ConnId), (usize, ConnId)>,
    pub(crate) bytes: usize,
}

pub(crate) fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, (n / 200) as u8, (n % 200) as u8 + 1)
}

pub(crate) fn block(n: usize) -> IpNet {
    format!("10.244.{n}.0/26").parse().unwrap()
}

pub(crate) fn own(prefix: IpNet) -> LocalRoute {
    LocalRoute { prefix, next_hop: None, attributes: AttrSet::default() }
}

impl Net {
    /// `n` nodes with addresses and a block each, without peers.
    pub(crate) fn new(n: usize) -> Self {
        let nodes = (0..n)
            .map(|i| Node {
                cfg: SpeakerConfig { seed: i as u64, ..SpeakerConfig::new(AS, address(i)) },
                address: address(i),
                peers: vec![],
                routes: vec![own(block(i))],
                speaker: None,
                fib: BTreeMap::new(),
                unconfirmed: BTreeSet::new(),
                in_sync: None,
                events: vec![],
                removals: 0,
                recording: None,
                cx: BTreeMap::new(),
                next_accepted: 1,
                silent: false,
            })
            .collect();
        Self {
            now: Mono(0),
            nodes,
            latency: 2,
            wires: BTreeMap::new(),
            serial: 0,
            last_arrival: BTreeMap::new(),
            links: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// A neighbor as Calico configures it: the one with the greater address (as a string) is the passive one.
    pub(crate) fn neighbor(of: usize, to: usize, asn: u32) -> PeerConfig {
        let mut cfg = PeerConfig::new(format!("node{to}"), address(to).into(), asn);
        cfg.kind = "mesh".into();
        cfg.passive = address(to).to_string() > address(of).to_string();
        cfg
    }

    /// Everybody with everybody.
    pub(crate) fn mesh(n: usize) -> Self {
        let mut net = Self::new(n);
        for i in 0..n {
            net.nodes[i].peers = (0..n).filter(|j| *j != i).map(|j| Self::neighbor(i, j, AS)).collect();
        }
        net
    }

    /// A session between two nodes, in both configurations.
    pub(crate) fn link(&mut self, a: usize, b: usize, change: impl Fn(usize, &mut PeerConfig)) {
        for (of, to) in [(a, b), (b, a)] {
            let mut cfg = Self::neighbor(of, to, self.nodes[to].cfg.asn);
            change(of, &mut cfg);
            self.nodes[of].peers.push(cfg);
        }
    }

    pub(crate) fn start(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.speaker = Some(Speaker::new(node.cfg.clone()));
        node.in_sync = None;
        node.silent = false;
        node.unconfirmed = node.fib.keys().copied().collect();
        let (peers, routes) = (node.peers.clone(), node.routes.clone());
        self.input(n, Input::SetPeers(peers));
        self.input(n, Input::SetLocalRoutes(routes));
    }

    /// As `start`, but the speaker is not told its own routes (the agent cannot read them yet).
    pub(crate) fn start_without_routes(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.speaker = Some(Speaker::new(node.cfg.clone()));
        node.in_sync = None;
        let peers = node.peers.clone();
        self.input(n, Input::SetPeers(peers));
    }

    /// The node has lost its connections without telling anybody.
    pub(crate) fn forget_links(&mut self, n: usize) {
        self.nodes[n].speaker = None;
        self.nodes[n].cx.clear();
        self.links.retain(|(owner, _), _| *owner != n);
    }

    pub(crate) fn start_all(&mut self) {
        for n in 0..self.nodes.len() {
            self.start(n);
        }
    }

    /// kill -9: the process is gone, its kernel closes the connections, its routes stay.
    pub(crate) fn kill(&mut self, n: usize) {
        self.nodes[n].speaker = None;
        self.nodes[n].cx.clear();
        let mine: Vec<(usize, ConnId)> = self.links.keys().filter(|(o, _)| *o == n).copied().collect();
        for key in mine {
            if let Some((other, far)) = self.links.remove(&key) {
                self.send(n, other, Packet::Fin { conn: far });
            }
        }
    }

    /// Power off, or a cut cable: nobody is told.
    pub(crate) fn silence(&mut self, n: usize) {
        self.nodes[n].silent = true;
    }

    /// The cable is back. What was lost meanwhile would be sent again; here the connections break instead.
    pub(crate) fn heal(&mut self, n: usize) {
        if !std::mem::take(&mut self.nodes[n].silent) {
            return;
        }
        let mine: Vec<(usize, ConnId)> = self.links.keys().filter(|(o, _)| *o == n).copied().collect();
        for key in mine {
            if let Some(other) = self.links.get(&key).copied() {
                self.send(n, other.0, Packet::Fin { conn: other.1 });
                self.send(other.0, n, Packet::Fin { conn: key.1 });
            }
        }
    }

    pub(crate) fn set_routes(&mut self, n: usize, routes: Vec<LocalRoute>) {
        self.nodes[n].routes = routes.clone();
        self.input(n, Input::SetLocalRoutes(routes));
    }

    fn send(&mut self, from: usize, to: usize, packet: Packet) {
        if self.nodes[from].silent || self.nodes[to].silent {
            return;
        }
        // Nothing overtakes, whatever becomes of the latency.
        let last = self.last_arrival.entry((from, to)).or_default();
        *last = self.now.plus_ms(self.latency).max(*last);
        self.serial += 1;
        self.wires.insert((*last, self.serial), (to, packet));
    }

    pub(crate) fn input(&mut self, n: usize, input: Input) {
        let mut out = VecDeque::new();
        let node = &mut self.nodes[n];
        if let Some(r) = &mut node.recording {
            r.push(Recorded { at: self.now, input: input.clone() });
        }
        let Some(speaker) = &mut node.speaker else { return };
        speaker.handle(self.now, input, &mut out);
        self.outputs(n, out);
    }

    fn outputs(&mut self, n: usize, mut out: VecDeque<Output>) {
        while let Some(o) = out.pop_front() {
            let node = &mut self.nodes[n];
            match o {
                Output::Dial { conn, to, .. } => {
                    match self.nodes.iter().position(|x| IpAddr::V4(x.address) == to.ip()) {
                        Some(other) => self.send(n, other, Packet::Syn { from: n, conn }),
                        None => self.send(n, n, Packet::Refused { conn }),
                    }
                }
                Output::Send { conn, message } => {
                    let (_, write) = node.cx.get(&conn).copied().unwrap_or_default();
                    let mut bytes = BytesMut::new();
                    message.emit(&write, &mut bytes).unwrap();
                    self.write(n, conn, bytes);
                }
                Output::Negotiated { conn, read, write } => {
                    node.cx.insert(conn, (read, write));
                }
                Output::Pending { conn } => self.pull(n, conn),
                Output::Close { conn } => {
                    node.cx.remove(&conn);
                    if let Some((other, far)) = self.links.remove(&(n, conn)) {
                        self.send(n, other, Packet::Fin { conn: far });
                    }
                }
                Output::Fib(change) => {
                    node.unconfirmed.remove(&change.prefix);
                    if change.next_hops.is_empty() {
                        node.removals += 1;
                        node.fib.remove(&change.prefix);
                    } else {
                        node.fib.insert(change.prefix, change.next_hops.to_vec());
                    }
                }
                Output::Locate(_) => {}
                Output::FibInSync => {
                    assert!(node.in_sync.is_none(), "in sync twice");
                    node.in_sync = Some(self.now);
                    for prefix in std::mem::take(&mut node.unconfirmed) {
                        node.removals += 1;
                        node.fib.remove(&prefix);
                    }
                }
                Output::Event(e) => node.events.push((self.now, e)),
            }
        }
    }

    /// A socket that is always writable.
    fn pull(&mut self, n: usize, conn: ConnId) {
        loop {
            let mut bytes = BytesMut::new();
            let Some(speaker) = &mut self.nodes[n].speaker else { return };
            if !speaker.next_update(conn, 65_536, &mut bytes) {
                assert!(bytes.is_empty());
                return;
            }
            assert!(!bytes.is_empty());
            self.write(n, conn, bytes);
        }
    }

    fn write(&mut self, n: usize, conn: ConnId, bytes: BytesMut) {
        self.bytes += bytes.len();
        if let Some((other, far)) = self.links.get(&(n, conn)).copied() {
            self.send(n, other, Packet::Bytes { from: (n, conn), conn: far, bytes });
        }
    }

    fn deliver(&mut self, n: usize, packet: Packet) {
        if self.nodes[n].silent {
            return;
        }
        match packet {
            Packet::Syn { from, conn } if self.nodes[n].speaker.is_some() => {
                let id = ConnId(self.nodes[n].next_accepted);
                self.nodes[n].next_accepted += 2;
                self.links.insert((n, id), (from, conn));
                self.links.insert((from, conn), (n, id));
                self.send(n, from, Packet::Connected { conn });
                let (local, remote) = (socket(address(n), 179), socket(address(from), 40_000));
                self.input(n, Input::Accepted { conn: id, local, remote, interface: None });
            }
            Packet::Syn { from, conn } => self.send(n, from, Packet::Refused { conn }),
            Packet::Connected { conn } => {
                let Some((far, _)) = self.links.get(&(n, conn)) else { return };
                let (local, remote) = (socket(address(n), 40_000), socket(address(*far), 179));
                self.input(n, Input::Connected { conn, local, remote });
            }
            Packet::Refused { conn } => {
                let reason = DownReason::ConnectFailed("connection refused".into());
                self.input(n, Input::Disconnected { conn, reason });
            }
            // A host that knows nothing of the connection resets it.
            Packet::Bytes { from, conn, .. } if !self.links.contains_key(&(n, conn)) => {
                self.send(n, from.0, Packet::Fin { conn: from.1 });
            }
            Packet::Bytes { conn, mut bytes, .. } => {
                while self.links.contains_key(&(n, conn)) && !bytes.is_empty() {
                    let (read, _) = self.nodes[n].cx.get(&conn).copied().unwrap_or_default();
                    let input = match next_frame(&bytes, read.max_len()) {
                        Ok(Some((_, len))) => match Message::parse(&bytes.split_to(len), &read) {
                            Ok(message) => Input::Message { conn, message },
                            Err(e) => panic!("a speaker sent what does not parse: {e}"),
                        },
                        other => panic!("a speaker sent what is no frame: {other:?}"),
                    };
                    self.input(n, input);
                }
            }
            Packet::Fin { conn } => {
                if self.links.remove(&(n, conn)).is_some() {
                    self.nodes[n].cx.remove(&conn);
                    let reason = DownReason::Closed("closed by peer".into());
                    self.input(n, Input::Disconnected { conn, reason });
                }
            }
        }
    }

    /// The first of everything that will happen.
    fn next_moment(&self) -> Option<Mono> {
        let packet = self.wires.keys().next().map(|k| k.0);
        let timers = self.nodes.iter().filter_map(|n| n.speaker.as_ref()?.deadline());
        packet.into_iter().chain(timers).min()
    }

    pub(crate) fn run_until(&mut self, until: Mono) {
        while let Some(next) = self.next_moment().filter(|t| *t <= until) {
            self.now = self.now.max(next);
            while let Some(entry) = self.wires.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let (n, packet) = entry.remove();
                self.deliver(n, packet);
            }
            for n in 0..self.nodes.len() {
                let Some(speaker) = &mut self.nodes[n].speaker else { continue };
                if speaker.deadline().is_some_and(|d| d <= self.now) {
                    let mut out = VecDeque::new();
                    speaker.on_time(self.now, &mut out);
                    assert!(speaker.deadline().is_none_or(|d| d > self.now), "a deadline in the past");
                    self.outputs(n, out);
                }
            }
        }
        self.now = until;
    }

    pub(crate) fn run_ms(&mut self, ms: u64) {
        self.run_until(self.now.plus_ms(ms));
    }

    /// Runs until a condition holds; panics after `limit` milliseconds.
    pub(crate) fn wait(&mut self, limit: u64, what: &str, until: impl Fn(&Self) -> bool) -> u64 {
        let start = self.now;
        let end = start.plus_ms(limit);
        while !until(self) {
            assert!(self.now < end, "after {limit} ms still not: {what}");
            let next = self.next_moment().map_or(end, |t| t.max(self.now)).min(end);
            self.run_until(next);
        }
        self.now.since_ms(start)
    }

    pub(crate) fn speaker(&self, n: usize) -> &Speaker {
        self.nodes[n].speaker.as_ref().expect("the node is up")
    }

    pub(crate) fn established(&self, n: usize) -> usize {
        self.speaker(n).peers().filter(|p| p.state == brindle_bgpd_core::fsm::StateKind::Established).count()
    }

    /// Everybody that lives reaches the blocks of all `owners` directly, and knows no other block.
    pub(crate) fn all_reach(&self, owners: &[usize]) -> bool {
        self.nodes.iter().enumerate().filter(|(_, n)| n.speaker.is_some() && !n.silent).all(|(i, node)| {
            let others = owners.iter().filter(|o| **o != i);
            node.fib.len() == others.clone().count()
                && others.clone().all(|o| node.fib.get(&block(*o)) == Some(&vec![address(*o).into()]))
        })
    }
}

fn socket(ip: Ipv4Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}
