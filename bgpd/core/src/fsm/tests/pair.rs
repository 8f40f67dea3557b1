//! Two neighbors and a network with latency, crossed opens, loss and black holes; a virtual clock.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    sync::Arc,
};

use super::table::{config, me};
use crate::{
    fsm::{Action, Actions, Cause, ConnIds, Endpoints, Env, Identity, Peer, PeerInput, Side, StateKind},
    speaker::{ConnId, DownReason, PeerConfig},
    time::Mono,
    wire::{Message, Update},
};

/// One of the two.
pub(super) struct Node {
    pub(super) peer: Peer,
    pub(super) me: Identity,
    ids: ConnIds,
    next_accepted: u64,
    /// Whether somebody listens: otherwise dials are refused.
    pub(super) listening: bool,
    up: Option<ConnId>,
    pub(super) ups: usize,
    pub(super) downs: Vec<(Cause, bool)>,
    pub(super) received: Vec<Update>,
}

enum Packet {
    Syn { conn: ConnId },
    Connected { conn: ConnId },
    Refused { conn: ConnId },
    Data { conn: ConnId, message: Message },
    Fin { conn: ConnId },
}

pub(super) struct Pair {
    pub(super) now: Mono,
    pub(super) nodes: [Node; 2],
    pub(super) latency: u64,
    /// Everything sent from now on disappears.
    pub(super) black_hole: bool,
    wires: BTreeMap<(Mono, u64), (usize, Packet)>,
    serial: u64,
    last_arrival: [Mono; 2],
    /// Both names of each connection that exists: (node, conn) -> conn at the other.
    links: BTreeMap<(usize, ConnId), ConnId>,
}

fn address(n: usize) -> std::net::SocketAddr {
    (Ipv4Addr::new(10, 0, 0, n as u8 + 1), 179).into()
}

impl Pair {
    pub(super) fn new(seed: u64, latency: u64, change: impl Fn(usize, &mut PeerConfig)) -> Self {
        let node = |n: usize| {
            let mut cfg = config(2 - n as u8);
            change(n, &mut cfg);
            Node {
                peer: Peer::new(Arc::new(cfg), seed.wrapping_add(n as u64)),
                me: me(n as u8 + 1),
                ids: ConnIds::default(),
                next_accepted: 1,
                listening: true,
                up: None,
                ups: 0,
                downs: vec![],
                received: vec![],
            }
        };
        Self {
            now: Mono(0),
            nodes: [node(0), node(1)],
            latency,
            black_hole: false,
            wires: BTreeMap::new(),
            serial: 0,
            last_arrival: [Mono(0); 2],
            links: BTreeMap::new(),
        }
    }

    pub(super) fn input(&mut self, n: usize, input: PeerInput) {
        let mut out = Actions::new();
        let node = &mut self.nodes[n];
        let mut env = Env { now: self.now, me: node.me, ids: &mut node.ids };
        let named = match &input {
            PeerInput::Connected(id, _) => Some(*id),
            _ => None,
        };
        let known = node.peer.handle(&mut env, input, &mut out);
        if let (false, Some(id)) = (known, named) {
            out.push_back((id, Action::Close));
        }
        self.act(n, out);
    }

    fn send(&mut self, to: usize, after: u64, packet: Packet) {
        if !self.black_hole {
            // Nothing overtakes, whatever becomes of the latency.
            self.last_arrival[to] = self.now.plus_ms(after).max(self.last_arrival[to]);
            self.serial += 1;
            self.wires.insert((self.last_arrival[to], self.serial), (to, packet));
        }
    }

    fn act(&mut self, n: usize, mut out: Actions) {
        let other = 1 - n;
        while let Some((conn, action)) = out.pop_front() {
            let node = &mut self.nodes[n];
            match action {
                Action::Dial => self.send(other, self.latency, Packet::Syn { conn }),
                Action::Close => {
                    if let Some(far) = self.links.remove(&(n, conn)) {
                        self.send(other, self.latency, Packet::Fin { conn: far });
                    }
                }
                Action::Send(message) => {
                    if let Some(far) = self.links.get(&(n, conn)).copied() {
                        self.send(other, self.latency, Packet::Data { conn: far, message });
                    }
                }
                Action::Negotiated(_) | Action::Refresh(_) => {}
                Action::Up(_) => {
                    assert_eq!(node.up, None, "up twice");
                    node.up = Some(conn);
                    node.ups += 1;
                }
                Action::Down(d) => {
                    assert_eq!(node.up, Some(conn), "down without up");
                    node.up = None;
                    node.downs.push((d.cause, d.transport_lost));
                }
                Action::Deliver(u) => node.received.push(u),
            }
        }
        self.check(n);
    }

