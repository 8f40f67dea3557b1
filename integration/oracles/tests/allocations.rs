//! What the way of an UPDATE through the speaker asks of the allocator, counted: reading it, deciding about its routes and
//! writing them for a group of two neighbors. Nothing is asked for a prefix; what is asked for a message does not grow with
//! its prefixes. The routes are known already and change their attributes to a set that was seen before, so that no table
//! grows while it is counted.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{collections::VecDeque, net::Ipv4Addr};

use allocation_counter::measure;
use brindle_bgpd_core::{
    fsm::{Identity, negotiate::our_open},
    speaker::{ConnId, Input, Output, PeerConfig, Speaker, SpeakerConfig},
    time::Mono,
    wire::{Message, NextHop, announce, encode_attrs},
};
use brindle_oracles::sample::{NEXT_HOP, SESSION, attributes, frame, prefixes};
use bytes::BytesMut;

const AS: u32 = 64_512;
const SIZES: [u32; 3] = [1, 100, 700];

/// Allocations made in `work`.
fn count(work: impl FnOnce()) -> u64 {
    measure(work).count_total
}

#[test]
fn reading_asks_three_times_however_many_prefixes_there_are() {
    let counts = SIZES.map(|n| {
        let octets = frame(n, 1);
        let mut read = None;
        let count = count(|| read = Some(Message::parse(&octets, &SESSION)));
        let Some(Ok(Message::Update(update))) = read else { panic!("{read:?}") };
        assert_eq!(update.reach[0].prefixes.len(), n as usize);
        count
    });
    // The prefixes, the list of them by next hop, and the two large communities.
    assert_eq!(counts, [3; 3]);
}

#[test]
fn writing_with_known_attributes_asks_for_nothing() {
    let list = prefixes(700);
    let mut block = BytesMut::new();
    encode_attrs(&attributes(1), Some(NEXT_HOP), &SESSION, &mut block).unwrap();
    let mut out = BytesMut::with_capacity(8_192);
    let hop = NextHop::V4(NEXT_HOP);
    assert_eq!(count(|| assert_eq!(announce(&SESSION, &hop, &list, &block, &mut out).unwrap(), 1)), 0);
}

/// A reflector with three clients, all established; the first sends, the others follow what their group is told.
fn reflector() -> Speaker {
    let address = |n: u32| Ipv4Addr::from_bits(0x0A00_0001 + n);
    let mut speaker = Speaker::new(SpeakerConfig::new(AS, Ipv4Addr::new(9, 9, 9, 9)));
    let mut out = VecDeque::new();
    let peers = (0..3).map(|n| PeerConfig {
        passive: true,
        reflector_client: true,
        ..PeerConfig::new(format!("client{n}"), address(n).into(), AS)
    });
    speaker.handle(Mono(0), Input::SetPeers(peers.collect()), &mut out);
    speaker.handle(Mono(0), Input::SetLocalRoutes(vec![]), &mut out);
    for n in 0..3 {
        let (conn, local) = (conn(n), "10.255.0.1:179".parse().unwrap());
        let remote = (address(n), 40_000).into();
        speaker.handle(Mono(0), Input::Accepted { conn, local, remote, interface: None }, &mut out);
        let me = Identity { asn: AS, router_id: address(n), restarting: false, preserved: false };
        let open = our_open(&PeerConfig::new("", address(0).into(), AS), &me);
        speaker.handle(Mono(0), Input::Message { conn, message: Message::Open(open) }, &mut out);
        speaker.handle(Mono(0), Input::Message { conn, message: Message::Keepalive }, &mut out);
    }
    assert_eq!(out.iter().filter(|o| matches!(o, Output::Negotiated { .. })).count(), 3);
    speaker
}

fn conn(n: u32) -> ConnId {
    ConnId(u64::from(n) * 2 + 1)
}

/// Octets for both receivers.
fn pull(speaker: &mut Speaker, buf: &mut BytesMut) -> usize {
    let mut octets = 0;
    for n in [1, 2] {
        buf.clear();
        while speaker.next_update(conn(n), 65_536, buf) {
            octets += buf.len();
            buf.clear();
        }
    }
    octets
}

#[test]
fn deciding_and_writing_for_a_group_asks_for_nothing_by_prefix() {
    let counts = SIZES.map(|n| {
        let mut speaker = reflector();
        let (mut out, mut buf) = (VecDeque::new(), BytesMut::with_capacity(1 << 17));
        let mut counts = (0, 0);
        // Twice each of the two sets before it counts.
        for (turn, med) in [1, 2, 1, 2, 1].into_iter().enumerate() {
            let message = Message::parse(&frame(n, med), &SESSION).unwrap();
            let decided =
                count(|| speaker.handle(Mono(1), Input::Message { conn: conn(0), message }, &mut out));
            out.clear();
            let mut octets = 0;
            let written = count(|| octets = pull(&mut speaker, &mut buf));
            assert!(octets > 2 * n as usize * 4, "turn {turn}: {octets} octets for {n} prefixes");
            counts = (decided, written);
        }
        counts
    });
    // The large communities, read again for export; a piece of the ring: its octets and its destinations.
    assert_eq!(counts, [(1, 2); 3]);
}
