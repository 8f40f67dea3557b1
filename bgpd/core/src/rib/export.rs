//! What a neighbor is told about a best path: whether at all, and with which attributes.
//!
//! Neighbors that would be told the same form one group; the work is done once for a group (split horizon, the one
//! thing that differs, is decided per neighbor). RFC 4271 sections 5.1 and 9.2, RFC 4456 (reflection), RFC 1997
//! (well-known communities).

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use bytes::BytesMut;
use ipnet::IpNet;

use super::{
    LOCAL,
    attrs::{Attrs, Interner},
    bandwidth::keep_transitive,
    import::Reading,
    pack::leaves_room,
    peers::{NextHops, Source},
    prefix::Prefix,
    rewrite::{Rewrite, prepend},
    table::Dest,
};
use crate::{
    policy::{Decision, Facts, Policy},
    speaker::{AddPathSend, ExportPolicy, NextHopPolicy, PeerId, TagNumbers},
    wire::{AttrSet, NextHop, WireCx},
};

/// RFC 1997.
pub(super) const NO_EXPORT: u32 = 0xFFFF_FF01;
pub(super) const NO_ADVERTISE: u32 = 0xFFFF_FF02;
pub(super) const NO_EXPORT_SUBCONFED: u32 = 0xFFFF_FF03;

/// What neighbors of one group have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupKey {
    pub ibgp: bool,
    /// Clients of ours (RFC 4456).
    pub client: bool,
    /// The AS we present.
    pub local_asn: u32,
    /// Our identity as a reflector.
    pub cluster_id: Ipv4Addr,
    /// Our address as a next hop of this family.
    pub local_address: IpAddr,
    pub next_hop: NextHopPolicy,
    pub policy: Arc<ExportPolicy>,
    /// Which paths they are told, with add-path (RFC 7911).
    pub add_path: Option<AddPathSend>,
    /// How messages to them are written.
    pub write: WireCx,
    pub rewrite: Rewrite,
}

/// A best path on its way out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub attrs: &'a Attrs,
    pub peer: PeerId,
    pub source: &'a Source,
    pub next_hops: &'a NextHops,
}

/// The device towards the next hop of a route, if rules ask for it and it is known.
pub(super) fn device<'a>(policy: &Policy, next_hops: &'a NextHops, attrs: &Attrs) -> Option<&'a str> {
    if !policy.reads_interface() {
        return None;
    }
    next_hops.device(attrs.next_hop()?.ip())
}

impl GroupKey {
    /// LOCAL_PREF of the default route of ours that its members are told in the place of this prefix.
    pub(super) fn originates<P: Prefix>(&self, prefix: P) -> Option<u32> {
        self.rewrite.default_route.filter(|_| prefix.net().prefix_len() == 0)
    }

    /// Its attributes; `None`: we have no address of this family towards its members.
    pub(super) fn originated<P: Prefix>(&self, local_pref: u32, interner: &mut Interner) -> Option<Attrs> {
        let next_hop = P::own_next_hop(self.local_address)?;
        let mut set = AttrSet::default();
        if self.ibgp {
            set.local_pref = Some(local_pref);
        } else {
            self.rewrite.path(&mut set, self.local_asn);
            prepend(&mut set, self.local_asn);
        }
        self.rewrite.preference(&mut set, self.ibgp);
        interner.intern(&set, Some(next_hop))
    }

    /// Whose path its members are told.
    pub(super) fn owner<P: Prefix>(&self, dest: &Dest<P>) -> Option<PeerId> {
        match self.originates(dest.prefix) {
            Some(_) => Some(LOCAL),
            None => dest.best().map(|p| p.peer),
        }
    }

