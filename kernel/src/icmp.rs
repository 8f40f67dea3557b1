//! ICMP and ICMPv6 echo over raw sockets: the lab's prober. One socket belongs to the namespace it was opened in for good, so
//! one thread can probe from many namespaces. RFC 792, RFC 4443; fragmentation-needed as in RFC 1191. Which probes to send,
//! and what an answer proves, is the caller's business.
#![expect(unsafe_code, reason = "ICMP_FILTER and IP_MTU_DISCOVER have no safe binding")]

use std::{
    io,
    mem::{MaybeUninit, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Option of raw sockets (linux/icmp.h).
const ICMP_FILTER: i32 = 1;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
/// Code of "fragmentation needed and DF set".
pub const FRAG_NEEDED: u8 = 4;
/// IPv4 header without options, and ICMP echo header.
const HEADERS: usize = 20 + 8;
/// IPv6 header, and ICMPv6 echo header.
const HEADERS6: usize = 40 + 8;
/// Option of raw sockets (linux/icmpv6.h): a set bit keeps the type out.
const ICMP6_FILTER: i32 = 1;
const UNREACHABLE6: u8 = 1;
const TOO_BIG6: u8 = 2;
const TIME_EXCEEDED6: u8 = 3;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An echo reply; `len` is the size of the whole packet with its IP header.
    Reply { from: IpAddr, id: u16, seq: u16, len: usize },
    /// An error about one of our requests. `mtu` is set for [`FRAG_NEEDED`] only.
    Error { reporter: IpAddr, to: IpAddr, id: u16, seq: u16, kind: ErrorKind },
}

/// Why a request did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// With the ICMP code.
    Unreachable(u8),
    /// With the MTU of the next hop.
    FragNeeded(u16),
    TimeExceeded,
}

/// A raw ICMP or ICMPv6 socket whose packets are not fragmented, non-blocking.
#[derive(Debug)]
pub struct EchoSocket {
    socket: Socket,
    v6: bool,
}

