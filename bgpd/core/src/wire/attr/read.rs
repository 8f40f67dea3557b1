//! Reading attribute values, one function per row of the table, and what the block amounts to at its end.
//!
//! A function either stores a sound value in the draft or says what was wrong; the reaction is the table's business.

use std::net::{Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use super::{
    super::{
        cursor::Cursor,
        error::DecodeError,
        iana::{attr as code, update},
        nlri::{self, WirePrefix},
        types::{
            Aggregator, AsPath, AttrFault, AttrSet, NextHop, Origin, Prefixes, Reach, UnknownAttr, WireCx,
        },
    },
    Faults, KIND, Seen, flag,
};
use crate::af::Family;

/// What is wrong with a value; the subcode is used only should the session have to end for it.
pub(in super::super) struct Bad {
    pub(super) subcode: u8,
    pub(super) what: String,
}

impl Bad {
    fn length(value: &[u8], want: &str) -> Self {
        Self { subcode: update::ATTRIBUTE_LENGTH, what: format!("length {}, {want} expected", value.len()) }
    }

    fn optional(what: impl Into<String>) -> Self {
        Self { subcode: update::OPTIONAL_ATTRIBUTE, what: what.into() }
    }
}

/// A finished block of attributes.
pub(in super::super) struct Block {
    /// `None`: everything announced in the message must be withdrawn.
    pub(in super::super) attributes: Option<AttrSet>,
    /// There whenever `attributes` is and the message has an NLRI field.
    pub(in super::super) next_hop: Option<Ipv4Addr>,
    pub(in super::super) mp_reach: Option<Reach>,
    pub(in super::super) mp_unreach: Option<Prefixes>,
    /// There was one attribute and no fault.
    pub(in super::super) alone: bool,
    pub(in super::super) faults: Vec<AttrFault>,
}

/// The attributes read so far.
pub(in super::super) struct Draft<'a> {
    cx: &'a WireCx,
    /// The message has an NLRI field.
    classic: bool,
    pub(super) set: AttrSet,
    pub(super) faults: Faults,
    next_hop: Option<Ipv4Addr>,
    /// A NEXT_HOP that is wrong counts only if something depends on it.
    next_hop_fault: Option<Bad>,
    mp_reach: Option<Reach>,
    mp_unreach: Option<Prefixes>,
    /// MP_REACH announces something, be it of a family we do not route.
    mp_announces: bool,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(cx: &'a WireCx, classic: bool) -> Self {
        Self {
            cx,
            classic,
            set: AttrSet::default(),
            faults: Faults::default(),
            next_hop: None,
            next_hop_fault: None,
            mp_reach: None,
            mp_unreach: None,
            mp_announces: false,
            as4_path: None,
            as4_aggregator: None,
        }
    }

    /// The rules that need all attributes: what is missing, what an error without prefixes means, the merge with
    /// the AS4 attributes.
    pub(super) fn finish(mut self, seen: &Seen, count: usize) -> Result<Block, DecodeError> {
        let announces = self.classic || self.mp_announces;
        if let Some(bad) = self.next_hop_fault.take() {
            // RFC 4760 section 3: where only the MP attributes have prefixes, NEXT_HOP is to be ignored. There are
            // routers that fill in 0.0.0.0.
            let mp = seen.has(code::MP_REACH) || seen.has(code::MP_UNREACH);
            if mp && !self.classic {
                if bad.subcode == update::ATTRIBUTE_LENGTH {
                    self.faults.discard(code::NEXT_HOP, bad.what);
                }
            } else {
                self.faults.withdraw(code::NEXT_HOP, bad.subcode, &[], bad.what);
            }
        }
        if announces {
            let classic = self.classic.then_some(code::NEXT_HOP);
            for code in [code::ORIGIN, code::AS_PATH].into_iter().chain(classic) {
                if !seen.has(code) {
                    self.faults.withdraw(code, update::MISSING_WELL_KNOWN, &[code], "is missing".into());
                }
            }
        }
        let Faults { list: faults, withdraw } = self.faults;
        let attributes = match withdraw {
            // RFC 7606 section 5.2: no prefix to withdraw means we may not have understood the message.
            Some(reset) if !announces => return Err(reset),
            Some(_) => None,
            None => {
                merge_as4(&mut self.set, self.as4_path, self.as4_aggregator);
                self.set.unknown.sort_unstable_by_key(|a| a.code);
                Some(self.set)
            }
        };
        Ok(Block {
            attributes,
            next_hop: self.next_hop,
            mp_reach: self.mp_reach,
            mp_unreach: self.mp_unreach,
            alone: count == 1 && faults.is_empty(),
            faults,
        })
    }
}

/// RFC 6793 section 4.2.3.
fn merge_as4(set: &mut AttrSet, path: Option<AsPath>, aggregator: Option<Aggregator>) {
    if let (Some(have), Some(aggregator)) = (&mut set.aggregator, aggregator) {
        if have.asn != u32::from(super::super::iana::AS_TRANS) {
            // Somebody who knows nothing of the AS4 attributes aggregated again: they describe another route.
            return;
        }
        *have = aggregator;
    }
    if let Some(as4) = path {
        set.as_path = std::mem::take(&mut set.as_path).merged(as4);
    }
}

