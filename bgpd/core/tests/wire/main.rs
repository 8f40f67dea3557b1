//! Laws of the codec, for arbitrary messages and arbitrary bytes.
#![expect(clippy::unwrap_used, reason = "a test")]

use brindle_bgpd_core::wire::*;
use proptest::prelude::*;

mod arbitrary;
mod laws;

use laws::{check_any, check_refusal, emit};

fn with_message() -> impl Strategy<Value = (WireCx, Message)> {
    arbitrary::cx().prop_flat_map(|cx| (Just(cx), arbitrary::message(cx)))
}

fn with_update() -> impl Strategy<Value = (WireCx, Update)> {
    arbitrary::cx().prop_flat_map(|cx| (Just(cx), arbitrary::update(cx)))
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
