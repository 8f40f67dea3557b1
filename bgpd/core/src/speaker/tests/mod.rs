//! One speaker and a scripted neighbor: what it answers, what it uses, what it tells.

mod accepts;
mod default_route;
mod defects;
mod features;
mod opens;
mod own_next_hop;
mod own_restart;
mod policy;
mod refresh;
mod restarts;
mod routes;
mod routing;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use bytes::BytesMut;
use ipnet::IpNet;

use super::*;
use crate::{
    af::Family,
    wire::{
        AsPath, AttrSet, Capability, Message, NextHop, Nlri, Notification, Open, Prefixes, Reach, Update,
        WireCx, next_frame,
    },
};

pub(super) const AS: u32 = 64_512;

/// A speaker under test, and everything it has put out.
pub(super) struct Bench {
    pub(super) s: Speaker,
    pub(super) now: Mono,
    pub(super) out: VecDeque<Output>,
}

pub(super) fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

/// Neighbor `n` as the speaker (10.0.0.1) knows it; passive, so that only scripts connect.
pub(super) fn neighbor(n: u8, asn: u32) -> PeerConfig {
    PeerConfig { passive: true, ..PeerConfig::new(format!("peer{n}"), ip(n), asn) }
}

/// The OPEN of neighbor `n`.
pub(super) fn open(n: u8, asn: u32) -> Open {
    Open {
        asn,
        hold_time: 90,
        router_id: [10, 0, 0, n].into(),
        capabilities: vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::RouteRefresh,
            Capability::FourOctetAs(asn),
        ],
    }
}

/// The connection of neighbor `n`.
pub(super) const fn conn(n: u8) -> ConnId {
    ConnId(n as u64 * 2 + 1)
}

pub(super) fn net(s: &str) -> IpNet {
    s.parse().unwrap()
}

/// An announcement of neighbor `n`.
pub(super) fn announce(n: u8, prefixes: &[&str], set: AttrSet) -> Message {
    let list = prefixes.iter().map(|p| Nlri { prefix: p.parse().unwrap(), path_id: 0 }).collect();
    Message::Update(Update {
        attributes: Some(set),
        reach: vec![Reach { next_hop: NextHop::V4([10, 0, 0, n].into()), prefixes: Prefixes::V4(list) }],
        ..Update::default()
    })
}

pub(super) fn withdraw(prefixes: &[&str]) -> Message {
    let list = prefixes.iter().map(|p| Nlri { prefix: p.parse().unwrap(), path_id: 0 }).collect();
    Message::Update(Update { withdrawn: vec![Prefixes::V4(list)], ..Update::default() })
}

pub(super) fn ibgp() -> AttrSet {
    AttrSet { local_pref: Some(100), ..AttrSet::default() }
}

pub(super) fn via(asns: &[u32]) -> AttrSet {
    AttrSet { as_path: AsPath::sequence(asns.iter().copied()), ..AttrSet::default() }
}

impl Bench {
    pub(super) fn new(peers: Vec<PeerConfig>) -> Self {
        let mut cfg = SpeakerConfig::new(AS, [10, 0, 0, 1].into());
        cfg.multipath = Multipath::up_to(1);
        let mut b = Self { s: Speaker::new(cfg), now: Mono(1_000), out: VecDeque::new() };
        b.input(Input::SetPeers(peers));
        b.input(Input::SetLocalRoutes(vec![]));
        b
    }

    pub(super) fn input(&mut self, input: Input) {
        self.s.handle(self.now, input, &mut self.out);
    }

    pub(super) fn message(&mut self, n: u8, message: Message) {
        self.input(Input::Message { conn: conn(n), message });
    }

    pub(super) fn connect(&mut self, n: u8) {
        let local = SocketAddr::new(ip(1), 179);
        self.input(Input::Accepted {
            conn: conn(n),
            local,
            remote: SocketAddr::new(ip(n), 40_000),
            interface: None,
        });
    }

    /// Up to Established.
    pub(super) fn establish(&mut self, n: u8, open: Open) {
        self.connect(n);
        self.message(n, Message::Open(open));
        self.message(n, Message::Keepalive);
        assert_eq!(self.state(n), StateKind::Established);
    }

    pub(super) fn state(&self, n: u8) -> StateKind {
        self.s.peers().find(|p| p.address == ip(n)).unwrap().state
    }

    pub(super) fn wait(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while let Some(at) = self.s.deadline().filter(|d| *d <= end) {
            self.now = at.max(self.now);
            self.s.on_time(self.now, &mut self.out);
        }
        self.now = end;
    }

    /// NOTIFICATIONs sent since the last call of something that clears.
    pub(super) fn notifications(&self) -> Vec<(u8, u8)> {
        self.out
            .iter()
            .filter_map(|o| match o {
                Output::Send { message: Message::Notification(n), .. } => Some((n.code, n.subcode)),
                _ => None,
            })
            .collect()
    }