pub(super) fn origin(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    d.set.origin = match value {
        [0] => Origin::Igp,
        [1] => Origin::Egp,
        [2] => Origin::Incomplete,
        [v] => {
            return Err(Bad { subcode: update::INVALID_ORIGIN, what: format!("value {v} is not 0, 1 or 2") });
        }
        _ => return Err(Bad::length(value, "1")),
    };
    Ok(())
}

pub(super) fn as_path(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    let bad = |what: String| Bad { subcode: update::MALFORMED_AS_PATH, what };
    let path = AsPath::parse(value, d.cx.four_octet_as).map_err(bad)?;
    // RFC 5065 section 5: whoever is outside has no business in a confederation's segments.
    if !d.cx.ibgp && path.0.iter().any(|s| s.kind.is_confed()) {
        return Err(bad("confederation segment from an external peer".into()));
    }
    d.set.as_path = path;
    Ok(())
}

pub(super) fn next_hop(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    match <[u8; 4]>::try_from(value) {
        Err(_) => d.next_hop_fault = Some(Bad::length(value, "4")),
        Ok(octets) => {
            let address = Ipv4Addr::from(octets);
            if is_host(address) {
                d.next_hop = Some(address);
            } else {
                d.next_hop_fault =
                    Some(Bad { subcode: update::INVALID_NEXT_HOP, what: not_a_host(&address) });
            }
        }
    }
    Ok(())
}

/// What RFC 4271 section 6.3 calls a valid IP host address. Loopback ones are: two speakers may share a machine.
fn is_host(a: Ipv4Addr) -> bool {
    let [first, ..] = a.octets();
    first != 0 && first < 224
}

fn not_a_host(a: &impl std::fmt::Display) -> String {
    format!("{a} is no address of a host")
}

fn number(value: &[u8]) -> Result<u32, Bad> {
    value.try_into().map(u32::from_be_bytes).map_err(|_| Bad::length(value, "4"))
}

pub(super) fn med(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    d.set.med = Some(number(value)?);
    Ok(())
}

pub(super) fn local_pref(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    d.set.local_pref = Some(number(value)?);
    Ok(())
}

pub(super) fn atomic_aggregate(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    if !value.is_empty() {
        return Err(Bad::length(value, "0"));
    }
    d.set.atomic_aggregate = true;
    Ok(())
}

fn aggregator_of(value: &[u8], four_octets: bool) -> Result<Aggregator, Bad> {
    let mut cur = Cursor::new(value);
    let asn = if four_octets { cur.u32() } else { cur.u16().map(u32::from) };
    match (asn, <[u8; 4]>::try_from(cur.rest())) {
        (Some(0), Ok(_)) => Err(Bad::optional("AS 0 (RFC 7607)")),
        (Some(asn), Ok(address)) => Ok(Aggregator { asn, address: address.into() }),
        _ => Err(Bad::length(value, if four_octets { "8" } else { "6" })),
    }
}

pub(super) fn aggregator(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    d.set.aggregator = Some(aggregator_of(value, d.cx.four_octet_as)?);
    Ok(())
}

pub(super) fn as4_aggregator(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    d.as4_aggregator = Some(aggregator_of(value, true)?);
    Ok(())
}

pub(super) fn as4_path(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    // RFC 6793 section 6: other than AS_PATH, it must say something.
    if value.is_empty() {
        return Err(Bad::length(value, "at least 6"));
    }
    let path = AsPath::parse(value, true).map_err(Bad::optional)?;
    d.as4_path = Some(path.without_confeds());
    Ok(())
}

/// The value as records of `N` octets, of which there must be at least one.
fn records<'v, const N: usize>(value: &'v [u8], want: &str) -> Result<&'v [[u8; N]], Bad> {
    match value.as_chunks() {
        (records, []) if !records.is_empty() => Ok(records),
        _ => Err(Bad::length(value, want)),
    }
}

pub(super) fn communities(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    let list = records(value, "a multiple of 4")?;
    d.set.communities = sorted(list.iter().map(|r| u32::from_be_bytes(*r)));
    Ok(())
}

pub(super) fn ext_communities(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    let list = records(value, "a multiple of 8")?;
    d.set.ext_communities = sorted(list.iter().map(|r| u64::from_be_bytes(*r)));
    Ok(())
}

pub(super) fn large_communities(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    let list = records(value, "a multiple of 12")?;
    d.set.large_communities = sorted(list.iter().map(|[a, b, c, e, f, g, h, i, j, k, l, m]| {
        let n = |octets| u32::from_be_bytes(octets);
        (n([*a, *b, *c, *e]), n([*f, *g, *h, *i]), n([*j, *k, *l, *m]))
    }));
    Ok(())
}

/// Order and repetition mean nothing in a list of communities; without them equal sets are equal values.
fn sorted<A: smallvec::Array<Item: Ord>>(items: impl Iterator<Item = A::Item>) -> SmallVec<A> {
    let mut list: SmallVec<A> = items.collect();
    list.sort_unstable();
    list.dedup();
    list
}

