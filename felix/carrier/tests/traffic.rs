//! What two carriers do to packets, over a router, in namespaces of the test's own.
mod support;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use brindle_felix_core::ipip::{ipv4, segment};
use brindle_kernel::icmp::{Answer, ErrorKind};
use brindle_kernel::netlink::Rtnl;
use brindle_kernel::rawip::{Datagram, RawIp};
use brindle_kernel::sysctl;
use support::{A, B, INNER_A, INNER_B, MTU, ROUTER_B, Side, World, address, transfer, wait};

/// An inner packet from node a's side with a UDP payload.
fn inner(src: Ipv4Addr, payload: &[u8], tos: u8) -> Vec<u8> {
    let mut udp = Vec::from([0x30, 0x39, 0x30, 0x3a]);
    let length = u16::try_from(payload.len() + 8).unwrap();
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let head = ipv4::build(src, INNER_B, 17, tos, 64, 0, length);
    [head.as_slice(), &udp].concat()
}

/// Sends `body` behind an outer header from an address of namespace `ns` to node b.
fn inject(world: &World, ns: char, from: Ipv4Addr, tos: u8, body: &[u8]) {
    world
        .ns(ns)
        .run(|| {
            let raw = RawIp::open(4, from, 64, 1 << 16).unwrap();
            let whole = Datagram { to: B, tos, head: 0..0, body: 0..body.len() };
            raw.send(&[], body, &[whole]).unwrap();
        })
        .unwrap();
}

#[test]
fn small_and_full_packets_with_df_cross_the_tunnel_both_ways() {
    let world = World::with_carriers("ping");
    for (from, to) in [(Side::A, INNER_B), (Side::B, INNER_A)] {
        for len in [28, 84, usize::from(MTU)] {
            assert!(world.replies(from, to, len), "{from:?} {len}");
        }
        assert_eq!(world.echo(from, to, usize::from(MTU) + 1), None, "the kernel itself refuses it");
    }
    let stats = world.stats(Side::B);
    assert_eq!((stats.inbound.packets, stats.outbound.packets), (6, 6));
    assert_eq!(stats.inbound.bytes, 2 * (28 + 84 + 1480));
}

#[test]
fn an_oversize_packet_with_df_is_answered_with_the_mtu_of_the_path() {
    let world = World::with_carriers("pmtu");
    // The segment behind the router is narrower than anybody was told.
    world.ns('r').run(|| Rtnl::open().unwrap().set_mtu("rb", 1400).unwrap()).unwrap();
    let answer = |len| world.echo(Side::A, INNER_B, len);
    // The first one is lost: the router tells the kernel, the next one is refused by it.
    let told = Answer::Error {
        reporter: INNER_B.into(),
        to: INNER_B.into(),
        id: u16::try_from(std::process::id() & 0xffff).unwrap(),
        seq: 1,
        kind: ErrorKind::FragNeeded(1380),
    };
    wait("fragmentation needed, MTU 1380", || answer(1480) == Some(told));
    assert!(world.replies(Side::A, INNER_B, 1380));
    assert_eq!(answer(1381), None, "the sender's kernel knows by now");
    let stats = world.stats(Side::A).outbound;
    assert_eq!((stats.path_mtu_changes, stats.icmp_sent), (1, 1));
    assert!(stats.dropped_too_big >= 1, "{stats:?}");

    // TCP finds its way too: its large frames meet the same limit.
    transfer(&world, Side::A, Side::B, 4 << 20);
}