    /// Forwarding changes, and forgets all outputs.
    pub(super) fn fib(&mut self) -> Vec<(IpNet, Vec<IpAddr>)> {
        self.out
            .drain(..)
            .filter_map(|o| match o {
                Output::Fib(f) => Some((f.prefix, f.next_hops.to_vec())),
                _ => None,
            })
            .collect()
    }

    pub(super) fn events(&self) -> Vec<String> {
        self.out
            .iter()
            .filter_map(|o| match o {
                Output::Event(e) => Some(format!("{e:?}")),
                _ => None,
            })
            .collect()
    }

    /// What neighbor `n` would read now.
    pub(super) fn pull(&mut self, n: u8) -> Vec<Update> {
        let cx = self
            .s
            .peers
            .values()
            .find_map(|p| p.up.as_ref().filter(|u| u.conn == conn(n)))
            .map(|u| u.session.write);
        let cx: WireCx = cx.unwrap();
        let mut buf = BytesMut::new();
        while self.s.next_update(conn(n), 4_096, &mut buf) {}
        let mut all = vec![];
        while let Some((_, len)) = next_frame(&buf, cx.max_len()).unwrap() {
            match Message::parse(&buf.split_to(len), &cx).unwrap() {
                Message::Update(u) => all.push(u),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    /// Prefixes announced to `n` now.
    pub(super) fn told(&mut self, n: u8) -> Vec<IpNet> {
        self.pull(n)
            .iter()
            .flat_map(|u| &u.reach)
            .flat_map(|r| match &r.prefixes {
                Prefixes::V4(l) => l.iter().map(|n| IpNet::V4(n.prefix)).collect::<Vec<_>>(),
                Prefixes::V6(l) => l.iter().map(|n| IpNet::V6(n.prefix)).collect(),
            })
            .collect()
    }

    pub(super) fn why(&self, prefix: &str) -> Vec<String> {
        self.s.rib(Some(net(prefix))).map(|p| p.why()).collect()
    }
}

#[test]
fn a_connection_from_nobody_we_know_is_refused() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.out.clear();
    b.connect(9);
    assert!(matches!(b.out.pop_back(), Some(Output::Close { .. })));
    assert!(b.events()[0].contains("not a configured neighbor"));
    b.message(9, Message::Keepalive);
    b.input(Input::Connected {
        conn: ConnId(44),
        local: SocketAddr::new(ip(1), 1),
        remote: SocketAddr::new(ip(9), 179),
    });
    assert_eq!(b.out.pop_back(), Some(Output::Close { conn: ConnId(44) }));
}

#[test]
fn settings_that_cannot_work_are_named_and_the_others_are_used() {
    let mut b = Bench::new(vec![]);
    b.out.clear();
    let faulty = |change: fn(&mut PeerConfig)| {
        let mut cfg = neighbor(3, AS);
        change(&mut cfg);
        cfg
    };
    b.input(Input::SetPeers(vec![
        faulty(|c| c.asn = 0),
        faulty(|c| c.families.clear()),
        faulty(|c| c.hold_time = 2),
        faulty(|c| c.address = "0.0.0.0".parse().unwrap()),
        neighbor(2, AS),
        PeerConfig { name: "again".into(), ..neighbor(2, AS) },
    ]));
    let events = b.events();
    for what in ["AS 0", "no address family", "hold time of 1 or 2", "no unicast", "configured twice"] {
        assert_eq!(
            events.iter().filter(|e| e.contains("Config") && e.contains(what)).count(),
            1,
            "{what}: {events:?}"
        );
    }
    let names: Vec<String> = b.s.peers().map(|p| p.name).collect();
    assert_eq!(names, ["again"]);
}

#[test]
fn two_neighbors_at_one_address_are_told_apart_by_port_when_we_dial() {
    let mut b = Bench::new(vec![]);
    let other = PeerConfig { port: 1_179, passive: false, ..neighbor(2, AS) };
    b.input(Input::SetPeers(vec![PeerConfig { passive: false, ..neighbor(2, AS) }, other]));
    let ports: Vec<u16> = b
        .out
        .iter()
        .filter_map(|o| match o {
            Output::Dial { to, .. } => Some(to.port()),
            _ => None,
        })
        .collect();
    assert_eq!(ports, [179, 1_179]);
}

#[test]
fn shutdown_says_goodbye_to_everybody_and_nobody_gets_in_again() {
    let mut b = Bench::new(vec![neighbor(2, AS), neighbor(3, AS)]);
    b.establish(2, open(2, AS));
    b.establish(3, open(3, AS));
    b.input(Input::Shutdown);
    assert_eq!(b.notifications(), [(6, 2), (6, 2)]);
    b.out.clear();
    b.connect(2);
    assert_eq!(b.state(2), StateKind::Idle);
    assert!(b.events()[0].contains("shutting down"));
    assert_eq!(b.s.deadline(), None);
}

#[test]
fn a_peer_that_reads_nothing_is_given_up_with_the_right_words() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, open(2, AS));
    b.input(Input::SendStalled { conn: conn(2) });
    assert_eq!(b.notifications(), [(8, 0)]);
    assert_eq!(
        b.s.peers().next().unwrap().last_error.unwrap(),
        "peer reads nothing: send hold timer expired"
    );
}

