//! Queues and packing: whatever happened, decoding everything that was sent gives what should be known; and a
//! neighbor that reads nothing costs memory by the size of the table.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use bytes::BytesMut;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use crate::{
    af::{Family, PerFamily},
    rib::{Inward, Rewrite, Rib, RibPeer, group::RING_MAX},
    speaker::{ExportPolicy, NextHopPolicy, PeerId, SpeakerConfig},
    wire::{AttrSet, Message, NextHop, Nlri, Prefixes, Reach, Update, WireCx, next_frame},
};

pub(super) const CX: WireCx =
    WireCx { four_octet_as: true, extended_message: false, add_path: [false; 2], ibgp: true };

pub(super) fn peer(n: u32, client: bool) -> RibPeer {
    let ip = |net: u8| IpAddr::V4(Ipv4Addr::new(10, net, 0, n as u8 + 1));
    RibPeer {
        id: PeerId(n),
        ibgp: true,
        client,
        router_id: Ipv4Addr::new(10, 0, 0, n as u8 + 1),
        address: ip(0),
        local_address: "10.9.9.9".parse().unwrap(),
        own_next_hop: PerFamily::default(),
        cluster_id: Ipv4Addr::new(9, 9, 9, 9),
        local_asn: 64_512,
        allow_own_as: 0,
        next_hop: NextHopPolicy::Auto,
        policy: Arc::new(ExportPolicy::default()),
        import: Default::default(),
        families: PerFamily([true, true]),
        add_path: PerFamily([None, None]),
        write: CX,
        rewrite: Rewrite::default(),
        inward: Inward::default(),
    }
}

pub(super) fn rib() -> Rib {
    Rib::new(SpeakerConfig::new(64_512, Ipv4Addr::new(9, 9, 9, 9)))
}

fn v4(n: u32) -> Nlri<Ipv4Net> {
    Nlri { prefix: Ipv4Net::new(Ipv4Addr::from_bits(0x0A80_0000 + n), 32).unwrap(), path_id: 0 }
}

fn v6(n: u32) -> Nlri<Ipv6Net> {
    let net: Ipv6Net = "fd00::/64".parse().unwrap();
    let address = std::net::Ipv6Addr::from_bits(net.addr().to_bits() + u128::from(n));
    Nlri { prefix: Ipv6Net::new(address, 128).unwrap(), path_id: 0 }
}

/// An announcement of both families.
pub(super) fn announce(from: &RibPeer, prefixes: &[u32], med: u32) -> Update {
    let hop4 = match from.address {
        IpAddr::V4(a) => NextHop::V4(a),
        IpAddr::V6(_) => unreachable!("peers have IPv4 addresses here"),
    };
    let hop6 =
        NextHop::V6 { global: std::net::Ipv6Addr::from_bits(u128::from(from.id.0) + 1), link_local: None };
    Update {
        attributes: Some(AttrSet { med: Some(med), local_pref: Some(100), ..AttrSet::default() }),
        reach: vec![
            Reach { next_hop: hop4, prefixes: Prefixes::V4(prefixes.iter().map(|n| v4(*n)).collect()) },
            Reach { next_hop: hop6, prefixes: Prefixes::V6(prefixes.iter().map(|n| v6(*n)).collect()) },
        ],
        ..Update::default()
    }
}

pub(super) fn withdraw(prefixes: &[u32]) -> Update {
    Update {
        withdrawn: vec![
            Prefixes::V4(prefixes.iter().map(|n| v4(*n)).collect()),
            Prefixes::V6(prefixes.iter().map(|n| v6(*n)).collect()),
        ],
        ..Update::default()
    }
}

/// What somebody knows who has read everything.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Receiver {
    pub(super) known: BTreeMap<IpNet, (AttrSet, IpAddr)>,
    pub(super) messages: usize,
    pub(super) announced: usize,
    pub(super) withdrawn: usize,
    pub(super) end_of_rib: Vec<Family>,
}