    /// The attributes to advertise with, or `None`: not to be advertised to this group.
    pub(super) fn attributes<P: Prefix>(
        &self,
        c: &Candidate<'_>,
        rule: Option<u16>,
        tags: &TagNumbers,
    ) -> Option<(AttrSet, NextHop)> {
        let entry = c.attrs;
        let local = c.peer == LOCAL;
        let mut set = entry.set();
        let communities = &set.communities;
        if communities.contains(&NO_ADVERTISE)
            || (!self.ibgp
                && (communities.contains(&NO_EXPORT) || communities.contains(&NO_EXPORT_SUBCONFED)))
            || !self.rewrite.permits(&set, self.ibgp)
        {
            return None;
        }
        let reflected = !local && c.source.ibgp && self.ibgp;
        if reflected && !(c.source.client || self.client) {
            return None;
        }
        let next_hop = self.next_hop::<P>(entry.next_hop().as_ref(), local)?;
        if let Some(rule) = rule {
            self.policy.filters.apply(P::FAMILY, rule, &mut set);
        }
        self.policy.tags.apply(tags, &mut set);
        if !self.ibgp {
            set.local_pref = None;
            set.originator_id = None;
            set.cluster_list.clear();
            keep_transitive(&mut set);
            if !local {
                // Not for third parties (RFC 4271 section 5.1.4).
                set.med = None;
            }
            self.rewrite.path(&mut set, self.local_asn);
            prepend(&mut set, self.local_asn);
        } else if reflected {
            set.originator_id = Some(set.originator_id.unwrap_or(c.source.router_id));
            set.cluster_list.insert(0, self.cluster_id);
        }
        self.rewrite.preference(&mut set, self.ibgp);
        Some((set, next_hop))
    }

    fn next_hop<P: Prefix>(&self, hop: Option<&NextHop>, local: bool) -> Option<NextHop> {
        let ourselves = || P::own_next_hop(self.local_address);
        let hop = match (self.next_hop, hop) {
            (_, None) | (NextHopPolicy::SelfAddress, Some(_)) => return ourselves(),
            (NextHopPolicy::Keep, Some(h)) => h,
            (NextHopPolicy::Auto, Some(h)) if self.ibgp || local => h,
            (NextHopPolicy::Auto, Some(_)) => return ourselves(),
        };
        if !P::fits(hop) {
            return None;
        }
        match *hop {
            // It means something on its link only, and whether these neighbors are on that is not known here (RFC 2545
            // section 3). A next hop that is nothing else cannot be passed on at all.
            NextHop::V6 { global, .. } if global.is_unicast_link_local() => ourselves(),
            NextHop::V6 { global, .. } => Some(NextHop::V6 { global, link_local: None }),
            NextHop::V4(a) => Some(NextHop::V4(a)),
        }
    }

    /// `None`: kept back by the policy. Otherwise the filter rule that let it out, if one did.
    pub(super) fn rule(&self, prefix: IpNet, c: &Candidate<'_>, read: &mut Reading) -> Option<Option<u16>> {
        let local = c.peer == LOCAL;
        let policy = &*self.policy;
        if !policy.filters.is_empty() {
            let facts = Facts {
                prefix,
                attributes: read.of(c.attrs, &policy.filters),
                priority: c.attrs.rank.priority(),
                ibgp: self.ibgp,
                learnt: !local,
                interface: device(&policy.filters, c.next_hops, c.attrs),
            };
            match policy.filters.decide(&facts) {
                Decision::Accept(rule) => return Some(Some(rule)),
                Decision::Reject(_) => return None,
                Decision::Default => {}
            }
        }
        policy.permits(&prefix, local).then_some(None)
    }