#[test]
fn an_oversize_packet_that_may_be_cut_is_cut() {
    let world = World::with_carriers("cut");
    world.ns('r').run(|| Rtnl::open().unwrap().set_mtu("rb", 1400).unwrap()).unwrap();
    let receiver = world.run(Side::B, || UdpSocket::bind((INNER_B, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let to = receiver.local_addr().unwrap();
    let sender = world.run(Side::A, || {
        // No DF on packets of new sockets.
        sysctl::set("net/ipv4/ip_no_pmtu_disc", "1").unwrap();
        UdpSocket::bind((INNER_A, 0)).unwrap()
    });
    let payload: Vec<u8> = (0..1452u32).map(|i| i.to_le_bytes()[0]).collect();
    let mut buffer = [0; 2000];
    wait("a datagram of 1452 bytes over a path of 1400", || {
        sender.send_to(&payload, to).unwrap();
        receiver.recv(&mut buffer).is_ok_and(|n| buffer[..n] == payload)
    });
    assert!(world.stats(Side::A).outbound.fragmented >= 1);
    assert_eq!(world.stats(Side::A).outbound.icmp_sent, 0);
}

#[test]
fn a_packet_from_a_stranger_is_dropped_and_counted() {
    let world = World::with_carriers("stranger");
    let receiver = world.run(Side::B, || UdpSocket::bind((INNER_B, 12346)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    inject(&world, 'r', ROUTER_B, 0, &inner(INNER_A, b"from a stranger", 0));
    wait("the stranger to be counted", || world.stats(Side::B).inbound.dropped_unknown_source == 1);
    assert_eq!(world.stats(Side::B).inbound.last_unknown_source, Some(ROUTER_B));
    inject(&world, 'a', A, 0, &inner(INNER_A, b"from a node", 0));
    let mut buffer = [0; 100];
    let n = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"from a node", "and nothing before it");
    assert_eq!(world.stats(Side::B).inbound.packets, 1);
}

#[test]
fn garbage_is_dropped_and_counted_and_traffic_goes_on() {
    let world = World::with_carriers("garbage");
    let mut seed = 7u32;
    for len in (0..1400).step_by(7) {
        let garbage: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                seed.to_be_bytes()[0]
            })
            .collect();
        inject(&world, 'a', A, 0, &garbage);
    }
    wait("200 packets of garbage", || world.stats(Side::B).inbound.dropped_inner_malformed == 200);
    // Congestion experienced on a packet whose ends know nothing of it.
    inject(&world, 'a', A, 3, &inner(INNER_A, b"marked", 0));
    wait("the marked packet", || world.stats(Side::B).inbound.dropped_ecn == 1);
    assert!(world.replies(Side::A, INNER_B, 84));
}

#[test]
fn an_outer_packet_in_fragments_is_put_together() {
    let world = World::with_carriers("frag");
    // A node with a wider link sends more than our segment takes; the router cuts the outer packet.
    world.run(Side::A, || Rtnl::open().unwrap().set_mtu("eth0", 3000).unwrap());
    world.ns('r').run(|| Rtnl::open().unwrap().set_mtu("ra", 3000).unwrap()).unwrap();
    let receiver = world.run(Side::B, || UdpSocket::bind((INNER_B, 12346)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let payload = vec![0x5a; 2500];
    let inside = inner(INNER_A, &payload, 0);
    world.run(Side::A, || {
        sysctl::set("net/ipv4/ip_no_pmtu_disc", "1").unwrap();
        let raw =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::from(4)))
                .unwrap();
        raw.send_to(&inside, &std::net::SocketAddrV4::new(B, 0).into()).unwrap();
    });
    let mut buffer = vec![0; 4000];
    let n = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], &payload);
}

#[test]
fn a_big_tcp_transfer_arrives_intact_both_ways() {
    let world = World::with_carriers("tcp");
    transfer(&world, Side::A, Side::B, 32 << 20);
    transfer(&world, Side::B, Side::A, 8 << 20);
    let stats = world.stats(Side::B);
    assert!(stats.inbound.frames < stats.inbound.packets, "segments were put together: {stats:?}");
    assert!(stats.outbound.frames < stats.outbound.packets, "frames were cut: {stats:?}");
    assert_eq!(stats.inbound.dropped_superframe, 0);
}

