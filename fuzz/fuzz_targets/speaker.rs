//! A speaker with hostile peers and an erratic driver: any order of connections, messages, time and configuration.
//!
//! Held to: no panic; deadlines lie ahead after `on_time`; nothing is sent on a connection the speaker closed;
//! whatever is sent fits into a message and is read back by our own parser without a fault; the FIB it reported is
//! empty once no peer is left.
#![no_main]

use std::collections::{BTreeMap, VecDeque};

use brindle_bgpd_core::{
    af::Family,
    speaker::{
        Clear, ConnId, DownReason, Input, LocalRoute, Output, PeerConfig, PeerId, Speaker, SpeakerConfig,
    },
    time::Mono,
    wire::{
        AsPath, AttrSet, Capability, Message, NextHop, Nlri, Notification, Open, Prefixes, Reach, Update,
        WireCx, next_frame,
    },
};
use bytes::BytesMut;
use ipnet::{IpNet, Ipv4Net};
use libfuzzer_sys::fuzz_target;

/// A connection as the driver knows it.
#[derive(Clone, Copy)]
struct Conn {
    /// Index of the peer.
    peer: u8,
    up: bool,
    read: WireCx,
    write: WireCx,
}

struct World {
    speaker: Speaker,
    now: Mono,
    conns: BTreeMap<ConnId, Conn>,
    fib: BTreeMap<IpNet, usize>,
    next_accepted: u64,
    out: VecDeque<Output>,
}

const PEERS: u8 = 4;

/// Two iBGP peers, one of them a reflector client, and two eBGP ones.
fn peer(i: u8) -> PeerConfig {
    let asn = if i < 2 { 65_000 } else { 65_000 + u32::from(i) };
    let mut p = PeerConfig::new(format!("p{i}"), [10, 0, 0, i + 1].into(), asn);
    p.families = Family::ALL.to_vec();
    p.reflector_client = i == 1;
    p.max_prefixes = 6;
    p.passive = i == 3;
    p
}

impl World {
    fn new() -> Self {
        let mut cfg = SpeakerConfig::new(65_000, [10, 0, 0, 100].into());
        cfg.cluster_id = Some([1, 1, 1, 1].into());
        Self {
            speaker: Speaker::new(cfg),
            now: Mono(1_000),
            conns: BTreeMap::new(),
            fib: BTreeMap::new(),
            next_accepted: 1,
            out: VecDeque::new(),
        }
    }

    fn give(&mut self, input: Input) {
        self.speaker.handle(self.now, input, &mut self.out);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.out.pop_front() {
            match output {
                Output::Dial { conn, to, .. } => {
                    let octet = if let std::net::IpAddr::V4(a) = to.ip() { a.octets()[3] } else { 1 };
                    let (read, write) = (WireCx::default(), WireCx::default());
                    let dialled = Conn { peer: octet.saturating_sub(1), up: false, read, write };
                    assert!(self.conns.insert(conn, dialled).is_none(), "{conn:?} is dialled twice");
                }
                Output::Send { conn, message } => {
                    let known =
                        self.conns.get(&conn).unwrap_or_else(|| panic!("{message:?} on a closed {conn:?}"));
                    let mut buf = BytesMut::new();
                    message.emit(&known.write, &mut buf).unwrap_or_else(|e| panic!("{e}: {message:?}"));
                }
                Output::Negotiated { conn, read, write } => {
                    let known = self.conns.get_mut(&conn).expect("negotiated on an open connection");
                    (known.read, known.write) = (read, write);
                }
                Output::Close { conn } => {
                    self.conns.remove(&conn);
                }
                Output::Fib(change) => {
                    assert!(change.next_hops.is_sorted());
                    if change.next_hops.is_empty() {
                        self.fib.remove(&change.prefix);
                    } else {
                        self.fib.insert(change.prefix, change.next_hops.len());
                    }
                }
                Output::Pending { .. } | Output::Locate(_) | Output::FibInSync | Output::Event(_) => {}
            }
        }
    }

    fn advance(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        // A timer may arm another one that is due at once, but not for ever.
        for _ in 0..100 {
            if self.speaker.deadline().is_none_or(|d| d > self.now) {
                return;
            }
            self.speaker.on_time(self.now, &mut self.out);
            self.drain();
        }
        panic!("deadlines stay in the past");
    }

    fn pick(&self, n: u8) -> Option<(ConnId, Conn)> {
        let at = usize::from(n).checked_rem(self.conns.len())?;
        self.conns.iter().nth(at).map(|(id, c)| (*id, *c))
    }

