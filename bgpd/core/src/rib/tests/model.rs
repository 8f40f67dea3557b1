//! The rules of export once more, written as plainly as possible, to compare with.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use crate::{
    rib::{PathView, Rib, RibPeer},
    wire::AttrSet,
};

/// What peer `n` should know, from the best paths alone: all peers are internal.
pub(super) fn check_export(
    rib: &Rib,
    peers: &[RibPeer],
    n: usize,
    known: &BTreeMap<IpNet, (AttrSet, IpAddr)>,
) {
    let me = Ipv4Addr::new(9, 9, 9, 9);
    let to = &peers[n];
    let mut expected = BTreeMap::new();
    for best in rib.paths(None).filter(|p: &PathView| p.best) {
        let from = best.from.expect("there are no own routes here");
        let source = &peers[from.0 as usize];
        if from == to.id
            || !(source.client || to.client)
            || to.policy.deny.iter().any(|d| d.contains(&best.prefix))
        {
            continue;
        }
        let mut set = best.attributes.clone();
        set.originator_id = Some(source.router_id);
        set.cluster_list.insert(0, me);
        expected.insert(best.prefix, (set, best.next_hop.unwrap()));
    }
    assert_eq!(&expected, known);
}