impl Receiver {
    pub(super) fn read(&mut self, mut bytes: BytesMut, cx: &WireCx) {
        while let Some((_, len)) = next_frame(&bytes, cx.max_len()).unwrap() {
            let Message::Update(u) = Message::parse(&bytes.split_to(len), cx).unwrap() else {
                panic!("only UPDATEs are queued")
            };
            assert!(u.faults.is_empty(), "{:?}", u.faults);
            self.messages += 1;
            self.end_of_rib.extend(u.end_of_rib);
            for p in &u.withdrawn {
                for net in nets(p) {
                    self.withdrawn += 1;
                    assert!(self.known.remove(&net).is_some(), "{net} withdrawn and never announced");
                }
            }
            for r in &u.reach {
                for net in nets(&r.prefixes) {
                    self.announced += 1;
                    self.known.insert(net, (u.attributes.clone().unwrap(), r.next_hop.ip()));
                }
            }
        }
        assert!(bytes.is_empty());
    }

    /// Pulls once.
    pub(super) fn pull(&mut self, rib: &mut Rib, peer: PeerId, limit: usize, cx: &WireCx) -> bool {
        let mut buf = BytesMut::new();
        let more = rib.pull(peer, limit, &mut buf);
        assert_eq!(more, !buf.is_empty());
        self.read(buf, cx);
        more
    }

    pub(super) fn pull_all(&mut self, rib: &mut Rib, peer: PeerId, cx: &WireCx) {
        while self.pull(rib, peer, 65_536, cx) {}
    }

    /// What the RIB says the peer was told is what it knows.
    pub(super) fn agrees(&self, rib: &Rib, peer: PeerId) {
        let told: BTreeMap<IpNet, (AttrSet, IpAddr)> =
            rib.advertised(peer).map(|(net, _, a, hop)| (net, (a, hop.unwrap()))).collect();
        assert_eq!(told, self.known);
    }
}

fn nets(p: &Prefixes) -> Vec<IpNet> {
    match p {
        Prefixes::V4(l) => l.iter().map(|n| IpNet::V4(n.prefix)).collect(),
        Prefixes::V6(l) => l.iter().map(|n| IpNet::V6(n.prefix)).collect(),
    }
}

#[test]
fn prefixes_with_equal_attributes_share_messages() {
    let (mut rib, from, to) = (rib(), peer(0, true), peer(1, true));
    rib.peer_up(&from);
    rib.peer_up(&to);
    // One at a time, two attribute sets in turn.
    for n in 0..10_000 {
        rib.update(&from, announce(&from, &[n], n % 2));
    }
    let mut r = Receiver::default();
    r.pull_all(&mut rib, to.id, &CX);
    assert_eq!(r.known.len(), 20_000);
    // A /32 takes 5 octets and a /128 17; 4,096 hold about 800 and 235.
    // Each pull of 64 KiB ends with a message that is not full.
    assert!(r.messages <= 2 * (7 + 23 + 4) + 2, "{}", r.messages);
    assert_eq!(r.end_of_rib, Family::ALL);
    r.agrees(&rib, to.id);

    rib.refresh(to.id, Family::Ipv4Unicast, false);
    r.pull_all(&mut rib, to.id, &CX);
    assert_eq!(r.announced, 30_000);

    let mut wide = peer(2, true);
    wide.write.extended_message = true;
    wide.families = PerFamily([true, false]);
    rib.peer_up(&wide);
    let mut r = Receiver::default();
    r.pull_all(&mut rib, wide.id, &wide.write);
    assert_eq!((r.known.len(), r.messages), (10_000, 2 + 1));
}

