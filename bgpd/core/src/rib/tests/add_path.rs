//! Add-path (RFC 7911): a neighbor is told several paths, knows them apart, and ends up with the right ones.

use std::{collections::BTreeMap, num::NonZeroU8};

use bytes::BytesMut;
use ipnet::IpNet;
use proptest::prelude::*;

use super::queue::{CX, announce, peer, rib, withdraw};
use crate::{
    af::{Family, PerFamily},
    rib::{Rib, RibPeer},
    speaker::{AddPathSend, PeerId},
    wire::{Message, Prefixes, WireCx, next_frame},
};

const WITH: WireCx = WireCx { add_path: [true, false], ..CX };

/// MEDs by prefix and path identifier.
type Known = BTreeMap<(IpNet, u32), Option<u32>>;

fn receiver(n: u32, send: AddPathSend) -> RibPeer {
    RibPeer {
        add_path: PerFamily([Some(send), None]),
        write: WITH,
        families: PerFamily([true, false]),
        ..peer(n, true)
    }
}

fn read(rib: &mut Rib, to: PeerId, known: &mut Known) {
    let mut buf = BytesMut::new();
    while rib.pull(to, 4_096, &mut buf) {}
    while let Some((_, len)) = next_frame(&buf, WITH.max_len()).unwrap() {
        let Message::Update(u) = Message::parse(&buf.split_to(len), &WITH).unwrap() else {
            panic!("an UPDATE")
        };
        for p in &u.withdrawn {
            let Prefixes::V4(list) = p else { panic!("IPv4") };
            for n in list {
                assert!(known.remove(&(n.prefix.into(), n.path_id)).is_some(), "{n:?} was not announced");
            }
        }
        for r in &u.reach {
            let Prefixes::V4(list) = &r.prefixes else { panic!("IPv4") };
            for n in list {
                known.insert((n.prefix.into(), n.path_id), u.attributes.as_ref().unwrap().med);
            }
        }
    }
}

fn meds(known: &Known) -> Vec<u32> {
    let mut all: Vec<u32> = known.values().map(|m| m.unwrap()).collect();
    all.sort_unstable();
    all
}

#[test]
fn all_paths_or_the_best_so_many_but_never_ones_own() {
    let mut rib = rib();
    let senders: Vec<RibPeer> = (0..3).map(|n| peer(n, true)).collect();
    let all = receiver(3, AddPathSend::All);
    let two = receiver(4, AddPathSend::Best(NonZeroU8::new(2).unwrap()));
    for p in senders.iter().chain([&all, &two]) {
        rib.peer_up(p);
    }
    for (s, med) in senders.iter().zip([30, 10, 20]) {
        rib.update(s, announce(s, &[1], med));
    }
    rib.update(&two, announce(&two, &[1], 5));
    let (mut of_all, mut of_two) = (Known::new(), Known::new());
    read(&mut rib, all.id, &mut of_all);
    read(&mut rib, two.id, &mut of_two);
    assert_eq!(meds(&of_all), [5, 10, 20, 30]);
    assert_eq!(meds(&of_two), [10], "the best two are its own and the one of MED 10");

    let ids: Vec<u32> = of_all.keys().map(|(_, id)| *id).collect();
    rib.update(&senders[1], withdraw(&[1]));
    rib.update(&senders[2], announce(&senders[2], &[1], 21));
    read(&mut rib, all.id, &mut of_all);
    read(&mut rib, two.id, &mut of_two);
    assert_eq!((meds(&of_all), meds(&of_two)), (vec![5, 21, 30], vec![21]));
    assert!(of_all.keys().all(|(_, id)| ids.contains(id)), "a path keeps its identifier");
    assert_eq!(rib.counts(all.id, Family::Ipv4Unicast).advertised, 3);

    of_all.clear();
    rib.refresh(all.id, Family::Ipv4Unicast);
    read(&mut rib, all.id, &mut of_all);
    assert_eq!(meds(&of_all), [5, 21, 30], "said again when asked");
}

proptest! {
    /// Whatever came and went, a neighbor with add-path knows exactly the usable paths of the others.
    #[test]
    fn what_is_known_is_what_there_is(ops in proptest::collection::vec((0usize..3, proptest::collection::vec(0u32..8, 1..6), 0u32..3, any::<bool>(), any::<bool>()), 0..60)) {
        let mut rib = rib();
        let senders: Vec<RibPeer> = (0..3).map(|n| peer(n, true)).collect();
        let to = receiver(3, AddPathSend::All);
        senders.iter().chain([&to]).for_each(|p| rib.peer_up(p));
        let mut known = Known::new();
        for (n, prefixes, med, gone, pull) in ops {
            if gone {
                rib.update(&senders[n], withdraw(&prefixes));
            } else {
                rib.update(&senders[n], announce(&senders[n], &prefixes, med));
            }
            if pull {
                read(&mut rib, to.id, &mut known);
            }
        }
        read(&mut rib, to.id, &mut known);
        let mut told: Vec<(IpNet, Option<u32>)> = known.iter().map(|((p, _), med)| (*p, *med)).collect();
        let mut there: Vec<(IpNet, Option<u32>)> = rib
            .paths(None)
            .filter(|p| matches!(p.prefix, IpNet::V4(_)))
            .map(|p| (p.prefix, p.attributes.med))
            .collect();
        told.sort_unstable();
        there.sort_unstable();
        prop_assert_eq!(told, there);
    }
}