    /// The interned attributes to advertise with. `memo` holds the last answer, which mostly is the next one too.
    pub(super) fn export<P: Prefix>(
        &self,
        prefix: P,
        c: &Candidate<'_>,
        interner: &mut Interner,
        memo: &mut Memo,
    ) -> Option<Attrs> {
        let rule = self.rule(prefix.net(), c, &mut memo.read)?;
        // As in Calico's filters, which end where a rule accepts: tags are for what goes out as usual.
        let tags = match rule {
            None if !self.policy.tags.is_empty() => self.policy.tags.of(&prefix.net()),
            None | Some(_) => TagNumbers::new(),
        };
        if let Some(last) = &memo.last
            && last.attrs == *c.attrs
            && last.peer == c.peer
            && last.rule == rule
            && last.tags == tags
        {
            return last.answer.clone();
        }
        let answer = self.attributes::<P>(c, rule, &tags).and_then(|(set, hop)| {
            let attrs = interner.intern(&set, Some(hop))?;
            // What leaves no room for a prefix cannot be said, so it is not to be known.
            leaves_room::<P>(&attrs, &self.write, &mut memo.scratch).then_some(attrs)
        });
        memo.last = Some(Asked { attrs: c.attrs.clone(), peer: c.peer, rule, tags, answer: answer.clone() });
        answer
    }
}

/// The last question to a group and its answer.
#[derive(Debug, Default)]
pub(super) struct Memo {
    last: Option<Asked>,
    read: Reading,
    scratch: BytesMut,
}

#[derive(Debug)]
struct Asked {
    attrs: Attrs,
    peer: PeerId,
    rule: Option<u16>,
    tags: TagNumbers,
    answer: Option<Attrs>,
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;

    use super::*;
    use crate::{speaker::SpeakerConfig, wire::AsPath};

    const CLUSTER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

    fn interner() -> Interner {
        Interner::new(&SpeakerConfig::new(1, Ipv4Addr::LOCALHOST))
    }

    fn group(ibgp: bool, client: bool) -> GroupKey {
        GroupKey {
            ibgp,
            client,
            local_asn: 65_000,
            cluster_id: CLUSTER,
            local_address: "10.0.0.1".parse().unwrap(),
            next_hop: NextHopPolicy::Auto,
            policy: Arc::default(),
            add_path: None,
            write: WireCx { four_octet_as: true, ibgp, ..WireCx::default() },
            rewrite: Rewrite::default(),
        }
    }

    fn source(ibgp: bool, client: bool) -> Source {
        Source { ibgp, client, router_id: Ipv4Addr::new(2, 2, 2, 2), address: "10.0.0.2".parse().unwrap() }
    }

    fn hop(s: &str) -> NextHop {
        NextHop::V4(s.parse().unwrap())
    }

    fn ask(
        g: &GroupKey,
        s: &Source,
        peer: PeerId,
        set: AttrSet,
        next_hop: Option<NextHop>,
    ) -> Option<(AttrSet, NextHop)> {
        let attrs = interner().intern(&set, next_hop).unwrap();
        g.attributes::<Ipv4Net>(
            &Candidate { attrs: &attrs, peer, source: s, next_hops: &NextHops::default() },
            None,
            &TagNumbers::new(),
        )
    }

    fn learned() -> AttrSet {
        AttrSet {
            as_path: AsPath::sequence([65_001]),
            med: Some(5),
            local_pref: Some(100),
            ..AttrSet::default()
        }
    }

    #[test]
    fn own_routes_get_our_address_and_keep_their_local_pref_inside_the_as() {
        let set = AttrSet { local_pref: Some(7), med: Some(1), ..AttrSet::default() };
        let (out, h) = ask(&group(true, false), &source(true, true), LOCAL, set.clone(), None).unwrap();
        assert_eq!((out.local_pref, out.med, h), (Some(7), Some(1), hop("10.0.0.1")));
        let (out, h) = ask(&group(false, false), &source(true, true), LOCAL, set, None).unwrap();
        assert_eq!((out.local_pref, out.med, h), (None, Some(1), hop("10.0.0.1")));
        assert_eq!(out.as_path, AsPath::sequence([65_000]));
    }

    #[test]
    fn external_peers_see_our_as_and_address_and_neither_local_pref_nor_foreign_med() {
        let (out, h) =
            ask(&group(false, false), &source(false, false), PeerId(1), learned(), Some(hop("10.9.9.9")))
                .unwrap();
        assert_eq!(out.as_path, AsPath::sequence([65_000, 65_001]));
        assert_eq!((out.local_pref, out.med, h), (None, None, hop("10.0.0.1")));
    }

