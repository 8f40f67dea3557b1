//! Everybody tries to reach everybody, over every protocol and port, in one go: sockets are opened inside each
//! namespace once and used from one thread, so that a round of thousands of first packets takes a fraction of a second.
//!
//! TCP is a whole handshake; UDP, SCTP and ICMP are packets that arrive. SCTP goes by raw sockets (an INIT with its
//! checksum), so a kernel without SCTP sockets is no hindrance: connection tracking and filters see the real thing.

use std::{
    collections::BTreeMap,
    io,
    mem::size_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use brindle_kernel::netns::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// Nothing that should not arrive came for so long after the last arrival: it will not come.
const QUIET: Duration = Duration::from_millis(30);
/// How long what should arrive may take.
const LIMIT: Duration = Duration::from_secs(3);
/// A client's port of the first round; each round has its own, so that no round meets the tracked flows of another.
const FIRST_PORT: u16 = 10_000;
const ROUNDS: u16 = 20_000;
/// Where servers listen.
const TCP_PORTS: [u16; 4] = [22, 80, 81, 8080];
const UDP_PORTS: [u16; 3] = [53, 80, 4789];

/// What is tried between two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    /// An echo request.
    Ping,
    /// A timestamp request; IPv4 only.
    Timestamp,
}

impl Probe {
    /// Those of every round.
    pub const ALL: [Self; 8] = [
        Self::Tcp(80),
        Self::Tcp(81),
        Self::Tcp(22),
        Self::Udp(53),
        Self::Udp(80),
        Self::Sctp(80),
        Self::Ping,
        Self::Timestamp,
    ];

    /// Protocol number, destination port, ICMP type and code.
    pub fn header(self, v6: bool) -> (u8, u16, Option<(u8, u8)>) {
        match self {
            Self::Tcp(p) => (6, p, None),
            Self::Udp(p) => (17, p, None),
            Self::Sctp(p) => (132, p, None),
            Self::Ping if v6 => (58, 0, Some((128, 0))),
            Self::Ping => (1, 0, Some((8, 0))),
            Self::Timestamp => (1, 0, Some((13, 0))),
        }
    }
}

/// One first packet: from which site to which address of which site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    pub from: usize,
    pub to: usize,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub probe: Probe,
}

/// A namespace with servers.
#[derive(Debug)]
struct Site {
    ns: NetNs,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    /// Raw, IPv4 and IPv6.
    sctp: [UdpSocket; 2],
    icmp: [UdpSocket; 2],
}

/// All sites.
#[derive(Debug)]
pub struct Prober {
    sites: Vec<Site>,
    round: u16,
}

const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// A raw socket, with the interface of a datagram socket: sends and receives with addresses, ports mean nothing.
pub(super) fn raw(bound: IpAddr, protocol: i32) -> io::Result<UdpSocket> {
    let domain = if bound.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let s = Socket::new(domain, Type::from(3), Some(Protocol::from(protocol)))?;
    s.set_nonblocking(true)?;
    s.bind(&SocketAddr::new(bound, 0).into())?;
    Ok(s.into())
}

impl Site {
    fn open(ns: NetNs) -> io::Result<Self> {
        let inside = ns.run(|| {
            let any = ANY[1];
            let mut tcp = Vec::new();
            for port in TCP_PORTS {
                let s = TcpListener::bind((any, port))?;
                s.set_nonblocking(true)?;
                tcp.push(s);
            }
            let mut udp = Vec::new();
            for port in UDP_PORTS {
                let s = UdpSocket::bind((any, port))?;
                s.set_nonblocking(true)?;
                udp.push(s);
            }
            let sctp = [raw(ANY[0], 132)?, raw(ANY[1], 132)?];
            let icmp = [raw(ANY[0], 1)?, raw(ANY[1], 58)?];
            Ok::<_, io::Error>((tcp, udp, sctp, icmp))
        });
        let (tcp, udp, sctp, icmp) = inside.map_err(io::Error::other)??;
        Ok(Self { ns, tcp, udp, sctp, icmp })
    }
}

/// One round's sockets of one site, and what waits for an answer.
#[derive(Default)]
struct Sent {
    /// Attempt → connecting socket.
    tcp: Vec<(usize, Socket)>,
    /// Kept open: an ICMP error to a closed port would end the flow.
    _other: Vec<UdpSocket>,
}

impl Prober {
    /// Opens servers in these namespaces; sites are known by their position.
    pub fn new(sites: Vec<NetNs>) -> io::Result<Self> {
        Ok(Self { sites: sites.into_iter().map(Site::open).collect::<Result<_, _>>()?, round: 0 })
    }

