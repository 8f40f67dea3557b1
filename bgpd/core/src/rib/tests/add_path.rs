//! Add-path (RFC 7911): a neighbor is told several paths, knows them apart, and ends up with the right ones.

use std::{collections::BTreeMap, num::NonZeroU8};

use bytes::BytesMut;
use ipnet::IpNet;
use proptest::prelude::*;

use super::queue::{CX, announce, peer, rib, withdraw};
use crate::{
    af::{Family, PerFamily},
    rib::{MAX_PATHS, Rib, RibPeer},
    speaker::{AddPathSend, PeerId},
    wire::{Message, Nlri, Prefixes, Reach, Update, WireCx, next_frame},
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
    rib.refresh(all.id, Family::Ipv4Unicast, false);
    read(&mut rib, all.id, &mut of_all);
    assert_eq!(meds(&of_all), [5, 21, 30], "said again when asked");
}

/// A message about one prefix under an identifier of the sender's.
fn one(from: &RibPeer, prefix: u32, path_id: u32, med: Option<u32>) -> Update {
    let name = |p: Prefixes| match p {
        Prefixes::V4(list) => Prefixes::V4(list.into_iter().map(|n| Nlri { path_id, ..n }).collect()),
        Prefixes::V6(list) => Prefixes::V6(list),
    };
    let mut u = med.map_or_else(|| withdraw(&[prefix]), |med| announce(from, &[prefix], med));
    u.withdrawn.truncate(1);
    u.reach.truncate(1);
    u.withdrawn = u.withdrawn.into_iter().map(name).collect();
    u.reach = u.reach.into_iter().map(|r| Reach { prefixes: name(r.prefixes), ..r }).collect();
    u
}

#[test]
fn a_peer_that_invents_identifiers_for_ever_costs_nothing() {
    let mut rib = rib();
    let (from, to) = (peer(0, true), receiver(1, AddPathSend::All));
    rib.peer_up(&from);
    rib.peer_up(&to);
    let mut known = Known::new();
    read(&mut rib, to.id, &mut known);
    for id in 0..20_000 {
        rib.update(&from, one(&from, 1, id, Some(id)));
        if id > 0 {
            rib.update(&from, one(&from, 1, id - 1, None));
        }
        // One that does not read costs nothing either.
        if id % 7 == 0 {
            read(&mut rib, to.id, &mut known);
            assert_eq!(known.len(), 1);
        }
        assert!(rib.path_ids() <= 2, "{} identifiers after {id}", rib.path_ids());
    }
    read(&mut rib, to.id, &mut known);
    assert_eq!(meds(&known), [19_999]);
    assert!(known.keys().all(|(_, id)| *id <= 2), "numbers are used again: {known:?}");
    rib.peer_down(&to, PerFamily([false; 2]), PerFamily([false; 2]));
    assert_eq!(rib.path_ids(), 0, "nobody knows any");
}

/// As [`read`], and how often a prefix that was known was not for a while.
fn gaps(rib: &mut Rib, to: PeerId, known: &mut Known) -> usize {
    let before: Vec<IpNet> = known.keys().map(|(p, _)| *p).collect();
    let (mut buf, mut gaps) = (BytesMut::new(), 0);
    while rib.pull(to, 4_096, &mut buf) {}
    while let Some((_, len)) = next_frame(&buf, WITH.max_len()).unwrap() {
        let message = buf.split_to(len);
        let Message::Update(u) = Message::parse(&message, &WITH).unwrap() else { panic!("an UPDATE") };
        for p in u.withdrawn {
            let Prefixes::V4(list) = p else { panic!("IPv4") };
            list.iter().for_each(|n| assert!(known.remove(&(n.prefix.into(), n.path_id)).is_some()));
        }
        for r in u.reach {
            let Prefixes::V4(list) = r.prefixes else { panic!("IPv4") };
            known.extend(list.iter().map(|n| ((n.prefix.into(), n.path_id), None)));
        }
        gaps += before.iter().filter(|b| !known.keys().any(|(p, _)| p == *b)).count();
    }
    gaps
}

#[test]
fn where_another_path_takes_the_place_of_one_the_neighbor_is_never_without() {
    let mut rib = rib();
    let senders: Vec<RibPeer> = (0..3).map(|n| peer(n, true)).collect();
    let best = receiver(3, AddPathSend::Best(NonZeroU8::new(1).unwrap()));
    let single = RibPeer { add_path: PerFamily([None; 2]), ..receiver(4, AddPathSend::All) };
    senders.iter().chain([&best, &single]).for_each(|p| rib.peer_up(p));
    let all: Vec<u32> = (0..100).collect();
    for (s, med) in senders.iter().zip([10, 20, 30]) {
        for n in &all {
            rib.update(s, announce(s, &[*n], med * 100 + n));
        }
    }
    let (mut of_best, mut of_single) = (Known::new(), Known::new());
    assert_eq!(gaps(&mut rib, best.id, &mut of_best), 0);
    assert_eq!(gaps(&mut rib, single.id, &mut of_single), 0);
    assert_eq!((of_best.len(), of_single.len()), (100, 100));
    // The best one goes, of most prefixes in favour of the next.
    rib.update(&senders[0], withdraw(&all));
    assert_eq!(gaps(&mut rib, best.id, &mut of_best), 0);
    assert_eq!(gaps(&mut rib, single.id, &mut of_single), 0);
    // Several paths under identifiers instead of one without.
    let several = RibPeer { add_path: PerFamily([Some(AddPathSend::All), None]), ..single.clone() };
    rib.peer_changed(&single, &several);
    assert_eq!(gaps(&mut rib, single.id, &mut of_single), 0);
    assert_eq!((of_best.len(), of_single.len()), (100, 200));
    // What has nothing in its place goes.
    rib.update(&senders[1], withdraw(&all));
    rib.update(&senders[2], withdraw(&all[..50]));
    gaps(&mut rib, best.id, &mut of_best);
    gaps(&mut rib, single.id, &mut of_single);
    assert_eq!((of_best.len(), of_single.len()), (50, 50));
}