    fn connect(&mut self, n: u8) {
        let Some((conn, c)) = self.pick(n).filter(|(_, c)| !c.up) else { return };
        if let Some(known) = self.conns.get_mut(&conn) {
            known.up = true;
        }
        let remote = ([10, 0, 0, c.peer + 1], 179).into();
        self.give(Input::Connected { conn, local: ([10, 0, 0, 100], 40_000).into(), remote });
    }

    fn accept(&mut self, n: u8) {
        let conn = ConnId(self.next_accepted);
        self.next_accepted += 2;
        let (read, write) = (WireCx::default(), WireCx::default());
        self.conns.insert(conn, Conn { peer: n % (PEERS + 1), up: true, read, write });
        let remote = ([10, 0, 0, n % (PEERS + 1) + 1], 50_000).into();
        self.give(Input::Accepted { conn, local: ([10, 0, 0, 100], 179).into(), remote, interface: None });
    }

    /// The peer's bytes, through the parser as the driver does it.
    fn bytes(&mut self, n: u8, frame: &[u8]) {
        let Some((conn, c)) = self.pick(n).filter(|(_, c)| c.up) else { return };
        let input = match Message::parse(frame, &c.read) {
            Ok(message) => Input::Message { conn, message },
            Err(e) => Input::BadMessage { conn, notification: e.notification, what: e.what },
        };
        self.give(input);
    }

    fn message(&mut self, n: u8, message: &Message) {
        let Some((_, c)) = self.pick(n) else { return };
        let mut buf = BytesMut::new();
        if message.emit(&c.read, &mut buf).is_ok() {
            self.bytes(n, &buf);
        }
    }

