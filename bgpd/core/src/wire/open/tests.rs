//! OPEN: every refusal of RFC 4271 section 6.2 and its successors, and what must not be refused.

use super::super::{GrFamily, Message, WireCx};
use super::*;

/// An OPEN with these optional parameter octets.
fn open_with(version: u8, my_as: u16, hold: u16, id: [u8; 4], params: &[u8]) -> Vec<u8> {
    let mut body = vec![version];
    body.extend_from_slice(&my_as.to_be_bytes());
    body.extend_from_slice(&hold.to_be_bytes());
    body.extend_from_slice(&id);
    body.extend_from_slice(params);
    let mut v = vec![0xff; 16];
    v.extend_from_slice(&u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    v.push(1);
    v.extend_from_slice(&body);
    v
}

fn with_params(params: &[u8]) -> Vec<u8> {
    open_with(4, 65_001, 90, [10, 0, 0, 1], params)
}

fn parse(frame: &[u8]) -> Result<Open, (u8, u8, Vec<u8>)> {
    match Message::parse(frame, &WireCx::default()) {
        Ok(Message::Open(o)) => Ok(o),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err((e.notification.code, e.notification.subcode, e.notification.data)),
    }
}

fn refusal(frame: &[u8]) -> (u8, u8, Vec<u8>) {
    parse(frame).unwrap_err()
}

#[test]
fn an_open_without_parameters_is_read() {
    let o = parse(&with_params(&[0])).unwrap();
    assert_eq!((o.asn, o.hold_time, o.router_id), (65_001, 90, Ipv4Addr::new(10, 0, 0, 1)));
    assert!(o.capabilities.is_empty());
}

#[test]
fn other_versions_are_refused_with_ours() {
    for v in [0, 3, 5, 255] {
        assert_eq!(refusal(&open_with(v, 1, 90, [1; 4], &[0])), (2, 1, vec![0, 4]));
    }
}

#[test]
fn as_zero_is_a_bad_peer_as_in_either_place() {
    assert_eq!(refusal(&open_with(4, 0, 90, [1; 4], &[0])), (2, 2, vec![]));
    assert_eq!(refusal(&with_params(&[8, 2, 6, 65, 4, 0, 0, 0, 0])), (2, 2, vec![]));
}

#[test]
fn hold_times_one_and_two_are_unacceptable_zero_and_three_are_not() {
    for (hold, ok) in [(0, true), (1, false), (2, false), (3, true), (65_535, true)] {
        let got = parse(&open_with(4, 1, hold, [1; 4], &[0]));
        if ok {
            assert_eq!(got.unwrap().hold_time, hold)
        } else {
            assert_eq!(got.unwrap_err(), (2, 6, vec![]))
        }
    }
}

#[test]
fn identifier_zero_is_refused_a_multicast_one_is_legal() {
    assert_eq!(refusal(&open_with(4, 1, 90, [0; 4], &[0])), (2, 3, vec![]));
    assert!(parse(&open_with(4, 1, 90, [224, 0, 0, 1], &[0])).is_ok());
}

#[test]
fn unknown_parameters_are_unsupported_and_cut_ones_malformed() {
    assert_eq!(refusal(&with_params(&[2, 1, 0])), (2, 4, vec![]));
    assert_eq!(refusal(&with_params(&[3, 99, 1, 0])), (2, 4, vec![]));
    for cut in [
        &[5][..],               // declared, absent
        &[1, 2],                // type without length
        &[2, 2, 4],             // value overruns
        &[3, 2, 1, 65],         // capability without length
        &[4, 2, 2, 65, 4],      // capability overruns
        &[0, 2, 0],             // octets nobody declared
        &[4, 2, 2, 2, 0, 0, 0], // the same
    ] {
        assert_eq!(refusal(&with_params(cut)), (2, 0, vec![]), "{cut:?}");
    }
}

#[test]
fn capabilities_are_read_from_one_or_many_parameters_and_may_repeat() {
    let one = parse(&with_params(&[10, 2, 8, 2, 0, 2, 0, 70, 0, 6, 0])).unwrap();
    let many = parse(&with_params(&[16, 2, 2, 2, 0, 2, 2, 2, 0, 2, 2, 70, 0, 2, 2, 6, 0])).unwrap();
    assert_eq!(one.capabilities, many.capabilities);
    assert_eq!(one.capabilities[..2], [Capability::RouteRefresh, Capability::RouteRefresh]);
    assert!(parse(&with_params(&[2, 2, 0])).unwrap().capabilities.is_empty(), "an empty parameter is fine");
}

#[test]
fn the_four_octet_as_wins_over_as_trans() {
    let o = parse(&open_with(4, AS_TRANS, 90, [1; 4], &[8, 2, 6, 65, 4, 0, 1, 0, 0])).unwrap();
    assert_eq!(o.asn, 65_536);
}

#[test]
fn malformed_capabilities_are_kept_as_unknown() {
    for (code, value) in [
        (1, &[0, 1, 0][..]),
        (2, &[1]),
        (6, &[0]),
        (64, &[0]),
        (64, &[0, 1, 2]),
        (65, &[0, 1]),
        (69, &[0, 1, 1]),
        (69, &[0, 1, 1, 4]),
        (70, &[1]),
        (71, &[0, 1, 1, 0, 0, 0]),
        (73, &[5, b'a']),
        (73, &[1, b'a', 200]),
        (73, &[1, b'a', 0, 0]),
        (73, &[1, 0xff, 0]),
        (5, &[0, 1, 0, 1, 0]),
        (9, &[3]),
        (199, &[]),
    ] {
        let n = u8::try_from(value.len()).unwrap();
        let mut params = vec![n + 4, 2, n + 2, code, n];
        params.extend_from_slice(value);
        let caps = parse(&with_params(&params)).unwrap().capabilities;
        assert_eq!(caps, [Capability::Unknown { code, value: value.to_vec() }]);
    }
}

#[test]
fn two_hundred_and_fifty_five_octets_of_parameters_are_fine() {
    let mut params = vec![255, 2, 253, 200, 251];
    params.extend_from_slice(&[7; 251]);
    assert_eq!(parse(&with_params(&params)).unwrap().capabilities.len(), 1);
}

#[test]
fn the_long_form_is_read_and_never_past_the_message() {
    let ok = [255, 255, 0, 5, 2, 0, 2, 2, 0];
    assert_eq!(parse(&with_params(&ok)).unwrap().capabilities, [Capability::RouteRefresh]);
    // The short length is not trusted in the long form.
    assert!(parse(&with_params(&[9, 255, 0, 5, 2, 0, 2, 2, 0])).is_ok());
    for bad in [
        &[255, 255][..],
        &[255, 255, 0],
        &[255, 255, 255, 255, 2],
        &[255, 255, 0, 4, 2, 0, 2, 2, 0],
        &[255, 255, 0, 3, 2, 0, 2],
        &[255, 255, 0, 2, 2, 0],
    ] {
        assert_eq!(refusal(&with_params(bad)), (2, 0, vec![]), "{bad:?}");
    }
    assert!(parse(&with_params(&[255, 255, 0, 0])).unwrap().capabilities.is_empty());
}

#[test]
fn what_is_emitted_is_read_back_in_the_short_and_the_long_form() {
    let mut open = Open {
        asn: 4_200_000_000,
        hold_time: 240,
        router_id: Ipv4Addr::new(192, 0, 2, 1),
        capabilities: vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::MultiProtocol { afi: 16_388, safi: 71 },
            Capability::RouteRefresh,
            Capability::ExtendedMessage,
            Capability::GracefulRestart {
                restarting: true,
                notification: true,
                restart_time: 120,
                families: vec![GrFamily { afi: 2, safi: 1, forwarding_preserved: true }],
            },
            Capability::FourOctetAs(4_200_000_000),
            Capability::AddPath(vec![(1, 1, 3), (2, 1, 1)]),
            Capability::EnhancedRouteRefresh,
            Capability::LongLivedGracefulRestart(vec![(1, 1, 128, 86_400)]),
            Capability::Fqdn { host: "node1".into(), domain: "example.net".into() },
            Capability::Unknown { code: 9, value: vec![4] },
        ],
    };
    for _ in 0..2 {
        let mut buf = BytesMut::new();
        Message::Open(open.clone()).emit(&WireCx::default(), &mut buf).unwrap();
        assert_eq!(parse(&buf).unwrap(), open);
        open.capabilities.push(Capability::Unknown { code: 200, value: vec![1; 250] });
    }
}

#[test]
fn a_capability_that_does_not_fit_is_an_error() {
    let mut open =
        Open { asn: 1, hold_time: 90, router_id: Ipv4Addr::new(1, 1, 1, 1), capabilities: Vec::new() };
    open.capabilities.push(Capability::Fqdn { host: "h".repeat(200), domain: "d".repeat(100) });
    let mut buf = BytesMut::new();
    let m = Message::Open(open);
    assert!(matches!(
        m.emit(&WireCx::default(), &mut buf),
        Err(EmitError::TooLong { what: "capability", .. })
    ));
    assert!(buf.is_empty());
}