proptest! {
    /// Whatever peers do with their identifiers, ours are as many as paths told, and none when nobody knows any.
    #[test]
    fn identifiers_are_as_many_as_paths_told(
        ops in proptest::collection::vec((0usize..2, 0u32..3, any::<u8>(), proptest::option::of(0u32..4), 0u8..8), 0..120),
    ) {
        let mut rib = rib();
        let senders: Vec<RibPeer> = (0..2).map(|n| peer(n, true)).collect();
        let receivers = [receiver(2, AddPathSend::All), receiver(3, AddPathSend::Best(NonZeroU8::new(2).unwrap()))];
        senders.iter().chain(&receivers).for_each(|p| rib.peer_up(p));
        let mut known = [Known::new(), Known::new()];
        let none = PerFamily([false; 2]);
        for (n, prefix, id, med, then) in ops {
            rib.update(&senders[n], one(&senders[n], prefix, u32::from(id % 16), med));
            match then {
                0 | 1 => read(&mut rib, receivers[usize::from(then)].id, &mut known[usize::from(then)]),
                2 => {
                    rib.peer_down(&receivers[0], none, none);
                    rib.peer_up(&receivers[0]);
                    known[0].clear();
                }
                3 => {
                    // To single paths and back: everything is another route to it.
                    let single = RibPeer { add_path: PerFamily([None; 2]), ..receivers[1].clone() };
                    rib.peer_changed(&receivers[1], &single);
                    rib.peer_down(&single, none, none);
                    rib.peer_up(&receivers[1]);
                    known[1].clear();
                }
                _ => {}
            }
            let told = known.iter().map(Known::len).sum::<usize>();
            prop_assert!(rib.path_ids() <= told, "{} identifiers, {told} paths told", rib.path_ids());
        }
        for (r, k) in receivers.iter().zip(&mut known) {
            read(&mut rib, r.id, k);
        }
        let usable = rib.paths(None).count();
        prop_assert!(rib.path_ids() <= usable);
        senders.iter().for_each(|s| { rib.peer_down(s, none, none); });
        for (r, k) in receivers.iter().zip(&mut known) {
            read(&mut rib, r.id, k);
            prop_assert!(k.is_empty());
        }
        prop_assert_eq!(rib.path_ids(), 0);
    }

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

/// One prefix under these identifiers of one peer.
fn under(from: &RibPeer, ids: impl IntoIterator<Item = u32>) -> Update {
    let mut update = announce(from, &[1], 0);
    update.reach.truncate(1);
    let Prefixes::V4(list) = &mut update.reach[0].prefixes else { panic!("IPv4 is first") };
    *list = ids.into_iter().map(|path_id| Nlri { path_id, ..list[0] }).collect();
    update
}

#[test]
fn one_peer_has_so_many_paths_to_a_prefix_and_those_of_before_its_restart_count_for_themselves() {
    let max = u32::try_from(MAX_PATHS).unwrap();
    let mut rib = rib();
    let (a, b) = (peer(0, true), peer(1, true));
    rib.peer_up(&a);
    rib.peer_up(&b);
    assert_eq!(rib.update(&a, under(&a, (1..=max).rev())), None);
    assert_eq!(rib.update(&a, under(&a, 1..=max)), None, "what is there may come again");
    assert_eq!(rib.update(&b, under(&b, 1..=max)), None, "each for itself");
    let crowded = rib.update(&a, under(&a, [max + 1]));
    assert_eq!(crowded.map(|p| p.to_string()).as_deref(), Some("10.128.0.1/32"));
    assert_eq!(rib.received(a.id, Family::Ipv4Unicast), MAX_PATHS);
    let best: Vec<u32> = rib.paths(None).filter(|p| p.best).map(|p| p.path_id).collect();
    assert_eq!(best, [1]);
    // It restarts, and sends as many under other identifiers; but not as often as it likes.
    let long = PerFamily([true, true]);
    rib.peer_down(&a, long, long);
    rib.peer_up(&a);
    assert_eq!(rib.update(&a, under(&a, 1_001..=1_000 + max)), None);
    assert!(rib.update(&a, under(&a, [2_000])).is_some());
    rib.peer_down(&a, long, long);
    rib.peer_up(&a);
    assert!(rib.update(&a, under(&a, [2_000])).is_some());
    assert_eq!(rib.received(a.id, Family::Ipv4Unicast), 2 * MAX_PATHS);
    rib.drop_stale(a.id, Family::Ipv4Unicast);
    assert_eq!(rib.update(&a, under(&a, [2_000, 2_001])), None);
    let mut gone = under(&a, [2_000, 7, 2_001]);
    gone.withdrawn = gone.reach.drain(..).map(|r| r.prefixes).collect();
    gone.attributes = None;
    rib.update(&a, gone);
    assert_eq!(rib.received(a.id, Family::Ipv4Unicast), 0);
}
