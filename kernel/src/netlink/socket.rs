//! One netlink socket: open, send, receive with a deadline, cut datagrams into frames. Knows nothing of routes.
//!
//! rtnetlink answers a request inside `sendmsg`, so a receive normally finds its data waiting; `poll` is entered only
//! when it does not.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, setsockopt, sockopt},
};

use socket2::{SockFilter, SockRef};

use super::error::NetlinkError;

/// Kernels fill dump answers up to the size of our buffer, 32 KiB at most.
const BUFFER: usize = 64 * 1024;

/// `nlmsghdr`.
pub(crate) const HEADER: usize = 16;

pub(crate) struct NlSocket {
    sock: Socket,
    buf: Vec<u8>,
    seq: u32,
    port: u32,
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// The requester's port in an answer; in a notification, the port whose request caused the change (0 = none).
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

fn os(what: &str, e: &std::io::Error) -> NetlinkError {
    NetlinkError::Socket { what: what.to_owned(), errno: e.raw_os_error().unwrap_or(0) }
}

impl NlSocket {
    /// A route socket in the namespace of the calling thread, with a receive buffer of at least `rcvbuf` bytes if
    /// that can be had (CAP_NET_ADMIN forces it; otherwise net.core.rmem_max limits it).
    pub(crate) fn open(rcvbuf: usize) -> Result<Self, NetlinkError> {
        Self::open_protocol(NETLINK_ROUTE, rcvbuf)
    }

    /// The same for another netlink protocol.
    pub(crate) fn open_protocol(protocol: isize, rcvbuf: usize) -> Result<Self, NetlinkError> {
        let what = "open netlink socket";
        let mut sock = Socket::new(protocol).map_err(|e| os(what, &e))?;
        let port = sock.bind_auto().map_err(|e| os(what, &e))?.port_number();
        // Older kernels lack these three; everything works without them, with less said about errors.
        let _ = sock.set_ext_ack(true);
        let _ = sock.set_cap_ack(true);
        let _ = sock.set_netlink_get_strict_chk(true);
        let out = Self { sock, buf: vec![0; BUFFER], seq: 0, port };
        if rcvbuf > 0 {
            out.set_rcvbuf(rcvbuf)?;
        }
        Ok(out)
    }

    /// Asks for another receive buffer; the kernel has a minimum.
    pub(crate) fn set_rcvbuf(&self, rcvbuf: usize) -> Result<(), NetlinkError> {
        if setsockopt(&self.sock, sockopt::RcvBufForce, &rcvbuf).is_err()
            && let Err(e) = setsockopt(&self.sock, sockopt::RcvBuf, &rcvbuf)
        {
            return Err(NetlinkError::Socket { what: "set SO_RCVBUF".into(), errno: e as i32 });
        }
        Ok(())
    }

    /// Whether a datagram of so many bytes can be sent; asks for a buffer that holds it. CAP_NET_ADMIN forces it, otherwise
    /// net.core.wmem_max limits it.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        // The kernel's own part of the buffer.
        let needed = bytes.saturating_add(1024);
        let has = || getsockopt(&self.sock, sockopt::SndBuf).is_ok_and(|n| n >= needed);
        has() || {
            // The kernel reserves twice what it is asked for. What it gave in the end is looked at below.
            if setsockopt(&self.sock, sockopt::SndBufForce, &needed).is_err() {
                let _ = setsockopt(&self.sock, sockopt::SndBuf, &needed);
            }
            has()
        }
    }