#[test]
fn the_bell_rings_once_until_everything_is_read() {
    let (mut rib, from, to) = (rib(), peer(0, true), peer(1, true));
    rib.peer_up(&from);
    rib.peer_up(&to);
    assert_eq!(rib.take_ring().collect::<Vec<_>>(), [from.id, from.id, to.id, to.id]);
    rib.update(&from, announce(&from, &[1], 0));
    assert_eq!(rib.take_ring().count(), 0);
    let mut r = Receiver::default();
    r.pull_all(&mut rib, to.id, &CX);
    rib.update(&from, announce(&from, &[2], 0));
    rib.update(&from, announce(&from, &[3], 0));
    assert_eq!(rib.take_ring().collect::<Vec<_>>(), [to.id, to.id]);
    r.pull_all(&mut rib, to.id, &CX);
    rib.update(&from, announce(&from, &[3], 0));
    assert_eq!(rib.take_ring().count(), 0, "nothing new");
}

#[test]
fn a_route_that_comes_and_goes_unsent_is_never_sent() {
    let (mut rib, from, to) = (rib(), peer(0, true), peer(1, true));
    rib.peer_up(&from);
    rib.peer_up(&to);
    let mut r = Receiver::default();
    r.pull_all(&mut rib, to.id, &CX);
    for med in 0..100 {
        rib.update(&from, announce(&from, &[1, 2, 3], med));
        rib.update(&from, withdraw(&[1, 2]));
    }
    r.pull_all(&mut rib, to.id, &CX);
    assert_eq!((r.announced, r.withdrawn), (2, 0), "prefix 3, both families");
    rib.update(&from, withdraw(&[3]));
    rib.update(&from, announce(&from, &[3], 7));
    r.pull_all(&mut rib, to.id, &CX);
    assert_eq!((r.announced, r.withdrawn), (4, 0), "a withdrawal overtaken by an announcement");
}

#[test]
fn a_neighbor_that_does_not_read_costs_memory_by_the_table_and_not_by_history() {
    let (mut rib, from, to, fast) = (rib(), peer(0, true), peer(1, true), peer(2, true));
    let (mut r, mut other) = (Receiver::default(), Receiver::default());
    for p in [&from, &to, &fast] {
        rib.peer_up(p);
    }
    // Both read once, so that both follow what is encoded for their group; then one stops.
    rib.update(&from, announce(&from, &[1], 0));
    r.pull_all(&mut rib, to.id, &CX);
    other.pull_all(&mut rib, fast.id, &CX);
    let mut most = 0;
    for round in 0..6_000u32 {
        let some: Vec<u32> = (0..50).map(|n| (n * 7 + round) % 100).collect();
        rib.update(&from, announce(&from, &some, round % 97));
        if round % 3 == 0 {
            rib.update(&from, withdraw(&some[..20]));
        }
        other.pull_all(&mut rib, fast.id, &CX);
        let (octets, waiting) = rib.unread(to.id);
        most = most.max(octets);
        // One ring a family, and what one more change adds.
        assert!(octets <= 2 * (RING_MAX + 65_536), "{octets} octets for {waiting} changes");
    }
    assert!(most > RING_MAX / 2, "history was longer than what is kept of it: {most}");
    let (octets, waiting) = rib.unread(to.id);
    assert!(octets == 0 && waiting <= rib.destinations(), "{octets} octets, {waiting} changes");
    other.agrees(&rib, fast.id);
    // And a table whose prefixes change all the time is no bigger than what is in it.
    for n in (0..60_000).step_by(100) {
        let some: Vec<u32> = (n..n + 100).collect();
        rib.update(&from, announce(&from, &some, 1));
        rib.update(&from, withdraw(&some));
    }
    assert!(rib.destinations() < 2 * 2_400, "{}", rib.destinations());
    r.pull_all(&mut rib, to.id, &CX);
    r.agrees(&rib, to.id);
}

#[test]
fn attributes_that_leave_no_room_for_a_prefix_withdraw_what_was_known() {
    let (mut rib, from, to) = (rib(), peer(0, true), peer(1, true));
    rib.peer_up(&from);
    rib.peer_up(&to);
    rib.update(&from, announce(&from, &[1, 2], 0));
    let mut r = Receiver::default();
    r.pull_all(&mut rib, to.id, &CX);
    assert_eq!(r.known.len(), 4);
    let mut long = announce(&from, &[1, 3], 0);
    let communities = (0..1_020).collect();
    long.attributes = Some(AttrSet { communities, ..long.attributes.take().unwrap() });
    rib.update(&from, long);
    r.pull_all(&mut rib, to.id, &CX);
    assert_eq!((r.known.len(), r.withdrawn), (2, 2));
    r.agrees(&rib, to.id);
}