    fn open(&mut self, n: u8, odd: u8) {
        let Some((_, c)) = self.pick(n) else { return };
        let asn = peer(c.peer).asn + u32::from(odd == 1);
        let mut capabilities = vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::MultiProtocol { afi: 2, safi: 1 },
            Capability::RouteRefresh,
            Capability::FourOctetAs(asn),
        ];
        if odd & 2 != 0 {
            let families = vec![brindle_bgpd_core::wire::GrFamily {
                afi: 1,
                safi: 1,
                forwarding_preserved: odd & 4 != 0,
            }];
            capabilities.push(Capability::GracefulRestart {
                restarting: odd & 8 != 0,
                notification: odd & 16 != 0,
                restart_time: 3,
                families,
            });
        }
        if odd & 32 != 0 {
            capabilities.extend([Capability::ExtendedMessage, Capability::AddPath(vec![(1, 1, 3)])]);
        }
        if odd & 64 != 0 {
            capabilities.truncate(2);
        }
        let hold_time = if odd & 128 != 0 { 3 } else { 90 };
        let router_id = [10, 0, 0, c.peer + 1].into();
        self.message(n, &Message::Open(Open { asn, hold_time, router_id, capabilities }));
    }

    fn update(&mut self, n: u8, what: [u8; 4]) {
        let Some((_, c)) = self.pick(n) else { return };
        let [prefix, path, attrs, next] = what;
        let net = Ipv4Net::new([10, 1, prefix % 8, 0].into(), 24 + prefix % 3).expect("at most 26").trunc();
        let list = Prefixes::V4(vec![Nlri { prefix: net, path_id: 0 }]);
        let mut update = Update::default();
        if attrs & 1 != 0 {
            update.withdrawn.push(list);
        } else {
            let mut as_path =
                AsPath::sequence((0..path % 4).map(|i| 65_000 + u32::from(path >> (2 * i) & 3)));
            if c.peer >= 2 {
                as_path.prepend(peer(c.peer).asn, 1);
            }
            update.attributes = Some(AttrSet {
                as_path,
                med: (attrs & 2 != 0).then_some(u32::from(path)),
                local_pref: (attrs & 4 != 0).then_some(u32::from(attrs)),
                communities: if attrs & 8 != 0 {
                    [0xffff_ff01].into_iter().collect()
                } else {
                    Default::default()
                },
                originator_id: (attrs & 16 != 0).then(|| [10, 0, 0, path % 101].into()),
                cluster_list: (attrs & 32 != 0).then(|| [1, 1, 1, path % 3].into()).into_iter().collect(),
                ..AttrSet::default()
            });
            let next_hop = NextHop::V4([10, 0, 0, next % 6].into());
            update.reach.push(Reach { next_hop, prefixes: list });
        }
        self.message(n, &Message::Update(update));
    }

    /// Pulls everything, and reads it as the peer would.
    fn pull(&mut self, limit: usize) {
        for (conn, c) in self.conns.clone() {
            let mut buf = BytesMut::new();
            let mut rounds = 0;
            while self.speaker.next_update(conn, limit, &mut buf) {
                rounds += 1;
                assert!(rounds < 10_000, "updates never end");
            }
            let mut rest = &buf[..];
            while !rest.is_empty() {
                let frame = next_frame(rest, c.write.max_len()).expect("sound frames").expect("whole frames");
                match Message::parse(&rest[..frame.1], &c.write) {
                    Ok(Message::Update(u)) => assert_eq!(u.faults, [], "{u:?}"),
                    other => panic!("{other:?}"),
                }
                rest = &rest[frame.1..];
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut world = World::new();
    world.give(Input::SetPeers((0..PEERS).map(peer).collect()));
    let mut data = data;
    for _ in 0..400 {
        let Some((step, rest)) = data.split_first_chunk::<6>() else { break };
        data = rest;
        let [command, n, a, b, c, d] = *step;
        match command % 16 {
            0 => world.advance(u64::from(u16::from_be_bytes([a, b]))),
            1 => world.advance(1_000 * u64::from(a)),
            2 => world.connect(n),
            3 => world.accept(n),
            4 => world.open(n, a),
            5 => world.message(n, &Message::Keepalive),
            6..=9 => world.update(n, [a, b, c, d]),
            10 => {
                // Raw bytes from the rest of the input.
                let len = usize::from(a).min(data.len());
                let (raw, rest) = data.split_at(len);
                data = rest;
                if let Some(frame) = brindle_fuzz::frame(b % 6, &[raw]) {
                    world.bytes(n, &frame);
                }
            }
            11 => {
                if let Some((conn, known)) = world.pick(n) {
                    let reason = if known.up {
                        DownReason::Closed("eof".into())
                    } else {
                        DownReason::ConnectFailed("refused".into())
                    };
                    world.conns.remove(&conn);
                    world.give(Input::Disconnected { conn, reason });
                }
            }
            12 => world.pull(usize::from(u16::from_be_bytes([a, b]))),
            13 => match a % 5 {
                0 => world.message(n, &Message::Notification(Notification::cease(b % 11))),
                1 => {
                    let how = [Clear::Reset, Clear::SoftOut, Clear::SoftIn][usize::from(b % 3)];
                    world.give(Input::Clear { peer: PeerId(u32::from(n % (PEERS + 1))), how });
                }
                2 => {
                    if let Some((conn, _)) = world.pick(n) {
                        let stalled = b % 2 == 0;
                        world.give(if stalled { Input::SendStalled { conn } } else { Input::Heard { conn } });
                    }
                }
                3 => {
                    let refresh = brindle_bgpd_core::wire::RouteRefresh {
                        afi: u16::from(b % 3),
                        safi: 1,
                        subtype: c % 4,
                    };
                    world.message(n, &Message::RouteRefresh(refresh));
                }
                _ => {
                    let cost = (b & 1 == 0).then_some(u32::from(b));
                    world.give(Input::NextHop { address: [10, 0, 0, c % 6].into(), cost });
                }
            },
            14 => {
                let routes = (0..8).filter(|i| a & (1 << i) != 0).map(|i| LocalRoute {
                    prefix: Ipv4Net::new([10, 1, i, 0].into(), 24).expect("at most 32").into(),
                    next_hop: None,
                    attributes: AttrSet::default(),
                });
                world.give(Input::SetLocalRoutes(routes.collect()));
            }
            _ => {
                let mut peers: Vec<PeerConfig> = (0..PEERS).filter(|i| a & (1 << i) != 0).map(peer).collect();
                if let Some(p) = peers.first_mut() {
                    p.hold_time = if b & 1 == 0 { 240 } else { 9 };
                }
                world.give(Input::SetPeers(peers));
            }
        }
    }
    world.pull(4_096);
    // Without peers there is nobody left to have learnt a route from.
    world.give(Input::SetPeers(Vec::new()));
    world.give(Input::SetLocalRoutes(Vec::new()));
    world.advance(1_000_000);
    assert!(world.fib.is_empty(), "left in the FIB: {:?}", world.fib);
    assert_eq!(world.speaker.rib(None).count(), 0);
});
