//! Laws of the codec, for arbitrary messages and arbitrary bytes.
#![expect(clippy::unwrap_used, reason = "a test")]

use brindle_bgpd_core::wire::*;
use bytes::BytesMut;
use proptest::prelude::*;

mod arbitrary;

fn with_message() -> impl Strategy<Value = (WireCx, Message)> {
    arbitrary::cx().prop_flat_map(|cx| (Just(cx), arbitrary::message(cx)))
}

fn with_update() -> impl Strategy<Value = (WireCx, Update)> {
    arbitrary::cx().prop_flat_map(|cx| (Just(cx), arbitrary::update(cx)))
}

/// `None` if the message has no form of this size.
fn emit(message: &Message, cx: &WireCx) -> Option<BytesMut> {
    let mut out = BytesMut::new();
    match message.emit(cx, &mut out) {
        Ok(()) => Some(out),
        Err(EmitError::TooLong { .. } | EmitError::NotOneMessage | EmitError::Empty) => None,
        Err(e) => panic!("{e} for {message:?}"),
    }
}

/// Every refusal must be one of those the RFCs know, with the data they ask for.
fn check_refusal(e: &DecodeError, frame: &[u8]) {
    let n = &e.notification;
    let known: &[u8] = match n.code {
        1 => &[1, 2, 3],
        2 => &[0, 1, 2, 3, 4, 6],
        // The closed list of RFC 7606, plus the subcode of the error when there is nothing to withdraw (5.2).
        3 => &[1, 2, 3, 4, 5, 6, 8, 9, 10, 11],
        7 => &[1],
        _ => &[],
    };
    assert!(known.contains(&n.subcode), "{n} for {frame:02x?}");
    assert!(iana::subcode_name(n.code, n.subcode).is_some() || (n.code, n.subcode) == (2, 0), "{n}");
    assert!(n.data.len() <= 4_075, "the NOTIFICATION must fit");
    assert!(!e.what.is_empty());
    if (n.code, n.subcode) == (2, 1) {
        assert_eq!(n.data, [0, 4]);
    }
}

/// Octets a decoded message claims, roughly: the amplification of a hostile one.
fn weight(m: &Message) -> usize {
    let prefixes = |p: &Prefixes| match p {
        Prefixes::V4(v) => v.capacity() * size_of::<Nlri<ipnet::Ipv4Net>>(),
        Prefixes::V6(v) => v.capacity() * size_of::<Nlri<ipnet::Ipv6Net>>(),
    };
    match m {
        Message::Update(u) => {
            let attrs = u.attributes.as_ref().map_or(0, |a| {
                let path = |s: &Segment| size_of::<Segment>() + s.asns.len() * 4;
                a.as_path.0.iter().map(path).sum::<usize>()
                    + a.communities.len() * 4
                    + a.ext_communities.len() * 8
                    + a.large_communities.len() * 12
                    + a.cluster_list.len() * 4
                    + a.unknown.iter().map(|x| size_of::<UnknownAttr>() + x.value.capacity()).sum::<usize>()
            });
            let faults = u.faults.iter().map(|f| size_of::<AttrFault>() + f.what.capacity()).sum::<usize>();
            let gone = u.withdrawn.iter().map(prefixes).sum::<usize>();
            attrs + faults + gone + u.reach.iter().map(|r| prefixes(&r.prefixes)).sum::<usize>()
        }
        Message::Open(o) => {
            let families = |c: &Capability| match c {
                Capability::GracefulRestart { families, .. } => families.capacity() * size_of::<GrFamily>(),
                Capability::AddPath(v) => v.capacity() * 4,
                Capability::LongLivedGracefulRestart(v) => v.capacity() * 8,
                Capability::Fqdn { host, domain } => host.capacity() + domain.capacity(),
                Capability::Unknown { value, .. } => value.capacity(),
                _ => 0,
            };
            o.capabilities.capacity() * size_of::<Capability>()
                + o.capabilities.iter().map(families).sum::<usize>()
        }
        Message::Notification(n) => n.data.capacity(),
        Message::Keepalive | Message::RouteRefresh(_) => 0,
    }
}

