//! Which flow a packet belongs to, as a number: the same for all packets of a flow, spread evenly over flows. Equal-cost
//! nodes share the flows by it.

use super::ipv4::Header;

/// Protocols whose header begins with two ports.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// Hash of addresses, protocol and, where every packet of the flow shows them, ports. Fragments show no ports, and a
/// datagram's fragments must stay together: a packet that is one is hashed by its addresses alone.
pub fn flow_hash(packet: &[u8], header: &Header) -> u32 {
    let whole = !header.more_fragments && header.fragment_offset == 0;
    let ports = match packet.get(header.header_len..).and_then(|p| p.first_chunk::<4>()) {
        Some(ports) if whole && WITH_PORTS.contains(&header.protocol) => u32::from_be_bytes(*ports),
        _ => 0,
    };
    let protocol = if whole { u64::from(header.protocol) } else { 0 };
    let addresses = (u64::from(header.src.to_bits()) << 32) | u64::from(header.dst.to_bits());
    let mixed = mix(mix(addresses) ^ (u64::from(ports) << 8) ^ protocol);
    // The upper half: it depends on every bit that went in.
    u32::try_from(mixed >> 32).unwrap_or(0)
}

/// A bijection of 64 bits in which every bit bears on every other (the finalizer of splitmix64).
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;
    use crate::ipip::table::{Choice, Table};

    fn udp(port: u16, fragment: u16) -> Vec<u8> {
        let mut p = vec![
            0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 192, 168, 0, 5, 192, 168, 1, 5, 0, 0, 0, 53, 0, 8, 0, 0,
        ];
        p[6..8].copy_from_slice(&fragment.to_be_bytes());
        p[20..22].copy_from_slice(&port.to_be_bytes());
        p
    }

    fn hash(p: &[u8]) -> u32 {
        flow_hash(p, &Header::parse(p).unwrap())
    }

    #[test]
    fn flows_are_spread_by_weight_and_each_stays_on_its_way() {
        let [a, b] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        let routes = [("192.168.1.0/24".parse().unwrap(), &[a, b, b, b][..])];
        let t = Table::new(Ipv4Addr::new(10, 0, 0, 9), routes, []).unwrap();
        let choice = t.via(Ipv4Addr::new(192, 168, 1, 5)).unwrap();
        let mut count = BTreeMap::new();
        for port in 0..4000 {
            let p = udp(port, 0);
            assert_eq!(choice.of(hash(&p)), choice.of(hash(&p)));
            *count.entry(choice.of(hash(&p))).or_insert(0) += 1;
        }
        assert!((800..1200).contains(&count[&a]) && (2800..3200).contains(&count[&b]), "{count:?}");
        assert_eq!(Choice::Many(&[a, b]).of(u32::MAX), b);
        assert_eq!(Choice::Many(&[a, b]).of(0), a);
    }

    #[test]
    fn the_fragments_of_a_datagram_stay_together() {
        let (first, later) = (udp(1234, 0x2000), udp(9, 0x0010));
        assert_eq!(hash(&first), hash(&later));
        assert_ne!(hash(&udp(1234, 0)), hash(&udp(1235, 0)));
    }
}