#[derive(Clone, Debug)]
enum Op {
    Announce(usize, Vec<u32>, u32),
    Withdraw(usize, Vec<u32>),
    Pull(usize, usize),
    Down(usize),
    Up(usize),
    Deny(usize, bool),
    Refresh(usize),
    Client(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let some = || proptest::collection::vec(0u32..40, 1..20);
    prop_oneof![
        6 => (0usize..4, some(), 0u32..3).prop_map(|(n, p, m)| Op::Announce(n, p, m)),
        4 => (0usize..4, some()).prop_map(|(n, p)| Op::Withdraw(n, p)),
        4 => (0usize..4, 1usize..200).prop_map(|(n, l)| Op::Pull(n, l)),
        1 => (0usize..4).prop_map(Op::Down),
        2 => (0usize..4).prop_map(Op::Up),
        1 => (0usize..4, any::<bool>()).prop_map(|(n, b)| Op::Deny(n, b)),
        1 => (0usize..4).prop_map(Op::Refresh),
        1 => (0usize..4, any::<bool>()).prop_map(|(n, b)| Op::Client(n, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// A receiver asserts that nothing is withdrawn that it does not know; at the end all know what they should.
    #[test]
    fn everybody_ends_up_knowing_what_the_groups_say(ops in proptest::collection::vec(op(), 0..80)) {
        let mut rib = rib();
        let mut peers: Vec<RibPeer> = (0..4).map(|n| peer(n, n != 0)).collect();
        let mut receivers: Vec<Option<Receiver>> = (0..4).map(|_| None).collect();
        for op in ops {
            match op {
                Op::Announce(n, p, med) if receivers[n].is_some() => {
                    rib.update(&peers[n], announce(&peers[n], &p, med));
                }
                Op::Withdraw(n, p) if receivers[n].is_some() => {
                    rib.update(&peers[n], withdraw(&p));
                }
                Op::Pull(n, limit) => {
                    if let Some(r) = &mut receivers[n] {
                        r.pull(&mut rib, peers[n].id, limit, &CX);
                    }
                }
                Op::Down(n) if receivers[n].is_some() => {
                    receivers[n] = None;
                    rib.peer_down(&peers[n], PerFamily([false, n == 1]), PerFamily::default());
                }
                Op::Up(n) if receivers[n].is_none() => {
                    receivers[n] = Some(Receiver::default());
                    rib.peer_up(&peers[n]);
                }
                Op::Deny(n, deny) => {
                    let old = peers[n].clone();
                    let deny = if deny { vec!["10.128.0.0/28".parse().unwrap(), "fd00::8/125".parse().unwrap()] } else { vec![] };
                    peers[n].policy = Arc::new(ExportPolicy { deny, ..ExportPolicy::default() });
                    if receivers[n].is_some() {
                        rib.peer_changed(&old, &peers[n]);
                    }
                }
                Op::Client(n, client) if receivers[n].is_some() => {
                    let old = peers[n].clone();
                    peers[n].client = client;
                    rib.peer_changed(&old, &peers[n]);
                }
                Op::Refresh(n) => rib.refresh(peers[n].id, Family::Ipv4Unicast, false),
                Op::Announce(..) | Op::Withdraw(..) | Op::Down(_) | Op::Up(_) | Op::Client(..) => {}
            }
        }
        for (n, r) in receivers.iter_mut().enumerate() {
            if let Some(r) = r {
                r.pull_all(&mut rib, peers[n].id, &CX);
                r.agrees(&rib, peers[n].id);
                super::model::check_export(&rib, &peers, n, &r.known);
            }
        }
    }
}