#[test]
fn a_peer_whose_messages_wait_for_their_turn_is_not_given_up() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, open(2, AS));
    let hold = u64::from(b.s.peers().next().unwrap().session.unwrap().hold_time) * 1_000;
    b.wait(hold - 1);
    b.input(Input::Heard { conn: conn(2) });
    b.wait(hold - 1);
    assert_eq!(b.state(2), StateKind::Established);
    b.wait(2);
    assert_eq!(b.notifications(), [(4, 0)]);
}

#[test]
fn where_packets_go_can_be_asked_for_as_it_was_told() {
    let mut b = Bench::new(vec![neighbor(2, AS), neighbor(3, AS)]);
    b.input(Input::SetMultipath(Multipath::up_to(4)));
    for n in [2, 3] {
        b.establish(n, open(n, AS));
    }
    let of = |rate: f32| AttrSet {
        ext_communities: [0x4004_fde9_u64 << 32 | u64::from(rate.to_bits())].into_iter().collect(),
        ..AttrSet::default()
    };
    b.out.clear();
    b.message(2, announce(2, &["10.9.0.0/24", "10.9.1.0/24"], of(3e9)));
    // Of the second prefix the same next hop is taught twice.
    b.message(3, announce(3, &["10.9.0.0/24"], of(1e9)));
    b.message(3, announce(2, &["10.9.1.0/24"], of(1e9)));
    let told: BTreeMap<IpNet, Vec<IpAddr>> = b.fib().into_iter().collect();
    assert_eq!(told[&net("10.9.0.0/24")], [ip(2), ip(2), ip(2), ip(3)]);
    assert_eq!(told[&net("10.9.1.0/24")], [ip(2)]);
    for (prefix, hops) in told {
        assert_eq!(b.s.next_hops_to(prefix).to_vec(), hops);
    }
    assert!(b.s.next_hops_to(net("10.9.2.0/24")).is_empty());
    // One that tells nothing: all are equal.
    b.message(3, announce(3, &["10.9.0.0/24"], AttrSet::default()));
    assert_eq!(b.fib(), [(net("10.9.0.0/24"), vec![ip(2), ip(3)])]);
}

#[test]
fn clear_resets_softly_or_hard() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.input(Input::SetLocalRoutes(vec![LocalRoute {
        prefix: net("10.1.0.0/26"),
        next_hop: None,
        attributes: AttrSet::default(),
    }]));
    b.establish(2, open(2, AS));
    let peer = b.s.peers().next().unwrap().id;
    assert_eq!(b.told(2), [net("10.1.0.0/26")]);
    assert_eq!(b.told(2), []);
    b.input(Input::Clear { peer, how: Clear::SoftOut });
    assert_eq!(b.told(2), [net("10.1.0.0/26")]);
    b.out.clear();
    b.input(Input::Clear { peer, how: Clear::SoftIn });
    assert!(matches!(
        b.out.pop_front(),
        Some(Output::Send { message: Message::RouteRefresh(r), .. }) if (r.afi, r.safi, r.subtype) == (1, 1, 0)
    ));
    b.input(Input::Clear { peer, how: Clear::Reset });
    assert_eq!(b.notifications(), [(6, 4)]);
    assert_eq!(b.state(2), StateKind::Active);
    b.establish(2, open(2, AS));
    assert_eq!(b.told(2), [net("10.1.0.0/26")]);
}

#[test]
fn bytes_that_are_no_message_end_the_session_with_the_decoders_verdict() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, open(2, AS));
    let notification = Notification { code: 1, subcode: 1, data: vec![] };
    b.input(Input::BadMessage { conn: conn(2), notification, what: "the marker is not all ones".into() });
    assert_eq!(b.notifications(), [(1, 1)]);
    let error = b.s.peers().next().unwrap().last_error.unwrap();
    assert!(error.ends_with("the marker is not all ones"), "{error}");
    // Not before the back-off is over.
    b.connect(2);
    assert_eq!(b.state(2), StateKind::Idle);
    b.wait(1_000);
    b.establish(2, open(2, AS));
}

#[test]
fn status_tells_what_was_agreed_and_counted() {
    let mut cfg = neighbor(2, AS);
    cfg.families = Family::ALL.to_vec();
    let mut b = Bench::new(vec![cfg]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.2.0.0/26", "10.3.0.0/26"], ibgp()));
    let s = b.s.peers().next().unwrap();
    assert_eq!((s.state, s.since, s.sessions, s.updates), (StateKind::Established, Mono(1_000), 1, 1));
    assert_eq!((s.routes.0[0].received, s.routes.0[1].received), (2, 0));
    let session = s.session.unwrap();
    assert_eq!((session.hold_time, session.keepalive, session.ibgp), (90, 30, true));
    assert_eq!(session.families.0, [true, false]);
    assert_eq!(session.capabilities, open(2, AS).capabilities);
    assert_eq!(b.s.owner(conn(2)), Some(s.id));
}