    /// Address of this socket on the netlink bus.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    pub(crate) fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        self.sock.add_membership(group).map_err(|e| os("join netlink group", &e))
    }

    /// Lets the kernel look at what comes before it is queued.
    pub(crate) fn filter(&self, program: &[SockFilter]) -> std::io::Result<()> {
        SockRef::from(&self.sock).attach_filter(program)
    }

    /// The next sequence number, never 0 (which notifications carry).
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.checked_add(1).unwrap_or(1);
        self.seq
    }

    pub(crate) fn send(&self, bytes: &[u8], what: &str) -> Result<(), NetlinkError> {
        let kernel = SocketAddr::new(0, 0);
        loop {
            match self.sock.send_to(bytes, &kernel, 0) {
                Ok(n) if n == bytes.len() => return Ok(()),
                Ok(n) => {
                    let reason = format!("only {n} of {} bytes were sent", bytes.len());
                    return Err(NetlinkError::Garbled { what: what.to_owned(), reason });
                }
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(os(what, &e)),
            }
        }
    }

    /// One datagram from the kernel. `limit` none waits for ever. `also` is a second descriptor whose readiness ends
    /// the wait with `Ok(None)`.
    pub(crate) fn recv(
        &mut self,
        limit: Option<Limit>,
        also: Option<BorrowedFd<'_>>,
        what: &str,
    ) -> Result<Option<&[u8]>, NetlinkError> {
        let len = loop {
            let mut slot: &mut [u8] = &mut self.buf;
            match self.sock.recv_from(&mut slot, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
                // Another process may send to our port; only port 0 is the kernel.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((n, _)) if n > BUFFER => {
                    let reason = format!("truncated: {n} bytes, {BUFFER} taken");
                    return Err(NetlinkError::Garbled { what: what.to_owned(), reason });
                }
                Ok((n, _)) => break n,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => return Err(NetlinkError::Overrun { what: what.to_owned() }),
                    Some(libc::EAGAIN) => {
                        if self.wait(limit, also, what)? {
                            return Ok(None);
                        }
                    }
                    _ => return Err(os(what, &e)),
                },
            }
        };
        Ok(self.buf.get(..len))
    }

    /// Waits until the socket (false) or `also` (true) is readable.
    fn wait(
        &self,
        limit: Option<Limit>,
        also: Option<BorrowedFd<'_>>,
        what: &str,
    ) -> Result<bool, NetlinkError> {
        loop {
            let left = match limit {
                None => PollTimeout::NONE,
                Some(l) => match l.left() {
                    None => return Err(NetlinkError::Timeout { what: what.to_owned(), after: l.whole }),
                    // Round up, or the last millisecond becomes a busy loop.
                    Some(d) => {
                        PollTimeout::try_from(d.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
                    }
                },
            };
            let mut fds = vec![PollFd::new(self.sock.as_fd(), PollFlags::POLLIN)];
            fds.extend(also.map(|f| PollFd::new(f, PollFlags::POLLIN)));
            match poll(&mut fds, left) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => {
                    let ready = |i: usize| fds.get(i).is_some_and(|f| f.any().unwrap_or(true));
                    return Ok(ready(1) && !ready(0));
                }
                Err(e) => return Err(NetlinkError::Socket { what: what.to_owned(), errno: e as i32 }),
            }
        }
    }
}

impl AsFd for NlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sock.as_fd()
    }
}

/// A deadline that remembers how long it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    at: Instant,
    whole: Duration,
}

impl Limit {
    pub(crate) fn after(whole: Duration) -> Self {
        let now = Instant::now();
        Self { at: now.checked_add(whole).unwrap_or(now), whole }
    }

    fn left(&self) -> Option<Duration> {
        self.at.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
    }
}

/// Cuts a datagram into messages. A bad length ends the iteration with an error.
pub(crate) struct Frames<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        let Some((head, _)) = whole.split_at_checked(HEADER) else {
            return Some(Err(format!("{} bytes left, a header has {HEADER}", whole.len())));
        };
        let word =
            |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let half =
            |at: usize| head.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes);
        let len = word(0) as usize;
        let Some(payload) = whole.get(HEADER..len) else {
            return Some(Err(format!("message says {len} bytes, {} are there", whole.len())));
        };
        self.0 = whole.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Frame { kind: half(4), flags: half(6), seq: word(8), port: word(12), payload }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, seq: u32, body: &[u8]) -> Vec<u8> {
        let mut m = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        m.extend(kind.to_ne_bytes());
        m.extend(0u16.to_ne_bytes());
        m.extend(seq.to_ne_bytes());
        m.extend(0u32.to_ne_bytes());
        m.extend(body);
        m.resize(m.len().next_multiple_of(4), 0);
        m
    }

    #[test]
    fn frames_are_cut_at_their_padded_lengths() {
        let mut d = message(24, 7, &[1, 2, 3]);
        d.extend(message(3, 7, &[0; 4]));
        let all: Vec<_> = Frames(&d).map(Result::unwrap).map(|f| (f.kind, f.seq, f.payload.len())).collect();
        assert_eq!(all, [(24, 7, 3), (3, 7, 4)]);
    }

    #[test]
    fn a_truncated_datagram_is_an_error_and_ends() {
        let d = message(24, 7, &[1, 2, 3, 4]);
        for cut in 1..d.len() {
            let got: Vec<_> = Frames(&d[..cut]).collect();
            assert_eq!(got.len(), 1, "{cut}");
            assert!(got[0].is_err(), "{cut}");
        }
    }

    #[test]
    fn silence_ends_with_a_timeout_not_a_hang() {
        let mut s = NlSocket::open(0).unwrap();
        let got = s.recv(Some(Limit::after(Duration::from_millis(20))), None, "wait for nothing");
        assert!(matches!(got, Err(NetlinkError::Timeout { .. })), "{got:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(d in proptest::collection::vec(any::<u8>(), 0..200)) {
            let n = Frames(&d).count();
            prop_assert!(n <= d.len());
        }
    }
}
