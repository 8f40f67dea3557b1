//! The raw socket on the loopback device (root only: a raw socket needs it).
use super::*;

/// RFC 3692 leaves 253 and 254 to experiments.
const EXPERIMENT: u8 = 253;

fn pair(a: [u8; 4], b: [u8; 4]) -> (RawIp, RawIp) {
    let open = |ip: [u8; 4]| RawIp::open(EXPERIMENT, Ipv4Addr::from(ip), 64, 1 << 20).unwrap();
    (open(a), open(b))
}

#[test]
fn a_batch_arrives_whole_in_order_and_with_its_tos() {
    let (a, b) = pair([127, 9, 1, 1], [127, 9, 1, 2]);
    let datagrams: Vec<Datagram> = (0..10)
        .map(|i| Datagram {
            to: b.local(),
            tos: if i % 2 == 0 { 0 } else { 3 },
            head: i..i + 2,
            body: i * 3..i * 3 + 5,
        })
        .collect();
    let heads: Vec<u8> = (0..100).collect();
    let bodies: Vec<u8> = (100..200).collect();
    assert_eq!(a.send(&heads, &bodies, &datagrams).unwrap(), 10);
    let mut batch = RecvBatch::new(16);
    let mut seen = 0;
    while seen < 10 {
        b.receive(&mut batch).unwrap();
        for i in 0..batch.len() {
            let packet = batch.packet(i).unwrap();
            assert_eq!(packet.len(), 27);
            assert_eq!(packet[1], datagrams[seen].tos);
            assert_eq!(packet[8], 64, "ttl");
            assert_eq!(packet[6] & 0x40, 0x40, "DF");
            assert_eq!(packet[9], EXPERIMENT);
            assert_eq!(&packet[20..22], &heads[datagrams[seen].head.clone()]);
            assert_eq!(&packet[22..27], &bodies[datagrams[seen].body.clone()]);
            seen += 1;
        }
    }
    assert_eq!(batch.packet(batch.len()), None);
}

#[test]
fn a_range_outside_the_buffers_is_refused_and_nothing_is_sent() {
    let (a, b) = pair([127, 9, 2, 1], [127, 9, 2, 2]);
    let bad = Datagram { to: b.local(), tos: 0, head: 0..4, body: 0..1 };
    assert_eq!(a.send(&[0; 3], &[0; 9], &[bad]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn an_oversize_datagram_is_refused_and_the_path_mtu_known() {
    let (a, b) = pair([127, 9, 3, 1], [127, 9, 3, 2]);
    let mtu = a.path_mtu(b.local()).unwrap();
    assert!(mtu >= 1500, "loopback MTU {mtu}");
    let bodies = vec![0; 65_530];
    let big = Datagram { to: b.local(), tos: 0, head: 0..0, body: 0..65_530 };
    if mtu < 65_550 {
        let error = a.send(&[], &bodies, &[big]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}

#[test]
fn an_address_that_is_not_ours_is_refused() {
    assert!(RawIp::open(EXPERIMENT, Ipv4Addr::new(203, 0, 113, 9), 64, 4096).is_err());
}