    #[test]
    fn internal_peers_see_external_routes_as_they_came() {
        let (out, h) =
            ask(&group(true, false), &source(false, false), PeerId(1), learned(), Some(hop("10.9.9.9")))
                .unwrap();
        assert_eq!((out, h), (learned(), hop("10.9.9.9")));
        let g = GroupKey { next_hop: NextHopPolicy::SelfAddress, ..group(true, false) };
        let (_, h) = ask(&g, &source(false, false), PeerId(1), learned(), Some(hop("10.9.9.9"))).unwrap();
        assert_eq!(h, hop("10.0.0.1"));
    }

    #[test]
    fn internal_routes_are_reflected_only_from_or_to_clients() {
        let hop9 = Some(hop("10.9.9.9"));
        for (from_client, to_client, told) in
            [(false, false, false), (true, false, true), (false, true, true), (true, true, true)]
        {
            let out = ask(&group(true, to_client), &source(true, from_client), PeerId(1), learned(), hop9);
            assert_eq!(out.is_some(), told, "{from_client} {to_client}");
            if let Some((out, h)) = out {
                assert_eq!(out.originator_id, Some(Ipv4Addr::new(2, 2, 2, 2)));
                assert_eq!(out.cluster_list[..], [CLUSTER]);
                assert_eq!(Some(h), hop9);
            }
        }
        let set = AttrSet {
            originator_id: Some(Ipv4Addr::new(3, 3, 3, 3)),
            cluster_list: smallvec::smallvec![Ipv4Addr::new(8, 8, 8, 8)],
            ..learned()
        };
        let (out, _) = ask(&group(true, true), &source(true, false), PeerId(1), set, hop9).unwrap();
        assert_eq!(out.originator_id, Some(Ipv4Addr::new(3, 3, 3, 3)));
        assert_eq!(out.cluster_list[..], [CLUSTER, Ipv4Addr::new(8, 8, 8, 8)]);
    }

    #[test]
    fn well_known_communities_are_obeyed() {
        for (community, ibgp, told) in [
            (NO_EXPORT, true, true),
            (NO_EXPORT, false, false),
            (NO_EXPORT_SUBCONFED, true, true),
            (NO_EXPORT_SUBCONFED, false, false),
            (NO_ADVERTISE, true, false),
            (NO_ADVERTISE, false, false),
            (1, false, true),
        ] {
            let set = AttrSet { communities: smallvec::smallvec![community], ..learned() };
            let out = ask(&group(ibgp, false), &source(false, false), PeerId(1), set, Some(hop("10.9.9.9")));
            assert_eq!(out.is_some(), told, "{community:x} {ibgp}");
        }
    }

    #[test]
    fn a_policy_keeps_prefixes_back_whatever_was_answered_before() {
        let mut g = group(true, false);
        g.policy =
            Arc::new(ExportPolicy { deny: vec!["10.1.0.0/16".parse().unwrap()], ..ExportPolicy::default() });
        let (mut i, mut memo) = (interner(), Memo::default());
        let attrs = i.intern(&learned(), Some(hop("10.9.9.9"))).unwrap();
        let s = source(false, false);
        let c = Candidate { attrs: &attrs, peer: PeerId(1), source: &s, next_hops: &NextHops::default() };
        let mut told = |p: &str| g.export::<Ipv4Net>(p.parse().unwrap(), &c, &mut i, &mut memo).is_some();
        assert!(told("10.2.0.0/26"));
        assert!(!told("10.1.2.0/26"));
        assert!(!told("10.1.0.0/16"));
        assert!(told("10.0.0.0/8"));
    }

    #[test]
    fn a_next_hop_of_the_other_family_cannot_be_sent() {
        let mut g = group(true, false);
        g.local_address = "fd00::1".parse().unwrap();
        assert_eq!(ask(&g, &source(true, true), LOCAL, learned(), None), None);
    }
}