impl EchoSocket {
    /// Opens a socket in the network namespace of the calling thread. Needs CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking().cloexec(), Some(Protocol::ICMPV4))?;
        // A set bit keeps the type out; everything but the answers is kept out.
        let filter = !((1u32 << ECHO_REPLY) | (1 << UNREACHABLE) | (1 << TIME_EXCEEDED));
        set_u32(&socket, libc::SOL_RAW, ICMP_FILTER, filter)?;
        set_u32(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO as u32)?;
        socket.set_recv_buffer_size(1 << 20)?;
        Ok(Self { socket, v6: false })
    }

    /// The same for IPv6.
    pub fn open6() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW.nonblocking().cloexec(), Some(Protocol::ICMPV6))?;
        let mut filter = [u32::MAX; 8];
        for kind in [UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, ECHO_REPLY6] {
            if let Some(word) = filter.get_mut(usize::from(kind >> 5)) {
                *word &= !(1 << (kind & 31));
            }
        }
        set(&socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &filter)?;
        set_u32(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO as u32)?;
        set_u32(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
        socket.set_recv_buffer_size(1 << 20)?;
        Ok(Self { socket, v6: true })
    }

    /// Sends an echo request; the packet with its IP header is `len` bytes long (at least 28, or 48 for IPv6).
    pub fn send(&self, to: impl Into<IpAddr>, id: u16, seq: u16, len: usize) -> io::Result<()> {
        let packet = match self.v6 {
            false => request(ECHO_REQUEST, id, seq, len.saturating_sub(HEADERS)),
            // The kernel makes the checksum anew: it covers the addresses.
            true => request(ECHO_REQUEST6, id, seq, len.saturating_sub(HEADERS6)),
        };
        let to = SockAddr::from(SocketAddr::new(to.into(), 0));
        self.socket.send_to(&packet, &to).map(drop)
    }

    /// The next answer, if there is one now. Packets that are none are skipped.
    pub fn recv(&self) -> io::Result<Option<Answer>> {
        let mut buf = [MaybeUninit::uninit(); 9216];
        loop {
            match self.socket.recv_from(&mut buf) {
                Ok((n, from)) => {
                    let from = from.as_socket().map(|a| a.ip());
                    // SAFETY: the kernel has written the first `n` bytes.
                    let packet =
                        unsafe { std::slice::from_raw_parts(buf.as_ptr().cast::<u8>(), n.min(buf.len())) };
                    let answer =
                        if self.v6 { from.and_then(|from| parse6(from, packet)) } else { parse(packet) };
                    if answer.is_some() {
                        return Ok(answer);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Waits until some of the sockets have something to read; returns their indices, none after `timeout`.
pub fn wait_readable(sockets: &[EchoSocket], timeout: Duration) -> io::Result<Vec<usize>> {
    let mut fds: Vec<_> = sockets.iter().map(|s| PollFd::new(s.socket.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
    Ok(fds.iter().enumerate().filter(|(_, fd)| ready(fd)).map(|(i, _)| i).collect())
}

fn set_u32(socket: &Socket, level: i32, option: i32, value: u32) -> io::Result<()> {
    set(socket, level, option, &value)
}

fn set<T: Copy>(socket: &Socket, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the descriptor is open.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An echo request with `payload` bytes of a counting pattern.
fn request(kind: u8, id: u16, seq: u16, payload: usize) -> Vec<u8> {
    let mut p = vec![kind, 0, 0, 0];
    p.extend(id.to_be_bytes());
    p.extend(seq.to_be_bytes());
    p.extend((0..payload).map(|i| i as u8));
    let sum = checksum(&p).to_be_bytes();
    p.splice(2..4, sum);
    p
}

/// RFC 1071.
fn checksum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        let word = match *pair {
            [a, b] => u16::from_be_bytes([a, b]),
            [a] => u16::from_be_bytes([a, 0]),
            _ => 0,
        };
        sum = sum.wrapping_add(u32::from(word));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Splits an IPv4 packet into source, destination and payload.
fn ipv4(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let address = |at: usize| {
        let b: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(b))
    };
    Some((address(12)?, address(16)?, packet.get(header..)?))
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a received packet; `None` for what is no answer.
fn parse(packet: &[u8]) -> Option<Answer> {
    let (from, _, icmp) = ipv4(packet)?;
    match *icmp.first()? {
        ECHO_REPLY if checksum(icmp) == 0 => Some(Answer::Reply {
            from: from.into(),
            id: word(icmp, 4)?,
            seq: word(icmp, 6)?,
            len: packet.len(),
        }),
        kind @ (UNREACHABLE | TIME_EXCEEDED) => {
            let code = *icmp.get(1)?;
            let (_, to, inner) = ipv4(icmp.get(8..)?)?;
            if *inner.first()? != ECHO_REQUEST {
                return None;
            }
            let kind = match (kind, code) {
                (UNREACHABLE, FRAG_NEEDED) => ErrorKind::FragNeeded(word(icmp, 6)?),
                (UNREACHABLE, code) => ErrorKind::Unreachable(code),
                _ => ErrorKind::TimeExceeded,
            };
            let (reporter, to) = (from.into(), to.into());
            Some(Answer::Error { reporter, to, id: word(inner, 4)?, seq: word(inner, 6)?, kind })
        }
        _ => None,
    }
}

/// Reads a received ICMPv6 message (the kernel has taken the IPv6 header off and checked the sum).
fn parse6(from: IpAddr, icmp: &[u8]) -> Option<Answer> {
    match *icmp.first()? {
        ECHO_REPLY6 => Some(Answer::Reply {
            from,
            id: word(icmp, 4)?,
            seq: word(icmp, 6)?,
            len: icmp.len().saturating_add(40),
        }),
        kind @ (UNREACHABLE6 | TOO_BIG6 | TIME_EXCEEDED6) => {
            let code = *icmp.get(1)?;
            // Our requests have no extension headers.
            let request = icmp.get(8..)?;
            let to: [u8; 16] = request.get(24..40)?.try_into().ok()?;
            let inner = request.get(40..)?;
            if *inner.first()? != ECHO_REQUEST6 {
                return None;
            }
            let kind = match kind {
                TOO_BIG6 => ErrorKind::FragNeeded(word(icmp, 6)?),
                UNREACHABLE6 => ErrorKind::Unreachable(code),
                _ => ErrorKind::TimeExceeded,
            };
            let to = IpAddr::V6(Ipv6Addr::from(to));
            Some(Answer::Error { reporter: from, to, id: word(inner, 4)?, seq: word(inner, 6)?, kind })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
        p.extend(from);
        p.extend(to);
        p.extend(payload);
        p
    }

    #[test]
    fn a_reply_is_read_with_its_whole_length() {
        let mut reply = request(ECHO_REQUEST, 7, 9, 100);
        reply[0] = ECHO_REPLY;
        reply[2..4].fill(0);
        let sum = checksum(&reply).to_be_bytes();
        reply[2..4].copy_from_slice(&sum);
        let p = packet([10, 0, 0, 2], [10, 0, 0, 1], &reply);
        let from = Ipv4Addr::new(10, 0, 0, 2).into();
        assert_eq!(parse(&p), Some(Answer::Reply { from, id: 7, seq: 9, len: 128 }));
        let mut torn = p.clone();
        torn[60] ^= 1;
        assert_eq!(parse(&torn), None, "a wrong checksum is no answer");
    }

    #[test]
    fn fragmentation_needed_names_the_request_and_the_mtu() {
        let inner = packet([10, 0, 0, 1], [10, 0, 0, 9], &request(ECHO_REQUEST, 7, 3, 0));
        let mut icmp = vec![UNREACHABLE, FRAG_NEEDED, 0, 0, 0, 0, 0x05, 0xc8];
        icmp.extend(inner);
        let p = packet([10, 0, 0, 254], [10, 0, 0, 1], &icmp);
        assert_eq!(
            parse(&p),
            Some(Answer::Error {
                reporter: Ipv4Addr::new(10, 0, 0, 254).into(),
                to: Ipv4Addr::new(10, 0, 0, 9).into(),
                id: 7,
                seq: 3,
                kind: ErrorKind::FragNeeded(1480),
            })
        );
    }

    #[test]
    fn icmpv6_answers_are_read() {
        let from = IpAddr::V6("fd00::9".parse().unwrap());
        let reply = request(ECHO_REPLY6, 7, 9, 100);
        assert_eq!(parse6(from, &reply), Some(Answer::Reply { from, id: 7, seq: 9, len: 148 }));
        let to: Ipv6Addr = "fd00::5".parse().unwrap();
        let mut big = vec![TOO_BIG6, 0, 0, 0, 0, 0, 0x05, 0xc8];
        big.extend([0x60, 0, 0, 0, 0, 8, 58, 64]);
        big.extend([0; 16]);
        big.extend(to.octets());
        big.extend(request(ECHO_REQUEST6, 7, 3, 0));
        let error =
            Answer::Error { reporter: from, to: to.into(), id: 7, seq: 3, kind: ErrorKind::FragNeeded(1480) };
        assert_eq!(parse6(from, &big), Some(error));
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_reader_panic(p in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&p);
            let _ = parse6(IpAddr::V6(Ipv6Addr::LOCALHOST), &p);
        }
    }
}