#[test]
fn a_destination_without_a_route_is_answered_unreachable() {
    let world = World::with_carriers("noroute");
    let nowhere = Ipv4Addr::new(192, 168, 9, 9);
    world.run(Side::A, || {
        let mut k = Rtnl::open().unwrap();
        let index = k.link_by_name("tunl0").unwrap().unwrap().index;
        let route = brindle_kernel::netlink::Route::new("192.168.9.0/24".parse().unwrap());
        k.add_route(&route.via(B.into(), Some(index), true)).unwrap();
    });
    let answer = world.echo(Side::A, nowhere, 84);
    assert!(matches!(answer, Some(Answer::Error { kind: ErrorKind::Unreachable(1), .. })), "{answer:?}");
    assert_eq!(world.stats(Side::A).outbound.dropped_no_route, 1);
}

#[test]
fn a_route_to_a_node_that_leads_into_the_tunnel_does_not_loop() {
    let world = World::with_carriers("loop");
    world.run(Side::A, || {
        let mut k = Rtnl::open().unwrap();
        let index = k.link_by_name("tunl0").unwrap().unwrap().index;
        let route = brindle_kernel::netlink::Route::new("10.2.0.2/32".parse().unwrap());
        k.add_route(&route.via(B.into(), Some(index), true)).unwrap();
    });
    assert_eq!(world.echo(Side::A, INNER_B, 84), None);
    let stats = world.stats(Side::A).outbound;
    assert_eq!((stats.dropped_loop, stats.packets), (1, 1), "{stats:?}");
}

#[test]
fn ecn_marks_travel_and_dscp_stays_inside() {
    let world = World::with_carriers("ecn");
    let watcher = world.run(Side::B, || RawIp::open(4, B, 64, 1 << 16).unwrap());
    let sender = world.run(Side::A, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        socket.bind(&std::net::SocketAddrV4::new(INNER_A, 0).into()).unwrap();
        socket.set_tos_v4(0xb9).unwrap(); // EF, ECT(1)
        socket
    });
    sender.send_to(b"x", &std::net::SocketAddrV4::new(INNER_B, 9).into()).unwrap();
    let mut batch = brindle_kernel::rawip::RecvBatch::new(4);
    watcher.receive(&mut batch).unwrap();
    let outer = batch.packet(0).unwrap();
    let header = ipv4::Header::parse(outer).unwrap();
    let inside = ipv4::Header::parse_checked(&outer[20..]).unwrap();
    let outside = (header.tos, header.ttl, header.dont_fragment, header.protocol);
    assert_eq!(outside, (1, 63, true, 4), "one router on the way");
    assert_eq!((header.src, header.dst), (A, B));
    assert_eq!((inside.tos, inside.ttl), (0xb9, 64));
    let whole = segment::transport_state(&outer[20..], &inside);
    assert_eq!(whole, segment::Transport::AsIs, "the inner checksum is complete on the wire");
}

#[test]
fn more_addresses_behind_a_node_are_found_by_the_longest_route() {
    let world = World::with_carriers("lpm");
    let borrowed = Ipv4Addr::new(192, 168, 1, 7);
    // An address of node a's block that lives on node b.
    world.run(Side::B, || address(&mut Rtnl::open().unwrap(), "lo", "192.168.1.7/32"));
    world.run(Side::A, || {
        let mut k = Rtnl::open().unwrap();
        let index = k.link_by_name("tunl0").unwrap().unwrap().index;
        let route = brindle_kernel::netlink::Route::new("192.168.1.7/32".parse().unwrap());
        k.add_route(&route.via(B.into(), Some(index), true)).unwrap();
    });
    let mut config = support::config(Side::A);
    config
        .routes
        .push(brindle_carrier::control::Route { dst: "192.168.1.7/32".parse().unwrap(), via: vec![B] });
    assert!(world.client(Side::A).set_config(&config).unwrap().changed);
    assert!(world.replies(Side::A, borrowed, 84));
}