pub(super) fn originator_id(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    d.set.originator_id = Some(number(value)?.into());
    Ok(())
}

pub(super) fn cluster_list(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    let list = records::<4>(value, "a multiple of 4")?;
    d.set.cluster_list = list.iter().map(|r| Ipv4Addr::from(*r)).collect();
    Ok(())
}

/// Passed on as it came: its length is all we judge.
fn opaque<const N: usize>(
    d: &mut Draft<'_>,
    code: u8,
    flags: u8,
    value: &[u8],
    want: &str,
) -> Result<(), Bad> {
    records::<N>(value, want)?;
    let flags = flags & (KIND | flag::PARTIAL);
    d.set.unknown.push(UnknownAttr { flags, code, value: value.to_vec() });
    Ok(())
}

pub(super) fn ipv6_ext_communities(d: &mut Draft<'_>, flags: u8, value: &[u8]) -> Result<(), Bad> {
    opaque::<20>(d, code::IPV6_EXT_COMMUNITIES, flags, value, "a multiple of 20")
}

pub(super) fn only_to_customer(d: &mut Draft<'_>, flags: u8, value: &[u8]) -> Result<(), Bad> {
    if value.len() != 4 {
        return Err(Bad::length(value, "4"));
    }
    opaque::<4>(d, code::ONLY_TO_CUSTOMER, flags, value, "4")
}

pub(super) fn mp_reach(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    let mut cur = Cursor::new(value);
    let head = (cur.u16(), cur.u8(), cur.counted(), cur.u8());
    let (Some(afi), Some(safi), Some(next_hop), Some(_reserved)) = head else {
        return Err(Bad::optional(format!("{} octets end inside the next hop", value.len())));
    };
    let Some(family) = Family::from_code(afi, safi) else {
        d.mp_announces = !cur.is_empty();
        d.faults.discard(code::MP_REACH, not_routed(afi, safi));
        return Ok(());
    };
    // Without the right length of the next hop the prefixes cannot be located (RFC 7606 section 7.11).
    let wrong = |want: &str| {
        Bad::optional(format!("next hop of {} octets for AFI {afi}, {want} expected", next_hop.len()))
    };
    let (next_hop, is_host) = match family {
        Family::Ipv4Unicast => {
            let a = Ipv4Addr::from(<[u8; 4]>::try_from(next_hop).map_err(|_| wrong("4"))?);
            (NextHop::V4(a), is_host(a))
        }
        Family::Ipv6Unicast => {
            let (global, local) = match next_hop.as_chunks::<16>() {
                ([global], []) => (Ipv6Addr::from(*global), None),
                // A second address that is no link-local one says nothing (RFC 2545 section 3).
                ([global, local], []) => {
                    let local = Some(Ipv6Addr::from(*local)).filter(Ipv6Addr::is_unicast_link_local);
                    match (Ipv6Addr::from(*global), local) {
                        // Between link-local addresses there is no other: BIRD then says `::`, FRR repeats it.
                        (global, Some(local)) if global.is_unspecified() || global == local => (local, None),
                        known => known,
                    }
                }
                _ => return Err(wrong("16 or 32")),
            };
            let is_host = !global.is_unspecified() && !global.is_multicast();
            (NextHop::V6 { global, link_local: local }, is_host)
        }
    };
    let prefixes = prefixes(d.cx, family, cur.rest())?;
    d.mp_announces = !prefixes.is_empty();
    if !is_host {
        d.faults.withdraw(code::MP_REACH, update::OPTIONAL_ATTRIBUTE, value, not_a_host(&next_hop.ip()));
    }
    d.mp_reach = Some(Reach { next_hop, prefixes }).filter(|r| !r.prefixes.is_empty());
    Ok(())
}

pub(super) fn mp_unreach(d: &mut Draft<'_>, _: u8, value: &[u8]) -> Result<(), Bad> {
    let mut cur = Cursor::new(value);
    let (Some(afi), Some(safi)) = (cur.u16(), cur.u8()) else {
        return Err(Bad::optional(format!("{} octets end inside the family", value.len())));
    };
    match Family::from_code(afi, safi) {
        Some(family) => d.mp_unreach = Some(prefixes(d.cx, family, cur.rest())?),
        None => d.faults.discard(code::MP_UNREACH, not_routed(afi, safi)),
    }
    Ok(())
}

fn not_routed(afi: u16, safi: u8) -> String {
    format!("AFI {afi} SAFI {safi} is not routed here")
}

fn prefixes(cx: &WireCx, family: Family, field: &[u8]) -> Result<Prefixes, Bad> {
    fn of<P: WirePrefix>(field: &[u8], add_path: bool) -> Result<Prefixes, Bad> {
        nlri::parse(field, add_path).map(P::wrap).map_err(Bad::optional)
    }
    let [v4, v6] = cx.add_path;
    match family {
        Family::Ipv4Unicast => of::<ipnet::Ipv4Net>(field, v4),
        Family::Ipv6Unicast => of::<ipnet::Ipv6Net>(field, v6),
    }
}
