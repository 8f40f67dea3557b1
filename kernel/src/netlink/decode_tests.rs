//! Hostile and odd netlink answers: whatever the octets, the reader says what it cannot read and never panics.

use proptest::prelude::*;

use super::*;
use crate::netlink::encode;

fn emitted(m: &impl netlink_packet_core::Emitable) -> Vec<u8> {
    let mut b = vec![0; m.buffer_len()];
    m.emit(&mut b);
    b
}

#[test]
fn what_we_encode_reads_back_the_same() {
    let gw = "192.0.2.1".parse().unwrap();
    let six = "fe80::1".parse().unwrap();
    let plain =
        Route::new("10.0.0.0/26".parse().unwrap()).via(gw, Some(3), true).with_protocol(80).with_mtu(1480);
    let mut multi = Route::new("10.0.1.0/26".parse().unwrap()).with_protocol(80);
    multi.hops = vec![
        NextHop { dev: Some(3), gateway: Some(gw), onlink: true, weight: 1, dead: false },
        NextHop { dev: Some(4), gateway: Some(six), onlink: false, weight: 7, dead: false },
    ];
    let all = [
        plain,
        multi,
        Route::blackhole("10.0.2.0/26".parse().unwrap()).with_protocol(80),
        Route::new("10.0.0.5/32".parse().unwrap()).dev(9).with_metric(1024).with_src(gw),
        Route::new("0.0.0.0/0".parse().unwrap()).via(six, Some(2), false),
        Route::new("2001:db8::/64".parse().unwrap()).via(six, Some(2), false).with_table(1000),
    ];
    for r in all {
        assert_eq!(route(&emitted(&encode::route(&r))).unwrap().unwrap(), r);
    }
}

#[test]
fn a_hop_whose_device_is_down_is_dead() {
    let hop = |last: u8| [8, 0, 0, 0, last, 0, 0, 0];
    let mut b = hop(3).to_vec();
    b.extend(hop(4));
    b[2] = 0x15; // dead, onlink, no carrier
    b[10] = 0x10; // no carrier
    let all: Vec<_> = hops(&b).unwrap().into_iter().map(|h| (h.dev, h.dead, h.onlink)).collect();
    assert_eq!(all, [(Some(3), true, true), (Some(4), false, false)]);
}

#[test]
fn a_deletion_leaves_the_scope_open_and_keeps_the_protocol() {
    let r = Route::new("10.0.0.5/32".parse().unwrap()).dev(9).with_protocol(80);
    let got = route(&emitted(&encode::route_del(&r))).unwrap().unwrap();
    assert_eq!((got.scope, got.protocol, got.dst), (255, 80, r.dst));
}

#[test]
fn the_words_of_an_extended_acknowledgement_are_found() {
    let mut p = (-22i32).to_ne_bytes().to_vec();
    p.extend([0; 16]);
    p.extend([9, 0, 1, 0]);
    p.extend(b"gone\0\0\0\0");
    assert_eq!(error(&p, NLM_F_CAPPED | NLM_F_ACK_TLVS).unwrap(), (22, Some("gone".into())));
    assert_eq!(error(&p, 0).unwrap(), (22, None));
    assert_eq!(error(&i32::MIN.to_ne_bytes(), 0).unwrap().0, i32::MAX);
    assert!(error(&[1, 2], 0).is_err());
}

#[test]
fn a_link_without_any_attribute_is_still_a_link() {
    let l = link(&[0; 16]).unwrap();
    assert_eq!((l.name.as_str(), l.mac, l.kind), ("", None, None));
    assert!(link(&[0; 15]).is_err());
}

proptest! {
    #[test]
    fn no_payload_makes_a_reader_panic(p in proptest::collection::vec(any::<u8>(), 0..256), flags: u16) {
        let _ = (link(&p), addr(&p), route(&p), neigh(&p), error(&p, flags), done(&p));
    }

    /// Random damage to a real message: the readers either cope or say what is wrong.
    #[test]
    fn a_damaged_route_is_no_panic(at in 0usize..64, with: u8, cut in 0usize..64) {
        let r = Route::new("10.0.0.0/26".parse().unwrap())
            .via("192.0.2.1".parse().unwrap(), Some(3), true)
            .with_mtu(1480);
        let mut p = emitted(&encode::route(&r));
        if let Some(b) = p.get_mut(at) { *b = with; }
        let keep = p.len().saturating_sub(cut);
        let _ = route(&p[..keep]);
    }
}