/// What must hold for any bytes at all.
fn check_any(frame: &[u8], cx: &WireCx) {
    match Message::parse(frame, cx) {
        Err(e) => check_refusal(&e, frame),
        Ok(m) => {
            assert!(weight(&m) <= 64 * frame.len() + 4_096, "{} octets from {}", weight(&m), frame.len());
            // The canonical form says the same and is a fixed point.
            let Some(canonical) = emit(&m, cx) else { return };
            let again = Message::parse(&canonical, cx).unwrap_or_else(|e| panic!("{e}: {m:?}"));
            let mut plain = m.clone();
            if let Message::Update(u) = &mut plain {
                u.faults.clear();
            }
            assert_eq!(again, plain, "{frame:02x?} -> {canonical:02x?}");
            assert_eq!(emit(&again, cx).unwrap(), canonical);
        }
    }
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut v = vec![0xff; 16];
    v.extend_from_slice(&u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    v.push(kind);
    v.extend_from_slice(body);
    v
}

/// Keeps the header's length true after a cut.
fn cut(frame: &[u8], at: usize) -> Vec<u8> {
    let mut v = frame[..at].to_vec();
    if at >= 19 {
        v[16..18].copy_from_slice(&u16::try_from(at).unwrap().to_be_bytes());
    }
    v
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_is_emitted_parses_to_the_same((cx, m) in with_message()) {
        if let Some(bytes) = emit(&m, &cx) {
            prop_assert!(bytes.len() <= cx.max_len());
            prop_assert_eq!(next_frame(&bytes, cx.max_len()).unwrap().map(|(_, n)| n), Some(bytes.len()));
            prop_assert_eq!(Message::parse(&bytes, &cx).unwrap(), m);
        }
    }

    #[test]
    fn any_body_is_read_or_refused_as_documented(
        cx in arbitrary::cx(), kind in 0..7u8, body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        check_any(&frame(kind, &body), &cx);
    }

    #[test]
    fn any_attributes_are_read_or_refused_as_documented(
        cx in arbitrary::cx(),
        // Mostly codes and flags that exist, so that values are reached.
        attrs in prop::collection::vec(
            (prop_oneof![Just(0x40u8), Just(0x80), Just(0xc0), Just(0x50), any::<u8>()],
             prop_oneof![1..=18u8, 25..=40u8, any::<u8>()],
             prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..30)), 0..12),
        nlri in prop::collection::vec(prop_oneof![0..9u8, any::<u8>()], 0..20),
    ) {
        let mut block = Vec::new();
        for (flags, code, value) in attrs {
            block.extend_from_slice(&[flags, code]);
            if flags & 0x10 != 0 {
                block.push(0);
            }
            block.push(u8::try_from(value.len()).unwrap());
            block.extend(value);
        }
        let mut body = vec![0, 0];
        body.extend_from_slice(&u16::try_from(block.len()).unwrap().to_be_bytes());
        body.extend(block);
        body.extend(nlri);
        check_any(&frame(2, &body), &cx);
    }

    #[test]
    fn a_stream_of_any_bytes_is_cut_or_refused(buf in prop::collection::vec(any::<u8>(), 0..40), max in 19..70_000usize) {
        for marker in [0, 16] {
            let mut stream = vec![0xff; marker];
            stream.extend_from_slice(&buf);
            match next_frame(&stream, max) {
                Ok(Some((_, len))) => prop_assert!((19..=max.min(stream.len())).contains(&len)),
                Ok(None) => {}
                Err(e) => check_refusal(&e, &stream),
            }
        }
    }

    /// Only the attributes that hold prefixes, and flags that turn an attribute into an unknown well-known one, can
    /// cost the session: flipping bits in any other value cannot.
    #[test]
    fn a_flipped_bit_in_a_value_never_resets((cx, u) in with_update(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        prop_assume!(u.reach.iter().any(|r| matches!(r.prefixes, Prefixes::V4(_))));
        let Some(bytes) = emit(&Message::Update(u), &cx) else { return Ok(()) };
        let mut bytes = bytes.to_vec();
        let values = value_octets(&bytes);
        prop_assume!(!values.is_empty());
        bytes[*at.get(&values)] ^= 1 << bit;
        let parsed = Message::parse(&bytes, &cx);
        prop_assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
        check_any(&bytes, &cx);
    }
}

/// Positions of the values of all attributes but MP_REACH and MP_UNREACH.
fn value_octets(update: &[u8]) -> Vec<usize> {
    let u16_at = |i: usize| usize::from(u16::from_be_bytes([update[i], update[i + 1]]));
    let mut at = 21 + u16_at(19);
    let end = at + 2 + u16_at(at);
    at += 2;
    let mut values = Vec::new();
    while at < end {
        let (flags, code) = (update[at], update[at + 1]);
        let (head, len) =
            if flags & 0x10 != 0 { (4, u16_at(at + 2)) } else { (3, usize::from(update[at + 2])) };
        if code != 14 && code != 15 {
            values.extend(at + head..at + head + len);
        }
        at += head + len;
    }
    values
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_truncation_and_bit_flip_is_read_or_refused_as_documented((cx, m) in with_message()) {
        let Some(bytes) = emit(&m, &cx) else { return Ok(()) };
        for at in 0..bytes.len() {
            check_any(&cut(&bytes, at), &cx);
        }
        // All of a short message, samples of a long one.
        let step = (bytes.len() / 256).max(1);
        for at in (0..bytes.len()).step_by(step) {
            for bit in 0..8 {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << bit;
                check_any(&flipped, &cx);
            }
        }
    }
}