    fn check(&self, n: usize) {
        let peer = &self.nodes[n].peer;
        let established = peer.conns().filter(|c| c.state() == StateKind::Established).count();
        assert!(established <= 1, "two established connections");
        assert_eq!(established == 1, self.nodes[n].up.is_some());
        assert!(peer.conns().count() <= 2);
    }

    fn deliver(&mut self, n: usize, packet: Packet) {
        let other = 1 - n;
        match packet {
            Packet::Syn { conn } if self.nodes[n].listening => {
                let id = ConnId(self.nodes[n].next_accepted);
                self.nodes[n].next_accepted += 2;
                self.links.insert((n, id), conn);
                self.links.insert((other, conn), id);
                self.send(other, self.latency, Packet::Connected { conn });
                let ends = Endpoints { local: address(n), remote: address(other), initiator: Side::Them };
                self.input(n, PeerInput::Accepted(id, ends));
            }
            Packet::Syn { conn } => self.send(other, self.latency, Packet::Refused { conn }),
            Packet::Connected { conn } => {
                let ends = Endpoints { local: address(n), remote: address(other), initiator: Side::Us };
                self.input(n, PeerInput::Connected(conn, ends));
            }
            Packet::Refused { conn } => {
                self.input(n, PeerInput::Lost(conn, DownReason::ConnectFailed("refused".into())));
            }
            Packet::Data { conn, message } if self.links.contains_key(&(n, conn)) => {
                self.input(n, PeerInput::Message(conn, message));
            }
            Packet::Fin { conn } if self.links.remove(&(n, conn)).is_some() => {
                self.input(n, PeerInput::Lost(conn, DownReason::Closed("closed by peer".into())));
            }
            Packet::Data { .. } | Packet::Fin { .. } => {}
        }
    }

    /// Runs everything that happens until `until`.
    pub(super) fn run_until(&mut self, until: Mono) {
        loop {
            let packet = self.wires.keys().next().map(|k| k.0);
            let timer = self.nodes.iter().filter_map(|n| n.peer.deadline()).min();
            let Some(next) = packet.into_iter().chain(timer).min().filter(|t| *t <= until) else { break };
            self.now = self.now.max(next);
            if packet == Some(next) {
                let (_, (n, packet)) = self.wires.pop_first().expect("there is one");
                self.deliver(n, packet);
            }
            for n in 0..2 {
                let mut out = Actions::new();
                let node = &mut self.nodes[n];
                let mut env = Env { now: self.now, me: node.me, ids: &mut node.ids };
                node.peer.on_time(&mut env, &mut out);
                assert!(node.peer.deadline().is_none_or(|d| d > self.now), "a deadline in the past");
                self.act(n, out);
            }
        }
        self.now = until;
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        self.run_until(self.now.plus_ms(ms));
    }

    pub(super) fn start(&mut self) {
        self.input(0, PeerInput::Start);
        self.input(1, PeerInput::Start);
    }

    pub(super) fn states(&self) -> [StateKind; 2] {
        [self.nodes[0].peer.state(), self.nodes[1].peer.state()]
    }

    /// Both have a session, and it is the same one.
    pub(super) fn converged(&self) -> bool {
        match (self.nodes[0].up, self.nodes[1].up) {
            (Some(a), Some(b)) => self.links.get(&(0, a)) == Some(&b) && self.links.get(&(1, b)) == Some(&a),
            _ => false,
        }
    }

    /// All transports break; both sides notice.
    pub(super) fn cut(&mut self) {
        let links: VecDeque<(usize, ConnId)> = self.links.keys().copied().collect();
        self.links.clear();
        self.wires.retain(|_, (_, p)| !matches!(p, Packet::Data { .. } | Packet::Fin { .. }));
        for (n, conn) in links {
            self.input(n, PeerInput::Lost(conn, DownReason::Closed("reset".into())));
        }
    }

    /// Sends something on the established session of `n`.
    pub(super) fn say(&mut self, n: usize, message: Message) {
        if let Some(conn) = self.nodes[n].up {
            self.act(n, VecDeque::from([(conn, Action::Send(message))]));
        }
    }

    /// The first connection of `n` gets bytes that are no message.
    pub(super) fn garbage(&mut self, n: usize) {
        let conn = self.nodes[n].peer.ids().next();
        if let Some(conn) = conn.filter(|c| self.links.contains_key(&(n, *c))) {
            let bad = crate::wire::Notification { code: 1, subcode: 1, data: vec![] };
            self.input(n, PeerInput::Bad(conn, bad, "marker".into()));
        }
    }
}

impl Pair {
    /// Node `n` dies without a word and comes back with an empty memory; its old connections stay open at the other.
    pub(super) fn replace(&mut self, n: usize, mut node: Node) {
        node.ids = self.nodes[n].ids;
        node.next_accepted = self.nodes[n].next_accepted;
        self.nodes[n] = node;
        self.links.retain(|(owner, _), _| *owner != n);
    }
}