    /// Tries all of it and tells what arrived. `expected` only shortens the waiting: when all of that is there and
    /// then nothing more comes, the round is over.
    pub fn round(&mut self, attempts: &[Attempt], expected: &[bool]) -> io::Result<Vec<bool>> {
        self.round = (self.round + 1) % ROUNDS;
        let port = FIRST_PORT + self.round;
        self.drain(port, &mut vec![false; attempts.len()]);
        let mut by_site: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, a) in attempts.iter().enumerate() {
            by_site.entry(a.from).or_default().push(i);
        }
        let mut sent = Vec::new();
        for (site, own) in &by_site {
            let site = &self.sites[*site];
            sent.push(site.ns.run(|| send(attempts, own, port)).map_err(io::Error::other)??);
        }
        let mut got = vec![false; attempts.len()];
        let (start, mut last) = (Instant::now(), Instant::now());
        loop {
            let mut news = self.drain(port, &mut got);
            for s in &mut sent {
                s.tcp.retain(|(i, socket)| {
                    let connected = socket.peer_addr().is_ok();
                    if connected {
                        got[*i] = true;
                        news = true;
                    }
                    !connected
                });
            }
            let now = Instant::now();
            if news {
                last = now;
            }
            let complete = got.iter().zip(expected).all(|(g, e)| *g || !*e);
            if (complete || now - start > LIMIT) && now - last > QUIET {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(got)
    }

    /// Takes what has arrived; `true` if there was something of this round.
    fn drain(&self, port: u16, got: &mut [bool]) -> bool {
        let mut news = false;
        let mut arrived = |i: usize| {
            if let Some(g) = got.get_mut(i) {
                news |= !*g;
                *g = true;
            }
        };
        let mut buf = [0u8; 2048];
        for site in &self.sites {
            for s in &site.tcp {
                // Closed at once: the client saw it open.
                while s.accept().is_ok() {}
            }
            for s in &site.udp {
                while let Ok((n, _)) = s.recv_from(&mut buf) {
                    if let Some((p, i)) = token(&buf[..n])
                        && p == port
                    {
                        arrived(i);
                    }
                }
            }
            for (family, s) in site.sctp.iter().enumerate() {
                while let Ok((n, _)) = s.recv_from(&mut buf) {
                    let packet = payload(&buf[..n], family == 1);
                    // Common header, INIT chunk, initiate tag.
                    if let Some((p, i)) = packet.get(16..20).and_then(token)
                        && p == port
                        && packet.get(12) == Some(&1)
                    {
                        arrived(i);
                    }
                }
            }
            for (family, s) in site.icmp.iter().enumerate() {
                while let Ok((n, _)) = s.recv_from(&mut buf) {
                    let packet = payload(&buf[..n], family == 1);
                    let request = packet.first().is_some_and(|t| [8, 13, 128].contains(t));
                    if let Some((p, i)) = packet.get(4..8).and_then(token)
                        && p == port
                        && request
                    {
                        arrived(i);
                    }
                }
            }
        }
        news
    }
}

/// Round and attempt as the packets carry them.
pub(super) fn token(octets: &[u8]) -> Option<(u16, usize)> {
    let [a, b, c, d] = octets.try_into().ok()?;
    Some((u16::from_be_bytes([a, b]), usize::from(u16::from_be_bytes([c, d]))))
}

/// A raw IPv4 socket gives the header too.
pub(super) fn payload(packet: &[u8], v6: bool) -> &[u8] {
    let skip = if v6 { 0 } else { packet.first().map_or(0, |b| usize::from(b & 15) * 4) };
    packet.get(skip..).unwrap_or_default()
}

fn send(attempts: &[Attempt], own: &[usize], port: u16) -> io::Result<Sent> {
    let mut out = Sent::default();
    // One socket per source address and protocol.
    let mut datagram: BTreeMap<(IpAddr, u8), UdpSocket> = BTreeMap::new();
    for &i in own {
        let a = attempts[i];
        let (protocol, dport, icmp) = a.probe.header(a.dst.is_ipv6());
        let mut word = [0; 4];
        word[..2].copy_from_slice(&port.to_be_bytes());
        word[2..].copy_from_slice(&u16::try_from(i).map_err(io::Error::other)?.to_be_bytes());
        if protocol == 6 {
            let domain = if a.dst.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let s = Socket::new(domain, Type::STREAM, None)?;
            s.set_nonblocking(true)?;
            s.set_reuse_address(true)?;
            s.set_linger(Some(Duration::ZERO))?;
            s.bind(&SocketAddr::new(a.src, port).into())?;
            // In progress, or refused at once by a rule of the own host.
            let _ = s.connect(&SocketAddr::new(a.dst, dport).into());
            out.tcp.push((i, s));
            continue;
        }
        let s = match datagram.entry((a.src, protocol)) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => e.insert(match protocol {
                17 => {
                    let s = UdpSocket::bind((a.src, port))?;
                    s.set_nonblocking(true)?;
                    s
                }
                p => raw(a.src, p.into())?,
            }),
        };
        let packet = match (protocol, icmp) {
            (132, _) => sctp_init(port, dport, word),
            (_, Some((kind, code))) => icmp_request(kind, code, word),
            _ => word.to_vec(),
        };
        let to = SocketAddr::new(a.dst, if protocol == 17 { dport } else { 0 });
        // A rule of the own host may refuse it here; then it does not arrive.
        let _ = s.send_to(&packet, to);
    }
    out._other = datagram.into_values().collect();
    Ok(out)
}

pub(super) fn icmp_request(kind: u8, code: u8, word: [u8; 4]) -> Vec<u8> {
    let mut p = vec![kind, code, 0, 0];
    p.extend(word);
    p.extend([0; 12]);
    // ICMPv6's checksum is the kernel's business.
    let sum = p.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    p[2..4].copy_from_slice(&sum.to_be_bytes());
    p
}

/// RFC 9260: common header and an INIT chunk.
pub(super) fn sctp_init(sport: u16, dport: u16, tag: [u8; 4]) -> Vec<u8> {
    let mut p = Vec::with_capacity(32);
    p.extend(sport.to_be_bytes());
    p.extend(dport.to_be_bytes());
    // Verification tag of an INIT is 0; the checksum comes last.
    p.extend([0; 8]);
    p.extend([1, 0, 0, 20]);
    p.extend(tag);
    p.extend(65_535u32.to_be_bytes());
    p.extend([0, 1, 0, 1]);
    p.extend(1u32.to_be_bytes());
    let sum = crc32c(&p).to_le_bytes();
    p[8..8 + size_of::<u32>()].copy_from_slice(&sum);
    p
}

fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfcs() {
        // RFC 3720, B.4: 32 octets of zeroes.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        let p = icmp_request(8, 0, [1, 2, 3, 4]);
        let sum = p.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum::<u32>();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
