//! Single first packets of any protocol, with the addresses and ports they are told, by raw sockets: sent, and whether
//! they arrive. Nothing answers but the kernels.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use brindle_kernel::netns::NetNs;

use super::probe::{icmp_request, payload, raw, sctp_init, token};

/// As those of a round of probes.
const QUIET: Duration = Duration::from_millis(30);
const LIMIT: Duration = Duration::from_secs(3);
/// TCP, UDP, SCTP, IPIP, GRE; and ICMP of either family.
const PROTOCOLS: [u8; 5] = [6, 17, 132, 4, 47];
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// What is sent from one site to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
}

/// Protocol, whether of IPv6, socket.
type Raw = (u8, bool, UdpSocket);

/// Who receives.
pub(crate) struct Receivers {
    sites: Vec<(NetNs, Vec<Raw>)>,
    round: u16,
}

fn icmp(v6: bool) -> u8 {
    if v6 { 58 } else { 1 }
}

impl Receivers {
    /// Sites are known by their position.
    pub(crate) fn new(namespaces: Vec<NetNs>) -> io::Result<Self> {
        let mut sites = Vec::new();
        for ns in namespaces {
            let open = || {
                let mut all = Vec::new();
                for (any, v6) in ANY.into_iter().zip([false, true]) {
                    for protocol in PROTOCOLS.into_iter().chain([icmp(v6)]) {
                        all.push((protocol, v6, raw(any, protocol.into())?));
                    }
                }
                Ok::<_, io::Error>(all)
            };
            let sockets = ns.run(open).map_err(io::Error::other)??;
            sites.push((ns, sockets));
        }
        Ok(Self { sites, round: 0 })
    }

    /// Sends all and tells which arrived where they were sent to. `expected` only shortens the waiting.
    pub(crate) fn round(&mut self, packets: &[Packet], expected: &[bool]) -> io::Result<Vec<bool>> {
        self.round = self.round.wrapping_add(1);
        let mut got = vec![false; packets.len()];
        self.drain(packets, &mut got);
        got.fill(false);
        let mut open = Vec::new();
        for (at, (ns, _)) in self.sites.iter().enumerate() {
            let own: Vec<(usize, &Packet)> =
                packets.iter().enumerate().filter(|(_, p)| p.from == at).collect();
            open.push(ns.run(|| send(&own, self.round)).map_err(io::Error::other)??);
        }
        let (start, mut last) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            if self.drain(packets, &mut got) {
                last = now;
            }
            let complete = got.iter().zip(expected).all(|(g, e)| *g || !*e);
            if (complete || now - start > LIMIT) && now - last > QUIET {
                return Ok(got);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn drain(&self, packets: &[Packet], got: &mut [bool]) -> bool {
        let mut news = false;
        let mut buf = [0; 2048];
        for (at, (_, sockets)) in self.sites.iter().enumerate() {
            for (protocol, v6, socket) in sockets {
                while let Ok((n, _)) = socket.recv_from(&mut buf) {
                    let packet = payload(&buf[..n], *v6);
                    let Some((round, i)) = mark(*protocol, packet) else { continue };
                    let mine = packets.get(i).is_some_and(|p| p.to == at && p.protocol == *protocol);
                    if round == self.round && mine && !got[i] {
                        got[i] = true;
                        news = true;
                    }
                }
            }
        }
        news
    }
}

/// The word a packet carries, unless it is an answer.
fn mark(protocol: u8, p: &[u8]) -> Option<(u16, usize)> {
    let (at, first) = match protocol {
        // A SYN and nothing else: the word is its sequence number.
        6 => (4, p.get(13) == Some(&2)),
        17 => (8, true),
        132 => (16, p.get(12) == Some(&1)),
        1 => (4, p.first() == Some(&8)),
        58 => (4, p.first() == Some(&128)),
        47 => (4, true),
        4 => (20, true),
        _ => return None,
    };
    p.get(at..at + 4).filter(|_| first).and_then(token)
}

/// Sends from the calling thread's namespace. The sockets stay open until the round is over.
fn send(own: &[(usize, &Packet)], round: u16) -> io::Result<BTreeMap<(IpAddr, u8), UdpSocket>> {
    let mut sockets = BTreeMap::new();
    for (i, p) in own {
        let mut word = [0; 4];
        word[..2].copy_from_slice(&round.to_be_bytes());
        word[2..].copy_from_slice(&u16::try_from(*i).map_err(io::Error::other)?.to_be_bytes());
        let socket = match sockets.entry((p.src, p.protocol)) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => e.insert(raw(p.src, p.protocol.into())?),
        };
        // A rule of the own host may refuse it here; then it does not arrive.
        let _ = socket.send_to(&build(p, word), SocketAddr::new(p.dst, 0));
    }
    Ok(sockets)
}

fn build(p: &Packet, word: [u8; 4]) -> Vec<u8> {
    let ports = [p.src_port.to_be_bytes(), p.dst_port.to_be_bytes()].concat();
    match p.protocol {
        6 => {
            let mut out = ports;
            out.extend(word);
            // No acknowledgement; five words, SYN; a window; checksum, no urgent data.
            out.extend([0, 0, 0, 0, 0x50, 2, 0x40, 0, 0, 0, 0, 0]);
            summed(p, out, 16)
        }
        17 => {
            let mut out = ports;
            out.extend([0, 12, 0, 0]);
            out.extend(word);
            summed(p, out, 6)
        }
        132 => sctp_init(p.src_port, p.dst_port, word),
        1 => icmp_request(8, 0, word),
        58 => icmp_request(128, 0, word),
        // No flags, version 0, carries IPv4.
        47 => [&[0, 0, 8, 0][..], &word].concat(),
        // An IPv4 header inside, whose sums nobody checks on the way.
        _ => {
            let mut out = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
            out.extend(word);
            out
        }
    }
}

/// With the checksum of the Internet at `at`, over the pseudo header too.
fn summed(p: &Packet, mut out: Vec<u8>, at: usize) -> Vec<u8> {
    let mut all = match (p.src, p.dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => [s.octets(), d.octets()].concat(),
        (IpAddr::V6(s), IpAddr::V6(d)) => [s.octets(), d.octets()].concat(),
        _ => Vec::new(),
    };
    all.extend([0, p.protocol]);
    all.extend(u16::try_from(out.len()).unwrap_or(u16::MAX).to_be_bytes());
    all.extend(&out);
    let mut sum =
        all.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // All zeroes mean none in UDP.
    let sum = match !(sum as u16) {
        0 if p.protocol == 17 => 0xffff,
        s => s,
    };
    out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_carries_its_word_and_sums_come_out_as_all_ones() {
        let v4 = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse::<IpAddr>().expect("an address"));
        let v6 = ["fd00::1", "fd00::2"].map(|a| a.parse::<IpAddr>().expect("an address"));
        for ([src, dst], protocols) in [(v4, [6, 17, 132, 4, 47, 1]), (v6, [6, 17, 132, 4, 47, 58])] {
            for protocol in protocols {
                let p = Packet { from: 0, to: 1, src, dst, protocol, src_port: 40_000, dst_port: 80 };
                let built = build(&p, [1, 2, 3, 4]);
                assert_eq!(mark(protocol, &built), Some((0x0102, 0x0304)), "{protocol}");
            }
            let p = Packet { from: 0, to: 1, src, dst, protocol: 6, src_port: 1, dst_port: 2 };
            let good = build(&p, [9; 4]);
            // The sum over a packet with its checksum in place is zero.
            let again = summed(&p, good.clone(), 16);
            assert_eq!(again[16..18], [0, 0], "{good:?}");
        }
    }
}
